"""Discrete latents that are summed out, beside sums over all of their values written by hand."""

import itertools
import math

import numpy
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor

from pyro_bvae import audit, elbo, evidence, inference_gaps
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation import annealed_evidence, decompose_kl, elbo_parts, evaluate
from pyro_bvae.evaluation.marginal import AnnealingSettings
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.program.discrete.factors import in_one_pass, one_at_a_time
from pyro_bvae.program.program import open_program

X = torch.tensor([-2.1, -0.4, 0.3, 1.7, 3.2], dtype=torch.double)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.double)
MEANS = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.double)
ONE = torch.tensor(1.0, dtype=torch.double)
HASTY = RefitSettings(max_rounds=5, num_starts=0, certified_gain=1e3)
PARALLEL = {"enumerate": "parallel"}


# -- programs: each with the discrete sites of its model, and their values
# ------------------------------------------------------------------------


def nothing(x: Tensor) -> None:
    """A guide of a model whose latents are all summed out."""


def mixture(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(WEIGHTS), infer=PARALLEL)
        pyro.sample("x", dist.Normal(MEANS[y], 1.0), obs=x)


def label(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=torch.stack([x, -x, 0 * x], -1)))


def clustered(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(WEIGHTS))
        z = pyro.sample("z", dist.Normal(MEANS[y], 0.5 * ONE))
        pyro.sample("x", dist.Normal(z, ONE), obs=x)


def continuous(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * x, ONE))


def labelled(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(logits=torch.stack([x, -x, 0 * x], -1)))
        pyro.sample("z", dist.Normal(0.5 * x + 0.2 * MEANS[y], ONE))


