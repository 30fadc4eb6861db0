"""Free bits and controlled capacity.

Losses and gradients by hand, any Pyro program, stock SVI and fit, bad input.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import Tensor

from pyro_bvae import BetaVAE, Decoder, fit
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import NOISE_STREAM, stream_seed
from pyro_bvae.datasets import Dataset
from pyro_bvae.evaluation import kl_per_dimension
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.posteriors import FullRankPosterior, NormalPosterior
from pyro_bvae.priors import MixturePrior, NormalPrior, StudentTPrior
from pyro_bvae.training import Constant, ControlledCapacity, FreeBits, LinearWarmup, Loss, Objective

WEIGHT = torch.tensor([[1.0, 0.4], [0.2, 1.0], [0.6, 0.3], [0.2, -0.4]], dtype=torch.double)
SIGMA, N, L = 0.6, 5, 2
LINEAR = LinearGaussian(WEIGHT, SIGMA, torch.tensor([0.1, -0.2, 0.3, 0.0]))
BETAS = [1.0, 0.0, 0.4, 3.0, torch.tensor(2.0).double(), torch.linspace(0, 3, N).double()]


class Setting:
    """A guide whose first latent says much and whose second says little, with the noise of its
    draws."""

    def __init__(self) -> None:
        self.x = LINEAR.sample(N)
        self.loc = torch.stack(
            [torch.linspace(-1.5, 2, N), torch.linspace(-0.3, 0.2, N)], -1
        ).double()
        self.scale = torch.tensor([0.3, 0.9], dtype=torch.double).expand(N, L)
        self.noise = torch.randn(N, L, dtype=torch.double)
        self.z = self.loc + self.scale * self.noise
        self.vae = LINEAR.vae(self.loc, self.scale)

    @property
    def kl(self) -> Tensor:
        return 0.5 * (self.loc**2 + self.scale**2 - 1) - self.scale.log()

    @property
    def distortion(self) -> Tensor:
        residual = (self.x - LINEAR.bias - self.z @ WEIGHT.T) / SIGMA
        return (0.5 * residual**2 + math.log(SIGMA * math.sqrt(2 * math.pi))).sum()

    def terms(
        self, objective: Objective, beta: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        return Loss(self.vae, objective)(self.x, None, beta, {"z": self.noise})

    def gradients(self, objective: Objective, beta: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        """Gradients in the guide's locations and in the logarithms of its scales."""
        self.vae.zero_grad()
        self.terms(objective, beta)[0].backward()
        shift = self.vae.encoder.shift.grad / self.scale  # it is in units of the scale
        return shift, self.vae.encoder.log_factor.grad.clone()


@pytest.fixture
def setting() -> Setting:
    return Setting()


def program(latent_prior: Callable, posterior: Callable) -> BetaVAE:
    """A small float64 VAE with a linear decoder and a given prior and guide."""
    return BetaVAE(
        latent_prior, Decoder(MLP(L, 4, hidden=()), NormalLikelihood(SIGMA)), posterior
    ).double()


def normal_vae(seed: int = 0) -> BetaVAE:
    torch.manual_seed(seed)
    return program(NormalPrior(L), NormalPosterior(MLP(4, 2 * L, hidden=())))


# -- free bits
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nats", [0.0, 0.3, 10.0])
@pytest.mark.parametrize("beta", BETAS, ids=str)
def test_free_bits_are_those_by_hand(setting: Setting, beta: float | Tensor, nats: float) -> None:
    loss, distortion, rate = setting.terms(FreeBits(nats), beta)
    betas = torch.as_tensor(beta, dtype=torch.double).expand(N)
    means = (betas[:, None] * setting.kl).sum(0) / betas.sum().clamp(min=1e-300)  # of each latent
    torch.testing.assert_close(loss, setting.distortion + betas.sum() * means.clamp(min=nats).sum())
    torch.testing.assert_close(distortion, setting.distortion)
    torch.testing.assert_close(rate, setting.kl.sum())
    assert not distortion.requires_grad and not rate.requires_grad


def test_a_latent_below_its_free_nats_is_not_pulled_at(setting: Setting) -> None:
    first, second = setting.kl.mean(0)
    assert second < 0.3 < first
    with_kl, without = setting.gradients(FreeBits(0.3), 2.0), setting.gradients(FreeBits(0.3), 0.0)
    by_hand = setting.loc, setting.scale**2 - 1
    for one, other, expected in zip(with_kl, without, by_hand, strict=True):
        torch.testing.assert_close((one - other)[:, 0], 2 * expected[:, 0])
        torch.testing.assert_close((one - other)[:, 1], torch.zeros(N).double())


