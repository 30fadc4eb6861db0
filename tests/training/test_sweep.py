"""Sweeps: replicas trained side by side are the models that separate training gives."""

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_bvae
from pyro_bvae import BetaVAE, Context, Decoder, InputError, fit, sweep
from pyro_bvae.cli import main
from pyro_bvae.compilation.compiled_function import capture
from pyro_bvae.core.seeds import WEIGHTS_STREAM, seeded
from pyro_bvae.datasets import Dataset
from pyro_bvae.likelihoods import (
    BernoulliLikelihood,
    LearnedDispersion,
    LearnedScale,
    NegativeBinomialLikelihood,
    NormalLikelihood,
    SoftmaxRate,
)
from pyro_bvae.networks import MLP, ConvolutionalDecoder, ConvolutionalEncoder
from pyro_bvae.posteriors import FlowPosterior, FullRankPosterior, NormalPosterior
from pyro_bvae.priors import LearnedNormalPrior, NormalPrior, VampPrior
from pyro_bvae.runs import TrainConfig, train, train_sweep
from pyro_bvae.training import (
    Constant,
    FreeBits,
    LinearWarmup,
    TargetRate,
    TraceTerms,
    TrainingError,
    load_checkpoint,
)
from pyro_bvae.training.replicas.program import CannotStack, Replicas
from pyro_bvae.training.replicas.sweeping import assigned, replica_name
from pyro_bvae.training.steps import compiled as compiled_module

N, D, L = 40, 10, 3
ONE_BY_ONE = "the models are trained one after the other"
Settings = dict[str, Any]
QUICK: Settings = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-2, "progress": False}


def bits(num_features: int = D) -> Tensor:
    draws = torch.rand(
        N, num_features, generator=torch.Generator().manual_seed(1), dtype=torch.double
    )
    return (draws < 0.4).double()


def greys() -> Tensor:
    return torch.rand(N, D, generator=torch.Generator().manual_seed(2), dtype=torch.double)


def holey() -> Tensor:
    return bits().masked_fill(greys() < 0.2, torch.nan)


def cells() -> Dataset:
    counts = (8 * greys()).round()
    batches = torch.eye(2, dtype=torch.double)[torch.arange(N) % 2]
    return Dataset(counts, Context(counts.sum(1, keepdim=True) + 1, batches))


def mlp(in_features: int, out_features: int) -> MLP:
    return MLP(in_features, out_features, hidden=(8,))


def vae(
    *,
    prior: nn.Module | None = None,
    likelihood: nn.Module | None = None,
    encoder: nn.Module | None = None,
    covariates: int = 0,
    missing: bool = False,
) -> BetaVAE:
    decoder = Decoder(
        mlp(L + covariates, D), likelihood or BernoulliLikelihood(), num_covariates=covariates
    )
    encoder = encoder or NormalPosterior(mlp(D + covariates, 2 * L), num_covariates=covariates)
    return BetaVAE(prior or NormalPrior(L), decoder, encoder, missing=missing).double()


def plain(seed: int) -> BetaVAE:
    return vae()


def normal(seed: int) -> BetaVAE:
    return vae(prior=LearnedNormalPrior(L), likelihood=NormalLikelihood(LearnedScale(D)))


def full_rank(seed: int) -> BetaVAE:
    return vae(encoder=FullRankPosterior(mlp(D, FullRankPosterior.num_outputs(L))))


def counts(seed: int) -> BetaVAE:
    return vae(likelihood=NegativeBinomialLikelihood(D, rate=SoftmaxRate()), covariates=2)


def partly_observed(seed: int) -> BetaVAE:
    return vae(missing=True)


def convolutional(seed: int) -> BetaVAE:
    decoder = Decoder(ConvolutionalDecoder(L, (1, 28, 28), hidden=4), BernoulliLikelihood())
    return BetaVAE(
        NormalPrior(L), decoder, NormalPosterior(ConvolutionalEncoder((1, 28, 28), 2 * L, hidden=4))
    ).double()


