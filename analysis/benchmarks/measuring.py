"""``measuring``: each measurement as a multiple of its matrix products, and how its cost grows with the work.

The products are those of the rows that the measurement itself sent through encoder and decoder,
counted in a run of its own: forward, and back to the latents where it asks for a gradient.
``decompose_kl`` is held against the product and the exponential of each pair of a draw and a datum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.common import OURS_COLOUR, Row, Setting, images, make_vae, read, seconds, write
from benchmarks.floors import floor_of, pairs_floor
from pyro_bvae import BetaVAE, decompose_kl, elbo, evidence, fit, inference_gaps
from pyro_bvae.evaluation import annealed_evidence, read_latents
from pyro_bvae.evaluation.marginal import AnnealingSettings
from pyro_bvae.evaluation.refit.optimisation import RefitSettings

TABLE, SCALING = "measuring.csv", "scaling.csv"
Call = Callable[[], object]

# The refits go their way for so long that it shows, but are not waited for until they have
# converged.
REFITS = RefitSettings(max_rounds=4, steps_per_round=25)
CHAINS = AnnealingSettings(num_temperatures=50, num_chains=8, pilot_chains=4, pilot_temperatures=50)
DRAWS = 4


class Measurement(NamedTuple):
    """A call to time, of how many data, and the seconds of its floor if that is not counted from its rows."""

    call: Call
    num_data: int
    floor: float = 0.0


def measurements(vae: BetaVAE, x: torch.Tensor, many: torch.Tensor) -> dict[str, Measurement]:
    """Return what is measured of a few data, and of many."""
    pair, few = (vae.model, vae.guide), len(x)
    latents = vae.prior().event_shape[0]
    pairs = pairs_floor(DRAWS * len(many), len(many), latents, x.device.type)
    return {
        "evidence, K = 1000": Measurement(
            lambda: evidence(*pair, x, num_samples=1000, compile=False), few
        ),
        "annealed importance sampling": Measurement(
            lambda: annealed_evidence(*pair, x, settings=CHAINS), few
        ),
        "gaps with their refits": Measurement(
            lambda: inference_gaps(*pair, x, num_samples=1000, settings=REFITS), few
        ),
        "elbo, 100 draws": Measurement(
            lambda: elbo(*pair, many[: 8 * few], num_samples=100), 8 * few
        ),
        "decompose_kl, N x N": Measurement(
            lambda: decompose_kl(*pair, many, num_samples=DRAWS), len(many), pairs
        ),
        "read_latents": Measurement(lambda: read_latents(*pair, many), len(many)),
    }


def measuring_rows(setting: Setting) -> list[Row]:
    """Time each measurement against its floor."""
    vae = make_vae(setting.device)
    x = images(setting, 80 * setting.num_data)
    rows = []
    for name, (call, num_data, known) in measurements(
        vae, x[: max(2, setting.num_data // 4)], x
    ).items():
        floor = known or floor_of(vae, call, setting.device)
        taken = [seconds(call, setting.device) for _ in range(max(2, setting.repeats // 2))]
        row: Row = {
            "measurement": name,
            "milliseconds_a_datum": f"{1e3 * min(taken) / num_data:.4f}",
        }
        row |= {
            "products_alone": f"{1e3 * floor / num_data:.4f}",
            "ratio_to_products": f"{min(taken) / floor:.2f}",
        }
        rows.append(
            row | {"data": num_data, "device": setting.device, "threads": torch.get_num_threads()}
        )
    return rows


# -- cost against size
# ------------------------------------------------------------------------------------------------


def lines(setting: Setting) -> Iterator[tuple[str, str, int, Call]]:
    """Yield what is measured, what is varied, its value, and the call."""
    unit = max(1, setting.num_data // 8)
    vae, x = make_vae(setting.device), images(setting, 1024 * unit)
    pair = (vae.model, vae.guide)
    for count in (8 * unit, 32 * unit, 128 * unit, 512 * unit):
        yield (
            "evidence",
            "data N",
            count,
            lambda count=count: evidence(*pair, x[:count], num_samples=100),
        )
    for samples in (200, 800, 3200, 12_800):
        yield (
            "evidence",
            "samples K",
            samples,
            lambda samples=samples: evidence(*pair, x[: 4 * unit], num_samples=samples),
        )
    for features in (784, 3136, 12_544, 50_176):
        wide, flat = (
            make_vae(setting.device, features),
            (torch.rand(unit, features) < 0.3).float().to(setting.device),
        )
        yield (
            "evidence",
            "features D",
            features,
            lambda wide=wide, flat=flat: evidence(wide.model, wide.guide, flat, num_samples=400),
        )
    for count in (64 * unit, 128 * unit, 256 * unit, 512 * unit, 1024 * unit):
        yield (
            "decompose_kl",
            "data N",
            count,
            lambda count=count: decompose_kl(*pair, x[:count], num_samples=16),
        )
    for batch in (128, 512, 2048, 8192):
        yield "training step", "batch", batch, lambda batch=batch: epoch_of(vae, x, batch)


def epoch_of(vae: BetaVAE, x: torch.Tensor, batch: int) -> float:
    """Return the seconds of a plain step with batches of a size; the first epoch warms up."""
    steps = 8
    history = fit(vae, x.repeat(-(-steps * batch // len(x)), 1)[: steps * batch], epochs=3, batch_size=batch,
                  compile=False, progress=False)  # fmt: skip
    return min(history["seconds"][1:]) / steps


def scaling_rows(setting: Setting) -> list[Row]:
    """Time each size of each line."""
    rows: list[Row] = []
    for what, varied, size, call in lines(setting):
        returned: list[Any] = []

        def run(call: Call = call, returned: list[Any] = returned) -> None:
            returned.append(call())

        taken = [seconds(run, setting.device) for _ in range(3)]
        own = [
            value for value in returned if isinstance(value, float)
        ]  # a call that has timed itself
        row: Row = {
            "call": what,
            "varied": varied,
            "size": size,
            "seconds": f"{min(own or taken):.6f}",
        }
        rows.append(row | {"device": setting.device, "threads": torch.get_num_threads()})
    return rows


def slope(part: list[Any]) -> float:
    """Return the power of the size with which the cost grows, over the larger half of the sizes."""
    last = part[-3:]
    sizes, times = (np.log([float(row[key]) for row in last]) for key in ("size", "seconds"))
    return float(np.polyfit(sizes, times, 1)[0])


def groups(rows: list[Any]) -> dict[tuple[str, str], list[Any]]:
    """Return the lines of the table."""
    results: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        results.setdefault((row["call"], row["varied"]), []).append(row)
    return results


def benchmark_measuring(setting: Setting) -> None:
    """Write the tables and the figure of the measurements."""
    write(setting, measuring_rows(setting), TABLE)
    rows = scaling_rows(setting)
    write(setting, rows, SCALING)
    scaling_figure(rows).savefig(setting.output / "scaling.png", dpi=150)


def scaling_figure(rows: list[Any]) -> Figure:
    """Draw cost against size on log axes, with a line of the slope beside it."""
    parts = groups(rows)
    figure = Figure((2.6 * len(parts), 3.4), layout="constrained")
    for axes, ((what, varied), part) in zip(
        figure.subplots(1, len(parts)), parts.items(), strict=True
    ):
        sizes, times = ([float(row[key]) for row in part] for key in ("size", "seconds"))
        axes.loglog(sizes, times, "o-", color=OURS_COLOUR)
        power = 2 if what == "decompose_kl" else 1
        guide = [times[-1] * (size / sizes[-1]) ** power for size in sizes]
        axes.loglog(sizes, guide, color="#A8A8A8", linestyle="--", zorder=0)
        axes.set_ylim(min(times) / 2, 2 * max(times))
        ticks = sizes[:: max(1, len(sizes) // 2)]
        axes.set_xticks(ticks, [f"{size:g}" for size in ticks])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{what}\ngrows as the power {slope(part):.2f}", loc="left", fontsize=10)
        axes.set_xlabel(varied)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("seconds")
    figure.suptitle(
        "Cost against size (dashed: in proportion; for decompose_kl with the square)",
        fontweight="bold",
    )
    return figure


def verdict(folder: Path) -> list[str]:
    """Return the ratios and the powers in words."""
    said = [
        f"{row['measurement']}: {row['ratio_to_products']} times its matrix products"
        for row in read(folder / TABLE)
    ]
    for (what, varied), part in groups(read(folder / SCALING)).items():
        said.append(
            f"cost of {what} against {varied}: power {slope(part):.2f} over the larger sizes"
        )
    return said
