"""Batches of one datum.

Joined to the batch before them, for models that learn from no datum alone and no others.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_bvae import BetaVAE, Context, Decoder, fit, sweep
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Dataset
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import Constant
from pyro_bvae.training.batches import Joined, as_batches, joined, may_be_single
from pyro_bvae.training.distributed import Ranks

D, L = 5, 2
QUICK: dict[str, Any] = {"epochs": 2, "learning_rate": Constant(1e-2), "progress": False}


def data(count: int) -> Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(0))


class Standardized(nn.Module):
    """A layer of a user's own that divides by the standard deviation over the batch."""

    def forward(self, h: Tensor) -> Tensor:
        if self.training and len(h) < 2:
            raise ValueError("no variance of one datum\non two lines")
        return h / (1e-3 + h.std(0)) if self.training else h


def vae(
    layer: Callable[[], nn.Module] = lambda: nn.BatchNorm1d(8), where: str = "encoder"
) -> BetaVAE:
    torch.manual_seed(0)
    networks = {"encoder": MLP(D, 2 * L, hidden=(8,)), "decoder": MLP(L, D, hidden=(8,))}
    networks[where].layers.insert(1, layer())
    decoder = Decoder(networks["decoder"], NormalLikelihood(0.5))
    return BetaVAE(NormalPrior(L), decoder, NormalPosterior(networks["encoder"]))


def plain() -> BetaVAE:
    return vae(nn.Identity)


def sizes_of(model: BetaVAE, x: Any, **options: Any) -> list[int]:
    """Return the sizes of the batches that a model is shown in one epoch."""
    seen: list[int] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training and torch.is_grad_enabled():
            seen.append(len(inputs[0]))

    model.encoder.network.register_forward_pre_hook(note)
    fit(model, x, **{**QUICK, "epochs": 1, **options})
    return seen


@pytest.mark.parametrize(
    "layer", [lambda: nn.BatchNorm1d(8), Standardized], ids=["batch norm", "of one's own"]
)
@pytest.mark.parametrize("where", ["encoder", "decoder"])
@pytest.mark.parametrize("kind", ["tensor", "larger than memory"])
def test_a_last_datum_joins_the_batch_before_it(
    layer: Callable[[], nn.Module], where: str, kind: str
) -> None:
    x = data(17)
    given = x if kind == "tensor" else TensorDataset(x)
    assert sizes_of(vae(layer, where), given, batch_size=8, validation=data(1)) == [8, 9]
    assert sizes_of(vae(layer, where), given, batch_size=16) == [17]
    assert sizes_of(vae(layer, where), given, batch_size=6) == [6, 6, 5]


def test_a_last_datum_of_a_loader_joins_the_batch_before_it() -> None:
    loader = DataLoader(TensorDataset(data(17)), batch_size=8, shuffle=True)
    assert sizes_of(vae(), loader) == [8, 9]


def test_models_that_take_one_datum_see_the_batches_that_they_saw() -> None:
    for model in (plain(), vae(lambda: nn.LayerNorm(8)), vae(nn.Dropout)):
        assert sizes_of(model, data(17), batch_size=8) == [8, 8, 1]
        assert sizes_of(model, DataLoader(TensorDataset(data(17)), batch_size=8)) == [8, 8, 1]
    assert sizes_of(plain(), data(1)) == [1]


def test_statistics_of_batch_norm_do_not_know_of_the_trial() -> None:
    model = vae()
    fit(model, data(17), batch_size=8, **{**QUICK, "epochs": 1, "learning_rate": Constant(0.0)})
    norm = model.encoder.network.layers[1]
    assert int(norm.num_batches_tracked) == 2
    torch.manual_seed(0)
    by_hand, order = vae(), Dataset(data(17)).batches(8, seed=0, epoch=0)
    parts = [x for x, _ in order]
    by_hand.train()
    for x in (parts[0], torch.cat(parts[1:])):
        by_hand.encoder.network(x)
    torch.testing.assert_close(norm.running_mean, by_hand.encoder.network.layers[1].running_mean)


