"""Nothing is lost: what stands is removed after its successor stands, and looking writes nothing."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_bvae import fit, load, runs
from pyro_bvae.cli import main
from pyro_bvae.core.atomic_files import SUMS, WriteError, atomic_write
from pyro_bvae.core.disk.digests import write_files
from pyro_bvae.core.disk.lock import LOCK
from pyro_bvae.core.disk.run_files import is_vacant, replace_run, staged, writing
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets.images import torchvision
from pyro_bvae.networks import MLP
from pyro_bvae.report import write_report
from pyro_bvae.runs import TrainConfig, read_config
from pyro_bvae.training import (
    TrainingError,
    checkpoint_path,
    load_checkpoint,
    save_checkpoint,
    state,
)
from pyro_bvae.training.trainer import Trainer
from tests.reliability import children
from tests.reliability.children import (
    CONFIG,
    TINY,
    coarse_figures,  # noqa: F401
    killed_before,
    traces,
    tree,
)

OTHER = CONFIG.with_options(beta=3.0, epochs=1)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with an evaluation and a page, and a file of another origin beside them."""
    output = tmp_path_factory.mktemp("runs") / "run"
    runs.train(CONFIG, output, progress=False)
    runs.evaluate_run(output, num_samples=20, num_data=6, progress=False)
    write_report(output)
    (output / "notes.txt").write_text("mine")
    return output


@pytest.fixture
def run(reported: Path, tmp_path: Path) -> Path:
    """Return a copy of the run that a test may spoil."""
    return Path(shutil.copytree(reported, tmp_path / "run"))


# -- refusals


def edit_config(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"latent_dim": 3}))


def cut_checkpoint(run: Path) -> None:
    path = run / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:500])


def other_checkpoint(run: Path) -> None:
    path = run / "checkpoints" / "last.pt"
    saved = torch.load(path, weights_only=True)
    saved["model"].popitem()
    torch.save(saved, path)


def other_moments(run: Path) -> None:
    path = run / "checkpoints" / "last.pt"
    saved = torch.load(path, weights_only=True)
    saved["optimizer"]["param_groups"][0]["params"].pop()
    torch.save(saved, path)


