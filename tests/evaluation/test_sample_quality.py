"""Scores of samples: held to brute force, to closed forms of normals, and to planted faults that
each should see."""

import importlib
import json
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation import sample_quality
from pyro_bvae.evaluation.samples import two_sample as sample_scores
from pyro_bvae.evaluation.samples.features import LabelClassifier, PrincipalFeatures
from pyro_bvae.evaluation.samples.two_sample import (
    expected_coverage,
    frechet_distance,
    neighbour_scores,
    two_sample_test,
)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def same(x: Tensor) -> Tensor:
    return x


def blobs(seed: int, count: int, *places: float, width: int = 4) -> Tensor:
    """Return as many points around each place of the diagonal."""
    return torch.cat(
        [place + normal(100 * seed + i, count, width) for i, place in enumerate(places)]
    )


def within(results: list[float], truth: float, errors: float = 4) -> bool:
    return abs(np.mean(results) - truth) < errors * np.std(results, ddof=1) / math.sqrt(
        len(results)
    )


# Neighbours


def test_neighbour_scores_are_those_of_brute_force() -> None:
    x, y, k = normal(0, 23, 3), 1.0 + normal(1, 31, 3), 4
    reach = [sorted(float((a - b).norm()) for b in x)[k] for a in x]
    own = [sorted(float((a - b).norm()) for b in y)[k] for a in y]
    near = np.array([[float((a - b).norm()) for b in y] for a in x])
    inside = near <= np.array(reach)[:, None]
    results = neighbour_scores(x, y, k)
    assert results.precision == pytest.approx(inside.any(0).mean())
    assert results.recall == pytest.approx((near <= np.array(own)).any(1).mean())
    assert results.density == pytest.approx(inside.sum() / (k * 31))
    assert results.coverage == pytest.approx(inside.any(1).mean())
    assert 0.1 < results.coverage < 0.9  # there was something to be wrong about


def test_samples_that_are_data_have_the_expected_density_and_coverage() -> None:
    results = [
        neighbour_scores(normal(2 * i, 40, 3), normal(2 * i + 1, 30, 3), 3) for i in range(150)
    ]
    assert within([each.density for each in results], 1.0)
    assert within([each.coverage for each in results], expected_coverage(40, 30, 3))
    assert expected_coverage(40, 30, 3) == pytest.approx(1 - 39 * 38 * 37 / (69 * 68 * 67))


@pytest.mark.parametrize("kind", ["binary", "counts", "hardly any that differ"])
def test_ties_leave_the_expected_density_and_coverage(kind: str) -> None:
    """Every ball once held all that shared its rim: 3.76 for samples that are as good as data."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> Tensor:
        if kind == "counts":
            return torch.poisson(torch.full((count, 3), 1.2), generator=generator).double()
        return (
            torch.rand(count, 6, generator=generator) < (0.3 if kind == "binary" else 0.02)
        ).double()

    results = [neighbour_scores(draw(120), draw(90), 5) for _ in range(60)]
    assert within([each.density for each in results], 1.0)
    assert within([each.coverage for each in results], expected_coverage(120, 90, 5))


def test_precision_and_recall_on_a_line_with_one_neighbour_are_three_quarters() -> None:
    # A sample is at independent Exp(1) distances V, W from the data beside it, which are at Exp(1)
    # distances A, B from their next ones, and reach to the nearer neighbour: it is outside if A < V
    # and B < W, with probability 1/4.
    results = [
        neighbour_scores(normal(2 * i, 1500, 1), normal(2 * i + 1, 1500, 1), 1) for i in range(16)
    ]
    assert within([each.precision for each in results], 0.75)
    assert within([each.recall for each in results], 0.75)


def test_a_dropped_mode_is_seen_by_recall_and_coverage_and_not_by_precision() -> None:
    real, samples = blobs(0, 300, 0.0, 40.0), blobs(1, 600, 0.0)
    results = sample_quality(real, samples, features=same)
    assert (
        abs(results.precision.value - results.precision.real) < 4 * results.precision.standard_error
    )
    assert abs(results.coverage.value - expected_coverage(300, 600, 5) / 2) < 0.03
    assert 0.4 < results.recall.value <= 0.5
    assert results.density.value > 0.9


def test_a_mode_out_of_support_is_seen_by_precision_and_density_and_not_by_recall() -> None:
    real, samples = blobs(0, 600, 0.0), blobs(1, 300, 0.0, 40.0)
    results = sample_quality(real, samples, features=same)
    assert 0.4 < results.precision.value <= 0.5
    assert results.density.value == pytest.approx(0.5, abs=0.06)
    assert results.recall.value > 0.9
    assert results.coverage.value == pytest.approx(expected_coverage(600, 300, 5), abs=0.04)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, rows = normal(0, 60, 3), normal(1, 50, 3), []

    def watched(block: Tensor) -> Tensor:
        rows.append(len(block))
        return block

    whole = sample_quality(x, y, features=watched, num_splits=2)
    monkeypatch.setattr(sample_scores, "_BLOCK", 7)
    monkeypatch.setattr(
        importlib.import_module("pyro_bvae.evaluation.samples.quality"), "_BLOCK", 9
    )
    rows.clear()
    blocked = sample_quality(x, y, features=watched, num_splits=2)
    for name, score in whole.scores.items():
        assert blocked.scores[name].to_dict() == pytest.approx(score.to_dict()), name
    assert max(rows) == 9
    assert max(len(part) for _, part in sample_scores._blocks(x, y)) == 7


# Moments


def with_moments(rows: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Return rows moved to have exactly a mean and a covariance."""
    centred = rows - rows.mean(0)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(torch.cov(centred.T).reshape(rows.shape[1], -1)),
        centred.T,
        upper=False,
    ).T
    return mean + white @ torch.linalg.cholesky(covariance).T


