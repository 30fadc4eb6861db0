"""The commands: one data class each, whose fields are its options.

Torch and the rooms that need it are imported when a command runs, not when it is parsed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pyro_bvae import report, runs
from pyro_bvae.cli.pages import live_page
from pyro_bvae.cli.presets import PresetName, preset_line
from pyro_bvae.cli.tables import evaluation_table, evaluations_table, verification_table, versions
from pyro_bvae.cli.words import output
from pyro_bvae.cli.words.output import written
from pyro_bvae.core.disk.run_files import evaluation_files, finish_replacement
from pyro_bvae.core.errors import InputError, listed, one_line
from pyro_bvae.core.inputs.bounds import Bounds
from pyro_bvae.runs.config import (
    NumData,
    NumSamples,
    NumSeeds,
    TrainConfig,
    TrainingOptions,
    read_config,
)
from pyro_bvae.training.settings import Beta, Epochs, Seed

# An option is spelled by its own name, without that of the part that it belongs to.
_FLAT = (tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes)
_DEFAULT = TrainConfig()
# Epochs of the demo's guide alone, data on which its run is measured and on which its gaps are
# shown before and after, and local steps for each of these.
_DEMO_EPOCHS, _DEMO_MEASURED, _DEMO_DATA, _DEMO_STEPS = 40, 150, 40, 20


def _write_page(write: Callable[[], Path]) -> None:
    """Write the page of a run, or print a line on why there is none."""
    try:
        page = write()
    except Exception as error:  # the run stands: whatever a page needs is no part of it
        print(f"warning: no page was written: {one_line(str(error), 1000)}", file=sys.stderr)
    else:
        print(f"page: {page}")


def _first_page(trained: runs.Run, force: bool) -> Path:
    """Write the page of a run that was trained just now, whose data are at hand."""
    from pyro_bvae.report.page import write_first_page

    return write_first_page(trained, force=force)


@dataclass(frozen=True)
class Train:
    """Train a β-VAE into a run directory.

    ``torchrun --nproc-per-node N -m pyro_bvae train ...`` shares each batch among processes.
    """

    config: Annotated[TrainConfig, *_FLAT] = _DEFAULT
    preset: PresetName = None
    output: Path | None = None
    """Run directory; runs/<dataset>-beta<beta> by default."""
    resume: bool = False
    """Continue the run in the output directory, with its configuration."""
    overwrite: bool = False
    """Replace the run in the output directory, once the first epoch of the new one is written."""
    force: bool = False
    """Take over a run directory that another process holds: one that hangs, or whose machine is
    gone."""
    snapshots: Annotated[int | None, Bounds(1, 1_000_000_000)] = None
    """Draw reconstructions and samples every so many epochs, into the run directory."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too, into the run directory."""
    live: bool = False
    """Show the run in a browser on this machine while it is trained, as watch does."""

    @property
    def directory(self) -> Path:
        """The run directory."""
        name = f"{self.config.data.dataset}-beta{self.config.training.beta:g}"
        return self.output or Path("runs") / name

    def resumed(self) -> Train:
        """Return the command that the output directory was made by."""
        finish_replacement(self.directory, force=self.force)
        return replace(self, config=read_config(self.directory / "config.json"))

    def run(self) -> None:
        """Run the command."""
        from pyro_bvae.training.distributed import place

        page = live_page(self.directory, self.config, resume=self.resume)
        with page if self.live and not place()[0] else nullcontext():
            trained = runs.train(
                self.config,
                self.directory,
                resume=self.resume,
                overwrite=self.overwrite,
                force=self.force,
                snapshots=self.snapshots,
                tensorboard=self.tensorboard,
            )
        if place()[0]:  # one process prints
            return
        _print_preset(self)
        last = trained.history.rows[-1]
        shown = ("objective", "distortion", "rate", "validation_objective")
        print(", ".join(f"{name} {last[name]:.2f}" for name in shown if name in last))
        for remark in trained.history.remarks:
            if not remark.grave:  # grave remarks were warnings
                print(f"noticed {remark.when} training: {remark}")
        _write_page(lambda: _first_page(trained, self.force))
        print(f"run directory: {self.directory}")
        output.report(run=self.directory, last=last, remarks=trained.history.remarks)


@dataclass(frozen=True)
class _ReplicaOptions(TrainingOptions):
    """The training of a sweep's replicas, each with a β of its own."""

    beta: tyro.conf.Suppress[float] = 1.0
    target_rate: tyro.conf.Suppress[float | None] = None
    sleep: tyro.conf.Suppress[float] = 0.0


@dataclass(frozen=True, init=False)
class _SweepConfig(TrainConfig):
    """The configuration that the replicas of a sweep have in common."""

    training: _ReplicaOptions


def _print_preset(command: Train | Sweep) -> None:
    """Print the preset that a run was trained with, if any."""
    if line := "" if command.resume else preset_line(command.preset, command.config):
        print(line, flush=True)


