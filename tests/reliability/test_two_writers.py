"""One process writes to a run directory: the second is told who does, and death sets it free."""

import errno
import fcntl
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pyro_bvae import fit, load, runs
from pyro_bvae.cli import main
from pyro_bvae.core.disk.lock import LOCK, check_held, hold
from pyro_bvae.core.errors import InputError
from pyro_bvae.report import write_report
from pyro_bvae.runs import TrainConfig, read_config
from pyro_bvae.training import sweep
from tests.reliability.children import (
    CONFIG,
    QUICK,
    TINY,
    coarse_figures,  # noqa: F401
    end,
    start,
    traces,
    tree,
)

HOLDER = (
    rf"process \d+ on {re.escape(socket.gethostname())} since \d\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
)


@contextmanager
def another_holds(directory: Path) -> Iterator[int]:
    """Have another process hold a directory, and give its id."""

    def work() -> None:
        with hold(directory):
            time.sleep(60)

    child = start(work)
    while not (directory / LOCK).exists() or not (directory / LOCK).read_text():
        time.sleep(0.005)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        end(child)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "beta1-seed0"
    runs.train(CONFIG, output, progress=False)
    runs.evaluate_run(output, num_samples=20, num_data=6, progress=False)
    return output


@pytest.fixture
def run(evaluated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated, tmp_path / evaluated.name))


WRITERS = {
    "new run": ["train", *TINY, "--output", "RUN"],
    "resume": ["train", "--resume", "--output", "RUN"],
    "overwrite": ["train", *TINY, "--overwrite", "--output", "RUN"],
    "evaluate": ["evaluate", "RUN", *QUICK],
    "report": ["report", "RUN"],
    "sweep": ["sweep", *TINY, "--betas", "1", "--output", "PARENT"],
    "sweep, overwriting": ["sweep", *TINY, "--betas", "1", "--overwrite", "--output", "PARENT"],
    "demo": ["demo", "--epochs", "1", "--output", "RUN"],
}


@pytest.mark.parametrize("kind", WRITERS)
def test_the_second_writer_gets_one_line_that_names_the_first(
    kind: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"RUN": str(run), "PARENT": str(run.parent)}
    arguments = [words.get(word, word) for word in WRITERS[kind]]
    with another_holds(run) as child:
        before = tree(run.parent)
        assert main(arguments) == 2
        assert tree(run.parent) == before
    shown = capsys.readouterr()
    assert re.fullmatch(rf"error: {run} is in use by {HOLDER}\S*: wait .*--force.*\n", shown.err)
    assert f"process {child} on" in shown.err
    # It is dead now, and the lock with it, though its file lies there.
    assert (run / LOCK).exists()
    if kind in ("resume", "evaluate", "report"):
        assert main(arguments) == 0
        assert not traces(run)


def test_functions_of_python_are_held_back_too(run: Path) -> None:
    def vae(seed: int = 0) -> torch.nn.Module:
        return runs.build_vae(CONFIG, runs.Shape(5))

    data = torch.rand(40, 5)
    calls: list[Callable[[], object]] = [
        lambda: fit(vae(), data, epochs=1, output=run, progress=False),
        lambda: fit(vae(), data, epochs=9, output=run, resume=True, progress=False),
        lambda: fit(vae(), data, epochs=1, output=run, overwrite=True, progress=False),
        lambda: sweep(vae, data, betas=[1.0], epochs=1, output=run.parent, progress=False),
        lambda: runs.train(CONFIG, run, resume=True, progress=False),
        lambda: runs.evaluate_run(run, progress=False),
        lambda: write_report(run),
    ]
    with another_holds(run):
        before = tree(run)
        for call in calls:
            with pytest.raises(InputError, match=f"{run} is in use by {HOLDER}"):
                call()
        assert tree(run) == before


def test_readers_need_no_lock(run: Path, tmp_path: Path) -> None:
    with another_holds(run):
        before = tree(run)
        assert load(run).config == CONFIG
        assert main(["embed", str(run), "--output", str(tmp_path / "codes.npz")]) == 0
        assert write_report(run, tmp_path / "page.html").exists()
        assert tree(run) == before


def test_another_directory_is_free(run: Path, tmp_path: Path) -> None:
    with another_holds(run):
        runs.train(CONFIG.with_options(epochs=1), tmp_path / "other", progress=False)


def test_two_trainings_at_once_are_one_that_trains_and_one_that_is_told(tmp_path: Path) -> None:
    arguments = ["train", *TINY, "--epochs", "60", "--output", str(tmp_path / "run")]
    children = [start(lambda: main(arguments), tmp_path / f"{i}.txt") for i in range(2)]
    statuses = [end(child, timeout=300.0) for child in children]
    assert sorted(statuses) == [0, 2], [(tmp_path / f"{i}.txt").read_text() for i in range(2)]
    refused = (tmp_path / f"{statuses.index(2)}.txt").read_text()
    assert re.fullmatch(rf"error: .* is in use by ({HOLDER}|another process).*\n", refused)
    assert load(tmp_path / "run").history["epoch"] == list(range(1, 61))
    assert not traces(tmp_path)


