"""The command ``pyro-bvae export RUN``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pyro_bvae import runs
from pyro_bvae.cli.words.output import written


@dataclass(frozen=True)
class Export:
    """Write a run's model for other programs: weights, graphs of encoder and decoder, a card."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    output: Path | None = None
    """Folder to write to; RUN-export by default. Files of an earlier export are replaced."""
    onnx: bool = False
    """Write encoder and decoder as ONNX too."""
    checkpoint: str = "best"
    """Which checkpoint: best or last."""

    def run(self) -> None:
        """Run the command."""
        exported = runs.export(
            self.directory, self.output, onnx=self.onnx, checkpoint=self.checkpoint
        )
        print(exported)
        written(exported.folder)
