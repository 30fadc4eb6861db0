"""A decoder that can do without its latents: does its rate fall to zero, and which remedy brings it back at what price?

Binarised MNIST (pixels drawn once), 20,000 training images, 16 latents, encoder and decoder of four
layers of 200, and a masked autoregressive likelihood (one layer of 500), trained for 10 epochs.
Plain training at β = 1 first; then, one at a time: KL annealing, free bits, decoders that see less
of the image, and a lower β. The last row trains encoder and decoder of one layer, which is not
among the usual remedies, to see whether the collapse was worth it to the model or only the easier
thing to learn. Rate, distortion, ELBO and evidence are those at β = 1 of 256 test images, whatever
was trained on; the evidence is by importance sampling, 2000 samples, and low where its weights are
untrusted. One training run each, so that the errors, which are those over images, do not hold the
spread of runs.

The rate falls to zero, and annealing does not keep it up. A few free bits or a lower β bring nats
back, for a gain of half a nat of evidence at most; free bits in excess cost two, and decoders that
see less cost ten to sixty. Networks of one layer carry eleven nats for no more evidence, and
independent pixels leave most units unused too: a part of this collapse is that deep networks are
slow to learn, and no bypass. (With networks of three layers the rate fell to 1.2.)

    python analysis/posterior_collapse.py --data-root FOLDER_THAT_HOLDS_MNIST

An interrupted run is continued by the same command; ``--quick`` is a small one, and leaves the
results alone.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import nn

from pyro_bvae import BetaVAE, Decoder, evidence, fit
from pyro_bvae.datasets import Splits, mnist
from pyro_bvae.evaluation import elbo_parts, kl_per_dimension
from pyro_bvae.likelihoods import AutoregressiveBernoulliLikelihood, BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import FreeBits, LinearWarmup

RESULTS = Path(__file__).parent / "results" / "posterior_collapse"
SEED, LATENTS, PIXELS, MASKED = 0, 16, 784, (500,)
# What counts as a rate that rose, in nats.
RISE = 1.0
# Losses of evidence that the figure has room for, in nats.
SHOWN = 12.0
COLOURS = {"plain": "black", "helped": "#009E73", "cost": "#E69F00", "nothing": "#999999"}
MEANING = {
    "helped": "latents used again, evidence not lower",
    "cost": "latents used again, evidence lower",
    "nothing": "latents still unused",
}


@dataclass(frozen=True)
class Size:
    """How much is trained on and measured."""

    num_train: int = 20_000
    epochs: int = 10
    num_images: int = 256
    num_samples: int = 2000


QUICK = Size(num_train=3000, epochs=4, num_images=64, num_samples=200)


@dataclass(frozen=True)
class Remedy:
    """What is done against the collapse.

    A likelihood, widths and arguments of ``fit``, given the epochs.
    """

    likelihood: Any = lambda: AutoregressiveBernoulliLikelihood(PIXELS, MASKED)
    hidden: tuple[int, ...] = (200, 200, 200, 200)
    training: Any = field(default=lambda epochs: {})

    def vae(self) -> BetaVAE:
        """Return the model, freshly initialised."""
        torch.manual_seed(SEED)
        likelihood: nn.Module = self.likelihood()
        encoding, decoding = (
            MLP(*sizes, hidden=self.hidden, activation=nn.Tanh)
            for sizes in ((PIXELS, 2 * LATENTS), (LATENTS, PIXELS))
        )
        return BetaVAE(
            NormalPrior(LATENTS), Decoder(decoding, likelihood), NormalPosterior(encoding)
        )


def windowed(window: int) -> Any:
    """Return what makes a likelihood whose pixels see so many before them."""
    return lambda: AutoregressiveBernoulliLikelihood(PIXELS, MASKED, window=window)


REMEDIES = {
    "plain, β = 1": Remedy(),
    "KL annealing, half the epochs": Remedy(
        training=lambda epochs: {"beta": LinearWarmup(1.0, epochs / 2)}
    ),
    "free bits, 0.25 nats a latent": Remedy(training=lambda epochs: {"objective": FreeBits(0.25)}),
    "free bits, 1 nat a latent": Remedy(training=lambda epochs: {"objective": FreeBits(1.0)}),
    "weaker decoder, 28 pixels seen": Remedy(likelihood=windowed(28)),
    "weaker decoder, 4 pixels seen": Remedy(likelihood=windowed(4)),
    "weaker decoder, no pixels seen": Remedy(likelihood=BernoulliLikelihood),
    "lower β, 0.5": Remedy(training=lambda epochs: {"beta": 0.5}),
    "lower β, 0.1": Remedy(training=lambda epochs: {"beta": 0.1}),
    "shallower networks, β = 1": Remedy(hidden=(200,)),
}
PLAIN = next(iter(REMEDIES))


def measure(remedy: Remedy, splits: Splits, size: Size, output: Path) -> dict[str, str]:
    """Train one model, or continue, and measure it; what was measured before is read."""
    done = output / "row.json"
    if done.exists():
        results: dict[str, str] = json.loads(done.read_text(encoding="utf-8"))
        return results
    vae = remedy.vae()
    resume = (output / "checkpoints" / "last.pt").exists()
    history = fit(
        vae,
        splits.train,
        epochs=size.epochs,
        output=output,
        resume=resume,
        progress=False,
        seed=SEED,
        **remedy.training(size.epochs),
    )
    x = splits.test.x[: size.num_images]
    parts = elbo_parts(vae.model, vae.guide, x, num_samples=200)
    estimate = evidence(vae.model, vae.guide, x, num_samples=size.num_samples)
    units = kl_per_dimension(vae.model, vae.guide, x)
    assert units is not None
    torch.save(estimate.per_datum, output / "evidence.pt")
    row = {
        "rate": f"{parts.rate.value:.2f}",
        "distortion": f"{parts.distortion.value:.2f}",
        "elbo": f"{parts.elbo.value:.2f}",
        "elbo_error": f"{parts.elbo.standard_error:.2f}",
        "evidence": f"{estimate.value:.2f}",
        "evidence_error": f"{estimate.standard_error:.2f}",
        "evidence_monte_carlo": f"{estimate.monte_carlo_error:.2f}",
        "untrusted": f"{estimate.untrusted}",
        "images": f"{len(x)}",
        "active_units": f"{int(units.active.sum())}",
        "first_epoch_rate": f"{float(history.rows[0]['rate']):.2f}",
        "seconds": f"{sum(float(line['seconds']) for line in history.rows):.0f}",
    }
    done.write_text(json.dumps(row), encoding="utf-8")
    return row


def paired(output: Path, plain: Path) -> dict[str, str]:
    """Return the mean difference of the evidence from plain training's, image by image, with its standard error."""
    gain = torch.load(output / "evidence.pt") - torch.load(plain / "evidence.pt")
    return {
        "gain": f"{float(gain.mean()):.2f}",
        "gain_error": f"{float(gain.std() / len(gain) ** 0.5):.2f}",
    }


