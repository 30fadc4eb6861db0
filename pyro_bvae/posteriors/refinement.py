r"""Refined posteriors: K local gradient steps for each datum, from the encoder's answer on.

.. math:: q_n^{(0)} = q_\phi(z \mid x_n), \qquad q_n^{(k)} = q_n^{(k-1)} + \text{a step of Adam on }
    \mathbb{E}_{q_n}[\log p(x_n, z) - \log q_n(z)]

(semi-amortized inference: Kim et al. 2018). The noise of the steps is a fixed rule of points, the
same for all data: the answer is a function of the datum alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_bvae.core.context import Context, arguments
from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import public
from pyro_bvae.core.module_modes import owner
from pyro_bvae.core.protocols import latent_dim_of, num_features_of
from pyro_bvae.core.seeds import PROBE_STREAM, seeded
from pyro_bvae.posteriors.local import local_posterior
from pyro_bvae.posteriors.refinement_draws import drawn, event_numbers, noise_points
from pyro_bvae.posteriors.refinement_memory import LastAnswer
from pyro_bvae.program.arguments import tensors
from pyro_bvae.program.program import Program
from pyro_bvae.program.sites import Site, samples

LogJoint = Callable[[dict[str, Tensor]], Tensor]

# Adam's averages, the steps after which a step is half as long, and the size of a gradient, in
# nats, below which Adam takes it for rounding.
_AVERAGES, _SLOWER, _ROUNDING = (0.5, 0.8), 20, 1e-3


class _Steps:
    """The steps of a refinement, the same for every datum.

    Args:
        num_steps: K.
        learning_rate: The size of the first step, in units of the posterior's scales.
        num_points: Points of noise behind each step.
    """

    def __init__(self, num_steps: int, learning_rate: float, num_points: int) -> None:
        if num_steps:
            check_count("num_steps", num_steps)
        check_count("num_points", num_points)
        if not 0 < learning_rate < math.inf:
            raise InputError(f"'learning_rate' must be positive and finite, got {learning_rate}")
        self.num_steps, self.learning_rate, self.num_points = num_steps, learning_rate, num_points

    def take(self, parts: dict[str, nn.Module], log_joint: LogJoint, data_dim: int) -> None:
        """Take the steps on the free parameters of local posteriors, which start at zero.

        Each datum keeps the best of its iterates, so that none ends below its start.

        Args:
            parts: The local posteriors, by site.
            log_joint: Returns the log joint density of values ``(S, *)``, shape ``(S, N)``.
            data_dim: The dimension of the data in a batch, counted from the right.
        """
        parameters = [parameter for part in parts.values() for parameter in part.parameters()]
        if not self.num_steps:
            return
        places = [
            len(part().batch_shape) + data_dim for part in parts.values() for _ in part.parameters()
        ]
        adam = torch.optim.Adam(parameters, betas=_AVERAGES, eps=_ROUNDING)
        best, kept = (
            torch.full((), -math.inf),
            [parameter.detach().clone() for parameter in parameters],
        )
        for step in range(self.num_steps + 1):
            with torch.enable_grad():
                bound = self._bound(parts, log_joint, data_dim)
                gradients = torch.autograd.grad(-bound.sum(), parameters, allow_unused=True)
            rose = bound.detach() > best
            best = torch.where(rose, bound.detach(), best)
            for old, new, gradient, place in zip(kept, parameters, gradients, places, strict=True):
                rows = rose.reshape(-1, *[1] * (new.dim() - place - 1))
                old.copy_(torch.where(rows, new.detach(), old))
                new.grad = gradient
            adam.param_groups[0]["lr"] = self.learning_rate / (1 + step / _SLOWER)
            adam.step()
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)

    def _bound(self, parts: dict[str, nn.Module], log_joint: LogJoint, data_dim: int) -> Tensor:
        """Return the bound of each datum by a rule of points, shape ``(N,)``."""
        count = self.num_points
        laws = {name: part() for name, part in parts.items()}
        shapes = {name: event_numbers(law, data_dim) for name, law in laws.items()}
        points = noise_points(count, sum(map(math.prod, shapes.values())), 0)
        values, log_guide = {}, torch.zeros(())
        noises = points.split([math.prod(shape) for shape in shapes.values()], -1)
        for (name, law), shape, noise in zip(laws.items(), shapes.values(), noises, strict=True):
            like = next(parts[name].parameters())
            values[name], density = drawn(law, noise.to(like).reshape(count, *shape))
            kept = (0, density.dim() + data_dim)
            others = [dim for dim in range(density.dim()) if dim not in kept]
            log_guide = log_guide + (density.sum(others) if others else density)
        return (log_joint(values) - log_guide).mean(0)


def _free(law: Any, role: str) -> nn.Module:
    """Return the local version of a distribution, started there."""
    base = law
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    try:
        return local_posterior(base, len(law.event_shape))
    except InputError as error:
        raise InputError(f"{role} of family {type(base).__name__} cannot be refined") from error


@public
class RefinedPosterior(nn.Module):
    r"""The encoder's answer after K local gradient steps for each datum, as a part of a model.

    ``BetaVAE(vae.prior, vae.decoder, RefinedPosterior(vae.encoder, vae.prior, vae.decoder))`` is
    the model with the refined guide, whose ``encode`` is refined too. The answer has the encoder's
    family and its density. It has no gradient in the encoder's weights: train the encoder first.
    Of a model with missing entries, whose encoder is shown 0 for them, and of a program of your
    own, :func:`refined` gives the guide.

    Args:
        encoder: ``encoder(x)`` or ``encoder(x, context)``, such as that of a trained model: normal,
            of full or low rank, or a flow.
        prior: The model's prior.
        decoder: The model's decoder.
        num_steps: K; 0 for the encoder's own answer.
        learning_rate: The size of the first step, in units of the posterior's scales.
        num_points: Points of noise behind each step.

    Shape:
        ``(N, D)`` to a distribution with batch shape ``(N,)`` and event shape ``(L,)``. Reference:
        Kim et al. 2018.
    """

    def __init__(
        self,
        encoder: Callable[..., Any],
        prior: Callable[..., Any],
        decoder: Callable[..., Any],
        *,
        num_steps: int = 10,
        learning_rate: float = 0.3,
        num_points: int = 32,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        # The model's own parts, which are no parts of its guide.
        self._model = (prior, decoder)
        self._steps = _Steps(num_steps, learning_rate, num_points)
        self._last: LastAnswer[Any] = LastAnswer((encoder, prior, decoder))
        self.latent_dim, self.num_features = latent_dim_of(encoder), num_features_of(encoder)

    def forward(self, x: Tensor, context: Context | None = None) -> Any:
        """Return :math:`q(z | x)` after the steps."""
        if x.dim() != 2:
            raise InputError(f"'x' must be (N, D), got {tuple(x.shape)}")
        inputs = (x, *(context or Context()))
        return self._last.get(inputs, lambda: self._refined(x, context))

    def _refined(self, x: Tensor, context: Context | None) -> Any:
        prior, decoder = self._model
        with torch.no_grad():
            part = _free(self.encoder(*arguments(x, context)), "an encoder").to(x.device)

        def log_joint(values: dict[str, Tensor]) -> Tensor:
            z = values["z"]
            law = decoder(*arguments(z, context))
            density: Tensor = prior().log_prob(z) + law.log_prob(x)
            return density

        with poutine.block():
            self._steps.take({"z": part}, log_joint, -1)
        with torch.no_grad():
            return part()


class _InnerProgram(Program):
    """A program that is run inside another's plate of particles, by a guide of it."""

    particle_plate, dims_left = "refinement", 2


