"""UDR: models ranked without factors, by the agreement of seeds of the same β."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from pyro_bvae.core.context import arguments
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.data import Values
from pyro_bvae.core.inputs.public import exclusive, public
from pyro_bvae.core.seeds import BOOTSTRAP_STREAM
from pyro_bvae.datasets import Dataset
from pyro_bvae.evaluation.disentanglement.encoding import encode
from pyro_bvae.evaluation.disentanglement.score import Array, Score, check_bootstrap, generator
from pyro_bvae.evaluation.marginal.bounds import kl_per_dimension
from pyro_bvae.vae import BetaVAE

if TYPE_CHECKING:
    import pandas as pd

# A latent with less KL than this is idle, nats.
_LEAST_KL = 0.01


class Trained(Protocol):
    """One model of a sweep, as :class:`pyro_bvae.training.replicas.sweeping.Replica` is."""

    @property
    def beta(self) -> float:
        """Its β."""

    @property
    def seed(self) -> int:
        """Its seed."""

    @property
    def vae(self) -> BetaVAE:
        """The model."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Models of a sweep, ranked by how much of their latents other seeds found too.

    Attributes:
        table: A row for each model, best first: ``beta``, ``seed``, ``score``, ``standard_error``
            and ``active``, the number of latents that are not idle.
        scores: The score of each model in the order of the sweep, with a part for each partner.
    """

    table: pd.DataFrame
    scores: tuple[Score, ...]

    def __str__(self) -> str:
        return self.table.to_string(index=False, float_format=lambda value: f"{value:.3f}")


@public
def rank_correlation(first: Values, second: Values) -> Array:
    """Return the absolute rank correlation of each latent with each, of shape ``(D, E)``.

    Reference: Spearman 1904. A constant is correlated with nothing: 0.
    """
    from scipy.stats import rankdata

    codes = [np.asarray(part) for part in (first, second)]
    fits = all(part.ndim == 2 and part.size for part in codes)
    if not fits or len(codes[0]) != len(codes[1]):
        shapes = f"{codes[0].shape} and {codes[1].shape}"
        raise InputError(f"'first' and 'second' must be codes of the same N data, got {shapes}")
    if not all(np.isfinite(part).all() for part in codes):
        raise InputError("'first' and 'second' must be finite")
    ranks = [rankdata(part, axis=0) for part in codes]
    centred = [part - part.mean(0) for part in ranks]
    lengths = [np.sqrt((part**2).sum(0)) for part in centred]
    units = [
        part / np.where(length > 0, length, 1.0)
        for part, length in zip(centred, lengths, strict=True)
    ]
    return np.abs(units[0].T @ units[1])


@exclusive
def unsupervised_disentanglement_ranking(
    runs: Iterable[Trained],
    data: Dataset | None = None,
    *,
    relation: Callable[[Array, Array], Array] = rank_correlation,
    num_bootstrap: int = 100,
    seed: int = 0,
) -> Ranking:
    r"""Rank the models of a sweep by their agreement with other seeds of the same β.

    With :math:`R_{ab}` the relation of latent a of one model to b of another, over latents that are
    not idle (KL above 0.01 nats),

    .. math:: \mathrm{UDR}_{ij} = \frac{1}{D_i + D_j} \Big( \sum_b \frac{\max_a R_{ab}^2}{\sum_a
        R_{ab}}
        + \sum_a \frac{\max_b R_{ab}^2}{\sum_b R_{ab}} \Big),

    and the score of a model the median over its partners j. It is 1 where all found the same up to
    order and sign, and 0 for a model whose latents are all idle. The interval is over partners that
    are drawn again: with fewer than about five it says little, and with one there is none.

    Args:
        runs: A sweep with two seeds or more for each β.
        data: Data to encode; None for the held-out data of the sweep.
        relation: From two codes ``(N, D)`` and ``(N, E)`` to ``(D, E)``, between 0 and 1.
        num_bootstrap: How often partners are drawn again for the interval; 0 for none.
        seed: Seed of the draws, and of KLs that have no closed form.

    Returns:
        The models, best first. Reference: Duan et al. 2020.

    Raises:
        InputError: if there is no data, or a β has one seed only.
    """
    import pandas as pd

    check_bootstrap(num_bootstrap)
    models = [] if isinstance(runs, str | type) or not isinstance(runs, Iterable) else list(runs)
    if not models or not all(hasattr(model, "vae") for model in models):
        raise InputError(f"'runs' must be a sweep, or its models, got {type(runs).__name__}")
    shown = getattr(runs, "validation", None) if data is None else data
    if not isinstance(shown, Dataset):
        raise InputError(
            "'data' must be a Dataset to encode, since the sweep has none, got"
            f" {type(shown).__name__}"
        )
    codes = [_active_codes(model.vae, shown, seed) for model in models]
    rng, scores = generator(seed, BOOTSTRAP_STREAM), []
    for i, model in enumerate(models):
        partners = [j for j, other in enumerate(models) if other.beta == model.beta and j != i]
        if not partners:
            raise InputError(
                f"'runs' must have two seeds or more for each beta, got only seed {model.seed} of"
                f" {model.beta:g}"
            )
        each = np.array([_agreement(codes[i], codes[j], relation) for j in partners])
        again = rng.integers(len(each), size=(num_bootstrap, len(each)))
        errors = np.array([np.median(each[again], 1).std(ddof=1), *np.full(len(each), np.nan)])
        names = [f"seed {models[j].seed}" for j in partners]
        known = errors if num_bootstrap and len(each) > 1 else None
        scores.append(Score.of("UDR", np.array([np.median(each), *each]), known, names, len(shown)))
    table: dict[str, Any] = {
        "beta": [model.beta for model in models],
        "seed": [model.seed for model in models],
        "score": [score.value for score in scores],
        "standard_error": [
            np.nan if score.standard_error is None else score.standard_error for score in scores
        ],
        "active": [part.shape[1] for part in codes],
    }
    return Ranking(
        pd.DataFrame(table).sort_values("score", ascending=False, ignore_index=True), tuple(scores)
    )


def _active_codes(vae: BetaVAE, data: Dataset, seed: int) -> Array:
    """Return the codes of the latents in use, by their KL, or by their variance without one."""
    args = arguments(data.x, data.context)
    kl = kl_per_dimension(vae.model, vae.guide, *args, seed=seed)
    assert kl is not None  # a BetaVAE has one latent
    active = kl.active if kl.values is None else kl.values > _LEAST_KL
    return encode(vae, data)[:, torch.as_tensor(active).flatten().numpy()]


def _agreement(first: Array, second: Array, relation: Callable[[Array, Array], Array]) -> float:
    count = first.shape[1] + second.shape[1]
    if not (first.shape[1] and second.shape[1]):
        return 0.0
    table = relation(first, second)
    total = 0.0
    for axis in (0, 1):
        sums = table.sum(axis)
        total += float(
            np.divide(table.max(axis) ** 2, sums, out=np.zeros_like(sums), where=sums > 0).sum()
        )
    return total / count
