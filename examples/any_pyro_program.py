"""Evidence and gaps of a Pyro program that knows nothing of this package, beside their exact values."""

import argparse

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_bvae
from pyro_bvae.oracle import LinearGaussian

WEIGHT = torch.tensor([[1.0, 0.5], [0.3, 1.0], [0.7, 0.7]], dtype=torch.double)
NOISE = 0.6


def model(rows: Tensor) -> None:
    with pyro.plate("cells", len(rows)):
        factor = pyro.sample(
            "factor", dist.Normal(torch.zeros(2, dtype=torch.double), 1.0).to_event(1)
        )
        pyro.sample("expression", dist.Normal(factor @ WEIGHT.T, NOISE).to_event(1), obs=rows)


def guide(rows: Tensor) -> None:
    """A guide that is too wide, and a little off."""
    precision = torch.eye(2, dtype=torch.double) + WEIGHT.T @ WEIGHT / NOISE**2
    loc = 0.9 * torch.linalg.solve(precision, WEIGHT.T @ rows.T / NOISE**2).T
    with pyro.plate("cells", len(rows)):
        pyro.sample("factor", dist.Normal(loc, 1.3 * precision.diagonal().rsqrt()).to_event(1))


def main(num_data: int) -> None:
    linear = LinearGaussian(WEIGHT, NOISE)
    rows = linear.sample(num_data)
    gaps = pyro_bvae.inference_gaps(model, guide, rows)
    loc = 0.9 * linear.posterior_mean(rows)
    exact = linear.gaps(rows, loc, (1.3 * linear.precision().diagonal().rsqrt()).expand_as(loc))
    print(f"{'nats':<14}{'exact':>9}{'estimated':>11}{'Monte Carlo error':>20}")
    for name, truth in {"evidence": linear.evidence(rows), **exact._asdict()}.items():
        estimate = getattr(gaps, name)
        print(
            f"{name:<14}{float(truth.mean()):>9.4f}{estimate.value:>11.4f}{estimate.monte_carlo_error:>20.4f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-data", type=int, default=200)
    main(parser.parse_args().num_data)
