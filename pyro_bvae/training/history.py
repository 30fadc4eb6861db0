"""Metrics of a training, epoch by epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pyro_bvae.core.disk.digests import read_file, write_files
from pyro_bvae.core.errors import InputError
from pyro_bvae.training.checks.remarks import Remark

Row = dict[str, float]


class History(Mapping[str, list[float]]):
    """Metrics of each epoch: a mapping from column to values.

    Columns, in nats per datum where not said otherwise: ``epoch`` (number), ``beta``,
    ``learning_rate``, ``gradient_norm`` (mean over steps, per datum), ``objective`` (distortion + β
    rate, or the loss of another objective), ``distortion``, ``rate`` of the training batches as
    they were seen; ``validation_objective`` at the final β, ``validation_distortion``,
    ``validation_rate``, ``validation_elbo`` at β = 1, of the held-out data; ``active_units``
    (number of latents whose posterior mean has variance above 0.01 over at most 256 data, held-out
    ones where there are any); ``seconds`` (of the epoch).

    Args:
        rows: One dictionary an epoch.
        remarks: Remarks of the checklist before and during training.
    """

    def __init__(self, rows: list[Row] | None = None, remarks: Sequence[Remark] = ()) -> None:
        self.rows: list[Row] = list(rows or [])
        self.remarks = list(remarks)
        #: How the step was run, where compiling it was tried.
        self.step = ""

    def __getitem__(self, column: str) -> list[float]:
        if column not in iter(self):
            raise KeyError(column)
        return [row[column] for row in self.rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows[0] if self.rows else ())

    def __len__(self) -> int:
        return len(self.rows[0]) if self.rows else 0

    def __repr__(self) -> str:
        return f"History({len(self.rows)} epochs: {', '.join(self)})"

    def to_csv(self) -> bytes:
        """Return the rows as the content of a CSV file, with all the digits of a float64."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, fieldnames=list(self))
        writer.writeheader()
        writer.writerows(self.rows)
        return stream.getvalue().encode("utf-8")

    def write(self, path: Path) -> None:
        """Write :meth:`to_csv`, and its digest if the directory is one of a run.

        Raises:
            WriteError: if the file system does not take it.
        """
        write_files({path: self.to_csv()})

    @classmethod
    def read(cls, path: Path) -> History:
        """Read the file of :meth:`write`.

        Raises:
            InputError: if the file holds anything else, or is not as its run wrote it.
        """
        content = read_file(path)
        try:
            stream = io.StringIO(content.decode("utf-8"), newline="")
            rows = [
                {column: float(value) for column, value in row.items()}
                for row in csv.DictReader(stream)
            ]
            for row in rows:
                row["epoch"] = int(row["epoch"])
        except (ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
            raise InputError(
                f"{path} does not hold the metrics of a training run: {error}"
            ) from error
        return cls(rows)
