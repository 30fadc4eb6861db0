"""The command ``pyro-bvae score RUN``: evidence, bound and trust of each row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pyro_bvae import runs
from pyro_bvae.cli.words.output import written
from pyro_bvae.runs.config import NumData, NumSamples
from pyro_bvae.training.settings import Seed


@dataclass(frozen=True)
class Score:
    """Write evidence, bound and trust of each row to a .csv or .npz file."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    data: Path | None = None
    """New data, a file or folder of any format that is read for training; the run's test data by
    default."""
    output: Path | None = None
    """File to write, .csv (a table) or .npz (arrays); in the run's folder latents by default."""
    num_samples: NumSamples = 1000
    """Particles for each datum."""
    method: Literal["auto", "importance"] = "auto"
    """Estimator of the evidence: importance (the guide alone), or auto, which measures data whose
    weights cannot be trusted again by refits and annealing."""
    num_data: NumData = None
    """How many to score, with each label in proportion, for the mean of all with its error; all by
    default."""
    checkpoint: str = "best"
    """Which checkpoint: best or last."""
    seed: Seed = 0
    """Seed of all draws."""
    device: str = "cpu"
    """Where to compute."""

    def run(self) -> None:
        """Run the command."""
        from pyro_bvae.evaluation.latent_results import SUFFIXES, check_suffix

        path = self.output or self.directory / "latents" / "scores.csv"
        check_suffix(path, SUFFIXES)
        runs.check_device(self.device)
        run = runs.load(self.directory, checkpoint=self.checkpoint, device=self.device)
        scores = runs.score(
            run, self.data, num_samples=self.num_samples, method=self.method,
            num_data=self.num_data, seed=self.seed, progress=True,
        )  # fmt: skip
        scores.save(path)
        print(scores)
        written(path)
