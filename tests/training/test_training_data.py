"""What ``fit`` takes as data, and what it refuses before anything is written."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyro_bvae import BetaVAE, Context, Decoder, fit
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Dataset
from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import Constant
from pyro_bvae.training.batches import as_batches

N, FEATURES, LATENTS, COVARIATES = 40, 6, 2, 3


def small_vae(covariates: int = 0) -> BetaVAE:
    torch.manual_seed(3)
    decoder = MLP(LATENTS + covariates, FEATURES, hidden=(8,))
    encoder = MLP(FEATURES + covariates, 2 * LATENTS, hidden=(8,))
    return BetaVAE(
        NormalPrior(LATENTS),
        Decoder(decoder, BernoulliLikelihood(), num_covariates=covariates),
        NormalPosterior(encoder, num_covariates=covariates),
    )


def pixels(count: int = N) -> Tensor:
    return torch.rand(count, FEATURES, generator=torch.Generator().manual_seed(0)).round()


def train(data: object, vae: BetaVAE | None = None, **changes: object) -> dict[str, Tensor]:
    vae = vae or small_vae()
    options = {
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": Constant(1e-2),
        "progress": False,
        **changes,
    }
    fit(vae, data, **options)
    return {name: value.clone() for name, value in vae.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=0, rtol=0)


def test_a_tensor_is_a_dataset() -> None:
    assert_same(train(pixels()), train(Dataset(pixels())))


def test_data_come_in_the_precision_of_the_model() -> None:
    assert_same(train(pixels().double()), train(pixels()))
    vae = small_vae().double()
    assert all(value.dtype == torch.double for value in train(pixels(), vae).values())


class InOrder(Dataset):
    """Data whose batches come in the order of the rows."""

    def batches(self, batch_size: int, *, seed: int, epoch: int, **_: object) -> object:
        return super().batches(batch_size, seed=seed, epoch=epoch, shuffle=False)


@pytest.mark.parametrize(
    "kind", ["tensors", "tuples with labels", "images", "integers", "a list of batches"]
)
def test_a_loader_is_trained_on_in_its_own_batches(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = pixels()
    loaders = {
        "tensors": DataLoader(x, batch_size=16),
        "tuples with labels": DataLoader(TensorDataset(x, torch.arange(N)), batch_size=16),
        "images": DataLoader(TensorDataset(x.reshape(N, 1, 2, 3)), batch_size=16),
        "integers": DataLoader(TensorDataset(x.to(torch.uint8)), batch_size=16),
        "a list of batches": list(x.split(16)),
    }
    seen = []

    def model(
        self: BetaVAE, x: Tensor, context: Context | None = None, beta: float = 1.0
    ) -> Tensor:
        if self.training:
            seen.append(x.clone())
        return original(self, x, context, beta)

    original = BetaVAE.model
    monkeypatch.setattr(BetaVAE, "model", model)
    train(loaders[kind], batch_size=3)  # which is the loader's to say
    assert [len(batch) for batch in seen] == [16, 16, 8] * 2
    assert torch.equal(torch.cat(seen[:3]), x)
    assert torch.equal(torch.cat(seen[3:]), x)


def test_a_shuffling_loader_follows_the_seed() -> None:
    def loader() -> DataLoader:
        return DataLoader(TensorDataset(pixels()), batch_size=16, shuffle=True)

    first = train(loader(), seed=1)
    torch.rand(3)
    assert_same(first, train(loader(), seed=1))
    other = train(loader(), seed=2)
    assert not torch.equal(
        first["encoder.network.layers.0.weight"], other["encoder.network.layers.0.weight"]
    )


def covariates() -> Context:
    return Context(covariates=torch.nn.functional.one_hot(torch.arange(N) % COVARIATES).float())


def test_the_context_goes_with_the_data() -> None:
    data = Dataset(pixels(), context=covariates())
    trained = train(data, small_vae(COVARIATES), validation=data)
    before = small_vae(COVARIATES).state_dict()["decoder.network.layers.0.weight"]
    assert not torch.equal(
        trained["decoder.network.layers.0.weight"], before
    )  # its last columns see the covariates
    columns = (trained["decoder.network.layers.0.weight"] - before)[:, -COVARIATES:].abs().sum(0)
    assert bool((columns > 0).all())


def test_a_loader_may_give_a_context() -> None:
    x, context = pixels(), covariates()
    batches = [
        (x[i : i + 10], Context(covariates=context.covariates[i : i + 10].double()))
        for i in range(0, N, 10)
    ]
    trained = train(batches, small_vae(COVARIATES))
    other = [(batch, Context(covariates=part.covariates.flip(1))) for batch, part in batches]
    name = "decoder.network.layers.0.weight"
    assert not torch.equal(trained[name], train(other, small_vae(COVARIATES))[name])


def test_the_context_of_a_loader_comes_in_the_precision_of_the_model() -> None:
    loader = [(pixels(), Context(size_factor=torch.ones(N, 1), covariates=covariates().covariates))]
    batches = as_batches(loader, torch.double, torch.device("cpu"))
    ((x, context),) = batches.batches(16, seed=0, epoch=0)
    assert x.dtype == context.size_factor.dtype == context.covariates.dtype == torch.double


def bad(value: float, index: tuple[int, int] = (3, 2)) -> Tensor:
    x = pixels()
    x[index] = value
    return x


def empty_loader() -> DataLoader:
    return DataLoader(TensorDataset(torch.zeros(0, FEATURES)), batch_size=4)


REFUSED = {
    "NaN": (lambda: bad(float("nan")), r"'x' must be finite, got nan at index \(3, 2\)"),
    "Inf": (lambda: bad(float("inf")), r"'x' must be finite, got inf at index \(3, 2\)"),
    "pixel above one": (lambda: bad(1.5), r"'x' must lie in the likelihood's support.*got 1.5 at "
                                          r"index \(3, 2\)"),
    "pixel below zero": (lambda: bad(-0.5), r"'x' must lie in the likelihood's support.*got -0.5 "
                                            r"at index \(3, 2\)"),
    "features": (lambda: torch.zeros(5, FEATURES + 1), "'x' must have 6 features, got 7"),
    "empty": (lambda: torch.zeros(0, FEATURES), "empty data set"),
    "images": (lambda: torch.zeros(5, 1, 2, 4), "'x' must have 6 features, got 8 in data of shape"),
    "one datum": (lambda: torch.zeros(FEATURES), r"got \(6,\); one datum is x\[None\]"),
    "integers": (lambda: torch.zeros(5, FEATURES, dtype=torch.long), "'x' must be floating"),
    "array": (lambda: np.zeros((5, FEATURES), dtype=complex), "'x' must be a tensor .* got ndarray"),
    "generator": (lambda: (x for x in [pixels()]), "'data' must be a tensor .* got generator"),
    "None": (lambda: None, "'data' must be a tensor .* got NoneType"),
    "empty loader": (empty_loader, "empty data set: the loader has no batches"),
    "loader with NaN": (
        lambda: DataLoader(bad(float("nan")), batch_size=20),
        r"batch 0: 'x' must be finite, got nan at index \(3, 2\)",
    ),
    "loader off the support": (lambda: DataLoader(bad(255.0), batch_size=20), r"support.*got 255.0 "
                                                                              r"at index \(3, 2\)"),
    "loader of other features": (lambda: DataLoader(torch.zeros(9, 4), batch_size=20), "must have 6 features, got 4"),
    "loader of vectors": (lambda: DataLoader(torch.zeros(9), batch_size=4), r"a tensor \(B, D\), "
                                                                            r"got \(4,\)"),
    "loader of dictionaries": (lambda: [{"x": pixels()}], r"a tensor \(B, D\), got dict"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_data_are_refused_before_anything_is_written(kind: str, tmp_path: Path) -> None:
    make, message = REFUSED[kind]
    vae = small_vae()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    with pytest.raises(InputError, match=message):
        train(make(), vae, output=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert_same(before, vae.state_dict())


@pytest.mark.parametrize("kind", ["NaN", "pixel above one", "features", "empty"])
def test_bad_validation_data_are_refused_too(kind: str, tmp_path: Path) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(InputError, match=message):
        train(pixels(), validation=make(), output=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_bad_pixel_late_in_a_loader_stops_the_training_at_it() -> None:
    with pytest.raises(InputError, match=r"got 9.0 at index \(7, 0\)"):
        train(DataLoader(bad(9.0, (23, 0)), batch_size=16))


def test_validation_must_be_held_in_memory() -> None:
    with pytest.raises(
        InputError, match="'validation' must be a tensor or a Dataset, got DataLoader"
    ):
        train(pixels(), validation=DataLoader(pixels(), batch_size=4))


@pytest.mark.filterwarnings("ignore:no gradient of the objective reaches")
def test_what_cannot_be_validated_is_told_before_the_first_epoch(tmp_path: Path) -> None:
    class NoPlate(BetaVAE):
        def model(self, x: Tensor, context: Context | None = None, beta: float = 1.0) -> Tensor:
            with torch.no_grad():
                return super().model(x, context, beta).sum() * 0 + _without_plate(self, x)

    def _without_plate(vae: BetaVAE, x: Tensor) -> Tensor:
        import pyro

        return pyro.sample("global", pyro.distributions.Normal(torch.zeros(()), 1.0))

    class Guide(NoPlate):
        def guide(self, x: Tensor, context: Context | None = None, beta: float = 1.0) -> Tensor:
            _without_plate(self, x)
            return super().guide(x, context, beta)

    base = small_vae()
    epochs: list[object] = []
    with pytest.raises(InputError, match=r"plate"):
        train(
            pixels(), Guide(base.prior, base.decoder, base.encoder), validation=pixels(), output=tmp_path / "run",
            callbacks=[epochs.append],
        )  # fmt: skip
    assert epochs == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("epochs", 0),
        ("epochs", 2.5),
        ("epochs", True),
        ("batch_size", 0),
        ("gradient_clip", 0.0),
        ("gradient_clip", float("nan")),
        ("early_stopping", 0),
        ("seed", -1),
        ("beta", -1.0),
        ("beta", float("nan")),
        ("beta", lambda epoch, epochs: 1.0 - epoch),
    ],
)
def test_impossible_settings_are_refused_by_name(
    argument: str, value: object, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"'{argument}' must be .*, got "):
        train(pixels(), output=tmp_path / "run", **{argument: value})
    assert list(tmp_path.iterdir()) == []
