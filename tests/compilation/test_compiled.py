"""The compiled step is the same program.

Losses, gradients and runs are those of stock Pyro, for all parts.
"""

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, evidence, fit
from pyro_bvae.compilation import compiled_function as compiling
from pyro_bvae.compilation.compiled_function import Swapped, capture, compiled
from pyro_bvae.core.internals import is_capturing
from pyro_bvae.core.param_store import private_store
from pyro_bvae.core.precision import fast_products
from pyro_bvae.datasets import Dataset
from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.runs import Shape, TrainConfig, build_vae
from pyro_bvae.runs.catalogue import LIKELIHOODS, NETWORKS, POSTERIORS, PRIORS
from pyro_bvae.training import FreeBits, LinearWarmup, Loss
from pyro_bvae.training.steps import compiled as compiled_module
from pyro_bvae.training.steps.compiled import CompiledStep
from pyro_bvae.training.steps.step import Step
from tests.runs.test_matrix import data_for

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
MEMBERS = [
    *({"prior": prior} for prior in PRIORS),
    *({"likelihood": likelihood} for likelihood in LIKELIHOODS),
    *({"posterior": posterior} for posterior in POSTERIORS),
    *({"network": network} for network in NETWORKS if network != "mlp"),
]
# Each member at least once, and not each with each: the compiler takes seconds.
COMPILED = [
    {
        "likelihood": likelihood,
        "posterior": list(POSTERIORS)[number % len(POSTERIORS)],
        "prior": list(PRIORS)[number % len(PRIORS)],
        "network": {0: "convolutional", 1: "residual", 5: "linear"}.get(number, "mlp"),
    }
    for number, likelihood in enumerate(LIKELIHOODS)
]


def member(parts: dict[str, str]) -> tuple[BetaVAE, Dataset]:
    """Return a model with some parts of the catalogue, and data for it."""
    data = data_for(parts.get("likelihood", "bernoulli"))
    if parts.get("network") == "convolutional":
        data = Dataset(
            (torch.rand(6, 28 * 28, generator=torch.Generator().manual_seed(0)) < 0.3).float(),
            image_shape=(1, 28, 28),
        )
    torch.manual_seed(1)
    config = TrainConfig(**parts, hidden=(8,), latent_dim=2, prior_components=3)  # type: ignore[arg-type]
    return build_vae(config, Shape.of(data)), data


def only_captured(function: Any, example: Any) -> tuple[Any, float]:
    """Stand in for the compiler: the captured operations, run as they are."""
    graph = capture(function, [tensor.detach().clone() for tensor in example])
    return torch.no_grad()(lambda tensors: graph(*tensors)), 0.0


def gradients_of(vae: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in vae.parameters()]


def check_against_pyro(parts: dict[str, str], dtype: torch.dtype) -> None:
    """Loss and gradients at two β of one compiled step against ``Trace_ELBO``'s, each tensor in
    norm."""
    vae, data = member(parts)
    vae, data = vae.to(dtype), data.to(dtype=dtype)
    with private_store(vae.model), pyro.validation_enabled(False):
        step = CompiledStep(Loss(vae), list(vae.parameters()), None, "float32")
        assert step.prepare(data.x, data.context, 1.0), step.report
        for beta in (0.0, 2.5):
            torch.manual_seed(7)
            stats = step.gradients(data.x, data.context, beta)
            result = gradients_of(vae)
            vae.zero_grad()
            torch.manual_seed(7)
            loss = Trace_ELBO().loss_and_grads(vae.model, vae.guide, data.x, data.context, beta)
            expected = gradients_of(vae)
            assert float(stats[0]) == pytest.approx(loss, rel=TOLERANCES[dtype])
            whole = sum(float(gradient.square().sum()) for gradient in expected) ** 0.5
            for one, other in zip(result, expected, strict=True):
                assert (one - other).norm() <= TOLERANCES[dtype] * max(
                    float(other.norm()), 1e-3 * whole
                )


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("parts", MEMBERS, ids=lambda parts: "-".join(parts.values()))
def test_what_is_captured_is_trace_elbo(
    parts: dict[str, str], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_module, "compiled", only_captured)
    check_against_pyro(parts, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", range(len(COMPILED)), ids=lambda number: "-".join(COMPILED[number].values())
)
def test_what_is_compiled_is_trace_elbo(number: int) -> None:
    check_against_pyro(COMPILED[number], tuple(TOLERANCES)[number % 2])


def test_every_member_is_compiled_somewhere() -> None:
    for name, members in (("posterior", POSTERIORS), ("prior", PRIORS), ("network", NETWORKS)):
        assert {parts[name] for parts in COMPILED} == {*members}


# -- whole runs
# --------------------------------------------------------------------------------------------------


def small_vae() -> BetaVAE:
    torch.manual_seed(0)
    decoder = Decoder(MLP(2, 6, hidden=(8,)), BernoulliLikelihood())
    return BetaVAE(NormalPrior(2), decoder, NormalPosterior(MLP(6, 4, hidden=(8,)))).double()


