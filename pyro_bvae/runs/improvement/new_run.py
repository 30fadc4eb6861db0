"""A run whose guide is trained on, as a new run beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyro_bvae.core.disk.digests import write_files
from pyro_bvae.core.disk.run_files import is_vacant
from pyro_bvae.core.errors import InputError, check_count, unknown_name
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.datasets import Dataset, LazyDataset
from pyro_bvae.datasets.record import DataRecord
from pyro_bvae.runs._train import RunFiles, check_device
from pyro_bvae.runs.build import Shape
from pyro_bvae.runs.catalogue import POSTERIORS
from pyro_bvae.runs.directory import Run, load
from pyro_bvae.runs.improvement.record import (
    IMPROVEMENT,
    build_encoder,
    improvement_bytes,
    read_improvement,
)
from pyro_bvae.training import (
    IWELBO,
    ImprovedGuide,
    checkpoint_path,
    improve_guide,
    load_checkpoint,
    process_group,
    save_checkpoint,
)
from pyro_bvae.training.distributed import own_device


@exclusive
def improve(
    run: Path | Run,
    output: Path | None = None,
    *,
    posterior: str | None = None,
    hidden: Sequence[int] = (),
    epochs: int = 100,
    iwelbo: int | None = None,
    checkpoint: str = "best",
    device: str = "cpu",
    overwrite: bool = False,
    force: bool = False,
    **options: Any,
) -> ImprovedGuide:
    """Train the guide of a run on at β = 1, its model fixed, into a new run; RUN stays as it is.

    The new run has the configuration and the data of the old one, and ``improvement.json`` with the
    guide's own parts and the gaps before and after, on test data.

    Args:
        run: The run, or its directory.
        output: The new run; the old one's name and ``-improved`` by default.
        posterior: Another family for the guide, which starts anew; the run's by default.
        hidden: Other widths for its network, which starts anew; the run's by default.
        epochs: Passes over the training data at most.
        iwelbo: Particles of the importance weighted bound, doubly reparametrised; None for the
            ELBO.
        checkpoint: Where to start, for a run that is given by its directory: ``best`` or ``last``.
        device: Where to compute, likewise.
        overwrite: Take the place of the run that ``output`` holds.
        force: Take ``output`` over from another process that holds it.
        **options: Further options of :func:`~pyro_bvae.training.improve_guide`: ``simulate``,
            ``learning_rate``, ``num_data``, ``num_samples``, ``seed``, ``progress``.

    Raises:
        InputError: if the run, its data or an option cannot be used, or ``output`` is occupied.
    """
    directory = run.directory if isinstance(run, Run) else run
    output = directory.with_name(f"{directory.name}-improved") if output is None else output
    check_device(device)
    _check_options(directory, output, posterior, hidden, iwelbo, overwrite)
    if not isinstance(run, Run):
        run = load(directory, checkpoint=checkpoint, device=own_device(device) or "cpu")
    if run.config is None:
        raise InputError(f"{directory} has no config.json, so that no run can be made of it")
    earlier = (read_improvement(directory) or {}).get("guide", {"posterior": None, "hidden": []})
    guide = {
        "posterior": posterior or earlier["posterior"],
        "hidden": list(hidden) or earlier["hidden"],
    }
    shape = Shape.of(run.part("train")) if run.record is None else Shape.recorded(run.record)
    anew = build_encoder(run.config, shape, guide) if posterior or hidden else None
    with process_group(device) as ranks, ranks.writing(output, force):
        result = _improved(
            run, output, guide, posterior=anew, epochs=epochs,
            objective=None if iwelbo is None else IWELBO(iwelbo, doubly_reparametrized=True),
            overwrite=overwrite, force=force, **options,
        )  # fmt: skip
    return replace(result, run=str(output))


def _check_options(
    directory: Path,
    output: Path,
    posterior: str | None,
    hidden: Sequence[int],
    iwelbo: int | None,
    overwrite: bool,
) -> None:
    """Raise unless the options of a new run can be used."""
    if not directory.is_dir():
        raise InputError(f"there is no run directory {directory}")
    if posterior is not None and posterior not in POSTERIORS:
        raise unknown_name("posterior", posterior, POSTERIORS)
    for width in hidden:
        check_count("hidden", width)
    if iwelbo is not None:
        check_count("iwelbo", iwelbo)
    if output.exists() and not output.is_dir():
        raise InputError(f"'output' must be a directory, got the file {output}")
    if output.resolve() == directory.resolve():
        raise InputError(f"'output' must be another directory than the run, got {output}")
    if not is_vacant(output) and not overwrite:
        raise InputError(f"{output} exists: pass --overwrite to replace it, or another --output")
    if not is_vacant(output) and not (output / "config.json").exists():
        raise InputError(
            f"{output} is not a run directory (it has no config.json), so it is not overwritten"
        )


def _improved(run: Run, output: Path, guide: dict[str, Any], **options: Any) -> ImprovedGuide:
    """Train into the new run, and write its files."""
    assert run.config is not None
    splits = run.splits
    train, test = run.part("train"), run.part("test")
    assert splits is not None
    content = {"run": str(run.directory), "guide": guide}
    record = DataRecord.of(splits) if run.record is None else run.record
    files = RunFiles(run.config, record, {IMPROVEMENT: improvement_bytes(content)})
    try:
        result = improve_guide(
            run.vae, train, validation=_dense(splits.validation), test=_dense(test),
            training_beta=run.training_beta, output=output, callbacks=[files],
            batch_size=run.config.training.batch_size, **options,
        )  # fmt: skip
    except OSError:  # of a full disk, before or after the first epoch
        files.put_back()
        raise
    if result.kept:  # the checkpoints are those of epochs that were no better
        for which in ("best", "last"):
            path = checkpoint_path(output, which)
            save_checkpoint(path, load_checkpoint(path) | {"model": result.vae.state_dict()})
    write_files({output / IMPROVEMENT: improvement_bytes({**content, **result.to_dict()})})
    return result


def _dense(data: Dataset | LazyDataset | None) -> Dataset | None:
    return None if data is None else data.dense()
