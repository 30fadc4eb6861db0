r"""Operators :math:`A(x)` on a datum: linear ones by their matrix; any callable is one.

An operator maps ``(*, D)`` to ``(*, M)``, whatever the leading dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_count, check_finite
from pyro_bvae.core.inputs.public import public
from pyro_bvae.core.seeds import WEIGHTS_STREAM, seeded

# x, (*, D), to its measurements without noise, (*, M).
Operator = Callable[[Tensor], Tensor]


@public
class LinearOperator:
    r"""A linear operator, :math:`A(x) = A x`.

    Args:
        matrix: A, shape ``(M, D)``.

    Attributes:
        matrix: A, float64.
        index: Which feature each measurement is, ``(M,)``, where A picks features as they are; else
            None.
        disjoint: Whether no feature enters two measurements, so that those of independent features
            are independent.

    Shape:
        ``(*, D)`` to ``(*, M)``.

    Raises:
        InputError: for a matrix of another shape, without entries, or not finite.
    """

    def __init__(self, matrix: Tensor) -> None:
        if not isinstance(matrix, Tensor) or matrix.dim() != 2 or not matrix.numel():
            got = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
            raise InputError(f"'matrix' must be a tensor (M, D) with at least one row, got {got}")
        check_finite("matrix", matrix)
        self.matrix = matrix.detach().double()
        used = self.matrix != 0
        self.disjoint = bool((used.sum(0) <= 1).all())
        picks = (
            self.disjoint
            and bool((used.sum(1) == 1).all())
            and bool((self.matrix[used] == 1).all())
        )
        self.index = used.int().argmax(1) if picks else None

    def __call__(self, x: Tensor) -> Tensor:
        """Return :math:`A x`."""
        if x.shape[-1] != self.matrix.shape[1]:
            raise InputError(
                f"the operator takes {self.matrix.shape[1]} features, got {x.shape[-1]}"
            )
        return x @ self.matrix.to(x).mT

    def back(self, y: Tensor) -> Tensor:
        """Return the smallest x that explains noiseless measurements, ``(*, M)`` to ``(*, D)``."""
        return y @ torch.linalg.pinv(self.matrix).to(y).mT


@public
class Mask(LinearOperator):
    """Inpainting: some features are seen as they are, the others not at all.

    Args:
        observed: Which features are seen, bool, ``(D,)`` or an image that is made flat.

    Raises:
        InputError: if nothing is seen, or for anything but truth values.
    """

    def __init__(self, observed: Tensor) -> None:
        if not isinstance(observed, Tensor) or observed.dtype != torch.bool:
            raise InputError(
                "'observed' must be a bool tensor (D,), got"
                f" {getattr(observed, 'dtype', type(observed))}"
            )
        flat = observed.flatten()
        if not bool(flat.any()):
            raise InputError(
                "'observed' must be True somewhere: an image that is masked altogether says"
                " nothing of x"
            )
        super().__init__(torch.eye(len(flat), dtype=torch.double, device=flat.device)[flat])


@public
class Blur(LinearOperator):
    r"""Each pixel becomes a mean of its neighbours, with normal weights of scale ``width``.

    Weights of the pixels within the image sum to one, so that a constant image stays as it is.

    Args:
        image_shape: ``(C, H, W)``, with ``D = C H W``.
        width: In pixels, positive.

    Raises:
        InputError: for a width or a shape that cannot be used.
    """

    def __init__(self, image_shape: Sequence[int], width: float) -> None:
        if not (width > 0 and math.isfinite(width)):
            raise InputError(f"'width' must be positive and finite, got {width}")
        super().__init__(_separable(image_shape, lambda size: _smoothing(size, width)))


@public
class Downsample(LinearOperator):
    """Squares of pixels become their mean.

    Args:
        image_shape: ``(C, H, W)``, with ``D = C H W``.
        factor: Side of the squares, a divisor of height and width.

    Raises:
        InputError: for a factor or a shape that cannot be used.
    """

    def __init__(self, image_shape: Sequence[int], factor: int) -> None:
        check_count("factor", factor)
        if any(size % factor for size in image_shape[1:]):
            raise InputError(
                f"'factor' must divide height and width of {tuple(image_shape)}, got {factor}"
            )
        super().__init__(_separable(image_shape, lambda size: _means(size, factor)))


@public
class RandomProjection(LinearOperator):
    r"""Random weighted sums of all features: compressed sensing (Candès and Tao 2006).

    Weights are normal with variance :math:`1 / D`.

    Args:
        num_features: D.
        num_measurements: M.
        seed: Of the weights.

    Raises:
        InputError: if a number is no positive integer.
    """

    def __init__(self, num_features: int, num_measurements: int, seed: int = 0) -> None:
        check_count("num_features", num_features)
        check_count("num_measurements", num_measurements)
        with seeded(seed, WEIGHTS_STREAM):
            weights = torch.randn(num_measurements, num_features, dtype=torch.double)
        super().__init__(weights / math.sqrt(num_features))


def _separable(image_shape: Sequence[int], along: Callable[[int], Tensor]) -> Tensor:
    """Return the matrix that acts along rows and columns of each channel."""
    if len(image_shape) != 3:
        raise InputError(
            f"'image_shape' must be (channels, height, width), got {tuple(image_shape)}"
        )
    for size in image_shape:
        check_count("image_shape", size)
    channels, height, width = image_shape
    inner = torch.kron(along(height), along(width))
    return torch.kron(torch.eye(channels, dtype=torch.double), inner)


def _smoothing(size: int, width: float) -> Tensor:
    place = torch.arange(size, dtype=torch.double)
    weights = (-0.5 * ((place.unsqueeze(1) - place) / width).square()).exp()
    # A weight below a millionth is nothing, and a matrix of zeros is said to be one.
    weights = weights.where(weights > 1e-6, 0.0)
    return weights / weights.sum(1, keepdim=True)


def _means(size: int, factor: int) -> Tensor:
    return torch.eye(size // factor, dtype=torch.double).repeat_interleave(factor, 1) / factor
