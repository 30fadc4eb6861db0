"""Reading a representation: active latents, and their association with labels and factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.data import Values
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.seeds import PREDICTIVE_STREAM, stream_seed
from pyro_bvae.evaluation.information.latent_draws import check_one_latent
from pyro_bvae.evaluation.marginal.bounds import measure_dimensions
from pyro_bvae.evaluation.marginal.importance import check_num_samples, data_bar
from pyro_bvae.program.program import Function, open_program

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[Any]
# A factor of whole numbers that takes no more values than this is a choice between them.
_MOST_CHOICES = 20
# Neighbours of each datum that the estimate of mutual information looks at, as is scikit-learn's
# default.
_NEIGHBORS = 3
# A column whose standard deviation is below this is constant.
_CONSTANT = 1e-12


@dataclass(frozen=True, eq=False)
class LatentReading:
    """Associations of the latents of a representation.

    Attributes:
        latents: A row for each latent, ``z0`` and so on: ``kl`` (mean over the data, nats; NaN
            where there is none), ``standard_error``, ``mean_variance`` (of the posterior mean, over
            the data) and ``active`` (it is above 0.01).
        correlation: Of each active latent's posterior mean with each factor, and with each class (1
            within it, 0 elsewhere); NaN for constants. Active latents come in the order of
            their KL, or of their variance.
        mutual_information: Of each active latent's posterior mean with each factor, and with the
            label, in nats.
        reason: Why there is no KL of a single latent, or None.
    """

    latents: pd.DataFrame
    correlation: pd.DataFrame
    mutual_information: pd.DataFrame
    reason: str | None = None

    @property
    def table(self) -> pd.DataFrame:
        """One table: a row for each latent, active ones first; NaN for factors of inactive ones."""
        import pandas as pd

        parts = {
            "latent": self.latents,
            "correlation": self.correlation,
            "mutual information": self.mutual_information,
        }
        inactive = self.latents[~self.latents["active"]].sort_values(
            "mean_variance", ascending=False
        )
        return pd.concat(parts, axis=1).loc[[*self.correlation.index, *inactive.index]]

    def __str__(self) -> str:
        head = f"{int(self.latents['active'].sum())} of {len(self.latents)} latents are active"
        note = [] if self.reason is None else [f"no KL of a single latent: {self.reason}"]
        return "\n".join(
            [
                head,
                *note,
                self.table.to_string(float_format=lambda value: f"{value:.3f}", na_rep=""),
            ]
        )


@exclusive
def read_latents(
    model: Function,
    guide: Function,
    *args: Any,
    labels: Values | None = None,
    factors: Values | None = None,
    label_names: Sequence[str] = (),
    factor_names: Sequence[str] = (),
    num_samples: int = 100,
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> LatentReading:
    r"""Find the active latents, and their association with labels and factors.

    The KL of each latent tells which are used; the correlation and the mutual information of their
    posterior means with labels and factors tell for which. Mutual information is
    scikit-learn's estimate from nearest neighbours, in nats, whose error is some hundredths at a
    thousand data; it sees nonlinear association. Factors of at most 20 whole numbers are taken as
    choices between them, others as continuous.

    Args:
        model: A Pyro model with one latent site under a plate over the data.
        guide: Its guide.
        *args: The arguments of both.
        labels: Class of each datum, whole numbers, shape ``(N,)``.
        factors: Known factors of the data, shape ``(N, F)`` or ``(N,)``.
        label_names: Name of each class.
        factor_names: Name of each factor.
        num_samples: Draws for each datum, where a KL has no closed form.
        data_plate: Name of the data plate, where the latent has more than one.
        seed: Seed of all randomness.
        progress: Show a progress bar.

    Returns:
        Tables of latents, correlations and mutual information. References: Burda et al. 2016
        (active units), Kraskov et al. 2004 and Ross 2014 (mutual information).

    Raises:
        InputError: if there is more than one latent site, if labels or factors are not one for each
            datum, are not finite or not named as many, if no two data share a label, or if the data
            cannot be used.
    """
    import pandas as pd

    check_num_samples(num_samples)
    with (
        open_program(model, guide, args, data_plate=data_plate, seed=seed) as program,
        data_bar(program, progress, "kl per dimension") as bar,
    ):
        check_one_latent(program)
        known = _known(program.num_data, labels, factors, label_names, factor_names)
        result = measure_dimensions(program, num_samples, bar)
    assert result is not None  # there is one latent
    kl, means = result[0], result[1].flatten(1).numpy()
    active = kl.active.flatten().numpy()
    variances, order = (
        kl.mean_variances.flatten().numpy(),
        kl.mean_variances if kl.values is None else kl.values,
    )
    missing = np.full(len(active), np.nan)
    nats, errors = (
        missing if part is None else part.flatten().numpy()
        for part in (kl.values, kl.standard_errors)
    )
    names = [f"z{place}" for place in range(len(active))]
    columns = {"kl": nats, "standard_error": errors, "mean_variance": variances, "active": active}
    chosen = [
        place
        for place in order.flatten().argsort(descending=True, stable=True).tolist()
        if active[place]
    ]
    information = _mutual_information(
        means[:, chosen], known, stream_seed(seed, PREDICTIVE_STREAM) % 2**32
    )
    rows = [names[place] for place in chosen]
    return LatentReading(
        pd.DataFrame(columns, index=names),
        pd.DataFrame(_correlation(means[:, chosen], known.indicators), rows, known.indicator_names),
        pd.DataFrame(information, rows, known.target_names),
        kl.reason,
    )


class _Known(NamedTuple):
    """Labels and factors as columns: one for each class and number, and one for each target."""

    indicators: Array  # (N, C + F)
    indicator_names: list[str]
    targets: list[Array]  # integers for the label
    target_names: list[str]


def _known(
    num_data: int,
    labels: Values | None,
    factors: Values | None,
    label_names: Sequence[str],
    factor_names: Sequence[str],
) -> _Known:
    known = _Known(np.zeros((num_data, 0)), [], [], [])
    if factors is not None:
        columns = _rows("factors", factors, num_data)
        columns = columns.reshape(num_data, -1) if columns.ndim < 3 else columns
        if columns.ndim != 2:
            raise InputError(f"'factors' must have shape (N, F), got {columns.shape}")
        names = list(factor_names) or [f"factor {place}" for place in range(columns.shape[1])]
        if len(names) != columns.shape[1]:
            raise InputError(
                f"'factor_names' must be {columns.shape[1]} names, one for each factor, got"
                f" {len(names)}"
            )
        known = _Known(columns, names, list(columns.T), list(names))
    if labels is not None:
        classes = _rows("labels", labels, num_data)
        if classes.ndim != 1 or (classes % 1 != 0).any() or (classes < 0).any():
            raise InputError(
                "'labels' must be whole numbers from 0 of shape (N,), which these are not"
            )
        present = np.unique(classes).astype(int)
        if len(label_names) and present[-1] >= len(label_names):
            raise InputError(
                f"'label_names' must name label {present[-1]} too, got {len(label_names)} names"
            )
        known = _Known(
            np.concatenate([classes[:, None] == present, known.indicators], 1).astype(float),
            [
                *(label_names[i] if len(label_names) else f"label {i}" for i in present),
                *known.indicator_names,
            ],
            [classes.astype(int), *known.targets],
            ["label", *known.target_names],
        )
    return known


def _rows(name: str, values: Values, num_data: int) -> Array:
    """Return factors as finite numbers, one row for each datum."""
    rows = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    if rows.ndim == 0 or len(rows) != num_data:
        size = len(rows) if rows.ndim else "a single number"
        raise InputError(
            f"'{name}' must have one entry for each of the {num_data} data, got {size}"
        )
    if rows.dtype.kind not in "biuf" or not np.isfinite(rows.astype(float)).all():
        raise InputError(f"'{name}' must be finite numbers, which these are not")
    return rows.astype(float)


def _correlation(means: Array, columns: Array) -> Array:
    """Return the correlation of every pair of columns, NaN where one is constant."""
    centred = [part - part.mean(0) for part in (means, columns)]
    lengths = [np.sqrt((part**2).sum(0)) for part in centred]
    units = [
        np.divide(
            part,
            length,
            out=np.full_like(part, np.nan),
            where=length > _CONSTANT * np.sqrt(len(part)),
        )
        for part, length in zip(centred, lengths, strict=True)
    ]
    return units[0].T @ units[1]


def _mutual_information(means: Array, known: _Known, seed: int) -> Array:
    """Return the mutual information of every latent with every target, ``(L, T)``, in nats."""
    from sklearn.feature_selection import (
        mutual_info_classif,
        mutual_info_regression,
    )  # slow to import

    if not known.targets or not means.shape[1]:
        return np.zeros((means.shape[1], len(known.targets)))
    if len(means) <= _NEIGHBORS:
        raise InputError(f"mutual information takes more than {_NEIGHBORS} data, got {len(means)}")
    columns = []
    for target in known.targets:
        values = np.unique(target)
        whole = len(values) <= _MOST_CHOICES and (values % 1 == 0).all()
        is_label = target.dtype.kind == "i"
        if is_label and len(values) == len(target) > 1:
            raise InputError(
                f"'labels' must be classes that some data share, got {len(values)} labels for as"
                " many data: their association with latents is that of each datum, which"
                " decompose_kl measures; give numbers as 'factors'"
            )
        # Of a choice that no two data share neighbours tell nothing: it is a number.
        choice = is_label or len(values) == 1 or (whole and len(values) < len(target))
        estimate = mutual_info_classif if choice else mutual_info_regression
        codes = np.searchsorted(values, target) if choice else target
        columns.append(estimate(means, codes, n_neighbors=_NEIGHBORS, random_state=seed))
    return np.stack(columns, 1)
