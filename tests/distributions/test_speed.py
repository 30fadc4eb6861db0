"""What was made fast gives the numbers of what it replaced."""

import importlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, evidence
from pyro_bvae.distributions import DiagonalNormal, GreyBernoulli, Pixels
from pyro_bvae.evaluation import weights
from pyro_bvae.evaluation.marginal import importance
from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training.steps.step import Step

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
    """Right by far costs nothing and wrong by far costs the logit, with no remainder of large
    numbers."""
    x = (torch.rand(4, 784) < 0.3).to(dtype)
    right, wrong = (
        BernoulliLikelihood()(sign * size * (2 * x - 1)).log_prob(x) for sign in (1, -1)
    )
    assert torch.allclose(
        right, torch.full_like(right, -784 * math.log1p(math.exp(-size))), atol=1e-10
    )
    assert torch.allclose(wrong, right - 784 * size)


@pixels
def test_pixels_have_the_gradients_of_the_stock_formula(draw: Callable[..., Tensor]) -> None:
    x = draw((3, 20))
    gradients = []
    for score in (
        lambda logits: BernoulliLikelihood()(logits).log_prob(x),
        lambda logits: stock(logits, x),
    ):
        logits = torch.linspace(-50, 50, 120, dtype=torch.double).reshape(2, 3, 20).requires_grad_()
        gradients += torch.autograd.grad(score(logits).square().sum(), logits)
    assert torch.allclose(*gradients)
    logits = torch.randn(3, 20, dtype=torch.double)
    under_func = torch.func.grad(lambda logits: BernoulliLikelihood()(logits).log_prob(x).sum())(
        logits
    )
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
    assert torch.allclose(
        likelihood(logits).log_prob(x.expand(4, 2, 6)), plain.expand(4, 2)
    )  # more data than logits
    assert torch.allclose(likelihood(logits).to_event(1).log_prob(x), plain.sum())
    assert torch.allclose(likelihood(logits[0]).log_prob(x[0]), plain[0])
    assert torch.equal(
        likelihood(logits).mask(torch.tensor([True, False])).log_prob(x)[1], torch.tensor(0.0)
    )
    assert likelihood(logits[:0]).log_prob(x[:0]).shape == (0,)
    checked = Pixels(GreyBernoulli(logits=logits, validate_args=True), 1)
    with pytest.raises(ValueError, match="within the support"):
        checked.log_prob(x + 2)


# -- passes of the evidence
# -----------------------------------------------------------------------------------


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
    # The guide draws 4 x 8000 rows at once: the same noise for the model, however few rows it
    # takes.
    for rows, ahead in ((8000, 4), (1600, 20), (32_000, 1)):
        monkeypatch.setattr(weights, "_ON_CPU", (rows, 10**9))
        monkeypatch.setattr(weights, "_PASSES_AHEAD", ahead)
        values.append(evidence(vae.model, vae.guide, x, num_samples=1000).per_datum)
    assert torch.allclose(values[0], values[1], rtol=1e-12) and torch.allclose(
        values[0], values[2], rtol=1e-12
    )


@pytest.mark.parametrize(("rows", "data"), [(1000, 40), (8192, 7), (100, 512)])
def test_the_evidence_depends_on_the_blocks_by_its_monte_carlo_error(
    vae: BetaVAE, x: Tensor, monkeypatch: pytest.MonkeyPatch, rows: int, data: int
) -> None:
    before = evidence(vae.model, vae.guide, x, num_samples=2000)
    monkeypatch.setattr(weights, "_ON_CPU", (rows, 10**9))
    monkeypatch.setattr(importance, "_MOST_DATA", data)
    after = evidence(vae.model, vae.guide, x, num_samples=2000)
    assert abs(before.value - after.value) < 5 * math.hypot(
        before.monte_carlo_error, after.monte_carlo_error
    )
    assert after.monte_carlo_error < 0.02


