"""Looking at the latents of a model: traverse, interpolate, embed, reconstruct, generate.

Every function takes a :class:`~pyro_bvae.BetaVAE`, a loaded run or the directory of one; a run
brings its test data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from pyro_bvae.core.context import Context, arguments
from pyro_bvae.core.errors import InputError, check_bytes, check_count, check_finite
from pyro_bvae.core.inputs.data import is_table, named, shown
from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.core.module_modes import evaluating
from pyro_bvae.core.protocols import VAE, ChecksData, latent_dim_of
from pyro_bvae.datasets import Dataset, LazyDataset
from pyro_bvae.datasets.rows import as_dataset
from pyro_bvae.evaluation import kl_per_dimension
from pyro_bvae.evaluation.latent_results import Embedding, Interpolation, Traversal
from pyro_bvae.latents.paths import AggregateRange, LatentPath, LinearPath, ValueRange
from pyro_bvae.runs import Run, load

# A model, a run, or the directory of one.
Model = VAE | Run | str | PathLike[str]
Data = Tensor | Dataset | LazyDataset

# Data that are encoded or decoded at a time.
_BLOCK = 1024
# Data that order the latents and give their range, spread evenly over all of them.
_MOST_DATA = 2000
_AGGREGATE, _STRAIGHT = AggregateRange(), LinearPath()


@exclusive
def traverse(
    model: Model,
    data: Data | None = None,
    *,
    latents: Sequence[int] | None = None,
    values: ValueRange | Tensor | Sequence[float] = _AGGREGATE,
    num_steps: int = 9,
    datum: int = 0,
    start: Tensor | None = None,
) -> Traversal:
    """Move one latent at a time and decode, the others held at a code.

    Args:
        model: A :class:`~pyro_bvae.BetaVAE`, a run, or the directory of one.
        data: Data that order the latents by their KL and say the range of each, a tensor ``(N,
            D)`` or a data set; a run's test data by default. A model needs none where all else is
            given.
        latents: The latents to move; by default the active ones (variance of the posterior mean
            above 0.01) by decreasing KL.
        values: The values they are given: a part, such as :class:`AggregateRange` or
            :class:`PriorRange`, or numbers ``(S,)``, or ``(R, S)`` for R latents.
        num_steps: Number S of the values, where a part gives them.
        datum: The datum whose code is moved, in whose context is decoded.
        start: The code to move instead, shape ``(L,)``.

    Returns:
        Codes, values, and data decoded from them. Reference: Higgins et al. 2017.

    Raises:
        InputError: if no latent is active, there is no such latent or datum, data are needed and
            not given, or the values are no such numbers.
    """
    check_count("num_steps", num_steps)
    vae, run = _opened(model)
    whole = _own(vae, run) if data is None else _given(vae, run, data)
    if whole is None and run is not None and (start is None or latents is None):
        run.part("test")  # whose error says that they are gone
    if whole is None:
        if start is None or latents is None:
            raise InputError(
                "'data' must be given with a model, to start from and to order the latents by, "
                "got None"
            )
        one, some, kl = None, None, None
    else:
        one, some = _row(whole, datum), whole[:: max(1, len(whole) // _MOST_DATA)].dense()
        vae.check_data(some.x, some.context)
        kl, order = _order(vae, some)
        latents = order if latents is None else latents
    code = _code(vae, one, start)
    if not len(latents):
        raise InputError(
            "no latent is active, or 'latents' is empty: name those to move, such as latents=[0, 1]"
        )
    for latent in latents:
        if not 0 <= latent < len(code):
            raise InputError(f"'latents' must be among 0 to {len(code) - 1}, got {latent}")
    moved = tuple(int(latent) for latent in latents)
    _check_size(vae, len(moved) * num_steps)
    steps = (
        values(vae, some, moved, num_steps) if callable(values) else _numbers(values, len(moved))
    )
    steps = steps.to(code)
    codes = code.repeat(*steps.shape, 1)
    for row, latent in enumerate(moved):
        codes[row, :, latent] = steps[row]
    rows = torch.zeros(steps.numel(), dtype=torch.long)
    context = None if one is None else one[rows].context
    own_kl, names = (
        None if kl is None else kl[list(moved)],
        () if whole is None else whole.feature_names,
    )
    return Traversal(moved, steps, codes, _decode(vae, codes, context), own_kl, names)


@exclusive
def interpolate(
    model: Model,
    start: Data | None = None,
    end: Data | None = None,
    *,
    path: LatentPath = _STRAIGHT,
    num_steps: int = 9,
) -> Interpolation:
    """Decode on the way between the codes of two data, for each of P pairs.

    The context is that of the first of the two.

    Args:
        model: A :class:`~pyro_bvae.BetaVAE`, a run, or the directory of one.
        start: The data at the beginning, a tensor ``(P, D)`` or a data set; a run's first test
            datum by default.
        end: The data at the end, as many; a run's second test datum by default.
        path: The way: :class:`LinearPath`, :class:`SphericalPath`, :class:`GeodesicPath`, or a
            function like them.
        num_steps: Number S of codes, both ends among them, at least 2.

    Returns:
        Codes and the data decoded from them. References: White 2016 (arcs), Arvanitidis et al. 2018
        (geodesics).

    Raises:
        InputError: if there are not as many ends as beginnings, or there is no such path between
            two codes.
    """
    check_count("num_steps", num_steps)
    if num_steps < 2:
        raise InputError(f"'num_steps' must be at least 2, the two ends, got {num_steps}")
    vae, run = _opened(model)
    if run is not None and (start is None or end is None):
        test = run.part("test")
        start, end = (test[:1] if start is None else start), (test[1:2] if end is None else end)
    if start is None or end is None:
        raise InputError(
            "'start' and 'end' must be given with a model, or with a run whose data are gone, "
            "got None"
        )
    first, last = _ready(vae, start).dense(), _ready(vae, end).dense()
    if len(first) != len(last):
        raise InputError(f"'end' must have as many data as 'start', {len(first)}, got {len(last)}")
    pairs = zip(_encode(vae, first), _encode(vae, last), strict=True)
    _check_size(vae, len(first) * num_steps)
    contexts = (first[row : row + 1].context for row in range(len(first)))
    codes = torch.stack(
        [
            path(vae, z0, z1, num_steps, context)
            for (z0, z1), context in zip(pairs, contexts, strict=True)
        ]
    )
    rows = torch.arange(len(first)).repeat_interleave(num_steps)
    decoded = _decode(vae, codes, first[rows].context)
    return Interpolation(first.x, last.x, codes, decoded, first.feature_names)


@exclusive
def embed(
    model: Model, data: Data | str | PathLike[str] | None = None, *, scales: bool = False
) -> Embedding:
    """Return the codes of data, the encoder's means, beside labels and factors.

    Args:
        model: A :class:`~pyro_bvae.BetaVAE`, a run, or the directory of one.
        data: The data to encode, a tensor ``(N, D)``, a data set, or, for a run, a file; a run's
            test data by default.
        scales: Return the posterior standard deviations too.

    Raises:
        InputError: if a model comes without data, they cannot be used, or the guide knows no
            standard deviations.
    """
    vae, whole = _needed(model, data)
    means, spreads = [], []
    for x, context in _blocks(vae, whole):
        means.append(vae.encode(x, context))
        if scales:
            with torch.no_grad(), evaluating(vae.posterior):
                guide = vae.posterior(x, context)
                try:
                    spreads.append(guide.stddev)
                except NotImplementedError:
                    raise InputError(
                        f"'scales': the guide ({type(guide).__name__}) knows no standard deviation"
                    ) from None
    known = whole.labels, whole.factors, whole.label_names, whole.factor_names, whole.index
    return Embedding(torch.cat(means), torch.cat(spreads) if scales else None, *known)


@exclusive
def reconstruct(model: Model, data: Data | str | PathLike[str] | None = None) -> Tensor:
    """Return the decoder's means at the posterior means of the latents, shape ``(N, D)``.

    Args:
        model: A :class:`~pyro_bvae.BetaVAE`, a run, or the directory of one.
        data: The data to reconstruct, a tensor ``(N, D)``, a data set, or, for a run, a file; a
            run's test data by default.

    Raises:
        InputError: if a model comes without data, or they cannot be used.
    """
    vae, whole = _needed(model, data)
    return torch.cat([vae.reconstruct(x, context) for x, context in _blocks(vae, whole)])


@exclusive
def generate(
    model: Model,
    num_samples: int,
    context: Context | None = None,
    *,
    temperature: float = 1.0,
    noise: bool = False,
    seed: int = 0,
) -> Tensor:
    """Draw latents from the prior and decode them, shape ``(num_samples, D)``.

    Args:
        model: A :class:`~pyro_bvae.BetaVAE`, a run, or the directory of one.
        num_samples: How many data to make.
        context: The context of the data to make, a row for each; by default, where a run's data
            have one, that of its test data in turn.
        temperature: Scales the spread of the prior about its location; see
            :meth:`pyro_bvae.BetaVAE.generate`.
        noise: Draw from the likelihood instead of taking its mean.
        seed: Seed of the draws.

    Raises:
        InputError: if the number is no positive integer, the temperature is negative, or is not 1
            and the prior has no location.
    """
    check_count("num_samples", num_samples)
    vae, run = _opened(model)
    _check_size(vae, num_samples)
    if context is None and run is not None:
        test = _own(vae, run)
        known = run.contexts if test is None else test.context
        if known is not None:
            own, count = (
                next(vae.parameters()),
                len(next(each for each in known if each is not None)),
            )
            context = known.take(torch.arange(num_samples) % count).to(own)
    made: Tensor = vae.generate(
        num_samples, context, temperature=temperature, noise=noise, seed=seed
    )
    return made


def _opened(model: Model) -> tuple[VAE, Run | None]:
    """Return the model, and the run that it is of."""
    run = load(Path(model)) if isinstance(model, str | PathLike) else model
    if isinstance(run, Run):
        return run.vae, run
    if isinstance(run, type) or not isinstance(run, ChecksData):
        raise InputError(f"'model' must be a BetaVAE, a run or its directory, got {shown(model)}")
    return run, None


def _own(vae: VAE, run: Run | None) -> Dataset | LazyDataset | None:
    """Return the test data of a run; None where they are gone."""
    return None if run is None or run.splits is None else _ready(vae, run.splits.test)


def _given(vae: VAE, run: Run | None, data: Data | str | PathLike[str]) -> Dataset | LazyDataset:
    """Return data that are given; a file is read as the run has read its own data."""
    if isinstance(data, str | PathLike):
        if run is None:
            raise InputError(f"'data' may be a file for a run only, got {shown(data)}")
        data = run.read(data)
    return _ready(vae, data)


def _ready(vae: VAE, data: Data) -> Dataset | LazyDataset:
    """Return data as a data set in the model's type and on its device."""
    own = next(vae.parameters(), None)
    data = as_dataset(data, vae) if is_table(data) else data
    if not isinstance(data, Dataset | LazyDataset):
        raise InputError(f"data must be a tensor (N, D) or a data set, got {named(data)}")
    return data if own is None else data.to(own.device, own.dtype)


