"""The command line: ``pyro-bvae {demo,train,evaluate,report,sweep,verify}``, and those of latents.

This room alone prints and chooses file names. Torch is imported when a command runs.
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tyro

from pyro_bvae.cli.commands import Demo, Evaluate, Report, Sweep, Train, Verify
from pyro_bvae.cli.latents import COMMANDS
from pyro_bvae.core.disk.run_files import finish_replacement
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.processes.signals import raising_interrupted
from pyro_bvae.runs.config import read_config

_COMMANDS: dict[str, Any] = {
    "demo": Demo,
    "train": Train,
    "evaluate": Evaluate,
    "report": Report,
    "sweep": Sweep,
    "verify": Verify,
    **COMMANDS,
}


def _parse(arguments: Sequence[str]) -> Any:
    """Return the command of a command line; a resumed run's defaults are its own configuration."""
    command = tyro.extras.subcommand_cli_from_dict(
        _COMMANDS,
        prog="pyro-bvae",
        description="β-variational autoencoders as Pyro programs.",
        args=list(arguments),
    )
    if isinstance(command, Train) and command.resume:
        finish_replacement(command.directory, force=command.force)
        saved = read_config(command.directory / "config.json")
        default = replace(command, config=saved)
        rest = list(arguments)[list(arguments).index("train") + 1 :]
        return tyro.cli(Train, default=default, args=rest, prog="pyro-bvae train")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    2 for unusable input, 1 for training that failed and for estimates that are off, 128 and the
    number of the signal for Ctrl-C (130), SIGTERM (143) and SIGHUP (129).
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with raising_interrupted(), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _run(_parse(given))
    except (InputError, OSError) as error:
        _print_error(str(error))
        return 2
    except KeyboardInterrupt as error:
        advice = (
            "'train --resume' continues from the last finished epoch" if "train" in given else ""
        )
        advice = "; ".join(getattr(error, "__notes__", ())) or advice
        print(f"interrupted{advice and f'; {advice}'}", file=sys.stderr)
        return 128 + getattr(error, "signal", signal.SIGINT)


def _run(command: Any) -> int:
    """Run a command and return its exit status."""
    from pyro_bvae.training.checks.nonfinite import TrainingError

    try:
        return command.run() or 0
    except TrainingError as error:
        _print_error(f"training stopped at {error}")
        return 1


def _print_error(error: str) -> None:
    """Print an error, and the process that it is of where there are several."""
    from pyro_bvae.training.distributed import place

    rank, size = place()
    print(f"error{f' in process {rank}' if size > 1 else ''}: {error}", file=sys.stderr)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)
