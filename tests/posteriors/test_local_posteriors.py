"""The laws of the guides with free parameters for each datum.

A new family is one more line in the list.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, StudentT, kl_divergence

from pyro_bvae.core.errors import InputError
from pyro_bvae.posteriors import (
    GatedStep,
    LocalAutoregressivePosterior,
    LocalFlowPosterior,
    LocalFullRankPosterior,
    LocalLowRankPosterior,
    LocalMixturePosterior,
    LocalNormalPosterior,
    local_posterior,
)

N, L = 3, 2
Make = Callable[..., nn.Module]


def start(
    num_data: int = N, latent_dim: int = L, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Means and factors of covariances for each datum, correlated and of different scales."""
    generator = torch.Generator().manual_seed(1)
    loc = torch.randn(num_data, latent_dim, generator=generator, dtype=torch.float64)
    lower = torch.randn(
        num_data, latent_dim, latent_dim, generator=generator, dtype=torch.float64
    ).tril(-1)
    scale = torch.linspace(0.5, 2, latent_dim, dtype=torch.float64)
    return loc.to(dtype), (scale.unsqueeze(-1) * (0.5 * lower + torch.eye(latent_dim))).to(dtype)


def make_normal(*shape: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    loc, scale_tril = start(*shape, dtype=dtype)
    return LocalNormalPosterior(loc, scale_tril.diagonal(0, -2, -1))


def make_low_rank(*shape: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    loc, scale_tril = start(*shape, dtype=dtype)
    factor = torch.randn(
        *loc.shape, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    return LocalLowRankPosterior(loc, scale_tril.diagonal(0, -2, -1), factor.to(dtype))


def make_autoregressive(*shape: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    loc, scale_tril = start(*shape, dtype=dtype)
    generator = torch.Generator().manual_seed(6)
    steps = [
        GatedStep(loc.shape[-1], 3, (8,), backwards=backwards).to(dtype)
        for backwards in (False, True)
    ]
    for parameter in (parameter for step in steps for parameter in step.parameters()):
        parameter.data = 0.5 * torch.randn(
            parameter.shape, generator=generator, dtype=torch.float64
        ).to(dtype)
    summary = torch.randn(len(loc), 3, generator=generator, dtype=torch.float64).to(dtype)
    return LocalAutoregressivePosterior(loc, scale_tril.diagonal(0, -2, -1), summary, steps)


def make_mixture(*shape: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    loc, scale_tril = start(*shape, dtype=dtype)
    scale = scale_tril.diagonal(0, -2, -1)
    locs, scales = torch.stack([loc, loc + 2 * scale], -2), torch.stack([scale, 0.7 * scale], -2)
    return LocalMixturePosterior(loc.new_tensor([0.3, -0.2]).expand(len(loc), 2), locs, scales)


FAMILIES: dict[str, Make] = {
    "normal": make_normal,
    "full-rank": lambda *shape, dtype=torch.float64: LocalFullRankPosterior(
        *start(*shape, dtype=dtype)
    ),
    "flow": lambda *shape, dtype=torch.float64: LocalFlowPosterior(*start(*shape, dtype=dtype)),
    "flow of three layers": lambda *shape, dtype=torch.float64: LocalFlowPosterior(
        *start(*shape, dtype=dtype), num_layers=3, hidden=5
    ),
    "low-rank": make_low_rank,
    "autoregressive": make_autoregressive,
    "mixture": make_mixture,
}
NORMALS = {
    name: make
    for name, make in FAMILIES.items()
    if name in ("normal", "full-rank") or name.startswith("flow")
}
FLOWS = {name: make for name, make in FAMILIES.items() if name.startswith("flow")}
families = pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES.keys())
normals = pytest.mark.parametrize("make", NORMALS.values(), ids=NORMALS.keys())
flows = pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS.keys())


def moved(local: nn.Module, size: float = 0.3, seed: int = 2) -> nn.Module:
    """Move all parameters away from the start, each datum by its own numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in local.parameters():
            parameter.add_(
                size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            )
    return local


def proposal(q: Any, num_draws: int = 10_000) -> Any:
    """Independent Student t densities, wider than a distribution and with heavier tails."""
    draws = q.sample((num_draws,))
    return torch.distributions.Independent(StudentT(4.0, draws.mean(0), 1.5 * draws.std(0)), 1)


# -- laws
# --------------------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("latent_dim", [1, 2, 3])
@torch.no_grad()
def test_a_density_integrates_to_one_and_is_that_of_the_draws(make: Make, latent_dim: int) -> None:
    q, num_draws = moved(make(N, latent_dim))(), 100_000
    wide = proposal(q)
    z, own = wide.sample((num_draws,)), q.sample((num_draws,))
    weights = (q.log_prob(z) - wide.log_prob(z)).exp()
    errors = weights.std(0) / math.sqrt(num_draws)
    assert errors.max() < 0.02
    assert ((weights.mean(0) - 1).abs() < 4.5 * errors).all()

    def features(value: Tensor) -> Tensor:  # bounded, so that their errors are normal
        value = torch.tanh((value - wide.mean) / wide.stddev)
        products = (value.unsqueeze(-1) * value.unsqueeze(-2)).flatten(-2)
        return torch.cat((value, products, torch.sin(6 * value)), -1)

    theirs, ours = weights.unsqueeze(-1) * features(z), features(own)
    error = ((theirs.var(0) + ours.var(0)) / num_draws).sqrt()
    assert ((theirs.mean(0) - ours.mean(0)).abs() < 4.5 * error).all()


@normals
@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_it_starts_exactly_at_the_given_member(make: Make, latent_dim: int) -> None:
    loc, scale_tril = start(N, latent_dim)
    if make is make_normal:
        scale_tril = torch.diag_embed(scale_tril.diagonal(0, -2, -1))
    q, z = make(N, latent_dim)(), 3 * torch.randn(7, N, latent_dim, dtype=torch.float64)
    expected = MultivariateNormal(loc, scale_tril=scale_tril).log_prob(z)
    assert torch.allclose(q.log_prob(z), expected, rtol=0, atol=1e-10)
    torch.manual_seed(0)
    draws = q.rsample((7,))
    torch.manual_seed(0)
    noise = torch.randn(7, N, latent_dim, dtype=torch.float64)
    assert make is make_normal or torch.allclose(
        draws, loc + (scale_tril @ noise.unsqueeze(-1)).squeeze(-1), atol=1e-12
    )


@families
def test_batch_and_event_shapes_and_dtypes(make: Make) -> None:
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        local = moved(make(N, L, dtype=dtype))
        assert local.latent_dim == L
        q = local()
        assert q.batch_shape == (N,) and q.event_shape == (L,) and q.has_rsample
        for batch in ((N,), (4, N), (5, 4, N)):
            wide = q.expand(torch.Size(batch))
            z = wide.rsample()
            assert wide.batch_shape == batch and z.shape == (*batch, L) and z.dtype == dtype
            assert wide.rsample((2,)).shape == (2, *batch, L)
            assert wide.log_prob(z).shape == batch and wide.log_prob(z).dtype == dtype
            assert torch.allclose(wide.log_prob(z), q.log_prob(z), atol=tolerance)
            assert (
                wide.log_prob(z[..., :1, :]).shape
                == wide.log_prob(torch.zeros(L, dtype=dtype)).shape
                == batch
            )
    exact = moved(make()).float()()
    z = exact.sample((9,))
    assert torch.allclose(
        exact.log_prob(z).double(), moved(make())().log_prob(z.double()), atol=1e-3
    )


@families
def test_one_datum_can_be_expanded_over_many(make: Make) -> None:
    q = moved(make(1, L))()
    z = q.expand((5,)).rsample((4,))
    alone = torch.stack([q.log_prob(z[:, n : n + 1]) for n in range(5)], 1).squeeze(-1)
    assert torch.allclose(q.expand((5,)).log_prob(z), alone)
    assert (z - z[:, :1]).abs()[:, 1:].min() > 0  # the draws are their own


@pytest.mark.parametrize("family", [LocalFullRankPosterior, LocalFlowPosterior])
def test_a_second_plate_may_expand_a_dimension_in_between(family: Any) -> None:
    loc, scale_tril = start(6)
    q = moved(family(loc.unsqueeze(1), scale_tril.unsqueeze(1)))()
    wide = q.expand((6, 4))
    z = wide.rsample((3,))
    alone = torch.cat([q.log_prob(z[:, :, m : m + 1]) for m in range(4)], -1)
    assert wide.batch_shape == (6, 4) and torch.allclose(wide.log_prob(z), alone)


@families
def test_every_parameter_receives_a_finite_gradient(make: Make) -> None:
    local = moved(make())
    q = local()
    draw = q.rsample((8,))
    for what in (draw.square().sum(), q.log_prob(draw.detach()).sum()):
        gradients = torch.autograd.grad(
            what, list(local.parameters()), retain_graph=True, allow_unused=True
        )
        for (name, parameter), gradient in zip(local.named_parameters(), gradients, strict=True):
            assert gradient is not None and torch.isfinite(gradient).all(), name
            counts = gradient.tril(-1) if name.endswith("lower") else gradient
            assert (counts.reshape(len(parameter), -1).abs().sum(-1) > 0).all(), name
    unmoved = make()
    unmoved().rsample((8,)).square().sum().backward()
    gradients = [parameter.grad for parameter in unmoved.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


@families
def test_the_gradient_of_a_density_does_not_know_where_the_value_came_from(make: Make) -> None:
    local = moved(make())
    q, parameters = local(), list(local.parameters())
    draw = q.sample()
    own, other, anew = (
        torch.autograd.grad(density.log_prob(z).sum(), parameters, retain_graph=True)
        for density, z in ((q, draw), (q, draw.clone()), (local(), draw))
    )
    assert all(
        torch.allclose(a, b) and torch.allclose(a, c)
        for a, b, c in zip(own, other, anew, strict=True)
    )


@families
def test_each_datum_is_its_own(make: Make) -> None:
    local = moved(make())
    z = local().sample((4,))
    before, other = local().log_prob(z), moved(make())
    with torch.no_grad():
        for parameter in other.parameters():
            assert len(parameter) == N
            parameter[0] += 0.5
    after = other().log_prob(z)
    assert torch.equal(before[:, 1:], after[:, 1:]) and (before[:, 0] != after[:, 0]).all()


@families
def test_a_local_posterior_saves_and_loads(make: Make, tmp_path: Any) -> None:
    local, other = moved(make()), make()
    for buffer in other.buffers():
        buffer.mul_(2)
    torch.save(local.state_dict(), tmp_path / "local.pt")
    other.load_state_dict(torch.load(tmp_path / "local.pt", weights_only=True))
    z = local().sample()
    assert torch.equal(local().log_prob(z), other().log_prob(z))


@families
def test_detached_parameters_give_the_same_density_and_keep_it(make: Make) -> None:
    local = moved(make())
    detached = {name: value.detach().clone() for name, value in local.named_parameters()}
    q = torch.func.functional_call(local, detached, ())
    z = local().rsample((4,))
    assert torch.equal(q.log_prob(z), local().log_prob(z))
    assert not q.log_prob(z.detach()).requires_grad
    assert all(
        torch.isfinite(g).all()
        for g in torch.autograd.grad(q.log_prob(z).sum(), list(local.parameters()))
    )
    before = q.log_prob(z).detach()
    moved(local)
    assert torch.equal(q.log_prob(z), before) and not torch.equal(local().log_prob(z), before)


@families
def test_a_local_posterior_is_a_guide_site_under_plates(make: Make) -> None:
    local, particles = moved(make()), 6

    def guide() -> None:
        with pyro.plate("data", N, dim=-1):
            pyro.sample("z", local())

    trace = poutine.trace(pyro.plate("particles", particles, dim=-2)(guide)).get_trace()
    site = trace.nodes["z"]
    trace.compute_log_prob()
    assert site["value"].shape == (particles, N, L) and site["value"].std(0).min() > 0
    assert site["log_prob"].shape == (particles, N)
    assert torch.allclose(site["log_prob"], local().log_prob(site["value"]))


@families
def test_plain_svi_trains_it(make: Make) -> None:
    local, target = (
        make(),
        MultivariateNormal(torch.full((N, L), 3.0, dtype=torch.float64), torch.eye(L).double()),
    )

    def model() -> None:
        with pyro.plate("data", N, dim=-1):
            pyro.sample(
                "z", pyro.distributions.MultivariateNormal(target.loc, target.covariance_matrix)
            )

    def guide() -> None:
        pyro.module("local", local)
        with pyro.plate("data", N, dim=-1):
            pyro.sample("z", local())

    svi = SVI(
        model,
        guide,
        pyro.optim.Adam({"lr": 0.1}),
        Trace_ELBO(num_particles=4, vectorize_particles=True),
    )
    losses = [svi.step() for _ in range(150)]
    assert sum(losses[-10:]) / 10 < 0.1 * losses[0]


@families
def test_another_number_of_data_is_refused(make: Make) -> None:
    local = make()
    local(torch.zeros(N, 4))
    local(torch.zeros(5, N, 4))
    with pytest.raises(
        InputError,
        match=f"a {type(local).__name__} of 3 data takes all of them in their order, got 2",
    ):
        local(torch.zeros(2, 4))


# -- the full-rank normal
# ------------------------------------------------------------------------------------------


def test_the_full_rank_normal_has_the_moments_of_its_formula() -> None:
    loc, scale_tril = start(N, 3)
    local = LocalFullRankPosterior(loc, scale_tril)
    with torch.no_grad():
        local.shift[:, 0] = 2.0
        local.log_factor.fill_(math.log(3.0))
        local.lower.fill_(0.5)
    small = 0.5 / math.sqrt(2)
    inner = torch.tensor(
        [[3.0, 0.0, 0.0], [0.5, 3.0, 0.0], [small, small, 3.0]], dtype=torch.float64
    )
    factor = scale_tril @ inner
    q = local()
    assert torch.allclose(q.mean, loc + 2 * scale_tril[..., 0])
    assert torch.allclose(q.covariance_matrix, factor @ factor.mT)


@pytest.mark.parametrize("covariance", ["diagonal", "correlated"])
def test_a_multivariate_normal_has_a_local_version(covariance: str) -> None:
    loc, scale_tril = start()
    base = pyro.distributions.MultivariateNormal(loc, scale_tril @ scale_tril.mT)
    local = local_posterior(base, 1)
    assert isinstance(local, LocalFullRankPosterior)
    z = base.sample((4,))
    assert torch.allclose(local().log_prob(z), base.log_prob(z))
    again = local_posterior(moved(local)(), 1)  # of a local one as well
    assert torch.allclose(again().log_prob(z), local().log_prob(z))


OTHERS = {name: make for name, make in FAMILIES.items() if name not in NORMALS}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS.keys())
def test_any_family_has_a_local_version_that_starts_there_whatever_its_plates(make: Make) -> None:
    base = moved(make(6, L))()
    again = local_posterior(base, 1)
    assert type(again) is type(make())
    z = base.sample((4,))
    assert torch.allclose(again().log_prob(z), base.log_prob(z))
    shared = moved(make(1, L))().expand((6,))  # one member for all data, then free for each
    free = local_posterior(shared, 1)
    assert all(len(parameter) == 6 for parameter in free.parameters())
    assert torch.allclose(free().log_prob(z), shared.log_prob(z))
    blocks = local_posterior(shared.expand((2, 6)), 2)(torch.zeros(2, 4))
    z = blocks.sample((4,))
    assert blocks.batch_shape == (2,) and blocks.event_shape == (6, L)
    assert torch.allclose(blocks.log_prob(z), shared.expand((2, 6)).log_prob(z).sum(-1))


def test_stock_distributions_of_low_rank_and_mixtures_have_local_versions() -> None:
    loc, scale_tril = start()
    factor = torch.randn(N, L, 1, dtype=torch.float64)
    low_rank = pyro.distributions.LowRankMultivariateNormal(
        loc, factor, scale_tril.diagonal(0, -2, -1)
    )
    scales = torch.rand(N, 3, L, dtype=torch.float64) + 0.1
    mixture = pyro.distributions.MixtureOfDiagNormals(
        torch.randn_like(scales), scales, torch.randn(N, 3, dtype=torch.float64)
    )
    for stock in (low_rank, mixture):
        z = torch.randn(4, N, L, dtype=torch.float64)
        assert torch.allclose(local_posterior(stock, 1)().log_prob(z), stock.log_prob(z))


def test_more_event_dimensions_are_blocks_of_their_own() -> None:
    loc, scale_tril = (part.reshape(2, 3, *part.shape[1:]) for part in start(6))
    base = pyro.distributions.MultivariateNormal(loc, scale_tril=scale_tril).to_event(1)
    local = local_posterior(base.base_dist, base.event_dim)
    q, z = local(torch.zeros(2, 4)), base.sample((4,))
    assert q.batch_shape == (2,) and q.event_shape == (3, L)
    assert torch.allclose(q.log_prob(z), base.log_prob(z))


def fit(local: nn.Module, log_density: Callable[[Tensor], Tensor], steps: int) -> nn.Module:
    """Plain Adam with a falling step size, by gradients through the draws alone."""
    adam = torch.optim.Adam(local.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        detached = {name: value.detach() for name, value in local.named_parameters()}
        z = local().rsample((16,))
        loss = (
            (torch.func.functional_call(local, detached, ()).log_prob(z) - log_density(z))
            .mean(0)
            .sum()
        )
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    return local


def divergence(local: nn.Module, log_density: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.no_grad():
        q = local()
        z = q.sample((20_000,))
        return (q.log_prob(z) - log_density(z)).mean(0)


def test_full_rank_fits_a_correlated_normal() -> None:
    loc, scale_tril = start(4, 3, torch.float32)
    target = MultivariateNormal(loc, scale_tril=scale_tril)
    begin = torch.diag_embed(
        target.precision_matrix.diagonal(0, -2, -1).rsqrt()
    )  # the best diagonal one
    local = LocalFullRankPosterior(loc + 1, begin)
    assert kl_divergence(local(), target).min() > 0.05
    fit(local, target.log_prob, 600)
    assert kl_divergence(local(), target).max() < 1e-3


# -- the flow
# --------------------------------------------------------------------------------------------------


@flows
@pytest.mark.parametrize("latent_dim", [1, 2, 5])
@pytest.mark.parametrize("size", [0.0, 0.3, 1.0])
def test_the_flow_has_an_exact_inverse_and_jacobian(
    make: Make, latent_dim: int, size: float
) -> None:
    q = moved(make(N, latent_dim), size)()
    noise = torch.randn(4, N, latent_dim, dtype=torch.float64)
    value, log_det = q.push(noise)
    back, inverse_log_det = q.pull(value)
    assert torch.allclose(back, noise, rtol=0, atol=1e-10)
    assert torch.allclose(inverse_log_det, -log_det, rtol=0, atol=1e-10)
    assert torch.allclose(
        q.push(q.pull(4 * noise)[0])[0], 4 * noise, rtol=0, atol=1e-8
    )  # not its own draws
    for k in range(4):
        jacobian = torch.autograd.functional.jacobian(lambda e: q.push(e)[0], noise[k])
        expected = torch.stack([torch.linalg.slogdet(jacobian[n, :, n])[1] for n in range(N)])
        assert torch.allclose(log_det[k], expected, rtol=0, atol=1e-9)
    own = (
        MultivariateNormal(
            torch.zeros(latent_dim).double(), torch.eye(latent_dim).double()
        ).log_prob(noise)
        - log_det
    )
    assert torch.allclose(q.log_prob(value), own, rtol=0, atol=1e-9)


@flows
def test_densities_far_out_are_never_nan(make: Make) -> None:
    q = moved(make(N, L, dtype=torch.float32))()
    for size in (1e6, 1e30):
        for sign in (-1, 1):
            assert (q.log_prob(torch.full((2, N, L), sign * size)) < -50).all()


def test_the_weights_follow_the_seed_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (LocalFlowPosterior(*start(), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert any(
        not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )
    weights = one.networks[0].inner
    assert (weights == weights[:1]).all() and weights.std() > 0.1  # a datum's place does not matter


def banana(z: Tensor) -> Tensor:
    bent = (z[..., 1] - z[..., 0].square() + 1) / 0.5
    return -(z[..., 0].square() + bent.square()) / 2 - math.log(2 * math.pi * 0.5)


def test_the_flow_fits_a_banana_that_a_normal_cannot() -> None:
    loc, scale_tril = torch.zeros(4, 2), torch.eye(2).expand(4, 2, 2)
    normal = divergence(fit(LocalFullRankPosterior(loc, scale_tril), banana, 300), banana)
    flow = divergence(fit(LocalFlowPosterior(loc, scale_tril), banana, 600), banana)
    assert normal.min() > 0.4
    assert flow.min() > -0.02 and flow.max() < normal.min() / 2


def test_the_flow_of_one_latent_fits_a_skewed_density() -> None:
    def log_gamma(z: Tensor) -> Tensor:
        return (z - z.exp()).squeeze(-1)

    loc, scale_tril = torch.zeros(4, 1), torch.ones(4, 1, 1)
    normal = divergence(fit(LocalFullRankPosterior(loc, scale_tril), log_gamma, 300), log_gamma)
    flow = divergence(fit(LocalFlowPosterior(loc, scale_tril), log_gamma, 300), log_gamma)
    assert normal.min() > 0.05
    assert flow.min() > -0.01 and flow.max() < normal.min() / 4


EYE = torch.eye(2).expand(3, 2, 2)


@pytest.mark.parametrize("family", [LocalFullRankPosterior, LocalFlowPosterior])
@pytest.mark.parametrize(
    ("loc", "scale_tril", "message"),
    [
        (
            torch.zeros(3, 2),
            torch.ones(3, 2),
            r"a square matrix for each row of 'loc', \(3, 2, 2\); got \(3, 2\)",
        ),
        (torch.zeros(3, 2), EYE[:2], r"\(3, 2, 2\); got \(2, 2, 2\)"),
        (torch.zeros(3, 2), 0 * EYE, "lower triangular with a positive diagonal"),
        (torch.zeros(3, 2), -EYE, "lower triangular with a positive diagonal"),
        (torch.zeros(3, 2), math.nan * EYE, "lower triangular with a positive diagonal"),
        (
            torch.zeros(3, 2),
            EYE + torch.ones(2, 2).triu(1),
            "lower triangular with a positive diagonal",
        ),
        (
            torch.zeros(2),
            torch.eye(2),
            r"'loc' must have a dimension for the data and 1 for a draw.*got shape \(2,\)",
        ),
    ],
)
def test_bad_starts_are_refused_in_words(
    family: Any, loc: Tensor, scale_tril: Tensor, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        family(loc, scale_tril)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LocalLowRankPosterior(
                torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, 2, 1)
            ),
            "'scale' must be",
        ),
        (
            lambda: LocalLowRankPosterior(
                torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(3, 1, 2)
            ),
            r"'factor' must have a row for each entry of 'loc', \(3, 2, 'R'\); got \(3, 1, 2\)",
        ),
        (
            lambda: LocalAutoregressivePosterior(
                torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(2, 4), []
            ),
            r"'summary' must be \(3, 'H'\), got \(2, 4\)",
        ),
        (
            lambda: LocalMixturePosterior(
                torch.zeros(3, 4), torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
            ),
            r"'logits' must be one for each row of 'locs', \(3, 2\); got \(3, 4\)",
        ),
        (
            lambda: LocalMixturePosterior(torch.zeros(3), torch.zeros(3, 2), torch.ones(3, 2)),
            "'loc' must have a dimension for the data",
        ),
    ],
)
def test_bad_starts_of_the_other_families_are_refused_in_words(make: Make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(("name", "value", "least"), [("num_layers", 1, 2), ("hidden", 0, 1)])
def test_bad_sizes_of_the_flow_are_refused_in_words(name: str, value: int, least: int) -> None:
    with pytest.raises(InputError, match=f"'{name}' must be an integer from {least}, got {value}"):
        LocalFlowPosterior(torch.zeros(3, 2), EYE, **{name: value})
