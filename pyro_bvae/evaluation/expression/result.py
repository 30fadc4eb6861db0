"""The result of a comparison of two groups of cells, gene by gene."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_bvae.evaluation.latent_results import write_numbers

if TYPE_CHECKING:
    import pandas as pd

# Genes that are named in the sentence of a result.
_NAMED = 5


@dataclass(frozen=True, eq=False)
class DifferentialExpression:
    r"""Fold changes of D features between two groups, with intervals and a controlled error rate.

    Attributes:
        feature_names: The features, ``(D,)``: names or numbers.
        log_fold_change: :math:`\log_2` of the mean expression in group 1 over that in group 0.
        standard_error: Its standard error.
        lower: Lower end of its interval at ``1 - level``, 95% by default.
        upper: Upper end.
        p_value: Of the hypothesis that the change is at most ``threshold``, up or down.
        q_value: Adjusted by Benjamini and Hochberg (1995).
        posterior: The change of the posterior means alone.
        observed: The change of the counts alone, which corrects it.
        mean: Mean posterior expression in group 1.
        mean_against: Mean posterior expression in group 0.
        bias: Standard deviation over features of the bias of ``posterior``, at most,
            as the counts show it.
        threshold: A change, in :math:`\log_2`, that is of no interest.
        level: The false discovery rate that ``called`` holds.
        num_cells: Cells of group 1 and of group 0.
        num_donors: Donors of group 1 and of group 0; None where cells are the replicates.
        untrusted: Number of cells whose importance weights cannot be trusted.
    """

    feature_names: np.ndarray
    log_fold_change: np.ndarray
    standard_error: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    p_value: np.ndarray
    q_value: np.ndarray
    posterior: np.ndarray
    observed: np.ndarray
    mean: np.ndarray
    mean_against: np.ndarray
    bias: float
    threshold: float
    level: float
    num_cells: tuple[int, int]
    num_donors: tuple[int, int] | None
    untrusted: int

    @property
    def called(self) -> np.ndarray:
        """Whether each feature is called changed, ``(D,)``."""
        return self.q_value <= self.level

    def _columns(self) -> dict[str, Any]:
        names = (
            "log_fold_change", "standard_error", "lower", "upper", "p_value", "q_value",
            "posterior", "observed", "mean", "mean_against",
        )  # fmt: skip
        columns = {name: getattr(self, name) for name in names}
        return {"feature": self.feature_names, **columns, "called": self.called}

    def table(self) -> pd.DataFrame:
        """Return a row for each feature, in order, with the columns named above."""
        import pandas as pd

        return pd.DataFrame(self._columns())

    def save(self, path: str | Path) -> None:
        """Write to a ``.csv`` or an ``.npz``; any other ending raises."""
        write_numbers(path, self._columns(), self._columns)

    def __str__(self) -> str:
        order = np.flatnonzero(self.called)
        order = order[np.argsort(self.p_value[order], kind="stable")]
        best = ", ".join(
            f"{self.feature_names[i]} {self.log_fold_change[i]:+.2f}"
            f" ({self.lower[i]:+.2f} to {self.upper[i]:+.2f})"
            for i in order[:_NAMED]
        )
        cells = f"{self.num_cells[0]} against {self.num_cells[1]} cells"
        donors = self.num_donors
        of = "" if donors is None else f" of {donors[0]} and {donors[1]} donors"
        text = (
            f"{len(order)} of {len(self.q_value)} features changed by more than"
            f" {self.threshold:g} in log2, at a false discovery rate of {self.level:.0%}"
            f" ({cells}{of})"
        )
        text += f": {best}{', ...' if len(order) > _NAMED else ''}" if best else ""
        if donors is None:
            text += "; cells are the replicates: those of one donor are none, so give 'donors'"
        if self.untrusted:
            text += f"; importance weights not to be trusted for {self.untrusted} cells"
        return text
