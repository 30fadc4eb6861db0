"""Damaged and random files are read or refused in one line; ``python -m tests.reliability.fuzz`` reads more of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reliability.fuzz import (
    KINDS,
    MAX_BYTES,
    Outcome,
    Worker,
    cases,
    damaged,
    read,
    valid,
    write,
)

FAST = settings(
    max_examples=100, derandomize=True, database=None, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """A process for the reader whose C library may end it."""
    process = Worker()
    yield process
    process.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_refused_in_one_line(
    kind: str, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYRO_BVAE_MAX_BYTES", str(MAX_BYTES))
    reader = worker.read if kind == "h5ad" else read
    outcomes: list[Outcome] = []

    @FAST
    @given(case=cases(kind), seed=st.integers(0, 5))
    def run(case: tuple[str, bytes], seed: int) -> None:
        outcomes.append(reader(kind, write(kind, *case, tmp_path), seed))
        assert outcomes[-1].kind in ("read", "refused"), outcomes[-1].text

    run()
    assert {outcome.kind for outcome in outcomes} == {"read", "refused"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_file_is_read(kind: str, worker: Worker, tmp_path: Path) -> None:
    """The cases are near to files that are read, else all of them would be refused for nothing."""
    for seed in range(4):
        path = write(kind, *valid(kind, seed), tmp_path)
        outcome = worker.read(kind, path, 0)
        assert outcome.kind == "read", outcome.text


def test_edits_change_a_file_everywhere() -> None:
    content = bytes(range(200))
    for deed in ("flip", "fill", "put", "take", "double", "cut"):
        assert damaged(content, [(deed, 100, 4, 77)]) != content
