"""Configurations: dataclasses that a command line, a ``config.json`` and a person can all spell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.distributions import constraints

from pyro_bvae import datasets
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import WEIGHTS_STREAM, seeded
from pyro_bvae.runs.catalogue import COUNTS, LIKELIHOODS, NETWORKS, POSTERIORS, PRIORS, Shape
from pyro_bvae.runs.config import TrainConfig
from pyro_bvae.vae import BetaVAE, Decoder


def load_data(config: TrainConfig) -> datasets.Splits:
    """Return the data set of a configuration."""
    validation = config.validation
    if isinstance(validation, float) and validation >= 1 and validation.is_integer():
        validation = int(
            validation
        )  # a number of data, which the command line spells as it spells a share
    splits = datasets.load(
        config.dataset,
        root=config.data_root,
        path=config.path,
        split_column=config.split_column,
        validation=validation,
        binarize=config.binarize,
        seed=config.seed,
        layer=config.layer,
        label_column=config.label_column,
        batch_column=config.batch_column,
        min_counts=config.min_counts,
        min_cells=config.min_cells,
        backed=config.backed,
        missing=config.missing == "nan",
    )
    if config.size_factor == "given":
        return splits
    parts = {name: getattr(splits, name) for name in ("train", "validation", "test")}
    sized: dict[str, Any] = {
        name: datasets.with_size_factor(part.dense())
        for name, part in parts.items()
        if part is not None
    }
    return replace(splits, **sized)


def build_vae(config: TrainConfig, shape: Shape) -> BetaVAE:
    """Return the untrained model of a configuration, its weights drawn from the configuration's seed."""
    config.check()
    if not config.hidden:
        raise InputError("'hidden' must name at least one width, got none")
    encoder_network, decoder_network = NETWORKS[config.network]
    covariates = shape.num_covariates
    family = POSTERIORS[config.posterior]
    with seeded(config.seed, WEIGHTS_STREAM):
        likelihood: Any = LIKELIHOODS[config.likelihood](config, shape)
        network = decoder_network(config, shape, likelihood.parameters_per_feature)
        decoder = Decoder(network, likelihood, num_covariates=covariates)
        network = encoder_network(config, shape, family.num_outputs(config.latent_dim))
        inputs = torch.log1p if config.likelihood in COUNTS else None
        encoder = family(network, num_covariates=covariates, inputs=inputs)
        prior = PRIORS[config.prior](
            config, shape, encoder, getattr(likelihood, "support", constraints.real)
        )
        return BetaVAE(prior, decoder, encoder, missing=shape.missing or config.missing == "nan")
