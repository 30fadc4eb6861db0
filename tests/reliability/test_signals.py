"""SIGTERM and SIGHUP end a command as Ctrl-C does, after the epoch's checkpoint if that is quick."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyro_bvae import runs
from pyro_bvae.cli import main
from pyro_bvae.core.processes import signals
from pyro_bvae.core.processes.signals import Interrupted, raising_interrupted
from pyro_bvae.training import checkpoint_path, load_checkpoint
from pyro_bvae.training.trainer import Trainer
from tests.reliability.children import CONFIG, QUICK, TINY, end, output_of, start, traces

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
TRAIN = ["train", *TINY, "--epochs", "50"]


@pytest.fixture(autouse=True)
def by_default() -> Iterator[None]:
    """Have signals act as they do by default, also where the tests run under ``nohup``."""
    before = {n: signal.signal(n, signal.SIG_DFL) for n in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def in_epoch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that has something done in the middle of an epoch."""

    def install(epoch: int, work: Callable[[], object]) -> None:
        own = Trainer._epoch

        def changed(self: Trainer, number: int, *rest: object) -> object:
            if number == epoch:
                work()
            return own(self, number, *rest)

        monkeypatch.setattr(Trainer, "_epoch", changed)

    return install


def handlers() -> list[object]:
    return [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)]


@BOTH
def test_a_signal_ends_a_training_after_its_epoch(
    number: int, in_epoch: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = handlers()
    in_epoch(2, lambda: os.kill(os.getpid(), number))
    run = tmp_path / "run"
    assert main([*TRAIN, "--output", str(run)]) == 128 + number
    shown = capsys.readouterr().err
    line = "interrupted; 'train --resume' continues from the last finished epoch"
    assert shown.rstrip().splitlines()[-1] == line and "Traceback" not in shown
    assert len(load_checkpoint(checkpoint_path(run, "last"))["history"]) == 3
    assert not traces(run) and handlers() == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_epoch_that_is_not_quick_is_not_waited_for(
    in_epoch: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    monkeypatch.setattr(signals, "PATIENCE", 0.05)
    in_epoch(2, work)
    begun, run = time.monotonic(), tmp_path / "run"
    assert main([*TRAIN, "--output", str(run)]) == 143
    assert time.monotonic() - begun < 20
    assert len(load_checkpoint(checkpoint_path(run, "last"))["history"]) == 2
    assert not traces(run)


def test_a_second_signal_is_not_waited_for(in_epoch: Callable[..., None], tmp_path: Path) -> None:
    def work() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    in_epoch(1, work)
    assert main([*TRAIN, "--output", str(tmp_path / "run")]) == 143
    assert len(load_checkpoint(checkpoint_path(tmp_path / "run", "last"))["history"]) == 1


@BOTH
def test_a_signal_ends_other_commands_at_once(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    runs.train(CONFIG, run, progress=False)

    def end_it(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(30)

    monkeypatch.setattr("pyro_bvae.runs._evaluate.evaluate_shares", end_it)
    assert main(["evaluate", str(run), *QUICK]) == 128 + number
    assert capsys.readouterr().err.rstrip().splitlines()[-1] == "interrupted"
    assert not traces(run)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    def work() -> int:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        with raising_interrupted():
            os.kill(os.getpid(), signal.SIGHUP)
        return 5

    assert end(start(work)) == 5


def test_a_forked_child_dies_of_a_signal() -> None:
    with raising_interrupted():
        child = start(lambda: time.sleep(30))
        time.sleep(0.05)
        os.kill(child, signal.SIGTERM)
        assert end(child) == -signal.SIGTERM


def test_signals_are_those_of_the_process_again_afterwards() -> None:
    before = handlers()
    with pytest.raises(Interrupted) as caught, raising_interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert caught.value.signal == signal.SIGTERM and isinstance(caught.value, KeyboardInterrupt)
    assert handlers() == before


def test_a_process_that_is_told_to_end_says_so(tmp_path: Path) -> None:
    def work() -> int:
        own = Trainer._epoch

        def changed(self: Trainer, number: int, *rest: object) -> object:
            if number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return own(self, number, *rest)

        Trainer._epoch = changed  # type: ignore[method-assign]
        return main([*TRAIN, "--output", str(tmp_path / "run")])

    status, said = output_of(work)
    assert status == 143
    assert said.rstrip().endswith("continues from the last finished epoch")
