"""The last steps of a run, in which its guide sleeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyro_bvae.runs.config import TrainConfig
from pyro_bvae.training import checkpoint_path, load_checkpoint, load_weights, save_checkpoint
from pyro_bvae.training.distributed import current_ranks
from pyro_bvae.training.improvement.asleep import sleep_phase

# The entry of a best checkpoint whose guide has slept: for how many epochs.
_ASLEEP = "asleep"


def sleep_run(output: Path, vae: Any, data: Any, config: TrainConfig, *, progress: bool) -> None:
    """Have the guide of the best checkpoint of a run sleep, its model fixed.

    The last checkpoint, from which a run is continued, stays as it is. A best checkpoint that has
    slept sleeps no more.

    Args:
        output: The run directory, which the process may write to.
        vae: The model of the run, whose weights become those of the best checkpoint.
        data: Its training data.
        config: Its configuration.
        progress: Show a progress bar.
    """
    path = checkpoint_path(output, "best")
    state = load_checkpoint(path)
    load_weights(vae, state, path)
    if state.get(_ASLEEP):
        return
    settings = config.training.sleep_settings()
    sleep_phase(vae, data, **settings, progress=progress)
    if current_ranks().is_first:
        save_checkpoint(path, {**state, "model": vae.state_dict(), _ASLEEP: settings["epochs"]})
