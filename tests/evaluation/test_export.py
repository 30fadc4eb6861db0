"""ArviZ gets what was measured, with either of its major versions, and reads it back from
netCDF."""

import contextlib
import json
import warnings
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor

import pyro_bvae
from pyro_bvae import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation._evaluate import evaluate
from pyro_bvae.evaluation.arviz import to_arviz, write_arviz
from pyro_bvae.evaluation.marginal import psis
from pyro_bvae.oracle import LinearGaussian


@pytest.fixture
def linear() -> LinearGaussian:
    weight = torch.tensor([[1.0, 0.4], [0.2, 1.0], [0.6, -0.3]])
    return LinearGaussian(weight, 0.7, torch.tensor([0.5, -1.0, 2.0]))


def load_arviz():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ announces its next version on import
        import arviz

    return arviz


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_arviz().from_netcdf(str(path))


def groups(data) -> set[str]:
    """Return the names of the groups of an InferenceData or a DataTree."""
    return {
        name.lstrip("/") for name in (data.groups() if callable(data.groups) else data.groups)
    } - {""}


def tensor(data, group: str, name: str) -> Tensor:
    """Return a variable's values without the one chain, if it has one."""
    variable = data[group][name]
    return torch.from_numpy(variable.values[0] if variable.dims[0] == "chain" else variable.values)


def close_to(values: Tensor, mean: Tensor, variance: Tensor) -> bool:
    """Whether independent normal draws ``(K, *)`` have a mean and a variance, within five standard
    errors each."""
    count = values.shape[0]
    means = (values.mean(0) - mean).abs() <= 5 * (variance / count).sqrt()
    variances = (values.var(0) / variance - 1).abs() <= 5 * (2 / (count - 1)) ** 0.5
    return bool(means.all() and variances.all())


# -- the groups
# --------------------------------------------------------------------------------------------------


def test_weights_are_their_parts_and_the_densities(linear: LinearGaussian) -> None:
    x = linear.sample(600)  # two blocks, and two passes for the draws of the first
    vae = linear.amortized_vae()
    data = to_arviz(
        vae.model, vae.guide, x, None, 4.0, num_draws=20
    )  # β scales the latent, and is no part of a weight
    z = tensor(data, "posterior", "z")
    assert z.shape == (20, 600, 2)
    with torch.no_grad():
        parts = {
            "log_prior": vae.prior().log_prob(z),
            "log_observed": vae.decoder(z).log_prob(x),
            "log_guide": vae.encoder(x).log_prob(z),
        }
    for name, exact in parts.items():
        assert torch.allclose(tensor(data, "sample_stats", name), exact), name
    log_weight = parts["log_prior"] + parts["log_observed"] - parts["log_guide"]
    assert torch.allclose(tensor(data, "sample_stats", "log_weight"), log_weight)
    assert torch.allclose(tensor(data, "log_likelihood", "x"), parts["log_observed"])
    assert torch.equal(tensor(data, "observed_data", "x"), x)


def test_draws_of_guide_and_prior_have_their_moments(linear: LinearGaussian) -> None:
    x = linear.sample(600)
    vae = linear.amortized_vae()
    data = to_arviz(vae.model, vae.guide, x, num_draws=40, num_predictive=0)
    loc, scale = linear.best_diagonal(x)
    standard = ((tensor(data, "posterior", "z") - loc) / scale).reshape(-1, 2)
    assert close_to(standard, torch.zeros(2), torch.ones(2))
    prior = tensor(data, "prior", "z")
    assert prior.shape == (40, 600, 2) and close_to(
        prior.reshape(-1, 2), torch.zeros(2), torch.ones(2)
    )
    # No draw is made twice, be it of another datum, block or pass, or of the guide.
    draws = torch.cat([prior.flatten(), standard.flatten()])
    assert len(draws.unique()) > 0.999 * len(draws)


