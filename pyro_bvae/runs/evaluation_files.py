"""The evaluation of a run's model, by one process or several, and its files."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.context import Context
from pyro_bvae.core.disk.digests import read_file, write_files
from pyro_bvae.core.disk.run_files import evaluation_files
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import CHOICE_STREAM, stream_seed
from pyro_bvae.evaluation import Evaluation, evaluate, join_evaluations, kl_per_dimension, to_arviz
from pyro_bvae.evaluation.arviz import netcdf_bytes
from pyro_bvae.evaluation.marginal import Escalation
from pyro_bvae.training import Ranks, checkpoint_path

# Numbers that evaluation.nc holds at most of the drawn latents, and of the drawn data, if one draw
# is no more.
_MOST_DRAWS = 2_000_000


def evaluate_shares(
    vae: Any, args: tuple[Any, ...], ranks: Ranks, *, seed: int, **options: Any
) -> Evaluation:
    """Measure a model on data that several processes share, each with draws of its own.

    Args:
        vae: A module with ``model`` and ``guide``.
        args: Their arguments, the data and, where there is one, its context.
        ranks: The processes; all of them get the evaluation of all data.
        seed: Seed of the draws.
        **options: Further options of :func:`~pyro_bvae.evaluation.evaluate`.
    """
    if ranks.size == 1:
        return evaluate(vae.model, vae.guide, *args, seed=seed, **options)
    size = len(args[0])
    rows, own = ranks.share(size), None
    if rows.stop > rows.start:
        share = (_rows(arg, rows) for arg in args)
        options["method"] = _share_of(
            options.get("method", "auto"), (rows.stop - rows.start) / size
        )
        own = evaluate(vae.model, vae.guide, *share, seed=stream_seed(seed, ranks.rank), **options)
    parts = [part for part in ranks.gather(own) if part is not None]
    return join_evaluations(parts, kl_per_dimension(vae.model, vae.guide, *args, seed=seed))


def write_evaluation(
    directory: Path,
    vae: Any,
    args: tuple[Any, ...],
    evaluation: Evaluation,
    attributes: dict[str, Any],
    latent_dim: int,
    data: str | PathLike[str] | None = None,
) -> None:
    """Write ``evaluation.json`` and ``evaluation.nc``.

    The first has the digests of the second and of the checkpoint, so that a reader sees whether it
    is of them: the process may be killed between two files.

    Args:
        directory: The run.
        vae: Its model.
        args: The data that it was measured on.
        evaluation: The evaluation.
        attributes: Its settings: ``dataset``, ``split``, ``checkpoint``, ``seed`` and
            ``config``.
        latent_dim: The number of latents.
        data: The file of new data that it was measured on, which the files are named after.

    Raises:
        WriteError: if the file system does not take the files.
    """
    drawn = max(
        1, min(100, evaluation.evidence.num_samples, _MOST_DRAWS // (len(args[0]) * latent_dim))
    )
    copies = max(1, min(10, _MOST_DRAWS // args[0].numel()))
    exported = to_arviz(
        vae.model, vae.guide, *args, evaluation=evaluation, num_draws=drawn, num_predictive=copies,
        attributes=attributes, seed=attributes["seed"],
    )  # fmt: skip
    head = {name: value for name, value in attributes.items() if name != "config"}
    draws = netcdf_bytes(exported)
    checkpoint = checkpoint_path(directory, attributes["checkpoint"])
    head["sha256"] = {
        f"checkpoints/{checkpoint.name}": sha256(read_file(checkpoint)).hexdigest(),
        evaluation_files(directory, data)[1].name: sha256(draws).hexdigest(),
    }
    text = json.dumps({**head, **evaluation.to_dict()}, indent=2, allow_nan=False) + "\n"
    json_path, nc_path = evaluation_files(directory, data)
    write_files({nc_path: draws, json_path: text.encode("utf-8")})


def _share_of(method: Any, share: float) -> Any:
    """Return a method whose budget is that of a share of the data."""
    if isinstance(method, Escalation) and method.budget is not None:
        return replace(method, budget=max(1, int(share * method.budget)))
    return method


def check_measured(directory: Path, evaluation: Mapping[str, Any]) -> None:
    """Raise unless an evaluation is of the checkpoint and of the draws that are in its run.

    Args:
        directory: The run.
        evaluation: The content of its ``evaluation.json``; that of version 0.1.0 does not say.

    Raises:
        InputError: if one of them was replaced, and the process killed before the other was.
    """
    for name, digest in evaluation.get("sha256", {}).items():
        path = directory / name
        if path.exists() and sha256(read_file(path)).hexdigest() != digest:
            raise InputError(
                f"'{directory / 'evaluation.json'}' does not belong to {name}: a process was killed"
                f" before it had replaced both; run 'pyro-bvae evaluate {directory}' again"
            )


def chosen_rows(size: int, num_data: int, seed: int) -> Tensor:
    """Return the rows of the data that the seed chooses, rising; all of them if there are no more.

    Args:
        size: How many data there are.
        num_data: How many to choose.
        seed: The seed.
    """
    if num_data >= size:
        return torch.arange(size)
    generator = torch.Generator().manual_seed(stream_seed(seed, CHOICE_STREAM))
    return torch.randperm(size, generator=generator)[:num_data].sort().values


def measured_evidences(directory: Path) -> np.ndarray | None:
    """Return the evidence of each test datum that an evaluation has, ``(N,)``; None without one.

    Raises:
        InputError: if the file was changed since it was written.
    """
    return measured_values(directory).get("evidence")


def measured_values(directory: Path) -> dict[str, np.ndarray]:
    """Return ``evidence``, ``pareto_k`` and ``row`` of each datum of an evaluation, ``(N,)``.

    The row is the datum's number in its part; evaluations of earlier versions have none.

    Raises:
        InputError: if the file was changed since it was written.
    """
    import h5py

    try:
        content = read_file(directory / "evaluation.nc")
    except FileNotFoundError:
        return {}
    with h5py.File(io.BytesIO(content)) as file:
        group = file["constant_data"]
        names = [name for name in ("evidence", "pareto_k", "row") if name in group]
        return {name: np.asarray(group[name], dtype=float) for name in names}


def _rows(arg: Tensor | Context, rows: slice) -> Tensor | Context:
    return arg.take(rows) if isinstance(arg, Context) else arg[rows]
