"""``pyro-bvae improve``: the command that a verdict names closes the part that it names."""

import hashlib
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_bvae import runs
from pyro_bvae.cli import main
from pyro_bvae.evaluation.gaps.result import verdict
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.report import write_report
from pyro_bvae.runs import TrainConfig
from pyro_bvae.runs.improvement.record import read_improvement
from pyro_bvae.training import checkpoint_path, load_checkpoint, save_checkpoint
from tests.evaluation.test_verdict import gaps

CONFIG = TrainConfig(
    dataset="linear-gaussian", likelihood="normal-fixed", likelihood_scale=0.5, hidden=(16,),
    latent_dim=2, epochs=15, warmup_epochs=0.0, batch_size=64,
)  # fmt: skip
FEW = ["--num-data", "10", "--num-samples", "100"]


def digests(folder: Path) -> dict[str, str]:
    """Return a digest of each file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def command_of(said: str) -> list[str]:
    """Return the arguments of the command that a verdict names."""
    found = re.search(r"`pyro-bvae (.+?)`", said)
    assert found, said
    return shlex.split(found[1])


def spoil(run: Path, factor: float) -> None:
    """Plant an amortization gap: scale the weights of a run's encoder in its checkpoints."""
    for which in ("best", "last"):
        path = checkpoint_path(run, which)
        state = load_checkpoint(path)
        for name, value in state["model"].items():
            if name.startswith("encoder") and name.endswith("weight"):
                value.mul_(factor)
        save_checkpoint(path, state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planted", "beta", "less"), [("beta", 4.0, 0.8), ("amortization", 1.0, 0.5)]
)
def test_the_command_of_a_verdict_closes_its_part(
    planted: str, beta: float, less: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/a model")  # a name that a shell has to quote
    runs.train(CONFIG.with_options(beta=beta), run, progress=False)
    if planted == "amortization":
        spoil(run, 0.8)
    evaluation = runs.evaluate_run(run, num_samples=100, num_data=10, progress=False)
    assert evaluation.gaps is not None and evaluation.gaps.finding.subject == (planted,)
    before = digests(run)
    command = command_of(str(evaluation.verdict))
    assert command[0] == "improve" and command[1] == str(run)
    assert main([*command, *FEW, "--epochs", "15"]) == 0
    assert digests(run) == before
    new = runs.load(f"{run}-improved")
    saved = read_improvement(new.directory)
    assert saved is not None and new.training_beta == 1.0
    gap = {name: saved[name][planted]["value"] for name in ("before", "after")}
    whole = {name: saved[name]["variational"]["value"] for name in ("before", "after")}
    assert gap["after"] < 0.5 * gap["before"]
    assert whole["before"] - whole["after"] > less * gap["before"]
    evidence = [saved[name]["evidence"] for name in ("before", "after")]
    error = sum(each["monte_carlo_error"] ** 2 for each in evidence) ** 0.5
    assert abs(evidence[0]["value"] - evidence[1]["value"]) < 4 * error + 1e-5
    old = runs.load(run)
    pairs = zip(old.vae.decoder.parameters(), new.vae.decoder.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def plant_correlated_posterior(run: Path, truth: LinearGaussian) -> None:
    """Make a run's model the linear one with the best diagonal guide: all its gap is the family's.

    Of SiLU units in pairs, s(a) - s(-a) = a: networks with a hidden layer are affine.
    """
    best = truth.amortized_vae().encoder
    affine, raw = best.network.layers[0], torch.log(torch.expm1(torch.as_tensor(best.scale)))
    networks = {
        "decoder": [torch.eye(2), torch.zeros(2), truth.weight, torch.zeros(4)],
        "encoder": [affine.weight, affine.bias, torch.eye(4, 2), torch.cat([torch.zeros(2), raw])],
    }
    for which in ("best", "last"):
        path = checkpoint_path(run, which)
        state = load_checkpoint(path)
        for part, (first, shift, last, bias) in networks.items():
            pairs = {
                "0.weight": torch.cat([first, -first]), "0.bias": torch.cat([shift, -shift]),
                "2.weight": torch.cat([last, -last], 1), "2.bias": bias,
            }  # fmt: skip
            for name, value in pairs.items():
                weight = state["model"][f"{part}.network.layers.{name}"].zero_()
                weight[tuple(slice(size) for size in value.shape)] = value.detach().to(weight)
        save_checkpoint(path, state)


@pytest.mark.slow
def test_the_flow_that_a_verdict_names_closes_the_gap_of_the_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    truth = LinearGaussian(torch.tensor([[1.0, 0.9], [0.9, 1.0], [1.1, 1.0], [0.8, 0.9]]), 0.3)
    np.save("x.npy", truth.sample(1500).float().numpy())
    run, options = Path("a"), {"dataset": "file", "path": "x.npy", "likelihood_scale": 0.3}
    runs.train(CONFIG.with_options(**options, epochs=1, batch_size=100), run, progress=False)
    plant_correlated_posterior(run, truth)
    evaluation = runs.evaluate_run(run, num_samples=100, num_data=8, progress=False)
    assert evaluation.gaps is not None
    precision = truth.precision()
    planted = float(precision.diagonal().log().sum() - precision.logdet()) / 2
    assert evaluation.gaps.approximation.value == pytest.approx(planted, abs=0.15)
    assert evaluation.gaps.finding.subject == ("approximation",)
    command = command_of(str(evaluation.verdict))
    assert command == ["improve", "a", "--posterior", "flow"]
    assert main([*command, "--num-data", "8", "--num-samples", "100", "--epochs", "25"]) == 0
    saved = read_improvement(Path("a-improved"))
    assert saved is not None
    for part in ("approximation", "variational"):  # the part, and not at the cost of another
        assert saved["after"][part]["value"] < 0.5 * saved["before"][part]["value"]
    evidence = [saved[name]["evidence"] for name in ("before", "after")]
    error = sum(each["monte_carlo_error"] ** 2 for each in evidence) ** 0.5
    assert abs(evidence[0]["value"] - evidence[1]["value"]) < 4 * error + 1e-5


@pytest.mark.slow
def test_another_family_is_built_loaded_evaluated_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options: Any = {"prior": "vamp", "prior_components": 5, "epochs": 3}
    runs.train(CONFIG.with_options(**options), Path("a"), progress=False)
    change = ["--posterior", "full-rank", "--hidden", "8", "8", "--output", "b"]
    assert main(["improve", "a", *FEW, "--epochs", "2", *change]) == 0
    said = capsys.readouterr().out
    assert "before" in said and "run directory: b" in said
    old, new = runs.load("a"), runs.load("b")
    assert type(new.vae.encoder).__name__ == "FullRankPosterior"
    z = torch.zeros(2)
    assert torch.equal(old.vae.prior().log_prob(z), new.vae.prior().log_prob(z))
    runs.evaluate_run(Path("b"), num_samples=20, num_data=3, progress=False)
    assert "Before and after" in write_report("b").read_text(encoding="utf-8")
    # And once more, from the improved run on: its guide keeps its family.
    more = ["--iwelbo", "2", "--real-data-alone", "--output", "c"]
    assert main(["improve", "b", *FEW, "--epochs", "1", *more]) == 0
    assert type(runs.load("c").vae.encoder).__name__ == "FullRankPosterior"


def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runs.train(CONFIG.with_options(epochs=1), Path("a"), progress=False)
    Path("notes").mkdir()
    Path("notes/mine.txt").write_text("mine", encoding="utf-8")
    for arguments, words in [
        (["nowhere"], "there is no run directory nowhere"),
        (["a", "--posterior", "nonsense"], "nonsense"),
        (["a", "--output", "a"], "another directory than the run"),
        (["a", "--output", "notes"], "notes exists"),
        (["a", "--output", "notes", "--overwrite"], "is not a run directory"),
        (["a", "--checkpoint", "worst"], "worst"),
    ]:
        assert main(["improve", *arguments]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1, said
    assert not Path("a-improved").exists()


@pytest.mark.parametrize(
    ("measured", "named", "called"),
    [
        (lambda: gaps(0.5, amortization=1.5), "improve runs/x`", "improve_guide(vae, data)`"),
        (lambda: gaps(1.5), "improve runs/x --posterior flow`", "posterior=FlowPosterior(...))`"),
        (lambda: gaps(0.1, beta=1.5), "improve runs/x`", "improve_guide(vae, data"),
    ],
)
def test_a_verdict_names_the_command_of_a_run_and_the_call_in_python(
    measured: Any, named: str, called: str
) -> None:
    given = measured()
    assert f"`pyro-bvae {named}" in verdict(given, "runs/x")
    assert called in verdict(given) and "pyro-bvae" not in verdict(given)