@pytest.mark.parametrize("spoil", [edit_config, cut_checkpoint, other_checkpoint, other_moments])
def test_a_refused_resume_leaves_the_tree_as_it_was(
    spoil: Callable[[Path], None], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(run)
    before = tree(run)
    assert main(["train", "--resume", "--epochs", "4", "--output", str(run)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1
    assert tree(run) == before


def refuse_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: Path, *_: object, **__: object) -> None:
        raise WriteError(run, OSError(28, "No space left on device"))

    monkeypatch.setattr(state, "save_epoch", refuse)


@pytest.mark.filterwarnings("ignore:the learning rate jumps")
@pytest.mark.parametrize("options", [{"resume": True, "epochs": 4}, {"overwrite": True}])
def test_a_disk_that_fills_up_in_the_first_epoch_leaves_the_tree_as_it_was(
    options: dict[str, object], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(run)
    config = CONFIG.with_options(epochs=options.pop("epochs", 1))
    refuse_checkpoints(monkeypatch)
    with pytest.raises(WriteError, match="No space left on device"):
        runs.train(config, run, progress=False, **options)
    assert tree(run) == before


def fail_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = MLP.forward
    monkeypatch.setattr(
        MLP, "forward", lambda self, x: forward(self, x) * (float("nan") if self.training else 1.0)
    )


def test_data_that_fail_at_the_first_step_do_not_cost_the_run_that_they_overwrite(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(run)
    fail_in_training(monkeypatch)
    with pytest.raises(TrainingError, match=rf"step 1 .*; the run in {run} is as it was$"):
        runs.train(OTHER, run, overwrite=True, progress=False)
    assert tree(run) == before


def test_a_training_that_fails_in_its_first_epoch_speaks_of_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_in_training(monkeypatch)
    with pytest.raises(TrainingError, match="step 1") as caught:
        runs.train(CONFIG, tmp_path / "run", progress=False)
    assert "checkpoint" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:the learning rate jumps")
def test_a_training_that_fails_later_says_that_its_checkpoint_is_good(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(run)
    fail_in_training(monkeypatch)
    with pytest.raises(TrainingError, match=r"epoch 3, step 1 .*; the last checkpoint is good$"):
        runs.train(CONFIG.with_options(epochs=4), run, resume=True, progress=False)
    after = tree(run)
    assert read_config(run / "config.json").training.epochs == 4  # so that '--resume' goes on
    assert {**after, **{name: before[name] for name in ("config.json", SUMS)}} == before


def interrupt(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    own = Trainer._epoch

    def interrupted(self: Trainer, number: int, *rest: object) -> object:
        if number == epoch:
            raise KeyboardInterrupt
        return own(self, number, *rest)

    monkeypatch.setattr(Trainer, "_epoch", interrupted)


def test_an_interrupt_says_which_run_stands(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(run)
    interrupt(monkeypatch, 0)
    assert main(["train", *TINY, "--beta", "3", "--overwrite", "--output", str(run)]) == 130
    assert capsys.readouterr().err.endswith(f"interrupted; the run in {run} is as it was\n")
    assert tree(run) == before
    new = str(run.parent / "new")
    assert main(["train", *TINY, "--output", new]) == 130
    assert capsys.readouterr().err.endswith("interrupted; no epoch was finished\n")
    monkeypatch.undo()
    assert main(["train", "--resume", "--output", new]) == 0


def test_overwriting_takes_the_place_of_everything_that_the_run_had_made(run: Path) -> None:
    trained = runs.train(OTHER, run, overwrite=True, progress=False)
    names = {"checkpoints", "checkpoints/best.pt", "checkpoints/last.pt", "config.json"}
    made = {*names, "data.json", "metrics.csv", "notes.txt"}
    assert {name for name in tree(run) if not name.startswith("digests")} == made
    assert load(run).config == trained.config == OTHER.resolved()
    assert load(run).history["epoch"] == [1]


def test_fit_overwrites_on_request(tmp_path: Path) -> None:
    def vae() -> torch.nn.Module:
        return runs.build_vae(CONFIG, runs.Shape(5))

    data, options = torch.rand(40, 5), {"output": tmp_path / "run", "progress": False}
    fit(vae(), data, epochs=2, **options)
    with pytest.raises(InputError, match="holds a run already"):
        fit(vae(), data, epochs=1, **options)
    with pytest.raises(InputError, match="'resume' and 'overwrite' exclude each other"):
        fit(vae(), data, epochs=1, resume=True, overwrite=True, **options)
    assert fit(vae(), data, epochs=1, overwrite=True, **options)["epoch"] == [1]
    assert load(tmp_path / "run", vae()).history["epoch"] == [1]
    assert not traces(tmp_path)


@pytest.mark.filterwarnings("ignore:the learning rate jumps")
def test_an_evaluation_goes_when_a_model_that_was_trained_further_stands(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    save = state.save_epoch

    def saving(directory: Path, *content: Any, best: bool) -> None:
        seen.append((run / "evaluation.json").exists())
        save(directory, *content, best=best)

    monkeypatch.setattr(state, "save_epoch", saving)
    runs.train(CONFIG.with_options(epochs=3), run, resume=True, progress=False)
    assert seen and all(seen)
    assert not [name for name in tree(run) if name.startswith(("evaluation", "report"))]


def test_a_job_that_is_started_again_overwrites_the_old_run_once(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # killed before its first epoch
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 7")
    runs.train(CONFIG, run, overwrite=True, progress=False)
    last = run / "checkpoints" / "last.pt"
    assert load_checkpoint(last)["job"] == "job 7"
    before = tree(run)
    runs.train(CONFIG, run, overwrite=True, progress=False)  # killed after it
    assert tree(run) == before
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # as of torchrun without a name for the job
    runs.train(CONFIG, run, overwrite=True, progress=False)
    assert load_checkpoint(last)["job"].endswith(f" {os.getppid()}")


# -- kills at each change of the directory


def write_run(directory: Path, name: str, files: list[str]) -> None:
    for file in files:
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(directory / file) as stream:
            stream.write(name)


OLD_FILES = [
    "config.json", "metrics.csv", "checkpoints/last.pt", "checkpoints/best.pt", "evaluation.json",
    "evaluation.nc", "report.html", "latents/embedding.npz", "snapshots/epoch-0005-samples.png",
]  # fmt: skip
NEW_FILES = ["config.json", "metrics.csv", "checkpoints/last.pt", "digests.sha256"]


@pytest.mark.parametrize(
    "step", [pytest.param(3, marks=pytest.mark.sample), pytest.param(1, marks=pytest.mark.slow)]
)
def test_a_replacement_that_is_killed_at_any_change_leaves_the_old_run_or_the_new(
    step: int, tmp_path: Path
) -> None:
    def contents(directory: Path) -> dict[str, bytes | None]:
        return {name: value for name, value in tree(directory).items() if value is not None}

    def replace() -> None:
        with writing(directory):
            write_run(staged(directory), "new", NEW_FILES)
            replace_run(directory)

    old = {name: b"old" for name in OLD_FILES} | {"notes.txt": b"mine"}
    new = {name: b"new" for name in NEW_FILES} | {"notes.txt": b"mine"}
    outcomes, change, killed = [], 0, True
    while killed:
        directory = tmp_path / f"run-{change}"
        write_run(directory, "old", OLD_FILES)
        (directory / "notes.txt").write_text("mine")
        killed = killed_before(change, replace, directory)
        with writing(directory):
            pass
        outcomes.append(contents(directory) == new)
        assert contents(directory) == (new if outcomes[-1] else old), change
        assert not traces(directory), change
        change += step
    assert outcomes == sorted(outcomes), "once the new run stands, the old one never comes back"
    assert len(outcomes) > 20 / step and outcomes.count(True) > 5 / step


def whole(run: Path) -> TrainConfig:
    """Return the configuration of a run that loads, and whose next resume finds nothing amiss."""
    config = load(run).config
    assert config is not None
    return config


@pytest.mark.parametrize(
    "changes",
    [pytest.param(range(0, 200, 12), id="some", marks=pytest.mark.sample),
     pytest.param(range(200), id="all", marks=pytest.mark.slow)],
)  # fmt: skip
def test_an_overwriting_that_is_killed_leaves_the_old_run_or_the_new(
    changes: range, reported: Path, tmp_path: Path
) -> None:
    outcomes = []
    for change in changes:
        run = Path(shutil.copytree(reported, tmp_path / f"{change}"))
        killed = killed_before(
            change, lambda run=run: runs.train(OTHER, run, overwrite=True, progress=False), run
        )
        if not killed:
            break
        if any((run / name).is_dir() for name in (".pyro-bvae-whole", ".pyro-bvae-moving")):
            with pytest.raises(InputError, match="is being overwritten; if the process was killed"):
                load(run)
            options = ["--resume"]
            assert main(["train", *options, "--output", str(run)]) == 0
        beta = whole(run).training.beta
        outcomes.append(beta == 3.0)
        page = run / "report.html"  # a training of the command line ends with one of its own
        is_old = page.exists() and page.read_bytes() == (reported / page.name).read_bytes()
        assert is_old != (beta == 3.0)
        config = OTHER if beta == 3.0 else CONFIG
        runs.train(config, run, resume=True, progress=False)
        assert not traces(run)
        runs.train(OTHER, run, overwrite=True, progress=False)
        assert whole(run).training.beta == 3.0
        shutil.rmtree(run)
    else:
        pytest.fail("there are more changes than were tried")
    assert outcomes == sorted(outcomes) and {*outcomes} == {True, False}


@pytest.mark.parametrize(
    "changes",
    [pytest.param(range(0, 200, 6), id="some", marks=pytest.mark.sample),
     pytest.param(range(200), id="all", marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_run_that_is_killed_while_its_first_files_are_written_can_be_had_again(
    changes: range, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[bool] = []
    for number, change in enumerate(changes):
        run = tmp_path / f"{change}"
        if not killed_before(change, lambda run=run: runs.train(CONFIG, run, progress=False), run):
            break
        begun.append((run / "config.json").exists())
        option = ("", "--resume", "--overwrite")[number % 3]
        resume, new = ["train", "--resume"], ["train", *TINY]
        status = main(
            [
                *(resume if option == "--resume" else [*new, *filter(None, [option])]),
                "--output",
                str(run),
            ]
        )
        if begun[-1] and not option:
            assert status == 2 and "pass --resume to continue it" in capsys.readouterr().err
            status = main([*resume, "--output", str(run)])
        if not begun[-1] and option == "--resume":
            assert status == 2 and "is not a run directory" in capsys.readouterr().err
            status = main([*new, "--output", str(run)])
        assert status == 0, (change, capsys.readouterr().err)
        assert load(run).history["epoch"] == [1, 2], change
        assert not traces(run), change
    assert {*begun} == {True, False}


def test_a_folder_with_traces_alone_is_vacant(tmp_path: Path) -> None:
    assert is_vacant(tmp_path / "missing")
    for name in (LOCK, ".config.json.abc.part", "digests.sha256"):
        (tmp_path / name).write_text("x")
    staged(tmp_path).mkdir()
    assert is_vacant(tmp_path)
    (tmp_path / "thesis.txt").write_text("mine")
    assert not is_vacant(tmp_path)


def test_parts_of_killed_processes_are_removed_by_the_next_that_writes(run: Path) -> None:
    (run / "latents").mkdir()
    names = [".report.html.a.part", ".evaluation.nc.part", "checkpoints/.best.pt.b.part"]
    recent = [run / "latents" / f".{name}.npz.part" for name in ("old", "new")]
    for path in (*(run / name for name in names), *recent):
        path.write_text("half")
    os.utime(recent[0], (0, 0))
    write_report(run)
    assert traces(run) == [".new.npz.part"], "somebody may be writing to it"


def test_a_folder_of_another_origin_is_left_as_it_is(tmp_path: Path) -> None:
    for name in ("thesis.txt", ".thesis.txt.part", ".lock"):
        (tmp_path / name).write_text("mine")
    before = tree(tmp_path)
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError):
            runs.train(CONFIG, tmp_path, progress=False, **options)
    assert tree(tmp_path) == before


# -- looking


LOOKING = ["evaluate", "report", "embed", "traverse", "interpolate", "reconstruct", "score"]


@pytest.fixture
def mnist_run(run: Path) -> Path:
    """Return a run whose configuration names MNIST in a folder that is not there."""
    config = CONFIG.with_options(dataset="mnist", data_root=str(run.parent / "data"))
    runs.write_config(config, run / "config.json")
    for which in ("best", "last"):
        path = checkpoint_path(run, which)
        checkpoint = load_checkpoint(path)
        save_checkpoint(
            path, {**checkpoint, "config": json.loads((run / "config.json").read_text())}
        )
    evaluation = run / "evaluation.json"  # of the checkpoint before
    content = {**json.loads(evaluation.read_text()), "sha256": {}}
    write_files({evaluation: json.dumps(content).encode()})
    return run


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of downloads that were tried, which fail."""
    from torchvision.datasets import mnist

    tried: list[str] = []

    def download(url: str, *_: object, **__: object) -> None:
        tried.append(url)
        raise OSError("Name or service not known")

    monkeypatch.setattr(mnist, "download_and_extract_archive", download)
    return tried


@pytest.mark.parametrize("command", LOOKING)
def test_looking_at_a_run_without_its_data_writes_and_downloads_nothing(
    command: str, mnist_run: Path, downloads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(mnist_run.parent)
    assert main([command, str(mnist_run)]) == 2
    assert "MNIST is not in" in capsys.readouterr().err
    assert load(mnist_run).splits is None
    with pytest.raises(InputError, match="download is off"):
        load(mnist_run).part("test")
    assert tree(mnist_run.parent) == before and not downloads


def test_a_training_downloads_and_leaves_nothing_if_that_fails(
    mnist_run: Path, downloads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(mnist_run.parent)
    arguments = ["train", "--dataset", "mnist", "--data-root", str(mnist_run.parent / "data")]
    assert main([*arguments, "--output", str(mnist_run.parent / "new")]) == 2
    shown = capsys.readouterr().err
    assert "the download failed: Name or service not known" in shown and shown.count("\n") == 1
    assert tree(mnist_run.parent) == before and downloads
    assert main(["sweep", *arguments[1:], "--output", str(mnist_run.parent / "new")]) == 2
    assert tree(mnist_run.parent) == before


def test_a_download_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def download(root: Path, train: bool, download: bool) -> None:
        (root / "MNIST" / "raw").mkdir(parents=True)

    torchvision._fetch(download, tmp_path, "MNIST", True)
    assert caplog.messages == [f"MNIST was downloaded into {tmp_path / 'MNIST' / 'raw'}"]


def test_children_see_all_that_changes_a_directory(tmp_path: Path) -> None:
    """The watch of this battery: each of these changes is one before which a child can be killed."""
    directory = tmp_path / "run"

    def work() -> None:
        directory.mkdir()
        write_run(directory, "new", ["a"])
        (directory / "a").rename(directory / "b")
        shutil.rmtree(directory)

    # mkdir of the directory and of its parents, a part, its mode, its place, rename, two removals
    count = 0
    while children.killed_before(count, work, directory):
        shutil.rmtree(directory, ignore_errors=True)
        count += 1
    assert count >= 7


def test_a_training_that_diverges_before_its_first_epoch_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="epoch 1"):
        runs.train(CONFIG.with_options(learning_rate=1e30), tmp_path / "run", progress=False)
    assert list(tmp_path.iterdir()) == []
