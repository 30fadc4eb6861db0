"""The masked autoregressive likelihood of binary pixels, which can do without latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pyro.distributions as dist
import torch
from pyro.nn import MaskedLinear
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import silu

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import public
from pyro_bvae.distributions import AutoregressivePixels

# The factor of the weights into the outputs at the start, which is then near independent
# pixels.
_START = 0.1


class MaskedNetwork(nn.Module):
    r"""A perceptron whose output d sees features d - w to d - 1 (after Germain et al. 2015).

    .. math:: m(x) = A x + V h_K, \qquad h_k = \operatorname{silu}(W_k h_{k-1} + b_k), \qquad h_0 =
        x

    with masks on all weights. Each unit stands for an interval of features, and is connected to the
    units of the layer below whose intervals lie within its own. The intervals end at places spread
    evenly over the features; without a window all of them start at the first feature, with one they
    grow from layer to layer. The outputs have no bias: the logits that m is added to have one.

    Args:
        num_features: D, at least 2.
        hidden: Widths of the hidden layers; empty for the affine map (Frey 1998).
        window: w, how many of the features before it an output sees; all of them by default.

    Shape:
        ``(*, D)`` to ``(*, D)``.
    """

    def __init__(
        self, num_features: int, hidden: Sequence[int] = (), window: int | None = None
    ) -> None:
        super().__init__()
        reach = num_features - 1 if window is None else window
        # The last feature comes before none, so that it is no input; and the interval of output 0
        # is empty.
        ends = [torch.arange(num_features - 1)]
        ends += [torch.linspace(num_features - 2, 0, width).round().long() for width in hidden]
        ends += [torch.arange(num_features) - 1]
        num_layers = len(hidden) + 1
        lengths = [
            1,
            *(
                reach if window is None else math.ceil(reach * k / num_layers)
                for k in range(1, num_layers)
            ),
        ]
        lengths += [reach]
        starts = [
            (end - length + 1).clamp(min=0) for end, length in zip(ends, lengths, strict=True)
        ]
        units = list(zip(starts, ends, strict=True))
        self.hidden = nn.ModuleList(_masked(*layers) for layers in pairwise(units[:-1]))
        self.skip = _masked(units[0], units[-1], bias=False)
        self.last = _masked(units[-2], units[-1], bias=False) if hidden else None
        with torch.no_grad():
            for layer in (self.skip, *([self.last] if self.last else [])):
                layer.weight.mul_(_START)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, D)`` to ``(*, D)``."""
        x = x[..., :-1]
        outputs: Tensor = self.skip(x)
        if self.last is None:
            return outputs
        for layer in self.hidden:
            x = silu(layer(x))
        return outputs + self.last(x)


def _masked(
    below: tuple[Tensor, Tensor], above: tuple[Tensor, Tensor], bias: bool = True
) -> MaskedLinear:
    """Return the map between two layers of units, given by the bounds of their intervals."""
    (starts, ends), (outer_starts, outer_ends) = below, (bound.unsqueeze(-1) for bound in above)
    mask = (starts >= outer_starts) & (ends <= outer_ends)
    return MaskedLinear(len(starts), len(outer_ends), mask.to(torch.get_default_dtype()), bias=bias)


@public
class AutoregressiveBernoulliLikelihood(nn.Module):
    r"""Binary pixels that see latents and earlier pixels (Gulrajani et al. 2017).

    .. math:: \log p(x \mid z) = \sum_d \log \mathrm{Bernoulli}(x_d; \,
        \operatorname{sigmoid}(l_d(z) + m_d(x_{<d})))

    with the decoder's output l as logits and a :class:`MaskedNetwork` m. Features are taken in
    their order, which is row by row for images. Such a decoder can explain the data without z, and
    often does: that is posterior collapse by a decoder that bypasses its latents. A small
    ``window`` leaves it unable to, whatever lies further away than that.

    Draws and means take one pass of m for each feature; the mean is the one that
    :attr:`~pyro_bvae.distributions.AutoregressivePixels.mean` describes. Data must be 0 or 1, and
    none may be missing.

    Args:
        num_features: D, at least 2.
        hidden: Widths of the hidden layers of m; empty for an affine map.
        window: How many of the pixels before it a pixel sees; all of them by default.

    Shape:
        ``(*, D)`` to a distribution with batch shape ``(*)`` and event shape ``(D,)``.

    Raises:
        InputError: if an argument cannot be used; at a call, if the decoder gives another number of
            logits.
    """

    support = constraints.boolean
    parameters_per_feature = 1

    def __init__(
        self, num_features: int, hidden: Sequence[int] = (256,), window: int | None = None
    ) -> None:
        super().__init__()
        if not isinstance(num_features, int) or isinstance(num_features, bool) or num_features < 2:
            raise InputError(f"'num_features' must be an integer from 2, got {num_features!r}")
        for width in hidden:
            check_count("hidden", width)
        if window is not None:
            check_count("window", window)
        self.num_features, self.window = num_features, window
        self.preceding = MaskedNetwork(num_features, hidden, window)

    def forward(self, parameters: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`p(x | z)`."""
        if parameters.shape[-1] != self.num_features:
            raise InputError(
                f"'num_features' must be the number of logits, got {self.num_features} and"
                f" {parameters.shape[-1]}"
            )
        return AutoregressivePixels(parameters, self.preceding)
