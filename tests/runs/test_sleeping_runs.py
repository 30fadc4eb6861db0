"""A run whose guide sleeps at its end: the best checkpoint alone, once, and where it can."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_bvae.core.errors import InputError
from pyro_bvae.runs import TrainConfig, check_config, load, train, train_sweep
from pyro_bvae.training import checkpoint_path, load_checkpoint

CONFIG = TrainConfig(
    dataset="linear-gaussian", likelihood="normal", hidden=(4,), latent_dim=2, epochs=2,
    sleep=0.6, batch_size=500,
)  # fmt: skip


def weights(run: Path, which: str, part: str) -> dict[str, torch.Tensor]:
    model = load_checkpoint(checkpoint_path(run, which))["model"]
    return {name: value for name, value in model.items() if name.startswith(part)}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_best_checkpoint_sleeps_and_the_run_goes_on_from_the_last(tmp_path: Path) -> None:
    run, awake = tmp_path / "run", tmp_path / "awake"
    config = CONFIG.with_options(validation=0.0)
    trained = train(config, run, progress=False)
    train(config.with_options(sleep=0.0), awake, progress=False)
    assert same(weights(run, "last", ""), weights(awake, "last", ""))
    assert same(weights(run, "best", "decoder."), weights(awake, "best", "decoder."))
    assert not same(weights(run, "best", "encoder."), weights(awake, "best", "encoder."))
    own = trained.vae.state_dict()
    assert same(dict(own), weights(run, "best", ""))
    loaded = load(run)
    assert same(dict(loaded.vae.state_dict()), dict(own))
    assert loaded.config.sleep == 0.6
    # A run that has slept does so no more; one that was stopped before does.
    before = checkpoint_path(run, "best").read_bytes()
    train(loaded.config, run, resume=True, progress=False)
    assert checkpoint_path(run, "best").read_bytes() == before


def test_a_run_that_was_stopped_before_it_slept_sleeps_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("pyro_bvae.runs._train.sleep_run", stop)
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, tmp_path / "run", progress=False)
    assert "asleep" not in load_checkpoint(checkpoint_path(tmp_path / "run", "best"))
    train(load(tmp_path / "run").config, tmp_path / "run", resume=True, progress=False)
    train(CONFIG, tmp_path / "whole", progress=False)
    assert same(weights(tmp_path / "run", "best", ""), weights(tmp_path / "whole", "best", ""))


def test_a_prior_of_the_guide_and_a_sweep_have_no_sleep(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'sleep' must be 0 with prior 'vamp'.*; got 0.6"):
        check_config(CONFIG.with_options(prior="vamp"))
    with pytest.raises(InputError, match=r"'sleep' is of a single run.*got 0.6"):
        train_sweep(CONFIG, tmp_path / "sweep", betas=(1.0,), progress=False)
    assert not (tmp_path / "sweep").exists()
