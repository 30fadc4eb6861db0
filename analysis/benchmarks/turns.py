"""Contenders in processes of their own that work in turns, one at a time, so that noise falls on all of them alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.common import Setting, wait_for

# Seconds between two turns, in which the threads of the last one go to sleep.
PAUSE = 0.2


class Failed(Exception):
    """A contender that cannot run here; its text says why."""


class Worker:
    """The parent's end of a process that trains one contender, turn by turn.

    Args:
        name: What it trains.
        setting: The benchmark's setting.
        cache: Folder of the compiler's cache.
    """

    def __init__(self, name: str, setting: Setting, cache: Path) -> None:
        command = [
            sys.executable,
            "-W",
            "ignore",
            str(Path(__file__).parents[1] / "speed.py"),
            "--worker",
            name,
        ]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [*command, *setting.arguments()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache)},
        )
        #: Seconds from the first line of the training code to the end of the first turn, compilers
        #: included.
        self.first = self._answer()

    def turn(self) -> float:
        """Let the process train for one turn, and return the seconds that it took."""
        time.sleep(PAUSE)
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()
        self._errors.close()

    def _answer(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return float(json.loads(line)["seconds"])
        self._process.wait()
        self._errors.seek(0)
        said = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        self.close()
        raise Failed(said[-1] if said else "the process ended without a word")


def serve(device: str, train: Callable[[Callable[[], None]], None]) -> None:
    """Train in this process, reporting each turn and waiting for the word for the next.

    Args:
        device: Where it trains.
        train: Trains without end and calls its argument after each turn.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the contender prints is no answer
    started = time.perf_counter()

    def turn() -> None:
        nonlocal started
        wait_for(device)
        print(json.dumps({"seconds": time.perf_counter() - started}), file=answers, flush=True)
        if sys.stdin.readline().strip() != "go":
            raise SystemExit
        started = time.perf_counter()

    train(turn)


def in_turns(
    names: Sequence[str], setting: Setting, cache: Path
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Time contenders in turns, forwards and backwards.

    Args:
        names: The contenders.
        setting: The benchmark's setting.
        cache: Folder of the compiler's cache, empty if its time is to be seen.

    Returns:
        For each that can run the seconds until its first turn was over, and for each round the
        seconds of each turn.
    """
    workers: dict[str, Worker] = {}
    try:
        for name in names:
            try:
                workers[name] = Worker(name, setting, cache)
                print(f"{name}: ready")
            except Failed as reason:
                print(f"{name}: left out, since {reason}")
        rounds = []
        for number in range(setting.repeats):
            order = list(workers)[:: 1 if number % 2 == 0 else -1]
            rounds.append({name: workers[name].turn() for name in order})
    finally:
        for worker in workers.values():
            worker.close()
    return {name: worker.first for name, worker in workers.items()}, rounds
