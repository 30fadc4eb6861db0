"""Data sets by name, as the command line spells them, and the options that they take."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from typing_extensions import Doc

from pyro_bvae.core.errors import InputError, choices, unknown_name
from pyro_bvae.core.inputs.bounds import Bounds
from pyro_bvae.core.inputs.public import public

if TYPE_CHECKING:
    from pyro_bvae.datasets.splits import Splits

MISSING_MODES, SIZE_FACTORS = ("none", "nan"), ("given", "observed")
COLOURS = ("auto", "grey", "rgb")
_NUM_SPRITES = 8000


class Source(NamedTuple):
    """A named data set: its function, the options passed to it, and the file that it reads."""

    function: str | Callable[..., Splits]
    takes: tuple[str, ...]
    note: str = ""
    file: str = ""

    def read(self, options: dict[str, Any]) -> Splits:
        """Return the data, for options by name; others have the function's own defaults."""
        function: Any = self.function
        if isinstance(function, str):
            module, name = function.split(":")
            function = getattr(import_module(f"pyro_bvae.datasets.{module}"), name)
        splits: Splits = function(**{name: options[name] for name in self.takes if name in options})
        return splits


def _sprites(size: int, look: str = "", *, seed: int, validation: float | None = None) -> Splits:
    from pyro_bvae.datasets.images import sprite_renderer, sprite_styles
    from pyro_bvae.datasets.splits import held_out_count

    count = 1000
    if validation is not None:
        count = held_out_count("validation", validation, _NUM_SPRITES)
    style = getattr(sprite_styles, look) if look else None
    return sprite_renderer.sprites(_NUM_SPRITES, count, size=size, seed=seed, look=style)


def _h5ad(
    label_column: str | None = None,
    batch_column: str | None = None,
    split_column: str | None = None,
    categorical_columns: tuple[str, ...] = (),
    continuous_columns: tuple[str, ...] = (),
    stratify: str | None = None,
    **options: Any,
) -> Splits:
    from pyro_bvae.datasets.counts.anndata import ObsColumns, h5ad

    stratum = label_column if stratify == "label" and label_column is not None else stratify
    columns = ObsColumns(
        label_column, batch_column, split_column, categorical_columns, continuous_columns, stratum
    )
    return h5ad(columns=columns, **options)


_SPLIT, _MNIST = ("seed", "validation"), ("root", "validation", "download")
SOURCES: dict[str, Source] = {
    "digits": Source("images.handwritten:digits", _SPLIT),
    "mnist": Source("images.torchvision:mnist", _MNIST),
    "fashion-mnist": Source("images.torchvision:fashion_mnist", _MNIST),
    "kmnist": Source("images.torchvision:kmnist", _MNIST),
    "sprites": Source(partial(_sprites, 64), _SPLIT),
    "sprites-32": Source(partial(_sprites, 32), _SPLIT),
    "sprites-coloured": Source(partial(_sprites, 64, "coloured"), _SPLIT),
    "sprites-on-noise": Source(partial(_sprites, 64, "on_noise"), _SPLIT),
    "sprites-on-texture": Source(partial(_sprites, 64, "on_texture"), _SPLIT),
    "linear-gaussian": Source("synthetic:linear_gaussian", _SPLIT),
    "counts": Source("counts.simulated:negative_binomial_factors", _SPLIT, note="simulated"),
    "file": Source(
        "readers.path:from_path",
        (*_SPLIT, "path", "split_column", "label_column", "index_column", "missing",
         "skip_unreadable", "image_size", "colour", "stratify"),
        file="a .csv, .tsv, .npy or .npz file, or a folder of images",
    ),
    "h5ad": Source(
        _h5ad,
        (*_SPLIT, "path", "split_column", "layer", "label_column", "batch_column", "min_counts",
         "min_cells", "backed", "categorical_columns", "continuous_columns", "stratify"),
        file="an .h5ad file, a .zarr folder or a folder of these",
    ),
    "dsprites": Source(
        "factors.factor_arrays:dsprites", (*_SPLIT, "path"), file="the public .npz file"
    ),
}  # fmt: skip
_GENERATED = {name: source for name, source in SOURCES.items() if not source.file}
_READ = {name: source for name, source in SOURCES.items() if source.file}