def test_the_nats_are_those_of_the_batch_and_not_of_each_datum(setting: Setting) -> None:
    """A datum below λ is pulled at all the same where the mean of its latent is above."""
    quiet = int(setting.kl[:, 0].argmin())
    nats = float(setting.kl[quiet, 0]) + 0.1
    assert nats < setting.kl[:, 0].mean()
    pull = setting.gradients(FreeBits(nats), 1.0)[1] - setting.gradients(FreeBits(nats), 0.0)[1]
    assert float(pull[quiet, 0]) == pytest.approx(0.3**2 - 1)


@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_without_free_nats_it_is_the_bound_with_an_analytic_kl(beta: float) -> None:
    vae, x = normal_vae(), LINEAR.sample(N)
    results = []
    for objective in (TraceMeanField_ELBO(num_particles=3), FreeBits(0.0, num_particles=3)):
        torch.manual_seed(4)
        loss = objective.loss_and_grads(vae.model, vae.guide, x, None, beta)
        results.append(
            [torch.tensor(loss), *(parameter.grad.clone() for parameter in vae.parameters())]
        )
        vae.zero_grad()
    for expected, value in zip(*results, strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("nats", [0.0, 0.5])
def test_where_there_is_no_closed_form_the_draws_give_the_kl(nats: float) -> None:
    torch.manual_seed(0)
    vae, x = program(StudentTPrior(L), NormalPosterior(MLP(4, 2 * L, hidden=()))), LINEAR.sample(N)
    noise = torch.randn(N, L, dtype=torch.double)
    guide, prior = vae.encoder(x).base_dist, vae.prior().base_dist
    z = guide.loc + guide.scale * noise
    log_ratio = (guide.log_prob(z) - prior.log_prob(z)).sum(0)
    costs = log_ratio.clamp(min=N * nats) if nats else log_ratio
    loss, distortion, rate = Loss(vae, FreeBits(nats))(x, None, 1.0, {"z": noise})
    torch.testing.assert_close(loss - distortion, costs.sum())
    torch.testing.assert_close(rate, log_ratio.sum().detach())


def test_an_estimate_of_a_kl_may_be_negative_where_no_nats_are_free() -> None:
    """A guide that is the prior.

    A floor of 0 under its estimates would make the mean of the loss too large.
    """
    prior = StudentTPrior(L).double()

    def guide(x: Tensor) -> dist.Distribution:
        return dist.Normal(torch.zeros(len(x), L).double(), 1.0).to_event(1)

    vae = program(prior, guide)
    penalties = []
    for _ in range(50):
        loss, distortion, _ = FreeBits(0.0).terms(vae.model, vae.guide, LINEAR.sample(2))
        penalties.append(float((loss - distortion).detach()))
    assert min(penalties) < 0


# -- controlled capacity
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1.0, 0.0, 0.25, torch.tensor(0.5).double()], ids=str)
def test_controlled_capacity_is_that_by_hand(setting: Setting, share: float | Tensor) -> None:
    loss, distortion, rate = setting.terms(ControlledCapacity(3.0, gamma=7.0), share)
    expected = N * 7.0 * (setting.kl.sum() / N - 3.0 * share).abs()
    torch.testing.assert_close(loss, setting.distortion + expected)
    torch.testing.assert_close(distortion, setting.distortion)
    torch.testing.assert_close(rate, setting.kl.sum())


@pytest.mark.parametrize(("capacity", "sign"), [(0.0, 1.0), (20.0, -1.0)], ids=["above", "below"])
def test_the_mean_kl_is_drawn_to_the_capacity_from_either_side(
    setting: Setting, capacity: float, sign: float
) -> None:
    pulls = []
    for gamma in (1.0, 3.0):
        pulls.append(setting.gradients(ControlledCapacity(capacity, gamma)))
    torch.testing.assert_close(pulls[1][0] - pulls[0][0], 2 * sign * setting.loc)
    torch.testing.assert_close(pulls[1][1] - pulls[0][1], 2 * sign * (setting.scale**2 - 1))


@pytest.mark.parametrize("family", ["full rank", "mixture"])
def test_the_capacity_is_that_of_any_guide_and_prior(family: str) -> None:
    torch.manual_seed(1)
    if family == "full rank":
        vae = program(
            NormalPrior(L), FullRankPosterior(MLP(4, FullRankPosterior.num_outputs(L), hidden=()))
        )
    else:
        vae = program(MixturePrior(L, 3), NormalPosterior(MLP(4, 2 * L, hidden=())))
    x, noise = LINEAR.sample(N), torch.randn(N, L, dtype=torch.double)
    loss, distortion, rate = Loss(vae, ControlledCapacity(2.0, 5.0))(x, None, 0.5, {"z": noise})
    posterior, prior = vae.encoder(x), vae.prior()
    if family == "full rank":
        tril = posterior.scale_tril
        trace = tril.square().sum((-1, -2)) + posterior.mean.square().sum(-1)
        kl = 0.5 * (trace - L) - tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    else:
        z = posterior.base_dist.loc + posterior.base_dist.scale * noise
        kl = posterior.log_prob(z) - prior.log_prob(z)
    torch.testing.assert_close(loss - distortion, 5.0 * (kl.sum() - N * 1.0).abs())
    torch.testing.assert_close(rate, kl.sum().detach())


