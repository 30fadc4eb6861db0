"""No byte of a run changes unseen, a killed run is not a damaged one, and odd content is one line."""

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_bvae import fit, load, report, runs
from pyro_bvae.cli import main
from pyro_bvae.core import atomic_files
from pyro_bvae.core.disk import digests
from pyro_bvae.core.disk.digests import SUMS, changed_files, read_file, write_files
from pyro_bvae.core.errors import InputError
from pyro_bvae.runs import Shape, build_vae, read_config, write_config
from pyro_bvae.training import History, TargetRate, load_checkpoint, save_checkpoint
from tests.reliability.damage import (
    CONFIG,
    KINDS,
    OLD_RUN,
    battery,
    files_of,
    make_run,
    outcome,
    reader_of,
)

FILES = [
    "checkpoints/best.pt", "checkpoints/last.pt", "config.json", "data.json", SUMS,
    "evaluation.json",
    "evaluation.nc", "metrics.csv", "report.html", "snapshots/epoch-0002-reconstructions.png",
    "snapshots/epoch-0002-samples.png",
]  # fmt: skip
# Files that nothing reads: ``load`` warns of them.
SHOWN = [name for name in FILES if name.startswith(("report", "snapshots"))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return another run, of another seed."""
    return make_run(tmp_path_factory.mktemp("runs") / "other", seed=1)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """Return a copy of a run that a test may spoil."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def contents(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in files_of(run)}


# -- damage


def test_a_whole_run_is_read_and_lists_all_its_files(whole: Path) -> None:
    assert files_of(whole) == sorted(FILES)
    assert changed_files(whole) == []
    listed = [line.split("  ")[1] for line in (whole / SUMS).read_text().splitlines()[:-1]]
    assert listed == sorted(set(FILES) - {SUMS})
    for name in FILES:
        assert outcome(reader_of(whole, name)).word == "silent"
    load(whole)


@pytest.mark.parametrize("name", FILES)
def test_no_byte_of_a_file_changes_unseen(run: Path, name: str) -> None:
    size = (run / name).stat().st_size
    generator = torch.Generator().manual_seed(size)
    middle = torch.randint(size, (40,), generator=generator).tolist()
    kinds = set()
    for kind, answer in battery(run, name, [0, 1, *middle, size - 65, size - 2, size - 1]):
        kinds.add(kind)
        assert answer.word == "refused", (kind, answer)
        assert "was changed" in answer.message
    assert kinds == set(KINDS)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["emptied", "swapped", "removed"])
def test_a_file_that_is_emptied_or_of_another_run_is_refused(
    run: Path, other: Path, name: str, kind: str
) -> None:
    if kind == "emptied":
        (run / name).write_bytes(b"")
    elif kind == "swapped":
        shutil.copy(other / name, run / name)
    else:
        (run / name).unlink()
    if kind == "removed" and name in (*SHOWN, "evaluation.nc", "checkpoints/last.pt"):
        load(run)  # the best checkpoint is enough, and pictures and pages may be thrown away
        return
    answer = outcome(reader_of(run, name))
    assert answer.word == "refused", answer
    with pytest.raises((InputError, UserWarning)):
        report.write_report(run)


def test_a_file_that_the_run_did_not_write_is_refused(run: Path, other: Path) -> None:
    kept = {name: (run / name).read_bytes() for name in ("evaluation.json", "evaluation.nc")}
    digests.remove_files(run, kept)
    load(run)
    for name, content in kept.items():
        (run / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"evaluation\.json .*: {SUMS} does not list it"):
        report.write_report(run)


COMMANDS = {
    "evaluate": ["evaluate", "run", "--num-samples", "9", "--num-data", "4"],
    "report": ["report", "run"],
    "embed": ["embed", "run", "--output", "codes.npz"],
    "resume": ["train", "--resume", "--output", "run", "--epochs", "3"],
}
LOADED = set(FILES[:5]) | {"metrics.csv"}
READ = {
    "evaluate": LOADED,
    "report": set(FILES) - set(SHOWN),
    "embed": LOADED,
    "resume": {"config.json", "data.json", SUMS, "checkpoints/last.pt"},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_the_damaged_file_in_one_line_and_writes_nothing(
    command: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    for name in sorted(READ[command]):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[:60] + bytes([content[60] ^ 4]) + content[61:])
        before = contents(run)
        assert main(COMMANDS[command]) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.count("\n") == 1
        seen = "was changed or damaged since the run wrote it"
        assert shown.err.startswith(f"error: run/{name} {seen}")
        assert contents(run) == before
        (run / name).write_bytes(content)


@pytest.mark.parametrize("name", SHOWN)
def test_a_page_or_picture_that_was_changed_is_told_by_a_warning(run: Path, name: str) -> None:
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[:-1])
    with pytest.warns(UserWarning, match=f"{name} was changed or damaged since the run wrote it"):
        load(run)