@dataclass(frozen=True)
class DataOptions:
    """The data of a run: a named data set, and the options of its reader."""

    dataset: Annotated[
        str,
        Doc(f"Data set: {choices(_GENERATED, ', ')}, or your own: {choices(_READ)} (with --path)."),
    ] = "digits"
    data_root: str | None = None
    """Folder with downloaded data, such as the one that holds MNIST/raw."""
    path: str | None = None
    """Your own data: .npz, .npy, .csv, .tsv (or .gz of them) or a folder of images for file, .h5ad
    for h5ad, the public .npz for dsprites."""
    split_column: str | None = None
    """Column of a .csv or .h5ad file that says train, validation or test."""
    skip_unreadable: bool = False
    """Leave out files of a folder of images that cannot be read, with a warning that names them."""
    image_size: Annotated[int | None, Bounds(1, 10_000)] = None
    """Side in pixels of the square images to make of a folder of images of several sizes: resized,
    the longer side cropped at the centre."""
    colour: str = "auto"
    """Images of a folder: grey, rgb, or auto, as they are (all grey or all colour)."""
    layer: str | None = None
    """Layer of an .h5ad file with the raw counts; X without it."""
    label_column: str | None = None
    """Column of a .csv or .h5ad file with labels; of a .csv file label or labels by default."""
    index_column: str | None = None
    """Column of a .csv file that names the rows."""
    batch_column: str | None = None
    """Column of an .h5ad file with batches, which become covariates of encoder and decoder."""
    categorical_columns: tuple[str, ...] = ()
    """Further columns of an .h5ad file with categories, which become covariates too."""
    continuous_columns: tuple[str, ...] = ()
    """Columns of an .h5ad file with numbers, which become covariates, standardised by the training
    cells."""
    stratify: str | None = None
    """Split at random with each label in proportion in each part: label, or a column of an .h5ad
    file."""
    min_counts: Annotated[float | None, Bounds(0, 1e12)] = None
    """Leave out cells of an .h5ad file with fewer counts."""
    min_cells: Annotated[int | None, Bounds(0, 1_000_000_000)] = None
    """Leave out genes of an .h5ad file that fewer cells have."""
    backed: bool | None = None
    """Leave the counts of an .h5ad or .zarr file on disk, for files larger than memory."""
    size_factor: str = "given"
    """Size factors of counts: given, the data set's own if it has any, or observed, the total of
    each datum."""
    missing: str = "none"
    """Missing entries: none, or nan, where NaN in the data was not observed."""
    validation: Annotated[float | None, Bounds(0, 1e12)] = None
    """Held-out share (below 1) or number of the training data, 0 for none; the data set's own by
    default."""
    binarize: str = "none"
    """Binary pixels: none, dynamic (drawn anew every epoch, fixed for testing) or static."""

    def check(self) -> None:
        """Raise for a name that is in no table."""
        if self.dataset not in SOURCES and os.path.exists(self.dataset):  # noqa: PTH110 (any text)
            kind = "h5ad" if self.dataset.endswith((".h5ad", ".zarr")) else "file"
            raise InputError(
                f"unknown data set '{self.dataset}'; this file is read where 'dataset' is {kind}"
                f" and 'path' is {self.dataset}"
            )
        for kind, name, table in (
            ("data set", self.dataset, SOURCES),
            ("missing", self.missing, MISSING_MODES),
            ("size_factor", self.size_factor, SIZE_FACTORS),
            ("colour", self.colour, COLOURS),
        ):
            if name not in table:
                raise unknown_name(kind, name, table)

    def given(self, seed: int) -> dict[str, Any]:
        """Return the options that readers take, as far as they are set, by the readers' names."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("dataset", "size_factor", "binarize"):
            del values[name]
        values |= {"root": values.pop("data_root"), "missing": self.missing == "nan" or None}
        values["skip_unreadable"] = self.skip_unreadable or None
        values["colour"] = None if self.colour == "auto" else self.colour
        for name in ("categorical_columns", "continuous_columns"):
            values[name] = values[name] or None
        share = self.validation
        if isinstance(share, float) and share >= 1 and share.is_integer():
            values["validation"] = int(share)  # a number, which the command line spells as a float
        return {
            "seed": seed,
            **{name: value for name, value in values.items() if value is not None},
        }


def available() -> tuple[str, ...]:
    """Return the names that :func:`load` knows."""
    return tuple(SOURCES)


@public
def load(
    name: str,
    *,
    seed: int = 0,
    root: str | PathLike[str] | None = None,
    missing: bool = False,
    **options: Any,
) -> Splits:
    """Return a data set by its name.

    Args:
        name: One of :func:`available`; ``file`` is a person's own.
        seed: Of random splits and synthetic data. Pixels that are drawn once are the same for every
            seed, so that runs of different seeds are measured on the same data.
        root: Folder of downloaded data (the MNIST family); others have no use for it.
        missing: Take NaN in a ``file`` for entries that were not observed.
        **options: All else of :class:`DataOptions`, such as ``path``, ``validation`` and
            ``binarize``.

    Raises:
        InputError: for an unknown name, or an option that the data set cannot use.
    """
    if options.get("path") is not None:
        options["path"] = str(options["path"])
    data_root = None if root is None else str(root)
    return read(DataOptions(name, data_root, missing="nan" if missing else "none", **options), seed)


def read(options: DataOptions, seed: int, *, download: bool = True) -> Splits:
    """Return the data of some options.

    Args:
        options: The options.
        seed: Of random splits and synthetic data.
        download: Whether to download files that are absent.

    Raises:
        InputError: as of :func:`load`.
    """
    source, given = source_of(options, seed, download=download)
    return prepared(source.read(given), options)


def source_of(options: DataOptions, seed: int, *, download: bool) -> tuple[Source, dict[str, Any]]:
    """Return the source of some options, and the arguments of its function.

    Raises:
        InputError: as of :func:`load`.
    """
    options.check()
    source = SOURCES[options.dataset]
    given = options.given(seed) | {"download": download}
    for name in given.keys() - {*source.takes, *_SPLIT, *_MNIST}:
        takers = [f"'{taker}'" for taker, other in SOURCES.items() if name in other.takes]
        too = "".join(f"; {taker} takes it too" for taker in takers[1:])
        got = f"'{name}' = {str(getattr(options, name))!r} is for data set {takers[0]}"
        raise InputError(f"{got}, got data set '{options.dataset}'{too}")
    if source.file and "path" not in given:
        raise InputError(f"data set '{options.dataset}' needs 'path', {source.file}")
    return source, given


def prepared(splits: Splits, options: DataOptions) -> Splits:
    """Return the parts with binary pixels and observed size factors, where they are asked for."""
    splits = splits.binarized(options.binarize)
    if options.size_factor == "given":
        return splits
    from pyro_bvae.datasets.counts.checks import with_size_factor

    parts = {name: getattr(splits, name) for name in ("train", "validation", "test")}
    sized: dict[str, Any] = {
        name: with_size_factor(x.dense()) for name, x in parts.items() if x is not None
    }
    return replace(splits, **sized)
