"""Do trained models lie on the rate-distortion curve, and does its slope say which β they were trained at?

Linear: data with a known covariance, eigenvalues over two decades and some below every threshold,
and linear VAEs trained at eight β from 0.1 to 10 and at β(1 ± 0.05) for the slopes: rate and
distortion against the closed form of reverse water-filling, slopes against -1/β, active units
against the eigenvalues above βσ².

MNIST: grey images, two hidden layers of 400, 20 latents, in the setting of the background README,
whose published points are drawn beside the curve.

    python analysis/rate_distortion.py
    python analysis/rate_distortion.py --data-root FOLDER_THAT_HOLDS_MNIST

The first command runs the linear part, the second the part on MNIST. Each is one sweep: its models
are trained side by side.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_bvae import BetaVAE, Decoder, datasets, rate_distortion, sweep
from pyro_bvae.evaluation import kl_per_dimension
from pyro_bvae.evaluation.information import RateDistortion
from pyro_bvae.likelihoods import BernoulliLikelihood, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import optimum
from pyro_bvae.plots import rate_distortion as draw
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

RESULTS = Path(__file__).parent / "results" / "rate_distortion"
NOISE, EIGENVALUES = 0.5, (9.0, 4.0, 1.5, 0.6, 0.2, 0.09)
LINEAR_BETAS, APART = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0), 0.05
MNIST_BETAS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# Test BCE and KLD of the background README's table, at β = 0.1, 2 and 4.
PUBLISHED = (
    ("README, β = 0.1", 64.4485, 52.7590),
    ("README, β = 2", 92.7549, 13.1315),
    ("README, β = 4", 109.8983, 8.2419),
)

Row = dict[str, str]


def linear_data(count: int = 2000) -> Tensor:
    """Return data whose sample covariance has exactly the planted eigenvalues, in directions of no special kind."""
    generator = torch.Generator().manual_seed(0)
    size = len(EIGENVALUES)
    x = torch.randn(count, size, generator=generator, dtype=torch.double)
    x = x - x.mean(0)
    x = torch.linalg.solve_triangular(
        torch.linalg.cholesky(torch.cov(x.T, correction=0)), x.T, upper=False
    ).T
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.double)).Q
    return x * torch.tensor(EIGENVALUES, dtype=torch.double).sqrt() @ rotation.T


def linear_vae(seed: int) -> BetaVAE:
    """Return an untrained linear VAE with as many latents as features."""
    torch.manual_seed(seed)
    size = len(EIGENVALUES)
    decoder = Decoder(MLP(size, size, hidden=()), NormalLikelihood(NOISE))
    return BetaVAE(
        NormalPrior(size), decoder, NormalPosterior(MLP(size, 2 * size, hidden=()))
    ).double()


def mnist_vae(seed: int) -> BetaVAE:
    """Return the untrained model of the background README's setting."""
    torch.manual_seed(seed)
    decoder = Decoder(MLP(20, 784, hidden=(400, 400)), BernoulliLikelihood())
    return BetaVAE(NormalPrior(20), decoder, NormalPosterior(MLP(784, 40, hidden=(400, 400))))


def exact_active(beta: float) -> int:
    """Return how many eigenvalues are above the threshold."""
    return sum(value > beta * NOISE**2 for value in EIGENVALUES)


