"""The seam of a resumed run, at which a schedule may jump."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

from pyro_bvae.training.objectives.target_rate import TargetRate
from pyro_bvae.training.settings import Settings

# Relative change from which a schedule jumps.
_JUMP = 0.05


def warn_of_seam(rows: Sequence[Mapping[str, float]], settings: Settings, num_steps: int) -> None:
    """Warn if a resumed run has a schedule that jumps where it goes on.

    A schedule such as the one-cycle learning rate depends on the number of epochs, so that with
    another number it is not the one with which the run has come to where it stands.

    Args:
        rows: Metrics of the epochs that are done.
        settings: The settings from now on.
        num_steps: Steps of an epoch.
    """
    done, epochs = len(rows), settings.epochs
    if not 0 < done < epochs:
        return
    schedules = {"learning_rate": ("the learning rate", settings.learning_rate)}
    if not isinstance(settings.beta, TargetRate):  # whose β goes on
        schedules["beta"] = ("β", settings.beta)
    for column, (name, schedule) in schedules.items():
        before, after = rows[-1][column], float(schedule(float(done), epochs))
        expected = float(schedule(done - 1 / num_steps, epochs))
        if not any(math.isclose(rate, before, rel_tol=_JUMP) for rate in (expected, after)):
            warnings.warn(
                f"{name} jumps from {before:.2g} at the end of epoch {done} to {after:.2g}, "
                f"since its schedule is now that of {epochs} epochs",
                stacklevel=4,
            )