def wide(seed: int) -> BetaVAE:
    """Return a model with maps large enough to be computed in another way."""
    return vae(encoder=NormalPosterior(MLP(D, 2 * L, hidden=(128, 128))))


def frozen(seed: int) -> BetaVAE:
    model = vae()
    for parameter in model.decoder.parameters():
        parameter.requires_grad_(False)
    return model


def separately(
    make: Callable[[int], BetaVAE], data: Any, beta: Any, seed: int, **settings: Any
) -> Any:
    """Return the model, and its history, of a training by itself."""
    with seeded(seed, WEIGHTS_STREAM):
        model = make(seed)
    return model, fit(model, data, beta=beta, seed=seed, **settings)


def distance(one: nn.Module, other: nn.Module) -> float:
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (plain, bits()),
        (plain, Dataset(greys()).dynamically_binarized()),
        (normal, greys()),
        (full_rank, bits()),
        (counts, cells()),
        (partly_observed, Dataset(holey(), missing=True)),
        (convolutional, bits(784)),
        (frozen, bits()),
        (wide, bits()),
    ],
    ids=[
        "plain",
        "binarized",
        "normal",
        "full-rank",
        "counts",
        "missing",
        "convolutional",
        "frozen",
        "wide",
    ],
)
def test_each_replica_is_the_model_of_separate_training(
    make: Callable[[int], BetaVAE], data: Any
) -> None:
    # The limit on the gradient is one that some replicas run into and others do not.
    settings = {**QUICK, "gradient_clip": 1.4, "validation": data[:20]}
    if make is convolutional:
        settings |= {"epochs": 1}
    warmup = lambda beta: LinearWarmup(beta, 1.5) if make is not convolutional else beta  # noqa: E731
    trained = sweep(make, data, betas=(0.0, 4.0), seeds=(0, 5), schedule=warmup, **settings)
    assert [(run.beta, run.seed) for run in trained] == [(0.0, 0), (0.0, 5), (4.0, 0), (4.0, 5)]
    for run in trained:
        alone, history = separately(make, data, warmup(run.beta), run.seed, **settings)
        assert distance(run.vae, alone) < 1e-9
        assert list(run.history) == list(history)
        for column in set(history) - {"seconds"}:
            assert run.history[column] == pytest.approx(history[column], abs=1e-9, rel=1e-9), column
        assert [str(remark) for remark in run.history.remarks] == [
            str(remark) for remark in history.remarks
        ]


def test_limits_are_each_replica_s_own() -> None:
    trained = sweep(plain, bits(), betas=(0.1, 8.0), gradient_clip=3.0, **QUICK)
    norms = [max(run.history["gradient_norm"]) for run in trained]
    assert norms[0] < 3.0 < norms[1]  # one is clipped, and the other one is not


class BatchNorm(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Linear(8, 2 * L))


class Dropout(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(D, 8), nn.Dropout(), nn.Linear(8, 2 * L))


class OfAllRows(nn.Module):
    """An encoder that looks at its batch along the first dimension, which is not that of the data
    of replicas."""

    def __init__(self) -> None:
        super().__init__()
        self.network = mlp(D, 2 * L)

    def forward(self, x: Tensor) -> Any:
        loc, raw = self.network(x - x.mean(0)).chunk(2, -1)
        return dist.Normal(loc, softplus(raw)).to_event(1)


class Noisy(OfAllRows):
    """An encoder that draws more than its latents."""

    def forward(self, x: Tensor) -> Any:
        loc, raw = self.network(x + 0.1 * torch.randn(x.shape[-2:], dtype=x.dtype)).chunk(2, -1)
        return dist.Normal(loc, softplus(raw)).to_event(1)


class Plain(OfAllRows):
    """A user's part of three lines."""

    def forward(self, x: Tensor) -> Any:
        loc, raw = self.network(x).chunk(2, -1)
        return dist.Normal(loc, softplus(raw)).to_event(1)


