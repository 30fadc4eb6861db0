"""Comparison of run directories: the same held-out data, or a refusal that names the reason."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from pyro_bvae import InputError, compare, load
from pyro_bvae.cli import main
from pyro_bvae.evaluation.comparison import Comparison
from pyro_bvae.evaluation.marginal import AnnealingSettings, Escalation
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.runs import TrainConfig, train


def trained(folder: Path, name: str, **options: object) -> Path:
    """Train a small model of simulated counts into a folder."""
    config = TrainConfig(
        **{"dataset": "counts", "likelihood": "negative-binomial", "hidden": (16,),
           "latent_dim": 2, "epochs": 2, "batch_size": 256, **options}
    )  # fmt: skip
    train(config, folder / name, progress=False)
    return folder / name


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return runs of two likelihoods on the same simulated counts, and one of another seed."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        "nb": trained(folder, "nb"),
        "poisson": trained(folder, "poisson", likelihood="poisson"),
        "normal": trained(folder, "normal", likelihood="normal"),
        "observed": trained(folder, "observed", size_factor="observed"),
        "other": trained(folder, "other", seed=1),
    }


def test_runs_are_compared_on_the_data_that_all_held_out(counts: dict[str, Path]) -> None:
    pair = {name: counts[name] for name in ("poisson", "nb")}
    result = compare(pair, num_data=60, num_samples=200, method="importance")
    assert isinstance(result, Comparison)
    assert result.names == ["nb", "poisson"]  # the counts are overdispersed
    assert result.num_data == 60
    assert result.pairs[0].value > 0
    again = compare(
        {"nb": load(counts["nb"]), "poisson": load(counts["poisson"]).vae},
        load(counts["nb"]).splits.test[:20],
        num_samples=200,
        method="importance",
    )
    assert again.num_data == 20


def test_untrusted_data_are_measured_again(counts: dict[str, Path]) -> None:
    pair = {name: counts[name] for name in ("poisson", "nb")}
    quick = Escalation(
        refit=RefitSettings(max_rounds=3, num_starts=0),
        annealing=AnnealingSettings(num_temperatures=100, num_chains=16),
    )
    untrusted = {}
    for method in ("importance", quick):
        result = compare(pair, num_data=3, num_samples=50, method=method)
        untrusted[method] = sum(own.untrusted for (own,) in result.models.values())
    assert untrusted[quick] < untrusted["importance"]
    assert inspect.signature(compare).parameters["method"].default == "auto"


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ("normal", "'nb' gives probabilities to 'x' and 'normal' gives densities"),
        (
            "observed",
            "'nb' and 'observed' cannot be compared: 'size_factor' was given and observed",
        ),
        ("other", "test data in common that none was trained on"),
    ],
)
def test_evidences_of_other_quantities_are_refused(
    counts: dict[str, Path], other: str, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        compare({"nb": counts["nb"], other: counts[other]}, num_data=20, num_samples=100)


def test_the_command_prints_and_writes(
    counts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(counts["nb"]), str(counts["poisson"])]
    few = ["--num-data", "20", "--num-samples", "100", "--method", "importance"]
    for name in ("comparison.json", "comparison.png"):
        assert main(["compare", *runs, *few, "--output", str(tmp_path / name)]) == 0
        assert (tmp_path / name).stat().st_size > 500
    printed = capsys.readouterr().out
    assert "20 data that all runs held out" in printed
    assert "nb" in printed and "poisson" in printed
    assert main(["compare", runs[0], runs[0]]) == 2
    assert "twice" in capsys.readouterr().err
    assert main(["compare", *runs, "--output", "result.txt"]) == 2
    assert main(["compare", runs[0]]) == 2
