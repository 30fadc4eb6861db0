"""Latents without an event dimension, and under a further plate, measured as those with one are."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_bvae import decompose_kl, diagnose, evidence, rate_distortion
from pyro_bvae.evaluation import hole_mass, kl_per_dimension, read_latents, to_arviz
from pyro_bvae.evaluation.information import log_aggregate

SCALE = 0.4


class Vector(nn.Module):
    """The program as it is usually written: one event of L latents."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.gain = nn.Parameter(torch.linspace(0.8, 0.6, width, dtype=torch.double))

    def program(self, loc: Tensor, scale: Tensor, x: Tensor | None = None) -> None:
        """Draw the latents of means ``(N, L)``, and observe data if there are any."""
        with pyro.plate("data", len(loc), dim=-1):
            z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            if x is not None:
                pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def model(self, x: Tensor, context: Any = None) -> None:
        self.program(torch.zeros_like(x), x.new_ones(()), x)

    def guide(self, x: Tensor, context: Any = None) -> None:
        self.program(self.gain * x, x.new_tensor(SCALE))


class Scalar(Vector):
    """One latent that is a number."""

    def __init__(self) -> None:
        super().__init__(1)

    family = dist.Normal

    def program(self, loc: Tensor, scale: Tensor, x: Tensor | None = None) -> None:
        with pyro.plate("data", len(loc), dim=-1):
            z = pyro.sample("z", self.family(loc.squeeze(-1), scale))
            if x is not None:
                pyro.sample("x", dist.Normal(z.unsqueeze(-1), 0.5).to_event(1), obs=x)


class RightPlate(Vector):
    """Latents under a plate to the right of the data."""

    def program(self, loc: Tensor, scale: Tensor, x: Tensor | None = None) -> None:
        with pyro.plate("data", len(loc), dim=-2), pyro.plate("latents", self.width, dim=-1):
            z = pyro.sample("z", dist.Normal(loc, scale))
            if x is not None:
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)


class LeftPlate(Vector):
    """Latents under a plate to the left of the data."""

    def program(self, loc: Tensor, scale: Tensor, x: Tensor | None = None) -> None:
        with pyro.plate("latents", self.width, dim=-2), pyro.plate("data", len(loc), dim=-1):
            z = pyro.sample("z", dist.Normal(loc.mT, scale))
            if x is not None:
                pyro.sample("x", dist.Normal(z, 0.5), obs=x.mT)


KINDS: dict[str, tuple[Callable[[], Vector], Vector]] = {
    "a number": (Scalar, Vector(1)),
    "a plate to the right": (lambda: RightPlate(3), Vector(3)),
    "a plate to the left": (lambda: LeftPlate(3), Vector(3)),
}
kinds = pytest.mark.parametrize(("make", "usual"), KINDS.values(), ids=KINDS.keys())


def data(width: int, seed: int = 0, count: int = 150) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.double)


@kinds
def test_the_kl_is_taken_apart_as_that_of_an_event(
    make: Callable[[], Vector], usual: Vector
) -> None:
    x, vae = data(usual.width), make()
    parts, others = (
        decompose_kl(each.model, each.guide, x, num_samples=16) for each in (vae, usual)
    )
    assert parts.rate.value == pytest.approx(others.rate.value)
    for name in ("mutual_information", "marginal_kl", "total_correlation", "dimension_wise_kl"):
        one, other = getattr(parts, name), getattr(others, name)
        assert (
            abs(one.value - other.value)
            < 4 * (one.monte_carlo_error + other.monte_carlo_error) + 1e-9
        )
    kl, other_kl = (kl_per_dimension(each.model, each.guide, x) for each in (vae, usual))
    assert kl is not None and other_kl is not None and kl.values is not None
    for field in ("values", "standard_errors", "mean_variances", "active"):
        assert getattr(kl, field).shape == (usual.width,)
        assert torch.allclose(getattr(kl, field).double(), getattr(other_kl, field).double())


@kinds
def test_latents_are_read_as_those_of_an_event(make: Callable[[], Vector], usual: Vector) -> None:
    x = data(usual.width)
    tables = [
        read_latents(each.model, each.guide, x, factors=x[:, 0], labels=(x[:, 0] > 0).long()).table
        for each in (make(), usual)
    ]
    assert len(tables[0]) == usual.width
    pd.testing.assert_frame_equal(*tables, rtol=1e-6)


@kinds
def test_the_aggregate_covers_as_that_of_an_event(
    make: Callable[[], Vector], usual: Vector
) -> None:
    x, other, vae = data(usual.width), data(usual.width, 1), make()
    options = {"held_out": other, "num_samples": 1000, "share": 0.05, "num_permutations": 19}
    result, wanted = (hole_mass(each.model, each.guide, x, **options) for each in (vae, usual))
    error = 4 * (result.hole_mass.standard_error + wanted.hole_mass.standard_error)
    assert (
        abs(result.hole_mass.value - wanted.hole_mass.value) < error
        and len(result.dimensions) == usual.width
    )
    points = torch.randn(20, usual.width, dtype=torch.double)
    own = points.squeeze(1) if isinstance(vae, Scalar) else points
    assert result.points.shape[1:] == own.shape[1:]
    densities = log_aggregate(vae.model, vae.guide, x, points=own)
    assert torch.allclose(densities, log_aggregate(usual.model, usual.guide, x, points=points))


@kinds
def test_everything_else_that_takes_latents_takes_these(
    make: Callable[[], Vector], usual: Vector
) -> None:
    x, vae = data(usual.width), make()
    assert evidence(vae.model, vae.guide, x, num_samples=200).per_datum.shape == (150,)
    assert not diagnose(vae, x).collapsed
    (point,) = rate_distortion([(1.0, vae)], x).points
    assert point.rate.value == pytest.approx(
        rate_distortion([(1.0, usual)], x).points[0].rate.value
    )
    exported = to_arviz(vae.model, vae.guide, x, num_draws=5, num_predictive=2)
    sizes = exported["posterior"].sizes
    assert sizes["data"] == 150 and sizes.get("latents", 1) == usual.width


def test_a_number_whose_guide_is_not_normal_is_measured_too() -> None:
    x, vae = data(1), Scalar()
    vae.family = dist.Laplace
    parts = decompose_kl(vae.model, vae.guide, x, num_samples=8)
    total = parts.mutual_information.value + parts.marginal_kl.value
    assert parts.rate.value == pytest.approx(total) and parts.total_correlation is not None
    points = torch.linspace(-12, 12, 4001, dtype=torch.double)
    mass = torch.trapezoid(log_aggregate(vae.model, vae.guide, x, points=points).exp(), points)
    assert float(mass) == pytest.approx(1.0, abs=1e-4)
    assert read_latents(vae.model, vae.guide, x, factors=x).table.shape[0] == 1
    assert (
        len(
            hole_mass(
                vae.model, vae.guide, x, held_out=data(1, 1), num_samples=500, share=0.05
            ).dimensions
        )
        == 1
    )
