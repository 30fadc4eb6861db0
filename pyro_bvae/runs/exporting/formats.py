"""Graphs as files: ``torch.export``'s .pt2 and ONNX, written, read again and compared."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.runs.exporting.graphs import Probe, Tensors

#: The function of a file: outputs by name, of inputs by name and the names of the outputs.
Run = Callable[[Mapping[str, Tensor], Iterable[str]], Tensors]
#: Largest difference between a file and the model, in units of the number or of 1 if that is more.
TOLERANCE = 1e-5
# How many of the data a file that was read again is run on, beside all of them: one, and some.
_BATCHES = (1, 3)


def needed(package: str, extra: str) -> Any:
    """Return a package of an extra.

    Raises:
        InputError: if it is not installed, with the command that installs it.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise InputError(
            f"the package {package} is not installed: pip install 'pyro-bvae[{extra}]'"
        ) from error


@contextmanager
def _recording() -> Iterator[None]:
    """Run the body without gradients, checks of values, and torch's remarks on its progress."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), pyro.validation_enabled(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def graph_of(probe: Probe) -> torch.export.ExportedProgram:
    """Return the graph of a module, for any number of data."""
    first, *others = probe.inputs
    batch = torch.export.Dim("batch")
    graph = copy.deepcopy(probe.graph).eval().requires_grad_(False)  # results are plain numbers
    with _recording():
        return torch.export.export(
            graph,
            (probe.inputs[first],),
            {name: probe.inputs[name] for name in others},
            dynamic_shapes={name: {0: batch} for name in probe.inputs},
            strict=False,
        )


def pt2_content(program: torch.export.ExportedProgram, probe: Probe) -> bytes:
    """Return the content of a .pt2 file."""
    buffer = io.BytesIO()
    with _recording():
        torch.export.save(program, buffer)
    return buffer.getvalue()


def open_pt2(path: Path) -> Run:
    """Return the function of a .pt2 file."""
    with path.open("rb") as stream, _recording():
        graph = torch.export.load(stream).module()  # type: ignore[arg-type]

    def run(inputs: Mapping[str, Tensor], outputs: Iterable[str]) -> Tensors:
        first, *others = inputs
        with _recording():
            results: Tensors = graph(inputs[first], **{name: inputs[name] for name in others})
        return results

    return run


def onnx_content(program: torch.export.ExportedProgram, probe: Probe) -> bytes:
    """Return the content of an ONNX file."""
    with _recording():
        made = torch.onnx.export(
            program, dynamo=True, verbose=False,
            input_names=list(probe.inputs), output_names=list(probe.wanted),
        )  # fmt: skip
    assert made is not None
    content: bytes = made.model_proto.SerializeToString()
    return content


def open_onnx(path: Path) -> Run:
    """Return the function of an ONNX file."""
    session = needed("onnxruntime", "onnx").InferenceSession(path.read_bytes())

    def run(inputs: Mapping[str, Tensor], outputs: Iterable[str]) -> Tensors:
        given = {name: value.numpy() for name, value in inputs.items()}
        values = session.run(list(outputs), given)
        return {name: torch.from_numpy(value) for name, value in zip(outputs, values, strict=True)}

    return run


#: Ending of a file -> the functions that write and open it.
FORMATS: dict[str, tuple[Any, Callable[[Path], Run]]] = {
    ".pt2": (pt2_content, open_pt2),
    ".onnx": (onnx_content, open_onnx),
}


def largest_difference(path: Path, name: str, probe: Probe) -> float:
    r"""Return the largest difference between a file's numbers and the model's.

    .. math:: \max_i \frac{|f_i - m_i|}{\max(1, |m_i|)}

    over all outputs, at one datum, some, and all.

    Args:
        path: Where the file lies.
        name: The name that it shall have.
        probe: The inputs, and the model's numbers.

    Raises:
        InputError: if it is above 1e-5.
    """
    most, run = 0.0, FORMATS[Path(name).suffix][1](path)
    for count in (*_BATCHES, len(next(iter(probe.inputs.values())))):
        inputs = {key: value[:count] for key, value in probe.inputs.items()}
        given = run(inputs, probe.wanted)
        for key, wanted in probe.wanted.items():
            own = wanted[:count]
            distance = ((given[key] - own).abs() / own.abs().clamp(min=1)).max().item()
            if not (given[key].shape == own.shape and distance <= TOLERANCE):
                raise InputError(
                    f"{name} gives another '{key}' than the model, by {distance:.1g} where"
                    f" {TOLERANCE:g} is allowed: nothing was written"
                )
            most = max(most, distance)
    return most