def linear(epochs: int) -> list[Row]:
    """Train and measure the linear models, and draw them on the closed form."""
    x, eigenvalues = linear_data(), torch.tensor(EIGENVALUES, dtype=torch.double)
    betas = sorted(
        {round(beta * factor, 6) for beta in LINEAR_BETAS for factor in (1 - APART, 1.0, 1 + APART)}
    )
    models = sweep(
        linear_vae,
        x,
        betas=betas,
        epochs=epochs,
        batch_size=len(x),
        learning_rate=3e-2,
        progress=False,
    )
    by_beta: dict[float, Any] = {run.beta: run.vae for run in models}
    curve = rate_distortion([(beta, by_beta[beta]) for beta in LINEAR_BETAS], x, num_samples=1000)
    rows = []
    for point in curve.points:
        beta, exact = point.beta, optimum(eigenvalues, NOISE, point.beta)
        pair = [
            (each, by_beta[each])
            for each in (round(beta * (1 - APART), 6), round(beta * (1 + APART), 6))
        ]
        (slope,) = rate_distortion(pair, x, num_samples=1000).slopes
        vae = by_beta[beta]
        units = kl_per_dimension(vae.model, vae.guide, x)
        assert units is not None
        at = rate_at(eigenvalues, point.distortion.value)
        rows.append(
            {
                "beta": f"{beta:g}",
                "rate": f"{point.rate.value:.4f}",
                "exact_rate": f"{exact.rate:.4f}",
                "rate_at_this_distortion": f"{at:.4f}",
                "above_the_curve": f"{point.rate.value / at - 1:.4%}",
                "distortion": f"{point.distortion.value:.4f}",
                "exact_distortion": f"{exact.distortion:.4f}",
                "slope": f"{slope.value:.4f}",
                "law": f"{-1 / beta:.4f}",
                "slope_off": f"{-slope.value * beta - 1:.3%}",
                "active_units": f"{int(units.active.sum())}",
                "exact_active": f"{exact_active(beta)}",
            }
        )
        print(rows[-1], flush=True)
    draw(curve, closed_form(eigenvalues)).savefig(RESULTS / "linear.png", dpi=150)
    return rows


def closed_form(eigenvalues: Tensor) -> tuple[list[float], list[float]]:
    """Return distortions and rates of the exact curve."""
    points = [optimum(eigenvalues, NOISE, 10 ** (power / 50)) for power in range(-55, 56)]
    return [point.distortion for point in points], [point.rate for point in points]


def rate_at(eigenvalues: Tensor, distortion: float) -> float:
    """Return the least rate that has a distortion, by bisection over β."""
    low, high = 1e-6, 1e6
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (
            (middle, high)
            if optimum(eigenvalues, NOISE, middle).distortion < distortion
            else (low, middle)
        )
    return optimum(eigenvalues, NOISE, low).rate


def mnist(data_root: str, epochs: int, num_train: int | None, output: Path) -> list[Row]:
    """Train and measure the curve of MNIST."""
    splits = datasets.mnist(Path(data_root), validation=0, download=False)
    train = splits.train if num_train is None else splits.train[:num_train]
    models = sweep(
        mnist_vae, train, betas=MNIST_BETAS, epochs=epochs, progress=False, output=output
    )
    curve = rate_distortion(models, splits.test, num_samples=5)
    print(curve)
    draw(curve, published=PUBLISHED).savefig(RESULTS / "mnist.png", dpi=150)
    return mnist_rows(curve)


def mnist_rows(curve: RateDistortion) -> list[Row]:
    """Return the curve as a table."""
    slopes = {slope.betas[0]: slope for slope in curve.slopes}
    rows = []
    for point, (rate, distortion) in zip(curve.points, curve.bits_per_dimension, strict=True):
        slope = slopes.get(point.beta)
        rows.append(
            {
                "beta": f"{point.beta:g}",
                "rate": f"{point.rate.value:.3f}",
                "rate_error": f"{point.rate.standard_error:.3f}",
                "distortion": f"{point.distortion.value:.3f}",
                "distortion_error": f"{point.distortion.standard_error:.3f}",
                "rate_bits_per_dimension": f"{rate:.5f}",
                "distortion_bits_per_dimension": f"{distortion:.5f}",
                "slope_to_next": "" if slope is None else f"{slope.value:.4f}",
                "slope_error": "" if slope is None else f"{slope.error:.4f}",
                "law": "" if slope is None else f"{slope.law:.4f}",
                "knee": f"{point.beta == curve.knee}",
                "curve": f"{'' if curve.monotone else 'not '}monotone, "
                f"{'' if curve.convex else 'not '}convex",
            }
        )
    return rows


def write(rows: list[Row], name: str) -> None:
    """Write a table."""
    with (RESULTS / name).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Write the tables and the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-root", help="folder that holds MNIST/raw: run that part; the linear one without it"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/rate_distortion"))
    parser.add_argument("--quick", action="store_true", help="fewer epochs, and 10,000 images")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    if options.data_root is None:
        write(linear(1000 if options.quick else 12_000), "linear.csv")
    else:
        epochs, num_train = (5, 10_000) if options.quick else (30, None)
        write(mnist(options.data_root, epochs, num_train, options.runs), "mnist.csv")


if __name__ == "__main__":
    main()
