r"""At β = 1 and with a flexible model the aggregated posterior q(z) is the prior p(z): is it, and is it at other β?

Closed form, a linear-Gaussian model whose weight has singular values :math:`\sqrt{w_i}`, data with
variance :math:`\lambda_i` along them, and the exact guide at β. Along each axis q(z) is a normal of
variance

.. math::
    S_i = \frac{\beta \sigma^2}{\beta \sigma^2 + w_i} + \frac{w_i \lambda_i}{(\beta \sigma^2 +
    w_i)^2},
    \qquad KL(q(z) \| p(z)) = \tfrac12 \sum_i (S_i - 1 - \log S_i) .

With the decoder held at the truth, :math:`\lambda_i = w_i + \sigma^2`, that is 0 at β = 1 alone.
With a decoder that is trained as well, :math:`w_i = \max(0, \lambda_i - \beta \sigma^2)`, it is 0
at every β: there β is but another noise. Both are held to ``decompose_kl``.

Trained: two latents, data of a ring of five clumps bent into six features, networks from linear to
64 wide and then trained for longer, and diagonal, full-rank (two seeds) and flow guides (one), each
at β = 0.5, 1 and 2, measured on data that no model has seen. What a flexible model is, the planted
density says: KL(q(z) || p(z)) can be no more than the bound falls short of the data's own log
density, in the mean, at any β: as a marginal of :math:`KL(p(x) q(z|x) \| p_\theta(x, z))`.

    python analysis/aggregate_against_prior.py

Over N data the aggregate is lumpier than that of all there could be, and its KL too large by about
c / N. Each KL here is twice that over N data less the mean of those over the two halves, which is
free of c.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, decompose_kl, sweep
from pyro_bvae.datasets.seeds import SYNTHESIS_STREAM, stream_generator
from pyro_bvae.evaluation import elbo_parts
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.posteriors import FlowPosterior, FullRankPosterior, NormalPosterior
from pyro_bvae.priors import NormalPrior

RESULTS = Path(__file__).parent / "results" / "aggregate_against_prior"
WEIGHTS, NOISE = torch.tensor([4.0, 0.25], dtype=torch.double), 0.5
EXACT_BETAS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
BETAS = (0.5, 1.0, 2.0)
SEEDS = {
    "diagonal": (0, 1),
    "full-rank": (0, 1),
    "flow": (0,),
}  # flows cannot be stacked: one after the other
GUIDES = tuple(SEEDS)
# Width of the networks, and how many times as long they are trained.
RUNGS = {"linear": (0, 1), "16": (16, 1), "64": (64, 1), "64, 3 x longer": (64, 3)}
FIRST, LAST = "linear", "64, 3 x longer"
COLOURS = dict(zip(GUIDES, ("#0072B2", "#D55E00", "#009E73"), strict=True))
LATENTS, FEATURES, SCALE, SUMMARY, STEP_WIDTH = 2, 6, 0.2, 8, 16
CLUMPS, RADIUS, SPREAD = 5, 2.0, 0.5
NUM_TRAIN, NUM_TEST, NUM_EXACT = 4000, 1500, 3000
EPOCHS, QUICK_EPOCHS = 100, 10
NEAR = 0.02  # nats: what is below counts as the prior

Row = dict[str, str]


def marginal_kl(vae: BetaVAE, x: Tensor, num_samples: int = 1) -> tuple[float, float]:
    """Return KL(q(z) || p(z)) without the part that shrinks with the number of data, and its standard error."""
    half = len(x) // 2
    x = x[: 2 * half]
    whole, first, second = (
        decompose_kl(vae.model, vae.guide, part, num_samples=num_samples).marginal_kl
        for part in (x, x[:half], x[half:])
    )
    per_datum = 2 * whole.per_datum - torch.cat([first.per_datum, second.per_datum])
    return float(per_datum.mean()), float(per_datum.std()) / math.sqrt(len(per_datum))


def aggregate_kl(weights: Tensor, variances: Tensor, beta: float) -> float:
    """Return the closed form of KL(q(z) || p(z))."""
    level = beta * NOISE**2
    aggregate = level / (level + weights) + weights * variances / (level + weights) ** 2
    return float(0.5 * (aggregate - 1 - aggregate.log()).sum())


def linear_vae(weights: Tensor, beta: float) -> BetaVAE:
    """Return the linear model with orthogonal columns and the exact guide at β."""
    weight = torch.zeros(4, LATENTS, dtype=torch.double)
    weight[:LATENTS] = torch.diag(weights.sqrt())
    return LinearGaussian(weight, NOISE).amortized_vae(beta)


def exact() -> list[Row]:
    """Hold the measurement to the closed form, with a decoder that is held and with one that is trained."""
    variances = WEIGHTS + NOISE**2
    weight = torch.zeros(4, LATENTS, dtype=torch.double)
    weight[:LATENTS] = torch.diag(WEIGHTS.sqrt())
    x = LinearGaussian(weight, NOISE).sample(NUM_EXACT, seed=0)
    rows = []
    for decoder in ("held", "trained"):
        for beta in EXACT_BETAS:
            weights = WEIGHTS if decoder == "held" else (variances - beta * NOISE**2).clamp(min=0)
            value, error = marginal_kl(linear_vae(weights, beta), x, num_samples=8)
            rows.append(
                {
                    "decoder": decoder,
                    "beta": f"{beta:g}",
                    "closed_form": f"{aggregate_kl(weights, variances, beta):.4f}",
                    "marginal_kl": f"{value:.4f}",
                    "error": f"{error:.4f}",
                }
            )
            print(rows[-1], flush=True)
    return rows


def centres() -> Tensor:
    """Return the middles of the clumps, ``(CLUMPS, 2)``."""
    angle = 2 * math.pi * torch.arange(CLUMPS) / CLUMPS
    return RADIUS * torch.stack([angle.cos(), angle.sin()], 1)


def bent(plane: Tensor) -> Tensor:
    """Return the features of points of the plane, ``(*, 2)`` to ``(*, FEATURES)``."""
    a, b = plane.unbind(-1)
    return torch.stack([a, b, torch.sin(a), torch.cos(b), 0.3 * a * b, torch.tanh(a - b)], -1)


def ring(count: int, seed: int) -> Tensor:
    """Draw planted data: clumps on a ring in the plane, bent into features, and noise."""
    generator = stream_generator(seed, 0, SYNTHESIS_STREAM)
    clump = torch.randint(CLUMPS, (count,), generator=generator)
    plane = centres()[clump] + SPREAD * torch.randn(count, 2, generator=generator)
    return bent(plane) + SCALE * torch.randn(count, FEATURES, generator=generator)


def truth(x: Tensor) -> float:
    """Return the mean log density of data under what they were drawn from, by a sum over the plane."""
    step = 0.05
    line = torch.arange(-5, 5, step, dtype=torch.double)
    plane = torch.cartesian_prod(line, line)
    prior = -torch.cdist(plane, centres().double()).square() / (2 * SPREAD**2)
    log_prior = prior.logsumexp(1) - math.log(CLUMPS * 2 * math.pi * SPREAD**2) + 2 * math.log(step)
    constant = 0.5 * FEATURES * math.log(2 * math.pi * SCALE**2)
    features = bent(plane)
    parts = [
        (log_prior - torch.cdist(some.double(), features).square() / (2 * SCALE**2)).logsumexp(1)
        for some in x.split(100)
    ]
    return float(torch.cat(parts).mean()) - constant


def untrained(seed: int, width: int, guide: str) -> BetaVAE:
    """Return the untrained model of a capacity.

    Two hidden layers of a width in each network, or none for 0.
    """
    torch.manual_seed(seed)
    hidden = (width, width) if width else ()
    encoders: dict[str, tuple[type[nn.Module], int, dict[str, Any]]] = {
        "diagonal": (NormalPosterior, 2 * LATENTS, {}),
        "full-rank": (FullRankPosterior, FullRankPosterior.num_outputs(LATENTS), {}),
        "flow": (
            FlowPosterior,
            FlowPosterior.num_outputs(LATENTS, SUMMARY),
            {"summary_dim": SUMMARY, "hidden": (STEP_WIDTH,)},
        ),
    }
    family, outputs, options = encoders[guide]
    decoder = Decoder(MLP(LATENTS, FEATURES, hidden=hidden), NormalLikelihood(SCALE))
    encoder = family(MLP(FEATURES, outputs, hidden=hidden), **options)
    return BetaVAE(NormalPrior(LATENTS), decoder, encoder)


def trained(epochs: int) -> list[Row]:
    """Train and measure each capacity at each β."""
    train, test = ring(NUM_TRAIN, 0), ring(NUM_TEST, 1)
    best = truth(test)
    rows = []
    for guide in GUIDES:
        for rung, (width, longer) in RUNGS.items():
            make = functools.partial(untrained, width=width, guide=guide)
            models = sweep(
                make,
                train,
                betas=BETAS,
                seeds=SEEDS[guide],
                epochs=longer * epochs,
                batch_size=200,
                learning_rate=5e-3,
                progress=False,
            )
            for run in models:
                parts = elbo_parts(run.vae.model, run.vae.guide, test)
                value, error = marginal_kl(run.vae, test)
                rows.append(
                    {
                        "guide": guide,
                        "capacity": rung,
                        "beta": f"{run.beta:g}",
                        "seed": str(run.seed),
                        "marginal_kl": f"{value:.4f}",
                        "error": f"{error:.4f}",
                        "rate": f"{parts.rate.value:.3f}",
                        "distortion": f"{parts.distortion.value:.3f}",
                        "elbo": f"{parts.elbo.value:.3f}",
                        "short_of_truth": f"{best - parts.elbo.value:.3f}",
                    }
                )
                print(rows[-1], flush=True)
    return rows


def over_seeds(rows: list[Row], guide: str, rung: str, beta: float) -> tuple[float, float]:
    """Return the mean KL of a capacity and its error.

    Of the data and, where there are several, of the seeds.
    """
    some = [
        row
        for row in rows
        if (row["guide"], row["capacity"], float(row["beta"])) == (guide, rung, beta)
    ]
    values = torch.tensor([float(row["marginal_kl"]) for row in some], dtype=torch.double)
    within = sum(float(row["error"]) for row in some) / len(
        some
    )  # the same held-out data: no smaller by their number
    between = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), math.hypot(within, between)


def reading(closed: list[Row], rows: list[Row]) -> list[str]:
    """Say what the tables show."""
    off = max(
        abs(float(row["marginal_kl"]) - float(row["closed_form"])) / float(row["error"])
        for row in closed
    )
    ends = [row for row in closed if row["decoder"] == "held" and row["beta"] in ("0.1", "10")]
    lines = [
        f"Closed form: measured within {off:.1f} standard errors at all {len(closed)} points. "
        f"Decoder held at the"
        f" truth: {ends[0]['closed_form']} nats at β = 0.1, 0 at β = 1, {ends[1]['closed_form']} "
        f"at β = 10. Decoder"
        " trained as well: 0 at every β."
    ]
    for beta in BETAS:
        small = [over_seeds(rows, guide, FIRST, beta) for guide in GUIDES]
        large = [over_seeds(rows, guide, LAST, beta) for guide in GUIDES]
        shown = ", ".join(
            f"{guide} {before[0]:.3f} -> {after[0]:.3f} ± {after[1]:.3f}"
            for guide, before, after in zip(GUIDES, small, large, strict=True)
        )
        lines.append(
            f"Trained, β = {beta:g}, from {FIRST} to the most capacity ({LAST}), nats: {shown}."
        )
    best = {beta: min(over_seeds(rows, guide, LAST, beta) for guide in GUIDES) for beta in BETAS}
    falls = all(
        over_seeds(rows, guide, LAST, 1.0)[0] < 0.5 * over_seeds(rows, guide, FIRST, 1.0)[0]
        for guide in GUIDES
    )
    reached = best[1.0][0] <= NEAR
    others = [
        beta
        for beta in BETAS
        if beta != 1 and best[beta][0] <= best[1.0][0] + 2 * math.hypot(best[1.0][1], best[beta][1])
    ]
    room = max(
        float(row["marginal_kl"]) - 2 * float(row["error"]) - float(row["short_of_truth"])
        for row in rows
    )
    short = {
        beta: min(float(row["short_of_truth"]) for row in rows if float(row["beta"]) == beta)
        for beta in BETAS
    }
    lines += [
        f"The bound falls short of the data's own density by {short[1.0]:.3f} nats at least at β = "
        f"1 (for other β:"
        f" {', '.join(f'{short[beta]:.3f} at {beta:g}' for beta in BETAS if beta != 1)}), and the "
        f"marginal KL is"
        f" {'never more than that, as it must be' if room <= 0 else 'at times more than that, which cannot be'}.",
        f"At β = 1 capacity {'brings' if falls else 'does not bring'} q(z) to less than half its "
        f"distance under every"
        f" guide, and the best is {best[1.0][0]:.3f} ± {best[1.0][1]:.3f} nats off:"
        f" q(z) = p(z) is {'borne out' if reached else 'approached and not reached'} (within "
        f"{NEAR} nats).",
        f"That it is special to β = 1 is {'not borne out' if others else 'borne out'} for a "
        f"decoder that is trained as"
        f" well: {', '.join(f'{best[beta][0]:.3f} ± {best[beta][1]:.3f} at β = {beta:g}' for beta in BETAS)}. A map of"
        " the latents that networks can undo takes q(z) to p(z) at no cost in what it tells of x, "
        "so that every β > 0"
        " asks for it; only a decoder that is held makes β = 1 the one.",
    ]
    return lines


def draw(figure: Figure, closed: list[Row], rows: list[Row]) -> None:
    """Draw the closed form over β, and the trained models over capacity for each β."""
    left, *others = figure.subplots(1, 1 + len(BETAS), width_ratios=(1.4, 1, 1, 1))
    grid = torch.logspace(-1, 1, 100, dtype=torch.double)
    held = [aggregate_kl(WEIGHTS, WEIGHTS + NOISE**2, float(beta)) for beta in grid]
    left.plot(grid, held, color="#0072B2", label="decoder held at the truth")
    left.plot(grid, torch.zeros_like(grid), color="#D55E00", label="decoder trained as well")
    for decoder, colour in (("held", "#0072B2"), ("trained", "#D55E00")):
        some = [row for row in closed if row["decoder"] == decoder]
        left.errorbar(
            [float(row["beta"]) for row in some],
            [float(row["marginal_kl"]) for row in some],
            yerr=[1.96 * float(row["error"]) for row in some],
            fmt="o",
            color=colour,
            capsize=2,
        )
    left.set_xscale("log")
    left.set_xticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
    left.minorticks_off()
    left.set_xlabel("β")
    left.set_ylabel("KL(q(z) || p(z)), nats")
    left.set_title("Linear: closed form, and measured (dots)", loc="left", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    for axes, beta in zip(others, BETAS, strict=True):
        for shift, guide in enumerate(GUIDES):
            results = [over_seeds(rows, guide, rung, beta) for rung in RUNGS]
            axes.errorbar(
                [place + 0.08 * (shift - 1) for place in range(len(RUNGS))],
                [value for value, _ in results],
                yerr=[1.96 * error for _, error in results],
                fmt="o-",
                color=COLOURS[guide],
                capsize=2,
                label=guide,
            )
        axes.axhline(0, color="0.6", linewidth=1)
        axes.set_xticks(range(len(RUNGS)), [rung.replace(", ", ",\n") for rung in RUNGS])
        axes.set_xlabel("width of the networks")
        axes.set_title(f"Trained, β = {beta:g}", loc="left", fontsize=10)
    top = max(axes.get_ylim()[1] for axes in others)
    for axes in others:
        axes.set_ylim(-0.05 * top, top)
    others[-1].legend(frameon=False, fontsize=8, title="guide")
    for axes in (left, *others):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("How far the aggregated posterior is from the prior", fontweight="bold")


def write(rows: list[Row], name: str) -> None:
    """Write a table."""
    with (RESULTS / name).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(epochs: int) -> None:
    """Write the tables and the figure, and say what they show."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    closed, rows = exact(), trained(epochs)
    write(closed, "closed_form.csv")
    write(rows, "table.csv")
    lines = reading(closed, rows)
    (RESULTS / "reading.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    figure = Figure((13, 4.2), layout="constrained")
    draw(figure, closed, rows)
    figure.savefig(RESULTS / "figure.png", dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_EPOCHS} epochs instead of {EPOCHS}"
    )
    main(QUICK_EPOCHS if parser.parse_args().quick else EPOCHS)