def bits(count: int = 30) -> Tensor:
    return torch.rand(
        count, 6, generator=torch.Generator().manual_seed(2), dtype=torch.double
    ).round()


def weights_after(compile: bool, vae: BetaVAE | None = None, **options: Any) -> tuple[Tensor, Any]:
    """Train on 30 data in batches of 12, so that the last batch has another shape."""
    vae = vae or small_vae()
    options = {
        "beta": LinearWarmup(2.0, 2),
        "epochs": 4,
        "batch_size": 12,
        "gradient_clip": 0.5,
    } | options
    history = fit(vae, bits(), compile=compile, progress=False, **options)
    return torch.cat([parameter.detach().flatten() for parameter in vae.parameters()]), history


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the seconds of the compiler."""
    monkeypatch.setattr(compiled_module, "compiled", only_captured)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "options",
    [{}, {"objective": FreeBits(0.1)}, {"learning_rate": lambda done, _: 0.01 / (1 + done)}],
)
def test_a_compiled_run_is_the_plain_run(options: dict[str, Any]) -> None:
    """With a β schedule, clipping that bites, a schedule of the learning rate and an uneven last
    batch."""
    plain, history = weights_after(False, **options)
    fast, compiled_history = weights_after(True, **options)
    assert compiled_history.step.startswith("compiled the step in ") and history.step == ""
    assert torch.allclose(plain, fast, rtol=1e-9, atol=1e-12)
    for column in ("objective", "distortion", "rate", "gradient_norm", "beta"):
        assert history[column] == pytest.approx(compiled_history[column], rel=1e-9)
    unclipped, _ = weights_after(True, **options, **{"gradient_clip": None})
    assert not torch.allclose(plain, unclipped, rtol=1e-3)


@pytest.mark.usefixtures("quick")
def test_a_compiled_run_resumes_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    whole, _ = weights_after(True, output=tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        weights_after(True, output=tmp_path / "parts", callbacks=[stop])
    resumed, _ = weights_after(True, output=tmp_path / "parts", resume=True)
    assert torch.equal(whole, resumed)


@pytest.mark.usefixtures("quick")
def test_mixed_precision_is_captured_with_the_step() -> None:
    vae, x = small_vae().float(), bits().float()
    with private_store(vae.model), pyro.validation_enabled(False):
        step = CompiledStep(Loss(vae), list(vae.parameters()), None, "bf16")
        assert step.prepare(x, None, 1.0), step.report
        torch.manual_seed(0)
        half = step.gradients(x, None, 1.0)
        torch.manual_seed(0)
        whole = Step(Loss(vae), list(vae.parameters()), None, "float32").gradients(x, None, 1.0)
    assert half[0] != whole[0] and half[0] == pytest.approx(float(whole[0]), rel=0.02)


@pytest.mark.usefixtures("quick")
def test_batch_norm_keeps_its_statistics_and_capturing_moves_nothing() -> None:
    def with_norm() -> BetaVAE:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 4))
        decoder = Decoder(MLP(2, 6, hidden=(8,)), BernoulliLikelihood())
        return BetaVAE(NormalPrior(2), decoder, NormalPosterior(network)).double()

    plain_vae, fast_vae = with_norm(), with_norm()
    plain, _ = weights_after(False, plain_vae)
    fast, history = weights_after(True, fast_vae)
    assert history.step.startswith("compiled")
    assert torch.allclose(plain, fast, rtol=1e-8, atol=1e-11)
    for one, other in zip(plain_vae.buffers(), fast_vae.buffers(), strict=True):
        assert torch.allclose(one.double(), other.double(), rtol=1e-8)


# -- what cannot be compiled
# -----------------------------------------------------------------------------------------


class Undecided(nn.Module):
    """A likelihood with control flow on a tensor."""

    def forward(self, logits: Tensor) -> Any:
        if logits.mean() > 0:
            logits = 0.9 * logits
        return BernoulliLikelihood()(logits)


def test_control_flow_on_tensors_runs_plain_and_says_why() -> None:
    torch.manual_seed(0)
    decoder = Decoder(MLP(2, 6, hidden=(8,)), Undecided())
    vae = BetaVAE(NormalPrior(2), decoder, NormalPosterior(MLP(6, 4, hidden=(8,)))).double()
    with pytest.warns(
        UserWarning, match=r"not compiled: the program asks a tensor for its value \(if, while"
    ):
        _, history = weights_after(True, vae)
    assert history["epoch"] == [1, 2, 3, 4] and "asks a tensor" in history.step


def test_without_a_compiler_the_run_is_plain_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler

    def compile(*_: object, **__: object) -> None:
        none()

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    monkeypatch.setattr("torch._inductor.compile", compile)
    plain, _ = weights_after(False)
    with pytest.warns(UserWarning, match=r"^the step is not compiled: there is no C\+\+ compiler$"):
        fast, _ = weights_after(True)
    assert torch.equal(plain, fast)


def test_a_program_that_says_something_else_when_compiled_is_run_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(function: Any, example: Any) -> tuple[Any, float]:
        run, seconds = only_captured(function, example)
        return (lambda tensors: [1.001 * tensor for tensor in run(tensors)]), seconds

    monkeypatch.setattr(compiled_module, "compiled", wrong)
    plain, _ = weights_after(False)
    with pytest.warns(UserWarning, match=r"compiled and plain gradients differ by"):
        fast, _ = weights_after(True)
    assert torch.equal(plain, fast)


@pytest.mark.parametrize(("worth", "tried"), [(13, False), (12, True)])
def test_only_a_run_that_repays_it_is_compiled(
    worth: int, tried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_module, "compiled", only_captured)
    monkeypatch.setattr(
        "pyro_bvae.training.steps.single.WORTH_COMPILING", worth
    )  # the run has four epochs of three steps
    _, history = weights_after(None)  # type: ignore[arg-type]
    assert history.step.startswith("compiled") is tried


# -- the pieces
# --------------------------------------------------------------------------------------------------


def test_swapped_modules_get_their_tensors_back_where_two_names_lead_to_one() -> None:
    shared = nn.Linear(2, 2)
    module = nn.ModuleDict({"one": nn.ModuleDict({"inner": shared}), "other": shared})
    tied = nn.Linear(2, 2)
    tied.weight = shared.weight
    swapped = Swapped(module, tied)
    before = list(shared.parameters())
    assert len(swapped.tensors()) == 3
    with swapped.given([torch.zeros_like(tensor) for tensor in swapped.tensors()]):
        assert not shared(torch.ones(2)).any() and not tied.weight.any()
    assert all(one is other for one, other in zip(before, shared.parameters(), strict=True))
    assert tied.weight is shared.weight


@pytest.mark.slow
def test_compiled_functions_draw_the_generators_numbers() -> None:
    def noisy(tensors: Any) -> Any:
        return [tensors[0] + torch.randn(5), torch.rand(3)]

    run, seconds = compiled(noisy, [torch.zeros(5)])
    torch.manual_seed(3)
    result = run([torch.ones(5)])
    torch.manual_seed(3)
    assert all(
        torch.allclose(one, other)
        for one, other in zip(result, noisy([torch.ones(5)]), strict=True)
    )
    again, less = compiled(noisy, [torch.zeros(5)])
    assert again is run and less < seconds


def test_what_was_compiled_holds_on_to_its_large_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are known by identity.

    One that was freed could have its place taken, and its function, by another.
    """

    def folded(graph: Any, example: Any) -> Any:
        """Stand in for a compiler that keeps what it made of a constant, and not the constant."""
        made = graph(*example)[0].clone()
        return lambda tensors: [tensors[0] + made]

    monkeypatch.setattr(compiling, "_known", {})
    monkeypatch.setattr(compiling, "_compile", folded)
    for value in range(20):
        constant = torch.full((100,), float(value))
        run, _ = compiled(
            lambda tensors, constant=constant: [tensors[0] + constant], [torch.zeros(100)]
        )
        assert run([torch.zeros(100)])[0].eq(value).all()
        weak = weakref.ref(constant)
        del constant
        assert weak() is not None


