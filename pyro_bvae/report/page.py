"""The page of a run: its files are read, the figures drawn, the page written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyro_bvae.core.atomic_files import atomic_write
from pyro_bvae.core.disk.digests import read_file, write_files
from pyro_bvae.core.disk.run_files import writing
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.files import check_text
from pyro_bvae.core.inputs.public import public
from pyro_bvae.report.live.content import live_content
from pyro_bvae.report.rendering import DPI, rendered
from pyro_bvae.report.runs_page import Member, flat, runs_page
from pyro_bvae.report.sections import opening, sections
from pyro_bvae.report.sweep_page import sweep_page
from pyro_bvae.report.tables import (
    data_name,
    headline,
    key_numbers,
    notes,
    summary,
    trained,
    verdict,
)
from pyro_bvae.report.traversals import side_by_side
from pyro_bvae.runs import is_sweep, sweep_members
from pyro_bvae.runs.applied.first_look import first_look
from pyro_bvae.runs.config import read_config
from pyro_bvae.runs.directory import Run, load
from pyro_bvae.runs.evaluation_files import check_measured, measured_values
from pyro_bvae.runs.record_file import read_record
from pyro_bvae.runs.sweeps.reading import load as load_sweep
from pyro_bvae.training import Remark, check_after

# Dots an inch of the page that a training ends with: the screen's, for the sake of its time.
_FIRST_DPI = 100


@public
def write_report(
    run_directory: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> Path:
    """Write one HTML page, with its figures inside it, about a trained run.

    Args:
        run_directory: The run that ``pyro-bvae train`` wrote. Without the ``evaluation.json`` of
            ``pyro-bvae evaluate`` the page has the numbers of a first look, and says so. Or a
            sweep, evaluated before, whose page has all runs and their curve.
        output: Path of the page; ``report.html`` in the run directory if None.
        data: Where the run's data lie now, if not where they were.
        force: Take the run over from another process that writes to it, as of
            :func:`~pyro_bvae.fit`; there is none to take it from where the page lies elsewhere.

    Returns:
        The path of the page. It appears whole or not at all.

    Raises:
        InputError: if the run or its ``evaluation.json`` cannot be read, a sweep has not been
            evaluated, or another process writes to it.
    """
    directory = Path(run_directory)
    if is_sweep(directory):
        return _write_sweep(
            directory, directory / "report.html" if output is None else Path(output)
        )
    if output is None and directory.is_dir():
        with writing(directory, force=force):
            return write_report(directory, directory / "report.html", data=data)
    measured = any((directory / f"evaluation.{suffix}").exists() for suffix in ("json", "nc"))
    if not (measured or (directory / "config.json").exists()):
        raise InputError(f"{directory} is not a run directory: it has no config.json")
    evaluation = read_evaluation(directory) if measured else {}
    run = load(directory, checkpoint=evaluation.get("checkpoint", "best"), data=data)
    if run.config is None:
        raise InputError(f"{directory} has no config.json, so its page cannot be written")
    path = directory / "report.html" if output is None else Path(output)
    return _write(run, evaluation or first_look(run), directory, path)


def write_first_page(trained: Run, *, force: bool = False) -> Path:
    """Write the page that a training ends with, and return its path.

    It has a first look in place of an evaluation, unless there is one of these weights: a run that
    was continued and was over already keeps its own.

    Args:
        trained: The run as its training returned it; the page is of its best checkpoint.
        force: As of :func:`write_report`.
    """
    directory = trained.directory
    if (directory / "evaluation.json").exists():
        return write_report(directory, force=force)
    with writing(directory, force=force):
        run = load(directory)
        if trained.splits is not None:  # not to be read again
            run = run.with_splits(trained.splits)
        return _write(run, first_look(run), directory, directory / "report.html", _FIRST_DPI)


def _write(
    run: Run, evaluation: dict[str, Any], directory: Path, path: Path, dpi: int | None = None
) -> Path:
    """Write the page of the run in a directory."""
    conditional = run.part("test").context is not None
    remarks = run.history.remarks + check_after(evaluation)
    if evaluation.get("verdict"):  # which names a command for the run
        named = evaluation["verdict"].replace("improve RUN", f"improve {directory}")
        evaluation = {**evaluation, "verdict": named}
    page = render(run, evaluation, conditional, remarks, dpi)
    if path.parent == directory:
        write_files({path: page.encode("utf-8")})
        return path
    with atomic_write(path) as stream:
        stream.write(page)
    return path


@public
def write_runs(
    run_directories: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]
) -> Path:
    """Write one HTML page about several trained and evaluated runs.

    Args:
        run_directories: The runs; a sweep stands for all of its runs.
        output: Path of the page, which appears whole or not at all.

    Returns:
        The path.

    Raises:
        InputError: for less than two runs, the same run twice, or one that was not evaluated.
    """
    paths: list[Path] = []
    for each in map(Path, run_directories):
        paths += [own.directory for own in sweep_members(each)] if is_sweep(each) else [each]
    if len(paths) < 2:
        raise InputError(f"a page of several runs takes two runs or more, got {len(paths)}")
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError("a page of several runs takes each run once, got one twice")
    members = {path: _member(path) for path in paths}
    short = len({path.name for path in paths}) == len(paths)
    named = {path.name if short else str(path): own for path, own in members.items()}
    path = Path(output)
    links = [
        (name, Path(os.path.relpath(own.directory / "report.html", path.parent)).as_posix())
        for name, own in named.items() if (own.directory / "report.html").exists()
    ]  # fmt: skip
    loaded = {
        name: load(own.directory, checkpoint=own.evaluation.get("checkpoint", "best"))
        for name, own in named.items()
    }
    evaluations = {name: own.evaluation for name, own in named.items()}
    page = runs_page(named, links, side_by_side(loaded, evaluations))
    with atomic_write(path) as stream:
        stream.write(page)
    return path


def _member(directory: Path) -> Member:
    evaluation = read_evaluation(directory)
    config = asdict(read_config(directory / "config.json"))
    evidence = measured_values(directory).get("evidence")
    return Member(directory, evaluation, config, read_record(directory), evidence)


def _write_sweep(directory: Path, path: Path) -> Path:
    """Write the page of a sweep."""
    evaluations = {
        member.directory.name: read_evaluation(member.directory)
        for member in sweep_members(directory)
    }
    checkpoint = next(iter(evaluations.values())).get("checkpoint", "best")
    swept: Any = load_sweep(directory, checkpoint=checkpoint)
    page = sweep_page(swept, evaluations)
    with atomic_write(path) as stream:
        stream.write(page)
    return path


def read_evaluation(directory: Path) -> dict[str, Any]:
    """Return the content of ``evaluation.json``.

    Raises:
        InputError: if the file is not there or is no JSON object, it or ``evaluation.nc``, the
            other one of the evaluation, is not as it was written, or it is of another checkpoint.
    """
    path = directory / "evaluation.json"
    if not path.is_file():
        raise InputError(
            f"'{directory}' has no evaluation.json; run 'pyro-bvae evaluate {directory}' first"
        )
    check_text(path)
    content = read_file(path)
    try:
        evaluation = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"'{path}' is no JSON ({error}); run 'pyro-bvae evaluate {directory}' again"
        ) from None
    if not isinstance(evaluation, dict):
        raise InputError(f"'{path}' must hold a JSON object, got {type(evaluation).__name__}")
    if (directory / "evaluation.nc").exists():
        read_file(directory / "evaluation.nc")
    check_measured(directory, evaluation)
    return evaluation


def render(
    run: Any,
    evaluation: Mapping[str, Any],
    conditional: bool = False,
    remarks: Sequence[Remark] = (),
    dpi: int | None = None,
) -> str:
    """Return the page as HTML.

    Args:
        run: A loaded run: ``vae``, ``config``, ``splits`` and ``history`` are used.
        evaluation: Content of ``evaluation.json``.
        conditional: Whether the data have a context, on which all densities are then conditional.
        remarks: The remarks of the training checklist.
        dpi: Dots an inch of the figures.
    """
    live = live_content(run, evaluation, embed=not evaluation.get("first_look"))
    names = [each["name"] for each in sorted(live["latents"], key=lambda each: each["index"])]
    problems = sum(remark.grave or remark.when == "during" for remark in remarks)
    config = dict(flat(asdict(run.config)))
    return rendered(
        "template.html",
        live=live,
        scripts=("charts.js", "live.js", "scatter.js"),
        evaluation=evaluation,
        name=data_name(config, str(evaluation.get("dataset"))),
        trained=trained(config, run),
        summary=summary(evaluation),
        key=key_numbers(evaluation),
        verdict=verdict(evaluation, problems),
        headline=headline(evaluation),
        notes=notes(evaluation, conditional),
        remarks=remarks,
        opening=opening(run, evaluation),
        sections=sections(run, evaluation, names),
        config=list(config.items()),
        dpi=dpi or DPI,
    )