@pytest.mark.parametrize("reader", [load, report.write_report, runs.evaluate_run])
def test_a_run_whose_digests_are_gone_is_refused(run: Path, reader: Callable[..., Any]) -> None:
    (run / SUMS).unlink()
    with pytest.raises(InputError, match=f"cannot be checked, since {SUMS} of its run is gone"):
        reader(run)


def test_a_checkpoint_of_a_python_run_is_checked_too(tmp_path: Path) -> None:
    vae = build_vae(CONFIG, Shape(5, None))
    fit(vae, torch.rand(30, 5), epochs=2, output=tmp_path, progress=False)
    assert files_of(tmp_path) == ["checkpoints/best.pt", "checkpoints/last.pt", SUMS, "metrics.csv"]
    assert changed_files(tmp_path) == []
    last = tmp_path / "checkpoints" / "last.pt"
    content = last.read_bytes()
    last.write_bytes(content[:-1] + b"x")
    with pytest.raises(InputError, match=r"last\.pt was changed or damaged"):
        fit(vae, torch.rand(30, 5), epochs=3, output=tmp_path, resume=True, progress=False)
    last.write_bytes(content)
    (tmp_path / SUMS).unlink()
    with pytest.raises(InputError, match="cannot be checked"):
        load(tmp_path, vae)


@pytest.mark.parametrize("name", ["checkpoints", "snapshots"])
def test_a_run_may_have_the_name_of_one_of_its_folders(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs.train(CONFIG, Path(name), snapshots=2, progress=False)
    assert changed_files(Path(name)) == []
    assert (tmp_path / name / SUMS).read_text().count("\n") == 8  # seven files, and the last line
    monkeypatch.chdir(tmp_path / name / "checkpoints")
    assert "model" in load_checkpoint(Path("last.pt"))
    load("..")


def test_a_checkpoint_apart_from_its_run_is_checked_by_its_checksums(
    whole: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(whole / "checkpoints" / "best.pt", tmp_path / "mine.pt"))
    assert "model" in load_checkpoint(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"digits") + 2] ^= 1  # in the configuration
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["checkpoints/best.pt", "checkpoints/last.pt"])
def test_a_damaged_checkpoint_of_version_0_1_0_is_refused_or_has_the_same_content(
    name: str, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(OLD_RUN, tmp_path / "old"))
    size = (run / name).stat().st_size
    words = [answer.word for _, answer in battery(run, name, range(0, size, 331), compare=True)]
    assert set(words) <= {"refused", "same"}
    assert words.count("refused") > len(words) / 2


def test_a_record_of_an_old_checkpoint_that_is_marked_as_a_directory_is_refused(
    tmp_path: Path,
) -> None:
    """torch reads no byte of such a record, and leaves the weights as the memory was."""
    path = Path(shutil.copy(OLD_RUN / "checkpoints" / "best.pt", tmp_path / "best.pt"))
    content = bytearray(path.read_bytes())
    names = [match.start() for match in re.finditer(b"archive/data/0", content)]
    content[names[-1] - 8] ^= 0x10  # in the archive's directory, before the place of the record
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)


# -- kills


class Killed(BaseException):
    """A process that is killed before it gives a file its name."""


