"""Proposals of importance sampling.

Whatever they draw, the weights are those of the whole mixture.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_bvae import evidence, inference_gaps
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation import Estimate
from pyro_bvae.evaluation.marginal import (
    DefensiveProposal,
    GuideProposal,
    HeavyTailedProposal,
    RefitProposal,
)
from pyro_bvae.evaluation.marginal.proposals import Proposal
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.program.program import open_program

# Enough for the best diagonal guide of a program this small.
QUICK = RefitSettings(
    num_particles=8, steps_per_round=25, max_rounds=8, num_plateaus=2, check_particles=64
)
# Tails that reach as far as those of a guide that is too narrow do not.
HEAVY = HeavyTailedProposal(degrees=2.0, share=0.8)
# One that ends far from its optimum: a proposal need be no good to be right.
HASTY = RefitSettings(
    num_particles=2, steps_per_round=3, max_rounds=1, check_particles=8, certified_gain=10.0
)

PROPOSALS: dict[str, Proposal] = {
    "guide": GuideProposal(),
    "refit": RefitProposal(QUICK),
    "heavy-tailed": HeavyTailedProposal(),
    "Student-t alone": HeavyTailedProposal(degrees=3.0, share=1.0),
    "defensive": DefensiveProposal(),
    "heavy-tailed around a refit": HeavyTailedProposal(around=RefitProposal(QUICK)),
    "defended heavy tails": DefensiveProposal(around=HeavyTailedProposal()),
    "heavy tails around a defence": HeavyTailedProposal(around=DefensiveProposal()),
}
every_proposal = pytest.mark.parametrize("proposal", PROPOSALS.values(), ids=PROPOSALS.keys())


@pytest.fixture
def linear() -> LinearGaussian:
    weight = torch.tensor([[1.0, 0.4], [0.2, 1.0], [0.6, 0.3], [0.2, -0.4]])
    return LinearGaussian(weight, 0.7, torch.tensor([0.1, -0.2, 0.3, 0.0]))


def mean_weight(estimate: Estimate, exact: Tensor) -> tuple[float, float]:
    """The mean over data of what a datum's weights say of p(x), divided by p(x).

    1, and its standard error.
    """
    ratios = (estimate.per_datum - exact).exp()
    return float(ratios.mean()), float(ratios.std()) / math.sqrt(len(ratios))


# -- held to the oracle
# -------------------------------------------------------------------------------------------


@every_proposal
def test_every_proposal_finds_the_evidence(linear: LinearGaussian, proposal: Proposal) -> None:
    x = linear.sample(40)
    vae = linear.amortized_vae(mean_factor=0.95, scale_factor=1.1)
    estimate = evidence(vae.model, vae.guide, x, num_samples=2000, proposal=proposal)
    # Draws of a guide alone say nothing of the posterior just beyond the guide.
    assert estimate.trusted == (proposal != GuideProposal())
    refits = any(
        isinstance(part, RefitProposal) for part in (proposal, getattr(proposal, "around", None))
    )
    assert (estimate.cost > 40 * 2000) if refits else (estimate.cost == 40 * 2000)
    assert estimate.errors is not None
    noise = float(estimate.errors.square().sum().sqrt()) / 40
    assert 0 < noise < 0.01
    assert abs(estimate.value - float(linear.evidence(x).mean())) < 4 * noise


@every_proposal
@pytest.mark.parametrize("num_samples", [3, 7])
def test_the_mean_weight_of_a_few_draws_is_the_evidence(
    linear: LinearGaussian, proposal: Proposal, num_samples: int
) -> None:
    """The weights of a mixture are unbiased, whether or not its shares divide the number of
    draws."""
    x = linear.sample(4000)
    # The weights of a narrow guide alone have no variance.
    vae = linear.amortized_vae(
        mean_factor=0.9, scale_factor=1.1 if isinstance(proposal, GuideProposal) else 0.5
    )
    if isinstance(proposal, RefitProposal):
        x, proposal = x[:500], RefitProposal(HASTY)
    elif isinstance(getattr(proposal, "around", None), RefitProposal):
        x, proposal = x[:500], replace(proposal, around=RefitProposal(HASTY))
    estimate = evidence(vae.model, vae.guide, x, num_samples=num_samples, proposal=proposal)
    mean, error = mean_weight(estimate, linear.evidence(x))
    assert error < 0.1
    assert abs(mean - 1) < 4 * error


@pytest.mark.parametrize(
    "proposal",
    [RefitProposal(QUICK), replace(HEAVY, degrees=1.0), DefensiveProposal(0.4)],
    ids=["refit", "heavy-tailed", "defensive"],
)
def test_a_guide_that_is_far_too_narrow_is_repaired(
    linear: LinearGaussian, proposal: Proposal
) -> None:
    x = linear.sample(25)
    vae = linear.amortized_vae(scale_factor=0.3)
    alone = evidence(vae.model, vae.guide, x, num_samples=3000, proposal=GuideProposal())
    repaired = evidence(vae.model, vae.guide, x, num_samples=3000, proposal=proposal)
    exact = linear.evidence(x)
    assert (
        alone.untrusted > 15 and alone.value < float(exact.mean()) - 0.2
    )  # what there is to repair
    assert (
        repaired.untrusted <= 6
    )  # a k that lies below its limit by less than two errors is not enough
    assert repaired.errors is not None
    noise = float(repaired.errors.square().sum().sqrt()) / 25
    assert abs(repaired.value - float(exact.mean())) < 4 * noise < 0.06
    off, left = (
        (estimate.per_datum - exact).square().mean().sqrt() for estimate in (alone, repaired)
    )
    assert float(left) < 0.1 * float(off)


def test_no_weight_of_a_mixture_exceeds_what_its_shares_allow(linear: LinearGaussian) -> None:
    """``p(x, z) / sum_i a_i q_i(z)``.

    At most p(x|z) over the prior's share, and that at most its largest value.
    """
    x = linear.sample(10)
    vae = linear.amortized_vae(scale_factor=0.1)
    largest = -0.5 * 4 * math.log(2 * math.pi * 0.7**2)
    for share in (0.1, 0.5):
        estimate = evidence(
            vae.model, vae.guide, x, num_samples=20, proposal=DefensiveProposal(share)
        )
        assert (estimate.per_datum <= largest - math.log(share)).all()


def test_shares_are_those_of_the_draws(linear: LinearGaussian) -> None:
    x = linear.sample(3)
    vae = linear.amortized_vae()
    with open_program(vae.model, vae.guide, (x,)) as program:
        for proposal in PROPOSALS.values():
            parts = proposal.components(program, (x,), 0)
            assert (
                sum(part.share for part in parts) == pytest.approx(1)
                and min(part.share for part in parts) > 0
            )
        for around in (GuideProposal(), DefensiveProposal(0.2), RefitProposal(HASTY)):
            parts = HeavyTailedProposal(share=0.3, around=around).components(program, (x,), 0)
            inner = around.components(program, (x,), 0)
            heavy = parts[len(inner) :]  # a Student-t for each but the prior
            assert sum(part.share for part in heavy) == pytest.approx(0.3)
        prior = DefensiveProposal(share=1.0).components(program, (x,), 0)
        assert len(prior) == 1 and prior[0].is_prior
        with pytest.raises(InputError, match="'around' must be more than the prior"):
            HeavyTailedProposal(around=DefensiveProposal(share=1.0)).components(program, (x,), 0)


# -- any guide
# --------------------------------------------------------------------------------------------------


def two_sites(linear: LinearGaussian) -> tuple[Callable[..., None], Callable[..., None]]:
    """The linear model with its latents in two sites and its data in two, a guide in another order,
    other names."""

    def model(rows: Tensor, scale: Tensor) -> None:
        with pyro.plate("cells", len(rows)):
            first = pyro.sample("first", dist.Normal(torch.zeros((), dtype=torch.double), 1.0))
            second = pyro.sample(
                "second", dist.Normal(torch.zeros(1, dtype=torch.double), 1.0).to_event(1)
            )
            means = torch.cat([first.unsqueeze(-1), second], -1) @ linear.weight.T + linear.bias
            pyro.sample("head", dist.Normal(means[..., :1], scale).to_event(1), obs=rows[:, :1])
            pyro.sample("tail", dist.Normal(means[..., 1:], scale).to_event(1), obs=rows[:, 1:])

    def guide(rows: Tensor, scale: Tensor) -> None:
        loc, std = linear.best_diagonal(rows)
        with pyro.plate("cells", len(rows)):
            pyro.sample("second", dist.Normal(0.9 * loc[:, 1:], 0.5 * std[:, 1:]).to_event(1))
            pyro.sample("first", dist.Normal(0.9 * loc[:, 0], 0.5 * std[:, 0]))

    return model, guide


@pytest.mark.parametrize(
    "proposal", [HEAVY, DefensiveProposal(0.6)], ids=["heavy-tailed", "defensive"]
)
def test_a_mixture_is_one_of_all_sites_together(linear: LinearGaussian, proposal: Proposal) -> None:
    """A mixture at each site by itself has as many components as sites have combinations, and
    another density."""
    rows, scale = linear.sample(2000), torch.tensor(0.7, dtype=torch.double)
    estimate = evidence(*two_sites(linear), rows, scale, num_samples=6, proposal=proposal)
    mean, error = mean_weight(estimate, linear.evidence(rows))
    assert error < 0.05 and abs(mean - 1) < 4 * error
    many = evidence(*two_sites(linear), rows[:30], scale, num_samples=2000, proposal=proposal)
    exact = float(linear.evidence(rows[:30]).mean())
    alone = evidence(
        *two_sites(linear), rows[:30], scale, num_samples=2000, proposal=GuideProposal()
    )
    assert many.errors is not None and alone.errors is not None
    assert float(many.errors.mean()) < 0.5 * float(alone.errors.mean())
    assert abs(many.value - exact) < 4 * float(many.errors.square().sum().sqrt()) / 30 < 0.06


def test_a_refit_of_two_sites_is_a_proposal(linear: LinearGaussian) -> None:
    rows, scale = linear.sample(20), torch.tensor(0.7, dtype=torch.double)
    estimate = evidence(
        *two_sites(linear), rows, scale, num_samples=1000, proposal=RefitProposal(QUICK)
    )
    assert estimate.trusted
    assert (
        abs(estimate.value - float(linear.evidence(rows).mean()))
        < 4 * estimate.monte_carlo_error
        < 0.05
    )


def full_rank_guide(linear: LinearGaussian, factor: float) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            covariance = factor**2 * torch.linalg.inv(linear.precision())
            pyro.sample("z", dist.MultivariateNormal(linear.posterior_mean(x), covariance))

    return guide


def test_heavier_than_a_multivariate_normal_is_a_multivariate_student_t(
    linear: LinearGaussian,
) -> None:
    x, vae = linear.sample(2000), linear.amortized_vae()
    exact = linear.evidence(x)
    proposal = HeavyTailedProposal(degrees=4.0, share=1.0)
    estimate = evidence(
        vae.model, full_rank_guide(linear, 1.0), x, num_samples=4, proposal=proposal
    )
    mean, error = mean_weight(estimate, exact)
    assert error < 0.02 and abs(mean - 1) < 4 * error
    # Around the posterior itself the weights are those of a standard normal by a standard
    # Student-t, for all data.
    z = torch.randn(1_000_000, 2, dtype=torch.double)
    student = dist.MultivariateStudentT(
        torch.tensor(4.0).double(), torch.zeros(2).double(), torch.eye(2).double()
    )
    ratio = dist.Normal(0, 1).log_prob(z).sum(-1) - student.log_prob(z)
    expected = float(ratio.exp().mean())  # E_t[w^2] for E_t[w] = 1
    one = evidence(vae.model, full_rank_guide(linear, 1.0), x, num_samples=1, proposal=proposal)
    squares = (2 * (one.per_datum - exact)).exp()
    assert abs(float(squares.mean()) - expected) < 4 * float(squares.std()) / math.sqrt(2000)
    # A narrow one is repaired.
    narrow = evidence(vae.model, full_rank_guide(linear, 0.4), x[:20], num_samples=2000)
    assert narrow.trusted
    assert abs(narrow.value - float(exact[:20].mean())) < 4 * narrow.monte_carlo_error < 0.08


def counts(x: Tensor) -> None:
    with pyro.plate("days", len(x)):
        rate = pyro.sample("rate", dist.Gamma(torch.full((), 2.0, dtype=torch.double), 0.5))
        pyro.sample("visits", dist.Poisson(rate), obs=x)


def log_normal_guide(x: Tensor) -> None:
    with pyro.plate("days", len(x)):
        pyro.sample("rate", dist.LogNormal(((x + 1.5) / 1.5).log(), 0.4 * (x + 2).rsqrt()))


def visits(num_data: int) -> tuple[Tensor, Tensor]:
    """Counts with a gamma rate, and their log evidence: that of a negative binomial."""
    with pyro.poutine.block():
        rate = dist.Gamma(torch.full((num_data,), 2.0, dtype=torch.double), 0.5).sample()
    x = torch.poisson(rate)
    return x, dist.GammaPoisson(torch.full((), 2.0, dtype=torch.double), 0.5).log_prob(x)


@pytest.mark.parametrize(
    "proposal", [HEAVY, DefensiveProposal(0.3)], ids=["heavy-tailed", "defensive"]
)
def test_a_log_normal_guide_has_a_heavier_version(proposal: Proposal) -> None:
    x, exact = visits(3000)
    estimate = evidence(counts, log_normal_guide, x, num_samples=5, proposal=proposal)
    mean, error = mean_weight(estimate, exact)
    assert error < 0.05 and abs(mean - 1) < 4 * error
    many = evidence(counts, log_normal_guide, x[:30], num_samples=2000, proposal=proposal)
    alone = evidence(counts, log_normal_guide, x[:30], num_samples=2000, proposal=GuideProposal())
    assert many.untrusted <= alone.untrusted
    assert many.errors is not None
    assert (
        abs(many.value - float(exact[:30].mean()))
        < 4 * float(many.errors.square().sum().sqrt()) / 30
        < 0.05
    )


def positive_guide(family: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        with pyro.plate("days", len(x)):
            pyro.sample("rate", family(x))

    return guide


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Gamma", lambda x: dist.Gamma(x + 2.0, 1.5)),
        ("HalfNormal", lambda x: dist.HalfNormal(x + 2.0)),
    ],
)
def test_a_family_without_a_heavier_version_is_refused_by_name(
    name: str, family: Callable[[Tensor], Tensor]
) -> None:
    """A half-normal is a normal behind a map that cannot be turned round.

    Its density is not that of the map.
    """
    x, exact = visits(20)
    message = (
        f"guide site 'rate': no heavier version of the family {name} is known; "
        f"DefensiveProposal takes any family"
    )
    with pytest.raises(InputError, match=message):
        evidence(counts, positive_guide(family), x, proposal=HeavyTailedProposal())
    estimate = evidence(
        counts, positive_guide(family), x, num_samples=3000, proposal=DefensiveProposal()
    )
    assert abs(estimate.value - float(exact.mean())) < 4 * estimate.monte_carlo_error


def singly(linear: LinearGaussian) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    """A program that counts its rows, as decoders with ``reshape(len(x), ...)`` do, and cannot have
    a plate around."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.double), 1.0).to_event(1))
            means = z.reshape(len(x), 2) @ linear.weight.T + linear.bias
            pyro.sample("x", dist.Normal(means, linear.noise_scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc, scale = linear.best_diagonal(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.9 * loc, 0.6 * scale).to_event(1))

    return model, guide


@pytest.mark.parametrize(
    "proposal",
    [HeavyTailedProposal(), DefensiveProposal(0.4), RefitProposal(HASTY)],
    ids=["heavy-tailed", "defensive", "refit"],
)
def test_one_particle_at_a_time_the_mixture_is_the_same(
    linear: LinearGaussian, proposal: Proposal
) -> None:
    x = linear.sample(400)
    with pytest.warns(UserWarning, match="run one particle at a time"):
        estimate = evidence(*singly(linear), x, num_samples=5, proposal=proposal)
    mean, error = mean_weight(estimate, linear.evidence(x))
    assert estimate.per_datum.shape == (400,)
    assert error < 0.08 and abs(mean - 1) < 4 * error


# -- guides with more than the latents
# ----------------------------------------------------------------------------


def test_auxiliary_sites_cannot_be_mixed_but_stand_alone(linear: LinearGaussian) -> None:
    x, vae = linear.sample(20), linear.amortized_vae()
    guide = AutoNormal(vae.model, init_scale=0.5)
    guide(x)
    exact = float(linear.evidence(x).mean())
    for proposal in (GuideProposal(), DefensiveProposal(share=1.0)):
        estimate = evidence(vae.model, guide, x, num_samples=20_000, proposal=proposal)
        assert abs(estimate.value - exact) < max(4 * estimate.monte_carlo_error, 0.3)
    words = (
        r"mixed only where the guide draws the model's latents.*\['z', "
        r"'z_unconstrained'\].*use the guide alone"
    )
    for proposal in (HeavyTailedProposal(), DefensiveProposal()):
        with pytest.raises(InputError, match=words):
            evidence(vae.model, guide, x, proposal=proposal)
    with pytest.raises(
        InputError, match=r"auxiliary sites \['z_unconstrained'\]; pass 'local_guide'"
    ):
        evidence(vae.model, guide, x, proposal=RefitProposal(HASTY))


class Auxiliary(nn.Module):
    """A local guide that draws noise beside the latents that follow from it."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(x[:, :2].clone())
        self.log_scale = nn.Parameter(torch.full_like(x[:, :2], -0.7))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            noise = pyro.sample("noise", dist.Normal(torch.zeros_like(self.loc), 1.0).to_event(1))
            density = -self.log_scale.sum(-1).expand(noise.shape[:-1])
            pyro.sample(
                "z", dist.Delta(self.loc + self.log_scale.exp() * noise, density, event_dim=1)
            )


def test_a_local_guide_whose_density_cannot_be_had_is_not_mixed(linear: LinearGaussian) -> None:
    """Its density at the draws of others would be missing from the mixture, and the evidence too
    high by log 2."""
    x, vae = linear.sample(30), linear.amortized_vae(mean_factor=0.9)
    with pytest.raises(InputError, match=r"'local_guide' must draw the latents \['z'\] themselves"):
        evidence(vae.model, vae.guide, x, proposal=RefitProposal(QUICK, Auxiliary))
    with pytest.raises(InputError, match=r"'local_guide' must draw the latents"):
        own = replace(QUICK, local_guide=Auxiliary)
        evidence(vae.model, vae.guide, x, proposal=RefitProposal(own))
    gaps = inference_gaps(
        vae.model, vae.guide, x, num_samples=2000, settings=replace(QUICK, local_guide=Auxiliary)
    )
    exact = linear.evidence(x)
    assert (
        abs(gaps.evidence.value - float(exact.mean())) < 4 * gaps.evidence.monte_carlo_error < 0.05
    )


class Local(nn.Module):
    """A local guide of one's own, of the latents alone."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(x[:, :2].clone())
        self.log_scale = nn.Parameter(torch.full_like(x[:, :2], -0.7))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))


