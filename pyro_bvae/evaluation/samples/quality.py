"""The quality of samples: likeness to data, coverage of data, and tests against data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import public
from pyro_bvae.evaluation.samples.features import (
    Features,
    LabelClassifier,
    PrincipalFeatures,
    Values,
    as_rows,
    sklearn_seed,
)
from pyro_bvae.evaluation.samples.two_sample import (
    expected_coverage,
    frechet_distance,
    neighbour_scores,
    two_sample_test,
)

# Rows whose features are taken together.
_BLOCK = 1024
Numbers = Mapping[str, float]


@dataclass(frozen=True)
class SampleScore:
    """A score of samples.

    Attributes:
        value: The score.
        standard_error: How far that of other samples and other data would lie.
        real: Its value, or its mean, for real data in place of the samples.
    """

    value: float
    standard_error: float
    real: float

    def to_dict(self) -> dict[str, float]:
        """Return the numbers for a JSON file."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.standard_error:.3f} (real data: {self.real:.3f})"


@dataclass(frozen=True, eq=False)
class LabelQuality:
    """Labels of samples by a classifier of the data's labels.

    Attributes:
        confident: Share of the samples of whose class it is sure.
        entropy: Mean entropy of its answer to one sample, in nats: low if samples are of one class
            each.
        class_entropy: Entropy of the classes over all samples, in nats: high if there are samples
            of every class.
        inception_score: exp(class entropy - entropy), from 1 to the number of classes (Salimans et
            al. 2016).
        imbalance: Total variation distance of the classes' shares among samples and data, from 0 to
            1; its value for real data is that of as many draws of the data's shares.
        classes: The labels, ``(C,)``.
        shares: Share of the samples that it takes for each class, ``(C,)``.
        real_shares: Share of each class in the data, ``(C,)``.
        accuracy: Share of real data, held out, whose class it finds.
    """

    confident: SampleScore
    entropy: SampleScore
    class_entropy: SampleScore
    inception_score: SampleScore
    imbalance: SampleScore
    classes: Tensor
    shares: Tensor
    real_shares: Tensor
    accuracy: float