@pytest.mark.parametrize("begun", [False, True])
def test_a_process_killed_at_any_moment_leaves_a_run_that_reads(
    begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writes are cut short at each of their steps, the second with the first one's traces."""
    names = ("metrics.csv", "checkpoints/best.pt", "checkpoints/last.pt")
    put = atomic_files.put_in_place
    steps = 0

    def put_or_die(part: Path, path: Path) -> None:
        nonlocal steps
        steps -= 1
        if steps < 0:
            raise Killed
        put(part, path)

    for first in range(6):
        for second in range(6):
            run = tmp_path / f"{first}{second}"
            monkeypatch.setattr(digests, "put_in_place", put)
            if begun:
                write_files({run / name: b"0" for name in names}, begin=True)
            monkeypatch.setattr(digests, "put_in_place", put_or_die)
            for number, last in enumerate((first, second), 1):
                steps = last
                try:
                    write_files({run / name: str(number).encode() for name in names}, begin=True)
                except Killed:
                    assert last < 5
                for name in names:
                    try:
                        assert read_file(run / name) in (b"0", b"1", b"2")
                    except FileNotFoundError:
                        assert not begun
            monkeypatch.setattr(digests, "put_in_place", put)
            write_files({run / name: b"3" for name in names}, begin=True)
            assert {read_file(run / name) for name in names} == {b"3"}


def test_a_reader_waits_for_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    write_files({path: b"old"}, begin=True)
    read = digests._bytes_of

    def read_between(asked: Path) -> bytes | None:
        if asked == path:
            monkeypatch.setattr(digests, "_bytes_of", read)
            write_files({path: b"new"})
        return read(asked)

    monkeypatch.setattr(digests, "_bytes_of", read_between)
    assert read_file(path) == b"new"


# -- content that no training writes


def change(state: dict[str, Any], place: str, value: Any) -> None:
    *keys, last = [int(key) if key.isdigit() else key for key in place.split("/")]
    inside: Any = state
    for key in keys:
        inside = inside[key]
    if value is change:
        del inside[last]
    else:
        inside[last] = value


WEIGHT = "model/encoder.network.layers.2.bias"
ODD: dict[str, tuple[str, Any, str]] = {
    "a weight of NaN": (WEIGHT, torch.full((4,), torch.nan), "weights that are not finite, in 'enc"),
    "an infinite weight": (WEIGHT, torch.full((4,), torch.inf), "weights that are not finite"),
    "a weight of another shape": (WEIGHT, torch.zeros(5), "does not fit this model: .*size"),
    "a weight that is text": (WEIGHT, "x", "must be a tensor, got str"),
    "no weight": (WEIGHT, change, "does not fit this model: .*[Mm]issing"),
    "no weights": ("model", change, "a checkpoint must have 'model'"),
    "weights in a list": ("model", [1], r"'model' must not be \[1\]"),
    "no history": ("history", change, "a checkpoint must have 'history'"),
    "an empty history": ("history", [], "'history' must have an epoch, got none"),
    "a history of numbers": ("history", [1.0], "'history' of epoch 1 must be a mapping, got 1.0"),
    "a history that is text": ("history", "x", "'history' must not be 'x'"),
    "no beta": ("history/0/beta", change, "'history' of epoch 1 must have 'beta'"),
    "a beta of NaN": ("history/1/beta", float("nan"), "of epoch 2 has 'beta' = nan, which is no"),
    "a rate that is text": ("history/1/rate", "x", "of epoch 2 has 'rate' = 'x', which is no"),
    "an epoch twice": ("history/1/epoch", 1, "'history' of epoch 2 has epoch 1"),
    "another column": ("history/1/more", 1.0, "of epoch 2 must have the columns of the first"),
    "no best": ("best", change, "a checkpoint must have 'best'"),
    "a best of NaN": ("best", float("nan"), "'best' must be a number, got nan"),
    "a negative number": ("stale", -1, "'stale' must be at least 0, got -1"),
    "remarks of numbers": ("remarks", [3], "'remarks' has 3"),
    "a remark without words": ("remarks", [{"when": 1, "seen": "", "advice": ""}], "'when' = 1"),
    "remarks that are text": ("remarks", "x", "'remarks' must not be 'x'"),
    "no settings": ("settings", change, "a checkpoint must have 'settings'"),
    "no seed": ("settings/seed", change, "'settings' must have 'seed'"),
    "a seed that is text": ("settings/seed", "0", "'seed' must not be '0'"),
    "a limit that is text": ("settings/gradient_clip", "x", "'gradient_clip' must not be 'x'"),
    "a configuration that is text": ("config", "x", "'config' must not be 'x'"),
    "data that are text": ("data", "x", "'data' must not be 'x'"),
    "means that are text": ("data/row_means", ["x"], "'data' has 'row_means'"),
    "fingerprints of text": ("data/fingerprints", ["x"], "'data' has 'fingerprints'"),
    "no optimizer": ("optimizer", change, "a checkpoint must have 'optimizer'"),
}  # fmt: skip
MOMENTS = "optimizer/state/0/exp_avg"
ODD_OPTIMIZER: dict[str, tuple[str, Any, str]] = {
    "moments of another shape": (MOMENTS, torch.zeros(3), r"'exp_avg' of parameter 0 has the shape"),
    "squares of another shape": (f"{MOMENTS}_sq", torch.zeros(0), "'exp_avg_sq' of parameter 0 has"),
    "moments of NaN": (MOMENTS, torch.full((64, 2), torch.nan), "has the shape|no training gives"),
    "moments that are text": (MOMENTS, "x", "'exp_avg' of parameter 0 is 'x'"),
    "no moments": (MOMENTS, change, "the moments of parameter 0 are"),
    "moments in a list": ("optimizer/state/0", [1], r"the moments of parameter 0 are \[1\]"),
    "steps that are text": ("optimizer/state/0/step", "x", "'step' of parameter 0 is 'x'"),
    "steps of many": ("optimizer/state/0/step", torch.zeros(2), "'step' of parameter 0 is a tensor"),
    "moments of nothing": ("optimizer/state/99", {}, "moments of no parameter, 99"),
    "no groups": ("optimizer/param_groups", [], "'param_groups' must be one mapping"),
    "no list of parameters": ("optimizer/param_groups/0/params", 1, "other parameters"),
    "fewer parameters": ("optimizer/param_groups/0/params", [0], "other parameters of the model"),
    "a rate that is text": ("optimizer/param_groups/0/lr", "x", "'lr' of the optimizer is 'x'"),
    "no rate": ("optimizer/param_groups/0/lr", change, "'lr' of the optimizer is None"),
    "one beta": ("optimizer/param_groups/0/betas", (0.9,), "'betas' of the optimizer is"),
    "a switch that is text": ("optimizer/param_groups/0/fused", "x", "'fused' of the optimizer"),
    "a state that is text": ("optimizer/state", "x", "'state' must not be 'x'"),
}  # fmt: skip


def spoil(run: Path, place: str, value: Any) -> None:
    """Write the checkpoints of a run with an odd content, and the digests that go with it."""
    for which in ("best", "last"):
        path = run / "checkpoints" / f"{which}.pt"
        state = load_checkpoint(path)
        change(state, place, value)
        save_checkpoint(path, state)


@pytest.mark.parametrize(
    ("kind", "old"),
    [
        (kind, old)
        for kind, (place, _, _) in ODD.items()
        for old in (False, True)
        if not (old and place.split("/")[0] in ("config", "data"))  # which 0.1.0 did not write
    ],
)
def test_odd_content_is_refused_in_one_line(
    kind: str, old: bool, run: Path, tmp_path: Path
) -> None:
    place, value, message = ODD[kind]
    if old:
        run = Path(shutil.copytree(OLD_RUN, tmp_path / "old"))
    spoil(run, place, value)
    for call in (lambda: load(run), lambda: resume(run)):
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value) and ".pt " in str(caught.value)