def test_predictive_draws_are_of_the_closed_forms(linear: LinearGaussian) -> None:
    x = linear.sample(600)
    vae = linear.amortized_vae()
    data = to_arviz(
        vae.model, vae.guide, x, num_draws=40, num_predictive=20
    )  # more than one pass of the first block
    noise = torch.full((3,), linear.noise_scale**2, dtype=torch.double)
    for latents, predictive in (
        ("prior", "prior_predictive"),
        ("posterior", "posterior_predictive"),
    ):
        drawn = tensor(data, predictive, "x")
        assert drawn.shape == (20, 600, 3)
        # Draw by draw and datum by datum, what the latents leave is the noise.
        residual = drawn - tensor(data, latents, "z")[:20] @ linear.weight.T - linear.bias
        assert close_to(residual.reshape(-1, 3), torch.zeros(3), noise), predictive
    marginal = (linear.weight @ linear.weight.T).diagonal() + noise
    assert close_to(tensor(data, "prior_predictive", "x").reshape(-1, 3), linear.bias, marginal)
    loc, scale = linear.best_diagonal(x)
    mean, variance = (
        loc @ linear.weight.T + linear.bias,
        scale[0] ** 2 @ (linear.weight**2).T + noise,
    )
    given = tensor(data, "posterior_predictive", "x") - mean
    assert close_to(given.reshape(-1, 3), torch.zeros(3), variance)


def test_everything_of_the_data_shares_their_dimension(linear: LinearGaussian) -> None:
    x = linear.sample(30)
    vae = linear.amortized_vae()
    evaluation = evaluate(vae.model, vae.guide, x, num_samples=20)
    data = to_arviz(vae.model, vae.guide, x, evaluation=evaluation, num_draws=5, num_predictive=2)
    drawn = ("chain", "draw", "data")
    dims = {
        ("posterior", "z"): (*drawn, "z_dim_0"),
        ("prior", "z"): (*drawn, "z_dim_0"),
        ("posterior_predictive", "x"): (*drawn, "x_dim_0"),
        ("prior_predictive", "x"): (*drawn, "x_dim_0"),
        ("log_likelihood", "x"): drawn,
        **{
            ("sample_stats", name): drawn
            for name in ("log_weight", "log_prior", "log_observed", "log_guide")
        },
        ("observed_data", "x"): ("data", "x_dim_0"),
        **{
            ("constant_data", name): ("data",)
            for name in ("elbo", "evidence", "pareto_k", "evidence_method")
        },
    }
    assert groups(data) == {group for group, _ in dims}
    assert {(group, name) for group in groups(data) for name in data[group].data_vars} == set(dims)
    for (group, name), expected in dims.items():
        assert data[group][name].dims == expected, (group, name)
        assert data[group]["data"].values.tolist() == list(range(30))
    assert list(data["posterior"].attrs["sample_dims"]) == ["chain", "draw"]  # as ArviZ 1.x has it
    assert data["posterior"]["draw"].values.tolist() == list(range(5))
    assert data["posterior_predictive"]["draw"].values.tolist() == [0, 1]
    for name, estimate in (("elbo", evaluation.bound.elbo), ("evidence", evaluation.evidence)):
        assert torch.equal(tensor(data, "constant_data", name), estimate.per_datum)
    assert torch.equal(tensor(data, "constant_data", "pareto_k"), evaluation.evidence.pareto_k)
    methods = tensor(data, "constant_data", "evidence_method")
    assert torch.equal(methods, evaluation.evidence.methods)
    assert json.loads(data.attrs["evidence_methods"]) == ["guide", "refit", "annealing"]
    assert data.attrs["evidence_budget"] == evaluation.evidence.budget > 0


