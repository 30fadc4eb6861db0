"""Threads that share the processors with other work: how long they spin, and how many there are.

OpenMP's threads wait for each other in a loop before they sleep. Where another process holds one of
the processors, those on the others spin for as long as it does, and a step takes many times as
long.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

#: Turns of the loop in which a thread waits before it sleeps: enough for the pauses between the
#: products of a step, and less than the time that the system gives to another process.
SPIN = "10000"
#: Variables by which a person has chosen how threads wait.
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
# Those of their number.
_NUMBER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# A look at the processors that is shorter tells nothing, in seconds.
_SHORTEST = 0.2
_QUOTAS = ("cpu.max", "cpu/cpu.cfs_quota_us")  # of cgroups of version 2 and 1


def shorten_spin() -> None:
    """Have OpenMP's threads sleep soon when they wait, unless the person has chosen how they wait.

    OpenMP reads it when torch is imported, so that afterwards nothing changes.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = SPIN


def granted_processors(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many processors the process may use: by its affinity and by its container's quota.

    Args:
        cgroup: The folder of the container's limits.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    own = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(own, _quota(cgroup) or own))


def _quota(cgroup: Path) -> int | None:
    """Return how many processors a container's time is worth, rounded up; None without a limit."""
    for name in _QUOTAS:
        try:
            words = (cgroup / name).read_text().split()
            period = words[1:] or [(cgroup / "cpu/cpu.cfs_period_us").read_text()]
            return math.ceil(int(words[0]) / int(period[0])) if int(words[0]) > 0 else None
        except (OSError, ValueError, IndexError):  # no such file, or "max"
            continue
    return None


class _Look(NamedTuple):
    """Seconds up to a moment: of the clock, of this process, and busy ones of the processors."""

    clock: float
    own: float
    busy: float


class Crowd:
    """How many processors other processes keep busy, from its making on.

    Args:
        stat: The file of the processors' times.
    """

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._before = self._look()

    def _look(self) -> _Look | None:
        try:
            processors = {f"cpu{number}" for number in os.sched_getaffinity(0)}
            rows = [line.split() for line in self._stat.read_text().splitlines()]
            times = [[int(part) for part in row[1:]] for row in rows if row[0] in processors]
            # All but idle time and that of waiting for the disk; guests count as users.
            busy = sum(sum(row[:3]) + sum(row[5:8]) for row in times) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError, AttributeError):  # of another system
            return None
        return _Look(time.monotonic(), time.process_time(), busy)

    def others(self) -> int:
        """Return how many processors others have kept busy; 0 where that cannot be known."""
        before, after = self._before, self._look()
        if before is None or after is None or after.clock - before.clock < _SHORTEST:
            return 0
        busy, own = after.busy - before.busy, after.own - before.own
        return max(0, round((busy - own) / (after.clock - before.clock)))


def fit_threads(crowd: Crowd) -> str | None:
    """Set the number of torch's threads by the processors that are granted and free.

    A number that the person has chosen stays, and so does a smaller one.

    Args:
        crowd: The other processes, looked at since some time.

    Returns:
        A line where others keep processors busy; None otherwise.
    """
    if any(name in os.environ for name in _NUMBER):
        return None
    import torch

    granted = min(torch.get_num_threads(), granted_processors())
    others = crowd.others()
    threads = max(1, granted - others)
    if threads < torch.get_num_threads():
        torch.set_num_threads(threads)
    if threads == granted:
        return None
    return (
        f"other processes keep {min(others, granted)} of {granted} processors busy: this one takes"
        f" {threads} {'thread' if threads == 1 else 'threads'} (OMP_NUM_THREADS sets their number)"
    )
