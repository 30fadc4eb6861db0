"""Disentanglement: the field's reference, planted truth, nulls, intervals that hold, and bad input
in words."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import entropy
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import mutual_info_score, roc_auc_score
from sklearn.svm import LinearSVC

from pyro_bvae import BetaVAE, Decoder
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Dataset
from pyro_bvae.evaluation import elbo
from pyro_bvae.evaluation.disentanglement import (
    FAST_METRICS,
    METRICS,
    Score,
    beta_vae_score,
    dci,
    disentanglement,
    explicitness,
    factor_vae_score,
    modularity,
    mutual_information,
    mutual_information_gap,
    sap,
    score_codes,
    unsupervised_disentanglement_ranking,
)
from pyro_bvae.evaluation.disentanglement.linear_svm import Machines
from pyro_bvae.evaluation.disentanglement.sap_explicitness import _Areas, _placements
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.plots import disentanglement_scores
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

DATA = Path(__file__).parents[1] / "data"
CODES = np.load(DATA / "disentanglement_codes.npz")
REFERENCE = json.loads((DATA / "disentanglement_scores.json").read_text(encoding="utf-8"))
FACTORS = CODES["factors"]
FOREST = RandomForestClassifier(n_estimators=10, max_depth=8, max_features=None)
QUICK = (*FAST_METRICS, partial(dci, predictor=FOREST))


def planted(num_data=2000, noise=0.3, idle=2, seed=0):
    """Return codes with a latent for each of three factors, and idle ones."""
    rng = np.random.default_rng(seed)
    factors = np.stack([rng.integers(size, size=num_data) for size in (3, 4, 6)], 1)
    codes = (factors - factors.mean(0)) / factors.std(0) + noise * rng.normal(size=factors.shape)
    return np.concatenate([codes, rng.normal(size=(num_data, idle))], 1), factors


# -- the field's reference
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFERENCE)
def test_scores_are_those_of_the_reference(name: str) -> None:
    codes, known = CODES[f"codes_{name}"], REFERENCE[name]
    for given in (codes, torch.as_tensor(codes), codes.astype(float)):
        assert mutual_information_gap(given, FACTORS, num_bootstrap=0).value == pytest.approx(
            known["mig"], abs=1e-6
        )
        assert modularity(given, FACTORS, num_bootstrap=0).value == pytest.approx(
            known["modularity"], abs=1e-6
        )
    assert sap(codes, FACTORS, num_bootstrap=0).value == pytest.approx(
        known["sap_SAP_score"], abs=1e-3
    )


def agrees_on_dci(name: str) -> None:
    results, known = dci(CODES[f"codes_{name}"], FACTORS, num_bootstrap=0), REFERENCE[name]
    assert results.disentanglement.value == pytest.approx(known["dci_disentanglement"], abs=0.01)
    assert results.completeness.value == pytest.approx(known["dci_completeness"], abs=0.01)
    assert results.informativeness.value == pytest.approx(
        known["dci_informativeness_test"], abs=0.01
    )
    assert results.train_accuracy == pytest.approx(known["dci_informativeness_train"], abs=0.01)


def test_dci_is_that_of_the_reference() -> None:
    agrees_on_dci("perfect")


class PlantedImportances(ClassifierMixin, BaseEstimator):
    """A classifier that says what it looks at: a row for each number of classes."""

    def __init__(self, rows=None) -> None:
        self.rows = rows

    def fit(self, codes: np.ndarray, target: np.ndarray) -> "PlantedImportances":
        self.feature_importances_ = np.array(self.rows[len(np.unique(target))])
        return self

    def predict(self, codes: np.ndarray) -> np.ndarray:
        return np.zeros(len(codes), int)


def test_dci_is_the_entropy_of_what_is_looked_at() -> None:
    codes, factors = planted(600, idle=1)
    rows = {3: (0.7, 0.2, 0.1, 0.0), 4: (0.0, 0.5, 0.5, 0.0), 6: (0.1, 0.0, 0.9, 0.0)}
    results, table = (
        dci(codes, factors, predictor=PlantedImportances(rows), num_bootstrap=0),
        np.array([*rows.values()]),
    )
    latents, each = table[:, :3].sum(0), [entropy(row, base=3) for row in table[:, :3].T]
    assert results.disentanglement.value == pytest.approx(
        1 - latents @ np.array(each) / latents.sum()
    )
    assert results.completeness.value == pytest.approx(
        1 - np.mean([entropy(row, base=4) for row in table])
    )
    first = [np.mean(factors[300:, place] == 0) for place in range(3)]
    assert results.informativeness.value == pytest.approx(np.mean(first))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in REFERENCE if name != "perfect"])
def test_dci_is_that_of_the_reference_on_every_code(name: str) -> None:
    agrees_on_dci(name)


# -- definitions, each against another way to compute it
# --------------------------------------------------------------


def test_information_is_that_of_scikit_learn() -> None:
    codes, factors = planted(500)
    results = mutual_information(codes, factors, bins=7, factor_names=("a", "b", "c"))
    assert list(results.index) == ["z0", "z1", "z2", "z3", "z4"]
    for place, name in enumerate(results.columns):
        for latent, row in enumerate(results.index):
            low, high = codes[:, latent].min(), codes[:, latent].max()
            cut = np.minimum(((codes[:, latent] - low) / (high - low) * 7).astype(int), 6)
            assert results.loc[row, name] == pytest.approx(
                mutual_info_score(cut, factors[:, place]), abs=1e-9
            )


@pytest.mark.parametrize("size", [2, 3, 7])
def test_machines_are_those_of_liblinear(size: int) -> None:
    rng = np.random.default_rng(size)
    classes = np.minimum(rng.geometric(0.4, size=400) - 1, size - 1)
    classes[:size] = range(size)
    feature = classes + rng.normal(size=400)
    machines = Machines(feature, classes, 0.01)
    theirs = LinearSVC(C=0.01, class_weight="balanced", dual=False, tol=1e-8, max_iter=100_000)
    theirs.fit(feature[:, None], classes)
    lines = machines.lines[1:] if size == 2 else machines.lines
    np.testing.assert_allclose(lines, np.c_[theirs.coef_, theirs.intercept_], atol=1e-6)
    np.testing.assert_array_equal(machines.predict(feature), theirs.predict(feature[:, None]))


def test_areas_are_those_of_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(0)
    classes, scores = rng.integers(3, size=300), rng.integers(8, size=(300, 3)) / 8.0
    areas = _Areas(
        np.stack([_placements(scores[:, k], classes == k) for k in range(3)], 1), classes
    )
    exact = np.mean([roc_auc_score(classes == k, scores[:, k]) for k in range(3)])
    assert areas.mean(np.ones(300)) == pytest.approx(exact, abs=1e-12)
    # Data drawn again: the first-order change is right to the order of 1 / N.
    drawn = rng.integers(300, size=300)
    again = np.mean([roc_auc_score(classes[drawn] == k, scores[drawn, k]) for k in range(3)])
    assert areas.mean(np.bincount(drawn, minlength=300).astype(float)) == pytest.approx(
        again, abs=3e-3
    )


def test_a_perfect_code_scores_what_the_definitions_allow() -> None:
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(4, size=4000) for _ in range(3)], 1)
    results = {score.name: score for score in score_codes(factors, factors, metrics=QUICK).scores}
    for name in ("β-VAE score", "FactorVAE score", "DCI informativeness", "modularity"):
        assert results[name].value == pytest.approx(1, abs=1e-3), name
    for name in ("MIG", "DCI disentanglement", "DCI completeness"):
        assert results[name].value == pytest.approx(1, abs=5e-3), name
    assert 0.3 < results["SAP"].value < 0.6  # a linear machine misses the values in the middle
    assert 0.7 < results["explicitness"].value < 0.95


def test_codes_that_are_constant_have_an_answer() -> None:
    _, factors = planted(400)
    for score in score_codes(np.zeros((400, 4)), factors, metrics=QUICK).scores:
        chance = {"explicitness": 0.5, "β-VAE score": 1 / 3, "FactorVAE score": 1 / 3}.get(
            score.name, 0.0
        )
        if score.name == "DCI informativeness":
            chance = (1 / 3 + 1 / 4 + 1 / 6) / 3
        assert score.value == pytest.approx(chance, abs=0.1), score
        assert score.interval is not None and np.isfinite(score.interval).all()


@pytest.mark.parametrize("value", [0.0, 0.3, -3e-8, 1e20])
def test_constant_latents_have_no_modularity_whatever_their_value(value: float) -> None:
    """Rounding of sums that cancel once gave them up to 1, and the interval of a code without noise
    was [0, 0.94]."""
    factors = np.random.default_rng(0).integers(0, 4, (1000, 3))
    constant = modularity(np.full((1000, 3), value), factors)
    assert constant.value == 0 and constant.interval == (0.0, 0.0)
    mixed = modularity(np.column_stack([factors[:, 0], np.full((1000, 2), value)]), factors)
    assert mixed.value == pytest.approx(1 / 3, abs=1e-3)
    assert mixed.interval is not None and mixed.interval[1] - mixed.interval[0] < 0.01
    assert mutual_information_gap(np.full((1000, 3), value), factors).value == 0


def test_group_scores_see_the_factor_that_is_shared() -> None:
    codes, factors = planted(idle=0)
    rng = np.random.default_rng(1)
    for metric in (
        partial(score, num_groups=600, num_bootstrap=8)
        for score in (beta_vae_score, factor_vae_score)
    ):
        whole = metric(codes, factors)
        assert whole.value > 0.95, whole
        shuffled = metric(codes, factors[rng.permutation(len(factors))])
        assert abs(shuffled.value - 1 / 3) < 4 * shuffled.standard_error + 0.03, shuffled
    # Without its latent, a factor is not told from the others by the one that varies least.
    lost = factor_vae_score(np.delete(codes, 1, 1), factors, num_groups=600, num_bootstrap=8)
    assert lost.parts.loc["factor 1", "value"] < 0.1 < 0.9 < lost.parts.loc["factor 0", "value"]


# -- rotation, and the bound that does not see it
# ---------------------------------------------------------------------


def test_a_rotation_drops_mig_while_the_elbo_stays() -> None:
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(5, size=1000) for _ in range(2)], 1)
    x = torch.as_tensor((factors - 2) / np.sqrt(2)).double()
    half = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.double) / np.sqrt(2)
    results = []
    for weight in (torch.eye(2, dtype=torch.double), half):
        oracle = LinearGaussian(weight, 0.1)
        vae = oracle.amortized_vae()
        results.append(
            (elbo(vae.model, vae.guide, x, num_samples=50), disentangled(vae, x, factors))
        )
    (straight, before), (turned, after) = results
    assert straight.value == pytest.approx(turned.value, abs=5 * straight.monte_carlo_error + 1e-6)
    assert before.interval[0] > 0.9 and after.interval[1] < 0.1


def disentangled(vae: BetaVAE, x: torch.Tensor, factors: np.ndarray) -> Score:
    data = Dataset(x, factors=torch.as_tensor(factors))
    return disentanglement(
        vae, data, metrics=[mutual_information_gap], make_untrained=lambda seed: vae
    )["MIG"]


# -- intervals
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [mutual_information_gap, modularity, sap, explicitness])
def test_errors_are_those_of_other_data(metric) -> None:
    """The bootstrap's error beside the spread over forty data sets, whose own error is 11%."""
    scores = [metric(*planted(800, seed=seed), num_bootstrap=40) for seed in range(40)]
    spread = np.std([score.value for score in scores], ddof=1)
    error = np.sqrt(np.mean([score.standard_error**2 for score in scores]))
    assert 0.6 < error / spread < 1.5, (error, spread)


