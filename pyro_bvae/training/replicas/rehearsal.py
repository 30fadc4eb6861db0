"""The rehearsal of a stacked step: its draws, losses and gradients beside those of each model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_bvae.core.param_store import private_store
from pyro_bvae.core.seeds import NOISE_STREAM, seed_generators, stream_seed
from pyro_bvae.training.batches import Batch
from pyro_bvae.training.replicas.program import CannotStack, StackedParameter
from pyro_bvae.training.state import TrainingState

# Data of the rehearsal.
_FEW = 7


def few_of(state: TrainingState) -> Batch:
    """Return a few data of the first batch of a model."""
    x, context = state.first_batch()
    return x[:_FEW], context and context.take(slice(_FEW))


def check_alone(
    state: TrainingState, batch: Batch, beta: float | Tensor, generator: torch.Generator
) -> Tensor:
    """Return the loss of a model by itself, with its own draws, and accumulate its gradients.

    Args:
        state: The model.
        batch: A few data.
        beta: Weight of the KL.
        generator: The generator of its seed after the draws of the stacked step.

    Raises:
        CannotStack: if the model draws other random numbers than the stacked step does.
    """
    seed_generators(stream_seed(state.settings.seed, 0, NOISE_STREAM))
    with private_store(state.vae.model):
        loss = state.loss(*batch, float(beta)).loss
    loss.backward()  # type: ignore[no-untyped-call]
    cuda = state.device.type == "cuda"
    drawn = torch.cuda.get_rng_state(state.device) if cuda else torch.get_rng_state()
    if not torch.equal(drawn, generator.get_state()):
        raise CannotStack("their draws are not only the latents' normal noise")
    return loss.detach()


def is_same(one: Tensor, other: Tensor, beside: float | Tensor = 0.0) -> bool:
    """Whether two tensors are the same but for rounding, their own and that of ``beside``."""
    precision, size = torch.finfo(one.dtype).eps, torch.linalg.vector_norm(other)
    if not bool(torch.isfinite(size)):  # an error of the first step
        return not bool(torch.isfinite(torch.linalg.vector_norm(one)))
    difference = torch.linalg.vector_norm(one - other)
    return bool(difference <= precision**0.5 * size + 100 * precision * beside)


@torch.no_grad()
def has_same_gradients(trained: Sequence[StackedParameter], number: int) -> bool:
    """Whether the parameters of a model have the same gradients in the stack as in the model."""
    norms = [
        torch.linalg.vector_norm(parts[number].grad)
        for _, parts in trained
        if parts[number].grad is not None
    ]
    total = torch.stack(norms).norm() if norms else 0.0
    for whole, parts in trained:
        # A model whose β is 0 has no gradient of its prior where one of the stack is 0.
        zero, alone = torch.zeros_like(parts[number]), parts[number].grad
        stacked = zero if whole.grad is None else whole.grad[number].view_as(zero)
        if not is_same(stacked, zero if alone is None else alone, total):
            return False
    return True
