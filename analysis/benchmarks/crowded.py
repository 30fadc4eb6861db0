"""``crowded``: a compiled training step beside as many busy processes as there are processors, and without them.

OpenMP's threads wait for each other in a loop. Each way of waiting is a process of its own, which
trains turns without and then with the busy processes; the ratio is one of medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from benchmarks.common import Row, Setting, processor, read, write
from benchmarks.contenders import COMPILED
from benchmarks.turns import Worker
from pyro_bvae.core.processes.threads import SPIN, WAITING, granted_processors

TABLE = "crowded.csv"
GOAL = 2.5
OURS = "the command line's"
WAYS: dict[str, dict[str, str]] = {
    OURS: {"GOMP_SPINCOUNT": SPIN},
    "OpenMP's own": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep so many processors busy."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def row_of(way: str, setting: Setting, cache: Path) -> Row:
    """Time one way of waiting, without and with busy processes."""
    kept = {name: value for name, value in os.environ.items() if name not in WAITING}
    with mock.patch.dict(os.environ, kept | WAYS[way], clear=True):
        worker = Worker(f"MLP/{COMPILED}", setting, cache)
    count = granted_processors()
    try:
        idle = [worker.turn() for _ in range(setting.repeats)]
        with busy(count):
            crowded = [worker.turn() for _ in range(setting.repeats)]
    finally:
        worker.close()
    alone, beside = (1e3 * statistics.median(turns) / setting.steps for turns in (idle, crowded))
    return {
        "waiting": way, "idle_ms": f"{alone:.2f}", "crowded_ms": f"{beside:.2f}",
        "ratio": f"{beside / alone:.2f}", "busy_processes": count, "processors": count,
        "steps_a_turn": setting.steps, "turns": setting.repeats, "processor": processor(),
    }  # fmt: skip


def benchmark_crowded(setting: Setting) -> None:
    """Write the table."""
    with tempfile.TemporaryDirectory() as cache:
        write(setting, [row_of(way, setting, Path(cache)) for way in WAYS], TABLE)


def verdict(folder: Path) -> list[str]:
    """Return the ratios in words."""
    return [
        f"a step beside {row['busy_processes']} busy processes on {row['processors']} processors, waiting as"
        f" {row['waiting']}: {row['crowded_ms']} ms, {row['ratio']} times the {row['idle_ms']} of an idle machine"
        + (f" (aim: at most {GOAL})" if row["waiting"] == OURS else "")
        for row in read(folder / TABLE)
    ]
