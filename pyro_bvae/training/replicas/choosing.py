"""``choose``: the β and the number of latents of a model, by the evidence of held-out data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from pyro_bvae.core.context import arguments
from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.data import is_table
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.datasets import Dataset, LazyDataset, Splits, split
from pyro_bvae.datasets.rows import as_dataset
from pyro_bvae.evaluation.comparison import Comparison, compare_programs
from pyro_bvae.evaluation.marginal import Escalation
from pyro_bvae.training.replicas.sweeping import sweep
from pyro_bvae.vae import BetaVAE

# Share of the data that is held out where none are given.
_HELD_OUT = 0.2


class Setting(NamedTuple):
    """A setting of a model; ``latent_dim`` is None where only β is chosen."""

    latent_dim: int | None
    beta: float

    def __str__(self) -> str:
        size = "" if self.latent_dim is None else f"{self.latent_dim} latents, "
        return f"{size}β = {self.beta:g}"


@dataclass(frozen=True, eq=False)
class Choice:
    """The setting to keep, and the comparison that it follows from.

    Attributes:
        setting: The smallest of the settings that cannot be told from the best; of several β at
            that size, the one of the largest evidence.
        alike: The settings that cannot be told from the best, which is among them, the smallest
            first.
        models: The models of each setting, one for each training seed.
        comparison: Their evidences on held-out data.
    """

    setting: Setting
    alike: tuple[Setting, ...]
    models: Mapping[Setting, tuple[BetaVAE, ...]]
    comparison: Comparison

    @property
    def vae(self) -> BetaVAE:
        """The model of the setting, of the first training seed."""
        return self.models[self.setting][0]

    def __str__(self) -> str:
        others = [str(each) for each in self.alike if each != self.setting]
        alike = "" if not others else f" It cannot be told from {'; '.join(others)}."
        return f"{self.comparison}\nchosen: {self.setting}.{alike}"


@exclusive
def choose(
    make_vae: Callable[..., BetaVAE],
    data: Any,
    *,
    betas: Sequence[float] = (1.0,),
    latent_dims: Sequence[int] = (),
    seeds: Sequence[int] = (0,),
    held_out: Any = None,
    level: float = 0.95,
    num_samples: int = 1000,
    method: Literal["auto", "importance"] | Escalation = "auto",
    **options: Any,
) -> Choice:
    """Choose β and the number of latents by the evidence of held-out data.

    A model of each setting is trained, and their evidences are compared by paired differences,
    with intervals for all pairs together. A setting whose difference from the best one may be zero,
    or cannot be measured, cannot be told from it; of these the smallest number of latents is kept.

    Args:
        make_vae: Builds an untrained model, ``make_vae(latent_dim)``, or ``make_vae()`` without
            ``latent_dims``; torch's generators are seeded before each call.
        data: Training data, as :func:`~pyro_bvae.fit` takes them, or the parts of a data set, whose
            validation part is then held out.
        betas: The β to try, at the end of training.
        latent_dims: The numbers of latents to try; none to keep that of ``make_vae()``.
        seeds: Training seeds of each setting, whose spread is then in the intervals.
        held_out: Data to measure on; by default the validation part, or a fifth of ``data``.
        level: Level of the intervals.
        num_samples: Particles for each datum.
        method: Estimator of the evidence, as of :func:`~pyro_bvae.evidence`.
        **options: Further options of :func:`~pyro_bvae.sweep`, such as ``epochs``,
            ``learning_rate`` and ``progress``.

    Raises:
        InputError: for fewer than two settings, or data that cannot be used or held out.
    """
    for count in latent_dims:
        check_count("latent_dims", count)
    sizes: Sequence[int | None] = latent_dims or (None,)
    settings = [Setting(size, beta) for size in sizes for beta in betas]
    if len(set(settings)) < 2 or len(set(settings)) < len(settings):
        raise InputError(
            "'betas' and 'latent_dims' must make at least two settings, each once, got"
            f" {list(betas)} and {list(latent_dims)}"
        )
    models: dict[Setting, tuple[BetaVAE, ...]] = {}
    train, held = _divided(data, held_out)
    for size in sizes:
        trained = sweep(partial(_built, make_vae, size), train, betas=betas, seeds=seeds, **options)
        for beta in betas:
            own = tuple(run.vae for run in trained if run.beta == beta)
            models[Setting(size, beta)] = own
    names = {str(setting): setting for setting in settings}
    comparison = compare_programs(
        {name: [(vae.model, vae.guide) for vae in models[own]] for name, own in names.items()},
        *arguments(held.x, held.context),
        level=level, num_samples=num_samples, method=method,
        progress=options.get("progress", True),
    )  # fmt: skip
    best, *others = comparison.names
    close = [each for each in others if not comparison.difference(best, each).seen]
    order = [*comparison.names]  # by evidence
    alike = sorted(
        (names[each] for each in (best, *close)),
        key=lambda each: (each.latent_dim or 0, order.index(str(each))),
    )
    return Choice(alike[0], tuple(alike), models, comparison)


def _built(make_vae: Callable[..., BetaVAE], latent_dim: int | None, _: int) -> BetaVAE:
    """Return an untrained model; its seed is that of torch's generators."""
    return make_vae() if latent_dim is None else make_vae(latent_dim)


def _divided(data: Any, held_out: Any) -> tuple[Any, Dataset]:
    """Return training data and those held out.

    Raises:
        InputError: if none are held out, and none can be.
    """
    if isinstance(data, Splits):
        held = data.validation if held_out is None else held_out
        if held is None:
            raise InputError("'held_out' must be given for data without a validation part")
        return data.train, as_dataset(held)
    rows = as_dataset(data) if is_table(data) else data
    if held_out is not None:
        return rows, as_dataset(held_out)
    if not isinstance(rows, Dataset | LazyDataset):
        raise InputError("'held_out' must be given where a part of 'data' cannot be held out")
    parts = split(rows.dense(), validation=0, test=_HELD_OUT, seed=0, name="choice")
    return parts.train, parts.test.dense()
