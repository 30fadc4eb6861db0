"""Priors: the laws of all, what each one is, and that a richer one pays where the truth asks for
it."""

import copy
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
import zuko
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_bvae import BetaVAE, Context, Decoder, evidence, fit
from pyro_bvae.core.errors import InputError
from pyro_bvae.distributions import grey_levels
from pyro_bvae.evaluation import annealed_evidence, elbo_parts, evaluate, kl_per_dimension
from pyro_bvae.evaluation.marginal import AnnealingSettings
from pyro_bvae.likelihoods import BernoulliLikelihood, FixedScale, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import (
    FlowPrior,
    LaplacePrior,
    LearnedNormalPrior,
    MixturePrior,
    NormalPrior,
    StudentTPrior,
    VampPrior,
    ZukoPrior,
)

D, L = 4, 3
Make = Callable[[int], nn.Module]


def encoder(latent_dim: int = L, num_covariates: int = 0) -> NormalPosterior:
    return NormalPosterior(
        MLP(D + num_covariates, 2 * latent_dim, (5,)), num_covariates=num_covariates
    )


def vamp(latent_dim: int) -> VampPrior:
    return VampPrior(
        encoder(latent_dim),
        torch.rand(6, D),
        support=constraints.unit_interval,
        learned_weights=True,
    )


PRIORS: dict[str, Make] = {
    "normal": NormalPrior,
    "learned normal": LearnedNormalPrior,
    "laplace": LaplacePrior,
    "student-t": StudentTPrior,
    "mixture": lambda latent_dim: MixturePrior(latent_dim, 4),
    "vamp": vamp,
    "flow": FlowPrior,
    "zuko": lambda latent_dim: ZukoPrior.neural_spline(latent_dim, hidden=(16,)),
}
members = pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS.keys())


def moved(prior: nn.Module, size: float = 0.05) -> nn.Module:
    """Return a prior with parameters off their start, which hides what they do."""
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return prior


def fine_grid(num_points: int) -> tuple[Tensor, Tensor]:
    """Return points from -50 to 50, denser near 0, and the width of each."""
    angle = torch.linspace(-4.6, 4.6, num_points, dtype=torch.double)
    return angle.sinh(), angle.cosh() * (angle[1] - angle[0])


# -- the laws of all
# ----------------------------------------------------------------------------------------------


@members
def test_the_density_integrates_to_one_over_the_plane(make: Make) -> None:
    prior = moved(make(2)).double()
    points, widths = fine_grid(401)
    with torch.no_grad():
        density = prior().log_prob(torch.cartesian_prod(points, points)).exp().reshape(401, 401)
    assert float(widths @ density @ widths) == pytest.approx(1, abs=1e-3)


@members
def test_draws_follow_the_density(make: Make) -> None:
    prior = moved(make(1)).double()
    draws = prior().sample((4000,))[:, 0]
    points, widths = fine_grid(100_001)
    with torch.no_grad():
        cdf = (prior().log_prob(points.unsqueeze(-1)).exp() * widths).cumsum(0)
    uniforms = cdf[torch.searchsorted(points, draws).clamp(max=len(points) - 1)]
    assert scipy.stats.kstest(uniforms.numpy(), "uniform").pvalue > 1e-3


@members
def test_priors_expand_and_follow_a_dtype(make: Make) -> None:
    prior = moved(make(L)).double()
    expanded, z = prior().expand([5, 2]), torch.randn(5, 2, L, dtype=torch.double)
    assert expanded.batch_shape == (5, 2) and expanded.event_shape == (L,) and prior.latent_dim == L
    assert torch.allclose(expanded.log_prob(z), prior().log_prob(z))
    assert torch.allclose(expanded.log_prob(z[0, 0]), prior().log_prob(z[0, 0]).expand(5, 2))
    draws = expanded.sample((300,))
    assert draws.shape == (300, 5, 2, L) and draws.dtype == torch.double and not draws.requires_grad
    assert len(draws.flatten(0, -2).unique(dim=0)) == 3000  # none is a copy of another


