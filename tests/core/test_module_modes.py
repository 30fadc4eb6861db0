"""Modules behind functions: all that can be reached run in eval mode, none of another thread, and no hook is left."""

import functools
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from pyro_bvae import evidence
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.module_modes import EvalModeCheck, evaluating

TABLE: dict[str, Any] = {}
PLACES = types.SimpleNamespace(network=None)


class OfClass:
    network = nn.Dropout()

    def __call__(self, x: Tensor) -> Tensor:
        return self.network(x)

    @property
    def other(self) -> Any:
        return TABLE["network"]


class Hidden(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._parts = [[network]]

    def forward(self, x: Tensor) -> Tensor:
        return self._parts[0][0](x)


def helper(x: Tensor) -> Tensor:
    return TABLE["network"](x)


def by_helpers(x: Tensor) -> Any:
    return (lambda: [helper(row) for row in x])()


def by_default(x: Tensor, table: dict[str, Any] = TABLE) -> Tensor:
    return table["network"](x)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(function)(lambda x: function(x) + 0)


@pytest.fixture
def network() -> Iterator[nn.Module]:
    TABLE["network"] = PLACES.network = nn.Dropout()
    yield TABLE["network"]
    TABLE.clear()


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "itself": lambda network: network,
    "method": lambda network: network.forward,
    "hidden in a list of a module": Hidden,
    "closure": lambda network: lambda x: network(x) + 0,
    "closure over a list": lambda network: functools.partial(
        lambda parts, x: parts[0](x), [network]
    ),
    "helpers": lambda network: by_helpers,
    "default": lambda network: by_default,
    "decorated": lambda network: decorated(by_helpers),
    "attribute of a global": lambda network: lambda x: PLACES.network(x) + 0,
    "property": lambda network: lambda x: OfClass().other(x),
    "handler": lambda network: pyro.poutine.scale(by_helpers, scale=2.0),
    "nested handlers": lambda network: pyro.poutine.block(pyro.poutine.scale(network, scale=2.0)),
    "autoguide": lambda network: AutoNormal(lambda x: network(x) + 0),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_modules_are_reached_and_restored(
    way: Callable[[nn.Module], Any], network: nn.Module
) -> None:
    function = way(network)
    with pytest.raises(ZeroDivisionError), evaluating(function):
        assert not network.training
        raise ZeroDivisionError
    assert network.training
    network.eval()
    with evaluating(function):
        assert not network.training
    assert not network.training


def test_modules_of_a_class_are_reached() -> None:
    for function in (OfClass(), lambda x: OfClass.network(x) + 0):
        with evaluating(function):
            assert not OfClass.network.training
        assert OfClass.network.training


def test_another_thread_goes_on_in_train_mode() -> None:
    trained, measured = nn.Dropout(0.5), nn.Dropout(0.5)
    outputs: list[Tensor] = []

    def train() -> None:
        outputs.append(trained(torch.ones(100)))

    with evaluating(measured), EvalModeCheck():
        assert not torch_module._global_forward_pre_hooks
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        assert bool((measured(torch.ones(100)) == 1).all())
    assert trained.training and bool((outputs[0] == 0).any())


@pytest.mark.usefixtures("network")
def test_a_module_out_of_reach_is_refused_in_train_mode() -> None:
    name = "TABLE"  # looked up by a string: no search finds that

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(globals()[name]["network"](z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))

    x = torch.randn(20, 2)
    with pytest.raises(InputError, match=r"in train mode.*call \.eval\(\) on that module before"):
        evidence(model, guide, x, num_samples=10)
    TABLE["network"].eval()
    assert evidence(model, guide, x, num_samples=10).value < 0


def test_only_batch_norm_that_moves_its_statistics_is_refused() -> None:
    x = torch.randn(4, 2)
    with EvalModeCheck():
        nn.BatchNorm1d(2).eval()(x)
        nn.BatchNorm1d(2, track_running_stats=False)(x)
        with pytest.raises(InputError, match="runs batch_norm in train mode"):
            nn.BatchNorm1d(2)(x)
