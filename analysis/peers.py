"""The same VAE and data by this package and its peers: evidence by ours and by theirs, time, memory, lines.

MNIST with pixels above a half, 784-400-20-400-784, batches of 128, 10,000 training images and 200
test images: this package at its defaults (one cycle to 3e-3), the others with Adam at 1e-3. Each
trains in a process of its own, one after the other, on one thread. The evidence of the same test images
with K = 1000 is then by the package's own means, and by `pyro_bvae.evidence` on the same weights. On
cells: scvi-tools beside this package with the same layers, negative binomial.

    python -m venv PEERS && PEERS/bin/pip install -e . pythae numpyro scvi-tools anndata
    PEERS/bin/python analysis/peers.py --data-root FOLDER_THAT_HOLDS_MNIST --counts FOLDER_WITH_H5AD_FILES

A peer that is not installed is left out with a line that says so. Lines that the table has are not
computed again. Lines of code are those of the function that trains and measures, without comments,
docstrings and blank lines.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import importlib.util
import inspect
import json
import resource
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import processor
from count_likelihoods import make_vae, train
from count_presets import cells
from paper_parts import peer_programs, scvi_model
from paper_parts.machinery import read, write
from torch import Tensor

from pyro_bvae import evidence
from pyro_bvae.datasets import Dataset, mnist

RESULTS = Path(__file__).parent / "results" / "peers"
NUM_TRAIN, NUM_TEST, EPOCHS, NUM_SAMPLES = 10_000, 200, 5, 1000
CELL_EPOCHS = 50
OURS, SCVI = "this package, cells", "scvi-tools, cells"
NEEDS = peer_programs.NEEDS | {SCVI: ("scvi", scvi_model.INSTALL)}
PACKAGES = {"pythae": "pythae", "NumPyro": "numpyro", "plain Pyro": "pyro-ppl",
            SCVI: "scvi-tools"}  # fmt: skip
COLUMNS = (
    "package", "version", "epochs", "own_evidence", "evidence", "standard_error",
    "monte_carlo_error", "test_data", "samples", "train_cpu_seconds", "train_wall_seconds",
    "own_evidence_cpu_seconds", "evidence_cpu_seconds", "peak_mib", "lines_of_code", "threads",
    "processor",
)  # fmt: skip


def lines_of(program: Callable[..., Any]) -> int:
    """Return the lines of a function's code: no docstrings, comments or blank lines."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(program)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return len(ast.unparse(tree).splitlines())


def images(data_root: Path) -> tuple[Tensor, Tensor]:
    """Return training and test images of zeros and ones."""
    splits = mnist(data_root, validation=0, download=False)
    train, test = ((part.dense().x > 0.5).float() for part in (splits.train, splits.test))
    return train[:NUM_TRAIN], test[:NUM_TEST]


def clocks() -> tuple[float, float]:
    """Return wall and processor seconds."""
    return time.perf_counter(), time.process_time()


def measured(
    train_it: Callable[[], peer_programs.Trained], x: Tensor, num_samples: int, context: Any = None
) -> dict[str, str]:
    """Train, and measure test data by the package's own means and by ours."""
    torch.manual_seed(0)
    begun = clocks()
    trained = train_it()
    done = clocks()
    own = trained.own(x, num_samples)
    owned = clocks()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    args = (x,) if context is None else (x, context)
    with torch.no_grad():
        ours = evidence(
            trained.model, trained.guide, *args, num_samples=num_samples, progress=False
        )
    return {
        "own_evidence": f"{own:.3f}",
        "evidence": f"{ours.value:.3f}",
        "standard_error": f"{ours.standard_error:.3f}",
        "monte_carlo_error": f"{ours.monte_carlo_error:.3f}",
        "test_data": f"{len(x)}",
        "samples": f"{num_samples}",
        "train_cpu_seconds": f"{done[1] - begun[1]:.1f}",
        "train_wall_seconds": f"{done[0] - begun[0]:.1f}",
        "own_evidence_cpu_seconds": f"{owned[1] - done[1]:.1f}",
        "evidence_cpu_seconds": f"{clocks()[1] - owned[1]:.1f}",
        "peak_mib": f"{peak:.0f}",
    }


