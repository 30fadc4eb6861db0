"""What does β do to disentanglement on sprites, and how wide are the seeds beside it?

Sprites of 64 pixels with all five factors free, ten latents, β from 1 to 16 and three seeds of each
(after Higgins et al. 2017 and Locatello et al. 2019): convolutional networks, and perceptrons with
about as many weights, for the same steps. Every score of the house with its interval and beside its
nulls, UDR, active units and the bound; what each latent of the best model carries, and its
traversals. How much of a score's spread is β and how much the seed is a one-way analysis of
variance.

A third kind is weakly supervised. A few hundred images bring three of their factors, which are
further features of x: each is normal about an affine map of one latent of its own, and missing
everywhere else. It is the same `BetaVAE` with a longer decoder and ``missing=True``; its encoder
sees pixels alone.

    python analysis/disentanglement.py              # 64 pixels, two processes of one thread
    python analysis/disentanglement.py --size 32    # the same at 32 pixels, its own results

DCI takes small forests here, not the reference's boosting: its scores compare with each other only.
Each trained model and its scores are kept in the folder ``--scratch``, so that a run that was
stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import f, spearmanr, t
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_bvae import BetaVAE, Decoder, datasets, sweep
from pyro_bvae.core.atomic_files import atomic_write
from pyro_bvae.datasets import SPRITE_FACTORS, Dataset
from pyro_bvae.evaluation import elbo_parts, kl_per_dimension, read_latents
from pyro_bvae.evaluation.disentanglement import (
    FAST_METRICS,
    dci,
    disentanglement,
    unsupervised_disentanglement_ranking,
)
from pyro_bvae.latents import traverse
from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks import MLP, ConvolutionalDecoder, ConvolutionalEncoder
from pyro_bvae.plots import latent_reading, traversal_grid
from pyro_bvae.plots.style import BLUE, GREEN, GREY, ORANGE
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

RESULTS = Path(__file__).parent / "results" / "disentanglement"
BETAS, LATENTS, HIDDEN, WIDTHS = (1.0, 2.0, 4.0, 8.0, 16.0), 10, 128, (180, 180)
CONVOLUTIONAL, PERCEPTRON, WEAK = "convolutional", "perceptron", "weakly supervised"
TIED, NUM_LABELLED, LABEL_SCALE, WEAK_BETAS = ("scale", "x", "y"), 500, 0.1, (1.0, 4.0)
NUM_BOUND, NUM_NULLS, LEAST_KL = 1000, 2, 0.1
FOREST = RandomForestClassifier(n_estimators=10, max_depth=8, max_features=None)
EXTRAS = ("ELBO", "rate", "distortion", "active units")
STYLES = {
    CONVOLUTIONAL: (BLUE, "o", 1.0),
    PERCEPTRON: (ORANGE, "s", 1.12),
    WEAK: (GREEN, "D", 0.88),
}
NULLS = {"rotated": "#CC6677", "untrained": "#B9A3D6", "shuffled": GREY}
DATUM = 5
METRICS: tuple[Any, ...] = (*FAST_METRICS, partial(dci, predictor=FOREST))


@dataclass(frozen=True)
class Setting:
    """Data and training of the study."""

    size: int = 64
    num_train: int = 20_000
    num_test: int = 3000
    epochs: int = 5
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        return self.size**2

    @cached_property
    def splits(self) -> datasets.Splits:
        """The sprites."""
        return datasets.sprites(self.num_train, 0, self.num_test, size=self.size)

    @cached_property
    def models(self) -> list[tuple[str, float, int]]:
        """Kind, β and seed of each model."""
        kinds = {CONVOLUTIONAL: BETAS, PERCEPTRON: BETAS, WEAK: WEAK_BETAS}
        return [
            (kind, beta, seed)
            for seed in self.seeds
            for kind, betas in kinds.items()
            for beta in betas
        ]

    def data(self, kind: str, *, train: bool) -> Dataset:
        """Return the data of a kind of model.

        The weakly supervised one's hold three factors, most of them NaN.
        """
        data = self.splits.train if train else self.splits.test
        assert isinstance(data, Dataset)
        return with_factors(data, NUM_LABELLED if train else 0) if kind == WEAK else data

    def make(self, kind: str) -> Callable[[int], BetaVAE]:
        """Return what builds an untrained model; the sweep seeds its weights."""

        def build(_: int) -> BetaVAE:
            if kind == PERCEPTRON:
                read, draw = (
                    MLP(self.pixels, 2 * LATENTS, WIDTHS),
                    MLP(LATENTS, self.pixels, WIDTHS),
                )
                return assembled(read, draw, BernoulliLikelihood())
            image = (1, self.size, self.size)
            eye = ConvolutionalEncoder(image, 2 * LATENTS, hidden=HIDDEN)
            hand = ConvolutionalDecoder(LATENTS, image, hidden=HIDDEN)
            if kind == CONVOLUTIONAL:
                return assembled(eye, hand, BernoulliLikelihood())
            likelihood = PixelsAndFactors(self.pixels)
            return assembled(
                PixelsOnly(eye, len(TIED)), WithReadout(hand, len(TIED)), likelihood, missing=True
            )

        return build


def assembled(
    read: nn.Module, draw: nn.Module, likelihood: nn.Module, *, missing: bool = False
) -> BetaVAE:
    """Return a model of its networks and its likelihood."""
    return BetaVAE(
        NormalPrior(LATENTS), Decoder(draw, likelihood), NormalPosterior(read), missing=missing
    )


# -- weak supervision: three factors among the features
# ---------------------------------------------------------------


def with_factors(data: Dataset, num_labelled: int) -> Dataset:
    """Return data with the tied factors, of mean 0 and variance 1, as last features.

    NaN but for the first images.
    """
    assert data.factors is not None
    columns = [SPRITE_FACTORS.names.index(name) for name in TIED]
    sizes = torch.tensor([SPRITE_FACTORS.sizes[column] for column in columns])
    known = (data.factors[:, columns] - (sizes - 1) / 2) / ((sizes**2 - 1) / 12).sqrt()
    known[num_labelled:] = torch.nan
    return replace(data, x=torch.cat([data.x, known], 1), image_shape=None, missing=True)


class PixelsOnly(nn.Module):
    """A network that does not look at the last features."""

    def __init__(self, network: ConvolutionalEncoder, num_hidden: int) -> None:
        super().__init__()
        self.network, self.num_hidden = network, num_hidden
        self.in_features, self.out_features = network.in_features + num_hidden, network.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, D + K)`` to ``(*, F)``."""
        seen: Tensor = self.network(x[..., : -self.num_hidden])
        return seen


