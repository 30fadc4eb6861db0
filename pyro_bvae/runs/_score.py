"""Scores of data under the model of a run: evidence and bound of each row, with its identity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.core.context import arguments
from pyro_bvae.core.errors import AbsentDataError
from pyro_bvae.core.inputs.bounds import OptionType
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.processes.progress import ProgressBar
from pyro_bvae.core.seeds import stream_seed
from pyro_bvae.datasets import Dataset, LazyDataset
from pyro_bvae.evaluation import Estimate, elbo_parts, evidence, stratified_sample
from pyro_bvae.evaluation.latent_results import write_numbers
from pyro_bvae.evaluation.marginal import Escalation
from pyro_bvae.runs._evaluate import choose_data
from pyro_bvae.runs.config import NumSamples
from pyro_bvae.runs.directory import Run, load
from pyro_bvae.runs.evaluation_files import measured_evidences

if TYPE_CHECKING:
    import pandas as pd

Data = Dataset | LazyDataset

# Data that are dense at a time, and held-out data by which others are ranked.
_BLOCK, _HELD_OUT = 500, 500
_COLUMNS = ("elbo", "evidence", "monte_carlo_error", "pareto_k", "trusted", "rate", "distortion")


@dataclass(frozen=True, eq=False)
class Scores:
    r"""The scores of N data, in nats.

    Attributes:
        index: Which row of its source each datum is: numbers, or names of cells or files, ``(N,)``.
        split: ``train``, ``validation`` or ``test`` of data that the run knows, else ``new``.
        elbo: The bound at β = 1, minus distortion minus rate, ``(N,)``.
        evidence: :math:`\log p(x_n)`, ``(N,)``.
        monte_carlo_error: Standard error of the evidence, ``(N,)``.
        pareto_k: Pareto k of the importance weights, ``(N,)``.
        trusted: Whether the evidence can be trusted, ``(N,)``.
        rate: :math:`KL(q(z|x_n) \| p(z))`, ``(N,)``.
        distortion: Minus the mean log-likelihood of the reconstruction, ``(N,)``.
        rank: Share of the run's held-out data whose evidence is not higher, ``(N,)``: 0.01 for a
            datum stranger than 99 in 100 of them; NaN where there are none.
        mean: Where these are a subsample, the mean evidence of all data that it stands for; its
            standard error is that of the stratified mean.
        size: Number of the data that it is the mean of.
    """

    index: np.ndarray
    split: np.ndarray
    elbo: np.ndarray
    evidence: np.ndarray
    monte_carlo_error: np.ndarray
    pareto_k: np.ndarray
    trusted: np.ndarray
    rate: np.ndarray
    distortion: np.ndarray
    rank: np.ndarray
    mean: Estimate | None = None
    size: int = 0

    def _columns(self) -> dict[str, np.ndarray]:
        return {name: part for name, part in vars(self).items() if isinstance(part, np.ndarray)}

    def table(self) -> pd.DataFrame:
        """Return a row for each datum, with the columns named above."""
        import pandas as pd

        return pd.DataFrame(self._columns())

    def save(self, path: str | Path) -> None:
        """Write to a ``.csv`` or an ``.npz``; any other ending raises."""
        write_numbers(path, self._columns(), self._columns)

    def __str__(self) -> str:
        known = self.trusted.astype(bool)
        mean = f"mean evidence {self.evidence.mean():.2f} nats of {len(known)} data"
        if self.mean is not None:
            mean = (
                f"mean evidence {self.mean.value:.2f} ± {self.mean.standard_error:.2f} nats of all"
                f" {self.size:,} data, from {len(known):,} of them by label"
            )
        doubt = int((~known).sum())
        return mean if not doubt else f"{mean}, {doubt} of them not to be trusted"


@exclusive
def score(
    run: Run | str | PathLike[str],
    data: Any = None,
    *,
    num_samples: int = 1000,
    method: Literal["auto", "importance"] | Escalation = "auto",
    num_data: int | None = None,
    checkpoint: str = "best",
    seed: int = 0,
    progress: bool = False,
) -> Scores:
    """Return evidence, bound and trust of each datum under the model of a run.

    Args:
        run: The run, or its directory.
        data: A file or folder that is read as the run's own data were, a tensor ``(N, D)`` or a
            data set; by default the run's test data.
        num_samples: Particles for each datum.
        method: Estimator of the evidence, as of :func:`~pyro_bvae.evidence`.
        num_data: How many to score, chosen by :func:`~pyro_bvae.evaluation.stratified_sample` with
            each label in proportion, at random without labels; all by default.
        checkpoint: Checkpoint of a run that is given by its directory, ``best`` or ``last``.
        seed: Seed of the draws.
        progress: Show a progress bar.

    Returns:
        The scores, in the order of the data. The rank is among the run's test data: those of its
        evaluation, or without one at most 500 chosen by the seed 0 and measured likewise.

    Raises:
        InputError: if the run or the data cannot be used, or the run's own data are needed and
            gone.
    """
    OptionType.of(NumSamples).check("num_samples", num_samples)
    opened = run if isinstance(run, Run) else load(Path(run), checkpoint=checkpoint)
    whole = opened.rows(data)
    sample, size = None, len(whole)
    if num_data is not None and num_data < size:
        labels = torch.zeros(size) if whole.labels is None else whole.labels
        codes = labels.unique(return_inverse=True)[1]
        sample = stratified_sample(codes, num_data, seed=seed)
        whole = whole[sample.rows]
    options = {"num_samples": num_samples, "method": method, "seed": seed}
    columns = _measured(opened.vae, whole, options, progress)
    is_own = data is None and sample is None and len(whole) <= _HELD_OUT
    own = columns["evidence"] if is_own else _held_out(opened, options)
    rank = np.full(len(whole), np.nan)
    if own is not None:
        rank = np.searchsorted(np.sort(own), columns["evidence"], side="right") / len(own)
    known = opened.record
    split = np.full(len(whole), "test" if data is None else "new")
    if data is not None and known is not None:
        split = known.part_of(whole)
    mean = None if sample is None else sample.mean(_estimate(columns))
    return Scores(index=whole.index, split=split, rank=rank, **columns, mean=mean, size=size)


def _estimate(columns: dict[str, np.ndarray]) -> Estimate:
    """Return the evidence of the data as an estimate."""
    values, errors, trusted = (
        torch.from_numpy(columns[name]) for name in ("evidence", "monte_carlo_error", "trusted")
    )
    return Estimate.over_data(values, errors, reliable=trusted)


def _held_out(run: Run, options: dict[str, Any]) -> np.ndarray | None:
    """Return the evidences of a run's test data, those of its evaluation if there is one.

    Without one some are measured; None where the data are gone too.
    """
    if (known := measured_evidences(run.directory)) is not None:
        return known
    try:
        test = choose_data(run.part("test"), _HELD_OUT, 0)
    except AbsentDataError:
        return None
    return _measured(run.vae, test, options, progress=False)["evidence"]


def _measured(
    vae: Any, data: Data, options: dict[str, Any], progress: bool
) -> dict[str, np.ndarray]:
    """Return the columns of numbers, of all data."""
    blocks = ProgressBar(_blocks(vae, data), total=data.num_batches(_BLOCK), disable=not progress)
    found: dict[str, list[Tensor]] = {name: [] for name in _COLUMNS}
    for number, args in enumerate(blocks):
        vae.check_data(*args)
        own = {**options, "seed": stream_seed(options["seed"], number), "progress": False}
        estimate = evidence(vae.model, vae.guide, *args, **own)
        del own["method"]
        parts = elbo_parts(vae.model, vae.guide, *args, **own)
        assert estimate.pareto_k is not None and estimate.errors is not None
        columns = (
            parts.elbo.per_datum, estimate.per_datum, estimate.errors, estimate.pareto_k,
            torch.as_tensor(estimate.reliable), parts.rate.per_datum, parts.distortion.per_datum,
        )  # fmt: skip
        for name, values in zip(_COLUMNS, columns, strict=True):
            found[name].append(values)
    return {name: torch.cat(values).cpu().numpy() for name, values in found.items()}


def _blocks(vae: Any, data: Data) -> Iterator[tuple[Any, ...]]:
    own = next(vae.parameters())
    batches = data.to(own.device, own.dtype).batches(_BLOCK, seed=0, epoch=0, shuffle=False)
    for x, context in batches:
        yield arguments(x, context)