def test_the_encoder_is_run_for_many_particles_at_once(vae: BetaVAE, x: Tensor) -> None:
    counted_encoder, counted_decoder = vae.encoder.network, vae.decoder.network
    evidence(vae.model, vae.guide, x, num_samples=2)  # what it takes to look the program over
    looking, looked = len(counted_encoder.rows), sum(counted_decoder.rows)
    counted_encoder.rows.clear(), counted_decoder.rows.clear()
    evidence(vae.model, vae.guide, x, num_samples=5000)
    assert sum(counted_decoder.rows) - looked == (5000 - 2) * 40
    assert max(counted_decoder.rows) <= 16_384 and max(counted_encoder.rows) == 40
    assert len(counted_encoder.rows) - looking <= math.ceil(5000 * 40 / (4 * 16_360))


def test_wide_data_are_taken_in_fewer_rows(
    vae: BetaVAE, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_ON_CPU", (8192, 30 * 400))
    evidence(vae.model, vae.guide, x, num_samples=500)
    assert max(vae.decoder.network.rows) <= 400


# -- normals and affine maps
# ----------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("shape", [(4,), (3, 4), (1, 4), (5, 1, 4), (5, 3, 4)], ids=str)
def test_diagonal_normals_are_scored_as_by_the_stock_formula(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    loc, scale = 3 * torch.randn(shape, dtype=dtype), torch.rand(shape[-1:], dtype=dtype) + 0.01
    value = 5 * torch.randn(5, 3, 4, dtype=dtype)
    for expanded in ((), (5, 3)):
        fast = DiagonalNormal.of(loc, scale)
        stock = torch.distributions.Independent(torch.distributions.Normal(loc, scale), 1)
        fast, stock = (fast.expand(expanded), stock.expand(expanded)) if expanded else (fast, stock)
        assert isinstance(fast, DiagonalNormal)
        assert fast.log_prob(value).shape == (5, 3)
        assert torch.allclose(
            fast.log_prob(value), stock.log_prob(value), rtol=20 * torch.finfo(dtype).eps
        )


def test_diagonal_normals_keep_the_ways_of_distributions() -> None:
    loc, scale = torch.randn(3, 4).requires_grad_(), torch.rand(4).requires_grad_()
    fast, stock = DiagonalNormal.of(loc, scale), torch.distributions.Normal(loc, scale)
    x = torch.randn(2, 3, 4)
    gradients = [
        torch.autograd.grad(density.exp().sum(), (loc, scale))
        for density in (fast.expand([2, 3]).log_prob(x), stock.log_prob(x).sum(-1))
    ]
    assert all(torch.allclose(*pair) for pair in zip(*gradients, strict=True))
    assert torch.allclose(
        fast.log_prob(x[0, 0]), stock.log_prob(x[0, 0]).sum(-1)
    )  # one value under many normals
    assert torch.allclose(fast.to_event(1).log_prob(x), stock.log_prob(x).sum((-1, -2)))
    assert fast.expand([2, 3]).rsample().shape == (2, 3, 4)
    other = DiagonalNormal.of(torch.zeros(4), torch.ones(4))
    kl = torch.distributions.kl_divergence(fast, other)
    exact = torch.distributions.kl_divergence(stock, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    assert torch.allclose(kl, exact)
    with pytest.raises(ValueError, match="within the support"):
        DiagonalNormal(torch.distributions.Normal(loc, scale, validate_args=True), 1).log_prob(
            x * math.nan
        )


ACTIVATIONS = [nn.SiLU, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.ELU]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=[kind.__name__ for kind in ACTIVATIONS])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(), (0,), (1,), (3, 1000)], ids=str)
def test_networks_give_the_same_with_and_without_a_gradient(
    activation: type[nn.Module], bias: bool, rows: tuple[int, ...]
) -> None:
    network, x = MLP(7, 5, (33, 20), activation, bias), torch.randn(*rows, 7)
    with torch.no_grad():
        without = network(x)
        transposed = network(
            torch.stack([x, x], -1)[..., 0]
        )  # an input that does not lie in one piece
    assert without.shape == (*rows, 5) and not without.requires_grad
    stock = network.layers(x)
    assert torch.allclose(without, stock, atol=1e-6) and torch.allclose(
        transposed, stock, atol=1e-6
    )
    exact = MLP(7, 5, (33, 20), activation, bias).double()
    exact.load_state_dict(network.state_dict())
    assert torch.allclose(without.double(), exact(x.double()), atol=1e-6)


