"""What the package costs beside the arithmetic that nobody can save, beside plain Pyro and beside pythae.

``evidence``: importance-weighted evidence at K = 5000 of images under 784-400-20-400-784, in float32, at both matmul
precisions. The floor is the decoder's affine maps alone, without activation, likelihood or random numbers, written to
the same memory again and again in the blocks of rows that are fastest. All take turns in one process, so that what else
the machine does falls on all of them; a ratio is a median over turns of two times of the same turn.

``memory``: peak memory of one call in a fresh process, above what the process held before it.

    python analysis/speed.py --data-root FOLDER_THAT_HOLDS_MNIST

Without a data root the images are noise, which takes as long. pythae is timed where ``pip install pyro-bvae[bench]``
has put it beside the package. The networks are not trained: time does not depend on their weights.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro import poutine
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, datasets, evidence
from pyro_bvae.evaluation.averages import Average, Averaging, error_of_mean, log_mean_exp, normalized_weights, plain
from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

RESULTS = Path(__file__).parent / "results" / "speed"
FEATURES, HIDDEN, LATENTS = 784, 400, 20
NUM_SAMPLES = 5000
PRECISIONS = {"highest": "full float32 (the default)", "medium": '"medium" matmul precision'}
FLOOR, OURS, WITH_PSIS = "decoder's matrix products", "pyro_bvae, without Pareto k", "pyro_bvae"
PLAIN, PYTHAE = "plain Pyro", "pythae get_nll"
FLOOR_BLOCKS = (512, 1024, 2048, 4096, 8192)
PYTHAE_BATCHES = (100, 1000)
MEMORY_DATA, MEMORY_SAMPLES = (100, 1000, 10_000), (500, 5000, 50_000)
BAR = 1.4

Row = dict[str, object]


class Contender(NamedTuple):
    """Something to time: ``run()`` returns its estimate of the mean evidence of so many data, or NaN."""

    run: Callable[[], float]
    num_data: int


class Setting(NamedTuple):
    """What every benchmark is given."""

    data_root: str | None
    device: str
    num_data: int
    repeats: int


def images(setting: Setting, num_data: int) -> Tensor:
    """Return MNIST test images, or noise."""
    if setting.data_root is not None:
        return datasets.mnist(setting.data_root, download=False).test.x[:num_data].to(setting.device)
    noise = torch.empty(num_data, FEATURES).bernoulli_(0.2, generator=torch.Generator().manual_seed(0))
    return noise.to(setting.device)


def make_vae(device: str) -> BetaVAE:
    """Return the model that is measured."""
    torch.manual_seed(0)
    decoder = Decoder(MLP(LATENTS, FEATURES, hidden=(HIDDEN,)), BernoulliLikelihood())
    encoder = NormalPosterior(MLP(FEATURES, 2 * LATENTS, hidden=(HIDDEN,)))
    return BetaVAE(NormalPrior(LATENTS), decoder, encoder).to(device)


def networks(vae: BetaVAE) -> tuple[Any, Any]:
    """Return the networks of encoder and decoder."""
    encoder, decoder = (getattr(part, "network") for part in (vae.encoder, vae.decoder))  # noqa: B009
    return encoder, decoder


# -- evidence: the contenders -----------------------------------------------------------------------------------------


def floor(vae: BetaVAE, num_data: int, block: int) -> Contender:
    """Return the decoder's matrix products alone, block after block into the same memory."""
    first, _, second = networks(vae)[1].layers
    device = first.weight.device
    z = torch.randn(block, LATENTS, device=device)
    h, out = torch.empty(block, HIDDEN, device=device), torch.empty(block, FEATURES, device=device)
    whole, rest = divmod(num_data * NUM_SAMPLES, block)

    def multiply(rows: int) -> None:
        torch.addmm(first.bias, z[:rows], first.weight.T, out=h[:rows])
        torch.addmm(second.bias, h[:rows], second.weight.T, out=out[:rows])

    def run() -> float:
        for _ in range(whole):
            multiply(block)
        multiply(rest)
        return math.nan

    return Contender(run, num_data)


def without_psis(log_weights: Tensor) -> Average:
    """Average weights as the default does, but for Pareto k."""
    error = error_of_mean(normalized_weights(log_weights))
    return Average(log_mean_exp(log_weights), error, 0.5 * error.square(), torch.zeros_like(error))


def ours(vae: BetaVAE, x: Tensor, average: Averaging = plain) -> Contender:
    """Return the package's evidence."""
    return Contender(lambda: evidence(vae.model, vae.guide, x, num_samples=NUM_SAMPLES, average=average).value, len(x))


