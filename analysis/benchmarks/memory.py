"""``memory``: peak memory of one call in a fresh process, above what the process held before it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.common import Row, Setting, images, make_vae, read, write
from pyro_bvae import BetaVAE, decompose_kl, evidence

TABLE = "memory.csv"
MEMORY_DATA, MEMORY_SAMPLES = (100, 1000, 10_000), (500, 5000, 50_000)
PAIRS = (1000, 2000, 4000)


def measure_evidence(vae: BetaVAE, x: torch.Tensor, num_samples: int) -> None:
    """Estimate the evidence."""
    evidence(vae.model, vae.guide, x, num_samples=num_samples)


def measure_kl(vae: BetaVAE, x: torch.Tensor, num_samples: int) -> None:
    """Take the mean KL apart: every draw meets every datum's posterior."""
    decompose_kl(vae.model, vae.guide, x, num_samples=num_samples)


CALLS: dict[str, Callable[[BetaVAE, torch.Tensor, int], None]] = {
    "evidence": measure_evidence,
    "decompose_kl": measure_kl,
}


def peak(device: str) -> float:
    """Return the most memory that this process has held, in megabytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if (
        status.exists()
    ):  # what getrusage tells there is inherited from the process that started this one
        kilobytes = next(
            line for line in status.read_text().splitlines() if line.startswith("VmHWM")
        ).split()[1]
        return int(kilobytes) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # in bytes on macOS


def forget_peak() -> None:
    """Have the peak start anew, where the system can.

    Loading the data may have taken more than the call will.
    """
    file = Path("/proc/self/clear_refs")
    if file.exists():
        file.write_text("5", encoding="ascii")


def print_memory(setting: Setting, call: str, num_samples: int) -> None:
    """Print what one call holds at its peak above what there was before it.

    For a process of its own.
    """
    vae, x = make_vae(setting.device), images(setting, setting.num_data)
    CALLS[call](vae, x[:2], 50)  # what is loaded at the first use
    forget_peak()
    before = peak(setting.device)
    CALLS[call](vae, x, num_samples)
    print(peak(setting.device) - before)


def memory_row(setting: Setting, call: str, varied: str, num_data: int, num_samples: int) -> Row:
    """Measure one call in a fresh process."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).parents[1] / "speed.py")]
    command += [
        *setting._replace(num_data=num_data).arguments(),
        "--memory-of",
        call,
        str(num_samples),
    ]
    printed = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ
    ).stdout
    megabytes = f"{float(printed.split()[-1]):.0f}"
    row: Row = {
        "call": call,
        "varied": varied,
        "data": num_data,
        "samples": num_samples,
        "megabytes": megabytes,
    }
    return row | {"device": setting.device}


def benchmark_memory(setting: Setting) -> None:
    """Write the table and the figure of the memory."""
    largest = 20 * setting.num_data  # a run with fewer data is a look at whether all works
    data, pairs = (
        [count for count in counts if count <= largest] for counts in (MEMORY_DATA, PAIRS)
    )
    few = min(MEMORY_DATA[0], largest)
    rows = [
        memory_row(setting, "evidence", "data", count, MEMORY_SAMPLES[0]) for count in data or [few]
    ]
    rows += [
        memory_row(setting, "evidence", "samples", few, count)
        for count in MEMORY_SAMPLES
        if data or count < 5000
    ]
    rows += [memory_row(setting, "decompose_kl", "data", count, 4) for count in pairs or [few]]
    write(setting, rows, TABLE)
    memory_figure(rows).savefig(setting.output / "memory.png", dpi=150)


def memory_figure(rows: list[Any]) -> Figure:
    """Draw peak memory against the number of data, and of samples."""
    figure = Figure((10, 3.5), layout="constrained")
    kinds = (
        ("evidence", "data", "samples"),
        ("evidence", "samples", "data"),
        ("decompose_kl", "data", "samples"),
    )
    for axes, (call, varied, other) in zip(figure.subplots(1, 3, sharey=True), kinds, strict=True):
        shown = [row for row in rows if row["varied"] == varied and row["call"] == call]
        bars = axes.bar(
            [f"{int(row[varied]):,}" for row in shown],
            [float(row["megabytes"]) for row in shown],
            0.6,
        )
        axes.bar_label(bars, fmt="%.0f MB")
        axes.set_title(call, loc="left", fontsize=10)
        axes.set_xlabel(f"{varied}, at {shown[0][other]} {other}")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_yticks([])
    figure.suptitle(
        "Peak memory of one call: its own tiles, and what it returns", fontweight="bold"
    )
    return figure


def verdict(folder: Path) -> list[str]:
    """Return how memory grows with the work."""
    lines = []
    rows = read(folder / TABLE)
    for call, varied in dict.fromkeys((row["call"], row["varied"]) for row in rows):
        part = [row for row in rows if (row["call"], row["varied"]) == (call, varied)]
        sizes, megabytes = ([float(row[key]) for row in part] for key in (varied, "megabytes"))
        if len(part) > 1:
            more = f"over {sizes[-1] / sizes[0]:.0f} times the {varied}"
            lines.append(f"memory of {call}: {megabytes[0]:.0f} to {megabytes[-1]:.0f} MB {more}")
    return lines