# -- what both are
# --------------------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize(
    "objective", [FreeBits(0.3), ControlledCapacity(3.0, 2.0)], ids=["free bits", "capacity"]
)


@BOTH
def test_a_subsampled_plate_stands_for_all_its_data(setting: Setting, objective: Objective) -> None:
    def pair(x: Tensor, index: Tensor) -> tuple[Callable, Callable]:
        def model() -> None:
            with pyro.plate("data", N, subsample=index):
                z = pyro.sample("z", dist.Normal(torch.zeros(L).double(), 1.0).to_event(1))
                pyro.sample(
                    "x", dist.Normal(LINEAR.bias + z @ WEIGHT.T, SIGMA).to_event(1), obs=x[index]
                )

        def guide() -> None:
            with pyro.plate("data", N, subsample=index):
                pyro.sample("z", dist.Normal(setting.loc[index], setting.scale[index]).to_event(1))

        return model, guide

    index = torch.tensor([0, 4])
    loss, distortion, rate = objective.terms(*pair(setting.x, index))
    kl = setting.kl[index] * N / 2
    if isinstance(objective, FreeBits):
        penalty = kl.sum(0).clamp(min=N * 0.3).sum()
    else:
        penalty = 2.0 * (kl.sum() - N * 3.0).abs()
    torch.testing.assert_close(loss - distortion, penalty)
    torch.testing.assert_close(rate, kl.sum())


@BOTH
def test_particles_are_averaged(setting: Setting, objective: Objective) -> None:
    several = type(objective)(
        *([0.3] if isinstance(objective, FreeBits) else [3.0, 2.0]), num_particles=3
    )
    args = (setting.vae.model, setting.vae.guide, setting.x, None, 0.7)
    torch.manual_seed(2)
    together = several.loss(*args)
    torch.manual_seed(2)
    assert together == pytest.approx(sum(objective.loss(*args) for _ in range(3)) / 3)


@BOTH
def test_a_whole_fit_is_stock_svi(objective: Objective) -> None:
    data, schedule = Dataset(LINEAR.sample(24)), LinearWarmup(1.0, 1)
    stock, ours = normal_vae(), normal_vae()
    stock.name = "stock"
    svi = SVI(stock.model, stock.guide, pyro.optim.Adam({"lr": 0.01}), loss=objective)
    losses = []
    for epoch in range(2):
        torch.manual_seed(stream_seed(0, epoch, NOISE_STREAM))
        batches = enumerate(data.batches(8, seed=0, epoch=epoch))
        losses.append(
            sum(svi.step(x, None, schedule(epoch + step / 3, 2)) for step, (x, _) in batches)
            / len(data)
        )
    history = fit(
        ours, data, beta=schedule, epochs=2, batch_size=8, learning_rate=Constant(0.01), gradient_clip=None,
        objective=objective, validation=data, progress=False,
    )  # fmt: skip
    assert history["objective"] == pytest.approx(losses, abs=1e-9)
    for name, value in stock.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-8, rtol=0)
    assert math.isfinite(svi.evaluate_loss(data.x))
    for before, after in zip(normal_vae().parameters(), ours.parameters(), strict=True):
        assert not torch.equal(before, after)


@BOTH
def test_a_run_is_resumed_with_its_own_objective_only(tmp_path: Path, objective: Objective) -> None:
    options = {"batch_size": 8, "progress": False, "beta": LinearWarmup(1.0, 1), "output": tmp_path}
    with pytest.warns(UserWarning, match="as long as the training"):
        fit(normal_vae(), LINEAR.sample(8), epochs=1, objective=objective, **options)
    other = type(objective)(0.5)
    with pytest.raises(
        InputError, match=r"'objective' was (FreeBits\(0.3|ControlledCapacity\(3.0, gamma=2.0), num"
    ):
        fit(normal_vae(), LINEAR.sample(8), epochs=2, objective=other, resume=True, **options)
    fit(normal_vae(), LINEAR.sample(8), epochs=2, objective=objective, resume=True, **options)


# -- what they are for
# -------------------------------------------------------------------------------------------------


