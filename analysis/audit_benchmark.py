"""Mistakes planted in sound Pyro programs: does the audit find each, and is it silent where nothing is wrong?

Run it by ``python analysis/audit_benchmark.py``.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import SVI, Trace_ELBO, config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.optim import Adam
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Context, Decoder
from pyro_bvae.evaluation.program_audit.auditor import Audit, audit
from pyro_bvae.likelihoods import BernoulliLikelihood, NegativeBinomialLikelihood, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import FlowPosterior, NormalPosterior
from pyro_bvae.priors import MixturePrior, NormalPrior

RESULTS = Path(__file__).parent / "results" / "audit_benchmark"
EXAMPLE = Path(__file__).parents[1] / "examples" / "any_pyro_program.py"
NUM, LATENTS, FEATURES, BATCH = 12, 2, 3, 5

Block = AbstractContextManager[Any]
Scale = Callable[[float], Block]


class Case(NamedTuple):
    """A program to audit, and the code that is to be found: none for a sound one."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    code: str | None = None
    kwargs: dict[str, Any] | None = None


def data() -> Tensor:
    """Return small data in the unit interval, none of them twice."""
    return torch.rand(NUM, FEATURES, generator=torch.Generator().manual_seed(0))


def beta_scale(beta: float) -> Block:
    """Scale what is inside by β."""
    return poutine.scale(scale=beta)


def no_scale(beta: float) -> Block:
    """Scale nothing."""
    return nullcontext()


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a small network, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(inputs)
        return nn.Linear(inputs, outputs)


def vae_program(
    model_scale: Scale = beta_scale,
    guide_scale: Scale = beta_scale,
    observed_scale: Scale = no_scale,
    prior: Callable[[int], Any] = lambda n: dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1),
    likelihood: Callable[[Tensor], Any] = lambda loc: dist.Normal(loc, 1.0).to_event(1),
    posterior: Callable[[Tensor], Any] = lambda h: dist.Normal(h[:, :2], h[:, 2:].exp()).to_event(
        1
    ),
    model_plate: Callable[[int], int] = lambda n: n,
    guide_plate: Callable[[int], int] = lambda n: n,
    names: tuple[str, str] = ("decoder", "encoder"),
    register: tuple[bool, bool] = (True, True),
    latent: str = "z",
    infer: dict[str, Any] | None = None,
    features: int = FEATURES,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the model and the guide of a sound β-VAE written by hand, of which each argument may be spoilt."""
    decoder, encoder = linear(LATENTS, features), linear(features, 2 * LATENTS)

    def model(x: Tensor, beta: float = 1.0) -> None:
        if register[0]:
            pyro.module(names[0], decoder, update_module_params=False)
        with pyro.plate("data", model_plate(len(x)), dim=-1):
            with model_scale(beta):
                z = pyro.sample("z", prior(len(x)))
            with observed_scale(beta):
                pyro.sample("x", likelihood(decoder(z)), obs=x)

    def guide(x: Tensor, beta: float = 1.0) -> None:
        if register[1]:
            pyro.module(names[1], encoder, update_module_params=False)
        with pyro.plate("data", guide_plate(len(x)), dim=-1), guide_scale(beta):
            pyro.sample(latent, posterior(encoder(x)), infer=infer)

    return model, guide


def spoilt(code: str, x: Tensor | None = None, **mistake: Any) -> Case:
    """Return the hand-written β-VAE with one mistake."""
    return Case(*vae_program(**mistake), (data() if x is None else x,), code)


# -- mistakes
# --------------------------------------------------------------------------------------------------


def beta_in_the_model_only() -> Case:
    """The guide forgets β."""
    return spoilt("beta-one-side", guide_scale=no_scale)


def beta_in_the_guide_only() -> Case:
    """The model forgets β."""
    return spoilt("beta-one-side", model_scale=no_scale)


def beta_squared_in_the_guide() -> Case:
    """The guide scales by another number."""
    return spoilt("beta-unequal", guide_scale=lambda beta: poutine.scale(scale=beta**2))


def fixed_beta_on_both_sides() -> Case:
    """A β that cannot be taken out again."""
    fixed = functools.partial(poutine.scale, scale=4.0)
    return spoilt(
        "scale-in-weights", model_scale=lambda beta: fixed(), guide_scale=lambda beta: fixed()
    )


def beta_on_everything() -> Case:
    """The observed site stands under the latent's scale."""
    return spoilt("observed-scaled", observed_scale=beta_scale)