@members
def test_every_parameter_receives_a_finite_gradient_near_and_far(make: Make) -> None:
    prior = moved(make(L))
    parameters = list(prior.parameters())
    for z in (
        torch.randn(50, L),
        torch.full((2, L), 1e4),
        torch.full((2, L), -1e4),
        torch.zeros(1, L),
    ):
        z.requires_grad_()
        log_prob = prior().log_prob(z)
        gradients = torch.autograd.grad(log_prob.sum(), [z, *parameters])
        assert torch.isfinite(log_prob).all() and all(
            torch.isfinite(gradient).all() for gradient in gradients
        )
        if len(z) == 50:
            assert all(gradient.abs().sum() > 0 for gradient in gradients)


@members
def test_priors_are_copied_saved_and_loaded_after_use(make: Make, tmp_path: Any) -> None:
    prior, other, z = moved(make(L)), make(L), torch.randn(4, L)
    if list(prior.parameters()):
        prior().log_prob(z).sum().backward()
    prior().sample()
    copied = copy.deepcopy(prior)
    torch.save(prior.state_dict(), tmp_path / "prior.pt")
    other.load_state_dict(torch.load(tmp_path / "prior.pt", weights_only=True))
    for again in (copied, other):
        assert torch.equal(again().log_prob(z), prior().log_prob(z))
    if parameters := list(copied.parameters()):
        with torch.no_grad():
            parameters[0].add_(torch.randn_like(parameters[0]))
        assert not torch.equal(copied().log_prob(z), prior().log_prob(z))


@members
def test_priors_train_and_are_measured_with_every_estimator(make: Make) -> None:
    x = (torch.rand(40, D) < 0.5).float()
    vae = BetaVAE(make(2), Decoder(MLP(2, D), BernoulliLikelihood()), encoder(2))
    history = fit(vae, x, epochs=2, batch_size=16, progress=False)
    measured = elbo_parts(vae.model, vae.guide, x, num_samples=50)
    assert math.isfinite(history.rows[-1]["objective"]) and math.isfinite(measured.rate.value)
    settings = AnnealingSettings(num_temperatures=10, num_chains=4)
    for start in ("prior", "guide"):
        annealed = annealed_evidence(vae.model, vae.guide, x[:8], start=start, settings=settings)
        assert torch.isfinite(annealed.per_datum).all()
    assert vae.generate(5).shape == (5, D)
    again = copy.deepcopy(vae)
    pyro.clear_param_store()
    assert torch.equal(again.encode(x), vae.encode(x))


def test_priors_start_near_the_standard_normal() -> None:
    for prior in (LearnedNormalPrior(2), FlowPrior(2)):
        z = torch.randn(100, 2)
        assert torch.allclose(prior().log_prob(z), NormalPrior(2)().log_prob(z), atol=0.2)
    torch.manual_seed(0)
    draws = MixturePrior(2, 50)().sample((4000,))
    assert draws.mean(0).abs().max() < 0.4 and (draws.std(0) - 1).abs().max() < 0.3


# -- each one
# --------------------------------------------------------------------------------------------------


def test_densities_are_those_of_scipy() -> None:
    z = 3 * torch.randn(50, L, dtype=torch.double)
    laplace = scipy.stats.laplace(scale=math.sqrt(0.5))
    student = scipy.stats.t(df=3.5, scale=math.sqrt(1.5 / 3.5))
    for prior, law in ((LaplacePrior(L), laplace), (StudentTPrior(L, 3.5), student)):
        assert law.var() == pytest.approx(1)
        expected = torch.from_numpy(law.logpdf(z.numpy())).sum(-1)
        assert torch.allclose(
            prior.double()().log_prob(z), expected, atol=1e-6
        )  # its scale was made in float32


