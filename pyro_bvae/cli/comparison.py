"""The command ``pyro-bvae compare RUN RUN ...``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pyro_bvae import plots, runs
from pyro_bvae.core.atomic_files import atomic_write
from pyro_bvae.core.disk.making import making
from pyro_bvae.core.errors import InputError
from pyro_bvae.runs.config import NumData, NumSamples
from pyro_bvae.training.settings import Seed


@dataclass(frozen=True)
class Compare:
    """Compare trained models by the evidence that they give to the same held-out data."""

    directories: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directories, two or more."""
    num_data: NumData = 500
    """How many of the data that all runs held out to measure, drawn by the seed; None for all."""
    num_samples: NumSamples = 5000
    """Particles for each datum."""
    method: Literal["auto", "importance"] = "auto"
    """Estimator: auto refits or anneals data whose importance weights cannot be trusted, which
    takes minutes where those are many; importance leaves them untrusted."""
    checkpoint: str = "best"
    """Which checkpoints: best or last."""
    seed: Seed = 0
    """Seed of the draws and of the choice of data."""
    output: Path | None = None
    """File to write too: .json (all numbers) or .png (a figure)."""

    def run(self) -> None:
        """Run the command."""
        suffix = "" if self.output is None else self.output.suffix.lower()
        if self.output is not None and suffix not in (".json", ".png"):
            raise InputError(f"'output' must end in .json or .png, got {self.output}")
        names = [path.name or str(path) for path in self.directories]
        if len(set(names)) < len(names):
            names = [str(path) for path in self.directories]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"a run is compared with others, got {twice} twice")
        result = runs.compare(
            dict(zip(names, self.directories, strict=True)),
            num_data=self.num_data,
            num_samples=self.num_samples,
            method=self.method,
            checkpoint=self.checkpoint,
            seed=self.seed,
            progress=True,
        )
        print(f"{result.num_data} data that all runs held out")
        print(result)
        if self.output is None:
            return
        if suffix == ".png":
            with making(self.output.parent), atomic_write(self.output, "wb") as stream:
                plots.comparison(result).savefig(stream, format="png", dpi=150, bbox_inches="tight")
        else:
            with making(self.output.parent), atomic_write(self.output) as stream:
                json.dump(result.to_dict(), stream, indent=2, allow_nan=False)
                stream.write("\n")
        print(f"written: {self.output}")
