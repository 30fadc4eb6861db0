"""Networks: tensor to tensor, with any leading batch dimensions.

Every network names its sizes, ``in_features`` and ``out_features``, so that parts which do not fit
together are refused when they are put together. Data are flat; a convolutional network owns its
reshape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from pyro_bvae.core.errors import check_bytes, listed
from pyro_bvae.core.inputs.public import public
from pyro_bvae.networks.linear import Linear, check_sizes, in_turn

# Bytes of a weight in float32.
_WEIGHT = 4


@public
class MLP(nn.Module):
    r"""A multilayer perceptron: affine maps with an activation between them.

    Args:
        in_features: Size D of the last dimension of the input.
        out_features: Size F of the last dimension of the output.
        hidden: Widths of the hidden layers; empty for an affine map.
        activation: Makes the module between layers.
        bias: Whether the affine maps have a bias.

    Shape:
        ``(*, D)`` to ``(*, F)``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: Sequence[int] = (400, 400),
        activation: Callable[[], nn.Module] = nn.SiLU,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(in_features=in_features, out_features=out_features)
        for width in hidden:
            check_sizes(hidden=width)
        self.in_features, self.out_features = in_features, out_features
        widths = (in_features, *hidden, out_features)
        weights = sum(size_in * size_out for size_in, size_out in pairwise(widths))
        check_bytes(_WEIGHT * weights, f"a network of layers of {listed(widths)}")
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise(widths):
            layers += [Linear(size_in, size_out, bias=bias), activation()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, D)`` to ``(*, F)``."""
        return in_turn(self.layers, x)


@public
class ResidualMLP(nn.Module):
    r"""A deep perceptron of pre-activation residual blocks (He et al. 2016).

    .. math:: h_0 = W_0 x + b_0, \qquad h_i = h_{i-1} + B_i \, a(A_i \, a(h_{i-1})), \qquad y = W
        a(h_M) + b,

    biases of the blocks left out. The last map of a block starts at zero, so that every block
    starts as the identity and depth costs nothing at the start (Goyal et al. 2017).

    Args:
        in_features: Size D of the last dimension of the input.
        out_features: Size F of the last dimension of the output.
        hidden: Width of h and of the blocks.
        num_blocks: Number M of blocks.
        activation: Makes the activations a.

    Shape:
        ``(*, D)`` to ``(*, F)``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: int = 256,
        num_blocks: int = 2,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        check_sizes(
            in_features=in_features, out_features=out_features, hidden=hidden, num_blocks=num_blocks
        )
        weights = hidden * (in_features + 2 * num_blocks * hidden + out_features)
        check_bytes(_WEIGHT * weights, f"a network of {num_blocks} blocks of width {hidden}")
        self.in_features, self.out_features = in_features, out_features
        self.stem = Linear(in_features, hidden)
        self.blocks = nn.ModuleList(_Block(hidden, activation) for _ in range(num_blocks))
        self.activation = activation()
        self.head = Linear(hidden, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, D)`` to ``(*, F)``."""
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return self.head(self.activation(h))


class _Block(nn.Module):
    """A residual block: the input plus a function of it."""

    def __init__(self, width: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.before, self.inner, self.between = activation(), Linear(width, width), activation()
        self.outer = Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.outer(in_turn((self.inner, self.between), self.before(h)))
