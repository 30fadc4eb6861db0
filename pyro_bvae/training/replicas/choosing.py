"""``choose``: the β and the number of latents of a model, by held-out data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from pyro_bvae.training.objectives.target_rate import TargetRate
from pyro_bvae.training.replicas.criteria import collapsed_in, distortions_at
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
    """The setting to keep, and the numbers that it follows from.

    Attributes:
        setting: The smallest of the settings that cannot be told from the best; of several β at
            that size, the one of the largest evidence.
        alike: The settings that cannot be told from the best, which is among them, the smallest
            first.
        models: The models of each setting, one for each training seed.
        comparison: Their evidences on held-out data; of a rate to hold, minus their distortions at
            that rate, None for one size alone; None for the criterion of collapse.
        notes: For another criterion than the evidence, its number of each setting, in words.
    """

    setting: Setting
    alike: tuple[Setting, ...]
    models: Mapping[Setting, tuple[BetaVAE, ...]]
    comparison: Comparison | None
    notes: Mapping[Setting, str] = field(default_factory=dict)

    @property
    def vae(self) -> BetaVAE:
        """The model of the setting, of the first training seed."""
        return self.models[self.setting][0]

    def __str__(self) -> str:
        others = [str(each) for each in self.alike if each != self.setting]
        alike = "" if not others else f" It cannot be told from {'; '.join(others)}."
        notes = [f"{setting}: {line}" for setting, line in self.notes.items()]
        return "\n".join([*(notes or [str(self.comparison)]), f"chosen: {self.setting}.{alike}"])


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
    criterion: Literal["evidence", "collapse"] | TargetRate = "evidence",
    **options: Any,
) -> Choice:
    r"""Choose β and the number of latents by held-out data.

    A model of each setting is trained. By the *evidence*, they are compared by paired differences,
    with intervals for all pairs together. A setting whose difference from the best one may be zero,
    or cannot be measured, cannot be told from it; of these the smallest number of latents is kept.

    By a *rate to hold*, β is found in training for each number of latents, and the distortions at
    that rate are compared in the same way. A first-order correction,
    :math:`D(R^*) \approx D + \beta (R - R^*)`, takes each model from its own rate to :math:`R^*`.

    By *collapse*, :func:`~pyro_bvae.diagnose` counts the latents that carry nothing: in a linear
    VAE those whose eigenvalue of the data's covariance is not above :math:`\beta\sigma^2`
    (Lucas et al. 2019). The setting with the fewest of them is kept, of these the one with the most
    latents, and of these the one with the largest β.

    Args:
        make_vae: Builds an untrained model, ``make_vae(latent_dim)``, or ``make_vae()`` without
            ``latent_dims``; torch's generators are seeded before each call.
        data: Training data, as :func:`~pyro_bvae.fit` takes them, or the parts of a data set, whose
            validation part is then held out.
        betas: The β to try, at the end of training; not with a rate to hold.
        latent_dims: The numbers of latents to try; none to keep that of ``make_vae()``.
        seeds: Training seeds of each setting, whose spread is then in the intervals.
        held_out: Data to measure on; by default the validation part, or a fifth of ``data``.
        level: Level of the intervals.
        num_samples: Particles for each datum.
        method: Estimator of the evidence, as of :func:`~pyro_bvae.evidence`.
        criterion: ``"evidence"``, ``"collapse"``, or ``TargetRate(nats)`` for a rate to hold.
        **options: Further options of :func:`~pyro_bvae.sweep`, such as ``epochs``,
            ``learning_rate`` and ``progress``.

    Raises:
        InputError: for fewer than two settings (one is enough where a rate is held), an unknown
            criterion, or data that cannot be used or held out.
    """
    rate = criterion if isinstance(criterion, TargetRate) else None
    if rate is not None:
        if tuple(betas) != (1.0,):
            raise InputError(f"a rate to hold finds its β: leave out 'betas', got {list(betas)}")
        betas, options["schedule"] = (rate.nats,), lambda nats: rate
    for count in latent_dims:
        check_count("latent_dims", count)
    sizes: Sequence[int | None] = latent_dims or (None,)
    settings = [Setting(size, beta) for size in sizes for beta in betas]
    least = 2 if rate is None else 1
    if len(set(settings)) < least or len(set(settings)) < len(settings):
        raise InputError(
            "'betas' and 'latent_dims' must make at least two settings, each once, got"
            f" {list(betas)} and {list(latent_dims)}"
        )
    models: dict[Setting, tuple[BetaVAE, ...]] = {}
    train, held = _divided(data, held_out)
    for size in sizes:
        trained = sweep(partial(_built, make_vae, size), train, betas=betas, seeds=seeds, **options)
        for beta in betas:
            runs = [run for run in trained if run.beta == beta]
            found = sum(run.history["beta"][-1] for run in runs) / len(runs)
            own = Setting(size, beta if rate is None else float(f"{found:.4g}"))
            models[own] = tuple(run.vae for run in runs)
    if criterion == "collapse":
        return _least_collapsed(models, held)
    measured = {str(setting): (setting.beta, own) for setting, own in models.items()}
    notes: dict[str, str] = {}
    if rate is not None:
        comparison, notes = distortions_at(rate.nats, measured, held, level, num_samples)
    else:
        comparison = compare_programs(
            {name: [(vae.model, vae.guide) for vae in own] for name, (_, own) in measured.items()},
            *arguments(held.x, held.context),
            level=level, num_samples=num_samples, method=method,
            progress=options.get("progress", True),
        )  # fmt: skip
    return _of_comparison(models, comparison, notes)


def _of_comparison(
    models: Mapping[Setting, tuple[BetaVAE, ...]],
    comparison: Comparison | None,
    notes: Mapping[str, str],
) -> Choice:
    """Return the smallest of the settings that cannot be told from the best."""
    names = {str(setting): setting for setting in models}
    named = {names[name]: line for name, line in notes.items()}
    if comparison is None:
        (setting,) = models
        return Choice(setting, (setting,), models, None, named)
    best, *others = order = comparison.names
    close = [each for each in others if not comparison.difference(best, each).seen]
    alike = sorted(
        (names[each] for each in (best, *close)),
        key=lambda each: (each.latent_dim or 0, order.index(str(each))),
    )
    return Choice(alike[0], tuple(alike), models, comparison, named)


def _least_collapsed(models: Mapping[Setting, tuple[BetaVAE, ...]], held: Dataset) -> Choice:
    """Return the setting with the fewest latents that carry nothing, the largest of several."""
    names = {str(setting): setting for setting in models}
    measured = {str(setting): (setting.beta, own) for setting, own in models.items()}
    numbers, notes = collapsed_in(measured, held)
    chosen = min(models, key=lambda each: (numbers[str(each)], -(each.latent_dim or 0), -each.beta))
    named = {names[name]: line for name, line in notes.items()}
    return Choice(chosen, (chosen,), models, None, named)


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