@pytest.mark.parametrize("kind", ODD_OPTIMIZER)
def test_an_odd_optimizer_is_refused_and_its_model_loads(kind: str, run: Path) -> None:
    place, value, message = ODD_OPTIMIZER[kind]
    spoil(run, place, value)
    with pytest.raises(InputError, match=rf"cannot resume .*last\.pt: .*{message}") as caught:
        resume(run)
    assert "\n" not in str(caught.value)
    load(run)


def resume(run: Path) -> None:
    config = read_config(run / "config.json").with_options(epochs=3)
    runs.train(config, run, resume=True, progress=False)


def test_an_odd_controller_is_refused(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"beta": TargetRate(1.0), "output": tmp_path, "progress": False}
    vae = build_vae(CONFIG, Shape(5, None))
    x = torch.rand(30, 5, generator=torch.Generator().manual_seed(0))
    fit(vae, x, epochs=2, **settings)
    spoil(tmp_path, "controller/state", torch.zeros(2))
    with pytest.raises(InputError, match="'controller' must have three finite numbers"):
        fit(vae, x, epochs=3, resume=True, **settings)


# -- another configuration


OTHERS: dict[str, Any] = {
    "seed": 1, "likelihood": "continuous-bernoulli", "prior": "laplace", "binarize": "static",
    "validation": 0.3, "beta": 2.0, "batch_size": 64, "schedule": "cosine", "hidden": (5,),
    "learning_rate": 1e-2, "gradient_clip": None, "early_stopping": 5,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_configuration_that_was_not_trained_is_refused(name: str, run: Path) -> None:
    config = read_config(run / "config.json").with_options(**{name: OTHERS[name]})
    write_config(config, run / "config.json")
    was = re.escape(repr(CONFIG.options()[name]).replace("(4,)", "[4]"))
    for call in (lambda: load(run), lambda: resume(run)):
        with pytest.raises(InputError, match=rf"another configuration: .*'{name}' was {was}, got "):
            call()


def test_an_edited_configuration_is_refused_by_its_digest_and_the_option_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    seen = "run/config.json was changed or damaged since the run wrote it: 'seed' was 0, got 1;"
    for command in COMMANDS.values():
        assert main(command) == 2
        said = capsys.readouterr().err.replace("--seed", "'seed'")  # of commands with that option
        assert said.startswith(f"error: {seen}")


@pytest.mark.parametrize("name", ["seed", "beta", "batch_size", "schedule", "learning_rate"])
def test_a_configuration_that_a_run_of_0_1_0_was_not_trained_with_is_refused(
    name: str, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(OLD_RUN, tmp_path / "old"))
    values = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**values, name: OTHERS[name]}))
    known = "beta" if name == "schedule" else name
    with pytest.raises(InputError, match=f"trained with another configuration: '{known}' was"):
        load(run)


