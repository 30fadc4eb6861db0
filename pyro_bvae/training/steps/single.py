"""The step of one model, for :class:`~pyro_bvae.training.trainer.Trainer`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

from torch import Tensor

from pyro_bvae.core.processes.progress import ProgressBar
from pyro_bvae.core.seeds import NOISE_STREAM, seed_generators, stream_seed
from pyro_bvae.training.batches import Batch
from pyro_bvae.training.checks.nonfinite import describe_nonfinite
from pyro_bvae.training.state import TrainingState
from pyro_bvae.training.steps.compiled import CompiledStep
from pyro_bvae.training.steps.cuda_graph import GraphedStep
from pyro_bvae.training.steps.step import Step

#: Steps from which a run repays being compiled: the compiler takes as long as some ten thousand
#: steps of a small network save. The number decides alone, and no clock, so that the same run is
#: always run the same way.
WORTH_COMPILING = 10_000


class SingleModel:
    """One model and its step: plain, compiled, or as a CUDA graph.

    Args:
        state: The model.
        compile: Whether the step is compiled; None where the run is long enough to repay it.
    """

    def __init__(self, state: TrainingState, compile: bool | None) -> None:
        self.state, self.compile, self.program = state, compile, state.vae
        kind: type[Step] = CompiledStep
        if compile is False:
            kind = Step
        elif state.device.type == "cuda" and state.ranks.size == 1:
            kind = GraphedStep
        clip, precision = state.settings.gradient_clip, state.settings.precision
        self.step = kind(state.loss, state.parameters, clip, precision, state.ranks)
        state.adopt(self.step.optimizer)

    @property
    def size(self) -> int:
        """Number of data of the last step, those of all processes."""
        return self.step.size

    def prepare(self, num_steps: int, bar: ProgressBar) -> None:
        """Compile the step, if that is wanted or the training of so many steps repays it."""
        worth = self.compile or num_steps >= WORTH_COMPILING
        if not isinstance(self.step, CompiledStep) or not worth:
            return
        settings, state = self.state.settings, self.state
        bar.set_description("compiling")
        batches = state.batches.batches(settings.batch_size, seed=settings.seed, epoch=0)
        x, context = next(iter(batches))
        if not len(x):
            return  # of a data set with fewer rows than processes
        done = self.step.prepare(x, context, state.final_beta)
        state.history.step = self.step.report
        if self.compile and not done:
            warnings.warn(self.step.report, stacklevel=4)
        elif not bar.disable:
            bar.write(self.step.report)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Seed the noise of an epoch, each process its own, and return the batches."""
        settings, ranks = self.state.settings, self.state.ranks
        own = (ranks.rank,) if ranks.size > 1 else ()
        seed_generators(stream_seed(settings.seed, epoch, NOISE_STREAM, *own))
        return self.state.batches.batches(settings.batch_size, seed=settings.seed, epoch=epoch)

    def run(self, batch: Batch, betas: Sequence[float | Tensor], learning_rate: float) -> Tensor:
        """Take a step; return loss, distortion, rate and gradient norm per datum, ``(4,)``."""
        return self.step(*batch, betas[0], learning_rate)

    def hand_back(self) -> None:
        """Leave the model as it is: its own parameters are trained."""

    def keep(self, remaining: Sequence[int]) -> None:
        """Go on with the model."""

    def describe(self, number: int, batch: Batch, beta: float | Tensor, stats: Tensor) -> str:
        """Return the cause of a number in ``stats``, ``(4,)``, that is not finite."""
        gather = self.state.ranks.gather
        return describe_nonfinite(self.state.vae, *batch, beta, stats, gather)
