r"""The importance weighted bound as a training objective, with weights of each datum.

.. math::
    \mathcal{L}_K = \sum_n \log \frac1K \sum_{k=1}^K w_{nk}, \qquad z_{nk} \sim q(z \mid x_n)

is a lower bound of the evidence that tightens with K (Burda, Grosse and Salakhutdinov 2016).
Weights pooled over a batch would be those of another, looser bound, and the scale of a mini-batch
inside of them those of none.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import public
from pyro_bvae.core.module_modes import evaluating
from pyro_bvae.core.precision import full_precision
from pyro_bvae.core.seeds import PROBE_STREAM, seeded
from pyro_bvae.training.objectives.particles import Function, Pair, Run
from pyro_bvae.training.objectives.terms import StepsByTerms, Terms


@public
class IWELBO(StepsByTerms, ELBO):
    r"""The importance weighted bound, for ``pyro.infer.SVI`` and ``fit``.

    The loss is :math:`-\mathcal{L}_K` with

    .. math::
        \log w_{nk} = \log p(x_n \mid z_{nk}) + \beta \, (\log p(z_{nk}) - \log q(z_{nk} \mid x_n)),

    summed over all dimensions of all sites but particles and data, in nats. At β = 1 it is the
    bound of Burda, Grosse and Salakhutdinov (2016); at another β, which scales the latents of model
    and guide as in :class:`~pyro_bvae.BetaVAE`, it is an objective and no bound, and β = 0 is its
    limit. At K = 1 it is the loss of ``Trace_ELBO``. Masks stay in the weights, and so does every
    scale but one: that of a subsampled data plate multiplies the loss, outside of the logarithm.

    Doubly reparametrised, the gradient of the guide's parameters :math:`\phi` is

    .. math::
        \sum_k \tilde w_{nk} \, (1 - \beta \, (1 - \tilde w_{nk})) \,
        \frac{\partial \log w_{nk}}{\partial z_{nk}} \frac{\partial z_{nk}}{\partial \phi}, \qquad
        \tilde w_{nk} = \frac{w_{nk}}{\sum_j w_{nj}},

    which at β = 1 is :math:`\sum_k \tilde w_{nk}^2 \, \partial_z \log w_{nk} \, \partial_\phi
    z_{nk}` (Tucker, Lawson, Gu and Maddison 2019). It has the expectation of the plain gradient,
    and less variance where there are many particles or the guide is good. At K = 1 it is the path
    gradient of Roeder, Wu and Duvenaud (2017). The model's parameters keep the plain gradient,
    :math:`\sum_k \tilde w_{nk} \, \partial_\theta \log w_{nk}`; a parameter that model and guide
    share gets the sum of its two parts, whose expectation is that of the plain gradient as well.

    A doubly reparametrised guide has to evaluate its density at given values, so a flow needs an
    inverse. A guide of several sites is run three times a step: it must be a function of its draws
    (no dropout) and have the same scale (β) at all of them.

    Like Pyro's objectives with particles in a plate, an instance serves one program.

    Args:
        num_particles: K, at least 1.
        doubly_reparametrized: Whether the guide's gradient is the doubly reparametrised one.
        data_plate: Name of the data plate, where the latents share more than one.
        vectorize_particles: Draw all particles at once, by a plate around the program. A program
            that weighs otherwise inside of that plate is recognised at the first step and run one
            particle at a time, with a warning.
        max_plate_nesting: Number of dimensions that the program's plates take; measured where it
            is not given.
        retain_graph: Whether ``loss_and_grads`` keeps the graph.

    Raises:
        InputError: if an argument cannot be used; at a step, if the program has no weights for each
            datum: a guide site without reparametrised draws, a latent that the guide misses, a site
            outside the data plate, a subsampled plate inside of it, different scales at the sites
            of a doubly reparametrised guide.
    """

    def __init__(
        self,
        num_particles: int = 8,
        *,
        doubly_reparametrized: bool = False,
        data_plate: str | None = None,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
        retain_graph: bool | None = None,
    ) -> None:
        check_count("num_particles", num_particles)
        vectorize_particles = vectorize_particles and num_particles > 1
        super().__init__(
            num_particles=num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            retain_graph=retain_graph,
        )
        self.doubly_reparametrized, self.data_plate = doubly_reparametrized, data_plate
        self._is_vectorized: bool | None = None if vectorize_particles else False

    def __repr__(self) -> str:
        doubly = f"doubly_reparametrized={self.doubly_reparametrized}"
        return f"IWELBO(num_particles={self.num_particles}, {doubly})"

    def terms(self, model: Function, guide: Function, *args: Any, **kwargs: Any) -> Terms:
        """Return the terms of one batch; distortion and rate are means over the particles."""
        if isinstance(poutine.unwrap(guide), Messenger):
            raise InputError(
                "'guide' must be a function or a module, got the effect handler"
                f" {type(guide).__name__}, which Trace_ELBO accepts"
            )
        pair = Pair(model, guide, args, kwargs)
        if self._is_vectorized is None:
            self._is_vectorized = self._vectorizes(pair)
        if self._is_vectorized:
            runs = [self._run(self._with_particles(pair))]
        else:
            runs = [self._run(pair)]
            runs += [self._run(pair, runs[0].subsample()) for _ in range(1, self.num_particles)]
        log_weights = torch.cat([run.log_weights for run in runs])
        weights = log_weights.detach().softmax(0).chunk(len(runs))
        for run, own in zip(runs, weights, strict=True):
            run.set_weights(own)
        bound = (log_weights.logsumexp(0) - math.log(self.num_particles)).sum()
        with torch.no_grad():
            distortion = torch.stack([run.distortion() for run in runs]).sum() / self.num_particles
            rate = torch.stack([run.rate() for run in runs]).sum() / self.num_particles
        return Terms(-runs[0].plate_scale * bound, distortion, rate)

    def _get_trace(
        self, model: Function, guide: Function, args: Any, kwargs: Any
    ) -> tuple[poutine.Trace, ...]:
        run = self._run(Pair(model, guide, args, kwargs))
        return run.model_trace, run.guide_trace

    def _run(self, pair: Pair, start: poutine.Trace | None = None) -> Run:
        particle_dim = -int(self.max_plate_nesting) if self._is_vectorized else None
        return Run(pair, particle_dim, self.data_plate, self.doubly_reparametrized, start)

    def _with_particles(self, pair: Pair) -> Pair:
        model, guide = map(self._vectorized_num_particles, (pair.model, pair.guide))
        return Pair(model, guide, pair.args, pair.kwargs)

    @torch.no_grad()
    def _vectorizes(self, pair: Pair) -> bool:
        """Find the particles' dimension, and whether two weigh the same together and alone."""
        with (
            evaluating(pair.model, pair.guide),
            poutine.block(),
            seeded(0, PROBE_STREAM),
            full_precision(),
        ):
            alone = self._run(pair)  # raises for faults of the program itself
            if self.max_plate_nesting == math.inf:
                self.max_plate_nesting = alone.plate_nesting + 1
            try:
                dim, plate = -int(self.max_plate_nesting), self.data_plate
                together = Run(self._with_particles(pair), dim, plate)
                again = [Run(pair, None, plate, start=together.particle(k)) for k in range(2)]
                weights = together.log_weights[:2], torch.cat([run.log_weights for run in again])
                if torch.allclose(*weights, rtol=1e-4, atol=1e-3, equal_nan=True):
                    return True
            except (RuntimeError, ValueError, IndexError):
                pass
        warnings.warn(
            "the program gives other weights with a plate of particles around it than without (does"
            " it mix or count batch dimensions?), so IWELBO runs it one particle at a time, slowly",
            stacklevel=2,
        )
        return False