@pytest.mark.parametrize("metric", [beta_vae_score, factor_vae_score])
def test_errors_of_group_scores_are_those_of_other_data(metric) -> None:
    few = partial(metric, num_groups=300, group_size=16)
    scores = [few(*planted(800, 1.2, seed=seed), num_bootstrap=8) for seed in range(30)]
    spread = np.std([score.value for score in scores], ddof=1)
    error = np.sqrt(np.mean([score.standard_error**2 for score in scores]))
    assert 0.6 < error / spread < 1.7, (error, spread)


def test_errors_of_dci_are_those_of_other_data() -> None:
    tree = RandomForestClassifier(n_estimators=3, max_depth=4)
    results = [
        dci(*planted(600, 0.8, seed=seed), predictor=tree, num_bootstrap=4) for seed in range(14)
    ]
    for place in range(3):
        scores = [each.scores[place] for each in results]
        spread = np.std([score.value for score in scores], ddof=1)
        error = np.sqrt(np.mean([score.standard_error**2 for score in scores]))
        assert 0.5 < error / spread < 2, (scores[0].name, error, spread)


def test_a_score_prints_itself_and_has_parts() -> None:
    codes, factors = planted()
    score = mutual_information_gap(codes, factors, factor_names=("shape", "size", "place"))
    low, high = score.interval
    assert low < score.value < high
    assert score.value == pytest.approx(score.parts["value"].mean())
    assert str(score).startswith(
        f"MIG {score.value:.3f} [{low:.3f}, {high:.3f}] over 2000 data: shape 0."
    )
    assert json.loads(json.dumps(score.to_dict()))["parts"].keys() == {"shape", "size", "place"}
    bare = mutual_information_gap(codes, factors, num_bootstrap=0)
    assert bare.interval is None and bare.value == score.value and "[" not in str(bare)
    assert mutual_information_gap(codes, factors, seed=3).standard_error != score.standard_error


