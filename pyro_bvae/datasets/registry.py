"""Data sets by name, as the command line spells them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyro_bvae.core.errors import InputError, unknown_name
from pyro_bvae.datasets.counts.anndata import h5ad
from pyro_bvae.datasets.counts.simulated import negative_binomial_factors
from pyro_bvae.datasets.factors.factor_arrays import dsprites
from pyro_bvae.datasets.images import sprite_styles as sprite_looks
from pyro_bvae.datasets.images.handwritten import digits
from pyro_bvae.datasets.images.sprite_renderer import sprites
from pyro_bvae.datasets.images.torchvision import fashion_mnist, kmnist, mnist
from pyro_bvae.datasets.readers.path import from_path
from pyro_bvae.datasets.splits import Splits, held_out_count
from pyro_bvae.datasets.synthetic import linear_gaussian

_NUM_SPRITES = 8000
# Which data sets an argument is for, where it is not for all.
_TAKERS: dict[str, tuple[str, ...]] = {
    "path": ("file", "h5ad", "dsprites"),
    "split_column": ("file", "h5ad"),
    **dict.fromkeys(
        ("layer", "label_column", "batch_column", "min_counts", "min_cells", "backed"), ("h5ad",)
    ),
}


@dataclass(frozen=True)
class LoadOptions:
    """What a named data set may be asked; each builder takes what concerns it, see :func:`load`."""

    root: str | os.PathLike[str] | None = None
    path: str | os.PathLike[str] | None = None
    split_column: str | None = None
    validation: float | None = None
    seed: int = 0
    layer: str | None = None
    label_column: str | None = None
    batch_column: str | None = None
    min_counts: float | None = None
    min_cells: int | None = None
    backed: bool | None = None
    missing: bool = False

    @property
    def part(self) -> dict[str, Any]:
        """``validation`` as an argument, if it was given."""
        return {} if self.validation is None else {"validation": self.validation}


def _file(options: LoadOptions) -> Splits:
    if options.path is None:
        raise InputError(
            "data set 'file' needs 'path': a .csv, .npy or .npz file, or a folder of images"
        )
    return from_path(
        options.path,
        split_column=options.split_column,
        seed=options.seed,
        missing=options.missing,
        **options.part,
    )


def _h5ad(options: LoadOptions) -> Splits:
    if options.path is None:
        raise InputError("data set 'h5ad' needs 'path', an .h5ad file")
    names = (
        "split_column",
        "layer",
        "label_column",
        "batch_column",
        "min_counts",
        "min_cells",
        "backed",
    )
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    return h5ad(options.path, seed=options.seed, **given, **options.part)


def _dsprites(options: LoadOptions) -> Splits:
    if options.path is None:
        raise InputError("data set 'dsprites' needs 'path', the public .npz file")
    return dsprites(options.path, seed=options.seed, **options.part)


def _sprites(options: LoadOptions, size: int, look: sprite_looks.Look | None = None) -> Splits:
    count = 1000
    if options.validation is not None:
        count = held_out_count("validation", options.validation, _NUM_SPRITES)
    return sprites(_NUM_SPRITES, count, size=size, seed=options.seed, look=look)


_BUILDERS: dict[str, Callable[[LoadOptions], Splits]] = {
    "counts": lambda options: negative_binomial_factors(seed=options.seed, **options.part),
    "digits": lambda options: digits(seed=options.seed, **options.part),
    "dsprites": _dsprites,
    "fashion-mnist": lambda options: fashion_mnist(options.root, **options.part),
    "file": _file,
    "h5ad": _h5ad,
    "kmnist": lambda options: kmnist(options.root, **options.part),
    "linear-gaussian": lambda options: linear_gaussian(seed=options.seed, **options.part),
    "mnist": lambda options: mnist(options.root, **options.part),
    "sprites": lambda options: _sprites(options, 64),
    "sprites-32": lambda options: _sprites(options, 32),
    "sprites-coloured": lambda options: _sprites(options, 64, sprite_looks.coloured),
    "sprites-on-noise": lambda options: _sprites(options, 64, sprite_looks.on_noise),
    "sprites-on-texture": lambda options: _sprites(options, 64, sprite_looks.on_texture),
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
    layer: str | None = None,
    label_column: str | None = None,
    batch_column: str | None = None,
    min_counts: float | None = None,
    min_cells: int | None = None,
    backed: bool | None = None,
    missing: bool = False,
) -> Splits:
    """Return a data set by its name.

    Args:
        name: One of :func:`available`; ``file`` is a person's own.
        root: Folder of downloaded data (the MNIST family); others have no use for it.
        path: File or folder of data set ``file``, see :func:`pyro_bvae.datasets.from_path`; file of
            ``h5ad`` and ``dsprites``.
        split_column: Column of a csv or h5ad file that says train, validation or test.
        validation: Fraction or number of data that validate, 0 for none; by default the data set's
            own.
        binarize: ``none``, ``dynamic`` or ``static``, see :meth:`Splits.binarized`.
        seed: Of random splits and synthetic data. Pixels that are drawn once are the same for every
            seed, so that runs of different seeds are measured on the same data.
        layer: Of an h5ad file, as are all that follow, see :func:`pyro_bvae.datasets.h5ad`; None
            for its default.
        label_column: Column with labels.
        batch_column: Column whose values become covariates.
        min_counts: Least counts of a cell.
        min_cells: Least number of cells that have a gene.
        backed: Leave the counts in the file.
        missing: Take NaN in a ``file`` for entries that were not observed.

    Raises:
        InputError: for an unknown name, or an argument the data set cannot use.
    """
    if name not in _BUILDERS:
        raise unknown_name("data set", name, _BUILDERS)
    options = LoadOptions(
        root,
        path,
        split_column,
        validation,
        seed,
        layer,
        label_column,
        batch_column,
        min_counts,
        min_cells,
        backed,
        missing,
    )
    for argument, (taker, *others) in _TAKERS.items():
        value = getattr(options, argument)
        if value is not None and name not in (taker, *others):
            too = "".join(f"; '{other}' takes it too" for other in others)
            raise InputError(
                f"'{argument}' = {str(value)!r} is for data set '{taker}', got data set '{name}'{too}"
            )
    if missing and name != "file":
        raise InputError(
            f"'missing' is for data set 'file', got data set '{name}', in which nothing is missing"
        )
    return _BUILDERS[name](options).binarized(binarize)