def with_vamp(seed: int) -> BetaVAE:
    model = vae()
    model.prior = VampPrior(model.encoder, bits()[:4])
    return model


class Wasteful(BernoulliLikelihood):
    """A likelihood that draws and does not look at it.

    The next latents' noise comes later in the stream.
    """

    def forward(self, parameters: Tensor, context: Context | None = None) -> Any:
        torch.rand(1)
        return super().forward(parameters, context)


def of_two_widths() -> Callable[[int], BetaVAE]:
    return lambda seed: vae(encoder=NormalPosterior(MLP(D, 2 * L, hidden=(8 + seed,))))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda seed: vae(encoder=NormalPosterior(BatchNorm())), "a network has buffers"),
        (lambda seed: vae(encoder=NormalPosterior(Dropout())), "random operation"),
        (
            lambda seed: vae(encoder=FlowPosterior(mlp(D, FlowPosterior.num_outputs(L)))),
            "one after the other",
        ),
        (lambda seed: vae(encoder=OfAllRows()), "other losses or gradients"),
        (lambda seed: vae(encoder=Noisy()), "draws are not only|other losses"),
        (lambda seed: vae(likelihood=Wasteful()), "draws are not only"),
        (with_vamp, "share parameters"),
        (of_two_widths(), "differ in more than their weights"),
    ],
    ids=["batch-norm", "dropout", "flow", "of-all-rows", "noisy", "wasteful", "vamp", "widths"],
)
def test_what_cannot_be_stacked_is_trained_one_after_the_other(
    make: Callable[[int], BetaVAE], reason: str
) -> None:
    with pytest.warns(UserWarning, match=f"{ONE_BY_ONE}, since .*({reason})|{reason}"):
        trained = sweep(make, bits(), betas=(0.5, 2.0), seeds=(0, 1), **QUICK)
    for run in trained:
        alone, _ = separately(make, bits(), run.beta, run.seed, **QUICK)
        assert distance(run.vae, alone) == 0.0


def test_batches_of_a_dispersion_and_loaders_are_trained_one_after_the_other() -> None:
    with pytest.warns(
        UserWarning, match=f"{ONE_BY_ONE}, since their program fails: ValueError: at site"
    ):
        sweep(
            lambda seed: vae(
                likelihood=NegativeBinomialLikelihood(dispersion=LearnedDispersion(D, 2)),
                covariates=2,
            ),
            cells(),
            betas=(1, 2),
            **QUICK,
        )
    loader = torch.utils.data.DataLoader(bits(), batch_size=16, shuffle=True)
    with pytest.warns(UserWarning, match="a loader has no order for each seed"):
        trained = sweep(plain, loader, betas=(1.0, 2.0), **QUICK)
    assert distance(trained[1].vae, separately(plain, loader, 2.0, 0, **QUICK)[0]) == 0.0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"objective": FreeBits(0.1)}, "their objective is not the β-bound of one particle"),
        ({"objective": TraceTerms(num_particles=2)}, "not the β-bound of one particle"),
        ({"compile": True}, "a compiled step is of one model"),
    ],
    ids=["free-bits", "particles", "compiled"],
)
def test_objectives_and_compiled_steps_are_those_of_fit(
    options: Settings, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def captured(function: Any, example: Any) -> tuple[Any, float]:
        graph = capture(function, [tensor.detach().clone() for tensor in example])
        return torch.no_grad()(lambda tensors: graph(*tensors)), 0.0

    monkeypatch.setattr(compiled_module, "compiled", captured)
    with pytest.warns(UserWarning, match=f"{ONE_BY_ONE}, since .*{reason}"):
        trained = sweep(plain, bits(), betas=(0.5, 2.0), **options, **QUICK)
    for run in trained:
        alone, history = separately(plain, bits(), run.beta, run.seed, **options, **QUICK)
        assert distance(run.vae, alone) == 0.0
        assert (
            run.history.step[:8] == history.step[:8] == ("compiled" if "compile" in options else "")
        )


# -- the loop of fit, for each model of a stack

LONG: Settings = {**QUICK, "epochs": 12, "learning_rate": Constant(0.1), "validation": bits()[:10]}


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (plain, {"early_stopping": 2}),
        (frozen, {"early_stopping": 2}),
        (plain, {"schedule": TargetRate}),
        (plain, {"schedule": lambda nats: TargetRate(nats, hold=0.7), "early_stopping": 1}),
    ],
    ids=["early-stopping", "frozen", "target-rate", "both"],
)
def test_models_stop_early_and_find_their_beta_as_in_fit(
    make: Callable[[int], BetaVAE], options: Settings
) -> None:
    trained = sweep(make, bits(), betas=(0.3, 1.0, 2.5), seeds=(0, 1), **options, **LONG)
    schedule = options.pop("schedule", float)
    for run in trained:
        alone, history = separately(make, bits(), schedule(run.beta), run.seed, **options, **LONG)
        assert distance(run.vae, alone) < 1e-9
        assert len(run.history.rows) == len(history.rows)
        assert run.history["beta"] == pytest.approx(history["beta"], rel=1e-9)
        assert run.history["objective"] == pytest.approx(history["objective"], rel=1e-9)
    lengths = {len(run.history.rows) for run in trained}
    assert len(lengths) > 1 or "early_stopping" not in options
    assert len({run.history["beta"][-1] for run in trained}) > 1


