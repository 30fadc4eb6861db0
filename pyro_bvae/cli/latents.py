"""The commands of latents: ``pyro-bvae {traverse,interpolate,embed,reconstruct,impute} RUN``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pyro_bvae import latents, plots, runs
from pyro_bvae.cli.words.output import written
from pyro_bvae.core.atomic_files import atomic_write
from pyro_bvae.core.disk.making import making
from pyro_bvae.core.errors import InputError, unknown_name
from pyro_bvae.core.inputs.bounds import Bounds
from pyro_bvae.training.settings import Seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from pyro_bvae.datasets import Dataset, LazyDataset
    from pyro_bvae.runs import Run

_PATHS = {"linear": "LinearPath", "spherical": "SphericalPath", "geodesic": "GeodesicPath"}
_NUMBERS = (".npz", ".csv")
_STEPS, _FRAMES, _MOST_STEPS = 9, 24, 1_000_000
# Data that a figure shows of a table, which has as many as there are.
_SHOWN, _SHOWN_FEATURES = 10, 6
# Images in a figure, and frames of an animation, at most.
_MOST_SHOWN = 1000
_DPI = 150


@dataclass(frozen=True)
class _OfRun:
    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    output: Path | None = None
    """File to write, by its ending .png (a figure), .gif (an animation, of a traversal), .npz
    (arrays) or .csv (a table); in the run's folder latents by default."""
    checkpoint: str = "best"
    """Which checkpoint: best or last."""
    device: str = "cpu"
    """Where to compute."""

    def file(self, name: str, *suffixes: str) -> Path:
        """Return the file to write, of one of these endings."""
        from pyro_bvae.evaluation.latent_results import check_suffix

        path = self.output or self.directory / "latents" / name
        check_suffix(path, suffixes)
        return path

    def load(self) -> Run:
        """Return the run."""
        runs.check_device(self.device)
        return runs.load(self.directory, checkpoint=self.checkpoint, device=self.device)


@dataclass(frozen=True)
class _OfData(_OfRun):
    data: Path | None = None
    """New data, a file or folder of any format that is read for training; the run's own by
    default."""
    split: Literal["train", "validation", "test"] = "test"
    """Which part of the run's own data to look at."""

    def open(self) -> tuple[Run, Dataset | LazyDataset]:
        """Return the run, and the new data or the part of its own."""
        run = self.load()
        return run, run.rows(self.data, self.split)

    def parts(self, run: Run, data: Dataset | LazyDataset) -> Any:
        """Return the part of the run in which each datum is, ``(N,)``."""
        return _parts(run, data, self.data is not None, self.split)


@dataclass(frozen=True)
class Traverse(_OfData):
    """Move one latent after another and decode: a figure, an animation, or numbers."""

    latents: tuple[int, ...] = ()
    """The latents to move; by default the active ones, by decreasing KL."""
    datum: int = 0
    """Number of the datum whose code is moved."""
    num_steps: Annotated[int | None, Bounds(1, _MOST_STEPS)] = None
    """Values of each latent; 9 by default, 24 for an animation."""
    deviations: Annotated[float | None, Bounds(0, 1e6, above=True)] = None
    """Move over so many standard deviations of the prior to either side; by default over the middle
    98% of the codes of the data."""

    def run(self) -> None:
        """Run the command."""
        path = self.file("traversal.png", ".png", ".gif", *_NUMBERS)
        steps = (
            (_FRAMES if path.suffix.lower() == ".gif" else _STEPS)
            if self.num_steps is None
            else self.num_steps
        )
        _check_shown("num_steps", steps, path)
        values: latents.ValueRange = latents.AggregateRange()
        if self.deviations is not None:
            values = latents.PriorRange(self.deviations)
        run, data = self.open()
        if path.suffix.lower() == ".gif" and data.image_shape is None:
            raise InputError(
                f"'output' can be an animation of images only, got {path} for data that are none"
            )
        results = latents.traverse(
            run,
            data,
            latents=self.latents or None,
            values=values,
            num_steps=steps,
            datum=self.datum,
        )
        if path.suffix.lower() in _NUMBERS:
            results.save(path)
        elif data.image_shape is None:
            _write_figure(plots.traversal_lines(results, data.feature_names), path)
        elif path.suffix.lower() == ".gif":
            plots.write_gif(plots.traversal_frames(results, data.image_shape), path)
        else:
            around = f"the code of {self.split} datum {self.datum}"
            _write_figure(plots.traversal_grid(results, data.image_shape, around), path)
        nats = (
            [""] * len(results.latents)
            if results.kl is None
            else [f" ({kl:.2f} nats)" for kl in results.kl]
        )
        print(
            "latents: "
            + ", ".join(f"z{latent}{kl}" for latent, kl in zip(results.latents, nats, strict=True))
        )
        written(path)