def beta_ignored() -> Case:
    """An argument that does nothing."""
    return spoilt("beta-ignored", model_scale=no_scale, guide_scale=no_scale)


def beta_with_an_autoguide() -> Case:
    """An autoguide swallows β."""
    model, _ = vae_program()
    return Case(model, AutoNormal(model), (data(),), "beta-one-side")


def mask_in_the_model_only() -> Case:
    """The prior is masked and the guide is not."""
    return spoilt(
        "mask-one-side", model_scale=lambda beta: poutine.mask(mask=torch.arange(NUM) > 3)
    )


def prior_without_to_event() -> Case:
    """Pyro stops, without saying which of the two sizes is wrong."""
    return spoilt("missing-to-event", prior=lambda n: dist.Normal(torch.zeros(LATENTS), 1.0))


def likelihood_without_to_event() -> Case:
    """As many features as data: nothing is raised."""
    square = torch.rand(NUM, NUM, generator=torch.Generator().manual_seed(1))
    return spoilt(
        "missing-to-event", square, features=NUM, likelihood=lambda loc: dist.Normal(loc, 1.0)
    )


def latent_without_to_event_or_plate() -> Case:
    """Two latents of the whole data set, as independent batch."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(FEATURES), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(FEATURES)), 1.0))

    return Case(model, guide, (data(),), "missing-to-event")


def plate_of_another_size() -> Case:
    """A plate size left over from another data set."""
    return spoilt("plate-size", model_plate=lambda n: 100, guide_plate=lambda n: 100)


def plate_of_another_size_without_shapes_in_the_way() -> Case:
    """The latents follow the plate, and the data do not."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", 7):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:7, 0])

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(7))
        with pyro.plate("data", 7):
            pyro.sample("z", dist.Normal(loc, 1.0))

    return Case(model, guide, (data(),), "plate-size")


def plates_of_two_sizes() -> Case:
    """Model and guide take another number of data for the whole."""
    model, guide, args = subsampled(guide_full=3 * NUM)[:3]
    return Case(model, guide, args, "plate-unequal")


def plates_of_two_names() -> Case:
    """Each function draws a subsample of its own."""
    return subsampled(guide_name="rows")._replace(code="plate-names")


def subsample_never_used() -> Case:
    """The plate draws a subsample, and the first rows are observed each time."""
    return subsampled(pick=lambda x, index: x[: len(index)])._replace(code="subsample-not-used")


def subsample_not_indexed() -> Case:
    """The plate takes a part, and all the data are observed."""
    return subsampled(pick=lambda x, index: x)._replace(code="subsample-not-used")


def subsample_scaled_by_hand() -> Case:
    """The plate scales by N / B already."""
    return subsampled(scale=NUM / BATCH)._replace(code="subsample-scaled-twice")


def latent_missing_from_the_guide() -> Case:
    """The noise scale has a prior and no posterior."""
    model, guide = vae_program()

    def with_noise(x: Tensor, beta: float = 1.0) -> None:
        pyro.sample("noise", dist.Gamma(2.0, 2.0))
        model(x, beta)

    return Case(with_noise, guide, (data(),), "latent-not-in-guide")


def latent_misspelt_in_the_guide() -> Case:
    """The guide's latent has another name than the model's."""
    return spoilt("latent-not-in-model", latent="Z")


def observed_site_drawn_by_the_guide() -> Case:
    """The guide draws what the model observes."""
    return spoilt("drawn-though-observed", latent="x")


def observed_site_in_the_guide() -> Case:
    """The data are scored in the guide too."""
    model, guide = vae_program()

    def observing(x: Tensor, beta: float = 1.0) -> None:
        guide(x, beta)
        pyro.sample("x", dist.Normal(torch.zeros(()), 1.0).expand(x.shape).to_event(2), obs=x)

    return Case(model, observing, (data(),), "observed-in-guide")


def with_guide(draw: Callable[[Tensor, Tensor], Any], code: str | None, prior: Any = None) -> Case:
    """Return a model of one latent a datum, and a guide that draws it by ``draw(loc, scale)``."""
    prior = dist.Normal(0.0, 1.0) if prior is None else prior

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc, log_scale = (
            pyro.param("loc", 0.5 * x),
            pyro.param("log_scale", torch.full_like(x, -0.4)),
        )
        with pyro.plate("data", len(x), dim=-1):
            draw(loc, log_scale.exp())

    return Case(model, guide, (data()[:, 0],), code)


