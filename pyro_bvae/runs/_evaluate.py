"""Measuring a run on its test data."""

from __future__ import annotations

import json
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch.distributions import constraints

from pyro_bvae.core.context import arguments
from pyro_bvae.core.disk.digests import read_file, write_files
from pyro_bvae.core.disk.lock import check_held
from pyro_bvae.core.disk.run_files import evaluation_files, writing
from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.bounds import OptionType
from pyro_bvae.core.inputs.public import exclusive, public
from pyro_bvae.core.protocols import part_of
from pyro_bvae.datasets import Dataset, LazyDataset
from pyro_bvae.evaluation import Evaluation, count_checks, evaluate_within
from pyro_bvae.evaluation.calibration import GuideCalibration, calibrate_guide
from pyro_bvae.evaluation.marginal import Escalation
from pyro_bvae.evaluation.marginal.escalation import escalation_of
from pyro_bvae.evaluation.plan import Budget, Plan
from pyro_bvae.evaluation.samples import CountChecks
from pyro_bvae.runs._train import check_device
from pyro_bvae.runs.config import NumSamples
from pyro_bvae.runs.directory import Run, load
from pyro_bvae.runs.evaluation_files import chosen_rows, evaluate_shares, write_evaluation
from pyro_bvae.training import Ranks
from pyro_bvae.training.distributed import own_device, process_group

# Data, at most and at least, and numbers that are read for an evaluation within a time.
_MOST_DATA, _LEAST_DATA, _MOST_NUMBERS = 20_000, 500, 50_000_000
# Data whose zeros are checked at most, and numbers of a copy of them.
_MOST_CHECKED, _MOST_DRAWN = 500, 1_000_000


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
        **options: Further options of :func:`~pyro_bvae.evaluation.evaluate`: ``families``; and
            ``within``, a time or a plan as of :func:`~pyro_bvae.evaluation.evaluate_within`, which
            then decides how many data and particles there are.

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
        if data is not None and ranks.is_first:
            run.warn_of_training(whole)
        within = options.pop("within", None)
        num_data = num_data if within is None else _most_data(within, whole)
        test = choose_data(whole, num_data, seed).dense().to(own_device(device))
        args = arguments(test.x, test.context)
        run.vae.check_data(*args)
        options |= {"training_beta": run.training_beta, "method": method, "seed": seed}
        options["progress"] = progress and ranks.is_first
        if within is None:
            evaluation = evaluate_shares(run.vae, args, ranks, num_samples=num_samples, **options)
        else:
            _check_alone(ranks)
            evaluation = evaluate_within(
                run.vae.model, run.vae.guide, *args, within=within, **options
            )
            assert evaluation.drawn is not None
            measured = test[evaluation.drawn.to(test.x.device)]
            args = arguments(measured.x, measured.context)
        rows = chosen_rows(len(whole), num_data or len(whole), seed)
        evaluation = replace(
            evaluation, run=str(directory), counts=count_checks_of(run, test, seed),
            drawn=rows if evaluation.drawn is None else rows[evaluation.drawn.cpu()],
        )  # fmt: skip
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


def _most_data(within: float | Budget | Plan, data: Dataset | LazyDataset) -> int:
    """Return how many data are read for an evaluation within a time or by a plan.

    It depends on the data and on no time, so that a plan draws from the same ones.
    """
    given = within.num_data if isinstance(within, Budget | Plan) else None
    features = data[:1].dense().x.numel()
    return max(given or 0, min(_MOST_DATA, max(_LEAST_DATA, _MOST_NUMBERS // features)))


def _check_alone(ranks: Ranks) -> None:
    if ranks.size > 1:
        raise InputError(
            f"'within' is for one process, got {ranks.size}: give 'num_data' and 'num_samples'"
        )


def count_checks_of(run: Run, data: Dataset, seed: int = 0) -> CountChecks | None:
    """Return the predictive checks of counts, of each batch too where the run knows batches.

    None for a likelihood of other data, and for counts of which some are missing. Of many data some
    are checked, chosen by the seed: at most 500, fewer where they are wide.

    Args:
        run: The run.
        data: Some of its test data, or new ones.
        seed: Seed of the draws.
    """
    support = part_of(run.vae, "decoder", "likelihood", "support")
    if support is not constraints.nonnegative_integer or bool(torch.isnan(data.x).any()):
        return None
    most = max(2, min(_MOST_CHECKED, _MOST_DRAWN // data.num_features))
    data = choose_data(data, most, seed).dense()
    cells = None if run.record is None else run.record.cells
    groups, names = None, cells.batches if cells else ()
    if names and data.context is not None and data.context.covariates is not None:
        batch = data.context.covariates[:, : len(names)].argmax(1).cpu()
        seen, groups = batch.unique(return_inverse=True)
        names = tuple(names[place] for place in seen.tolist())
    return count_checks(
        run.vae.model, run.vae.guide, *arguments(data.x, data.context), seed=seed,
        groups=groups, group_names=names if groups is not None else (),
        feature_names=data.feature_names,
    )  # fmt: skip


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