def test_the_frechet_distance_of_normals_is_the_closed_form() -> None:
    means = normal(0, 2, 3)
    first, second = (
        part @ part.T + 0.1 * torch.eye(3) for part in (normal(1, 3, 3), normal(2, 3, 3))
    )
    x, y = (
        with_moments(normal(3, 50, 3), means[0], first),
        with_moments(normal(4, 70, 3), means[1], second),
    )
    root = scipy.linalg.sqrtm(first.numpy() @ second.numpy()).real
    truth = float(
        (means[0] - means[1]).square().sum() + first.trace() + second.trace()
    ) - 2 * np.trace(root)
    assert frechet_distance(x, y) == pytest.approx(truth, rel=1e-8)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    line = frechet_distance(
        with_moments(x[:, :1], means[0, :1], 4 * torch.eye(1).double()),
        with_moments(y[:, :1], means[1, :1], torch.eye(1).double()),
    )
    assert line == pytest.approx(float((means[0, 0] - means[1, 0]) ** 2) + 1, rel=1e-8)


@pytest.mark.parametrize("num_samples", [80, 200])
def test_the_bias_of_the_frechet_distance_is_what_halves_of_the_data_say(num_samples: int) -> None:
    results = [
        sample_quality(
            normal(2 * i, 80, 5),
            normal(2 * i + 1, num_samples, 5),
            features=same,
            critic=Coin(),
            num_splits=4,
            seed=i,
        )
        for i in range(40)
    ]
    assert np.mean([each.frechet.value for each in results]) > 0.2  # where the truth is 0
    assert within([each.frechet.value - each.frechet.real for each in results], 0.0)
    assert within([each.frechet_unbiased.value for each in results], 0.0)
    away = [
        sample_quality(
            normal(2 * i, 80, 5),
            1 + 2 * normal(2 * i + 1, num_samples, 5),
            features=same,
            critic=Coin(),
            num_splits=4,
        )
        for i in range(40)
    ]
    assert within([each.frechet_unbiased.value for each in away], 5 * (1 + 1))


