"""A loss that stops being finite stops the training, names the site, and costs no good weights."""

from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, fit
from pyro_bvae.core.errors import InputError
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import Constant, TrainingError, load_checkpoint, load_weights

FEATURES, LATENTS = 4, 2


class Fails(nn.Module):
    """Passes its input on, and turns it into something else from the given call in train mode
    on."""

    def __init__(self, at: int, value: float) -> None:
        super().__init__()
        self.calls, self.at, self.value = 0, at, value

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return x * self.value if self.calls >= self.at else x


def failing_vae(
    encoder_at: int = 10**9, decoder_at: int = 10**9, value: float = float("nan")
) -> BetaVAE:
    torch.manual_seed(3)
    decoder = MLP(LATENTS, FEATURES, hidden=(8,))
    encoder = MLP(FEATURES, 2 * LATENTS, hidden=(8,))
    encoder.layers.append(Fails(encoder_at, value))
    decoder.layers.append(Fails(decoder_at, value))
    return BetaVAE(
        NormalPrior(LATENTS), Decoder(decoder, NormalLikelihood()), NormalPosterior(encoder)
    )


def numbers(count: int = 32) -> Tensor:
    return torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(0))


OPTIONS = {"batch_size": 8, "learning_rate": Constant(1e-2), "progress": False}


def finite(vae: nn.Module) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in vae.state_dict().values())


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            {"encoder_at": 10},
            r"epoch 3, step 2 \(batch 1\): site 'z' of the guide has a value that is not finite",
        ),
        (
            {"decoder_at": 10},
            r"epoch 3, step 2 \(batch 1\): site 'x' of the model has a log density that is not",
        ),
        (
            {"decoder_at": 10, "value": 1e30},
            r"epoch 3, step 2 \(batch 1\): site 'x' of the model has a log density",
        ),
        (
            {"encoder_at": 10, "value": float("inf")},
            r"epoch 3, step 2 \(batch 1\): site 'z' of the guide has a value",
        ),
    ],
    ids=["NaN code", "NaN reconstruction", "overflow", "infinite code"],
)
def test_a_loss_that_is_not_finite_stops_and_names_the_site(
    failure: dict[str, float], message: str, tmp_path: Path
) -> None:
    vae, kept = failing_vae(**failure), []
    with pytest.raises(
        TrainingError,
        match=rf"^{message}.*; lower the learning rate.*; the last checkpoint is good$",
    ):
        fit(
            vae, numbers(), epochs=5, output=tmp_path, validation=numbers(8),
            callbacks=[lambda row: kept.append({name: v.clone() for name, v in vae.state_dict().items()})], **OPTIONS,
        )  # fmt: skip
    assert finite(vae)
    for which in ("last", "best"):
        path = tmp_path / "checkpoints" / f"{which}.pt"
        state = load_checkpoint(path)
        good = failing_vae()
        load_weights(good, state, path)
        assert finite(good)
    assert [
        row["epoch"] for row in load_checkpoint(tmp_path / "checkpoints" / "last.pt")["history"]
    ] == [1, 2]
    last = load_checkpoint(tmp_path / "checkpoints" / "last.pt")["model"]
    assert all(torch.equal(last[name], value) for name, value in kept[-1].items())
    assert not vae.encoder.network.layers[0].weight.equal(
        last["encoder.network.layers.0.weight"]
    )  # one step further


def test_a_run_can_go_on_from_its_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError):
        fit(failing_vae(decoder_at=10), numbers(), epochs=3, output=tmp_path, **OPTIONS)
    history = fit(failing_vae(), numbers(), epochs=3, output=tmp_path, resume=True, **OPTIONS)
    assert history["epoch"] == [1, 2, 3]
    assert all(torch.isfinite(torch.tensor(history["objective"])))


def test_a_failure_in_the_first_epoch_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="epoch 1, step 3"):
        fit(failing_vae(decoder_at=3), numbers(), epochs=3, output=tmp_path / "run", **OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_that_training_spoils_is_named() -> None:
    def schedule(epoch: float, epochs: int) -> float:
        return float("nan") if epoch == 1.5 else 1e-2

    where = r"epoch 2, step 4 \(batch 3\)"
    with pytest.raises(
        TrainingError, match=rf"{where}: parameter 'decoder\.network\..*' is not finite"
    ):
        fit(failing_vae(), numbers(), epochs=2, **{**OPTIONS, "learning_rate": schedule})


def test_a_model_that_is_spoiled_already_is_refused_unless_a_run_is_resumed(tmp_path: Path) -> None:
    fit(failing_vae(), numbers(), epochs=1, output=tmp_path, **OPTIONS)
    vae = failing_vae()
    with torch.no_grad():
        vae.decoder.network.layers[0].bias[2] = float("nan")
    message = r"'vae\.decoder\.network\.layers\.0\.bias' must be finite, got nan at index \(2,\)"
    with pytest.raises(InputError, match=message):
        fit(vae, numbers(), epochs=1, **OPTIONS)
    fit(vae, numbers(), epochs=2, output=tmp_path, resume=True, **OPTIONS)
    assert finite(vae)


class InfiniteSlope(torch.autograd.Function):
    """Harmless forwards, infinite backwards."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


def test_a_gradient_that_is_not_finite_stops_too_and_no_step_is_taken() -> None:
    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return InfiniteSlope.apply(x)

    vae = failing_vae()
    vae.decoder.network.layers.append(Steep())
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    with pytest.raises(
        TrainingError, match=r"epoch 1, step 1 \(batch 0\): the gradient.* is not finite"
    ):
        fit(vae, numbers(), epochs=1, **OPTIONS)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_fail_in_validation_are_not_written(value: float, tmp_path: Path) -> None:
    class FailsInEvaluation(nn.Module):
        """Fails once it has been trained for two epochs, in eval mode alone."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += self.training
            return x * value if self.calls >= 8 and not self.training else x

    vae = failing_vae()
    vae.decoder.network.layers.append(FailsInEvaluation())
    with pytest.raises(
        TrainingError,
        match=r"^epoch 2, validation: site 'x' of the model has a log density that is",
    ):
        fit(vae, numbers(), epochs=4, validation=numbers(8), output=tmp_path, **OPTIONS)
    assert len(load_checkpoint(tmp_path / "checkpoints" / "last.pt")["history"]) == 1
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 2


def test_an_impossible_learning_rate_of_ones_own_never_spoils_the_checkpoint(
    tmp_path: Path,
) -> None:
    vae = failing_vae()
    with pytest.raises(TrainingError):
        fit(
            vae, 100 * numbers(), epochs=200, validation=100 * numbers(8), output=tmp_path / "run",
            **{**OPTIONS, "learning_rate": Constant(1e15)},
        )  # fmt: skip
    assert finite(vae)
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    if path.exists():
        good = failing_vae()
        load_weights(good, load_checkpoint(path), path)
        assert finite(good)


def test_the_callers_world_is_restored_after_a_failure() -> None:
    import pyro

    vae = failing_vae(decoder_at=3).eval()
    before = torch.get_rng_state()
    with pytest.raises(TrainingError):
        fit(vae, numbers(), epochs=1, **OPTIONS)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(module.training for module in vae.modules())
    assert not dict(pyro.get_param_store().named_parameters())
    with pytest.raises(ValueError, match="invalid"):
        dist.Normal(0.0, -1.0)
