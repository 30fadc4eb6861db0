"""MNIST and its two siblings, through torchvision: local files first, then a download."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pyro_bvae.core.errors import AbsentDataError, InputError
from pyro_bvae.core.inputs.public import public
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.datasets.splits import Splits, held_out_count

ROOT_VARIABLE = "PYRO_BVAE_DATA"

_LOG = logging.getLogger(__name__)

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_Path = str | os.PathLike[str]


@public
def mnist(root: _Path | None = None, *, validation: float = 5000, download: bool = True) -> Splits:
    """Return MNIST (LeCun et al., 1998): grey values in [0, 1], ``(N, 784)``, with labels.

    Args:
        root: Folder that holds ``MNIST/raw``; by default ``$PYRO_BVAE_DATA`` or
            ``~/.cache/pyro_bvae``.
        validation: The last so many training images (a number, or a fraction) validate; 0 for none.
        download: Whether to download files that are absent.

    Raises:
        InputError: if the files are absent and cannot be downloaded, or cannot be read.
    """
    return _load("MNIST", "mnist", root, validation, download)


@public
def fashion_mnist(
    root: _Path | None = None, *, validation: float = 5000, download: bool = True
) -> Splits:
    """Return Fashion-MNIST (Xiao et al. 2017), from ``FashionMNIST/raw``, as :func:`mnist` does."""
    return _load("FashionMNIST", "fashion-mnist", root, validation, download)


@public
def kmnist(root: _Path | None = None, *, validation: float = 5000, download: bool = True) -> Splits:
    """Return Kuzushiji-MNIST (Clanuwat et al. 2018), from ``KMNIST/raw``, as :func:`mnist` does."""
    return _load("KMNIST", "kmnist", root, validation, download)


def data_root(root: _Path | None = None) -> Path:
    """Return the folder of data: ``root``, ``$PYRO_BVAE_DATA`` or ``~/.cache/pyro_bvae``."""
    return Path(root or os.environ.get(ROOT_VARIABLE) or "~/.cache/pyro_bvae").expanduser()


def _load(
    class_name: str, name: str, root: _Path | None, validation: float, download: bool
) -> Splits:
    source = getattr(_torchvision_datasets(), class_name)
    folder = data_root(root)
    _fetch(source, folder, class_name, download)
    train, test = _part(source, folder, train=True), _part(source, folder, train=False)
    count = len(train) - held_out_count("validation", validation, len(train))
    return Splits(
        train=train[:count],
        validation=train[count:] if count < len(train) else None,
        test=test,
        name=name,
    )


def _torchvision_datasets() -> ModuleType:
    try:
        from torchvision import datasets
    except (
        ImportError,
        RuntimeError,
        OSError,
    ) as error:  # a build for another torch raises RuntimeError
        raise InputError(
            f"torchvision cannot be imported ({_one_line(error)}); install the build that "
            "belongs to torch "
            f"{torch.__version__}, from the same package index as torch: pip install "
            "--force-reinstall torchvision"
        ) from error
    return datasets


def _fetch(source: Any, folder: Path, class_name: str, download: bool) -> None:
    """Download unless all four files are there; a failure becomes one line."""
    raw = folder / class_name / "raw"
    if all((raw / file).is_file() for file in _FILES):
        return
    reason = "download is off, but for training"
    if download:
        made = [path for path in (raw, *raw.parents) if not path.exists()]
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                source(folder, train=True, download=True)
            _LOG.warning("%s was downloaded into %s", class_name, raw)
            return
        except (OSError, RuntimeError, ValueError, EOFError) as error:  # URLError is an OSError
            reason = f"the download failed: {_one_line(error)}"
            if raw in made:
                shutil.rmtree(raw, ignore_errors=True)
            for path in made[1:]:
                with contextlib.suppress(OSError):  # of a folder that has other files by now
                    path.rmdir()
    raise AbsentDataError(
        f"{class_name} is not in {raw} ({reason}); put these files there: {', '.join(_FILES)}"
    )


def _part(source: Any, folder: Path, *, train: bool) -> Dataset:
    try:
        part = source(folder, train=train, download=False)
    except Exception as error:  # damaged files bring forth any
        where = folder / source.__name__ / "raw"
        raise InputError(
            f"the {'training' if train else 'test'} files in {where} cannot be read "
            f"({_one_line(error)}); "
            "remove them to download them again"
        ) from error
    height, width = part.data.shape[1:]
    return Dataset(
        x=part.data.flatten(1).float() / 255,
        labels=part.targets.long(),
        image_shape=(1, int(height), int(width)),
        label_names=tuple(name.split(" - ")[0] for name in part.classes),  # "7 - seven" is 7
    )


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3]) or type(error).__name__
