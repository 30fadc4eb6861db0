"""What the tests of several processes run in each of them: cases, whose results a process writes for the test to read.

``python processes.py OUTPUT`` is one that ``torchrun`` has started, which trains and evaluates.
There the second one, if it was never restarted, kills itself in the third epoch.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from pyro_bvae import BetaVAE, Decoder, fit
from pyro_bvae.cli import main
from pyro_bvae.compilation.compiled_function import capture
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Dataset, LazyDataset
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.runs.evaluation_files import evaluate_shares
from pyro_bvae.training import (
    IWELBO,
    Constant,
    GivenNoise,
    Loss,
    Ranks,
    TargetRate,
    Terms,
    TotalCorrelation,
    TraceTerms,
    TrainingError,
    process_group,
    state,
    trainer,
)
from pyro_bvae.training.steps import compiled as compiled_module
from pyro_bvae.training.steps.compiled import CompiledStep
from pyro_bvae.training.steps.step import Step

FEATURES, LATENTS, PARTICLES = 6, 2, 3
OPTIONS: dict[str, Any] = {"batch_size": 8, "learning_rate": Constant(1e-2), "progress": False}


def noise_of(x: Tensor, particles: int = 1) -> Tensor:
    """Return noise that a datum always has, whichever process sees it, shape ``(particles, B,
    L)``."""
    waves = torch.arange(1.0, 1 + x.shape[1] * LATENTS * particles, dtype=x.dtype).view(
        particles, x.shape[1], LATENTS
    )
    return 0.5 * torch.sin(x @ waves)


class KnownNoise(TraceTerms):
    """The β-bound with a noise that is known."""

    def terms(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Terms:
        with GivenNoise({"z": noise_of(args[0])[0]}):
            return super().terms(model, guide, *args, **kwargs)


class Seeds(TraceTerms):
    """The β-bound, with a note of the seed of the noise that it is drawn from."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def terms(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Terms:
        self.seen.append(torch.initial_seed())
        return super().terms(model, guide, *args, **kwargs)


