"""The compiled step: loss and gradients as one captured function of tensors."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_bvae.compilation.compiled_function import CannotCompile, Swapped, Tensors, compiled
from pyro_bvae.core.context import Context
from pyro_bvae.core.precision import networks_in
from pyro_bvae.core.seeds import seeded
from pyro_bvae.training.steps.step import Step

# How far the compiled loss and gradients may be from the plain ones, in norm, before they are not
# trusted.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
_TOLERANCE_BF16 = 0.05


class CompiledStep(Step):
    r"""A step that is compiled for batches of one shape and plain for others.

    The operations of forward and backward are recorded while the program runs under Pyro's
    handlers, with parameters, buffers, data and β as inputs, so that schedules work, and compiled
    by Inductor; random numbers are drawn from the global generator in the order of the plain step.
    Before the first compiled step both ways are run on one batch with one seed, and the plain one
    is kept if they disagree. Each of several processes compiles for the shape of its share, and
    messages are not compiled. Arguments are those of :class:`Step`.
    """

    _run: object = None
    _signature: tuple[object, ...] | None = None
    #: Outcome of the compilation; empty before it was tried.
    report = ""

    def prepare(self, x: Tensor, context: Context | None, beta: float) -> bool:
        """Compile the step for batches like this one; return whether it could be."""
        started = time.perf_counter()
        self._module = Swapped(self.loss)
        numbers = {id(tensor): number for number, tensor in enumerate(self._module.tensors())}
        self._count = len(numbers)
        self._trained = [numbers[id(parameter)] for parameter in self.parameters]
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
        """Leave the gradients of a batch at the parameters; return its statistics."""
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
        """Return statistics and gradients from :meth:`_inputs`, with a layout of the context."""
        own, (x, *given, beta) = list(tensors[: self._count]), tensors[self._count :]
        for number in self._trained:
            own[number] = own[number].detach().requires_grad_()
        rebuilt = as_laid_out(context, given)
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
        """Raise unless compiled and plain gradients of a batch agree; buffers stay as they are."""
        buffers = {name: buffer.clone() for name, buffer in self.loss.named_buffers()}
        results: list[list[Tensor]] = []
        for way in (super().gradients, self.gradients):
            with seeded(0):
                stats = way(x, context, beta)
            pairs = [(each, each.grad) for each in self.parameters]
            results.append([stats, *(torch.zeros_like(p) if g is None else g for p, g in pairs)])
            for name, buffer in self.loss.named_buffers():
                buffer.copy_(buffers[name])
        half = self.precision == "bf16" or x.dtype not in _TOLERANCE
        tolerance = _TOLERANCE_BF16 if half else _TOLERANCE[x.dtype]
        # The norm of all gradients: one of nearly 0 is not compared beside its rounding.
        whole = x.shape[0] * float(results[0][0][3])
        for plain, fast in zip(*results, strict=True):
            apart = float((plain - fast).detach().norm())
            if not apart <= tolerance * max(float(plain.norm()), 1e-3 * whole):
                size = f"{apart:.2g} of {float(plain.norm()):.2g}"
                raise CannotCompile(f"compiled and plain gradients differ by {size}")


def as_laid_out(context: Context | None, given: Sequence[Tensor]) -> Context | None:
    """Return a context with some tensors in the places of the parts of another."""
    parts = iter(given)
    return context and context.map(lambda _: next(parts))


def signature(x: Tensor, context: Context | None) -> tuple[object, ...]:
    """Return the shapes and the type to which a compiled function is specialised."""
    return (x.shape, x.dtype, *(None if part is None else part.shape for part in context or ()))
