"""The configuration of a run, as data: what a command line, a ``config.json`` and a person can all spell."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from pyro_bvae import datasets
from pyro_bvae.core.atomic_files import atomic_write
from pyro_bvae.core.errors import InputError, check_beta, unknown_name
from pyro_bvae.runs.catalogue import TABLES, pick
from pyro_bvae.training import CosineWarmup, Cyclical, LinearWarmup, OneCycle, Schedule, TargetRate
from pyro_bvae.training.schedules import as_schedule
from pyro_bvae.training.settings import Settings

MISSING_MODES = ("none", "nan")


SCHEDULES = ("linear", "cosine", "cyclical", "constant")


SIZE_FACTORS = ("given", "observed")


@dataclass(frozen=True)
class TrainConfig:
    """What a run is made of: data, parts and training."""

    dataset: str = "digits"
    """Data set: digits, mnist, fashion-mnist, kmnist, sprites, sprites-32, sprites-coloured, sprites-on-noise,
    sprites-on-texture, linear-gaussian, counts (simulated), or your own: file, dsprites or h5ad
    (with --path)."""
    data_root: str | None = None
    """Folder with downloaded data, such as the one that holds MNIST/raw."""
    path: str | None = None
    """Your own data: .npz, .npy, .csv or a folder of images for file, .h5ad for h5ad, the public .npz for dsprites."""
    split_column: str | None = None
    """Column of a .csv or .h5ad file that says train, validation or test."""
    layer: str | None = None
    """Layer of an .h5ad file with the raw counts; X without it."""
    label_column: str | None = None
    """Column of an .h5ad file with labels."""
    batch_column: str | None = None
    """Column of an .h5ad file with batches, which become covariates of encoder and decoder."""
    min_counts: float | None = None
    """Leave out cells of an .h5ad file with fewer counts."""
    min_cells: int | None = None
    """Leave out genes of an .h5ad file that fewer cells have."""
    backed: bool | None = None
    """Leave the counts of an .h5ad file on disk, for files larger than memory."""
    size_factor: str = "given"
    """Size factors of counts: given, the data set's own if it has any, or observed, the total of each datum."""
    missing: str = "none"
    """Missing entries: none, or nan, where NaN in the data was not observed."""
    validation: float | None = None
    """Held-out share (below 1) or number of the training data, 0 for none; the data set's own by default."""
    binarize: str = "none"
    """Binary pixels: none, dynamic (drawn anew every epoch, fixed for testing) or static."""
    prior: str = "normal"
    """Prior p(z): normal, learned-normal, laplace, student-t, mixture, vamp, flow or zuko."""
    prior_components: int | None = None
    """Components of the mixture prior (10), pseudo-inputs of vamp (500)."""
    likelihood: str = "bernoulli"
    """Likelihood p(x|z): bernoulli, autoregressive-bernoulli, continuous-bernoulli, normal (one learned scale),
    normal-per-feature, normal-fixed, normal-decoder, laplace, student-t, discretized-logistic
    (8-bit pixels), categorical, poisson, negative-binomial or zero-inflated-negative-binomial."""
    likelihood_scale: float = 1.0
    """Scale of normal-fixed; where the learned scales start."""
    dispersion: str = "feature"
    """Dispersion of negative binomials: feature (one for each), feature-batch, shared or decoder."""
    posterior: str = "normal"
    """Guide q(z|x): normal, full-rank, low-rank, flow or mixture."""
    network: str = "mlp"
    """Networks of encoder and decoder: mlp, residual, or convolutional (images of 28, 32 or 64 pixels)."""
    hidden: tuple[int, ...] = (400, 400)
    """Widths of the hidden layers; of residual blocks; a convolutional network takes the last for its dense layer."""
    latent_dim: int = 20
    """Number of latents."""
    beta: float = 1.0
    """Weight of the KL in the objective, 0 or more."""
    schedule: str = "linear"
    """How β comes about: linear or cosine (a warm-up from 0), cyclical (four of them), or constant."""
    warmup_epochs: float | None = None
    """Epochs of the linear or cosine warm-up, a fifth of all by default; 0 for a constant β."""
    target_rate: float | None = None
    """Rate in nats to train to, by a β that is found on the way and starts at --beta; instead of a schedule."""
    epochs: int = 30
    """Passes over the training data."""
    batch_size: int = 128
    """Data in a step."""
    learning_rate: float = 3e-3
    """Highest learning rate of the one-cycle schedule."""
    start_at_mean: bool = False
    """Start the decoder's last bias at the best of a model without latents, such as the logit of the data's mean."""
    precision: str = "float32"
    """What the networks are run in while training: float32 or bf16."""
    compile: bool | None = None
    """Compile the training step; by default where the run is long enough to repay the seconds that takes."""
    gradient_clip: float | None = 200.0
    """Upper limit on the global norm of the gradient per datum; None for no limit."""
    early_stopping: int | None = None
    """Stop after so many epochs without a better validation objective; None for never."""
    seed: int = 0
    """Seed of weights, data order, noise and random splits."""
    device: str = "cpu"
    """Where to train: cpu, cuda, cuda:1, ..."""

    def beta_schedule(self) -> float | Schedule:
        """Return β as :func:`~pyro_bvae.fit` takes it."""
        if self.target_rate is not None:
            return TargetRate(self.target_rate, start=self.beta)
        if self.schedule == "cyclical":
            return Cyclical(self.beta)
        warmup_epochs = self.resolved().warmup_epochs
        if not warmup_epochs or self.schedule == "constant":
            return self.beta
        return (CosineWarmup if self.schedule == "cosine" else LinearWarmup)(
            self.beta, warmup_epochs
        )

    def resolved(self) -> TrainConfig:
        """Return the configuration with what follows from other fields filled in: what a run writes down."""
        # Folders as absolute paths, so that the run can be read from anywhere.
        return replace(
            self,
            data_root=None if self.data_root is None else str(Path(self.data_root).resolve()),
            path=None if self.path is None else str(Path(self.path).resolve()),
            warmup_epochs=self.epochs / 5 if self.warmup_epochs is None else self.warmup_epochs,
        )

    def check(self) -> None:
        """Raise for a name or a number that can be seen to be wrong without data."""
        check_beta(self.beta)
        warmup_epochs = self.warmup_epochs or 0.0
        if not (math.isfinite(warmup_epochs) and warmup_epochs >= 0):
            raise InputError(
                f"'warmup_epochs' must be non-negative and finite, got {self.warmup_epochs}"
            )
        if not isinstance(self.latent_dim, int) or self.latent_dim < 1:
            raise InputError(f"'latent_dim' must be a positive integer, got {self.latent_dim}")
        Settings(
            as_schedule(self.beta_schedule()),
            OneCycle(self.learning_rate),
            self.epochs,
            self.batch_size,
            self.gradient_clip,
            self.early_stopping,
            self.seed,
            self.precision,
        )
        if self.prior_components is not None and self.prior_components < 1:
            raise InputError(
                f"'prior_components' must be a positive integer, got {self.prior_components}"
            )
        if self.schedule not in SCHEDULES:
            raise unknown_name("schedule", self.schedule, SCHEDULES)
        if self.missing not in MISSING_MODES:
            raise unknown_name("missing", self.missing, MISSING_MODES)
        if self.size_factor not in SIZE_FACTORS:
            raise unknown_name("size_factor", self.size_factor, SIZE_FACTORS)
        for field, table in TABLES.items():
            pick(field, getattr(self, field), table)
        if self.dataset not in datasets.available():
            raise unknown_name("data set", self.dataset, datasets.available())