def outcome(row: dict[str, str], plain: dict[str, str]) -> str:
    """Say what came of a remedy: a key of ``COLOURS``."""
    if row is plain:
        return "plain"
    if float(row["rate"]) < float(plain["rate"]) + RISE:
        return "nothing"
    return "cost" if float(row["gain"]) + 2 * float(row["gain_error"]) < 0 else "helped"


def verdict(rows: list[dict[str, str]]) -> str:
    """Read the table in three sentences."""
    plain = rows[0]

    def listed(what: str) -> str:
        named = [
            f"{row['remedy']} (rate {row['rate']}, evidence {float(row['gain']):+.2f} ± "
            f"{row['gain_error']})"
            for row in rows
            if outcome(row, plain) == what
        ]
        return "; ".join(named) or "none"

    return (
        f"Plain training ends at a rate of {plain['rate']} nats of a bound of {plain['elbo']}, with"
        f" {plain['active_units']} of {LATENTS} units active. The rate rose and the evidence is "
        f"not lower: "
        f"{listed('helped')}. The rate rose and the evidence is lower: {listed('cost')}. The rate "
        f"did not rise by"
        f" {RISE:g} nat: {listed('nothing')}."
    )


def figure_of(rows: list[dict[str, str]]) -> Figure:
    """Draw the rate of each, and what it gains or loses in evidence."""
    figure = Figure((11.5, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    outcomes = [outcome(row, rows[0]) for row in rows]
    for place, (row, what) in enumerate(zip(rows, outcomes, strict=True)):
        rate, gain, error = (float(row[name]) for name in ("rate", "gain", "gain_error"))
        left.barh(place, rate, color=COLOURS[what])
        left.text(rate, place, f" {rate:.1f}", va="center")
        text = f"{gain:+.1f}" if place else f"log p(x) = {float(row['evidence']):.1f}"
        if gain < -SHOWN:  # beyond the axis: the number says how far
            text = f"◀ {text}"
        right.barh(
            place, max(gain, -SHOWN), color=COLOURS[what], xerr=2 * error if gain > -SHOWN else 0
        )
        right.text(max(gain + 2 * error, 0), place, f"  {text}".replace("-", "−"), va="center")
    right.axvline(0, color="black", linewidth=1)
    right.set_xlim(-SHOWN, SHOWN / 2.5)
    right.tick_params(left=False)
    left.margins(x=0.12)
    left.set_yticks(range(len(rows)), [row["remedy"] for row in rows])
    left.invert_yaxis()
    left.set_xlabel("rate: nats an image that the latents carry")
    right.set_xlabel(
        "evidence gained over plain training, nats an image\n(two standard errors over images; ◀ "
        "off the axis)"
    )
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    handles = [
        Patch(color=COLOURS[what], label=MEANING[what]) for what in MEANING if what in outcomes
    ]
    figure.legend(handles=handles, frameon=False, loc="outside lower center", ncols=3)
    figure.suptitle(
        f"An autoregressive decoder leaves its latents unused (rate {float(rows[0]['rate']):.1f} "
        f"nats):"
        " what brings them back, and at what price?",
        fontweight="bold",
    )
    return figure


def main(data_root: str, runs: Path, results: Path, size: Size) -> None:
    """Write the table and the figure."""
    results.mkdir(parents=True, exist_ok=True)
    splits = mnist(data_root, validation=0, download=False).binarized("static", SEED)
    splits = replace(splits, train=splits.train[: size.num_train])
    rows: list[dict[str, str]] = []
    folders = [runs / f"{number:02d}" for number in range(len(REMEDIES))]
    for (name, remedy), folder in zip(REMEDIES.items(), folders, strict=True):
        row = {"remedy": name} | measure(remedy, splits, size, folder)
        rows.append(row | paired(folder, folders[0]))
        print(rows[-1], flush=True)
        with (results / "table.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    figure_of(rows).savefig(results / "figure.png", dpi=150)
    print(verdict(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/posterior_collapse"))
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a small run; its table and figure go to the runs' folder",
    )
    options = parser.parse_args()
    if options.quick:
        main(options.data_root, options.runs / "quick", options.runs / "quick", QUICK)
    else:
        main(options.data_root, options.runs, RESULTS, Size())