@dataclass(frozen=True)
class Interpolate(_OfData):
    """Decode on the way between the codes of two data, and draw it."""

    pairs: tuple[int, ...] = (0, 1)
    """Numbers of the data, in pairs: first to second, third to fourth, ..."""
    paths: tuple[str, ...] = ("linear",)
    """The paths: linear, spherical, geodesic."""
    num_steps: Annotated[int, Bounds(1, _MOST_STEPS)] = _STEPS
    """Codes on each way, both ends among them."""

    def run(self) -> None:
        """Run the command."""
        path = self.file("interpolation.png", ".png", *_NUMBERS)
        for name in self.paths:
            if name not in _PATHS:
                raise unknown_name("path", name, _PATHS)
        if not self.paths or (len(self.paths) > 1 and path.suffix.lower() in _NUMBERS):
            raise InputError(
                f"'paths' must be one for {path}, got {', '.join(self.paths) or 'none'}"
            )
        if not self.pairs or len(self.pairs) % 2:
            raise InputError(f"'pairs' must be pairs of numbers, got {len(self.pairs)} numbers")
        _check_shown("num_steps", self.num_steps, path, len(self.paths) * len(self.pairs) // 2)
        run, data = self.open()
        outside = [number for number in self.pairs if not 0 <= number < len(data)]
        if outside:
            raise InputError(
                f"'pairs' must be among the numbers 0 to {len(data) - 1}, got {outside[0]}"
            )
        ends = [data[list(self.pairs[place::2])] for place in (0, 1)]
        results = {
            name: latents.interpolate(
                run, *ends, path=getattr(latents, _PATHS[name])(), num_steps=self.num_steps
            )
            for name in self.paths
        }
        if path.suffix.lower() in _NUMBERS:
            results[self.paths[0]].save(path)
        elif data.image_shape is None:
            _write_figure(plots.interpolation_lines(results, data.feature_names), path)
        else:
            _write_figure(plots.interpolation_strips(results, data.image_shape), path)
        written(path)


@dataclass(frozen=True)
class Embed(_OfRun):
    """Write the codes of the data, beside their labels and factors, to an .npz or a .csv."""

    data: Path | None = None
    """New data, a file or folder of any format that is read for training; the run's own by
    default."""
    split: Literal["train", "validation", "test", "all"] = "test"
    """Which part of the run's own data to encode."""
    scales: bool = False
    """Write the posterior standard deviations too."""

    def run(self) -> None:
        """Run the command."""
        path = self.file("embedding.npz", *_NUMBERS)
        run = self.load()
        parts: list[str] = [self.split]
        if self.split == "all":
            validated = run.splits is not None and run.splits.validation is not None
            parts = ["train", *(["validation"] if validated else []), "test"]
        results = [self._codes(run, part) for part in parts]
        whole = reduce(latents.Embedding.joined, results)
        whole.save(path)
        count, size = whole.means.shape
        print(f"{count} codes of {size} latents")
        written(path)

    def _codes(self, run: Run, part: str) -> latents.Embedding:
        """Return the codes of a part, or of new data, with the part of each."""
        data = run.rows(self.data, part)
        split = _parts(run, data, self.data is not None, part)
        return replace(latents.embed(run, data, scales=self.scales), split=split)


@dataclass(frozen=True)
class Reconstruct(_OfData):
    """Draw or write the reconstructions of the data from their codes."""

    num_data: Annotated[int | None, Bounds(1, 1_000_000_000)] = None
    """How many, the first ones; by default as many as a figure shows, or all for numbers."""

    def run(self) -> None:
        """Run the command."""
        path = self.file("reconstructions.png", ".png", *_NUMBERS)
        _check_shown("num_data", self.num_data or 1, path)
        run, data = self.open()
        shown = _SHOWN if data.image_shape is not None else _SHOWN_FEATURES
        most = self.num_data or (len(data) if path.suffix.lower() in _NUMBERS else shown)
        chosen = data[:most]
        means = latents.reconstruct(run, chosen)
        if path.suffix.lower() in _NUMBERS:
            arrays = {"x": chosen.x, "reconstructions": means}
            rows = {"index": chosen.index, "split": self.parts(run, chosen)}
            _write_data(path, data.feature_names, "reconstructions", rows, **arrays)
        elif data.image_shape is None:
            title = "Data and their reconstructions"
            _write_figure(
                plots.features(chosen.x, means, title, data.feature_names, num=most), path
            )
        else:
            _write_figure(plots.reconstructions(chosen.x, means, data.image_shape, num=most), path)
        written(path)


@dataclass(frozen=True)
class Impute(_OfData):
    """Write the data with reconstructions where entries are missing."""

    def run(self) -> None:
        """Run the command."""
        import torch

        path = self.file("imputed.csv", *_NUMBERS)
        run, data = self.open()
        if not run.vae.missing:
            raise InputError(
                f"{self.directory} was not trained for missing entries: train it with"
                " '--missing nan'"
            )
        filled = [
            run.vae.impute(*args) for args in data.batches(1024, seed=0, epoch=0, shuffle=False)
        ]
        missing = torch.isnan(data.x)
        rows = {"index": data.index, "split": self.parts(run, data)}
        _write_data(path, data.feature_names, "x", rows, x=torch.cat(filled), missing=missing)
        print(f"{int(missing.sum())} missing entries of {len(data)} data filled")
        written(path)


@dataclass(frozen=True)
class Generate(_OfRun):
    """Draw or write new data: latents from the prior, decoded."""

    num_samples: Annotated[int, Bounds(1, 1_000_000_000)] = 40
    """How many."""
    temperature: Annotated[float, Bounds(0, 1e6)] = 1.0
    """Scales the spread of the prior: below 1, data are more typical and less varied."""
    noise: bool = False
    """Draw from the likelihood too, instead of taking its mean."""
    seed: Seed = 0
    """Seed of the draws."""

    def run(self) -> None:
        """Run the command."""
        path = self.file("samples.png", ".png", *_NUMBERS)
        _check_shown("num_samples", self.num_samples, path)
        run = self.load()
        made = latents.generate(
            run, self.num_samples,
            temperature=self.temperature, noise=self.noise, seed=self.seed,
        )  # fmt: skip
        title = f"Draws from the prior at temperature {self.temperature:g}, decoded"
        if path.suffix.lower() in _NUMBERS:
            _write_data(path, run.feature_names, "x", x=made)
        elif run.image_shape is None:
            few = min(_SHOWN_FEATURES, self.num_samples)
            _write_figure(plots.features(made, None, title, run.feature_names, num=few), path)
        else:
            figure = plots.image_grid(made, run.image_shape, title, num=self.num_samples)
            _write_figure(figure, path)
        written(path)


#: The commands by name.
COMMANDS: dict[str, Any] = {
    "traverse": Traverse,
    "interpolate": Interpolate,
    "embed": Embed,
    "reconstruct": Reconstruct,
    "generate": Generate,
    "impute": Impute,
}


def _check_shown(name: str, count: int, path: Path, rows: int = 1) -> None:
    """Raise for more images, in so many rows, than a figure shows."""
    most, kind = _MOST_SHOWN // rows, f" of {rows} paths" if rows > 1 else ""
    if count > most and path.suffix.lower() not in _NUMBERS:
        raise InputError(
            f"'{name}' must be at most {most} for a figure{kind}, got {count}; .npz and .csv files"
            " hold more"
        )


def _parts(run: Run, data: Dataset | LazyDataset, is_given: bool, part: str) -> Any:
    """Return the part of a run in which each datum is, ``(N,)``, of its own data or given ones."""
    import numpy as np

    if is_given and run.record is not None:
        return run.record.part_of(data)
    return np.full(len(data), "new" if is_given else part)


def _write_data(
    path: Path,
    names: Sequence[str],
    name: str,
    rows: Mapping[str, Any] = MappingProxyType({}),
    **arrays: Tensor,
) -> None:
    """Write arrays ``(N, D)``; a ``.csv`` has the columns of the one that is named, by features.

    Args:
        path: The file.
        names: Names of the features, or none.
        name: The array that a ``.csv`` has.
        rows: The first columns: the identity of each row.
        **arrays: The arrays of an ``.npz``.
    """
    from pyro_bvae.evaluation.latent_results import as_arrays, columns_of, write_numbers

    written = as_arrays({**rows, **arrays, "feature_names": names})
    write_numbers(path, written, lambda: {**rows, **columns_of(names or "x", written[name])})


def _write_figure(figure: Figure, path: Path) -> None:
    with making(path.parent), atomic_write(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=_DPI)
