"""The step of R models as one program, with the noise and the data that each would have alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_bvae.core.context import Context
from pyro_bvae.core.param_store import private_store
from pyro_bvae.core.precision import full_precision, networks_in
from pyro_bvae.core.processes.progress import ProgressBar
from pyro_bvae.core.protocols import part_of
from pyro_bvae.core.seeds import NOISE_STREAM, seeded, stream_seed
from pyro_bvae.training.batches import Batch, Joined, LoaderBatches
from pyro_bvae.training.checks.nonfinite import describe_nonfinite
from pyro_bvae.training.objectives.loss import Loss
from pyro_bvae.training.objectives.terms import TraceTerms
from pyro_bvae.training.replicas.program import CannotStack, Replicas, ReplicaTerms
from pyro_bvae.training.replicas.rehearsal import check_alone, few_of, has_same_gradients, is_same
from pyro_bvae.training.state import TrainingState
from pyro_bvae.training.steps.step import Step, adam


class StackedModels(Step):
    """R models and their one step, whose statistics have the shape ``(R, 4)``.

    Noise is drawn for each seed from a stream of its own, in the order in which ``fit`` draws it,
    data come in the order of their seed, and each model's gradient is clipped to its own norm: the
    difference to separate training is rounding.

    Args:
        states: The models, of one number of epochs, batch size, learning rate and precision.

    Raises:
        CannotStack: if they cannot be one program, or it is not the same as the models themselves.
    """

    def __init__(self, states: Sequence[TrainingState]) -> None:
        self.states, settings = list(states), states[0].settings
        self.device, self.batch_size = states[0].device, settings.batch_size
        self._assign_seeds()
        self._check()
        self.replicas = Replicas([state.vae for state in states])
        self.program = self.replicas.vae
        super().__init__(
            Loss(self.replicas, ReplicaTerms()),
            [stacked.whole for stacked in self.replicas.trained],
            settings.gradient_clip,
            settings.precision,
        )
        vae, (x, context) = states[0].vae, states[0].first_batch()
        with private_store(vae.model), seeded(0), torch.no_grad(), pyro.poutine.trace() as traced:
            vae.guide(x, context)
        nodes: dict[str, Any] = dict(traced.trace.nodes)
        if [n for n, site in nodes.items() if site["type"] == "sample" and n != "data"] != ["z"]:
            raise CannotStack("their guides have other draws than 'z'")
        self.noise_shape = torch.Size(nodes["z"]["value"].shape[1:])
        self._rehearse()
        for state in states:
            state.adopt(adam(state.parameters))
        self._stack_optimizers()

    def _assign_seeds(self) -> None:
        """Find the seeds, the first model of each, and the number of its seed for each model."""
        of_seed = {state.settings.seed: state for state in reversed(self.states)}
        self.seeds, self.firsts = list(of_seed), list(of_seed.values())
        self.seed_of = [self.seeds.index(state.settings.seed) for state in self.states]

    def _check(self) -> None:
        """Raise for data, objectives and schedules that have no stacked step."""
        objective, first = self.states[0].loss.objective, self.states[0]
        if type(objective) is not TraceTerms or objective.num_particles != 1:
            raise CannotStack("their objective is not the β-bound of one particle")
        if any(isinstance(state.data, LoaderBatches) for state in self.firsts):
            raise CannotStack("a loader has no order for each seed")
        if any(isinstance(state.batches, Joined) for state in self.states):
            raise CannotStack("a layer learns from no datum alone, and the last batch has one")
        # All batches of one datum each: data of unknown length are counted too.
        if len({state.data.num_batches(1) for state in self.firsts}) > 1:
            raise CannotStack("the seeds have not the same number of data")
        # Where β is 0, ``fit`` has no gradient for a prior, and Adam counts no step for it.
        prior = part_of(first.vae, "prior")
        if not isinstance(prior, nn.Module) or not any(True for _ in prior.parameters()):
            return
        epochs, steps = first.settings.epochs, first.data.num_batches(self.batch_size)
        betas = (
            [float(state.settings.beta(step / steps, epochs)) for state in self.states]
            for step in range(epochs * steps)
        )
        if len({tuple(beta == 0 for beta in each) for each in betas if any(each)}) > 1:
            raise CannotStack("their β are 0 at different times, and their priors are learned")

    def _rehearse(self) -> None:
        """Raise unless the program has the losses, gradients and draws of the models."""
        self.seed_noise(epoch=0)
        few, betas = [few_of(state) for state in self.firsts], [s.beta(0.5) for s in self.states]
        noise = self.draw(few[0][0].shape[0])
        with pyro.validation_enabled(), seeded(0), full_precision():
            try:
                with private_store(self.program.model):
                    beta = self.stack_betas(betas)
                    losses = self.loss(*self.gather(few), beta, {"z": noise}).loss
                losses.sum().backward()
            except Exception as error:  # of a part that takes no replicas in front of its data
                reason = (str(error).splitlines() or [""])[0][:200]
                raise CannotStack(
                    f"their program fails: {type(error).__name__}: {reason}"
                ) from error
            for number, state in enumerate(self.states):
                seed = self.seed_of[number]
                loss = check_alone(state, few[seed], betas[number], self.generators[seed])
                trained = self.replicas.trained
                if not is_same(losses[number].detach(), loss) or not has_same_gradients(
                    trained, number
                ):
                    raise CannotStack(
                        "their program gives other losses or gradients than the models do"
                    )
                state.vae.zero_grad(set_to_none=True)
        self.optimizer.zero_grad(set_to_none=True)

    def _stack_optimizers(self) -> None:
        """Stack the state of the models' optimizers, that of the checkpoints of resumed runs."""
        for whole, parts in self.replicas.trained:
            pairs = zip(self.states, parts, strict=True)
            each = [state.optimizer.state.get(part) for state, part in pairs if state.optimizer]
            steps = {None if one is None else float(one["step"]) for one in each}
            if len(steps) > 1:
                raise CannotStack("their optimizers have not counted the same steps")
            if steps != {None}:
                self.optimizer.state[whole] = {
                    name: value.clone()
                    if value.dim() == 0
                    else torch.stack([one[name] for one in each if one]).view_as(whole)
                    for name, value in (each[0] or {}).items()
                }

    # -- the step

    def prepare(self, num_steps: int, bar: ProgressBar) -> None:
        """Leave the step as it is: a stacked one is not compiled."""

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Seed the noise of an epoch and yield its batches: x of shape ``(R, N, D)``."""
        self.seed_noise(epoch)
        each = [
            state.data.batches(self.batch_size, seed=seed, epoch=epoch)
            for seed, state in zip(self.seeds, self.firsts, strict=True)
        ]
        return map(self.gather, zip(*each, strict=True))

    def run(self, batch: Batch, betas: Sequence[float | Tensor], learning_rate: float) -> Tensor:
        """Take a step; return loss, distortion, rate, gradient norm per datum, ``(R, 4)``."""
        return self(*batch, self.stack_betas(betas), learning_rate)

    def stack_betas(self, betas: Sequence[float | Tensor]) -> float | Tensor:
        """Return the β of the models, shape ``(R, 1)``.

        Where it is 0 for all it is a number, of which the priors have no gradient, as in ``fit``.
        """
        dtype, device = self.parameters[0].dtype, self.device
        if any(isinstance(beta, Tensor) for beta in betas):
            each = [torch.as_tensor(beta, dtype=dtype, device=device) for beta in betas]
            return torch.stack(each).unsqueeze(-1)
        if not any(betas):
            return 0.0
        # Without waiting for the device, where that is another one.
        return torch.tensor(betas, dtype=dtype).unsqueeze(-1).to(device, non_blocking=True)

    def joint_gradients(
        self, x: Tensor, context: Context | None, beta: float | Tensor
    ) -> tuple[Tensor, int]:
        """Leave the gradients of the batches at the parameters; return statistics and N."""
        return self.gradients(x, context, beta), x.shape[1]

    def gradients(self, x: Tensor, context: Context | None, beta: float | Tensor) -> Tensor:
        """Leave the gradients of the batches at the parameters; return the statistics."""
        self.optimizer.zero_grad(set_to_none=True)
        noise = self.draw(x.shape[1])
        with networks_in(self.precision):
            terms = self.loss(x, context, beta, {"z": noise})
        terms.loss.sum().backward()
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norms = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients]
        norm = torch.linalg.vector_norm(torch.stack(norms), dim=0) / x.shape[1]
        return torch.stack([terms.loss.detach(), terms.distortion, terms.rate, norm], dim=-1)

    def _clip(self, norm_per_datum: Tensor) -> None:
        """Clip each model's gradients to its own norm, ``(R,)``, as torch's own clipping does."""
        if self.gradient_clip is None:
            return
        factor = self.gradient_clip * self.size / (norm_per_datum * self.size + 1e-6)
        factor = factor.clamp(max=1)
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor.view(-1, *(1,) * (parameter.dim() - 1)))

    def hand_back(self) -> None:
        """Give the models their weights, and the optimizers of those with checkpoints the state."""
        for number, state in enumerate(self.states):
            self.replicas.hand_back(number)
            if state.output is None or state.optimizer is None:
                continue
            for group, own in zip(
                state.optimizer.param_groups, self.optimizer.param_groups, strict=True
            ):
                group["lr"] = own["lr"]
            for whole, parts in self.replicas.trained:
                part = parts[number]
                state.optimizer.state[part] = {
                    name: (value if value.dim() == 0 else value[number].view_as(part)).clone()
                    for name, value in self.optimizer.state.get(whole, {}).items()
                }

    def keep(self, remaining: Sequence[int]) -> None:
        """Go on with some of the models, by their positions among those so far."""
        self.states = [self.states[number] for number in remaining]
        self._assign_seeds()
        self.replicas.keep(remaining)
        for state in self.optimizer.state.values():
            state |= {n: value[list(remaining)] for n, value in state.items() if value.dim()}

    def describe(self, number: int, batch: Batch, beta: float | Tensor, stats: Tensor) -> str:
        """Return the cause of a number of a model, ``stats`` ``(4,)``, that is not finite."""
        self.replicas.hand_back(number)
        x, context = batch
        context = context and context.map(lambda part: part[number])
        vae = self.states[number].vae
        with private_store(vae.model):
            return describe_nonfinite(vae, x[number], context, beta, stats)

    # -- noise and data

    def seed_noise(self, epoch: int) -> None:
        """Seed the generators of an epoch, one for each seed."""
        self.generators = [
            torch.Generator(self.device).manual_seed(stream_seed(seed, epoch, NOISE_STREAM))
            for seed in self.seeds
        ]

    @torch.no_grad()
    def draw(self, size: int) -> Tensor:
        """Draw the noise of a step, ``(R, N, L)``, each model's from the generator of its seed."""
        whole, shape = self.parameters[0], (size, *self.noise_shape)
        return self._each([whole.new_empty(shape).normal_(generator=g) for g in self.generators])

    def gather(self, batches: Sequence[Batch]) -> Batch:
        """Return the batches of the seeds as one of the models."""
        contexts = [context for _, context in batches if context is not None]
        columns = [
            None if column[0] is None else self._each(column)
            for column in zip(*contexts, strict=True)
        ]
        return self._each([x for x, _ in batches]), Context(*columns) if contexts else None

    def _each(self, of_seeds: Sequence[Tensor]) -> Tensor:
        """Return the tensor of its seed for each model, ``(R, ...)``."""
        if len(of_seeds) == 1:
            return of_seeds[0].expand(len(self.states), *of_seeds[0].shape)
        return torch.stack([of_seeds[seed] for seed in self.seed_of])
