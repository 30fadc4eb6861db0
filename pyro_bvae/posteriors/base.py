"""The base of amortized posteriors: a network on the data and their covariates."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_bvae.core.context import Context, with_covariates
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.precision import run_network
from pyro_bvae.core.protocols import size_of

# Keeps a scale off zero in float32, where the density of a collapsed posterior would overflow.
_SCALE_FLOOR = 1e-5


def positive(raw: Tensor) -> Tensor:
    r"""Return :math:`\operatorname{softplus}(s)` plus a floor of 1e-5, which cannot overflow."""
    return softplus(raw) + _SCALE_FLOOR


class AmortizedPosterior(nn.Module):
    """The base of the amortized posteriors: a family adds its outputs and its ``forward``.

    Args:
        network: Maps ``(*, D)`` to as many outputs as the family's ``num_outputs`` says.
            Covariates, if any, are appended to its input.
        num_outputs: Number of outputs for a number of latents, increasing.
        outputs: The outputs, in words.
        num_covariates: How many of the network's inputs are covariates.
        inputs: Applied to the data before the network, and before covariates are appended, such as
            ``torch.log1p`` for counts; it keeps the number of features. By default the network sees
            the data as they are.

    Raises:
        InputError: if the network says its number of outputs, and it is that of no number of
            latents.
    """

    def __init__(
        self,
        network: nn.Module,
        num_outputs: Callable[[int], int],
        outputs: str,
        *,
        num_covariates: int = 0,
        inputs: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if inputs is not None and not callable(inputs):
            raise InputError(
                f"'inputs' must be a function of the data, such as torch.log1p, got {inputs!r}"
            )
        self.network, self.inputs = network, inputs
        self._num_outputs, self._outputs = num_outputs, outputs
        in_features, count = (size_of(network, f"{end}_features") for end in ("in", "out"))
        self.latent_dim = None if count is None else self._count_latents(count)
        self.num_features = None if in_features is None else in_features - num_covariates

    def parameters_of(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, int]:
        """Return the network's output for data ``(*, D)``, and its number of latents."""
        x = x if self.inputs is None else self.inputs(x)
        inputs = with_covariates(x, context, size_of(self.network, "in_features"))
        outputs = run_network(self.network, inputs)
        given = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if not isinstance(outputs, Tensor) or outputs.shape[:-1] != inputs.shape[:-1]:
            raise InputError(
                f"'network' must give a row of outputs for each row, got {given} for inputs of"
                f" shape {tuple(inputs.shape)}"
            )
        return outputs, self.latent_dim or self._count_latents(outputs.shape[-1])

    def _count_latents(self, out_features: int) -> int:
        most = next(
            count for count in itertools.count(1) if self._num_outputs(count) >= out_features
        )
        if self._num_outputs(most) == out_features:
            return most
        right = [f"{self._num_outputs(count)} for {count}" for count in (most - 1, most) if count]
        raise InputError(
            f"'network' must give {self._outputs}, got {out_features}; right would be"
            f" {' or '.join(right)} latents"
        )
