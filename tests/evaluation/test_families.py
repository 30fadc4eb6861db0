"""Local guides of richer families, and what the inference gaps make of them."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_bvae import inference_gaps
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation import Estimate, InferenceGaps
from pyro_bvae.evaluation.gaps import blocks as gap_blocks
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.evaluation.refit.joint_guides import FAMILIES, JointLocalGuide
from pyro_bvae.evaluation.refit.local_guides import local_guide_of
from pyro_bvae.evaluation.refit.optimisation import certify, is_better, refit
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.program.densities import LatentValues
from pyro_bvae.program.program import open_program

Pair = tuple[Callable[..., None], Callable[..., None]]
one = torch.ones((), dtype=torch.double)

QUICK = RefitSettings(
    num_particles=8, steps_per_round=25, max_rounds=10, num_plateaus=3, check_particles=64
)
# A few steps: far from an optimum, where nothing needs to be near one.
HASTY = RefitSettings(
    num_particles=4, steps_per_round=5, max_rounds=2, check_particles=16, certified_gain=10.0
)


@pytest.fixture
def linear() -> LinearGaussian:
    weight = [[1.0, 0.4, 0.1], [0.2, 1.0, -0.5], [0.6, 0.3, 0.8], [0.2, -0.4, 0.5], [0.5, 0.5, 0.5]]
    return LinearGaussian(torch.tensor(weight), 0.6)


SIGMA = 0.5


def drifting(x: Tensor) -> None:
    """A level of each datum and three values around it, in two sites, one of them in a plate of its
    own."""
    with pyro.plate("cells", len(x), dim=-2):
        level = pyro.sample("level", dist.Normal(0 * one, 1.0))
        with pyro.plate("times", 3, dim=-1):
            drift = pyro.sample("drift", dist.Normal(level, 1.0))
            pyro.sample("seen", dist.Normal(drift, SIGMA), obs=x)


def guide_of_drifting(x: Tensor) -> None:
    with pyro.plate("cells", len(x), dim=-2):
        with pyro.plate("times", 3, dim=-1):
            pyro.sample("drift", dist.Normal(0.8 * x, 0.5))
        pyro.sample("level", dist.Normal(0.5 * x.mean(-1, keepdim=True), 0.6))


def evidence_of_drifting(x: Tensor) -> Tensor:
    covariance = torch.ones(3, 3, dtype=torch.double) + (1 + SIGMA**2) * torch.eye(3)
    return dist.MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(x)


def approximation_of_drifting() -> float:
    """The gap of the best product of normals to a normal.

    Half of ``sum log P_ii - log det P`` of its precision.
    """
    precision = torch.diag(torch.tensor([4.0, *3 * [1 + 1 / SIGMA**2]], dtype=torch.double))
    precision[0, 1:] = precision[1:, 0] = -1.0
    return 0.5 * float(precision.diagonal().log().sum() - torch.logdet(precision))


def counts(x: Tensor) -> None:
    with pyro.plate("days", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2 * one, 0.5))
        pyro.sample("visits", dist.Poisson(rate), obs=x)


def guide_of_counts(x: Tensor) -> None:
    with pyro.plate("days", len(x)):
        pyro.sample("rate", dist.LogNormal(((x + 1.5) / 1.5).log(), 0.8 * (x + 1.5).rsqrt()))


class LocalCounts(nn.Module):
    """The log-normal family with parameters for each datum."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(((x + 1.5) / 1.5).log())
        self.log_scale = nn.Parameter((0.8 * (x + 1.5).rsqrt()).log())

    def forward(self, x: Tensor) -> None:
        with pyro.plate("days", len(x)):
            pyro.sample("rate", dist.LogNormal(self.loc, self.log_scale.exp()))


# -- held to closed forms
# -----------------------------------------------------------------------------------------


