"""Callbacks of the package: pictures and event files of a training, which they leave as it is."""

from pathlib import Path

import pytest
import torch

from pyro_bvae import BetaVAE, Decoder, datasets, fit
from pyro_bvae.cli import main
from pyro_bvae.core.errors import InputError
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.runs import Snapshots
from pyro_bvae.training import TensorBoard


def digits_vae() -> BetaVAE:
    torch.manual_seed(0)
    decoder = Decoder(MLP(3, 64, hidden=(16,)), NormalLikelihood(0.3))
    return BetaVAE(NormalPrior(3), decoder, NormalPosterior(MLP(64, 6, hidden=(16,))))


def test_snapshots_are_drawn_and_leave_the_training_as_it_is(tmp_path: Path) -> None:
    splits, plain, watched = datasets.digits(), digits_vae(), digits_vae()
    train = splits.train[:200]
    fit(plain, train, epochs=4, progress=False)
    fit(
        watched,
        train,
        epochs=4,
        progress=False,
        callbacks=[Snapshots(watched, splits.test, tmp_path / "seen", 2)],
    )
    names = [
        f"epoch-000{epoch}-{what}.png"
        for epoch in (2, 4)
        for what in ("reconstructions", "samples")
    ]
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == names
    pictures = [path.read_bytes() for path in sorted((tmp_path / "seen").iterdir())]
    assert len(set(pictures)) == 4  # the model was another one at each
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True)
    )


def test_snapshots_of_what_is_no_image(tmp_path: Path) -> None:
    data = datasets.Dataset(torch.randn(60, 5))
    vae = BetaVAE(
        NormalPrior(2),
        Decoder(MLP(2, 5, hidden=()), NormalLikelihood()),
        NormalPosterior(MLP(5, 4, hidden=())),
    )
    fit(vae, data, epochs=1, progress=False, callbacks=[Snapshots(vae, data, tmp_path, every=1)])
    assert len(list(tmp_path.glob("*.png"))) == 2


@pytest.mark.parametrize("every", [0, -1, 1.5])
def test_a_number_of_epochs_that_is_none_is_refused(every: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'every' must be a positive integer"):
        Snapshots(digits_vae(), datasets.digits().test, tmp_path, every)


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    results = EventAccumulator(str(folder))
    results.Reload()
    return {
        tag: [(event.step, event.value) for event in results.Scalars(tag)]
        for tag in results.Tags()["scalars"]
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    splits = datasets.digits()
    history = fit(
        digits_vae(), splits.train[:200], validation=splits.test[:50], epochs=3, progress=False,
        callbacks=[TensorBoard(tmp_path)],
    )  # fmt: skip
    results = events(tmp_path)
    assert [step for step, _ in results["training/rate"]] == [1, 2, 3]
    assert [value for _, value in results["training/rate"]] == pytest.approx(
        history["rate"], rel=1e-6
    )
    assert [value for _, value in results["validation/elbo"]] == pytest.approx(
        history["validation_elbo"], rel=1e-6
    )
    assert set(results) >= {
        "training/beta",
        "training/gradient_norm",
        "training/learning_rate",
        "training/active_units",
    }


def test_tensorboard_that_is_not_installed_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install pyro-bvae\[tensorboard\]"):
        TensorBoard(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_command_line_has_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    arguments = [
        "train",
        "--dataset",
        "digits",
        "--likelihood",
        "normal",
        "--hidden",
        "8",
        "--latent-dim",
        "2",
    ]
    arguments += [
        "--epochs",
        "2",
        "--snapshots",
        "2",
        "--tensorboard",
        "--output",
        str(tmp_path / "run"),
    ]
    assert main([*arguments, "--schedule", "cosine", "--precision", "bf16"]) == 0
    assert len(list((tmp_path / "run" / "snapshots").iterdir())) == 2
    assert events(tmp_path / "run" / "tensorboard")
    assert "noticed before training: 3 of 64 features have one value" in capsys.readouterr().out
    assert main([*arguments, "--overwrite"]) == 0
    assert main([*arguments[:-3], "--output", str(tmp_path / "other"), "--snapshots", "0"]) == 2
    assert not (tmp_path / "other").exists()
