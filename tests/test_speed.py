"""What was made fast gives the numbers of what it replaced."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, evidence
from pyro_bvae.evaluation import importance
from pyro_bvae.likelihoods import BernoulliLikelihood, GreyBernoulli, Pixels
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

DTYPES = [torch.float32, torch.float64]
PIXELS: dict[str, Callable[[tuple[int, ...]], Tensor]] = {
    "binary": lambda shape: (torch.rand(shape) < 0.3).double(),
    "grey": lambda shape: torch.rand(shape).double(),
}
pixels = pytest.mark.parametrize("draw", PIXELS.values(), ids=PIXELS.keys())
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def stock(logits: Tensor, x: Tensor) -> Tensor:
    logits, x = torch.broadcast_tensors(logits, x)
    return -nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)


def rounding(logits: Tensor, exact: Tensor) -> Tensor:
    """What a sum of terms of the size of the logits, in their precision, may be off by."""
    size = exact.abs() + logits.double().norm(dim=-1) + math.sqrt(logits.shape[-1])
    return 4 * torch.finfo(logits.dtype).eps * size


@dtypes
@pixels
@pytest.mark.parametrize("features", [1, 5, 126, 127, 784, 1500])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0])
def test_pixels_are_scored_as_by_the_stock_formula(
    dtype: torch.dtype, draw: Callable[..., Tensor], features: int, spread: float
) -> None:
    logits = (spread * torch.randn(7, 3, features)).to(dtype)
    x = draw((3, features)).to(dtype)
    scored = BernoulliLikelihood()(logits).log_prob(x)
    exact = stock(logits.double(), x.double())
    assert scored.dtype == dtype and scored.shape == (7, 3)
    assert ((scored - exact).abs() <= rounding(logits, exact)).all()


@dtypes
@pytest.mark.parametrize("size", [1e4, 60.0, 1e-12])
def test_extreme_logits_are_scored_exactly(dtype: torch.dtype, size: float) -> None:
    """Right by far costs nothing and wrong by far costs the logit, with no remainder of large numbers."""
    x = (torch.rand(4, 784) < 0.3).to(dtype)
    right, wrong = (BernoulliLikelihood()(sign * size * (2 * x - 1)).log_prob(x) for sign in (1, -1))
    assert torch.allclose(right, torch.full_like(right, -784 * math.log1p(math.exp(-size))), atol=1e-10)
    assert torch.allclose(wrong, right - 784 * size)


@pixels
def test_pixels_have_the_gradients_of_the_stock_formula(draw: Callable[..., Tensor]) -> None:
    x = draw((3, 20))
    gradients = []
    for score in (lambda logits: BernoulliLikelihood()(logits).log_prob(x), lambda logits: stock(logits, x)):
        logits = torch.linspace(-50, 50, 120, dtype=torch.double).reshape(2, 3, 20).requires_grad_()
        gradients += torch.autograd.grad(score(logits).square().sum(), logits)
    assert torch.allclose(*gradients)
    logits = torch.randn(3, 20, dtype=torch.double)
    under_func = torch.func.grad(lambda logits: BernoulliLikelihood()(logits).log_prob(x).sum())(logits)
    assert torch.allclose(under_func, x - logits.sigmoid())


def test_scores_with_and_without_a_gradient_agree() -> None:
    logits, x = torch.randn(5, 3, 40), torch.rand(3, 40)
    without = BernoulliLikelihood()(logits).log_prob(x)
    assert torch.allclose(without, BernoulliLikelihood()(logits.requires_grad_()).log_prob(x))


def test_pixels_keep_the_ways_of_distributions() -> None:
    likelihood = BernoulliLikelihood()
    logits, x = torch.randn(2, 6), torch.rand(2, 6)
    plain = likelihood(logits).log_prob(x)
    assert torch.allclose(likelihood(logits).expand([3, 2]).log_prob(x), plain.expand(3, 2))
    assert torch.allclose(likelihood(logits).log_prob(x.expand(4, 2, 6)), plain.expand(4, 2))  # more data than logits
    assert torch.allclose(likelihood(logits).to_event(1).log_prob(x), plain.sum())
    assert torch.allclose(likelihood(logits[0]).log_prob(x[0]), plain[0])
    assert torch.equal(likelihood(logits).mask(torch.tensor([True, False])).log_prob(x)[1], torch.tensor(0.0))
    assert likelihood(logits[:0]).log_prob(x[:0]).shape == (0,)
    checked = Pixels(GreyBernoulli(logits=logits, validate_args=True), 1)
    with pytest.raises(ValueError, match="within the support"):
        checked.log_prob(x + 2)


# -- passes of the evidence -----------------------------------------------------------------------------------


class Counted(nn.Module):
    """A network that notes how many rows it was given, each time."""

    def __init__(self, network: MLP) -> None:
        super().__init__()
        self.network, self.rows = network, []
        self.in_features, self.out_features = network.in_features, network.out_features

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(x.shape[:-1].numel())
        return self.network(x)


@pytest.fixture
def vae() -> BetaVAE:
    torch.manual_seed(1)
    decoder = Decoder(Counted(MLP(2, 30, (8,))), BernoulliLikelihood())
    return BetaVAE(NormalPrior(2), decoder, NormalPosterior(Counted(MLP(30, 4, (8,))))).double()


@pytest.fixture
def x() -> Tensor:
    return (torch.rand(40, 30, dtype=torch.double) < 0.4).double()


def test_the_evidence_does_not_depend_on_how_much_the_model_takes_at_once(
    vae: BetaVAE, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = []
    # The guide draws 4 x 8000 rows at once: the same noise for the model, however few rows it takes.
    for rows, ahead in ((8000, 4), (1600, 20), (32_000, 1)):
        monkeypatch.setattr(importance, "_ON_CPU", (rows, 10**9))
        monkeypatch.setattr(importance, "_PASSES_AHEAD", ahead)
        values.append(evidence(vae.model, vae.guide, x, num_samples=1000).per_datum)
    assert torch.allclose(values[0], values[1], rtol=1e-12) and torch.allclose(values[0], values[2], rtol=1e-12)


@pytest.mark.parametrize(("rows", "data"), [(1000, 40), (8192, 7), (100, 512)])
def test_the_evidence_depends_on_the_blocks_by_its_monte_carlo_error(
    vae: BetaVAE, x: Tensor, monkeypatch: pytest.MonkeyPatch, rows: int, data: int
) -> None:
    before = evidence(vae.model, vae.guide, x, num_samples=2000)
    monkeypatch.setattr(importance, "_ON_CPU", (rows, 10**9))
    monkeypatch.setattr(importance, "_MOST_DATA", data)
    after = evidence(vae.model, vae.guide, x, num_samples=2000)
    assert abs(before.value - after.value) < 5 * math.hypot(before.monte_carlo_error, after.monte_carlo_error)
    assert after.monte_carlo_error < 0.02


def test_the_encoder_is_run_for_many_particles_at_once(vae: BetaVAE, x: Tensor) -> None:
    counted_encoder, counted_decoder = vae.encoder.network, vae.decoder.network
    evidence(vae.model, vae.guide, x, num_samples=2)  # what it takes to look the program over
    looking, looked = len(counted_encoder.rows), sum(counted_decoder.rows)
    counted_encoder.rows.clear(), counted_decoder.rows.clear()
    evidence(vae.model, vae.guide, x, num_samples=5000)
    assert sum(counted_decoder.rows) - looked == (5000 - 2) * 40
    assert max(counted_decoder.rows) <= 8192 and max(counted_encoder.rows) == 40
    assert len(counted_encoder.rows) - looking <= math.ceil(5000 * 40 / (4 * 8160))


def test_wide_data_are_taken_in_fewer_rows(vae: BetaVAE, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "_ON_CPU", (8192, 30 * 400))
    evidence(vae.model, vae.guide, x, num_samples=500)
    assert max(vae.decoder.network.rows) <= 400
