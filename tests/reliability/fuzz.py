"""Damaged and random files: ``python -m tests.reliability.fuzz [--cases N] [KIND ...]`` reads N of each kind.

A file is read, or refused in one line: no other exception, no flood of warnings, no crash of the
process, little time and memory. Each reader runs in a process of its own, which is started again
after a crash. The exit status is 1 if a case breaks this.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

MAX_BYTES = 200_000_000  # the limit of the readers in all cases
MOST_SECONDS, MOST_CHARACTERS, MOST_WARNINGS = 5.0, 1000, 1
IMAGE_FORMATS = ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm")


class Outcome(NamedTuple):
    """The end of a case: ``read``, ``refused``, ``fault`` or ``crash``, with its text."""

    kind: str
    text: str
    seconds: float = 0.0


def _csv(rng: np.random.Generator) -> bytes:
    rows = [
        f"{a:.3f},{b},{'uvw'[b % 3]}" for a, b in zip(rng.normal(size=12), range(12), strict=True)
    ]
    return "\n".join(["a,b,label", *rows, ""]).encode()


def _npy(rng: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    np.save(stream, rng.normal(size=(12, 3)).astype(rng.choice(["f4", "f8", "i2", ">f4"])))
    return stream.getvalue()


def _npz(rng: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    save: Callable[..., None] = rng.choice([np.savez, np.savez_compressed])  # type: ignore[arg-type]
    rows = np.arange(12)
    save(stream, x=rng.normal(size=(12, 3)), labels=np.array(["u", "v"])[rows % 2], factors=rows[:, None],
         size_factor=rows + 1.0, mask=rows[:, None] % np.ones((1, 3)) == 0)  # fmt: skip
    return stream.getvalue()


def _image(rng: np.random.Generator, suffix: str) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    pixels = rng.integers(0, 256, size=(5, 6, 3)).astype(np.uint8)
    name = {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix)
    Image.fromarray(pixels).save(stream, format=name)
    return stream.getvalue()


def _h5ad(rng: np.random.Generator) -> bytes:
    import anndata
    import pandas as pd
    import scipy.sparse as sp

    x = rng.poisson(1.0, size=(12, 4)).astype(rng.choice(["f4", "i4"]))
    x[:, 0] += 1
    kind: Callable[..., Any] = rng.choice([np.asarray, sp.csr_matrix, sp.csc_matrix])  # type: ignore[arg-type]
    obs = pd.DataFrame({"kind": pd.Categorical(list("ab" * 6))}, index=[f"c{i}" for i in range(12)])
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "cells.h5ad"
        anndata.AnnData(X=kind(x), obs=obs).write_h5ad(path)
        return path.read_bytes()


def valid(kind: str, seed: int) -> tuple[str, bytes]:
    """Return the name and the bytes of a file of a kind that can be read."""
    rng = np.random.default_rng(seed)
    if kind == "images":
        suffix = IMAGE_FORMATS[seed % len(IMAGE_FORMATS)]
        return f"b.{suffix}", _image(rng, suffix)
    return f"data.{kind}", {"csv": _csv, "npy": _npy, "npz": _npz, "h5ad": _h5ad}[kind](rng)


KINDS = ("csv", "npz", "npy", "h5ad", "images")


MAGIC = {
    "csv": b"a,b\n1,2\n3,4\n",
    "npy": b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }",
    "npz": b"PK\x03\x04",
    "h5ad": b"\x89HDF\r\n\x1a\n",
    "images": b"\x89PNG\r\n\x1a\n",
}
DEEDS = ("flip", "flip", "flip", "fill", "put", "take", "double", "cut")
EDITS = st.lists(
    st.tuples(
        st.sampled_from(DEEDS),
        st.integers(0, 2**16 - 1),
        st.sampled_from((1, 2, 4, 8, 64, 512)),
        st.integers(0, 255),
    ),
    max_size=4,
)


def damaged(content: bytes, edits: list[tuple[str, int, int, int]]) -> bytes:
    """Return bytes with some of them changed, overwritten, put in, taken out, doubled or cut off."""
    data = bytearray(content)
    for deed, position, length, value in edits:
        place = position % (len(data) + 1)
        part = data[place : place + length]
        if deed == "flip":
            data[place : place + 1] = bytes(byte ^ (1 << value % 8) for byte in part[:1])
        elif deed == "fill":
            data[place : place + length] = bytes([value]) * len(part)
        elif deed == "put":
            data[place:place] = bytes([value]) * length
        elif deed == "take":
            del data[place : place + length]
        elif deed == "double":
            data[place:place] = part
        else:
            del data[max(place, len(data) // 4) :]
    return bytes(data)


def _archive(x: bytes, labels: bytes | None) -> tuple[str, bytes]:
    """Return an archive of arrays as they are, damaged or not."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x.npy", x)
        if labels is not None:
            archive.writestr("labels.npy", labels)
    return "data.npz", stream.getvalue()