@dataclass(frozen=True, eq=False)
class SampleQuality:
    """Scores of samples, each with its error and the value of real data.

    :func:`sample_quality` defines them.

    Attributes:
        precision: Share of the samples that lie among the data.
        recall: Share of the data that lie among the samples.
        density: How deep among the data the samples lie, relative to the data themselves; may pass
            1.
        coverage: Share of the data that have a sample near.
        frechet: Squared Fréchet distance, finite-sample bias included; so has that of real data.
        frechet_unbiased: The same without that bias, to first order; it may fall below 0 by its
            error.
        accuracy: Share of held-out rows that a classifier tells to be data or samples.
        p_value: Of that accuracy, if there were nothing to tell.
        labels: Scores by a classifier of labels, if there is one.
        num_real: Number of data.
        num_samples: Number of samples.
        neighbours: How many neighbours a ball holds.
    """

    precision: SampleScore
    recall: SampleScore
    density: SampleScore
    coverage: SampleScore
    frechet: SampleScore
    frechet_unbiased: SampleScore
    accuracy: SampleScore
    p_value: float
    labels: LabelQuality | None
    num_real: int
    num_samples: int
    neighbours: int

    @property
    def scores(self) -> dict[str, SampleScore]:
        """All scores by name, those of labels included."""
        parts = [vars(self), {} if self.labels is None else vars(self.labels)]
        return {
            name: part
            for fields in parts
            for name, part in fields.items()
            if isinstance(part, SampleScore)
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for a JSON file."""
        return {
            **{name: score.to_dict() for name, score in self.scores.items()},
            "p_value": self.p_value,
        }

    def __str__(self) -> str:
        lines = [f"{name.replace('_', ' '):<18}{score}" for name, score in self.scores.items()]
        head = (
            f"{self.num_samples} samples against {self.num_real} data, balls of {self.neighbours}"
            " neighbours"
        )
        return "\n".join(
            [
                head,
                *lines,
                f"{'p-value':<18}{self.p_value:.2g} that a classifier tells them by chance",
            ]
        )


@public
def sample_quality(
    real: Values,
    samples: Values,
    labels: Values | None = None,
    *,
    features: Features | None = None,
    classifier: LabelClassifier | None = None,
    critic: Any = None,
    neighbours: int = 5,
    num_splits: int = 20,
    confidence: float = 0.95,
    seed: int = 0,
) -> SampleQuality:
    r"""Score samples against data: neighbours, Fréchet distance and classifiers, no download.

    Neighbours and moments are those of the features; only the two-sample test looks at the rows
    themselves, so that a choice of features that were fitted to the data does not bias its p-value.
    Give data that no model was trained on: a model that has them by heart would score well on them.
    The mean of a decoder is no draw from it: the samples are scored as given.

    Errors are the spread of each score over random halves of data and samples, which is that of
    sets of full size (the delete-half jackknife, Shao and Wu 1989), and somewhat too large where
    samples are as good as data; resampling with replacement would make neighbours of copies. One
    half of the data against the other is the value of real data. The Fréchet distance of halves has
    twice the bias of the whole, by which the bias is known; p-value and error of the accuracy are
    those of the classifier as fitted.

    Args:
        real: The data, ``(N, D)`` or ``(N, ...)``.
        samples: The samples, ``(M, D)`` likewise; as many as data is best, since recall depends on
            their number.
        labels: Class of each datum, ``(N,)``: a :class:`LabelClassifier` is fitted to them, and
            scores the samples.
        features: From rows ``(B, D)`` to features ``(B, F)``, of a block at a time; None for the
            data's 32 leading principal components, whitened. A :class:`LabelClassifier` is such a
            map: its last hidden layer.
        classifier: In place of ``labels``, one that is fitted already, for many sets of samples.
        critic: The two-sample test's classifier, of scikit-learn's kind; None for a perceptron of
            one hidden layer.
        neighbours: Neighbours that a ball holds.
        num_splits: Random halves behind the errors.
        confidence: Probability of a class from which on the classifier is sure of it.
        seed: Seed of all randomness.

    Returns:
        The scores. References: Kynkäänniemi et al. 2019, Naeem et al. 2020, Heusel et al. 2017,
        Chong and Forsyth 2020 (the bias), Lopez-Paz and Oquab 2017, Salimans et al. 2016.

    Raises:
        InputError: if data or samples are not finite rows of one width, too few for halves of them
            to have the neighbours, or if labels, features or a number cannot be used.
    """
    rows = as_rows("real", real), as_rows("samples", samples)
    _check(*rows, neighbours, num_splits, confidence)
    if labels is not None and classifier is not None:
        raise InputError(
            "'labels' and 'classifier' were both given; a classifier that is fitted needs no labels"
        )
    if labels is not None:
        classifier = LabelClassifier(rows[0], labels, seed=seed)
    mapped = PrincipalFeatures(rows[0]) if features is None else features
    spaces = []
    for name, part in zip(("real", "samples"), rows, strict=True):
        blocks = [torch.as_tensor(mapped(block)).detach().cpu() for block in part.split(_BLOCK)]
        if sum(map(len, blocks)) != len(part):
            raise InputError(
                f"'features' must return one row for each of the {len(part)} of '{name}', got"
                f" {sum(map(len, blocks))}"
            )
        spaces.append(as_rows(f"features of {name}", torch.cat(blocks)))
    x, y = spaces
    test = two_sample_test(*rows, critic=critic, seed=seed)
    return SampleQuality(
        **_against_halves(x, y, neighbours, num_splits, seed),
        accuracy=SampleScore(test.accuracy, test.standard_error, 0.5),
        p_value=test.p_value,
        labels=None
        if classifier is None
        else _label_quality(classifier, rows[1], num_splits, confidence, seed),
        num_real=len(x),
        num_samples=len(y),
        neighbours=neighbours,
    )


def _check(
    real: Tensor, samples: Tensor, neighbours: int, num_splits: int, confidence: float
) -> None:
    check_count("neighbours", neighbours)
    if num_splits < 2:
        raise InputError(f"'num_splits' must be at least 2 to have a spread, got {num_splits}")
    if not 0 < confidence < 1:
        raise InputError(f"'confidence' must lie between 0 and 1, got {confidence}")
    if real.shape[1] != samples.shape[1]:
        raise InputError(
            f"'samples' must be of the {real.shape[1]} features of 'real', got {samples.shape[1]}"
        )
    least = max(2 * (neighbours + 1), 4)
    for name, rows in (("real", real), ("samples", samples)):
        if len(rows) < least:
            raise InputError(
                f"'{name}' must have at least {least} rows, for halves of them to have"
                f" {neighbours} neighbours, got {len(rows)}"
            )


def _against_halves(
    x: Tensor, y: Tensor, neighbours: int, num_splits: int, seed: int
) -> dict[str, SampleScore]:
    """Return the scores in a space of features, with their values on random halves."""
    whole = _scores(x, y, neighbours)
    generator = torch.Generator().manual_seed(sklearn_seed(seed, 4))
    halves, among_real = [], []
    for _ in range(num_splits):
        first, second = _half(x, generator)
        halves.append(_scores(first, _half(y, generator)[0], neighbours))
        among_real.append(_scores(first, second, neighbours))
    real = {name: _mean(among_real, name) for name in whole}
    # Exact values for real data, and the bias at these sizes from that of two halves, 4 / N.
    real |= {"density": 1.0, "coverage": expected_coverage(len(x), len(y), neighbours)}
    real["frechet"] *= (1 + len(x) / len(y)) / 4
    results = {
        name: SampleScore(value, _spread(halves, name), real[name]) for name, value in whole.items()
    }
    unbiased = 2 * whole["frechet"] - _mean(halves, "frechet")
    return {
        **results,
        "frechet_unbiased": SampleScore(unbiased, results["frechet"].standard_error, 0.0),
    }


def _scores(x: Tensor, y: Tensor, neighbours: int) -> Numbers:
    return {**neighbour_scores(x, y, neighbours)._asdict(), "frechet": frechet_distance(x, y)}


def _half(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return two random halves of rows, of one size."""
    order, size = torch.randperm(len(rows), generator=generator), len(rows) // 2
    return rows[order[:size]], rows[order[size : 2 * size]]


def _mean(results: list[Numbers], name: str) -> float:
    return sum(numbers[name] for numbers in results) / len(results)


def _spread(results: list[Numbers], name: str) -> float:
    return float(torch.tensor([numbers[name] for numbers in results], dtype=torch.double).std())


def _label_quality(
    classifier: LabelClassifier, samples: Tensor, num_splits: int, confidence: float, seed: int
) -> LabelQuality:
    """Score samples by a classifier, beside data that it was not fitted to."""
    probabilities = torch.cat([classifier.probabilities(block) for block in samples.split(_BLOCK)])
    shares = classifier.shares

    def score(probabilities: Tensor) -> Numbers:
        each = float(torch.special.entr(probabilities).sum(1).mean())
        overall = float(torch.special.entr(probabilities.mean(0)).sum())
        return {
            "confident": float((probabilities.amax(1) >= confidence).double().mean()),
            "entropy": each,
            "class_entropy": overall,
            "inception_score": math.exp(overall - each),
            "imbalance": float((_shares(probabilities) - shares).abs().sum()) / 2,
        }

    generator = torch.Generator().manual_seed(sklearn_seed(seed, 5))
    halves = [score(_half(probabilities, generator)[0]) for _ in range(num_splits)]
    # Half the sum of the mean absolute deviations of as many draws.
    chance = float((2 * shares * (1 - shares) / (math.pi * len(samples))).sqrt().sum()) / 2
    real = {**score(classifier.held_out), "imbalance": chance}
    results = {
        name: SampleScore(value, _spread(halves, name), real[name])
        for name, value in score(probabilities).items()
    }
    return LabelQuality(
        **results,
        classes=classifier.classes,
        shares=_shares(probabilities),
        real_shares=shares,
        accuracy=classifier.accuracy,
    )


def _shares(probabilities: Tensor) -> Tensor:
    """Return the share of rows whose most probable class is each."""
    return torch.bincount(probabilities.argmax(1), minlength=probabilities.shape[1]).double() / len(
        probabilities
    )