def test_what_goes_with_the_data_is_constant_data(linear: LinearGaussian) -> None:
    x = linear.sample(8)
    vae = linear.amortized_vae()
    context = Context(torch.rand(8, 1).bfloat16(), torch.arange(16.0).reshape(8, 2))

    def model(
        x: Tensor, context: Context, data: Tensor, evidence: Tensor, more: list[Tensor]
    ) -> None:
        vae.model(x)

    def guide(
        x: Tensor, context: Context, data: Tensor, evidence: Tensor, more: list[Tensor]
    ) -> None:
        vae.guide(x)

    evaluation = evaluate(vae.model, vae.guide, x, num_samples=10)
    arguments = (x, context, torch.arange(8), 2 * x[:, 0], [torch.ones(3), 3 * x])
    for program in (model, pyro.poutine.scale(model, scale=2.0)):
        data = to_arviz(program, guide, *arguments, evaluation=evaluation, num_draws=2)
        constants = data["constant_data"]
        estimates = {"elbo", "evidence", "pareto_k", "evidence_method"}
        arguments_ = {"context_size_factor", "context_covariates", "data_", "evidence_", "more_1"}
        assert set(constants.data_vars) == estimates | arguments_
        assert constants["context_covariates"].dims == ("data", "context_covariates_dim_0")
        assert torch.equal(tensor(data, "constant_data", "context_covariates"), context.covariates)
        assert torch.equal(
            tensor(data, "constant_data", "context_size_factor"), context.size_factor.float()
        )
        assert constants["data_"].values.tolist() == list(range(8))
        assert torch.equal(tensor(data, "constant_data", "evidence_"), 2 * x[:, 0])
        assert torch.equal(tensor(data, "constant_data", "evidence"), evaluation.evidence.per_datum)
        assert torch.equal(tensor(data, "constant_data", "more_1"), 3 * x)
        assert data.attrs["model"] == "model"
    named = to_arviz(vae.model, vae.guide, x, num_draws=2)
    assert "constant_data" not in groups(named) and named.attrs["model"] == "BetaVAE"


def test_an_evaluation_of_other_data_is_refused(linear: LinearGaussian) -> None:
    vae = linear.amortized_vae()
    evaluation = evaluate(vae.model, vae.guide, linear.sample(6), num_samples=10)
    with pytest.raises(InputError, match="'evaluation' must be of the 5 data, got one of 6"):
        to_arviz(vae.model, vae.guide, linear.sample(5), evaluation=evaluation)


def test_numbers_of_draws(linear: LinearGaussian) -> None:
    x = linear.sample(5)
    vae = linear.amortized_vae()
    for options in (
        {"num_draws": 0},
        {"num_draws": True},
        {"num_predictive": -1},
        {"num_predictive": 1.5},
    ):
        with pytest.raises(
            InputError, match=f"'{next(iter(options))}' must be an integer of at least"
        ):
            to_arviz(vae.model, vae.guide, x, **options)
    few = to_arviz(vae.model, vae.guide, x, num_draws=3)
    assert (
        tensor(few, "prior_predictive", "x").shape
        == tensor(few, "posterior_predictive", "x").shape
        == (3, 5, 3)
    )
    assert few.attrs["num_draws"] == few.attrs["num_predictive"] == 3
    none = to_arviz(vae.model, vae.guide, x, num_draws=3, num_predictive=0)
    assert groups(none) == groups(few) - {"prior_predictive", "posterior_predictive"}


def test_the_seed_decides_and_the_caller_draws_on(linear: LinearGaussian) -> None:
    x = linear.sample(600)
    vae = linear.amortized_vae()
    state = torch.get_rng_state()
    first, again, other, more = (
        to_arviz(vae.model, vae.guide, x, num_draws=20, num_predictive=number, seed=seed)
        for number, seed in ((2, 0), (2, 0), (2, 1), (4, 0))
    )
    assert torch.equal(state, torch.get_rng_state())
    for group, name in (
        ("posterior", "z"),
        ("prior", "z"),
        ("prior_predictive", "x"),
        ("posterior_predictive", "x"),
    ):
        drawn = tensor(first, group, name)
        assert torch.equal(drawn, tensor(again, group, name)), group
        assert not (drawn == tensor(other, group, name)).any(), group
    for group in ("posterior", "prior"):
        assert torch.equal(tensor(first, group, "z"), tensor(more, group, "z"))


# -- any Pyro program
# -------------------------------------------------------------------------------------------


