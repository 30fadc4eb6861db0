"""The estimator: scikit-learn's own checks, closed forms, and rows that do not see each other."""

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from pyro_bvae import InputError, evidence
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.runs.catalogue import LIKELIHOODS, POSTERIORS, PRIORS
from pyro_bvae.sklearn import BetaVAEEstimator

D, RANK = 6, 2
WEIGHT = torch.randn(D, RANK, generator=torch.Generator().manual_seed(0))
TRUTH = LinearGaussian(WEIGHT, 0.5, bias=torch.arange(D))
X, HELD_OUT = TRUTH.sample(1500, seed=1).numpy(), TRUTH.sample(200, seed=2).numpy()
TINY: dict[str, Any] = {"epochs": 2, "hidden": (8,), "num_samples": 20, "random_state": 0}
LINEAR: dict[str, Any] = {
    "network": "linear", "posterior": "full-rank", "random_state": 0, "batch_size": 500,
    "learning_rate": 5e-2,
}  # fmt: skip

pytestmark = [
    pytest.mark.filterwarnings("ignore:the evidence of .* cannot be trusted"),
    pytest.mark.filterwarnings("ignore:.* features have one value"),
    pytest.mark.filterwarnings("ignore:.* features are not scaled"),
]


@pytest.fixture(scope="module")
def fitted() -> BetaVAEEstimator:
    return BetaVAEEstimator(latent_dim=2, **TINY).fit(X)


