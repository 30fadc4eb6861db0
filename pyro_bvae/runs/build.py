"""The data and the untrained model of a configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_bvae.core.context import Context, arguments
from pyro_bvae.core.errors import InputError, check_bytes, choices, unknown_name
from pyro_bvae.core.inputs.bounds import check_options
from pyro_bvae.core.inputs.public import exclusive, public
from pyro_bvae.core.precision import PRECISIONS
from pyro_bvae.core.seeds import WEIGHTS_STREAM, seeded
from pyro_bvae.datasets import Dataset, LazyDataset, Scaling, Splits
from pyro_bvae.datasets.matching import read_known
from pyro_bvae.datasets.record import DataRecord, num_categories
from pyro_bvae.datasets.registry import read
from pyro_bvae.datasets.splits import BINARIZE_MODES
from pyro_bvae.likelihoods import StandardizedScale
from pyro_bvae.networks import Standardize
from pyro_bvae.runs.catalogue import (
    COUNTS,
    LIKELIHOODS,
    MIXTURES,
    NETWORKS,
    POSTERIORS,
    PRIORS,
    REAL,
    TABLES,
)
from pyro_bvae.runs.config import SCHEDULES, TrainConfig, TrainingOptions
from pyro_bvae.training.schedules import OneCycle, as_schedule
from pyro_bvae.training.settings import Settings
from pyro_bvae.vae import BetaVAE, Decoder

# Hidden layers at most, and bytes for each weight in training: itself, its gradient, Adam's two
# averages.
_MOST_LAYERS, _TRAINED_WEIGHT = 1000, 16
# Data of a batch of which there may be fewer.
_BATCH = 128


@dataclass(frozen=True)
class Shape:
    """The properties of the data on which parts depend.

    Attributes:
        num_features: D.
        image_shape: ``(C, H, W)`` where the features are pixels.
        num_covariates: C, the number of covariates of each datum.
        has_size_factor: Whether each datum has a size factor.
        num_categories: One more than the largest value, which likelihoods of categories need.
        examples: Some of the data ``(K, D)``, as many as are asked for, with their contexts; for
            pseudo-inputs.
        missing: Whether entries may be missing.
        scaling: Mean and standard deviation of each feature, for models of standardized data.
    """

    num_features: int
    image_shape: tuple[int, int, int] | None = None
    num_covariates: int = 0
    has_size_factor: bool = False
    num_categories: int = 2
    examples: Callable[[int], tuple[Tensor, Context | None]] | None = None
    missing: bool = False
    scaling: Callable[[], Scaling] | None = None

    @classmethod
    def of(cls, data: Dataset | LazyDataset) -> Shape:
        """Return the shape of a data set."""
        size_factor, covariates = data.context or Context()

        def examples(count: int) -> tuple[Tensor, Context | None]:
            some = data[torch.randperm(len(data))[:count]].dense()
            return some.x, some.context

        return cls(
            data.num_features,
            data.image_shape,
            0 if covariates is None else covariates.shape[1],
            size_factor is not None,
            num_categories(data),
            examples,
            getattr(data, "missing", False),
            partial(Scaling.of, data),
        )

    @classmethod
    def recorded(cls, record: DataRecord) -> Shape:
        """Return the shape of the data of a run.

        Its examples are zeros, and its scaling changes nothing: trained ones follow.
        """
        size_factor, covariates = record.contexts or Context()

        def examples(count: int) -> tuple[Tensor, Context | None]:
            count = min(count, len(record.parts["train"].index))
            context = record.contexts and record.contexts.map(
                lambda part: part[:1].expand(count, -1)
            )
            return torch.zeros(count, record.num_features), context

        return cls(
            record.num_features,
            record.image_shape,
            0 if covariates is None else covariates.shape[1],
            size_factor is not None,
            record.num_categories,
            examples,
            record.missing,
            partial(Scaling.identity, record.num_features),
        )

    def standardized(self, scaling: Scaling) -> Shape:
        """Return the shape of the standardized data."""
        draw = self.examples

        def examples(count: int) -> tuple[Tensor, Context | None]:
            assert draw is not None
            x, context = draw(count)
            return scaling.apply(x), context

        return self if draw is None else replace(self, examples=examples)


@public
def check_config(config: TrainConfig) -> None:
    """Raise for a name or a number that can be seen to be wrong without data.

    Raises:
        InputError: with the option, its value, and the values it may have.
    """
    check_options(config)
    model, training = config.model, config.training
    names = {"schedule": SCHEDULES, "precision": PRECISIONS, "binarize": BINARIZE_MODES}
    for name, known in {**TABLES, **names}.items():
        if getattr(config, name) not in known:
            raise unknown_name(name, getattr(config, name), known)
    config.data.check()
    if model.standardize and model.likelihood not in REAL:
        known = choices({name: part for name, part in LIKELIHOODS.items() if name in REAL})
        raise InputError(
            f"'standardize' is for likelihoods of real numbers, {known}; got likelihood"
            f" '{model.likelihood}'"
        )
    if not model.hidden:
        raise InputError("'hidden' must name at least one width, got none")
    for name in ("hidden", "encoder_hidden"):
        if (count := len(getattr(model, name))) > _MOST_LAYERS:
            raise InputError(f"'{name}' must name at most {_MOST_LAYERS} widths, got {count}")
    if training.sleep and model.prior == "vamp":
        raise InputError(
            "'sleep' must be 0 with prior 'vamp', which looks through the guide and would"
            f" change with it; got {training.sleep}"
        )
    if training.target_rate is not None and training.beta == 0:
        raise InputError("'beta' must be positive where 'target_rate' adapts it, got 0.0")


def settings_of(training: TrainingOptions) -> Settings:
    """Return the settings of the fit that some options ask for.

    Raises:
        InputError: with the option and its value.
    """
    options = training.settings()
    del options["compile"]
    rate = OneCycle(options.pop("learning_rate"))
    return Settings(**{**options, "beta": as_schedule(options["beta"])}, learning_rate=rate)


@public
def load_data(
    config: TrainConfig, *, download: bool = False, record: DataRecord | None = None
) -> Splits:
    """Return the data set of a configuration; absent files are downloaded on request alone.

    Args:
        config: The configuration.
        download: Whether to download files that are absent.
        record: The data that a run was trained on: features and members of the parts are taken by
            name, and other data are refused.

    Raises:
        InputError: if the data cannot be read, or are others than those of the record.
    """
    if record is None:
        return read(config.data, config.training.seed, download=download)
    return read_known(config.data, config.training.seed, record, download=download)


@exclusive
def build_vae(config: TrainConfig, shape: Shape) -> BetaVAE:
    """Return the untrained model of a configuration, its weights drawn from its seed."""
    check_config(config)
    options = config.model
    network = NETWORKS[options.network].build
    family = POSTERIORS[options.posterior].build()
    missing = shape.missing or config.data.missing == "nan"
    covariates = shape.num_covariates
    with seeded(config.training.seed, WEIGHTS_STREAM):
        likelihood: Any = LIKELIHOODS[options.likelihood].build(options, shape)
        num_outputs = family.num_outputs(options.latent_dim)

        encoding = replace(options, hidden=options.encoder_hidden or options.hidden)

        def networks() -> list[nn.Module]:
            return [
                network(options, shape, likelihood.parameters_per_feature, decodes=True),
                network(encoding, shape, num_outputs, decodes=False),
            ]

        with torch.device("meta"):  # which takes no memory
            _check_trainable(networks())
        decodes, encodes = networks()
        decoder = Decoder(decodes, likelihood, num_covariates=covariates)
        inputs: Any = torch.log1p if options.likelihood in COUNTS else None
        if options.standardize:
            scaling = _scaling(shape)
            likelihood.scale = StandardizedScale(likelihood.scale, scaling.mean, scaling.scale)
            inputs, shape = Standardize(scaling.mean, scaling.scale), shape.standardized(scaling)
        encoder = family(encodes, num_covariates=covariates, inputs=inputs)
        if options.prior in MIXTURES:
            count = options.prior_components or MIXTURES[options.prior]
            numbers = min(config.training.batch_size, _BATCH) * count * options.latent_dim
            check_bytes(_TRAINED_WEIGHT * numbers, f"a step with {count} components of the prior")
        support = getattr(likelihood, "support", constraints.real)
        of_pseudo_inputs = _OfStandardized(encoder) if options.standardize else encoder
        prior = PRIORS[options.prior].build(options, shape, of_pseudo_inputs, support)
        return BetaVAE(prior, decoder, encoder, missing=missing)


def _scaling(shape: Shape) -> Scaling:
    if shape.scaling is None:
        raise InputError("'standardize' takes mean and deviation from the data, and none are given")
    return shape.scaling()


class _OfStandardized(nn.Module):
    """An encoder at standardized data, among which the pseudo-inputs of a prior are.

    In the data's own units they would move by the learning rate, whatever the units are.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder, self.latent_dim = encoder, encoder.latent_dim
        self.num_features = encoder.num_features

    def forward(self, u: Tensor, context: Context | None = None) -> Any:
        return self.encoder(*arguments(self.encoder.inputs.undo(u), context))


def _check_trainable(networks: list[nn.Module]) -> None:
    """Raise if the memory is too small to train networks."""
    weights = sum(weight.numel() for network in networks for weight in network.parameters())
    check_bytes(_TRAINED_WEIGHT * weights, f"training networks of {weights} weights")