def test_a_local_guide_of_ones_own_is_a_proposal(linear: LinearGaussian) -> None:
    x, vae = linear.sample(400), linear.amortized_vae(mean_factor=0.9, scale_factor=0.6)
    estimate = evidence(
        vae.model, vae.guide, x, num_samples=6, proposal=RefitProposal(HASTY, Local)
    )
    mean, error = mean_weight(estimate, linear.evidence(x))
    assert error < 0.05 and abs(mean - 1) < 4 * error


# -- manners
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, math.nan])
def test_impossible_shares_are_refused(share: float) -> None:
    for kind in (HeavyTailedProposal, DefensiveProposal):
        with pytest.raises(InputError, match="'share' must be above 0 and at most 1, got"):
            kind(share=share)


@pytest.mark.parametrize("degrees", [0.0, -2.0, math.nan, math.inf])
def test_impossible_degrees_are_refused(degrees: float) -> None:
    with pytest.raises(InputError, match="'degrees' must be positive and finite, got"):
        HeavyTailedProposal(degrees=degrees)


def test_proposals_leave_everything_alone_and_repeat_themselves(linear: LinearGaussian) -> None:
    x, vae = linear.sample(8), linear.amortized_vae(mean_factor=0.8)
    pyro.param("mine", torch.ones(2))
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    state, names = torch.get_rng_state(), list(pyro.get_param_store().keys())
    proposal = HeavyTailedProposal(around=RefitProposal(HASTY))
    runs = [
        evidence(vae.model, vae.guide, x, num_samples=30, proposal=proposal, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0].per_datum, runs[1].per_datum)
    assert not torch.equal(runs[0].per_datum, runs[2].per_datum)
    assert (
        torch.equal(state, torch.get_rng_state()) and list(pyro.get_param_store().keys()) == names
    )
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in vae.parameters())
