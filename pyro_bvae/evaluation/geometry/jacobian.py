r"""The geometry of a decoder's latents: Jacobians, singular values and the pull-back metric.

A decoder maps latents to features, :math:`z \mapsto f(z)`, and a step in the latents is as long as
its image: :math:`|dx|^2 = dz^\top G(z) \, dz` with :math:`G = J^\top J` and :math:`J = \partial f /
\partial z`. A *view* of :math:`p(x|z)` defines f: its :func:`means`, or coordinates in which
Fisher and Rao's metric is the straight one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.func import jvp, vmap

from pyro_bvae.core.context import Context, arguments
from pyro_bvae.core.errors import InputError, check_count, check_finite
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.module_modes import evaluating
from pyro_bvae.core.precision import full_precision
from pyro_bvae.core.protocols import latent_dim_of
from pyro_bvae.distributions import PoissonCounts
from pyro_bvae.evaluation.geometry.axes import RotationTest, lengths, rotation_tests
from pyro_bvae.evaluation.marginal.bounds import ACTIVE_VARIANCE
from pyro_bvae.program.sites import unwrapped

# From p(x|z) with batch shape (N,) to (N, D).
View = Callable[[Any], Tensor]
# Numbers that the Jacobians of a block may hold.
_BLOCK_NUMBERS = 2**22


def means(distribution: Any) -> Tensor:
    """Return the means of the features: changes are measured in the units of x.

    Args:
        distribution: :math:`p(x|z)`.

    Raises:
        InputError: if it is no distribution with a mean.
    """
    try:
        mean = distribution.mean
    except (AttributeError, NotImplementedError):
        mean = None
    if not isinstance(mean, Tensor):  # a tensor has a method of that name
        raise InputError(
            "the decoder must return a distribution that knows its mean, got"
            f" {type(distribution).__name__}"
        )
    return mean


def fisher_rao(distribution: Any) -> Tensor:
    r"""Return coordinates in which the Fisher-Rao metric of the likelihood is the Euclidean one.

    Changes are measured by how well they can be told apart: :math:`J^\top F J`, with the Fisher
    information F of the features' means, :math:`1 / \pi (1 - \pi)` of a Bernoulli one and :math:`1
    / \lambda` of a Poisson one. A change near 0 or 1 counts for more than the same in the middle.
    The coordinates are :math:`2 \arcsin \sqrt\pi` (less :math:`\pi / 2`) and :math:`2
    \sqrt\lambda`. A normal likelihood of fixed scale needs none: its metric is that of the means
    over :math:`\sigma^2`. Reference: Arvanitidis et al. 2022.

    Args:
        distribution: :math:`p(x|z)`, of independent Bernoulli or Poisson features.

    Raises:
        InputError: for another one.
    """
    base = unwrapped(distribution)
    if isinstance(base, torch.distributions.Bernoulli):
        # The same as the arcsine, with a gradient that stays finite where the mean rounds to 0 or
        # 1.
        return 2 * torch.atan(torch.tanh(base.logits / 4))
    if isinstance(base, torch.distributions.Poisson | PoissonCounts):
        return 2 * base.mean.sqrt()
    raise InputError(
        f"'view' fisher_rao knows Bernoulli and Poisson features, got {type(base).__name__}; for a"
        " normal likelihood of"
        " fixed scale the default, means, gives the same metric times the variance"
    )


@dataclass(frozen=True, eq=False)
class DecoderGeometry:
    r"""The local geometry of a decoder at N latents; it prints itself.

    Attributes:
        singular_values: Of the Jacobian, largest first, ``(N, L)``: features' units for each unit
            of the latents.
        metric: The pull-back metric :math:`G = J^\top J`, ``(N, L, L)``.
        active: The latents whose angles are scored, ``(L,)``.
        orthogonality: One minus the mean :math:`|\cos|` of the angles between columns of J, pairs
            weighted by the product of their lengths: 1 where the columns are orthogonal. None for
            fewer than two active latents.
        alignment: How far the singular directions lie along single latents: their largest squared
            coordinate, mean weighted by squared singular values: 1 where each belongs to one
            latent. None likewise.
    """

    singular_values: Tensor
    metric: Tensor
    active: Tensor
    orthogonality: RotationTest | None
    alignment: RotationTest | None

    @property
    def cosines(self) -> Tensor:
        """Cosines of the angles between the Jacobian's columns, ``(N, L, L)``; 0 at length 0."""
        each = lengths(self.metric)
        products = each.unsqueeze(-1) * each.unsqueeze(-2)
        return torch.where(products > 0, self.metric / products, torch.zeros_like(products))

    @property
    def log_volume(self) -> Tensor:
        r"""The log volume :math:`\log \sqrt{\det G}`, ``(N,)``; -inf with an unused latent."""
        return self.singular_values.log().sum(-1)

    def __str__(self) -> str:
        spectrum = ", ".join(f"{value:.3g}" for value in self.singular_values.median(0).values)
        lines = [
            f"{int(self.active.sum())} of {len(self.active)} latents are active; singular values"
            " (median over"
        ]
        lines[0] += f" {len(self.metric)} data): {spectrum}"
        if self.orthogonality is None:
            return "\n".join([*lines, "no angles to score: fewer than two latents are active"])
        return "\n".join(
            [*lines, f"orthogonality {self.orthogonality}", f"alignment {self.alignment}"]
        )


@exclusive
def decoder_jacobian(
    vae: Any, z: Tensor, context: Context | None = None, *, view: View = means
) -> Tensor:
    r"""Return the Jacobians :math:`\partial f_d / \partial z_l` at latents, ``(N, D, L)``.

    They are taken forward, one pass for each latent, with all data at once: a decoder in eval mode
    treats each datum by itself.

    Args:
        vae: A model with a ``decoder``, or a decoder: ``decoder(z)``, or ``decoder(z, context)``,
            returns :math:`p(x|z)`. It is run in eval mode, and its mode restored.
        z: Latents, ``(N, L)``.
        context: Their context, if the decoder takes one.
        view: The features of :math:`p(x|z)` to look at.

    Raises:
        InputError: if the latents do not fit the decoder or are not finite, if it returns no
            distribution that the view can look at, and if it cannot be differentiated.
    """
    check_latents(vae, z)
    with looking(vae), torch.no_grad():
        return _jacobian(vae, z, context, view)


@exclusive
def decoder_geometry(
    vae: Any,
    z: Tensor,
    context: Context | None = None,
    *,
    view: View = means,
    active: Tensor | None = None,
    num_rotations: int = 100,
    seed: int = 0,
) -> DecoderGeometry:
    r"""Measure the local geometry of a decoder: singular values, metric, and the latents' axes.

    With :math:`J = U \Sigma V^\top`, the columns of J are orthogonal where V permutes the axes (or
    singular values are equal). A guide with a diagonal covariance asks for this (Rolinek, Zietlow
    and Martius 2019), and so is β said to do. Any decoder scores something, the more so with few
    active latents or one long column; hence the null: the same decoder with its active latents
    rotated at random, all data by the same rotation.

    Args:
        vae: A model with a ``decoder``, or a decoder; see :func:`decoder_jacobian`.
        z: Latents, ``(N, L)``: posterior means of data, ``vae.encode(x)``, or draws of the prior.
        context: Their context, if the decoder takes one.
        view: The features of :math:`p(x|z)`: :func:`means`, or :func:`fisher_rao`.
        active: The latents whose angles are scored, ``(L,)``, bool; by default those with a
            variance above 0.01 over the data (all for a single datum).
        num_rotations: Number M of random rotations.
        seed: Of the rotations.

    Returns:
        The geometry at each datum, float64. The data are gone through in blocks: no more than one
        block's Jacobians are held.

    Raises:
        InputError: as :func:`decoder_jacobian`, and for ``active`` or ``num_rotations`` that cannot
            be used.
    """
    check_latents(vae, z)
    check_count("num_rotations", num_rotations)
    if active is None:
        varies = z.var(0) > ACTIVE_VARIANCE if len(z) > 1 else torch.ones_like(z[0])
        active = varies.bool()
    elif not isinstance(active, Tensor) or (active.dtype, active.shape) != (
        torch.bool,
        z.shape[1:],
    ):
        raise InputError(f"'active' must be a bool tensor ({z.shape[1]},), got {active!r}")
    chosen = active.cpu()
    metrics, singular_values = [], []
    with looking(vae), torch.no_grad():
        width = view_of(vae, z[:1], rows_of(context, slice(0, 1)), view).shape[1]
        size = max(1, _BLOCK_NUMBERS // (width * z.shape[1]))
        for start in range(0, len(z), size):
            rows = slice(start, start + size)
            jacobian = _jacobian(vae, z[rows], rows_of(context, rows), view).double()
            metrics.append((jacobian.mT @ jacobian).cpu())
            own = torch.linalg.svdvals(jacobian)
            missing = jacobian.shape[-1] - own.shape[-1]  # features fewer than latents
            singular_values.append(torch.nn.functional.pad(own, (0, missing)).cpu())
    metric = torch.cat(metrics)
    tests = (
        rotation_tests(metric[:, chosen][:, :, chosen], num_rotations, seed)
        if int(chosen.sum()) > 1
        else None
    )
    return DecoderGeometry(torch.cat(singular_values), metric, chosen, *(tests or (None, None)))


@contextmanager
def looking(vae: Any) -> Iterator[None]:
    """Run the body with a decoder in eval mode, at full precision, without validation."""
    with (
        evaluating(vae),
        full_precision(),
        pyro.validation_enabled(False),
        warnings.catch_warnings(),
    ):
        # PyTorch's forward mode scripts a few of its own functions when it is first used.
        warnings.filterwarnings("ignore", message="`torch.jit.script")
        yield