_BETAS = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
_DEFAULT_SWEEP = _SweepConfig(training=_ReplicaOptions())


@dataclass(frozen=True)
class Sweep:
    """Train a β-VAE for each of several β and seeds, all of them side by side as one program.

    ``torchrun --nproc-per-node N -m pyro_bvae sweep ...`` spreads them over processes.
    """

    config: Annotated[_SweepConfig, *_FLAT] = _DEFAULT_SWEEP
    preset: PresetName = None
    betas: tuple[float, ...] = _BETAS
    """The weights of the KL."""
    target_rate: tuple[float, ...] = ()
    """Rates in nats to train to, each by a β that is adapted from 1 on; instead of --betas."""
    seeds: NumSeeds = 1
    """How many seeds for each β or rate, from --seed on."""
    output: Path | None = None
    """Directory of the runs, beta<β>-seed<seed> or rate<nats>-seed<seed>; runs/<dataset>-sweep by
    default."""
    resume: bool = False
    """Continue the runs in the output directory, with their configuration, β and seeds."""
    overwrite: bool = False
    """Replace the runs in the output directory, each once its first new epoch is written."""
    force: bool = False
    """Take over a run directory that another process holds: one that hangs, or whose machine is
    gone."""

    @property
    def directory(self) -> Path:
        """The directory of the run directories."""
        return self.output or Path("runs") / f"{self.config.data.dataset}-sweep"

    def resumed(self) -> Sweep:
        """Return the command that the output directory was made by."""
        config, betas, rates, seeds = runs.saved_sweep(self.directory)
        options = {
            field.name: vars(config.training)[field.name] for field in fields(_ReplicaOptions)
        }
        common = _SweepConfig(config.data, config.model, _ReplicaOptions(**options))
        return replace(self, config=common, betas=betas or _BETAS, target_rate=rates, seeds=seeds)

    def run(self) -> None:
        """Run the command."""
        if self.target_rate and self.betas != _BETAS:
            raise InputError(
                f"'--betas' and '--target-rate' exclude each other, got {listed(self.betas, 10)}"
                f" and {listed(self.target_rate, 10)}"
            )
        trained = runs.train_sweep(
            TrainConfig(self.config.data, self.config.model, self.config.training),
            self.directory,
            betas=() if self.target_rate else self.betas,
            target_rates=self.target_rate,
            seeds=self.seeds,
            resume=self.resume,
            overwrite=self.overwrite,
            force=self.force,
        )
        _print_preset(self)
        print(trained)
        kind = "rate" if self.target_rate else "beta"
        print(f"run directories: {self.directory / f'{kind}*-seed*'}")
        output.report(sweep=self.directory, runs=sorted(self.directory.glob(f"{kind}*-seed*")))


@dataclass(frozen=True)
class Evaluate:
    """Measure a run on its test data: evidence, bound, gaps, active units."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory, or that of a sweep, all of whose runs are measured."""
    data: Path | None = None
    """New data, a file or folder of any format that is read for training; the run's test data by
    default."""
    budget: str | None = None
    """Time to measure in, such as 60s, 5m or 2h: 60s by default. The counts that it allowed are in
    evaluation.json. Of a sweep, that of its first run, whose counts the others have too."""
    plan: Path | None = None
    """File with the counts of an earlier evaluation, its evaluation.json: they and its seed give
    the same numbers again."""
    full: bool = False
    """Measure everything of --num-data data with --num-samples particles, whatever time that takes,
    as is done without a budget where one of the two is given."""
    num_samples: NumSamples = 5000
    """Particles for each datum; within a budget, by default a number that their error asks for."""
    num_data: NumData = 500
    """How many test data to measure, drawn by the seed; None for all. Within a budget, by default
    as many as it allows."""
    families: tuple[str, ...] = ()
    """Richer guides to fit to each datum too, and their gain: full-rank, flow."""
    method: Literal["auto", "importance"] = "auto"
    """Estimator of the evidence: auto anneals what importance samples cannot be trusted with, at up
    to a hundred times their cost."""
    calibration: bool = False
    """Test on data drawn from the model whether the guide is the posterior, too."""
    checkpoint: str = "best"
    """Which checkpoint: best or last."""
    seed: Seed = 0
    """Seed of all draws."""
    device: str = "cpu"
    """Where to compute."""
    force: bool = False
    """Take over a run directory that another process holds: one that hangs, or whose machine is
    gone."""
    given: tyro.conf.Suppress[frozenset[str]] = frozenset()  # options that were typed

    def within(self) -> Any:
        """Return the time or the plan to measure by; None for the counts alone."""
        from pyro_bvae.evaluation.plan import Budget, Plan, seconds_of
        from pyro_bvae.training.distributed import place

        counts = self.given & {"num_data", "num_samples"}
        if self.plan is not None:
            if counts:
                raise InputError(f"'plan' has its own counts, got '{min(counts)}' too")
            return Plan.read(self.plan)
        if self.budget is None and (self.full or counts or place()[1] > 1):
            return None
        seconds = seconds_of("60s" if self.budget is None else self.budget)
        return Budget(seconds, **{name: getattr(self, name) for name in counts})

    def run(self) -> None:
        """Run the command."""
        from pyro_bvae.training.distributed import place

        options: dict[str, Any] = {
            field.name: getattr(self, field.name) for field in fields(self)
            if field.name not in ("directory", "calibration", "budget", "plan", "full", "given")
        }  # fmt: skip
        options["within"] = self.within()
        if runs.is_sweep(self.directory):
            evaluations = runs.evaluate_sweep(self.directory, **options)
            if not place()[0]:
                print(evaluations_table(evaluations))
                output.report(evaluations={n: each.to_dict() for n, each in evaluations.items()})
                files = evaluation_files(self.directory / "*", self.data)
                written(*files)
                for name in evaluations:
                    self._calibrate(self.directory / name)
            return
        evaluation = runs.evaluate_run(self.directory, **options)
        if place()[0]:
            return
        print(evaluation_table(evaluation))
        output.report(run=self.directory, evaluation=evaluation.to_dict())
        self._calibrate(self.directory)
        json_path, nc_path = evaluation_files(self.directory, self.data)
        written(json_path, nc_path)
        if evaluation.plan is not None:
            print(f"the same counts again: --plan {json_path}; more of them: --budget 10m")
        if self.data is None and (self.directory / "report.html").exists():
            _write_page(lambda: report.write_report(self.directory, force=self.force))

    def _calibrate(self, directory: Path) -> None:
        """Calibrate the guide of a run, if it is asked for."""
        if not self.calibration:
            return
        calibrated = runs.calibrate_run(
            directory,
            data=self.data,
            num_data=self.num_data,
            checkpoint=self.checkpoint,
            seed=self.seed,
            device=self.device,
            force=self.force,
        )
        print(f"\n{directory.name}: {calibrated}")