# -- nulls, and a model of one's own
# ----------------------------------------------------------------------------------


def small_vae(features: int, seed: int = 0) -> BetaVAE:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = NormalPosterior(MLP(features, 8, hidden=(16,)))
        return BetaVAE(
            NormalPrior(4), Decoder(MLP(4, features, hidden=(16,)), NormalLikelihood()), encoder
        )


def test_scores_of_a_planted_code_are_above_their_nulls() -> None:
    codes, factors = planted(1000)
    rng = np.random.default_rng(5)
    untrained = [rng.normal(size=codes.shape)]
    result = score_codes(codes, factors, untrained=untrained, metrics=QUICK, num_nulls=2)
    table = result.table
    assert list(table.columns) == ["value", "low", "high", "rotated", "untrained", "shuffled"]
    for name in ("MIG", "SAP", "DCI disentanglement", "DCI completeness"):
        assert (
            table.loc[name, "low"] > table.loc[name, ["rotated", "untrained", "shuffled"]].max()
        ), name
    # A rotation loses nothing to a classifier of all latents, and shuffling everything.
    assert table.loc["explicitness", "rotated"] == pytest.approx(
        table.loc["explicitness", "value"], abs=1e-6
    )
    assert table.loc["explicitness", "shuffled"] == pytest.approx(0.5, abs=0.03)
    assert table.loc["MIG", "shuffled"] < 0.03
    assert result.nulls.set_index(["score", "null"]).loc[("MIG", "rotated"), "draws"] == 2
    assert "95% interval" in str(result) and result["MIG"].value == table.loc["MIG", "value"]
    with pytest.raises(InputError, match=r"'name' must be one of .*MIG"):
        result["mig"]
    figure = disentanglement_scores(result)
    figure.canvas.draw()
    words = [text.get_text() for text in figure.findobj(mpl.text.Text)]
    assert (
        "MIG" in words
        and "rotated" in words
        and any("above all their nulls" in word for word in words)
    )


