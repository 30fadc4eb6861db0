"""One step of training: gradients of a batch, their norm kept in bounds, Adam."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_bvae.context import Context
from pyro_bvae.precision import networks_in
from pyro_bvae.training.loss import Loss


class Step:
    """A step of a training run as it is written: the loss backward, then Adam.

    Args:
        loss: The objective of the module in training.
        parameters: What is trained.
        gradient_clip: Upper limit on the global norm of the gradient per datum; None for no limit.
        precision: What the networks of the parts are run in.
    """

    def __init__(
        self, loss: Loss, parameters: Sequence[nn.Parameter], gradient_clip: float | None, precision: str
    ) -> None:
        self.loss, self.parameters = loss, list(parameters)
        self.gradient_clip, self.precision = gradient_clip, precision
        fused = self.parameters[0].device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(self.parameters, lr=1e-3, fused=fused)

    def __call__(self, x: Tensor, context: Context | None, beta: float | Tensor, learning_rate: float) -> Tensor:
        """Take one step and return (loss, distortion, rate, gradient norm per datum), shape ``(4,)``."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        stats = self.gradients(x, context, beta)
        size = x.shape[0]
        self._clip(stats[3], size)
        stats[3] /= size
        step_if_finite(self.optimizer, stats)
        return stats

    def gradients(self, x: Tensor, context: Context | None, beta: float | Tensor) -> Tensor:
        """Leave the gradients of a batch at the parameters; return its three terms and their norm, shape ``(4,)``."""
        self.optimizer.zero_grad(set_to_none=True)
        with networks_in(self.precision):
            terms = self.loss(x, context, beta)
        terms.loss.backward()
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        return torch.stack([terms.loss.detach(), terms.distortion, terms.rate, nn.utils.get_total_norm(gradients)])

    def _clip(self, norm: Tensor, size: int) -> None:
        """Clip the gradients of a batch of this size, whose norm is known."""
        if self.gradient_clip is None:
            return
        limit = self.gradient_clip * size
        # A norm that is not finite would make every gradient NaN, and nobody could say which was.
        if norm.is_cuda or limit < float(norm) < float("inf"):
            nn.utils.clip_grads_with_norm_(self.parameters, limit, norm)


def step_if_finite(optimizer: torch.optim.Optimizer, stats: Tensor) -> None:
    """Take a step, unless the numbers behind it are not finite and it would spoil the weights."""
    finite = torch.isfinite(stats).all()
    if stats.device.type == "cpu":
        if bool(finite):
            optimizer.step()
        return
    # Fused Adam decides on the device, without a look from here.
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()