def test_several_sites_of_other_names_plates_and_factors(linear: LinearGaussian) -> None:
    """Two latents; a head in a plate of its own and a tail; a factor that weighs and is no data."""
    rows = linear.sample(40)
    bonus = torch.linspace(-1, 1, 40, dtype=torch.double)

    def model(rows: Tensor) -> None:
        genes = pyro.plate("genes", 2, dim=-1)
        with pyro.plate("cells", len(rows), dim=-2):
            first = pyro.sample("first", dist.Normal(torch.zeros((), dtype=torch.double), 1.0))
            second = pyro.sample(
                "net/second", dist.Normal(torch.zeros(1, dtype=torch.double), 1.0).to_event(1)
            )
            means = (
                torch.cat([first.unsqueeze(-1), second], -1) @ linear.weight.T + linear.bias
            )  # (*, cells, 1, D)
            pyro.deterministic("means", means, event_dim=1)
            pyro.factor("bonus", bonus[: len(rows), None])
            with genes:
                pyro.sample(
                    "head", dist.Normal(means[..., 0, :2], linear.noise_scale), obs=rows[:, :2]
                )
            tail = dist.Normal(means[..., 2:], linear.noise_scale).to_event(1)
            pyro.sample("tail", tail, obs=rows[:, None, 2:])

    def guide(rows: Tensor) -> None:
        loc, scale = linear.best_diagonal(rows)
        with pyro.plate("cells", len(rows), dim=-2):
            pyro.sample("net/second", dist.Normal(loc[:, None, 1:], scale[:, None, 1:]).to_event(1))
            pyro.sample("first", dist.Normal(loc[:, :1], scale[:, :1]))

    data = to_arviz(model, guide, rows, num_draws=50, num_predictive=50)
    drawn = ("chain", "draw", "cells")
    for group in ("posterior", "prior"):
        assert set(data[group].data_vars) == {"first", "net.second"}
        assert data[group]["first"].dims == drawn
        assert data[group]["net.second"].dims == (*drawn, "net.second_dim_0")
    for group in ("prior_predictive", "posterior_predictive"):
        assert set(data[group].data_vars) == {"head", "tail"}
        assert data[group]["head"].dims == (*drawn, "genes") and data[group]["tail"].dims == (
            *drawn,
            "tail_dim_0",
        )
    assert torch.equal(tensor(data, "observed_data", "head"), rows[:, :2])
    assert torch.equal(tensor(data, "observed_data", "tail"), rows[:, 2:])
    z = torch.cat(
        [tensor(data, "posterior", "first")[..., None], tensor(data, "posterior", "net.second")], -1
    )
    density = dist.Normal(z @ linear.weight.T + linear.bias, linear.noise_scale).log_prob(rows)
    assert torch.allclose(tensor(data, "log_likelihood", "head"), density[..., :2].sum(-1))
    assert torch.allclose(tensor(data, "log_likelihood", "tail"), density[..., 2])
    assert (
        set(data["log_likelihood"].data_vars)
        == set(data["observed_data"].data_vars)
        == {"head", "tail"}
    )
    assert torch.allclose(tensor(data, "sample_stats", "log_observed"), density.sum(-1) + bonus)
    loc, scale = linear.best_diagonal(rows)
    noise = torch.tensor(linear.noise_scale**2, dtype=torch.double)
    assert close_to(((z - loc) / scale).reshape(-1, 2), torch.zeros(2), torch.ones(2))
    for name, part in (("head", slice(0, 2)), ("tail", slice(2, 3))):
        means = (z @ linear.weight.T + linear.bias)[..., part]
        residual = tensor(data, "posterior_predictive", name) - means
        assert close_to(residual.reshape(-1, 1), torch.zeros(1), noise)


