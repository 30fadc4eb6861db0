"""Half a minute of the soak, and the rule by which it fails."""

from pathlib import Path

import pytest

from tests.reliability.soak import Sample, excess, growth, soak


def sample(minute: int, memory: float = 400.0, **changes: int) -> Sample:
    figures = {"files": 9, "entries": 0, "threads": 1, "temporary": 0, **changes}
    return Sample(60.0 * minute, 10 * minute, memory, **figures)


def test_figures_that_grow_are_named() -> None:
    flat = [sample(minute) for minute in range(20)]
    assert not excess(flat) and growth(flat)["memory"] == pytest.approx(0, abs=1e-6)
    warm = [sample(minute, 400.0 - 200.0 / (1 + minute)) for minute in range(20)]
    assert not excess(warm), "memory that settles is no leak"
    leak = [sample(minute, 400.0 + 4.0 * minute) for minute in range(20)]
    assert [words.split()[0] for words in excess(leak)] == ["memory"]
    for name in ("files", "entries", "threads", "temporary"):
        held = [sample(minute, **{name: 5 + minute // 4}) for minute in range(20)]
        assert [words.split()[0] for words in excess(held)] == [name]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the figures are those of Linux")
@pytest.mark.filterwarnings("ignore:.* are training data of")
def test_half_a_minute_of_everything_leaves_nothing_behind() -> None:
    samples = soak(0.6, every=2.0, least=6)
    assert samples[-1].rounds >= 6 and len(samples) > 3
    assert not excess(samples)
