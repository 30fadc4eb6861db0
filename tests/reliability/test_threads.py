"""Several threads of one process: the numbers of one after the other, and the state as before."""

import copy
import os
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pyro_bvae import BetaVAE, Decoder, elbo, evidence, fit, inference_gaps, sweep
from pyro_bvae.core.inputs import turns
from pyro_bvae.core.inputs.turns import turn
from pyro_bvae.evaluation import decompose_kl, diagnose, evaluate
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.latents import embed, traverse
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior

X = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
FEW: dict[str, Any] = {"num_samples": 20, "seed": 3}
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 8, "progress": False}


def make_vae(seed: int, dropout: float = 0.2) -> BetaVAE:
    """A model with dropout, so that a mode that another thread flips would change its numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [MLP(5, 8, (6,)), nn.Dropout(dropout), nn.Linear(8, 4)]
        encoder = NormalPosterior(nn.Sequential(*layers))
        return BetaVAE(NormalPrior(2), Decoder(MLP(2, 5, (6,)), NormalLikelihood()), encoder)


def fitted(vae: BetaVAE, seed: int) -> list[Any]:
    rows = fit(vae, X, seed=seed, **SHORT).rows
    numbers = [value for row in rows for name, value in row.items() if name != "seconds"]
    return [*numbers, *(parameter.detach().clone() for parameter in vae.parameters())]


def swept(vae: BetaVAE, seed: int) -> list[Any]:
    runs = sweep(lambda seed: make_vae(seed, 0.0), X, betas=[0.5, 1.0], seeds=[seed], **SHORT)
    return [parameter.detach() for run in runs for parameter in run.vae.parameters()]


def all_gaps(vae: BetaVAE, seed: int) -> list[Any]:
    settings = RefitSettings(max_rounds=2, steps_per_round=5, num_plateaus=1)
    gaps = inference_gaps(vae.model, vae.guide, X[:1], settings=settings, **FEW)
    return [gaps.variational.per_datum, gaps.approximation.per_datum, gaps.amortization.per_datum]


TASKS: dict[str, Callable[[BetaVAE, int], list[Any]]] = {
    "fit": fitted,
    "sweep": swept,
    "evidence": lambda vae, seed: [evidence(vae.model, vae.guide, X, **FEW).per_datum],
    "elbo": lambda vae, seed: [elbo(vae.model, vae.guide, X, **FEW).per_datum],
    "gaps": all_gaps,
    "evaluate": lambda vae, seed: [evaluate(vae.model, vae.guide, X[:1], **FEW).bound.elbo.value],
    "kl": lambda vae, seed: [decompose_kl(vae.model, vae.guide, X, seed=seed).marginal_kl.value],
    "diagnose": lambda vae, seed: [diagnose(vae, X, seed=seed).eigenvalues],
    "latents": lambda vae, seed: [vae.encode(X), vae.reconstruct(X), embed(vae, X).means],
    "generate": lambda vae, seed: [vae.generate(7, noise=True, seed=seed)],
    "traverse": lambda vae, seed: [traverse(vae, X, latents=[0], num_steps=3).x],
}


def equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def in_threads(calls: list[Callable[[], Any]]) -> list[Any]:
    """Return the results of calls that start at once, each in a thread of its own."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait(timeout=60)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(timeout=120) for future in [pool.submit(run, c) for c in calls]]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 110.0)


@pytest.mark.parametrize("name", TASKS)
def test_the_same_task_in_threads_gives_the_numbers_of_one_after_the_other(name: str) -> None:
    pyro.param("mine", torch.ones(2))
    models = [make_vae(seed) for seed in range(2)]
    expected = [TASKS[name](copy.deepcopy(vae), seed) for seed, vae in enumerate(models)]
    state, store = torch.get_rng_state(), set(pyro.get_param_store().keys())
    calls = [
        lambda vae=vae, seed=seed: TASKS[name](copy.deepcopy(vae), seed)
        for seed, vae in enumerate(models)
    ]
    for one, other in zip(expected, in_threads(calls), strict=True):
        assert len(one) == len(other) > 0
        assert all(map(equal, one, other))
    assert set(pyro.get_param_store().keys()) == store == {"mine"}
    assert torch.equal(torch.get_rng_state(), state)


def test_all_tasks_at_once_give_their_numbers() -> None:
    models = {name: make_vae(index) for index, name in enumerate(TASKS)}
    expected = {name: TASKS[name](copy.deepcopy(vae), 1) for name, vae in models.items()}
    state = torch.get_rng_state()
    groups = [list(TASKS)[start::4] for start in range(4)]

    def work(names: list[str]) -> dict[str, Any]:
        return {name: TASKS[name](copy.deepcopy(models[name]), 1) for name in names}

    results: dict[str, Any] = {}
    for part in in_threads([lambda names=names: work(names) for names in groups]):
        results |= part
    wrong = [name for name in TASKS if not all(map(equal, expected[name], results[name]))]
    assert not wrong
    assert not pyro.get_param_store().keys() and torch.equal(torch.get_rng_state(), state)
    assert not any(vae.training != models["fit"].training for vae in models.values())


def test_one_model_is_measured_by_many_threads() -> None:
    vae = make_vae(0)
    expected = evidence(vae.model, vae.guide, X, **FEW).per_datum
    calls = [lambda: evidence(vae.model, vae.guide, X, **FEW).per_datum] * 4
    assert all(torch.equal(expected, result) for result in in_threads(calls))
    assert vae.training


def test_a_loader_of_workers_and_callbacks_that_measure_do_not_wait_for_themselves() -> None:
    vae, seen = make_vae(0), []

    def measure(row: dict[str, float]) -> None:
        seen.append(elbo(vae.model, vae.guide, X[:4], num_samples=2).value + vae.encode(X).sum())

    loader = DataLoader(X, batch_size=8, num_workers=1)
    fit(vae, loader, epochs=2, progress=False, callbacks=[measure])
    assert len(seen) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_gives_the_turn_to_the_others(error: type[BaseException]) -> None:
    vae, other = make_vae(0), make_vae(1)
    expected = fitted(copy.deepcopy(vae), 0)

    def stop(row: dict[str, float]) -> None:
        raise error("enough")

    def stopped() -> bool:
        with pytest.raises(error):
            fit(other, X, callbacks=[stop], **SHORT)
        return True

    first, second = in_threads([stopped, lambda: fitted(vae, 0)])
    assert first and all(map(equal, expected, second))
    assert not pyro.get_param_store().keys()


def test_who_waits_long_says_for_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 0.05)
    vae, held, done = make_vae(0), threading.Event(), threading.Event()

    def hold() -> None:
        with turn():
            held.set()
            done.wait(timeout=60)

    holder = threading.Thread(target=hold, name="holder")
    holder.start()
    assert held.wait(timeout=60)
    threading.Timer(0.3, done.set).start()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vae.encode(X)
    holder.join()
    (warning,) = caught
    text = str(warning.message)
    assert "thread 'MainThread' waits for thread 'holder'" in text and "\n" not in text
    assert warning.filename == __file__


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork keeps the forking thread alone")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_has_not() -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with turn():
            held.set()
            done.wait(timeout=60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(timeout=60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if not child:
        with turn(), turn():
            os._exit(7)
    done.set()
    holder.join()
    until = time.monotonic() + 30
    while (status := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < until:
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(status[1]) == 7 and status[0] == child
