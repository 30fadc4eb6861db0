"""Standardized data: the model of them, in the data's own units."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, InputError, evidence, fit, load, runs
from pyro_bvae.datasets import Dataset, Scaling, Splits, from_path, split, standardized
from pyro_bvae.likelihoods import LearnedScale, NormalLikelihood, StandardizedScale
from pyro_bvae.networks import MLP, Standardize
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.runs import Shape, TrainConfig, build_vae
from pyro_bvae.runs.catalogue import LIKELIHOODS, POSTERIORS, PRIORS, REAL

D, L = 5, 2
UNITS = torch.tensor([1e-3, 0.5, 1.0, 40.0, 2e4], dtype=torch.double)
ORIGIN = torch.tensor([0.0, -3.0, 10.0, 1e3, -5e4], dtype=torch.double)


def data(count: int = 300, missing: float = 0.0) -> Tensor:
    weight = torch.randn(D, L, generator=torch.Generator().manual_seed(0)).double()
    x = ORIGIN + UNITS * LinearGaussian(weight, 0.5).sample(count, seed=1)
    hidden = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < missing
    return x.masked_fill(hidden, torch.nan)


def pair(scaling: Scaling, *, missing: bool = False) -> tuple[BetaVAE, BetaVAE]:
    """Return a linear model of standardized data, and the same one of the data themselves."""
    torch.manual_seed(3)
    decodes, encodes, scale = MLP(L, D, ()), MLP(D, 2 * L, ()), LearnedScale(D)
    of_units = StandardizedScale(scale, scaling.mean, scaling.scale)
    inputs = Standardize(scaling.mean, scaling.scale)
    vaes = [
        BetaVAE(
            NormalPrior(L), Decoder(decodes, NormalLikelihood(part)),
            NormalPosterior(encodes, inputs=shown), missing=missing, name=name,
        ).double()
        for part, shown, name in ((scale, None, "of_u"), (of_units, inputs, "of_x"))
    ]  # fmt: skip
    return vaes[0], vaes[1]


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_evidence_in_the_datas_units_is_that_of_standardized_data_and_the_jacobian(
    missing: float,
) -> None:
    x = data(missing=missing)
    scaling = Scaling.of(Dataset(x, missing=missing > 0))
    u = scaling.apply(x)
    of_u, of_x = pair(scaling, missing=missing > 0)
    first = evidence(of_u.model, of_u.guide, u, num_samples=50).per_datum
    second = evidence(of_x.model, of_x.guide, x, num_samples=50).per_datum
    log_scale = torch.where(torch.isnan(x), 0, scaling.scale.log()).sum(1)
    assert (second - (first - log_scale)).abs().max() < 1e-5
    assert torch.allclose(scaling.log_determinants(x), log_scale)
    assert torch.allclose(of_x.encode(x), of_u.encode(u), atol=1e-9)
    assert torch.allclose(of_x.reconstruct(x), scaling.undo(of_u.reconstruct(u)), rtol=1e-9)
    drawn = [vae.generate(20, noise=True, seed=4) for vae in (of_u, of_x)]
    assert torch.allclose(scaling.undo(drawn[0]), drawn[1], rtol=1e-6)


def test_evidence_of_a_standardized_model_is_the_closed_form_in_the_datas_units() -> None:
    truth = LinearGaussian(torch.randn(D, L, generator=torch.Generator().manual_seed(5)), 0.5)
    u = truth.sample(100, seed=6)
    x = ORIGIN + UNITS * u
    exact = truth.amortized_vae()
    scale = StandardizedScale(exact.decoder.likelihood.scale, ORIGIN, UNITS)
    vae = BetaVAE(
        exact.prior,
        Decoder(exact.decoder.network, NormalLikelihood(scale)),
        _Shown(exact.encoder, Standardize(ORIGIN, UNITS)),
    )
    found = evidence(vae.model, vae.guide, x, num_samples=2000)
    off = found.per_datum - (truth.evidence(u) - UNITS.log().sum())
    assert off.mean().abs() < min(0.02, 4 * found.monte_carlo_error + 1e-6)


class _Shown(nn.Module):
    def __init__(self, encoder: nn.Module, inputs: nn.Module) -> None:
        super().__init__()
        self.encoder, self.inputs = encoder, inputs

    def forward(self, x: Tensor) -> torch.distributions.Distribution:
        return self.encoder(self.inputs(x))


def test_missing_entries_reach_the_encoder_as_the_mean() -> None:
    x = data(missing=0.3)
    scaling = Scaling.of(Dataset(x, missing=True))
    _, of_x = pair(scaling, missing=True)
    filled = torch.where(torch.isnan(x), scaling.mean, x)
    assert torch.allclose(of_x.encode(x), of_x.encode(filled))
    assert torch.allclose(scaling.mean, x.nanmean(0))
    hidden = torch.isnan(x)
    assert torch.equal(of_x.impute(x)[~hidden], x[~hidden])
    assert torch.equal(of_x.impute(x)[hidden], of_x.reconstruct(x)[hidden])


def test_scaling_is_that_of_all_blocks_together_and_leaves_constant_features() -> None:
    torch.manual_seed(0)
    x = 1e4 + torch.randn(10_001, 3)
    x[:, 1] = 0.1
    x[5:7, 0] = torch.nan
    x[:, 2] = torch.nan
    scaling = Scaling.of(Dataset(x, missing=True))
    seen = x[:, 0].double()[~torch.isnan(x[:, 0])]
    assert scaling.mean[0] == pytest.approx(float(seen.mean()), rel=1e-12)
    assert scaling.scale[0] == pytest.approx(float(seen.std(correction=0)), rel=1e-9)
    assert scaling.scale[1:].tolist() == [1, 1] and scaling.mean[2] == 0
    assert torch.equal(scaling.apply(x)[:, 1], torch.zeros(len(x)))
    assert scaling.log_determinant == pytest.approx(float(scaling.scale[0].log()), rel=1e-9)


def test_standardized_splits_are_those_of_the_training_part() -> None:
    whole = Dataset(data(), feature_names=tuple("abcde"))
    parts = split(whole, validation=0.2, test=0.2, seed=0, name="all")
    result = standardized(parts)
    assert torch.allclose(result.train.x.mean(0), torch.zeros(D).double(), atol=1e-9)
    assert torch.allclose(result.train.x.std(0, correction=0), torch.ones(D).double())
    for name in ("train", "validation", "test"):
        assert torch.allclose(
            result.scaling.undo(getattr(result, name).x), getattr(parts, name).x, rtol=1e-9
        )
    assert result.test.feature_names == tuple("abcde")
    assert result.binarized("none").scaling is result.scaling
    pixels = Splits(*[Dataset(torch.rand(4, 2))] * 3, "pixels").binarized("dynamic")
    with pytest.raises(InputError, match="'splits' must hold real numbers"):
        standardized(pixels)


MODELS = [
    *({"likelihood": likelihood} for likelihood in sorted(REAL)),
    *(
        {"likelihood": "normal", "prior": prior}
        for prior in PRIORS
        if prior not in ("zuko", "normal")
    ),
    *({"likelihood": "student-t", "posterior": posterior} for posterior in POSTERIORS),
]


@pytest.mark.parametrize("parts", MODELS, ids=lambda parts: " ".join(parts.values()))
def test_a_training_is_the_same_in_any_units(parts: dict[str, str]) -> None:
    config = TrainConfig(**parts, hidden=(8,), latent_dim=2, prior_components=3, standardize=True)
    x = data(100).float()
    losses = []
    for y in (x, ((x - ORIGIN) / UNITS).float()):
        vae = build_vae(config, Shape.of(Dataset(y)))
        row = fit(vae, y, epochs=3, batch_size=50, progress=False, compile=False).rows[-1]
        losses.append(row["distortion"] + row["rate"])
    assert losses[0] - losses[1] == pytest.approx(float(UNITS.log().sum()), abs=0.01)


def test_other_likelihoods_are_refused() -> None:
    for likelihood in LIKELIHOODS.keys() - REAL:
        config = TrainConfig(likelihood=likelihood, standardize=True)
        with pytest.raises(InputError, match=f"'standardize' is for .*; got .*'{likelihood}'"):
            build_vae(config, Shape(D))
    with pytest.raises(InputError, match="'standardize' takes mean and deviation from the data"):
        build_vae(TrainConfig(likelihood="normal", standardize=True), Shape(D))


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_keeps_the_scaling_and_answers_in_the_datas_units(
    compile: bool, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", data(missing=0.1).numpy())
    config = TrainConfig(
        dataset="file", path=str(tmp_path / "x.npy"), missing="nan", likelihood="normal",
        standardize=True, hidden=(8,), latent_dim=2, epochs=2, warmup_epochs=0.0, compile=compile,
    )  # fmt: skip
    trained = runs.train(config, tmp_path / "run", progress=False)
    assert ("compiled" in str(trained.history.step)) == compile
    moved = (tmp_path / "x.npy").rename(tmp_path / "y.npy")
    assert torch.equal(
        load(tmp_path / "run").vae.encoder.inputs.mean, trained.vae.encoder.inputs.mean
    )
    moved.rename(tmp_path / "x.npy")
    again = load(tmp_path / "run")
    scaling = Scaling.of(from_path(tmp_path / "x.npy", missing=True).train)
    assert torch.equal(again.vae.encoder.inputs.mean, scaling.mean)
    assert torch.equal(again.vae.decoder.likelihood.scale.deviation, scaling.scale)
    x = again.splits.test.x
    shown = torch.where(torch.isnan(x), scaling.mean, x).float()
    spread = (again.vae.reconstruct(shown) - scaling.mean) / scaling.scale
    assert spread.abs().max() < 5
    with pytest.raises(InputError, match="standardize was True, got False"):
        runs.train(config.with_options(standardize=False), tmp_path / "run", resume=True)


def test_an_export_holds_the_scaling(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", data(missing=0.1).numpy())
    config = TrainConfig(
        dataset="file", path=str(tmp_path / "x.npy"), missing="nan", likelihood="normal",
        standardize=True, hidden=(4,), latent_dim=2, epochs=1, warmup_epochs=0.0, prior="vamp",
        prior_components=3,
    )  # fmt: skip
    trained = runs.train(config, tmp_path / "run", progress=False)
    runs.export(tmp_path / "run", tmp_path / "export")
    vae, x = runs.from_export(tmp_path / "export"), data(20, missing=0.1)
    assert torch.equal(vae.reconstruct(x), trained.vae.eval().reconstruct(x))


def test_a_sweep_of_a_standardized_model_is_stacked_where_its_data_are_the_same(
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "x.npy", data().numpy())
    config = TrainConfig(
        dataset="file", path=str(tmp_path / "x.npy"), likelihood="normal", standardize=True,
        hidden=(4,), latent_dim=2, epochs=1, warmup_epochs=0.0, batch_size=300,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs.train_sweep(config, tmp_path / "betas", betas=(0.5, 1.0), progress=False)
    # Random splits of other seeds have other means.
    with pytest.warns(UserWarning, match="one after the other, since their buffers 'mean' differ"):
        runs.train_sweep(config, tmp_path / "seeds", betas=(1.0,), seeds=2, progress=False)
    alone = runs.train(config, tmp_path / "alone", progress=False)
    swept = load(tmp_path / "betas" / "beta1-seed0")
    for name, value in alone.vae.state_dict().items():
        assert torch.allclose(swept.vae.state_dict()[name], value, atol=1e-5), name


def test_scalings_that_cannot_be_used_are_refused() -> None:
    for make in (Standardize, lambda *args: StandardizedScale(LearnedScale(), *args)):
        with pytest.raises(InputError, match=r"one shape \(D,\), got \(2,\) and \(3,\)"):
            make(torch.zeros(2), torch.ones(3))
        with pytest.raises(InputError, match="'scale' positive"):
            make(torch.zeros(2), torch.tensor([1.0, 0.0]))


def test_a_table_of_large_numbers_trains_and_is_told_to_be_standardized(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(200, 3))
    x[:, 2] = 2000 + 10 * x[:, 2]
    np.savetxt(tmp_path / "x.csv", x, delimiter=",", header="a,b,year", comments="")
    config = TrainConfig(
        dataset="file", path=str(tmp_path / "x.csv"), likelihood="normal", hidden=(8,), epochs=1
    )
    with pytest.warns(UserWarning, match="1 of 3 features are not scaled"):
        run = runs.train(config, tmp_path / "run", progress=False)
    assert len(run.history.rows) == 1


def test_a_number_outside_the_support_is_named_by_its_feature(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("age,iron\n" + "0.5,0.25\n" * 30 + "41,0.5\n")
    config = TrainConfig(dataset="file", path=str(tmp_path / "x.csv"), epochs=1)
    with pytest.raises(InputError, match="feature 'age' of the datum with index 30 is 41, outside"):
        runs.train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
