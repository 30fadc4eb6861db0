"""One array in the npy format, whose header is checked against the file before it is believed."""

from __future__ import annotations

from math import prod
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from pyro_bvae.core.errors import byte_size

#: The first bytes of an npy file, and of an archive of them.
NPY_MAGIC, ZIP_MAGIC = b"\x93NUMPY", b"PK"
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class Header(NamedTuple):
    """The header of an array."""

    shape: tuple[int, ...]
    by_column: bool
    dtype: np.dtype[Any]

    @property
    def num_entries(self) -> int:
        """The number of entries."""
        return prod(self.shape)


def read_header(stream: IO[bytes], size: int) -> Header:
    """Read the header of an array.

    Args:
        stream: The array, from its first byte.
        size: Bytes of header and entries.

    Raises:
        ValueError: if this is no array, one of Python objects, or of another size than it declares;
            numpy may raise other exceptions.
    """
    version = npy.read_magic(stream)  # type: ignore[arg-type]
    if version not in _READERS:
        raise ValueError(f"version {version} of the npy format, not 1.0 or 2.0")
    header = Header(*_READERS[version](stream))  # type: ignore[arg-type]
    if header.dtype.hasobject:
        raise ValueError("it holds pickled Python objects, which could run code: save numbers")
    if any(length < 0 for length in header.shape):
        raise ValueError(f"a length of shape {header.shape} is negative")
    declared, held = header.num_entries * header.dtype.itemsize, size - stream.tell()
    if declared != held:
        raise ValueError(
            f"{header.dtype} of shape {header.shape} are {byte_size(declared)}, and it holds "
            f"{byte_size(held)} ({held - declared:+d} bytes)"
        )
    return header


def read_array(stream: IO[bytes], size: int) -> np.ndarray:
    """Read an array whose size is checked; arguments and errors are those of :func:`read_header`.

    Whether its memory may be taken is for the caller to check.
    """
    read_header(stream, size)
    stream.seek(0)
    return npy.read_array(stream, allow_pickle=False)  # type: ignore[arg-type, no-any-return]