@pytest.mark.parametrize(
    ("count", "batch_size", "named"), [(1, 8, "the number of data"), (9, 1, "'batch_size'")]
)
@pytest.mark.parametrize(
    "kind", [lambda x, size: x, lambda x, size: DataLoader(TensorDataset(x), batch_size=size)]
)
def test_what_cannot_be_joined_is_refused_before_training(
    count: int, batch_size: int, named: str, kind: Callable[..., Any], tmp_path: Path
) -> None:
    given = kind(data(count), batch_size)
    named = "'batch_size'" if isinstance(given, DataLoader) else named
    with pytest.raises(
        InputError, match=f"^{named} must be at least 2, got 1: a layer of the model, such as"
    ) as error:
        fit(vae(), given, batch_size=batch_size, output=tmp_path / "run", **QUICK)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_resumed_joins_too(tmp_path: Path) -> None:
    whole, parted = vae(), vae()
    fit(whole, data(17), batch_size=8, **{**QUICK, "epochs": 3})
    fit(parted, data(17), batch_size=8, output=tmp_path, **QUICK)
    fit(parted, data(17), batch_size=8, output=tmp_path, resume=True, **{**QUICK, "epochs": 3})
    assert all(
        torch.equal(value, whole.state_dict()[name]) for name, value in parted.state_dict().items()
    )


@pytest.mark.parametrize(
    "layer", [lambda: nn.BatchNorm1d(8), lambda: nn.BatchNorm1d(8, track_running_stats=False)]
)
def test_a_sweep_joins_too(layer: Callable[[], nn.Module]) -> None:
    with pytest.warns(UserWarning, match="the models are trained one after the other"):
        models = sweep(lambda seed: vae(layer), data(17), betas=(0.5, 1.0), batch_size=8, **QUICK)
    alone = vae(layer)
    fit(alone, data(17), beta=1.0, batch_size=8, **QUICK)
    assert all(
        torch.equal(value, alone.state_dict()[name])
        for name, value in models[1].vae.state_dict().items()
    )


def shares(count: int, batch_size: int, processes: int) -> Iterator[list[int]]:
    for rank in range(processes):
        ranks = Ranks(rank, processes)
        batches = joined(
            as_batches(data(count), torch.float32, torch.device("cpu")), batch_size, 0, ranks
        )
        results = [len(x) for x, _ in batches.batches(batch_size, seed=0, epoch=0)]
        assert len(results) == batches.num_batches(batch_size)
        yield results


@pytest.mark.parametrize("count", range(6, 40))
def test_no_process_has_one_datum(count: int) -> None:
    each = list(shares(count, 6, 3))
    assert sum(map(sum, each)) == count
    assert all(size >= 2 for sizes in each for size in sizes)
    assert len({len(sizes) for sizes in each}) == 1


def test_batches_that_give_a_process_one_datum_are_refused() -> None:
    with pytest.raises(InputError, match="'batch_size' must be at least 6 for 3 processes, got 5"):
        list(shares(20, 5, 3))
    ready = as_batches(data(20), torch.float32, torch.device("cpu"))
    assert may_be_single(ready, 5, Ranks(0, 3), vae())
    assert not may_be_single(ready, 10, Ranks(0, 3), vae())


def test_context_is_joined_with_its_data() -> None:
    x = data(7)
    whole = Dataset(x, context=Context(size_factor=x[:, :1].exp(), covariates=x[:, 1:3]))
    batches = list(Joined(whole, True).batches(3, seed=1, epoch=0))
    assert [len(part) for part, _ in batches] == [3, 4]
    for part, context in batches:
        torch.testing.assert_close(context.size_factor, part[:, :1].exp())
        torch.testing.assert_close(context.covariates, part[:, 1:3])


def test_one_held_out_datum_says_nothing_of_active_units() -> None:
    history = fit(plain(), data(8), validation=data(1), **QUICK)  # a warning would be an error here
    assert "active_units" not in history
