"""The importance weighted bound.

Its loss and both gradients by hand, its expectations, any Pyro program, bad input.
"""

import copy
import gc
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, AutoNormalMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, elbo, fit
from pyro_bvae.core.errors import InputError
from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import IWELBO, Loss, Terms, TraceTerms, reparametrize

WEIGHT = torch.tensor([[1.0, 0.4], [0.2, 1.0], [0.6, 0.3], [0.2, -0.4]], dtype=torch.double)
SIGMA, N, K, L = 0.6, 5, 7, 2
LINEAR = LinearGaussian(WEIGHT, SIGMA, torch.tensor([0.1, -0.2, 0.3, 0.0]))
BETAS = [1.0, 0.0, 0.4, 3.0, torch.tensor(2.0).double(), torch.linspace(0, 3, N).double()]


class Noise(Messenger):
    """Draws from given standard noise (K, ...).

    All of it where a site takes it whole, else the next particle's.
    """

    def __init__(self, **noise: Tensor) -> None:
        super().__init__()
        self.noise, self.next = noise, dict.fromkeys(noise, 0)

    def _pyro_sample(self, msg: dict) -> None:
        name = msg["name"]
        if name in self.noise and msg["value"] is None and not msg["is_observed"]:
            noise = self.noise[name]
            if noise.shape != msg["fn"].shape():
                noise = noise[self.next[name]]
                self.next[name] += 1
            msg["value"] = reparametrize(msg["fn"], noise)


def off_optimum(x: Tensor) -> tuple[Tensor, Tensor]:
    loc, scale = LINEAR.best_diagonal(x)
    return 0.7 * loc + 0.2, scale * torch.tensor([1.4, 0.8])


