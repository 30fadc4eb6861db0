"""Metrics for TensorBoard, as a callback of ``fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyro_bvae.core.errors import InputError
from pyro_bvae.training.history import Row


class TensorBoard:
    """A callback of ``fit`` that writes the metrics of each epoch for TensorBoard.

    It needs ``pip install pyro-bvae[tensorboard]``. Epochs that a resumed run repeats replace
    the earlier ones.

    Args:
        directory: Folder of the event files.

    Raises:
        InputError: if TensorBoard is not installed.
    """

    def __init__(self, directory: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "TensorBoard is not installed: pip install pyro-bvae[tensorboard]"
            ) from error
        self._make, self.directory = SummaryWriter, Path(directory)
        self._writer: Any = None

    def __call__(self, row: Row) -> None:
        """Write the metrics of an epoch."""
        epoch = int(row["epoch"])
        if self._writer is None:
            make: Any = self._make
            self._writer = make(str(self.directory), purge_step=epoch)
        for name, value in row.items():
            if name != "epoch":
                group, _, rest = name.partition("_")
                tag = f"validation/{rest}" if group == "validation" else f"training/{name}"
                self._writer.add_scalar(tag, value, epoch)
        self._writer.flush()