class WithReadout(nn.Module):
    """A network, and after its output an affine map of each of the first K latents by itself."""

    def __init__(self, network: ConvolutionalDecoder, num_tied: int) -> None:
        super().__init__()
        self.network, self.num_tied = network, num_tied
        self.in_features, self.out_features = network.in_features, network.out_features + num_tied
        self.gain, self.shift = (
            nn.Parameter(torch.ones(num_tied)),
            nn.Parameter(torch.zeros(num_tied)),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(*, L)`` to ``(*, D + K)``."""
        return torch.cat([self.network(z), self.gain * z[..., : self.num_tied] + self.shift], -1)


class PixelsAndFactors(nn.Module):
    """A likelihood: Bernoulli pixels, and normal factors after them."""

    support = constraints.real

    def __init__(self, num_pixels: int) -> None:
        super().__init__()
        self.num_pixels = num_pixels

    def forward(self, parameters: Tensor) -> dist.Distribution:
        """Return :math:`p(x | z)`."""
        pixels = BernoulliLikelihood()(parameters[..., : self.num_pixels]).base_dist
        return SideBySide(
            pixels, dist.Normal(parameters[..., self.num_pixels :], LABEL_SCALE)
        ).to_event(1)


class SideBySide(dist.TorchDistribution):
    """Features of one family, and then of another, each independent of all others."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real

    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second, self.split = first, second, first.batch_shape[-1]
        shape = (*first.batch_shape[:-1], self.split + second.batch_shape[-1])
        super().__init__(torch.Size(shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each feature."""
        parts = (
            self.first.log_prob(value[..., : self.split]),
            self.second.log_prob(value[..., self.split :]),
        )
        return torch.cat(parts, -1)

    @property
    def mean(self) -> Tensor:
        """The mean of each feature."""
        return torch.cat([self.first.mean, self.second.mean], -1)


# -- training and measuring, each model once
# --------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """One model, and what was measured of it."""

    kind: str
    beta: float
    seed: int
    vae: BetaVAE
    measured: dict[str, Any]

    def score(self, name: str) -> float:
        """Return a measurement."""
        return float(self.measured["scores"][name]["value"])

    def error(self, name: str) -> float:
        """Return its standard error over data; NaN where there is none."""
        error = self.measured["scores"][name]["standard_error"]
        return math.nan if error is None else float(error)

    def nulls(self, name: str) -> dict[str, float]:
        """Return what its nulls measure."""
        return dict(self.measured["scores"][name].get("nulls", {}))


def obtain(setting: Setting, kind: str, beta: float, seed: int, scratch: Path) -> Found:
    """Return a model with its measurements.

    Those of the scratch folder, or trained and measured now.
    """
    make, name = setting.make(kind), f"{kind.replace(' ', '-')}-beta{beta:g}-seed{seed}"
    weights, numbers = scratch / f"{name}.pt", scratch / f"{name}.json"
    if weights.exists():
        vae = make(seed)
        vae.load_state_dict(torch.load(weights, weights_only=True))
    else:
        options: dict[str, Any] = {
            "epochs": setting.epochs,
            "batch_size": 32,
            "learning_rate": 2e-3,
        }
        train = setting.data(kind, train=True)
        (run,) = sweep(make, train, betas=[beta], seeds=[seed], progress=False, **options)
        vae = run.vae
        with atomic_write(weights, "wb") as stream:
            torch.save(vae.state_dict(), stream)
    if not numbers.exists():
        measured = measure(vae, setting.data(kind, train=False))
        with atomic_write(numbers) as stream:
            json.dump(measured, stream, indent=1)
    return Found(kind, beta, seed, vae, json.loads(numbers.read_text(encoding="utf-8")))


def measure(vae: BetaVAE, test: Dataset) -> dict[str, Any]:
    """Return every score with its nulls, and what else there is to say of a model."""
    scores = disentanglement(vae, test, metrics=METRICS, num_nulls=NUM_NULLS).to_dict()
    parts = elbo_parts(vae.model, vae.guide, test.x[:NUM_BOUND], num_samples=4)
    kl = kl_per_dimension(vae.model, vae.guide, test.x)
    assert kl is not None
    for name, part in (
        ("ELBO", parts.elbo),
        ("rate", parts.rate),
        ("distortion", parts.distortion),
    ):
        scores[name] = {"value": part.value, "standard_error": part.standard_error}
    scores["active units"] = {"value": int(kl.active.sum()), "standard_error": None}
    return {"scores": scores, "weights": sum(parameter.numel() for parameter in vae.parameters())}


def rank(setting: Setting, results: list[Found]) -> None:
    """Add UDR, which takes all seeds of a kind and β, to what was measured."""
    for kind in (CONVOLUTIONAL, PERCEPTRON, WEAK):
        own = of(results, kind)
        ranking = unsupervised_disentanglement_ranking(
            own, setting.data(kind, train=False)[:NUM_BOUND]
        )
        for one, score in zip(own, ranking.scores, strict=True):
            one.measured["scores"]["UDR"] = score.to_dict()


# -- what the numbers say
# ---------------------------------------------------------------------------------------------


def of(results: list[Found], kind: str, beta: float | None = None) -> list[Found]:
    """Return the models of a kind, and of a β."""
    return [one for one in results if one.kind == kind and beta in (None, one.beta)]


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return float(np.mean(values))


@dataclass(frozen=True)
class Spread:
    r"""How a score varies over the convolutional models.

    Attributes:
        means: Its mean at each β.
        share: How much of its variance is β's, :math:`\omega^2` of a one-way analysis of variance,
            at least 0.
        p_value: Of the hypothesis that β does nothing (F test).
        seed: Standard deviation over seeds at a β.
        data: Standard error over data of a single model; NaN where it has none.
        change: From the lowest to the highest β.
        change_error: Half of its 95% interval, from the spread over seeds.
    """

    means: tuple[float, ...]
    share: float
    p_value: float
    seed: float
    data: float
    change: float
    change_error: float

    @classmethod
    def over(cls, models: list[Found], name: str) -> Spread:
        """Take the variance of a score apart."""
        groups = np.array(
            [[one.score(name) for one in models if one.beta == beta] for beta in BETAS]
        )
        (num_groups, size), centres = groups.shape, groups.mean(1)
        free = num_groups * (size - 1)
        within = float(((groups - centres[:, None]) ** 2).sum() / free)
        between = float(size * ((centres - centres.mean()) ** 2).sum())
        whole = between + free * within
        share = (between - (num_groups - 1) * within) / (whole + within) if whole else 0.0
        ratio = between / (num_groups - 1) / within if within else math.inf if between else 0.0
        half = float(t.ppf(0.975, free)) * math.sqrt(2 * within / size)
        data = math.sqrt(mean([one.error(name) ** 2 for one in models]))
        p_value = float(f.sf(ratio, num_groups - 1, free))
        change = float(centres[-1] - centres[0])
        return cls(tuple(centres), max(0.0, share), p_value, math.sqrt(within), data, change, half)

    @property
    def moved(self) -> bool:
        """Whether β explains more than half, and more than chance would."""
        return self.share > 0.5 and self.p_value < 0.05


def paired(results: list[Found], name: str, first: str, second: str) -> tuple[float, float, str]:
    """Return how much higher the second kind scores at the same β and seed, half its 95% interval, and words."""
    known = {(one.beta, one.seed): one.score(name) for one in of(results, first)}
    rises = [one.score(name) - known[one.beta, one.seed] for one in of(results, second)]
    half = float(t.ppf(0.975, len(rises) - 1) * np.std(rises, ddof=1) / math.sqrt(len(rises)))
    value = mean(rises)
    return value, half, "higher" if value > half else "lower" if value < -half else "not told apart"


def scores_of(results: list[Found]) -> list[str]:
    """Return the names of the scores that have nulls, and UDR."""
    names = results[0].measured["scores"]
    return [name for name in names if names[name].get("nulls")] + ["UDR"]


def above_nulls(models: list[Found], name: str) -> int:
    """Return how many models' intervals are above all their nulls."""
    return sum(
        one.score(name) - 1.96 * one.error(name) > max(one.nulls(name).values()) for one in models
    )


def best(models: list[Found], name: str = "MIG") -> Found:
    """Return the model with the highest score."""
    return max(models, key=lambda one: one.score(name))


def listed(names: Sequence[str]) -> str:
    """Return names as a list in words."""
    return ", ".join(names) or "none"


def reading(setting: Setting, results: list[Found]) -> list[str]:
    """Say what the tables show."""
    own, spreads, names = of(results, CONVOLUTIONAL), spreads_of(results), scores_of(results)
    steps = setting.epochs * math.ceil(setting.num_train / 32)
    betas = ", ".join(f"{beta:g}" for beta in BETAS)
    lines = [
        f"Setting: {setting.num_train:,} sprites of {setting.size} pixels, {steps:,} steps of 32 "
        f"(the field trains for"
        f" about 300,000 of 64), {len(setting.seeds)} seeds; scores over {setting.num_test:,} "
        f"other sprites.",
        f"The bound, convolutional, β = {betas}: "
        + "; ".join(
            f"{name} " + ", ".join(f"{v:.1f}" for v in spreads[name].means) for name in EXTRAS
        )
        + ".",
    ]
    for name in names:
        spread = spreads[name]
        listed_means = ", ".join(f"{value:.2f}" for value in spread.means)
        data = f", data ± {spread.data:.3f}" if math.isfinite(spread.data) and name != "UDR" else ""
        shared = "; models of one β share its pairs, so that p is too small"
        nulls = (
            shared
            if name == "UDR"
            else f"; above all nulls: {above_nulls(own, name)} of {len(own)} models"
        )
        lines.append(
            f"{name}: {listed_means}. β explains {100 * spread.share:.0f}% of its variance over "
            f"models (p ="
            f" {spread.p_value:.2g}); seeds ± {spread.seed:.3f}{data}; β = {BETAS[0]:g} to "
            f"{BETAS[-1]:g}:"
            f" {spread.change:+.2f} ± {spread.change_error:.2f}{nulls}."
        )
    lines += [compared(results, CONVOLUTIONAL, PERCEPTRON), compared(results, CONVOLUTIONAL, WEAK)]
    return [
        *lines,
        labels_reading(results),
        ties_reading(setting, results),
        udr_reading(own, names),
        verdict(results),
    ]


def spreads_of(results: list[Found]) -> dict[str, Spread]:
    """Return the spread of each score, and of the bound's parts, over convolutional models."""
    return {
        name: Spread.over(of(results, CONVOLUTIONAL), name)
        for name in (*scores_of(results), *EXTRAS)
    }


def compared(results: list[Found], first: str, second: str) -> str:
    """Say how one kind scores beside another at the same β and seeds."""
    parts = []
    for name in ("ELBO", *scores_of(results)):
        value, half, word = paired(results, name, first, second)
        digits = 1 if name == "ELBO" else 2
        parts.append(f"{name} {value:+.{digits}f} ± {half:.{digits}f} ({word})")
    num, weights = (
        len(of(results, second)),
        [of(results, kind)[0].measured["weights"] for kind in (first, second)],
    )
    sizes = f"{weights[1]:,} weights against {weights[0]:,}"
    return (
        f"{second.capitalize()} less {first} ({num} pairs of the same β and seed; {sizes}): "
        f"{'; '.join(parts)}."
    )


def labels_reading(results: list[Found]) -> str:
    """Say what weak supervision did to the gap of each factor, tied or not."""
    parts = []
    for factor in SPRITE_FACTORS.names:
        before, after = (
            mean(
                [
                    one.measured["scores"]["MIG"]["parts"][factor]
                    for beta in WEAK_BETAS
                    for one in of(results, kind, beta)
                ]
            )
            for kind in (CONVOLUTIONAL, WEAK)
        )
        parts.append(
            f"{factor}{'' if factor in TIED else ' (not labelled)'} {before:.2f} to {after:.2f}"
        )
    betas = " and ".join(f"{beta:g}" for beta in WEAK_BETAS)
    return (
        f"{NUM_LABELLED} labelled images, β = {betas}: the mutual information gap goes, of "
        f"{'; '.join(parts)}."
    )


def ties_reading(setting: Setting, results: list[Found]) -> str:
    """Say in how many models the image is drawn from the latent that a factor is tied to."""
    models, test = of(results, WEAK), setting.data(WEAK, train=False)
    used = torch.zeros(len(TIED))
    for one in models:
        kl = kl_per_dimension(one.vae.model, one.vae.guide, test.x)
        assert kl is not None and kl.values is not None
        used += kl.values[: len(TIED)] > LEAST_KL
    counts = ", ".join(f"{name} {int(count)}" for name, count in zip(TIED, used, strict=True))
    return (
        f"A tied latent need not be used for the image, as the readout counts on few data: of "
        f"{len(models)} weakly"
        f" supervised models it has a KL above {LEAST_KL:g} nats for {counts}."
    )


def udr_reading(own: list[Found], names: list[str]) -> str:
    """Say whether UDR, which sees no factor, would have found the models that score well."""
    ranks = {
        name: float(
            spearmanr([one.score("UDR") for one in own], [one.score(name) for one in own]).statistic
        )
        for name in names
        if name != "UDR"
    }
    limit = float(t.ppf(0.975, len(own) - 2))
    limit /= math.sqrt(len(own) - 2 + limit**2)
    told = [f"{name} {rank:+.2f}" for name, rank in ranks.items() if abs(rank) > limit]
    pick, top = best(own, "UDR"), best(own)
    return (
        f"UDR's rank correlation with the scores over {len(own)} models is told from 0 for: "
        f"{listed(told)}. It picks"
        f" β = {pick.beta:g}, seed {pick.seed} (MIG {pick.score('MIG'):.2f}); the highest MIG is"
        f" {top.score('MIG'):.2f}, at β = {top.beta:g}, seed {top.seed}."
    )


def verdict(results: list[Found]) -> str:
    """Say what β did, and how wide the seeds are beside it."""
    spreads, names = spreads_of(results), scores_of(results)
    moved = [name for name in names if spreads[name].moved]
    up = [name for name in names if spreads[name].change > spreads[name].change_error]
    down = [name for name in names if spreads[name].change < -spreads[name].change_error]
    rest = [name for name in names if name not in moved]
    weak = [name for name in names if paired(results, name, CONVOLUTIONAL, WEAK)[2] == "higher"]
    ahead = [
        name for name in names if paired(results, name, CONVOLUTIONAL, PERCEPTRON)[2] == "lower"
    ]
    behind = [
        name for name in names if paired(results, name, CONVOLUTIONAL, PERCEPTRON)[2] == "higher"
    ]
    bound_behind, free = (
        paired(results, "ELBO", CONVOLUTIONAL, kind) for kind in (PERCEPTRON, WEAK)
    )
    own = of(results, CONVOLUTIONAL)
    real = [name for name in names if name != "UDR" and 2 * above_nulls(own, name) > len(own)]
    return (
        f"Verdict: β explains more than half of the variance of {len(moved)} of {len(names)} "
        f"scores ({listed(moved)});"
        f" of the others seeds are the larger part ({listed(rest)}). From β = {BETAS[0]:g} to "
        f"{BETAS[-1]:g} (intervals"
        f" not adjusted for {len(names)} scores), higher: {listed(up)}; lower: {listed(down)}. "
        f"With another seed a"
        f" score moves by {seeds_beside_data(results):.0f} times its error over data (median). "
        f"Scores that most models"
        f" have above all their nulls: {listed(real)}. That convolutions are the better network is"
        f" {'' if bound_behind[2] == 'lower' else 'not '}borne out for the bound "
        f"({-bound_behind[0]:.0f} nats, for the"
        f" same steps, not the same time); scores higher than the perceptron's: {listed(ahead)}; "
        f"lower:"
        f" {listed(behind)}."
        f" {NUM_LABELLED} labels raise: {listed(weak)}; the bound is {free[2]} ({free[0]:+.1f} ± "
        f"{free[1]:.1f} nats)."
    )


def seeds_beside_data(results: list[Found]) -> float:
    """Return the median over scores of the spread over seeds as a multiple of the error over data."""
    spreads = spreads_of(results)
    return float(
        np.median(
            [
                spreads[name].seed / spreads[name].data
                for name in scores_of(results)
                if name != "UDR"
            ]
        )
    )


# -- tables and figures
# -----------------------------------------------------------------------------------------------


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Write a table."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def score_rows(results: list[Found]) -> list[dict[str, str]]:
    """Return a row for each model and score."""
    rows = []
    for one in results:
        for name in (*scores_of(results), *EXTRAS):
            error, nulls = one.error(name), one.nulls(name)
            row = {"kind": one.kind, "beta": f"{one.beta:g}", "seed": f"{one.seed}", "score": name}
            row |= {
                "value": f"{one.score(name):.4f}",
                "standard_error": f"{error:.4f}" if math.isfinite(error) else "",
            }
            rows.append(row | {null: f"{nulls[null]:.4f}" if nulls else "" for null in NULLS})
    return rows


def spread_rows(results: list[Found]) -> list[dict[str, str]]:
    """Return a row for each score: what is β's and what the seed's."""
    rows = []
    for name, spread in spreads_of(results).items():
        row = {"score": name} | {
            f"beta_{b:g}": f"{v:.4f}" for b, v in zip(BETAS, spread.means, strict=True)
        }
        row |= {"beta_explains": f"{spread.share:.3f}", "p_value": f"{spread.p_value:.2g}"}
        row |= {"over_seeds": f"{spread.seed:.4f}", "over_data": f"{spread.data:.4f}"}
        rows.append(
            row | {"change": f"{spread.change:.4f}", "change_95": f"{spread.change_error:.4f}"}
        )
    return rows


def draw_score(axes: Axes, results: list[Found], name: str, spread: Spread) -> None:
    """Draw a score against β.

    Each model with its interval, the mean over seeds, and the range of each null.
    """
    unsupervised = [one for one in results if one.kind != WEAK]
    for null, colour in NULLS.items() if unsupervised[0].nulls(name) else ():
        known = [
            [one.nulls(name)[null] for one in unsupervised if one.beta == beta] for beta in BETAS
        ]
        low, high = [min(values) for values in known], [max(values) for values in known]
        axes.fill_between(
            BETAS, low, high, color=colour, alpha=0.45, linewidth=0, label=f"null: {null}"
        )
    for kind, (colour, mark, shift) in STYLES.items():
        own = of(results, kind)
        betas = sorted({one.beta for one in own})
        centres = [mean([one.score(name) for one in of(own, kind, beta)]) for beta in betas]
        axes.plot([beta * shift for beta in betas], centres, color=colour, linewidth=2, zorder=3)
        for one in own:
            half = 1.96 * np.nan_to_num(one.error(name)) if name != "UDR" else 0.0
            place = one.beta * shift * (1 + 0.04 * (one.seed - 1))
            axes.errorbar(
                place,
                one.score(name),
                half,
                fmt=mark,
                color=colour,
                markersize=4.5,
                linewidth=1,
                zorder=4,
            )
        axes.plot([], [], f"{mark}-", color=colour, label=kind)
    axes.set_xscale("log", base=2)
    axes.set_xticks(BETAS, [f"{beta:g}" for beta in BETAS])
    label = name if name.startswith("β") else name[:1].upper() + name[1:]
    title = f"{label}: β {100 * spread.share:.0f}%, seeds {100 - 100 * spread.share:.0f}%"
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)


def draw(results: list[Found]) -> Figure:
    """Draw every score, the bound and the active units against β."""
    figure, spreads = Figure((15, 11), layout="constrained"), spreads_of(results)
    names = (*scores_of(results), "active units", "ELBO")
    grid = figure.subplots(3, 4)
    for axes, name in zip(grid.flat, names, strict=True):
        draw_score(axes, results, name, spreads[name])
    for axes in grid[-1]:
        axes.set_xlabel("β")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=11)
    own = scores_of(results)
    moved = sum(spreads[name].moved for name in own)
    figure.suptitle(
        f"β moves {moved} of {len(own)} scores more than the seed does; the seed moves a score by"
        f" {seeds_beside_data(results):.0f} times its error over data\n(each mark a model with its "
        f"95% interval; lines:"
        " means over seeds; titles: shares of the variance over convolutional models)",
        fontweight="bold",
    )
    return figure


def draw_model(setting: Setting, one: Found, results: Path, prefix: str) -> None:
    """Write the factor-by-latent heat map and the traversals of a model."""
    test = setting.data(one.kind, train=False)
    named: dict[str, Any] = {"factors": test.factors, "factor_names": test.factor_names}
    results = read_latents(one.vae.model, one.vae.guide, test.x, **named)
    latent_reading(results).savefig(results / f"{prefix}heat_map.png", dpi=130)
    moved = traverse(one.vae, test, datum=DATUM)
    moved = replace(moved, x=moved.x[..., : setting.pixels])
    around = f"a code (β = {one.beta:g}, seed {one.seed})"
    traversal_grid(moved, (setting.size, setting.size), around).savefig(
        results / f"{prefix}traversals.png", dpi=130
    )


def prepare(setting: Setting, scratch: Path, share: int, num_processes: int) -> None:
    """Train and measure a share of the models into the scratch folder, on one thread."""
    torch.set_num_threads(1)
    for kind, beta, seed in setting.models[share::num_processes]:
        results = obtain(setting, kind, beta, seed, scratch)
        print(kind, f"β = {beta:g}, seed {seed}:", f"MIG {results.score('MIG'):.3f}", flush=True)


def main(setting: Setting, scratch: Path, results: Path, num_processes: int) -> None:
    """Train, measure, and write tables, figures and reading."""
    for folder in (results, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn")) as pool:
        shares = range(num_processes)
        for _ in pool.map(partial(prepare, setting, scratch, num_processes=num_processes), shares):
            pass
    results = [obtain(setting, *model, scratch) for model in setting.models]
    rank(setting, results)
    write(results / "table.csv", score_rows(results))
    write(results / "spread.csv", spread_rows(results))
    lines = reading(setting, results)
    (results / "reading.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    draw(results).savefig(results / "figure.png", dpi=120)
    draw_model(setting, best(of(results, CONVOLUTIONAL)), results, "")
    draw_model(setting, best(of(results, WEAK)), results, "weak_")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="32 pixels, a tenth of the images, two epochs, two seeds",
    )
    parser.add_argument(
        "--size", type=int, default=64, help="width and height of the images: 64 or 32"
    )
    parser.add_argument(
        "--scratch", type=Path, help="folder of trained models (default: one for each setting)"
    )
    parser.add_argument(
        "--processes", type=int, default=2, help="how many train side by side, each on one thread"
    )
    options = parser.parse_args()
    chosen = Setting(size=options.size)
    chosen = Setting(32, 2000, epochs=2, seeds=(0, 1)) if options.quick else chosen
    folder = "quick" if options.quick else f"{chosen.size}"
    kept = options.scratch or Path("runs/disentanglement") / folder
    main(chosen, kept, RESULTS if folder == "64" else RESULTS / folder, options.processes)