def test_callbacks_are_each_model_s_own() -> None:
    rows: dict[tuple[float, int], list[Any]] = {}
    weights: dict[tuple[float, int], Tensor] = {}

    def callbacks(run: Any) -> list[Any]:
        own = rows.setdefault((run.beta, run.seed), [])
        bias = run.vae.encoder.network.layers[0].bias
        return [own.append, lambda row: weights.update({(run.beta, run.seed): bias.clone()})]

    trained = sweep(plain, bits(), betas=(0.5, 2.0), callbacks=callbacks, **QUICK)
    for run in trained:
        assert rows[run.beta, run.seed] == run.history.rows
        bias = run.vae.encoder.network.layers[0].bias
        assert torch.equal(weights[run.beta, run.seed], bias)


class Interrupt(Exception):
    """A power cut."""


@pytest.mark.parametrize("place", [(0.5, 2), (2.0, 2)], ids=["amid-an-epoch", "after-an-epoch"])
@pytest.mark.parametrize("schedule", [float, TargetRate])
def test_a_sweep_that_is_resumed_is_one_that_never_stopped(
    place: tuple[float, int], schedule: Any, tmp_path: Path
) -> None:
    settings = {**LONG, "epochs": 5, "early_stopping": 2, "betas": (0.5, 2.0), "schedule": schedule}

    def callbacks(run: Any) -> list[Any]:
        def cut(row: dict[str, float]) -> None:
            if (run.beta, row["epoch"]) == place:
                raise Interrupt

        return [cut]

    whole = sweep(plain, bits(), output=tmp_path / "whole", **settings)
    with pytest.raises(Interrupt):
        sweep(plain, bits(), output=tmp_path / "parts", callbacks=callbacks, **settings)
    resumed = sweep(plain, bits(), output=tmp_path / "parts", resume=True, **settings)
    for one, other in zip(whole, resumed, strict=True):
        # Where one of two was an epoch ahead, they have gone on apart: the same but for rounding.
        assert distance(one.vae, other.vae) <= (0.0 if place[0] == 2.0 else 1e-9)
        assert len(one.history.rows) == len(other.history.rows)
        assert one.history["objective"] == pytest.approx(other.history["objective"], rel=1e-9)
    again = sweep(plain, bits(), output=tmp_path / "parts", resume=True, **settings)
    assert [run.history.rows for run in again] == [run.history.rows for run in resumed]
    assert all(
        distance(*pair) == 0
        for pair in zip((r.vae for r in again), (r.vae for r in resumed), strict=True)
    )


