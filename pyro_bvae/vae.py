r"""The program: a prior, a decoder and an encoder as one Pyro model and one Pyro guide."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn

from pyro_bvae.core.context import Context, arguments, check_context, with_covariates
from pyro_bvae.core.errors import InputError, SupportError, check_beta, check_count, check_finite
from pyro_bvae.core.inputs.calls import as_distribution
from pyro_bvae.core.inputs.data import Rows, as_codes, as_data, shown
from pyro_bvae.core.inputs.programs import as_context
from pyro_bvae.core.inputs.public import exclusive, public
from pyro_bvae.core.module_modes import evaluating
from pyro_bvae.core.param_store import register
from pyro_bvae.core.precision import run_network
from pyro_bvae.core.protocols import latent_dim_of, num_features_of, part_of, size_of
from pyro_bvae.core.seeds import GENERATE_STREAM, seeded
from pyro_bvae.distributions.partly_observed import PartlyObserved
from pyro_bvae.distributions.tempered import sample_tempered

# The parts are callables that return a torch or Pyro distribution. A context is passed only where
# there is one: a user's part need not know of contexts.
Prior = Callable[[], Any]
Conditional = Callable[..., Any]


@contextmanager
def _latent_scale(beta: float | Tensor) -> Iterator[None]:
    r"""Scale the latent's log density by β, and mask it where β is 0, the limit."""
    if isinstance(beta, Tensor):
        # The check reads the tensor's values, so it goes with validation, as Pyro's own check of
        # scales does.
        if is_validation_enabled():
            check_beta(beta)
        positive: Any = beta > 0
        with (
            poutine.scale(scale=torch.where(positive, beta, torch.ones_like(beta))),
            poutine.mask(mask=positive),
        ):
            yield
        return
    check_beta(beta)
    if beta > 0:
        with poutine.scale(scale=beta):
            yield
    else:
        with poutine.mask(mask=False):
            yield


class Decoder(nn.Module):
    r"""A network and the likelihood that its output parametrises, :math:`p(x \mid z)`.

    Args:
        network: Maps ``(*, L)`` to ``(*, P D)``, where the likelihood wants P parameters a feature.
            Covariates, if any, are appended to its input.
        likelihood: Maps the network's output to a distribution with event shape ``(D,)``.
        num_covariates: How many of the network's inputs are covariates.

    Shape:
        ``(*, N, L)`` to a distribution with batch shape ``(*, N)`` and event shape ``(D,)``.
    """

    @public
    def __init__(
        self, network: nn.Module, likelihood: nn.Module, *, num_covariates: int = 0
    ) -> None:
        super().__init__()
        self.network = network
        self.likelihood = likelihood
        in_features, outputs = (size_of(network, f"{end}_features") for end in ("in", "out"))
        self.latent_dim = None if in_features is None else in_features - num_covariates
        per_feature = size_of(likelihood, "parameters_per_feature") or 1
        if outputs is not None and outputs % per_feature:
            raise InputError(
                f"'likelihood' wants {per_feature} parameters a feature, but 'network' gives"
                f" {outputs} outputs"
            )
        self.num_features = None if outputs is None else outputs // per_feature

    def forward(self, z: Tensor, context: Context | None = None) -> dist.Distribution:
        """Return :math:`p(x | z)`."""
        inputs = with_covariates(z, context, size_of(self.network, "in_features"))
        # As rows, so that a network need not know of particles: batch norm, for one, takes no more
        # dimensions.
        rows = run_network(self.network, inputs.reshape(-1, inputs.shape[-1]))
        outputs = rows.reshape(*inputs.shape[:-1], rows.shape[-1])
        return self.likelihood(*arguments(outputs, context))