def check_latents(vae: Any, z: Tensor) -> None:
    """Raise unless latents can be given to the decoder: their shape, type and values.

    Raises:
        InputError: naming the mistake.
    """
    if not callable(_decoder(vae)):
        raise InputError(
            f"'vae' must be a model with a decoder, or a decoder, got {type(vae).__name__}"
        )
    if not isinstance(z, Tensor) or z.dim() != 2 or not z.is_floating_point() or not z.numel():
        got = f"{z.dtype} of shape {tuple(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
        raise InputError(
            f"'z' must be a floating-point tensor (N, L) with at least one row, got {got}"
        )
    width = latent_dim_of(_decoder(vae))
    if width is not None and z.shape[1] != width:
        raise InputError(f"'z' must have {width} latents as the decoder has, got {z.shape[1]}")
    check_finite("z", z)


def view_of(vae: Any, z: Tensor, context: Context | None, view: View) -> Tensor:
    """Return a view's features at latents ``(N, L)``, as rows ``(N, D)``.

    Raises:
        InputError: if the decoder does not take the latents, or returns something else than N
            distributions.
    """
    decoder = _decoder(vae)
    try:
        distribution = decoder(*arguments(z, context))
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"the decoder cannot be run on 'z' of shape {tuple(z.shape)}: {error}"
        ) from error
    values = view(distribution)
    if values.dim() < 2 or len(values) != len(z):
        raise InputError(
            f"the decoder must return a distribution for each row of 'z', {len(z)} of them, got"
            f" one whose view has shape {tuple(values.shape)}"
        )
    return values.flatten(1)


