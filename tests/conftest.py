"""What every test starts from.

An empty parameter store, the same random state, Pyro's validation on.
"""

import gc
import os
import random
from collections.abc import Iterator

import numpy as np
import pyro
import pytest
import torch

from pyro_bvae.core.seeds import seed_generators
from pyro_bvae.report import page, rendering
from pyro_bvae.runs import snapshots

# Helpers by which a test forks, and files whose tests export in the process of the suite.
_FORKING = {"start", "output_of", "killed_before"}
_EXPORTING = {"test_exporting.py", "test_pages.py", "test_soak.py"}


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported stays: it need not be looked through at each collection


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    pyro.clear_param_store()
    seed_generators(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # as pyro.set_rng_seed
    pyro.enable_validation(True)
    yield
    pyro.clear_param_store()


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    torch.set_num_threads(1)  # the tensors are small: a second thread costs more than it gives


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Have files written as ever, but not waited for: no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session", autouse=True)
def coarse_pages() -> Iterator[None]:
    """Have figures of pages and snapshots drawn with few dots."""
    with pytest.MonkeyPatch.context() as patch:
        for room, name in ((page, "DPI"), (rendering, "DPI"), (snapshots, "_DPI")):
            patch.setattr(room, name, 20)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that fork, and end with those that export.

    A process in which a graph was exported has threads of autograd, and its children cannot train.
    Of two processes that share the suite, the first begins at its head and the second ends at its
    tail.
    """

    def place(item: pytest.Item) -> tuple[bool, bool]:
        names = vars(getattr(item, "module", None) or object).keys()
        return not _FORKING & names, item.path.name in _EXPORTING

    items.sort(key=place)