def by_hand(
    x: Tensor,
    noise: Tensor,
    beta: float | Tensor,
    doubly: bool = False,
    start: Callable = off_optimum,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-mean-exp of each datum, (N,), and minus the gradients of its sum, without Pyro and
    without autograd."""
    loc, scale = start(x)
    beta = torch.as_tensor(beta, dtype=torch.double)
    z = loc + scale * noise
    residual = x - LINEAR.bias - z @ WEIGHT.T
    log_weights = -0.5 * (residual / SIGMA).square().sum(-1) - len(WEIGHT) * math.log(
        SIGMA * math.sqrt(2 * math.pi)
    )
    log_weights = log_weights + beta * (0.5 * noise.square() - 0.5 * z.square() + scale.log()).sum(
        -1
    )
    weights = (log_weights - log_weights.max(0).values).exp()
    bound = weights.mean(0).log() + log_weights.max(0).values
    weights, each = (
        (weights / weights.sum(0)).unsqueeze(-1),
        beta.unsqueeze(-1) if beta.dim() else beta,
    )
    along_decoder = residual @ WEIGHT / SIGMA**2
    if doubly:
        along = weights * (1 - each * (1 - weights)) * (along_decoder + each * (noise / scale - z))
        shift, log_factor = (along * scale).sum(0), (along * scale * noise).sum(0)
    else:
        along = along_decoder - each * z  # log q moves with its scale alone
        shift, log_factor = (
            (weights * along * scale).sum(0),
            (weights * (along * scale * noise + each)).sum(0),
        )
    residual = weights * residual / SIGMA**2
    return bound, {
        "encoder.shift": -shift,
        "encoder.log_factor": -log_factor,
        "decoder.network.layers.0.weight": -torch.einsum("knd,knl->dl", residual, z),
        "decoder.network.layers.0.bias": -residual.sum((0, 1)),
    }


def gradients(vae: nn.Module) -> dict[str, Tensor]:
    results = {
        name: parameter.grad.clone()
        for name, parameter in vae.named_parameters()
        if parameter.grad is not None
    }
    vae.zero_grad()
    return results


def assert_same(results: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(results) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            results[name], value, atol=1e-9, rtol=1e-9, msg=lambda text, name=name: name + text
        )


@pytest.fixture
def x() -> Tensor:
    return LINEAR.sample(N)


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(K, N, L, dtype=torch.double)


# -- the loss and its gradients, by hand
# ------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "looped"])
@pytest.mark.parametrize("doubly", [False, True], ids=["plain", "doubly"])
@pytest.mark.parametrize("beta", BETAS, ids=str)
def test_loss_and_gradients_are_those_by_hand(
    x: Tensor, noise: Tensor, beta: float | Tensor, doubly: bool, vectorize: bool
) -> None:
    vae = LINEAR.vae(*off_optimum(x))
    bound, expected = by_hand(x, noise, beta, doubly)
    objective = IWELBO(K, doubly_reparametrized=doubly, vectorize_particles=vectorize)
    with Noise(z=noise):
        terms = Loss(vae, objective)(x, None, beta)
    terms.loss.backward()
    torch.testing.assert_close(terms.loss, -bound.sum())
    assert_same(gradients(vae), expected)
    distortion, rate = by_hand_terms(x, noise)
    torch.testing.assert_close(terms.distortion, distortion)
    torch.testing.assert_close(terms.rate, rate)
    assert not terms.distortion.requires_grad and not terms.rate.requires_grad


def by_hand_terms(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    loc, scale = off_optimum(x)
    z = loc + scale * noise
    distortion = (
        -torch.distributions.Normal(LINEAR.bias + z @ WEIGHT.T, SIGMA).log_prob(x).sum() / K
    )
    rate = torch.distributions.Normal(loc, scale).log_prob(z) - torch.distributions.Normal(
        0, 1
    ).log_prob(z)
    return distortion, rate.sum() / K


def test_each_datum_has_its_own_weights(x: Tensor, noise: Tensor) -> None:
    """The bound of a batch is the sum of its data's bounds, which weights pooled over the batch
    would not give."""
    vae = LINEAR.vae(*off_optimum(x))
    with Noise(z=noise):
        together = IWELBO(K).loss(vae.model, vae.guide, x)
    apart = []
    for n in range(N):
        pyro.clear_param_store()
        one = LINEAR.vae(*(part[n : n + 1] for part in off_optimum(x)))
        with Noise(z=noise[:, n : n + 1]):
            apart.append(IWELBO(K).loss(one.model, one.guide, x[n : n + 1]))
    assert together == pytest.approx(sum(apart), abs=1e-9)
    pooled = -(
        torch.stack([by_hand(x, noise[k : k + 1], 1.0)[0].sum() for k in range(K)]).logsumexp(0)
        - math.log(K)
    )
    assert abs(together - float(pooled)) > 0.1


def test_many_particles_reach_the_evidence(x: Tensor) -> None:
    vae = LINEAR.vae(*off_optimum(x))
    losses = [IWELBO(k).loss(vae.model, vae.guide, x) for k in (1, 20_000)]
    evidence = float(LINEAR.evidence(x).sum())
    assert -losses[1] == pytest.approx(evidence, abs=0.1)
    assert -losses[0] < evidence - 0.5


@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_one_particle_is_trace_elbo(x: Tensor, beta: float) -> None:
    vae = LINEAR.vae(*off_optimum(x))
    torch.manual_seed(3)
    expected = Trace_ELBO().loss_and_grads(vae.model, vae.guide, x, None, beta)
    expected_gradients = gradients(vae)
    torch.manual_seed(3)
    assert IWELBO(1).loss_and_grads(vae.model, vae.guide, x, None, beta) == pytest.approx(
        expected, abs=1e-10
    )
    assert_same(gradients(vae), expected_gradients)
    # Doubly reparametrised it is the path gradient, which at the posterior itself has no noise at
    # all.
    torch.manual_seed(3)
    loss = IWELBO(1, doubly_reparametrized=True).loss_and_grads(vae.model, vae.guide, x, None, beta)
    assert loss == pytest.approx(expected, abs=1e-10)
    assert_same(part(gradients(vae), "decoder"), part(expected_gradients, "decoder"))


def test_the_path_gradient_vanishes_at_the_posterior() -> None:
    linear = LinearGaussian(
        torch.diag(torch.tensor([2.0, 0.5])), 0.7
    )  # its posterior is in the guide's family
    x = linear.sample(N)
    vae = linear.vae(*linear.best_diagonal(x))
    for count in (1, K):
        IWELBO(count, doubly_reparametrized=True).loss_and_grads(vae.model, vae.guide, x)
        results = gradients(vae)
        assert (
            max(float(results[f"encoder.{name}"].abs().max()) for name in ("shift", "log_factor"))
            < 1e-9
        )
        IWELBO(count).loss_and_grads(vae.model, vae.guide, x)
        assert float(gradients(vae)["encoder.shift"].abs().max()) > 1e-2


# -- expectations: every datum is a copy of the first, with parameters of its own
# -------------------------------------


def assert_same_mean(one: dict[str, Tensor], other: dict[str, Tensor], least: float = 0.0) -> None:
    """Whether paired samples (R, ...) have the same mean, to four standard errors."""
    for name in one:
        difference = (one[name] - other[name]).reshape(len(one[name]), -1)
        error = difference.std(0) / math.sqrt(len(difference))
        assert float((difference.mean(0).abs() / error.clamp(min=1e-12)).max()) < 4, name
        # Nor is it the same by being nothing, or too noisy to tell.
        assert (
            float(
                (
                    one[name].reshape(len(difference), -1).mean(0).abs() / error.clamp(min=1e-12)
                ).max()
            )
            > least
        ), name


def both_gradients(
    start: Callable, beta: float, count: int, copies: int
) -> list[dict[str, Tensor]]:
    """Plain and doubly reparametrised gradients of the same draws, a sample for each of many copies
    of a datum."""
    pyro.clear_param_store()
    x = LINEAR.sample(1).expand(copies, -1)
    vae = LINEAR.vae(*start(x))
    noise = torch.randn(
        count, copies, L, dtype=torch.double, generator=torch.Generator().manual_seed(1)
    )
    results = []
    for doubly in (False, True):
        with Noise(z=noise):
            IWELBO(count, doubly_reparametrized=doubly).loss_and_grads(
                vae.model, vae.guide, x, None, beta
            )
        results.append(gradients(vae))
    return results


def part(results: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {full: gradient for full, gradient in results.items() if full.startswith(name)}


@pytest.mark.parametrize("beta", [1.0, 0.5, 2.5])
@pytest.mark.parametrize("count", [2, 8])
def test_both_gradients_have_the_same_mean(beta: float, count: int) -> None:
    plain, doubly = both_gradients(off_optimum, beta, count, copies=20_000)
    assert_same_mean(part(plain, "encoder"), part(doubly, "encoder"), least=4)
    assert_same(part(plain, "decoder"), part(doubly, "decoder"))  # draw by draw


def test_double_reparametrisation_has_less_variance_near_the_optimum() -> None:
    plain, doubly = both_gradients(LINEAR.best_diagonal, 1.0, 64, copies=1000)
    assert_same_mean(part(plain, "encoder"), part(doubly, "encoder"))
    for name, gradient in part(plain, "encoder").items():
        assert bool((doubly[name].var(0) < 0.3 * gradient.var(0)).all())


R, J = 6000, 3


class Survey:
    """People (R, 1) and their answers (R, J).

    Two latents, and a guide of the second given the first.
    """

    def __init__(self) -> None:
        self.y = torch.tensor([0.8, -0.3, 1.4]).double().expand(R, J)
        values = {"a": 0.3, "b": -0.4, "c": 0.2, "d": 0.7, "e": -0.5}
        self.guide_parameters = {
            n: torch.full((R, 1), v).double().requires_grad_() for n, v in values.items()
        }
        self.slope = torch.full((R, 1), 0.8).double().requires_grad_()

    def model(self, y: Tensor, beta: float = 1.0) -> None:
        with pyro.plate("people", R, dim=-2):
            with poutine.scale(scale=beta):
                mood = pyro.sample("mood", dist.Normal(torch.zeros(()).double(), 1.0))
            with pyro.plate("questions", J, dim=-1):
                with poutine.scale(scale=beta):
                    answer = pyro.sample("answer", dist.Normal(self.slope * mood, 0.8))
                pyro.sample("seen", dist.Normal(answer.sin() + 0.5 * mood, 0.6), obs=y)

    def guide(self, y: Tensor, beta: float = 1.0) -> None:
        p = self.guide_parameters
        with pyro.plate("people", R, dim=-2), poutine.scale(scale=beta):
            mood = pyro.sample("mood", dist.Normal(p["a"], p["b"].exp()))
            with pyro.plate("questions", J, dim=-1):
                pyro.sample("answer", dist.Normal(p["c"] + p["d"] * mood, p["e"].exp()))

    def noise(self, count: int) -> Noise:
        return Noise(
            mood=torch.randn(count, R, 1, dtype=torch.double),
            answer=torch.randn(count, R, J, dtype=torch.double),
        )

    def gradients(self) -> dict[str, Tensor]:
        parameters = {**self.guide_parameters, "slope": self.slope}
        results = {name: parameter.grad.clone() for name, parameter in parameters.items()}
        for parameter in parameters.values():
            parameter.grad = None
        return results


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_two_dependent_latents_of_other_names_and_an_inner_plate(beta: float) -> None:
    survey, results, losses = Survey(), [], []
    noise = survey.noise(6).noise
    for doubly in (False, True):
        for vectorize in (True, False):
            objective = IWELBO(
                6, doubly_reparametrized=doubly, vectorize_particles=vectorize, data_plate="people"
            )
            with Noise(**noise):
                losses.append(
                    objective.loss_and_grads(survey.model, survey.guide, survey.y, beta=beta)
                )
            results.append(survey.gradients())
    p = {name: value.detach() for name, value in survey.guide_parameters.items()}
    mood = p["a"] + p["b"].exp() * noise["mood"]
    answer = p["c"] + p["d"] * mood + p["e"].exp() * noise["answer"]
    normal = torch.distributions.Normal
    latent = normal(0.0, 1.0).log_prob(mood).sum(-1) + normal(0.8 * mood, 0.8).log_prob(answer).sum(
        -1
    )
    log_guide = normal(p["a"], p["b"].exp()).log_prob(mood).sum(-1)
    log_guide = log_guide + normal(p["c"] + p["d"] * mood, p["e"].exp()).log_prob(answer).sum(-1)
    observed = normal(answer.sin() + 0.5 * mood, 0.6).log_prob(survey.y).sum(-1)
    bound = (observed + beta * (latent - log_guide)).exp().mean(0).log().sum()
    assert losses == pytest.approx([-float(bound)] * 4, rel=1e-10)
    assert_same(results[0], results[1])
    assert_same(results[2], results[3])
    torch.testing.assert_close(results[0].pop("slope"), results[2].pop("slope"))
    assert_same_mean(results[0], results[2], least=4)
    assert any(
        float((results[0][name] - results[2][name]).abs().max()) > 1e-3 for name in results[0]
    )


def test_a_shared_parameter_gets_both_its_parts() -> None:
    centre = torch.full((R,), 0.4).double().requires_grad_()

    def model() -> None:
        with pyro.plate("data", R):
            z = pyro.sample("z", dist.Normal(0.5 * centre, 1.0))
            pyro.sample("x", dist.Normal(z.tanh(), 0.5), obs=torch.full((R,), 0.9).double())

    def guide() -> None:
        with pyro.plate("data", R):
            pyro.sample("z", dist.Normal(centre, 0.7))

    assert_same_mean(
        *(gradient_of({"centre": centre}, model, guide, doubly) for doubly in (False, True)),
        least=4,
    )


def gradient_of(
    parameters: dict[str, Tensor],
    model: Callable,
    guide: Callable,
    doubly: bool,
    count: int = 5,
    **noise: Tensor,
) -> dict[str, Tensor]:
    torch.manual_seed(8)
    with Noise(**noise):
        loss = IWELBO(count, doubly_reparametrized=doubly).differentiable_loss(model, guide)
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def test_draws_that_are_made_of_auxiliary_noise() -> None:
    """A site of the guide without noise of its own, as autoguides have them, with a learned map to
    it."""
    values = {"a": 0.2, "m": 0.3, "s": -0.4}
    p = {name: torch.full((R,), value).double().requires_grad_() for name, value in values.items()}

    def model() -> None:
        with pyro.plate("data", R):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(z.tanh(), 0.5), obs=torch.full((R,), 0.9).double())

    def made() -> None:
        with pyro.plate("data", R):
            e = pyro.sample("e", dist.Normal(p["a"], 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(p["m"] + p["s"].exp() * e, log_density=-p["s"]))

    def drawn() -> None:
        with pyro.plate("data", R):
            pyro.sample("z", dist.Normal(p["m"] + p["s"].exp() * p["a"], p["s"].exp()))

    noise = torch.randn(5, R, dtype=torch.double)
    plain = gradient_of(p, model, made, False, e=noise)
    assert_same(plain, gradient_of(p, model, drawn, False, z=noise))
    doubly = gradient_of(p, model, made, True, e=noise)
    assert_same_mean(plain, doubly, least=4)
    assert float((plain["a"] - doubly["a"]).abs().max()) > 1e-2


def test_an_autoguide() -> None:
    def model() -> None:
        with pyro.plate("data", R):
            z = pyro.sample("z", dist.Gamma(torch.full((), 2.0).double(), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=torch.full((R,), 0.9).double())

    guide = AutoNormal(model)
    IWELBO(3).loss(model, guide)  # makes the parameters
    parameters = dict(guide.named_parameters())
    plain, doubly = (gradient_of(parameters, model, guide, doubly) for doubly in (False, True))
    assert_same_mean(plain, doubly)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), IWELBO(3, doubly_reparametrized=True))
    losses = [svi.step() for _ in range(40)]
    assert losses[-1] < losses[0]


# -- subsamples and masks
# ---------------------------------------------------------------------------------------------


class Subsampled:
    """The linear model with a plate that holds a subsample of its data."""

    def __init__(self, x: Tensor, size: int | None = None, index: Tensor | None = None) -> None:
        self.x, self.size, self.index = x, size, index
        self.loc, self.scale = (part.clone().requires_grad_() for part in off_optimum(x))
        self.weight = WEIGHT.clone().requires_grad_()
        self.seen: list[Tensor] = []

    def plate(self) -> pyro.plate:
        return pyro.plate("rows", len(self.x), subsample_size=self.size, subsample=self.index)

    def model(self) -> None:
        with self.plate() as index:
            code = pyro.sample("code", dist.Normal(torch.zeros(L).double(), 1.0).to_event(1))
            loc = LINEAR.bias + code @ self.weight.T
            pyro.sample("pixels", dist.Normal(loc, SIGMA).to_event(1), obs=self.x[index])

    def guide(self) -> None:
        with self.plate() as index:
            self.seen.append(index)
            pyro.sample("code", dist.Normal(self.loc[index], self.scale[index]).to_event(1))


@pytest.mark.parametrize("doubly", [False, True], ids=["plain", "doubly"])
@pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "looped"])
@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "given"])
def test_the_scale_of_a_subsample_stays_outside_of_the_weights(
    drawn: bool, vectorize: bool, doubly: bool
) -> None:
    x, index = LINEAR.sample(40), torch.tensor([3, 17, 4, 30])
    program = Subsampled(x, size=4) if drawn else Subsampled(x, index=index)
    noise = torch.randn(K, 4, L, dtype=torch.double)
    with Noise(code=noise):
        objective = IWELBO(K, vectorize_particles=vectorize, doubly_reparametrized=doubly)
        terms = objective.terms(program.model, program.guide)
    index = program.seen[-1]
    assert vectorize or all(torch.equal(seen, index) for seen in program.seen), (
        "all particles see the same data"
    )
    bound, expected = by_hand(x[index], noise, 1.0, doubly)
    torch.testing.assert_close(terms.loss, -10 * bound.sum())
    loc, scale, weight = torch.autograd.grad(
        terms.loss, [program.loc, program.scale, program.weight]
    )
    start = program.scale.detach()[index]
    torch.testing.assert_close(loc[index] * start, 10 * expected["encoder.shift"])
    torch.testing.assert_close(scale[index] * start, 10 * expected["encoder.log_factor"])
    torch.testing.assert_close(weight, 10 * expected["decoder.network.layers.0.weight"])
    for results, by_one in zip(terms[1:], by_hand_terms(x[index], noise), strict=True):
        torch.testing.assert_close(results, 10 * by_one)


@pytest.mark.parametrize("doubly", [False, True], ids=["plain", "doubly"])
def test_masks_stay_in_the_weights(x: Tensor, noise: Tensor, doubly: bool) -> None:
    """Data that are masked out weigh nothing; a latent that is masked out is β = 0."""
    loc, scale = (part.clone().requires_grad_() for part in off_optimum(x))
    seen = torch.tensor([True, False, True, True, False])

    def model() -> None:
        with pyro.plate("data", N), poutine.mask(mask=seen):
            z = pyro.sample("z", dist.Normal(torch.zeros(L).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(LINEAR.bias + z @ WEIGHT.T, SIGMA).to_event(1), obs=x)

    def guide() -> None:
        with pyro.plate("data", N), poutine.mask(mask=seen):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    with Noise(z=noise):
        loss = IWELBO(K, doubly_reparametrized=doubly).differentiable_loss(model, guide)
    bound, expected = by_hand(x, noise, 1.0, doubly)
    torch.testing.assert_close(loss, -bound[seen].sum())
    results = torch.autograd.grad(loss, loc)[0] * scale.detach()
    torch.testing.assert_close(results, expected["encoder.shift"] * seen.unsqueeze(-1))


# -- in SVI and in fit
# ------------------------------------------------------------------------------------------------


def small_vae() -> BetaVAE:
    torch.manual_seed(3)
    decoder = Decoder(MLP(2, 6, hidden=(8,)), BernoulliLikelihood())
    return BetaVAE(NormalPrior(2), decoder, NormalPosterior(MLP(6, 4, hidden=(8,))))


def pixels(count: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    columns = torch.rand(count, 1, generator=generator).round().expand(-1, 3)
    return torch.cat([columns, torch.rand(count, 3, generator=generator).round()], 1)


@pytest.mark.parametrize("doubly", [False, True], ids=["plain", "doubly"])
def test_stock_svi_runs_it(doubly: bool) -> None:
    vae, x = small_vae(), pixels()
    svi = SVI(
        vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), IWELBO(4, doubly_reparametrized=doubly)
    )
    before = copy.deepcopy(vae.state_dict())
    losses = [svi.step(x, beta=0.8) for _ in range(60)]
    assert sum(losses[-5:]) < sum(losses[:5]) - 5
    assert all(not torch.equal(before[name], value) for name, value in vae.state_dict().items())
    after = copy.deepcopy(vae.state_dict())
    assert math.isfinite(svi.evaluate_loss(x))
    assert all(torch.equal(after[name], value) for name, value in vae.state_dict().items())


def test_fit_runs_it_and_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    vaes = [small_vae() for _ in range(3)]
    settings = {
        "batch_size": 8,
        "progress": False,
        "validation": pixels(10),
        "learning_rate": lambda *_: 0.01,
    }
    objective = IWELBO(5, doubly_reparametrized=True)
    whole = fit(vaes[0], pixels(), epochs=4, objective=objective, **settings)
    assert whole["objective"][-1] < whole["objective"][0]
    for epochs in (2, 4):
        options = {
            "output": tmp_path / "run",
            "resume": epochs == 4,
            "objective": IWELBO(5, doubly_reparametrized=True),
        }
        fit(vaes[1], pixels(), epochs=epochs, **options, **settings)
    assert all(
        torch.equal(value, vaes[1].state_dict()[name])
        for name, value in vaes[0].state_dict().items()
    )
    for other in (IWELBO(5), IWELBO(4, doubly_reparametrized=True), None):
        options = {"output": tmp_path / "run", "resume": True, "objective": other}
        with pytest.raises(InputError, match="'objective' was IWELBO"):
            fit(vaes[1], pixels(), epochs=5, **options, **settings)


def test_the_validation_objective_of_fit_is_the_objective_itself() -> None:
    vae, held_out = small_vae(), pixels(200)
    history = fit(
        vae,
        pixels(),
        epochs=1,
        batch_size=50,
        objective=IWELBO(20),
        validation=held_out,
        progress=False,
    )
    measured, bound = history["validation_objective"][0], -history["validation_elbo"][0]
    losses = [IWELBO(20).loss(vae.model, vae.guide, held_out) / 200 for _ in range(20)]
    assert measured == pytest.approx(sum(losses) / 20, abs=0.03)
    assert measured < bound - 0.05
    single = fit(
        vae, pixels(), epochs=1, objective=TraceTerms(), validation=held_out, progress=False
    )
    assert single["validation_objective"][0] == -single["validation_elbo"][0]


def test_best_is_picked_by_the_objective_itself_where_nothing_validates(tmp_path: Path) -> None:
    """An objective that rises while distortion and rate fall: the first epoch is the best one."""

    class Rising:
        calls = 0

        def terms(self, model: Callable, guide: Callable, *args: object, **kwargs: object) -> Terms:
            self.calls += 1
            terms = TraceTerms().terms(model, guide, *args, **kwargs)
            return Terms(
                terms.loss + 1000.0 * self.calls, terms.distortion - 1000.0 * self.calls, terms.rate
            )

    fit(small_vae(), pixels(), epochs=3, objective=Rising(), output=tmp_path, progress=False)
    best = torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)
    assert len(best["history"]) == 1


def test_a_tighter_bound_trains_a_better_model() -> None:
    """A guide that cannot follow the posterior draws the model away from the data, the less the
    tighter the bound."""
    linear = LinearGaussian(torch.tensor([[1.5], [1.5]]), 0.5)
    x = linear.sample(400)
    evidences = []
    for objective in (TraceTerms(num_particles=8), IWELBO(8)):
        pyro.clear_param_store()
        torch.manual_seed(0)
        vae = LinearGaussian(torch.tensor([[0.8], [0.9]]), 0.5).vae(
            torch.zeros(400, 1), torch.ones(400, 1)
        )
        for parameter in vae.encoder.parameters():
            parameter.requires_grad_(False)
        optimizer = torch.optim.Adam(vae.decoder.parameters(), lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            objective.differentiable_loss(vae.model, vae.guide, x).backward()
            optimizer.step()
        network = vae.decoder.network.layers[0]
        trained = LinearGaussian(network.weight.detach(), 0.5, network.bias.detach())
        evidences.append(float(trained.evidence(x).mean()))
    assert evidences[1] > evidences[0] + 0.1


def test_a_step_leaves_nothing_behind() -> None:
    """Hooks of gradients that reach the graph they hang in would keep every step's tensors
    alive."""
    vae, kept = small_vae(), []
    vae.decoder.network.register_forward_hook(
        lambda module, args, output: kept.append(weakref.ref(output))
    )
    objective = IWELBO(4, doubly_reparametrized=True)
    for _ in range(3):
        objective.loss_and_grads(vae.model, vae.guide, pixels())
    gc.collect()
    assert len(kept) >= 3
    assert all(reference() is None for reference in kept)


@pytest.mark.parametrize("doubly", [False, True], ids=["plain", "doubly"])
def test_a_step_looks_at_no_tensor(doubly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator every look waits for the device."""
    vae, x, beta = small_vae(), pixels(), torch.tensor([0.0, 1.0, 2.0]).repeat(8)
    objective = IWELBO(4, doubly_reparametrized=doubly)
    objective.loss(vae.model, vae.guide, x)  # the first look at the program

    def look(self: Tensor) -> None:
        raise AssertionError("a step looked at a tensor")

    with pyro.validation_enabled(False), monkeypatch.context() as patch:
        for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__"):
            patch.setattr(torch.Tensor, name, look)
        objective.terms(vae.model, vae.guide, x, None, beta).loss.backward()
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in vae.parameters())


