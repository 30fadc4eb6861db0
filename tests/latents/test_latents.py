"""Looking into the latents.

Traversals, paths, codes, temperature, and the files and figures of them.
"""

import math
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from PIL import Image
from scipy.stats import norm

import pyro_bvae
from pyro_bvae import BetaVAE, Context, Decoder, InputError, latents
from pyro_bvae.cli import main
from pyro_bvae.datasets import Dataset, LazyDataset
from pyro_bvae.distributions.tempered import sample_tempered
from pyro_bvae.latents import AggregateRange, GeodesicPath, LinearPath, PriorRange, SphericalPath
from pyro_bvae.likelihoods import NegativeBinomialLikelihood, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.plots import latents as latent_plots
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import (
    FlowPrior,
    LaplacePrior,
    LearnedNormalPrior,
    MixturePrior,
    NormalPrior,
    StudentTPrior,
    VampPrior,
)
from pyro_bvae.runs import Shape, TrainConfig, build_vae, load_data, read_config

# Four orthogonal directions, the third of which says nothing.
LENGTHS = torch.tensor([1.0, 3.0, 0.0, 2.0], dtype=torch.double)
DIRECTIONS = torch.linalg.qr(
    torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
)[0]
LINEAR = LinearGaussian(DIRECTIONS * LENGTHS, noise_scale=0.7, bias=torch.arange(6.0))
X = LINEAR.sample(400)


def linear_vae() -> BetaVAE:
    return LINEAR.amortized_vae()


def small_vae(prior=None, seed=0, features=5, latent_dim=3) -> BetaVAE:
    torch.manual_seed(seed)
    return BetaVAE(
        prior or NormalPrior(latent_dim),
        Decoder(MLP(latent_dim, features, hidden=(8,)), NormalLikelihood(0.5)),
        NormalPosterior(MLP(features, 2 * latent_dim, hidden=(8,))),
    )


def count_vae() -> BetaVAE:
    torch.manual_seed(0)
    return BetaVAE(
        NormalPrior(2),
        Decoder(MLP(2 + 1, 4, hidden=(8,)), NegativeBinomialLikelihood(4), num_covariates=1),
        NormalPosterior(MLP(4 + 1, 4, hidden=(8,)), num_covariates=1),
    )


def count_context(rows: int) -> Context:
    return Context(
        1.0 + torch.arange(rows).float().unsqueeze(1), torch.arange(rows).float().unsqueeze(1) % 2
    )


# -- traversals
# --------------------------------------------------------------------------------------------------


def test_a_traversal_of_a_linear_decoder_walks_along_its_columns() -> None:
    vae = linear_vae()
    result = latents.traverse(vae, X, latents=[3, 0], values=[-2.0, 0.0, 0.5], datum=7)
    assert result.latents == (3, 0) and result.z.shape == (2, 3, 4) and result.x.shape == (2, 3, 6)
    code = vae.encode(X[7:8])[0]
    for row, latent in enumerate((3, 0)):
        for step, value in enumerate((-2.0, 0.0, 0.5)):
            exact = (
                LINEAR.bias
                + LINEAR.weight @ code
                + (value - code[latent]) * LINEAR.weight[:, latent]
            )
            torch.testing.assert_close(result.x[row, step], exact, atol=1e-12, rtol=0)
    others = [1, 2]
    assert bool((result.z[..., others] == code[others]).all())


def test_by_default_the_active_latents_are_moved_by_decreasing_kl() -> None:
    result = latents.traverse(linear_vae(), X)
    assert result.latents == (1, 3, 0)  # the third says nothing
    loc, scale = LINEAR.best_diagonal(X)
    exact = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).mean(0)
    assert result.kl is not None
    torch.testing.assert_close(result.kl, exact[[1, 3, 0]])
    assert bool((result.kl.diff() < 0).all())


def test_a_code_to_start_from_needs_no_data() -> None:
    vae = linear_vae()
    result = latents.traverse(
        vae, start=torch.zeros(4), latents=[1], values=PriorRange(2), num_steps=5
    )
    assert result.kl is None
    torch.testing.assert_close(
        result.values, torch.tensor([[-2.0, -1.0, 0.0, 1.0, 2.0]], dtype=torch.double)
    )
    exact = LINEAR.bias + result.values[0].unsqueeze(1) * LINEAR.weight[:, 1]
    torch.testing.assert_close(result.x[0], exact)


