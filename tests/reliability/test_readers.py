"""Files that declare more than they hold, that are damaged, or something else: one line, before memory is asked for."""

import gzip
import io
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.lib import format as npy
from PIL import Image

from pyro_bvae.cli import main
from pyro_bvae.core.errors import InputError, check_bytes, listed, max_bytes, unknown_name
from pyro_bvae.datasets import (
    Dataset,
    LazyDataset,
    ObsColumns,
    Splits,
    check_counts,
    dsprites,
    from_anndata,
    from_path,
    h5ad,
    load,
)
from pyro_bvae.report.page import read_evaluation
from pyro_bvae.runs import TrainConfig, train
from pyro_bvae.runs.config import read_config

anndata = pytest.importorskip("anndata")
LIMIT = 50_000_000


@pytest.fixture(autouse=True)
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that no sound file of these tests comes near, so that a large one may be declared."""
    monkeypatch.setenv("PYRO_BVAE_MAX_BYTES", str(LIMIT))


def refused(call: Callable[[], object], *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message and len(message) <= 1000


def header(shape: tuple[int, ...], kind: str = "<f8") -> bytes:
    """Return the first bytes of an npy file that declares a shape."""
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


class TestLimit:
    def test_the_variable_sets_it_and_the_message_names_both(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert max_bytes() == LIMIT
        check_bytes(LIMIT, "the table")
        refused(
            lambda: check_bytes(LIMIT + 10**6, "the table"),
            "the table needs 51 MB of memory, more than the limit of 50 MB",
            "PYRO_BVAE_MAX_BYTES",
        )
        monkeypatch.setenv("PYRO_BVAE_MAX_BYTES", "1e12")
        check_bytes(10**12, "the table")

    @pytest.mark.parametrize("given", ["much", "-1", "0", "nan"])
    def test_nonsense_is_no_limit(self, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYRO_BVAE_MAX_BYTES", given)
        refused(max_bytes, "PYRO_BVAE_MAX_BYTES must be a positive number of bytes", given)

    def test_by_default_it_is_half_of_the_free_memory(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("PYRO_BVAE_MAX_BYTES")
        assert 10**8 < max_bytes() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class TestArrays:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (header((50, 10**12)), "float64 of shape (50, 1000000000000) are 400 TB, and it holds 0"),
            (header((2**32, 2**32)), "and it holds 0 B"),
            (header((3, 2)) + bytes(47), "are 48 B, and it holds 47 B"),
            (header((3, 2)) + bytes(49), "are 48 B, and it holds 49 B"),
            (header((-1, 2)), "a length of shape (-1, 2) is negative"),
            (header((3, 2), "|O"), "pickled Python objects"),
            (b"\x93NUMPY\x09\x00", "npy"),
            (b"\x93NUMPY", "npy"),
            (header((3, 2)).replace(b"}", b"("), "npy"),
            (b"\x93NUMPY\x01\x00\x10\x27" + b"[" * 10000, "npy"),
        ],
    )  # fmt: skip
    def test_an_array_that_is_not_as_declared(
        self, content: bytes, words: str, tmp_path: Path
    ) -> None:
        (tmp_path / "x.npy").write_bytes(content)
        refused(lambda: from_path(tmp_path / "x.npy"), "this is not a readable npy file", words)
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("x.npy", content)
        refused(lambda: from_path(tmp_path / "x.npz"), "not a readable npz archive")

    def test_one_that_is_larger_than_memory(self, tmp_path: Path) -> None:
        with (tmp_path / "x.npy").open("wb") as file:  # of holes: no disk is used
            file.write(header((1000, 10**6)))
            file.truncate(file.tell() + 8 * 10**9)
        refused(lambda: from_path(tmp_path / "x.npy"), "1,000,000,000 numbers", "limit of 50 MB")

    def test_an_archive_that_unpacks_to_more_than_memory(self, tmp_path: Path) -> None:
        path = tmp_path / "x.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", header((2000, 2500)) + bytes(40_000_000))
        assert path.stat().st_size < 100_000
        refused(lambda: from_path(path), "5,000,000 numbers with 2,500 features", "limit of 50 MB")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for part in ("x_train", "x_test"):  # each of which would fit
                archive.writestr(f"{part}.npy", header((100, 16_000)) + bytes(12_800_000))
        refused(lambda: from_path(path), "limit of 50 MB")

    def test_the_limit_can_be_raised(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        np.save(tmp_path / "x.npy", np.ones((30, 100_000), dtype=np.float32))
        refused(lambda: from_path(tmp_path / "x.npy"), "limit of 50 MB")
        monkeypatch.setenv("PYRO_BVAE_MAX_BYTES", "3e8")
        assert from_path(tmp_path / "x.npy").train.num_features == 100_000

    def test_objects_are_not_unpickled(self, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return os.mkdir, (str(tmp_path / "executed"),)

        content = np.array([[Bomb(), 1.0]], dtype=object)
        np.save(tmp_path / "x.npy", content, allow_pickle=True)
        np.savez(tmp_path / "x.npz", x=np.ones((9, 2)), labels=content)
        for name in ("x.npy", "x.npz"):
            refused(lambda name=name: from_path(tmp_path / name), "pickled Python objects")
        assert not (tmp_path / "executed").exists()

    def test_dsprites_that_declare_too_much(self, tmp_path: Path) -> None:
        path = tmp_path / "d.npz"
        for shape in ((10**12, 64, 64), (3, 10**7, 10**7)):
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("imgs.npy", header(shape, "|u1"))
                for key in ("latents_classes", "latents_values"):
                    archive.writestr(f"{key}.npy", saved(np.zeros((3, 6))))
            refused(
                lambda: dsprites(path), "d.npz: this is not a readable npz archive", "holds 0 B"
            )

    @pytest.mark.parametrize(
        ("labels", "words"),
        [
            (np.array([0, 2**63], np.uint64), "labels must be below 2^53 in size, got 9223372036854775808"),
            (np.array([0, 1e300]), "labels must be below 2^53 in size, got 1e+300 in row 2"),
            (np.array([b"\xff\xfe", b"a"]), "labels must be text, got bytes that are none"),
            (np.array([0, 3]), "'label_names' must name every label from 0, got 2 names and label 3"),
            (np.array([0, -1]), "'label_names' must name every label from 0, got 2 names and label -1"),
        ],
    )  # fmt: skip
    def test_labels_that_are_none(self, labels: np.ndarray, words: str, tmp_path: Path) -> None:
        labels = np.tile(labels, 5)
        np.savez(tmp_path / "x.npz", x=np.ones((10, 2)), labels=labels, label_names=["u", "v"])
        refused(lambda: from_path(tmp_path / "x.npz"), words)

    def test_many_keys_are_not_all_listed(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", **{f"key{i}": np.ones(1) for i in range(500)})
        refused(lambda: from_path(tmp_path / "x.npz"), "there must be a key 'x'", "480 more")

    def test_nothing_is_observed(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.full((20, 3), np.nan))
        words = "nothing is observed: every entry of the 16 data of part 'train' is missing"
        refused(lambda: from_path(tmp_path / "x.npy", missing=True), words)
        np.savez(tmp_path / "x.npz", x=np.ones((20, 3)), mask=np.zeros((20, 3)))
        refused(lambda: from_path(tmp_path / "x.npz"), words)
        x = torch.full((4, 2), torch.nan)
        x[0, 0] = 1.0
        some, none = Dataset(x, missing=True), Dataset(x[1:], missing=True)
        assert len(Splits(some, None, some, "x").train[1:]) == 3  # a datum may have nothing
        refused(lambda: Splits(some, None, none, "x"), "part 'test' is missing")
        refused(lambda: Splits(some, none, some, "x"), "part 'validation' is missing")


class TestTables:
    @pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.TSV.GZ"])
    def test_commas_tabs_and_gzip(self, name: str, tmp_path: Path) -> None:
        text = "a,b,label\n" + "".join(f"{i},{i / 2},{'uv'[i % 2]}\n" for i in range(20))
        content = (text.replace(",", "\t") if "tsv" in name.lower() else text).encode()
        (tmp_path / name).write_bytes(
            gzip.compress(content) if name.lower().endswith("gz") else content
        )
        splits = from_path(tmp_path / name)
        assert splits.name == "a" and splits.train.feature_names == ("a", "b")
        assert splits.train.label_names == ("u", "v") and len(splits.train) == 16

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"a,b\n1,2\n3,\x004\n", "byte 11 is NUL"),
            ("a,b\n1,2\n".encode("utf-16"), "it is UTF-16 text; save it as UTF-8"),
            ("a,b\n1,2\n".encode("utf-16-le"), "byte 2 is NUL"),
            ("a,prix_\xe9t\xe9\n1,2\n".encode("latin-1"), "it is not UTF-8 text"),
            (b'a,b\n1,"2\n3,4\n', "not a readable csv file"),
            (b'"a,b\n1,2\n3,4\n' + b"5,6\n" * 50_000, "not a readable csv file"),
            (b"a,b\n1,2\n3,4,5\n", "not a readable csv file"),
            (b"a,b\n1," + b"x" * 200_000 + b"\n", "column 'b' must be numbers, got 'xxx"),
            (b"a,b\n1," + b"9" * 5000 + b"\n", "column 'b'"),
            (b"a,b\n1,-inf\n", "got -inf in row 1, column 'b'"),
            (b"a,b\n", "0 rows"),
            (b"\n\n", "the first row must name the columns"),
            (b"", "the file is empty"),
            (b"a;b,c\n", "commas or semicolons could separate the columns"),
            (
                b"a;b\n1,5;2\n1.5;2\n",
                "column 'a' must be numbers, got '1,5' in row 1; write all numbers with one decimal mark",
            ),
            (b"a;b\n1,500;2\n", "'1,500' could be 1.500 or 1500"),
            (b"0,5;1,5\n1;2\n", "the first row must name the columns, got the numbers 0,5, 1,5"),
            (b"a,b,a\n1,2,3\n", "got 'a' twice"),
        ],
    )
    def test_text_that_is_no_table(self, content: bytes, words: str, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_bytes(content)
        refused(lambda: from_path(tmp_path / "x.csv"), str(tmp_path / "x.csv"), words)

    def test_a_short_row_is_not_taken_as_missing(self, tmp_path: Path) -> None:
        text = "a,b\n" + "1,2\n" * 8
        (tmp_path / "x.csv").write_text(text + "3\n")
        words = "row 9 has 1 fields, the header 2"
        refused(lambda: from_path(tmp_path / "x.csv", missing=True), words)
        (tmp_path / "x.csv").write_text(text + "3,\n")
        assert from_path(tmp_path / "x.csv", missing=True).train.missing

    def test_a_table_that_unpacks_to_more_than_memory(self, tmp_path: Path) -> None:
        (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"a,b\n" + b"0,0\n" * 2_000_000))
        refused(lambda: from_path(tmp_path / "x.csv.gz"), "this table needs", "limit of 50 MB")

    def test_a_damaged_gzip(self, tmp_path: Path) -> None:
        content = gzip.compress(b"a,b\n" + os.urandom(100).hex().encode())
        for damaged in (content[:-9], content[:30] + b"\0\0\0" + content[33:], b"a,b\n1,2\n"):
            (tmp_path / "x.csv.gz").write_bytes(damaged)
            refused(lambda: from_path(tmp_path / "x.csv.gz"), "not a readable csv file")

    def test_many_parts_and_names_are_cut(self, tmp_path: Path) -> None:
        rows = "".join(f"{i},part{i:0100d}\n" for i in range(2000))
        (tmp_path / "x.csv").write_text("a,part\n" + rows)
        refused(lambda: from_path(tmp_path / "x.csv", split_column="part"), "1990 more")


class TestPaths:
    @pytest.mark.parametrize("suffix", ["csv", "npy", "npz", "h5ad"])
    @pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "device", "long", "dangling"])
    def test_no_file(self, suffix: str, kind: str, tmp_path: Path) -> None:
        path = tmp_path / f"x.{suffix}"
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind in ("loop", "device", "dangling"):
            target = {"loop": path, "device": Path("/dev/zero"), "dangling": tmp_path / "gone"}
            path.symlink_to(target[kind])
        else:
            path = tmp_path / ("x" * 300 + f".{suffix}")
        words = {"folder": "folder" if suffix == "h5ad" else "empty data set: no image",
                 "pipe": "this is a pipe", "device": "this is a device",
                 "loop": "this path cannot be followed", "long": "File name too long",
                 "dangling": "no such file or folder at the end of this symbolic link"}[kind]  # fmt: skip
        refused(lambda: (h5ad if suffix == "h5ad" else from_path)(path), words)
        if suffix == "npz":
            refused(lambda: dsprites(path), "folder" if kind == "folder" else words)

    def test_no_permission(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        np.save(tmp_path / "x.npy", np.ones((9, 2)))
        monkeypatch.setattr(os, "access", lambda *_: False)  # root may read all
        refused(lambda: from_path(tmp_path / "x.npy"), "permission denied")

    @pytest.mark.parametrize("path", ["~nobody_at_all/x.npy", "x\0.npy", 3, None])
    def test_no_path(self, path: object) -> None:
        refused(lambda: from_path(path), "path")

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("x.loom", "read_loom('{}').write_h5ad('cells.h5ad')"),
            ("x.h5", "h5py.File('{}')['matrix']; "),
            ("x.mtx", "read_mtx('{}').T.write_h5ad('cells.h5ad')"),
            ("x.mtx.gz", "read_mtx('{}').T.write_h5ad('cells.h5ad')"),
            ("x.parquet", "read_parquet('{}').to_csv('data.csv', index=False)"),
            ("x.parquet.gz", "got '.parquet.gz'; unpack it first"),
            ("x.npy.gz", "got '.npy.gz'; unpack it first"),
            ("x.csv.xz", "unpack it first"),
            ("x.rds", "data must be a folder of images or a file .csv"),
        ],
    )
    def test_other_formats_and_the_line_that_converts(
        self, name: str, words: str, tmp_path: Path
    ) -> None:
        (tmp_path / name).write_bytes(b"something")
        refused(lambda: from_path(tmp_path / name), words.format(tmp_path / name))
        if "cells" in words:
            refused(lambda: h5ad(tmp_path / name), words.format(tmp_path / name))


class TestImages:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for row in range(6):
            Image.fromarray(np.full((4, 5), row * 9, np.uint8)).save(tmp_path / f"{row}.png")
        (tmp_path / "2.png").write_bytes(b"no image")
        (tmp_path / "4.png").write_bytes((tmp_path / "5.png").read_bytes()[:50])
        return tmp_path

    def test_broken_pictures_are_named_and_skipped_on_request(self, folder: Path) -> None:
        words = "2.png is not a readable image", "'--skip-unreadable' (skip_unreadable=True)"
        refused(lambda: from_path(folder), *words)
        with pytest.warns(UserWarning, match=r"2 of 6 images are skipped: 2.png, 4.png \(2.png"):
            splits = from_path(folder, skip_unreadable=True, test=1, validation=0)
        assert len(splits.train) == 3
        with pytest.warns(UserWarning, match="2 of 6 images"):
            refused(lambda: load("file", path=folder, skip_unreadable=True, validation=0), "'test'")

    def test_pipes_and_broken_links_are_broken_pictures(self, folder: Path) -> None:
        (folder / "2.png").unlink()
        (folder / "4.png").unlink()
        os.mkfifo(folder / "2.png")
        (folder / "4.png").symlink_to(folder / "gone.png")
        refused(lambda: from_path(folder), "2.png: this is a pipe")
        with pytest.warns(UserWarning, match="2 of 6 images"):
            from_path(folder, skip_unreadable=True, test=1, validation=0)

    def test_nothing_is_left(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"no image")
        words = "empty data set: no image is readable; a.png is not a readable image"
        refused(lambda: from_path(tmp_path, skip_unreadable=True), words)

    def test_the_option_is_for_folders(self, folder: Path) -> None:
        np.save(folder / "x.npy", np.ones((9, 2)))
        refused(lambda: from_path(folder / "x.npy", skip_unreadable=True), "for folders of images")
        refused(lambda: load("digits", skip_unreadable=True), "is for data set 'file'")

    def test_large_pictures_are_refused_before_they_are_decoded(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        Image.new("L", (10, 10)).save(path)
        content = bytearray(path.read_bytes())
        for size in (9000, 30_000):  # the second is a bomb for Pillow
            content[16:24] = struct.pack(">II", size, size)
            content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
            path.write_bytes(content)
            refused(lambda: from_path(tmp_path), "a.png", "81,000,000" if size == 9000 else "bomb")

    def test_many_pictures_are_counted_together(self, tmp_path: Path) -> None:
        for row in range(300):
            Image.new("L", (160, 160)).save(tmp_path / f"{row}.png")
        refused(lambda: from_path(tmp_path), "7,680,000 numbers with 25,600 features")


class TestCommandLine:
    def test_a_refused_file_is_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "huge.npy").write_bytes(header((50, 10**12)))
        (tmp_path / "x.loom").write_bytes(b"loom")
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "a.png").write_bytes(b"no image")
        for name, words in (
            ("huge.npy", "400 TB"),
            ("x.loom", "read_loom"),
            ("images", "--skip-unreadable"),
        ):
            data = ["--dataset", "file", "--path", str(tmp_path / name)]
            assert main(["train", "--output", str(tmp_path / "run"), *data]) == 2
            error = capsys.readouterr().err
            assert error.startswith("error: ") and words in error and error.count("\n") == 1
        assert not (tmp_path / "run").exists()

    @pytest.mark.filterwarnings("default")
    def test_skipped_pictures_are_one_warning(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for row in range(12):
            Image.new("L", (4, 4), 20 * row).save(tmp_path / f"{row:02}.png")
        (tmp_path / "03.png").write_bytes(b"no image")
        data = ["--dataset", "file", "--path", str(tmp_path), "--skip-unreadable"]
        small = ["--epochs", "1", "--hidden", "4", "--latent-dim", "2", "--batch-size", "4"]
        assert main(["train", "--output", str(tmp_path / "run"), *data, *small]) == 0
        assert "1 of 12 images are skipped: 03.png" in capsys.readouterr().err


N, D = 12, 4


def cells(matrix: object, **layers: object) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.AnnData(X=matrix, layers=layers)


def counts() -> np.ndarray:
    return np.random.default_rng(0).poisson(1.0, (N, D)).astype(np.float32) + np.eye(
        N, D, dtype="f4"
    )


def put(key: str, place: int, value: int) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        group[key][place] = value

    return change


def replace(key: str, values: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        old = group[key][:]
        del group[key]
        group[key] = values(old)

    return change


def shape(*lengths: int) -> Callable[[h5py.Group], None]:
    return lambda group: group.attrs.__setitem__("shape", lengths)


def repeat(group: h5py.Group) -> None:
    start = int(np.flatnonzero(np.diff(group["indptr"][:]) > 1)[0])
    first = int(group["indptr"][start])
    group["indices"][first + 1] = group["indices"][first]


SPARSE: dict[str, tuple[Callable[[h5py.Group], None], str]] = {
    "pointer past the end": (put("indptr", 3, 10**9), "indptr' must rise from 0"),
    "last pointer past the end": (put("indptr", -1, 10**9), "indptr' must rise from 0"),
    "last pointer before the end": (put("indptr", -1, 20), "indptr' must rise from 0"),
    "first pointer": (put("indptr", 0, 1), "indptr' must rise from 0"),
    "negative pointer": (put("indptr", 2, -5), "indptr' must rise from 0"),
    "falling pointers": (put("indptr", 2, 0), "indptr' must rise from 0"),
    "column past the end": (put("indices", 3, 10**6), "is not a sound sparse matrix: indices must be <"),
    "negative column": (put("indices", 3, -2), "is not a sound sparse matrix: indices must be >= 0"),
    "column twice": (repeat, "several values at one place"),
    "fewer values": (replace("data", lambda old: old[:-1]), "values, "),
    "fewer columns": (replace("indices", lambda old: old[:-1]), "indices and"),
    "fewer pointers": (replace("indptr", lambda old: old[:-1]), "pointers"),
    "columns of fractions": (replace("indices", lambda old: old + 0.5), "must be whole numbers"),
    "pointers of fractions": (replace("indptr", lambda old: old * 1.0), "must be whole numbers"),
    "values in a table": (replace("data", lambda old: old[:, None]), "no array 'data' of one dimension"),
    "NaN": (replace("data", lambda old: np.r_[np.nan, old[1:]]), "must be finite, got nan"),
    "infinite": (replace("data", lambda old: np.r_[np.inf, old[1:]]), "must be finite, got inf"),
    "negative": (replace("data", lambda old: np.r_[-1.0, old[1:]]), "must be non-negative, got -1"),
    "text": (replace("data", lambda old: old.astype("S")), "'/X/data' must be numbers, got |S"),
    "wide": (shape(N, 10**12), "1000000000000"),
    "shape of one": (shape(N), "no shape of two lengths"),
    "negative shape": (shape(-N, D), "no shape of two lengths"),
    "no shape": (lambda group: group.attrs.__delitem__("shape"), "no shape of two lengths"),
    "no pointers": (lambda group: group.__delitem__("indptr"), "no array 'indptr'"),
}  # fmt: skip


class TestSparse:
    @pytest.mark.parametrize("backed", [False, True], ids=["in memory", "backed"])
    @pytest.mark.parametrize("layout", ["csr", "csc"])
    @pytest.mark.parametrize("fault", SPARSE)
    def test_a_damaged_matrix_is_refused(
        self, fault: str, layout: str, backed: bool, tmp_path: Path
    ) -> None:
        path = tmp_path / "x.h5ad"
        cells(sp.csr_matrix(counts()).asformat(layout)).write_h5ad(path)
        change, words = SPARSE[fault]
        with h5py.File(path, "r+") as file:
            change(file["X"])
        if backed and layout == "csc" and "h5ad file" not in words:
            words = ""  # this layout is refused as a whole
        refused(lambda: h5ad(path, backed=backed), str(path), words)

    @pytest.mark.parametrize("backed", [False, True], ids=["in memory", "backed"])
    @pytest.mark.parametrize(
        "name", ["obs/_index", "var/_index", "obs/n", "obsm/pca", "layers/raw", "X"]
    )
    def test_parts_of_other_lengths(self, name: str, backed: bool, tmp_path: Path) -> None:
        adata = cells(counts(), raw=counts())
        adata.obs["n"], adata.obsm["pca"] = np.arange(N), np.ones((N, 2))
        adata.write_h5ad(tmp_path / "x.h5ad")
        with h5py.File(tmp_path / "x.h5ad", "r+") as file:
            values, attributes = file[name][:-1], dict(file[name].attrs)
            del file[name]
            file[name] = values
            file[name].attrs.update(attributes)
        layer = "raw" if "raw" in name else None
        refused(lambda: h5ad(tmp_path / "x.h5ad", backed=backed, layer=layer), str(tmp_path))

    @pytest.mark.parametrize(
        "fault", ["column past the end", "pointer past the end", "column twice"]
    )
    def test_a_damaged_layer_is_refused(self, fault: str, tmp_path: Path) -> None:
        path = tmp_path / "x.h5ad"
        for layout in ("csr", "csc"):
            cells(counts(), raw=sp.csr_matrix(counts()).asformat(layout)).write_h5ad(path)
            with h5py.File(path, "r+") as file:
                SPARSE[fault][0](file["layers/raw"])
            refused(lambda: h5ad(path, layer="raw"), "raw")

    @pytest.mark.parametrize("layout", ["csr_matrix", "csc_matrix", "csr_array"])
    def test_a_damaged_matrix_in_memory_is_refused(self, layout: str) -> None:
        for key, place, value in (("indices", 3, 99), ("indices", 3, -1), ("indptr", 2, 10**6)):
            matrix = getattr(sp, layout)(counts())
            getattr(matrix, key)[place] = value
            refused(lambda matrix=matrix: from_anndata(cells(matrix)), "'X' is not a sound sparse")
            refused(lambda matrix=matrix: LazyDataset(matrix), "'table' is not a sound sparse")
            refused(lambda matrix=matrix: check_counts(matrix), "'x' is not a sound sparse")
        twice = getattr(sp, layout)(counts())
        repeated = {"data": twice.data, "indices": twice.indices.copy(), "indptr": twice.indptr}
        repeat(repeated)
        twice.indices = repeated["indices"]
        refused(lambda: from_anndata(cells(twice)), "several values at one place")

    def test_columns_in_any_order_are_a_matrix(self, tmp_path: Path) -> None:
        matrix = sp.csr_matrix(counts())
        for row in range(N):
            part = slice(matrix.indptr[row], matrix.indptr[row + 1])
            matrix.data[part] = matrix.data[part][::-1]
            matrix.indices[part] = matrix.indices[part][::-1]
        matrix.has_sorted_indices = False
        cells(matrix).write_h5ad(tmp_path / "x.h5ad")
        for backed in (False, True):
            splits = h5ad(tmp_path / "x.h5ad", backed=backed, min_cells=0)
            rows = np.array([int(name) for name in splits.test_names])
            assert np.array_equal(splits.test.x.numpy(), counts()[rows])


class TestLargeH5ad:
    def declare(self, path: Path, name: str, shape: tuple[int, ...], **options: object) -> None:
        """Put an array into a file that is declared and not written."""
        if not path.exists():
            cells(counts()).write_h5ad(path)
        with h5py.File(path, "r+") as file:
            if name in file:
                del file[name]
            file.create_dataset(name, shape, "f4", **options)
            file[name].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    @pytest.mark.parametrize("backed", [False, True], ids=["in memory", "backed"])
    @pytest.mark.parametrize("name", ["X", "layers/raw", "obsm/pca", "uns/more", "obs/n"])
    def test_an_array_that_declares_4_tb(self, name: str, backed: bool, tmp_path: Path) -> None:
        path = tmp_path / "x.h5ad"
        self.declare(path, name, (10**6, 10**6), chunks=(1000, 1000), compression="gzip")
        assert path.stat().st_size < 100_000
        refused(lambda: h5ad(path, backed=backed), name, "TB of memory", "limit of 50 MB")

    def test_backed_counts_may_be_larger_than_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "x.h5ad"
        cells(np.ones((300, 100), np.float32)).write_h5ad(path)
        monkeypatch.setenv("PYRO_BVAE_MAX_BYTES", "1e5")
        refused(lambda: h5ad(path), "/X", "limit of 100 kB")
        assert len(h5ad(path, backed=True).train) == 240

    def test_links_in_a_circle_out_of_the_file_and_by_the_thousand(self, tmp_path: Path) -> None:
        def ring(file: h5py.File) -> None:
            file["uns/again"] = h5py.SoftLink("/")

        def outside(file: h5py.File) -> None:
            file["uns/other"] = h5py.ExternalLink("/etc/passwd", "/x")

        def thousands(file: h5py.File) -> None:
            group = file["uns"]
            for level in range(20):
                below = file.create_group(f"level{level}")
                for name in "abcdefgh":
                    group[name] = below
                group = below

        for change, words in ((ring, "to a group that has another path"), (outside, "link to another file"),
                              (thousands, "to a group that has another path")):  # fmt: skip
            path = tmp_path / f"{change.__name__}.h5ad"
            cells(counts()).write_h5ad(path)
            with h5py.File(path, "r+") as file:
                change(file)
            refused(lambda path=path: h5ad(path), words)

    def test_a_dense_copy_of_many_cells(self) -> None:
        matrix = sp.eye(4000, 5000, format="csr", dtype="f4")
        data = from_anndata(cells(matrix), min_cells=0)
        refused(data.train.dense, "a dense copy of 16,000,000 numbers needs 64 MB")

    def test_a_batch_for_each_cell(self) -> None:
        adata = cells(sp.eye(5000, 3, format="csr", dtype="f4") + sp.csr_matrix(np.eye(5000, 3)))
        adata.obs["barcode"] = adata.obs_names
        refused(
            lambda: from_anndata(
                adata, columns=ObsColumns(batch="barcode"), test=1, size_factor=False
            ),
            "obs columns barcode of 5,000 cells as covariates needs 125 MB",
        )

    def test_files_of_counts_that_other_programs_write(self, tmp_path: Path) -> None:
        for below, name in (("barcodes", "10x"), ("row_attrs", "loom")):
            with h5py.File(tmp_path / "x.h5", "w") as file:
                if name == "10x":
                    file.create_group("matrix")[below] = np.zeros(3)
                else:
                    file["matrix"], _ = np.zeros((3, 2)), file.create_group(below)
            refused(lambda: h5ad(tmp_path / "x.h5"), f"it is a {name} file; convert it: import ")


READERS_OF_JSON = {
    "config.json": read_config,
    "evaluation.json": lambda path: read_evaluation(path.parent),
}


@pytest.mark.parametrize("name", READERS_OF_JSON)
class TestJSON:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"[" * 200_000, "is no JSON"),
            (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "is no JSON"),
            (b"{", "is no JSON"),
            (b"\xff", "is no JSON"),
            (b"9" * 5000, "is no JSON"),
            (b" " * 3_000_000, "needs 60 MB of memory, more than the limit of 50 MB"),
        ],
    )
    def test_nonsense(self, name: str, content: bytes, words: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(content)
        refused(lambda: READERS_OF_JSON[name](tmp_path / name), words)

    def test_a_device(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).symlink_to("/dev/zero")
        if name == "config.json":
            refused(lambda: read_config(tmp_path / name), "this is a device")
        else:
            refused(lambda: read_evaluation(tmp_path), "has no evaluation.json")


def test_a_category_of_a_billion(tmp_path: Path) -> None:
    x = np.zeros((50, 3), np.float32)
    x[7, 1] = 1e9
    np.save(tmp_path / "x.npy", x)
    config = TrainConfig(dataset="file", path=str(tmp_path / "x.npy"), likelihood="categorical")
    refused(lambda: train(config, tmp_path / "run"), "1,000,000,001 categories", "limit of 50 MB")
    assert not (tmp_path / "run").exists()


class TestNames:
    @pytest.mark.parametrize(
        ("name", "known", "meant"),
        [
            ("nb", ("negative-binomial", "normal", "bernoulli"), "negative-binomial"),
            ("zinb", ("zero-inflated-negative-binomial", "negative-binomial"), "zero-inflated-negative-binomial"),
            ("negbin", ("negative-binomial", "normal"), "negative-binomial"),
            ("cb", ("continuous-bernoulli", "categorical"), "continuous-bernoulli"),
            ("fmnist", ("mnist", "fashion-mnist"), "fashion-mnist"),
            ("conv", ("mlp", "convolutional"), "convolutional"),
            ("norm", ("normal-fixed", "normal", "laplace"), "normal"),
            ("NORMAL", ("normal", "laplace"), "normal"),
            ("full_rank", ("full-rank", "flow"), "full-rank"),
            ("coloured", ("sprites-coloured", "sprites"), "sprites-coloured"),
            ("poison", ("poisson", "normal"), "poisson"),
            ("mpl", ("mlp", "residual"), "mlp"),
            ("donor", ("x_coord", "y_coord", "cell_type", "batch"), None),
            ("patient", ("cell_type", "n_genes", "percent_mito"), None),
            ("x", ("mix", "x_coord"), None),
            ("", ("normal",), None),
            ("gamma", ("normal", "mixture", "vamp"), None),
        ],
    )  # fmt: skip
    def test_the_name_that_is_meant(
        self, name: str, known: tuple[str, ...], meant: str | None
    ) -> None:
        hint = f"Did you mean '{meant}'?" if meant else "Known"
        message = str(unknown_name("thing", name, known))
        assert message.startswith(f"unknown thing '{name}'. {hint}") and "Known: " in message

    def test_lists_and_names_are_cut(self) -> None:
        names = [f"gene{i}" for i in range(30_000)]
        message = str(unknown_name("gene", "geen7", names))
        assert len(message) < 500 and "29970 more" in message
        assert len(str(unknown_name("gene", "g" * 10**6, ["h" * 10**6]))) < 300
        assert listed(["x" * 10**6, "y"]).endswith("..., y")
        assert str(unknown_name("layer", "a", [])).endswith("Known: none.")

    def test_an_error_is_one_line_of_a_thousand_characters(self) -> None:
        message = str(InputError("first\n  second\x00\x1b[31m" + "x" * 10**5 + " last"))
        assert message.startswith("first second\\x00\\x1b[31m") and message.endswith(" last")
        assert len(message) <= 1000 and " ... " in message
