"""The command line: ``pyro-bvae {demo,train,evaluate,report,sweep,verify}``, and what looks into a run's latents.

The only place that prints and chooses file names, with :mod:`pyro_bvae.cli_latents`.
"""

from __future__ import annotations

import platform
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from pyro_bvae.cli_latents import COMMANDS
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation._evaluate import Evaluation
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.verification import Check, verify
from pyro_bvae.report import write_report
from pyro_bvae.runs import SweepConfig, TrainConfig, check_device, evaluate_run, read_config, train, train_sweep
from pyro_bvae.training import TrainingError
from pyro_bvae.training.distributed import place


@dataclass(frozen=True)
class Train(TrainConfig):
    """Train a β-VAE into a run directory.

    ``torchrun --nproc-per-node N -m pyro_bvae train ...`` shares each batch among processes.
    """

    output: Path | None = None
    """Run directory; runs/<dataset>-beta<beta> by default."""
    resume: bool = False
    """Continue the run in the output directory, with its configuration."""
    overwrite: bool = False
    """Replace the run in the output directory."""
    snapshots: int | None = None
    """Draw reconstructions and samples every so many epochs, into the run directory."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too, into the run directory."""

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.output or Path("runs") / f"{self.dataset}-beta{self.beta:g}"

    def run(self) -> None:
        """Run the command."""
        config = TrainConfig(**{field.name: getattr(self, field.name) for field in fields(TrainConfig)})
        trained = train(
            config,
            self.directory,
            resume=self.resume,
            overwrite=self.overwrite,
            snapshots=self.snapshots,
            tensorboard=self.tensorboard,
        )
        if place()[0]:  # one process prints
            return
        last = trained.history.rows[-1]
        shown = ("objective", "distortion", "rate", "validation_objective")
        print(", ".join(f"{name} {last[name]:.2f}" for name in shown if name in last))
        for remark in trained.history.remarks:
            if not remark.grave:  # of those that are, there was a warning
                print(f"noticed {remark.when} training: {remark}")
        print(f"run directory: {self.directory}")


@dataclass(frozen=True)
class Sweep(SweepConfig):
    """Train a β-VAE for each of several β and seeds, all of them side by side as one program.

    ``torchrun --nproc-per-node N -m pyro_bvae sweep ...`` spreads them over processes.
    """

    def run(self) -> None:
        """Run the command."""
        config = TrainConfig(**{field.name: getattr(self, field.name) for field in fields(TrainConfig)})
        print(train_sweep(config, self.directory, betas=self.betas, seeds=self.seeds, overwrite=self.overwrite))
        print(f"run directories: {self.directory / 'beta*-seed*'}")


@dataclass(frozen=True)
class Evaluate:
    """Measure a run on its test data: evidence, bound, gaps, active units."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    num_samples: int = 5000
    """Particles for each datum."""
    num_data: int | None = 500
    """How many test data to measure, drawn by the seed; None for all."""
    families: tuple[str, ...] = ()
    """Richer guides to fit to each datum too, and say what they would gain: full-rank, flow."""
    checkpoint: str = "best"
    """Which checkpoint: best or last."""
    seed: int = 0
    """Seed of all draws."""
    device: str = "cpu"
    """Where to compute."""

    def run(self) -> None:
        """Run the command."""
        evaluation = evaluate_run(
            self.directory,
            num_samples=self.num_samples,
            num_data=self.num_data,
            families=self.families,
            checkpoint=self.checkpoint,
            seed=self.seed,
            device=self.device,
        )
        if place()[0]:
            return
        print(evaluation_table(evaluation))
        print(f"written: {self.directory / 'evaluation.json'}, {self.directory / 'evaluation.nc'}")


@dataclass(frozen=True)
class Report:
    """Write a run's page: figures, estimates, configuration, in one HTML file."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory, evaluated before."""

    def run(self) -> None:
        """Run the command."""
        print(f"page: {write_report(self.directory)}")


@dataclass(frozen=True)
class Demo:
    """Train on scikit-learn's handwritten digits, measure the gaps, write the page: the whole path in a minute."""

    output: Path = Path("runs/demo")
    """Run directory; an earlier run in it is replaced."""
    beta: float = 2.0
    """Weight of the KL in the objective."""
    epochs: int = 200
    """Passes over the training data."""

    def run(self) -> None:
        """Run the command."""
        config = TrainConfig(
            dataset="digits",
            likelihood="normal",
            likelihood_scale=0.3,
            latent_dim=10,
            hidden=(128, 128),
            beta=self.beta,
            epochs=self.epochs,
            batch_size=64,
        )
        train(config, self.output, overwrite=True)
        evaluation = evaluate_run(self.output)
        page = write_report(self.output)
        print(evaluation_table(evaluation))
        print(f"page: {page}")


@dataclass(frozen=True)
class Verify:
    """Hold every estimator to models whose evidence and gaps are known, on this machine; status 1 if one is off."""

    device: str = "cpu"
    """Where to compute."""
    dtype: Literal["float32", "float64"] = "float32"
    """Number type."""
    seed: int = 0
    """Seed of all draws."""

    def run(self) -> int:
        """Run the command and return its exit status."""
        check_device(self.device)
        begun = time.monotonic()
        checks = verify(self.device, getattr(torch, self.dtype), seed=self.seed, progress=True)
        print(verification_table(checks))
        print(f"allowed: four Monte Carlo errors, and the rounding of {self.dtype}")
        print(versions(self.device))
        wrong = sum(not check.ok for check in checks)
        count = f"{wrong} of {len(checks)} estimates are OFF" if wrong else f"all {len(checks)} estimates are right"
        print(f"{count} on {self.device} in {self.dtype}, {time.monotonic() - begun:.0f} s")
        return int(wrong > 0)


