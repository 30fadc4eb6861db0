"""Pictures: a folder of images, a convolutional model, reconstructions and new pictures.

    python examples/pictures.py

The pictures are made here: discs of any place and size. With a folder of your own, ``path`` is your
folder, its sub-folders are classes, and all images have one size.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from pyro_bvae import latents, load, plots, runs
from pyro_bvae.runs import TrainConfig


def draw(folder: Path, count: int) -> None:
    """Write grey pictures of 28 x 28 pixels, small discs and large ones in a folder each."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:28, :28]
    for number in range(count):
        name, size = ("small", 4) if number % 2 else ("large", 7)
        (folder / name).mkdir(parents=True, exist_ok=True)
        row, column = rng.uniform(8, 20, 2)
        disc = np.hypot(rows - row, columns - column) - size
        pixels = 255 / (1 + np.exp(2 * disc))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:04d}.png")


def main(folder: Path, epochs: int) -> None:
    """Train on the pictures, look at the codes, rebuild some and make new ones."""
    draw(folder / "pictures", 400)
    config = TrainConfig(
        dataset="file", path=str(folder / "pictures"), network="convolutional", hidden=(64,),
        latent_dim=3, likelihood="continuous-bernoulli", epochs=epochs, learning_rate=3e-3,
    )  # fmt: skip
    runs.train(config, folder / "run", progress=False)

    run = load(folder / "run")
    test = run.part("test")
    embedding = latents.embed(run)
    for label, name in enumerate(test.label_names):
        print(f"mean code of {name} discs:", embedding.means[test.labels == label].mean(0))
    rebuilt = latents.reconstruct(run)
    print(f"error of a pixel: {(rebuilt - test.x).abs().mean():.3f}")
    plots.reconstructions(test.x, rebuilt, test.image_shape).savefig(folder / "rebuilt.png")
    made = latents.generate(run, 20, seed=1)
    plots.image_grid(made, test.image_shape, "New discs").savefig(folder / "new.png")
    print("written:", ", ".join(sorted(path.name for path in folder.glob("*.png"))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    with tempfile.TemporaryDirectory() as made:
        main(Path(made), parser.parse_args().epochs)