def _needed(
    model: Model, data: Data | str | PathLike[str] | None
) -> tuple[VAE, Dataset | LazyDataset]:
    vae, run = _opened(model)
    if data is not None:
        return vae, _given(vae, run, data)
    if run is None:
        raise InputError("'data' must be given with a model, got None")
    return vae, _ready(vae, run.part("test"))


def _blocks(vae: VAE, data: Dataset | LazyDataset) -> Iterator[tuple[Tensor, Context | None]]:
    """Yield the data in blocks, each checked against the likelihood's support."""
    for x, context in data.batches(_BLOCK, seed=0, epoch=0, shuffle=False):
        vae.check_data(x, context)
        yield x, context


def _encode(vae: VAE, data: Dataset | LazyDataset) -> Tensor:
    return torch.cat([vae.encode(x, context) for x, context in _blocks(vae, data)])


def _check_size(vae: VAE, count: int) -> None:
    """Raise for more codes than can be decoded in the memory, by the widest layer."""
    widest = max((max(weight.shape, default=1) for weight in vae.parameters()), default=1)
    check_bytes(8 * count * widest, f"decoding {count} codes")


def _decode(vae: VAE, codes: Tensor, context: Context | None) -> Tensor:
    """Decode ``(R, S, L)`` codes, in a context with a row for each of them."""
    x: Tensor = vae.decode(codes.flatten(0, 1), context)
    return x.unflatten(0, codes.shape[:2])