def test_plates_left_of_the_data_that_not_every_site_has() -> None:
    x = torch.randn(3, 20, 2, dtype=torch.double)

    def model(x: Tensor) -> None:
        replicates = pyro.plate("draw", 3, dim=-2)  # a name that ArviZ has given away
        with pyro.plate("rows", x.shape[1], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.double), 1.0).to_event(1))
            with replicates:
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", x.shape[1], dim=-1):
            pyro.sample("z", dist.Normal(x.sum(0) / 4, 0.5).to_event(1))

    data = to_arviz(model, guide, x, num_draws=400, num_predictive=400, data_plate="rows")
    z = tensor(data, "posterior", "z")
    assert data["posterior"]["z"].dims == ("chain", "draw", "rows", "z_dim_0") and z.shape == (
        400,
        20,
        2,
    )
    assert close_to(z, x.sum(0) / 4, torch.tensor(0.25))
    drawn = tensor(data, "posterior_predictive", "x")
    assert data["posterior_predictive"]["x"].dims == ("chain", "draw", "rows", "draw_", "x_dim_0")
    assert close_to((drawn - z[:, :, None]).reshape(-1, 1), torch.zeros(1), torch.ones(1))
    assert torch.equal(tensor(data, "observed_data", "x"), x.movedim(0, 1))
    # Of the exact posterior, so that all draws of a datum weigh the same.
    assert tensor(data, "sample_stats", "log_weight").std(0).max() < 1e-6


