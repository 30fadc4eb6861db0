"""The compiled step: loss and gradients of a batch captured once, as one function of tensors, and compiled."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_bvae.compilation.compiled_function import CannotCompile, Swapped, Tensors, compiled
from pyro_bvae.core.context import Context
from pyro_bvae.core.precision import networks_in
from pyro_bvae.core.seeds import seeded
from pyro_bvae.training.distributed import Ranks
from pyro_bvae.training.objectives.loss import Loss
from pyro_bvae.training.steps.step import Step

# How far the compiled loss and gradients may be from the plain ones, in norm, before they are not
# trusted.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
_TOLERANCE_BF16 = 0.05


class CompiledStep(Step):
    r"""A step whose loss and gradients are compiled for batches of one shape; other batches take the plain way.

    The operations of forward and backward are recorded while the program runs under Pyro's
    handlers, with parameters, buffers, data and β as inputs, so that schedules work, and compiled
    by Inductor; random numbers are drawn from the global generator in the order of the plain step.
    Before the first compiled step both ways are run on one batch with one seed, and the plain one
    is kept if they disagree.

    Args:
        loss: The objective of the module in training.
        parameters: What is trained.
        gradient_clip: Upper limit on the global norm of the gradient per datum; None for no limit.
        precision: What the networks of the parts are run in.
        ranks: The processes that train together. Each compiles for the shape of its share; messages
            are not compiled.
    """

    def __init__(
        self,
        loss: Loss,
        parameters: Sequence[nn.Parameter],
        gradient_clip: float | None,
        precision: str,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(loss, parameters, gradient_clip, precision, ranks)
        self._module = Swapped(loss)
        numbers = {id(tensor): number for number, tensor in enumerate(self._module.tensors())}
        self._count = len(numbers)
        self._trained = [numbers[id(parameter)] for parameter in self.parameters]
        self._run: object = None
        self._signature: tuple[object, ...] | None = None
        #: Outcome of the compilation; empty before it was tried.
        self.report = ""

    def prepare(self, x: Tensor, context: Context | None, beta: float) -> bool:
        """Compile the step for batches like this one; return whether it could be, and say how it went in ``said``."""
        started = time.perf_counter()
        inputs = self._inputs(x, context, beta)
        try:
            self._run, _ = compiled(lambda tensors: self._function(tensors, context), inputs)
            self._signature = signature(x, context)
            self._compare(x, context, beta)
        except CannotCompile as reason:
            self._run = self._signature = None
            self.report = f"the step is not compiled: {reason}"
            return False
        self.report = f"compiled the step in {time.perf_counter() - started:.1f} s"
        return True

    def gradients(self, x: Tensor, context: Context | None, beta: float | Tensor) -> Tensor:
        """Leave the gradients of a batch at the parameters; return (loss, distortion, rate, their norm per datum)."""
        if self._signature is None or signature(x, context) != self._signature:
            return super().gradients(x, context, beta)
        for parameter in self.parameters:
            parameter.grad = None  # so that the new gradients can lie where the old ones were
        stats, *gradients = self._run(self._inputs(x, context, beta))  # type: ignore[operator]
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return stats  # type: ignore[no-any-return]

    def _inputs(self, x: Tensor, context: Context | None, beta: float | Tensor) -> list[Tensor]:
        """Return all that the compiled function depends on."""
        given = [part for part in context or () if part is not None]
        return [
            *self._module.tensors(),
            x,
            *given,
            torch.as_tensor(beta, dtype=x.dtype, device=x.device),
        ]

    def _function(self, tensors: Tensors, context: Context | None) -> Tensors:
        """Return stats and gradients as a function of :meth:`_inputs`; only the layout of ``context`` is used."""
        own, (x, *given, beta) = list(tensors[: self._count]), tensors[self._count :]
        for number in self._trained:
            own[number] = own[number].detach().requires_grad_()
        parts = iter(given)
        rebuilt = (
            None
            if context is None
            else Context(*(None if part is None else next(parts) for part in context))
        )
        with networks_in(self.precision), torch.enable_grad(), self._module.given(own):
            terms = self.loss(x, rebuilt, beta)
            trained = [own[number] for number in self._trained]
            gradients = torch.autograd.grad(terms.loss, trained, materialize_grads=True)
        # Row by row: the compiler makes one loop of it, where torch's own norm would be a call for
        # each tensor.
        squares = [gradient.square().sum(-1).sum() for gradient in gradients]
        norm = torch.stack(squares).sum().sqrt() / x.shape[0]
        return [torch.stack([terms.loss.detach(), terms.distortion, terms.rate, norm]), *gradients]

    def _compare(self, x: Tensor, context: Context | None, beta: float) -> None:
        """Raise unless the compiled gradients of a batch are the plain ones, with buffers and generator as before."""
        buffers = {name: buffer.clone() for name, buffer in self.loss.named_buffers()}
        results: list[list[Tensor]] = []
        for way in (super().gradients, self.gradients):
            with seeded(0):
                stats = way(x, context, beta)
            results.append([stats, *(_or_zero(parameter) for parameter in self.parameters)])
            for name, buffer in self.loss.named_buffers():
                buffer.copy_(buffers[name])
        tolerance = (
            _TOLERANCE_BF16
            if self.precision == "bf16"
            else _TOLERANCE.get(x.dtype, _TOLERANCE_BF16)
        )
        whole = x.shape[0] * float(
            results[0][0][3]
        )  # beside whose rounding a gradient of nearly 0 is not looked at
        for plain, fast in zip(*results, strict=True):
            apart = float((plain - fast).detach().norm())
            if not apart <= tolerance * max(float(plain.norm()), 1e-3 * whole):
                raise CannotCompile(
                    f"compiled and plain gradients differ by {apart:.2g} of {float(plain.norm()):.2g}"
                )


def _or_zero(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def signature(x: Tensor, context: Context | None) -> tuple[object, ...]:
    """Return what a compiled function is specialised to."""
    return (x.shape, x.dtype, *(None if part is None else part.shape for part in context or ()))
