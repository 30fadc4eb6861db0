"""What every test starts from.

An empty parameter store, the same random state, Pyro's validation on.
"""

from collections.abc import Iterator

import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pyro.enable_validation(True)
    yield
    pyro.clear_param_store()


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    torch.set_num_threads(1)  # the tensors are small: a second thread costs more than it gives
