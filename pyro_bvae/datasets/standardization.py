"""Standardized data: every feature with mean 0 and standard deviation 1 over the training data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.datasets.lazy import LazyDataset
from pyro_bvae.datasets.splits import Splits

# Rows that are looked at together.
_BLOCK = 4096
# The least standard deviation by which float32 divides.
_LEAST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class Scaling:
    r"""The map between data and standardized data, :math:`x = m + s \, u`, feature by feature.

    Attributes:
        mean: m, the mean of the observed entries of each feature, shape ``(D,)``, float64; 0 where
            none was observed.
        scale: s, their standard deviation, by their number, shape ``(D,)``, float64; 1 where all
            of them are the same value.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, data: Dataset | LazyDataset) -> Scaling:
        """Return the scaling of some data, of any size; missing entries are left out."""
        count = mean = squares = torch.zeros(data.num_features, dtype=torch.double)
        least = torch.full_like(mean, torch.inf)
        greatest = -least
        for x, _ in data.batches(_BLOCK, seed=0, epoch=0, shuffle=False):
            block = x.detach().cpu().double()
            seen = ~torch.isnan(block)
            own = seen.sum(0)
            own_mean = block.nan_to_num().sum(0) / own.clamp(min=1)
            off = torch.where(seen, block - own_mean, 0)
            # The moments of two sets together (Chan, Golub and LeVeque 1983).
            total, shift = count + own, own_mean - mean
            share = own / total.clamp(min=1)
            squares = squares + off.square().sum(0) + shift.square() * count * share
            mean, count = mean + shift * share, total
            least = torch.minimum(least, torch.where(seen, block, torch.inf).amin(0))
            greatest = torch.maximum(greatest, torch.where(seen, block, -torch.inf).amax(0))
        scale = (squares / count.clamp(min=1)).sqrt()
        return cls(mean, torch.where((greatest > least) & (scale > _LEAST), scale, 1.0))

    @classmethod
    def identity(cls, num_features: int) -> Scaling:
        """Return the scaling that changes nothing."""
        ones = torch.ones(num_features, dtype=torch.double)
        return cls(torch.zeros_like(ones), ones)

    @property
    def log_determinant(self) -> float:
        r"""The nats between the units, :math:`\sum_d \log s_d`.

        For data without missing entries :math:`\log p(x) = \log p(u) - \sum_d \log s_d`.
        """
        return float(self.scale.log().sum())

    def log_determinants(self, x: Tensor) -> Tensor:
        r"""Return :math:`\sum_d \log s_d` over the observed features of data ``(*, D)``."""
        log_scale = self.scale.log().to(x.device).expand(x.shape)
        return log_scale.masked_fill(torch.isnan(x), 0).sum(-1)

    def apply(self, x: Tensor) -> Tensor:
        """Return standardized data, ``(*, D)``; missing entries stay missing."""
        return ((x.double() - self.mean.to(x.device)) / self.scale.to(x.device)).to(x.dtype)

    def undo(self, u: Tensor) -> Tensor:
        """Return standardized data ``(*, D)`` in their original units."""
        return (self.mean.to(u.device) + self.scale.to(u.device) * u.double()).to(u.dtype)


@dataclass(frozen=True, eq=False)
class StandardizedSplits(Splits):
    """The parts of a data set, standardized; ``scaling.undo`` has their original units."""

    scaling: Scaling


@public
def standardized(splits: Splits) -> StandardizedSplits:
    r"""Return the parts with every feature standardized by the training data.

    .. math:: u_{nd} = (x_{nd} - m_d) / s_d

    with mean and standard deviation of the observed entries of the training part; a constant
    feature is only centred, :math:`s_d = 1`. The evidence of a model of u is in other units than
    that of a model of x: ``evidence(...).per_datum - scaling.log_determinants(x)`` is in nats of x
    (change of variables). A configuration with ``standardize`` needs none of this: its model takes
    the data in their own units.

    Args:
        splits: The parts, of real numbers; those that are dense only in the batch become dense.

    Returns:
        The parts with standardized ``x``, and ``scaling``: ``apply``, ``undo`` and the
        log-determinants of the map.

    Raises:
        InputError: for pixels that are drawn anew in every epoch, which are 0 or 1.
    """
    if getattr(splits.train, "stochastic_binarization", False):
        raise InputError(
            "'splits' must hold real numbers, got pixels that are drawn as 0 or 1 in every epoch"
        )
    scaling = Scaling.of(splits.train)

    def part(data: Dataset | LazyDataset) -> Dataset:
        dense = data.dense()
        return replace(dense, x=scaling.apply(dense.x))

    validation = None if splits.validation is None else part(splits.validation)
    return StandardizedSplits(
        part(splits.train), validation, part(splits.test), splits.name, scaling
    )
