"""On how many processes does a step still do arithmetic? What bounds data-parallel training, computed and not measured.

    python analysis/scaling.py
    python analysis/scaling.py --flops 1e12 --bandwidth 1e9 --latency 5e-5

A process that has b data of a batch spends C b / F seconds on them: C floating-point operations a
datum, forward and backward, counted while the program runs, at F a second. Then n processes sum one
message of M bytes, the gradients and four numbers, which takes T = 2 (n - 1) / n M / W + 2 l log2
n, with W bytes a second and l seconds from one process to the next (log2 n rounded up; a plain ring
has n - 1 in its place). No message is sent while gradients are computed, so the efficiency is

    E = 1 / (1 + T F / (C b)),

and it is at least E where

    b >= E / (1 - E) F T / C.

For a network of plain layers C = 6 and M = 4 a weight, in float32. Where messages are long and
processes many, so that T = 2 M / W, the weights cancel: b >= 12 F / W at E = 0.9, whatever the
network is. What shares its weights between places of an image has more operations for each, and
needs fewer data; what has few weights waits for the latency.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path
from typing import NamedTuple

import pyro
import torch
from torch.utils.flop_counter import FlopCounterMode

from pyro_bvae.core.context import Context
from pyro_bvae.datasets import Dataset
from pyro_bvae.runs import Shape, TrainConfig, build_vae
from pyro_bvae.training import Loss

RESULTS = Path(__file__).parent / "results" / "scaling"
SIZES, TARGET, BATCH = (2, 8, 64, 1024), 0.9, 16


class Machine(NamedTuple):
    """What a process reaches, and what is between two of them.

    Assumptions, to be replaced by one's own.
    """

    name: str
    flops: float
    bandwidth: float
    latency: float


MACHINES = (
    Machine("CPU, 10 Gbit/s", 2e11, 1.25e9, 5e-5),
    Machine("GPU, 300 GB/s", 3e13, 3e11, 1e-5),
    Machine("GPU, 200 Gbit/s", 3e13, 2.5e10, 2e-5),
)


class Cost(NamedTuple):
    """What a step of a model costs: operations a datum, and bytes a step."""

    name: str
    flops: float
    message: int


def models() -> dict[str, tuple[TrainConfig, Dataset]]:
    """Return the models of the speed table, and a batch of the shape of their data."""
    torch.manual_seed(0)
    images = Dataset(torch.rand(BATCH, 784), image_shape=(1, 28, 28))
    counts = torch.poisson(torch.full((BATCH, 1000), 2.0))
    cells = Dataset(counts, Context(size_factor=counts.sum(1, keepdim=True)))
    wide = TrainConfig(hidden=(400,), latent_dim=20)
    return {
        "MLP 784-400-20-400-784": (wide, images),
        "the same, flow guide": (wide.with_options(posterior="flow"), images),
        "convolutional": (TrainConfig(latent_dim=10, network="convolutional"), images),
        "counts, 1,000 genes": (
            TrainConfig(hidden=(128,), latent_dim=10, likelihood="negative-binomial"),
            cells,
        ),
    }


def cost(name: str, config: TrainConfig, data: Dataset) -> Cost:
    """Count the operations of matrix products and convolutions, forward and backward, and the bytes of a message."""
    vae = build_vae(config, Shape.of(data))
    with pyro.get_param_store().scope(), FlopCounterMode(display=False) as counter:
        Loss(vae)(data.x, data.context, 1.0).loss.backward()
    weights = sum(parameter.numel() for parameter in vae.parameters() if parameter.requires_grad)
    return Cost(name, counter.get_total_flops() / len(data), 4 * (weights + 4))


def message_seconds(model: Cost, machine: Machine, size: int) -> float:
    """Return T, the seconds in which so many processes sum a message."""
    transfer = 2 * (size - 1) / size * model.message / machine.bandwidth
    return transfer + 2 * math.ceil(math.log2(size)) * machine.latency


def least_batch(model: Cost, machine: Machine, size: int, efficiency: float = TARGET) -> int:
    """Return the least number of data a process at which so much of the time is arithmetic."""
    seconds = message_seconds(model, machine, size)
    return math.ceil(efficiency / (1 - efficiency) * machine.flops * seconds / model.flops)


def main() -> None:
    """Compute the table and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, words in (
        ("flops", "operations a second"),
        ("bandwidth", "bytes a second"),
        ("latency", "seconds"),
    ):
        parser.add_argument(
            f"--{name}", type=float, help=f"{words} of a machine of your own, with the other two"
        )
    parser.add_argument("--quick", action="store_true", help="the same: it takes seconds")
    given = parser.parse_args()
    own = (given.flops, given.bandwidth, given.latency)
    if any(value is not None for value in own) and not all(
        value is not None and value > 0 for value in own
    ):
        parser.error("--flops, --bandwidth and --latency go together, and are positive")
    machines = (
        MACHINES
        if given.flops is None
        else (Machine("yours", given.flops, given.bandwidth, given.latency),)
    )
    costs = [cost(name, *parts) for name, parts in models().items()]
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(
            [
                "machine",
                "model",
                "mflop_a_datum",
                "megabytes_a_step",
                *(f"batch_{n}" for n in SIZES),
            ]
        )
        for machine in machines:
            limit = f"12 F / W = {12 * machine.flops / machine.bandwidth:,.0f}"
            print(
                f"\n{machine.name} ({limit}): data a process for {TARGET:.0%}, on "
                f"{', '.join(map(str, SIZES))}"
            )
            for model in costs:
                batches = [least_batch(model, machine, size) for size in SIZES]
                head = (f"{model.flops / 1e6:.2f}", f"{model.message / 1e6:.2f}")
                writer.writerow([machine.name, model.name, *head, *batches])
                shown = " | ".join(f"{batch:,}" for batch in batches)
                print(f"| {model.name} | {head[0]} | {head[1]} | {shown} |")


if __name__ == "__main__":
    main()