class Coin:
    """A critic that has nothing to say."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> None:
        pass

    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.arange(len(x)) % 2


def test_standard_errors_are_the_spread_over_other_data() -> None:
    results = [
        sample_quality(
            normal(2 * i, 150, 3),
            1 + normal(2 * i + 1, 150, 3),
            features=same,
            critic=Coin(),
            num_splits=8,
            seed=i,
        ).scores
        for i in range(50)
    ]
    for name in ("precision", "recall", "density", "coverage", "frechet", "frechet_unbiased"):
        spread = np.std([each[name].value for each in results], ddof=1)
        claimed = np.mean([each[name].standard_error for each in results])
        assert 0.7 < claimed / spread < 1.8, name


# The two-sample test


def test_a_classifier_finds_nothing_where_there_is_nothing() -> None:
    results = [
        two_sample_test(normal(2 * i, 100, 5), normal(2 * i + 1, 120, 5), seed=i) for i in range(16)
    ]
    assert within([each.accuracy for each in results], 0.5)
    p_values = [each.p_value for each in results]
    assert (
        scipy.stats.binomtest(
            sum(p < 0.05 for p in p_values), 16, 0.05, alternative="greater"
        ).pvalue
        > 0.01
    )
    assert results[0].num_held_out == 100


def test_accuracy_is_that_of_the_best_classifier_of_two_normals() -> None:
    # Two normals at distance d are told apart with probability Phi(d / 2).
    x, y = normal(0, 3000, 2), normal(1, 3000, 2) + torch.tensor([1.2, 1.6])
    results = two_sample_test(x, y, critic=LogisticRegression())
    assert abs(results.accuracy - scipy.stats.norm.cdf(1.0)) < 3 * results.standard_error
    assert results.p_value < 1e-100
    wide = two_sample_test(x[:1000], 3 * x[1000:2000])  # the same means: a line could not tell
    assert wide.accuracy > 0.7


# Features and labels


def test_principal_features_are_white_and_leave_out_what_does_not_vary() -> None:
    x = normal(0, 100, 4) @ normal(1, 4, 6)
    features = PrincipalFeatures(x)(x)
    assert features.shape == (100, 4)
    torch.testing.assert_close(
        features.T @ features / 100, torch.eye(4, dtype=torch.double), atol=1e-8, rtol=0
    )
    assert PrincipalFeatures(x, num_components=2)(x).shape == (100, 2)
    leading = torch.linalg.svd(x - x.mean(0)).U[:, 0] * 10
    torch.testing.assert_close(features[:, 0].abs(), leading.abs())


def three_classes() -> tuple[Tensor, Tensor]:
    return blobs(0, 120, 0.0, 6.0, 12.0), torch.arange(3).repeat_interleave(120)


def test_a_classifier_of_labels_sees_a_dropped_class() -> None:
    x, y = three_classes()
    classifier = LabelClassifier(x, y)
    assert classifier.accuracy > 0.95
    good = sample_quality(x, blobs(1, 100, 0.0, 6.0, 12.0), classifier=classifier).labels
    dropped = sample_quality(x, blobs(2, 150, 0.0, 12.0), classifier=classifier).labels
    assert good is not None
    assert dropped is not None
    for results, classes in ((good, 3), (dropped, 2)):
        assert results.inception_score.value == pytest.approx(classes, abs=0.15)
        assert results.class_entropy.value == pytest.approx(math.log(classes), abs=0.06)
        assert results.confident.value == pytest.approx(results.confident.real, abs=0.06)
    torch.testing.assert_close(
        dropped.shares, torch.tensor([0.5, 0, 0.5], dtype=torch.double), atol=0.02, rtol=0
    )
    assert dropped.imbalance.value == pytest.approx(1 / 3, abs=0.03)
    assert good.imbalance.value < 3 * good.imbalance.real


def test_samples_between_classes_are_not_taken_for_one() -> None:
    x, y = three_classes()
    results = sample_quality(x, blobs(3, 200, 3.0), y).labels
    assert results is not None
    assert results.confident.value < results.confident.real - 0.3
    assert results.entropy.value > results.entropy.real + 0.1


def test_imbalance_of_true_draws_is_what_chance_makes_of_it() -> None:
    x, y = three_classes()
    classifier = LabelClassifier(x, y)
    generator, results = torch.Generator().manual_seed(0), []
    for i in range(30):
        counts = torch.bincount(
            torch.multinomial(classifier.shares, 90, True, generator=generator), minlength=3
        )
        samples = torch.cat(
            [6.0 * place + normal(50 + i, int(n), 4) for place, n in enumerate(counts)]
        )
        labels = sample_quality(
            x, samples, classifier=classifier, critic=Coin(), num_splits=2
        ).labels
        assert labels is not None
        results.append(labels.imbalance)
    assert within([each.value - each.real for each in results], 0.0)


def test_the_hidden_layer_is_a_space_of_features() -> None:
    x, y = three_classes()
    classifier = LabelClassifier(x, y, hidden=16)
    assert classifier(x).shape == (360, 16)
    network = classifier._network
    logits = classifier(x) @ torch.from_numpy(network.coefs_[1]).double() + torch.from_numpy(
        network.intercepts_[1]
    )
    torch.testing.assert_close(logits.softmax(1), classifier.probabilities(x), atol=1e-5, rtol=0)
    results = sample_quality(x, blobs(1, 120, 0.0, 6.0, 12.0), features=classifier)
    assert results.coverage.value > 0.9
    assert results.labels is None


def test_scores_print_are_written_and_leave_random_numbers_alone() -> None:
    x, y = three_classes()
    before = torch.get_rng_state()
    first = sample_quality(x.float().reshape(-1, 2, 2), x.numpy()[::2] + 0.1, y)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.to_dict() == sample_quality(x.float(), x[::2] + 0.1, y.tolist()).to_dict()
    assert json.loads(json.dumps(first.to_dict()))["precision"]["value"] == first.precision.value
    for words in (
        "precision",
        "frechet unbiased",
        "inception score",
        "real data:",
        "180 samples against 360 data",
    ):
        assert words in str(first)


# What cannot be used


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"samples": torch.zeros(11, 4)},
            r"'samples' must have at least 12 rows.*5 neighbours, got 11",
        ),
        ({"neighbours": 60}, r"'real' must have at least 122 rows"),
        ({"neighbours": 0}, r"'neighbours' must be a positive integer, got 0"),
        (
            {"samples": torch.full((50, 4), math.nan)},
            r"'samples' must be finite, got nan at index \(0, 0\)",
        ),
        ({"samples": torch.zeros(50, 3)}, r"'samples' must be of the 4 features of 'real', got 3"),
        ({"real": torch.zeros(50)}, r"'real' must have shape \(N, D\), got \(50,\)"),
        ({"real": torch.ones(50, 4)}, r"must vary .* 50 rows are the same"),
        (
            {"labels": torch.zeros(49)},
            r"'labels' must be one for each of the 50 data, got shape \(49,\)",
        ),
        (
            {"labels": torch.zeros(50)},
            r"'labels' must hold at least two classes to tell apart, got only \[0\]",
        ),
        ({"labels": torch.rand(50)}, r"'labels' must be whole numbers, got 0\."),
        ({"num_splits": 1}, r"'num_splits' must be at least 2 to have a spread, got 1"),
        ({"confidence": 1.5}, r"'confidence' must lie between 0 and 1, got 1.5"),
        ({"features": lambda x: x[:3]}, r"one row for each of the 50 of 'real', got 3"),
        ({"features": lambda x: x.log()}, r"'features of real' must be finite, got nan"),
        ({"seed": -1}, r"'seed' must be a non-negative integer, got -1"),
    ],
)
def test_bad_input_is_said_in_words(change: dict[str, object], words: str) -> None:
    given = {"real": normal(0, 50, 4), "samples": normal(1, 50, 4)} | change
    with pytest.raises(InputError, match=words):
        sample_quality(**given)


def test_bad_parts_are_said_in_words() -> None:
    x, y = three_classes()
    with pytest.raises(InputError, match="'labels' and 'classifier' were both given"):
        sample_quality(x, x, y, classifier=LabelClassifier(x, y))
    with pytest.raises(InputError, match="more rows than the 5 neighbours, got 5"):
        neighbour_scores(x, x[:5])
    with pytest.raises(InputError, match="as many features, got 4 and 3"):
        neighbour_scores(x, x[:, :3])
    with pytest.raises(InputError, match="at least 4 rows of each, got 360 and 3"):
        two_sample_test(x, x[:3])
    with pytest.raises(InputError, match="'held_out' must lie between 0 and 1, got 1"):
        LabelClassifier(x, y, held_out=1)