def test_the_first_look_at_a_program_moves_nothing() -> None:
    norm = nn.BatchNorm1d(4)
    decoder = Decoder(nn.Sequential(nn.Linear(2, 4), norm, nn.Linear(4, 6)), BernoulliLikelihood())
    vae = BetaVAE(NormalPrior(2), decoder, NormalPosterior(MLP(6, 4, hidden=(8,))))
    losses = []
    objective = IWELBO(4)
    for step in range(2):  # the second has nothing to find out
        torch.manual_seed(1)
        losses.append(objective.loss(vae.model, vae.guide, pixels()))
        assert int(norm.num_batches_tracked) == step + 1
    assert losses[0] == losses[1]
    assert vae.training and norm.training


# -- what cannot be vectorised, and what cannot be used
# ---------------------------------------------------------------


def test_a_program_that_mixes_particles_is_run_one_at_a_time(x: Tensor, noise: Tensor) -> None:
    def model() -> None:
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(torch.zeros(L).double(), 1.0).to_event(1))
            pyro.sample(
                "x", dist.Normal(LINEAR.bias + (z - z.mean(0)) @ WEIGHT.T, SIGMA).to_event(1), obs=x
            )

    def guide() -> None:
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(*off_optimum(x)).to_event(1))

    objective = IWELBO(K)
    with Noise(z=noise), pytest.warns(UserWarning, match="one particle at a time"):
        loss = objective.loss(model, guide)
    # The second time without a warning.
    for again in (objective, IWELBO(K, vectorize_particles=False)):
        with Noise(z=noise):
            assert again.loss(model, guide) == pytest.approx(loss, abs=1e-10)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, None])
