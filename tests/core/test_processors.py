"""Threads beside other work: how long they wait, and how many there are."""

import sys
import time
from pathlib import Path

import pytest
import torch

from pyro_bvae.core.processes import threads
from pyro_bvae.core.processes.threads import Crowd, fit_threads, granted_processors, shorten_spin


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def test_threads_sleep_soon_unless_the_person_or_torch_came_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shorten_spin()  # torch is there: too late
    assert "GOMP_SPINCOUNT" not in threads.os.environ
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    shorten_spin()
    assert "GOMP_SPINCOUNT" not in threads.os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    shorten_spin()
    assert threads.os.environ["GOMP_SPINCOUNT"] == "0"
    monkeypatch.setenv("GOMP_SPINCOUNT", "")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    shorten_spin()
    assert threads.os.environ["GOMP_SPINCOUNT"] == "10000"
    monkeypatch.delenv("GOMP_SPINCOUNT")


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "1600000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu.max": "?"}, 8),
    ],
)
def test_processors_are_those_of_mask_and_container(
    files: dict[str, str], granted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(8)))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert granted_processors(tmp_path) == granted


def stat(path: Path, busy: list[int]) -> Path:
    """Write ``/proc/stat`` of processors that were busy for so many ticks."""
    rows = [f"cpu{i} {ticks} 0 0 1000 0 0 0 0 0 0" for i, ticks in enumerate(busy)]
    path.write_text("\n".join(["cpu  0 0 0 0 0 0 0 0 0 0", *rows, "intr 5"]) + "\n")
    return path


def test_others_are_the_busy_processors_without_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, own = [0.0], [0.0]
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(threads.os, "sysconf", lambda _: 100)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "process_time", lambda: own[0])
    crowd = Crowd(stat(tmp_path / "stat", [0, 0, 0, 0]))
    assert crowd.others() == 0  # too short a look
    clock[0], own[0] = 2.0, 1.8
    stat(tmp_path / "stat", [200, 190, 5, 200])  # the last one is not this process's
    assert crowd.others() == 1
    assert Crowd(tmp_path / "nowhere").others() == 0


def test_a_run_in_a_crowd_takes_fewer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    crowd = Crowd(Path("nowhere"))
    monkeypatch.setattr(threads, "granted_processors", lambda: 4)
    try:
        for others, left in ((0, 4), (1, 3), (9, 1)):
            torch.set_num_threads(4)
            monkeypatch.setattr(Crowd, "others", lambda _, others=others: others)
            line = fit_threads(crowd)
            assert torch.get_num_threads() == left
            assert (line is None) == (others == 0)
        assert line is not None and line.startswith("other processes keep 4 of 4 processors busy")
        torch.set_num_threads(3)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert fit_threads(crowd) is None and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
