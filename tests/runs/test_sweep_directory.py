"""The folder of a sweep taken as a run is: loaded, measured, compared, and refused in words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pyro_bvae import InputError, compare, load, rate_distortion
from pyro_bvae.cli import main
from pyro_bvae.core.disk.digests import write_files
from pyro_bvae.runs import LoadedSweep, Run, TrainConfig, train, train_sweep
from pyro_bvae.runs.directory import load as load_run

CONFIG = TrainConfig(
    dataset="digits", likelihood="normal", hidden=(8,), latent_dim=2, epochs=2, batch_size=256
)
NAMES = ("beta0.5-seed0", "beta0.5-seed1", "beta2-seed0", "beta2-seed1", "beta10-seed0",
         "beta10-seed1")  # fmt: skip
QUICK = {"num_data": 20, "num_samples": 50, "method": "importance"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sweeps") / "swept"
    train_sweep(CONFIG, output, betas=(2.0, 10.0, 0.5), seeds=2, progress=False)
    return output


@pytest.fixture
def sweep(swept: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may spoil."""
    return Path(shutil.copytree(swept, tmp_path / "sweep"))


def test_a_sweep_is_loaded_in_the_order_of_its_settings(swept: Path) -> None:
    loaded = load(swept)
    assert isinstance(loaded, LoadedSweep)
    assert loaded.names == NAMES  # by number, not by letter
    assert len(loaded) == 6 and all(isinstance(run, Run) for run in loaded)
    assert [run.config.training.beta for run in loaded] == [0.5, 0.5, 2, 2, 10, 10]
    assert list(loaded.by_setting) == ["beta0.5", "beta2", "beta10"]
    alone = load(swept / "beta2-seed1")
    for name, weight in loaded[3].vae.state_dict().items():
        assert torch.equal(weight, alone.vae.state_dict()[name])
    assert str(loaded).count("\n") == 6 and "beta10-seed1" in str(loaded)
    with pytest.raises(InputError, match=r"holds a sweep: take one of its runs, such as .*-seed0"):
        load_run(swept)


def test_the_curve_of_a_loaded_sweep_is_that_of_its_models(swept: Path) -> None:
    loaded = load(swept)
    whole = rate_distortion(loaded, num_samples=5)
    assert whole.betas == [0.5, 2, 10]
    x = load(swept / NAMES[0]).splits.test.x
    given = rate_distortion(loaded, x, num_samples=5)
    pairs = rate_distortion(
        [(run.config.training.beta, run.vae) for run in loaded], x, num_samples=5
    )
    for one, other in zip(given.points, pairs.points, strict=True):
        assert one.rates == other.rates and one.distortions == other.distortions
    # Each seed's own test data: all of them count.
    assert len(whole.points[0].rate.per_datum) == 2 * len(x)
    own = rate_distortion([loaded[0]], num_samples=5).points[0].rate.value
    assert whole.points[0].rates[0] == pytest.approx(own)
    with pytest.raises(InputError, match="got a path: give load"):
        rate_distortion(swept)
    with pytest.raises(InputError, match=r"runs of β = 0\.5 and 2 hold out other data"):
        rate_distortion([loaded[0], loaded[3]], num_samples=5)


def test_a_sweep_is_compared_setting_by_setting(swept: Path) -> None:
    result = compare(swept, **QUICK)
    assert sorted(result.names) == ["beta0.5", "beta10", "beta2"]
    assert {len(own) for own in result.models.values()} == {2}
    assert "spread between training seeds is in the intervals" in result.verdict
    again = compare(load(swept).by_setting, **QUICK)
    assert again.to_dict() == result.to_dict()
    with pytest.raises(InputError, match=r"'a' is the sweep .* of 3 settings"):
        compare({"a": swept, "b": swept / NAMES[0]}, **QUICK)
    with pytest.raises(InputError, match="a comparison takes several runs, got the run"):
        compare(swept / NAMES[0], **QUICK)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("empty", "holds no sweep|is not a run directory"),
        ("killed", "beta2-seed0 of the sweep holds no trained run: 'pyro-bvae sweep --resume"),
        ("mixed", "are of no one sweep: their 'latent_dim' is 2 and 3"),
        ("renamed", "beta3-seed0 holds a run of β 2.0 and seed 0, of another name than its own"),
    ],
)
def test_a_sweep_that_is_none_is_refused(sweep: Path, damage: str, reason: str) -> None:
    if damage == "empty":
        for path in sweep.iterdir():
            shutil.rmtree(path)
    elif damage == "killed":
        shutil.rmtree(sweep / "beta2-seed0" / "checkpoints")
    elif damage == "mixed":
        shutil.rmtree(sweep / "beta2-seed0")
        train(CONFIG.with_options(latent_dim=3, beta=2.0), sweep / "beta2-seed0", progress=False)
    else:
        (sweep / "beta2-seed0").rename(sweep / "beta3-seed0")
    with pytest.raises(InputError, match=reason):
        load(sweep)
    assert main(["compare", str(sweep)]) == 2


def test_a_missing_member_and_one_that_was_stopped_are_warned_of(sweep: Path) -> None:
    shutil.rmtree(sweep / "beta2-seed1")
    with pytest.warns(UserWarning, match="lacks beta2-seed1"):
        assert len(load(sweep)) == 5
    path = sweep / "beta10-seed0" / "metrics.csv"
    first = "".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:2])
    write_files({path: first.encode()})
    with (
        pytest.warns(UserWarning, match="lacks beta2-seed1"),
        pytest.warns(UserWarning, match="beta10-seed0 was trained for 1 of 2 epochs"),
    ):
        load(sweep)


def test_a_folder_of_something_else_in_it_is_left_alone(sweep: Path) -> None:
    (sweep / "notes-seed1").mkdir()
    (sweep / "beta-old-seed0").mkdir()
    assert load(sweep).names == NAMES


@pytest.mark.slow
def test_commands_take_a_sweep(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--num-data", "12", "--num-samples", "50"]
    assert main(["report", str(sweep)]) == 2
    assert "run 'pyro-bvae evaluate" in capsys.readouterr().err
    assert main(["evaluate", str(sweep), *quick]) == 0
    printed = capsys.readouterr().out
    for name in NAMES:
        assert name in printed and (sweep / name / "evaluation.json").exists()
    assert main(["report", str(sweep)]) == 0
    page = (sweep / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") >= 1 and "beta0.5-seed1" in page
    output = str(sweep / "comparison.json")
    few = [*quick, "--method", "importance", "--output", output]
    assert main(["compare", str(sweep), *few]) == 0
    assert len(json.loads(Path(output).read_text(encoding="utf-8"))["models"]) == 3
    assert main(["embed", str(sweep)]) == 2
    assert "holds a sweep: take one of its runs" in capsys.readouterr().err
