"""Any prior works with any likelihood and any guide.

Every combination trains and has an evidence with its errors.
"""

from itertools import product

import pytest
import torch
from torch import Tensor

from pyro_bvae import BetaVAE, Context, Decoder, evidence, fit
from pyro_bvae.datasets import Dataset
from pyro_bvae.evaluation import elbo
from pyro_bvae.likelihoods import LearnedDispersion, NegativeBinomialLikelihood, SoftmaxRate
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.runs import Shape, TrainConfig, build_vae
from pyro_bvae.runs.catalogue import LIKELIHOODS, POSTERIORS, PRIORS

N, D, L = 24, 6, 2
COUNTED = ("poisson", "negative-binomial", "zero-inflated-negative-binomial")


def data_for(likelihood: str) -> Dataset:
    """Return data that a likelihood can explain."""
    torch.manual_seed(0)
    if likelihood in COUNTED:
        x = torch.poisson(torch.rand(N, D) * 6)
        return Dataset(x, Context(size_factor=x.sum(1, keepdim=True) + 1))
    if likelihood == "categorical":
        return Dataset(torch.randint(0, 3, (N, D)).float())
    x = torch.rand(N, D)
    if likelihood == "discretized-logistic":
        x = (255 * x).round() / 255
    return Dataset(
        (x < 0.5).float() if likelihood in ("bernoulli", "autoregressive-bernoulli") else x
    )


# A fixed scale of 1 is more than these data have to tell, and fit says so.
@pytest.mark.filterwarnings("ignore:β σ² is")
# Zuko's spline prior has tests of its own, where Zuko is installed.
@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_combination_trains_and_has_an_evidence(likelihood: str, posterior: str) -> None:
    data = data_for(likelihood)
    for prior in PRIORS:
        if prior == "zuko":
            continue
        config = TrainConfig(
            prior=prior,
            likelihood=likelihood,
            posterior=posterior,
            hidden=(8,),
            latent_dim=L,
            prior_components=3,
        )
        vae = build_vae(config, Shape.of(data))
        before = {name: value.clone() for name, value in vae.named_parameters()}
        fit(vae, data, beta=1.0, epochs=2, batch_size=12, progress=False)
        moved = [not torch.equal(before[name], value) for name, value in vae.named_parameters()]
        assert all(moved), (
            f"{prior}: {[name for name, it in zip(before, moved, strict=True) if not it]} never "
            f"moved"
        )
        args = (data.x, *(() if data.context is None else (data.context,)))
        estimate = evidence(vae.model, vae.guide, *args, num_samples=64)
        bound = elbo(vae.model, vae.guide, *args, num_samples=64)
        for result in (estimate, bound):
            assert torch.isfinite(result.per_datum).all() and 0 < result.standard_error < float(
                "inf"
            ), prior
        slack = 4 * (estimate.monte_carlo_error + bound.monte_carlo_error)
        assert estimate.value > bound.value - slack, prior


def conditional_data() -> Dataset:
    torch.manual_seed(0)
    x = torch.poisson(torch.rand(N, D) * 6) + 1
    batches = torch.nn.functional.one_hot(torch.arange(N) % 2).float()
    return Dataset(x, Context(size_factor=x.sum(1, keepdim=True), covariates=batches))


@pytest.mark.parametrize(("prior", "posterior"), [*product(("normal", "vamp"), ("normal", "flow"))])
@pytest.mark.parametrize("network", ["mlp", "residual"])
def test_a_conditional_model_is_the_same_class(prior: str, posterior: str, network: str) -> None:
    data = conditional_data()
    config = TrainConfig(
        likelihood="negative-binomial",
        dispersion="feature-batch",
        prior=prior,
        posterior=posterior,
        network=network,
        hidden=(8,),
        latent_dim=L,
        prior_components=3,
    )
    vae = build_vae(config, Shape.of(data))
    assert vae.decoder.likelihood.dispersion.dispersion.shape == (2, D)
    fit(vae, data, beta=1.0, epochs=2, batch_size=12, progress=False)
    estimate = evidence(vae.model, vae.guide, data.x, data.context, num_samples=64)
    assert torch.isfinite(estimate.per_datum).all()
    other = data.context._replace(covariates=1 - data.context.covariates)
    assert not torch.allclose(
        vae.encode(data.x, data.context), vae.encode(data.x, other)
    )  # the encoder sees them
    z = vae.encode(data.x, data.context)
    assert not torch.allclose(
        vae.decode(z, data.context), vae.decode(z, other)
    )  # and so does the decoder
    doubled = data.context._replace(size_factor=2 * data.context.size_factor)
    assert torch.allclose(
        vae.decode(z, doubled), 2 * vae.decode(z, data.context), rtol=1e-4
    )  # and the likelihood


def test_a_batch_effect_is_explained_by_the_covariates() -> None:
    """Two batches that differ in one gene alone.

    With covariates the latents need not tell them apart.
    """
    torch.manual_seed(0)
    batch = torch.arange(400) % 2
    rates = torch.tensor([[9.0, 3, 3], [1.0, 3, 3]])[batch]
    x = torch.poisson(rates)
    context = Context(covariates=torch.nn.functional.one_hot(batch).float())

    def trained(context: Context | None) -> Tensor:
        extra = 0 if context is None else 2
        likelihood = NegativeBinomialLikelihood(dispersion=LearnedDispersion(3), rate=SoftmaxRate())
        sizes = Context(x.sum(1, keepdim=True) + 1, None if context is None else context.covariates)
        torch.manual_seed(1)
        vae = BetaVAE(
            NormalPrior(1),
            Decoder(MLP(1 + extra, 3, (8,)), likelihood, num_covariates=extra),
            NormalPosterior(MLP(3 + extra, 2, (8,)), num_covariates=extra, inputs=torch.log1p),
        )
        fit(
            vae,
            Dataset(x, sizes),
            beta=1.0,
            epochs=60,
            batch_size=100,
            learning_rate=0.02,
            progress=False,
        )
        z = vae.encode(x, sizes).squeeze(1)
        return (z[batch == 0].mean() - z[batch == 1].mean()).abs() / z.std().clamp(min=0.1)

    assert trained(None) > 1.2
    assert trained(context) < 0.4