def joined(x: Tensor) -> None:
    """Its decoder joins a one-hot label and a code, as if there were no further dimension."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.OneHotCategorical(WEIGHTS))
        z = pyro.sample("z", dist.Normal(ONE.expand(2), 1.0).to_event(1))
        loc = torch.cat([y, z], -1) @ torch.linspace(-1, 1, 5, dtype=torch.double)
        pyro.sample("x", dist.Normal(loc, ONE), obs=x)


def joined_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        logits = torch.stack([x, -x, 0 * x], -1)
        y = pyro.sample(
            "y", dist.OneHotCategorical(logits=logits), infer={"enumerate": "sequential"}
        )
        rows = torch.cat([y, x.expand(y.shape[:-1])[..., None]], -1)
        loc = rows @ torch.linspace(-0.5, 1, 8, dtype=torch.double).reshape(4, 2)
        pyro.sample("z", dist.Normal(loc, 0.7).to_event(1))


def two_labels(x: Tensor, beta: float = 1.0) -> None:
    """The second label follows from the first and from z, and the guide draws the first alone."""
    with pyro.plate("data", len(x)), poutine.scale(scale=beta):
        a = pyro.sample("a", dist.Categorical(WEIGHTS))
        z = pyro.sample("z", dist.Normal(MEANS[a], ONE))
        b = pyro.sample("b", dist.Bernoulli(torch.sigmoid(z + a - 1)))
        pyro.sample("x", dist.Normal(z + 2 * b, ONE), obs=x)


def one_label(x: Tensor, beta: float = 1.0) -> None:
    with pyro.plate("data", len(x)), poutine.scale(scale=beta):
        a = pyro.sample("a", dist.Categorical(logits=torch.stack([-x, 0 * x, x], -1)))
        pyro.sample("z", dist.Normal(0.5 * x + 0.2 * a, ONE))


PROGRAMS = {
    "mixture": (mixture, nothing, {"y": range(3)}),
    "mixture, guide": (mixture, label, {"y": range(3)}),
    "clusters": (clustered, continuous, {"y": range(3)}),
    "clusters, guide": (clustered, labelled, {"y": range(3)}),
    "marked": (config_enumerate(clustered), config_enumerate(labelled), {"y": range(3)}),
    "joined": (joined, joined_guide, {"y": torch.eye(3, dtype=torch.double).unbind()}),
    "two": (two_labels, one_label, {"a": range(3), "b": (0 * ONE, ONE)}),
}


def table(function, given: dict[str, Tensor], labels: dict, x: Tensor, latents=()) -> Tensor:
    """Return the log density of each datum at every joint value, and of its latents alone."""
    rows = []
    for values in itertools.product(*labels.values()):
        one = {name: torch.as_tensor(value) for name, value in zip(labels, values, strict=True)}
        held = {name: value.expand(len(x), *value.shape) for name, value in one.items()}
        trace = poutine.trace(poutine.condition(function, data={**given, **held})).get_trace(x)
        sites = {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and n != "data"}
        parts = [
            site["fn"].log_prob(site["value"])
            for name, site in sites.items()
            if not latents or name in latents
        ]
        rows.append(sum(parts, torch.zeros(len(x), dtype=torch.double)))
    return torch.stack(rows).reshape(*map(len, labels.values()), len(x))


@pytest.mark.parametrize("name", PROGRAMS)
def test_densities_are_those_of_all_values(name: str) -> None:
    model, guide, labels = PROGRAMS[name]
    trace = poutine.trace(guide).get_trace(X)
    drawn = {each: labels[each] for each in labels if each in trace.nodes}
    left = tuple(range(len(drawn), len(labels)))
    with open_program(model, guide, (X,), sums_discrete=True) as program, torch.no_grad():
        assert program.vectorized and program.sliceable
        draws = program.draw(3, (X,))
    for k in range(3):
        given = {each: value[k] for each, value in draws.values.items() if each in ("z",)}
        joint = table(model, given, labels, X)
        prior = table(model, given, labels, X, latents=(*given, *labels))
        axes = tuple(range(len(labels)))
        latent = prior.logsumexp(axes)
        torch.testing.assert_close(draws.densities.latent[k], latent, rtol=0, atol=1e-9)
        torch.testing.assert_close(
            draws.densities.observed[k], joint.logsumexp(axes) - latent, rtol=0, atol=1e-9
        )
        own = table(guide, given, drawn, X)
        log_guide = own.logsumexp(tuple(range(len(drawn)))) if drawn else own
        torch.testing.assert_close(draws.densities.guide[k], log_guide, rtol=0, atol=1e-9)
        if not drawn:
            assert draws.bound is None
            continue
        share = (own - log_guide).exp()
        joint, prior = (part.logsumexp(left) if left else part for part in (joint, prior))
        over = tuple(range(len(drawn)))
        torch.testing.assert_close(
            draws.elbo[k], (share * (joint - own)).sum(over), rtol=0, atol=1e-9
        )
        torch.testing.assert_close(
            draws.observed[k], (share * (joint - prior)).sum(over), rtol=0, atol=1e-9
        )


def test_a_program_without_room_for_values_is_run_at_each() -> None:
    for name, gather in (("joined", one_at_a_time), ("two", in_one_pass)):
        model, guide, _ = PROGRAMS[name]
        with open_program(model, guide, (X,), sums_discrete=True) as program:
            assert program.summation is not None and program.summation.gather is gather


def test_evidence_and_bound_of_a_mixture_are_exact() -> None:
    joint = WEIGHTS.log() + dist.Normal(MEANS, ONE).log_prob(X[:, None])
    log_guide = torch.stack([X, -X, 0 * X], -1).log_softmax(-1)
    bound = (log_guide.exp() * (joint - log_guide)).sum(-1)
    for guide, expected in ((nothing, joint.logsumexp(-1)), (label, bound)):
        for method in ("importance", "auto"):
            exact = evidence(mixture, guide, X, method=method)
            torch.testing.assert_close(exact.per_datum, joint.logsumexp(-1), rtol=0, atol=1e-9)
            assert exact.trusted and exact.monte_carlo_error < 1e-9
        measured = elbo(mixture, guide, X)
        torch.testing.assert_close(measured.per_datum, expected, rtol=0, atol=1e-9)
        assert measured.trusted
        assert audit(mixture, guide, X).ok


def test_scales_are_dropped_and_blocks_are_the_same() -> None:
    plain, scaled = (elbo(two_labels, one_label, X, beta, num_samples=30) for beta in (1.0, 4.0))
    torch.testing.assert_close(plain.per_datum, scaled.per_datum, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["clusters", "clusters, guide"])
def test_evidence_and_bound_with_a_code_beside_closed_forms(name: str) -> None:
    model, guide, _ = PROGRAMS[name]
    exact = (WEIGHTS.log() + dist.Normal(MEANS, math.sqrt(1.25)).log_prob(X[:, None])).logsumexp(-1)
    measured = evidence(model, guide, X, num_samples=2000)
    error = torch.as_tensor(measured.errors)
    assert bool(((measured.per_datum - exact).abs() < 4 * error + 1e-6).all())
    parts = elbo_parts(model, guide, X, num_samples=2000)
    # E_q of normal log densities, of each label.
    log_guide = torch.stack([X, -X, 0 * X], -1).log_softmax(-1)
    loc = 0.5 * X[:, None] + 0.2 * MEANS
    if guide is continuous:
        grid = torch.linspace(-9, 9, 4001, dtype=torch.double)[:, None]
        q = dist.Normal(0.5 * X, ONE).log_prob(grid)
        prior = (WEIGHTS.log() + dist.Normal(MEANS, 0.5).log_prob(grid[..., None])).logsumexp(-1)
        terms = q.exp() * (prior + dist.Normal(grid, 1.0).log_prob(X) - q)
        truth = torch.trapezoid(terms, grid[:, 0], dim=0)
    else:
        half = 0.5 * math.log(2 * math.pi)
        prior = -half - math.log(0.5) - ((loc - MEANS) ** 2 + 1) / (2 * 0.25)
        data = -half - ((X[:, None] - loc) ** 2 + 1) / 2
        terms = WEIGHTS.log() + prior + data - log_guide + half + 0.5
        truth = (log_guide.exp() * terms).sum(-1)
    error = torch.as_tensor(parts.elbo.errors)
    assert bool(((parts.elbo.per_datum - truth).abs() < 4 * error).all())
    total = parts.elbo.per_datum + parts.distortion.per_datum + parts.rate.per_datum
    assert float(total.abs().max()) < 1e-9


@pytest.mark.slow
def test_gaps_of_a_code_beside_quadrature() -> None:
    gaps = inference_gaps(clustered, continuous, X[:2], num_samples=500, settings=HASTY)
    exact = (WEIGHTS.log() + dist.Normal(MEANS, 1.25**0.5).log_prob(X[:2, None])).logsumexp(-1)
    assert abs(gaps.evidence.value - float(exact.mean())) < 4 * gaps.evidence.monte_carlo_error
    assert gaps.approximation.value > 0
    total = gaps.approximation.value + gaps.beta.value + gaps.amortization.value
    assert gaps.variational.value == pytest.approx(total)


def test_annealing_moves_a_code_whose_label_is_summed_out() -> None:
    exact = (WEIGHTS.log() + dist.Normal(MEANS, 1.25**0.5).log_prob(X[:2, None])).logsumexp(-1)
    settings = AnnealingSettings(num_temperatures=30, pilot_temperatures=20)
    annealed = annealed_evidence(clustered, continuous, X[:2], settings=settings)
    assert abs(annealed.value - float(exact.mean())) < 4 * annealed.monte_carlo_error


# -- plates and sequences
# ------------------------------------------------------------------------------------------------

PIXELS = torch.linspace(-1.5, 2, 8, dtype=torch.double).reshape(2, 4)
SHIFTS = torch.tensor([[-1.0, 0.5], [0.2, 2.0], [1.0, -1.0]], dtype=torch.double)
TURNS = torch.tensor([[0.3, 0.7], [0.6, 0.4], [0.9, 0.1]], dtype=torch.double)


def pixels(x: Tensor) -> None:
    """A label of each row, and one of each of its pixels, under two plates."""
    with pyro.plate("rows", len(x), dim=-2):
        y = pyro.sample("y", dist.Categorical(WEIGHTS))
        with pyro.plate("pixels", x.shape[1], dim=-1):
            b = pyro.sample("b", dist.Categorical(TURNS[y]))
            pyro.sample("x", dist.Normal(SHIFTS[y, b], ONE), obs=x)


def test_a_label_under_two_plates() -> None:
    inner = TURNS.log() + dist.Normal(SHIFTS, ONE).log_prob(PIXELS[..., None, None])  # (2, 4, 3, 2)
    exact = (WEIGHTS.log() + inner.logsumexp(-1).sum(1)).logsumexp(-1)
    measured = evidence(pixels, nothing, PIXELS, num_samples=30)
    torch.testing.assert_close(measured.per_datum, exact, rtol=0, atol=1e-9)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-2):
            y = pyro.sample("y", dist.Categorical(logits=x[:, None, :3]))
            with pyro.plate("pixels", x.shape[1], dim=-1):
                pyro.sample("b", dist.Categorical(TURNS[2 - y]))

    log_label = PIXELS[:, :3].log_softmax(-1)
    turned = TURNS.flip(0)
    per_label = (turned * (inner - turned.log())).sum(-1).sum(1)  # (2, 3)
    bound = (log_label.exp() * (WEIGHTS.log() - log_label + per_label)).sum(-1)
    measured = elbo(pixels, guide, PIXELS, num_samples=30)
    torch.testing.assert_close(measured.per_datum, bound, rtol=0, atol=1e-9)
    measured = evidence(pixels, guide, PIXELS, num_samples=30)
    torch.testing.assert_close(measured.per_datum, exact, rtol=0, atol=1e-9)


STEPS = torch.tensor([[0.8, 0.1, 0.1], [0.3, 0.4, 0.3], [0.0, 0.2, 0.8]], dtype=torch.double)
SEQUENCES = torch.linspace(-3, 4, 20, dtype=torch.double).reshape(4, 5).roll(7)
LENGTHS = torch.tensor([5, 3, 1, 4])


def hidden_markov(x: Tensor, lengths: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        y = torch.tensor(0)
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=t < lengths):
                y = pyro.sample(f"y{t}", dist.Categorical(STEPS[y]))
                pyro.sample(f"x{t}", dist.Normal(MEANS[y], ONE), obs=x[:, t])


def no_guide(x: Tensor, lengths: Tensor) -> None:
    """Nothing is drawn."""


def test_a_hidden_markov_model_with_lengths() -> None:
    exact = []
    for row, length in zip(SEQUENCES, LENGTHS, strict=True):
        terms = []
        for path in itertools.product(range(3), repeat=int(length)):
            steps = zip((0, *path), path, row, strict=False)
            terms.append(sum(
                float(STEPS[i, j].log() + dist.Normal(MEANS[j], ONE).log_prob(value))
                for i, j, value in steps
            ))  # fmt: skip
        exact.append(torch.tensor(terms, dtype=torch.double).logsumexp(0))
    measured = evidence(hidden_markov, no_guide, SEQUENCES, LENGTHS, num_samples=30)
    torch.testing.assert_close(measured.per_datum, torch.stack(exact), rtol=0, atol=1e-9)
    assert measured.trusted


def test_terms_that_peak_at_other_values_lose_nothing() -> None:
    """Hundreds of nats apart, a product of exponentials is 0 in any precision."""

    def apart(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(WEIGHTS))
            pyro.sample("a", dist.Normal(1000 * MEANS[y], ONE), obs=x)
            pyro.sample("b", dist.Normal(-1000 * MEANS[y], ONE), obs=x)

    joint = WEIGHTS.log() + sum(
        dist.Normal(sign * 1000 * MEANS, ONE).log_prob(X[:, None]) for sign in (1, -1)
    )
    measured = evidence(apart, nothing, X, num_samples=30)
    torch.testing.assert_close(measured.per_datum, joint.logsumexp(-1), rtol=1e-12, atol=0)


# -- masked codes: sequences of several lengths
# --------------------------------------------------------------------


def walk(x: Tensor, lengths: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        z = torch.zeros((), dtype=torch.double)
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z{t}", dist.Normal(z, ONE))
                pyro.sample(f"x{t}", dist.Normal(z, 0.5 * ONE), obs=x[:, t])


def walk_guide(x: Tensor, lengths: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        z = torch.zeros((), dtype=torch.double)
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z{t}", dist.Normal(0.2 * z + 0.75 * x[:, t], 0.5 * ONE))


def test_a_random_walk_with_lengths_beside_its_normal() -> None:
    x = SEQUENCES / 3
    exact = []
    for row, length in zip(x, LENGTHS.tolist(), strict=True):
        steps = torch.arange(1, length + 1, dtype=torch.double)
        covariance = torch.minimum(steps[:, None], steps) + 0.25 * torch.eye(length).double()
        zeros = torch.zeros(length, dtype=torch.double)
        exact.append(dist.MultivariateNormal(zeros, covariance).log_prob(row[:length]))
    measured = evidence(walk, walk_guide, x, LENGTHS, num_samples=3000)
    error = torch.as_tensor(measured.errors)
    assert bool(((measured.per_datum - torch.stack(exact)).abs() < 4 * error).all())
    assert measured.trusted
    assert elbo(walk, walk_guide, x, LENGTHS).value < measured.value
    for function in (inference_gaps, annealed_evidence):
        with pytest.raises(InputError, match=r"latent 'z\d' is masked out for some data"):
            function(walk, walk_guide, x, LENGTHS)


# -- refusals
# ------------------------------------------------------------------------------------------------


def of(*distributions, obs=lambda y: dist.Normal(y, 1.0)):
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            values = [pyro.sample(f"y{i}", d) for i, d in enumerate(distributions)]
            pyro.sample("x", obs(sum(values)), obs=x)

    return model


def outside(x: Tensor) -> None:
    with pyro.plate("rows", len(x), dim=-2):
        with pyro.plate("pixels", x.shape[1], dim=-1):
            b = pyro.sample("b", dist.Bernoulli(0.3 * ONE), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(b.sum(-1, keepdim=True), ONE), obs=x[:, :1])


def mixed(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(WEIGHTS))
        pyro.sample("x", dist.Normal(MEANS[y] - MEANS[y].mean(), ONE), obs=x)


def masked(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=x > 0):
            y = pyro.sample("y", dist.Categorical(WEIGHTS))
        pyro.sample("x", dist.Normal(MEANS[y], ONE), obs=x)


def masked_code(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=x > 0):
            z = pyro.sample("z", dist.Normal(ONE, ONE))
        pyro.sample("x", dist.Normal(z, ONE), obs=x)


def masked_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)), poutine.mask(mask=x > 0):
        pyro.sample("z", dist.Normal(x, ONE))


def other_label(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(torch.ones(2)))
        pyro.sample("z", dist.Normal(x, ONE))


def unmasked(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(ONE, ONE))
        pyro.sample("x", dist.Normal(z, ONE), obs=x)


def masked_label(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=x > 0):
            pyro.sample("y", dist.Categorical(WEIGHTS))
        pyro.sample("z", dist.Normal(x, ONE))


def masked_auxiliary(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=x > 0):
            u = pyro.sample("u", dist.Normal(x, ONE), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(u, log_density=torch.zeros_like(u)))


def improper(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("x", dist.Normal(z, ONE), obs=x)


REFUSED = {
    "no list": (of(dist.Poisson(ONE)), nothing, X, r"'y0' \(Poisson\) is discrete without a list"),
    "vector": (
        of(dist.Bernoulli(0.5 * torch.ones(2)).to_event(1), obs=lambda y: dist.Normal(y[..., 0], 1)),
        nothing,
        X,
        r"'y0' \(Bernoulli\) is discrete without a list of values, .*: put the numbers of this",
    ),
    "large": (
        of(dist.Categorical(torch.ones(20_000))),
        nothing,
        X,
        "'y0' has 20,000 values, and at most 10,000",
    ),
    "many": (
        of(*[dist.Bernoulli(0.5 * ONE)] * 14), nothing, X, "have 16,384 joint values, and at most"
    ),
    "outside": (outside, nothing, PIXELS, "'b' cannot be summed out: the data"),
    "mixed": (mixed, nothing, X, "'y' cannot be summed out: the density of the data"),
    "masked": (masked, nothing, X, "'y' is masked out for some data, and a site that is not"),
    "masked code": (masked_code, masked_guide, X, "'z' is masked out for some data, whose"),
    "other mask": (masked_code, continuous, X, "'z' is masked out for other data in the model"),
    "guide alone": (unmasked, masked_guide, X, "'z' is masked out for other data in the model"),
    "label alone": (clustered, masked_label, X, "'y' is masked out for other data in the model"),
    "auxiliary": (unmasked, masked_auxiliary, X, "auxiliary site 'u' of the guide is masked out"),
    "improper": (improper, continuous, X, r"'z' has an improper prior \(ImproperUniform\)"),
    "other values": (clustered, other_label, X, "'y' has 3 values in the model, and its guide"),
    "no guide": (clustered, label, X, "the guide has no site for the model's latent 'z'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_latents_that_cannot_be_summed_are_refused_by_name(name: str) -> None:
    model, guide, x, message = REFUSED[name]
    for function in (elbo, evidence):
        with pytest.raises(InputError, match=message):
            function(model, guide, x, num_samples=10)


# -- gaps of guides that draw a label
# ------------------------------------------------------------------------------------------------


def narrow(x: Tensor) -> None:
    """Its code lies off the posterior's at each label, and has another scale."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(logits=torch.stack([x, -x, 0 * x], -1)))
        pyro.sample("z", dist.Normal(0.4 * x + 0.3 * MEANS[y], 0.3 * ONE))