def cells_of_ours(data: Dataset, held_out: Dataset, epochs: int) -> peer_programs.Trained:
    """Train this package on cells."""
    vae = make_vae("negative binomial", data.num_features)
    train(vae, data, epochs=epochs)

    def own(x: Tensor, num_samples: int) -> float:
        args = (vae.model, vae.guide, x, held_out.context)
        return evidence(*args, num_samples=num_samples, progress=False).value

    return peer_programs.Trained(vae.model, vae.guide, own)


def cells_of_scvi(data: Dataset, held_out: Dataset, epochs: int) -> peer_programs.Trained:
    """Train scvi-tools on cells, with the tuned options."""
    model = scvi_model.trained(data, "tuned", epochs)
    program = scvi_model.Program(model.module)

    def own(x: Tensor, num_samples: int) -> float:
        return float(scvi_model.own_evidence(model, held_out, num_samples).mean())

    return peer_programs.Trained(program.model, program.guide, own)


CELLS = {
    OURS: (cells_of_ours, (cells_of_ours, make_vae, train)),
    SCVI: (cells_of_scvi, (scvi_model.trained, scvi_model.anndata_of, scvi_model.own_evidence)),
}


def worker(name: str, data_root: Path | None, counts: Path | None) -> dict[str, str]:
    """Train and measure one package, in this process."""
    if name in CELLS:
        assert counts is not None
        data, held_out = cells(counts, "smfish")
        program, parts = CELLS[name]
        context = held_out.context if name == OURS else None
        line = measured(
            lambda: program(data, held_out, CELL_EPOCHS), held_out.x, NUM_SAMPLES, context
        )
        lines, epochs = sum(lines_of(part) for part in parts), CELL_EPOCHS
    else:
        assert data_root is not None
        x, test = images(data_root)
        train_it = peer_programs.PROGRAMS[name]
        line = measured(lambda: train_it(x, EPOCHS), test, NUM_SAMPLES)
        lines, epochs = lines_of(train_it), EPOCHS
    version = importlib.metadata.version(PACKAGES.get(name, "pyro-bvae"))
    own = {"package": name, "version": version, "epochs": f"{epochs}", "lines_of_code": f"{lines}"}
    return own | line | {"threads": f"{torch.get_num_threads()}", "processor": processor()}


def missing(name: str) -> str | None:
    """Return how to install a peer that is not there."""
    module, install = NEEDS.get(name, ("pyro", ""))
    return install if importlib.util.find_spec(module) is None else None


def main(data_root: Path | None, counts: Path | None, output: Path) -> None:
    """Measure each package in a process of its own, and write the table."""
    path = output / "table.csv"
    wanted = [*(peer_programs.PROGRAMS if data_root else ()), *(CELLS if counts else ())]
    for name in wanted:
        if any(line["package"] == name for line in read(path)):
            continue
        if (install := missing(name)) is not None:
            print(f"{name} cannot be imported here and is left out: {install}", flush=True)
            continue
        command = [sys.executable, "-W", "ignore", str(Path(__file__)), "--worker", name]
        command += [] if data_root is None else ["--data-root", str(data_root)]
        command += [] if counts is None else ["--counts", str(counts)]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            print(f"{name} failed: {finished.stderr.strip().splitlines()[-1]}", flush=True)
            continue
        line: dict[str, str] = json.loads(finished.stdout.splitlines()[-1])
        print(line, flush=True)
        write(path, [*read(path), line], COLUMNS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, help="folder that holds MNIST/raw")
    parser.add_argument("--counts", type=Path, help="folder of smfish.h5ad")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.data_root is None and given.counts is None:
        parser.error("one of --data-root and --counts is needed")
    if given.worker:
        print(json.dumps(worker(given.worker, given.data_root, given.counts)))
    else:
        main(given.data_root, given.counts, given.output)
