r"""The mean over a large set from a designed subsample of it, stratified by label.

.. math::
    \hat\mu = \sum_h \frac{N_h}{N} \bar y_h, \qquad
    \widehat{\operatorname{Var}}(\hat\mu) = \sum_h \frac{N_h^2}{N^2}
        \Bigl(1 - \frac{n_h}{N_h}\Bigr) \frac{s_h^2}{n_h}

with :math:`n_h` of the :math:`N_h` data of stratum h in the sample (Cochran 1977, chapter 5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.data import Values
from pyro_bvae.core.inputs.public import public
from pyro_bvae.core.seeds import CHOICE_STREAM, stream_seed
from pyro_bvae.evaluation.estimate import Estimate

# Data of a stratum that its variance takes at least.
_LEAST = 2


@dataclass(frozen=True, eq=False)
class StratifiedSample:
    """Some rows of a set, chosen so that they stand for all of it.

    Attributes:
        rows: Their numbers in the set, increasing, ``(n,)``.
        strata: The stratum of each, from 0, ``(n,)``.
        sizes: Number of data of each stratum in the set, ``(H,)``.
    """

    rows: Tensor
    strata: Tensor
    sizes: Tensor

    def mean(self, values: Estimate | Tensor) -> Estimate:
        r"""Return the mean over the whole set of numbers that are known of the sample.

        Its ``standard_error`` is how far the mean of the whole may lie: 0 for a sample of
        everything. Monte Carlo errors of the data are carried on.

        Args:
            values: An evidence or another estimate of the sample, in the order of ``rows``; or
                numbers ``(n,)``, such as differences of the evidence between two models.

        Raises:
            InputError: if they are not as many as the sample has rows.
        """
        estimate = values if isinstance(values, Estimate) else Estimate.over_data(values)
        own = estimate.per_datum
        if own.shape != self.rows.shape:
            raise InputError(
                f"'values' must be of the {len(self.rows)} data of the sample, got shape"
                f" {tuple(own.shape)}"
            )
        members = torch.nn.functional.one_hot(self.strata, len(self.sizes)).double()
        count, size = members.sum(0), self.sizes.double()
        means = members.T @ own / count
        spread = members.T @ (own - means[self.strata]).square() / (count - 1).clamp(min=1)
        share = size / size.sum()
        variance = (share.square() * (1 - count / size) * spread / count).sum()
        each = (share / count)[self.strata]  # the weight of each datum in the mean
        noise = 0.0
        if estimate.errors is not None:
            noise = float((each * estimate.errors).square().sum().sqrt())
        if estimate.biases is not None:
            noise = math.hypot(noise, float((each * estimate.biases).sum()))
        return replace(
            estimate,
            value=float(share @ means),
            standard_error=float(variance.sqrt()),
            monte_carlo_error=noise,
        )


@public
def stratified_sample(
    labels: Values, num_data: int, *, deviations: Values | None = None, seed: int = 0
) -> StratifiedSample:
    r"""Choose some data of a set by their labels, in proportion to the size of each stratum.

    The evidence of ten thousand well chosen cells then stands for that of ten million, with an
    error: ``sample.mean(evidence(model, guide, *args_of_the_rows))``.

    Args:
        labels: The stratum of each of N data, whole numbers from 0, ``(N,)``.
        num_data: n, how many to choose; at least 2 of each stratum are taken, or all it has.
        deviations: The standard deviation in each stratum ``(H,)``, guessed or from a pilot: strata
            that vary more then have more of the sample (Neyman 1934).
        seed: Of the choice.

    Raises:
        InputError: for labels that are none, and for more data than there are, or fewer than the
            strata take.
    """
    check_count("num_data", num_data)
    numbers = torch.as_tensor(labels).double().cpu()
    if numbers.dim() != 1 or not len(numbers):
        raise InputError(f"'labels' must have shape (N,), got {tuple(numbers.shape)}")
    if not bool(((numbers == numbers.round()) & (numbers >= 0) & (numbers < 2**31)).all()):
        raise InputError("'labels' must be whole numbers from 0")
    _, strata, sizes = numbers.unique(return_inverse=True, return_counts=True)
    weight = sizes.double()
    if deviations is not None:
        spread = torch.as_tensor(deviations).double().cpu()
        if spread.shape != sizes.shape or not bool((spread.isfinite() & (spread >= 0)).all()):
            raise InputError(
                f"'deviations' must be {len(sizes)} finite numbers from 0, one for each stratum,"
                f" got shape {tuple(spread.shape)}"
            )
        weight = weight * spread
    counts = _allocated(weight, sizes, num_data)
    generator = torch.Generator().manual_seed(stream_seed(seed, CHOICE_STREAM))
    order = torch.randperm(len(strata), generator=generator)
    order = order[strata[order].argsort(stable=True)]  # by stratum, at random in each
    starts = sizes.cumsum(0) - sizes
    place = torch.arange(len(order)) - starts.repeat_interleave(sizes)
    rows = order[place < counts.repeat_interleave(sizes)].sort().values
    return StratifiedSample(rows, strata[rows], sizes)


def _allocated(weight: Tensor, sizes: Tensor, total: int) -> Tensor:
    """Return how many data each stratum gives, ``(H,)``.

    Raises:
        InputError: if they cannot be as many as ``total``.
    """
    least = sizes.clamp(max=_LEAST)
    if not int(least.sum()) <= total <= int(sizes.sum()):
        raise InputError(
            f"'num_data' must be from {int(least.sum())}, {_LEAST} of each of {len(sizes)} strata,"
            f" to the {int(sizes.sum())} data that there are, got {total}"
        )
    counts = least.clone()
    while (rest := total - int(counts.sum())) > 0:
        open_ = torch.where(counts < sizes, weight.clamp(min=1e-12), 0.0)
        shares = open_ / open_.sum() * rest
        more = torch.minimum(shares.floor().long(), sizes - counts)
        if not int(more.sum()):  # the last few, to the largest shares
            more = torch.zeros_like(counts)
            more[shares.argsort(descending=True, stable=True)[:rest]] = 1
            more = torch.minimum(more, sizes - counts)
        counts += more
    return counts
