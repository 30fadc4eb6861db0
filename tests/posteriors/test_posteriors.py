"""Guide families: their densities, their draws, their sizes, and the gaps that they leave."""

import copy
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
)
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_bvae import BetaVAE, evidence, fit, inference_gaps
from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.distributions import (
    AutoregressiveNormal,
    DiagonalNormal,
    FullRankNormal,
    LowRankNormal,
    NormalMixture,
)
from pyro_bvae.evaluation import elbo_parts, kl_per_dimension
from pyro_bvae.evaluation.marginal import DefensiveProposal, HeavyTailedProposal
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.posteriors import (
    FlowPosterior,
    FullRankPosterior,
    LowRankPosterior,
    MixturePosterior,
    NormalPosterior,
)
from pyro_bvae.program.program import open_program
from pyro_bvae.training import IWELBO, Loss

D, N = 6, 4
FAMILIES: dict[str, tuple[Any, dict[str, int]]] = {
    "normal": (NormalPosterior, {}),
    "full-rank": (FullRankPosterior, {}),
    "low-rank": (LowRankPosterior, {"rank": 2}),
    "flow": (FlowPosterior, {"summary_dim": 5}),
    "mixture": (MixturePosterior, {"num_components": 3}),
}
families = pytest.mark.parametrize("name", FAMILIES)
richer = pytest.mark.parametrize("name", [name for name in FAMILIES if name != "normal"])


def make(name: str, latent_dim: int = 3, seed: int = 0, features: int = D, **settings: Any) -> Any:
    """A guide in float64, moved a little from where it starts."""
    family, sizes = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MLP(features, family.num_outputs(latent_dim, **sizes), (8,))
        posterior = family(network, **sizes, **settings).double()
        with torch.no_grad():
            for parameter in posterior.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return posterior


def data(*leading: int) -> Tensor:
    return torch.randn(*leading, D, dtype=torch.double, generator=torch.Generator().manual_seed(1))


def scored_draw(q: Any) -> tuple[Tensor, Tensor]:
    """Draw and score as training does."""
    if hasattr(q, "rsample_and_log_prob"):
        return q.rsample_and_log_prob()  # type: ignore[no-any-return]
    z = q.rsample()
    return z, q.log_prob(z)


# -- laws
# --------------------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_shapes_gradients_and_copies(name: str, latent_dim: int) -> None:
    posterior = make(name, latent_dim)
    assert posterior.latent_dim == latent_dim and posterior.num_features == D
    for leading in ((), (N,), (5, N)):
        q = posterior(data(*leading))
        assert q.batch_shape == leading and q.event_shape == (latent_dim,) and q.has_rsample
        assert q.mean.shape == q.variance.shape == (*leading, latent_dim)
        z = q.rsample()
        posterior.zero_grad()
        (z.square().sum() + q.log_prob(z).sum()).backward()
        for key, parameter in posterior.named_parameters():
            assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, key
        wide = q.expand((7, *leading))
        assert wide.rsample((2,)).shape == (2, 7, *leading, latent_dim) and wide.mean.shape == (
            7,
            *leading,
            latent_dim,
        )
        z = wide.rsample()
        assert wide.log_prob(z).shape == (7, *leading)
        assert torch.allclose(wide.log_prob(z), q.log_prob(z.detach().clone()))
        assert (
            wide.log_prob(z[0]).shape
            == wide.log_prob(z[0].flatten()[:latent_dim]).shape
            == (7, *leading)
        )
    again = copy.deepcopy(posterior)  # after use: nothing of a graph is held
    with torch.no_grad():
        assert torch.equal(again(data(N)).mean, posterior(data(N)).mean)