def test_a_mixture_has_the_density_and_the_moments_of_its_parts() -> None:
    prior = moved(MixturePrior(2, 3), 0.5).double()
    z = torch.randn(7, 2, dtype=torch.double)
    with torch.no_grad():
        scale = 1e-3 + nn.functional.softplus(prior.raw_scale)
        weights = prior.logits.softmax(0)
        parts = [
            scipy.stats.multivariate_normal(m, s**2)
            for m, s in zip(prior.loc.numpy(), scale.numpy(), strict=True)
        ]
        expected = sum(
            float(w) * torch.from_numpy(part.pdf(z)) for w, part in zip(weights, parts, strict=True)
        )
        assert torch.allclose(prior().log_prob(z).exp(), expected)
        draws = prior().sample((40_000,))
        assert torch.allclose(draws.mean(0), prior().mean, atol=0.03)
        assert torch.allclose(draws.var(0), prior().variance, rtol=0.04)
        stock = dist.MixtureSameFamily(
            dist.Categorical(weights), dist.Normal(prior.loc, scale).to_event(1)
        )
        assert torch.allclose(stock.mean, prior().mean) and torch.allclose(
            stock.variance, prior().variance
        )


class FullRank(nn.Module):
    """A guide that is no product, and takes a context."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(D + 2, L)

    def forward(self, x: Tensor, context: Context) -> Any:
        inputs = torch.cat([x * context.size_factor, context.covariates], -1)
        tril = torch.eye(L) + 0.3 * torch.ones(L, L).tril(-1)
        return dist.MultivariateNormal(self.network(inputs), scale_tril=tril)


class Flow(nn.Module):
    """A guide whose parameters are of the data's batch shape, which does not broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.flow = (
            nn.Linear(D, 5),
            zuko.flows.MAF(L, context=5, hidden_features=(8,)),
        )

    def forward(self, x: Tensor) -> Any:
        return self.flow(self.network(x))


def test_vamp_is_the_mean_of_the_guide_at_the_pseudo_inputs() -> None:
    inputs, z = torch.randn(6, D), torch.randn(9, 2, L)
    context = Context(torch.rand(6, 1) + 0.5, torch.randn(6, 2))
    cases = [
        (encoder(), None),
        (encoder(L, 2), Context(covariates=context.covariates)),
        (FullRank(), context),
        (Flow(), None),
    ]
    for guide, given in cases:
        prior = VampPrior(guide, inputs, context=given)
        each = [
            guide(row) if given is None else guide(row, part) for row, part in rows(inputs, given)
        ]
        expected = torch.stack([part.log_prob(z) for part in each]).logsumexp(0) - math.log(6)
        assert torch.allclose(prior().log_prob(z), expected, atol=1e-4)
        assert prior().sample((5,)).shape == (5, L)
        prior().log_prob(z).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in prior.parameters())
        prior.zero_grad()


class Apart(nn.Module):
    """A guide that tells its data apart."""

    def forward(self, x: Tensor) -> Any:
        return dist.Normal(x, 0.1).to_event(1)


def test_draws_of_vamp_come_from_each_component_by_its_weight() -> None:
    centers = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    prior = VampPrior(Apart(), centers, learned_weights=True)
    with torch.no_grad():
        prior.logits.copy_(torch.tensor([0.5, 0.3, 0.2]).log() + 1)
    draws = prior().sample((4000, 2)).flatten(0, 1)
    nearest = torch.cdist(draws, centers).argmin(1)
    shares = torch.bincount(nearest, minlength=3) / 8000
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.02)
    assert torch.allclose(prior().mean, draws.mean(0), atol=0.05)
    assert torch.allclose(prior().variance, draws.var(0), rtol=0.05)


def rows(inputs: Tensor, context: Context | None) -> list[tuple[Tensor, Context | None]]:
    def row(part: Tensor | None, k: int) -> Tensor | None:
        return None if part is None else part[k]

    return [
        (x, None if context is None else Context(*(row(part, k) for part in context)))
        for k, x in enumerate(inputs)
    ]