def test_counts_of_particles_that_are_refused(count: object) -> None:
    with pytest.raises(
        InputError, match=f"'num_particles' must be a positive integer, got {count!r}"
    ):
        IWELBO(count)


def normal(name: str = "z", **options: object) -> Tensor:
    return pyro.sample(name, dist.Normal(torch.zeros(3), 1.0), **options)


@contextmanager
def data(size: int = 3) -> Iterator[None]:
    with pyro.plate("data", size, dim=-1):
        yield


def refused(model: Callable, guide: Callable, match: str, **options: object) -> None:
    for vectorize in (True, False):
        with pytest.raises(InputError, match=match):
            IWELBO(2, vectorize_particles=vectorize, **options).loss(model, guide)


def test_programs_without_weights_are_refused_in_words() -> None:
    def model() -> None:
        with data():
            z = normal()
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(3))

    def coin() -> None:
        with data():
            z = pyro.sample("coin", dist.Bernoulli(torch.full((3,), 0.5)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(3))

    def coin_guide() -> None:
        with data():
            pyro.sample("coin", dist.Bernoulli(torch.full((3,), 0.5)))

    def no_guide() -> None:
        pass

    def no_plate() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.ones(3))

    def no_plate_guide() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    def outside() -> None:
        model()
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        with data():
            normal()

    refused(
        coin,
        coin_guide,
        "guide site 'coin' of family Bernoulli has no reparametrised draws: IWELBO accepts",
    )
    refused(coin, no_guide, "no site for the model's latent 'coin'")
    refused(model, no_guide, "the guide has no site for the model's latent 'z'")
    refused(no_plate, no_plate_guide, "put 'z' under one pyro.plate over the data")
    refused(outside, guide, "site 'y' of the model lies outside the data plate 'data'")
    refused(model, guide, "'data_plate' must be one of", data_plate="rows")
    refused(
        model,
        AutoNormalMessenger(model),
        "'guide' must be a function or a module, got .* AutoNormalMessenger",
    )