def test_the_full_rank_family_closes_the_gap_of_a_correlated_normal(linear: LinearGaussian) -> None:
    x = linear.sample(20)
    vae = linear.amortized_vae(mean_factor=0.9, scale_factor=1.2)
    with torch.no_grad():
        guide = vae.encoder(x)
    exact = linear.gaps(x, guide.mean, guide.stddev)
    assert float(exact.approximation.mean()) > 0.2
    gaps = inference_gaps(
        vae.model,
        vae.guide,
        x,
        num_samples=1000,
        settings=replace(QUICK, families=("full-rank", "flow")),
    )
    for name in ("variational", "approximation", "amortization"):
        estimate, truth = getattr(gaps, name), float(getattr(exact, name).mean())
        assert abs(estimate.value - truth) < 3 * estimate.monte_carlo_error + 0.005 < 0.04, name
    assert list(gaps.families) == ["full-rank", "flow"] and list(gaps.elbos) == [
        "guide",
        "full-rank",
        "flow",
    ]
    for name, left in gaps.families.items():  # both contain the posterior
        assert abs(left.value) < 3 * left.monte_carlo_error + 0.005 < 0.03, name
        assert torch.allclose(left.per_datum, gaps.evidence.per_datum - gaps.elbos[name].per_datum)
    assert torch.allclose(
        gaps.approximation.per_datum, gaps.evidence.per_datum - gaps.elbos["guide"].per_datum
    )
    closed = gaps.approximation.value - gaps.families["full-rank"].value
    assert f"a full-rank guide would close {closed:.2f} nats of it" in gaps.verdict
    assert "full-rank" in str(gaps) and "flow" in str(gaps)
    assert (
        gaps.evidence.trusted and abs(gaps.evidence.value - float(linear.evidence(x).mean())) < 0.02
    )
    # A family is fitted to the ELBO from where the guide's own ended, whatever the guide was
    # trained with.
    assert gaps.cost > 20 * (gaps.steps * QUICK.num_particles + 4 * 1000)


def test_a_joint_family_knows_how_sites_depend_on_each_other() -> None:
    with pyro.poutine.block():
        covariance = torch.ones(3, 3, dtype=torch.double) + (1 + SIGMA**2) * torch.eye(3)
        x = dist.MultivariateNormal(torch.zeros(3).double(), covariance).sample((16,))
    gaps = inference_gaps(
        drifting,
        guide_of_drifting,
        x,
        training_beta=2.0,
        num_samples=1000,
        settings=replace(QUICK, families=("full-rank",)),
    )
    assert (
        abs(gaps.evidence.value - float(evidence_of_drifting(x).mean()))
        < 4 * gaps.evidence.monte_carlo_error
        < 0.05
    )
    exact = approximation_of_drifting()
    assert exact > 0.05
    assert (
        abs(gaps.approximation.value - exact)
        < 3 * gaps.approximation.monte_carlo_error + 0.005
        < 0.03
    )
    left = gaps.families["full-rank"]
    assert abs(left.value) < 3 * left.monte_carlo_error + 0.005 < 0.03


def test_families_of_positive_latents_bend_in_the_logarithm() -> None:
    """The full-rank family of one positive latent is the log-normal itself.

    The flow skews it towards the posterior.
    """
    x = torch.tensor([0.0, 1.0, 2.0, 5.0, 11.0], dtype=torch.double)
    exact = dist.GammaPoisson(2 * one, 0.5).log_prob(x)
    gaps = inference_gaps(
        counts, guide_of_counts, x,
        num_samples=2000,
        settings=replace(QUICK, local_guide=LocalCounts, families=("full-rank", "flow")),
    )  # fmt: skip
    assert (
        abs(gaps.evidence.value - float(exact.mean())) < 4 * gaps.evidence.monte_carlo_error < 0.02
    )
    # By quadrature: the best log-normal of each gamma posterior, Gamma(2 + x, 1.5).
    best = exact.mean() - log_normal_bound(x).mean()
    own, joint, bent = gaps.approximation, gaps.families["full-rank"], gaps.families["flow"]
    for gap in (own, joint):
        assert abs(gap.value - float(best)) < 3 * gap.monte_carlo_error + 0.003
    assert -3 * bent.monte_carlo_error < bent.value < 0.5 * float(best)


