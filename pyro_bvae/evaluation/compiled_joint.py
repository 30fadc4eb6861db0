"""The joint density of a program, compiled for the many passes of importance sampling."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_bvae.compilation.compiled_function import CannotCompile, Swapped, Tensors, compiled
from pyro_bvae.core.internals import tree_flatten, tree_unflatten
from pyro_bvae.core.module_modes import modules_of
from pyro_bvae.core.processes.progress import ProgressBar
from pyro_bvae.program.densities import LatentValues

if TYPE_CHECKING:
    from pyro_bvae.program.program import Program

#: Rows (particles times data) of a pass, and numbers in its widest site, on a CPU: no Python holds
#: it up, so small that its results stay in the cache.
COMPILED_PASS = (4096, 3_300_000)
#: Passes from which a compiled density repays the seconds of the compiler.
WORTH_COMPILING = 4000


class CompiledJoint:
    """``log p(z)`` and ``log p(x | z)`` of a program, in place of :meth:`Program.log_joint`.

    The first pass decides on the shape that is compiled, by its results both ways; others are run
    as they are, and so is every pass of a program that cannot be compiled.

    Args:
        program: The program.
        wanted: Whether it is a surprise if the program cannot be compiled.
        bar: The progress bar beside which the outcome is written.
    """

    def __init__(self, program: Program, wanted: bool, bar: ProgressBar) -> None:
        self.program, self.wanted, self.bar = program, wanted, bar
        self._modules = Swapped(*modules_of(program.model))
        self._run: Any = None
        self._signature: tuple[Any, ...] | None = None
        #: The outcome of the compilation, in words; empty before the first pass.
        self.report = ""

    def __call__(self, values: LatentValues, args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """Return ``log p(z)`` and ``log p(x | z)`` at given latents, ``(K, N)`` each."""
        leaves, layout = tree_flatten((values, args))
        shapes = ((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves)
        signature = (layout, *shapes)
        if not self.report:
            self._prepare(leaves, layout)
            self._signature = None if self._run is None else signature
        if signature != self._signature:
            return self.program.log_joint(values, args)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        latent, observed = self._run([*self._modules.tensors(), *tensors])
        return latent, observed

    def _prepare(self, leaves: list[Any], layout: Any) -> None:
        own = self._modules.tensors()

        def joint(tensors: Tensors) -> Tensors:
            given = iter(tensors[len(own) :])
            filled = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            with self._modules.given(tensors):
                return self.program.log_joint(*tree_unflatten(filled, layout))

        example = [*own, *(leaf for leaf in leaves if isinstance(leaf, Tensor))]
        try:
            self._run, seconds = compiled(joint, example)
            plain = self.program.log_joint(*tree_unflatten(leaves, layout))
            for one, other in zip(self._run(example), plain, strict=True):
                if not torch.allclose(one, other, rtol=1e-4, atol=1e-3, equal_nan=True):
                    raise CannotCompile(
                        "compiled and plain densities differ by"
                        f" {float((one - other).abs().max()):.2g}"
                    )
            self.report = f"compiled the density in {seconds:.1f} s"
        except CannotCompile as reason:
            self._run, self.report = None, f"the density is not compiled: {reason}"
        if self._run is None and self.wanted:
            warnings.warn(self.report, stacklevel=2)
        elif not self.bar.disable:
            self.bar.write(self.report)


def compiled_joint(
    program: Program, num_samples: int, compile: bool | None, bar: ProgressBar
) -> CompiledJoint | None:
    """Return a compiled density if it is wanted, or repaid by the samples, or None."""
    passes = (
        num_samples * program.num_data / min(COMPILED_PASS[0], COMPILED_PASS[1] / program.width)
    )
    if program.summation is not None:
        return None
    if not program.vectorized or not (passes >= WORTH_COMPILING if compile is None else compile):
        return None
    return CompiledJoint(program, compile is True, bar)
