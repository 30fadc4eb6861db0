"""Networks in bfloat16 train a model as good as float32's, and nothing else is in bfloat16."""

import threading

import pytest
import torch
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, datasets, evidence, fit
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.precision import networks_in
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import FullRankPosterior, NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import Loss


def digits_vae(latents: int = 6) -> BetaVAE:
    torch.manual_seed(0)
    decoder = Decoder(MLP(latents, 64, hidden=(64,)), NormalLikelihood(0.3))
    return BetaVAE(
        NormalPrior(latents), decoder, NormalPosterior(MLP(64, 2 * latents, hidden=(64,)))
    )


def test_the_evidence_stays_within_its_standard_error() -> None:
    splits, result = datasets.digits(), {}
    for precision in ("float32", "bf16"):
        vae = digits_vae()
        fit(vae, splits.train, epochs=25, batch_size=64, precision=precision, progress=False)
        assert all(parameter.dtype == torch.float32 for parameter in vae.parameters())
        result[precision] = evidence(vae.model, vae.guide, splits.test.x, num_samples=500)
    difference = abs(result["bf16"].value - result["float32"].value)
    assert (
        0 < difference < result["float32"].standard_error
    )  # other numbers were seen, and they are as good


def test_only_networks_are_in_bfloat16() -> None:
    class Sees(nn.Module):
        out_features = 64

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 64)

        def forward(self, z: Tensor) -> Tensor:
            output = self.layer(z)
            seen.append((z.dtype, output.dtype))
            return output

    seen: list[tuple[torch.dtype, torch.dtype]] = []
    encoder = FullRankPosterior(MLP(64, FullRankPosterior.num_outputs(6), hidden=()))
    vae = BetaVAE(NormalPrior(6), Decoder(Sees(), NormalLikelihood(0.3)), encoder)
    x = datasets.digits().train.x[:10]
    with networks_in("bf16"):
        terms = Loss(vae)(x)
        thread = threading.Thread(target=vae.decoder, args=(torch.zeros(1, 6),))
        thread.start()
        thread.join()
    assert seen == [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float32),
    ]  # another thread's stay in full
    assert {term.dtype for term in terms} == {torch.float32}
    Loss(vae)(x)
    assert seen[2] == (torch.float32, torch.float32)


def test_a_precision_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown precision 'fp16'.*Known: bf16, float32"):
        fit(digits_vae(), torch.rand(10, 64), precision="fp16", progress=False)