@parametrize_with_checks([BetaVAEEstimator(**TINY)])
def test_scikit_learn_finds_no_fault(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Skipping check check_array_api_input")
@pytest.mark.parametrize("options", [{"prior": "vamp", "prior_components": 5, "missing": "nan"}])
def test_scikit_learn_finds_no_fault_in_other_models(options: dict[str, Any]) -> None:
    check_estimator(BetaVAEEstimator(**TINY, **options), expected_failed_checks={})


@pytest.mark.slow
def test_the_score_is_the_closed_form_evidence_at_the_optimum() -> None:
    estimator = BetaVAEEstimator(latent_dim=RANK, epochs=150, **LINEAR).fit(X)
    scores = estimator.score_samples(HELD_OUT)
    assert estimator.score(HELD_OUT) == pytest.approx(scores.mean())
    off = scores - TRUTH.evidence(torch.from_numpy(HELD_OUT)).numpy()
    # The best of D (RANK + 2) parameters of N data is off by half their number in N.
    bias, error = D * (RANK + 2) / (2 * len(X)), off.std() / np.sqrt(len(off))
    assert -bias - 4 * error < off.mean() < 3 * error
    # In other units the same, but for the change of variables.
    units = np.array([1e-3, 1, 10, 1e3, 1e5, 2])
    again = clone(estimator).fit(X * units)
    assert again.score(HELD_OUT * units) == pytest.approx(
        scores.mean() - np.log(units).sum(), abs=0.01
    )


@pytest.mark.slow
def test_a_search_finds_the_planted_rank() -> None:
    search = GridSearchCV(
        BetaVAEEstimator(epochs=60, num_samples=50, **LINEAR),
        {"latent_dim": np.arange(1, RANK + 1)}, cv=2,
    )  # fmt: skip
    search.fit(X)
    assert search.best_params_ == {"latent_dim": RANK}
    low, high = search.cv_results_["mean_test_score"]
    assert high - low > 0.3


def test_a_row_is_scored_by_itself(fitted: BetaVAEEstimator) -> None:
    rows = HELD_OUT[:40]
    scores = fitted.score_samples(rows)
    order = np.random.default_rng(0).permutation(len(rows))
    assert np.array_equal(fitted.score_samples(rows[order]), scores[order])
    assert np.array_equal(fitted.score_samples(rows[7:9]), scores[7:9])
    codes = fitted.transform(rows)
    assert np.allclose(fitted.transform(rows[7:8]), codes[7:8], rtol=1e-12)


def test_scores_are_those_of_the_package(fitted: BetaVAEEstimator) -> None:
    x = torch.from_numpy(HELD_OUT[:10])
    exact = evidence(fitted.vae_.model, fitted.vae_.guide, x, num_samples=5000)
    scores = clone(fitted).set_params(num_samples=5000).fit(X).score_samples(HELD_OUT[:10])
    off = scores - exact.per_datum.numpy()
    assert abs(off.mean()) < 5 * exact.monte_carlo_error + 1e-3


def test_pickles_are_the_same_to_the_bit(fitted: BetaVAEEstimator) -> None:
    again = pickle.loads(pickle.dumps(fitted))
    for method in ("transform", "score_samples"):
        assert np.array_equal(getattr(again, method)(X[:9]), getattr(fitted, method)(X[:9]))
    assert np.array_equal(again.sample(3), fitted.sample(3))
    assert np.array_equal(clone(fitted).fit(X).score_samples(X[:9]), fitted.score_samples(X[:9]))


def test_tables_keep_their_index_and_name_their_columns() -> None:
    table = pd.DataFrame(X[:50], columns=list("abcdef"), index=np.arange(50) + 7)
    estimator = BetaVAEEstimator(latent_dim=3, **TINY).set_output(transform="pandas").fit(table)
    codes = estimator.transform(table)
    names = ["betavaeestimator0", "betavaeestimator1", "betavaeestimator2"]
    assert list(codes.columns) == names == list(estimator.get_feature_names_out())
    assert list(codes.index) == list(table.index)
    assert list(estimator.feature_names_in_) == list("abcdef")
    with pytest.raises(ValueError, match="feature names should match"):
        estimator.score_samples(table[list("fedcba")])


def test_a_pipeline_scores_and_goes_back() -> None:
    pipeline = make_pipeline(StandardScaler(), BetaVAEEstimator(latent_dim=2, **TINY))
    codes = pipeline.fit_transform(X)
    assert codes.shape == (len(X), 2) and np.isfinite(pipeline.score(HELD_OUT[:30]))
    back = pipeline.inverse_transform(codes)
    assert back.shape == X.shape and np.abs(back - X.mean(0)).mean() < 3 * X.std()
    # The model standardizes as the scaler does, so that the evidence has other units and no more.
    alone = clone(pipeline[-1]).fit(X)
    log_scale = np.log(pipeline[0].scale_).sum()
    assert alone.score(HELD_OUT[:30]) == pytest.approx(
        pipeline.score(HELD_OUT[:30]) - log_scale, abs=1e-6
    )


def test_missing_entries_are_left_out() -> None:
    x = np.where(np.random.default_rng(0).random(X.shape) < 0.2, np.nan, X)
    estimator = BetaVAEEstimator(latent_dim=2, missing="nan", **TINY).fit(x)
    assert np.isfinite(estimator.score_samples(x[:20])).all()
    assert np.isfinite(estimator.transform(x[:20])).all()
    # Of nothing observed the density is 1.
    assert estimator.score_samples(np.full((1, D), np.nan))[0] == pytest.approx(0, abs=0.5)
    with pytest.raises(ValueError, match="contains NaN"):
        BetaVAEEstimator(latent_dim=2, **TINY).fit(x)


@pytest.mark.parametrize("kind", ["prior", "posterior", "likelihood"])
def test_every_part_fits_scores_and_pickles(kind: str) -> None:
    table = {"prior": PRIORS, "posterior": POSTERIORS, "likelihood": LIKELIHOODS}[kind]
    for name in table.keys() - {"zuko"}:
        x = X[:40]
        if kind == "likelihood" and name not in ("laplace", "student-t") and "normal" not in name:
            x = (x > x.mean(0)).astype(float)
        options = {kind: name, "prior_components": 3, **TINY}
        estimator = pickle.loads(pickle.dumps(BetaVAEEstimator(latent_dim=2, **options).fit(x)))
        assert np.isfinite(estimator.score_samples(x[:5])).all(), name
        assert estimator.inverse_transform(estimator.transform(x[:5])).shape == (5, D)
        assert estimator.sample(3).shape == (3, D)


def test_samples_are_those_of_a_seed(fitted: BetaVAEEstimator) -> None:
    assert np.array_equal(fitted.sample(4), fitted.sample(4))
    assert np.array_equal(fitted.sample(4, random_state=3), fitted.sample(4, random_state=3))
    assert not np.array_equal(fitted.sample(4), fitted.sample(4, random_state=3))
    first, second = (clone(fitted).fit(X[:50]).transform(X[:5]) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(
        first, clone(fitted).set_params(random_state=1).fit(X[:50]).transform(X[:5])
    )


def test_untrusted_evidence_is_said(fitted: BetaVAEEstimator) -> None:
    few = clone(fitted).set_params(num_samples=3).fit(X)
    with pytest.warns(UserWarning, match=r"the evidence of \d+ of 50 rows cannot be trusted"):
        few.score_samples(X[:50])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood": "norml"}, "unknown likelihood 'norml'"),
        ({"latent_dim": 0}, "'latent_dim' must be"),
        ({"latent_dim": 2.5}, "'latent_dim' must be"),
        ({"hidden": ()}, "'hidden' must name at least one width"),
        ({"likelihood": "bernoulli", "standardize": True}, "'standardize' is for likelihoods of"),
        ({"likelihood": "bernoulli"}, "'x' must lie in the likelihood's support"),
        ({"missing": "yes"}, "unknown missing 'yes'"),
        ({"beta": -1.0}, "'beta' must be"),
        ({"batch_size": 0, "epochs": None}, "'batch_size' must be"),
        ({"num_samples": 0}, "'num_samples' must be a positive integer, got 0"),
        ({"network": "convolutional"}, "network 'convolutional' needs images"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BetaVAEEstimator(**{**TINY, **options}).fit(X[:30])


def test_wrong_rows_are_refused(fitted: BetaVAEEstimator) -> None:
    for method in (fitted.transform, fitted.score_samples, fitted.score):
        with pytest.raises(ValueError, match=f"X has 5 features, but .* is expecting {D} features"):
            method(X[:, :5])
    with pytest.raises(ValueError, match="X has 3 latents, but the model has 2"):
        fitted.inverse_transform(X[:, :3])
    with pytest.raises(NotFittedError):
        BetaVAEEstimator().score(X)