def plain_pyro(vae: BetaVAE, x: Tensor) -> Contender:
    """Return the evidence as one would write it in Pyro: all particles of a datum in one vectorised trace."""
    encoder, decoder = networks(vae)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENTS), x.new_ones(LATENTS)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z), validate_args=False).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, raw = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw)).to_event(1))

    def log_evidence(x: Tensor) -> Tensor:
        particles = pyro.plate("particles", NUM_SAMPLES, dim=-2)
        guide_trace = poutine.trace(particles(guide)).get_trace(x)
        model_trace = poutine.trace(poutine.replay(particles(model), guide_trace)).get_trace(x)
        guide_trace.compute_log_prob()
        model_trace.compute_log_prob()
        nodes = model_trace.nodes
        log_weights = nodes["z"]["log_prob"] + nodes["x"]["log_prob"] - guide_trace.nodes["z"]["log_prob"]
        return log_weights.logsumexp(0) - math.log(NUM_SAMPLES)

    return Contender(lambda: float(torch.cat([log_evidence(row) for row in x.split(1)]).mean()), len(x))


def pythae_nll(vae: BetaVAE, x: Tensor, batch: int) -> Contender:
    """Return pythae's own estimate with our networks in its model."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    encoder, decoder = networks(vae)

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Any:
            loc, raw = encoder(x).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=2 * nn.functional.softplus(raw).log())

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=decoder(z).sigmoid())

    config = VAEConfig(input_dim=(FEATURES,), latent_dim=LATENTS, reconstruction_loss="bce")
    theirs = VAE(config, Encoder(), Decoder()).to(x.device).eval()
    return Contender(lambda: float(theirs.get_nll(x, n_samples=NUM_SAMPLES, batch_size=batch)), len(x))


def contenders(vae: BetaVAE, x: Tensor) -> dict[str, Contender]:
    """Return all that can be timed here, by name; the floor first."""
    few = x[: max(1, len(x) // 8)]  # for those whose time a datum does not depend on how many there are
    floors = {block: floor(vae, len(x), block) for block in FLOOR_BLOCKS}
    best = min(floors, key=lambda block: min(seconds(floors[block], x.device)[0] for _ in range(3)))
    print(f"the floor is fastest in blocks of {best} rows")
    found: dict[str, Contender] = {
        FLOOR: floors[best],
        OURS: ours(vae, x, without_psis),
        WITH_PSIS: ours(vae, x),
        PLAIN: plain_pyro(vae, few),
    }
    if importlib.util.find_spec("pythae") is None:
        print("pythae cannot be imported here, so its rows are left out: pip install pyro-bvae[bench]")
        return found
    return found | {f"{PYTHAE}, {batch} rows": pythae_nll(vae, few, batch) for batch in PYTHAE_BATCHES}


# -- evidence: the clock ----------------------------------------------------------------------------------------------


def seconds(contender: Contender, device: torch.device) -> tuple[float, float]:
    """Return how long a contender takes for a datum, and its estimate."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    estimate = contender.run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / contender.num_data, estimate


@torch.no_grad()
def evidence_rows(setting: Setting, precision: str) -> list[Row]:
    """Time all contenders in turns, forwards and backwards."""
    torch.set_float32_matmul_precision(precision)
    vae, x = make_vae(setting.device), images(setting, setting.num_data)
    timed = contenders(vae, x)
    for contender in timed.values():
        contender.run()
    turns: list[dict[str, float]] = []
    estimates: dict[str, float] = {}
    for turn in range(setting.repeats):
        taken = {}
        for name in list(timed)[:: 1 if turn % 2 == 0 else -1]:
            taken[name], estimates[name] = seconds(timed[name], x.device)
        turns.append(taken)
    return [evidence_row(name, turns, estimates[name], setting, precision) for name in timed]


def evidence_row(name: str, turns: list[dict[str, float]], estimate: float, setting: Setting, precision: str) -> Row:
    """Return the medians of one contender, and the range of its ratio over the turns."""
    ratios = [turn[name] / turn[FLOOR] for turn in turns]
    milliseconds = 1e3 * statistics.median(turn[name] for turn in turns)
    return {
        "precision": precision,
        "contender": name,
        "milliseconds_a_datum": f"{milliseconds:.3f}",
        "ratio_to_floor": f"{statistics.median(ratios):.3f}",
        "least_ratio": f"{min(ratios):.3f}",
        "largest_ratio": f"{max(ratios):.3f}",
        "evidence": f"{estimate:.3f}",
        "data": setting.num_data,
        "samples": NUM_SAMPLES,
        "repeats": setting.repeats,
        "device": setting.device,
        "threads": torch.get_num_threads(),
    }


def benchmark_evidence(setting: Setting) -> None:
    """Write the table and the figure of the evidence."""
    rows = [row for precision in PRECISIONS for row in evidence_rows(setting, precision)]
    write(rows, "table.csv")
    evidence_figure(rows).savefig(RESULTS / "figure.png", dpi=150)