@families
@pytest.mark.parametrize("latent_dim", [1, 3])
@torch.no_grad()
def test_draws_follow_the_density_and_the_moments(name: str, latent_dim: int) -> None:
    """By importance weights from something wider, for functions of the draws that are bounded."""
    q, num_draws = make(name, latent_dim)(data(N)), 20_000
    own = q.sample((num_draws,))
    errors = (q.variance / num_draws).sqrt()
    assert ((own.mean(0) - q.mean).abs() < 4.5 * errors).all()
    fourth = ((own - q.mean) / q.stddev).pow(4).mean(0)
    slack = 0.02 if name == "flow" else 0.0  # whose moments are quadratures
    assert (
        (own.var(0) / q.variance - 1).abs() < 4.5 * ((fourth - 1) / num_draws).sqrt() + slack
    ).all()
    wide = Independent(StudentT(4.0, q.mean, 1.5 * q.stddev), 1)
    z = wide.sample((num_draws,))
    weights = (q.log_prob(z) - wide.log_prob(z)).exp()
    assert ((weights.mean(0) - 1).abs() < 4.5 * weights.std(0) / math.sqrt(num_draws)).all()

    def features(value: Tensor) -> Tensor:
        value = torch.tanh((value - q.mean) / q.stddev)
        products = (value.unsqueeze(-1) * value.unsqueeze(-2)).flatten(-2)
        return torch.cat((value, products, torch.sin(6 * value)), -1)

    theirs, ours = weights.unsqueeze(-1) * features(z), features(own)
    error = ((theirs.var(0) + ours.var(0)) / num_draws).sqrt()
    assert ((theirs.mean(0) - ours.mean(0)).abs() < 4.5 * error).all()


@families
@pytest.mark.parametrize("latent_dim", [1, 3, 16])
def test_extreme_outputs_stay_finite(name: str, latent_dim: int) -> None:
    posterior = make(name, latent_dim).float()
    last = posterior.network.layers[-1]
    for seed in range(4):
        signs = torch.sign(
            torch.randn(last.bias.shape, generator=torch.Generator().manual_seed(seed))
        )
        with torch.no_grad():
            last.bias.copy_(1e4 * (signs if seed > 1 else torch.full_like(signs, 2 * seed - 1)))
        q = posterior(data(N).float()).expand((8, N))
        z, log_prob = scored_draw(q)
        posterior.zero_grad()
        (z.sum() + log_prob.sum()).backward()
        assert torch.isfinite(z).all() and torch.isfinite(log_prob).all()
        assert torch.isfinite(q.mean).all() and torch.isfinite(q.variance).all()
        assert all(torch.isfinite(parameter.grad).all() for parameter in posterior.parameters())


@families
def test_a_guide_saves_and_loads_and_follows_a_dtype(name: str, tmp_path: Any) -> None:
    one, other = make(name), make(name, seed=1)
    torch.save(one.state_dict(), tmp_path / "guide.pt")
    other.load_state_dict(torch.load(tmp_path / "guide.pt", weights_only=True))
    z = torch.zeros(N, 3, dtype=torch.double)
    assert torch.equal(one(data(N)).log_prob(z), other(data(N)).log_prob(z))
    single = one.float()(data(N).float())
    assert (
        single.rsample().dtype
        == single.mean.dtype
        == single.log_prob(z.float()).dtype
        == torch.float
    )
    assert torch.allclose(
        single.log_prob(z.float()).double(), other(data(N)).log_prob(z), rtol=1e-4
    )


@families
def test_each_datum_has_its_own_and_its_place_does_not_matter(name: str) -> None:
    posterior, x = make(name), data(N)
    z = torch.randn(9, N, 3, dtype=torch.double)
    whole = posterior(x).log_prob(z)
    assert torch.allclose(posterior(x.flip(0)).log_prob(z.flip(1)), whole.flip(1))
    assert torch.allclose(posterior(x[1]).log_prob(z[:, 1]), whole[:, 1])


@families
def test_inputs_are_a_function_of_the_data_and_not_of_their_covariates(name: str) -> None:
    settings: dict[str, Any] = {"num_covariates": 2}
    plain, logged = (
        make(name, features=D + 2, **settings),
        make(name, features=D + 2, inputs=torch.log1p, **settings),
    )
    x, context = data(N).exp(), Context(covariates=torch.tensor([[1.0, -3.0]]).expand(N, 2))
    assert logged.num_features == D
    z = torch.zeros(N, 3, dtype=torch.double)
    assert torch.equal(logged(x, context).log_prob(z), plain(x.log1p(), context).log_prob(z))