def log_normal_bound(x: Tensor) -> Tensor:
    """The ELBO of the best log-normal, whose moments are closed forms.

    E log r = m, E r = exp(m + s²/2).
    """
    grid_loc = ((x + 2) / 1.5).log()[:, None, None] + torch.linspace(
        -0.6, 0.2, 161, dtype=torch.double
    )[:, None]
    grid_scale = (x + 2).rsqrt()[:, None, None] * torch.linspace(0.6, 1.4, 161, dtype=torch.double)
    mean = (grid_loc + grid_scale.square() / 2).exp()
    entropy = grid_loc + grid_scale.log() + 0.5 * math.log(2 * math.pi * math.e)
    counted = x[:, None, None]
    joint = (
        counted * grid_loc
        - mean
        - torch.lgamma(counted + 1)
        + 2 * math.log(0.5)
        + grid_loc
        - 0.5 * mean
    )
    return (joint + entropy).flatten(1).amax(1)


# -- the joint local guide
# ----------------------------------------------------------------------------------------


def moved(guide: JointLocalGuide, size: float = 0.05) -> JointLocalGuide:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(
                size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            )
    return guide


def drifting_data() -> Tensor:
    return torch.linspace(-1.5, 1.5, 12, dtype=torch.double).reshape(4, 3)


PROGRAMS: dict[str, tuple[Pair, Tensor]] = {
    "two sites, an inner plate": ((drifting, guide_of_drifting), drifting_data()),
    "a positive latent": (
        (counts, guide_of_counts),
        torch.tensor([0.0, 2.0, 7.0], dtype=torch.double),
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", PROGRAMS)
@torch.no_grad()
def test_a_joint_guide_has_the_density_of_its_own_draws(name: str, family: str) -> None:
    (model, guide), x = PROGRAMS[name]
    with open_program(model, guide, (x,)) as program:
        joint = moved(JointLocalGuide(program, (x,), FAMILIES[family], guide))
        values, densities, _ = program.draw(50, (x,), joint)
        latents = {key: values[key] for key in program.latents}
        assert torch.allclose(joint.log_density(latents), densities.guide)
        assert torch.allclose(program.log_guide(latents, (x,), joint), densities.guide)
        # It integrates to one over the latents themselves, weighed by draws of the prior.
        prior = program.draw(40_000, (x,), model)
        ratios = (joint.log_density(prior.values) - prior.densities.latent).exp()
    error = ratios.std(0) / 200
    assert error.max() < 0.05 and bool(((ratios.mean(0) - 1).abs() < 4.5 * error).all())


@torch.no_grad()
def test_families_start_exactly_where_the_one_before_ended(linear: LinearGaussian) -> None:
    x = linear.sample(6)
    vae = linear.amortized_vae(mean_factor=0.8, scale_factor=1.3)
    with open_program(vae.model, vae.guide, (x,)) as program:
        diagonal = local_guide_of(program, (x,))
        for parameter in diagonal.parameters():
            parameter.add_(0.3)
        z: LatentValues = {"z": torch.randn(50, 6, 3, dtype=torch.double)}
        own = program.log_guide(z, (x,), diagonal)
        for family in FAMILIES.values():
            assert torch.allclose(
                JointLocalGuide(program, (x,), family, diagonal).log_density(z), own
            )
        full_rank = moved(JointLocalGuide(program, (x,), FAMILIES["full-rank"], diagonal), 0.5)
        assert not torch.allclose(full_rank.log_density(z), own)
        flow = JointLocalGuide(program, (x,), FAMILIES["flow"], full_rank)
        assert torch.allclose(flow.log_density(z), full_rank.log_density(z))


@torch.no_grad()
def test_families_start_at_the_moments_of_any_other_guide() -> None:
    x = torch.tensor([0.0, 2.0, 7.0], dtype=torch.double).repeat(
        3000
    )  # more than are drawn at once
    rows = []

    def model(x: Tensor) -> None:
        with pyro.plate("days", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2 * one, 0.5))
            rows.append(rate.numel())
            pyro.sample("visits", dist.Poisson(rate), obs=x)

    with open_program(model, guide_of_counts, (x,)) as program:
        rows.clear()
        few = tuple(part[:300] for part in program.args)
        joint = JointLocalGuide(program, few, FAMILIES["full-rank"], guide_of_counts)
    assert max(rows) <= 8192  # memory does not grow with the draws behind the moments
    normal = joint.posterior()
    loc, scale = ((few[0] + 1.5) / 1.5).log(), 0.8 * (few[0] + 1.5).rsqrt()
    assert ((normal.mean[:, 0] - loc).abs() < 5 * scale / math.sqrt(1000)).all()
    assert ((normal.scale_tril[:, 0, 0] / scale).log().abs() < 5 / math.sqrt(2000)).all()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_joint_guide_draws_one_particle_at_a_time(family: str) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.double), 1.0).to_event(1))
            s = pyro.sample("s", dist.LogNormal(0 * one, 0.3))
            pyro.sample("x", dist.Normal(z.reshape(len(x), 2), s.unsqueeze(-1)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("s", dist.LogNormal(0 * one, 0.3))
            pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))

    x = torch.randn(5, 2, dtype=torch.double)
    with (
        pytest.warns(UserWarning, match="run one particle at a time"),
        open_program(model, guide, (x,)) as program,
    ):
        joint = JointLocalGuide(program, (x,), FAMILIES[family], guide)
        values, densities, _ = program.draw(7, (x,), joint)
        assert densities.guide.shape == (7, 5)
        assert values["z"].shape == (7, 5, 2) and values["s"].shape == (7, 5)
        assert torch.allclose(program.log_guide(values, (x,), joint), densities.guide)