def test_learned_priors_whose_beta_is_0_at_different_times_are_trained_one_after_the_other() -> (
    None
):
    # Adam counts no step for a prior without a gradient, and stacked ones have one count.
    delayed = lambda beta: lambda epoch, epochs: 0.0 if epoch < beta else beta  # noqa: E731
    with pytest.warns(UserWarning, match="their β are 0 at different times"):
        sweep(normal, greys(), betas=(0.5, 1.0), schedule=delayed, **QUICK)


def test_a_function_that_holds_on_to_weights_is_found_by_its_gradient() -> None:
    # Weights of one seed are equal at the start, and so are losses by those of another replica.
    def make(seed: int) -> BetaVAE:
        encoder = NormalPosterior(mlp(D, 2 * L))
        bias = encoder.network.layers[0].bias
        decoder = Decoder(mlp(L, D), BernoulliLikelihood())
        return BetaVAE(lambda: dist.Normal(bias[:L], 1.0).to_event(1), decoder, encoder).double()

    with pytest.warns(UserWarning, match="other losses or gradients"):
        sweep(make, bits(), betas=(0.5, 2.0), **QUICK)


def test_a_user_s_part_is_stacked_too() -> None:
    make = lambda seed: vae(encoder=Plain())  # noqa: E731
    trained = sweep(
        make, bits(), betas=(0.5, 2.0), **QUICK
    )  # without a warning, which would be an error here
    assert distance(trained[1].vae, separately(make, bits(), 2.0, 0, **QUICK)[0]) < 1e-9


def test_replicas_are_one_pyro_program_that_stock_svi_trains() -> None:
    models = [vae() for _ in range(3)]
    program = Replicas(models)
    x, beta = (
        torch.stack([bits()[:5], bits()[5:10], bits()[10:15]]),
        torch.tensor([[0.0], [1.0], [4.0]]).double(),
    )
    trace = poutine.trace(program.model).get_trace(x, None, beta)
    assert [frame.name for frame in trace.nodes["z"]["cond_indep_stack"]] == ["replicas", "data"]
    torch.manual_seed(0)
    together = Trace_ELBO().differentiable_loss(program.model, program.guide, x, None, beta)
    torch.manual_seed(0)
    noise = torch.randn(3, 5, L, dtype=torch.double)  # the draw of the stacked guide
    pyro.clear_param_store()
    alone = 0.0
    for r, model in enumerate(models):
        loss = pyro_bvae.training.Loss(model)(x[r], None, float(beta[r]), {"z": noise[r]})
        alone += float(loss.loss.detach())
        pyro.clear_param_store()
    assert float(together.detach()) == pytest.approx(alone, rel=1e-12)
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(x, None, beta) for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_the_caller_s_state_is_left_alone() -> None:
    pyro.param("mine", torch.ones(2))
    before = torch.get_rng_state()
    trained = sweep(plain, bits(), betas=(1, 2), **QUICK)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(pyro.get_param_store()) == ["mine"]
    assert all(module.training for module in trained[0].vae.modules())


