"""Programs that would be measured as something else.

Each has its right value, or is refused by the name of a site.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor

from pyro_bvae import BetaVAE, Context, Decoder, elbo, evidence, inference_gaps
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation import decompose_kl, elbo_parts
from pyro_bvae.likelihoods import PoissonLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.program.coordinates import Coordinates
from pyro_bvae.program.program import open_program
from pyro_bvae.program.supports import inside, is_unbounded, log_density

X = torch.tensor([-1.3, -0.2, 0.4, 1.1, 2.0], dtype=torch.double)
ZERO = torch.zeros_like(X)
Draw = Callable[[Tensor], Any]


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


TRUTH = dist.Normal(0.0, 2**0.5).log_prob(X)


def guide_of(draw: Draw) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            draw(x)

    return guide


def noise(name: str, distribution: Any) -> Tensor:
    return pyro.sample(name, distribution, infer={"is_auxiliary": True})


def normal(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(x / 2, 0.8))


def right(estimate: Any, exact: Tensor) -> None:
    assert abs(estimate.value - float(exact.mean())) < 4 * estimate.monte_carlo_error < 0.2


# -- auxiliary noise
# -----------------------------------------------------------------------------------------------


def unused(x: Tensor) -> None:
    noise("a", dist.Uniform(torch.zeros_like(x), 2.0))
    normal(x)


def intermediate(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(noise("a", dist.Normal(x / 2, 0.3)), 0.8))


def of_two(x: Tensor) -> None:
    a = noise("a", dist.Normal(torch.zeros(len(x), 2).double(), 0.5).to_event(1))
    pyro.sample("z", dist.Delta(x / 2 + a.sum(-1)))


def folded(x: Tensor) -> None:
    pyro.sample("z", dist.Delta(x / 2 + noise("a", dist.Normal(torch.zeros_like(x), 1.0)).abs()))


def discrete(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(x / 2 + noise("a", dist.Bernoulli(torch.full_like(x, 0.5))), 0.8))


def hidden(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(x / 2 + 0.5 * torch.randn_like(x), 0.8))


def without_jacobian(x: Tensor) -> None:
    pyro.sample("z", dist.Delta(x / 2 + 0.8 * noise("a", dist.Normal(torch.zeros_like(x), 1.0))))


@pytest.mark.parametrize("draw", [unused, intermediate, of_two, folded, discrete])
def test_noise_that_nothing_stands_for_is_refused(draw: Draw) -> None:
    with pytest.raises(
        InputError, match="guide site 'a' has noise of its own that nothing in the model stands for"
    ):
        evidence(model, guide_of(draw), X, num_samples=10)


def test_noise_outside_of_sample_and_a_forgotten_jacobian_are_refused() -> None:
    with pytest.raises(
        InputError, match="guide site 'z' has another distribution at the same draws"
    ):
        evidence(model, guide_of(hidden), X, num_samples=10)
    with pytest.raises(
        InputError, match=r"the Jacobian of 'z' is not in the log_density .* off by -0.223 nats"
    ):
        evidence(model, guide_of(without_jacobian), X, num_samples=10)


def scaled(x: Tensor) -> None:
    density = torch.full_like(x, -math.log(0.8))
    pyro.sample(
        "z", dist.Delta(x / 2 + 0.8 * noise("a", dist.Normal(torch.zeros_like(x), 1.0)), density)
    )


def quantile(x: Tensor) -> None:
    own = dist.Normal(x / 2, 0.8)
    z = own.icdf(noise("a", dist.Uniform(torch.zeros_like(x), 1.0)))
    pyro.sample("z", dist.Delta(z, own.log_prob(z)))


def two_steps(x: Tensor) -> None:
    a = noise("a", dist.Normal(torch.zeros_like(x), 1.0))
    b = noise("b", dist.Delta(0.8 * a, torch.full_like(x, -math.log(0.8))))
    pyro.sample("z", dist.Delta(x / 2 + b))


@pytest.mark.parametrize("draw", [normal, scaled, quantile, two_steps])
def test_latents_that_are_a_map_of_noise_are_right(draw: Draw) -> None:
    right(evidence(model, guide_of(draw), X, num_samples=2000), TRUTH)


def test_noise_with_a_reverse_model_is_right() -> None:
    def both(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("a", dist.Normal(z, 0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(x / 2, 0.9), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(x / 4 + a / 2, 0.7))

    right(evidence(both, guide, X, num_samples=20_000), TRUTH)


# -- points
# --------------------------------------------------------------------------------------------------


POINTS: dict[str, Draw] = {
    "Delta": lambda x: pyro.sample("z", dist.Delta(x / 2)),
    "masked": lambda x: pyro.sample("z", dist.Delta(x / 2).mask(torch.ones_like(x) > 0)),
    "expanded": lambda x: pyro.sample("z", dist.Delta(x[0]).expand([len(x)])),
    "transformed": lambda x: pyro.sample(
        "z",
        dist.TransformedDistribution(dist.Delta(x), [dist.transforms.AffineTransform(0.0, 2.0)]),
    ),
    "noise outside of sample": lambda x: pyro.sample("z", dist.Delta(x + torch.randn_like(x))),
    "a tiny scale": lambda x: pyro.sample("z", dist.Normal(x / 2, 1e-20)),
    "deterministic": lambda x: pyro.deterministic("z", x / 2),
}


@pytest.mark.parametrize("name", POINTS)
def test_points_are_refused(name: str) -> None:
    for measure in (evidence, elbo, elbo_parts, inference_gaps, decompose_kl):
        with pytest.raises(InputError, match="guide site 'z' is a point"):
            measure(model, guide_of(POINTS[name]), X, num_samples=10)


def two(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z1 = pyro.sample("z1", dist.Normal(torch.zeros_like(x), 1.0))
        z2 = pyro.sample("z2", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z1 + z2, 1.0), obs=x)


def both(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z1", dist.Normal(x / 3, 0.9))
        pyro.sample("z2", dist.Normal(x / 3, 0.9))


def first(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z1", dist.Normal((x - 3) / 2, 0.8))


def test_some_latents_at_points_are_refused() -> None:
    for z1 in (lambda x: pyro.sample("z1", dist.Normal(x, 1.0)),
               lambda x: pyro.sample("z1", dist.Delta(noise("a", dist.Normal(x, 1.0))))):  # fmt: skip
        with pytest.raises(InputError, match="guide site 'z2' is a point"):
            evidence(
                two,
                guide_of(lambda x, z1=z1: (z1(x), pyro.sample("z2", dist.Delta(x)))),
                X,
                num_samples=10,
            )


def test_autoguides_of_points_are_refused_and_of_normals_are_right() -> None:
    with pytest.raises(InputError, match=r"guide site 'z' is a point \(Delta\)"):
        evidence(model, AutoDelta(model), X, num_samples=10)
    pyro.clear_param_store()
    right(evidence(model, AutoNormal(model, init_scale=1.0), X, num_samples=20_000), TRUTH)


def test_a_discrete_guide_of_a_continuous_latent_is_refused() -> None:
    with pytest.raises(
        InputError, match="latent 'z' is continuous in the model and discrete in the guide"
    ):
        evidence(
            model,
            guide_of(lambda x: pyro.sample("z", dist.Poisson(x.abs() + 1))),
            X,
            num_samples=10,
        )


# -- conditioned latents
# -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [torch.full_like(X, 3.0), torch.tensor(3.0).double()], ids=["each", "all"]
)
def test_an_observation_is_kept(value: Tensor) -> None:
    given = poutine.condition(two, data={"z2": value})
    exact = dist.Normal(3.0, 2**0.5).log_prob(X) + dist.Normal(0.0, 1.0).log_prob(
        torch.tensor(3.0).double()
    )
    right(evidence(given, first, X, num_samples=2000), exact)
    right(evidence(poutine.scale(given, scale=2.0), first, X, num_samples=2000), exact)
    for handled in (given, poutine.scale(given, scale=2.0)):
        for measure in (evidence, elbo, inference_gaps):
            with pytest.raises(
                InputError, match="the guide draws site 'z2', which the model observes"
            ):
                measure(handled, both, X, num_samples=10)


def test_a_guide_that_observes_a_latent_is_refused() -> None:
    with pytest.raises(
        InputError, match="site 'z1' of the guide is observed, and a latent of the model has to be"
    ):
        evidence(two, poutine.condition(both, data={"z1": X}), X, num_samples=10)


# -- supports
# --------------------------------------------------------------------------------------------------

one = torch.ones((), dtype=torch.double)
MINUS_ONE = [dist.transforms.AffineTransform(-1.0, 1.0)]


def components(make: Callable[[Tensor], Any], *numbers: float) -> Any:
    parts = make(torch.tensor(numbers, dtype=torch.double))
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(len(numbers))), parts)


PRIORS: dict[str, tuple[Any, float, float]] = {
    "exponential": (dist.Exponential(one), 0.0, 30.0),
    "gamma": (dist.Gamma(2 * one, 1.0), 0.0, 40.0),
    "log-normal": (dist.LogNormal(0 * one, 1.0), 0.0, 60.0),
    "beta": (dist.Beta(2 * one, 2.0), 0.0, 1.0),
    "half-normal": (dist.HalfNormal(one), 0.0, 12.0),
    "uniform": (dist.Uniform(0 * one, 1.0), 0.0, 1.0),
    "Pareto": (dist.Pareto(0.5 * one, 3.0), 0.5, 60.0),
    "von Mises": (dist.VonMises(0 * one, 1.0), -math.pi, math.pi),
    "shifted": (dist.TransformedDistribution(dist.Exponential(one), MINUS_ONE), -1.0, 30.0),
    "mixture": (components(dist.Exponential, 0.5, 2.0), 0.0, 60.0),
    "mixture of Paretos": (components(lambda low: dist.Pareto(low, 3 * one), 0.5, 1.0), 0.5, 60.0),
}


def quadrature(
    prior: Any, low: float, high: float, log_likelihood: Callable[[Tensor], Tensor]
) -> Tensor:
    """The evidence of each datum by the midpoint rule."""
    width = (high - low) / 400_000
    grid = low + width * (torch.arange(400_000, dtype=torch.double) + 0.5)
    with pyro.validation_enabled(False):
        joint = log_density(prior, grid)[:, None] + log_likelihood(grid[:, None])
    return joint.logsumexp(0) + math.log(width)


@pytest.mark.parametrize("name", PRIORS)
def test_draws_outside_the_support_weigh_nothing(name: str) -> None:
    prior, low, high = PRIORS[name]

    def bounded(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    wide = guide_of(lambda x: pyro.sample("z", dist.Normal(0.2 * x + 0.6, 1.3)))
    exact = quadrature(prior, low, high, lambda z: dist.Normal(z, 1.0).log_prob(X))
    seen = pytest.warns(UserWarning, match="draws latent 'z' outside the support of its prior")
    with (
        nullcontext() if name == "von Mises" else seen
    ):  # no draw of so few lies beyond half a turn
        right(evidence(bounded, wide, X, num_samples=20_000), exact)


def test_a_likelihood_that_needs_the_support_does_not_spoil_the_weights() -> None:
    """Outside, the scale of the data is negative, their density is NaN, and the weight is 0."""

    def scales(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            s = pyro.sample("s", dist.Exponential(torch.ones_like(x)))
            pyro.sample("x", dist.Normal(0.0, s), obs=x)

    wide = guide_of(lambda x: pyro.sample("s", dist.Normal(x.abs() + 0.3, 1.0)))
    exact = quadrature(dist.Exponential(one), 0.0, 40.0, lambda s: dist.Normal(0.0, s).log_prob(X))
    for compile in (False, True):
        with pytest.warns(UserWarning, match="outside the support"):
            right(evidence(scales, wide, X, num_samples=20_000, compile=compile), exact)
    with pytest.warns(UserWarning, match="the ELBO is minus infinity"):
        assert elbo(scales, wide, X).value == -math.inf


def test_a_guide_with_other_free_numbers_is_refused() -> None:
    def simplex(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Dirichlet(torch.ones(len(x), 3).double()))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    flat = guide_of(
        lambda x: pyro.sample(
            "z", dist.Normal(torch.full((len(x), 3), 0.3).double(), 0.2).to_event(1)
        )
    )
    with pytest.raises(
        InputError,
        match="an event of latent 'z' has 2 free numbers in the model and 3 in the guide",
    ):
        evidence(simplex, flat, X, num_samples=10)


def test_a_likelihood_whose_support_moves_with_the_latent() -> None:
    def moving(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Pareto(z.exp(), 3.0), obs=x)

    x = X.abs() + 0.2
    guide = guide_of(lambda x: pyro.sample("z", dist.Normal(x.log() - 0.5, 0.8)))
    exact = quadrature(
        dist.Normal(0 * one, 1.0), -12.0, 12.0, lambda z: log_density(dist.Pareto(z.exp(), 3.0), x)
    )
    right(evidence(moving, guide, x, num_samples=20_000), exact)


def test_the_support_of_wrapped_distributions() -> None:
    mask = torch.tensor([True, False])
    positive = dist.Exponential(torch.ones(2))
    value = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [math.nan, 1.0]])
    assert inside(positive, value).tolist() == [[False, False], [True, True], [True, True]]
    assert inside(positive.mask(mask), value).tolist() == [
        [False, True],
        [True, True],
        [True, True],
    ]
    assert inside(positive.to_event(1), value).tolist() == [False, True, True]
    assert inside(dist.Normal(torch.zeros(2), 1.0).to_event(1), value) is None
    for distribution in (dist.Normal(0.0, 1.0), dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
                         dist.StudentT(3.0).expand([2]).to_event(1), dist.Normal(0.0, 1.0).mask(mask)):  # fmt: skip
        assert is_unbounded(distribution)
    for distribution, _, _ in PRIORS.values():
        assert not is_unbounded(distribution.expand([3]))
        assert not is_unbounded(distribution.expand([3]).to_event(1))


def test_long_simplices_of_single_precision_are_inside() -> None:
    draws = dist.Dirichlet(torch.full((2000,), 0.5)).sample((200,))
    assert bool(inside(dist.Dirichlet(torch.ones(2000)), draws).all())


# -- data
# --------------------------------------------------------------------------------------------------


def clicks(y: Tensor, mask: Tensor | None = None) -> None:
    with pyro.plate("data", len(y), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(y)), 1.0))
        with poutine.mask(mask=torch.ones(()) > 0 if mask is None else mask):
            pyro.sample("y", dist.Bernoulli(logits=z), obs=y)


def prior_of_clicks(y: Tensor, mask: Tensor | None = None) -> None:
    with pyro.plate("data", len(y), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(len(y)), 1.0))


@pytest.mark.parametrize("row", [0, 63, 64, 5000, 9999])
@pytest.mark.parametrize("value", [7.0, math.nan])
def test_every_row_of_the_data_is_checked(row: int, value: float) -> None:
    y = torch.zeros(10_000)
    y[row] = value
    with pytest.raises(
        InputError, match=f"site 'y' of the model has no density at its value: datum {row} is"
    ):
        evidence(clicks, prior_of_clicks, y, num_samples=2)
    mask = torch.arange(10_000) != row
    masked = evidence(clicks, prior_of_clicks, y, mask, num_samples=2)
    assert math.isfinite(masked.value)


# -- shapes
# --------------------------------------------------------------------------------------------------


def three(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def one_of_three(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[:, :1])


def column(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x[:, :1])


def plated(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-2), pyro.plate("features", 3, dim=-1):
        pyro.sample("z", dist.Normal(x / 2, 0.8))


def vectors(width: int) -> Callable[[Tensor], None]:
    return guide_of(lambda x: pyro.sample("z", dist.Normal(x[:, :width] / 2, 0.8).to_event(1)))


@pytest.mark.parametrize(
    ("shaped", "guide", "words"),
    [
        (three, vectors(1), "latent 'z' has shape"),
        (one_of_three, vectors(3), "site 'x' of the model"),
        (column, vectors(3), "site 'x' of the model"),
        (three, plated, "site 'z' of the guide has 5 data at dim -2"),
    ],
)  # fmt: skip
def test_shapes_that_broadcast_are_refused(shaped: Any, guide: Any, words: str) -> None:
    for measure in (evidence, elbo):
        with pytest.raises(InputError, match=words):
            measure(shaped, guide, torch.randn(5, 3), num_samples=10)


def unowned(function: Callable[..., Any]) -> Callable[..., Any]:
    def plain(*args: Any) -> Any:
        return function(*args)

    return plain


@pytest.mark.parametrize("shape", [(6,), (1, 1), (7, 1), (6, 2)])
def test_size_factors_have_a_row_for_each_datum(shape: tuple[int, ...]) -> None:
    vae = BetaVAE(
        NormalPrior(2), Decoder(MLP(2, 6), PoissonLikelihood()), NormalPosterior(MLP(6, 4))
    )
    counts = torch.arange(36.0).reshape(6, 6) % 5
    for pair in ((vae.model, vae.guide), (unowned(vae.model), unowned(vae.guide))):
        with pytest.raises(
            InputError, match=r"'context.size_factor' must have (shape \(6, 1\)|6 rows), got"
        ):
            evidence(*pair, counts, Context(size_factor=torch.ones(shape)), num_samples=10)
    with pytest.raises(
        InputError, match=r"'context.covariates' must have shape \(6, \*\), got \(6,\)"
    ):
        vae.check_data(counts, Context(covariates=torch.ones(6)))
    with pytest.raises(
        InputError, match=r"'context\.size_factor' must be positive, got 0\.0 at row 0"
    ):
        vae.check_data(counts, Context(size_factor=torch.zeros(6, 1)))


def test_data_beyond_the_plates_are_refused() -> None:
    vae = BetaVAE(
        NormalPrior(2), Decoder(MLP(2, 6), PoissonLikelihood()), NormalPosterior(MLP(6, 4))
    )
    with pytest.raises(
        InputError, match=r"site 'z' has batch shape \(4, 1\), more than its plates declare"
    ):
        evidence(unowned(vae.model), unowned(vae.guide), torch.ones(4, 1, 6), num_samples=10)


# -- coordinates
# --------------------------------------------------------------------------------------------------


MAPPED = {
    "exponentials": (components(dist.Exponential, 0.5, 2.0), dist.LogNormal(0 * one, 1.0)),
    "normals": (components(lambda loc: dist.Normal(loc, 1.0), -2.0, 2.0), dist.Normal(0 * one, 1.0)),
    "vectors": (
        components(lambda loc: dist.Normal(loc[:, None].expand(-1, 2), 1.0).to_event(1), -2.0, 2.0),
        dist.Normal(torch.zeros(2).double(), 1.0).to_event(1),
    ),
    "shifted": (PRIORS["shifted"][0], dist.TransformedDistribution(dist.LogNormal(0 * one, 1.0), MINUS_ONE)),
    "angle": (PRIORS["von Mises"][0], dist.VonMises(0 * one, 2.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", MAPPED)
def test_mixtures_of_one_support_have_coordinates(name: str) -> None:
    prior, posterior = MAPPED[name]

    def mapped(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z.sum(-1) if prior.event_shape else z, 1.0), obs=x)

    guide = guide_of(lambda x: pyro.sample("z", posterior))
    with open_program(mapped, guide, (X,)) as program:
        coordinates = Coordinates(program, (X,))
        vectors = torch.linspace(-3, 3, 7 * len(X) * coordinates.size, dtype=torch.double)
        vectors = vectors.reshape(7, len(X), coordinates.size)
        values, _ = coordinates.unflatten(vectors)
        assert bool(torch.isfinite(program.log_joint(values, (X,))[0]).all())
        assert torch.allclose(coordinates.flatten(values), vectors)


def test_a_mixture_of_several_supports_has_none() -> None:
    prior = components(lambda low: dist.Uniform(low, low + 1), 0.0, 2.0)

    def mixed(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(pyro.sample("z", prior), 1.0), obs=x)

    guide = guide_of(lambda x: pyro.sample("z", dist.Uniform(ZERO, 3.0)))
    with (
        pytest.warns(UserWarning, match="outside the support"),
        open_program(mixed, guide, (X,)) as program,
        pytest.raises(
            InputError,
            match=r"latent 'z' has the support .* the components have supports of their own",
        ),
    ):
        Coordinates(program, (X,))


def test_a_model_of_thousands_of_latents_is_measured() -> None:
    """The sums over its latents are float64, of one particle and of several alike."""
    decoder = Decoder(MLP(10_000, 3, hidden=(2,)), PoissonLikelihood())
    vae = BetaVAE(NormalPrior(10_000), decoder, NormalPosterior(MLP(3, 20_000, hidden=(2,))))
    result = elbo(vae.model, vae.guide, torch.ones(4, 3), num_samples=2)
    assert result.per_datum.isfinite().all()


def test_a_number_that_is_none_is_named_where_the_program_stops() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    with pytest.raises(InputError, match=r"tensor 1 of the arguments has numbers .* row 1, where"):
        evidence(model, guide, torch.tensor([0.5, math.nan, 1.0]))


MIXED = {
    "mean": lambda z: z - z.mean(-1, keepdim=True),
    "pairs": lambda z: z + z.unflatten(-1, (-1, 2)).flip(-1).flatten(-2),
    "neighbours": lambda z: z + z.roll(1, -1),
    "earlier": lambda z: z.cumsum(-1),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_datum_that_depends_on_the_latents_of_others_is_refused(name: str) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(MIXED[name](z), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    x = torch.linspace(-2, 2, 80)
    for function in (evidence, elbo, inference_gaps):
        with pytest.raises(InputError, match="depends on the latents of others, so that there is"):
            function(model, guide, x)


def test_a_datum_that_depends_on_the_data_of_others_is_measured() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + x.mean(), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - x.mean()) / 2, 0.5**0.5))

    x = torch.linspace(-2, 3, 20, dtype=torch.double)
    exact = dist.Normal(x.mean(), 2**0.5).log_prob(x)
    torch.testing.assert_close(elbo(model, guide, x).per_datum, exact)


def normal_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def exact_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


def test_noise_that_the_model_does_not_sample_is_refused() -> None:
    def model(x: Tensor) -> None:
        normal_model(x + 0.5 * torch.randn(x.shape))

    with pytest.raises(InputError, match="the model has other densities at the same draws: draw"):
        evidence(model, exact_guide, torch.linspace(-2, 2, 5))


def test_arrays_are_tensors_of_their_shape_and_no_data_are_refused() -> None:
    x = torch.linspace(-2, 2, 5)
    own = elbo(normal_model, exact_guide, x)
    other = elbo(normal_model, exact_guide, x.double().numpy())
    assert torch.equal(own.per_datum, other.per_datum)
    with pytest.raises(InputError, match=r"empty data set: an argument has shape \(0,\)"):
        elbo(normal_model, exact_guide, x[:0])
    with pytest.raises(InputError, match="an argument must hold numbers, got"):
        elbo(normal_model, exact_guide, np.array(["a", "b"]))
