"""Comparison of run directories: the same held-out data, or a refusal that names the reason."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from pyro_bvae import Context, InputError, compare, load
from pyro_bvae.cli import main
from pyro_bvae.datasets import Dataset
from pyro_bvae.evaluation.comparison import Comparison
from pyro_bvae.evaluation.marginal import AnnealingSettings, Escalation
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.runs import Run, TrainConfig, train


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
        budget=10_000_000,
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


def test_data_of_other_features_layers_or_conditions_are_refused_by_name(
    counts: dict[str, Path],
) -> None:
    run = load(counts["nb"])
    names = tuple(f"gene{place}" for place in range(run.splits.test.num_features))

    def other(data: Dataset | None = None, **options: object) -> Run:
        """Return the run as if it had been trained on other data."""
        parts = run.splits if data is None else replace(run.splits, test=data)
        config = run.config.with_options(**options)
        return Run(run.vae, config, parts, run.history, run.directory, run.training_beta)

    test = run.splits.test.dense()
    named, turned = (replace(test, feature_names=each) for each in (names, names[::-1]))
    size = replace(test, context=Context(2 * test.context.size_factor))
    scaled = replace(test, x=test.x / 255)
    cases = [
        ((named, {}), (turned, {}), "their features in another order: feature 0 is 'gene0' and"),
        ((named, {}), (replace(named, feature_names=("other", *names[1:])), {}),
         "other features: 'gene0' of 'a' is none of 'b'"),
        ((test, {}), (test, {"layer": "raw"}), ""),
        ((test, {}), (size, {}), "the same data have other size factors"),
        ((test, {}), (test, {"missing": "nan"}), "'missing' was none and nan"),
        ((test, {}), (scaled, {"path": "scaled.npz"}),
         "0 test data in common .* \\('path' of 'a' is None, of 'b' scaled.npz\\)"),
        ((test, {}), (replace(scaled, x=torch.where(test.x > 3, test.x, scaled.x)),
                      {"layer": "raw"}), "'layer' of 'a' is None, of 'b' raw"),
    ]  # fmt: skip
    for (one, first), (two, second), reason in cases:
        runs = {"a": other(one, **first), "b": other(two, **second)}
        if not reason:  # the same counts under another name of their layer
            assert compare(runs, num_data=5, num_samples=20, method="importance").num_data == 5
            continue
        with pytest.raises(InputError, match=reason):
            compare(runs, num_data=5, num_samples=20, method="importance")
    with pytest.raises(InputError, match="'a' and 'data' cannot be compared: they have"):
        compare({"a": other(named), "b": run.vae}, turned, num_samples=20)


def test_the_second_seed_of_a_name_is_looked_at_too(counts: dict[str, Path]) -> None:
    runs = {"a": [counts["observed"], counts["nb"]], "b": counts["nb"]}
    with pytest.raises(InputError, match="'size_factor' was observed and given"):
        compare(runs, num_data=5, num_samples=20)


def test_the_command_prints_and_writes(
    counts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(counts["nb"]), str(counts["poisson"])]
    few = ["--num-data", "20", "--num-samples", "100", "--method", "importance"]
    for name in ("comparison.json", "comparison.png", "comparison.csv", "comparison.html"):
        assert main(["compare", *runs, *few, "--output", str(tmp_path / name)]) == 0
        assert (tmp_path / name).stat().st_size > 300
    table = pd.read_csv(tmp_path / "comparison.csv", index_col="model")
    numbers = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert list(table["evidence"]) == pytest.approx([row["evidence"] for row in numbers["models"]])
    assert numbers["verdict"].split(".")[0] in (tmp_path / "comparison.html").read_text("utf-8")
    printed = capsys.readouterr().out
    assert "20 data that all runs held out" in printed
    assert "nb" in printed and "poisson" in printed
    assert main(["compare", runs[0], runs[0]]) == 2
    assert "twice" in capsys.readouterr().err
    assert main(["compare", *runs, "--output", "result.txt"]) == 2
    assert ".html, .json, .csv, .png, got result.txt" in capsys.readouterr().err
    assert main(["compare", runs[0]]) == 2
