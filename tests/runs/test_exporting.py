"""Exported files give the model's numbers in programs that know nothing of the package."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_bvae import Context, InputError, datasets, runs
from pyro_bvae.cli import main
from pyro_bvae.runs import Shape, TrainConfig, build_vae
from pyro_bvae.runs.catalogue import COUNTS, LIKELIHOODS, NETWORKS, POSTERIORS, PRIORS
from pyro_bvae.runs.exporting import _export, formats, graphs
from pyro_bvae.runs.exporting.card import command
from tests.reliability.children import tree

D, L = 9, 3
IMAGE = (1, 28, 28)
TINY = {"hidden": (8, 8), "latent_dim": L, "epochs": 1, "warmup_epochs": 0.0, "batch_size": 64}


def make(network: str = "mlp", posterior: str = "normal", likelihood: str = "normal", **further):
    """Return an untrained model with two batches, and contexts of its data."""
    image = IMAGE if network == "convolutional" else None
    size = 784 if image else D
    shape = Shape(
        size, image, 2, likelihood in COUNTS, 4, missing=likelihood != "autoregressive-bernoulli"
    )
    config = TrainConfig(
        network=network, posterior=posterior, likelihood=likelihood, **TINY, **further
    )
    sizes = torch.logspace(0, 4, 8).unsqueeze(1) if shape.has_size_factor else None
    contexts = Context(sizes, torch.eye(2).repeat(4, 1))
    return build_vae(config, shape).eval(), contexts


def difference(vae, contexts, folder: Path, suffixes: Iterable[str] = (".pt2",)) -> float:
    """Return the largest difference between a model and the files of some formats."""
    most = 0.0
    for name, probe in graphs.probes(vae, contexts, 8).items():
        graph = formats.graph_of(probe)
        for suffix in suffixes:
            path = folder / f"{name}{suffix}"
            path.write_bytes(formats.FORMATS[suffix][0](graph, probe))
            most = max(most, formats.largest_difference(path, path.name, probe))
    return most


# Every network and every posterior at least once, and the likelihoods of another kind of graph.
SOME = [
    ("mlp", "normal", "zero-inflated-negative-binomial"),
    ("residual", "full-rank", "categorical"),
    ("convolutional", "low-rank", "normal-decoder"),
    ("mlp", "flow", "discretized-logistic"),
    ("mlp", "mixture", "autoregressive-bernoulli"),
]
# Every likelihood, on networks and posteriors in turn.
ALL = list(zip(cycle(NETWORKS), cycle(POSTERIORS), LIKELIHOODS, strict=False))


@pytest.mark.parametrize("parts", SOME, ids=" ".join)
def test_a_graph_gives_the_numbers_of_the_model(
    parts: tuple[str, str, str], tmp_path: Path
) -> None:
    assert difference(*make(*parts, dispersion="feature-batch"), tmp_path) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("parts", ALL, ids=" ".join)
def test_files_of_all_parts(parts: tuple[str, str, str], tmp_path: Path) -> None:
    assert difference(*make(*parts), tmp_path, formats.FORMATS) <= 1e-5


def test_standardization_is_a_part_of_the_graphs(tmp_path: Path) -> None:
    config = TrainConfig(likelihood="normal", standardize=True, **TINY)
    scaling = datasets.Scaling(
        torch.linspace(-1e3, 1e3, D).double(), torch.logspace(-2, 2, D).double()
    )
    vae = build_vae(config, Shape(D, missing=True, scaling=lambda: scaling)).eval()
    assert difference(vae, None, tmp_path) <= 1e-5
    x = torch.full((2, D), torch.nan)  # of which the networks see the mean, and nothing else
    encoder = torch.export.load(str(tmp_path / "encoder.pt2")).module()
    torch.testing.assert_close(
        encoder(x)["mean"], encoder(scaling.mean.float().expand(2, D))["mean"]
    )


def test_the_decoder_gives_the_parameters_of_the_likelihood() -> None:
    probe = graphs.probes(*make(likelihood="zero-inflated-negative-binomial"), 8)["decoder"]
    rate, theta, lost = (probe.wanted[name] for name in ("log_mean", "dispersion", "gate_logits"))
    # The mean of a zero-inflated negative binomial, by hand; the rates are shares of the size.
    assert torch.allclose(probe.wanted["mean"], torch.sigmoid(-lost) * rate.exp(), rtol=1e-5)
    assert torch.allclose(rate.exp().sum(1, keepdim=True), probe.inputs["size_factor"], rtol=1e-4)
    assert theta.shape == (8, D)
    gaussian = graphs.probes(*make(), 8)["decoder"]
    assert gaussian.wanted.keys() == {"mean", "scale"}


def test_very_many_pixels_one_after_the_other_have_no_mean(tmp_path: Path) -> None:
    model = make("convolutional", likelihood="autoregressive-bernoulli")
    assert graphs.probes(*model, 8)["decoder"].wanted.keys() == {"logits"}
    assert difference(*model, tmp_path) <= 1e-5


# -- whole exports


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run on a table with missing entries."""
    folder = tmp_path_factory.mktemp("table")
    generator = np.random.default_rng(0)
    table = generator.normal(size=(60, 3)).round(3).astype(str)
    table[generator.random(table.shape) < 0.3] = ""
    lines = ["height,width,depth", *(",".join(row) for row in table)]
    (folder / "table.csv").write_text("\n".join(lines), encoding="utf-8")
    config = TrainConfig(
        dataset="file", path=str(folder / "table.csv"), missing="nan", likelihood="normal", beta=2.0,
        **TINY,
    )  # fmt: skip
    runs.train(config, folder / "run", progress=False)
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """Return its export."""
    before = tree(run)
    made = runs.export(run, onnx=True)
    assert made.folder == run.with_name("run-export")
    assert max(made.differences.values()) <= 1e-5 and len(made.differences) == 4
    assert tree(run) == before
    return made.folder


