"""Measuring a run on its test data."""

from __future__ import annotations

import json
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from pyro_bvae.core.context import arguments
from pyro_bvae.core.disk.digests import read_file, write_files
from pyro_bvae.core.disk.lock import check_held
from pyro_bvae.core.disk.run_files import evaluation_files, writing
from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.bounds import OptionType
from pyro_bvae.core.inputs.public import exclusive, public
from pyro_bvae.datasets import Dataset, LazyDataset
from pyro_bvae.evaluation import Evaluation
from pyro_bvae.evaluation.calibration import GuideCalibration, calibrate_guide
from pyro_bvae.evaluation.marginal import Escalation
from pyro_bvae.evaluation.marginal.escalation import escalation_of
from pyro_bvae.runs._train import check_device
from pyro_bvae.runs.config import NumSamples
from pyro_bvae.runs.directory import load
from pyro_bvae.runs.evaluation_files import chosen_rows, evaluate_shares, write_evaluation
from pyro_bvae.training.distributed import own_device, process_group


@exclusive
def evaluate_run(
    directory: Path,
    *,
    num_samples: int = 5000,
    num_data: int | None = 500,
    method: Literal["auto", "importance"] | Escalation = "auto",
    checkpoint: str = "best",
    seed: int = 0,
    device: str = "cpu",
    force: bool = False,
    progress: bool = True,
    data: str | PathLike[str] | None = None,
    **options: Any,
) -> Evaluation:
    """Measure a run on its test data and write ``evaluation.json`` and ``evaluation.nc``.

    On new data they are named after the file, ``evaluation-cells.json`` for ``cells.h5ad``. The
    processes that ``torchrun`` starts share the data, and the first of them writes.

    Args:
        directory: The run.
        num_samples: Particles for each datum.
        num_data: How many test data to measure, drawn by ``seed``; None for all.
        method: Estimator of the evidence, as of :func:`~pyro_bvae.evaluation.evaluate`: by default,
            data whose importance weights cannot be trusted are annealed.
        checkpoint: ``best`` or ``last``.
        seed: Seed of draws and choice of data.
        device: Where to compute.
        force: Take the run over from another process that writes to it, as of
            :func:`~pyro_bvae.fit`.
        progress: Show progress bars.
        data: New data, a file or folder of any format that is read for training; the run's test
            data by default.
        **options: Further options of :func:`~pyro_bvae.evaluation.evaluate`: ``families``.

    Raises:
        InputError: if the run or an option cannot be used, or another process writes to the run.
        WriteError: if the file system does not take the files; the earlier ones are as they were.
    """
    check_device(device)
    OptionType.of(NumSamples).check("num_samples", num_samples)
    if num_data is not None and (not isinstance(num_data, int) or num_data < 1):
        raise InputError(f"'num_data' must be a positive integer or None, got {num_data!r}")
    escalation_of(method)
    written = directory if directory.is_dir() else None
    with process_group(device) as ranks, ranks.writing(written, force):
        run = load(directory, checkpoint=checkpoint, device=own_device(device) or "cpu")
        assert run.config is not None
        whole = run.part("test") if data is None else run.read(data)
        test = choose_data(whole, num_data, seed).dense().to(own_device(device))
        args = arguments(test.x, test.context)
        run.vae.check_data(*args)
        evaluation = evaluate_shares(
            run.vae, args, ranks, training_beta=run.training_beta, num_samples=num_samples,
            method=method, seed=seed, progress=progress and ranks.is_first, **options,
        )  # fmt: skip
        evaluation = replace(evaluation, run=str(directory))
        if ranks.is_first:
            head = {
                "dataset": run.config.data.dataset,
                "split": "test" if data is None else "new",
                "checkpoint": checkpoint,
                "seed": seed,
            }
            attributes = {**head, "config": run.config.options()}
            check_held(directory)
            write_evaluation(
                directory, run.vae, args, evaluation, attributes, run.config.model.latent_dim, data
            )
        ranks.wait()
    return evaluation


@public
def choose_data(
    data: Dataset | LazyDataset, num_data: int | None, seed: int
) -> Dataset | LazyDataset:
    """Return all data, or so many of them chosen by the seed."""
    if num_data is None or num_data >= len(data):
        return data
    check_count("num_data", num_data)
    return data[chosen_rows(len(data), num_data, seed)]


@exclusive
def calibrate_run(
    directory: Path,
    *,
    data: str | PathLike[str] | None = None,
    num_simulations: int = 1000,
    num_data: int | None = 500,
    checkpoint: str = "best",
    seed: int = 0,
    device: str = "cpu",
    force: bool = False,
) -> GuideCalibration:
    """Calibrate the guide of an evaluated run, and add the result to its ``evaluation.json``.

    Args:
        directory: The run, evaluated before on the same data.
        data: A file of new data that it was evaluated on; its test data by default.
        num_simulations: Data to draw from the model.
        num_data: How many data to compare with them, drawn by ``seed``; None for all.
        checkpoint: ``best`` or ``last``.
        seed: Seed of draws and choice of data.
        device: Where to compute.
        force: Take the run over from another process that writes to it.

    Raises:
        InputError: if the run was not evaluated, or the model cannot draw data.
    """
    check_device(device)
    path, _ = evaluation_files(directory, data)
    if not path.is_file():
        raise InputError(f"'{path}' is not there; run 'pyro-bvae evaluate {directory}' first")
    with writing(directory, force=force):
        run = load(directory, checkpoint=checkpoint, device=device)
        whole = run.part("test") if data is None else run.read(data)
        test = choose_data(whole, num_data, seed).dense().to(device)
        found = calibrate_guide(
            run.vae.model,
            run.vae.guide,
            *arguments(test.x, test.context),
            num_simulations=num_simulations,
            seed=seed,
        )
        content = json.loads(read_file(path).decode("utf-8"))
        text = json.dumps({**content, "calibration": found.to_dict()}, indent=2, allow_nan=False)
        write_files({path: (text + "\n").encode("utf-8")})
    return found