_TYPES: dict[str, Any] = get_type_hints(TrainConfig)


def write_config(config: TrainConfig, path: Path) -> None:
    """Write a configuration as JSON."""
    with atomic_write(path) as stream:
        json.dump(asdict(config), stream, indent=2)
        stream.write("\n")


def read_config(path: Path) -> TrainConfig:
    """Read what :func:`write_config` wrote.

    Raises:
        InputError: if the file is missing, no JSON, or has fields that are none of a configuration.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} is not a run directory: it has no {path.name}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict) or not set(values) <= set(_TYPES):
        surplus = (
            sorted(set(values) - set(_TYPES)) if isinstance(values, dict) else type(values).__name__
        )
        raise InputError(f"{path} is no configuration of pyro_bvae: it has {surplus}")
    for name, value in values.items():
        if not _is_of_type(value, _TYPES[name]):
            raise InputError(f"{path} is no configuration of pyro_bvae: '{name}' is {value!r}")
    config = TrainConfig(**values)
    return replace(config, hidden=tuple(config.hidden))


def _is_of_type(value: Any, kind: Any) -> bool:
    """Return whether JSON's value can be one of a field's type; JSON has lists for tuples, and 4 may be 4.0."""
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(isinstance(item, int) for item in value)
    kinds = get_args(kind) or (kind,)
    return isinstance(value, (*kinds, int) if float in kinds else kinds)
