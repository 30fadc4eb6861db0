"""Pyro's parameter store without its trap.

The store is global and keyed by name. A second module registered under a name that is taken gets
the first module's parameters handed back: an optimizer then trains those, and the second module
silently never moves. Here that is an error in words, and whatever the package runs itself works on
a private copy of the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
from torch import nn

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.turns import turn
from pyro_bvae.core.module_modes import owner
from pyro_bvae.core.seeds import seeded


def _entries(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for parameter_name, parameter in module.named_parameters():
        if parameter.requires_grad:
            yield f"{name}$$${parameter_name}", parameter  # the name that pyro.module gives it


def register(name: str, module: nn.Module) -> None:
    """Register the trainable parameters of a module, as :func:`pyro.module` does, under ``name``.

    Frozen parameters are left out without a warning.

    Raises:
        InputError: if the store holds another module's parameters under the same name.
    """
    stored = dict(pyro.get_param_store().named_parameters())
    for full_name, parameter in _entries(name, module):
        if stored.get(full_name, parameter) is not parameter:
            raise InputError(
                "Pyro's parameter store already holds another module's parameters under the name"
                f" '{name}' ('{full_name}'), so this one would never be trained. Call"
                " pyro.clear_param_store() first, or give one of the two another name: BetaVAE(...,"
                " name='other')."
            )
        pyro.param(full_name, parameter)


@contextmanager
def private_store(*functions: Callable[..., Any]) -> Iterator[None]:
    """Run the body on a copy of the parameter store, and leave the user's store as it was.

    The copy holds the user's parameters, so that trained ``pyro.param`` values stay visible,
    without the entries of other modules under the names of the modules that own ``functions``.
    The store is that of the process, so other threads of the package wait meanwhile, see
    :func:`~pyro_bvae.core.inputs.turns.turn`.
    """
    store = pyro.get_param_store()
    with turn():
        state = store.get_state()
        for module in {owner(function) for function in functions}:
            name = getattr(module, "name", None)
            if module is None or not isinstance(name, str):
                continue
            for full_name, parameter in _entries(name, module):
                if state["params"].get(full_name, parameter) is not parameter:
                    del state["params"][full_name], state["constraints"][full_name]
        with store.scope(state):
            yield


@contextmanager
def in_training(vae: Any, seed: int) -> Iterator[None]:
    """Run the body with a model in train mode, a private parameter store and seeded generators.

    Args:
        vae: A module with ``model`` and ``guide``, whose modes are restored afterwards.
        seed: The seed.
    """
    modes = {module: module.training for module in vae.modules()}
    with private_store(vae.model), seeded(seed):
        try:
            vae.train()
            yield
        finally:
            for module, training in modes.items():
                module.training = training
