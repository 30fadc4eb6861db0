"""``evidence``: importance-weighted evidence at K = 5000, at both matmul precisions.

The floor is the decoder's affine maps alone, without activation, likelihood or random numbers,
written to the same memory again and again in the blocks of rows that are fastest. All take turns in
one process; a ratio is a median over turns of two times of the same turn. What is compiled is
compiled in a call before the first turn, of which the table has the seconds; the program is still
recorded anew in every call, which takes tenths of a second that count here, so the compiled one is
given twice the data. The peak is the rate of one large square product.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro import poutine
from torch import Tensor, nn

from benchmarks.common import (
    FEATURES,
    FLOOR_COLOUR,
    HIDDEN,
    LATENTS,
    OTHERS_COLOUR,
    OURS_COLOUR,
    PRECISIONS,
    Row,
    Setting,
    images,
    make_vae,
    networks,
    seconds,
    write,
)
from pyro_bvae import BetaVAE, evidence
from pyro_bvae.evaluation.marginal.averages import (
    Average,
    Averaging,
    error_of_mean,
    log_mean_exp,
    normalized_weights,
    plain,
)

NUM_SAMPLES = 5000
FLOOR, OURS, WITH_PSIS = "decoder's matrix products", "pyro_bvae, without Pareto k", "pyro_bvae"
COMPILED = "pyro_bvae, compiled"
PLAIN, PYTHAE = "plain Pyro", "pythae get_nll"
FLOOR_BLOCKS = (512, 1024, 2048, 4096, 8192)
ON_CUDA_TOO = (65_536, 262_144)
PYTHAE_BATCHES = (100, 1000)
BAR = 1.4
# Some contenders take as long for a datum however many there are, and are slow: of this share of
# the data they say it.
FEW = 8


class Contender(NamedTuple):
    """Something to time: ``run()`` returns its estimate of the mean evidence of so many data, or NaN."""

    run: Callable[[], float]
    num_data: int


# -- contenders
# --------------------------------------------------------------------------------------------------


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


def ours(
    vae: BetaVAE, x: Tensor, average: Averaging = plain, *, compiled: bool = False
) -> Contender:
    """Return the package's evidence."""

    def run() -> float:
        estimate = evidence(
            vae.model, vae.guide, x, num_samples=NUM_SAMPLES, average=average, compile=compiled
        )
        return estimate.value

    return Contender(run, len(x))


def plain_pyro(vae: BetaVAE, x: Tensor) -> Contender:
    """Return the evidence as one would write it in Pyro.

    All particles of a datum in one vectorised trace.
    """
    encoder, decoder = networks(vae)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENTS), x.new_ones(LATENTS)).to_event(1))
            pyro.sample(
                "x", dist.Bernoulli(logits=decoder(z), validate_args=False).to_event(1), obs=x
            )

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
        log_weights = (
            nodes["z"]["log_prob"] + nodes["x"]["log_prob"] - guide_trace.nodes["z"]["log_prob"]
        )
        return log_weights.logsumexp(0) - math.log(NUM_SAMPLES)

    return Contender(
        lambda: float(torch.cat([log_evidence(row) for row in x.split(1)]).mean()), len(x)
    )


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
    return Contender(
        lambda: float(theirs.get_nll(x, n_samples=NUM_SAMPLES, batch_size=batch)), len(x)
    )