@pytest.mark.slow
def test_gaps_of_a_label_and_a_code_beside_the_closed_form() -> None:
    gaps = inference_gaps(clustered, narrow, X, num_samples=2000)
    # At each label the posterior of the code is normal, so that the best of the family is exact.
    logs = WEIGHTS.log() + dist.Normal(MEANS, 1.25**0.5).log_prob(X[:, None])
    error = torch.as_tensor(gaps.evidence.errors)
    off = (gaps.evidence.per_datum - logs.logsumexp(-1)).abs()
    assert bool((off < 4 * error).all())
    assert float(error.max()) < 0.02
    torch.testing.assert_close(gaps.elbos["guide"].per_datum, logs.logsumexp(-1), rtol=0, atol=0.01)
    error = torch.as_tensor(gaps.approximation.errors)
    assert bool((gaps.approximation.per_datum.abs() < 4 * error + 0.01).all())
    # KL(q(y, z) | p(y, z | x)) by the label's table and normals.
    log_guide = torch.stack([X, -X, 0 * X], -1).log_softmax(-1)
    mean = (MEANS / 0.25 + X[:, None]) / 5
    own = dist.Normal(0.4 * X[:, None] + 0.3 * MEANS, 0.3)
    normals = torch.distributions.kl_divergence(own, dist.Normal(mean, 0.2**0.5 * ONE))
    kl = (log_guide.exp() * (log_guide - logs.log_softmax(-1) + normals)).sum(-1)
    error = torch.as_tensor(gaps.amortization.errors)
    assert bool(((gaps.amortization.per_datum - kl).abs() < 4 * error + 0.01).all())
    assert gaps.beta.value == 0
    assert gaps.converged
    assert gaps.evidence.trusted
    assert gaps.variational.value == pytest.approx(
        gaps.approximation.value + gaps.amortization.value
    )


