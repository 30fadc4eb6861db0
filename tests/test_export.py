"""ArviZ gets what was measured, with either of its major versions, and reads it back from netCDF."""

import warnings

import numpy as np
import pytest
import torch

from pyro_bvae.evaluation import psis
from pyro_bvae.evaluation.export import to_arviz, write_arviz
from pyro_bvae.evaluation.summary import evaluate
from pyro_bvae.oracle import LinearGaussian


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ announces its next version on import
        import arviz

        return arviz.from_netcdf(str(path))


def test_draws_weights_and_estimates_come_back_from_netcdf(tmp_path) -> None:
    linear = LinearGaussian(torch.tensor([[1.0, 0.4], [0.2, 1.0]]), 0.7)
    x = linear.sample(600)  # two blocks
    vae = linear.amortized_vae()
    evaluation = evaluate(vae.model, vae.guide, x, num_samples=50)
    exported = to_arviz(
        vae.model, vae.guide, x, evaluation=evaluation, num_draws=7, attributes={"seed": 3, "dataset": "linear"}
    )
    write_arviz(exported, tmp_path / "evaluation.nc")
    back = read(tmp_path / "evaluation.nc")
    assert back.attrs["seed"] == 3 and back.attrs["dataset"] == "linear"
    z = back["posterior"]["z"].values
    assert z.shape == (1, 7, 600, 2)
    draws = torch.from_numpy(z[0])
    with torch.no_grad():
        guide, decoder = vae.encoder(x), vae.decoder(draws)
        observed = decoder.log_prob(x)
        log_weight = observed + vae.prior().log_prob(draws) - guide.log_prob(draws)
    assert np.allclose(back["log_likelihood"]["x"].values[0], observed.numpy())
    assert np.allclose(back["sample_stats"]["log_weight"].values[0], log_weight.numpy())
    assert np.allclose(back["constant_data"]["evidence"].values, evaluation.evidence.per_datum.numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.nc"]


def test_a_failed_export_leaves_nothing_behind(tmp_path) -> None:
    class Broken:
        def to_netcdf(self, path: str, engine: str) -> None:
            with open(path, "w", encoding="utf-8") as stream:  # noqa: PTH123
                stream.write("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_arviz(Broken(), tmp_path / "evaluation.nc")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_pareto_k_is_the_tail_of_the_weights(shape: float) -> None:
    """Weights drawn from a generalised Pareto law have its shape; the wrong sign of the log weights would not."""
    uniform = torch.rand(40_000, 8, dtype=torch.double)
    weights = 1 + ((1 - uniform) ** -shape - 1) / shape
    k = psis.pareto_k(weights.log())
    # The tail holds 600 weights; ArviZ's estimate is drawn towards 0.5 by a weak prior.
    assert (k - shape).abs().max() < 4 * (1 + shape) / 600**0.5
    assert (k - shape).abs().mean() < 2 * (1 + shape) / 600**0.5


def test_pareto_k_of_special_weights() -> None:
    weights = torch.randn(100, 4)
    weights[:, 1] = -123.456  # constant: a perfect guide
    weights[5, 2] = -torch.inf
    k = psis.pareto_k(weights)
    assert k[1] == 0 and k[2] == torch.inf and torch.isfinite(k[[0, 3]]).all()
    assert (psis.pareto_k(weights[:10, :1]) == torch.inf).all()  # too few weights to know
