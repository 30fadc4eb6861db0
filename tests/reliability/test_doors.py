"""Wrong values at every public door: the numbers of the right ones, or one line that says so."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from pyro_bvae import BetaVAE, Context, Decoder, InputError, elbo, evidence, fit, inference_gaps
from pyro_bvae.datasets import Dataset, Splits
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.likelihoods import BernoulliLikelihood, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from tests.reliability.doors import FUNCTIONS, outcome, rows_of
from tests.reliability.right_calls import RIGHT, D, Workshop, make_vae

# One row of so many is run here; ``python -m tests.reliability.doors`` runs them all.
SHARE = 12


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    here = Path.cwd()
    yield Workshop(tmp_path_factory.mktemp("doors"))
    os.chdir(here)


def test_every_public_function_is_in_the_table_and_takes_its_arguments_as_annotated() -> None:
    assert set(FUNCTIONS) == set(RIGHT)
    plain = {"stream_seed", "stream_generator", "checkpoint_path"}  # they check by themselves
    assert not [n for n, f in FUNCTIONS.items() if not hasattr(f, "__wrapped__") and n not in plain]


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_wrong_values_are_refused_in_one_line_or_stand_for_right_ones(
    name: str, workshop: Workshop
) -> None:
    rows = list(rows_of(name, workshop))
    chosen = [row for row in rows if zlib.crc32(str(row).encode()) % SHARE == 0] or rows[:1]
    results = {str(row): outcome(row, workshop) for row in chosen}
    assert not {row: found for row, found in results.items() if found[0] not in ("same", "refused")}


# -- the doors that a person opens first ----------------------------------------------------------

X = torch.randn(8, D, generator=torch.Generator().manual_seed(0))
FEW = {"num_samples": 7}
SAME = {
    "an array": X.numpy(),
    "doubles": X.double(),
    "a table": pd.DataFrame(X.numpy(), columns=list("abcd")),
    "a list": X.tolist(),
    "images": X.view(8, 1, 2, 2),
    "sparse": X.to_sparse(),
    "a gradient": X.clone().requires_grad_(),
    "a data set": Dataset(X),
}


@pytest.mark.parametrize("kind", SAME)
def test_data_of_every_kind_have_the_same_evidence(kind: str) -> None:
    vae = make_vae()
    expected = evidence(vae.model, vae.guide, X, **FEW).per_datum
    assert torch.equal(evidence(vae.model, vae.guide, SAME[kind], **FEW).per_datum, expected)
    assert torch.equal(evidence(vae, SAME[kind], **FEW).per_datum, expected)


@pytest.mark.parametrize("kind", [kind for kind in SAME if kind != "a data set"])
def test_data_of_every_kind_train_the_same_weights(kind: str) -> None:
    models = make_vae(), make_vae()
    for vae, data in zip(models, (X, SAME[kind]), strict=True):
        fit(vae, data, validation=data, epochs=1, progress=False)
    assert all(map(torch.equal, *(vae.parameters() for vae in models)))
    assert torch.equal(models[0].encode(X), models[1].encode(SAME[kind]))


def test_integers_in_lists_and_tables_are_numbers_and_in_arrays_may_be_pixels() -> None:
    decoder = Decoder(MLP(2, D, (3,)), BernoulliLikelihood())
    vae = BetaVAE(NormalPrior(2), decoder, NormalPosterior(MLP(D, 4, (3,))))
    pixels = [[0, 1, 1, 0], [1, 0, 0, 1]]
    assert torch.equal(vae.encode(pixels), vae.encode(torch.tensor(pixels).float()))
    assert torch.equal(vae.encode(pd.DataFrame(pixels)), vae.encode(pixels))
    for array in (np.array(pixels), torch.tensor(pixels).bool()):
        with pytest.raises(InputError, match=r"'x' must be floating, .* / 255 for pixels"):
            vae.encode(array)


def test_a_context_of_arrays_is_that_of_tensors() -> None:
    vae = make_vae(covariates=1)
    covariates = torch.arange(8.0)[:, None]
    expected = elbo(vae.model, vae.guide, X, Context(covariates=covariates), **FEW)
    for part in (covariates.numpy(), covariates.double(), covariates.tolist()):
        result = elbo(vae.model, vae.guide, X.numpy(), Context(covariates=part), **FEW)
        assert torch.equal(result.per_datum, expected.per_datum)


WORDS = {
    "one datum": (
        lambda v: evidence(v.model, v.guide, X[0]),
        r"got \(4,\); one datum is x\[None\]",
    ),
    "no data": (lambda v: evidence(v.model, v.guide, X[:0]), "empty data set"),
    "no features": (lambda v: evidence(v.model, v.guide, X[:, :0]), "empty data set"),
    "nothing given": (
        lambda v: evidence(v.model, v.guide),
        r"write evidence\(vae.model, vae.guide",
    ),
    "no guide": (lambda v: elbo(v.model, X), r"'guide' .*; write elbo\(vae.model, vae.guide, x\)"),
    "a class": (lambda v: elbo(BetaVAE.model, BetaVAE.guide, X), "missing a required argument"),
    "a module": (lambda v: elbo(v.model, v, X), r"write elbo\(vae.model, vae.guide, x\)"),
    "splits": (
        lambda v: evidence(v, Splits(Dataset(X), None, Dataset(X), "a")),
        r"got Splits: take a part, such as .train or .test",
    ),
    "fit to splits": (
        lambda v: fit(v, Splits(Dataset(X), None, Dataset(X), "a")),
        r"got Splits: take a part, such as .train or .test",
    ),
    "grey data": (
        lambda v: evidence(v, Dataset(X.sigmoid(), stochastic_binarization=True)),
        r"take data.binarized\(seed\)",
    ),
    "too many": (
        lambda v: evidence(v, X, num_samples=10**15),
        "must be at most 1,000,000,000, got",
    ),
    "none": (
        lambda v: evidence(v, X, num_samples=None),
        "'num_samples' must be a positive integer",
    ),
    "text": (lambda v: evidence(v, X, num_samples="10"), "'num_samples' .*, got '10'"),
    "β as text": (lambda v: fit(v, X, beta="4"), "'beta' must be non-negative and finite, got '4'"),
    "context": (lambda v: evidence(v, X, X), "'context' must be a Context or None, got a tensor"),
    "a part's class": (
        lambda v: BetaVAE(NormalPrior, v.decoder, v.encoder),
        "'prior' must be .* got the class NormalPrior, not an instance",
    ),
    "a string of families": (
        lambda v: inference_gaps(v, X, settings=RefitSettings(families="flow")),
        "'families' must be a sequence of strings, got 'flow'",
    ),
    "widths": (lambda v: MLP(4, 4, hidden=8), "'hidden' must be a sequence of integers, got 8"),
}


@pytest.mark.parametrize("name", WORDS)
def test_mistakes_are_named_with_the_line_to_write(name: str) -> None:
    call, words = WORDS[name]
    with pytest.raises(InputError, match=words) as caught:
        call(make_vae())
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 1000


def test_counts_of_numpy_are_counts(tmp_path: Path) -> None:
    vae = make_vae()
    expected = evidence(vae, X, num_samples=7, seed=3).per_datum
    for seven, three in ((np.int32(7), np.int64(3)), (torch.tensor(7), torch.tensor(3))):
        assert torch.equal(evidence(vae, X, num_samples=seven, seed=three).per_datum, expected)
    history = fit(make_vae(), X, epochs=np.int64(1), seed=np.uint8(0), output=tmp_path / "run",
                  beta=np.float32(1), progress=False)  # fmt: skip
    assert len(history.rows) == 1
    assert NormalPrior(np.int64(2)).latent_dim == 2
    assert type(NormalPrior(np.int64(2)).latent_dim) is int


def test_data_without_any_observed_entry_are_refused() -> None:
    vae = BetaVAE(*(getattr(make_vae(), p) for p in ("prior", "decoder", "encoder")), missing=True)
    unseen = torch.full_like(X, torch.nan)
    for call in (fit, evidence):
        with pytest.raises(InputError, match="'x' must have an observed entry, got NaN alone"):
            call(vae, unseen)
    some = unseen.clone()
    some[0, 0] = 1.0
    assert evidence(vae, some, **FEW).per_datum.shape == (8,)


def test_networks_of_another_width_are_refused() -> None:
    good = make_vae()
    with pytest.raises(InputError, match="'network' must give a mean and a scale for each latent"):
        NormalPosterior(nn.Linear(D, 5))
    with pytest.raises(InputError, match="the parts must agree on the number of latents"):
        BetaVAE(NormalPrior(2), good.decoder, NormalPosterior(nn.Linear(D, 6)))
    layers = (
        nn.Sequential(nn.Linear(D, 6)),
        nn.Sequential(nn.Linear(2, 3)),
    )  # their sizes are unsaid
    for decoder, encoder in (
        (good.decoder, NormalPosterior(layers[0])),
        (Decoder(layers[1], NormalLikelihood()), good.encoder),
    ):
        for call in (fit, evidence):
            with pytest.raises(InputError):
                call(BetaVAE(NormalPrior(2), decoder, encoder), X)
