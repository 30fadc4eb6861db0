"""The command ``pyro-bvae differential RUN``: genes that differ between two groups of cells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pyro_bvae import runs
from pyro_bvae.core.inputs.bounds import Bounds
from pyro_bvae.runs.config import NumSamples
from pyro_bvae.training.settings import Seed


@dataclass(frozen=True)
class Differential:
    """Compare the expression of each gene between two groups of cells, with intervals."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory, of counts."""
    group: str
    """The group of interest, by its name."""
    against: str | None = None
    """The group that it is compared with; all other cells by default."""
    group_column: str | None = None
    """Column of an .h5ad file with the groups; the run's labels by default."""
    donor_column: str | None = None
    """Column of an .h5ad file with donors, who are then the replicates."""
    reference_batches: tuple[str, ...] = ()
    """Batches that all cells are decoded in, averaged over several; each cell in its own by
    default."""
    data: Path | None = None
    """A file with other cells; the run's own by default, all cells of an .h5ad file."""
    output: Path | None = None
    """File to write, .csv (a table) or .npz (arrays); in the run's folder latents by default."""
    threshold: Annotated[float, Bounds(0, 1e6)] = 0.25
    """Change in log2 that is of no interest."""
    level: Annotated[float, Bounds(0, 1, above=True)] = 0.05
    """False discovery rate of the calls; intervals hold the rest."""
    num_samples: NumSamples = 500
    """Importance samples for each cell."""
    checkpoint: str = "best"
    """Which checkpoint: best or last."""
    seed: Seed = 0
    """Seed of all draws."""
    device: str = "cpu"
    """Where to compute."""

    def run(self) -> None:
        """Run the command."""
        from pyro_bvae.evaluation.latent_results import SUFFIXES, check_suffix

        path = self.output or self.directory / "latents" / "differential.csv"
        check_suffix(path, SUFFIXES)
        runs.check_device(self.device)
        run = runs.load(self.directory, checkpoint=self.checkpoint, device=self.device)
        found = runs.compare_groups(
            run, self.group, self.against, data=self.data, group_column=self.group_column,
            donor_column=self.donor_column, reference_batches=self.reference_batches,
            threshold=self.threshold, level=self.level, num_samples=self.num_samples,
            seed=self.seed, progress=True,
        )  # fmt: skip
        found.save(path)
        print(found)
        print(f"written: {path}")
