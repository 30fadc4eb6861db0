r"""The linear-Gaussian VAE: evidence, posterior, gaps and R-D curve as closed forms.

.. math:: z \sim \mathcal{N}(0, I_L), \qquad x \mid z \sim \mathcal{N}(W z + b, \sigma^2 I_D)

Everything that the package estimates is held to this model (probabilistic PCA: Tipping and Bishop
1999; its VAE: Lucas et al. 2019). All values are in nats.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from pyro_bvae.core.errors import InputError, check_beta
from pyro_bvae.core.seeds import SAMPLE_STREAM, seeded
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import LocalNormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.vae import BetaVAE, Decoder


class ExactGaps(NamedTuple):
    """The exact gaps of each datum in nats, every entry of shape ``(N,)``."""

    variational: Tensor
    approximation: Tensor
    beta: Tensor
    amortization: Tensor


class Optimum(NamedTuple):
    """The optimum of the β-objective over linear VAEs, by the covariance eigenvalues."""

    rates: Tensor  # of each axis, (n,)
    residuals: Tensor  # variance that each axis leaves unexplained, (n,)
    rate: float
    distortion: float

    @property
    def active(self) -> Tensor:
        """Which axes carry rate, shape ``(n,)``."""
        return self.rates > 0


class LinearGaussian:
    r"""A linear-Gaussian VAE with known parameters, in closed forms.

    Args:
        weight: W, shape ``(D, L)``. The posterior's covariance is the same for all data and
            correlated unless the columns of W are orthogonal, so a diagonal guide has an
            approximation gap that is not zero.
        noise_scale: σ, positive.
        bias: b, shape ``(D,)``; zero by default.
    """

    def __init__(self, weight: Tensor, noise_scale: float, bias: Tensor | None = None) -> None:
        if not noise_scale > 0:
            raise InputError(f"'noise_scale' must be positive, got {noise_scale}")
        self.weight, self.noise_scale = weight.double(), float(noise_scale)
        self.bias = (
            torch.zeros(weight.shape[0], dtype=torch.double) if bias is None else bias.double()
        )

    def sample(self, num_data: int, seed: int = 0) -> Tensor:
        """Draw data from the model, shape ``(N, D)``, float64."""
        with seeded(seed, SAMPLE_STREAM):
            z = torch.randn(num_data, self.weight.shape[1], dtype=torch.double)
            noise = torch.randn(num_data, self.weight.shape[0], dtype=torch.double)
        return z @ self.weight.T + self.bias + self.noise_scale * noise

    def precision(self, beta: float = 1.0) -> Tensor:
        r"""Precision of the tempered posterior, :math:`I + W^T W / (\beta \sigma^2)`, ``(L, L)``.

        It belongs to the density proportional to :math:`p(z) p(x|z)^{1/\beta}`, the target of the
        β-objective.
        """
        _check_positive(beta)
        identity = torch.eye(self.weight.shape[1], dtype=torch.double)
        return identity + self.weight.T @ self.weight / (beta * self.noise_scale**2)

    def posterior_mean(self, x: Tensor, beta: float = 1.0) -> Tensor:
        """Mean of the posterior tempered by β, shape ``(N, L)``."""
        projected = (x.double() - self.bias) @ self.weight / (beta * self.noise_scale**2)
        return torch.linalg.solve(self.precision(beta), projected.T).T

    def best_diagonal(self, x: Tensor, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        r"""Return mean and scale of the best diagonal guide under the β-objective, each ``(N, L)``.

        The mean is the tempered posterior's, the variances are the inverse diagonal of its
        precision.
        """
        loc = self.posterior_mean(x, beta)
        return loc, self.precision(beta).diagonal().rsqrt().expand_as(loc)

    def tempered_point(self, x: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        r"""Return rate and distortion of the exact posterior tempered by β, ``(N,)`` each.

        It is the best code of each datum under this decoder and prior,
        :math:`q \propto p(z) p(x|z)^{1/\beta}`, so the points of all β are the decoder's
        rate-distortion curve.
        """
        loc, precision = self.posterior_mean(x, beta), self.precision(beta)
        covariance = torch.linalg.inv(precision)
        spread = covariance.trace() + torch.logdet(precision) - len(precision)
        rate = 0.5 * (loc.square().sum(-1) + spread)
        residual = x.double() - self.bias - loc @ self.weight.T
        lost = (covariance @ self.weight.T @ self.weight).trace()
        constant = 0.5 * self.weight.shape[0] * math.log(2 * math.pi * self.noise_scale**2)
        distortion = (residual.square().sum(-1) + lost) / (2 * self.noise_scale**2) + constant
        return rate, distortion

    def evidence(self, x: Tensor) -> Tensor:
        r"""Return :math:`\log \mathcal{N}(x; b, W W^T + \sigma^2 I)`, shape ``(N,)``."""
        identity = torch.eye(self.weight.shape[0], dtype=torch.double)
        covariance = self.weight @ self.weight.T + self.noise_scale**2 * identity
        return torch.distributions.MultivariateNormal(self.bias, covariance).log_prob(x.double())

    def rate(self, loc: Tensor, scale: Tensor) -> Tensor:
        r"""Return :math:`KL(q \| p(z))` of a diagonal normal, shape ``(N,)``."""
        loc, variance = loc.double(), scale.double() ** 2
        return 0.5 * (loc**2 + variance - 1 - variance.log()).sum(-1)

    def distortion(self, x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        r"""Return :math:`-\mathbb{E}_q \log p(x|z)` of a diagonal normal, shape ``(N,)``."""
        residual = x.double() - self.bias - loc.double() @ self.weight.T
        spread = (scale.double() ** 2) @ (self.weight**2).sum(0)
        constant = 0.5 * self.weight.shape[0] * math.log(2 * math.pi * self.noise_scale**2)
        return (residual.square().sum(-1) + spread) / (2 * self.noise_scale**2) + constant

    def elbo(self, x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """Return the bound of a diagonal normal guide, shape ``(N,)``."""
        return -self.distortion(x, loc, scale) - self.rate(loc, scale)

    def gaps(self, x: Tensor, loc: Tensor, scale: Tensor, training_beta: float = 1.0) -> ExactGaps:
        """Return the exact gaps of a diagonal normal guide with the given parameters."""
        evidence, guide = self.evidence(x), self.elbo(x, loc, scale)
        best = self.elbo(x, *self.best_diagonal(x))
        best_beta = self.elbo(x, *self.best_diagonal(x, training_beta))
        return ExactGaps(evidence - guide, evidence - best, best - best_beta, best_beta - guide)

    def vae(self, loc: Tensor, scale: Tensor) -> BetaVAE:
        """Return the model as a :class:`~pyro_bvae.BetaVAE` in float64, with a given guide."""
        return self._with_encoder(LocalNormalPosterior(loc.double(), scale.double()))

    def amortized_vae(
        self, beta: float = 1.0, mean_factor: float = 1.0, scale_factor: float = 1.0
    ) -> BetaVAE:
        r"""Return the model with a linear encoder: the best at β, spoilt by two factors.

        Args:
            beta: The objective for which the encoder is the best diagonal guide.
            mean_factor: Multiplies its means.
            scale_factor: Multiplies its scales.
        """
        origin = torch.zeros(1, self.weight.shape[0], dtype=torch.double)
        directions = torch.eye(self.weight.shape[0], dtype=torch.double)
        bias = self.posterior_mean(origin, beta)[0]
        matrix = (self.posterior_mean(directions, beta) - bias).T
        scale = self.precision(beta).diagonal().rsqrt()
        encoder = MLP(self.weight.shape[0], self.weight.shape[1], hidden=()).double()
        with torch.no_grad():
            affine = cast("nn.Linear", encoder.layers[0])
            affine.weight.copy_(mean_factor * matrix)
            affine.bias.copy_(mean_factor * bias)
        return self._with_encoder(_LinearPosterior(encoder, scale_factor * scale))

    def _with_encoder(self, encoder: nn.Module) -> BetaVAE:
        network = MLP(self.weight.shape[1], self.weight.shape[0], hidden=()).double()
        with torch.no_grad():
            network.layers[0].weight.copy_(self.weight)  # type: ignore[operator, union-attr]
            network.layers[0].bias.copy_(self.bias)  # type: ignore[operator, union-attr]
        decoder = Decoder(network, NormalLikelihood(self.noise_scale))
        return BetaVAE(
            NormalPrior(self.weight.shape[1]), decoder, encoder, name="linear_gaussian"
        ).double()


class _LinearPosterior(nn.Module):
    """A normal guide with an affine mean and the same scales for all data."""

    scale: Tensor

    def __init__(self, network: nn.Module, scale: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", scale.double())
        self.latent_dim = scale.shape[-1]

    def forward(self, x: Tensor) -> torch.distributions.Distribution:
        loc = self.network(x)
        return LocalNormalPosterior(loc, self.scale.expand_as(loc))()


def _check_positive(beta: float) -> None:
    check_beta(beta)
    if beta == 0:
        raise InputError("'beta' must be positive for a closed form, got 0")


def optimum(eigenvalues: Tensor, noise_scale: float, beta: float) -> Optimum:
    r"""Return the optimum of the β-objective over linear VAEs with as many latents as axes.

    For data with covariance eigenvalues :math:`\lambda_i` and a fixed noise :math:`\sigma`,

    .. math::
        R_i = \tfrac12 \max(0, \log \frac{\lambda_i}{\beta \sigma^2}), \quad
        d_i = \min(\lambda_i, \beta \sigma^2), \quad
        D = \sum_i \frac{d_i}{2 \sigma^2} + \tfrac{n}{2} \log 2 \pi \sigma^2 ,

    reverse water-filling at the level :math:`\beta \sigma^2`, with the slope :math:`dR/dD =
    -1/\beta`.

    Args:
        eigenvalues: Shape ``(n,)``, positive.
        noise_scale: σ, positive.
        beta: Positive.
    """
    _check_positive(beta)
    level = beta * noise_scale**2
    rates = 0.5 * (eigenvalues.double() / level).log().clamp(min=0)
    residuals = eigenvalues.double().clamp(max=level)
    constant = 0.5 * len(eigenvalues) * math.log(2 * math.pi * noise_scale**2)
    distortion = float(residuals.sum()) / (2 * noise_scale**2) + constant
    return Optimum(rates, residuals, float(rates.sum()), distortion)