torch.manual_seed(0)  # of the values below, which are drawn while tests are collected


@pytest.mark.parametrize(
    ("support", "start", "lower", "upper"),
    [
        (constraints.real, torch.randn(5, D), -math.inf, math.inf),
        (constraints.unit_interval, (torch.rand(5, D) < 0.5).float(), 0.0, 1.0),
        (grey_levels, torch.randint(256, (5, D)) / 255, 0.0, 1.0),
        (constraints.boolean, (torch.rand(5, D) < 0.5).float(), 0.0, 1.0),
        (constraints.nonnegative, torch.poisson(torch.ones(5, D)), 0.0, math.inf),
        (constraints.nonnegative_integer, torch.poisson(torch.full((5, D), 30.0)), 0.0, math.inf),
        (constraints.interval(-1.0, 3.0), 4 * torch.rand(5, D) - 1, -1.0, 3.0),
    ],
    ids=str,
)
def test_pseudo_inputs_start_where_they_are_put_and_stay_in_the_support(
    support: Any, start: Tensor, lower: float, upper: float
) -> None:
    prior = VampPrior(encoder(), start, support=support)
    width = upper - lower if math.isfinite(upper - lower) else 1
    assert (prior.pseudo_inputs - start).abs().max() < 0.0101 * width
    optimizer = torch.optim.Adam([prior.raw_inputs], lr=1.0)
    for sign in (1, -1):
        for _ in range(8):
            (sign * prior.pseudo_inputs).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert (prior.pseudo_inputs >= lower).all() and (prior.pseudo_inputs <= upper).all()
        assert (prior.pseudo_inputs - start).abs().min() > 0  # every one of them moved


def test_what_is_missing_of_pseudo_inputs_starts_at_zero() -> None:
    prior = VampPrior(encoder(), torch.tensor([[1.0, math.nan, 2.0, math.nan]]))
    assert prior.pseudo_inputs.tolist() == [[1.0, 0.0, 2.0, 0.0]]


@pytest.mark.filterwarnings("ignore:the learning rate jumps")
def test_vamp_shares_the_encoder_of_its_model(tmp_path: Any) -> None:
    def model() -> BetaVAE:
        guide = encoder(2)
        prior = VampPrior(guide, torch.rand(5, D), support=constraints.unit_interval)
        return BetaVAE(prior, Decoder(MLP(2, D), BernoulliLikelihood()), guide)

    vae, x = model(), (torch.rand(60, D) < 0.5).float()
    before = vae.prior.pseudo_inputs.clone()
    fit(vae, x, epochs=2, validation=x[:20], output=tmp_path / "run", progress=False)
    assert not torch.equal(vae.prior.pseudo_inputs, before)
    other = model()
    other.load_state_dict(vae.state_dict())
    copied = copy.deepcopy(vae)
    for again in (other, copied):
        assert again.prior.encoder is again.encoder
        estimates = [evidence(m.model, m.guide, x, num_samples=20).per_datum for m in (vae, again)]
        assert torch.equal(*estimates)
    numbers = [parameter.numel() for parameter in vae.parameters()]
    assert (
        sum(numbers)
        == sum(p.numel() for part in (vae.encoder, vae.decoder) for p in part.parameters()) + 5 * D
    )
    fit(vae, x, epochs=3, validation=x[:20], output=tmp_path / "run", resume=True, progress=False)
    with pytest.raises(InputError, match="features, got prior 5, decoder 4"):
        wrong = NormalPosterior(nn.Sequential(nn.Linear(5, 4)))
        BetaVAE(
            VampPrior(wrong, torch.rand(3, 5)), Decoder(MLP(2, D), BernoulliLikelihood()), wrong
        )


