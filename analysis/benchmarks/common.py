"""What all benchmarks share: their setting, the model, clocks, tables, and the machine."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_bvae import BetaVAE, Decoder, datasets
from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

FEATURES, HIDDEN, LATENTS = 784, 400, 20
PRECISIONS = {"highest": "full float32 (the default)", "medium": '"medium" matmul precision'}
OURS_COLOUR, OTHERS_COLOUR, FLOOR_COLOUR = "#0072B2", "#A8A8A8", "#000000"

Row = dict[str, object]


class Setting(NamedTuple):
    """What every benchmark is given; without ``models`` the training takes all."""

    data_root: str | None
    device: str
    num_data: int
    repeats: int
    steps: int
    output: Path
    models: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """Return the command line that says the same."""
        given = [] if self.data_root is None else ["--data-root", self.data_root]
        numbers = {name: str(getattr(self, name)) for name in ("num_data", "repeats", "steps")}
        named = [
            word
            for name, number in numbers.items()
            for word in (f"--{name.replace('_', '-')}", number)
        ]
        return [*given, "--device", self.device, *named, "--output", str(self.output)]


def images(setting: Setting, num_data: int, *, train: bool = False) -> Tensor:
    """Return MNIST images, test images where not said otherwise, or noise."""
    if setting.data_root is not None:
        parts = datasets.mnist(setting.data_root, download=False)
        x = (parts.train if train else parts.test).dense().x
        return x.repeat(-(-num_data // len(x)), 1)[:num_data].to(setting.device)
    noise = torch.empty(num_data, FEATURES).bernoulli_(
        0.2, generator=torch.Generator().manual_seed(0)
    )
    return noise.to(setting.device)


def make_vae(device: str = "cpu", features: int = FEATURES) -> BetaVAE:
    """Return the model that is measured."""
    torch.manual_seed(0)
    decoder = Decoder(MLP(LATENTS, features, hidden=(HIDDEN,)), BernoulliLikelihood())
    encoder = NormalPosterior(MLP(features, 2 * LATENTS, hidden=(HIDDEN,)))
    return BetaVAE(NormalPrior(LATENTS), decoder, encoder).to(device)


def networks(vae: BetaVAE) -> tuple[MLP, MLP]:
    """Return the networks of encoder and decoder."""
    encoder, decoder = (getattr(part, "network") for part in (vae.encoder, vae.decoder))  # noqa: B009
    return encoder, decoder


def wait_for(device: str) -> None:
    """Wait until a device has done all it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], object], device: str) -> float:
    """Return how long a call takes."""
    wait_for(device)
    start = time.perf_counter()
    run()
    wait_for(device)
    return time.perf_counter() - start


def write(setting: Setting, rows: list[Row], name: str) -> None:
    """Write a table, and print it."""
    setting.output.mkdir(parents=True, exist_ok=True)
    with (setting.output / name).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    print("\n" + name)
    for row in ({key: key for key in rows[0]}, *rows):
        print("  ".join(f"{value!s:<{widths[key]}}" for key, value in row.items()))


def read(path: Path) -> list[dict[str, str]]:
    """Read a table, which is empty where it was not measured."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def processor() -> str:
    """Return what the processor calls itself."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        facts = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in facts.items()}
        kind = (
            "family {cpu family} model {model}".format_map(named) if "cpu family" in named else ""
        )
        flags = [
            flag
            for flag in ("avx512f", "avx512_bf16", "amx_tile")
            if flag in named.get("flags", "").split()
        ]
        return " ".join([named.get("model name", platform.machine()), kind, *flags]).strip()
    return platform.processor() or platform.machine()


def environment() -> str:
    """Return the kind of machine, and the versions of what is measured."""
    lines = [
        f"processor: {processor()}",
        f"cores: {os.cpu_count()}",
        f"threads: {torch.get_num_threads()}",
    ]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none at hand"
    lines += [f"GPU: {gpu}", f"Python: {platform.python_version()}"]
    for package in ("torch", "pyro-ppl", "pythae", "numpyro", "jax"):
        try:
            lines.append(f"{package}: {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{package}: not installed")
    return "\n".join(lines) + "\n"