def test_the_aggregate_range_is_that_of_the_aggregate_posterior() -> None:
    data = Dataset(LINEAR.sample(20_000, seed=1))
    values = AggregateRange(share=0.9)(linear_vae(), data, [1, 2, 0], 3)
    # Of data from the model, under orthogonal columns, the aggregate of the exact posterior is the
    # prior.
    quantile = norm.ppf(0.95)
    error = math.sqrt(0.05 * 0.95 / len(data)) / norm.pdf(quantile)
    assert (values[:, 0] + quantile).abs().max() < 4 * error
    assert (values[:, 2] - quantile).abs().max() < 4 * error
    torch.testing.assert_close(values[:, 1], (values[:, 0] + values[:, 2]) / 2)
    again = AggregateRange(share=0.9)(linear_vae(), data, [1, 2, 0], 3)
    assert bool((values == again).all())


def test_the_prior_range_follows_the_prior() -> None:
    prior = LearnedNormalPrior(3)
    with torch.no_grad():
        prior.loc.copy_(torch.tensor([1.0, 2.0, 3.0]))
    scale = prior().variance.sqrt().detach()
    values = PriorRange(3)(small_vae(prior), None, [2, 0], 2)
    torch.testing.assert_close(values[0], 3 + 3 * scale[2] * torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(values[1], 1 + 3 * scale[0] * torch.tensor([-1.0, 1.0]))
    with pytest.raises(InputError, match=r"knows no mean and variance; take AggregateRange"):
        PriorRange()(small_vae(FlowPrior(3)), None, [0], 2)


# -- paths
# --------------------------------------------------------------------------------------------------

START, END = torch.tensor([3.0, 0.0, 1.0]), torch.tensor([-0.5, 2.0, 0.5])


def test_a_linear_path_is_a_line() -> None:
    path = LinearPath()(None, START, END, 5)
    share = torch.tensor([0, 0.25, 0.5, 0.75, 1]).unsqueeze(1)
    torch.testing.assert_close(path, (1 - share) * START + share * END)


@pytest.mark.parametrize("dtype", [torch.float, torch.double])
def test_a_spherical_path_turns_and_grows_at_constant_rates(dtype: torch.dtype) -> None:
    start, end = START.to(dtype), END.to(dtype)
    path = SphericalPath()(None, start, end, 7)
    assert path.dtype == dtype
    torch.testing.assert_close(path[0], start)
    torch.testing.assert_close(path[-1], end)
    share = torch.linspace(0, 1, 7, dtype=dtype)
    torch.testing.assert_close(path.norm(dim=1), (1 - share) * start.norm() + share * end.norm())
    directions = (path / path.norm(dim=1, keepdim=True)).double()
    angles = torch.acos((directions[1:] * directions[:-1]).sum(1))
    whole = torch.acos((start @ end / start.norm() / end.norm()).double())
    torch.testing.assert_close(angles, (whole / 6).expand(6), rtol=1e-3, atol=0)
    # In the plane of the two, and nowhere else.
    assert torch.linalg.matrix_rank(path.double(), rtol=1e-5) == 2


def test_a_spherical_path_between_parallel_codes_is_a_line() -> None:
    torch.testing.assert_close(
        SphericalPath()(None, START, 3 * START, 3), START * torch.tensor([[1.0], [2.0], [3.0]])
    )


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (START, "that are the same"),
        (0 * START, "zero has no direction"),
        (-2 * START, "between opposite codes"),
    ],
)
def test_where_there_is_no_arc_it_says_so(end: torch.Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        SphericalPath()(None, START, end, 5)


def test_a_geodesic_of_a_linear_decoder_is_a_line() -> None:
    vae = linear_vae()
    start, end = vae.encode(X[:2])
    path = GeodesicPath()(vae, start, end, 5)
    assert path.shape == (5, 4)
    # The third latent decodes to nothing, so that any way along it is as short.
    straight = LinearPath()(vae, start, end, 5)
    torch.testing.assert_close(path[:, [0, 1, 3]], straight[:, [0, 1, 3]], atol=1e-3, rtol=0)


def test_a_geodesic_changes_what_is_decoded_less_than_a_line() -> None:
    torch.manual_seed(1)
    vae = small_vae(seed=3)
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter.mul_(2.5)
    start, end = torch.tensor([-2.0, -1.0, 1.0]), torch.tensor([2.0, 1.5, 0.0])
    lengths = []
    for part in (LinearPath(), GeodesicPath()):
        path = part(vae, start, end, 65)
        torch.testing.assert_close(path[[0, -1]], torch.stack([start, end]))
        lengths.append(float(vae.decode(path).diff(dim=0).norm(dim=1).sum()))
    assert lengths[1] < 0.99 * lengths[0]


def test_a_geodesic_that_was_not_found_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyro_bvae.latents import paths as latent_parts

    search = latent_parts.geodesic
    monkeypatch.setattr(
        latent_parts, "geodesic", lambda *args, **more: search(*args, max_iterations=1, **more)
    )
    with pytest.warns(UserWarning, match=r"may not be the shortest: .*NOT CONVERGED"):
        GeodesicPath()(small_vae(), START, END, 5)


def test_an_interpolation_goes_from_code_to_code_for_each_pair() -> None:
    vae = linear_vae()
    result = latents.interpolate(vae, X[:3], X[3:6], num_steps=4)
    assert result.z.shape == (3, 4, 4) and result.x.shape == (3, 4, 6)
    torch.testing.assert_close(result.z[:, 0], vae.encode(X[:3]))
    torch.testing.assert_close(result.z[:, -1], vae.encode(X[3:6]))
    torch.testing.assert_close(result.x[:, 0], vae.reconstruct(X[:3]))
    torch.testing.assert_close(result.x, LINEAR.bias + result.z @ LINEAR.weight.T)
    assert bool((result.start == X[:3]).all()) and bool((result.end == X[3:6]).all())


# -- contexts, tables that are not in memory, missing data, images
# -----------------------------------------------------


def test_counts_are_decoded_in_the_context_of_their_datum() -> None:
    vae, counts = (
        count_vae(),
        torch.poisson(3 * torch.ones(6, 4), generator=torch.Generator().manual_seed(0)),
    )
    data = Dataset(counts, count_context(6))
    result = latents.traverse(vae, data, latents=[1], datum=4)
    assert data.context is not None
    alone = Context(*(part[4:5] for part in data.context if part is not None))
    repeated = Context(*(part[4:5].expand(9, -1) for part in data.context if part is not None))
    torch.testing.assert_close(result.z[0, :, 0], vae.encode(counts[4:5], alone)[:, 0].expand(9))
    torch.testing.assert_close(result.x[0], vae.decode(result.z[0], repeated))
    way = latents.interpolate(vae, data[4:5], data[1:2], path=GeodesicPath())
    torch.testing.assert_close(way.x[0], vae.decode(way.z[0], repeated))
    torch.testing.assert_close(way.z[0, -1], vae.encode(counts[1:2], data[1:2].context)[0])
    torch.testing.assert_close(
        latents.reconstruct(vae, data), vae.reconstruct(counts, data.context)
    )


def test_a_sparse_table_gives_what_a_dense_one_does() -> None:
    vae, counts = (
        count_vae(),
        torch.poisson(3 * torch.ones(20, 4), generator=torch.Generator().manual_seed(0)),
    )
    labels = torch.arange(20) % 3
    dense = Dataset(counts, count_context(20), labels)
    lazy = LazyDataset(
        scipy.sparse.csr_matrix(counts.numpy()), context=count_context(20), labels=labels
    )
    for data in (dense, lazy):
        codes = latents.embed(vae, data)
        assert bool((codes.means == vae.encode(counts, count_context(20))).all())
        assert codes.labels is not None and codes.labels.tolist() == labels.tolist()
    moved = [latents.traverse(vae, data, latents=[0, 1]) for data in (dense, lazy)]
    assert bool((moved[0].x == moved[1].x).all())


def test_missing_entries_are_taken_by_a_model_that_takes_them() -> None:
    x = torch.randn(8, 5)
    x[2, 3] = torch.nan
    with pytest.raises(InputError, match=r"finite, got nan at index \(2, 3\)"):
        latents.embed(small_vae(), x)
    parts = small_vae()
    vae = BetaVAE(parts.prior, parts.decoder, parts.encoder, missing=True, name="other")
    assert bool((latents.embed(vae, x).means == vae.encode(x)).all())


def test_convolutional_networks_are_looked_into_like_others() -> None:
    config = TrainConfig(network="convolutional", hidden=(8,), latent_dim=3)
    images = torch.rand(6, 784, generator=torch.Generator().manual_seed(0))
    data = Dataset(images, image_shape=(1, 28, 28))
    vae = build_vae(config, Shape.of(data))
    result = latents.traverse(vae, data, latents=[2], num_steps=4)
    torch.testing.assert_close(result.x[0], vae.decode(result.z[0]))
    assert latents.interpolate(vae, data[:2], data[2:4]).x.shape == (2, 9, 784)
    assert latent_plots.traversal_frames(result, (28, 28))[0].size[0] > 100


# -- codes
# --------------------------------------------------------------------------------------------------


def test_an_embedding_is_the_encoders_mean_to_the_last_bit() -> None:
    vae, x = small_vae(), torch.randn(300, 5)
    result = latents.embed(vae, x, scales=True)
    posterior = vae.posterior(x)
    assert bool((result.means == vae.encode(x)).all())
    assert result.scales is not None and bool((result.scales == posterior.stddev).all())
    assert latents.embed(vae, x).scales is None


def test_many_data_are_encoded_in_blocks_in_order() -> None:
    vae, x = small_vae(), torch.randn(2500, 5)
    torch.testing.assert_close(latents.embed(vae, x).means, vae.encode(x))
    torch.testing.assert_close(latents.reconstruct(vae, x), vae.reconstruct(x))


def test_embeddings_are_saved_with_what_is_known(tmp_path: Path) -> None:
    data = Dataset(
        torch.randn(7, 5),
        labels=torch.arange(7) % 2,
        factors=torch.arange(14.0).reshape(7, 2),
        factor_names=("size", "angle"),
        label_names=("square", "heart"),
    )
    result = latents.embed(small_vae(), data, scales=True)
    assert result.scales is not None
    result.save(tmp_path / "new" / "codes.npz")
    with np.load(tmp_path / "new" / "codes.npz") as arrays:
        assert set(arrays) == {
            "means",
            "scales",
            "labels",
            "factors",
            "label_names",
            "factor_names",
            "index",
        }
        assert (arrays["means"] == result.means.numpy()).all() and (
            arrays["scales"] == result.scales.numpy()
        ).all()
        assert arrays["label_names"].tolist() == ["square", "heart"]
    result.save(tmp_path / "codes.CSV")
    table = pd.read_csv(tmp_path / "codes.CSV", dtype={f"z{i}": np.float32 for i in range(3)})
    assert [*table.columns] == [
        "index",
        "z0",
        "z1",
        "z2",
        "scale0",
        "scale1",
        "scale2",
        "label",
        "label_name",
        "size",
        "angle",
    ]
    assert (table[["z0", "z1", "z2"]].to_numpy() == result.means.numpy()).all()
    assert table["label_name"].tolist() == [
        "square",
        "heart",
        "square",
        "heart",
        "square",
        "heart",
        "square",
    ]
    assert table["angle"].tolist() == list(range(1, 14, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes.CSV", "new"]


def test_traversals_and_interpolations_are_saved_step_by_step(tmp_path: Path) -> None:
    moved = latents.traverse(linear_vae(), X, num_steps=4)
    moved.save(tmp_path / "moved.csv")
    table = pd.read_csv(tmp_path / "moved.csv")
    assert table["latent"].tolist() == [1] * 4 + [3] * 4 + [0] * 4
    np.testing.assert_allclose(table["value"], moved.values.flatten())
    np.testing.assert_allclose(table["z3"], moved.z[..., 3].flatten())
    np.testing.assert_allclose(table["x5"], moved.x[..., 5].flatten())
    names = tuple(f"gene{i}" for i in range(X.shape[1]))
    latents.traverse(linear_vae(), Dataset(X, feature_names=names)).save(tmp_path / "named.csv")
    assert set(names) < set(pd.read_csv(tmp_path / "named.csv").columns)
    with pytest.raises(InputError, match=r"'feature_names' must name the .* got 1"):
        Dataset(X, feature_names=("alone",))
    way = latents.interpolate(linear_vae(), X[:2], X[2:4], num_steps=3)
    way.save(tmp_path / "way.npz")
    with np.load(tmp_path / "way.npz") as arrays:
        assert (arrays["z"] == way.z.numpy()).all() and (arrays["end"] == X[2:4].numpy()).all()
    way.save(tmp_path / "way.csv")
    assert pd.read_csv(tmp_path / "way.csv")[["pair", "step"]].to_numpy().tolist() == [
        [pair, step] for pair in range(2) for step in range(3)
    ]


# -- temperature
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prior", "kurtosis"),
    [
        (NormalPrior(3), 3),
        (LearnedNormalPrior(3), 3),
        (LaplacePrior(3), 6),
        (StudentTPrior(3, df=9.0), 4.2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_variance_of_the_latents_is_the_squared_temperature(
    prior: torch.nn.Module, kurtosis: float
) -> None:
    many = 40_000
    draws = sample_tempered(prior(), 0.6, torch.Size([many])).detach().double()
    wanted = 0.36 * prior().variance.detach().double()
    error = wanted * math.sqrt((kurtosis - 1) / many)
    assert bool(((draws.var(0) - wanted).abs() < 4 * error).all())
    assert bool((sample_tempered(prior(), 0, torch.Size([2])) == prior().mean).all())


def test_temperature_reaches_what_is_generated() -> None:
    vae = linear_vae()
    cold = vae.generate(3, temperature=0.0)
    torch.testing.assert_close(cold, LINEAR.bias.expand(3, -1))
    one, half = vae.generate(50, seed=4), vae.generate(50, temperature=0.5, seed=4)
    torch.testing.assert_close(half - LINEAR.bias, 0.5 * (one - LINEAR.bias))
    assert bool((one == vae.generate(50, temperature=1.0, seed=4)).all())
    assert bool((half == latents.generate(vae, 50, temperature=0.5, seed=4)).all())


def test_a_flow_is_cooled_by_its_noise() -> None:
    torch.manual_seed(0)
    prior = FlowPrior(3).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))

    def noise_of(draws: torch.Tensor) -> torch.Tensor:
        for transform in reversed(prior().transforms):
            draws = transform.inv(draws)
        return draws

    drawn = []
    for temperature in (1.0, 0.4):
        torch.manual_seed(1)
        with torch.no_grad():
            drawn.append(noise_of(sample_tempered(prior(), temperature, torch.Size([100]))))
    torch.testing.assert_close(drawn[1], 0.4 * drawn[0], atol=1e-6, rtol=1e-6)


def test_a_flow_of_zuko_is_cooled_by_its_noise() -> None:
    pytest.importorskip("zuko")
    from pyro_bvae.priors import ZukoPrior

    torch.manual_seed(0)
    prior = ZukoPrior.neural_spline(3, num_layers=1, hidden=(8,)).double()
    drawn = []
    for temperature in (1.0, 0.4):
        torch.manual_seed(1)
        with torch.no_grad():
            flow = prior()
            drawn.append(flow.dist.transform(sample_tempered(flow, temperature, torch.Size([100]))))
    torch.testing.assert_close(drawn[1], 0.4 * drawn[0], atol=1e-6, rtol=1e-6)


def test_a_mixture_has_no_temperature_but_one() -> None:
    for prior in (MixturePrior(3), VampPrior(small_vae().encoder, torch.randn(4, 5))):
        vae = small_vae(prior)
        assert vae.generate(2, temperature=1.0).shape == (2, 5)
        with pytest.raises(
            InputError, match=r"'temperature' must be 1 for a \w*Mixture.*no location.*got 0.5"
        ):
            vae.generate(2, temperature=0.5)


@pytest.mark.parametrize("temperature", [-1.0, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    with pytest.raises(
        InputError, match=rf"'temperature' must be non-negative and finite, got {temperature}"
    ):
        small_vae().generate(2, temperature=temperature)


# -- what cannot be used
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"latents": [4]}, r"'latents' must be among 0 to 3, got 4"),
        ({"latents": [-1]}, r"'latents' must be among 0 to 3, got -1"),
        ({"latents": []}, r"no latent is active, or 'latents' is empty"),
        ({"datum": 400}, r"'datum' must be the number of one of 400 data, 0 to 399, got 400"),
        ({"num_steps": 0}, r"'num_steps' must be a positive integer, got 0"),
        ({"values": []}, r"'values' must be numbers \(S,\), or \(3, S\) .* got shape \(0,\)"),
        ({"values": torch.zeros(2, 4)}, r"or \(3, S\) for as many latents, got shape \(2, 4\)"),
        ({"values": [0.0, math.nan]}, r"'values' must be finite, got nan"),
        ({"start": torch.zeros(3)}, r"'start' must be a code of shape \(4,\), got shape \(3,\)"),
        ({"start": torch.full((4,), math.inf)}, r"'start' must be finite, got inf at index \(0,\)"),
    ],
)
def test_traversals_of_nothing_are_refused(options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        latents.traverse(linear_vae(), X, **options)


def test_models_without_data_and_data_of_another_kind_are_refused(tmp_path: Path) -> None:
    vae = linear_vae()
    for call in (latents.traverse, latents.embed, latents.reconstruct):
        with pytest.raises(InputError, match=r"'data' must be given with a model"):
            call(vae)
    with pytest.raises(InputError, match=r"'start' and 'end' must be given with a model"):
        latents.interpolate(vae, X[:1])
    with pytest.raises(InputError, match=r"quantiles of the codes need data"):
        latents.traverse(vae, start=torch.zeros(4), latents=[0])
    assert torch.equal(latents.embed(vae, X.numpy()).means, latents.embed(vae, X).means)
    with pytest.raises(InputError, match=r"data must be a tensor \(N, D\) or a data set, got dict"):
        latents.embed(vae, {"x": X})
    with pytest.raises(InputError, match=r"'x' must have 6 features, got 5"):
        latents.embed(vae, X[:, :5])
    with pytest.raises(InputError, match=r"'end' must have as many data as 'start', 2, got 1"):
        latents.interpolate(vae, X[:2], X[2:3])
    with pytest.raises(InputError, match=r"'num_steps' must be at least 2"):
        latents.interpolate(vae, X[:2], X[2:4], num_steps=1)
    with pytest.raises(InputError, match=r"there is no run directory .*nowhere"):
        latents.embed(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"'num_samples' must be a positive integer, got 0"):
        latents.generate(vae, 0)
    with pytest.raises(InputError, match=r"'output' must end in .npz or .csv, got .*codes.txt"):
        latents.embed(vae, X).save(tmp_path / "codes.txt")
    with pytest.raises(InputError, match=r"'share' must be above 0 and at most 1, got 98"):
        AggregateRange(98)
    with pytest.raises(InputError, match=r"'deviations' must be positive and finite, got 0"):
        PriorRange(0)
    assert not any(tmp_path.iterdir())


def test_a_model_whose_codes_say_nothing_has_nothing_to_move() -> None:
    dead = LinearGaussian(torch.zeros(6, 2), 1.0)
    with pytest.raises(InputError, match=r"no latent is active"):
        latents.traverse(dead.amortized_vae(), X)


# -- figures
# --------------------------------------------------------------------------------------------------


def words_of(figure: mpl.figure.Figure) -> list[str]:
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_visible()]


def test_a_traversals_figure_names_latents_by_kl_with_their_range() -> None:
    result = latents.traverse(linear_vae(), X)
    words = words_of(latent_plots.traversal_grid(result, (2, 3), "the origin"))
    rows = [word for word in words if word.startswith("z")]
    assert [row.split()[0] for row in rows] == ["z1", "z3", "z0"]
    assert result.kl is not None
    assert (
        rows[0]
        == f"z1  KL {result.kl[0]:.2f}\n−{-result.values[0, 0]:.2f} to {result.values[0, -1]:.2f}"
    )
    assert any("held at the origin" in word for word in words)
    shared = latents.traverse(linear_vae(), X, values=[-3.0, 0.0, 3.0])
    assert {"−3", "0", "3"} <= set(words_of(latent_plots.traversal_grid(shared, (2, 3))))


def test_what_is_no_image_is_drawn_by_the_features_that_change_most() -> None:
    result = latents.traverse(linear_vae(), X)
    names = [f"gene {i}" for i in range(6)]
    panels = latent_plots.traversal_lines(result, names).axes
    for axes, latent in zip(panels, result.latents, strict=True):
        order = LINEAR.weight[:, latent].abs().argsort(descending=True)
        assert [line.get_label() for line in axes.get_lines()] == [names[i] for i in order]
        np.testing.assert_allclose(
            axes.get_lines()[0].get_xdata(), result.values[result.latents.index(latent)]
        )
    ways = {
        "linear": latents.interpolate(linear_vae(), X[:2], X[2:4]),
        "spherical": latents.interpolate(linear_vae(), X[:2], X[2:4], path=SphericalPath()),
    }
    figure = latent_plots.interpolation_lines(ways, names)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["pair 1, linear", "pair 1, spherical", "pair 2, linear", "pair 2, spherical"]
    ends = next(line for line in figure.axes[0].get_lines() if line.get_marker() == "o")
    feature = names.index(figure.axes[0].get_lines()[0].get_label())
    np.testing.assert_allclose(ends.get_ydata(), [X[0, feature], X[2, feature]])


def test_an_interpolations_figure_has_the_data_at_its_ends() -> None:
    way = latents.interpolate(linear_vae(), X[:1], X[1:2], num_steps=3)
    figure = latent_plots.interpolation_strips({"linear": way}, (2, 3))
    words = words_of(figure)
    assert words.count("datum") == 2 and {"pair 1", "0%", "50%", "100%"} <= set(words)
    picture = figure.axes[0].images[0].get_array()
    row = np.concatenate([X[0], way.x[0].flatten(), X[1]])
    low, high = row.min(), row.max()
    np.testing.assert_allclose(picture[:2, :3], (X[0].reshape(2, 3) - low) / (high - low))
    np.testing.assert_allclose(picture[:2, -3:], (X[1].reshape(2, 3) - low) / (high - low))


def test_an_animation_goes_there_and_back_without_a_jump(tmp_path: Path) -> None:
    frames = latent_plots.traversal_frames(latents.traverse(linear_vae(), X, num_steps=4), (2, 3))
    assert len(frames) == 6
    assert len({frame.size for frame in frames}) == 1
    for there, back in ((1, 5), (2, 4)):
        assert frames[there].tobytes() == frames[back].tobytes()
    # What differs between frames are tiles and values: the title above them stays where it is.
    title = [np.asarray(frame)[: frame.height // 6] for frame in frames]
    assert all((part == title[0]).all() for part in title) and (title[0] < 128).any()
    latent_plots.write_gif(frames, tmp_path / "new" / "moved.gif", milliseconds=120)
    with Image.open(tmp_path / "new" / "moved.gif") as animation:
        assert (animation.n_frames, animation.info["loop"], animation.info["duration"]) == (
            6,
            0,
            120,
        )


# -- runs and the command line
# -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "digits"
    options = [
        "--likelihood",
        "normal",
        "--likelihood-scale",
        "0.3",
        "--hidden",
        "16",
        "--latent-dim",
        "3",
    ]
    options += ["--batch-size", "128", "--epochs", "3", "--beta", "0.3", "--output", str(output)]
    assert main(["train", *options]) == 0
    return output


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "counts"
    options = [
        "--dataset",
        "counts",
        "--likelihood",
        "negative-binomial",
        "--hidden",
        "8",
        "--latent-dim",
        "2",
    ]
    options += [
        "--size-factor",
        "observed",
        "--batch-size",
        "512",
        "--epochs",
        "1",
        "--output",
        str(output),
    ]
    assert main(["train", *options]) == 0
    return output


def test_a_run_its_directory_and_its_model_are_the_same(run: Path) -> None:
    loaded = pyro_bvae.load(run)
    test = loaded.splits.test
    for data in ({}, {"data": test}, {"data": test.x}):
        for model in (loaded, run, str(run)):
            assert bool(
                (latents.reconstruct(model, **data) == loaded.vae.reconstruct(test.x)).all()
            )
    assert bool((latents.traverse(run).x == latents.traverse(loaded.vae, test).x).all())
    assert bool(
        (
            latents.interpolate(run).x == latents.interpolate(loaded.vae, test.x[:1], test.x[1:2]).x
        ).all()
    )
    assert (
        latents.embed(run).labels is not None
        and latents.embed(run).labels.tolist() == test.labels.tolist()
    )
    assert bool((latents.generate(run, 4, seed=2) == loaded.vae.generate(4, seed=2)).all())


def test_generated_counts_have_the_contexts_of_the_test_data_in_turn(counts: Path) -> None:
    loaded = pyro_bvae.load(counts)
    test = loaded.splits.test
    many = len(test) + 5
    context = test[torch.arange(many) % len(test)].context
    made = latents.generate(counts, many, temperature=0.5)
    assert bool((made == loaded.vae.generate(many, context, temperature=0.5)).all())


WRITTEN = [
    (["traverse", "--latents", "1"], "traversal.png"),
    (["traverse", "--latents", "0", "1", "--deviations", "2"], "moved.png"),
    (["traverse", "--latents", "0"], "moved.csv"),
    (["interpolate"], "interpolation.png"),
    (["interpolate", "--pairs", "0", "1", "2", "3", "--paths", "linear", "spherical"], "ways.png"),
    (["interpolate", "--paths", "geodesic"], "way.npz"),
    (["embed", "--scales", "--split", "validation"], "embedding.npz"),
    (["embed"], "codes.csv"),
    (["reconstruct"], "reconstructions.png"),
    (["reconstruct", "--num-data", "3"], "means.csv"),
    (["generate", "--num-samples", "12", "--temperature", "0.5"], "samples.png"),
    (["generate", "--num-samples", "12", "--noise"], "new.npz"),
]


@pytest.mark.parametrize("kind", ["run", "counts"])
@pytest.mark.filterwarnings("ignore:the path between two codes may not")
def test_every_command_writes_its_file(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = request.getfixturevalue(kind)
    for (command, *options), name in WRITTEN:
        path = tmp_path / name
        assert main([command, str(directory), *options, "--output", str(path)]) == 0
        assert path.stat().st_size > 0
        assert f"written: {path}" in capsys.readouterr().out
    with Image.open(tmp_path / "ways.png") as picture:
        assert picture.size[0] > 500
    assert len(pd.read_csv(tmp_path / "codes.csv")) == len(load_data_of(directory).test)
    assert len(pd.read_csv(tmp_path / "means.csv")) == 3
    with np.load(tmp_path / "new.npz") as arrays:
        assert len(arrays["x"]) == 12


def load_data_of(directory: Path) -> pyro_bvae.datasets.Splits:
    return load_data(read_config(directory / "config.json"))


def test_a_traversal_is_animated_from_the_command_line(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "latents" / "traversal.gif"
    assert main(["traverse", str(run), "--num-steps", "3", "--output", str(path)]) == 0
    result = latents.traverse(run)
    assert result.kl is not None
    said = ", ".join(
        f"z{latent} ({kl:.2f} nats)" for latent, kl in zip(result.latents, result.kl, strict=True)
    )
    assert f"latents: {said}" in capsys.readouterr().out
    with Image.open(path) as animation:
        assert animation.n_frames == 4
    assert main(["embed", str(run)]) == 0
    with np.load(run / "latents" / "embedding.npz") as arrays:
        loaded = pyro_bvae.load(run)
        assert (arrays["means"] == loaded.vae.encode(loaded.splits.test.x).numpy()).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["traverse", "RUN", "--latents", "7"], "--latents must be among 0 to 2, got 7"),
        (["traverse", "RUN", "--datum", "-1"], "--datum must be the number of one of"),
        (
            ["traverse", "RUN", "--deviations", "-1"],
            "--deviations must be positive and finite, got -1.0",
        ),
        (
            ["traverse", "RUN", "--output", "OUT.jpg"],
            "--output must end in .png or .gif or .npz or .csv, got",
        ),
        (["traverse", "RUN", "--checkpoint", "first"], "unknown --checkpoint 'first'"),
        (["traverse", "RUN/nowhere"], "there is no run directory"),
        (
            ["traverse", "COUNTS", "--latents", "0", "--output", "OUT.gif"],
            "can be an animation of images only",
        ),
        (["interpolate", "RUN", "--paths", "sperical"], "Did you mean 'spherical'?"),
        (
            ["interpolate", "RUN", "--pairs", "0", "0", "--paths", "spherical"],
            "two codes that are the same",
        ),
        (
            ["interpolate", "RUN", "--pairs", "0", "1", "2"],
            "--pairs must be pairs of numbers, got 3 numbers",
        ),
        (["interpolate", "RUN", "--pairs", "0", "99999"], "--pairs must be among the numbers 0 to"),
        (
            ["interpolate", "RUN", "--paths", "linear", "spherical", "--output", "OUT.csv"],
            "--paths must be one for",
        ),
        (["embed", "RUN", "--output", "OUT.png"], "--output must end in .npz or .csv, got"),
        (["reconstruct", "RUN", "--num-data", "0"], "--num-data must be a positive integer, got 0"),
        (
            ["generate", "RUN", "--temperature", "-0.5"],
            "--temperature must be non-negative and finite, got -0.5",
        ),
        (
            ["generate", "RUN", "--num-samples", "0"],
            "--num-samples must be a positive integer, got 0",
        ),
        (["generate", "RUN", "--device", "warp"], "--device must be one that torch can use"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_no_file(
    arguments: list[str],
    words: str,
    run: Path,
    counts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"RUN": str(run), "COUNTS": str(counts), "OUT": str(tmp_path / "out")}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    with warnings.catch_warnings():
        assert main(arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("error: ") and words in said[0]
    assert not any(tmp_path.iterdir())
