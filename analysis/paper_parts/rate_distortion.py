"""Row 5: what each decoder could do at other β, and slopes against the number of training images."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure

from paper_parts.machinery import Entry, Line, Place, Row, Work, kept, read, write
from pyro_bvae import BetaVAE, Decoder, rate_distortion, sweep
from pyro_bvae.datasets import mnist
from pyro_bvae.evaluation import rate_distortion_curve
from pyro_bvae.evaluation.marginal import AnnealingSettings
from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

LATENTS, HIDDEN, STEPS, BATCH = 20, (200, 200), 3000, 128
SIZES, BETAS = (2000, 10_000, 60_000), (0.25, 0.5, 1.0, 4.0)
DECODERS = (0.25, 1.0, 4.0)
POINTS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
NUM_CURVE, NUM_SLOPE = 20, 2000
ANNEALING = AnnealingSettings(num_temperatures=400, num_chains=16)
CURVES = "rate_distortion_curves.csv"


def make_vae(seed: int) -> BetaVAE:
    """Return an untrained model."""
    torch.manual_seed(seed)
    decoder = Decoder(MLP(LATENTS, 784, hidden=HIDDEN), BernoulliLikelihood())
    return BetaVAE(NormalPrior(LATENTS), decoder, NormalPosterior(MLP(784, 2 * LATENTS, HIDDEN)))


def swept(work: Work, size: int) -> tuple[list[tuple[float, BetaVAE]], Any, Any]:
    """Return the models of all β that were trained on some images, those and the test images."""
    splits = mnist(work.place.data_root, validation=0, download=False).binarized("static", 0)
    train = splits.train.dense()[:size]
    epochs = max(1, round(STEPS / -(-size // BATCH)))
    output = work.folder.parent / f"sweep-{size}"
    models = sweep(
        make_vae, train, betas=BETAS, epochs=epochs, batch_size=BATCH, progress=False, output=output,
        resume=output.exists(), callbacks=lambda replica: [work.clock.tick],
    )  # fmt: skip
    return [(run.beta, run.vae) for run in models], train.x, splits.test.dense().x


def measure_slope(work: Work, *, size: int) -> Line:
    """Return the slope at the high rate end as a multiple of the law's, on test and training images."""
    models, train, test = swept(work, size)

    def slope(x: torch.Tensor) -> tuple[float, float]:
        found = rate_distortion(models[:2], x[:NUM_SLOPE], num_samples=16).slopes[0]
        return found.value / found.law, abs(found.error / found.law)

    def both() -> dict[str, Any]:
        return {"test": slope(test), "train": slope(train)}

    found = kept(work.folder / "slopes.json", both)
    work.clock.tick()
    (ours, error), (fitted, fitted_error) = found["test"], found["train"]
    return {
        "ours": f"{ours:.3f}",
        "standard_error": f"{error:.3f}",
        "images": f"{min(NUM_SLOPE, len(test))}",
        "seeds": "1",
        "note": f"{fitted:.3f} ± {fitted_error:.3f} on the training images",
    }


def measure_curve(work: Work, *, beta: float) -> Line:
    """Return how much lower the decoder's own curve lies than its trained point at the same β."""
    models, _, test = swept(work, SIZES[-1])
    vae = dict(models)[beta]
    x = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:NUM_CURVE]]

    def curve() -> dict[str, Any]:
        found = rate_distortion_curve(
            vae.model, vae.guide, x, betas=POINTS, settings=ANNEALING, bounds=False
        )
        table = found.table()
        return {"points": [[each, *row] for each, row in zip(
            table.index.tolist(), table[["rate", "distortion", "monte_carlo_error"]].values.tolist(),
            strict=True)]}  # fmt: skip

    points = kept(work.folder / "curve.json", curve)["points"]
    own = rate_distortion(models, x, num_samples=64).points
    trained = next(point for point in own if point.beta == beta)
    at, rate, distortion, error = next(point for point in points if point[0] == beta)
    work.clock.tick()
    path = work.place.results / CURVES
    others = [line for line in read(path) if line["decoder"] != f"{beta:g}"]
    lines = [
        {"decoder": f"{beta:g}", "kind": kind, "beta": f"{b:g}", "rate": f"{r:.3f}", "distortion": f"{d:.3f}"}
        for kind, found in (
            ("curve", [point[:3] for point in points]),
            ("trained", [(p.beta, p.rate.value, p.distortion.value) for p in own if p.beta == beta]),
        )
        for b, r, d in found
    ]  # fmt: skip
    write(path, others + lines, ("decoder", "kind", "beta", "rate", "distortion"))
    excess = trained.distortion.value + beta * trained.rate.value - (distortion + at * rate)
    return {
        "ours": f"{excess:.2f}",
        "monte_carlo_error": f"{error:.3f}",
        "images": f"{len(x)}",
        "seeds": "1",
        "note": f"the decoder's curve has rate {rate:.2f} and distortion {distortion:.2f}, its guide "
        f"{trained.rate.value:.2f} and {trained.distortion.value:.2f}",
    }


def figure(lines: list[Line], place: Place) -> Figure:
    """Draw the curve of each decoder, and its trained point."""
    points = read(place.results / CURVES)
    picture = Figure((8, 4.2), layout="constrained")
    axes = picture.subplots()
    colours = dict(
        zip([f"{beta:g}" for beta in DECODERS], ("#D55E00", "#009E73", "#0072B2"), strict=True)
    )
    for decoder, colour in colours.items():
        for kind, style in (
            ("curve", {"marker": ".", "linestyle": "-"}),
            ("trained", {"marker": "*", "markersize": 14, "linestyle": ""}),
        ):
            shown = [p for p in points if p["decoder"] == decoder and p["kind"] == kind]
            label = (
                f"decoder of β = {decoder}" if kind == "curve" else f"its guide at β = {decoder}"
            )
            if shown:
                axes.plot(
                    [float(p["distortion"]) for p in shown], [float(p["rate"]) for p in shown],
                    color=colour, label=label, **style,
                )  # fmt: skip
    axes.set_xlabel("distortion, nats an image")
    axes.set_ylabel("rate, nats an image")
    axes.set_title("One annealing run for each decoder, binarised MNIST", loc="left", weight="bold")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return picture


NETWORK = f"binarised MNIST, {LATENTS} latents, two layers of 200, about {STEPS:,} steps of {BATCH}"
ROW = Row(
    "rate_distortion",
    "Rate and distortion",
    ("data_root",),
    (
        *(
            Entry(
                f"slope, {size:,} training images",
                "slope between β = 0.25 and 0.5 on test images, as a multiple of -1/β",
                "", "", NETWORK, "no published figure was read; the law is 1 for endless data",
                "4 CPU minutes", partial(measure_slope, size=size),
            )
            for size in SIZES
        ),
        *(
            Entry(
                f"decoder of β = {beta:g}",
                "objective of the trained guide above the decoder's own curve, nats an image",
                "", "", f"{NETWORK}; {ANNEALING.num_temperatures} temperatures, "
                f"{ANNEALING.num_chains} chains", "no published figure was read",
                "4 CPU minutes", partial(measure_curve, beta=beta),
            )
            for beta in DECODERS
        ),
    ),
    figure,
)  # fmt: skip
