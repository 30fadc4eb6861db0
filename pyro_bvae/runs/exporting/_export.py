"""A run's model for other programs: weights, graphs of encoder and decoder, and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_bvae.core.atomic_files import discard, put_in_place, write_part
from pyro_bvae.core.context import Context
from pyro_bvae.core.disk.making import making
from pyro_bvae.core.errors import InputError, byte_size
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.datasets import Scaling
from pyro_bvae.datasets.record import DataRecord
from pyro_bvae.runs.build import Shape, build_vae
from pyro_bvae.runs.config import TrainConfig
from pyro_bvae.runs.directory import Run, load
from pyro_bvae.runs.exporting.card import model_card
from pyro_bvae.runs.exporting.formats import FORMATS, graph_of, largest_difference, needed
from pyro_bvae.runs.exporting.graphs import Probe, probes
from pyro_bvae.training.checkpoint import load_weights
from pyro_bvae.vae import BetaVAE

_FORMAT, _VERSION = "pyro_bvae.export", 1
_WEIGHTS, _DESCRIPTION, _CARD = "weights.safetensors", "model.json", "README.md"
_GRAPHS = ("encoder.pt2", "decoder.pt2", "encoder.onnx", "decoder.onnx")
# Data that a file's numbers are compared on.
_COMPARED = 32


@dataclass(frozen=True)
class Exported:
    """The files of an export.

    Attributes:
        folder: Where they lie.
        sizes: Bytes of each file by name.
        differences: Largest difference from the model's numbers of each graph, in units of the
            number, or of 1 if that is more.
    """

    folder: Path
    sizes: Mapping[str, int]
    differences: Mapping[str, float]

    def __str__(self) -> str:
        lines = []
        for name, size in self.sizes.items():
            found = self.differences.get(name)
            equal = "" if found is None else f", equal to the model within {found:.1g}"
            lines.append(f"{name}: {byte_size(size)}{equal}")
        return "\n".join(lines)


@exclusive
def export(
    run: str | Path,
    output: str | Path | None = None,
    *,
    onnx: bool = False,
    checkpoint: str = "best",
) -> Exported:
    r"""Write a run's model into a folder, for programs that know nothing of this package.

    - ``weights.safetensors``: the weights, with the description in its metadata;
    - ``model.json``: the description: configuration, shapes, inputs and outputs;
    - ``encoder.pt2``, ``decoder.pt2``: graphs of ``torch.export`` for any number of data. The
      encoder gives ``mean`` and ``scale`` of :math:`q(z \mid x)` for data as they were read, the
      decoder the mean and the parameters of :math:`p(x \mid z)`;
    - ``encoder.onnx``, ``decoder.onnx``: the same graphs, with ``onnx``;
    - ``README.md``: a model card, with the code that loads each file.

    Every file is read again before it gets its name. The numbers of a graph are compared with the
    model's on data that the model makes, and have to agree to 1e-5 of the number, or of 1 if that
    is more. The run is not changed.

    Args:
        run: The run directory.
        output: The folder; by default the run directory's name and ``-export``, beside it. Files of
            an earlier export in it are replaced.
        onnx: Write ONNX files too, which needs the extra ``[onnx]``.
        checkpoint: ``best`` or ``last``.

    Raises:
        InputError: if the run cannot be read or has parts without names, a package is missing, or a
            file's numbers are not the model's; nothing is written then.
        WriteError: if the file system does not take the files.
    """
    packages = ["safetensors", *(["onnxscript", "onnxruntime"] if onnx else [])]
    for package in packages:
        needed(package, "onnx" if package != "safetensors" else "export")
    directory = Path(run)
    folder = _folder(directory, output)
    opened = load(directory, checkpoint=checkpoint)
    if opened.config is None:
        raise InputError(f"{directory} has no config.json, so that its parts have no names")
    record = _record(opened)
    known = probes(opened.vae, record.contexts, _COMPARED)
    described = _description(opened, record, known)
    graphs = {name: graph_of(probe) for name, probe in known.items()}
    contents = {_WEIGHTS: _weights_content(opened.vae, described)}
    for name in _GRAPHS:
        part, suffix = Path(name).stem, Path(name).suffix
        if onnx or suffix != ".onnx":
            contents[name] = FORMATS[suffix][0](graphs[part], known[part])
    contents[_DESCRIPTION] = (json.dumps(described, indent=2) + "\n").encode()
    contents[_CARD] = model_card(opened, described, list(contents), checkpoint).encode()
    return _write(folder, contents, known, opened.vae)


def _folder(run: Path, output: str | Path | None) -> Path:
    """Return the folder to write to, which is none of the run's."""
    whole = run.resolve()
    folder = run.with_name(f"{whole.name}-export") if output is None else Path(output)
    if whole in (folder.resolve(), *folder.resolve().parents):
        raise InputError(f"'output' must be outside of the run, {run}, got {folder}")
    return folder