@families
def test_networks_are_sized_by_the_family(name: str) -> None:
    family, sizes = FAMILIES[name]
    count = functools.partial(family.num_outputs, **sizes)
    for latent_dim in (1, 2, 7):
        assert family(MLP(D, count(latent_dim), ()), **sizes).latent_dim == latent_dim
    wrong = count(4) + 1
    with pytest.raises(
        InputError,
        match=f"got {wrong}; right would be {count(4)} for 4 or {count(5)} for 5 latents",
    ):
        family(MLP(D, wrong, ()), **sizes)
    silent = nn.Sequential(nn.Linear(D, count(4)))  # says nothing of its sizes
    posterior = family(silent, **sizes, **({"latent_dim": 4} if family is FlowPosterior else {}))
    assert posterior(torch.zeros(2, D)).event_shape == (4,) and posterior.num_features is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LowRankPosterior(MLP(D, 8), rank=0), "'rank' must be a positive integer, got 0"),
        (
            lambda: MixturePosterior(MLP(D, 9), num_components=1),
            "'num_components' must be an integer from 2, got 1",
        ),
        (
            lambda: FlowPosterior(MLP(D, 20), num_steps=0),
            "'num_steps' must be a positive integer, got 0",
        ),
        (
            lambda: FlowPosterior(MLP(D, 20), summary_dim=-1),
            "'summary_dim' must be a positive integer, got -1",
        ),
        (lambda: FlowPosterior(MLP(D, 20), hidden=(1,)), r"the number of latents, 2, got \(1,\)"),
        (
            lambda: FlowPosterior(MLP(D, 20), latent_dim=3),
            "'latent_dim' must be 2, as the network's outputs say, got 3",
        ),
        (lambda: FlowPosterior(nn.Linear(D, 20)), None),
        (lambda: FlowPosterior(nn.Sequential(nn.Linear(D, 20))), "'latent_dim' must be given"),
        (
            lambda: FlowPosterior(MLP(D, 16)),
            "a summary of 16 numbers, got 16; right would be 18 for 1 latents",
        ),
        (
            lambda: NormalPosterior(MLP(D, 4), inputs="log1p"),
            "'inputs' must be a function of the data",
        ),  # type: ignore[arg-type]
        (
            lambda: NormalPosterior(nn.Sequential(nn.Linear(D, 5)))(torch.zeros(1, D)),
            "an even number of outputs, got 5",
        ),
    ],
)
def test_bad_values_are_refused_in_words(build: Callable[[], Any], message: str | None) -> None:
    if message is None:  # ``nn.Linear`` says its sizes as the package's networks do
        assert build().latent_dim == 2
        return
    with pytest.raises(InputError, match=message):
        build()


