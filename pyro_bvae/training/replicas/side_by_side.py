"""The training of replicas side by side: the steps of ``fit``, each a step of all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyro_bvae.core.context import Context
from pyro_bvae.core.param_store import private_store
from pyro_bvae.core.precision import fast_products, full_precision, networks_in
from pyro_bvae.core.seeds import NOISE_STREAM, seeded, stream_seed
from pyro_bvae.training.batches import Batch, Joined, LoaderBatches
from pyro_bvae.training.checks.nonfinite import TrainingError
from pyro_bvae.training.history import Row
from pyro_bvae.training.objectives.loss import Loss
from pyro_bvae.training.replicas.program import CannotStack, Replicas, ReplicaTerms, Stacked
from pyro_bvae.training.replicas.trainer import ReplicaTrainer
from pyro_bvae.training.step_metrics import LOOK_EVERY
from pyro_bvae.training.steps.step import step_if_finite

# Data of the rehearsal, in which the replicas' program is held to the models themselves.
_FEW = 7


class SideBySide:
    """Replicas in training as one program.

    Noise is drawn for each seed from a stream of its own, in the order in which ``fit`` draws it,
    data come in the order of their seed, and each replica's gradient is clipped to its own norm:
    what is left to differ is rounding.

    Args:
        replicas: Their runs, of one number of epochs, batch size and learning rate.

    Raises:
        CannotStack: if they cannot be one program, or it is not the same as the models themselves.
    """

    def __init__(self, replicas: Sequence[ReplicaTrainer]) -> None:
        self.replicas, self.settings, self.device = (
            replicas,
            replicas[0].settings,
            replicas[0].device,
        )
        of_seed = {replica.settings.seed: replica for replica in reversed(replicas)}
        self.seeds, self.firsts = list(of_seed), list(of_seed.values())
        self.seed_of = [self.seeds.index(replica.settings.seed) for replica in replicas]
        if any(isinstance(first.data, LoaderBatches) for first in self.firsts):
            raise CannotStack("a loader has no order for each seed")
        if any(isinstance(replica.batches, Joined) for replica in replicas):
            raise CannotStack("a layer learns from no datum alone, and the last batch has one")
        if self.settings.early_stopping is not None:
            raise CannotStack("early stopping ends them at different epochs")
        # All batches of one datum each: data of unknown length are counted too.
        if len({first.data.num_batches(1) for first in self.firsts}) > 1:
            raise CannotStack("the seeds have not the same number of data")
        self.steps = self.firsts[0].data.num_batches(self.settings.batch_size)
        self._check_zeros()
        self.program = Replicas([replica.vae for replica in replicas])
        self.loss = Loss(self.program, ReplicaTerms())
        self.trained = [stacked for stacked in self.program.stacked if stacked.whole.requires_grad]
        parameters = [stacked.whole for stacked in self.trained]
        self.optimizer = torch.optim.Adam(
            parameters, lr=1e-3, fused=self.device.type in ("cpu", "cuda")
        )
        self.noise_shape = self._rehearse()

    def _check_zeros(self) -> None:
        """Raise if β is 0 for some replicas only in a step, where ``fit`` does not count one for a learned prior."""
        prior = getattr(self.replicas[0].vae, "prior", None)
        if not isinstance(prior, nn.Module) or not any(True for _ in prior.parameters()):
            return
        steps = range(self.settings.epochs * self.steps)
        of_replicas = zip(*(self._betas(step / self.steps) for step in steps), strict=True)
        zeros = {tuple(beta == 0 for beta in betas) for betas in of_replicas if any(betas)}
        if len(zeros) > 1:
            raise CannotStack("their β are 0 at different times, and their priors are learned")

    # -- the rehearsal
    # ---------------------------------------------------------------------------------------------

    def _rehearse(self) -> torch.Size:
        """See that the program has the losses, gradients and draws of the models, and return the shape of a draw."""
        few = [_first_of(first) for first in self.firsts]
        shape = self._shape_of_draws(*few[0])
        generators = [self._generator(seed) for seed in self.seeds]
        noise = self._draw(generators, few[0][0].shape[0], shape)
        (beta,) = self._tensor([self._betas(0.5)])
        with pyro.validation_enabled(), seeded(0), full_precision():
            x, context = self._gather(few)
            try:
                with private_store(self.program.vae.model):
                    together = self.loss(x, context, beta, {"z": noise}).loss
                together.sum().backward()
            except (
                Exception
            ) as error:  # whatever a part does not do with replicas in front of its data
                reason = (str(error).splitlines() or [""])[0][:200]
                raise CannotStack(
                    f"their program fails: {type(error).__name__}: {reason}"
                ) from error
            for index, replica in enumerate(self.replicas):
                alone = self._alone(replica, few[self.seed_of[index]], float(beta[index]))
                state = (
                    torch.cuda.get_rng_state(self.device)
                    if self.device.type == "cuda"
                    else torch.get_rng_state()
                )
                if not torch.equal(state, generators[self.seed_of[index]].get_state()):
                    raise CannotStack("their draws are not only the latents' normal noise")
                if not _same(together[index].detach(), alone) or not _same_gradients(
                    self.trained, index
                ):
                    raise CannotStack(
                        "their program gives other losses or gradients than the models do"
                    )
                replica.optimizer.zero_grad(set_to_none=True)
        self.optimizer.zero_grad(set_to_none=True)
        return shape

    def _alone(self, replica: ReplicaTrainer, batch: Batch, beta: float) -> Tensor:
        """Return the loss of a model by itself, with its own draws, and accumulate its gradients."""
        torch.manual_seed(stream_seed(replica.settings.seed, 0, NOISE_STREAM))
        with private_store(replica.vae.model):
            loss = replica.loss(*batch, beta).loss
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _shape_of_draws(self, x: Tensor, context: Context | None) -> torch.Size:
        vae = self.replicas[0].vae
        with private_store(vae.model), seeded(0), torch.no_grad(), pyro.poutine.trace() as traced:
            vae.guide(x, context)
        sites = [
            name
            for name, site in traced.trace.nodes.items()
            if site["type"] == "sample" and name != "data"
        ]
        if sites != ["z"]:
            raise CannotStack("their guides have other draws than 'z'")
        drawn: Any = traced.trace.nodes["z"]["value"]
        return torch.Size(drawn.shape[1:])

    # -- the run
    # ---------------------------------------------------------------------------------------------------

    def run(self, progress: bool) -> None:
        """Train all replicas to the end."""
        epochs = self.settings.epochs
        for replica in self.replicas:
            replica.open()
        with ExitStack() as stack:
            stack.enter_context(private_store(self.program.vae.model))
            stack.enter_context(seeded(self.settings.seed))
            stack.enter_context(pyro.validation_enabled(False))
            stack.enter_context(fast_products(self.device))
            bar = stack.enter_context(
                tqdm(total=epochs * self.steps, disable=not progress, unit="step")
            )
            for epoch in range(epochs):
                bar.set_description(
                    f"{len(self.replicas)} replicas, epoch {epoch + 1}/{epochs}", refresh=False
                )
                self._epoch(epoch, bar)
        for replica in self.replicas:
            replica.close()

    def _epoch(self, epoch: int, bar: tqdm[Any]) -> None:
        started = time.perf_counter()
        generators = [self._generator(seed, epoch) for seed in self.seeds]
        values = [self._betas(epoch + index / self.steps) for index in range(self.steps)]
        betas = self._tensor(values)  # once an epoch, and not once a step
        sums = torch.zeros(len(self.replicas), 4, dtype=torch.double, device=self.device)
        look_every = 1 if self.device.type == "cpu" else LOOK_EVERY
        count, learning_rate = 0, 0.0
        for index, (x, context) in enumerate(self._batches(epoch)):
            learning_rate = float(
                self.settings.learning_rate(epoch + index / self.steps, self.settings.epochs)
            )
            size = x.shape[1]
            noise = self._draw(generators, size, self.noise_shape)
            # Where β is 0 for all, a number has no gradient for the priors, in fit as here; a
            # tensor has one of 0.
            beta = betas[index] if any(values[index]) else 0.0
            stats = self._step(x, context, beta, noise, learning_rate)
            sums += stats
            count += size
            bar.update()
            if (index + 1) % look_every == 0 or index + 1 == self.steps:
                where = f"epoch {epoch + 1}, step {index + 1} (batch {index})"
                self._look(sums, where, x, context, betas[index], stats)
        share = (time.perf_counter() - started) / len(self.replicas)
        for number, (replica, of_replica) in enumerate(
            zip(self.replicas, sums.tolist(), strict=True)
        ):
            begun = time.perf_counter()
            self._hand_back(number, learning_rate)
            last = epoch + (self.steps - 1) / self.steps
            row: Row = {
                "epoch": epoch + 1,
                "beta": float(replica.settings.beta(last, replica.settings.epochs)),
            }
            row |= {"learning_rate": learning_rate, "gradient_norm": of_replica[3] / self.steps}
            names = ("objective", "distortion", "rate")
            row |= {name: value / count for name, value in zip(names, of_replica, strict=False)}
            replica.close_epoch(row, begun, share)

    def _step(
        self,
        x: Tensor,
        context: Context | None,
        beta: float | Tensor,
        noise: Tensor,
        learning_rate: float,
    ) -> Tensor:
        """Take one step and return (loss, distortion, rate, gradient norm per datum) of each, ``(R, 4)``."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        with networks_in(self.settings.precision):
            terms = self.loss(x, context, beta, {"z": noise})
        terms.loss.sum().backward()
        norm = self._clip(x.shape[1])
        stats = torch.stack(
            [terms.loss.detach(), terms.distortion, terms.rate, norm / x.shape[1]], dim=-1
        )
        step_if_finite(self.optimizer, stats)
        return stats

    def _clip(self, size: int) -> Tensor:
        """Clip each replica's gradients to its own norm, and return the norms before, ``(R,)``."""
        gradients = [whole.grad for whole, _ in self.trained if whole.grad is not None]
        norms = torch.stack(
            [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients]
        )
        norm = torch.linalg.vector_norm(norms, dim=0)
        if self.settings.gradient_clip is None:
            return norm
        factor = (self.settings.gradient_clip * size / (norm + 1e-6)).clamp(
            max=1
        )  # as torch's own clipping has it
        if norm.is_cuda or bool((factor < 1).any()):
            for gradient in gradients:
                gradient.mul_(factor.view(-1, *(1,) * (gradient.dim() - 1)))
        return norm

    def _look(
        self,
        sums: Tensor,
        where: str,
        x: Tensor,
        context: Context | None,
        beta: Tensor,
        stats: Tensor,
    ) -> None:
        """Raise if a replica is not finite any more."""
        finite = torch.isfinite(sums).all(-1)
        if bool(finite.all()):
            return
        bad = int((~finite).nonzero()[0])
        self.program.hand_back(bad)
        of_replica = (
            None
            if context is None
            else Context(*(None if part is None else part[bad] for part in context))
        )
        raise TrainingError(
            f"{where}, {self.replicas[bad].describe(x[bad], of_replica, beta[bad], stats[bad])}"
        )

    def _hand_back(self, number: int, learning_rate: float) -> None:
        """Give a replica its weights; and, for its checkpoint, its optimizer's state, from which ``fit`` can go on."""
        self.program.hand_back(number)
        optimizer = self.replicas[number].optimizer
        if self.replicas[number].output is None:
            return
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        for whole, parts in self.trained:
            part = parts[number]
            optimizer.state[part] = {
                name: value.clone()
                if value.dim() == 0
                else value[number].reshape(part.shape).clone()
                for name, value in self.optimizer.state[whole].items()
            }

    # -- what a step takes
    # -----------------------------------------------------------------------------------------

    def _generator(self, seed: int, epoch: int = 0) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(stream_seed(seed, epoch, NOISE_STREAM))

    def _draw(self, generators: Sequence[torch.Generator], size: int, shape: torch.Size) -> Tensor:
        """Draw the noise of a step, ``(R, N, L)``: that of its seed for each replica."""
        empty = [self.trained[0].whole.new_empty((size, *shape)) for _ in generators]
        with torch.no_grad():
            return self._each(
                [tensor.normal_(generator=g) for tensor, g in zip(empty, generators, strict=True)]
            )

    def _betas(self, done: float) -> list[float]:
        """Return the β of each replica after so many epochs."""
        return [
            float(replica.settings.beta(done, self.settings.epochs)) for replica in self.replicas
        ]

    def _tensor(self, values: list[list[float]]) -> Tensor:
        """Return β of T steps and R replicas, ``(T, R, 1)``."""
        return torch.tensor(
            values, dtype=self.trained[0].whole.dtype, device=self.device
        ).unsqueeze(-1)

    def _batches(self, epoch: int) -> Iterator[Batch]:
        each = [
            first.data.batches(self.settings.batch_size, seed=seed, epoch=epoch)
            for seed, first in zip(self.seeds, self.firsts, strict=True)
        ]
        for batches in zip(*each, strict=True):
            yield self._gather(batches)

    def _gather(self, batches: Sequence[Batch]) -> Batch:
        """Return the batches of the seeds as one of the replicas."""
        contexts = [context for _, context in batches if context is not None]
        columns = list(zip(*contexts, strict=True))
        context = Context(
            *(None if column[0] is None else self._each(column) for column in columns)
        )
        return self._each([x for x, _ in batches]), context if contexts else None

    def _each(self, of_seeds: Sequence[Tensor]) -> Tensor:
        """Return the tensor of its seed for each replica, ``(R, ...)``."""
        if len(of_seeds) == 1:
            return of_seeds[0].expand(len(self.replicas), *of_seeds[0].shape)
        return torch.stack([of_seeds[seed] for seed in self.seed_of])