def test_run_directories_are_those_of_fit_and_can_be_resumed(tmp_path: Path) -> None:
    settings = {**QUICK, "learning_rate": Constant(1e-2), "validation": bits()[:10]}
    trained = sweep(plain, bits(), betas=(0.5, 2.0), output=tmp_path, **settings)
    assert [run.directory.name for run in trained] == ["beta0.5-seed0", "beta2-seed0"]
    for run in trained:
        last = load_checkpoint(run.directory / "checkpoints" / "last.pt")
        assert all(
            torch.equal(last["model"][name], value) for name, value in run.vae.state_dict().items()
        )
        assert load_checkpoint(run.directory / "checkpoints" / "best.pt")["settings"]["seed"] == 0
        assert (
            pyro_bvae.training.History.read(run.directory / "metrics.csv").rows == run.history.rows
        )
    separately(plain, bits(), 2.0, 0, output=tmp_path / "alone", **settings)
    sizes = [
        (path / "checkpoints" / "last.pt").stat().st_size
        for path in (run.directory, tmp_path / "alone")
    ]
    assert (
        sizes[0] < 1.15 * sizes[1]
    )  # it holds nothing of its neighbours, but a count for each parameter
    resumed = vae()
    longer = {**settings, "epochs": 5}
    fit(resumed, bits(), beta=2.0, output=trained[1].directory, resume=True, **longer)
    assert distance(resumed, separately(plain, bits(), 2.0, 0, **longer)[0]) < 1e-9
    with pytest.raises(InputError, match="holds a run already"):
        sweep(plain, bits(), betas=(2.0,), output=tmp_path, **settings)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"betas": ()}, "'betas' must name at least one, got none"),
        ({"betas": (1.0, 2.0, 1)}, "'betas' must be different from each other, got 1 twice"),
        ({"betas": (1.0, -0.5)}, "'beta' must be non-negative and finite, got -0.5"),
        ({"seeds": ()}, "'seeds' must name at least one, got none"),
        ({"seeds": (3, 3)}, "'seeds' must be different from each other, got 3 twice"),
        ({"seeds": (-1,)}, "'seeds' must be non-negative integers, got -1"),
        ({"schedule": TargetRate, "betas": (0.0,)}, "'nats' must be positive and finite, got 0.0"),
        ({"resume": True}, "'resume' needs 'output', the directory of the runs to continue"),
        ({"epochs": 0}, "'epochs' must be a positive integer, got 0"),
    ],
)
def test_bad_input_is_told_in_a_line(changed: Settings, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        sweep(plain, bits(), **{"betas": (1.0, 2.0), **QUICK, **changed})
    assert "\n" not in str(raised.value)


def test_one_model_twice_is_refused() -> None:
    model = vae()
    with pytest.raises(InputError, match="'make_vae' must build a new model at each call"):
        sweep(lambda seed: model, bits(), betas=(1.0, 2.0), **QUICK)
    with pytest.raises(InputError, match="'make_vae' must build a model, got None"):
        sweep(lambda seed: None, bits(), betas=(1.0, 2.0), **QUICK)


def test_a_replica_that_leaves_the_finite_numbers_is_named(tmp_path: Path) -> None:
    def make(seed: int) -> BetaVAE:
        return vae(likelihood=NormalLikelihood(LearnedScale()))

    def data(seed: int) -> Tensor:
        return greys() * (1e200 if seed == 4 else 1.0)  # its square is not finite

    with pytest.raises(
        TrainingError, match=r"epoch 1, step 1 \(batch 0\), β = 1, seed 4: site 'z' of the model"
    ):
        sweep(make, data, betas=(1.0,), seeds=(3, 4), output=tmp_path, **QUICK)
    assert not list(tmp_path.iterdir())


def test_a_sweep_prints_itself() -> None:
    trained = sweep(plain, bits(), betas=(0.5, 2.0), **QUICK)
    lines = str(trained).splitlines()
    assert len(lines) == 3 and lines[0].split()[:4] == ["beta", "seed", "objective", "distortion"]
    assert f"{trained[1].history['rate'][-1]:.2f}" in lines[2]
    assert trained[-1].beta == 2.0 and len(trained) == 2 and trained.runs[0] is trained[0]


def test_processes_share_the_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        shares += [assigned((1, 2), (0, 1))]
    assert sorted(pair for share in shares for pair in share) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert [len(share) for share in shares] == [2, 1, 1]
    assert len({replica_name(beta, 0) for beta in (1.0, 1.0000001, 0.1)}) == 3


def test_a_sweep_of_a_configuration_is_what_train_gives(tmp_path: Path) -> None:
    config = TrainConfig(
        hidden=(16,), latent_dim=3, likelihood="normal", epochs=2, start_at_mean=True
    )
    trained = train_sweep(config, tmp_path / "sweep", betas=(0.5, 2.0), seeds=2, progress=False)
    run = trained[3]
    assert (run.beta, run.seed) == (2.0, 1)
    read = pyro_bvae.load(run.directory, checkpoint="last")
    training = read.config.training
    assert training.beta == 2.0 and training.seed == 1 and read.training_beta == 2.0
    single = train(
        config.with_options(beta=2.0, seed=1), tmp_path / "single", progress=False
    )  # whose data are split by its seed
    assert distance(read.vae, single.vae) < 1e-3
    assert read.config == pyro_bvae.load(tmp_path / "single").config
    with pytest.raises(InputError, match=r"beta0\.5-seed0 exists: pass --resume .* --overwrite"):
        train_sweep(config, tmp_path / "sweep", betas=(0.5,), progress=False)
    with pytest.raises(InputError, match="'seeds' must be a positive integer, got 0"):
        train_sweep(config, tmp_path / "new", betas=(0.5,), seeds=0)
    with pytest.raises(InputError, match="'target_rate' finds a β"):
        train_sweep(TrainConfig(target_rate=5.0), tmp_path / "new", betas=(0.5,))
    with pytest.raises(InputError, match="'betas' and 'target_rates' exclude each other"):
        train_sweep(config, tmp_path / "new", betas=(0.5,), target_rates=(5.0,))
    with pytest.raises(InputError, match="'--resume' and '--overwrite' exclude each other"):
        train_sweep(config, tmp_path / "new", betas=(0.5,), resume=True, overwrite=True)
    assert not (tmp_path / "new").exists()


SMALL = ["--hidden", "8", "--latent-dim", "2", "--likelihood", "normal", "--seeds", "2"]


def test_the_command_finds_the_beta_of_each_rate_as_train_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "sweep")]
    assert main(["sweep", *SMALL, "--epochs", "3", "--target-rate", "2", "6", *output]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split()[:3] == ["target", "seed", "beta"]
    assert {line.split()[0] for line in shown[1:5]} == {"2", "6"}
    read = pyro_bvae.load(tmp_path / "sweep" / "rate6-seed1", checkpoint="last")
    single = train(
        TrainConfig(
            hidden=(8,), latent_dim=2, likelihood="normal", epochs=3, target_rate=6.0, seed=1
        ),
        tmp_path / "single",
        progress=False,
    )
    assert (
        distance(read.vae, single.vae) < 1e-3
        and read.config == pyro_bvae.load(tmp_path / "single").config
    )
    assert read.training_beta == pytest.approx(single.training_beta, rel=1e-4)
    assert read.training_beta != 1.0


@pytest.mark.filterwarnings("ignore:the learning rate jumps")
@pytest.mark.parametrize("values", [["--betas", "0.5", "2"], ["--target-rate", "2", "6"]])
def test_the_command_resumes_a_sweep_from_its_directory_alone(
    values: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, whole = tmp_path / "short", tmp_path / "whole"
    assert main(["sweep", *SMALL, *values, "--epochs", "2", "--output", str(short)]) == 0
    shutil.copytree(short, whole)
    names = sorted(run.name for run in whole.iterdir())
    assert len(names) == 4
    shutil.rmtree(
        short / names[0] / "checkpoints"
    )  # as if the machine had failed before its epochs
    (short / names[1] / "evaluation.json").write_text("{}")
    again = ["sweep", "--resume", "--output", str(short)]
    assert main(again) == 0
    for name in names:
        one, other = (pyro_bvae.load(part / name, checkpoint="last") for part in (short, whole))
        assert one.config == other.config and distance(one.vae, other.vae) < 1e-3
    assert (short / names[1] / "evaluation.json").exists()  # its model is as it was
    capsys.readouterr()
    assert main([*again, "--latent-dim", "3"]) == 2
    assert "--latent-dim was 2, got 3" in capsys.readouterr().err
    assert main([*again, "--epochs", "3"]) == 0
    assert len(pyro_bvae.load(short / names[1], checkpoint="last").history.rows) == 3
    assert not (short / names[1] / "evaluation.json").exists()
    assert main(["sweep", "--resume", "--output", str(tmp_path / "none")]) == 2
    assert "holds no sweep" in capsys.readouterr().err


@pytest.mark.slow
def test_torchrun_spreads_a_sweep_over_processes(tmp_path: Path) -> None:
    options = (
        "sweep --betas 0.5 2 --seeds 1 --epochs 1 --hidden 8 --latent-dim 2 --likelihood normal"
    )
    command = [sys.executable, "-m", "pyro_bvae", *options.split(), "--output", str(tmp_path)]
    environments = [{**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for environment in environments
    ]
    printed = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert [text.splitlines()[1].split()[0] for text in printed] == ["0.5", "2"]
    assert {path.parts[-3] for path in tmp_path.glob("*/checkpoints/last.pt")} == {
        "beta0.5-seed0",
        "beta2-seed0",
    }


def test_the_command_tells_bad_input_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--betas", "1", "--target-rate", "5"]
    for options in (
        both,
        ["--target-rate", "0"],
        ["--betas", "1", "1"],
        ["--betas", "-1"],
        ["--betas"],
        ["--seeds", "0"],
    ):
        assert main(["sweep", *options, "--output", str(tmp_path / "new")]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_precision_is_that_of_fit(precision: str) -> None:
    settings = {**QUICK, "precision": precision}
    trained = sweep(lambda seed: vae().float(), bits(), betas=(0.5, 2.0), **settings)
    alone, _ = separately(lambda seed: vae().float(), bits(), 2.0, 0, **settings)
    assert distance(trained[1].vae, alone) < (2e-2 if precision == "bf16" else 1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_replicas_on_a_device_are_the_models_of_separate_training() -> None:
    trained = sweep(plain, bits(), betas=(0.5, 2.0), seeds=(0, 1), device="cuda", **QUICK)
    for run in trained:
        alone, _ = separately(plain, bits(), run.beta, run.seed, device="cuda", **QUICK)
        assert distance(run.vae, alone) < 1e-6


class Operations(TorchDispatchMode):
    """Counts the operations that run."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_replicas_share_their_operations() -> None:
    """Small models spend their time between operations.

    How many there are says what a step costs.
    """
    data, settings = bits().repeat(8, 1), {"epochs": 2, "batch_size": 8, "progress": False}
    with Operations() as together:
        sweep(plain, data, betas=range(1, 13), **settings)
    with Operations() as alone:
        fit(plain(0), data, beta=1.0, **settings)
    assert together.count < 4 * alone.count  # for twelve


@pytest.mark.parametrize(
    ("num_replicas", "large", "stacked"), [(2, True, False), (4, True, True), (2, False, True)]
)
def test_few_large_replicas_are_not_stacked(
    num_replicas: int, large: bool, stacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU two of them take longer side by side than one after the other."""
    module = sys.modules[
        "pyro_bvae.training.replicas.sweeping"
    ]  # its name in the package is the function's
    tried: list[int] = []

    def stack(replicas: list[Any]) -> None:
        tried.append(len(replicas))
        raise CannotStack("this is a test")

    monkeypatch.setattr(module, "StackedModels", stack)
    if large:
        monkeypatch.setattr(module, "_LARGE", {1: 0, 2: 1, 3: 1})
    x = torch.rand(8, 6)

    def make_vae(seed: int) -> BetaVAE:
        return BetaVAE(
            NormalPrior(2),
            Decoder(MLP(2, 6, hidden=(4,)), BernoulliLikelihood()),
            NormalPosterior(MLP(6, 4, hidden=(4,))),
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = sweep(
            make_vae, x, betas=[1.0, 2.0, 3.0, 4.0][:num_replicas], epochs=1, progress=False
        )
    assert len(results) == num_replicas and tried == ([num_replicas] if stacked else [])
