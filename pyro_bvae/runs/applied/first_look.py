"""The numbers of a run that was never evaluated: those that take a second."""

from __future__ import annotations

import shlex
from typing import Any

from pyro_bvae.core.context import arguments
from pyro_bvae.evaluation import evaluate_within
from pyro_bvae.evaluation.plan import Budget
from pyro_bvae.runs._evaluate import choose_data
from pyro_bvae.runs.directory import Run

# Seconds for the numbers, data that are looked at, and particles for each.
_SECONDS, _DATA, _SAMPLES = 1.0, 100, 500


def first_look(run: Run) -> dict[str, Any]:
    """Return what ``evaluation.json`` would hold, of few data and without gaps.

    Its entry ``first_look`` is the command that measures the run.
    """
    test = choose_data(run.part("test"), _DATA, 0).dense()
    evaluation = evaluate_within(
        run.vae.model, run.vae.guide, *arguments(test.x, test.context),
        within=Budget(_SECONDS, num_samples=_SAMPLES, gaps=False),
        training_beta=run.training_beta, method="importance",
    )  # fmt: skip
    assert run.config is not None
    head = {"dataset": run.config.data.dataset, "split": "test", "checkpoint": "best", "seed": 0}
    command = f"pyro-bvae evaluate {shlex.quote(str(run.directory))}"
    note = f"not measured yet; {command} measures them"
    return {**head, **evaluation.to_dict(), "gaps_note": note, "first_look": command}