def noise(name: str, distribution: Any) -> Tensor:
    """Draw an auxiliary site."""
    return pyro.sample(name, distribution, infer={"is_auxiliary": True})


def auxiliary_noise_beside_the_latent() -> Case:
    """A site of noise that the latent is drawn independently of."""

    def draw(loc: Tensor, scale: Tensor) -> None:
        noise("a", dist.Uniform(torch.zeros_like(loc), 2.0))
        pyro.sample("z", dist.Normal(loc, scale))

    return with_guide(draw, "auxiliary-noise")


def random_intermediate() -> Case:
    """The latent's location is a draw, and no reverse model accounts for it."""

    def draw(loc: Tensor, scale: Tensor) -> None:
        pyro.sample("z", dist.Normal(noise("a", dist.Normal(loc, 0.3)), scale))

    return with_guide(draw, "auxiliary-noise")


def more_noise_than_latents() -> Case:
    """Two numbers are drawn, and their sum is the latent."""

    def draw(loc: Tensor, scale: Tensor) -> None:
        pyro.sample(
            "z",
            dist.Delta(
                loc
                + scale * (noise("a", dist.Normal(0.0, 1.0)) + noise("b", dist.Normal(0.0, 1.0)))
            ),
        )

    return with_guide(draw, "auxiliary-noise")


def folded_noise() -> Case:
    """Two draws lead to one latent."""

    def draw(loc: Tensor, scale: Tensor) -> None:
        pyro.sample(
            "z", dist.Delta(loc + scale * noise("a", dist.Normal(0.0, 1.0)).abs(), -scale.log())
        )

    return with_guide(draw, "auxiliary-noise")


def noise_outside_of_sample() -> Case:
    """A location that is another one at each run."""

    def draw(loc: Tensor, scale: Tensor) -> None:
        pyro.sample("z", dist.Normal(loc + torch.randn_like(loc), scale))

    return with_guide(draw, "auxiliary-noise")


def jacobian_forgotten() -> Case:
    """Noise is scaled, and the Delta does not say so."""

    def draw(loc: Tensor, scale: Tensor) -> None:
        pyro.sample("z", dist.Delta(loc + scale * noise("a", dist.Normal(0.0, 1.0))))

    return with_guide(draw, "jacobian")


def jacobian_of_the_wrong_sign() -> Case:
    """The log determinant is added where it is to be subtracted."""

    def draw(loc: Tensor, scale: Tensor) -> None:
        pyro.sample("z", dist.Delta(loc + scale * noise("a", dist.Normal(0.0, 1.0)), scale.log()))

    return with_guide(draw, "jacobian")


def latents_at_points() -> Case:
    """A guide that draws nothing."""
    return with_guide(lambda loc, scale: pyro.sample("z", dist.Delta(loc)), "point")


def auto_delta() -> Case:
    """Pyro's guide of points."""
    return Case(per_datum, AutoDelta(per_datum), (data(),), "point")


def masked_point() -> Case:
    """A point in a wrapper."""
    return with_guide(lambda loc, scale: pyro.sample("z", dist.Delta(loc).mask(loc > -9)), "point")


def point_of_a_tiny_scale() -> Case:
    """A normal that is narrower than its precision."""
    return with_guide(lambda loc, scale: pyro.sample("z", dist.Normal(loc, 1e-12)), "point")


def deterministic_latent() -> Case:
    """A latent that the guide computes."""
    return with_guide(lambda loc, scale: pyro.deterministic("z", loc), "point")


def whole_numbers_for_a_real_latent() -> Case:
    """A discrete guide of a continuous latent."""
    return with_guide(lambda loc, scale: pyro.sample("z", dist.Poisson(scale)), "point")


