"""The step on CUDA: gradients, clipping and Adam captured once as one graph of kernels, and launched as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_bvae.context import Context
from pyro_bvae.training.compiled import CompiledStep, signature
from pyro_bvae.training.loss import Loss
from pyro_bvae.training.step import step_if_finite


class GraphedStep(CompiledStep):
    """A compiled step of which nothing is left to the host but to copy a batch, β and the learning rate in.

    The first step of the compiled shape is launched kernel by kernel, for Adam to make its state; the second is
    captured, and it and all later ones are replayed. Random numbers go on from the device's generator.

    Args:
        loss: The objective of the module in training.
        parameters: What is trained.
        gradient_clip: Upper limit on the global norm of the gradient per datum; None for no limit.
        precision: What the networks of the parts are run in.
    """

    def __init__(
        self, loss: Loss, parameters: Sequence[nn.Parameter], gradient_clip: float | None, precision: str
    ) -> None:
        super().__init__(loss, parameters, gradient_clip, precision)
        # A tensor that the graph reads, so that schedules work; a number would be frozen into it.
        self._rate = torch.tensor(1e-3, device=self.parameters[0].device)
        self.optimizer = torch.optim.Adam(self.parameters, lr=self._rate, fused=True, capturable=True)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm = False
        self._inside: tuple[Tensor, ...] = ()
        self._stats = torch.zeros(4)

    def __call__(self, x: Tensor, context: Context | None, beta: float | Tensor, learning_rate: float) -> Tensor:
        """Take one step and return (loss, distortion, rate, gradient norm per datum), shape ``(4,)``."""
        for group in self.optimizer.param_groups:  # those of a checkpoint are tensors of their own
            group["lr"] = self._rate
        self._rate.fill_(learning_rate)
        if self._signature is None or signature(x, context) != self._signature or not self._warm:
            self._warm = self._warm or (self._signature is not None and signature(x, context) == self._signature)
            return self._launch(x, context, beta)
        given = (x, *(part for part in context or () if part is not None), torch.as_tensor(beta, dtype=x.dtype))
        if self._graph is None:
            self._capture(given, context)
        for inside, outside in zip(self._inside, given, strict=True):
            inside.copy_(outside)
        assert self._graph is not None
        self._graph.replay()
        return self._stats.clone()

    def _launch(self, x: Tensor, context: Context | None, beta: float | Tensor) -> Tensor:
        """Take a step kernel by kernel."""
        stats = self.gradients(x, context, beta)
        size = x.shape[0]
        self._clip(stats[3], size)
        stats[3] /= size
        step_if_finite(self.optimizer, stats)
        return stats

    def _capture(self, given: tuple[Tensor, ...], context: Context | None) -> None:
        """Record a step on tensors of the graph's own."""
        self._inside = tuple(tensor.to(self._rate.device, copy=True) for tensor in given)
        x, *others, beta = self._inside
        parts = iter(others)
        layout = None if context is None else Context(*(None if part is None else next(parts) for part in context))
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._stats = self._launch(x, layout, beta)