def test_a_subsample_inside_of_the_weights_is_refused() -> None:
    def guide() -> None:
        with pyro.plate("people", 3, dim=-2), pyro.plate("questions", 4, subsample_size=2, dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(3, 2), 1.0))

    def model() -> None:
        with pyro.plate("people", 3, dim=-2), pyro.plate("questions", 4, subsample_size=2, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(3, 2), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(3, 2))

    refused(
        model,
        guide,
        r"plate 'questions' of site 'z' is subsampled \(2 of 4\) inside",
        data_plate="people",
    )


@pytest.mark.parametrize("scale", [2.0, torch.tensor(2.0)], ids=["number", "tensor"])
def test_double_reparametrisation_needs_one_scale_and_a_guide_without_other_noise(
    scale: float | Tensor,
) -> None:
    def model() -> None:
        with data():
            with poutine.scale(scale=scale):
                a = normal("a")
            pyro.sample("x", dist.Normal(a + normal("b"), 1.0), obs=torch.ones(3))

    def guide() -> None:
        with data():
            with poutine.scale(scale=scale):
                normal("a")
            normal("b")

    def noisy() -> None:
        with data():
            normal("a")
            pyro.sample("b", dist.Normal(torch.rand(()), 1.0).expand([3]))

    refused(model, guide, "the same scale .* others at 'a' and 'b'", doubly_reparametrized=True)
    refused(model, noisy, "a guide that is a function of its draws", doubly_reparametrized=True)
    IWELBO(2).loss(model, guide)
    IWELBO(2, vectorize_particles=False).loss(model, noisy)


def test_wrong_shapes_are_told_by_pyro() -> None:
    def guide() -> None:
        with data():
            pyro.sample("z", dist.Normal(torch.zeros(4, 3), 1.0))

    def model() -> None:
        with data():
            z = pyro.sample("z", dist.Normal(torch.zeros(4, 3), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(4, 3))

    with pytest.raises(ValueError, match="invalid log_prob shape"):
        IWELBO(2).loss(model, guide)


def test_it_says_what_it_is() -> None:
    assert (
        repr(IWELBO(3, doubly_reparametrized=True))
        == "IWELBO(num_particles=3, doubly_reparametrized=True)"
    )
    assert repr(TraceTerms(num_particles=2)) == "TraceTerms(num_particles=2)"


def test_the_bound_of_one_particle_is_that_of_evaluation(x: Tensor) -> None:
    vae = LINEAR.vae(*off_optimum(x))
    measured = elbo(vae.model, vae.guide, x, num_samples=4000).value
    losses = [IWELBO(1).loss(vae.model, vae.guide, x) / N for _ in range(300)]
    assert -sum(losses) / 300 == pytest.approx(measured, abs=0.3)