class BetaVAE(nn.Module):
    r"""A β-variational autoencoder as a Pyro model and guide (Higgins et al. 2017).

    .. math::
        \text{model: } z_n \sim p(z), \; x_n \sim p(x \mid z_n) \qquad \text{guide: } z_n \sim q(z
        \mid x_n)

    with the log density of ``z`` scaled by β in both, so that ``Trace_ELBO`` and
    ``TraceMeanField_ELBO`` maximise

    .. math::
        \sum_n \mathbb{E}_{q(z \mid x_n)} [\log p(x_n \mid z)] - \beta \, KL(q(z \mid x_n) \,\|\,
        p(z)).

    β is an argument of the two functions and no state: whatever forgets it evaluates the bound
    itself. The sites are ``z`` and ``x``, the plate is ``data``, and any callable that returns a
    distribution is a part.

    A part with weights is an ``nn.Module`` that holds them. Weights that a plain function closes
    over are none of the model's, and :func:`~pyro_bvae.fit` refuses to train around them: assign
    their module (``vae.extra = module``).

    With ``missing``, NaN in x is an entry that was not observed. It is left out of the likelihood,
    so that every number (objective, bound, evidence, gaps) is that of the observed entries: enough
    if missingness does not depend on the missing values (Rubin 1976; in a VAE Mattei and Frellsen
    2019). The encoder is shown 0 in its place, or the mean where its inputs are
    :class:`~pyro_bvae.networks.Standardize`: a guide that is to tell it from such a value takes
    ``torch.isnan(x)`` among its covariates.

    Args:
        prior: ``prior()`` returns :math:`p(z)`, event shape ``(L,)``.
        decoder: ``decoder(z)``, or ``decoder(z, context)``, returns :math:`p(x|z)`, event shape
            ``(D,)``.
        encoder: ``encoder(x)``, or ``encoder(x, context)``, returns :math:`q(z|x)`, event shape
            ``(L,)``.
        missing: Whether x may hold NaN for entries that were not observed. The likelihood's
            features have to be independent given z.
        name: Prefix of the parameters in Pyro's store: two models that plain Pyro trains in one
            process need two.

    Raises:
        InputError: if the parts state sizes that disagree.
    """

    @public
    def __init__(
        self,
        prior: Prior,
        decoder: Conditional,
        encoder: Conditional,
        *,
        missing: bool = False,
        name: str = "beta_vae",
    ) -> None:
        super().__init__()
        for role, part in (("prior", prior), ("decoder", decoder), ("encoder", encoder)):
            if isinstance(part, type) or not callable(part):
                raise InputError(
                    f"'{role}' must be a function or module that returns a distribution, got"
                    f" {shown(part)}"
                )
        self.prior, self.decoder, self.encoder = prior, decoder, encoder
        self.missing, self.name = missing, name
        self.latent_dim = self._agreed("latents", latent_dim_of)
        self.num_features = self._agreed("features", num_features_of)

    def _agreed(self, noun: str, size_of: Callable[[object], int | None]) -> int | None:
        """Return the one size that the parts state, or None where no part states it."""
        parts = {"prior": self.prior, "decoder": self.decoder, "encoder": self.encoder}
        known = {name: size for name in parts if (size := size_of(parts[name])) is not None}
        if len(set(known.values())) > 1:
            listed = ", ".join(f"{name} {size}" for name, size in known.items())
            raise InputError(f"the parts must agree on the number of {noun}, got {listed}")
        return next(iter(known.values()), None)

    def check_data(self, x: Tensor, context: Context | None = None) -> None:
        """Raise unless the model can explain the data: shape, finite values, support.

        Raises:
            InputError: naming the fault and the index of the first offending value.
        """
        if x.dim() != 2 or not x.is_floating_point():
            raise InputError(
                f"'x' must be a floating-point tensor (N, D), got {x.dtype} of shape"
                f" {tuple(x.shape)}"
            )
        self._check_features(x)
        own = next(self.parameters(), x)
        if (x.dtype, x.device) != (own.dtype, own.device):
            raise InputError(
                f"'x' must be {own.dtype} on {own.device} as the model is, got {x.dtype} on"
                f" {x.device}; use x.to(...)"
            )
        self._check_values(x)
        check_context(context or Context(), x.shape[0])

    def _check_values(self, x: Tensor) -> None:
        unseen = torch.isnan(x)
        if not self.missing and bool(unseen.any()):
            index = tuple(int(i) for i in unseen.nonzero()[0])
            raise InputError(
                f"'x' must be finite, got nan at index {index}; BetaVAE(..., missing=True) takes it"
                " as missing"
            )
        check_finite("x", x.masked_fill(unseen, 0) if self.missing else x)
        support = part_of(self, "decoder", "likelihood", "support")
        if support is None:
            return
        inside = support.check(x) | unseen if self.missing else support.check(x)
        if not bool(inside.all()):
            index = tuple(int(i) for i in (~inside).nonzero()[0])
            raise SupportError(support, x[index].item(), index)

    def _check_features(self, x: Tensor) -> None:
        if self.num_features is not None and x.shape[-1] != self.num_features:
            raise InputError(f"'x' must have {self.num_features} features, got {x.shape[-1]}")

    def _taken(self, x: Any, context: Any) -> tuple[Any, ...]:
        """Return data and context as the encoder takes them, checked."""
        x = as_data("x", x, next(self.parameters(), None), self.num_features)
        context = as_context(context, x)
        self.check_data(x, context)
        return arguments(self._shown(x), context)

    def model(
        self, x: Tensor, context: Context | None = None, beta: float | Tensor = 1.0
    ) -> Tensor:
        r"""The generative model, :math:`\prod_n p(z_n) p(x_n \mid z_n)`.

        Args:
            x: Observed data, shape ``(N, D)``; ``poutine.uncondition`` makes the model draw all of
                it instead.
            context: Size factors and covariates.
            beta: Weight of the latent's log density: a float, or a tensor that broadcasts over the
                plates.

        Returns:
            The value of site ``x``.
        """
        self._check_features(x)
        register(self.name, self)
        with pyro.plate("data", x.shape[-2], dim=-1):
            with _latent_scale(beta):
                z = pyro.sample("z", as_distribution("prior", self.prior()))
            likelihood = self._decoded(z, context)
            return pyro.sample(
                "x", PartlyObserved.of(likelihood) if self.missing else likelihood, obs=x
            )

    def guide(
        self, x: Tensor, context: Context | None = None, beta: float | Tensor = 1.0
    ) -> Tensor:
        r"""The amortized guide, :math:`\prod_n q(z_n \mid x_n)`, as :meth:`model`.

        Returns:
            The value of site ``z``, shape ``(N, L)``.
        """
        self._check_features(x)
        register(self.name, self)
        with pyro.plate("data", x.shape[-2], dim=-1), _latent_scale(beta):
            return pyro.sample("z", self._encoded(*arguments(self._shown(x), context)))

    def _encoded(self, *args: Any) -> Any:
        return as_distribution("encoder", self.encoder(*args))

    def _decoded(self, z: Tensor, context: Context | None) -> Any:
        return as_distribution("decoder", self.decoder(*arguments(z, context)))

    def _shown(self, x: Tensor) -> Tensor:
        """Return the encoder's view of the data: 0 for missing entries that it does not fill."""
        fills = part_of(self, "encoder", "inputs", "fills_missing")
        return x.masked_fill(torch.isnan(x), 0) if self.missing and not fills else x

    @exclusive
    @torch.no_grad()
    def posterior(self, x: Rows, context: Context | None = None) -> Any:
        """Return :math:`q(z | x)` without a gradient, batch ``(N,)`` and event ``(L,)``."""
        with evaluating(self):
            return self._encoded(*self._taken(x, context))

    @exclusive
    @torch.no_grad()
    def encode(self, x: Rows, context: Context | None = None) -> Tensor:
        """Return the posterior means of the latents, shape ``(N, L)``."""
        with evaluating(self):
            return self._encoded(*self._taken(x, context)).mean

    @exclusive
    @torch.no_grad()
    def decode(self, z: Tensor, context: Context | None = None) -> Tensor:
        """Return the means of :math:`p(x | z)` at given latents, shape ``(*, L)`` to ``(*, D)``."""
        z = as_codes(z, next(self.parameters(), None), self.latent_dim)
        with evaluating(self):
            return self._decoded(z, context).mean

    @exclusive
    def reconstruct(self, x: Rows, context: Context | None = None) -> Tensor:
        """Return the means of :math:`p(x | z)` at the posterior means, shape ``(N, D)``."""
        return self.decode(self.encode(x, context), context)

    @exclusive
    def impute(self, x: Rows, context: Context | None = None) -> Tensor:
        """Return the data with the reconstruction where they are NaN, shape ``(N, D)``.

        It is a mean, of the likelihood at the posterior mean of the latents: of counts, say, no
        whole number. For draws of missing entries, run the model under ``poutine.uncondition`` with
        the guide's latents.
        """
        x = as_data("x", x, next(self.parameters(), None), self.num_features)
        return torch.where(torch.isnan(x), self.reconstruct(x, context), x)

    @exclusive
    @torch.no_grad()
    def generate(
        self,
        num_samples: int,
        context: Context | None = None,
        *,
        noise: bool = False,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> Tensor:
        """Draw latents from the prior and decode them.

        Args:
            num_samples: How many data to make.
            context: The context of the data to make, one row for each.
            noise: Draw from the likelihood instead of taking its mean.
            temperature: Scales the spread of the prior about its location: below 1 the latents are
                more typical, and the data less varied (Kingma and Dhariwal 2018). The likelihood
                stays as it is.
            seed: Seed of the draws; the caller's generators are left alone.

        Returns:
            Shape ``(num_samples, D)``.

        Raises:
            InputError: if the temperature is negative, or is not 1 and the prior has no location.
        """
        check_count("num_samples", num_samples)
        if context is not None:
            check_context(context, num_samples)
        with evaluating(self), seeded(seed, GENERATE_STREAM):
            prior = as_distribution("prior", self.prior())
            z = sample_tempered(prior, temperature, torch.Size([num_samples]))
            likelihood = self._decoded(z, context)
            return likelihood.sample() if noise else likelihood.mean
