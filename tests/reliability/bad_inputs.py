"""Bad input, one fault a row: ``python -m tests.reliability.bad_inputs`` tries them all.

The rows are generated over all options of all commands and their types, and over the arguments of
the public functions that have the same names, so that a new option has its rows by itself; further
rows are written by hand. A row passes if it ends in one line that has the expected part, with exit
status 2 or, in Python, one ``InputError``, within five seconds, and if no file has changed.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_origin

import numpy as np
import torch

import pyro_bvae
from pyro_bvae import latents, networks, runs
from pyro_bvae.cli import main
from pyro_bvae.cli._main import _COMMANDS as COMMANDS
from pyro_bvae.cli.usage import Option, options_of
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.bounds import OptionType, option_types
from pyro_bvae.runs import TrainConfig
from pyro_bvae.training.settings import FitOptions

SECONDS, LONGEST = 5.0, 1010
TINY = ["--hidden", "8", "--latent-dim", "2", "--epochs", "1"]
# A command line that is good but for the option of a row.
BASE = {
    "train": [*TINY, "--output", "new"],
    "sweep": [*TINY, "--betas", "1", "--output", "new"],
    "demo": ["--epochs", "1", "--output", "new"],
    "evaluate": ["run", "--num-samples", "10", "--num-data", "4"],
    "verify": [],
    "report": ["run"],
    "differential": ["run", "--group", "0"],
}
# Options whose values are names in a list.
NAMED = (
    "dataset", "prior", "likelihood", "dispersion", "posterior", "network", "schedule", "precision",
    "size_factor", "missing", "binarize", "checkpoint", "colour", "families", "paths", "device",
)  # fmt: skip
HUGE, LONG = "9" * 30, "x" * 5000


class Row(NamedTuple):
    """A bad input.

    Attributes:
        name: A name of the row.
        expected: A part of the line.
        words: The command line, for a row of the command line.
        call: The call, for a row of Python.
    """

    name: str
    expected: str
    words: tuple[str, ...] = ()
    call: Callable[[], object] | None = None


# -- the command line


def command_rows() -> Iterator[Row]:
    """Yield the rows of all options of all commands."""
    for command, kind in COMMANDS.items():
        for option in options_of(kind).values():
            for words, expected in _option_rows(command, option):
                name = " ".join([command, *(word[:30] for word in words)])
                yield Row(name, expected, tuple(_line(command, option, words)))


def _line(command: str, option: Option, words: list[str]) -> list[str]:
    """Return a command line with some words, without those of its base for the same option."""
    base = list(BASE.get(command, ["run"]))
    if option.is_positional:
        return [command, *words, *base[1:]]
    for flag in (option.flag, "--epochs" if option.flag == "--steps" else option.flag):
        if flag in base:
            start = base.index(flag)
            del base[start : start + 2]
    return [command, *base, *words]


def _option_rows(command: str, option: Option) -> Iterator[tuple[list[str], str]]:
    """Yield the words of each fault of an option, and a part of the line."""
    flag, good = option.flag, _good_value(option)
    values = _bad_values(option)
    if option.is_positional:
        yield from (([value], part) for value, part in values)
        return
    spelled = flag[:4] + flag[5:]
    if spelled.removeprefix("--") and spelled not in _flags(command):
        yield [spelled, *good], f"'{spelled}' is no option of {command}. Did you mean '--"
    if option.is_switch:
        yield [f"{flag}=yes"], f"{flag} takes no value"
        yield [flag, "yes"], "unexpected argument 'yes'"
        return
    if not option.type.many:
        if bool not in option.type.kinds:  # which without a value is True
            yield [flag], f"{flag} needs a value"
        yield [flag, good[0], "surplus"], "unexpected argument 'surplus'"
    for value, part in values:
        yield [flag, *good, value] if option.type.many and good else [f"{flag}={value}"], part


def _flags(command: str) -> set[str]:
    return {option.flag for option in options_of(COMMANDS[command]).values()}


def _good_value(option: Option) -> list[str]:
    kinds = option.type.kinds
    if option.is_switch:
        return []
    if get_origin(kinds[0]) is Literal:
        return [str(kinds[0].__args__[0])]
    words = {int: "2", float: "1.5", bool: "True", Path: "new.npz", str: "none"}
    return [words[kinds[0]]]


def _bad_values(option: Option) -> Iterator[tuple[str, str]]:
    """Yield values that an option cannot have, and a part of the line."""
    kinds, bounds, flag = option.type.kinds, option.type.bounds, option.flag
    for value in ("", "nul\0"):
        yield value, f"{flag} must be "
    if get_origin(kinds[0]) is Literal:
        yield "nonesuch", f"{flag} must be "
    elif kinds[0] is bool:
        yield from ((value, f"{flag} must be True, False") for value in ("maybe", "1", "true"))
    elif kinds[0] is int:
        for value in ("two", "1.5", "nan", "1e3", "β", "-1", HUGE, "0x10"):
            yield value, flag
        if bounds is not None and bounds.least > 0:
            yield "0", f"{flag} must be "
    elif kinds[0] is float:
        for value in ("two", "nan", "β", "-1", "-inf", "1,5", "1e"):
            yield value, flag
        if bounds is not None and (bounds.above or bounds.least > 0):
            yield "0", f"{flag} must be "
        if bounds is not None and bounds.most < math.inf:
            yield "inf", flag
            yield f"{bounds.most * 2:g}", f"{flag} must be at most"
    elif option.name in NAMED:
        yield from ((value, flag) for value in ("nonesuch", LONG, "naïve-β", "../x", "NORMAL"))
    if kinds[0] in (int, float) and type(None) not in kinds:
        yield "None", f"{flag} must be "


def hand_rows() -> Iterator[Row]:
    """Yield rows of the command line that are written by hand."""
    train, sweep = ["train", *BASE["train"]], ["sweep", *BASE["sweep"]]
    new, model = ["train", *TINY], ["train", "--epochs", "1", "--output", "new"]
    csv = [*train, "--dataset", "file", "--likelihood", "normal"]
    lines: list[tuple[list[str], str]] = [
        # the command
        ([], "a command must be given"),
        ([""], "unknown command"),
        (["trian"], "Did you mean 'train'?"),
        (["TRAIN"], "Did you mean 'train'?"),
        (["eval", "run"], "Did you mean 'evaluate'?"),
        (["--epochs", "3", "train"], "an option must follow its command"),
        (["--version"], "an option must follow its command"),
        (["--tyro-print-completion", "klingon"], "unknown shell"),
        (["β"], "unknown command"),
        # its words
        (["evaluate"], "evaluate needs RUN"),
        (["differential", "run"], "differential needs --group"),
        (["evaluate", "--seed", "3"], "evaluate needs RUN"),
        (["evaluate", "run", "other"], "unexpected argument 'other' of evaluate"),
        (["evaluate", "run", "--epochs", "3"], "but of"),
        (["report", "run", "--seed", "3"], "but of"),
        ([*train, "extra"], "unexpected argument 'extra' of train"),
        ([*train, "--lr", "0.1"], "Did you mean '--learning-rate'?"),
        ([*train, "--batch", "4"], "Did you mean '--batch-size'?"),
        ([*train, "-beta", "4"], "Did you mean '--beta'?"),
        ([*train, "--Beta", "4"], "Did you mean '--beta'?"),
        ([*train, "--latentdim", "4"], "Did you mean '--latent-dim'?"),
        ([*train, "--path", "--seed", "3"], "--path needs a value"),
        ([*train, "--seed", "one", "--seed=2"], "--seed must be an integer"),
        ([*train, "--no-overwrite=1"], "takes no value"),
        # options that exclude each other, or need another
        ([*train, "--resume", "--overwrite"], "'--resume' and '--overwrite' exclude each other"),
        ([*train, "--target-rate", "3", "--schedule", "cosine"], "exclude each other"),
        ([*train, "--target-rate", "3", "--warmup-epochs", "1"], "exclude each other"),
        ([*train, "--target-rate", "3", "--beta", "0"], "--beta must be positive"),
        *(
            (
                [*train, "--likelihood", likelihood, "--likelihood-scale", scale],
                "--likelihood-scale",
            )
            for likelihood, scale in (
                ("normal", "0"),
                ("normal", "0.01"),
                ("laplace", "0.005"),
                ("student-t", "0"),
                ("normal-per-feature", "1e-9"),
                ("normal-fixed", "0"),
                ("normal-fixed", "1e-300"),
            )
        ),
        ([*train, "--path", "data.csv"], "--path"),
        ([*train, "--layer", "raw"], "--layer"),
        ([*train, "--split-column", "part"], "--split-column"),
        ([*train, "--label-column", "kind"], "--label-column"),
        ([*train, "--index-column", "cell"], "--index-column"),
        ([*train, "--batch-column", "kind"], "--batch-column"),
        ([*train, "--image-size", "64"], "--image-size"),
        ([*train, "--colour", "grey"], "--colour"),
        ([*train, "--min-counts", "3"], "--min-counts"),
        ([*train, "--min-cells", "3"], "--min-cells"),
        ([*train, "--backed", "True"], "--backed"),
        ([*train, "--missing", "nan"], "--missing"),
        ([*train, "--dataset", "file"], "--path"),
        ([*train, "--dataset", "h5ad"], "--path"),
        ([*train, "--dataset", "dsprites"], "--path"),
        ([*train, "--size-factor", "observed"], "count"),
        ([*train, "--validation", "1.5"], "--validation"),
        ([*train, "--validation", "1e6"], "--validation"),
        ([*train, "--validation", "1e-9"], "--validation"),
        ([*model, "--hidden"], "--hidden must name at least one width"),
        ([*model, "--hidden", *["1"] * 1001], "--hidden must name at most 1000 widths"),
        ([*csv, "--path", "data.csv", "--network", "convolutional"], "needs images"),
        ([*train, "--likelihood", "poisson"], "support"),
        ([*csv, "--path", "missing.csv"], "missing.csv"),
        ([*csv, "--path", "gaps.csv"], "--missing nan"),
        ([*csv, "--path", "gaps.npz"], "--missing nan"),
        ([*csv, "--path", "data.csv", "--split-column", "nonesuch"], "--split-column"),
        ([*csv, "--path", "data.csv", "--label-column", "nonesuch"], "--label-column must be one"),
        ([*csv, "--path", "data.csv", "--index-column", "nonesuch"], "--index-column must be one"),
        (
            [*csv, "--path", "data.csv", "--index-column", "a", "--label-column", "a"],
            "--label-column and --index-column must be two columns",
        ),
        ([*csv, "--path", "data.csv", "--image-size", "8"], "--image-size is for folders"),
        ([*csv, "--path", "data.csv", "--colour", "rgb"], "--colour is for folders"),
        ([*csv, "--path", "file"], "file"),
        ([*csv, "--path", "other"], "other"),
        ([*csv, "--path", LONG], "File name too long"),
        # what cannot be held
        ([*model, "--latent-dim", "1000000"], "--latent-dim must be at most 10000"),
        ([*model, "--hidden", "10000000000"], "--hidden must be at most"),
        ([*model, "--hidden", "10000000"], "memory"),
        ([*model, "--hidden", "1000000", "1000000"], "memory"),
        ([*model, "--network", "residual", "--hidden", "1000000"], "memory"),
        ([*model, "--latent-dim", "10000", "--posterior", "full-rank", "--hidden", "99"], "memory"),
        (["train", "--epochs", "1000000000", "--output", "new"], "--epochs must be at most"),
        ([*sweep, "--seeds", "1000000000"], "--seeds must be at most 1000"),
        (["demo", "--epochs", "1000000000", "--output", "new"], "--epochs must be at most"),
        (["evaluate", "run", "--num-samples", "1000000000000000"], "--num-samples must be at most"),
        (["traverse", "run", "--num-steps", "1000000000"], "--num-steps must be at most"),
        (["traverse", "run", "--num-steps", "100000"], "--num-steps must be at most 1000"),
        (["traverse", "run", "--num-steps", "2000", "--output", "a.gif"], "--num-steps must be at"),
        (["interpolate", "run", "--num-steps", "1000000000"], "--num-steps must be at most"),
        (["interpolate", "run", "--num-steps", "5000"], "--num-steps must be at most 1000"),
        (
            ["interpolate", "run", "--pairs", *["0", "1"] * 999],
            "--num-steps must be at most 1 for a",
        ),
        (["generate", "run", "--num-samples", "1000000000000"], "--num-samples must be at most"),
        (["generate", "run", "--num-samples", "100000"], "--num-samples must be at most 1000"),
        (["generate", "run", "--num-samples", "1000000000", "--output", "a.npz"], "memory"),
        (["reconstruct", "run", "--num-data", "5000"], "--num-data must be at most 1000"),
        # sweeps
        (["sweep", *TINY, "--betas", "--output", "new"], "--betas must name at least one"),
        ([*sweep[:-4], "--betas", "1", "1.0", "--output", "new"], "--betas must be different"),
        # latents
        (["traverse", "run", "--latents", "7"], "--latents must be among 0 to 1"),
        (["traverse", "run", "--datum", "100000"], "--datum must be the number"),
        (["traverse", "run", "--output", "a.pdf"], "--output must end in"),
        (["embed", "run", "--output", "a.png"], "--output must end in"),
        (["embed", "run", "--output", "folder"], "--output must end in"),
        (["embed", "run", "--output", "file/a.csv"], "file"),
        (["embed", "run", "--output", "folder.csv"], "folder.csv"),
        (["embed", "run", "--output", LONG + ".csv"], "File name too long"),
        (["interpolate", "run", "--pairs", "1"], "--pairs must be pairs"),
        (["interpolate", "run", "--pairs", "0", "100000"], "--pairs must be among"),
        (["interpolate", "run", "--pairs", "3", "3", "--paths", "spherical"], "arc"),
        (["interpolate", "run", "--paths"], "--paths must be one"),
        (["interpolate", "run", "--paths", "linear", "spherical", "--output", "a.npz"], "--paths"),
        (["interpolate", "run", "--num-steps", "1"], "--num-steps must be at least 2"),
        # devices
        *(
            ([*base, "--device", device], "--device must be one that torch can use here")
            for base in (train, ["evaluate", "run"], ["verify"], ["embed", "run"])
            for device in ("cuda:99", "tpu", "cpu:x", "cuda:99999999999999999999", "meta", "-1")
        ),
    ]
    for command, bad in (
        *(([*new, "--output"], place) for place in ("file", "file/run", "other/thesis.txt")),
        *(
            (["demo", "--epochs", "1", "--output"], place)
            for place in ("file", "file/run", "other")
        ),
        *((["sweep", *TINY, "--output"], place) for place in ("file", "file/run")),
        *(([*new, "--resume", "--output"], place) for place in ("file", "nowhere", "other")),
        *(([*new, "--overwrite", "--output"], place) for place in ("file", "other")),
        ([*new, "--output"], "run"),
        ([*new, "--output"], LONG),
        ([*new, "--resume", "--output"], LONG),
        *(
            ([name, *BASE.get(name, ["run"])[1:]], place)
            for name in COMMANDS
            if any(option.is_positional for option in options_of(COMMANDS[name]).values())
            for place in ("nowhere", "file", "other", "file/run", LONG, "run/config.json")
        ),
    ):
        lines.append(([*command, bad], bad[:40]))
    for words, expected in lines:
        yield Row(" ".join(word[:30] for word in words[:12]), expected, tuple(words))


# -- Python


def python_rows() -> Iterator[Row]:
    """Yield calls with arguments that cannot be used."""
    for part in vars(TrainConfig()).values():
        for name, kind in option_types(type(part)).items():
            for value in _bad_objects(name, kind):
                yield _python("check_config", name, value, _check_config)
    for name, kind in option_types(FitOptions).items():
        for value in _bad_objects(name, kind):
            yield _python("fit", name, value, _fit)
    for count in (0, -1, 1.5, "two", True):
        yield _python("evaluate_run", "num_samples", count, _evaluate)
        yield _python("train", "snapshots", count, _train)
        yield _python("train_sweep", "seeds", count, _sweep)
        yield _python("traverse", "num_steps", count, _traverse)
        yield _python("interpolate", "num_steps", count, _interpolate)
        yield _python("generate", "num_samples", count, _generate)
    for count in (10**12, 10**30):
        yield _python("evaluate_run", "num_samples", count, _evaluate)
        yield _python("train_sweep", "seeds", count, _sweep)
        yield _python("traverse", "num_steps", count, _traverse)
        yield _python("interpolate", "num_steps", count, _interpolate)
        yield _python("generate", "num_samples", count, _generate)
    for value in (-1.0, math.nan, math.inf, "hot"):
        yield _python("generate", "temperature", value, _generate)
    for value in (0, -1.0, math.nan, math.inf, "far"):
        yield _python("PriorRange", "deviations", value, latents.PriorRange)
    for widths in ((10**10,), (10**6, 10**6), (10**400,)):
        call = lambda widths=widths: networks.MLP(784, 20, hidden=widths)  # noqa: E731
        yield Row(f"MLP hidden={widths}"[:60], "memory", call=call)
    yield Row(
        "ResidualMLP num_blocks=10**12", "at most",
        call=lambda: networks.ResidualMLP(784, 20, 256, num_blocks=10**12),
    )  # fmt: skip
    for path in ("nowhere", "file", "other"):
        yield Row(f"load {path}", path, call=lambda path=path: pyro_bvae.load(path))


def _python(function: str, name: str, value: object, call: Callable[..., object]) -> Row:
    text = f"{value!r}" if not isinstance(value, int) or abs(value) < 10**40 else "an integer"
    return Row(f"{function} {name}={text[:40]}", f"'{name}' ", call=lambda: call(**{name: value}))


def _bad_objects(name: str, kind: OptionType) -> Iterator[Any]:
    """Yield values of Python that an option cannot have."""
    bounds = kind.bounds
    if kind.many:
        yield from (3, "34", None, (0,), (-1,), (1.5,), (10**30,), (None,), (True,))
        if kind.kinds[0] is not str:
            yield ("a",)
    elif kind.kinds[0] is int:
        yield from ("two", 1.5, math.nan, [3], True, -1, 10**30, 10**5000)
    elif kind.kinds[0] is float:
        yield from ("two", math.nan, [1.5], True, -1.0, -math.inf)
        if bounds is not None and bounds.most < math.inf:
            yield from (math.inf, bounds.most * 2, 10**400)
    elif kind.kinds[0] is bool:
        yield from ("yes", 3, [])
    elif kind.kinds[0] is str:
        yield from (3, ["a"], b"a")
    if not kind.many and type(None) not in kind.kinds:
        yield None


def _check_config(**options: Any) -> None:
    runs.check_config(TrainConfig(**options))


def _fit(**options: Any) -> None:
    vae = pyro_bvae.BetaVAE(
        pyro_bvae.priors.NormalPrior(2),
        pyro_bvae.Decoder(
            networks.MLP(2, 4, hidden=(3,)), pyro_bvae.likelihoods.NormalLikelihood(1.0)
        ),
        pyro_bvae.posteriors.NormalPosterior(networks.MLP(4, 4, hidden=(3,))),
    )
    pyro_bvae.fit(vae, torch.zeros(8, 4), **{"epochs": 1, "progress": False, **options})


def _evaluate(**options: Any) -> None:
    runs.evaluate_run(Path("run"), progress=False, **options)


def _train(**options: Any) -> None:
    config = TrainConfig(hidden=(8,), latent_dim=2, epochs=1)
    runs.train(config, Path("new"), progress=False, **options)


def _sweep(**options: Any) -> None:
    config = TrainConfig(hidden=(8,), latent_dim=2, epochs=1)
    runs.train_sweep(config, Path("new"), betas=(1.0,), progress=False, **options)


def _traverse(**options: Any) -> None:
    latents.traverse("run", latents=[0], **options)


def _interpolate(**options: Any) -> None:
    latents.interpolate("run", **options)


def _generate(**options: Any) -> None:
    latents.generate("run", **{"num_samples": 3, **options})


# -- trying them


def all_rows() -> list[Row]:
    """Return all rows, with names that differ."""
    rows = [*command_rows(), *hand_rows(), *python_rows()]
    return list({(row.name, row.words): row for row in rows}.values())


def prepare(folder: Path) -> None:
    """Make a small run and small data, and things that are neither."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(40, 3)).round(2)
    rows = [",".join(map(str, row)) for row in values.tolist()]
    (folder / "data.csv").write_text("\n".join(["a,b,c", *rows, ""]))
    (folder / "gaps.csv").write_text("\n".join(["a,b,c", *rows, "1,,2", ""]))
    np.savez(folder / "gaps.npz", x=np.where(values > 1, np.nan, values))
    (folder / "file").write_text("mine")
    for name in ("other", "folder", "folder.csv"):
        (folder / name).mkdir()
    (folder / "other" / "thesis.txt").write_text("mine")
    with working_in(folder), contextlib.redirect_stdout(io.StringIO()):
        runs.train(TrainConfig(hidden=(8,), latent_dim=2, epochs=2), Path("run"), progress=False)


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Run the body in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of all files; of folders, which may have held a lock, that they are there."""
    entries = {path: path.stat() for path in folder.rglob("*")}
    return {
        str(path): (0, 0) if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
        for path, stat in entries.items()
    }


def fault(row: Row, folder: Path) -> str | None:
    """Return what is wrong with the answer to a row, or None."""
    before, begun = tree(folder), time.process_time()  # others may keep the machine busy
    with working_in(folder):
        answer, status = _command(row.words) if row.call is None else _python_answer(row.call)
    seconds = time.process_time() - begun
    if status != 2:
        return f"status {status}: {answer[-200:]!r}"
    if not answer.endswith("\n") or not answer[:-1].isprintable():
        return f"not one line: {answer[:200]!r}"
    if row.expected not in answer:
        return f"expected {row.expected!r}: {answer[:300]!r}"
    if len(answer) > LONGEST:
        return f"{len(answer)} characters"
    if tree(folder) != before:
        return f"changed {sorted(set(tree(folder).items()) ^ set(before.items()))[:3]}"
    return f"{seconds:.1f} s" if seconds > SECONDS else None


def _command(words: tuple[str, ...]) -> tuple[str, object]:
    """Return the errors and the exit status of a command line."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            status: object = main(list(words))
        except SystemExit as ended:
            status = ended.code
        except BaseException as error:
            return f"{errors.getvalue()}{type(error).__name__}: {error}", "a traceback"
    if out.getvalue():
        return f"printed {out.getvalue()!r}", status
    return errors.getvalue(), status


def _python_answer(call: Callable[[], object]) -> tuple[str, object]:
    """Return the message of a call's error; status 2 stands for an InputError."""
    try:
        call()
    except InputError as error:
        return f"{error}\n", 2
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:500], "another error"
    return "", "accepted"


def main_of_the_table() -> int:
    """Try all rows and print those that fail, and their number."""
    torch.set_num_threads(1)
    rows, failed = all_rows(), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for row in rows:
            wrong = fault(row, folder)
            if wrong is not None:
                failed += 1
                print(f"{row.name}: {wrong}")
    commands = sum(row.call is None for row in rows)
    print(f"{len(rows)} bad inputs ({commands} command lines), {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main_of_the_table())
