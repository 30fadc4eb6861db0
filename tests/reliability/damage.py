"""Every byte of a small run is damaged, and its readers are asked: ``python -m tests.reliability.damage``.

A table is printed: for each file and kind of damage, the number of damaged files that were refused in one
line, that crashed their reader, and that were loaded in silence. ``--step N`` takes every N-th position of
files above 100 kB, ``--old-step N`` of a checkpoint of version 0.1.0, which has no digest but checksums.
The exit status is 1 if a file was loaded in silence, or a reader crashed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pyro_bvae import report, runs
from pyro_bvae.core.disk.digests import SUMS, read_file
from pyro_bvae.core.errors import InputError
from pyro_bvae.report.page import read_evaluation
from pyro_bvae.runs import TrainConfig, read_config
from pyro_bvae.runs.record_file import RECORD, read_record
from pyro_bvae.training import History, load_checkpoint

CONFIG = TrainConfig(
    dataset="digits", hidden=(4,), latent_dim=2, epochs=2, warmup_epochs=0.0, batch_size=512,
    compile=False,
)  # fmt: skip
OLD_RUN = Path(__file__).parents[1] / "data" / "run-0.1.0" / "digits"
# Length of a zeroed part, and of the files from which every N-th position is enough.
_ZEROS, _LARGE = 64, 100_000
KINDS = ("bit", "byte", "zeros", "truncated", "extended")


class Outcome(NamedTuple):
    """The answer of a reader to a damaged file: ``refused``, ``crashed``, ``silent`` or ``same``."""

    word: str
    message: str = ""


def make_run(directory: Path, seed: int = 0) -> Path:
    """Train, measure and report a small run."""
    runs.train(CONFIG.with_options(seed=seed), directory, snapshots=2, progress=False)
    runs.evaluate_run(directory, num_samples=10, num_data=4, progress=False)
    report.write_report(directory)
    return directory


def damaged(content: bytes, kind: str, position: int) -> bytes:
    """Return a content with a damage of a kind at a position."""
    changed = bytearray(content)
    if kind == "bit":
        changed[position] ^= 1 << position % 8
    elif kind == "byte":
        changed[position] = (changed[position] + 1 + 97 * position % 255) % 256
    elif kind == "zeros":
        end = min(len(changed), position + _ZEROS)
        changed[position:end] = bytes(end - position)
    elif kind == "truncated":
        del changed[position:]
    else:
        changed += changed[: position + 1]
    return bytes(changed)


def reader_of(run: Path, name: str) -> Callable[[], Any]:
    """Return the cheapest reader of a file of a run, which returns its content or raises."""
    path = run / name
    if name in ("config.json", SUMS):
        return lambda: read_config(run / "config.json")
    if name == RECORD:
        return lambda: read_record(run)
    if name == "metrics.csv":
        return lambda: History.read(path).rows
    if name.endswith(".pt"):
        return lambda: load_checkpoint(path)
    if name.startswith("evaluation."):
        return lambda: read_evaluation(run)

    return lambda: read_file(path)  # which nothing uses, and ``load`` warns of


def outcome(read: Callable[[], Any], whole: Any = None) -> Outcome:
    """Return how a reader answers; with the whole content, whether it reads the same."""
    try:
        content = read()
    except InputError as error:
        return Outcome("crashed" if "\n" in str(error) else "refused", str(error))
    except Exception as error:
        return Outcome("crashed", f"{type(error).__name__}: {error}")
    return Outcome("same" if whole is not None and is_same(content, whole) else "silent")


def is_same(one: Any, other: Any) -> bool:
    """Return whether two contents are the same, tensors bit for bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return same and torch.equal(
            one.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8)
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    return bool(one == other)


def battery(
    run: Path, name: str, positions: Iterator[int] | range, *, compare: bool = False
) -> Iterator[tuple[str, Outcome]]:
    """Damage a file of a run in all kinds at some positions, and yield each kind with its outcome.

    Args:
        run: The run, whose file is as it was afterwards.
        name: The file.
        positions: The positions.
        compare: Look whether a damaged file that is read has the same content.
    """
    path, read = run / name, reader_of(run, name)
    content, whole = path.read_bytes(), read() if compare else None
    try:
        for position in positions:
            for kind in KINDS:
                spoiled = damaged(content, kind, position)
                if spoiled != content:
                    path.write_bytes(spoiled)
                    yield kind, outcome(read, whole)
    finally:
        path.write_bytes(content)


def table(run: Path, names: list[str], step: int, *, compare: bool = False) -> Counter[str]:
    """Print the table of some files of a run, and return the numbers of all outcomes."""
    total: Counter[str] = Counter()
    words = ("refused", "crashed", "silent", *(("same",) if compare else ()))
    print(f"{'file':<42}{'kind':<11}" + "".join(f"{word:>9}" for word in words))
    for name in names:
        size = (run / name).stat().st_size
        positions = range(0, size, step if compare or size > _LARGE else 1)
        counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        for kind, answer in battery(run, name, positions, compare=compare):
            counts[kind][answer.word] += 1
            if answer.word in ("crashed", "silent"):
                print(f"  {name}, {kind}: {answer.word} {answer.message}", file=sys.stderr)
        for kind, numbers in counts.items():
            print(f"{name:<42}{kind:<11}" + "".join(f"{numbers[word]:>9}" for word in words))
            total += numbers
    return total


def files_of(run: Path) -> list[str]:
    """Return the names of the files of a run."""
    return sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file())


def main() -> int:
    """Run all batteries and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=int, default=101)
    parser.add_argument("--old-step", type=int, default=7)
    step, old_step = vars(parser.parse_args()).values()
    torch.set_num_threads(1)
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # hundreds of thousands of writes
    with tempfile.TemporaryDirectory(dir=memory) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = make_run(Path(folder) / "run")
        print("a run of this version")
        total = table(run, files_of(run), step)
        old = Path(shutil.copytree(OLD_RUN, Path(folder) / "old"))
        print("\ncheckpoints of a run of version 0.1.0, 'same': another byte, the same content")
        total += table(old, ["checkpoints/best.pt"], old_step, compare=True)
    print("\n" + ", ".join(f"{count} {word}" for word, count in total.items()))
    return int(total["silent"] + total["crashed"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
