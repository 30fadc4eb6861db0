"""The MNIST family from local files, and what is said when there are none."""

import struct
import sys
from urllib.error import URLError

import numpy as np
import pytest
import torch

from pyro_bvae import datasets
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import fashion_mnist, kmnist, mnist

FAMILY = [
    (mnist, "MNIST", "mnist"),
    (fashion_mnist, "FashionMNIST", "fashion-mnist"),
    (kmnist, "KMNIST", "kmnist"),
]


def write_idx(path, array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_family(root, folder, num_train=20, num_test=6):
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", num_train), ("t10k", num_test)):
        images = np.arange(count * 28 * 28).reshape(count, 28, 28) % 256
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return raw


@pytest.fixture
def offline(monkeypatch):
    """Refuse every download as a machine without a network does."""
    from torchvision.datasets import mnist as module

    def refuse(*args, **kwargs):
        print("Downloading ...")
        raise URLError("[Errno -2] Name or service not known")

    monkeypatch.setattr(module, "download_and_extract_archive", refuse)


@pytest.mark.parametrize(("loader", "folder", "name"), FAMILY)
def test_local_files_are_read(loader, folder, name, tmp_path, offline):
    write_family(tmp_path, folder)
    splits = loader(tmp_path, validation=5)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (15, 5, 6)
    assert splits.name == name and splits.train.image_shape == (1, 28, 28)
    pixels = (torch.arange(20 * 784) % 256).view(20, 784) / 255
    assert torch.equal(splits.train.x, pixels[:15]) and torch.equal(
        splits.validation.x, pixels[15:]
    )
    assert splits.train.x.dtype == torch.float32
    assert splits.validation.labels.tolist() == [5, 6, 7, 8, 9]
    assert len(splits.test.label_names) == 10
    by_name = datasets.load(name, root=tmp_path, validation=0)
    assert by_name.validation is None and len(by_name.train) == 20


def test_root_from_the_environment(tmp_path, monkeypatch, offline):
    write_family(tmp_path, "MNIST")
    monkeypatch.setenv("PYRO_BVAE_DATA", str(tmp_path))
    assert len(mnist(validation=0.25).validation) == 5


def test_default_root_is_in_the_home(tmp_path, monkeypatch):
    monkeypatch.delenv("PYRO_BVAE_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    write_family(tmp_path / ".cache" / "pyro_bvae", "MNIST")
    assert len(mnist(validation=0).train) == 20


def test_default_validation_needs_as_many_images(tmp_path):
    write_family(tmp_path, "MNIST")
    with pytest.raises(
        InputError, match=r"'validation' must be a fraction in .* below 20, got 5000"
    ):
        mnist(tmp_path)


@pytest.mark.parametrize(("loader", "folder", "name"), FAMILY)
def test_absent_and_offline_is_one_line(loader, folder, name, tmp_path, offline, capfd):
    with pytest.raises(InputError) as caught:
        loader(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(
        f"{folder} is not in {tmp_path / folder / 'raw'} (the download failed: "
    )
    assert "Name or service not known" in message
    assert (
        "put these files there: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-" in message
    )
    assert capfd.readouterr() == ("", "")


def test_one_file_of_four_is_absent(tmp_path, offline):
    raw = write_family(tmp_path, "MNIST")
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="MNIST is not in"):
        mnist(tmp_path)


def test_without_download_nothing_is_fetched(tmp_path):
    with pytest.raises(InputError, match="download is off"):
        mnist(tmp_path, download=False)
    assert not list(tmp_path.iterdir())


def test_root_that_is_a_file(tmp_path, offline):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="MNIST is not in"):
        mnist(file)


@pytest.mark.parametrize("content", [b"", b"\x00\x00\x08", b"not an idx file at all"])
def test_broken_files(tmp_path, content):
    raw = write_family(tmp_path, "MNIST")
    (raw / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(
        InputError, match=r"the training files in .* cannot be read .* download them again"
    ):
        mnist(tmp_path)


def test_truncated_file(tmp_path):
    images = write_family(tmp_path, "MNIST") / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"the test files in .* cannot be read"):
        mnist(tmp_path, validation=0)


def test_torchvision_that_does_not_import(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(
        InputError, match=r"torchvision cannot be imported .* pip install .*torchvision"
    ):
        mnist(tmp_path)
