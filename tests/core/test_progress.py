"""Progress bars: alive on a terminal, and a line a minute elsewhere."""

import io
import sys
import time

import pytest
import torch

from pyro_bvae import inference_gaps
from pyro_bvae.core.processes import progress
from pyro_bvae.core.processes.progress import ProgressBar
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.oracle import LinearGaussian


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_moves_while_a_step_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "_LOOK", 0.02)
    with ProgressBar(total=10, desc="gaps", unit="data") as bar:
        bar.move(4, "round 3")
        before = sys.stderr.getvalue().count("\r")
        time.sleep(0.3)  # a step that says nothing
        shown = sys.stderr.getvalue()
    assert shown.count("\r") >= before + 3
    assert "gaps:  40%" in shown and "round 3" in shown and "4/10" in shown


def test_a_log_has_a_line_a_minute_and_no_carriage_return(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(ProgressBar, "_said", 0.0)
    for phase in ("evidence", "gaps"):  # the minutes are those of all bars
        with ProgressBar(total=300, desc=phase, unit="data", mininterval=0) as bar:
            for second in range(90):
                clock[0] += 1.0
                bar.move(2 * second, "round 3" if phase == "gaps" else "")
                bar.refresh()
    lines = sys.stderr.getvalue().splitlines()
    assert len(lines) == 3 and "\r" not in sys.stderr.getvalue()
    assert lines[0].startswith("evidence: 118 of 300 data, ") and " left" in lines[0]
    assert lines[1].startswith("gaps: 58 of 300 data, ") and lines[1].endswith("round 3")


def test_gaps_move_within_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[tuple[float, str]] = []
    monkeypatch.setattr(ProgressBar, "move", lambda _, done, phase="": moves.append((done, phase)))
    linear = LinearGaussian(torch.tensor([[1.0, 0.4], [0.2, 1.0]]), 0.5)
    vae = linear.amortized_vae(4.0, 0.9)
    settings = RefitSettings(max_rounds=3, steps_per_round=5, check_particles=8, num_starts=0)
    x = linear.sample(20)
    inference_gaps(
        vae.model, vae.guide, x, training_beta=4.0, num_samples=50, settings=settings, progress=True
    )
    done = [count for count, _ in moves]
    assert done == sorted(done) and done[-1] == 20 and len(set(done)) >= 8
    phases = " ".join(phase for _, phase in moves)
    for part in ("β = 4, round 3", "β = 1, certificate", "weighing"):
        assert part in phases