def test_a_model_is_scored_by_its_means_beside_an_untrained_one() -> None:
    codes, factors = planted(600)
    order = np.lexsort(factors.T)  # sorted by its factors, as a full grid of images is
    x = torch.as_tensor(codes[order]).float()
    data = Dataset(x, factors=torch.as_tensor(factors[order]).float(), factor_names=("a", "b", "c"))
    vae = small_vae(x.shape[1])
    before = [parameter.clone() for parameter in vae.parameters()]
    result = disentanglement(vae, data, metrics=[mutual_information_gap, modularity], num_data=500)
    assert result.num_data == 500 and set(result.nulls["null"]) == {
        "rotated",
        "untrained",
        "shuffled",
    }
    assert list(result["MIG"].parts.index) == ["a", "b", "c"]
    mine = result.nulls.set_index(["score", "null"])["mean"]
    assert mine["MIG", "untrained"] != result["MIG"].value
    for old, new in zip(before, vae.parameters(), strict=True):
        assert torch.equal(old, new)
    with pytest.raises(
        InputError, match="'num_data' must be at most the number of data, 600, got 601"
    ):
        disentanglement(vae, data, num_data=601)
    with pytest.raises(InputError, match="'data' must have factors"):
        disentanglement(vae, Dataset(x))


def test_models_are_ranked_by_the_latents_that_other_seeds_found() -> None:
    """Linear encoders: two that agree up to order and sign, one that is rotated."""
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    swap = torch.tensor([[0.0, -1, 0], [0, 0, 1], [1, 0, 0]])
    runs = [
        SimpleNamespace(beta=4.0, seed=seed, vae=linear_vae(weight))
        for seed, weight in enumerate((torch.eye(3), swap, turn))
    ]
    ranking = unsupervised_disentanglement_ranking(runs, Dataset(x))
    pairs = ranking.scores[0].parts["value"]
    assert pairs["seed 1"] > 0.85 > 0.7 > pairs["seed 2"]
    assert ranking.table["seed"].iloc[-1] == 2 and (ranking.table["active"] == 3).all()
    assert ranking.scores[0].value == pytest.approx(np.median(pairs))
    assert "score" in str(ranking)
    planted_relation = np.array([[0.9, 0.3, 0.0], [0.2, 0.5, 0.0], [0.0, 0.0, 0.0]])
    by_columns, by_rows = 0.81 / 1.1 + 0.25 / 0.8, 0.81 / 1.2 + 0.25 / 0.7
    known = unsupervised_disentanglement_ranking(
        runs[:2], Dataset(x), relation=lambda first, second: planted_relation
    )
    assert known.scores[0].value == pytest.approx((by_columns + by_rows) / 6)
    idle = [
        *runs[:2],
        SimpleNamespace(beta=4.0, seed=3, vae=linear_vae(torch.zeros(3, 3), scale=1.0)),
    ]
    assert unsupervised_disentanglement_ranking(idle, Dataset(x)).scores[2].value == 0
    with pytest.raises(InputError, match="two seeds or more for each beta, got only seed 0 of 4"):
        unsupervised_disentanglement_ranking(runs[:1], Dataset(x))
    with pytest.raises(InputError, match="'data' must be a Dataset"):
        unsupervised_disentanglement_ranking(runs)