def test_a_thread_that_runs_while_another_captures_does_not() -> None:
    seen: list[bool] = []

    def look(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        seen.append(is_capturing())
        thread = threading.Thread(target=lambda: seen.append(is_capturing()))
        thread.start()
        thread.join()
        return tensors

    capture(look, [torch.zeros(1)])
    assert seen == [True, False] and not is_capturing()


def test_fast_products_leave_the_callers_precision_and_float32s_digits() -> None:
    one, other = torch.randn(2, 64, 300, generator=torch.Generator().manual_seed(0))
    exact = one.double() @ other.double().T
    with fast_products(torch.device("cpu")):
        error = ((one @ other.T).double() - exact).norm() / exact.norm()
    assert error < 1e-6 and torch.get_float32_matmul_precision() == "highest"


@pytest.mark.slow
def test_compiled_evidence_is_the_evidence() -> None:
    vae, x = small_vae(), bits()
    plain = evidence(vae.model, vae.guide, x, num_samples=200, compile=False)
    fast = evidence(vae.model, vae.guide, x, num_samples=200, compile=True)
    assert torch.allclose(plain.per_datum, fast.per_datum, rtol=1e-9)


def test_a_density_that_cannot_be_compiled_is_run_as_it_is() -> None:
    torch.manual_seed(0)
    decoder = Decoder(MLP(2, 6, hidden=(8,)), Undecided())
    vae, x = (
        BetaVAE(NormalPrior(2), decoder, NormalPosterior(MLP(6, 4, hidden=(8,)))).double(),
        bits(),
    )
    plain = evidence(vae.model, vae.guide, x, num_samples=20)
    with pytest.warns(
        UserWarning, match="the density is not compiled: the program asks a tensor for its value"
    ):
        assert torch.equal(
            evidence(vae.model, vae.guide, x, num_samples=20, compile=True).per_datum,
            plain.per_datum,
        )
