"""The command ``pyro-bvae improve RUN``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from typing_extensions import Doc

from pyro_bvae import runs
from pyro_bvae.cli.words import output
from pyro_bvae.core.errors import choices
from pyro_bvae.core.inputs.bounds import Bounds
from pyro_bvae.runs.catalogue import POSTERIORS
from pyro_bvae.runs.config import NumData, NumSamples
from pyro_bvae.training.settings import Epochs, Seed


@dataclass(frozen=True)
class Improve:
    """Train a run's guide on at β = 1 with its model fixed, into a new run: gaps before and after.

    The run itself stays as it is, byte for byte.
    """

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    output: Path | None = None
    """The new run directory; RUN-improved by default."""
    posterior: Annotated[
        str | None, Doc(f"Another family for the guide, which starts anew: {choices(POSTERIORS)}.")
    ] = None
    hidden: Annotated[tuple[int, ...], Bounds(1, 10_000_000)] = ()
    """Other widths of the guide's hidden layers, which starts anew; those of the run by default."""
    epochs: Epochs = 100
    """Passes over the training data at most; training stops when held-out data no longer gain."""
    iwelbo: Annotated[int | None, Bounds(1, 1_000_000)] = None
    """Train under the importance weighted bound of so many particles, doubly reparametrised,
    instead of the ELBO."""
    real_data_alone: bool = False
    """Train on the run's data alone, without as many that the model draws."""
    learning_rate: Annotated[float | None, Bounds(0, 1e300)] = None
    """Highest learning rate; 3e-3 by default."""
    num_data: NumData = 200
    """How many test data to measure before and after, drawn by the seed; None for all."""
    num_samples: NumSamples = 1000
    """Particles for each datum behind the gaps."""
    checkpoint: str = "best"
    """Which checkpoint to start from: best or last."""
    data: Path | None = None
    """Where the run's data lie now, if not where they were."""
    seed: Seed = 0
    """Seed of order, noise and choices."""
    device: str = "cpu"
    """Where to compute."""
    overwrite: bool = False
    """Replace the run in the output directory, once the first epoch of the new one is written."""
    force: bool = False
    """Take over a run directory that another process holds: one that hangs, or whose machine is
    gone."""

    def run(self) -> None:
        """Run the command."""
        runs.check_device(self.device)
        run = runs.load(
            self.directory, checkpoint=self.checkpoint, device=self.device, data=self.data
        )
        result = runs.improve(
            run,
            self.output,
            posterior=self.posterior,
            hidden=self.hidden,
            epochs=self.epochs,
            iwelbo=self.iwelbo,
            simulate=not self.real_data_alone,
            learning_rate=self.learning_rate,
            num_data=self.num_data,
            num_samples=self.num_samples,
            seed=self.seed,
            overwrite=self.overwrite,
            force=self.force,
        )
        print(result)
        print(f"run directory: {result.run}")
        output.report(run=result.run)
