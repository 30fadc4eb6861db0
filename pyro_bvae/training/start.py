"""Where a decoder starts: at the data's mean, and not somewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_bvae.context import Context
from pyro_bvae.errors import InputError

_STEPS, _MOST_DATA = 100, 4096


def start_at_mean(vae: Any, x: Tensor, context: Context | None = None) -> None:
    r"""Set the bias of the decoder's last affine map to the best one of a model without latents.

    .. math:: b = \arg\max_b \sum_n \log p(x_n \mid \text{parameters} = b)

    which is the logit of the mean for Bernoulli pixels, the mean for normal features, and as easily found for any other
    likelihood. Training then starts from what can be had without a code, and not with finding it.

    Args:
        vae: A :class:`~pyro_bvae.BetaVAE` whose decoder is a :class:`~pyro_bvae.Decoder`; changed in place.
        x: The data, ``(N, D)``, of which at most 4,096 are looked at.
        context: Their context.

    Raises:
        InputError: if the decoder has no ``network`` that ends with an affine map, or no ``likelihood``.
    """
    likelihood, last = getattr(vae.decoder, "likelihood", None), _last_bias(getattr(vae.decoder, "network", None))
    if likelihood is None or last is None:
        raise InputError("'vae' must have a decoder with a likelihood, and a network whose last layer has a bias")
    x = x[:_MOST_DATA].to(last)
    seen = ~torch.isnan(x)
    given = () if context is None else (Context(*(None if p is None else p[:_MOST_DATA].to(last) for p in context)),)
    bias = torch.zeros_like(last, requires_grad=True)
    optimizer = torch.optim.LBFGS([bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        terms = likelihood(bias.expand(len(x), -1), *given)
        if not bool(seen.all()):
            terms = terms.base_dist.mask(seen).to_event(1)
        loss: Tensor = -terms.log_prob(x.nan_to_num()).mean()
        loss.backward(inputs=[bias])  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[arg-type, no-untyped-call]
    with torch.no_grad():
        last.copy_(bias)


def _last_bias(network: Any) -> nn.Parameter | None:
    """Return the bias of the last layer of a network, or None."""
    if not isinstance(network, nn.Module):
        return None
    layers = [layer for layer in network.modules() if isinstance(getattr(layer, "weight", None), Tensor)]
    bias = getattr(layers[-1], "bias", None) if layers else None
    return bias if isinstance(bias, nn.Parameter) and len(bias) == getattr(network, "out_features", -1) else None