def two_latents(both: bool, code: str | None, model_of: Callable[..., Any]) -> Case:
    """Return a model of two latents a datum, changed by ``model_of``, and a guide of one of them, or of both."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            total = pyro.sample("z1", dist.Normal(0.0, 1.0)) + pyro.sample(
                "z2", dist.Normal(0.0, 1.0)
            )
            pyro.sample("x", dist.Normal(total, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", 0.5 * x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z1", dist.Normal(loc, 1.0))
            if both:
                pyro.sample("z2", dist.Normal(loc, 1.0))

    return Case(model_of(model), guide, (data()[:, 0],), code)


def conditioned_latent_that_is_drawn() -> Case:
    """The guide's draw would stand in the place of the observation."""
    given = functools.partial(poutine.condition, data={"z2": torch.full((NUM,), 3.0)})
    return two_latents(True, "drawn-though-observed", given)


def normal_guide_of_a_fraction() -> Case:
    """Few draws of the guide leave the unit interval, and none in a run or two."""
    prior = dist.Beta(2.0, 2.0)
    draw = lambda loc, scale: pyro.sample("z", dist.Normal(0 * loc + 0.5, 0.1))  # noqa: E731
    return with_guide(draw, "wider-support", prior)


def count_of_the_last_datum() -> Case:
    """One value outside the support, far down."""
    x = torch.ones(300, FEATURES)
    x[-1, -1] = 2.0
    return spoilt(
        "outside-support", x, likelihood=lambda loc: dist.Bernoulli(logits=loc).to_event(1)
    )


def one_column_for_three() -> Case:
    """One feature is observed where there are three, in one event."""
    _, guide = vae_program()

    def observing(x: Tensor, beta: float = 1.0) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1))
            pyro.sample(
                "x", dist.Normal(linear(LATENTS, FEATURES)(z), 1.0).to_event(1), obs=x[:, :1]
            )

    return Case(observing, guide, (data(),), "broadcast")


def latent_of_one_column() -> Case:
    """One latent in the guide, three in the model."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(FEATURES), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", 0.5 * x[:, :1])
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return Case(model, guide, (data(),), "latent-shape")


def size_factors_in_a_row() -> Case:
    """As many features as data, so that a size factor for each datum fits the features."""
    x = (20 * torch.rand(FEATURES, FEATURES, generator=torch.Generator().manual_seed(1))).round()
    vae = build_vae(NegativeBinomialLikelihood(FEATURES))
    context = Context(size_factor=torch.tensor([1.0, 2.0, 3.0]))
    return Case(vae.model, vae.guide, (x, context), "context-shape")


def detached_encoder() -> Case:
    """No gradient reaches the encoder."""
    return spoilt(
        "no-gradient",
        posterior=lambda h: dist.Normal(h[:, :2].detach(), h[:, 2:].detach().exp()).to_event(1),
    )


def unused_parameter() -> Case:
    """A parameter that enters nothing."""
    model, guide = vae_program()

    def with_scale(x: Tensor, beta: float = 1.0) -> None:
        pyro.param("log_scale", torch.zeros(()))
        model(x, beta)

    return Case(with_scale, guide, (data(),), "no-gradient")


def module_never_registered() -> Case:
    """The decoder is used and SVI never hears of it."""
    return spoilt("not-registered", register=(False, True))


def modules_of_one_name() -> Case:
    """The model's module gets the guide's parameters of the same name."""
    return spoilt(
        "shared-parameter", names=("net", "net"), features=2 * LATENTS, x=torch.rand(NUM, 4)
    )


def store_of_another_model() -> Case:
    """An earlier model of the same name has left its parameters in the store."""
    build_vae().model(data())
    vae = build_vae()
    return Case(vae.model, vae.guide, (data(),), "shared-parameter")


def pair_of_two_models() -> Case:
    """The model of one BetaVAE and the guide of another, under one name."""
    return Case(build_vae().model, build_vae().guide, (data(),), "shared-parameter")


def parameters_of_one_name() -> Case:
    """The guide's location and the model's are one tensor."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample(
                "x", dist.Normal(z[:, None], 1.0).expand([len(x), FEATURES]).to_event(1), obs=x
            )

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    return Case(model, guide, (data(),), "shared-parameter")


def counts_under_bernoulli() -> Case:
    """Values above 1 under a Bernoulli likelihood."""
    return spoilt(
        "outside-support",
        (9 * data()).round(),
        likelihood=lambda loc: dist.Bernoulli(logits=loc).to_event(1),
    )


def greys_under_poisson() -> Case:
    """Fractions under a likelihood of counts."""
    return spoilt("outside-support", likelihood=lambda loc: dist.Poisson(loc.exp()).to_event(1))


