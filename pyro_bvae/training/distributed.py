"""Training on several processes: their shares of a batch and their messages.

Every process holds the whole model and its share of each batch, and a step sums loss, gradients and
number of data over the processes in one message, a flattened buffer. Since a loss is a sum over
data, the sum over the shares is the gradient of the joint batch, so a run means the same on any
number of processes and can be resumed on another.

``DistributedDataParallel`` does the same; it is written out for three reasons. It averages over
processes, which is the gradient of the joint batch only where all shares are of one size; here the
last batch may leave a process with less, or with nothing. It works by hooks in the backward pass of
autograd, and a compiled step has none. And the networks of VAEs
are small: there is no backward pass long enough to hide messages behind. The contract with a module
holds: :class:`~pyro_bvae.training.Loss` owns the parameters of model and guide, which handing
``Trace_ELBO`` their bound methods does not, and its forward pass is the loss, so whoever wishes can
wrap it.

Batch norm is not synchronised: a module that has one is refused. Objectives whose value is no sum
over data, such as :class:`~pyro_bvae.training.TotalCorrelation`, are refused too. An objective of
one's own has to be such a sum.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm

from pyro_bvae.core.disk.run_files import writing
from pyro_bvae.core.errors import InputError
from pyro_bvae.training.checks.nonfinite import TrainingError
from pyro_bvae.training.objectives.kl import KLObjective

_Value = TypeVar("_Value")
_groups = itertools.count()


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, seen from one of them; by itself it is one process alone.

    Attributes:
        rank: Which one this is, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return this process's share of so many rows; shares differ by one row at most."""
        least, more = divmod(count, self.size)
        start = self.rank * least + min(self.rank, more)
        return slice(start, start + least + (self.rank < more))

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place; the result is the same to the bit on each.

        Raises:
            TrainingError: if another process has ended.
        """
        if self.size > 1:
            with _lost():
                dist.all_reduce(values)
        return values

    def gather(self, value: _Value) -> list[_Value]:
        """Return the values of all processes, in the order of their ranks.

        Raises:
            TrainingError: if another process has ended.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _lost():
            dist.all_gather_object(values, value)
        return values

    @contextmanager
    def writing(self, directory: Path | None, force: bool = False) -> Iterator[None]:
        """Hold a run directory in the first process while the body runs, to write its files.

        Args:
            directory: The directory; nothing is held for None.
            force: Take the lock of another process.

        Raises:
            InputError: in all processes, if another one holds the directory.
        """
        with ExitStack() as stack:
            refusal = None
            if self.is_first and directory is not None:
                try:
                    stack.enter_context(writing(directory, force=force))
                except (InputError, OSError) as error:
                    if self.size == 1:
                        raise
                    refusal = str(error)
            refusal = self.gather(refusal)[0]
            if refusal is not None:
                raise InputError(refusal)
            yield

    def wait(self) -> None:
        """Wait until every process is here."""
        self.gather(None)

    def align(self, module: nn.Module) -> None:
        """Give a module the parameters and buffers that it has in the first process."""
        if self.size == 1:
            return
        with torch.no_grad(), _lost():
            for tensor in (*module.parameters(), *module.buffers()):
                whole = tensor.detach().contiguous()
                dist.broadcast(whole, 0)
                tensor.copy_(whole)


def check_shareable(module: nn.Module, objective: object) -> None:
    """Raise unless the loss of a batch is the sum of the losses of its shares.

    Args:
        module: The module in training.
        objective: Its objective.

    Raises:
        InputError: for batch norm, and for objectives of the KL of a whole batch.
    """
    if isinstance(objective, KLObjective):
        raise InputError(
            "'objective' must be a sum over data to be trained on several processes, got"
            f" {objective}, which looks at the batch as a whole: train it on one"
            " process, or take the β-bound or IWELBO"
        )
    name = next(
        (name for name, part in module.named_modules() if isinstance(part, _BatchNorm)), None
    )
    if name is not None:
        raise InputError(
            f"'{name}' is a batch norm, whose statistics are those of one process's share: train on"
            " one process, or take a layer norm"
        )


def place() -> tuple[int, int]:
    """Return the rank of this process among those of ``torchrun``, and their number."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def was_restarted() -> bool:
    """Whether ``torchrun --max-restarts`` has started this process again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def job_name() -> str:
    """Return a name that the processes of one ``torchrun`` have, those started again too."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    name = os.environ["TORCHELASTIC_RUN_ID"]
    return f"{name} {socket.gethostname()} {os.getppid()}" if name == "none" else name


def own_device(device: str | None) -> str | None:
    """Return the device of this process; ``cuda`` is the one of its local rank."""
    return (
        f"cuda:{os.environ['LOCAL_RANK']}"
        if device == "cuda" and "LOCAL_RANK" in os.environ
        else device
    )


def current_ranks() -> Ranks:
    """Return the processes of torch's process group; one alone where there is none."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


@contextmanager
def process_group(device: str | None = "cpu") -> Iterator[Ranks]:
    """Run the body as one of the processes that ``torchrun`` has started; by itself alone.

    Inside, :func:`~pyro_bvae.fit` trains one model together. A process group that is there already
    is used as it is.

    Args:
        device: Where to compute: ``nccl`` passes messages between CUDA devices, ``gloo`` between
            others.
    """
    if place()[1] == 1 or dist.is_initialized():
        yield current_ranks()
        return
    on_cuda = str(device).startswith("cuda")
    if on_cuda:
        torch.cuda.set_device(own_device(device))
    dist.init_process_group("nccl" if on_cuda else "gloo", **_meeting_place())
    try:
        yield current_ranks()
    finally:
        dist.destroy_process_group()


def _meeting_place() -> dict[str, Any]:
    """Return where the processes look for each other, if it is not where torch has them look.

    ``torchrun`` keeps one store for all its attempts, with the addresses of processes that have
    ended in it: who is first to look up the others after a restart would find those, and wait for
    them or be refused. On one machine, where all processes count the same restarts, each group
    therefore has keys of its own.
    """
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        return {}
    store, rank, size = next(rendezvous("env://"))
    name = f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}, group {next(_groups)}"
    return {"store": dist.PrefixStore(name, store), "rank": rank, "world_size": size}


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise TrainingError("a message to a process that has ended") from error
