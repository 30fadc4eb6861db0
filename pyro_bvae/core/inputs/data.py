"""Arrays, tables and lists as the tensors that they plainly stand for."""

from __future__ import annotations

import math
from numbers import Real
from typing import Annotated, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_finite
from pyro_bvae.core.internals import is_capturing, is_transformed

#: Numbers in any container: a tensor, an array, a table, a list.
Values: TypeAlias = Annotated[ArrayLike | Tensor, "numbers"]
#: Rows of data in any container, which :func:`as_data` reads.
Rows: TypeAlias = ArrayLike | Tensor
#: The result of a conversion that has no plain meaning.
MISMATCH: Any = object()

# Dimensions of an array at most, which NumPy has too.
_DEEPEST = 64
# Characters of a value that a message quotes.
_QUOTED = 60


def shown(value: Any) -> str:
    """Return a value in few words: numbers and strings as they are, anything else by its type."""
    if isinstance(value, type):
        return f"the class {value.__name__}, not an instance"
    if value is None or isinstance(value, bool | float | str):
        text = repr(value)
        return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}..."
    if isinstance(value, int):
        return repr(value) if abs(value) < 10**_QUOTED else f"a number above 10**{_QUOTED}"
    shape = None if _is_nested(value) else getattr(value, "shape", None)
    named = type(value).__name__
    if isinstance(value, Tensor) and shape is not None:
        return f"a tensor of shape {tuple(shape)}, {value.dtype} on {value.device}"
    if isinstance(shape, tuple):
        return f"{named} of shape {tuple(shape)}"
    return f"{named} {value!r}" if isinstance(value, np.generic) else named


def is_array(value: Any) -> bool:
    """Whether a value is an array of NumPy or a tensor."""
    return isinstance(value, np.ndarray | np.generic | Tensor)


def is_abstract(value: Any) -> bool:
    """Whether a value is a tensor that has a shape and no numbers."""
    return isinstance(value, Tensor) and value.device.type == "meta"


def _is_nested(value: Any) -> bool:
    """Whether a value is a tensor whose rows differ in length, so that it has no shape."""
    return isinstance(value, Tensor) and value.is_nested


def listing(value: Any) -> Any:
    """Return an array, a tensor or the index of a table as a list, and anything else as it is."""
    if not hasattr(value, "tolist") or is_abstract(value):
        return value
    is_sparse = isinstance(value, Tensor) and value.layout != torch.strided
    return (value.to_dense() if is_sparse else value).tolist()


def as_numbers(value: Any) -> Any:
    """Return an array of real numbers or a dense tensor, or ``MISMATCH``.

    Tensors lose their gradient; a table (DataFrame), a SciPy matrix or a nested list becomes an
    array.
    """
    if _is_nested(value):
        return MISMATCH
    if isinstance(value, Tensor):
        dense = value.detach().to_dense() if value.layout != torch.strided else value.detach()
        return MISMATCH if dense.is_complex() or is_abstract(dense) else dense
    if isinstance(value, str | bytes | dict | set | type) or value is None:
        return MISMATCH
    try:
        array = _array(value)
        if array.dtype.kind == "O":
            array = array.astype(float)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return MISMATCH  # ragged lists, strings among numbers
    if array.dtype.kind not in "biuf":
        return MISMATCH
    native = array.dtype.newbyteorder("=")
    if any(stride < 0 for stride in array.strides):  # which torch does not take
        array = array.copy()
    return array.astype(native if native.itemsize <= 8 else float, copy=False)


def _array(value: Any) -> Any:
    """Return any container as an array."""
    if hasattr(value, "toarray"):  # of SciPy's sparse matrices
        return np.asarray(value.toarray())
    if isinstance(value, np.ma.MaskedArray):
        return np.ma.filled(value.astype(float), np.nan)
    if hasattr(value, "to_numpy"):  # of tables
        return np.asarray(value.to_numpy())
    if isinstance(value, list | tuple) and any(isinstance(part, Tensor) for part in value):
        return torch.stack([torch.as_tensor(part) for part in value]).detach().cpu().numpy()
    return np.asarray(value)


def as_tensor(value: Any) -> Any:
    """Return a tensor as it is, and any other container of numbers as one, or ``MISMATCH``."""
    if isinstance(value, Tensor):
        return MISMATCH if _is_nested(value) else value
    numbers = as_numbers(value) if is_table(value) or isinstance(value, np.memmap) else MISMATCH
    if numbers is MISMATCH or numbers.ndim == 0:
        return MISMATCH
    if numbers.dtype.kind == "u" and numbers.dtype.itemsize > 1:
        numbers = numbers.astype(np.int64)
    return torch.from_numpy(np.array(numbers, order="C"))


