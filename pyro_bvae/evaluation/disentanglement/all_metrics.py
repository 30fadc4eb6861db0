"""Every metric of a representation, each beside its values under nulls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.public import exclusive, public
from pyro_bvae.core.seeds import NULL_STREAM, stream_seed
from pyro_bvae.datasets import Dataset
from pyro_bvae.evaluation.disentanglement.arrays import Paired, Values, paired
from pyro_bvae.evaluation.disentanglement.beta_factor_vae import beta_vae_score, factor_vae_score
from pyro_bvae.evaluation.disentanglement.completeness import DCI, dci
from pyro_bvae.evaluation.disentanglement.encoding import encode, untrained_copy
from pyro_bvae.evaluation.disentanglement.mig_modularity import modularity, mutual_information_gap
from pyro_bvae.evaluation.disentanglement.sap_explicitness import explicitness, sap
from pyro_bvae.evaluation.disentanglement.score import Array, Score, generator
from pyro_bvae.vae import BetaVAE

if TYPE_CHECKING:
    import pandas as pd

#: From codes, factors and ``factor_names=``, ``num_bootstrap=`` and ``seed=`` to a score, or to
#: several.
Metric = Callable[..., Score | DCI]

#: Every metric whose time is seconds.
FAST_METRICS: tuple[Metric, ...] = (
    beta_vae_score,
    factor_vae_score,
    mutual_information_gap,
    sap,
    modularity,
    explicitness,
)
#: Every metric; the trees of DCI take most of the time.
METRICS: tuple[Metric, ...] = (*FAST_METRICS, dci)


@dataclass(frozen=True, eq=False)
class Disentanglement:
    """The scores of a representation beside those of its nulls.

    Attributes:
        scores: Each with its interval and parts.
        nulls: A row for each score and null, ``rotated``, ``untrained`` or ``shuffled``: ``mean``
            over the draws of the null, their ``spread`` (standard deviation; NaN for one draw) and
            their number, ``draws``.
        num_data: N, the data behind it.
    """

    scores: tuple[Score, ...]
    nulls: pd.DataFrame
    num_data: int

    def __getitem__(self, name: str) -> Score:
        """Return the score of a name, such as ``MIG``."""
        known = {score.name: score for score in self.scores}
        if name not in known:
            raise InputError(f"'name' must be one of {', '.join(known)}, got {name!r}")
        return known[name]

    @property
    def table(self) -> pd.DataFrame:
        """A row for each score: ``value``, ``low``, ``high`` and the mean of each null."""
        import pandas as pd

        bounds = [score.interval or (np.nan, np.nan) for score in self.scores]
        names = [score.name for score in self.scores]
        columns = {
            "value": [score.value for score in self.scores],
            "low": [low for low, _ in bounds],
            "high": [high for _, high in bounds],
        }
        means = self.nulls.pivot(index="score", columns="null", values="mean")
        return pd.DataFrame(columns, names).join(means[list(dict.fromkeys(self.nulls["null"]))])

    def to_dict(self) -> dict[str, Any]:
        """Return scores and nulls for a JSON file."""
        nulls: dict[str, dict[str, float]] = {}
        for row in self.nulls.to_dict("records"):
            nulls.setdefault(row["score"], {})[row["null"]] = float(row["mean"])
        return {
            score.name: {**score.to_dict(), "nulls": nulls.get(score.name, {})}
            for score in self.scores
        }

    def __str__(self) -> str:
        words = self.table.map(lambda value: "" if np.isnan(value) else f"{value:.3f}")
        between = [
            f"[{low}, {high}]" if low else ""
            for low, high in zip(words["low"], words["high"], strict=True)
        ]
        shown = words.drop(columns=["low", "high"])
        shown.insert(1, "95% interval", between)
        return (
            f"{shown.to_string()}\nover {self.num_data} data; read a score by how far it is above"
            " its nulls"
        )


@public
def score_codes(
    codes: Values,
    factors: Values,
    *,
    untrained: Sequence[Values] = (),
    metrics: Sequence[Metric] = METRICS,
    factor_names: Sequence[str] = (),
    num_nulls: int = 1,
    seed: int = 0,
) -> Disentanglement:
    r"""Score a representation by every metric, each with its interval and beside its nulls.

    Three nulls put a number in proportion: the same code *rotated* at random, which carries the
    same but along no axis; the code of an *untrained* encoder; and *shuffled* factors, of which
    nothing can be known.

    Args:
        codes: The representation, shape ``(N, D)``, D at least 2.
        factors: Classes of the data, shape ``(N, F)``, F at least 2.
        untrained: Codes ``(N, *)`` of encoders that were not trained, one for each draw; none to
            leave that null out.
        metrics: The metrics: :data:`FAST_METRICS` leaves out DCI, whose trees take minutes; a
            metric with other settings is ``functools.partial(dci, predictor=...)``.
        factor_names: Name of each factor.
        num_nulls: Draws of rotations and of shuffled factors.
        seed: Seed of all draws.

    Returns:
        Scores and nulls. References: those of the metrics; Locatello et al. 2019 on reading them.

    Raises:
        InputError: for codes or factors that a metric cannot use.
    """
    import pandas as pd

    check_count("num_nulls", num_nulls)
    data = paired(codes, factors, factor_names, least_latents=2, least_factors=2)
    options: dict[str, Any] = {"factor_names": data.names, "seed": seed}
    scores = _scores(metrics, data.codes, data.classes, options)
    rows = []
    for null, draws in _nulls(data, untrained, num_nulls, seed).items():
        results = [_scores(metrics, *draw, {**options, "num_bootstrap": 0}) for draw in draws]
        for of_score in zip(*results, strict=True):
            values = np.array([score.value for score in of_score])
            spread = values.std(ddof=1) if len(values) > 1 else np.nan
            rows.append((of_score[0].name, null, values.mean(), spread, len(values)))
    nulls = pd.DataFrame(rows, columns=["score", "null", "mean", "spread", "draws"])
    return Disentanglement(scores, nulls, len(data.codes))


@exclusive
def disentanglement(
    vae: BetaVAE,
    data: Dataset,
    *,
    make_untrained: Callable[[int], BetaVAE] | None = None,
    metrics: Sequence[Metric] = METRICS,
    num_data: int | None = None,
    num_nulls: int = 1,
    seed: int = 0,
) -> Disentanglement:
    """Score the posterior means of a model by every metric, as :func:`score_codes` does.

    Args:
        vae: The model.
        data: Data with known factors; they are shuffled first, so that data in the order of their
            factors do.
        make_untrained: Builds the untrained model of a seed; None for a copy of the model with its
            encoder's weights set to torch's initial ones.
        metrics: Names of the metrics.
        num_data: Take so many of the data at random; None for all.
        num_nulls: Draws of each null.
        seed: Seed of all draws.

    Returns:
        Scores and nulls.

    Raises:
        InputError: if the data have no factors, are fewer than ``num_data`` or fit no metric.
    """
    check_count("num_nulls", num_nulls)
    if data.factors is None:
        raise InputError("'data' must have factors, of shape (N, F), got none")
    size = len(data) if num_data is None else num_data
    check_count("num_data", size)
    if size > len(data):
        raise InputError(f"'num_data' must be at most the number of data, {len(data)}, got {size}")
    chosen = data[generator(seed, NULL_STREAM, 0).permutation(len(data))[:size]]
    assert chosen.factors is not None
    build = make_untrained or (lambda draw: untrained_copy(vae, draw))
    untrained = [
        encode(build(stream_seed(seed, NULL_STREAM, 1, draw)), chosen) for draw in range(num_nulls)
    ]
    return score_codes(
        encode(vae, chosen),
        chosen.factors,
        untrained=untrained,
        metrics=metrics,
        factor_names=data.factor_names,
        num_nulls=num_nulls,
        seed=seed,
    )


def _scores(
    metrics: Sequence[Metric], codes: Values, factors: Array, options: dict[str, Any]
) -> tuple[Score, ...]:
    results = [metric(codes, factors, **options) for metric in metrics]
    return tuple(
        score for part in results for score in (part.scores if isinstance(part, DCI) else (part,))
    )


def _nulls(
    data: Paired, untrained: Sequence[Values], num_nulls: int, seed: int
) -> dict[str, list[tuple[Values, Array]]]:
    """Return codes and factors of each draw of each null."""
    from scipy.stats import ortho_group

    rotated: list[tuple[Values, Array]] = []
    shuffled: list[tuple[Values, Array]] = []
    for draw in range(num_nulls):
        rng = generator(seed, NULL_STREAM, 2, draw)
        rotation = ortho_group(data.codes.shape[1]).rvs(random_state=rng)
        rotated.append(((data.codes - data.codes.mean(0)) @ rotation, data.classes))
        shuffled.append((data.codes, data.classes[rng.permutation(len(data.classes))]))
    known: list[tuple[Values, Array]] = [(codes, data.classes) for codes in untrained]
    return {"rotated": rotated, **({"untrained": known} if known else {}), "shuffled": shuffled}
