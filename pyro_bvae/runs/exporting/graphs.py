"""Encoder and decoder as functions of tensors alone, which can be recorded as graphs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_bvae.core.context import Context, arguments
from pyro_bvae.core.module_modes import evaluating
from pyro_bvae.core.protocols import part_of
from pyro_bvae.core.seeds import GENERATE_STREAM, seeded
from pyro_bvae.distributions import AutoregressiveNormal, AutoregressivePixels
from pyro_bvae.distributions.autoregressive import mean_noises

# Parameters of the likelihoods' distributions that a decoder returns beside the mean.
_PARAMETERS = ("loc", "scale", "df", "logits", "log_mean", "dispersion", "gate_logits")
#: Most pixels of an autoregressive likelihood whose mean, a pass for each, is in a graph.
MOST_PASSES = 100

Tensors = dict[str, Tensor]


class EncoderGraph(nn.Module):
    r"""Mean and scale of :math:`q(z \mid x)` from the data as they are read.

    What the model does to its data before the network is a part of it: the logarithm of counts,
    and 0 in the place of missing entries.

    Args:
        vae: The model.
    """

    noises: Tensor

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder = vae.encoder
        self.missing = vae.missing and not part_of(vae, "encoder", "inputs", "fills_missing")
        self.register_buffer("noises", mean_noises(vae.latent_dim), persistent=False)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensors:
        """Return ``mean`` and ``scale``, the standard deviation of each latent, ``(N, L)`` each."""
        x = x.masked_fill(torch.isnan(x), 0) if self.missing else x
        context = None if covariates is None else Context(covariates=covariates)
        posterior = self.encoder(*arguments(x, context))
        if not isinstance(posterior, AutoregressiveNormal):
            return {"mean": posterior.mean, "scale": posterior.variance.sqrt()}
        # The noises of its mean come from a generator, which no graph can hold.
        noises = self.noises.to(x).unsqueeze(1)
        values = posterior.push(noises.expand(-1, x.shape[0], -1))[0]
        mean = values.mean(0)
        return {"mean": mean, "scale": (values - mean).square().mean(0).sqrt()}


class DecoderGraph(nn.Module):
    r"""Mean and parameters of :math:`p(x \mid z)` from latents, size factors and covariates.

    Args:
        vae: The model.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.decoder = vae.decoder

    def forward(
        self, z: Tensor, size_factor: Tensor | None = None, covariates: Tensor | None = None
    ) -> Tensors:
        """Return the mean, ``(N, D)``, and the parameters of the likelihood by their names."""
        return decoded(self.decoder(*arguments(z, _context(size_factor, covariates))))


def decoded(likelihood: Any) -> Tensors:
    """Return the mean of a likelihood's distribution and its parameters, if others than that.

    There is no mean where it takes one pass of a network for each of very many pixels.
    """
    shape = likelihood.batch_shape + likelihood.event_shape
    results, mean = {}, None
    if not (isinstance(likelihood, AutoregressivePixels) and shape[-1] > MOST_PASSES):
        results["mean"] = mean = likelihood.mean
    base = getattr(likelihood, "base_dist", likelihood)
    for name in _PARAMETERS:
        value = getattr(base, name, None)
        if isinstance(value, Tensor) and value is not mean:
            wide = value.dim() > len(shape)  # of categories, (N, D, C)
            results[name] = value if wide else value.expand(shape)
    return results


def _context(size_factor: Tensor | None, covariates: Tensor | None) -> Context | None:
    given = size_factor is not None or covariates is not None
    return Context(size_factor, covariates) if given else None


class Probe(NamedTuple):
    """Inputs of a graph, and the numbers that the model gives for them.

    Attributes:
        graph: The graph to record.
        inputs: Its arguments by name, of N data each.
        wanted: The model's own numbers for them, by the names of the outputs.
    """

    graph: nn.Module
    inputs: Tensors
    wanted: Tensors


@torch.no_grad()
def probes(vae: Any, contexts: Context | None, count: int) -> dict[str, Probe]:
    """Return inputs and outputs of ``encoder`` and ``decoder`` on data that the model makes itself.

    Every second of them has a missing entry where entries may be missing.

    Args:
        vae: The model.
        contexts: Some contexts, which the data have in turn; None for a model without.
        count: The number of data.
    """
    context = contexts
    if contexts is not None:
        size = max(len(part) for part in contexts if part is not None)
        context = contexts.to(next(vae.parameters())).take(torch.arange(count) % size)
    x = vae.generate(count, context, noise=True)
    if vae.missing:
        rows = torch.arange(0, count, 2)
        x[rows, rows % x.shape[1]] = torch.nan
    posterior = vae.posterior(x, context)
    with seeded(0, GENERATE_STREAM):
        z = posterior.sample()
    with evaluating(vae):
        values = decoded(vae.decoder(*arguments(z, context)))
    if "mean" in values:
        values["mean"] = vae.decode(z, context)
    known = {} if context is None else context._asdict()
    given = {name: value for name, value in known.items() if value is not None}
    conditions = {name: value for name, value in given.items() if name == "covariates"}
    codes = {"mean": vae.encode(x, context), "scale": posterior.variance.sqrt()}
    return {
        "encoder": Probe(EncoderGraph(vae), {"x": x, **conditions}, codes),
        "decoder": Probe(DecoderGraph(vae), {"z": z, **given}, values),
    }