def evidence_figure(rows: list[Row]) -> Figure:
    """Draw each contender's time as a multiple of the floor's."""
    figure = Figure((9, 5.5), layout="constrained")
    panels = figure.subplots(len(PRECISIONS), 1, sharex=True)
    colours = {OURS: "#0072B2", WITH_PSIS: "#56B4E9", FLOOR: "#000000"}
    for axes, (precision, title) in zip(panels, PRECISIONS.items(), strict=True):
        shown = [row for row in rows if row["precision"] == precision]
        ratios = [float(str(row["ratio_to_floor"])) for row in shown]
        names = [str(row["contender"]) for row in shown]
        axes.barh(names, ratios, color=[colours.get(name, "#A8A8A8") for name in names])
        for place, (row, ratio) in enumerate(zip(shown, ratios, strict=True)):
            axes.text(
                ratio + 0.04, place, f"{ratio:.2f} ×   {float(str(row['milliseconds_a_datum'])):.1f} ms", va="center"
            )
        axes.axvline(BAR, color="#D55E00", linestyle="--", linewidth=1)
        axes.set_xlim(0, 1.25 * max(float(str(row["ratio_to_floor"])) for row in rows))
        axes.invert_yaxis()
        axes.set_title(title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel(f"time an image, as a multiple of the decoder's matrix products (dashed: {BAR} ×, the aim)")
    figure.suptitle(f"Evidence of one image with {NUM_SAMPLES} samples: shorter is faster", fontweight="bold")
    return figure


# -- memory -----------------------------------------------------------------------------------------------------------


def peak(device: str) -> float:
    """Return the most memory that this process has held, in megabytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage tells there is inherited from the process that started this one
        kilobytes = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]
        return int(kilobytes) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # in bytes on macOS


def print_memory(setting: Setting, num_samples: int) -> None:
    """Print what one call holds at its peak above what there was before it; for a process of its own."""
    vae, x = make_vae(setting.device), images(setting, setting.num_data)
    evidence(vae.model, vae.guide, x[:2], num_samples=50)  # what is loaded at the first use
    before = peak(setting.device)
    evidence(vae.model, vae.guide, x, num_samples=num_samples)
    print(peak(setting.device) - before)


def memory_row(setting: Setting, varied: str, num_data: int, num_samples: int) -> Row:
    """Measure one call in a fresh process."""
    command = [sys.executable, __file__, "--device", setting.device, "--num-data", str(num_data)]
    command += ["--memory-of", str(num_samples)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout
    return {
        "varied": varied,
        "data": num_data,
        "samples": num_samples,
        "megabytes": f"{float(printed.split()[-1]):.0f}",
        "device": setting.device,
    }


def benchmark_memory(setting: Setting) -> None:
    """Write the table and the figure of the memory."""
    rows = [memory_row(setting, "data", num_data, MEMORY_SAMPLES[0]) for num_data in MEMORY_DATA]
    rows += [memory_row(setting, "samples", MEMORY_DATA[0], num_samples) for num_samples in MEMORY_SAMPLES]
    write(rows, "memory.csv")
    memory_figure(rows).savefig(RESULTS / "memory.png", dpi=150)


def memory_figure(rows: list[Row]) -> Figure:
    """Draw peak memory against the number of data, and of samples."""
    figure = Figure((9, 3.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, varied, other in zip(panels, ("data", "samples"), ("samples", "data"), strict=True):
        shown = [row for row in rows if row["varied"] == varied]
        bars = axes.bar([f"{row[varied]:,}" for row in shown], [float(str(row["megabytes"])) for row in shown], 0.6)
        axes.bar_label(bars, fmt="%.0f MB")
        axes.set_xlabel(f"{varied}, at {shown[0][other]} {other}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    figure.suptitle("Peak memory of the evidence: flat, but for the weights of one block of data", fontweight="bold")
    return figure


# -- all of it --------------------------------------------------------------------------------------------------------

BENCHMARKS: dict[str, Callable[[Setting], None]] = {"evidence": benchmark_evidence, "memory": benchmark_memory}


def write(rows: list[Row], name: str) -> None:
    """Write a table, and print it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / name).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print("  ".join(f"{value!s:<26}" if key == "contender" else f"{value!s:>9}" for key, value in row.items()))


def main() -> None:
    """Run the benchmarks that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="folder that holds MNIST/raw; noise without it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--num-data", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=tuple(BENCHMARKS), nargs="+", default=tuple(BENCHMARKS))
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)  # K, in a process of its own
    arguments = parser.parse_args()
    setting = Setting(arguments.data_root, arguments.device, arguments.num_data, arguments.repeats)
    if arguments.memory_of:
        print_memory(setting, arguments.memory_of)
        return
    for name in arguments.only:
        BENCHMARKS[name](setting)


if __name__ == "__main__":
    main()