class RefinedGuide(nn.Module):
    """A guide of a Pyro program after K local steps for each datum; see :func:`refined`."""

    def __init__(
        self, guide: Callable[..., Any], model: Callable[..., Any], steps: _Steps,
        data_plate: str | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._pair, self._steps, self._data_plate = (model, guide), steps, data_plate
        self._program: Program | None = None
        # A function may use what nobody knows of; the module of a method has its weights.
        self._last: LastAnswer[tuple[dict[str, Any], dict[str, Site]]]
        self._last = LastAnswer((owner(model), owner(guide)))

    def forward(self, *args: Any) -> dict[str, Tensor]:
        """Sample every site, and return the values by name."""
        laws, sites = self._laws(args)
        values = {}
        plates: dict[str, pyro.plate] = {}  # one object for all sites that share a plate
        for name, law in laws.items():
            with ExitStack() as stack:
                for frame in sites[name]["cond_indep_stack"]:
                    if not frame.vectorized:
                        continue
                    if frame.name not in plates:
                        plates[frame.name] = pyro.plate(frame.name, frame.size, dim=frame.dim)
                    stack.enter_context(plates[frame.name])
                values[name] = pyro.sample(name, law)
        return values

    def posterior(self, *args: Any) -> dict[str, Any]:
        """Return the refined distribution of each latent site by its name."""
        return self._laws(args)[0]

    def _laws(self, args: tuple[Any, ...]) -> tuple[dict[str, Any], dict[str, Site]]:
        """Return the refined distribution of each site, and the sites of the guide."""
        return self._last.get(tensors(args), lambda: self._refined(args))

    def _refined(self, args: tuple[Any, ...]) -> tuple[dict[str, Any], dict[str, Site]]:
        with poutine.block(), torch.no_grad(), seeded(0, PROBE_STREAM):
            program = self._program or self._open(args)
            sites = samples(poutine.trace(self._pair[1]).get_trace(*args))
            parts = {
                name: _free(site["fn"], f"guide site '{name}'") for name, site in sites.items()
            }
            self._steps.take(parts, lambda values: _log_joint(program, values, args),
                             program.plate.dim)  # fmt: skip
            return {name: part() for name, part in parts.items()}, sites

    def _open(self, args: tuple[Any, ...]) -> Program:
        """Look over the program, and refuse a guide whose sites depend on each other's draws."""
        program = _InnerProgram(*self._pair, args, self._data_plate)
        if set(program.guide_sites) != set(program.latents):
            raise InputError(
                "a guide is refined whose sites are the latents, got"
                f" {sorted(program.guide_sites)} for {sorted(program.latents)}"
            )
        first, second = (samples(poutine.trace(self._pair[1]).get_trace(*args)) for _ in range(2))
        for name, site in first.items():
            starts = [_free(each["fn"], f"guide site '{name}'") for each in (site, second[name])]
            buffers = zip(*(start.buffers() for start in starts), strict=True)
            if not all(torch.allclose(a, b, rtol=1e-3) for a, b in buffers):
                raise InputError(
                    f"guide site '{name}' depends on other draws, so it cannot be refined alone"
                )
        self._program = program
        return program


def _log_joint(program: Program, values: dict[str, Tensor], args: tuple[Any, ...]) -> Tensor:
    """Return the log joint density of values, ``(S, N)``."""
    placed = {}
    for name, value in values.items():
        # The particles lie left of all plates, and a site may be in fewer of them than others.
        rank = value.dim() - 1 - program.guide_sites[name]["fn"].event_dim
        gap = max(0, -program.particle_dim - 1 - rank)
        placed[name] = value.reshape(len(value), *[1] * gap, *value.shape[1:])
    latent, observed = program.log_joint(placed, args)
    return latent + observed


@public
def refined(
    guide: Callable[..., Any],
    model: Callable[..., Any],
    num_steps: int = 10,
    *,
    learning_rate: float = 0.3,
    num_points: int = 32,
    data_plate: str | None = None,
) -> RefinedGuide:
    r"""Return a guide that starts at another's answer and takes K local steps for each datum.

    It is a Pyro guide with the arguments, sites and families of the one that is given, and with the
    density of what it draws: it serves ``Predictive``, :func:`~pyro_bvae.evidence`,
    :func:`~pyro_bvae.elbo` and :func:`~pyro_bvae.inference_gaps` in its place. By its own
    points of noise a datum never ends below its start, and more steps never give a worse bound. The
    answer is a function of the datum and the weights, and has no gradient in the weights.

    Args:
        guide: A guide whose sites are the latents, independent given the data, each of a normal
            family (of full or low rank, through fixed transforms) or a flow of this package.
        model: The model that it is a guide of.
        num_steps: K; 0 for the guide's own answer.
        learning_rate: The size of the first step, in units of the posterior's scales; steps grow
            smaller with their number.
        num_points: Points of noise behind each step, in antithetic pairs. Their mean and, where
            there are twice as many as latents, their covariance are exact: with a linear-normal
            model and a normal guide so is each step.
        data_plate: Name of the data plate, where the latents share more than one.

    Raises:
        InputError: if an argument cannot be used; when it is run, for a guide that cannot be
            refined. Reference: Kim et al. 2018.
    """
    for name, function in (("guide", guide), ("model", model)):
        if not callable(function) or isinstance(function, type):
            raise InputError(f"'{name}' must be a Pyro function, got {function!r:.80}")
    return RefinedGuide(guide, model, _Steps(num_steps, learning_rate, num_points), data_plate)