def trained_kl(objective: Objective | None, x: Tensor, **options: object) -> Tensor:
    vae = normal_vae(3)
    fit(
        vae,
        x,
        epochs=250,
        batch_size=len(x),
        learning_rate=0.03,
        objective=objective,
        progress=False,
        **options,
    )
    results = kl_per_dimension(vae.model, vae.guide, x)
    assert results is not None and results.values is not None
    return results.values


@pytest.mark.filterwarnings("ignore:β σ² is")  # so it does
def test_free_bits_keep_latents_that_the_bound_gives_up() -> None:
    """Data without structure above the noise: by λ_i < βσ² every latent collapses."""
    x = 0.7 * SIGMA * torch.randn(64, 4, dtype=torch.double)
    assert float(trained_kl(None, x).max()) < 0.02
    kept = trained_kl(FreeBits(0.5), x)
    assert float(kept.min()) > 0.48
    assert float(kept.max()) < 0.6


def test_the_mean_kl_follows_its_capacity() -> None:
    """A capacity that the bound would neither stop at (0.4) nor reach (4).

    Its own KL is some 1.4 nats.
    """
    x = LINEAR.sample(64)
    for capacity in (0.4, 4.0):
        objective = ControlledCapacity(capacity, gamma=100.0)
        kl = trained_kl(objective, x, beta=LinearWarmup(1.0, 100), gradient_clip=None)
        assert float(kl.sum()) == pytest.approx(capacity, abs=0.1)


# -- bad input
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "1", True])
def test_bad_numbers_are_refused(value: object) -> None:
    with pytest.raises(
        InputError, match=f"'nats_per_latent' must be non-negative and finite, got {value!r}"
    ):
        FreeBits(value)
    with pytest.raises(
        InputError, match=f"'capacity' must be non-negative and finite, got {value!r}"
    ):
        ControlledCapacity(value)
    with pytest.raises(InputError, match=f"'gamma' must be positive and finite, got {value!r}"):
        ControlledCapacity(1.0, value)


def test_no_weight_and_no_particles_are_refused() -> None:
    with pytest.raises(InputError, match="'gamma' must be positive and finite, got 0"):
        ControlledCapacity(1.0, 0)
    for count in (0, 1.5, True):
        with pytest.raises(
            InputError, match=f"'num_particles' must be a positive integer, got {count}"
        ):
            FreeBits(1.0, count)


def test_free_bits_need_products() -> None:
    mixture = program(MixturePrior(L, 3), NormalPosterior(MLP(4, 2 * L, hidden=())))
    with pytest.raises(
        InputError, match=r"the prior \(\w+\) is no product of independent dimensions"
    ):
        FreeBits(0.1).loss(mixture.model, mixture.guide, LINEAR.sample(N))
    full = program(
        NormalPrior(L), FullRankPosterior(MLP(4, FullRankPosterior.num_outputs(L), hidden=()))
    )
    full.name = "full"
    with pytest.raises(
        InputError, match=r"the guide \(\w+\) is no product of independent dimensions"
    ):
        FreeBits(0.1).loss(full.model, full.guide, LINEAR.sample(N))


def test_one_capacity_is_for_all_data(setting: Setting) -> None:
    with pytest.raises(
        InputError, match=r"'beta' must be one number for all data.* got values from 0 to 3"
    ):
        setting.terms(ControlledCapacity(1.0), torch.linspace(0, 3, N).double())


def normals(*sites: str, scale: float = 1.0) -> Callable[[], None]:
    def run() -> None:
        with pyro.plate("data", N), poutine.scale(scale=scale):
            for name in sites:
                pyro.sample(name, dist.Normal(torch.zeros(L), 1.0).to_event(1))

    return run


def coins() -> None:
    with pyro.plate("data", N):
        pyro.sample("z", dist.Bernoulli(torch.full((L,), 0.5)).to_event(1))


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (
            normals("a", "b"),
            normals("a", "b"),
            "one latent site, .* got a, b in the guide and a, b in the model",
        ),
        (
            normals("a", "b"),
            normals("a"),
            "one latent site, .* got a in the guide and a, b in the model",
        ),
        (normals(), normals(), "one latent site, .* got none in the guide and none in the model"),
        (coins, coins, "guide site 'z' of family Independent has no reparametrised draws"),
        (
            normals("z"),
            normals("z", scale=2.0),
            "site 'z' must have one scale .* in guide and model",
        ),
    ],
    ids=["two", "missing", "none", "discrete", "scales"],
)
@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
def test_programs_without_one_reparametrised_latent_are_refused(
    model: Callable, guide: Callable, message: str
) -> None:
    for objective in (FreeBits(0.1), ControlledCapacity(1.0)):
        with pytest.raises(InputError, match=message):
            objective.loss(model, guide)