def test_no_family_ends_below_the_one_before(linear: LinearGaussian) -> None:
    """However wild the steps: a datum then keeps what it had."""
    x = linear.sample(12)
    vae = linear.amortized_vae(mean_factor=0.9)
    wild = replace(HASTY, learning_rate=1.0, check_particles=64)
    gaps = inference_gaps(
        vae.model,
        vae.guide,
        x,
        num_samples=2000,
        settings=replace(wild, families=("full-rank", "flow")),
    )
    bounds = [gaps.elbo, gaps.elbos["guide"], gaps.elbos["full-rank"], gaps.elbos["flow"]]
    for before, after in itertools.pairwise(bounds):
        assert after.value > before.value - 3 * math.hypot(
            before.monte_carlo_error, after.monte_carlo_error
        )
    assert gaps.variational.value < 1.0


def test_a_family_that_many_draws_find_worse_is_not_taken(
    linear: LinearGaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refit judges itself on few draws.

    The bounds are measured with many, and have the last word.
    """

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        result = refit(*args, **kwargs)
        if isinstance(result.guide, JointLocalGuide):
            moved(result.guide, 1.0)
        return result

    monkeypatch.setattr(gap_blocks, "refit", spoilt)
    x, vae = linear.sample(8), linear.amortized_vae(mean_factor=0.9)
    gaps = inference_gaps(
        vae.model, vae.guide, x, num_samples=500, settings=replace(HASTY, families=("full-rank",))
    )
    assert torch.equal(gaps.elbos["full-rank"].per_datum, gaps.elbos["guide"].per_datum)
    assert torch.allclose(gaps.families["full-rank"].per_datum, gaps.approximation.per_datum)


# -- what a refit promises
# ----------------------------------------------------------------------------------------


STILL = RefitSettings(
    learning_rate=1e-9, max_rounds=1, steps_per_round=1, num_particles=8, num_starts=0
)


@pytest.mark.parametrize(
    ("spoilt", "certified"), [((1.0, 1.0), 1.0), ((0.97, 1.1), None), ((0.3, 3.0), 0.0)]
)
def test_a_certificate_is_the_truth(
    linear: LinearGaussian, spoilt: tuple[float, float], certified: float
) -> None:
    """Of descents that never got off the ground.

    A perfect start is certified, one far off is not.
    """
    x = linear.sample(25)
    vae = linear.amortized_vae(1.0, *spoilt)
    with open_program(vae.model, vae.guide, (x,)) as program:
        result = refit(program, (x,), 1.0, STILL, seed=0)
        with torch.no_grad():
            loc, scale = result.guide.normal_parameters()["z"]
    missing = linear.elbo(x, *linear.best_diagonal(x)) - linear.elbo(x, loc, scale)
    assert float(missing[result.certified].max() if result.certified.any() else 0.0) < 0.02
    if certified is not None:
        assert float(result.certified.double().mean()) == certified


def test_a_certificate_sees_most_of_what_is_missing(linear: LinearGaussian) -> None:
    """One step along the gradient gains no more than there is, and a good part of it."""
    x = linear.sample(15)
    vae = linear.amortized_vae(1.0, 0.9, 1.25)
    with torch.no_grad():
        guide = vae.encoder(x)
    missing = linear.gaps(x, guide.mean, guide.stddev).amortization
    assert float(missing.min()) > 0.02
    with open_program(vae.model, vae.guide, (x,)) as program:
        result = certify(program, (x,), local_guide_of(program, (x,)), 1.0, STILL, seed=0, looks=8)
    assert bool((result.gain - 3 * result.error <= missing).all())
    assert float((result.gain / missing).mean()) > 0.3


def test_a_guide_that_a_few_draws_have_lost_is_worse() -> None:
    """They make the error of the mean as large as the mean: within two errors of anything."""
    start = torch.randn(128, 3, dtype=torch.double)
    other = start - torch.tensor([0.0, 1.0, 0.0], dtype=torch.double)
    other[7, 2] = -1e30
    assert is_better(start, other).tolist() == [False, True, True]
    assert is_better(other, start).tolist() == [False, False, False]
    other[8, 0] = math.nan
    assert is_better(start, other)[0] and not is_better(other, start)[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_particles": 0}, "'num_particles' must be an integer from 1, got 0"),
        ({"steps_per_round": 2.5}, "'steps_per_round' must be an integer from 1, got 2.5"),
        ({"max_rounds": True}, "'max_rounds' must be an integer from 1, got True"),
        ({"check_particles": 1}, "'check_particles' must be an integer from 2, got 1"),
        ({"learning_rate": 0.0}, "'learning_rate' must be positive, got 0.0"),
        ({"certified_gain": math.nan}, "'certified_gain' must be positive, got nan"),
        ({"decay": 1.5}, "'decay' must be above 0 and at most 1, got 1.5"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RefitSettings(**settings)


class VonMisesAngles(nn.Module):
    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(x.clone())

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("angle", dist.VonMises(self.loc, 4.0))


class Stuck(dist.Normal):
    has_rsample = False


class StuckAngles(VonMisesAngles):
    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("angle", Stuck(self.loc, 0.5))


@pytest.mark.parametrize(
    ("local_guide", "family"), [(VonMisesAngles, "VonMises"), (StuckAngles, "Stuck")]
)
def test_a_site_without_a_reparametrised_draw_is_refused_by_name(
    local_guide: Any, family: str
) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            angle = pyro.sample("angle", dist.VonMises(0 * one, 1.0))
            pyro.sample("x", dist.VonMises(angle, 2.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("angle", dist.VonMises(0.7 * x, 3.0))

    x = torch.linspace(-1, 1, 4, dtype=torch.double)
    message = f"guide site 'angle' of family {family} has no reparametrised draw"
    with pytest.raises(InputError, match=message):
        settings = RefitSettings(local_guide=local_guide)
        inference_gaps(model, guide, x, settings=settings, num_samples=10)
    with pytest.raises(
        InputError, match="guide site 'angle' of family VonMises needs 'local_guide'"
    ):
        inference_gaps(model, guide, x, num_samples=10)


def test_thousands_of_data_are_refitted_at_once() -> None:
    linear = LinearGaussian(torch.tensor([[1.0, 0.4], [0.2, 1.0], [0.6, 0.3]]), 0.7)
    x = linear.sample(2000)
    vae = linear.amortized_vae(mean_factor=0.9, scale_factor=1.15)
    settings = RefitSettings(
        num_particles=4, steps_per_round=15, max_rounds=3, check_particles=16, certified_gain=0.2
    )
    gaps = inference_gaps(
        vae.model, vae.guide, x, num_samples=50, settings=replace(settings, families=("full-rank",))
    )
    with torch.no_grad():
        guide = vae.encoder(x)
    exact = linear.gaps(x, guide.mean, guide.stddev)
    for name in ("variational", "approximation", "amortization"):
        estimate, truth = getattr(gaps, name), float(getattr(exact, name).mean())
        assert estimate.per_datum.shape == (2000,)
        assert abs(estimate.value - truth) < 0.01 + 3 * estimate.monte_carlo_error, name
    assert gaps.certified.shape == (2000,) and float(gaps.certified.double().mean()) > 0.8
    assert abs(gaps.families["full-rank"].value) < 0.03 < float(exact.approximation.mean())


# -- what is measured beside
# --------------------------------------------------------------------------------------


def test_the_generalization_gap_is_a_difference_of_amortization_gaps(
    linear: LinearGaussian,
) -> None:
    x = linear.sample(30)
    seen = 0.2 * linear.sample(
        40, seed=1
    )  # an encoder with shrunken means is better near the origin
    vae = linear.amortized_vae(mean_factor=0.7)
    gaps = inference_gaps(
        vae.model,
        vae.guide,
        x,
        train=(seen,),
        num_samples=1000,
        settings=replace(QUICK, families=("full-rank",)),
    )
    part, train = gaps.generalization, gaps.train
    assert part.value == pytest.approx(gaps.amortization.value - train.amortization.value)
    for error in ("standard_error", "monte_carlo_error"):
        assert getattr(part, error) == pytest.approx(
            math.hypot(getattr(gaps.amortization, error), getattr(train.amortization, error))
        )
    assert train.amortization.per_datum.shape == (40,) and part.per_datum.shape == (30,)
    assert train.families == {} and train.train is None
    with torch.no_grad():
        exact = [
            linear.gaps(data, vae.encoder(data).mean, vae.encoder(data).stddev).amortization.mean()
            for data in (x, seen)
        ]
    assert abs(part.value - float(exact[0] - exact[1])) < 3 * part.monte_carlo_error + 0.01
    assert part.value > 0.5 * gaps.amortization.value and "the encoder overfits" in gaps.verdict


def test_training_data_come_as_arguments(linear: LinearGaussian) -> None:
    vae, x = linear.amortized_vae(), linear.sample(4)
    with pytest.raises(
        InputError, match=r"'train' must be a tuple of arguments, such as \(x,\), got a Tensor"
    ):
        inference_gaps(vae.model, vae.guide, x, train=x, num_samples=10, settings=HASTY)


def test_the_evidence_may_come_from_elsewhere(linear: LinearGaussian) -> None:
    x, vae = linear.sample(10), linear.amortized_vae(mean_factor=0.9)
    options: dict[str, Any] = {
        "num_samples": 500,
        "settings": replace(HASTY, families=("full-rank",)),
        "training_beta": 2.0,
    }
    given = Estimate.over_data(linear.evidence(x), torch.full((10,), 0.2), cost=123)
    own, other = (
        inference_gaps(vae.model, vae.guide, x, evidence=part, **options) for part in (None, given)
    )
    assert other.evidence is given and other.cost == own.cost + 123
    for name, bound in (("variational", own.elbo), ("approximation", own.elbos["guide"])):
        gap = getattr(other, name)
        assert torch.allclose(gap.per_datum, linear.evidence(x) - bound.per_datum)
        assert gap.monte_carlo_error == pytest.approx(
            math.hypot(given.monte_carlo_error, bound.monte_carlo_error)
        )
    left = other.families["full-rank"]
    assert torch.allclose(left.per_datum, linear.evidence(x) - own.elbos["full-rank"].per_datum)
    for name in (
        "beta",
        "amortization",
    ):  # differences of bounds, which the evidence has no part in
        assert torch.equal(getattr(own, name).per_datum, getattr(other, name).per_datum)
    parts = other.approximation.per_datum + other.beta.per_datum + other.amortization.per_datum
    assert torch.allclose(other.variational.per_datum, parts)
    with pytest.raises(InputError, match="'evidence' must be of the same 10 data, got that of 9"):
        inference_gaps(
            vae.model, vae.guide, x, evidence=Estimate.over_data(torch.zeros(9)), **options
        )


def test_unknown_families_are_refused_with_the_nearest(linear: LinearGaussian) -> None:
    vae = linear.amortized_vae()
    with pytest.raises(
        InputError, match=r"'fullrank'.*Did you mean 'full-rank'.*Known: flow, full-rank"
    ):
        settings = RefitSettings(families=("fullrank",))
        inference_gaps(vae.model, vae.guide, linear.sample(2), settings=settings)


# -- the verdict
# --------------------------------------------------------------------------------------------------


def gaps_of(
    amortization: float,
    approximation: float,
    beta: float = 0.0,
    *,
    error: float = 0.01,
    untrusted: int = 0,
    uncertified: int = 0,
    **details: Any,
) -> InferenceGaps:
    """Gaps of ten data with given values."""

    def estimate(value: float) -> Estimate:
        return Estimate.over_data(torch.full((10,), value), torch.full((10,), error * 10**0.5))

    return InferenceGaps(
        estimate(amortization + approximation + beta),
        estimate(approximation),
        estimate(beta),
        estimate(amortization),
        evidence=Estimate.over_data(torch.zeros(10), reliable=torch.arange(10) >= untrusted),
        bound=None,  # no verdict looks at it
        training_beta=details.pop("training_beta", 1.0),
        certified=torch.arange(10) >= uncertified,
        steps=100,
        **details,
    )


def measured(value: float, standard_error: float = 0.01) -> Estimate:
    spread = standard_error * math.sqrt(10) * torch.linspace(-1, 1, 10, dtype=torch.double)
    return Estimate.over_data(value + spread)


@pytest.mark.parametrize(
    ("gaps", "words"),
    [
        (gaps_of(0.03, 0.04), "the gap is 0.07 nats: the guide is as good as it needs to be."),
        (
            gaps_of(6.1, 3.9),
            "amortization is 61% of the gap (6.10 of 10.00 nats): enlarge the encoder, or train it "
            "longer: `training.improve_guide(vae, data)`.",
        ),
        (
            gaps_of(1.0, 4.0),
            "approximation is 80% of the gap (4.00 of 5.00 nats): use a richer guide; families=",
        ),
        (
            gaps_of(0.2, 0.3, 1.5, training_beta=4.0),
            "the β gap is 75% of the gap (1.50 of 2.00 nats): the guide was trained at β = 4;",
        ),
        (
            gaps_of(-0.6, 0.2, 1.4, training_beta=4.0),
            "the β gap is more than all of the gap (1.40 of 1.00 nats)",
        ),
        (
            gaps_of(-0.6, 0.2, 1.4, training_beta=4.0),
            "The encoder lies 0.60 nats nearer to the posterior",
        ),
        (
            gaps_of(2.0, 0.5, train=gaps_of(0.5, 0.5), generalization=measured(1.5)),
            "1.50 of it is missing on the training data, so the encoder overfits",
        ),
        (
            gaps_of(2.0, 0.5, train=gaps_of(1.9, 0.5), generalization=measured(0.1)),
            "enlarge the encoder, or train it longer; it generalises (0.10 nats lost on new data)",
        ),
        (  # a difference within its errors is none
            gaps_of(
                2.0, 0.5, train=gaps_of(0.5, 0.5), generalization=measured(1.5, standard_error=2.0)
            ),
            "it generalises (1.50 nats lost on new data)",
        ),
        (
            gaps_of(0.5, 2.0, families={"full-rank": measured(0.3), "flow": measured(0.2)}),
            "a full-rank guide would close 1.70 nats of it",
        ),
        (
            gaps_of(0.5, 2.0, families={"full-rank": measured(1.9), "flow": measured(0.2)}),
            "a flow guide would close 1.80 nats of it",
        ),
        (
            gaps_of(0.5, 2.0, families={"full-rank": measured(1.9), "flow": measured(1.8)}),
            "the richest family tried would close only 0.20 nats of it",
        ),
        (
            gaps_of(2.0, 1.0, untrusted=3),
            "The evidence is untrusted for 3 of 10 data: their gap may be larger.",
        ),
        (
            gaps_of(2.0, 1.0, uncertified=4),
            "The refits of 4 of 10 data are not certified: approximation is at most the stated value",
        ),
    ],
)
def test_the_verdict_says_what_to_fix(gaps: InferenceGaps, words: str) -> None:
    assert words in gaps.verdict
    assert gaps.verdict in str(gaps)
    assert ("untrusted" in gaps.verdict) == (gaps.evidence.untrusted > 0)
    assert ("not certified" in gaps.verdict) == (not gaps.converged)


def test_what_cannot_be_seen_is_not_called_good() -> None:
    """Weights that cannot be trusted make an evidence that is too low, and the gap too small."""
    assert "as good as it needs" not in gaps_of(0.03, 0.04, untrusted=10).verdict