def cases(kind: str) -> st.SearchStrategy[tuple[str, bytes]]:
    """Return damaged and random files of a kind: their names and bytes."""
    samples = [valid(kind, seed) for seed in range(16)]
    broken = st.builds(
        lambda sample, edits: (sample[0], damaged(sample[1], edits)),
        st.sampled_from(samples),
        EDITS,
    )
    if kind == "npz":  # checksums see all damage of an archive, so that its arrays are damaged too
        arrays = st.sampled_from([valid("npy", seed)[1] for seed in range(16)])
        inside = st.builds(damaged, arrays, EDITS)
        broken = st.one_of(broken, st.builds(_archive, inside, st.one_of(st.none(), inside)))
    random = st.builds(
        lambda start, rest: (samples[0][0], start + rest),
        st.sampled_from((b"", MAGIC[kind])),
        st.binary(max_size=300),
    )
    return st.one_of(broken, broken, broken, random)


def read(kind: str, path: Path, seed: int) -> Outcome:
    """Read a file as a person would, and take a batch of it."""
    from pyro_bvae.core.errors import InputError
    from pyro_bvae.datasets import from_path, h5ad

    start, text = time.process_time(), ""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        try:
            if kind == "h5ad":
                column = "kind" if seed % 3 else None
                splits: Any = h5ad(path, backed=bool(seed % 2), label_column=column, min_counts=1)
            elif kind == "images":
                splits = from_path(path, test=1, validation=0, skip_unreadable=bool(seed % 2))
            else:
                splits = from_path(path, test=1, validation=0, missing=bool(seed % 2))
            for part in (splits.train, splits.test):
                for x, _ in part.batches(64, seed=0, epoch=0):
                    x.sum()
            result = "read"
        except InputError as error:
            result, text = "refused", str(error)
        except Exception as error:
            result, text = "fault", f"{type(error).__name__}: {error}"
    seconds = time.process_time() - start
    if len(text) > MOST_CHARACTERS or "\n" in text:
        result = "fault"
    if seconds > MOST_SECONDS:
        result, text = "fault", f"{seconds:.1f} s; {text}"
    if len(shown) > MOST_WARNINGS:
        result, text = "fault", f"{len(shown)} warnings, the first: {shown[0].message}"
    return Outcome(result, text, seconds)


class Worker:
    """A process that reads files, started again when one of them ends it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def read(self, kind: str, path: Path, seed: int) -> Outcome:
        """Read one file there."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.reliability.fuzz", "--worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                env={**os.environ, "PYRO_BVAE_MAX_BYTES": str(MAX_BYTES), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps([kind, str(path), seed]) + "\n")
            process.stdin.flush()
        if answer := process.stdout.readline():
            return Outcome(*json.loads(answer))
        self.close()
        return Outcome("crash", f"the process ended with {process.returncode}")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    stream and stream.close()
            self._process.wait()
            self._process = None


def work() -> None:
    """Read the files that come in line by line, and print how each ended."""
    import anndata  # noqa: F401
    import pandas as pd  # noqa: F401
    from PIL import Image  # noqa: F401

    import pyro_bvae.datasets  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print
    before = _peak()  # of the process that started this one, if that was more
    for line in sys.stdin:
        kind, path, seed = json.loads(line)
        outcome = read(kind, Path(path), seed)
        grown = _peak() - before
        if grown > 1_500_000_000 + MAX_BYTES:
            outcome = Outcome("fault", f"the process has grown by {grown:,} bytes; {outcome.text}")
        print(json.dumps(outcome), file=answers, flush=True)


def _peak() -> int:
    """Return the most memory that this process has taken, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write(kind: str, name: str, content: bytes, folder: Path) -> Path:
    """Write a case into an empty folder and return the path to be read."""
    for old in folder.iterdir():
        old.unlink()
    (folder / name).write_bytes(content)
    if kind != "images":
        return folder / name
    for sound in ("a.png", "c.png"):
        (folder / sound).write_bytes(_image(np.random.default_rng(0), "png"))
    return folder


def campaign(kind: str, count: int, keep: Path | None) -> int:
    """Read many files of a kind, print how they ended, and return how many broke the promise."""
    outcomes: Counter[str] = Counter()
    texts: Counter[str] = Counter()
    worker, start = Worker(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:

        @settings(
            max_examples=count, derandomize=True, database=None, deadline=None,
            phases=[Phase.generate], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=cases(kind), seed=st.integers(0, 5))
        def run(case: tuple[str, bytes], seed: int) -> None:
            outcome = worker.read(kind, write(kind, *case, Path(folder)), seed)
            outcomes[outcome.kind] += 1
            if outcome.kind in ("fault", "crash"):
                texts[outcome.text[:200]] += 1
                if keep:
                    (keep / f"{seed}.{sum(outcomes.values())}.{case[0]}").write_bytes(case[1])

        run()
    worker.close()
    print(f"{kind}: {dict(outcomes)} in {time.perf_counter() - start:.0f} s", flush=True)
    for text, number in texts.most_common(20):
        print(f"  {number} x {text}")
    return outcomes["fault"] + outcomes["crash"]


def main() -> int:
    """Read the files of all kinds, or work for a process that does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", default=KINDS)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--keep", type=Path, help="folder for the files that end in a fault")
    parser.add_argument("--worker", action="store_true")
    arguments = parser.parse_args()
    if arguments.worker:
        work()
        return 0
    return int(sum(campaign(kind, arguments.cases, arguments.keep) for kind in arguments.kinds) > 0)


if __name__ == "__main__":
    sys.exit(main())
