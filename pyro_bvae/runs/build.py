"""The data and the untrained model of a configuration."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError, check_beta, check_count, unknown_name
from pyro_bvae.core.seeds import WEIGHTS_STREAM, seeded
from pyro_bvae.datasets import Dataset, LazyDataset, Splits
from pyro_bvae.datasets.registry import read
from pyro_bvae.runs.catalogue import COUNTS, LIKELIHOODS, NETWORKS, POSTERIORS, PRIORS, TABLES
from pyro_bvae.runs.config import SCHEDULES, TrainConfig
from pyro_bvae.training.schedules import OneCycle, as_schedule
from pyro_bvae.training.settings import Settings
from pyro_bvae.vae import BetaVAE, Decoder


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
    """

    num_features: int
    image_shape: tuple[int, int, int] | None = None
    num_covariates: int = 0
    has_size_factor: bool = False
    num_categories: int = 2
    examples: Callable[[int], tuple[Tensor, Context | None]] | None = None
    missing: bool = False

    @classmethod
    def of(cls, data: Dataset | LazyDataset) -> Shape:
        """Return the shape of a data set."""
        size_factor, covariates = data.context or Context()

        def examples(count: int) -> tuple[Tensor, Context | None]:
            some = data[torch.randperm(len(data))[:count]].dense()
            return torch.nan_to_num(some.x), some.context

        return cls(
            data.num_features,
            data.image_shape,
            0 if covariates is None else covariates.shape[1],
            size_factor is not None,
            int(torch.nan_to_num(data.x).max()) + 1 if isinstance(data, Dataset) else 2,
            examples,
            getattr(data, "missing", False),
        )


def check_config(config: TrainConfig) -> None:
    """Raise for a name or a number that can be seen to be wrong without data.

    Raises:
        InputError: with the option, its value, and the values it may have.
    """
    model, training = config.model, config.training
    check_beta(training.beta)
    warmup_epochs = training.warmup_epochs or 0.0
    if not (math.isfinite(warmup_epochs) and warmup_epochs >= 0):
        raise InputError(f"'warmup_epochs' must be non-negative and finite, got {warmup_epochs}")
    check_count("latent_dim", model.latent_dim)
    settings = training.settings()
    del settings["compile"]
    rate = OneCycle(settings.pop("learning_rate"))
    Settings(**{**settings, "beta": as_schedule(settings["beta"])}, learning_rate=rate)
    if model.prior_components is not None:
        check_count("prior_components", model.prior_components)
    if training.schedule not in SCHEDULES:
        raise unknown_name("schedule", training.schedule, SCHEDULES)
    for name, table in TABLES.items():
        if getattr(model, name) not in table:
            raise unknown_name(name, getattr(model, name), table)
    config.data.check()


def load_data(config: TrainConfig, *, download: bool = False) -> Splits:
    """Return the data set of a configuration; absent files are downloaded on request alone."""
    return read(config.data, config.training.seed, download=download)


def build_vae(config: TrainConfig, shape: Shape) -> BetaVAE:
    """Return the untrained model of a configuration, its weights drawn from its seed."""
    check_config(config)
    options = config.model
    if not options.hidden:
        raise InputError("'hidden' must name at least one width, got none")
    network = NETWORKS[options.network].build
    family = POSTERIORS[options.posterior].build()
    missing = shape.missing or config.data.missing == "nan"
    covariates = shape.num_covariates
    with seeded(config.training.seed, WEIGHTS_STREAM):
        likelihood: Any = LIKELIHOODS[options.likelihood].build(options, shape)
        decodes = network(options, shape, likelihood.parameters_per_feature, decodes=True)
        decoder = Decoder(decodes, likelihood, num_covariates=covariates)
        encodes = network(options, shape, family.num_outputs(options.latent_dim), decodes=False)
        inputs = torch.log1p if options.likelihood in COUNTS else None
        encoder = family(encodes, num_covariates=covariates, inputs=inputs)
        support = getattr(likelihood, "support", constraints.real)
        prior = PRIORS[options.prior].build(options, shape, encoder, support)
        return BetaVAE(prior, decoder, encoder, missing=missing)
