"""The calibration of a run's guide, beside its evaluation."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path

from pyro_bvae.core.context import arguments
from pyro_bvae.core.disk.digests import read_file, write_files
from pyro_bvae.core.disk.run_files import evaluation_files, writing
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.evaluation.calibration import GuideCalibration, calibrate_guide
from pyro_bvae.runs._evaluate import choose_data
from pyro_bvae.runs._train import check_device
from pyro_bvae.runs.directory import load


@exclusive
def calibrate_run(
    directory: Path,
    *,
    data: str | PathLike[str] | None = None,
    num_simulations: int = 1000,
    num_data: int | None = 500,
    checkpoint: str = "best",
    seed: int = 0,
    device: str = "cpu",
    force: bool = False,
) -> GuideCalibration:
    """Calibrate the guide of an evaluated run, and add the result to its ``evaluation.json``.

    Args:
        directory: The run, evaluated before on the same data.
        data: A file of new data that it was evaluated on; its test data by default.
        num_simulations: Data to draw from the model.
        num_data: How many data to compare with them, drawn by ``seed``; None for all.
        checkpoint: ``best`` or ``last``.
        seed: Seed of draws and choice of data.
        device: Where to compute.
        force: Take the run over from another process that writes to it.

    Raises:
        InputError: if the run was not evaluated, or the model cannot draw data.
    """
    check_device(device)
    path, _ = evaluation_files(directory, data)
    if not path.is_file():
        raise InputError(f"'{path}' is not there; run 'pyro-bvae evaluate {directory}' first")
    with writing(directory, force=force):
        run = load(directory, checkpoint=checkpoint, device=device)
        whole = run.part("test") if data is None else run.read(data)
        test = choose_data(whole, num_data, seed).dense().to(device)
        found = calibrate_guide(
            run.vae.model,
            run.vae.guide,
            *arguments(test.x, test.context),
            num_simulations=num_simulations,
            seed=seed,
        )
        content = json.loads(read_file(path).decode("utf-8"))
        text = json.dumps({**content, "calibration": found.to_dict()}, indent=2, allow_nan=False)
        write_files({path: (text + "\n").encode("utf-8")})
    return found
