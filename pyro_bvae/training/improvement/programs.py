"""A person's own Pyro program as :func:`~pyro_bvae.fit` takes it: its guide alone has parameters.

The data that the fit deals are the numbers of rows, and the program is run on those rows of its
arguments, whatever their shapes and types.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_bvae.core.errors import InputError, check_count, listed
from pyro_bvae.core.module_modes import evaluating, leaves, names_in
from pyro_bvae.core.param_store import private_store
from pyro_bvae.core.seeds import CHOICE_STREAM, PROBE_STREAM, seeded, stream_seed
from pyro_bvae.evaluation import elbo
from pyro_bvae.program.arguments import take
from pyro_bvae.program.program import Function, open_program
from pyro_bvae.program.sites import samples
from pyro_bvae.training.fitting import fit
from pyro_bvae.training.history import History
from pyro_bvae.training.improvement.result import ImprovedGuide

Measure = Callable[[Any, Any, tuple[Any, ...], float], Any]
# The share of the data that are held out where no validation data are given, data at least, and
# draws for each of them by which the guide at the start is held against the one at the end.
_HELD_OUT, _LEAST, _LOOKS = 0.1, 2, 16


def improve_program(
    program: Any,
    data: Any,
    held: tuple[Any, Any, int | None],
    measure: Measure,
    training_beta: float,
    fitting: dict[str, Any],
) -> ImprovedGuide:
    """Train the guide of a program on; see :func:`~pyro_bvae.training.improve_guide`.

    Args:
        program: A module with ``model`` and ``guide``, or a pair of functions.
        data: The argument of both, or a tuple of all.
        held: Validation data and test data, each as ``data`` or None, and how many are measured.
        measure: Measures the gaps of model, guide, arguments and a β.
        training_beta: The β of the guide that is given.
        fitting: The options of the fit.

    Raises:
        InputError: if model and guide share parameters, the guide has none, or data weigh on each
            other.
    """
    vae, given = None, _pair(program)
    pair = given
    if isinstance(program, nn.Module):
        vae = copy.deepcopy(program)
        pair = _pair(vae)
    (validation, test, num_data), seed = held, fitting["seed"]
    args, kept_out = _arguments(data), _arguments(validation)
    size = _count(pair, args, seed)
    if validation is None:
        args, kept_out = _divided(args, size, seed)
    measured = _some(pair, _arguments(test) or kept_out, num_data, seed)
    before = measure(*given, measured, training_beta)
    sizes = (_count(pair, args, seed), _count(pair, kept_out, seed))
    history, kept = _Rows(pair, args, kept_out, sizes, seed).improve(fitting)
    after = measure(*pair, measured, 1.0)
    return ImprovedGuide(vae, *pair, before, after, history, kept, args=measured)


def _count(pair: tuple[Function, Function], args: tuple[Any, ...], seed: int) -> int:
    """Return the number of data of a program.

    Raises:
        InputError: if data weigh on each other.
    """
    with open_program(*pair, args, seed=seed) as opened:
        if not opened.sliceable:
            raise InputError(
                "the program gives other weights to data together than apart, so no batch of them"
                " can be trained on"
            )
        return opened.num_data


def _divided(
    args: tuple[Any, ...], size: int, seed: int
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the arguments of training data, and those of a tenth that is held out."""
    held = max(_LEAST, round(_HELD_OUT * size))
    if size < 2 * held:
        raise InputError(f"'data' must be at least {2 * _LEAST} to hold a part out, got {size}")
    order = permuted(size, seed)
    return (
        take(args, size, order[held:].sort().values),
        take(args, size, order[:held].sort().values),
    )


def permuted(size: int, seed: int, *path: int) -> Tensor:
    """Return the numbers of some rows in a random order."""
    generator = torch.Generator().manual_seed(stream_seed(seed, CHOICE_STREAM, *path))
    return torch.randperm(size, generator=generator)


def _pair(program: Any) -> tuple[Function, Function]:
    pair = program if isinstance(program, tuple) else (
        getattr(program, "model", None), getattr(program, "guide", None)
    )  # fmt: skip
    if len(pair) != 2 or not all(map(callable, pair)) or isinstance(program, type):
        raise InputError(
            "'vae' must be a module with Pyro functions model and guide, or a pair (model, guide),"
            f" got {program!r:.80}"
        )
    return pair


def _arguments(data: Any) -> tuple[Any, ...]:
    if not isinstance(data, tuple | Tensor | None):
        raise InputError(
            "the data of a program of your own must be a tensor, or a tuple of its arguments, got"
            f" {type(data).__name__}"
        )
    return data if isinstance(data, tuple) else () if data is None else (data,)


def _some(
    pair: tuple[Function, Function], args: tuple[Any, ...], num_data: int | None, seed: int
) -> tuple[Any, ...]:
    """Return the arguments of some of the data, chosen by the seed."""
    size = _count(pair, args, seed)
    if num_data is None or num_data >= size:
        return args
    check_count("num_data", num_data)
    return take(args, size, permuted(size, seed, 1)[:num_data].sort().values)


