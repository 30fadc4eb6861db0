"""β found for a rate: the closed form's, in every step a number, and part of the checkpoint."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pyro_bvae import BetaVAE, Decoder, fit, oracle
from pyro_bvae.core.errors import InputError
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import TargetRate, load_checkpoint

NOISE = 0.7
EIGENVALUES = torch.tensor([8.0, 5.0, 3.0, 2.0, 0.8, 0.5])


def data(count: int = 2000) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(0)) * EIGENVALUES.sqrt()


def linear_vae() -> BetaVAE:
    torch.manual_seed(1)
    decoder = Decoder(MLP(6, 6, hidden=()), NormalLikelihood(NOISE))
    return BetaVAE(NormalPrior(6), decoder, NormalPosterior(MLP(6, 12, hidden=())))


def exact_beta(x: Tensor, rate: float) -> float:
    """Return the β of the closed-form optimum with this rate, by bisection."""
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0))
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (
            (middle, high)
            if oracle.optimum(eigenvalues, NOISE, middle).rate > rate
            else (low, middle)
        )
    return low


@pytest.mark.parametrize("nats", [1.0, 3.5])
def test_the_rate_is_reached_by_the_beta_of_the_closed_form(nats: float) -> None:
    x = data()
    history = fit(
        linear_vae(),
        x,
        beta=TargetRate(nats),
        epochs=40,
        learning_rate=3e-2,
        batch_size=100,
        progress=False,
    )
    # The mean over an epoch of the rate of draws has an error of about sqrt(3 / 2000), and β one of
    # the optimizer's.
    assert history["rate"][-1] == pytest.approx(nats, rel=0.05, abs=0.1)
    assert history["beta"][-1] == pytest.approx(exact_beta(x, nats), rel=0.1)
    assert len(set(history["beta"][-8:])) == 1  # held over the last fifth
    assert len(set(history["beta"])) > 20


def test_what_the_controller_knows_is_resumed_to_the_bit(tmp_path: Path) -> None:
    class Interrupt(Exception):
        pass

    def interrupt(row: dict[str, float]) -> None:
        if row["epoch"] == 3:
            raise Interrupt

    options = {"beta": TargetRate(2.0), "epochs": 8, "batch_size": 50, "progress": False}
    whole_vae, vae = linear_vae(), linear_vae()
    whole = fit(whole_vae, data(300), output=tmp_path / "whole", **options)
    with pytest.raises(Interrupt):
        fit(vae, data(300), output=tmp_path / "parts", callbacks=[interrupt], **options)
    resumed = fit(vae, data(300), output=tmp_path / "parts", resume=True, **options)
    assert resumed["beta"] == whole["beta"]
    states = [
        load_checkpoint(tmp_path / run / "checkpoints" / "last.pt")["controller"]["state"]
        for run in ("whole", "parts")
    ]
    assert torch.equal(*states)
    assert all(
        torch.equal(a, b) for a, b in zip(vae.parameters(), whole_vae.parameters(), strict=True)
    )


def test_no_epoch_is_better_than_a_later_one_while_beta_moves(tmp_path: Path) -> None:
    fit(
        linear_vae(), data(300), beta=TargetRate(2.0, hold=0.5), epochs=8, batch_size=50, progress=False,
        validation=data(50), output=tmp_path,
    )  # fmt: skip
    assert len(load_checkpoint(tmp_path / "checkpoints" / "best.pt")["history"]) > 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nats": 0.0}, "'nats' must be positive and finite, got 0.0"),
        ({"nats": math.inf}, "'nats' must be positive and finite, got inf"),
        ({"nats": 1.0, "start": -1.0}, "'start' must be positive and finite, got -1.0"),
        ({"nats": 1.0, "integral": 0.0}, "'integral' must be positive"),
        (
            {"nats": 1.0, "proportional": -0.1},
            "'proportional' must be non-negative and finite, got -0.1",
        ),
        ({"nats": 1.0, "hold": 1.0}, r"'hold' must lie in \[0, 1\), got 1.0"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TargetRate(**arguments)
