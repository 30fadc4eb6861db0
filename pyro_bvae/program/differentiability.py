"""Whether a program can be followed uphill: gradients of its densities in its latents."""

from __future__ import annotations

import torch

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import PROBE_STREAM, seeded
from pyro_bvae.program.program import Program


def check_differentiable(program: Program) -> None:
    """Raise if a density depends on a latent through which no gradient comes back.

    Raises:
        InputError: with the name of the latent.
    """
    if reason := missing_gradient(program):
        raise InputError(reason)


def missing_gradient(program: Program) -> str | None:
    """Return the latent through which a density has no gradient, in a sentence, or None.

    A density that is the same at another draw of the latent needs none.
    """
    with seeded(0, PROBE_STREAM), torch.no_grad():
        here, there = (program.draw(1, program.probe).values for _ in range(2))
    leaves = {name: here[name].detach().requires_grad_() for name in program.latents}
    try:
        with torch.enable_grad():
            densities = program.log_joint(leaves, program.probe)
    except RuntimeError as error:
        return (
            f"the model cannot be differentiated in its latents {sorted(program.latents)}: {error}"
        )
    for name, leaf in leaves.items():
        with torch.no_grad():
            moved = program.log_joint({**leaves, name: there[name]}, program.probe)
        for density, other in zip(densities, moved, strict=True):
            if density.requires_grad:
                (gradient,) = torch.autograd.grad(
                    density.sum(), leaf, retain_graph=True, allow_unused=True
                )
            else:
                gradient = None
            # Supports may depend on other latents.
            within = torch.isfinite(density) & torch.isfinite(other)
            if gradient is None and not torch.allclose(density[within], other[within]):
                return (
                    f"the model's density has no gradient in latent '{name}', which it depends on:"
                    " is it detached, or rounded?"
                )
    return None
