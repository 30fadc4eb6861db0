"""Data that become dense only in the batch, held to the dense ones."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from pyro_bvae import BetaVAE, Context, Decoder, fit
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Dataset, LazyDataset, Splits
from pyro_bvae.likelihoods import BernoulliLikelihood, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import Constant
from pyro_bvae.training.batches import as_batches

N, FEATURES = 45, 6
COUNTS = np.random.default_rng(0).poisson(0.8, size=(N, FEATURES))


class Table:
    """A table that looks like one in a file.

    Increasing row numbers only, and a note of what was asked for.
    """

    shape = (N, FEATURES)

    def __init__(self) -> None:
        self.asked: list[np.ndarray] = []

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        assert (np.diff(rows) > 0).all()
        self.asked.append(rows)
        return COUNTS[rows]


TABLES = {
    "csr": lambda: sp.csr_matrix(COUNTS),
    "sparse array": lambda: sp.csr_array(COUNTS.astype(np.float32)),
    "array": lambda: COUNTS,
    "file": Table,
}


def companions() -> dict:
    context = Context(
        size_factor=torch.arange(1.0, N + 1).unsqueeze(1),
        covariates=torch.nn.functional.one_hot(torch.arange(N) % 3).float(),
    )
    return {
        "context": context,
        "labels": torch.arange(N) % 4,
        "factors": torch.randn(N, 2),
        "label_names": tuple("abcd"),
    }


def pair(kind: str = "csr") -> tuple[LazyDataset, Dataset]:
    parts = companions()
    return LazyDataset(TABLES[kind](), **parts), Dataset(torch.from_numpy(COUNTS).float(), **parts)


def same(one: object, other: object) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(
            same(*parts) for parts in zip(one, other, strict=True)
        )
    return one == other


def assert_same_data(lazy: LazyDataset, dense: Dataset) -> None:
    assert len(lazy) == len(dense) and lazy.num_features == dense.num_features
    made = lazy.dense()
    for name in ("x", "context", "labels", "factors", "label_names", "factor_names", "image_shape"):
        assert same(getattr(lazy, name), getattr(dense, name)), name
        assert same(getattr(made, name), getattr(dense, name)), name


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"drop_last": True}], ids=str)
def test_batches_are_those_of_the_dense_data(kind: str, options: dict) -> None:
    lazy, dense = pair(kind)
    assert lazy.num_batches(10) == dense.num_batches(10) == 5
    for seed, epoch in ((0, 0), (0, 3), (7, 1)):
        batches = [
            list(data.batches(10, seed=seed, epoch=epoch, **options)) for data in (lazy, dense)
        ]
        assert same(*(tuple(tuple(batch) for batch in results) for results in batches))
        assert len(batches[0]) == (4 if "drop_last" in options else 5)


@pytest.mark.parametrize("kind", TABLES)
def test_subsets_are_those_of_the_dense_data(kind: str) -> None:
    lazy, dense = pair(kind)
    assert_same_data(lazy, dense)
    for index in (slice(3, 20, 2), [5, 2, 2, -1], np.array([7, 1]), torch.arange(N) % 2 == 0):
        assert_same_data(lazy[index], dense[index])
    assert_same_data(lazy[10:30][[4, 1]], dense[[14, 11]])
    assert lazy[[5, 2]].row_numbers.tolist() == [5, 2]
    subsets = [next(iter(data[5:25].batches(8, seed=1, epoch=2))) for data in (lazy, dense)]
    assert same(tuple(subsets[0]), tuple(subsets[1]))


def test_types_are_those_of_the_dense_data() -> None:
    lazy, dense = pair()
    assert_same_data(lazy.to(dtype=torch.double), dense.to(dtype=torch.double))
    assert lazy.dtype == torch.float32  # not changed in place
    assert LazyDataset(COUNTS, dtype=torch.double).x.dtype == torch.double


def test_only_the_batch_is_looked_up() -> None:
    lazy, _ = pair("file")
    assert lazy.table.asked == []
    train = lazy[torch.randperm(N)]
    assert len(train) == N and train.labels.shape == (N,) and lazy.table.asked == []
    batches = train.batches(10, seed=0, epoch=0)
    for _ in range(2):
        next(batches)
    assert [len(rows) for rows in lazy.table.asked] == [10, 10]


def small_vae() -> BetaVAE:
    torch.manual_seed(3)
    return BetaVAE(
        NormalPrior(2),
        Decoder(MLP(5, FEATURES, hidden=(8,)), NormalLikelihood(1.0), num_covariates=3),
        NormalPosterior(MLP(FEATURES + 3, 4, hidden=(8,)), num_covariates=3),
    )


def train(data: object, vae: BetaVAE, **options: object) -> dict[str, Tensor]:
    fit(vae, data, epochs=2, batch_size=16, learning_rate=Constant(1e-2), progress=False, **options)
    return {name: value.clone() for name, value in vae.state_dict().items()}


@pytest.mark.parametrize("kind", TABLES)
def test_training_is_that_on_the_dense_data(kind: str) -> None:
    lazy, dense = pair(kind)
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(0))[:40]
    weights = train(lazy[rows], small_vae()), train(dense[rows], small_vae())
    assert all(same(value, weights[1][name]) for name, value in weights[0].items())
    start = small_vae().state_dict()
    assert not any(
        same(value, start[name])
        for name, value in weights[0].items()
        if value.numel() > 1 and "weight" in name
    )


def test_training_is_in_the_type_of_the_model() -> None:
    lazy, dense = pair()
    weights = train(lazy, small_vae().double()), train(dense, small_vae().double())
    assert all(
        value.dtype == torch.double and same(value, weights[1][name])
        for name, value in weights[0].items()
    )


def test_batches_are_checked_as_they_come() -> None:
    vae = BetaVAE(
        NormalPrior(2),
        Decoder(MLP(2, FEATURES), BernoulliLikelihood()),
        NormalPosterior(MLP(FEATURES, 4)),
    )
    with pytest.raises(InputError, match="support"):
        train(LazyDataset(sp.csr_matrix(COUNTS)), vae)
    with pytest.raises(InputError, match="'x' must have 6 features, got 5"):
        train(LazyDataset(COUNTS[:, :5].clip(0, 1)), vae)
    broken = COUNTS.astype(float)
    broken[40, 2] = np.nan
    with pytest.raises(InputError, match="finite"):
        train(LazyDataset(broken.clip(0, 1)), vae)


def test_an_epoch_is_checked_once() -> None:
    seen = []
    batches = as_batches(
        pair()[0], torch.float32, torch.device("cpu"), lambda x, _: seen.append(len(x))
    )
    next(iter(batches.batches(20, seed=0, epoch=0)))  # which is no whole epoch
    for epoch in range(3):
        assert sum(len(x) for x, _ in batches.batches(20, seed=0, epoch=epoch)) == N
    assert seen == [20, 20, 20, 5]


def test_checks_see_the_data_as_the_model_does() -> None:
    seen = []
    data = LazyDataset(COUNTS, **companions())
    loader = [(torch.ones(4, FEATURES), Context(size_factor=torch.ones(4, 1)))]
    for given in (data, loader):
        batches = as_batches(
            given, torch.double, torch.device("cpu"), lambda x, context: seen.append((x, context))
        )
        x, context = next(iter(batches.batches(16, seed=0, epoch=0)))
        assert seen[-1][0] is x and seen[-1][1] is context
        assert x.dtype == context.size_factor.dtype == torch.double
    assert as_batches(data, torch.float32, torch.device("cpu")).num_batches(16) == 3


def test_splits_may_hold_lazy_data() -> None:
    lazy, dense = pair()
    splits = Splits(train=lazy[:30], validation=dense[30:35], test=lazy[35:], name="counts")
    assert splits.binarized("none") is splits
    with pytest.raises(InputError, match="'binarize' = 'static' is for pixels"):
        splits.binarized("static")
    with pytest.raises(InputError, match="test has 5"):
        Splits(train=lazy, validation=None, test=LazyDataset(COUNTS[:, :5]), name="counts")


@pytest.mark.parametrize(
    ("table", "parts", "message"),
    [
        (COUNTS[0], {}, r"'table' must have shape \(N, D\).*got shape \(6,\)"),
        (3, {}, "'table' must have shape .* got int"),
        (np.zeros((0, 3)), {}, r"empty data set: 'table' has shape \(0, 3\)"),
        (SimpleNamespace(shape=(3, 2)), {}, "rows that an index finds"),
        (
            COUNTS,
            {"labels": torch.arange(7)},
            r"'labels' must have shape \(45,\) as 'x' has 45 rows, got \(7,\)",
        ),
        (COUNTS, {"labels": torch.ones(N)}, "'labels' must be torch.int64"),
        (
            COUNTS,
            {"context": Context(size_factor=torch.zeros(N, 1))},
            "'context.size_factor' must be positive",
        ),
        (COUNTS, {"factors": torch.ones(3, 2)}, "'factors' must have shape"),
        (COUNTS, {"dtype": torch.long}, "'dtype' must be floating"),
    ],
)
def test_bad_input(table: object, parts: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LazyDataset(table, **parts)


def test_bad_indices_and_values() -> None:
    lazy, _ = pair()
    with pytest.raises(InputError, match="outside a data set of 45"):
        lazy[[45]]
    with pytest.raises(InputError, match="'batch_size' must be a positive integer, got 0"):
        lazy.batches(0, seed=0, epoch=0)
    with pytest.raises(InputError, match="'table' must hold numbers, got type <U1"):
        LazyDataset(np.full((3, 2), "a")).dense()