def linear_vae(weight: torch.Tensor, scale: float = 0.3) -> BetaVAE:
    vae = BetaVAE(
        NormalPrior(3),
        Decoder(MLP(3, 3, hidden=()), NormalLikelihood()),
        LinearEncoder(weight, scale),
    )
    return vae.eval()


class LinearEncoder(torch.nn.Module):
    def __init__(self, weight: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.weight, self.scale = (
            torch.nn.Parameter(weight.clone(memory_format=torch.contiguous_format)),
            scale,
        )

    def forward(self, x: torch.Tensor) -> torch.distributions.Distribution:
        return dist.Normal(x @ self.weight.T, self.scale).to_event(1)


# -- bad input
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_bad_input_is_said_in_words(metric) -> None:
    codes, factors = planted(200)

    def refused(words: str, *args: object, **options: object) -> None:
        with pytest.raises(InputError, match=words):
            metric(*args, **options)

    constant, missing = factors.copy(), codes.copy()
    constant[:, 1], missing[7, 2] = 4, np.nan
    refused(r"'codes' must be finite, got nan at index \(7, 2\)", missing, factors)
    refused("'factors' must be finite, got nan", codes, np.where(factors == 3, np.nan, factors))
    refused("'factors' must vary, but 'factor 1' is 4 for all 200 data", codes, constant)
    refused(
        "'factors' must be classes, but 'b' takes 200 values",
        codes,
        codes[:, :3],
        factor_names=("b", "c", "d"),
    )
    refused("'factors' must have a row for each of the 200 codes, got 199", codes, factors[1:])
    refused(
        r"'codes' must be numbers of shape \(N, \*\), got float64 of shape \(200,\)",
        codes[:, 0],
        factors,
    )
    refused("'factor_names' must name 3 factors, got 1", codes, factors, factor_names=("b",))
    refused(
        "'num_bootstrap' must be 0, for no interval, or at least 2, got 1",
        codes,
        factors,
        num_bootstrap=1,
    )


def test_what_single_metrics_refuse() -> None:
    codes, factors = planted(200)
    for metric in (mutual_information_gap, modularity):
        with pytest.raises(
            InputError, match="'bins' must be at most the number of data, 15, got 20"
        ):
            metric(codes[:15], factors[:15])
    with pytest.raises(InputError, match="'codes' must have at least 2 latents"):
        mutual_information_gap(codes[:, :1], factors)
    for metric in (modularity, dci, beta_vae_score, factor_vae_score):
        with pytest.raises(InputError, match="'factors' must have at least 2 factors"):
            metric(codes, factors[:, :1])
    order = np.argsort(factors[:, 0])
    for metric in (sap, explicitness, dci, beta_vae_score, factor_vae_score):
        with pytest.raises(
            InputError, match=r"'factor 0' is never 2 in the first; shuffle the rows"
        ):
            metric(codes[order], factors[order])
    rare = factors.copy()
    rare[[0, -1], 0], rare[1, 0] = 9, 9
    for metric in (beta_vae_score, factor_vae_score):
        with pytest.raises(
            InputError, match="'factor 0' is 9 once; leave out values that are so rare"
        ):
            metric(codes, rare)
    with pytest.raises(InputError, match=r"'encoder\.weight' cannot be set to its initial value"):
        data = Dataset(torch.randn(200, 3), factors=torch.as_tensor(factors))
        disentanglement(linear_vae(torch.eye(3)), data)
