"""The command line: ``pyro-bvae {demo,train,evaluate,report}``. The only place that prints and chooses file names."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from pyro_bvae.configs import TrainConfig, read_config
from pyro_bvae.errors import InputError
from pyro_bvae.evaluation.estimate import PARETO_K_LIMIT, Estimate
from pyro_bvae.evaluation.summary import Evaluation
from pyro_bvae.report import write_report
from pyro_bvae.runs import evaluate_run, train
from pyro_bvae.training import TrainingError


@dataclass(frozen=True)
class Train(TrainConfig):
    """Train a β-VAE into a run directory."""

    output: Path | None = None
    """Run directory; runs/<dataset>-beta<beta> by default."""
    resume: bool = False
    """Continue the run in the output directory, with its configuration."""
    overwrite: bool = False
    """Replace the run in the output directory."""

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.output or Path("runs") / f"{self.dataset}-beta{self.beta:g}"

    def run(self) -> None:
        """Run the command."""
        config = TrainConfig(**{field.name: getattr(self, field.name) for field in fields(TrainConfig)})
        trained = train(config, self.directory, resume=self.resume, overwrite=self.overwrite)
        last = trained.history.rows[-1]
        shown = ("objective", "distortion", "rate", "validation_objective")
        print(", ".join(f"{name} {last[name]:.2f}" for name in shown if name in last))
        print(f"run directory: {self.directory}")


@dataclass(frozen=True)
class Evaluate:
    """Measure a run on its test data: evidence, bound, gaps, active units."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    num_samples: int = 5000
    """Particles for each datum."""
    num_data: int | None = 500
    """How many test data to measure, drawn by the seed; None for all."""
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
            checkpoint=self.checkpoint,
            seed=self.seed,
            device=self.device,
        )
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


_COMMANDS: dict[str, Any] = {"demo": Demo, "train": Train, "evaluate": Evaluate, "report": Report}


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
        rows += [("  approximation gap", gaps.approximation), ("  β gap", gaps.beta)]
        rows += [("  amortization gap", gaps.amortization)]
    lines = [f"{'nats per datum':<24}{'value':>10}{'std. error':>12}{'Monte Carlo':>13}"]
    lines += [
        f"{name:<24}{row.value:>10.3f}{row.standard_error:>12.3f}{row.monte_carlo_error:>13.4f}" for name, row in rows
    ]
    evidence = evaluation.evidence
    lines.append(f"{len(evidence.per_datum)} test data, {evidence.num_samples} particles each")
    if evaluation.kl is not None:
        active = evaluation.kl.active
        lines.append(f"{int(active.sum())} of {active.numel()} latents active")
    lines.append(f"Pareto k above {PARETO_K_LIMIT}, evidence not to be trusted: {evidence.untrusted} data")
    if evaluation.gaps_note:
        lines.append(f"no gaps: {evaluation.gaps_note}")
    elif evaluation.gaps is not None and not evaluation.gaps.converged:
        lines.append("some local refits did not converge: the approximation gap is an upper limit")
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
    """Run the command line and return its exit status: 2 for unusable input, 1 for failed training, 130 for Ctrl-C."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            _parse(given).run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: training stopped at {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        advice = "; 'train --resume' continues from the last finished epoch" if "train" in given else ""
        print(f"interrupted{advice}", file=sys.stderr)
        return 130
    return 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)
