"""Laws of every distribution that the package has or that a part of it returns: a density is a function of its value.

A new part is one more line in the lists of ``test_parts.py``; a new distribution that no part
returns is one here.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from test_parts import LIKELIHOODS, POSTERIORS, PRIORS, D, L, parameters_for
from torch import Tensor, nn
from torch.distributions import constraints, transforms

from pyro_bvae.core.scored_draws import ScoredDraws
from pyro_bvae.distributions import DiagonalNormal
from pyro_bvae.distributions.partly_observed import PartlyObserved
from pyro_bvae.distributions.tailed_normal import TailedNormal
from pyro_bvae.posteriors import (
    LocalFlowPosterior,
    LocalNormalPosterior,
    LocalTransformedPosterior,
    local_posterior,
)
from pyro_bvae.priors import VampPrior, ZukoPrior

N = 2
Make = Callable[[], Any]


def moved(part: Any) -> Any:
    """Return a part in float64 with parameters off their start, which hides what they do."""
    part = part.double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return part


def data() -> Tensor:
    return torch.randn(N, D, dtype=torch.double)


def normal() -> DiagonalNormal:
    return DiagonalNormal.of(*(torch.randn(N, L, dtype=torch.double).exp() for _ in range(2)))


def local_flow() -> nn.Module:
    tril = torch.eye(L) + torch.full((N, L, L), 0.3).tril(-1)
    return LocalFlowPosterior(torch.randn(N, L), tril)


def log_normal() -> nn.Module:
    return LocalTransformedPosterior(
        LocalNormalPosterior(torch.zeros(N, L), torch.ones(N, L)), [transforms.ExpTransform()]
    )


def answer(make: Callable[[], nn.Module], *inputs: Tensor) -> Any:
    return moved(make())(*inputs)


def local_answer(make: Callable[[], nn.Module]) -> Any:
    return answer(lambda: local_posterior(_base(answer(make, data())), 1))


def likelihood_of(make: Callable[[], nn.Module]) -> Any:
    likelihood = moved(make())
    return likelihood(parameters_for(likelihood, (N,)).double())


OTHER_PARTS: dict[str, Callable[[], nn.Module]] = {
    "zuko prior": lambda: ZukoPrior.neural_spline(L, hidden=(8,)),
    "vamp prior of flows": lambda: VampPrior(POSTERIORS["flow"](), torch.randn(4, D)),
    "local flow": local_flow,
    "log-normal": log_normal,
}
MEMBERS: dict[str, Make] = {
    **{f"{name} prior": partial(answer, make) for name, make in PRIORS.items()},
    **{
        f"{name} posterior": lambda make=make: answer(make, data())
        for name, make in POSTERIORS.items()
    },
    **{
        f"{name} posterior, local": partial(local_answer, make) for name, make in POSTERIORS.items()
    },
    **{f"{name} likelihood": partial(likelihood_of, make) for name, make in LIKELIHOODS.items()},
    **{name: partial(answer, make) for name, make in OTHER_PARTS.items()},
    "partly observed": lambda: PartlyObserved.of(normal()),
    "tailed normal": lambda: TailedNormal(normal(), 0.2),
}
members = pytest.mark.parametrize("make", MEMBERS.values(), ids=MEMBERS.keys())


def _base(distribution: Any) -> Any:
    return (
        distribution.base_dist
        if isinstance(distribution, torch.distributions.Independent)
        else distribution
    )


def drawn(q: Any) -> Tensor:
    """Return a value in the support, off its edges where it is an interval."""
    z: Tensor = q.sample()
    return 0.1 + 0.8 * z if isinstance(_base(q).support, type(constraints.unit_interval)) else z


def slope(q: Any, z: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(q.log_prob(z).sum(), z)
    return gradient


def differences(q: Any, z: Tensor, step: float = 1e-6) -> Tensor:
    steps = step * torch.eye(z.shape[-1], dtype=z.dtype)
    return torch.stack([q.log_prob(z + one) - q.log_prob(z - one) for one in steps], -1) / (
        2 * step
    )


def kinds(kind: type) -> Iterator[type]:
    for each in kind.__subclasses__():
        yield each
        yield from kinds(each)


def test_the_list_holds_every_distribution_of_the_package() -> None:
    rooms = tuple(
        f"pyro_bvae.{room}." for room in ("distributions", "priors", "likelihoods", "posteriors")
    )
    made = [part for q in (make() for make in MEMBERS.values()) for part in (q, _base(q))]
    for kind in set(kinds(torch.distributions.Distribution)):
        if kind.__module__.startswith(rooms):
            assert any(isinstance(part, kind) for part in made), kind


@members
def test_the_density_has_its_gradient_in_the_value_whether_drawn_here_or_not(make: Make) -> None:
    q = make()
    if q.support.is_discrete:
        pytest.skip("its values are discrete")
    z = drawn(q).requires_grad_()
    assert torch.allclose(slope(q, z), differences(q, z.detach()), rtol=1e-5, atol=1e-6)
    if q.has_rsample:
        for z in (q.rsample(), q()):
            z.requires_grad_()  # of a distribution without parameters
            assert torch.allclose(slope(q, z), differences(q, z.detach()), rtol=1e-5, atol=1e-6)


@members
def test_the_density_does_not_depend_on_what_was_drawn(make: Make) -> None:
    q = make()
    draws = [q.sample(), q(), q.sample((3,))]
    first = [q.log_prob(z.detach().clone()) for z in draws]
    assert all(torch.equal(q.log_prob(z), before) for z, before in zip(draws, first, strict=True))
    q()
    assert all(torch.equal(q.log_prob(z), before) for z, before in zip(draws, first, strict=True))


@pytest.mark.parametrize("name", ["full-rank posterior", "flow posterior"])
def test_a_draw_with_its_density_is_the_draw_and_its_density(name: str) -> None:
    torch.manual_seed(0)
    posterior, x = moved(POSTERIORS[name.partition(" ")[0]]()), data()
    q, parameters = posterior(x), list(posterior.parameters())
    torch.manual_seed(1)
    z = q.rsample((3,))
    torch.manual_seed(1)
    value, log_prob = q.rsample_and_log_prob((3,))
    assert torch.equal(value, z) and torch.allclose(log_prob, q.log_prob(z))
    ours, theirs = (
        torch.autograd.grad(density.sum(), parameters, retain_graph=True, materialize_grads=True)
        for density in (log_prob, q.log_prob(z))
    )
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-9)


def test_scored_draws_are_traced_as_pyro_traces_them() -> None:
    x, mask = data(), torch.tensor([True, False])
    posterior = moved(POSTERIORS["flow"]())

    def guide() -> None:
        with (
            pyro.plate("particles", 3, dim=-2),
            pyro.plate("data", N, dim=-1),
            poutine.scale(scale=0.5),
        ):
            pyro.sample("z", posterior(x))
            pyro.sample("w", dist.Normal(0.0, 1.0))

    torch.manual_seed(0)
    with poutine.mask(mask=mask), ScoredDraws():
        ours = poutine.trace(guide).get_trace()
    torch.manual_seed(0)
    with poutine.mask(mask=mask):
        theirs = poutine.trace(guide).get_trace()
    assert "log_prob" in ours.nodes["z"] and "log_prob" not in ours.nodes["w"]
    ours.compute_score_parts()
    theirs.compute_score_parts()
    for name in ("z", "w"):
        one, other = ours.nodes[name], theirs.nodes[name]
        assert torch.equal(one["value"], other["value"])
        for key in ("unscaled_log_prob", "log_prob", "log_prob_sum"):
            assert torch.allclose(one[key], other[key]) and one[key].shape == other[key].shape
        assert one["score_parts"].score_function == other["score_parts"].score_function == 0
        assert torch.allclose(one["score_parts"].entropy_term, other["score_parts"].entropy_term)