def quadratic(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(WEIGHTS))
        z = pyro.sample("z", dist.Normal(MEANS[y], ONE))
        pyro.sample("x", dist.Normal(z + 0.25 * z**2, 0.5 * ONE), obs=x)


@pytest.mark.slow
def test_gaps_of_a_family_that_is_too_small_at_each_label() -> None:
    # The posterior of the code has two modes or is skewed: normals at each label fall short of it.
    gaps = inference_gaps(quadratic, narrow, X[:3], num_samples=2000)
    grid = torch.linspace(-12, 12, 20001, dtype=torch.double)[:, None, None]
    density = dist.Normal(grid + 0.25 * grid**2, 0.5).log_prob(X[:3, None])
    logs = WEIGHTS.log() + dist.Normal(MEANS, 1.0).log_prob(grid) + density
    exact = torch.trapezoid(logs.exp(), grid[:, 0, 0], dim=0).sum(-1).log()
    error = torch.as_tensor(gaps.evidence.errors)
    assert bool(((gaps.evidence.per_datum - exact).abs() < 4 * error + 1e-3).all())
    # The best normal at each label, by bounds on a grid of means and scales.
    weight, nodes = normal_nodes()
    loc = torch.linspace(-9, 5, 281, dtype=torch.double)[:, None]
    scale = torch.logspace(-1.5, 0.5, 81, dtype=torch.double)
    z = loc[..., None] + scale[:, None] * nodes
    best = []
    for x in X[:3]:
        of_z = dist.Normal(z + 0.25 * z**2, 0.5).log_prob(x)
        rows = [
            ((of_z + dist.Normal(m, 1.0).log_prob(z)) * weight).sum(-1) + scale.log() for m in MEANS
        ]
        best.append(torch.stack([row.max() for row in rows]))
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    star = (torch.stack(best) + WEIGHTS.log() + entropy).logsumexp(-1)
    error = torch.as_tensor(gaps.elbos["guide"].errors)
    assert bool(((gaps.elbos["guide"].per_datum - star).abs() < 4 * error + 0.01).all())
    error = torch.as_tensor(gaps.approximation.errors)
    assert bool(((gaps.approximation.per_datum - exact + star).abs() < 4 * error + 0.01).all())
    assert float((exact - star).max()) > 0.05