@dataclass(frozen=True)
class Demo:
    """Train on handwritten digits, measure the gaps, improve the guide, write the page."""

    output: Path = Path("runs/demo")
    """Run directory; an earlier run in it is replaced."""
    beta: Beta = 2.0
    """Weight of the KL in the objective."""
    epochs: Epochs = 150
    """Passes over the training data."""
    force: bool = False
    """Take over a run directory that another process holds: one that hangs, or whose machine is
    gone."""

    def run(self) -> None:
        """Run the command."""
        config = TrainConfig(
            dataset="digits", likelihood="normal", likelihood_scale=0.3, latent_dim=10,
            hidden=(128, 128), beta=self.beta, epochs=self.epochs, batch_size=64,
        )  # fmt: skip
        runs.train(config, self.output, overwrite=True, force=self.force)
        evaluation = runs.evaluate_run(
            self.output, method="importance", num_data=_DEMO_MEASURED, force=self.force
        )
        print(evaluation_table(evaluation))
        improved = self.output.with_name(f"{self.output.name}-improved")
        print(f"the guide is trained on: pyro-bvae improve {self.output}")
        result = runs.improve(
            self.output, improved, epochs=_DEMO_EPOCHS, num_data=_DEMO_DATA, num_samples=500,
            overwrite=True, force=self.force,
        )  # fmt: skip
        print(result)
        left = result.refined_gap(_DEMO_STEPS).value
        print(
            f"{_DEMO_STEPS} local steps for each datum (posteriors.refined) leave {left:.2f} nats"
        )
        print(f"page: {report.write_report(self.output, force=self.force)}")
        print(f"improved run: {improved}")
        output.report(run=self.output, improved=improved, evaluation=evaluation.to_dict())


@dataclass(frozen=True)
class Verify:
    """Hold every estimator to models of known evidence and gaps; status 1 if one is off."""

    device: str = "cpu"
    """Where to compute."""
    dtype: Literal["float32", "float64"] = "float32"
    """Number type."""
    seed: Seed = 0
    """Seed of all draws."""

    def run(self) -> int:
        """Run the command and return its exit status."""
        import torch

        from pyro_bvae.evaluation.verification import verify

        runs.check_device(self.device)
        begun = time.monotonic()
        checks = verify(self.device, getattr(torch, self.dtype), seed=self.seed, progress=True)
        print(verification_table(checks))
        output.report(checks=[vars(check) for check in checks])
        print(f"allowed: four Monte Carlo errors, and the rounding of {self.dtype}")
        print(versions(self.device))
        wrong = sum(not check.ok for check in checks)
        count = f"all {len(checks)} estimates are right"
        if wrong:
            count = f"{wrong} of {len(checks)} estimates are OFF"
        print(f"{count} on {self.device} in {self.dtype}, {time.monotonic() - begun:.0f} s")
        return int(wrong > 0)