def test_a_run_of_0_1_0_has_the_validation_data_that_it_was_trained_with(tmp_path: Path) -> None:
    run = Path(shutil.copytree(OLD_RUN, tmp_path / "old"))
    values = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**values, "validation": 0}))
    with pytest.raises(InputError, match="was trained with 'validation' data"):
        load(run)


def test_options_that_may_be_others_are_no_other_configuration(run: Path) -> None:
    config = read_config(run / "config.json").with_options(epochs=7, data_root="elsewhere")
    write_config(config, run / "config.json")
    assert load(run).config == config


def write_table(path: Path, shift: float = 0.0) -> None:
    x = torch.rand(40, 3, generator=torch.Generator().manual_seed(3)) * 0.5 + shift
    rows = [",".join(f"{value:.6f}" for value in row) for row in x.tolist()]
    path.write_text("\n".join(["a,b,c", *rows]))


def test_data_that_have_changed_are_refused_and_data_that_have_moved_are_not(
    tmp_path: Path,
) -> None:
    table = tmp_path / "table.csv"
    write_table(table)
    run, config = tmp_path / "run", CONFIG.with_options(dataset="file", path=str(table))
    runs.train(config, run, progress=False)
    write_table(table, shift=0.1)
    for look in (lambda: load(run).splits, lambda: resume(run)):
        with pytest.raises(
            InputError, match=r"table\.csv: row \d+ of the train data is not as it was"
        ):
            look()
    write_table(table)
    table.rename(tmp_path / "moved.csv")
    write_config(config.with_options(path=str(tmp_path / "moved.csv")), run / "config.json")
    assert load(run).splits is not None


# -- runs of version 0.1.0 go on


@pytest.mark.filterwarnings("ignore:the learning rate jumps")
def test_a_run_of_version_0_1_0_that_is_continued_has_digests(tmp_path: Path) -> None:
    run = Path(shutil.copytree(OLD_RUN, tmp_path / "old"))
    load(run)
    assert not (run / SUMS).exists()
    resume(run)
    assert changed_files(run) == []
    for name in ("config.json", "metrics.csv", "checkpoints/last.pt"):
        (run / name).write_bytes((run / name).read_bytes() + b"\n")
        assert outcome(reader_of(run, name)).word == "refused"
        (run / name).write_bytes((run / name).read_bytes()[:-1])
    assert History.read(run / "metrics.csv")["epoch"] == [1, 2, 3]


def test_a_shorter_run_that_is_continued_has_no_evaluation_and_no_digest_of_it(run: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resume(run)
    assert not (run / "evaluation.json").exists()
    assert "evaluation" not in (run / SUMS).read_text()
    assert changed_files(run) == []
