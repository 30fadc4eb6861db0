"""Is the smallest size that cannot be told from the best the right one, on data of known rank?

Linear-Gaussian data of rank 2 in 6 features, whose planted eigenvalues are 4 and 3 times the noise's;
720 to train on and 180 held out; affine models of 1 to 4 latents with full-rank guides, whose
evidence importance sampling has exactly. `choose` is right where it keeps 2.

    python analysis/choosing.py            # 100 seeds, a quarter of an hour; resumable
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch

from pyro_bvae import BetaVAE, Decoder, choose
from pyro_bvae.datasets import Dataset
from pyro_bvae.likelihoods import LearnedScale, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import FullRankPosterior
from pyro_bvae.priors import NormalPrior

RESULTS = Path(__file__).parent / "results" / "choosing"
RANK, FEATURES, NOISE, COUNT, SIZES = 2, 6, 0.5, 900, (1, 2, 3, 4)
FIELDS = ("seed", "chosen", "alike")


def planted(seed: int) -> Dataset:
    """Return the data of a seed."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(FEATURES, RANK, generator=generator))
    weight = NOISE * basis * torch.tensor([4.0, 3.0]).sqrt()
    z = torch.randn(COUNT, RANK, generator=generator)
    return Dataset(z @ weight.T + NOISE * torch.randn(COUNT, FEATURES, generator=generator))


def make_vae(latent_dim: int) -> BetaVAE:
    """Return an untrained affine model."""
    return BetaVAE(
        NormalPrior(latent_dim),
        Decoder(MLP(latent_dim, FEATURES, ()), NormalLikelihood(LearnedScale())),
        FullRankPosterior(MLP(FEATURES, FullRankPosterior.num_outputs(latent_dim), ())),
    )


def main(seeds: int) -> None:
    """Choose for each seed that the table lacks, and print the share that is right."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "table.csv"
    rows = list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []
    for seed in range(len(rows), seeds):
        found = choose(
            make_vae, planted(seed), latent_dims=SIZES, num_samples=100, method="importance",
            epochs=40, batch_size=100, learning_rate=3e-2, progress=False,
        )  # fmt: skip
        alike = " ".join(str(each.latent_dim) for each in found.alike)
        rows.append({"seed": seed, "chosen": found.setting.latent_dim, "alike": alike})
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    right = sum(int(row["chosen"]) == RANK for row in rows[:seeds])
    print(f"{right} of {seeds} seeds choose {RANK} latents")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    main(parser.parse_args().seeds)
