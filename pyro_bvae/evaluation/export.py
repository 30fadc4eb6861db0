"""Estimates and draws as ArviZ objects: InferenceData on ArviZ 0.x, a DataTree on 1.x."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_bvae.evaluation.program import Function, program
from pyro_bvae.evaluation.summary import Evaluation


def to_arviz(
    model: Function,
    guide: Function,
    *args: Any,
    evaluation: Evaluation | None = None,
    num_draws: int = 100,
    attributes: dict[str, Any] | None = None,
    data_plate: str | None = None,
    seed: int = 0,
) -> Any:
    """Return draws of the latents from the guide, their weights, and per-datum estimates.

    Groups: ``posterior`` (each latent site, by draw and datum), ``log_likelihood`` (``log p(x|z)`` of each draw and
    datum), ``sample_stats`` (``log_weight`` of each), ``constant_data`` (per-datum ``elbo``, ``evidence`` and
    ``pareto_k`` of an evaluation). The draws are from the guide, not from the posterior: weigh them. ArviZ's ``loo``
    on them conditions on each datum's own latents and is no score of the model.

    Args:
        model: A Pyro model whose latents share a plate over the data.
        guide: Its guide.
        *args: The arguments of both.
        evaluation: What was measured on the same data.
        num_draws: Draws for each datum.
        attributes: Attributes of the whole, such as the configuration.
        data_plate: Name of the data plate, where the latents share more than one.
        seed: Seed of the draws.
    """
    values: dict[str, list[Tensor]] = {}
    weights: list[Tensor] = []
    observed: list[Tensor] = []
    with program(model, guide, args, data_plate=data_plate, seed=seed) as opened, torch.no_grad():
        for block in opened.blocks(512):
            draw = opened.draw(num_draws, block)
            for name in opened.latents:
                # Draws first and data second, as the log weights have them, whatever plates lie around.
                dims = [opened.dim_of(name, dim) for dim in (opened.particle_dim, opened.plate.dim)]
                values.setdefault(name, []).append(draw.values[name].movedim(dims, [0, 1]))
            weights.append(draw.densities.log_weights)
            observed.append(draw.densities.observed)
    groups: dict[str, dict[str, np.ndarray]] = {
        "posterior": {name: _chain(parts) for name, parts in values.items()},
        "log_likelihood": {"x": _chain(observed)},
        "sample_stats": {"log_weight": _chain(weights)},
    }
    if evaluation is not None:
        groups["constant_data"] = {
            "elbo": evaluation.bound.elbo.per_datum.numpy(),
            "evidence": evaluation.evidence.per_datum.numpy(),
            "pareto_k": _array(evaluation.evidence.pareto_k),
        }
    return _from_groups(groups, attributes or {})


def write_arviz(data: Any, path: Path) -> None:
    """Write what :func:`to_arviz` returned as netCDF, which ``arviz.from_netcdf`` reads back."""
    part = path.with_name(f".{path.name}.part")
    try:
        data.to_netcdf(str(part), engine="h5netcdf")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _array(tensor: Tensor | None) -> np.ndarray:
    return np.empty(0) if tensor is None else tensor.numpy()


def _chain(parts: list[Tensor]) -> np.ndarray:
    """Join blocks of data, ``(K, B, *)`` each, and put the chain dimension that ArviZ expects in front."""
    return torch.cat(parts, dim=1).cpu().numpy()[None]


def _from_groups(groups: dict[str, dict[str, np.ndarray]], attributes: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ announces its next version, and remarks on chains shorter than data
        import arviz

        if int(arviz.__version__.split(".")[0]) < 1:
            options: dict[str, Any] = {**groups, "attrs": attributes}
            return arviz.from_dict(**options)
        return arviz.from_dict(groups, attrs={"/": attributes})