def normal_guide_of_a_positive_latent() -> Case:
    """The guide draws where the prior has no density."""
    return spoilt(
        "outside-support", prior=lambda n: dist.Exponential(torch.ones(LATENTS)).to_event(1)
    )


def event_dims_that_differ() -> Case:
    """One event of all data in the guide, one a datum in the model."""
    model, _ = vae_program()

    def guide(x: Tensor, beta: float = 1.0) -> None:
        with beta_scale(beta):
            pyro.sample(
                "z", dist.Normal(pyro.param("loc", torch.zeros(len(x), LATENTS)), 1.0).to_event(2)
            )

    return Case(model, guide, (data(),), "latent-shape")


def latent_sizes_that_differ() -> Case:
    """Two latents in the model, four in the guide."""
    return spoilt("latent-shape", posterior=lambda h: dist.Normal(h, 1.0).to_event(1))


def scale_of_zero() -> Case:
    """A likelihood that has collapsed to a point."""
    return spoilt(
        "not-finite", likelihood=lambda loc: dist.Normal(loc, 0.0, validate_args=False).to_event(1)
    )


def column_against_row() -> Case:
    """Values (N, 1) under a distribution of (N,) broadcast to (N, N)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, :1])

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    return Case(model, guide, (data(),), "value-shape")


def model_that_stops() -> Case:
    """A defect of the program's own."""
    return spoilt(
        "does-not-run", likelihood=lambda loc: dist.Normal(loc @ torch.ones(7, 7), 1.0).to_event(1)
    )


# -- sound programs
# --------------------------------------------------------------------------------------------------


def subsampled(
    guide_full: int = NUM,
    guide_name: str = "data",
    pick: Callable[[Tensor, Tensor], Tensor] = lambda x, index: x[index],
    scale: float = 1.0,
) -> Case:
    """A plate over all the data that takes a part of them at a time."""
    decoder, encoder = linear(LATENTS, FEATURES), linear(FEATURES, 2 * LATENTS)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with (
            pyro.plate("data", NUM, subsample_size=BATCH, dim=-1) as index,
            poutine.scale(scale=scale),
        ):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=pick(x, index))

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with (
            pyro.plate(guide_name, guide_full, subsample_size=BATCH, dim=-1) as index,
            poutine.scale(scale=scale),
        ):
            loc, log_scale = encoder(x[index % NUM]).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Case(model, guide, (data(),))


def minibatch_from_a_loader() -> Case:
    """The plate is told the number of all data and given a part."""
    decoder, encoder = linear(LATENTS, FEATURES), linear(FEATURES, LATENTS)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", 1000, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", 1000, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    return Case(model, guide, (data(),))


def hand_written() -> Case:
    """The β-VAE that the mistakes are planted in."""
    return Case(*vae_program(), (data(),), kwargs={"beta": 4.0})


