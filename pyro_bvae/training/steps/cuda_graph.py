"""The step on CUDA: gradients, clipping and Adam as one graph of kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_bvae.core.context import Context
from pyro_bvae.training.steps.compiled import CompiledStep, as_laid_out, signature


class GraphedStep(CompiledStep):
    """A compiled step for which the host only copies a batch, β and the learning rate in.

    The first step of the compiled shape is launched kernel by kernel, for Adam to make its state;
    the second is captured, and it and all later ones are replayed. Random numbers go on from the
    device's generator. Arguments are those of :class:`~pyro_bvae.training.steps.step.Step`, of one
    process alone.
    """

    def _make_optimizer(self) -> torch.optim.Optimizer:
        # A tensor that the graph reads, so that schedules work; a number would be frozen into it.
        self._rate = torch.tensor(1e-3, device=self.parameters[0].device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm = False
        self._inside: tuple[Tensor, ...] = ()
        self._stats = torch.zeros(4)
        return torch.optim.Adam(self.parameters, lr=self._rate, fused=True, capturable=True)

    def __call__(
        self, x: Tensor, context: Context | None, beta: float | Tensor, learning_rate: float
    ) -> Tensor:
        """Take a step; return loss, distortion, rate, gradient norm per datum, ``(4,)``."""
        for group in self.optimizer.param_groups:  # those of a checkpoint are tensors of their own
            group["lr"] = self._rate
        self._rate.fill_(learning_rate)
        compiled = self._signature is not None and signature(x, context) == self._signature
        if not (compiled and self._warm):
            self._warm = self._warm or compiled
            return self.take(x, context, beta)
        given = (
            x,
            *(part for part in context or () if part is not None),
            torch.as_tensor(beta, dtype=x.dtype),
        )
        if self._graph is None:
            self._capture(given, context)
        for inside, outside in zip(self._inside, given, strict=True):
            inside.copy_(outside)
        assert self._graph is not None
        self._graph.replay()
        self.size = x.shape[0]
        return self._stats.clone()

    def _capture(self, given: tuple[Tensor, ...], context: Context | None) -> None:
        """Record a step on tensors of the graph's own."""
        self._inside = tuple(tensor.to(self._rate.device, copy=True) for tensor in given)
        x, *others, beta = self._inside
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._stats = self.take(x, as_laid_out(context, others), beta)