class KnownNoiseIWELBO(IWELBO):
    """The importance-weighted bound with a noise that is known."""

    def terms(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Terms:
        with GivenNoise({"z": noise_of(args[0], PARTICLES)}):
            return super().terms(model, guide, *args, **kwargs)


OBJECTIVES = {"bound": KnownNoise(), "iwelbo": KnownNoiseIWELBO(PARTICLES)}


def vae(seed: int = 3, *, batch_norm: bool = False) -> BetaVAE:
    pyro.clear_param_store()
    torch.manual_seed(seed)
    encoder = MLP(FEATURES, 2 * LATENTS, hidden=(8,))
    if batch_norm:
        encoder.layers.insert(1, nn.BatchNorm1d(8))
    decoder = Decoder(MLP(LATENTS, FEATURES, hidden=(8,)), NormalLikelihood())
    return BetaVAE(NormalPrior(LATENTS), decoder, NormalPosterior(encoder)).double()


def numbers(count: int, seed: int = 0) -> Tensor:
    return torch.randn(
        count, FEATURES, generator=torch.Generator().manual_seed(seed), dtype=torch.double
    )


def gradients(
    ranks: Ranks, count: int, objective: Any, kind: type[Step] = Step, clip: float | None = 0.1
) -> Any:
    """Return the numbers of a step on a joint batch, its gradients and the weights after it."""
    model, x = vae(), numbers(count)[ranks.share(count)]
    step = kind(Loss(model, objective), list(model.parameters()), clip, "float32", ranks)
    if isinstance(step, CompiledStep):
        assert not len(x) or step.prepare(x, None, 2.0), step.report
    stats, size = step.joint_gradients(x, None, torch.tensor(2.0, dtype=torch.double))
    results = [parameter.grad.clone() for parameter in model.parameters()]
    step(x, None, 2.0, 1e-2)
    return {"stats": stats, "size": size, "gradients": results, "weights": model.state_dict()}


def captured(function: Any, example: Any) -> tuple[Any, float]:
    """Stand in for the compiler: the captured operations, run as they are."""
    graph = capture(function, [tensor.detach().clone() for tensor in example])
    return torch.no_grad()(lambda tensors: graph(*tensors)), 0.0


def run(
    model: BetaVAE, output: Path | None, *, epochs: int = 3, resume: bool = False, **changes: Any
) -> Any:
    """Train with known noise; the last batch of 21 rows leaves five for both processes."""
    given = {
        "data": numbers(21),
        "objective": KnownNoise(),
        "beta": TargetRate(1.0, integral=0.1),
        **changes,
    }
    history = fit(
        model, given.pop("data"), validation=numbers(9, 1), epochs=epochs, output=output, resume=resume,
        gradient_clip=0.5, early_stopping=20, **OPTIONS, **given,
    )  # fmt: skip
    return {"weights": model.state_dict(), "rows": history.rows}


class Counted:
    """A table that remembers which rows it was asked for."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.shape, self.asked = values.numpy(), tuple(values.shape), []

    def __getitem__(self, rows: Any) -> Any:
        self.asked += rows.tolist()
        return self.values[rows]


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except (InputError, TrainingError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def wrapped(ranks: Ranks) -> Any:
    """Return what DistributedDataParallel makes of the loss module, on shares of one size."""
    model, x = vae(), numbers(8)[ranks.share(8)]
    loss = DistributedDataParallel(Loss(model, KnownNoise()))
    loss(x, None, 2.0).loss.backward()
    return [parameter.grad * ranks.size for parameter in model.parameters()]


def loaded(ranks: Ranks) -> Any:
    """Return which data a loader with a DistributedSampler has shown to this process in two
    epochs."""
    table = TensorDataset(torch.arange(20.0, dtype=torch.double).unsqueeze(1).expand(20, FEATURES))
    seen: list[float] = []

    def collate(items: list[tuple[Tensor]]) -> Tensor:
        seen.extend(float(x[0]) for (x,) in items)
        return torch.stack([x for (x,) in items]) / 20

    loader = DataLoader(table, batch_size=5, sampler=DistributedSampler(table), collate_fn=collate)
    model = vae()
    fit(model, loader, epochs=2, seed=0, **OPTIONS)
    return {"seen": seen, "weights": model.state_dict()}


def cases(ranks: Ranks, folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {"shares": [ranks.share(count) for count in range(12)]}
    for name, objective in OBJECTIVES.items():
        for count in (1, 7, 8):
            results[f"step-{name}-{count}"] = gradients(ranks, count, objective)
    compiled_module.compiled = captured
    results["compiled"] = gradients(ranks, 7, OBJECTIVES["bound"], CompiledStep)
    results["ddp"] = wrapped(ranks)
    writes: list[str] = []
    save = state.save_epoch

    def noted(directory: Path, history: Any, content: Any, *, best: bool) -> None:
        writes.extend(["best.pt", "last.pt"] if best else ["last.pt"])
        save(directory, history, content, best=best)

    state.save_epoch = noted
    # Weights that differ at first, which the first process's take the place of.
    results["fit"] = run(vae(3 + ranks.rank), folder / "two")
    results["writes"] = writes
    results["compiled-fit"] = run(vae(), None, compile=True)
    results["resumed"] = run(vae(7), folder / "one", epochs=5, resume=True)
    table = Counted(numbers(21))
    results["lazy"] = run(vae(), None, data=LazyDataset(table, dtype=torch.double))
    results["asked"] = table.asked
    seeds = Seeds()
    fit(vae(), numbers(16), objective=seeds, epochs=2, **OPTIONS)
    results["seeds"] = sorted(set(seeds.seen[-4:]))
    results["loader"] = loaded(ranks)
    bad = numbers(16)
    bad[5] = 1e200  # in the share of one of them
    results["infinite"] = refusal(lambda: fit(vae(), bad, epochs=2, **OPTIONS))
    for name, objective in (("batch", TotalCorrelation(16)), ("norm", None)):
        model = vae(batch_norm=name == "norm")
        results[name] = refusal(
            lambda m=model, o=objective: fit(m, numbers(8), objective=o, epochs=1, **OPTIONS)
        )
    plain = DataLoader(TensorDataset(numbers(8)), batch_size=4)
    results["plain"] = refusal(lambda: fit(vae(), plain, epochs=1, **OPTIONS))
    data = Dataset(numbers(5))
    results["evaluation"] = evaluate_shares(
        vae(), (data.x,), ranks, seed=0, num_samples=2000
    ).to_dict()
    return results


def write_cases(folder: Path) -> None:
    """Be one process of two, and write the results of the cases."""
    with process_group() as ranks:
        torch.save(cases(ranks, folder), folder / f"{ranks.rank}.pt")


def dies(output: str) -> int:
    own = trainer.Trainer._epoch

    def epoch(self: Any, number: int, *rest: Any) -> Any:
        if (
            number == 2
            and os.environ["RANK"] == "1"
            and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        return own(self, number, *rest)

    trainer.Trainer._epoch = epoch  # type: ignore[method-assign]
    if os.environ["RANK"] == "0" and os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
        time.sleep(2)  # so that the second looks for the first where that was before it ended
    options = "--epochs 4 --hidden 8 --latent-dim 2 --likelihood normal --batch-size 256 --output"
    return main(["train", *options.split(), output]) or main(
        ["evaluate", output, "--num-data", "5"]
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(dies(sys.argv[1]))
