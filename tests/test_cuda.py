"""The same on a CUDA device; skipped where there is none."""

import pytest
import torch

import pyro_bvae
from pyro_bvae import BetaVAE, Decoder, datasets
from pyro_bvae.evaluation import elbo_parts, kl_per_dimension
from pyro_bvae.likelihoods import LearnedScale, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import Loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def small_vae() -> BetaVAE:
    decoder = Decoder(MLP(4, 64, (32,)), NormalLikelihood(LearnedScale()))
    return BetaVAE(NormalPrior(4), decoder, NormalPosterior(MLP(64, 8, (32,))))


def test_loss_on_the_same_noise_is_that_of_the_cpu() -> None:
    vae, x = small_vae().double(), torch.rand(16, 64, dtype=torch.double)
    noise = {"z": torch.randn(16, 4, dtype=torch.double)}
    on_cpu = Loss(vae)(x, None, 4.0, noise)
    on_cuda = Loss(vae.to("cuda"))(x.cuda(), None, 4.0, {"z": noise["z"].cuda()})
    assert all(torch.allclose(a, b.cpu(), rtol=1e-10) for a, b in zip(on_cpu, on_cuda, strict=True))


def test_fit_trains_and_resumes(tmp_path) -> None:
    data = datasets.digits().train
    weights = []
    for stops in ((3,), (1, 3)):
        torch.manual_seed(0)
        vae = small_vae()
        output = tmp_path / str(len(stops))
        for number, epochs in enumerate(stops):
            schedule = pyro_bvae.training.Constant(1e-3)
            history = pyro_bvae.fit(
                vae, data, epochs=epochs, learning_rate=schedule, device="cuda", output=output, resume=number > 0,
                progress=False,
            )  # fmt: skip
        weights.append([parameter.cpu() for parameter in vae.parameters()])
    assert history["objective"][-1] < history["objective"][0]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*weights, strict=True))


def test_estimates_are_the_closed_forms() -> None:
    linear = LinearGaussian(torch.tensor([[1.0, 0.4], [0.2, 1.0], [0.6, 0.3]]), 0.5)
    x = linear.sample(50)
    vae = linear.amortized_vae(4.0, 0.9, 1.2)
    with torch.no_grad():
        guide = vae.encoder(x)
    exact = linear.gaps(x, guide.mean, guide.stddev, 4.0)
    vae.to("cuda")
    gaps = pyro_bvae.inference_gaps(vae.model, vae.guide, x.cuda(), training_beta=4.0)
    for name, truth in exact._asdict().items():
        estimate = getattr(gaps, name)
        assert abs(estimate.value - float(truth.mean())) < max(
            0.01, 3 * estimate.monte_carlo_error
        ), name
    measured = elbo_parts(vae.model, vae.guide, x.cuda())
    assert torch.allclose(measured.rate.per_datum, linear.rate(guide.mean, guide.stddev))
    assert kl_per_dimension(vae.model, vae.guide, x.cuda()).active.all()


def test_a_graphed_run_is_the_plain_run() -> None:
    """With a β schedule, clipping, and an uneven last batch that is not in the graph."""
    data = datasets.digits().train
    runs = []
    for compile in (False, True):
        torch.manual_seed(0)
        vae = small_vae().double()
        history = pyro_bvae.fit(
            vae, data, beta=pyro_bvae.training.LinearWarmup(2.0, 2), epochs=4, gradient_clip=0.5, device="cuda",
            compile=compile, progress=False,
        )  # fmt: skip
        runs.append(
            (history, torch.cat([parameter.detach().flatten() for parameter in vae.parameters()]))
        )
    (plain, weights), (graphed, others) = runs
    assert graphed.step.startswith("compiled")
    assert torch.allclose(weights, others, rtol=1e-7, atol=1e-9)
    assert graphed["objective"] == pytest.approx(plain["objective"], rel=1e-8)