def test_a_flow_keeps_nothing_of_its_last_use() -> None:
    prior = FlowPrior(3, num_layers=2)
    for _ in range(2):
        prior().log_prob(prior().sample((4,))).sum().backward()
    held = [
        value
        for module in prior.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor)
    ]
    assert not held and all(p.is_leaf for p in prior.parameters())


def test_a_flow_learns_two_modes_of_one_latent() -> None:
    truth = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-1.5, 1.5]), torch.tensor(0.3))
    )
    z = truth.sample((2000, 1))
    prior = FlowPrior(1)
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.05)
    for _ in range(150):
        loss = -prior().log_prob(z[:1000]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = float(prior().log_prob(z[1000:]).mean().detach())
    assert held_out > float(truth.log_prob(z[1000:]).mean()) - 0.1


def test_any_flow_of_zuko_is_a_prior() -> None:
    for flow in (
        zuko.flows.MAF(L, hidden_features=(8,)),
        zuko.flows.RealNVP(L, hidden_features=(8,)),
    ):
        prior, z = ZukoPrior(flow), torch.randn(5, L)
        assert torch.equal(prior().log_prob(z), flow().log_prob(z)) and prior.latent_dim == L


def test_without_zuko_the_flow_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(
        InputError, match=r"needs the package zuko, which is not installed: pip install 'pyro-bvae"
    ):
        ZukoPrior.neural_spline(2)


X = torch.rand(3, D)
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    **{
        name: (lambda make=make: make(0), "'latent_dim' must be a positive integer, got 0")
        for name, make in PRIORS.items()
        if name not in ("vamp", "mixture")
    },
    "no components": (
        lambda: MixturePrior(2, 0),
        "'num_components' must be a positive integer, got 0",
    ),
    "spread": (lambda: MixturePrior(2, spread=1.0), "'spread' must lie between 0 and 1, got 1.0"),
    "df": (
        lambda: StudentTPrior(2, 2.0),
        "'df' must be above 2, where the variance is finite, got 2.0",
    ),
    "df nan": (lambda: StudentTPrior(2, math.nan), "'df' must be above 2.*, got nan"),
    "bound": (lambda: FlowPrior(2, bound=0.0), "'bound' must be positive and finite, got 0.0"),
    "layers": (
        lambda: FlowPrior(2, num_layers=0),
        "'num_layers' must be a positive integer, got 0",
    ),
    "hidden": (lambda: FlowPrior(2, hidden=(3, 0)), "'hidden' must be a positive integer, got 0"),
    "no pseudo-inputs": (
        lambda: VampPrior(encoder(), X[:0]),
        r"must be a tensor \(K, D\), got \(0, 4\)",
    ),
    "flat": (lambda: VampPrior(encoder(), X[0]), r"must be a tensor \(K, D\), got \(4,\)"),
    "whole numbers": (
        lambda: VampPrior(encoder(), X.long()),
        "'pseudo_inputs' must be floating, got torch.int64",
    ),
    "infinite": (
        lambda: VampPrior(encoder(), X / 0),
        r"'pseudo_inputs' must be finite, got inf at index \(0, 0\)",
    ),
    "features": (
        lambda: VampPrior(encoder(), X[:, :3]),
        "must have the 4 features of the encoder, got 3",
    ),
    "support": (
        lambda: VampPrior(encoder(), X, support=constraints.simplex),
        "'support' must be constraints.real, or",
    ),
    "rows": (
        lambda: VampPrior(encoder(), X, context=Context(covariates=torch.ones(2, 1))),
        r"'context.covariates' must have a row for each of 3 pseudo-inputs, got shape \(2, 1\)",
    ),
    "zuko context": (
        lambda: ZukoPrior(zuko.flows.MAF(2, context=3)),
        "'flow' must be a Zuko flow without context, got MAF",
    ),
    "no flow": (
        lambda: ZukoPrior(nn.Linear(2, 2)),
        "'flow' must be a Zuko flow without context, got Linear",
    ),
    "scalar": (
        lambda: ZukoPrior(lambda: dist.Normal(0, 1)),
        r"event shape \(L,\), as a flow of Zuko does, got Normal",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD.keys())
def test_bad_values_are_refused_in_words(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


# -- rate and KL per dimension
# ---------------------------------------------------------------------------------------


def measured_model(prior: nn.Module) -> tuple[BetaVAE, Tensor]:
    """Return a model whose guide is known, and its data."""
    x = torch.randn(30, 3, dtype=torch.double)
    loc, scale = (
        torch.stack([x[:, 0], 0.05 * x[:, 1]], -1),
        torch.tensor([0.4, 0.9]).double().expand(30, 2),
    )
    vae = LinearGaussian(torch.ones(3, 2), 1.0).vae(loc, scale)
    return BetaVAE(prior.double(), vae.decoder, vae.encoder).double(), x


def integral_of_kl(vae: BetaVAE, x: Tensor) -> Tensor:
    """Return the KL of each datum and dimension by numerical integration, for a prior of equal
    independent latents."""
    q = vae.encoder(x).base_dist
    grid = torch.linspace(-12, 12, 4001, dtype=torch.double)[:, None, None]
    log_q, prior = q.log_prob(grid), vae.prior().base_dist.log_prob(grid.expand(-1, 1, 2))
    return (log_q.exp() * (log_q - prior)).sum(0) * float(grid[1] - grid[0])


@pytest.mark.parametrize(
    ("prior", "exact"),
    [
        (NormalPrior(2), True),
        (LaplacePrior(2), True),
        (LearnedNormalPrior(2), True),
        (StudentTPrior(2, 3.0), False),
    ],
    ids=["normal", "laplace", "learned normal", "student-t"],
)
def test_kl_per_dimension_is_its_integral(prior: nn.Module, exact: bool) -> None:
    vae, x = measured_model(prior)
    with torch.no_grad():
        expected = integral_of_kl(vae, x)
    kl = kl_per_dimension(vae.model, vae.guide, x, num_samples=500)
    rate = elbo_parts(vae.model, vae.guide, x, num_samples=500).rate
    assert kl.exact is exact and kl.reason is None
    if exact:
        assert (
            torch.equal(kl.monte_carlo_errors, torch.zeros(2).double())
            and rate.monte_carlo_error == 0
        )
    else:
        assert kl.monte_carlo_errors.min() > 0 and kl.monte_carlo_errors.max() < 0.02
    assert ((kl.values - expected.mean(0)).abs() < 4 * kl.monte_carlo_errors + 1e-5).all()
    spread = torch.hypot(expected.std(0) / math.sqrt(30), kl.monte_carlo_errors)
    assert torch.allclose(kl.standard_errors, spread, rtol=0.1)
    assert abs(rate.value - float(expected.sum(-1).mean())) < 4 * rate.monte_carlo_error + 1e-5
    assert kl.active.tolist() == [True, False]


def test_the_rate_to_a_mixture_is_its_integral() -> None:
    prior = moved(MixturePrior(1, 3), 0.5)
    x = torch.randn(20, 3, dtype=torch.double)
    linear = LinearGaussian(torch.ones(3, 1), 1.0).vae(x[:, :1], torch.full((20, 1), 0.5))
    vae = BetaVAE(prior.double(), linear.decoder, linear.encoder).double()
    grid = torch.linspace(-12, 12, 8001, dtype=torch.double)[:, None, None]
    with torch.no_grad():
        log_q = vae.encoder(x).log_prob(grid)
        expected = (log_q.exp() * (log_q - vae.prior().log_prob(grid))).sum(0) * float(
            grid[1] - grid[0]
        )
    rate = elbo_parts(vae.model, vae.guide, x, num_samples=2000).rate
    assert 0 < rate.monte_carlo_error < 0.02
    assert abs(rate.value - float(expected.mean())) < 4 * rate.monte_carlo_error


@pytest.mark.parametrize(
    ("make", "family"),
    [
        (lambda: MixturePrior(2, 3), "NormalMixture"),
        (lambda: FlowPrior(2), "UncachedTransformedDistribution"),
        (lambda: ZukoPrior.neural_spline(2), "ZukoDistribution"),
    ],
    ids=["mixture", "flow", "zuko"],
)
def test_what_is_no_product_has_no_kl_of_dimensions_and_says_why(
    make: Callable[[], nn.Module], family: str
) -> None:
    vae, x = measured_model(make())
    kl = kl_per_dimension(vae.model, vae.guide, x)
    assert (
        kl.values is None
        and kl.standard_errors is None
        and kl.monte_carlo_errors is None
        and not kl.exact
    )
    assert kl.reason == f"the prior ({family}) is no product of independent dimensions"
    assert kl.active.tolist() == [True, False]


def test_a_written_kl_says_why_there_is_none() -> None:
    vae, x = measured_model(MixturePrior(2, 3))
    evaluation = evaluate(
        vae.model, vae.guide, x, training_beta=0.0, num_samples=50
    )  # without refits
    written = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert written["kl_per_dimension"] is None and written["kl_note"] == evaluation.kl.reason
    assert written["active_units"]["count"] == 1


def test_a_written_kl_says_whether_it_is_exact() -> None:
    for prior, exact in ((NormalPrior(2), True), (StudentTPrior(2), False)):
        vae, x = measured_model(prior)
        written = evaluate(vae.model, vae.guide, x, training_beta=0.0, num_samples=50).to_dict()
        assert written["kl_per_dimension"]["exact"] is exact and written["kl_note"] is None
        assert len(written["kl_per_dimension"]["monte_carlo_errors"]) == 2


# -- planted truth
# --------------------------------------------------------------------------------------------------


def planted(num_data: int, seed: int) -> Tensor:
    """Return data of a linear decoder whose two latents come from four well separated normals."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.tensor([[2.0, 1.0], [-2.0, 1.0], [0.0, -2.0], [0.0, 3.0]])
    z = corner[torch.randint(4, (num_data,), generator=generator)] + 0.2 * torch.randn(
        num_data, 2, generator=generator
    )
    weight = torch.tensor([[1.0, 0.2], [0.3, 1.0], [-0.5, 0.8], [0.7, -0.7], [0.4, 0.4]])
    return z @ weight.T + 0.3 * torch.randn(num_data, 5, generator=generator)


def vamp_of_data() -> VampPrior:
    return VampPrior(NormalPosterior(MLP(5, 4, (32,))), planted(1000, 0)[:30])


@pytest.mark.parametrize(
    "make",
    [lambda: MixturePrior(2, 8), lambda: FlowPrior(2), vamp_of_data],
    ids=["mixture", "flow", "vamp"],
)
def test_a_richer_prior_pays_where_the_truth_is_a_mixture(make: Callable[[], nn.Module]) -> None:
    x, held_out = planted(1000, 0), planted(500, 1)
    results = []
    for prior in (make(), NormalPrior(2)):
        torch.manual_seed(0)
        guide = getattr(prior, "encoder", None) or NormalPosterior(MLP(5, 4, (32,)))
        vae = BetaVAE(prior, Decoder(MLP(2, 5, ()), NormalLikelihood(FixedScale(0.3))), guide)
        fit(vae, x, epochs=30, batch_size=100, learning_rate=0.02, progress=False)
        results.append(evidence(vae.model, vae.guide, held_out, num_samples=200).per_datum)
    difference = results[0] - results[1]
    error = float(difference.std()) / math.sqrt(len(difference))
    assert float(difference.mean()) > 2 * error
    assert float(difference.mean()) > 0.3  # in nats: the truth is worth about a nat
