"""The last answer of a refinement, for as long as nothing that it was made of has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from torch import Tensor, nn

from pyro_bvae.core.internals import version_of

T = TypeVar("T")


class LastAnswer(Generic[T]):
    """Remembers one result, with the tensors and modes that it is a function of.

    An estimator asks for the posterior of the same data again and again. Tensors are the same if
    they are the same objects and were not written to.

    Args:
        parts: What the result is made by. It is made anew each time unless all are modules, whose
            weights are known.
    """

    def __init__(self, parts: Iterable[object]) -> None:
        self._parts = tuple(parts)
        self._key: tuple[object, ...] = ()
        self._kept: tuple[Tensor, ...] = ()
        self._result: T | None = None

    def get(self, inputs: Iterable[Tensor | None], make: Callable[[], T]) -> T:
        """Return the result for some inputs, made anew unless it is the last one."""
        modules = [part for part in self._parts if isinstance(part, nn.Module)]
        tensors = [each for each in inputs if each is not None]
        tensors += [weight for part in modules for weight in (*part.parameters(), *part.buffers())]
        if len(modules) < len(self._parts) or any(each.is_inference() for each in tensors):
            return make()
        modes = [part.training for module in modules for part in module.modules()]
        key = (*((id(each), version_of(each)) for each in tensors), *modes)
        if self._result is None or key != self._key:
            self._result = make()
            # The tensors are held, so that no other takes the place of one in memory.
            self._key, self._kept = key, tuple(tensors)
        return self._result
