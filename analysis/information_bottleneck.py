r"""How much of the data, of its labels and of its reconstructions do the latents hold, as β tightens the bottleneck?

scikit-learn's digits, half of them held out, a normal likelihood of scale 0.3, ten latents, and β
from 0.01 to 30. The labels take no part in training. Three informations of held-out data, in nats,
each between bounds that are said:

- I(x; z): at least that over the empirical held-out data, which cannot pass log N; at most the
  rate, the mean KL.
- I(z; y): at least H(y) minus the log-loss of a classifier, fitted to draws of z for the training
  half; at most H(y).
- I(z; x̂), x̂ drawn from p(x|z): its mean is a function of z, with which information would be
  infinite, so the noise of the likelihood is kept. q(z) is the held-out aggregate. At least the
  contrastive bound of M draws, which cannot pass log M; at most the lesser of that bound without a
  draw's own density and of a normal channel, half the log determinant of I + C / σ² with C the
  covariance of the decoder's means (Poole et al. 2019, Cover and Thomas 2006).

    python analysis/information_bottleneck.py
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from torch import Tensor

from pyro_bvae import BetaVAE, Decoder, datasets, decompose_kl, sweep
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

RESULTS = Path(__file__).parent / "results" / "information_bottleneck"
BETAS, SEEDS = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 4.0, 6.0, 10.0, 30.0), (0, 1, 2)
LATENTS, FEATURES, HIDDEN, SCALE = 10, 64, 128, 0.3
EPOCHS, QUICK_EPOCHS = 150, 30
CODES, ROWS, POOL = (
    16,
    1000,
    20_000,
)  # draws for the classifier; reconstructions scored; latents that each is scored at

Row = dict[str, str]


class Between(NamedTuple):
    """Bounds of an information in nats, and the standard error of the lower one."""

    low: float
    high: float
    error: float


def untrained(seed: int) -> BetaVAE:
    """Return the untrained model of a seed."""
    torch.manual_seed(seed)
    decoder = Decoder(MLP(LATENTS, FEATURES, hidden=(HIDDEN,)), NormalLikelihood(SCALE))
    return BetaVAE(
        NormalPrior(LATENTS), decoder, NormalPosterior(MLP(FEATURES, 2 * LATENTS, hidden=(HIDDEN,)))
    )


def about_data(vae: BetaVAE, x: Tensor) -> Between:
    """Return I(x; z), between that of the empirical distribution and the rate."""
    results = decompose_kl(vae.model, vae.guide, x)
    return Between(
        results.mutual_information.value,
        results.rate.value,
        results.mutual_information.standard_error,
    )


def about_labels(codes: Tensor, labels: Tensor, held_out: Tensor, truth: Tensor) -> Between:
    r"""Return I(z; y), at least :math:`H(y) + \mathbb{E} \log r(y \mid z)` for any classifier r.

    Args:
        codes: Those that the classifier is fitted to, ``(K, N, L)``.
        labels: Their labels, ``(N,)``.
        held_out: Those that it is scored on, ``(K, M, L)``.
        truth: Their labels, ``(M,)``.
    """
    classifier = make_pipeline(
        StandardScaler(),
        PolynomialFeatures(2, include_bias=False),
        LogisticRegression(C=0.01, max_iter=300),
    )
    classifier.fit(codes.flatten(0, 1).numpy(), labels.repeat(len(codes)).numpy())
    log_prob = torch.from_numpy(classifier.predict_log_proba(held_out.flatten(0, 1).numpy()))
    own = (
        log_prob[torch.arange(len(log_prob)), truth.repeat(len(held_out))]
        .reshape(len(held_out), -1)
        .mean(0)
    )
    shares = torch.bincount(truth).double() / len(truth)
    surprise = -shares.log()[truth]  # whose mean is H(y)
    gained = surprise + own
    return Between(
        float(gained.mean()), float(surprise.mean()), float(gained.std()) / math.sqrt(len(gained))
    )


@torch.no_grad()
def about_reconstructions(vae: BetaVAE, x: Tensor) -> Between:
    """Return I(z; x̂) with z of the aggregate over x and x̂ a draw from the likelihood."""
    torch.manual_seed(0)
    z = vae.encoder(x[torch.randint(len(x), (POOL,))]).sample()
    means = vae.decoder(z).mean.double()
    drawn = means[:ROWS] + SCALE * torch.randn(ROWS, FEATURES, dtype=torch.double)
    scores = -torch.cdist(drawn, means).square() / (2 * SCALE**2)
    own = scores.diagonal().clone()
    low = own - scores.logsumexp(1) + math.log(POOL)
    scores.diagonal().fill_(-math.inf)
    others = float((own - scores.logsumexp(1)).mean()) + math.log(POOL - 1)
    channel = torch.eye(FEATURES, dtype=torch.double) + torch.cov(means.T) / SCALE**2
    high = min(others, 0.5 * float(torch.linalg.slogdet(channel)[1]))
    return Between(float(low.mean()), high, float(low.std()) / math.sqrt(ROWS))


@torch.no_grad()
def measure(vae: BetaVAE, splits: datasets.Splits, beta: float, seed: int) -> Row:
    """Return the row of one model."""
    train, test = splits.train, splits.test
    assert train.labels is not None
    assert test.labels is not None
    torch.manual_seed(seed)
    codes = [vae.encoder(part.x).sample((CODES,)) for part in (train, test)]
    parts = {
        "x": about_data(vae, test.x),
        "y": about_labels(codes[0], train.labels, codes[1], test.labels),
        "reconstruction": about_reconstructions(vae, test.x),
    }
    columns = {
        f"{name}_{end}": f"{getattr(part, end):.3f}"
        for name, part in parts.items()
        for end in ("low", "high", "error")
    }
    return {"beta": f"{beta:g}", "seed": str(seed), **columns}


def principal_components(splits: datasets.Splits) -> Between:
    """Return what the same classifier finds in as many principal components as there are latents."""
    train, test = splits.train, splits.test
    assert train.labels is not None
    assert test.labels is not None
    centre = train.x.mean(0)
    directions = torch.linalg.svd(train.x - centre, full_matrices=False).Vh[:LATENTS].T
    codes = [((part.x - centre) @ directions).expand(CODES, -1, -1) for part in (train, test)]
    return about_labels(codes[0], train.labels, codes[1], test.labels)


def over_seeds(rows: list[Row], name: str) -> list[tuple[float, float]]:
    """Return mean and error of a column for each β.

    The spread of seeds, and where there is one that over the data.
    """
    results = []
    for beta in BETAS:
        some = [row for row in rows if float(row["beta"]) == beta]
        values = torch.tensor([float(row[name]) for row in some], dtype=torch.double)
        error = name.replace("_low", "_error")
        within = (
            sum(float(row[error]) for row in some) / len(some) if name.endswith("_low") else 0.0
        )
        results.append(
            (float(values.mean()), math.hypot(within, float(values.std()) / math.sqrt(len(values))))
        )
    return results


def reading(rows: list[Row], components: Between, num_held_out: int) -> list[str]:
    """Say what the table shows."""
    rates, informations = over_seeds(rows, "x_high"), over_seeds(rows, "x_low")
    labels, again = over_seeds(rows, "y_low"), over_seeds(rows, "reconstruction_low")
    entropy = float(rows[0]["y_high"])
    best_again = max(range(len(BETAS)), key=lambda index: again[index][0])
    best = max(range(len(BETAS)), key=lambda index: labels[index][0])
    kept = max(i for i in range(len(BETAS)) if labels[i][0] >= 0.9 * labels[best][0])
    falls = all(later[0] <= earlier[0] + 0.01 for earlier, later in itertools.pairwise(rates))
    (first, first_error), (most, most_error) = labels[0], labels[best]
    purest = max(range(len(BETAS)), key=lambda index: labels[index][0] / rates[index][0])
    ahead = (most - first) / math.hypot(first_error, most_error)
    return [
        f"The rate {'falls with every β' if falls else 'does not fall with every β'}, from "
        f"{rates[0][0]:.2f} to"
        f" {rates[-1][0]:.2f} nats; the empirical I(x; z) over {num_held_out} held-out data, at "
        f"most"
        f" {math.log(num_held_out):.2f}, from {informations[0][0]:.2f} to "
        f"{informations[-1][0]:.2f}.",
        f"I(z; y) is at least {first:.3f} ± {first_error:.3f} of {entropy:.3f} nats at β = "
        f"{BETAS[0]:g},"
        f" {most:.3f} ± {most_error:.3f} at its best, β = {BETAS[best]:g}, and {labels[-1][0]:.3f} "
        f"±"
        f" {labels[-1][1]:.3f} at β = {BETAS[-1]:g}; {LATENTS} principal components: "
        f"{components.low:.3f} ±"
        f" {components.error:.3f}.",
        f"From β = {BETAS[0]:g} to {BETAS[kept]:g} the rate falls by "
        f"{1 - rates[kept][0] / rates[0][0]:.0%} and the"
        f" labels keep {labels[kept][0] / most:.0%} of the best: what the bottleneck drops first is"
        f" {'not' if rates[kept][0] < 0.5 * rates[0][0] else 'also'} what tells the digits apart.",
        f"I(z; x̂) is at least {again[0][0]:.2f} nats at β = {BETAS[0]:g} (the bound ends at "
        f"{math.log(POOL):.2f}),"
        f" {again[BETAS.index(1.0)][0]:.2f} at β = 1, {again[-1][0]:.2f} at β = {BETAS[-1]:g}. It "
        f"is of z as drawn, the"
        f" guide's noise and all: at β = 4 {again[BETAS.index(4.0)][0]:.2f} nats, where z holds at "
        f"most"
        f" {rates[BETAS.index(4.0)][0]:.2f} of x. The decoder passes on more than the encoder took "
        f"in;"
        f" the most is at β = {BETAS[best_again]:g}.",
        f"That a tighter bottleneck leaves more of what matters in what it leaves is"
        f" {'' if purest else 'not '}borne out: the labels are at least {first / rates[0][0]:.0%} "
        f"of the rate at"
        f" β = {BETAS[0]:g},"
        f" {labels[BETAS.index(1.0)][0] / rates[BETAS.index(1.0)][0]:.0%} at β = 1 and"
        f" {labels[purest][0] / rates[purest][0]:.0%} at β = {BETAS[purest]:g}.",
        f"That it helps a classifier, I(z; y) larger at some tighter β than at β = {BETAS[0]:g}, is"
        f" {'borne out' if ahead > 3 else 'not borne out'}: the best is"
        f" {f'{ahead:.1f} standard errors ahead' if best else 'the loosest'}. The bounds of one "
        f"classifier are"
        " compared, not the informations themselves; one below 0 says nothing.",
    ]


def draw(figure: Figure, rows: list[Row], components: Between) -> None:
    """Draw both planes, with a point for each β between its bounds."""
    columns = ("x_low", "x_high", "y_low", "reconstruction_low", "reconstruction_high")
    low, high, labels, *again = (over_seeds(rows, name) for name in columns)
    most = BETAS[max(range(len(BETAS)), key=lambda index: again[0][index][0])]
    axes = figure.subplots(1, 2)
    colours = matplotlib.colormaps["viridis"](torch.linspace(0, 0.95, len(BETAS)).numpy())
    for index, (beta, colour) in enumerate(zip(BETAS, colours, strict=True)):
        ends = [low[index][0], high[index][0]]
        for panel, bottom, top in ((axes[0], labels, labels), (axes[1], *again)):
            y = [bottom[index][0], top[index][0]]
            panel.plot(
                ends, [y[0]] * 2, "-", color=colour, linewidth=3, alpha=0.5, solid_capstyle="butt"
            )
            panel.plot(
                [ends[1]] * 2, y, "-", color=colour, linewidth=3, alpha=0.5, solid_capstyle="butt"
            )
            panel.plot(ends[1], y[0], "o", color=colour, label=f"β = {beta:g}")
        axes[0].errorbar(
            ends[1], labels[index][0], yerr=1.96 * labels[index][1], color=colour, capsize=2
        )
        if 0.1 < ends[1] < 10:  # the others crowd
            axes[0].annotate(
                f"{beta:g}",
                (ends[1], labels[index][0]),
                (8, -3),
                textcoords="offset points",
                fontsize=8,
            )
    entropy = float(rows[0]["y_high"])
    axes[0].axhline(entropy, color="0.4", linestyle="--", linewidth=1)
    axes[0].annotate(
        "H(y): all there is to know", (0.02, entropy - 0.02), va="top", fontsize=8, color="0.3"
    )
    axes[0].axhline(components.low, color="0.4", linestyle=":", linewidth=1)
    axes[0].annotate(
        f"{LATENTS} principal components",
        (0.02, components.low - 0.02),
        va="top",
        fontsize=8,
        color="0.3",
    )
    axes[0].set_ylabel("I(z; y), nats: classifier bound")
    axes[0].set_title("The labels outlast most of the rate", loc="left", fontsize=10)
    axes[1].set_ylabel("I(z; x̂), nats: between its bounds")
    axes[1].set_title(f"Reconstructions: most at β = {most:g}", loc="left", fontsize=10)
    axes[1].legend(frameon=False, fontsize=8)
    for panel in axes:
        panel.set_xlabel("I(x; z), nats: from the empirical one to the rate (dot)")
        panel.set_xscale("symlog", linthresh=1)
        panel.set_xlim(-0.05, 60)
        panel.set_xticks([0, 1, 3, 10, 30], ["0", "1", "3", "10", "30"])
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "The information plane of digits over β (tight bottleneck on the left)", fontweight="bold"
    )


def main(epochs: int) -> None:
    """Write the table and the figure, and say what they show."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    splits = datasets.digits(validation=0, test=0.5)
    models = sweep(
        untrained,
        splits.train,
        betas=BETAS,
        seeds=SEEDS,
        epochs=epochs,
        batch_size=64,
        progress=False,
    )
    rows = []
    for run in models:
        rows.append(measure(run.vae, splits, run.beta, run.seed))
        print(rows[-1], flush=True)
    with (RESULTS / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    components = principal_components(splits)
    lines = reading(rows, components, len(splits.test.x))
    (RESULTS / "reading.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    figure = Figure((11, 4.8), layout="constrained")
    draw(figure, rows, components)
    figure.savefig(RESULTS / "figure.png", dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_EPOCHS} epochs instead of {EPOCHS}"
    )
    main(QUICK_EPOCHS if parser.parse_args().quick else EPOCHS)
