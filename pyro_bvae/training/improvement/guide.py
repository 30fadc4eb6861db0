"""The guide trained on, with the model fixed: what an encoder leaves of the gap, it can learn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from pyro_bvae.core.context import arguments
from pyro_bvae.core.errors import InputError, check_count
from pyro_bvae.core.inputs.data import is_table, named
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.datasets import Dataset, LazyDataset
from pyro_bvae.datasets.rows import as_dataset
from pyro_bvae.evaluation import elbo, inference_gaps
from pyro_bvae.training.fitting import fit
from pyro_bvae.training.history import History
from pyro_bvae.training.improvement.programs import improve_program, permuted
from pyro_bvae.training.improvement.result import ImprovedGuide
from pyro_bvae.training.improvement.simulated_data import WithSimulated
from pyro_bvae.training.objectives.terms import Objective
from pyro_bvae.training.schedules import OneCycle, Schedule
from pyro_bvae.vae import BetaVAE

# The peak of the learning rate of a guide that is trained already, and the part of the training
# in which it rises: its optimizer starts without a memory of the steps before.
_PEAK, _RISE = 3e-3, 0.1
# The peak of that of a guide that starts anew.
_NEW_PEAK = 3e-3
# The share of the data that are held out where no validation data are given, and data at least.
_HELD_OUT, _LEAST = 0.1, 2
# Draws for each datum by which the guide at the start is held against the one at the end.
_LOOKS = 16


@exclusive
def improve_guide(
    vae: Any,
    data: Any,
    *,
    epochs: int = 100,
    validation: Any = None,
    test: Any = None,
    posterior: nn.Module | None = None,
    objective: Objective | None = None,
    simulate: bool = True,
    training_beta: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> ImprovedGuide:
    r"""Train the guide on under the ELBO, with decoder and prior fixed to the bit.

    .. math:: \max_\phi \; \frac1N \sum_n \mathbb{E}_{q_\phi(z|x_n)} [\log p(x_n, z) - \log
        q_\phi(z|x_n)]

    The evidence is a number of the model alone and stays; each nat that the bound gains is one that
    the variational gap loses. A guide that was trained at another β loses its β gap (Higgins et al.
    2017 train model and guide at one β), one that was trained too briefly or is too small its
    amortization gap (Cremer et al. 2018), and another ``posterior`` the approximation gap too. The
    gaps are measured before and after, on the same data.

    Args:
        vae: The trained model. A :class:`~pyro_bvae.BetaVAE`, or any module with ``model`` and
            ``guide``, is left as it is and a copy is improved; a prior that looks through the
            encoder, as :class:`~pyro_bvae.priors.VampPrior` does, keeps a frozen copy of it. Of a
            pair ``(model, guide)`` of Pyro functions the guide's own parameters (of modules, or
            ``pyro.param``) are trained in place.
        data: The training data, as of :func:`~pyro_bvae.fit`; of a pair, its argument or a tuple of
            its arguments.
        epochs: Passes over the data at most. Training stops when the bound of held-out data has not
            improved for ``early_stopping`` epochs, and goes back to the best.
        validation: Held-out data that say when to stop; by default a tenth of ``data``.
        test: Data on which the gaps are measured; those of ``validation`` by default.
        posterior: Another encoder to train in the place of the model's own, of a richer family or a
            larger network, which is trained in place; None for the model's own.
        objective: :class:`~pyro_bvae.training.IWELBO`, say, with ``doubly_reparametrized=True``;
            the ELBO by default.
        simulate: Whether each batch is given as many data again that the model draws, which keeps a
            guide from learning few data by heart (Zhang et al. 2022); of a BetaVAE alone, and not
            of data that come from a loader.
        training_beta: The β that the guide was trained at, for the gaps before; at 0, where the
            best guide is a point, they are those of β = 1.
        seed: Seed of order, noise and choices; the caller's generators are left alone.
        **options: Of the gaps: ``num_data``, how many data they are measured on at most, drawn by
            ``seed`` (200; None for all), ``num_samples`` for each of these (1000), and ``settings``
            of the local refits. Of the training: those of :func:`~pyro_bvae.fit`, such as
            ``batch_size``, ``output``, ``progress``; ``learning_rate`` has by default a peak of
            1e-3, or 3e-3 for another ``posterior``, and ``early_stopping`` is a quarter of
            ``epochs``, at least 10.

    Returns:
        The improved model, and the gaps before and after.

    Raises:
        InputError: if the data or the program cannot be used; if model and guide of a program share
            parameters; if there is nothing to train.
    """
    check_count("epochs", epochs)
    num_data, settings = options.pop("num_data", 200), options.pop("settings", None)
    num_samples = options.pop("num_samples", 1000)
    check_count("num_samples", num_samples)
    progress = options.get("progress", True)
    if "beta" in options:
        raise InputError("'beta' is 1 where a guide is improved: the evidence has no other bound")
    training_beta = training_beta or 1.0  # the best guide at β = 0 is a point: no gap is its own
    rate, patience = options.pop("learning_rate", None), options.pop("early_stopping", None)
    fitting: dict[str, Any] = {
        "epochs": epochs,
        "objective": objective,
        "learning_rate": _rate(rate, posterior),
        "early_stopping": max(10, epochs // 4) if patience is None else patience,
        "seed": seed,
        **options,
    }

    def measure(model: Any, guide: Any, args: tuple[Any, ...], beta: float) -> Any:
        return inference_gaps(
            model, guide, *args, training_beta=beta, num_samples=num_samples, settings=settings,
            seed=seed, progress=progress,
        )  # fmt: skip

    held = (validation, test, num_data)
    if not isinstance(vae, BetaVAE):
        if posterior is not None:
            raise InputError(
                "'posterior' takes the place of the encoder of a BetaVAE; of a program of your own,"
                " give the pair (model, guide) with the other guide"
            )
        return improve_program(vae, data, held, measure, training_beta, fitting)
    train, kept_out = _divided(vae, data, validation, seed)
    improved = with_own_encoder(vae, posterior)
    args = _measured(vae, kept_out if test is None else test, num_data, seed)
    before = measure(vae.model, vae.guide, args, training_beta)
    if simulate and isinstance(train, Dataset | LazyDataset):
        train = WithSimulated(train, vae)
    history = _train(improved, train, kept_out, fitting)
    kept = posterior is None and _is_worse(vae, improved, kept_out, seed)
    if kept:
        improved.load_state_dict(with_own_encoder(vae, None).state_dict())
    after = measure(improved.model, improved.guide, args, 1.0)
    return ImprovedGuide(
        improved, improved.model, improved.guide, before, after, history, kept, args=args
    )


def _rate(learning_rate: float | Schedule | None, posterior: Any) -> Schedule:
    """Return the schedule of the learning rate."""
    if learning_rate is None:
        return OneCycle(_PEAK, rise=_RISE) if posterior is None else OneCycle(_NEW_PEAK)
    return learning_rate if callable(learning_rate) else OneCycle(learning_rate, rise=_RISE)


def _divided(vae: Any, data: Any, validation: Any, seed: int) -> tuple[Any, Dataset]:
    """Return training data and held-out ones, which are a tenth of the data where none are given.

    Raises:
        InputError: if the data cannot be divided.
    """
    data = as_dataset(data, vae) if is_table(data) else data
    if validation is not None:
        return data, as_dataset(validation, vae)
    if not isinstance(data, Dataset | LazyDataset):
        raise InputError(
            "'validation' must be given where a part of 'data' cannot be held out, got"
            f" {named(data)}"
        )
    held = max(_LEAST, round(_HELD_OUT * len(data)))
    if len(data) < 2 * held:
        raise InputError(
            f"'data' must be at least {2 * _LEAST} where a part of them is held out, got"
            f" {len(data)}"
        )
    order = permuted(len(data), seed)
    return data[order[held:].sort().values], data[order[:held].sort().values].dense()


def _measured(vae: Any, data: Any, num_data: int | None, seed: int) -> tuple[Any, ...]:
    """Return the arguments that the gaps are measured on, at most ``num_data`` of the data."""
    chosen = as_dataset(data, vae)
    if num_data is not None and num_data < len(chosen):
        check_count("num_data", num_data)
        chosen = chosen[permuted(len(chosen), seed, 1)[:num_data].sort().values]
    if chosen.stochastic_binarization:
        chosen = chosen.binarized(seed)
    return arguments(chosen.x, chosen.context)


def with_own_encoder(vae: BetaVAE, posterior: nn.Module | None = None) -> BetaVAE:
    """Return a copy of a model whose encoder is no part of its prior or its decoder.

    Args:
        vae: The model.
        posterior: Another encoder in the place of its own.

    Raises:
        InputError: if another posterior has other sizes than the model.
    """
    apart = copy.deepcopy(vae)
    encoder: Any = copy.deepcopy(vae.encoder) if posterior is None else posterior
    checked = BetaVAE(apart.prior, apart.decoder, encoder, missing=vae.missing)
    # The encoder of the first copy stays with a prior that looks through it.
    apart.encoder, apart.latent_dim = encoder, checked.latent_dim
    first = next(vae.parameters(), None)
    if posterior is not None and first is not None:
        encoder.to(first.device, first.dtype)
    return apart


def _train(vae: BetaVAE, data: Any, validation: Dataset, fitting: dict[str, Any]) -> History:
    """Train the encoder of a model, and nothing else of it."""
    still = [part for part in (vae.prior, vae.decoder) if isinstance(part, nn.Module)]
    with held_still(still):
        return fit(vae, data, validation=validation, **fitting)


@contextmanager
def held_still(parts: list[nn.Module]) -> Iterator[None]:
    """Run the body with parts of a model as they are: no gradient, no train mode."""
    trained = [p for part in parts for p in part.parameters() if p.requires_grad]
    modes = {module: module.training for part in parts for module in part.modules()}
    stay: Callable[..., Any] = lambda mode=True: None  # noqa: E731
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        for part in parts:
            part.eval()
            part.train = stay  # type: ignore[method-assign]
        yield
    finally:
        for part in parts:
            del part.train
        for module, training in modes.items():
            module.training = training
        for parameter in trained:
            parameter.requires_grad_(True)


def _is_worse(vae: BetaVAE, improved: BetaVAE, validation: Dataset, seed: int) -> bool:
    """Whether the bound of held-out data has fallen, by the same noise."""
    args = _measured(vae, validation, None, seed)
    bounds = [
        elbo(each.model, each.guide, *args, num_samples=_LOOKS, seed=seed)
        for each in (vae, improved)
    ]
    return not bounds[1].value >= bounds[0].value