def test_networks_work_where_onednn_does_not() -> None:
    network, x = MLP(4, 3, (5,)), torch.randn(2, 6, 4)
    with torch.no_grad():
        plain = network(x)
        assert torch.allclose(torch.func.vmap(network)(x), plain, atol=1e-6)
        stacked, buffers = torch.func.stack_module_state([network, network])
        both = torch.func.vmap(
            lambda weights: torch.func.functional_call(network, (weights, buffers), (x,))
        )(stacked)
        assert torch.allclose(both, plain.expand(2, -1, -1, -1), atol=1e-6)
        assert network.double()(x.double()).dtype == torch.double
    network = network.float()
    (gradient,) = torch.autograd.grad(network(x.requires_grad_()).sum(), x)
    assert torch.allclose(torch.func.grad(lambda x: network(x).sum())(x), gradient, atol=1e-6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert network(x).dtype == torch.bfloat16


def test_who_looks_on_or_changes_a_layer_is_not_passed_over() -> None:
    network, x = MLP(4, 3, (5,)), torch.randn(6, 4)
    with torch.no_grad():
        plain = network(x)
        seen: list[Tensor] = []
        handle = network.layers[0].register_forward_hook(
            lambda module, given, out: seen.append(out)
        )
        assert torch.allclose(network(x), plain, atol=1e-6) and len(seen) == 1
        handle.remove()
        network.layers[0] = nn.Identity()  # somebody's own layers
        network.layers[2] = nn.Linear(4, 3)
        assert network(x).shape == (6, 3)


# -- the benchmark
# --------------------------------------------------------------------------------------------

ANALYSIS = Path(__file__).parents[2] / "analysis"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """The modules of ``analysis/speed.py``, by name."""
    monkeypatch.syspath_prepend(str(ANALYSIS))
    precision = torch.get_float32_matmul_precision()
    with pyro.get_param_store().scope():
        yield lambda name: importlib.import_module(f"benchmarks.{name}")
    torch.set_float32_matmul_precision(precision)


def setting_for(benchmarks: Callable[[str], Any], folder: Path) -> Any:
    return benchmarks("common").Setting(None, "cpu", num_data=4, repeats=2, steps=2, output=folder)


class Enough(Exception):
    """The contender has shown that it trains."""


@pytest.mark.parametrize(
    "contender",
    [
        "pyro_bvae, plain",
        "hand-written PyTorch",
        "stock Pyro SVI",
        "stock Pyro SVI, our program",
        "fused Adam alone",
    ],
)
def test_contenders_train_the_given_steps_a_turn(
    benchmarks: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    contender: str,
) -> None:
    contenders, turns, steps = benchmarks("contenders"), [], []
    stock, ours = torch.optim.Adam.step, Step._update  # ours is stock Adam's by another way
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self, *args: steps.append(self) or stock(self, *args)
    )
    monkeypatch.setattr(Step, "_update", lambda self: steps.append(self.optimizer) or ours(self))

    def turn() -> None:
        turns.append(len(steps))
        if len(turns) == 3:
            raise Enough

    with pytest.raises(Enough):
        contenders.train(f"MLP/{contender}", setting_for(benchmarks, tmp_path), turn)
    optimizers = len(set(map(id, steps)))  # Pyro has one for each parameter
    first = (
        contender == "pyro_bvae, plain"
    )  # whose first update makes Adam's state by Adam's own step
    assert [(count - first) // optimizers for count in turns] == [2, 4, 6]


def test_the_hand_written_loss_is_minus_the_bound(
    benchmarks: Callable[[str], Any], tmp_path: Path
) -> None:
    """Against distributions' own densities and their closed KL, over many draws of the noise."""
    contenders = benchmarks("contenders")
    torch.manual_seed(0)
    network, x = contenders.HandWritten().requires_grad_(False), (torch.rand(5, 784) < 0.3).float()
    losses = torch.stack([network(x) for _ in range(200)])
    loc, log_variance = network.encoder(x).chunk(2, -1)
    posterior = torch.distributions.Normal(loc, (0.5 * log_variance).exp())
    z = posterior.sample((200,))
    log_likelihood = torch.distributions.Bernoulli(logits=network.decoder(z)).log_prob(x).sum(-1)
    rate = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(
        -1
    )
    exact = (rate - log_likelihood).mean(1)
    error = math.hypot(float(losses.std()), float(exact.std())) / math.sqrt(200)
    assert abs(float(losses.mean() - exact.mean())) < 4 * error


def test_contenders_work_in_turns_in_processes_of_their_own(
    benchmarks: Callable[[str], Any], tmp_path: Path
) -> None:
    first, rounds = benchmarks("turns").in_turns(
        ["MLP/fused Adam alone", "MLP/nobody"], setting_for(benchmarks, tmp_path), tmp_path
    )
    assert set(first) == {"MLP/fused Adam alone"} and len(rounds) == 2  # who cannot run is left out
    assert all(0 < round_["MLP/fused Adam alone"] < 60 for round_ in rounds)


def test_a_floor_counts_the_rows_that_were_multiplied(benchmarks: Callable[[str], Any]) -> None:
    floors, vae = benchmarks("floors"), benchmarks("common").make_vae()
    networks, x = benchmarks("common").networks(vae), torch.rand(3, 784)
    with floors.counted(*networks) as (encoder, decoder):
        with torch.no_grad():
            networks[1](torch.randn(7, 3, 20))
        networks[1](torch.randn(2, 20, requires_grad=True)).sum().backward()
        networks[0](x)
    assert (decoder.plain, decoder.followed, encoder.followed) == (21, 2, 3)
    assert not networks[0]._forward_hooks and floors.sizes_of(networks[0]) == (784, 400, 40)


def test_the_power_of_a_line_is_found(benchmarks: Callable[[str], Any]) -> None:
    measuring = benchmarks("measuring")
    rows = [
        {"size": size, "seconds": 0.1 if size < 50 else 1e-3 * size**2}
        for size in (1, 10, 100, 1000, 10_000)
    ]
    assert measuring.slope(rows) == pytest.approx(2.0)


def test_goals_are_judged_by_the_table(benchmarks: Callable[[str], Any], tmp_path: Path) -> None:
    common, training = benchmarks("common"), benchmarks("training")
    times = {training.COMPILED: [1.0, 3.0], training.HAND: [2.0, 4.0], training.STOCK: [2.0, 3.0]}
    rounds = [{name: taken[number] for name, taken in times.items()} for number in range(2)]
    ratios = {
        other: training.ratio(rounds, training.COMPILED, other)
        for other in (*times, training.FLOOR)
    }
    assert (
        ratios[training.HAND] == "0.625"
        and ratios[training.STOCK] == "0.750"
        and ratios[training.FLOOR] == ""
    )
    row = {"model": "MLP", "contender": training.COMPILED, "milliseconds_a_step": "1.0"}
    row |= {column: ratios.get(other, "") for column, other in training.REFERENCES.items()}
    common.write(setting_for(benchmarks, tmp_path), [row], training.TABLE)
    said = training.verdict(tmp_path, training.GOALS)
    assert "0.625 (goal 0.75): reached" in said[0] and "0.750 (goal 0.45): not reached" in said[1]
    assert "not measured" in said[2]
    (tmp_path / "reading.txt").write_text("\n".join(said))
    assert "no GPU was measured" in importlib.import_module("speed").reading(
        tmp_path, training.GOALS
    )