# -- the lock


def test_a_lock_that_is_over_leaves_no_trace(tmp_path: Path) -> None:
    with hold(tmp_path / "a" / "b") as taken:
        assert taken and (tmp_path / "a" / "b" / LOCK).exists()
        with hold(tmp_path / "a" / "b") as again:
            assert not again, "the same thread goes on"
        assert (tmp_path / "a" / "b" / LOCK).exists()
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), hold(tmp_path / "a"):
        (tmp_path / "a" / "file").touch()
        raise KeyError
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


def test_another_thread_is_another_writer(tmp_path: Path) -> None:
    refusals: list[str] = []

    def work() -> None:
        try:
            with hold(tmp_path):
                pass
        except InputError as error:
            refusals.append(str(error))

    with hold(tmp_path):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(refusals) == 1 and f"process {os.getpid()} on" in refusals[0]
    work()
    assert len(refusals) == 1


def test_a_forked_child_does_not_keep_the_lock_of_its_parent(tmp_path: Path) -> None:
    with hold(tmp_path):
        child = start(lambda: time.sleep(60))

        def nested() -> int:
            try:
                with hold(tmp_path):
                    return 0
            except InputError:
                return 7

        assert end(start(nested)) == 7, "it does not hold it itself"
        assert (tmp_path / LOCK).exists()
    try:
        with hold(tmp_path) as taken:
            assert taken
    finally:
        os.kill(child, signal.SIGKILL)
        end(child)


def test_a_lock_that_is_taken_by_force_stops_the_process_that_had_it(tmp_path: Path) -> None:
    # So many epochs that it is not done by itself, and so few that it does not compile first.
    arguments = ["train", *TINY, "--epochs", "1900", "--output", str(tmp_path / "run")]
    first = start(lambda: main(arguments), tmp_path / "said.txt")
    while not (tmp_path / "run" / "checkpoints" / "last.pt").exists():
        assert os.waitpid(first, os.WNOHANG) == (0, 0), (tmp_path / "said.txt").read_text()
        time.sleep(0.01)
    assert main(["train", "--resume", "--output", str(tmp_path / "run")]) == 2
    again = ["train", *TINY, "--overwrite", "--force", "--output", str(tmp_path / "run")]
    assert main(again) == 0
    assert end(first) == 2
    last = (tmp_path / "said.txt").read_text().strip().splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'run'} was taken over by process {os.getpid()} on")
    assert last.endswith(": this process stops")
    assert read_config(tmp_path / "run" / "config.json").training.epochs == 2
    assert load(tmp_path / "run").history["epoch"] == [1, 2]
    assert not traces(tmp_path)


@pytest.mark.parametrize("command", ["train", "sweep", "evaluate", "report", "demo"])
def test_the_help_says_when_to_force(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert re.search(
        r"--force.* Take over a run directory that another process holds: one that", shown
    )


# -- where a lock cannot be had


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_without_locks_of_the_system_the_file_is_the_lock(tmp_path: Path, no_locks: None) -> None:
    with hold(tmp_path) as taken:
        assert taken
        child = start(lambda: 0 if refused(tmp_path) else 1)
        assert end(child) == 0
    assert not list(tmp_path.iterdir())
    with another_holds(tmp_path):
        assert refused(tmp_path)
    with hold(tmp_path) as taken:
        assert taken, "its process is dead"
    (tmp_path / LOCK).write_text("process 1 on a-machine-far-away since yesterday")
    assert refused(tmp_path), "nobody can know here"
    with hold(tmp_path, force=True) as taken:
        assert taken and f"process {os.getpid()} on" in (tmp_path / LOCK).read_text()


def refused(directory: Path) -> bool:
    try:
        with hold(directory):
            return False
    except InputError:
        return True


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_directory_that_may_only_be_read_is_nobodys(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with hold(tmp_path) as taken:
        assert not taken
    assert not list(tmp_path.iterdir())


def test_the_lock_of_another_person_is_heeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = os.open

    def open_(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_RDWR and Path(path).exists():
            raise PermissionError(errno.EACCES, "Permission denied")
        return own(path, flags, *rest)

    with another_holds(tmp_path):
        monkeypatch.setattr(os, "open", open_)
        assert refused(tmp_path)


def test_a_lock_that_is_not_ones_own_any_more_is_noticed(tmp_path: Path) -> None:
    check_held(tmp_path)  # nobody's
    with hold(tmp_path):
        check_held(tmp_path)
        (tmp_path / LOCK).rename(tmp_path / "moved")
        check_held(tmp_path)  # the file is gone, and no other process there
        (tmp_path / LOCK).write_text("process 1 on elsewhere since today")
        with pytest.raises(InputError, match="taken over by process 1 on elsewhere since today"):
            check_held(tmp_path)
    assert (tmp_path / LOCK).exists(), "it is another's"


def test_the_configuration_of_the_first_stays(tmp_path: Path) -> None:
    with another_holds(tmp_path):
        with pytest.raises(InputError, match="is in use"):
            runs.train(TrainConfig(beta=-0.0), tmp_path, progress=False)
        assert not (tmp_path / "config.json").exists()
