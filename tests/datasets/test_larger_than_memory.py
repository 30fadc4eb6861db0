"""Training on data that memory does not hold: mapped files and torch datasets."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from pyro_bvae import BetaVAE, Decoder, fit
from pyro_bvae.core.errors import InputError
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import Constant

FEATURES = 6

# Half a gigabyte of which the disk holds what was written: a file with holes.
LIMITED = """
import resource, sys
import numpy as np
from test_larger_than_memory import train, vae

rows, features = 131_072, 1024
file = np.lib.format.open_memmap(sys.argv[1], "w+", np.float32, (rows, features))
file[:: rows // 64] = np.random.default_rng(0).normal(size=(64, features))
del file

# The limit counts what a process has of its own, and no file that it has mapped to read.
line = next(line for line in open("/proc/self/status") if line.startswith("VmData"))
limit = 1024 * int(line.split()[1]) + 300_000_000
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
table = np.load(sys.argv[1], mmap_mode="r")
assert table.nbytes > 300_000_000
try:
    np.array(table)
except MemoryError:
    print("does not fit")
history = train(table, vae(features), batch_size=2048)
print(len(history["objective"]), history["objective"][-1] < history["objective"][0])
"""


def vae(features: int = FEATURES) -> BetaVAE:
    torch.manual_seed(3)
    decoder = Decoder(MLP(2, features, hidden=(4,)), NormalLikelihood())
    return BetaVAE(NormalPrior(2), decoder, NormalPosterior(MLP(features, 4, hidden=(4,))))


def train(data: object, model: BetaVAE, batch_size: int = 8) -> dict[str, list[float]]:
    return fit(
        model, data, epochs=2, batch_size=batch_size, learning_rate=Constant(1e-2), progress=False
    )


def numbers(count: int = 20) -> Tensor:
    return torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(0))


class Items(TorchDataset[tuple[Tensor, int]]):
    """A torch dataset as people write them: an image and its class."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index].reshape(2, 3), index


def weights(data: object) -> Tensor:
    model = vae()
    train(data, model)
    return torch.nn.utils.parameters_to_vector(model.parameters())


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's data is Linux's")
def test_a_file_larger_than_the_memory_limit_is_trained_on(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIMITED, str(tmp_path / "large.npy")],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["does not fit", "2 True"]


@pytest.mark.filterwarnings("ignore:β σ²", "ignore:the rate is")
def test_a_mapped_file_and_a_torch_dataset_give_the_weights_of_the_tensor(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbers().numpy())
    expected = weights(numbers())
    assert torch.equal(weights(np.load(tmp_path / "x.npy", mmap_mode="r")), expected)
    assert torch.equal(weights(Items(numbers())), expected)


def test_a_torch_dataset_of_something_else_is_refused_in_words() -> None:
    class Words(TorchDataset[str]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> str:
            return "word"

    with pytest.raises(InputError, match="items must be, or start with, a tensor, got str"):
        train(Words(), vae())
    with pytest.raises(InputError, match="the torch Dataset has no items"):
        train(Items(numbers(0)), vae())
    bad = numbers()
    bad[3, 1] = torch.nan
    with pytest.raises(InputError, match="must be finite, got nan"):
        train(Items(bad), vae())