def normal_nodes() -> tuple[Tensor, Tensor]:
    """Return weights and nodes of a mean under the standard normal."""
    nodes, weights = numpy.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    return torch.as_tensor(weights), torch.as_tensor(nodes)


def test_gaps_of_a_label_alone_are_amortization() -> None:
    gaps = inference_gaps(mixture, label, X)
    logs = WEIGHTS.log() + dist.Normal(MEANS, 1.0).log_prob(X[:, None])
    log_guide = torch.stack([X, -X, 0 * X], -1).log_softmax(-1)
    kl = (log_guide.exp() * (log_guide - logs.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(gaps.evidence.per_datum, logs.logsumexp(-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(gaps.amortization.per_datum, kl, rtol=0, atol=1e-6)
    assert gaps.approximation.value == gaps.beta.value == 0
    assert gaps.finding.code == "amortization-gap"


@pytest.mark.slow
def test_evaluate_measures_gaps_of_a_label() -> None:
    evaluation = evaluate(clustered, narrow, X, num_samples=200, method="importance")
    assert evaluation.gaps is not None
    assert evaluation.gaps_note is None
    assert evaluation.gaps.finding.code == "amortization-gap"


def beside(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=torch.stack([x, -x, 0 * x], -1)))
        pyro.sample("z", dist.Normal(0.5 * x, ONE))


def after(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.5 * x, ONE))
        pyro.sample("y", dist.Categorical(logits=torch.stack([z, -z, 0 * z], -1)))


def both_labels(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Categorical(WEIGHTS))
        pyro.sample("z", dist.Normal(MEANS[a], ONE))
        pyro.sample("b", dist.Bernoulli(0.5 * ONE))


@pytest.mark.parametrize(
    ("model", "guide", "options", "message"),
    [
        (clustered, beside, {}, "'z' does not depend on the discrete 'y', so that the best"),
        (clustered, after, {}, "'y' is discrete and depends on other draws: leave it out"),
        (clustered, labelled, {"training_beta": 2.0}, "those of training_beta=1, got 2"),
        (two_labels, both_labels, {}, "discrete sites 'a', 'b'; gaps are known for one"),
        (
            clustered, labelled, {"settings": RefitSettings(local_guide=labelled)},
            "this guide draws the discrete 'y': leave 'local_guide' out",
        ),
    ],
)  # fmt: skip
def test_gaps_that_are_no_sum_over_a_label_are_refused(
    model, guide, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        inference_gaps(model, guide, X, **options)


def test_measurements_that_know_no_discrete_latents_say_so() -> None:
    with pytest.raises(InputError, match="latent 'y' is discrete; only continuous latents"):
        decompose_kl(clustered, labelled, X)
    for pair, function in ((nothing, inference_gaps), (label, annealed_evidence)):
        with pytest.raises(InputError, match="every latent is discrete and summed out"):
            function(mixture, pair, X)


def test_a_vector_of_the_guide_is_drawn() -> None:
    """Its joint values are no list, and the guide's draws are weighed as those of any latent."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y0", dist.Bernoulli(0.4 * ONE.expand(2)).to_event(1))

    model = of(
        dist.Bernoulli(0.3 * ONE.expand(2)).to_event(1), obs=lambda y: dist.Normal(y.sum(-1), ONE)
    )
    binomial = dist.Binomial(2, 0.3 * ONE).log_prob(torch.arange(3).double())
    counts = torch.arange(3).double()
    exact = (binomial + dist.Normal(counts, ONE).log_prob(X[:, None])).logsumexp(-1)
    measured = evidence(model, guide, X, num_samples=2000)
    error = torch.as_tensor(measured.errors)
    assert bool(((measured.per_datum - exact).abs() < 4 * error).all())
