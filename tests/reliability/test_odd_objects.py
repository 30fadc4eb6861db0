"""Objects and functions of a person that are not as they seem: one line, or the right numbers."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from pyro_bvae import BetaVAE, InputError, evidence, fit, inference_gaps, runs, sweep
from pyro_bvae.cli import main
from pyro_bvae.datasets import Dataset, LazyDataset, from_factors
from pyro_bvae.latents import traverse
from tests.reliability.children import CONFIG
from tests.reliability.right_calls import REFITS, D, L, make_vae

X = torch.randn(6, D, generator=torch.Generator().manual_seed(0))
FEW: dict[str, Any] = {"num_samples": 5, "progress": False}
ONCE: dict[str, Any] = {"epochs": 1, "progress": False}
GOOD = make_vae()


class Mapped(nn.Module):
    """A part that returns a function of a network's output."""

    def __init__(self, sizes: tuple[int, int], make: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.network, self.make = nn.Linear(*sizes), make

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.make(self.network(inputs))


def scalars(values: torch.Tensor) -> dist.Normal:
    return dist.Normal(values, 1.0)


PARTS = {
    "prior": lambda make: BetaVAE(lambda: make(torch.zeros(L)), GOOD.decoder, GOOD.encoder),
    "decoder": lambda make: BetaVAE(GOOD.prior, Mapped((L, D), make), GOOD.encoder),
    "encoder": lambda make: BetaVAE(GOOD.prior, GOOD.decoder, Mapped((D, L), make)),
}
CALLS = {
    "fit": lambda vae: fit(vae, X, **ONCE),
    "evidence": lambda vae: evidence(vae, X, **FEW),
    "generate": lambda vae: vae.generate(2),
    "reconstruct": lambda vae: vae.reconstruct(X),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("role", PARTS)
def test_a_part_that_returns_no_distribution_of_vectors_is_named(role: str, call: str) -> None:
    if (role, call) in (("prior", "reconstruct"), ("encoder", "generate")):
        pytest.skip("the part is not asked")
    for make, words in ((lambda x: x, "got a tensor of shape"), (scalars, r"got \(\); .to_event")):
        with pytest.raises(InputError, match=f"'{role}' must return a distribution.*{words}") as e:
            CALLS[call](PARTS[role](make))
        assert "Trace Shapes" not in str(e.value) and len(str(e.value)) < 200


def no_width(*_: Any) -> Any:
    raise ValueError("no such width")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"make_vae": no_width}, "'make_vae' raised ValueError: no such width"),
        ({"make_vae": make_vae.__class__}, "'make_vae' raised TypeError"),
        ({"make_vae": lambda seed: (GOOD.model, GOOD.guide)}, "must build a model, got tuple"),
        ({"data": no_width}, "'data' raised ValueError: no such width"),
        ({"validation": no_width}, "'validation' raised ValueError: no such width"),
        ({"schedule": no_width}, "'schedule' raised ValueError: no such width"),
        ({"schedule": lambda beta: "x"}, "a schedule must be a number or a function, got 'x'"),
        ({"callbacks": no_width}, "'callbacks' raised ValueError: no such width"),
        ({"callbacks": lambda replica: [3]}, "'callbacks' must return a sequence of functions"),
    ],
)
def test_functions_of_a_sweep_that_raise_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        sweep(**{"make_vae": make_vae, "data": X, "betas": [1.0], **ONCE, **options})


@pytest.mark.parametrize("name", ["beta", "learning_rate"])
def test_a_schedule_of_another_form_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' raised TypeError: .*positional argument"):
        fit(make_vae(), X, **{name: lambda epoch: 1.0}, **ONCE)
    with pytest.raises(InputError, match=f"'{name}' must be .*, got x"):
        fit(make_vae(), X, **{name: lambda epoch, epochs: "x"}, **ONCE)


@pytest.mark.filterwarnings("ignore:4 of 4 features have one value")
def test_data_of_which_nothing_is_observed_are_refused_in_every_container() -> None:
    vae = BetaVAE(GOOD.prior, GOOD.decoder, GOOD.encoder, missing=True)
    unseen = torch.full_like(X, math.nan)
    lazy = LazyDataset(unseen.numpy())
    for data in (unseen, Dataset(unseen, missing=True), lazy, TensorDataset(unseen)):
        with pytest.raises(InputError, match="must have an observed entry, got NaN alone"):
            fit(vae, data, **ONCE)
    some = unseen.clone()
    some[-1] = 0.0  # in the last of the batches
    fit(vae, LazyDataset(some.numpy()), batch_size=2, **ONCE)


def test_arrays_that_run_backwards_are_their_numbers() -> None:
    for x in (X.numpy()[::-1], X.numpy()[:1][::-1], X.numpy()[:, ::-1]):
        assert torch.equal(GOOD.encode(x), GOOD.encode(torch.tensor(x.copy())))
        evidence(GOOD, x, **FEW)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_containers_without_numbers_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    deep: Any = [1.0]
    for _ in range(10_000):
        deep = [deep]
    nested = torch.nested.nested_tensor([X[0], X[1]])
    for data in (endless, deep, nested, torch.empty(6, D, device="meta")):
        with pytest.raises(InputError):
            GOOD.encode(data)
    with pytest.raises(InputError, match="'images' must be numbers, got list"):
        from_factors([[1.0, 2.0], [3.0]], np.zeros(2))
    with pytest.raises(InputError, match="'values' must be"):
        traverse(GOOD, X, latents=[0], values=torch.empty(3, device="meta"))
    with pytest.raises(InputError, match="the model must have numbers for weights"):
        evidence(make_vae().to("meta"), X, **FEW)


def test_a_caller_who_takes_no_gradients_gets_the_same_numbers() -> None:
    models = [make_vae() for _ in range(3)]
    calls = (
        lambda: fit(models.pop(), X, **ONCE)["objective"],
        lambda: inference_gaps(GOOD, X[:1], settings=REFITS, **FEW).approximation.per_datum,
    )
    for call in calls:
        expected = torch.as_tensor(call())
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                assert torch.equal(torch.as_tensor(call()), expected)
                assert not torch.is_grad_enabled()


def test_no_output_takes_the_place_of_a_file_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    runs.train(CONFIG, run, progress=False)
    before = (run / "metrics.csv").read_bytes()
    assert main(["embed", str(run), "--output", str(run / "metrics.csv")]) == 2
    assert (run / "metrics.csv").read_bytes() == before
    assert main(["embed", str(run), "--output", str(run / "mine.csv")]) == 0


def test_a_path_that_stands_for_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path, tmp_path / "file" / "config.json"):
        with pytest.raises((InputError, OSError), match=str(tmp_path)) as caught:
            runs.write_config(CONFIG, path)
        assert type(caught.value).__name__ in ("InputError", "WriteError")
