"""Data sets by name, as the command line spells them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyro_bvae.datasets.base import Splits
from pyro_bvae.datasets.digits import digits
from pyro_bvae.datasets.files import from_path
from pyro_bvae.datasets.splitting import held_out_count
from pyro_bvae.datasets.sprites import sprites
from pyro_bvae.datasets.synthetic import linear_gaussian
from pyro_bvae.datasets.torchvision_images import fashion_mnist, kmnist, mnist
from pyro_bvae.errors import InputError, unknown_name

_NUM_SPRITES = 8000


@dataclass(frozen=True)
class LoadOptions:
    """What a named data set may be asked; each builder takes what concerns it, see :func:`load`."""

    root: str | os.PathLike[str] | None = None
    path: str | os.PathLike[str] | None = None
    split_column: str | None = None
    validation: float | None = None
    seed: int = 0

    @property
    def part(self) -> dict[str, Any]:
        """``validation`` as an argument, if it was given."""
        return {} if self.validation is None else {"validation": self.validation}


def _file(options: LoadOptions) -> Splits:
    if options.path is None:
        raise InputError("data set 'file' needs 'path': a .csv, .npy or .npz file, or a folder of images")
    return from_path(options.path, split_column=options.split_column, seed=options.seed, **options.part)


def _sprites(options: LoadOptions, size: int) -> Splits:
    count = 1000
    if options.validation is not None:
        count = held_out_count("validation", options.validation, _NUM_SPRITES)
    return sprites(_NUM_SPRITES, count, size=size, seed=options.seed)


_BUILDERS: dict[str, Callable[[LoadOptions], Splits]] = {
    "digits": lambda options: digits(seed=options.seed, **options.part),
    "fashion-mnist": lambda options: fashion_mnist(options.root, **options.part),
    "file": _file,
    "kmnist": lambda options: kmnist(options.root, **options.part),
    "linear-gaussian": lambda options: linear_gaussian(seed=options.seed, **options.part),
    "mnist": lambda options: mnist(options.root, **options.part),
    "sprites": lambda options: _sprites(options, 64),
    "sprites-32": lambda options: _sprites(options, 32),
}


def available() -> tuple[str, ...]:
    """Return the names that :func:`load` knows."""
    return tuple(_BUILDERS)


def load(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    path: str | os.PathLike[str] | None = None,
    split_column: str | None = None,
    validation: float | None = None,
    binarize: str = "none",
    seed: int = 0,
) -> Splits:
    """Return a data set by its name.

    Args:
        name: One of :func:`available`; ``file`` is a person's own.
        root: Folder of downloaded data (the MNIST family); others have no use for it.
        path: File or folder of data set ``file``, see :func:`pyro_bvae.datasets.from_path`.
        split_column: Column of a csv file that says train, validation or test.
        validation: Fraction or number of data that validate, 0 for none; by default the data set's own.
        binarize: ``none``, ``dynamic`` or ``static``, see :meth:`Splits.binarized`.
        seed: Of random splits and synthetic data. Pixels that are drawn once are the same for every seed, so that
            runs of different seeds are measured on the same data.

    Raises:
        InputError: for an unknown name, or an argument the data set cannot use.
    """
    if name not in _BUILDERS:
        raise unknown_name("data set", name, _BUILDERS)
    for argument, value in (("path", path), ("split_column", split_column)):
        if value is not None and name != "file":
            raise InputError(f"'{argument}' = {str(value)!r} is for data set 'file', got data set '{name}'")
    options = LoadOptions(root, path, split_column, validation, seed)
    return _BUILDERS[name](options).binarized(binarize)
