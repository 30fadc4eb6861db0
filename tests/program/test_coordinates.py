"""The latents as one vector.

A map that can be turned round, with the Jacobian that autograd finds.
"""

import math
from collections.abc import Callable, Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.program.coordinates import Coordinates
from pyro_bvae.program.program import Program, open_program

N = 4
one = torch.ones((), dtype=torch.double)


def data_in_the_middle(x: Tensor) -> None:
    """Data between two other plates.

    Real, positive, interval and simplex latents, in all of them.
    """
    left, data, inner = (
        pyro.plate("left", 2, dim=-3),
        pyro.plate("data", len(x), dim=-2),
        pyro.plate("in", 3, dim=-1),
    )
    with data:
        real = pyro.sample("real", dist.Normal(torch.zeros(2, dtype=torch.double), 1.0).to_event(1))
        with inner:
            positive = pyro.sample("positive", dist.Gamma(2 * one, 1.0))
            simplex = pyro.sample(
                "simplex", dist.Dirichlet(torch.full((3,), 2.0, dtype=torch.double))
            )
        with left:
            bounded = pyro.sample("bounded", dist.Uniform(-one, 3.0))
        loc = (real.sum(-1) + positive + simplex[..., 0]).sum(-1, keepdim=True) + bounded.sum(
            -3, keepdim=True
        )
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x.unsqueeze(-1))


def guide_in_the_middle(x: Tensor) -> None:
    left, data, inner = (
        pyro.plate("left", 2, dim=-3),
        pyro.plate("data", len(x), dim=-2),
        pyro.plate("in", 3, dim=-1),
    )
    rows = x.unsqueeze(-1)
    with data:
        with inner:
            pyro.sample("simplex", dist.Dirichlet(torch.full((3,), 3.0, dtype=torch.double)))
            pyro.sample("positive", dist.LogNormal(0.1 * rows, 0.5))
        with left:
            pyro.sample("bounded", dist.Uniform(-one, 3.0))
        pyro.sample("real", dist.Normal(rows.unsqueeze(-1).expand(-1, 1, 2), 1.0).to_event(1))


def data_on_the_right(x: Tensor) -> None:
    """Data on the right of a plate, with a latent outside that plate.

    A dimension that its values lack.
    """
    with pyro.plate("data", len(x), dim=-1):
        real = pyro.sample("real", dist.Normal(0 * one, 1.0))
        simplex = pyro.sample("simplex", dist.Dirichlet(torch.full((4,), 2.0, dtype=torch.double)))
        with pyro.plate("left", 2, dim=-2):
            unit = pyro.sample("unit", dist.Beta(2 * one, 2.0))
            factor = pyro.sample("factor", dist.LKJCholesky(3, 2 * one))
            loc = real + simplex[..., 0] + unit + factor[..., 2, 0]
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x.expand(2, -1))


