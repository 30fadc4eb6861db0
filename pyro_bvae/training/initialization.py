"""The start of a decoder at the data's mean."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.data import as_data
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.module_modes import evaluating
from pyro_bvae.core.protocols import VAE, num_features_of, part_of
from pyro_bvae.core.seeds import PROBE_STREAM, seeded
from pyro_bvae.distributions.partly_observed import PartlyObserved

_STEPS, _MOST_DATA, _NEAR_0 = 100, 4096, 0.01
# Numbers of a likelihood's parameters that are looked at together, which bounds the memory that it
# takes.
_AT_ONCE = 2**24


class LastBias(NamedTuple):
    """The bias that is added to a decoder's outputs last.

    Attributes:
        bias: The parameter.
        places: For each output of the network, the entry of the bias that is added to it, shape
            ``(P D,)``.
    """

    bias: nn.Parameter
    places: Tensor


@exclusive
def start_at_mean(vae: VAE, x: Tensor, context: Context | None = None) -> None:
    r"""Set the bias of the decoder's last affine map to the best one of a model without latents.

    .. math:: b = \arg\max_b \sum_n \log p(x_n \mid \text{parameters} = b)

    which is the logit of the mean for Bernoulli pixels, the mean for normal features, and as easily
    found for any other likelihood. The bias of a convolution is one for all pixels of a channel,
    and so is the best one. Training then starts from the best without a code, and not with
    finding it.

    Args:
        vae: A :class:`~pyro_bvae.BetaVAE` whose decoder is a :class:`~pyro_bvae.Decoder`; changed
            in place.
        x: The data, ``(N, D)``, of which at most 4,096 are looked at.
        context: Their context.

    Raises:
        InputError: if the decoder has no ``network`` whose last operation adds a bias, or no
            ``likelihood``; or if no finite bias is the best one.
    """
    likelihood, last = part_of(vae, "decoder", "likelihood"), last_bias(vae, context)
    if likelihood is None or last is None:
        raise InputError(
            "'vae' must have a decoder with a likelihood, and a network whose last layer has a bias"
        )
    x = as_data("x", x, last.bias, num_features_of(vae))[:_MOST_DATA]
    if not bool(torch.isnan(x).any()):  # which is unobserved here, in any model
        vae.check_data(x)
    given = () if context is None else (context.take(slice(_MOST_DATA)).to(last.bias),)
    # Not at 0 itself, where densities with a removable singularity may have no slope.
    bias = torch.full_like(last.bias, _NEAR_0).requires_grad_()
    optimizer = torch.optim.LBFGS([bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.zeros((), dtype=torch.double)
        for rows in torch.arange(len(x)).split(max(1, _AT_ONCE // len(last.places))):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            terms = likelihood(
                bias[last.places].expand(len(rows), -1), *(each.take(part) for each in given)
            )
            terms = PartlyObserved.of(terms) if bool(torch.isnan(x[part]).any()) else terms
            share = -terms.log_prob(x[part]).sum() / len(x)
            share.backward(inputs=[bias])  # type: ignore[no-untyped-call]
            loss += share.detach().cpu()
        return loss.to(bias)

    optimizer.step(closure)  # type: ignore[arg-type, no-untyped-call]
    if not bool(torch.isfinite(bias).all()):
        raise InputError(
            "'x' must have a finite best start of the decoder, got none: scale it, as by"
            " (x - mean) / sd"
        )
    with torch.no_grad():
        last.bias.copy_(bias)


def last_bias(vae: Any, context: Context | None = None) -> LastBias | None:
    """Return the bias that a decoder's network adds last, or None where there is none.

    A bias is the last one if a change of it is a change of the outputs, whatever the latents are.

    Args:
        vae: A module with a ``prior`` and a ``decoder``.
        context: The context of at least some data, where there is one.
    """
    network = part_of(vae, "decoder", "network")
    if not isinstance(network, nn.Module) or part_of(vae, "prior") is None:
        return None
    for layer in reversed(list(network.modules())):
        bias = part_of(layer, "bias")
        if isinstance(bias, nn.Parameter) and bias.dim() == 1 and bias.is_floating_point():
            places = _places(vae, network, bias, context)
            if places is not None:
                return LastBias(bias, places)
    return None


@torch.no_grad()
def _places(
    vae: Any, network: nn.Module, bias: nn.Parameter, context: Context | None
) -> Tensor | None:
    """Return the entry of a bias that is added to each output, or None if it does more."""
    spacing = 1 / len(bias)
    steps = torch.arange(len(bias), dtype=bias.dtype, device=bias.device) * spacing + 1
    rows = torch.arange(2)
    if context is not None:
        rows = rows % min(len(part) for part in context if part is not None)
    given = () if context is None else (context.take(rows),)
    before, outputs = bias.clone(), list[Tensor]()
    hook = network.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        for moved in (torch.zeros_like(bias), steps):
            bias.copy_(moved)
            with evaluating(vae), seeded(0, PROBE_STREAM):
                vae.decoder(vae.prior().expand([2]).sample(), *given)
    finally:
        bias.copy_(before)
        hook.remove()
    if len(outputs) != 2 or outputs[0].shape != outputs[1].shape:
        return None
    change = (outputs[1] - outputs[0]).flatten(0, -2)
    places = ((change[0] - 1) / spacing).round()
    if not bool(((places >= 0) & (places < len(bias))).all()):
        return None
    added = steps[places.long()]
    return places.long() if bool(((change - added).abs() < spacing / 4).all()) else None