def is_table(value: Any) -> bool:
    """Whether a value is rows of numbers: a tensor, an array in memory, a table, a nested list."""
    first = value
    for _ in range(_DEEPEST):  # a list may hold itself
        if not isinstance(first, list | tuple) or not first:
            break
        first = first[0]
    if first is not value:
        return isinstance(first, Real) or (isinstance(first, np.ndarray) and first.ndim == 1)
    if isinstance(value, Tensor | np.ndarray):
        return not isinstance(value, np.memmap)
    return hasattr(value, "to_numpy") or hasattr(value, "toarray")


def as_data(
    name: str, value: Any, like: Tensor | None = None, num_features: int | None = None
) -> Tensor:
    """Return data as a floating-point tensor ``(N, D)``, in the type and on the device of a model.

    Arrays, tables, nested lists and sparse matrices are converted, and images ``(N, C, H, W)``
    flattened. Integers in an array might be pixels from 0 to 255, so they are not.

    Args:
        name: Name of the argument, for messages.
        value: The data.
        like: A weight of the model; the default floating type without one.
        num_features: D, if it is known.

    Raises:
        InputError: for anything but rows of numbers, and where N or D is 0.
    """
    if is_abstract(like):
        raise InputError("the model must have numbers for weights, got tensors on device meta")
    x = as_tensor(value)
    if x is MISMATCH:
        raise InputError(f"'{name}' must be a tensor (N, D), got {named(value)}")
    x = _dense(name, x)
    if not x.is_floating_point():
        if isinstance(value, np.ndarray | Tensor):
            raise InputError(
                f"'{name}' must be floating, got {x.dtype}; use {name}.float() of a tensor, or"
                f" .astype(float) of an array, and / 255 for pixels"
            )
        x = x.double()
    x = _flat(name, x, num_features)
    if not isinstance(value, Tensor) or like is not None:
        target = torch.empty(0) if like is None else like
        x = x.to(target.device, target.dtype)
    return x


def check_observed(x: Tensor) -> None:
    """Raise if every entry is missing: there is nothing to learn or to measure.

    Raises:
        InputError: naming x.
    """
    if bool(torch.isnan(x).all()):
        raise InputError("'x' must have an observed entry, got NaN alone")


def _dense(name: str, x: Tensor) -> Tensor:
    """Return a tensor without gradient and with all its entries."""
    if is_abstract(x) or x.is_complex():
        raise InputError(f"'{name}' must hold real numbers, got {x.dtype} on {x.device}")
    return x.detach() if x.layout == torch.strided else x.detach().to_dense()


def named(value: Any) -> str:
    """Return the type of a value that is no data, with the line that takes data out of it."""
    named = shown(value) if isinstance(value, type | str) else type(value).__name__
    if hasattr(value, "train") and hasattr(value, "test") and not callable(value):
        return f"{named}: take a part, such as .train or .test"
    if hasattr(value, "dense"):
        return f"{named}: take some of it, such as data[:1000].dense()"
    if hasattr(value, "columns"):
        return f"{named} of other values: datasets.from_dataframe(...) takes columns of any kind"
    return named


def _flat(name: str, x: Tensor, num_features: int | None) -> Tensor:
    """Return data as ``(N, D)``: images flattened, anything else refused."""
    shape = tuple(x.shape)
    if x.dim() == 1:
        one = num_features is None or len(x) == num_features
        line = "one datum is x[None]" if one else "data of one feature are x[:, None]"
        raise InputError(f"'{name}' must have shape (N, D), got {shape}; {line}")
    if x.dim() < 2 or not x.numel():
        raise InputError(f"empty data set: '{name}' must have shape (N, D), got {shape}")
    if x.dim() == 2:
        return x
    if num_features is not None and math.prod(shape[1:]) != num_features:
        raise InputError(
            f"'{name}' must have {num_features} features, got {math.prod(shape[1:])} in data of"
            f" shape {shape}"
        )
    return x.flatten(1)


def as_codes(z: Any, like: Tensor | None, latent_dim: int | None) -> Tensor:
    """Return codes ``(*, L)`` in the type and on the device of a model.

    Args:
        z: The codes.
        like: A weight of the model.
        latent_dim: L, if it is known.

    Raises:
        InputError: for anything but floating-point numbers of L latents.
    """
    codes = as_tensor(z)
    if codes is MISMATCH or not codes.is_floating_point() or codes.dim() < 1:
        got = f"{codes.dtype} of shape {tuple(codes.shape)}" if is_array(codes) else named(z)
        raise InputError(f"'z' must be a floating-point tensor (*, L), got {got}")
    if latent_dim is not None and codes.shape[-1] != latent_dim:
        raise InputError(f"'z' must have {latent_dim} latents, got {codes.shape[-1]}")
    codes = _dense("z", codes)
    if not is_transformed(codes) and not is_capturing():
        check_finite("z", codes)
    return codes if like is None else codes.to(like.device, like.dtype)