def _row(data: Dataset | LazyDataset, datum: int) -> Dataset:
    if not isinstance(datum, int) or not 0 <= datum < len(data):
        raise InputError(
            f"'datum' must be the number of one of {len(data)} data, 0 to {len(data) - 1}, got "
            f"{datum}"
        )
    return data[datum : datum + 1].dense()


def _order(vae: VAE, data: Dataset) -> tuple[Tensor | None, list[int]]:
    """Return the KL of each latent, if it is known, and the active latents by decreasing KL."""
    args = arguments(data.x, data.context)
    result = kl_per_dimension(vae.model, vae.guide, *args)
    if result is None:
        raise InputError(
            "a traversal is of a model with one latent site, and a guide without others"
        )
    weight = result.mean_variances if result.values is None else result.values
    order = weight.argsort(descending=True, stable=True)
    return result.values, [int(latent) for latent in order if result.active[latent]]


def _code(vae: VAE, one: Dataset | None, start: Tensor | None) -> Tensor:
    """Return the code to start from, ``(L,)``: the one given, or that of the datum."""
    if start is None:
        assert one is not None
        return _encode(vae, one)[0]
    wanted = latent_dim_of(vae)
    if start.dim() != 1 or (wanted is not None and len(start) != wanted):
        raise InputError(
            f"'start' must be a code of shape ({wanted or 'L'},), got shape {tuple(start.shape)}"
        )
    check_finite("start", start)
    own = next(vae.parameters(), None)
    return start if own is None else start.to(own)


def _numbers(values: Tensor | Sequence[float], num_latents: int) -> Tensor:
    """Return values as ``(R, S)``."""
    numbers = torch.as_tensor(values, dtype=None if isinstance(values, Tensor) else torch.double)
    if (
        numbers.dim() not in (1, 2)
        or not numbers.numel()
        or (numbers.dim() == 2 and len(numbers) != num_latents)
    ):
        shape = tuple(numbers.shape)
        raise InputError(
            f"'values' must be numbers (S,), or ({num_latents}, S) for as many latents, got "
            f"shape {shape}"
        )
    check_finite("values", numbers)
    return numbers.expand(num_latents, -1)
