"""One step of training: gradients of a batch, summed over processes, clipped, and Adam."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pyro_bvae.core.context import Context
from pyro_bvae.core.internals import fused_adam
from pyro_bvae.core.precision import networks_in
from pyro_bvae.training.distributed import Ranks
from pyro_bvae.training.objectives.loss import Loss


class Step:
    """A step of a training run as it is written: the loss backward, then Adam.

    Args:
        loss: The objective of the module in training.
        parameters: The trained parameters.
        gradient_clip: Upper limit on the global norm of the gradient per datum; None for no limit.
        precision: Precision of the networks of the parts.
        ranks: The processes that train together, each of which gives the step its share of a batch.
    """

    def __init__(
        self,
        loss: Loss,
        parameters: Sequence[nn.Parameter],
        gradient_clip: float | None,
        precision: str,
        ranks: Ranks | None = None,
    ) -> None:
        self.loss, self.parameters, self.ranks = loss, list(parameters), ranks or Ranks()
        self.gradient_clip, self.precision = gradient_clip, precision
        #: Number of data of the last step, those of all processes.
        self.size = 0
        self._counts = torch.zeros(0)
        self.optimizer = self._make_optimizer()

    def __call__(
        self, x: Tensor, context: Context | None, beta: float | Tensor, learning_rate: float
    ) -> Tensor:
        """Take a step; return its statistics.

        Returns:
            Loss, distortion, rate and gradient norm per datum, shape ``(4,)``.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        return self.take(x, context, beta)

    def take(self, x: Tensor, context: Context | None, beta: float | Tensor) -> Tensor:
        """Take a step at the optimizer's own learning rate."""
        stats, self.size = self.joint_gradients(x, context, beta)
        if stats.is_cuda:
            self._clip(stats[..., 3])
            # Fused Adam decides on the device whether the step would spoil the weights.
            infinite = ~torch.isfinite(stats).all()
            self.optimizer.found_inf = infinite.float()  # type: ignore[attr-defined]
            self.optimizer.step()
            return stats
        numbers = stats.flatten().tolist()
        if all(map(math.isfinite, numbers)):
            if self.gradient_clip is not None and max(numbers[3::4]) > self.gradient_clip:
                self._clip(stats[..., 3])
            self._update()
        return stats

    def _update(self) -> None:
        """Take a step of fused Adam alone; the rest of ``optimizer.step`` is a tenth of a step."""
        (group,), state = self.optimizer.param_groups, self.optimizer.state
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if not group["fused"] or not len(state) == len(gradients) == len(self.parameters):
            self.optimizer.step()  # which makes states
            return
        each = [state[parameter] for parameter in self.parameters]
        # Counts are views of one tensor, to be raised at once.
        if each[0]["step"]._base is not self._counts:
            self._counts = torch.stack([one["step"] for one in each])
            for place, one in enumerate(each):
                one["step"] = self._counts[place]
        beta1, beta2 = group["betas"]
        with torch.no_grad():
            self._counts += 1
            fused_adam(
                cast("list[Tensor]", self.parameters),
                gradients,
                [one["exp_avg"] for one in each],
                [one["exp_avg_sq"] for one in each],
                [],
                [one["step"] for one in each],
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

    def _make_optimizer(self) -> torch.optim.Optimizer:
        return adam(self.parameters)

    def joint_gradients(
        self, x: Tensor, context: Context | None, beta: float | Tensor
    ) -> tuple[Tensor, int]:
        """Leave the gradients of the batch of all processes at the parameters.

        Args:
            x: This process's share of the batch, which may be empty.
            context: Its context.
            beta: The β of the step.

        Returns:
            Loss, distortion, rate and gradient norm per datum, shape ``(4,)``, and the number of
            data of all processes.
        """
        size = x.shape[0]
        if self.ranks.size == 1:
            return self.gradients(x, context, beta), size
        if size:
            stats = self.gradients(x, context, beta)
        else:  # no data; but the others wait for this process
            self.optimizer.zero_grad(set_to_none=True)
            stats = x.new_zeros(4)
        gradients = [
            torch.zeros_like(each) if each.grad is None else each.grad for each in self.parameters
        ]
        numbers = torch.cat([stats[:3], stats.new_tensor([size])])
        whole = self.ranks.sum(
            torch.cat([numbers, *(gradient.flatten() for gradient in gradients)])
        )
        parts = whole[4:].split([gradient.numel() for gradient in gradients])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)
        count = int(whole[3])
        return torch.cat([whole[:3], whole[4:].norm().unsqueeze(0) / count]), count

    def gradients(self, x: Tensor, context: Context | None, beta: float | Tensor) -> Tensor:
        """Leave the gradients of a batch at the parameters; return its statistics, ``(4,)``."""
        self.optimizer.zero_grad(set_to_none=True)
        with networks_in(self.precision):
            terms = self.loss(x, context, beta)
        terms.loss.backward()
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients) / x.shape[0]
        return torch.stack([terms.loss.detach(), terms.distortion, terms.rate, norm])

    def _clip(self, norm_per_datum: Tensor) -> None:
        """Clip the gradients of a batch to the limit, given their norm."""
        if self.gradient_clip is not None:
            limit, norm = self.gradient_clip * self.size, norm_per_datum * self.size
            nn.utils.clip_grads_with_norm_(self.parameters, limit, norm)


def adam(parameters: Sequence[nn.Parameter]) -> torch.optim.Adam:
    """Return Adam, fused where the device has it; each step sets the learning rate."""
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.Adam(parameters, lr=1e-3, fused=fused)
