"""Functions of tensors, captured as graphs of operations and compiled, without Python.

A Pyro program is Python: effect handlers, traces, distributions made and thrown away. One run of it
leaves a list of tensor operations. :func:`compiled` records that list and has Inductor make machine
code of it, which its cache on disk keeps between runs.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import pyro
import torch
from torch import Tensor, nn

from pyro_bvae.compilation.graph_passes import rewrite
from pyro_bvae.core.seeds import seeded

Tensors = Sequence[Tensor]
Function = Callable[[Tensors], Tensors]

# Compiled functions of this process, by operations, shapes and constants. Each has its graph, so
# that a large constant, known by its identity, lives as long and no other can take its place.
_known: dict[object, tuple[Function, torch.fx.GraphModule]] = {}
_MOST_KNOWN = 16


class CannotCompile(Exception):
    """Why a function is run as it is; its text is one line."""

    def __init__(self, reason: object) -> None:
        line = next(
            (line.strip() for line in str(reason).splitlines() if line.strip()),
            type(reason).__name__,
        )
        super().__init__(line[:200])


def capture(function: Function, example: Tensors) -> torch.fx.GraphModule:
    """Record the operations that a function does on an example.

    Args:
        function: Takes a list of tensors and returns a list of tensors. Its Python control flow and
            all numbers in it that are no tensors are those of the example.
        example: Its argument in the one run; tensors that it changes in place are to be copies.

    Raises:
        CannotCompile: if it asks a tensor for its value, or does something that cannot be recorded.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    def unpacked(*arguments: Tensor) -> Tensors:
        return function(arguments)

    # Parameters registered while recording are stand-ins, which nobody should see again.
    empty = pyro.get_param_store().scope()
    try:
        with empty, pyro.validation_enabled(False), seeded(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cast("torch.fx.GraphModule", make_fx(unpacked)(*example))
    except Exception as error:
        raise CannotCompile(_explain(error)) from error


def compiled(function: Function, example: Tensors) -> tuple[Function, float]:
    """Capture and compile a function for the example's shapes; return it with the seconds taken.

    Random numbers are those of the global generator, in the order in which the function itself
    draws them.

    Args:
        function: As :func:`capture` takes it.
        example: As :func:`capture` takes it.

    Raises:
        CannotCompile: if it cannot be captured, or there is no compiler for it.
    """
    started = time.perf_counter()
    graph = capture(function, [tensor.detach().clone() for tensor in example])
    key = _identity(graph, example)
    known = _known.get(key)  # once: another thread may clear the table
    if known is None:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        known = _known[key] = _compile(graph, example), graph
    return known[0], time.perf_counter() - started


def _compile(graph: torch.fx.GraphModule, example: Tensors) -> Function:
    """Make machine code of a graph."""
    # Without packed weights, which would have to be constants.
    options = {"fallback_random": True, "cpp.weight_prepack": False}
    with _quiet(), torch.no_grad():
        try:
            import torch._inductor as inductor

            rewrite(graph)
            fast = inductor.compile(graph, list(example), options=options)
        except Exception as error:
            raise CannotCompile(_explain(error)) from error

    def run(tensors: Tensors) -> Tensors:
        with torch.no_grad():
            return cast("Tensors", fast(*tensors))

    return run


def _identity(graph: torch.fx.GraphModule, example: Tensors) -> object:
    """Return a key that two graphs share if one may stand for the other."""
    constants = [
        getattr(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"
    ]
    few = [
        tuple(tensor.flatten().tolist()) if tensor.numel() <= 64 else id(tensor)
        for tensor in constants
    ]
    shapes = [(tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in example]
    return (
        graph.code,
        tuple(few),
        tuple(shapes),
        torch.get_float32_matmul_precision(),
        torch.get_num_threads(),
    )


def _explain(error: Exception) -> str:
    """Return an error of the tracer or the compiler, in a user's words where it is a known one."""
    text = f"{type(error).__name__}: {error}"
    if "InvalidCxxCompiler" in text or "No working C++ compiler" in text:
        return "there is no C++ compiler"
    if (
        "value out of a tracing tensor" in text
        or "DataDependent" in text
        or "data-dependent" in text
    ):
        return "the program asks a tensor for its value (if, while, float(), .item())"
    return text


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the compiler's messages to its developers from a user's screen."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class Swapped:
    """Modules whose parameters and buffers can be given from outside, as a list of tensors.

    Args:
        modules: The modules; a capture with stand-ins in their places reads the stand-ins.
    """

    def __init__(self, *modules: nn.Module) -> None:
        # Each place once, though a module may be reached by two names; a tensor at two places is
        # one tensor.
        owners = {id(owner): owner for module in modules for owner in module.modules()}.values()
        tables = [table for owner in owners for table in (owner._parameters, owner._buffers)]
        self._places: list[tuple[dict[str, Tensor], str, int]] = []
        numbers: dict[int, int] = {}
        for table in cast("list[dict[str, Tensor]]", tables):
            for leaf, tensor in table.items():
                if tensor is not None:
                    self._places.append((table, leaf, numbers.setdefault(id(tensor), len(numbers))))
        self._first = {number: (table, leaf) for table, leaf, number in reversed(self._places)}

    def tensors(self) -> list[Tensor]:
        """Return the parameters and buffers, as they are now."""
        return [
            table[leaf]
            for table, leaf in (self._first[number] for number in range(len(self._first)))
        ]

    @contextmanager
    def given(self, tensors: Tensors) -> Iterator[None]:
        """Run the body with other tensors in the places of the modules' own."""
        own = [table[leaf] for table, leaf, _ in self._places]
        try:
            for table, leaf, number in self._places:
                table[leaf] = tensors[number]
            yield
        finally:
            for (table, leaf, _), tensor in zip(self._places, own, strict=True):
                table[leaf] = tensor