def guide_on_the_right(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        with pyro.plate("left", 2, dim=-2):
            pyro.sample("factor", dist.LKJCholesky(3, 2 * one))
            pyro.sample("unit", dist.Beta(2 * one, 2.0))
        pyro.sample("simplex", dist.Dirichlet(torch.full((4,), 2.0, dtype=torch.double)))
        pyro.sample("real", dist.Normal(x / 2, 1.0))


# Of each program: widths of the latents of one datum, and the position of the data in their values
# behind particles.
PROGRAMS = {
    "data in the middle": (data_in_the_middle, guide_in_the_middle, 2 + 3 + 3 * 2 + 2),
    "data on the right": (data_on_the_right, guide_on_the_right, 1 + 3 + 2 + 2 * 3),
}


@pytest.fixture(params=PROGRAMS)
def mapped(request: pytest.FixtureRequest) -> Iterator[tuple[Program, Coordinates, int]]:
    model, guide, size = PROGRAMS[request.param]
    x = torch.linspace(-1, 1, N, dtype=torch.double)
    with open_program(model, guide, (x,), data_plate="data") as program:
        yield program, Coordinates(program, (x,)), size


def free_values(coordinates: Coordinates, vectors: Tensor) -> list[Tensor]:
    """The independent numbers of the latents, ``(K, B, d)``.

    Not the last of a simplex, nor a factor's diagonal.
    """
    values, _ = coordinates.unflatten(vectors)
    parts = []
    for name, place in coordinates.places.items():
        value = values[name]
        event_dim = place.transform.codomain.event_dim
        if name == "simplex":
            value = value[..., :-1]
        elif name == "factor":
            value = value[..., [1, 2, 2], [0, 0, 1]]
            event_dim = 1
        elif name == "real":
            event_dim = 1 if value.dim() > 3 and value.shape[-1] == 2 else 0
        data = [dim for dim in range(1, value.dim() - event_dim) if value.shape[dim] == N]
        parts.append(
            value.movedim(data[0], 1).flatten(2) if value.dim() > 2 else value.unsqueeze(-1)
        )
    return torch.cat(parts, -1)


def test_there_and_back_again(mapped: tuple[Program, Coordinates, int]) -> None:
    program, coordinates, size = mapped
    assert coordinates.size == size
    vectors = torch.randn(5, N, size, dtype=torch.double)
    values, log_jacobian = coordinates.unflatten(vectors)
    assert log_jacobian.shape == (5, N)
    assert torch.allclose(coordinates.flatten(values), vectors, atol=1e-8)
    drawn = program.draw(5, program.args).values
    again, _ = coordinates.unflatten(coordinates.flatten(drawn))
    for name, value in drawn.items():
        assert again[name].shape == value.shape
        assert torch.allclose(again[name], value, atol=1e-8), name


def test_a_single_draw_without_particles_fits_too(mapped: tuple[Program, Coordinates, int]) -> None:
    program, coordinates, size = mapped
    trace = program.trace(program.args)[0]
    values = {name: trace.nodes[name]["value"] for name in program.latents}
    vectors = coordinates.flatten({name: value.unsqueeze(0) for name, value in values.items()})
    assert vectors.shape == (1, N, size)
    again, _ = coordinates.unflatten(vectors)
    for name, value in values.items():
        assert torch.allclose(again[name].reshape(value.shape), value, atol=1e-8), name


def test_the_jacobian_is_that_of_autograd(mapped: tuple[Program, Coordinates, int]) -> None:
    _, coordinates, size = mapped
    vectors = torch.randn(2, N, size, dtype=torch.double)
    _, log_jacobian = coordinates.unflatten(vectors)
    full = torch.autograd.functional.jacobian(
        lambda u: free_values(coordinates, u), vectors, vectorize=True
    )
    for k in range(2):
        for n in range(N):
            own = full[k, n, :, k, n]
            assert torch.allclose(log_jacobian[k, n], torch.linalg.slogdet(own).logabsdet)
            # Every particle and datum has its own part of the vectors, and no other's.
            assert float(full[k, n].abs().sum()) == pytest.approx(float(own.abs().sum()))


def test_gradients_come_back(mapped: tuple[Program, Coordinates, int]) -> None:
    program, coordinates, size = mapped
    vectors = torch.randn(3, N, size, dtype=torch.double, requires_grad=True)
    values, log_jacobian = coordinates.unflatten(vectors)
    latent, observed = program.log_joint(values, program.args)
    assert latent.shape == observed.shape == (3, N)
    (gradient,) = torch.autograd.grad((latent + observed + log_jacobian).sum(), vectors)
    assert bool((gradient != 0).all()) and bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize(
    "prior",
    [
        lambda: dist.Normal(0.5 * one, 2.0),
        lambda: dist.Gamma(2 * one, 1.5),
        lambda: dist.HalfCauchy(one),
        lambda: dist.Beta(0.7 * one, 2.0),
        lambda: dist.Uniform(-3 * one, 4.0),
        lambda: dist.Pareto(2 * one, 3.0),
    ],
    ids=["real", "positive", "non-negative", "unit interval", "interval", "above a bound"],
)
def test_a_density_of_the_vectors_integrates_to_one(prior: Callable[[], dist.Distribution]) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", prior()), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", prior())

    x = torch.zeros(2, dtype=torch.double)
    grid = torch.linspace(-40, 40, 16_001, dtype=torch.double)
    with open_program(model, guide, (x,)) as program:
        coordinates = Coordinates(program, (x,))
        values, log_jacobian = coordinates.unflatten(grid[:, None, None].expand(-1, 2, 1))
        latent, _ = program.log_joint(values, (x,))
    log_density = torch.nan_to_num(
        latent + log_jacobian, nan=-math.inf
    )  # where rounding ends at a bound
    total = log_density.logsumexp(0) + math.log(float(grid[1] - grid[0]))
    assert total.tolist() == pytest.approx([0.0, 0.0], abs=1e-4)


# -- what has no map
# ----------------------------------------------------------------------------------------------


def test_a_support_without_a_map_is_refused_by_name() -> None:
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.double)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            direction = pyro.sample("direction", dist.ProjectedNormal(up))
            pyro.sample("x", dist.Normal(direction[..., 2], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("direction", dist.ProjectedNormal(up))

    x = torch.zeros(2, dtype=torch.double)
    with (
        open_program(model, guide, (x,)) as program,
        pytest.raises(
            InputError, match=r"latent 'direction' has the support Sphere, which no bijection"
        ),
    ):
        Coordinates(program, (x,))


def test_a_support_that_depends_on_another_latent_is_refused_by_name() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Uniform(0 * one, 1.0))
            pyro.sample(
                "x", dist.Normal(pyro.sample("below", dist.Uniform(0 * one, top)), 1.0), obs=x
            )

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(
                "below", dist.Uniform(0 * one, pyro.sample("top", dist.Uniform(0 * one, 1.0)))
            )

    x = torch.zeros(2, dtype=torch.double)
    with (
        open_program(model, guide, (x,)) as program,
        pytest.raises(InputError, match="the support of latent 'below' depends on other latents"),
    ):
        Coordinates(program, (x,))


def test_a_support_may_depend_on_the_data() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Uniform(x - 1, x + 2)), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(x - 1, x + 2))

    x = torch.linspace(-5, 5, N, dtype=torch.double)
    with open_program(model, guide, (x,)) as program:
        coordinates = Coordinates(program, (x,))
        values, _ = coordinates.unflatten(torch.zeros(3, N, 1, dtype=torch.double))
        assert torch.allclose(values["z"], (x + 0.5).expand(3, -1))