def rows_of(context: Context | None, rows: slice) -> Context | None:
    """Return some rows of a context."""
    return context and context.take(rows)


def _decoder(vae: Any) -> Any:
    return getattr(vae, "decoder", vae)


def _jacobian(vae: Any, z: Tensor, context: Context | None, view: View) -> Tensor:
    values = view_of(vae, z, context, view)
    check_finite("the decoder's output", values)
    axes = torch.eye(z.shape[1], dtype=z.dtype, device=z.device).unsqueeze(1).expand(-1, *z.shape)

    def push(tangent: Tensor) -> Any:
        return jvp(lambda latents: view_of(vae, latents, context, view), (z,), (tangent,))[1]

    try:
        jacobian = vmap(push)(axes).movedim(0, -1)
    except (InputError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"the decoder cannot be differentiated in its latents: {error}") from error
    check_finite("the decoder's Jacobian", jacobian)
    # A detached or rounded output has a derivative of exactly zero, and moves all the same.
    for latent in (jacobian == 0).flatten(0, 1).all(0).nonzero().flatten().tolist():
        if not torch.allclose(view_of(vae, z + axes[latent], context, view), values):
            raise InputError(
                f"the decoder has no derivative in latent {latent}, on which it depends: is it"
                " detached, or rounded?"
            )
    return jacobian
