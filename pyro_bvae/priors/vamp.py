"""The VampPrior: a mixture of the guide's own answers to pseudo-inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints, transform_to

from pyro_bvae.core.context import Context, arguments
from pyro_bvae.core.errors import InputError, check_finite
from pyro_bvae.core.inputs.public import public
from pyro_bvae.core.protocols import latent_dim_of, num_features_of

# How far inside of an edge of the support pseudo-inputs start, of its width or in units: on the
# edge no gradient moves.
_MARGIN = 0.01


class VectorMixture(dist.TorchDistribution):
    r"""A mixture of K distributions over vectors, :math:`p(z) = \sum_k \pi_k \, p_k(z)`.

    Unlike ``MixtureSameFamily`` it takes components of any family, flows among them: it shows each
    of them all values at full shape. Its support is plain vectors, and it draws without a gradient.

    Args:
        logits: Logits of the weights, shape ``(K,)``.
        components: A distribution with batch shape ``(K,)`` and event shape ``(L,)``.
        batch_shape: To which the mixture is expanded.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(
        self, logits: Tensor, components: Any, batch_shape: torch.Size | None = None
    ) -> None:
        self.logits, self.components = logits, components
        super().__init__(batch_shape or torch.Size(), components.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> VectorMixture:
        """Return the mixture with another batch shape; its components stay the same."""
        return VectorMixture(self.logits, self.components, torch.Size(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of ``(*, L)``, shape ``(*)``."""
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        shown = value.expand(shape).unsqueeze(-2).expand(*shape[:-1], len(self.logits), shape[-1])
        return (self.components.log_prob(shown) + self.logits.log_softmax(0)).logsumexp(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw vectors."""
        shape = self._extended_shape(torch.Size(sample_shape))
        chosen = torch.multinomial(self.logits.softmax(0), shape[:-1].numel(), replacement=True)
        drawn = self.components.sample(
            chosen.shape
        )  # of every component, since a family need not take a choice
        return drawn[torch.arange(len(chosen), device=chosen.device), chosen].reshape(shape)

    @property
    def mean(self) -> Tensor:
        """The mean, if that of the components is known."""
        mean = (self.logits.softmax(0).unsqueeze(-1) * self.components.mean).sum(0)
        return mean.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """The variance of each dimension, if that of the components is known."""
        weights = self.logits.softmax(0).unsqueeze(-1)
        spread = self.components.variance + (self.components.mean - self.mean).square()
        return (weights * spread).sum(0).expand(self.batch_shape + self.event_shape)


@public
class VampPrior(nn.Module):
    r"""A mixture of the guide's posteriors at learned pseudo-inputs (Tomczak and Welling 2018).

    .. math:: p(z) = \sum_k \pi_k \, q(z \mid u_k)

    At the best pseudo-inputs it comes near the aggregate posterior, the prior under which the bound
    is highest. It is learned by the same objective: gradients of :math:`\log p(z)` move
    pseudo-inputs and encoder. The encoder is the model's own; in a state dictionary its parameters
    stand under the prior's name too.

    Args:
        encoder: ``encoder(u)``, or ``encoder(u, context)``, returns :math:`q(z|u)`, with a density
            at any z.
        pseudo_inputs: Where the pseudo-inputs start, shape ``(K, D)``: data, best chosen at random.
            Missing entries (NaN) start at 0, which encoders are shown in its place.
        support: Where they stay: a torch constraint with a lower or both edges, such as
            ``constraints.nonnegative`` or ``unit_interval``, or none, ``constraints.real``; a
            likelihood's ``support``, say. Between its values, such as whole numbers, they may take
            any other.
        context: Where the contexts of the pseudo-inputs start, K rows, for an encoder that takes
            one; they are learned too, size factors as positive numbers.
        learned_weights: Whether the weights are learned, instead of equal.

    Shape:
        No input; a distribution with batch shape ``()`` and event shape ``(L,)``.

    Raises:
        InputError: for pseudo-inputs that cannot be used, or a support with no such edges.
    """

    def __init__(
        self,
        encoder: Callable[..., Any],
        pseudo_inputs: Tensor,
        *,
        support: Any = constraints.real,
        context: Context | None = None,
        learned_weights: bool = False,
    ) -> None:
        super().__init__()
        _check(encoder, pseudo_inputs, context)
        self.encoder = encoder
        self.latent_dim = latent_dim_of(encoder)
        self.num_features = pseudo_inputs.shape[1]
        self._edges = _edges_of(support)
        self.raw_inputs = nn.Parameter(_raw(pseudo_inputs.nan_to_num(0.0), self._edges))
        size_factor, covariates = context or Context()
        self.raw_size_factor = (
            None if size_factor is None else nn.Parameter(_raw(size_factor, (0.0, None)))
        )
        self.covariates = (
            None if covariates is None else nn.Parameter(covariates.clone().to(pseudo_inputs))
        )
        logits = torch.zeros(len(pseudo_inputs), dtype=pseudo_inputs.dtype)
        self.logits: Tensor
        if learned_weights:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits, persistent=False)

    @property
    def pseudo_inputs(self) -> Tensor:
        """The pseudo-inputs, shape ``(K, D)``."""
        return _transform(self._edges)(self.raw_inputs)

    @property
    def context(self) -> Context | None:
        """The contexts of the pseudo-inputs, K rows, or None."""
        if self.raw_size_factor is None and self.covariates is None:
            return None
        size_factor = (
            None if self.raw_size_factor is None else _transform((0.0, None))(self.raw_size_factor)
        )
        return Context(size_factor, self.covariates)

    def forward(self) -> dist.Distribution:
        """Return :math:`p(z)`."""
        context = self.context
        inputs = self.pseudo_inputs
        components = self.encoder(*arguments(inputs, context))
        return VectorMixture(self.logits, components)


# The edges of a support: least and greatest value, None where there is none.
Edges = tuple[float | None, float | None]


def _edges_of(support: Any) -> Edges:
    lower, upper = (getattr(support, f"{side}_bound", None) for side in ("lower", "upper"))
    if lower is None and support.check(torch.tensor([-1.0, 0.0, 1.0, 2.0])).tolist() == [
        False,
        True,
        True,
        False,
    ]:
        lower, upper = 0.0, 1.0  # some of the values in the unit interval
    bounds = [None if bound is None else torch.as_tensor(bound) for bound in (lower, upper)]
    known = support is constraints.real or lower is not None
    if not known or any(bound is not None and bound.numel() > 1 for bound in bounds):
        raise InputError(
            "'support' must be constraints.real, or have a lower or both edges, such as"
            f" constraints.unit_interval or constraints.nonnegative, got {support}"
        )
    least, greatest = (None if bound is None else float(bound) for bound in bounds)
    return least, greatest


def _transform(edges: Edges) -> Transform:
    lower, upper = edges
    if lower is None:
        return transform_to(constraints.real)
    return transform_to(
        constraints.greater_than(lower) if upper is None else constraints.interval(lower, upper)
    )


def _raw(values: Tensor, edges: Edges) -> Tensor:
    """Return the unconstrained parameters of values, moved off the edges."""
    lower, upper = edges
    margin = _MARGIN if lower is None or upper is None else _MARGIN * (upper - lower)
    if lower is not None:
        values = values.clamp(lower + margin, None if upper is None else upper - margin)
    return _transform(edges).inv(values.detach()).clone()


def _check(encoder: Any, pseudo_inputs: Tensor, context: Context | None) -> None:
    if (
        not isinstance(pseudo_inputs, Tensor)
        or pseudo_inputs.dim() != 2
        or 0 in pseudo_inputs.shape
    ):
        got = (
            tuple(pseudo_inputs.shape)
            if isinstance(pseudo_inputs, Tensor)
            else type(pseudo_inputs).__name__
        )
        raise InputError(f"'pseudo_inputs' must be a tensor (K, D), got {got}")
    if not pseudo_inputs.is_floating_point():
        raise InputError(f"'pseudo_inputs' must be floating, got {pseudo_inputs.dtype}")
    check_finite("pseudo_inputs", pseudo_inputs.nan_to_num(0.0, math.inf, -math.inf))
    num_features = num_features_of(encoder)
    if num_features is not None and num_features != pseudo_inputs.shape[1]:
        raise InputError(
            f"'pseudo_inputs' must have the {num_features} features of the encoder, got"
            f" {pseudo_inputs.shape[1]}"
        )
    for name, rows in (context or Context())._asdict().items():
        if rows is not None and (rows.dim() != 2 or len(rows) != len(pseudo_inputs)):
            raise InputError(
                f"'context.{name}' must have a row for each of {len(pseudo_inputs)} pseudo-inputs,"
                f" got shape {tuple(rows.shape)}"
            )
