"""A decoder as steps that a page can run: products, activations, convolutions, and a mean."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_bvae.core.context import Context, with_covariates
from pyro_bvae.core.protocols import part_of
from pyro_bvae.networks import MLP, ConvolutionalDecoder, ResidualMLP

# Bytes of the weights at most, before they are written in base 64.
_MOST_BYTES = 2_200_000
# Deviation from the decoder at most: half a level of 8-bit pixels, in units of the data's range.
_TOLERANCE = 0.5 / 255

Step = dict[str, Any]


class Decoder(NamedTuple):
    """A decoder that a page can run.

    Attributes:
        steps: Each has ``do``, its name, and the places of its weights in ``weights``.
        mean: The name of the function from the last output to the decoder's mean.
        weights: All weights in base 64.
        type: Their type, ``float16`` or ``float32``.
        deviation: The largest difference from the decoder's own means that was seen, in units of
            the data's range.
    """

    steps: list[Step]
    mean: str
    weights: str
    type: str
    deviation: float


class _UnknownError(Exception):
    """A module that has no step."""


_ACTIVATIONS: dict[type, tuple[str, Callable[[Tensor], Tensor]]] = {
    nn.SiLU: ("silu", F.silu),
    nn.ReLU: ("relu", F.relu),
    nn.Tanh: ("tanh", torch.tanh),
    nn.Sigmoid: ("sigmoid", torch.sigmoid),
}
_FUNCTIONS = dict(_ACTIVATIONS.values())


def _steps(module: Any) -> Iterator[Step]:
    """Yield the steps of a network, their weights as tensors."""
    if isinstance(module, MLP):
        yield from _steps(module.layers)
    elif isinstance(module, nn.Sequential):
        for part in module:
            yield from _steps(part)
    elif isinstance(module, ResidualMLP):
        yield from _steps(module.stem)
        for block in module.blocks:
            yield {"do": "keep"}
            yield from _steps(nn.Sequential(*block.children()))
            yield {"do": "add"}
        yield from _steps(nn.Sequential(module.activation, module.head))
    elif isinstance(module, ConvolutionalDecoder):
        yield from _steps(module.stem)
        shape = module.stem_shape
        for part in module.convolutions:
            if isinstance(part, nn.ConvTranspose2d):
                yield {"do": "spread", "shape": list(shape), "w": part.weight, "b": part.bias}
                shape = (part.out_channels, 2 * shape[1], 2 * shape[2])
            else:
                yield from _steps(part)
    elif isinstance(module, nn.Linear):
        yield {"do": "linear", "w": module.weight, "b": module.bias}
    elif type(module) in _ACTIVATIONS:
        yield {"do": _ACTIVATIONS[type(module)][0]}
    else:
        raise _UnknownError


def run_steps(steps: Sequence[Step], h: Tensor) -> Tensor:
    """Return the output ``(N, F)`` of steps whose weights are tensors, as the page computes it."""
    kept: list[Tensor] = []
    for step in steps:
        kind = step["do"]
        if kind == "linear":
            h = F.linear(h, step["w"], step["b"])
        elif kind == "spread":
            images = h.reshape(-1, *step["shape"])
            h = F.conv_transpose2d(images, step["w"], step["b"], stride=2, padding=1).flatten(1)
        elif kind == "scale":
            h = h[:, : len(step["b"])] * step["w"] + step["b"]
        elif kind == "keep":
            kept.append(h)
        elif kind == "add":
            h = h + kept.pop()
        else:
            h = _FUNCTIONS[kind](h)
    return h


def _ungated(mean: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """Return a mean times the probability that a count is not lost, of the last D outputs."""
    return lambda h, s, d: mean(h, s, d) * torch.sigmoid(-h[:, -d:])


def _grey_mean(logits: Tensor) -> Tensor:
    """Return the mean of a continuous Bernoulli variable."""
    near = logits.abs() < 1e-2
    safe = torch.where(near, torch.ones_like(logits), logits)
    return torch.where(near, 0.5 + logits / 12, 1 / (1 - torch.exp(-safe)) - 1 / safe)


# From the last output, the size factors (N, 1) and the number of features to the mean.
_MEANS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "identity": lambda h, s, d: h[:, :d],
    "sigmoid": lambda h, s, d: torch.sigmoid(h[:, :d]),
    "grey": lambda h, s, d: _grey_mean(h[:, :d]),
    "softmax": lambda h, s, d: s * torch.softmax(h[:, :d], -1),
    "exp": lambda h, s, d: s * torch.exp(h[:, :d]),
}
_MEANS |= {f"gated-{name}": _ungated(_MEANS[name]) for name in ("softmax", "exp")}


def decoder_of(
    vae: Any, codes: Tensor, context: Context | None, spread: Tensor | float
) -> Decoder | None:
    """Return the decoder of a model as steps; None where a page cannot run it.

    The steps are held to the decoder's own means: what cannot be told from them within half a level
    of 8-bit pixels is taken, in half precision if that is enough.

    Args:
        vae: The model.
        codes: Codes to compare at, shape ``(N, L)``.
        context: Their context.
        spread: The range of each feature, ``(D,)`` or one number, that deviations are measured in.
    """
    try:
        steps = list(_steps(part_of(vae, "decoder", "network")))
    except _UnknownError:
        return None
    scale = part_of(vae, "decoder", "likelihood", "scale")
    if (deviation := getattr(scale, "deviation", None)) is not None:
        steps = [*steps, {"do": "scale", "w": deviation, "b": scale.mean}]
    wanted = vae.decode(codes, context).double()
    inputs = with_covariates(codes, context)
    size = None if context is None else context.size_factor
    sizes = torch.ones(len(codes), 1) if size is None else size
    for kind in (torch.float16, torch.float32):
        rounded = [{name: _rounded(value, kind) for name, value in step.items()} for step in steps]
        number = sum(w.numel() for step in rounded for w in step.values() if _is_tensor(w))
        if number * torch.finfo(kind).bits // 8 > _MOST_BYTES:
            return None
        with torch.no_grad():
            output = run_steps(rounded, inputs.float())
        for name, mean in _MEANS.items():
            made = mean(output, sizes.float(), wanted.shape[-1]).double()
            if made.shape != wanted.shape:
                continue
            off = float(((made - wanted).abs() / spread).max())
            if off <= _TOLERANCE:
                return _packed(rounded, name, kind, off)
    return None


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _rounded(value: Any, kind: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().cpu().to(kind).float()


def _packed(steps: Sequence[Step], mean: str, kind: torch.dtype, off: float) -> Decoder:
    """Return the steps with all their weights in one text."""
    packed, content = [], []
    place = 0
    for step in steps:
        own = dict(step)
        for key in ("w", "b"):
            if isinstance(weight := step.get(key), Tensor):
                own[key], own[f"{key}_shape"] = place, list(weight.shape)
                place += weight.numel()
                content.append(weight.to(kind).numpy().tobytes())
        packed.append(own)
    weights = b64encode(b"".join(content)).decode("ascii")
    return Decoder(packed, mean, weights, str(kind).removeprefix("torch."), off)
