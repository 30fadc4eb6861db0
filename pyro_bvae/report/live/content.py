"""The data that a page holds, as JSON: its charts, the test data, and the decoder."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import constraints

from pyro_bvae.core.protocols import part_of
from pyro_bvae.report.live.charts import Chart, moments
from pyro_bvae.report.live.columns import columns_of, numbers, spread_of
from pyro_bvae.report.live.points import (
    Points,
    latent_names,
    neighbours,
    points_of,
    principal_axes,
    prior_draws,
)
from pyro_bvae.report.live.steps import decoder_of

Array = NDArray[Any]

# Bytes of the data themselves at most, before they are written in base 64.
_MOST_BYTES = 400_000
# Data at most whose reconstructions have the spread over draws from the guide.
_SPREADS = 100
# Values of a latent in a sheet of decoded images, and latents of it at most.
_NODES, _SHEETS = 9, 10
# Data of least evidence that are shown.
_STRANGE = 8


def page_data(charts: Mapping[str, Chart], live: Mapping[str, Any] | None) -> str:
    """Return the data of a page as JSON that HTML may hold: no tag can end in it."""
    content = {"charts": {name: chart.as_dict() for name, chart in charts.items()}, "live": live}
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def live_content(run: Any, evaluation: Mapping[str, Any], *, embed: bool = True) -> dict[str, Any]:
    """Return the codes of test data, the latents in order of their KL, and the decoder.

    Args:
        run: A loaded run.
        evaluation: The content of its ``evaluation.json``.
        embed: Whether the codes have a neighbour embedding too, which takes some seconds.
    """
    points = points_of(run, evaluation)
    data, means = points.data, run.vae.decode(points.codes, points.data.context)
    low, high = _range(data.x, means, data.image_shape)
    draws = prior_draws(run.vae)
    spread = float(high - low) if data.image_shape else _spread(data.x, means)
    context, kind = data.context, kind_of(run.vae, data.image_shape)
    decoder = decoder_of(run.vae, points.codes, context, spread)
    own = _units(data.x, kind, low, high)
    held = _held(points, max(1, _MOST_BYTES // (own.itemsize * own.shape[1])))
    latents = _latents(points, evaluation, draws)
    centre, axes = principal_axes(points.codes)
    embedding = neighbours(points.codes) if embed else None
    return {
        "kind": kind,
        "shape": data.image_shape,
        "grey": [low, high],
        "features": list(data.feature_names) or [f"x{i}" for i in range(data.num_features)],
        "moments": _text(torch.stack(moments(data.x))) if kind == "table" else None,
        "latents": latents,
        "num_latents": points.codes.shape[1],
        "rows": [int(row) for row in points.rows],
        "names": [str(name) for name in data.index],
        "codes": _text(points.codes),
        "axes": _text(np.concatenate([centre[None], axes])),
        "embedding": None if embedding is None else _text(embedding),
        "evidence": numbers(points.evidence),
        "pareto_k": numbers(points.pareto_k),
        "columns": columns_of(points, getattr(run, "record", None)),
        "sizes": None if context is None or context.size_factor is None
        else _text(context.size_factor),
        "covariates": None if context is None or context.covariates is None
        else _text(context.covariates),
        "draws": None if draws is None else _text(draws),
        "held": held,
        "data": _packed(own[held]),
        "spread": _packed(_spreads(spread_of(run, points, held[:_SPREADS]), kind, low, high)),
        "decoder": None if decoder is None else decoder._asdict(),
        "sheets": None if decoder else _sheets(run, points, latents, low, high),
        "decoded": None if decoder else _packed(_units(means, kind, low, high)[held]),
    }  # fmt: skip


def _held(points: Points, most: int) -> list[int]:
    """Return the data that are in the page themselves: the strangest ones, then the first ones."""
    known = np.flatnonzero(np.isfinite(points.evidence))
    strange = known[np.argsort(points.evidence[known], kind="stable")][:_STRANGE]
    others = np.setdiff1d(np.arange(len(points.rows)), strange[1:])
    return [int(i) for i in dict.fromkeys([0, *strange, *others])][:most]


def kind_of(vae: Any, image_shape: Any) -> str:
    """Return the kind of data that a model is of: ``image``, ``count`` or ``table``."""
    if image_shape is not None:
        return "image"
    support = part_of(vae, "decoder", "likelihood", "support")
    return "count" if support is constraints.nonnegative_integer else "table"


def _range(x: Tensor, means: Tensor, image_shape: Any) -> tuple[float, float]:
    """Return the values that are drawn black and white: 0 and 1, or those of the data."""
    seen = torch.nan_to_num(torch.cat([torch.where(torch.isnan(x), means, x), means]))
    if image_shape is None or (seen.min() >= 0 and seen.max() <= 1):
        return 0.0, 1.0
    return float(seen.min()), float(seen.max())


def _spread(x: Tensor, means: Tensor) -> Tensor:
    """Return the range of each feature, ``(D,)``: of the data, or of their means if larger."""
    seen = torch.where(torch.isnan(x), means, x).double()
    ranges = torch.stack([seen.amax(0) - seen.amin(0), means.double().amax(0)])
    return ranges.amax(0).clamp(min=1e-12)


def _units(x: Tensor, kind: str, low: float, high: float) -> Array:
    """Return images as 8-bit pixels, counts as whole numbers, and other data as they are."""
    values: Array = x.detach().cpu().numpy()
    if kind == "image":
        share = np.nan_to_num((values - low) / ((high - low) or 1.0))
        pixels: Array = np.rint(255 * np.clip(share, 0, 1)).astype("u1")
        return pixels
    if kind == "count" and np.array_equal(values, np.rint(values)) and values.max() < 2**16:
        return values.astype("u1" if values.max() < 2**8 else "<u2")
    return values.astype("<f4")


def _spreads(spread: Tensor, kind: str, low: float, high: float) -> Array:
    """Return standard deviations as half levels of 8-bit pixels, or as they are."""
    if kind != "image":
        return spread.numpy().astype("<f4")
    halves: Array = np.rint(510 * spread.numpy() / ((high - low) or 1.0)).clip(0, 255).astype("u1")
    return halves


def _latents(
    points: Points, evaluation: Mapping[str, Any], draws: Tensor | None
) -> list[dict[str, Any]]:
    """Return the latents by decreasing KL, or else variance, the active ones marked."""
    codes = points.codes
    kl = (evaluation.get("kl_per_dimension") or {}).get("values")
    units = evaluation.get("active_units") or {}
    variances = units.get("variances") or codes.double().var(0, correction=0).tolist()
    active = units.get("active") or [variance > 0.01 for variance in variances]
    weight = -np.asarray(variances if kl is None else kl, dtype=float)
    seen = torch.nan_to_num(codes if draws is None else torch.cat([codes, draws.to(codes)]))
    names = latent_names(points)
    return [
        {
            "index": int(latent),
            "name": names[latent],
            "kl": None if kl is None else float(kl[latent]),
            "active": bool(active[latent]),
            "low": float(seen[:, latent].min()),
            "high": float(seen[:, latent].max()),
        }
        for latent in np.argsort(weight, kind="stable")
    ]


def _sheets(
    run: Any, points: Points, latents: Sequence[Mapping[str, Any]], low: float, high: float
) -> dict[str, Any] | None:
    """Return data decoded beforehand: each active latent moved alone, from the first datum on."""
    moved = [each for each in latents if each["active"]][:_SHEETS]
    data = points.data
    if not moved or data.num_features * _NODES * len(moved) > _MOST_BYTES:
        return None
    codes = points.codes[:1].repeat(len(moved), _NODES, 1)
    for row, latent in enumerate(moved):
        codes[row, :, latent["index"]] = torch.linspace(latent["low"], latent["high"], _NODES)
    context = data[torch.zeros(codes[..., 0].numel(), dtype=torch.long)].context
    means = run.vae.decode(codes.flatten(0, 1), context)
    return {
        "nodes": _NODES,
        **_packed(_units(means, kind_of(run.vae, data.image_shape), low, high)),
    }


def _text(values: Tensor | Array) -> str:
    """Return numbers as float32 in base 64."""
    return b64encode(np.asarray(values).astype("<f4").tobytes()).decode("ascii")


def _packed(values: Array) -> dict[str, Any]:
    text = b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
    return {"type": values.dtype.name, "count": len(values), "values": text}