class _Unscaled(Messenger):  # type: ignore[misc]
    """An effect handler that drops the scales of all sites, such as a β of the program's own."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        msg["scale"] = 1.0


class _Rows(nn.Module):
    """A program over rows of its arguments, whose only parameters are those of its guide.

    Args:
        pair: Model and guide.
        train: Their arguments with the training data.
        kept_out: Their arguments with the held-out data, whose rows count on from the others.
        sizes: How many data both hold.
        seed: Seed of draws.
    """

    def __init__(
        self,
        pair: tuple[Function, Function],
        train: tuple[Any, ...],
        kept_out: tuple[Any, ...],
        sizes: tuple[int, int],
        seed: int,
    ) -> None:
        super().__init__()
        self.pair, self.parts, self.sizes, self.seed = pair, (train, kept_out), sizes, seed
        store = pyro.get_param_store()
        names = {id(value): name for name, value in store.named_parameters()}
        own, theirs = _leaves_of(pair, take(train, sizes[0], slice(0, 2)), seed)
        _check_apart(pair, own, theirs, names)
        self.fixed, self.stored = theirs, {}
        trained = []
        for leaf in own:
            # Of one storage with the tensor in Pyro's store, whose value a step changes with it.
            parameter = leaf if isinstance(leaf, nn.Parameter) else nn.Parameter(leaf.detach())
            if id(leaf) in names:
                self.stored[names[id(leaf)]] = parameter
            trained.append(parameter)
        self.trained = nn.ParameterList(trained)

    def model(self, x: Tensor, context: Any = None, beta: Any = 1.0) -> Any:
        """Run the model on rows; its parameters stay, so no handler need see them."""
        with _Unscaled(), poutine.block(hide_types=["param"]):
            return self.pair[0](*self._args(x))

    def guide(self, x: Tensor, context: Any = None, beta: Any = 1.0) -> Any:
        """Run the guide on rows."""
        with _Unscaled():
            return self.pair[1](*self._args(x))

    def _args(self, x: Tensor) -> tuple[Any, ...]:
        """Return the arguments of rows, ``(B, 1)``, by their numbers."""
        rows = x.flatten().round().long()
        held = bool((rows >= self.sizes[0]).any())
        return take(self.parts[held], self.sizes[held], rows - held * self.sizes[0])

    def improve(self, fitting: dict[str, Any]) -> tuple[History, bool]:
        """Train the guide; go back to the start at an error, or if no epoch was better."""
        numbers = torch.arange(sum(self.sizes), dtype=torch.double).unsqueeze(-1)
        train, kept_out = numbers[: self.sizes[0]], numbers[self.sizes[0] :]
        start, bound = [part.detach().clone() for part in self.trained], self._bound()
        store = pyro.get_param_store()
        state = store.get_state()
        state["params"] |= self.stored
        try:
            with store.scope(state), _without_gradient(self.fixed), evaluating(*self.pair):
                history = fit(self, train, validation=kept_out, **{"compile": False, **fitting})
            kept = not self._bound() >= bound
        except BaseException:
            self._put_back(start)
            raise
        if kept:
            self._put_back(start)
        return history, kept

    def _bound(self) -> float:
        """Return the bound of the held-out data, always by the same noise."""
        return elbo(*self.pair, *self.parts[1], num_samples=_LOOKS, seed=self.seed).value

    @torch.no_grad()
    def _put_back(self, start: list[Tensor]) -> None:
        for parameter, value in zip(self.trained, start, strict=True):
            parameter.copy_(value)


@contextmanager
def _without_gradient(weights: list[Tensor]) -> Iterator[None]:
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def _leaves_of(
    pair: tuple[Function, Function], args: tuple[Any, ...], seed: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors that the guide depends on, and those that the model depends on.

    Raises:
        InputError: for a ``pyro.param`` that the store does not hold yet.
    """
    model, guide = pair
    store = pyro.get_param_store()
    known = set(store.keys())
    with private_store(*pair), seeded(seed, PROBE_STREAM), torch.enable_grad(), evaluating(*pair):
        guide_sites = samples(poutine.trace(guide).get_trace(*args))
        if loose := sorted(name for name in set(store.keys()) - known if "$$$" not in name):
            raise InputError(
                f"the guide makes the parameters {listed(loose)} when it is run: train it first, so"
                " that Pyro's store holds them"
            )
        drawn = {name: site["value"].detach() for name, site in guide_sites.items()}
        model_sites = samples(poutine.trace(poutine.condition(model, drawn)).get_trace(*args))
    guide_terms = [
        part
        for site in guide_sites.values()
        for part in (site["value"], site["fn"].log_prob(site["value"]))
    ]
    model_terms = [site["fn"].log_prob(site["value"]) for site in model_sites.values()]
    own, theirs = (
        leaves(torch.stack([part.double().sum() for part in terms]).sum())
        for terms in (guide_terms, model_terms)
    )
    if not own:
        raise InputError(
            "the guide has no parameter to train: it must be made of modules, or of pyro.param"
        )
    return own, theirs


def _check_apart(
    pair: tuple[Function, Function], own: list[Tensor], theirs: list[Tensor], names: dict[int, str]
) -> None:
    """Raise if model and guide share parameters."""
    shared = {id(leaf) for leaf in own} & {id(leaf) for leaf in theirs}
    if shared:
        places = names_in(guide=pair[1])
        which = [places.get(key, names.get(key, "a tensor")) for key in shared]
        raise InputError(
            f"model and guide share {listed(sorted(which))}, and the model has to stay as it is:"
            " give it a copy of its own"
        )