def contenders(vae: BetaVAE, x: Tensor) -> dict[str, Contender]:
    """Return all that can be timed here, by name; the floor first."""
    few = x[: max(1, len(x) // FEW)]
    blocks = FLOOR_BLOCKS + (ON_CUDA_TOO if x.device.type == "cuda" else ())
    floors = {block: floor(vae, len(few), block) for block in blocks}
    best = min(
        floors, key=lambda block: min(seconds(floors[block].run, x.device.type) for _ in range(3))
    )
    print(f"the floor is fastest in blocks of {best} rows")
    results: dict[str, Contender] = {
        FLOOR: floor(vae, len(x), best),
        OURS: ours(vae, x, without_psis),
        WITH_PSIS: ours(vae, x),
        COMPILED: ours(vae, torch.cat([x, x]), compiled=True),
        PLAIN: plain_pyro(vae, few),
    }
    if importlib.util.find_spec("pythae") is None:
        print(
            "pythae cannot be imported here, so its rows are left out: pip install pyro-bvae[bench]"
        )
        return results
    return results | {
        f"{PYTHAE}, {batch} rows": pythae_nll(vae, few, batch) for batch in PYTHAE_BATCHES
    }


# -- the clock
# --------------------------------------------------------------------------------------------------


def per_datum(contender: Contender, device: str) -> tuple[float, float]:
    """Return the seconds that a contender takes for a datum, and its estimate."""
    estimates: list[float] = []
    taken = seconds(lambda: estimates.append(contender.run()), device)
    return taken / contender.num_data, estimates[0]


@torch.no_grad()
def evidence_rows(setting: Setting, precision: str) -> list[Row]:
    """Time all contenders in turns, forwards and backwards."""
    torch.set_float32_matmul_precision(precision)
    vae, x = make_vae(setting.device), images(setting, setting.num_data)
    timed = contenders(vae, x)
    first = {name: seconds(contender.run, setting.device) for name, contender in timed.items()}
    turns: list[dict[str, float]] = []
    estimates: dict[str, float] = {}
    for turn in range(setting.repeats):
        taken = {}
        for name in list(timed)[:: 1 if turn % 2 == 0 else -1]:
            taken[name], estimates[name] = per_datum(timed[name], setting.device)
        turns.append(taken)
    at_most = peak_rate(setting.device)
    rows = [evidence_row(name, turns, estimates[name], setting, precision) for name in timed]
    for row, contender in zip(rows, timed.values(), strict=True):
        usual = contender.num_data * float(str(row["milliseconds_a_datum"])) / 1e3
        rate = 2 * NUM_SAMPLES * HIDDEN * (LATENTS + FEATURES) / (usual / contender.num_data)
        row["share_of_peak"] = f"{rate / at_most:.2f}"
        row["seconds_more_at_first"] = f"{max(0.0, first[str(row['contender'])] - usual):.2f}"
    return rows


def peak_rate(device: str) -> float:
    """Return the floating-point operations a second of one large square product.

    On CUDA in the precision that is set; on a CPU in the faster one, since what runs by oneDNN does
    so in either.
    """
    size = 8192 if device == "cuda" else 1024
    one, other = (torch.randn(size, size, device=device) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    taken = []
    for precision in [before] if device == "cuda" else PRECISIONS:
        torch.set_float32_matmul_precision(precision)
        one @ other
        taken += [seconds(lambda: one @ other, device) for _ in range(5)]
    torch.set_float32_matmul_precision(before)
    return 2 * size**3 / min(taken)


def evidence_row(
    name: str, turns: list[dict[str, float]], estimate: float, setting: Setting, precision: str
) -> Row:
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
    write(setting, rows, "table.csv")
    evidence_figure(rows).savefig(setting.output / "figure.png", dpi=150)


def evidence_figure(rows: list[Row]) -> Figure:
    """Draw each contender's time as a multiple of the floor's."""
    figure = Figure((9, 5.5), layout="constrained")
    panels = figure.subplots(len(PRECISIONS), 1, sharex=True)
    colours = {COMPILED: OURS_COLOUR, WITH_PSIS: "#56B4E9", OURS: "#56B4E9", FLOOR: FLOOR_COLOUR}
    for axes, (precision, title) in zip(panels, PRECISIONS.items(), strict=True):
        shown = [row for row in rows if row["precision"] == precision]
        ratios = [float(str(row["ratio_to_floor"])) for row in shown]
        names = [str(row["contender"]) for row in shown]
        axes.barh(names, ratios, color=[colours.get(name, OTHERS_COLOUR) for name in names])
        for place, (row, ratio) in enumerate(zip(shown, ratios, strict=True)):
            axes.text(
                ratio + 0.04,
                place,
                f"{ratio:.2f} ×   {float(str(row['milliseconds_a_datum'])):.1f} ms",
                va="center",
            )
        axes.axvline(BAR, color="#D55E00", linestyle="--", linewidth=1)
        axes.set_xlim(0, 1.25 * max(float(str(row["ratio_to_floor"])) for row in rows))
        axes.invert_yaxis()
        axes.set_title(title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel(
        f"time an image, as a multiple of the decoder's matrix products (dashed: {BAR} ×, the aim)"
    )
    figure.suptitle(
        f"Evidence of one image with {NUM_SAMPLES} samples: shorter is faster", fontweight="bold"
    )
    return figure
