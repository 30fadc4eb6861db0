"""Configurations: dataclasses that a command line, a ``config.json`` and a person can all spell.

This is the one place where names become parts. A new prior, likelihood, posterior or network is one more line in its
table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from torch import nn

from pyro_bvae import datasets
from pyro_bvae.errors import InputError, check_beta, unknown_name
from pyro_bvae.files import atomic_write
from pyro_bvae.likelihoods import BernoulliLikelihood, DecoderScale, LearnedScale, NormalLikelihood
from pyro_bvae.networks import MLP, ConvolutionalDecoder, ConvolutionalEncoder
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.randomness import WEIGHTS_STREAM, seeded
from pyro_bvae.training import LinearWarmup, OneCycle, Schedule
from pyro_bvae.training.fit import Settings
from pyro_bvae.training.schedules import as_schedule
from pyro_bvae.vae import BetaVAE, Decoder

_Part = TypeVar("_Part")


@dataclass(frozen=True)
class TrainConfig:
    """What a run is made of: data, parts and training."""

    dataset: str = "digits"
    """Data set: digits, mnist, fashion-mnist, kmnist, sprites, sprites-32, linear-gaussian, or file (with --path)."""
    data_root: str | None = None
    """Folder with downloaded data, such as the one that holds MNIST/raw."""
    path: str | None = None
    """Your own data: .npz, .npy, .csv, or a folder of images."""
    split_column: str | None = None
    """Column of a .csv file that says train, validation or test."""
    validation: float | None = None
    """Held-out share (below 1) or number of the training data, 0 for none; the data set's own by default."""
    binarize: str = "none"
    """Binary pixels: none, dynamic (drawn anew every epoch, fixed for testing) or static."""
    prior: str = "normal"
    """Prior p(z): normal."""
    likelihood: str = "bernoulli"
    """Likelihood p(x|z): bernoulli, normal (one learned scale), normal-per-feature, normal-fixed or normal-decoder."""
    likelihood_scale: float = 1.0
    """Scale of normal-fixed; where normal and normal-per-feature start."""
    posterior: str = "normal"
    """Guide q(z|x): normal."""
    network: str = "mlp"
    """Networks of encoder and decoder: mlp, or convolutional (images of 28, 32 or 64 pixels)."""
    hidden: tuple[int, ...] = (400, 400)
    """Widths of the hidden layers; a convolutional network takes the last for its one dense layer."""
    latent_dim: int = 20
    """Number of latents."""
    beta: float = 1.0
    """Weight of the KL in the objective, 0 or more."""
    warmup_epochs: float | None = None
    """Epochs over which β rises linearly from 0, a fifth of all by default; 0 for a constant β."""
    epochs: int = 30
    """Passes over the training data."""
    batch_size: int = 128
    """Data in a step."""
    learning_rate: float = 3e-3
    """Highest learning rate of the one-cycle schedule."""
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
        warmup_epochs = self.resolved().warmup_epochs
        return LinearWarmup(self.beta, warmup_epochs) if warmup_epochs else self.beta

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
            raise InputError(f"'warmup_epochs' must be non-negative and finite, got {self.warmup_epochs}")
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
        )
        for field, table in _TABLES.items():
            pick(field, getattr(self, field), table)
        if self.dataset not in datasets.available():
            raise unknown_name("data set", self.dataset, datasets.available())


_TYPES: dict[str, Any] = get_type_hints(TrainConfig)


@dataclass(frozen=True)
class Shape:
    """What parts need to know of the data."""

    num_features: int
    image_shape: tuple[int, int, int] | None


def pick(kind: str, name: str, table: Mapping[str, _Part]) -> _Part:
    """Return an entry of a table by its name.

    Raises:
        InputError: for an unknown name, with the nearest one.
    """
    if name not in table:
        raise unknown_name(kind, name, table)
    return table[name]


def _image_shape(shape: Shape) -> tuple[int, int, int]:
    if shape.image_shape is None:
        raise InputError("network 'convolutional' needs images, but this data set's features are no pixels: use mlp")
    return shape.image_shape


PRIORS: dict[str, Callable[[TrainConfig], nn.Module]] = {"normal": lambda config: NormalPrior(config.latent_dim)}
LIKELIHOODS: dict[str, Callable[[TrainConfig, Shape], nn.Module]] = {
    "bernoulli": lambda config, shape: BernoulliLikelihood(),
    "normal": lambda config, shape: NormalLikelihood(LearnedScale(initial=config.likelihood_scale)),
    "normal-per-feature": lambda config, shape: NormalLikelihood(
        LearnedScale(shape.num_features, initial=config.likelihood_scale)
    ),
    "normal-fixed": lambda config, shape: NormalLikelihood(config.likelihood_scale),
    "normal-decoder": lambda config, shape: NormalLikelihood(DecoderScale()),
}
POSTERIORS: dict[str, Callable[[nn.Module], nn.Module]] = {"normal": NormalPosterior}
# Name -> (encoder network with so many outputs, decoder network with so many parameters a feature).
NETWORKS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
    "mlp": (
        lambda config, shape, outputs: MLP(shape.num_features, outputs, config.hidden),
        lambda config, shape, per_feature: MLP(
            config.latent_dim, per_feature * shape.num_features, config.hidden[::-1]
        ),
    ),
    "convolutional": (
        lambda config, shape, outputs: ConvolutionalEncoder(_image_shape(shape), outputs, config.hidden[-1]),
        lambda config, shape, per_feature: ConvolutionalDecoder(
            config.latent_dim, _image_shape(shape), per_feature, config.hidden[-1]
        ),
    ),
}
_TABLES: dict[str, Mapping[str, Any]] = {
    "prior": PRIORS,
    "likelihood": LIKELIHOODS,
    "posterior": POSTERIORS,
    "network": NETWORKS,
}


def load_data(config: TrainConfig) -> datasets.Splits:
    """Return the data set of a configuration."""
    validation = config.validation
    if isinstance(validation, float) and validation >= 1 and validation.is_integer():
        validation = int(validation)  # a number of data, which the command line spells as it spells a share
    return datasets.load(
        config.dataset,
        root=config.data_root,
        path=config.path,
        split_column=config.split_column,
        validation=validation,
        binarize=config.binarize,
        seed=config.seed,
    )


def build_vae(config: TrainConfig, shape: Shape) -> BetaVAE:
    """Return the untrained model of a configuration, its weights drawn from the configuration's seed."""
    config.check()
    if not config.hidden:
        raise InputError("'hidden' must name at least one width, got none")
    encoder_network, decoder_network = NETWORKS[config.network]
    with seeded(config.seed, WEIGHTS_STREAM):
        likelihood = LIKELIHOODS[config.likelihood](config, shape)
        decoder = Decoder(decoder_network(config, shape, likelihood.parameters_per_feature), likelihood)
        encoder = POSTERIORS[config.posterior](encoder_network(config, shape, 2 * config.latent_dim))
        return BetaVAE(PRIORS[config.prior](config), decoder, encoder)


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
        surplus = sorted(set(values) - set(_TYPES)) if isinstance(values, dict) else type(values).__name__
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
