"""The command line: ``pyro-bvae {demo,train,evaluate,report,sweep,verify}``, and those of latents.

This room alone prints and chooses file names. Torch is imported when a command runs.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from typing import Any

import tyro

from pyro_bvae import runs
from pyro_bvae.cli.commands import Demo, Evaluate, Sweep, Train, Verify
from pyro_bvae.cli.comparison import Compare
from pyro_bvae.cli.exporting import Export
from pyro_bvae.cli.groups import Differential
from pyro_bvae.cli.improvement import Improve
from pyro_bvae.cli.latents import COMMANDS
from pyro_bvae.cli.pages import Report, Watch
from pyro_bvae.cli.presets import with_defaults
from pyro_bvae.cli.scoring import Score
from pyro_bvae.cli.streams import BROKEN_PIPE, discard_output, plain_output
from pyro_bvae.cli.usage import UsageError, check_usage, without_effect
from pyro_bvae.cli.words.output import Output, output_of, printing
from pyro_bvae.cli.words.switches import at_home, completed
from pyro_bvae.cli.words.wording import as_typed
from pyro_bvae.core.errors import InputError, one_line
from pyro_bvae.core.inputs.bounds import check_options
from pyro_bvae.core.processes.signals import raising_interrupted
from pyro_bvae.core.processes.threads import Crowd, fit_threads, shorten_spin

_COMMANDS: dict[str, Any] = {
    "demo": Demo,
    "train": Train,
    "evaluate": Evaluate,
    "report": Report,
    "sweep": Sweep,
    "compare": Compare,
    "differential": Differential,
    "export": Export,
    "improve": Improve,
    "score": Score,
    "verify": Verify,
    "watch": Watch,
    **COMMANDS,
}


def _parse(arguments: Sequence[str], given: frozenset[str] = frozenset()) -> Any:
    """Return the command of a command line.

    The defaults of a resumed run are its own configuration, those of others may be a preset's.
    """
    command = _in_one_line(
        tyro.extras.subcommand_cli_from_dict,
        _COMMANDS,
        prog="pyro-bvae",
        description=(
            "β-variational autoencoders as Pyro programs. Every command takes --json (one JSON"
            " object on standard output) and --quiet (errors and warnings alone). Exit status: 0"
            " done, 1 training failed or an estimate is off, 2 unusable input, 130 interrupted."
        ),
        args=list(arguments),
    )
    if isinstance(command, Train | Sweep) and (default := with_defaults(command, given)):
        name = type(command).__name__.lower()
        rest = list(arguments)[list(arguments).index(name) + 1 :]
        return _in_one_line(
            tyro.cli, type(command), default=default, args=rest, prog=f"pyro-bvae {name}"
        )
    return command


def _in_one_line(parse: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function of tyro, whose box around an error becomes one line."""
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            return parse(*args, **options)
    except SystemExit as ended:
        if not ended.code:  # after a help text
            raise
    raise UsageError(" ".join(re.sub(r"[─│╭╮╰╯├┤]+", " ", box.getvalue()).split()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    2 for unusable input, 1 for training that failed and for estimates that are off, 141 for output
    that nobody reads, 128 and the number of the signal for Ctrl-C (130), SIGTERM (143) and SIGHUP
    (129).

    Raises:
        SystemExit: 0 after a help text, 2 for words that do not follow the syntax.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    crowd = None if "torch" in sys.modules else Crowd()  # looked at until torch is imported
    shorten_spin()
    with plain_output(), warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            try:
                return _status(given, crowd)
            finally:
                for stream in filter(None, (sys.stdout, sys.stderr)):
                    stream.flush()
        except BrokenPipeError:
            discard_output()
            return BROKEN_PIPE
        except OSError as error:  # of the last lines, such as a full disk
            _print_error(str(error.strerror))
            discard_output()
            return 2


def _status(given: Sequence[str], crowd: Crowd | None) -> int:
    """Run the command line and return its exit status, errors in one line."""
    given, output = output_of(given)
    try:
        given = completed(_COMMANDS, given)
        options = check_usage(_COMMANDS, given)
        command = at_home(_parse(given, options))
        check_options(command)
        if hasattr(command, "given"):
            command = replace(command, given=options)
        if hasattr(command, "config"):
            runs.check_config(command.config)
        for line in without_effect(options, command):
            _show_warning(line)
        with raising_interrupted():
            return _run(command, output, given[0], crowd)
    except UsageError as error:
        _print_error(str(error))
        raise SystemExit(2) from None
    except InputError as error:
        _print_error(as_typed(str(error), _COMMANDS[given[0]], given))
        return 2
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        _print_error(reason or str(error))
        return 2
    except KeyboardInterrupt as error:
        advice = (
            f"'{name} --resume' continues from the last finished epoch"
            if (name := next((each for each in given if each in ("train", "sweep")), None))
            else ""
        )
        advice = "; ".join(getattr(error, "__notes__", ())) or advice
        print(f"interrupted{advice and f'; {advice}'}", file=sys.stderr)
        return 128 + getattr(error, "signal", signal.SIGINT)


def _run(command: Any, output: Output, name: str, crowd: Crowd | None) -> int:
    """Run a command and return its exit status."""
    from pyro_bvae.training.checks.nonfinite import TrainingError

    if crowd is not None and (line := fit_threads(crowd)):
        print(f"note: {line}", file=sys.stderr)

    try:
        with printing(output, name):
            return command.run() or 0
    except TrainingError as error:
        _print_error(f"training stopped at {error}")
        return 1
    except (MemoryError, RuntimeError) as error:
        known = ("allocate memory", "out of memory")
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in known):
            raise
        _print_error(f"the memory is too small: {error}")
        return 2


def _print_error(error: str) -> None:
    """Print an error, and the process that it is of where there are several."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    process = f" in process {os.environ.get('RANK')}" if several else ""
    print(f"error{process}: {one_line(error, 1000)}", file=sys.stderr)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {one_line(str(message), 1000)}", file=sys.stderr)
