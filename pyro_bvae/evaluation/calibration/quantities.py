"""The quantities of a datum that are ranked: latents, functions of them, and the likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.data import shown
from pyro_bvae.program.densities import LatentValues
from pyro_bvae.program.program import Program

#: Functions of the latents by name, as a person gives them.
Functions = Mapping[str, Callable[[Any], Tensor]]

#: The quantity that sees the data too, without which a guide that returns the prior passes
#: (Modrák et al. 2023).
LIKELIHOOD = "log p(x|z)"
#: The distance to a random point, over all latents together.
DISTANCE = "all latents (distance)"


def check_functions(functions: Functions | None) -> Functions:
    """Return the functions, none by default.

    Raises:
        InputError: for anything but a mapping of names to callables.
    """
    functions = {} if functions is None else functions
    wrong = not isinstance(functions, Mapping)
    if wrong or not all(isinstance(n, str) and callable(f) for n, f in functions.items()):
        raise InputError(
            "'functions' must map names to callables of the latents, such as {'sign': lambda z:"
            f" z > 0}}, got {shown(functions)}"
        )
    return functions


def latent_vectors(program: Program, values: LatentValues) -> dict[str, Tensor]:
    """Return the values of each latent site as ``(K, N, d)``."""
    return {
        name: values[name].movedim(program.dim_of(name, program.plate.dim), 1).flatten(2)
        if values[name].dim() > 2
        else values[name].unsqueeze(-1)
        for name in program.latents
    }


def quantities(program: Program, values: LatentValues, functions: Functions) -> dict[str, Tensor]:
    """Return latents and functions of them by name, ``(K, N)`` each.

    Args:
        program: The program.
        values: Latents of K particles.
        functions: Each takes the latents as they are drawn, ``(K, N, *)``, or a dictionary of them
            where there is more than one site, and returns ``(K, N)`` or ``(K, N, *)``.

    Raises:
        InputError: for a function that returns anything else.
    """
    results: dict[str, Tensor] = {}
    vectors = latent_vectors(program, values)
    for name, vector in vectors.items():
        results |= _named(name, vector, values[name].dim() == 2)
    latents = {name: values[name] for name in program.latents}
    given = next(iter(latents.values())) if len(latents) == 1 else latents
    shape = next(iter(vectors.values())).shape[:2]
    for name, function in functions.items():
        value = function(given)
        if not isinstance(value, Tensor) or value.shape[:2] != shape or not value.numel():
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"function '{name}' must return a tensor that starts with (draws, data) ="
                f" {tuple(shape)} for the latents of that many, got {got}"
            )
        results |= _named(name, value.flatten(2) if value.dim() > 2 else value[..., None], False)
    return {name: value.detach().double() for name, value in results.items()}


def _named(name: str, values: Tensor, scalar: bool) -> dict[str, Tensor]:
    if scalar or values.shape[-1] == 1:
        return {name: values[..., 0]}
    return {f"{name}[{index}]": part for index, part in enumerate(values.unbind(-1))}


def distances(
    one: dict[str, Tensor], other: dict[str, Tensor], scales: dict[str, Tensor]
) -> Tensor:
    """Return the distance between latents ``(K, N, d)`` and ``(1, N, d)``, ``(K, N)``."""
    squares = [((one[name] - other[name]) / scales[name]).double().square().sum(-1) for name in one]
    return torch.stack(squares).sum(0).sqrt()
