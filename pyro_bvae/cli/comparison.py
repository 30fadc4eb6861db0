"""The command ``pyro-bvae compare RUN RUN ...``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from pyro_bvae import plots, report, runs
from pyro_bvae.cli.words import output
from pyro_bvae.cli.words.output import written
from pyro_bvae.core.atomic_files import atomic_write
from pyro_bvae.core.disk.making import making
from pyro_bvae.core.errors import InputError, listed
from pyro_bvae.runs.config import NumData, NumSamples
from pyro_bvae.training.settings import Seed

if TYPE_CHECKING:
    from pyro_bvae.evaluation.comparison import Comparison

_SUFFIXES = (".html", ".json", ".csv", ".png")


@dataclass(frozen=True)
class Compare:
    """Compare trained models by the evidence that they give to the same held-out data."""

    directories: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directories, two or more, or a sweep, each of whose β is a model with its seeds."""
    data: Path | None = None
    """New data, a file or folder of any format that is read for training; by default the test data
    that all runs have in common."""
    num_data: NumData = 500
    """How many of the data that all runs held out to measure, drawn by the seed; None for all."""
    num_samples: NumSamples = 5000
    """Particles for each datum."""
    method: Literal["auto", "importance"] = "auto"
    """Estimator: auto refits or anneals data whose importance weights cannot be trusted, which
    takes minutes where those are many; importance leaves them untrusted."""
    gaps: bool = False
    """Measure the inference gaps of each model too, which takes a refit of its guide to each
    datum."""
    checkpoint: str = "best"
    """Which checkpoints: best or last."""
    seed: Seed = 0
    """Seed of the draws and of the choice of data."""
    output: Path | None = None
    """File to write too: .html (a page), .json (all numbers), .csv (the table) or .png (a
    figure)."""

    def run(self) -> None:
        """Run the command."""
        if self.output is not None and self.output.suffix.lower() not in _SUFFIXES:
            raise InputError(f"'output' must end in {listed(_SUFFIXES)}, got {self.output}")
        result = runs.compare(
            self._models(),
            self.data,
            num_data=self.num_data,
            num_samples=self.num_samples,
            method=self.method,
            gaps=self.gaps,
            checkpoint=self.checkpoint,
            seed=self.seed,
            progress=True,
        )
        whose = "that all runs held out" if self.data is None else f"of {self.data}"
        print(f"{result.num_data} data {whose}")
        print(result)
        output.report(comparison=result.to_dict())
        if self.output is not None:
            _write(result, self.output)
            written(self.output)

    def _models(self) -> dict[str, list[Path]]:
        """Return the run directories by name; each setting of a sweep is a name with its seeds."""
        given = [path.name or str(path) for path in self.directories]
        if len(set(given)) < len(given):
            given = [str(path) for path in self.directories]
        models: dict[str, list[Path]] = {}
        for name, path in zip(given, self.directories, strict=True):
            if name in models or given.count(name) > 1:
                raise InputError(f"a run is compared with others, got {name} twice")
            if not runs.is_sweep(path):
                models[name] = [path]
                continue
            prefix = f"{name}/" if len(given) > 1 else ""
            for member in runs.sweep_members(path):
                models.setdefault(prefix + member.setting, []).append(member.directory)
        return models


def _write(result: Comparison, path: Path) -> None:
    """Write a comparison as its suffix says."""
    suffix = path.suffix.lower()
    with making(path.parent):
        if suffix == ".html":
            report.write_comparison(result, path)
        elif suffix == ".png":
            with atomic_write(path, "wb") as stream:
                plots.comparison(result).savefig(stream, format="png", dpi=150, bbox_inches="tight")
        else:
            with atomic_write(path) as stream:
                if suffix == ".csv":
                    result.table().to_csv(stream, lineterminator="\n")
                else:
                    json.dump(result.to_dict(), stream, indent=2, allow_nan=False)
                    stream.write("\n")