def _record(run: Run) -> DataRecord:
    """Return the record of a run's data; a run of version 0.1.0 has the data themselves."""
    if run.record is not None:
        return run.record
    assert run.splits is not None
    return DataRecord.of(run.splits)


def _description(run: Run, record: DataRecord, known: Mapping[str, Probe]) -> dict[str, Any]:
    """Return what the weights do not say of themselves."""
    assert run.config is not None
    shape, cells = vars(Shape.recorded(record)), record.cells
    packages = ("pyro-bvae", "torch", "pyro-ppl")
    graphs = {
        name: {
            side: {key: ["N", *value.shape[1:]] for key, value in getattr(probe, values).items()}
            for side, values in (("inputs", "inputs"), ("outputs", "wanted"))
        }
        for name, probe in known.items()
    }
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "config": {**run.config.options(), "path": None, "data_root": None},
        "shape": {name: value for name, value in shape.items() if not callable(value)},
        "training_beta": run.training_beta,
        "data": {
            "name": record.name,
            "parts": {name: len(members.index) for name, members in record.parts.items()},
            "features": list(record.feature_names),
            "labels": list(record.label_names),
            "batches": list(cells.batches) if cells else [],
            "total_is_size_factor": bool(cells and cells.size_factor),
        },
        **graphs,
        "versions": {name: version(name) for name in packages},
    }


def _weights_content(vae: torch.nn.Module, described: Mapping[str, Any]) -> bytes:
    from safetensors.torch import save

    # Copies, since a file of this format shares no weights between two names.
    weights = {name: weight.contiguous().clone() for name, weight in vae.state_dict().items()}
    content: bytes = save(weights, {_FORMAT: json.dumps(described)})
    return content


def _write(
    folder: Path, contents: Mapping[str, bytes], known: Mapping[str, Probe], vae: BetaVAE
) -> Exported:
    """Write all files, compare them with the model, and give them their names."""
    parts: dict[str, Path] = {}
    with making(folder):
        try:
            for name, content in contents.items():
                parts[name] = write_part(folder / name, content)
            _check_weights(parts[_WEIGHTS], vae)
            differences = {
                name: largest_difference(parts[name], name, known[Path(name).stem])
                for name in _GRAPHS
                if name in parts
            }
            for name, part in parts.items():
                put_in_place(part, folder / name)
            for name in set(_GRAPHS) - set(parts):  # of an earlier export
                (folder / name).unlink(missing_ok=True)
        finally:
            for part in parts.values():
                discard(part)
    return Exported(folder, {name: len(each) for name, each in contents.items()}, differences)


def _check_weights(path: Path, vae: BetaVAE) -> None:
    """Raise unless the model that is made from a file has the weights of another."""
    made, own = _rebuilt(path).state_dict(), vae.state_dict()
    wrong = [name for name in own if not torch.equal(made[name], own[name])]
    if wrong:
        raise InputError(f"{_WEIGHTS} has other weights than the model, '{wrong[0]}'")


@exclusive
def from_export(folder: str | Path) -> BetaVAE:
    """Return the model of an export, made from ``weights.safetensors`` alone.

    Args:
        folder: The folder of the export, or the file.

    Raises:
        InputError: if the file is missing, none of an export, or damaged.
    """
    path = Path(folder)
    return _rebuilt(path / _WEIGHTS if path.is_dir() else path)


def _rebuilt(path: Path) -> BetaVAE:
    safetensors = needed("safetensors", "export")
    if not path.is_file():
        raise InputError(f"there is no export at {path}: 'pyro-bvae export RUN' writes one")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {}).get(_FORMAT, "null"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as weights: {error}") from error
    if not isinstance(described, dict) or described.get("format") != _FORMAT:
        raise InputError(f"{path} is none of the files that 'pyro-bvae export' writes")
    if described.get("version") != _VERSION:
        raise InputError(
            f"{path} has version {described.get('version')}; this package reads {_VERSION}"
        )
    try:
        options = described["config"]
        options |= {name: tuple(each) for name, each in options.items() if isinstance(each, list)}
        vae = build_vae(TrainConfig(**options), _shape(described["shape"], weights))
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} describes no model of this version: {error}") from error
    load_weights(vae, {"model": weights}, path)
    return vae.eval()


def _shape(sizes: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Shape:
    """Return the shape of the data; its pseudo-inputs and scaling are among the weights."""
    image, pseudo = sizes["image_shape"], weights.get("prior.raw_inputs")
    features, covariates = sizes["num_features"], sizes["num_covariates"]

    def examples(count: int) -> tuple[Tensor, Context | None]:
        rows = count if pseudo is None else len(pseudo)
        context = Context(covariates=torch.zeros(rows, covariates)) if covariates else None
        return torch.zeros(rows, features), context

    scaling = partial(Scaling.identity, features)  # its own is among the weights, too
    whole = {**sizes, "image_shape": image and tuple(image)}
    return Shape(**whole, examples=examples, scaling=scaling)