def hierarchy() -> Case:
    """A global latent, a latent a group and one a datum."""

    def model(x: Tensor) -> None:
        top = pyro.sample("top", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            high = pyro.sample("high", dist.Normal(top, 1.0))
            low = pyro.sample(
                "low", dist.Normal(high[:, None].expand(-1, FEATURES), 1.0).to_event(1)
            )
            pyro.sample("x", dist.Normal(low, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("top", dist.Normal(pyro.param("top_loc", torch.zeros(())), 1.0))
        loc = pyro.param("loc", torch.zeros(len(x)))
        with pyro.plate("data", len(x), dim=-1):
            high = pyro.sample("high", dist.Normal(loc, 1.0))
            pyro.sample("low", dist.Normal(high[:, None] + x, 1.0).to_event(1))

    return Case(model, guide, (data(),))


def two_plates() -> Case:
    """Features as a plate of their own, and some of the entries masked on both sides."""
    seen = torch.arange(NUM * FEATURES).reshape(NUM, FEATURES) % 5 > 0

    def model(x: Tensor) -> None:
        features = pyro.plate("features", FEATURES, dim=-1)
        with features:
            loading = pyro.sample("loading", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with features, poutine.mask(mask=seen):
                pyro.sample("x", dist.Normal(z * loading, 1.0), obs=torch.where(seen, x, torch.nan))

    def guide(x: Tensor) -> None:
        with pyro.plate("features", FEATURES, dim=-1):
            pyro.sample(
                "loading", dist.Normal(pyro.param("loading_loc", torch.zeros(FEATURES)), 0.3)
            )
        loc = pyro.param("z_loc", torch.zeros(len(x), 1))
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(loc, 0.3))

    return Case(model, guide, (data(),))


def auxiliary() -> Case:
    """The guide draws its latent from a draw of its own."""
    model, _ = vae_program()

    def guide(x: Tensor, beta: float = 1.0) -> None:
        loc = pyro.param("loc", torch.zeros(LATENTS))
        with pyro.plate("data", len(x), dim=-1), beta_scale(beta):
            noise = dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1)
            base = pyro.sample("base", noise, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(loc + base, event_dim=1))

    return Case(model, guide, (data(),))


def sound_draws() -> dict[str, Callable[[], Case]]:
    """Return guides that look like the mistakes and are right."""

    def scaled(loc: Tensor, scale: Tensor) -> None:
        pyro.sample("z", dist.Delta(loc + scale * noise("a", dist.Normal(0.0, 1.0)), -scale.log()))

    def quantile(loc: Tensor, scale: Tensor) -> None:
        own = dist.Normal(loc, scale)
        z = own.icdf(noise("a", dist.Uniform(torch.zeros_like(loc), 1.0)))
        pyro.sample("z", dist.Delta(z, own.log_prob(z)))

    def in_two_steps(loc: Tensor, scale: Tensor) -> None:
        half = pyro.sample(
            "b",
            dist.Delta(scale * noise("a", dist.Normal(0.0, 1.0)), -scale.log()),
            infer={"is_auxiliary": True},
        )
        pyro.sample("z", dist.Delta(loc + half))

    def positive(loc: Tensor, scale: Tensor) -> None:
        u = loc + scale * noise("a", dist.Normal(0.0, 1.0))
        pyro.sample("z", dist.Delta(u.exp(), -scale.log() - u))

    def log_normal(loc: Tensor, scale: Tensor) -> None:
        pyro.sample("z", dist.LogNormal(loc, scale))

    def narrow(loc: Tensor, scale: Tensor) -> None:
        pyro.sample("z", dist.Normal(loc, 1e-4 * scale))

    exponential = dist.Exponential(1.0)
    return {
        "noise scaled, with its Jacobian": lambda: with_guide(scaled, None),
        "noise through a quantile function": lambda: with_guide(quantile, None),
        "noise mapped in two steps": lambda: with_guide(in_two_steps, None),
        "positive latent from noise": lambda: with_guide(positive, None, exponential),
        "log-normal guide of a positive latent": lambda: with_guide(log_normal, None, exponential),
        "narrow guide": lambda: with_guide(narrow, None),
        "reverse model of the noise": reverse_model,
        "conditioned latent that is not drawn": lambda: two_latents(
            False, None, functools.partial(poutine.condition, data={"z2": torch.full((NUM,), 3.0)})
        ),
        "conditioned on one number": lambda: two_latents(
            False, None, functools.partial(poutine.condition, data={"z2": torch.tensor(3.0)})
        ),
        "two latents, both drawn": lambda: two_latents(True, None, lambda model: model),
        "column under a plate of columns": column_of_plates,
    }


def reverse_model() -> Case:
    """The model draws the guide's intermediate from the latent: a latent itself (Ranganath et al.

    2016).
    """
    case = random_intermediate()._replace(code=None)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("a", dist.Normal(z, 0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return case._replace(model=model)


def easy_guide() -> Case:
    """Pyro's guide of a group of sites, by one vector."""

    class Grouped(EasyGuide):
        def guide(self, x: Tensor) -> None:
            group = self.group(match=".*")
            with self.plate("data", len(x), subsample_size=len(x), dim=-1):
                loc = pyro.param("loc", lambda: torch.zeros(len(x), *group.event_shape))
                log_scale = pyro.param(
                    "log_scale", lambda: torch.full((len(x), *group.event_shape), -2.0)
                )
                group.sample("all", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Case(per_datum, Grouped(per_datum), (data(),))


def column_of_plates() -> Case:
    """Values (N, 1) where the distribution is so too."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, :1])

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(len(x), 1))
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(loc, 1.0))

    return Case(model, guide, (data(),))


def per_datum(beta_free: Tensor) -> None:
    """A model without β, for autoguides."""
    with pyro.plate("data", len(beta_free), dim=-1):
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        z = pyro.sample("z", dist.Normal(torch.zeros(FEATURES), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, scale[:, None]).to_event(1), obs=beta_free)


@config_enumerate
def clusters(x: Tensor) -> None:
    """A discrete latent that is summed out, in no need of a guide."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("clusters", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        which = pyro.sample("which", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[which], 1.0), obs=x)


def chain() -> Case:
    """A site a time step, in a loop."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = torch.zeros(len(x))
            for step in range(x.shape[1]):
                z = pyro.sample(f"z_{step}", dist.Normal(z, 1.0))
                pyro.sample(f"x_{step}", dist.Normal(z, 1.0), obs=x[:, step])

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            for step in range(x.shape[1]):
                pyro.sample(f"z_{step}", dist.Normal(x[:, step], scale))

    return Case(model, guide, (data(),))


def one_by_one() -> Case:
    """A plate as a loop over a part of the data."""

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        for index in pyro.plate("data", len(x), subsample_size=BATCH):
            pyro.sample(f"x_{index}", dist.Normal(loc, 1.0), obs=x[index, 0])

    def guide(x: Tensor) -> None:
        pyro.sample("loc", dist.Normal(pyro.param("mean", torch.zeros(())), 1.0))

    return Case(model, guide, (data(),))


def trained() -> Case:
    """Steps of plain SVI have been taken."""
    case = hand_written()
    svi = SVI(case.model, case.guide, Adam({"lr": 1e-3}), Trace_ELBO())
    svi.step(*case.args, beta=4.0)
    return case


def build_vae(
    likelihood: nn.Module | None = None, outputs: int = FEATURES, **parts: Any
) -> BetaVAE:
    """Return a small BetaVAE."""
    prior = parts.pop("prior", None) or NormalPrior(LATENTS)
    covariates = parts.pop("num_covariates", 0)
    decoder = MLP(LATENTS + covariates, outputs, hidden=(8,))
    encoder = parts.pop("encoder", None) or NormalPosterior(
        MLP(FEATURES + covariates, 2 * LATENTS, hidden=(8,)), num_covariates=covariates
    )
    likelihood = likelihood or BernoulliLikelihood()
    return BetaVAE(prior, Decoder(decoder, likelihood, num_covariates=covariates), encoder, **parts)


def pair(vae: BetaVAE, *args: Any, **kwargs: Any) -> Case:
    """Return the program of a BetaVAE."""
    return Case(vae.model, vae.guide, args, None, kwargs)


def example() -> Case:
    """The example of a program that knows nothing of this package."""
    specification = importlib.util.spec_from_file_location("any_pyro_program", EXAMPLE)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return Case(module.model, module.guide, (data().double(),))


def with_context() -> Case:
    """Counts with size factors and covariates."""
    counts = (20 * data()).round()
    context = Context(
        size_factor=torch.ones(NUM, 1), covariates=torch.eye(2)[torch.arange(NUM) % 2]
    )
    return pair(
        build_vae(NegativeBinomialLikelihood(FEATURES), num_covariates=2), counts, context, beta=0.5
    )


MISTAKES: dict[str, Callable[[], Case]] = {
    function.__name__.replace("_", " "): function
    for function in (
        beta_in_the_model_only,
        beta_in_the_guide_only,
        beta_squared_in_the_guide,
        fixed_beta_on_both_sides,
        beta_on_everything,
        beta_ignored,
        beta_with_an_autoguide,
        mask_in_the_model_only,
        prior_without_to_event,
        likelihood_without_to_event,
        latent_without_to_event_or_plate,
        plate_of_another_size,
        plate_of_another_size_without_shapes_in_the_way,
        plates_of_two_sizes,
        plates_of_two_names,
        subsample_never_used,
        subsample_not_indexed,
        subsample_scaled_by_hand,
        latent_missing_from_the_guide,
        latent_misspelt_in_the_guide,
        observed_site_drawn_by_the_guide,
        observed_site_in_the_guide,
        auxiliary_noise_beside_the_latent,
        random_intermediate,
        more_noise_than_latents,
        folded_noise,
        noise_outside_of_sample,
        jacobian_forgotten,
        jacobian_of_the_wrong_sign,
        latents_at_points,
        auto_delta,
        masked_point,
        point_of_a_tiny_scale,
        deterministic_latent,
        whole_numbers_for_a_real_latent,
        conditioned_latent_that_is_drawn,
        normal_guide_of_a_fraction,
        count_of_the_last_datum,
        one_column_for_three,
        latent_of_one_column,
        size_factors_in_a_row,
        detached_encoder,
        unused_parameter,
        module_never_registered,
        modules_of_one_name,
        store_of_another_model,
        pair_of_two_models,
        parameters_of_one_name,
        counts_under_bernoulli,
        greys_under_poisson,
        normal_guide_of_a_positive_latent,
        event_dims_that_differ,
        latent_sizes_that_differ,
        scale_of_zero,
        column_against_row,
        model_that_stops,
    )
}

SOUND: dict[str, Callable[[], Case]] = {
    "BetaVAE": lambda: pair(build_vae(), data()),
    "BetaVAE, beta 0": lambda: pair(build_vae(), data(), beta=0.0),
    "BetaVAE, beta 0.5": lambda: pair(build_vae(), data(), beta=0.5),
    "BetaVAE, beta 4 by place": lambda: pair(build_vae(), data(), None, 4.0),
    "BetaVAE, beta a tensor": lambda: pair(build_vae(), data(), beta=torch.tensor(4.0)),
    "BetaVAE, normal likelihood": lambda: pair(build_vae(NormalLikelihood()), data() - 3),
    "BetaVAE, missing entries": lambda: pair(
        build_vae(missing=True), data().masked_fill(data() < 0.2, torch.nan)
    ),
    "BetaVAE, counts and context": with_context,
    "BetaVAE, mixture prior": lambda: pair(
        build_vae(prior=MixturePrior(LATENTS, 4)), data(), beta=4.0
    ),
    "BetaVAE, flow guide": lambda: pair(
        build_vae(
            encoder=FlowPosterior(MLP(FEATURES, 2 * LATENTS + 16, hidden=(8,)), latent_dim=LATENTS)
        ),
        data(),
    ),
    "example, any Pyro program": example,
    "hand-written": hand_written,
    "hand-written, no beta": lambda: Case(*vae_program(), (data(),)),
    "subsampled": subsampled,
    "minibatch from a loader": minibatch_from_a_loader,
    "hierarchy": hierarchy,
    "two plates and a mask": two_plates,
    "auxiliary site": auxiliary,
    "AutoNormal": lambda: Case(per_datum, AutoNormal(per_datum), (data(),)),
    "enumerated clusters": lambda: Case(
        clusters, AutoNormal(poutine.block(clusters, hide=["which"])), (data()[:, 0],)
    ),
    "chain": chain,
    "one by one": one_by_one,
    "trained": trained,
    "AutoDiagonalNormal": lambda: Case(per_datum, AutoDiagonalNormal(per_datum), (data(),)),
    "AutoMultivariateNormal": lambda: Case(per_datum, AutoMultivariateNormal(per_datum), (data(),)),
    "AutoLowRankMultivariateNormal": lambda: Case(
        per_datum, AutoLowRankMultivariateNormal(per_datum), (data(),)
    ),
    "AutoIAFNormal": lambda: Case(per_datum, AutoIAFNormal(per_datum), (data(),)),
    "easy guide": easy_guide,
    **sound_draws(),
}


def run(build: Callable[[], Case]) -> tuple[Case, Audit]:
    """Build a program in an empty store and audit it."""
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        torch.manual_seed(0)
        case = build()
        return case, audit(case.model, case.guide, *case.args, **(case.kwargs or {}))


def rows() -> Iterator[dict[str, str]]:
    """Audit every program."""
    for name, build in {**MISTAKES, **SOUND}.items():
        case, result = run(build)
        codes = [finding.code for finding in result.findings]
        right = case.code in codes if case.code else not codes
        yield {
            "program": name,
            "planted": case.code or "",
            "found": " ".join(dict.fromkeys(codes)),
            "right": "yes" if right else "no",
        }


def main() -> None:
    """Write and print the table."""
    table = list(rows())
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    for row in table:
        print(f"{row['program']:<50}{row['planted']:<24}{row['right']:<5}{row['found']}")
    result = sum(row["right"] == "yes" for row in table[: len(MISTAKES)])
    alarms = sum(row["right"] == "no" for row in table[len(MISTAKES) :])
    print(
        f"{result} of {len(MISTAKES)} mistakes found, {alarms} false alarms in {len(SOUND)} sound "
        f"programs"
    )


if __name__ == "__main__":
    main()