_COMMANDS: dict[str, Any] = {
    "demo": Demo,
    "train": Train,
    "evaluate": Evaluate,
    "report": Report,
    "sweep": Sweep,
    "verify": Verify,
    **COMMANDS,
}


def verification_table(checks: Sequence[Check]) -> str:
    """Return exact values and estimates side by side for the terminal."""
    lines = [f"{'nats per datum':<32}{'latents':>8}{'exact':>11}{'estimated':>11}{'error':>9}{'allowed':>9}"]
    for check in checks:
        if check.note or check.state == "NOT REFUSED":
            state = "OFF" if check.expected != "refused" else check.state
            lines.append(f"{check.what:<32}{check.latents:>8}  {state}: {check.note}".rstrip(": "))
            continue
        lines.append(
            f"{check.what:<32}{check.latents:>8}{check.exact:>11.4f}{check.estimated:>11.4f}{check.error:>9.4f}"
            f"{check.allowed:>9.4f}  {check.state}"
        )
    return "\n".join(lines)


def versions(device: str) -> str:
    """Return one line on what computes: processor, Python and the packages behind the estimates."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    packages = ", ".join(f"{package} {version(package)}" for package in ("pyro-ppl", "arviz"))
    return f"{platform.system()} {name}, Python {platform.python_version()}, torch {torch.__version__}, {packages}"


def evaluation_table(evaluation: Evaluation) -> str:
    """Return an evaluation as a table for the terminal."""
    rows: list[tuple[str, Estimate]] = [
        ("evidence  log p(x)", evaluation.evidence),
        ("ELBO", evaluation.bound.elbo),
        ("distortion  D", evaluation.bound.distortion),
        ("rate  R", evaluation.bound.rate),
        (f"objective  D + {evaluation.training_beta:g} R", evaluation.bound.objective(evaluation.training_beta)),
        ("variational gap", evaluation.variational_gap),
    ]
    if evaluation.gaps is not None:
        gaps = evaluation.gaps
        rows += [("  approximation gap", gaps.approximation)]
        rows += [(f"    with {name}", left) for name, left in gaps.families.items()]
        rows += [("  β gap", gaps.beta), ("  amortization gap", gaps.amortization)]
    lines = [f"{'nats per datum':<24}{'value':>10}{'std. error':>12}{'Monte Carlo':>13}"]
    lines += [
        f"{name:<24}{row.value:>10.3f}{row.standard_error:>12.3f}{row.monte_carlo_error:>13.4f}"
        + ("" if row.trusted else "  untrusted")
        for name, row in rows
    ]
    evidence = evaluation.evidence
    lines.append(f"{len(evidence.per_datum)} test data, {evidence.num_samples} particles each")
    if evaluation.given is not None:
        lines.append(f"all densities are given the {evaluation.given} of the data")
    if evaluation.kl is not None:
        active = evaluation.kl.active
        lines.append(f"{int(active.sum())} of {active.numel()} latents active")
    lines.append(f"evidence not to be trusted: {evidence.untrusted} of {len(evidence.per_datum)} data")
    if evaluation.gaps is not None:
        certified = evaluation.gaps.certified
        lines.append(f"local refits certified to have converged: {int(certified.sum())} of {len(certified)} data")
        lines.append(f"verdict: {evaluation.verdict}")
    elif evaluation.gaps_note:
        lines.append(f"no gaps: {evaluation.gaps_note}")
    return "\n".join(lines)


def _parse(arguments: Sequence[str]) -> Any:
    """Return the command of a command line; a resumed run's defaults are its own configuration."""
    command = tyro.extras.subcommand_cli_from_dict(
        _COMMANDS, prog="pyro-bvae", description="β-variational autoencoders as Pyro programs.", args=list(arguments)
    )
    if isinstance(command, Train) and command.resume:
        saved = read_config(command.directory / "config.json")
        default = replace(command, **{field.name: getattr(saved, field.name) for field in fields(TrainConfig)})
        rest = list(arguments)[list(arguments).index("train") + 1 :]
        return tyro.cli(Train, default=default, args=rest, prog="pyro-bvae train")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    2 for unusable input, 1 for training that failed and for estimates that are off, 130 for Ctrl-C.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _parse(given).run() or 0
    except InputError as error:
        _tell(str(error))
        return 2
    except TrainingError as error:
        _tell(f"training stopped at {error}")
        return 1
    except OSError as error:
        _tell(str(error))
        return 2
    except KeyboardInterrupt:
        advice = "; 'train --resume' continues from the last finished epoch" if "train" in given else ""
        print(f"interrupted{advice}", file=sys.stderr)
        return 130


def _tell(error: str) -> None:
    """Print what went wrong; of several processes, in which."""
    rank, size = place()
    print(f"error{f' in process {rank}' if size > 1 else ''}: {error}", file=sys.stderr)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)