def test_plain_torch_and_onnxruntime_give_the_numbers_of_the_run(run: Path, exported: Path) -> None:
    import onnxruntime

    opened = runs.load(run)
    x = opened.splits.test.x
    assert bool(x.isnan().any())
    codes = torch.export.load(str(exported / "encoder.pt2")).module()(x)
    posterior = opened.vae.posterior(x)
    torch.testing.assert_close(codes["mean"], posterior.mean)
    torch.testing.assert_close(codes["scale"], posterior.variance.sqrt())
    means = torch.export.load(str(exported / "decoder.pt2")).module()(codes["mean"])["mean"]
    torch.testing.assert_close(means, opened.vae.reconstruct(x))
    session = onnxruntime.InferenceSession(exported / "encoder.onnx")
    mean, scale = session.run(["mean", "scale"], {"x": x.numpy()})
    np.testing.assert_allclose(mean, codes["mean"], atol=1e-5)
    np.testing.assert_allclose(scale, codes["scale"], atol=1e-5)


def test_the_model_is_made_again_from_its_weights_alone(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    (tmp_path / "alone.safetensors").write_bytes((exported / "weights.safetensors").read_bytes())
    made, own = runs.from_export(tmp_path / "alone.safetensors"), runs.load(run).vae
    x = runs.load(run).splits.test.x
    assert torch.equal(made.encode(x), own.encode(x))
    assert torch.equal(made.generate(5), own.generate(5))
    with pytest.raises(InputError, match=r"holds an export: runs.from_export\('.*'\) reads it"):
        runs.load(exported)


@pytest.mark.parametrize("prior", PRIORS)
def test_every_prior_is_made_again(prior: str, tmp_path: Path) -> None:
    config = TrainConfig(
        dataset="linear-gaussian", likelihood="normal", prior=prior, prior_components=3,
        standardize=True, **TINY,
    )  # fmt: skip
    shape = Shape.of(runs.load_data(config).train)
    vae = build_vae(config, shape)
    sizes = {name: value for name, value in vars(shape).items() if not callable(value)}
    described = {
        "format": "pyro_bvae.export", "version": 1, "config": config.options(), "shape": sizes
    }  # fmt: skip
    path = tmp_path / "weights.safetensors"
    path.write_bytes(_export._weights_content(vae, described))
    _export._check_weights(path, vae)


@pytest.mark.slow
def test_the_code_of_the_card_runs(exported: Path) -> None:
    card = (exported / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        alone = "" if "runs" in block else "import sys\nassert 'pyro_bvae' not in sys.modules\n"
        finished = subprocess.run(
            [sys.executable, "-c", block + alone], cwd=exported, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr


def test_the_card_says_what_a_person_needs(run: Path, exported: Path) -> None:
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert "3 features: height, width, depth." in card
    assert "may be missing" in card and "β at the end: 2." in card
    assert "This model was not evaluated" in card and "pyro-bvae evaluate run" in card
    assert "pyro-bvae train --dataset file --path table.csv --missing nan" in card
    assert str(run.parent) not in card + (exported / "model.json").read_text(encoding="utf-8")


def test_the_command_of_the_card_is_that_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyro_bvae.cli import _main

    config = TrainConfig(
        dataset="digits", hidden=(3, 4), compile=False, start_at_mean=True, beta=0.5,
        learning_rate=1e-4, likelihood_scale=0.25, likelihood="normal",
    ).resolved()  # fmt: skip
    words = command(config).split()[1:]
    assert _main._parse(words).config.resolved() == config
    cells = TrainConfig(dataset="h5ad", path="cells.h5ad", likelihood="poisson")
    assert _main._parse(command(cells).split()[1:]).config == cells


def test_the_card_has_the_evaluation(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    runs.evaluate_run(tmp_path / "run", num_samples=20, num_data=4, progress=False)
    runs.export(tmp_path / "run", checkpoint="last")
    card = (tmp_path / "run-export" / "README.md").read_text(encoding="utf-8")
    saved = json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))
    value = re.search(r"\| Evidence, log p\(x\) \| (-?[\d.]+)", card)
    assert value is not None and abs(float(value[1]) - saved["evidence"]["value"]) < 0.01
    assert "These numbers are of checkpoint best, and the files of last." in card
    assert "Measured on 4 of the test data with 20 particles each" in card


def test_a_run_whose_data_are_gone_is_exported(run: Path, exported: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    table = run.parent / "table.csv"
    table.rename(tmp_path / "moved.csv")
    try:
        folder = runs.export(tmp_path / "run").folder
    finally:
        (tmp_path / "moved.csv").rename(table)
    for name in ("weights.safetensors", "model.json"):
        assert (folder / name).read_bytes() == (exported / name).read_bytes()


@pytest.mark.slow
def test_cells_with_batches_and_the_code_of_their_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import anndata

    cells = anndata.AnnData(datasets.negative_binomial_factors(100).train.dense().x.numpy())
    cells.obs["donor"] = [f"donor {number % 3}" for number in range(len(cells))]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    config = TrainConfig(
        dataset="h5ad", path=str(tmp_path / "cells.h5ad"), batch_column="donor", prior="vamp",
        prior_components=5, likelihood="negative-binomial", **TINY,
    )  # fmt: skip
    runs.train(config, tmp_path / "run", progress=False)
    run = runs.load(tmp_path / "run")
    some = run.part("test").dense()
    exported = runs.export(tmp_path / "run", onnx=True).folder
    own = {name: getattr(some.context, name) for name in ("size_factor", "covariates")}
    codes = torch.export.load(str(exported / "encoder.pt2")).module()(
        some.x, covariates=own["covariates"]
    )["mean"]
    torch.testing.assert_close(codes, run.vae.encode(some.x, some.context))
    means = torch.export.load(str(exported / "decoder.pt2")).module()(codes, **own)["mean"]
    torch.testing.assert_close(means, run.vae.reconstruct(some.x, some.context))
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert "one for each batch: donor 0, donor 1, donor 2" in card
    monkeypatch.chdir(exported)
    for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(block, {})


# -- refusals


def test_files_with_other_numbers_are_not_left(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = graphs.EncoderGraph.forward

    def wrong(self, x):
        return {name: value * (1 + 1e-3) for name, value in right(self, x).items()}

    monkeypatch.setattr(graphs.EncoderGraph, "forward", wrong)
    with pytest.raises(InputError, match=r"encoder.pt2 gives another '\w+' than the model, by"):
        runs.export(run, tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_an_earlier_export(
    run: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(exported)
    monkeypatch.setattr(formats, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match="nothing was written"):
        runs.export(run)
    assert tree(exported) == before


def test_an_export_without_onnx_leaves_no_onnx_of_another_model(run: Path, tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(b"of an earlier model")
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    runs.export(run, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "weights.safetensors", "model.json", "README.md", "encoder.pt2", "decoder.pt2", "notes.txt"
    }  # fmt: skip


@pytest.mark.parametrize("inside", [".", "export"])
def test_the_run_is_no_place_for_an_export(run: Path, inside: str) -> None:
    with pytest.raises(InputError, match="'output' must be outside of the run"):
        runs.export(run, run / inside)


def test_a_missing_package_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"onnxruntime is not installed.*pyro-bvae\[onnx\]"):
        runs.export(run, onnx=True)


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x08" + b"\0" * 7 + b'{"a":1}}'])
def test_a_file_that_is_no_export_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.safetensors"):
        runs.from_export(tmp_path)


def test_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "encoder.pt2: " in out and "equal to the model within" in out
    assert main(["export", str(tmp_path / "none")]) == 2