def _first_of(replica: ReplicaTrainer) -> Batch:
    """Return a few data of the first batch."""
    settings = replica.settings
    x, context = next(iter(replica.data.batches(settings.batch_size, seed=settings.seed, epoch=0)))
    few = (
        None
        if context is None
        else Context(*(None if part is None else part[:_FEW] for part in context))
    )
    return x[:_FEW], few


def _same(one: Tensor, other: Tensor, beside: float | Tensor = 0.0) -> bool:
    """Whether two tensors are the same but for rounding, their own and that of something beside them."""
    precision, size = torch.finfo(one.dtype).eps, torch.linalg.vector_norm(other)
    if not bool(torch.isfinite(size)):  # for the first step to tell
        return not bool(torch.isfinite(torch.linalg.vector_norm(one)))
    return bool(
        torch.linalg.vector_norm(one - other) <= precision**0.5 * size + 100 * precision * beside
    )


@torch.no_grad()
def _same_gradients(trained: Sequence[Stacked], index: int) -> bool:
    """Whether a replica's parameters have the gradients in the program that they have in its model."""
    pairs = [(whole.grad, parts[index].grad) for whole, parts in trained]
    norms = [torch.linalg.vector_norm(own) for _, own in pairs if own is not None]
    total = torch.stack(norms).norm() if norms else 0.0
    for (_, parts), (together, own) in zip(trained, pairs, strict=True):
        # A replica whose β is 0 has no gradient of its prior where one of the stack is 0.
        ours = (
            torch.zeros_like(parts[index])
            if together is None
            else together[index].view_as(parts[index])
        )
        if not _same(ours, torch.zeros_like(ours) if own is None else own, total):
            return False
    return True