# -- normals
# --------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.untyped_storage().nbytes():
            self.numel = max(self.numel, out.untyped_storage().nbytes() // out.element_size())
        return out


@pytest.mark.parametrize("name", ["full-rank", "low-rank"])
def test_no_matrix_is_copied_for_a_particle(name: str) -> None:
    particles, latents = 50, 40
    q = make(name, latents)(data(N)).expand((particles, N))
    with Largest() as largest:
        z = q.rsample()
        (q.log_prob(z.detach()).sum() + q.log_prob(z).sum() + z.sum()).backward()
    assert largest.numel <= max(particles * N * latents, N * latents * latents)


def test_the_full_rank_normal_has_the_covariance_of_its_formula() -> None:
    posterior, x = make("full-rank"), data(N)
    outputs = posterior.network(x)
    q = posterior(x)
    loc, scale, below = (
        outputs[:, :3],
        nn.functional.softplus(outputs[:, 3:6]) + 1e-5,
        outputs[:, 6:],
    )
    tril = torch.diag_embed(scale)
    tril[:, 1, 0] = scale[:, 1] * below[:, 0]
    tril[:, 2, :2] = scale[:, 2:] * below[:, 1:] / math.sqrt(2)
    z = torch.randn(5, N, 3, dtype=torch.double)
    assert torch.allclose(q.covariance_matrix, tril @ tril.mT)
    assert torch.allclose(q.log_prob(z), MultivariateNormal(loc, scale_tril=tril).log_prob(z))


@pytest.mark.parametrize("latent_dim", [2, 30])
def test_normals_start_sane(latent_dim: int) -> None:
    """At the usual initialisation on standardised data, no latent and no direction is far from the
    prior's scale."""
    for family in (FullRankPosterior, LowRankPosterior):
        torch.manual_seed(0)
        q = family(MLP(20, family.num_outputs(latent_dim)))(torch.randn(50, 20))
        eigenvalues = torch.linalg.eigvalsh(q.scale_tril @ q.scale_tril.mT)
        assert eigenvalues.min() > 0.2 and eigenvalues.max() < 2.0 and q.mean.abs().max() < 1


def test_the_low_rank_normal_is_the_stock_one_and_stays_right_in_float32() -> None:
    q = make("low-rank", 5)(data(N))
    covariance = torch.distributions.LowRankMultivariateNormal(
        q.loc, q.scale.unsqueeze(-1) * q.factor, q.scale.square()
    ).covariance_matrix
    z = torch.randn(7, N, 5, dtype=torch.double)
    stock = MultivariateNormal(q.loc, covariance)
    assert torch.allclose(q.log_prob(z), stock.log_prob(z))
    assert torch.allclose(q.variance, stock.variance) and torch.allclose(
        q.scale_tril, stock.scale_tril
    )
    # A factor as large as the posterior lets it be, its columns nearly the same.
    generator = torch.Generator().manual_seed(2)
    column = torch.randn(30, 1, generator=generator, dtype=torch.double)
    factor = column + 1e-3 * torch.randn(30, 2, generator=generator, dtype=torch.double)
    factor = 100 * factor / factor.norm()
    exact = LowRankNormal(torch.zeros(30).double(), torch.full((30,), 0.01).double(), factor)
    single = LowRankNormal(exact.loc.float(), exact.scale.float(), factor.float())
    z = exact.sample((1000,))
    assert (single.log_prob(z.float()) - exact.log_prob(z)).abs().max() < 0.02


@pytest.mark.parametrize("name", ["full-rank", "low-rank"])
def test_the_kl_to_a_product_of_normals_is_a_closed_form(name: str) -> None:
    q = make(name)(data(N))
    loc, scale = torch.randn(3, dtype=torch.double), torch.rand(3, dtype=torch.double) + 0.5
    exact = torch.distributions.kl_divergence(
        MultivariateNormal(q.mean, scale_tril=q.scale_tril),
        MultivariateNormal(loc, scale_tril=torch.diag(scale)),
    )
    for prior in (DiagonalNormal.of(loc, scale), DiagonalNormal.of(loc, scale).expand((N,))):
        assert torch.allclose(torch.distributions.kl_divergence(q, prior), exact)
    with pytest.raises(NotImplementedError):
        torch.distributions.kl_divergence(
            q, Independent(torch.distributions.Laplace(loc, scale), 1)
        )


# -- draws that come with their density
# ----------------------------------------------------------------------------


def test_training_and_evidence_take_no_inverse_of_the_flow(
    linear: LinearGaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, x = guided(linear, "flow"), linear.sample(20)
    with open_program(vae.model, vae.guide, (x,)) as program:
        assert program.vectorized and program.sliceable
    rows = []
    pull = AutoregressiveNormal.pull
    monkeypatch.setattr(
        AutoregressiveNormal,
        "pull",
        lambda self, value: rows.append(len(value)) or pull(self, value),
    )
    Loss(vae)(x).loss.backward()
    assert rows == []
    evidence(vae.model, vae.guide, x, num_samples=300)
    assert max(rows) <= 20  # what looks the program over, one particle at a time


# -- the flow
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent_dim", [1, 2, 4])
def test_the_flow_has_an_exact_inverse_and_jacobian(latent_dim: int) -> None:
    posterior = make("flow", latent_dim, num_steps=3)
    q = posterior(data(N))
    noise = torch.randn(5, N, latent_dim, dtype=torch.double)
    value, log_det = q.push(2 * noise)
    back, inverse = q.pull(value)
    assert torch.allclose(back, 2 * noise, atol=1e-9) and torch.allclose(
        inverse, log_det, atol=1e-9
    )
    jacobian = torch.autograd.functional.jacobian(lambda e: q.push(e)[0], 2 * noise[0])
    for n in range(N):
        assert torch.allclose(torch.linalg.slogdet(jacobian[n, :, n])[1], log_det[0, n])
    assert latent_dim == 1 or (jacobian[0, :, 0].tril(-1).abs().max() > 1e-3)


def test_the_density_of_the_flow_has_the_right_gradient_at_any_value() -> None:
    posterior = make("flow", 3)
    q = posterior(data(2))
    value = torch.randn(2, 3, dtype=torch.double, requires_grad=True)

    def density(value: Tensor, loc: Tensor, scale: Tensor, summary: Tensor) -> Tensor:
        return AutoregressiveNormal(loc, scale, summary, q.steps).log_prob(value)

    inputs = [part.detach().requires_grad_() for part in (value, q.loc, q.scale, q.summary)]
    assert torch.autograd.gradcheck(density, inputs)
    weight = posterior.steps[0].network.layers[0].weight
    (gradient,) = torch.autograd.grad(q.log_prob(value).sum(), weight)
    step = torch.zeros_like(weight)
    place = int(gradient.abs().argmax())
    step.view(-1)[place] = 1e-6
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            weight.add_(sign * step)
            ends.append(posterior(data(2)).log_prob(value).sum())
            weight.sub_(sign * step)
    assert float(ends[0] - ends[1]) / 2e-6 == pytest.approx(
        float(gradient.view(-1)[place]), rel=1e-5
    )


@torch.no_grad()
def test_the_flow_starts_near_the_diagonal_normal() -> None:
    torch.manual_seed(0)
    flow = FlowPosterior(MLP(D, FlowPosterior.num_outputs(10)), num_steps=4)
    q = flow(data(50).float())
    z = q.sample((200,))
    assert (q.log_prob(z) - DiagonalNormal.of(q.loc, q.scale).log_prob(z)).mean(
        0
    ).abs().max() < 0.05
    assert (q.mean - q.loc).abs().max() < 0.2 and torch.equal(q.mean, q.mean)
    state = torch.get_rng_state()
    _ = q.mean
    assert torch.equal(state, torch.get_rng_state())


def test_one_latent_is_no_cause_for_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FlowPosterior(MLP(D, FlowPosterior.num_outputs(1)))


# -- the mixture
# --------------------------------------------------------------------------------------------------


def mixture(latent_dim: int, leading: tuple[int, ...] = (N,)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(*leading, 3, generator=generator, dtype=torch.double)
    locs = torch.randn(*leading, 3, latent_dim, generator=generator, dtype=torch.double)
    scales = 0.3 + torch.rand(*leading, 3, latent_dim, generator=generator, dtype=torch.double)
    return [part.requires_grad_() for part in (logits, locs, scales)]


@pytest.mark.parametrize("latent_dim", [1, 3])
def test_the_mixture_has_the_density_and_moments_of_the_stock_one(latent_dim: int) -> None:
    logits, locs, scales = mixture(latent_dim)
    q = NormalMixture(logits, locs, scales)
    stock: Any = MixtureSameFamily(Categorical(logits=logits), Independent(Normal(locs, scales), 1))  # type: ignore[no-untyped-call]
    z = 3 * torch.randn(7, N, latent_dim, dtype=torch.double)
    assert torch.allclose(q.log_prob(z), stock.log_prob(z))
    assert torch.allclose(q.mean, stock.mean) and torch.allclose(q.variance, stock.variance)
    far = torch.full((N, latent_dim), 1e6, dtype=torch.double)
    assert torch.isfinite(q.log_prob(far)).all() and torch.allclose(
        q.log_prob(far), stock.log_prob(far)
    )


@pytest.mark.parametrize("latent_dim", [1, 2, 3])
@pytest.mark.parametrize("leading", [(), (2,)])
@pytest.mark.parametrize("expanded", [False, True])
def test_gradients_through_draws_of_a_mixture_are_those_of_its_moments(
    latent_dim: int, leading: tuple[int, ...], expanded: bool
) -> None:
    parameters, draws, rounds = mixture(latent_dim, leading), 1000, 30
    q = NormalMixture(*parameters)
    moments = q.variance + q.mean.square() + q.mean
    exact = torch.autograd.grad(moments.sum(), parameters)
    torch.manual_seed(0)
    results: list[list[Tensor]] = [[], [], []]
    for _ in range(rounds):
        q = NormalMixture(*parameters)
        z = q.expand((draws, *leading)).rsample() if expanded else q.rsample((draws,))
        for kept, gradient in zip(
            results, torch.autograd.grad((z.square() + z).mean(0).sum(), parameters), strict=True
        ):
            kept.append(gradient)
    for gradients, truth in zip(results, exact, strict=True):
        each = torch.stack(gradients)
        assert ((each.mean(0) - truth).abs() < 5 * each.std(0) / math.sqrt(rounds) + 1e-6).all()
        assert each.std(0).max() < 0.5 * truth.abs().max()


@pytest.mark.parametrize("end", [-1, 1])
def test_a_draw_far_out_in_either_tail_has_the_gradient_of_float64(end: int) -> None:
    results = []
    for dtype in (torch.float32, torch.float64):
        logits, locs = (
            torch.zeros(2, dtype=dtype, requires_grad=True),
            end * torch.tensor([[0.0], [0.5]], dtype=dtype),
        )
        q = NormalMixture(logits, locs, torch.ones(2, 1, dtype=dtype))
        results.append(
            torch.autograd.grad(q._moving(torch.tensor([5.5 * end], dtype=dtype)).sum(), logits)[
                0
            ].double()
        )
    assert torch.allclose(*results, rtol=0.01) and results[1].abs().min() > 0.01


def test_draws_of_a_mixture_are_their_own_datum_s() -> None:
    """Far apart components, another one for each datum: a draw is where its own datum is."""
    logits = torch.zeros(3, 2)
    locs = 100.0 * torch.arange(3).reshape(3, 1, 1) + torch.tensor([[[0.0], [10.0]]]).expand(
        3, 2, 2
    )
    q = NormalMixture(logits, locs, torch.full((3, 2, 2), 0.1))
    for z in (
        q.rsample((500,)),
        q.expand((500, 3)).rsample(),
        q.expand((5, 3)).rsample((100,)).flatten(0, 1),
    ):
        places = ((z - 100 * torch.arange(3).reshape(3, 1)) / 10).round()
        assert ((places == 0) | (places == 1)).all() and (places[..., 0] == places[..., 1]).all()
        assert ((places.mean((0, -1)) - 0.5).abs() < 0.12).all()


def test_components_that_coincide_and_many_latents_have_finite_gradients() -> None:
    same = torch.zeros(2, 3, 4, requires_grad=True)
    NormalMixture(torch.zeros(2, 3, requires_grad=True), same, torch.ones(2, 3, 4)).rsample(
        (9,)
    ).sum().backward()
    assert torch.isfinite(same.grad).all() and same.grad.sum() == pytest.approx(2 * 9 * 4, rel=1e-5)
    posterior = MixturePosterior(MLP(D, MixturePosterior.num_outputs(100)))
    with torch.no_grad():
        posterior.network.layers[-1].bias.sub_(4.0)  # type: ignore[operator, union-attr]
    posterior(data(N).float()).rsample().square().sum().backward()
    gradients = [parameter.grad for parameter in posterior.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


def test_the_components_start_apart_in_every_latent() -> None:
    for components, latent_dim in ((2, 1), (4, 3), (5, 12)):
        network = MLP(D, MixturePosterior.num_outputs(latent_dim, components), ())
        for parameter in network.parameters():
            nn.init.zeros_(parameter)
        q = MixturePosterior(network, num_components=components)(torch.zeros(D))
        assert torch.pdist(q.locs).min() > 0.2 and torch.allclose(
            q.mean, torch.zeros(latent_dim), atol=1e-6
        )
        assert torch.allclose(q.locs.square().mean(0).sqrt(), torch.full((latent_dim,), 0.5))


# -- in the program
# --------------------------------------------------------------------------------------------------

QUICK = RefitSettings(
    num_particles=8, steps_per_round=25, max_rounds=8, num_plateaus=2, check_particles=64
)


@pytest.fixture
def linear() -> LinearGaussian:
    weight = [[1.0, 0.4, 0.1], [0.2, 1.0, -0.5], [0.6, 0.3, 0.8], [0.2, -0.4, 0.5], [0.5, 0.5, 0.5]]
    return LinearGaussian(torch.tensor(weight), 0.6)


def guided(linear: LinearGaussian, name: str, epochs: int = 0) -> BetaVAE:
    """The oracle's model, whose posterior is correlated, with a guide that has seen a few data."""
    exact = linear.amortized_vae()
    vae = BetaVAE(exact.prior, exact.decoder, make(name, 3, features=5), name="guided")
    for parameter in vae.decoder.parameters():
        parameter.requires_grad_(False)
    if epochs:
        fit(
            vae,
            linear.sample(400, seed=1),
            beta=1.0,
            epochs=epochs,
            batch_size=50,
            learning_rate=5e-3,
            progress=False,
        )
    return vae


@richer
def test_gaps_of_every_guide(linear: LinearGaussian, name: str) -> None:
    x = linear.sample(12)
    vae = guided(linear, name, epochs=6)
    # A flow's refit starts its steps anew in each round, and needs more of them.
    settings = RefitSettings() if name == "flow" else QUICK
    gaps = inference_gaps(vae.model, vae.guide, x, num_samples=600, settings=settings)
    diagonal = float(linear.gaps(x, *linear.best_diagonal(x)).approximation.mean())
    assert diagonal > 0.2
    assert (
        abs(gaps.evidence.value - float(linear.evidence(x).mean()))
        < 4 * gaps.evidence.monte_carlo_error
        < 0.1
    )
    for gap in (gaps.variational, gaps.approximation, gaps.amortization):
        assert torch.isfinite(gap.per_datum).all() and gap.value > -3 * gap.monte_carlo_error
    # Every family holds the diagonal normal; the full-rank one holds the posterior.
    most = 0.02 if name == "full-rank" else 0.25 * diagonal
    assert gaps.approximation.value < most
    if name == "full-rank":
        assert abs(gaps.approximation.value) < 0.02 and gaps.approximation.monte_carlo_error < 0.01


@richer
def test_the_bound_and_its_parts_are_told_for_every_guide(
    linear: LinearGaussian, name: str
) -> None:
    x = linear.sample(12)
    vae = guided(linear, name)
    kl = kl_per_dimension(vae.model, vae.guide, x)
    assert kl is not None and kl.values is None and not kl.exact and kl.mean_variances.shape == (3,)
    parts = elbo_parts(vae.model, vae.guide, x, num_samples=200)
    closed = name in ("full-rank", "low-rank")
    assert (parts.rate.monte_carlo_error == 0) == closed
    assert vae.encode(x).shape == (12, 3)


@richer
@pytest.mark.parametrize(
    "proposal", [HeavyTailedProposal(degrees=3.0), DefensiveProposal(0.2)], ids=["heavy", "prior"]
)
def test_proposals_around_every_guide_find_the_evidence(
    linear: LinearGaussian, name: str, proposal: Any
) -> None:
    x = linear.sample(12)
    vae = guided(linear, name, epochs=6)
    estimate = evidence(vae.model, vae.guide, x, num_samples=3000, proposal=proposal)
    assert estimate.errors is not None
    noise = float(estimate.errors.square().sum().sqrt()) / len(x)
    assert abs(estimate.value - float(linear.evidence(x).mean())) < 4 * noise < 0.2


@richer
@pytest.mark.parametrize(
    "loss",
    [
        Trace_ELBO(num_particles=3, vectorize_particles=True),
        TraceMeanField_ELBO(),
        IWELBO(4, doubly_reparametrized=True),
    ],
    ids=["elbo", "mean field", "doubly reparametrised"],
)
def test_stock_inference_trains_every_guide(linear: LinearGaussian, name: str, loss: Any) -> None:
    pyro.clear_param_store()
    x = linear.sample(200)
    vae = guided(linear, name)
    before = elbo_parts(vae.model, vae.guide, x, num_samples=20).elbo.value
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), loss)
    with warnings.catch_warnings():  # TraceMeanField_ELBO says so where it has no closed form
        warnings.simplefilter("ignore")
        pyro.set_rng_seed(0)
        for _ in range(40):
            svi.step(x)
    assert elbo_parts(vae.model, vae.guide, x, num_samples=20).elbo.value > before + 0.5
    pyro.clear_param_store()


def test_the_kinds_of_distributions_are_what_dispatch_sees() -> None:
    kinds = {
        "full-rank": FullRankNormal,
        "low-rank": LowRankNormal,
        "flow": AutoregressiveNormal,
        "mixture": NormalMixture,
    }
    for name, kind in kinds.items():
        assert type(make(name)(data(N)).expand((2, N))) is kind
