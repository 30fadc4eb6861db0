"""The test data of a page: their codes, labels and evidences, and the latents by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Dataset
from pyro_bvae.plots.style import number
from pyro_bvae.runs.evaluation_files import chosen_rows, measured_values

Array = NDArray[Any]

# Data of the page at most.
_MOST_POINTS = 1000
# Correlation from which on a latent bears the name of a factor or label.
_LEAST_CORRELATION = 0.4


class Points(NamedTuple):
    """Some test data.

    Attributes:
        rows: Their rows in the test data.
        data: The data.
        codes: Their codes, shape ``(N, L)``.
        evidence: The evidence of each, NaN where it was not measured.
        pareto_k: Likewise.
    """

    rows: Array
    data: Dataset
    codes: torch.Tensor
    evidence: Array
    pareto_k: Array


def points_of(run: Any, evaluation: Mapping[str, Any]) -> Points:
    """Return the data of the page: those that were measured, and others up to a thousand.

    Args:
        run: A loaded run.
        evaluation: The content of its ``evaluation.json``.
    """
    test = run.splits.test
    rows, values = _measured(run, evaluation, len(test))
    rows = rows[:_MOST_POINTS]
    values = {name: own[: len(rows)] for name, own in values.items()}
    others = np.setdiff1d(np.arange(len(test)), rows)[: _MOST_POINTS - len(rows)]
    rows = np.concatenate([rows, others]).astype(int)
    order = np.argsort(rows, kind="stable")
    nothing = np.full(len(others), np.nan)
    evidence, pareto_k = (
        np.concatenate([values[name], nothing])[order] for name in ("evidence", "pareto_k")
    )
    rows = rows[order]
    chosen = test[torch.as_tensor(rows)].dense()
    codes = run.vae.encode(chosen.x, chosen.context)
    return Points(rows, chosen, codes, evidence, pareto_k)


def _measured(run: Any, evaluation: Mapping[str, Any], size: int) -> tuple[Array, dict[str, Array]]:
    """Return the rows that were measured, and their values by name; none where that is unknown."""
    count, directory = evaluation.get("num_data"), getattr(run, "directory", None)
    nothing = np.array([], dtype=int), {"evidence": np.array([]), "pareto_k": np.array([])}
    if directory is None or evaluation.get("split") != "test" or not count or count > size:
        return nothing
    values = measured_values(directory)
    chosen = np.asarray(chosen_rows(size, count, evaluation.get("seed", 0)))
    rows = values.pop("row", chosen).astype(int)
    if any(len(own) != len(rows) for own in values.values()) or len(values) < 2:
        return nothing
    return rows, values


def principal_axes(codes: torch.Tensor) -> tuple[Array, Array]:
    """Return the mean of codes ``(L,)`` and the directions of largest variance, ``(2, L)``.

    A second direction is zero where there is none.
    """
    values = np.asarray(codes.double())
    _, _, axes = np.linalg.svd(values - values.mean(0), full_matrices=False)
    result: Array = np.zeros((2, values.shape[1]))
    result[: len(axes)] = axes[:2]
    return values.mean(0), result


def neighbours(codes: torch.Tensor) -> Array | None:
    """Return a t-SNE of codes, shape ``(N, 2)``: data of near codes lie near each other.

    None for codes of one or two latents, which need none, and for less than ten data. See van der
    Maaten and Hinton (2008).
    """
    size, latents = codes.shape
    if latents < 3 or size < 10:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of codes that are all alike
        from sklearn.manifold import TSNE

        shown = TSNE(2, perplexity=min(30, size / 4), max_iter=300, random_state=0, n_jobs=1)
        result: Array = shown.fit_transform(np.asarray(codes.float()))
    return result if np.isfinite(result).all() else None


def latent_names(points: Points) -> list[str]:
    """Return a name of each latent: its number, and the factor or label it goes with.

    It is the factor, or the label as a number 1 within a class and 0 elsewhere, of the largest
    absolute correlation with the codes.
    """
    names = [f"z{latent}" for latent in range(points.codes.shape[1])]
    columns, titles = _known(points.data)
    codes = np.asarray(points.codes.double())
    if not len(titles) or len(codes) < 3:
        return names
    with np.errstate(invalid="ignore", divide="ignore"):
        centred, others = (part - part.mean(0) for part in (codes, columns))
        spreads = np.outer(np.linalg.norm(centred, axis=0), np.linalg.norm(others, axis=0))
        correlation = np.nan_to_num(centred.T @ others / spreads)
    for latent, own in enumerate(correlation):
        best = int(np.argmax(np.abs(own)))
        if abs(own[best]) >= _LEAST_CORRELATION:
            names[latent] += f": {titles[best]}, correlation {number(own[best])}"
    return names


def _known(data: Dataset) -> tuple[Array, Sequence[str]]:
    """Return the factors of data ``(N, F)``, or else their classes as columns, and their names."""
    if data.factors is not None:
        factors = np.asarray(data.factors, dtype=float)
        names = data.factor_names or [f"factor {i}" for i in range(factors.shape[1])]
        return factors, list(names)
    if data.labels is None:
        return np.empty((len(data), 0)), []
    labels = np.asarray(data.labels)
    classes = np.unique(labels)
    return (labels[:, None] == classes).astype(float), [
        f"label {label_name(data, int(c))}" for c in classes
    ]


def label_name(data: Dataset, label: int) -> str:
    """Return the name of a class."""
    return data.label_names[label] if data.label_names else str(label)


def prior_draws(vae: Any, count: int = 100) -> torch.Tensor | None:
    """Return draws from the prior, shape ``(count, L)``; None where it cannot draw."""
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            draws: torch.Tensor = vae.prior().sample(torch.Size([count]))
    except (InputError, NotImplementedError):
        return None
    return draws