@pytest.mark.parametrize("plates", [False, True])
def test_a_program_that_mixes_particles_is_exported_singly(
    linear: LinearGaussian, plates: bool
) -> None:
    x = linear.sample(12)

    def model(x: Tensor) -> None:
        left = pyro.plate("left", 1, dim=-2)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.double), 1.0).to_event(1))
            means = (z - 0.5 * z.mean(0)) @ linear.weight.T
            with left if plates else contextlib.nullcontext():
                pyro.sample("x", dist.Normal(means, 1.0).to_event(1), obs=x[None] if plates else x)

    def guide(x: Tensor) -> None:
        loc, scale = linear.best_diagonal(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    with pytest.warns(UserWarning, match="run one particle at a time"):
        data = to_arviz(model, guide, x, num_draws=60, num_predictive=60)
    means = {}
    for group in ("prior", "posterior"):
        z = tensor(data, group, "z")
        assert z.shape == (60, 12, 2)
        means[group] = (z - 0.5 * z.mean(1, keepdim=True)) @ linear.weight.T
        drawn = tensor(data, f"{group}_predictive", "x").reshape(60, 12, 3)
        assert close_to((drawn - means[group]).reshape(-1, 1), torch.zeros(1), torch.ones(1))
    density = dist.Normal(means["posterior"], 1.0).log_prob(x).sum(-1)
    assert torch.allclose(tensor(data, "log_likelihood", "x"), density)
    z, (loc, scale) = tensor(data, "posterior", "z"), linear.best_diagonal(x)
    log_weight = (
        density
        + dist.Normal(0, 1).log_prob(z).sum(-1)
        - dist.Normal(loc, scale).log_prob(z).sum(-1)
    )
    assert torch.allclose(tensor(data, "sample_stats", "log_weight"), log_weight)
    assert torch.equal(tensor(data, "observed_data", "x").reshape(12, 3), x)


def test_a_module_as_model_and_auxiliary_sites_of_an_autoguide() -> None:
    class Scales(PyroModule):
        def forward(self, counts: Tensor, exposure: Tensor) -> None:
            with pyro.plate("data", len(counts), dim=-1):
                scale = pyro.sample("s", dist.LogNormal(torch.zeros((), dtype=torch.double), 1.0))
                pyro.sample("x", dist.Normal(torch.zeros_like(scale), scale * exposure), obs=counts)

    model = Scales()
    guide, arguments = (
        AutoNormal(model, init_scale=0.7),
        (torch.linspace(0.1, 3.0, 7).double(), torch.ones(7).double()),
    )
    guide(*arguments)
    scaled = pyro.poutine.scale(model, scale=2.0)
    data = to_arviz(scaled, guide, *arguments, num_draws=2000, num_predictive=0)
    assert set(data["posterior"].data_vars) == set(data["prior"].data_vars) == {"s"}
    assert set(data["constant_data"].data_vars) == {"exposure"} and data.attrs["model"] == "Scales"
    loc = guide.locs.s.detach()
    assert close_to(tensor(data, "posterior", "s").log(), loc, torch.tensor(0.49))
    assert close_to(tensor(data, "prior", "s").log(), torch.zeros(7), torch.ones(7))


def test_a_guide_of_all_data_at_once_is_exported_whole(linear: LinearGaussian) -> None:
    x = linear.sample(700)
    vae = linear.vae(*linear.best_diagonal(x))  # a local posterior takes no part of its data
    data = to_arviz(vae.model, vae.guide, x, num_draws=15, num_predictive=12)
    z, drawn = tensor(data, "posterior", "z"), tensor(data, "posterior_predictive", "x")
    assert z.shape == (15, 700, 2) and torch.equal(tensor(data, "observed_data", "x"), x)
    loc, scale = linear.best_diagonal(x)
    assert close_to(((z - loc) / scale).reshape(-1, 2), torch.zeros(2), torch.ones(2))
    residual = drawn - z[:12] @ linear.weight.T - linear.bias
    assert close_to(residual.reshape(-1, 1), torch.zeros(1), torch.tensor(linear.noise_scale**2))


def test_a_model_that_cannot_draw_its_data_is_exported_without_predictions(
    linear: LinearGaussian,
) -> None:
    x = linear.sample(10)
    vae = linear.amortized_vae()

    class Unnormalised(dist.Normal):
        def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
            raise NotImplementedError("it has a density alone")

        rsample = sample

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", vae.prior())
            means = z @ linear.weight.T + linear.bias
            pyro.sample("x", Unnormalised(means, linear.noise_scale).to_event(1), obs=x)

    with pytest.warns(
        UserWarning,
        match="cannot draw its observed sites .NotImplementedError: it has a density alone",
    ):
        data = to_arviz(model, vae.guide, x, num_draws=4)
    full = to_arviz(vae.model, vae.guide, x, num_draws=4)
    assert groups(full) - groups(data) == {"prior", "prior_predictive", "posterior_predictive"}
    for group, name in (("posterior", "z"), ("sample_stats", "log_weight"), ("observed_data", "x")):
        assert torch.allclose(tensor(data, group, name), tensor(full, group, name))


# -- the object
# --------------------------------------------------------------------------------------------------


@dataclass
class Configuration:
    beta: float
    hidden: tuple[int, ...]


def test_all_comes_back_from_netcdf(linear: LinearGaussian, tmp_path) -> None:
    x = linear.sample(30)
    vae = linear.amortized_vae()
    evaluation = evaluate(vae.model, vae.guide, x, num_samples=20)
    written = to_arviz(
        vae.model,
        vae.guide,
        x,
        evaluation=evaluation,
        num_draws=7,
        num_predictive=3,
        attributes={
            "dataset": "linear",
            "config": Configuration(4.0, (3, 2)),
            "note": None,
            "fixed": True,
            "sizes": np.arange(3),
            "scale": np.float32(0.5),
            "empty": "",
            "large": 2**70,
        },
        seed=3,
    )
    write_arviz(written, tmp_path / "evaluation.nc")
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.nc"]
    back = read(tmp_path / "evaluation.nc")
    assert groups(back) == groups(written)
    assert groups(back) == {
        "posterior",
        "prior",
        "prior_predictive",
        "posterior_predictive",
        "log_likelihood",
        "sample_stats",
        "observed_data",
        "constant_data",
    }
    for group in groups(written):
        assert set(back[group].data_vars) == set(written[group].data_vars)
        for name, variable in written[group].data_vars.items():
            assert back[group][name].identical(variable), (group, name)
    expected = {
        "inference_library": "pyro-bvae",
        "inference_library_version": pyro_bvae.__version__,
        "model": "BetaVAE",
        "seed": 3,
        "num_draws": 7,
        "num_predictive": 3,
        "dataset": "linear",
        "note": "null",
        "fixed": "true",
        "sizes": "[0, 1, 2]",
        "scale": 0.5,
        "empty": "",
        "large": str(2**70),
    }
    assert {name: back.attrs[name] for name in expected} == expected
    assert json.loads(back.attrs["config"]) == {"beta": 4.0, "hidden": [3, 2]}


def test_arviz_draws_it(linear: LinearGaussian, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    arviz = load_arviz()
    x = linear.sample(6)
    vae = linear.amortized_vae()
    data = to_arviz(vae.model, vae.guide, x, num_draws=50)
    some = {"var_names": ["z"], "coords": {"data": [0, 4]}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ArviZ's own making
        if int(arviz.__version__.split(".")[0]) < 1:
            forest = arviz.plot_forest(data, **some)[0].figure
            predicted = arviz.plot_ppc(data, num_pp_samples=5, random_seed=0).figure
            both = np.ravel(arviz.plot_dist_comparison(data, **some))[0].figure
        else:
            forest = arviz.plot_forest(data, backend="matplotlib", **some).viz["figure"].item()
            predicted = (
                arviz.plot_ppc_dist(data, backend="matplotlib", num_samples=5).viz["figure"].item()
            )
            both = (
                arviz.plot_prior_posterior(data, backend="matplotlib", **some).viz["figure"].item()
            )
    labels = {
        label.get_text().strip()
        for axes in forest.axes
        for label in (*axes.get_yticklabels(), *axes.texts)
    }
    assert any("4" in label for label in labels)  # the second datum that was asked for
    for figure in (forest, predicted, both):
        assert sum(len(axes.lines) + len(axes.collections) for axes in figure.axes) > 0
    plt.close("all")


def test_loo_is_no_score_of_the_model() -> None:
    """What the documentation says: it lies far above the evidence, towards the reconstruction."""
    weight = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    linear = LinearGaussian(weight, 0.5)
    x = linear.sample(50)
    vae = linear.amortized_vae()
    data = to_arviz(vae.model, vae.guide, x, num_draws=500, num_predictive=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that k is too high
        score = load_arviz().loo(data)
    score = float(score.elpd_loo if hasattr(score, "elpd_loo") else score.elpd) / 50
    exact = float(linear.evidence(x).mean())
    reconstruction = float(tensor(data, "log_likelihood", "x").mean())
    assert exact + 5 < score < reconstruction


def test_a_failed_export_leaves_nothing_behind(tmp_path) -> None:
    class Broken:
        def __init__(self) -> None:
            self.attrs = {"model": "BetaVAE"}

        def to_netcdf(self) -> None:
            """Look like a result."""

        def groups(self) -> list[str]:
            return ["posterior"]

        def __getitem__(self, name: str) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_arviz(Broken(), tmp_path / "evaluation.nc")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_pareto_k_is_the_tail_of_the_weights(shape: float) -> None:
    """Weights drawn from a generalised Pareto law have its shape.

    The wrong sign of the log weights would not.
    """
    uniform = torch.rand(40_000, 8, dtype=torch.double)
    weights = 1 + ((1 - uniform) ** -shape - 1) / shape
    k = psis.pareto_k(weights.log())
    # The tail holds 600 weights; ArviZ's estimate is drawn towards 0.5 by a weak prior.
    assert (k - shape).abs().max() < 4 * (1 + shape) / 600**0.5
    assert (k - shape).abs().mean() < 2 * (1 + shape) / 600**0.5


def test_pareto_k_of_special_weights() -> None:
    weights = torch.randn(100, 4)
    weights[:, 1] = -123.456  # constant: a perfect guide
    weights[5, 2] = torch.inf
    weights[5, 3] = -torch.inf  # a weight of zero is no tail
    k = psis.pareto_k(weights)
    assert k[1] == 0 and k[2] == torch.inf and torch.isfinite(k[[0, 3]]).all()
    assert (psis.pareto_k(weights[:10, :1]) == torch.inf).all()  # too few weights to know
