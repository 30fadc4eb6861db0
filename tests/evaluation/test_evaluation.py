"""Estimates held to the oracle, and to what they promise about the caller's state."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, elbo, evaluation, evidence
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation import Estimate, elbo_parts, kl_per_dimension
from pyro_bvae.evaluation.arviz import to_arviz
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.oracle import LinearGaussian
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior


@pytest.fixture
def linear() -> LinearGaussian:
    # Correlated enough for an approximation gap, and little enough for weights with light tails.
    weight = torch.tensor([[1.0, 0.4], [0.2, 1.0], [0.6, 0.3], [0.2, -0.4]])
    return LinearGaussian(weight, 0.7, torch.tensor([0.1, -0.2, 0.3, 0.0]))


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_evidence_is_the_closed_form(linear: LinearGaussian, beta: float) -> None:
    x = linear.sample(300)
    vae = linear.amortized_vae(beta)
    estimate = evidence(vae.model, vae.guide, x)
    exact = linear.evidence(x)
    assert abs(estimate.value - float(exact.mean())) < min(0.02, 4 * estimate.monte_carlo_error)
    assert estimate.standard_error == pytest.approx(float(exact.std()) / math.sqrt(300), rel=0.01)
    assert (
        estimate.per_datum.shape
        == estimate.effective_sample_size.shape
        == estimate.pareto_k.shape
        == (300,)
    )
    # Errors of single data: each within five of its own, were they as sure as their effective
    # sample size says.
    errors = (1 / estimate.effective_sample_size - 1 / 5000).sqrt()
    assert ((estimate.per_datum - exact).abs() < 5 * errors).all()


def test_scales_never_enter_the_evidence(linear: LinearGaussian) -> None:
    """A β that is passed to the program scales its latent.

    Importance weights are made of densities.
    """
    x = linear.sample(50)
    vae = linear.amortized_vae(4.0)
    plain = evidence(vae.model, vae.guide, x, num_samples=500)
    scaled = evidence(vae.model, vae.guide, x, None, 4.0, num_samples=500)
    assert torch.equal(plain.per_datum, scaled.per_datum)


def test_a_latent_masked_by_beta_zero_is_refused(linear: LinearGaussian) -> None:
    vae = linear.amortized_vae()
    with pytest.raises(InputError, match=r"latent 'z' is masked out for some data \(β = 0\?\)"):
        evidence(vae.model, vae.guide, linear.sample(5), None, 0.0)


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_bound_distortion_and_rate_are_the_closed_forms(
    linear: LinearGaussian, beta: float
) -> None:
    x = linear.sample(200)
    vae = linear.amortized_vae(beta, 0.9, 1.2)
    with torch.no_grad():
        guide = vae.encoder(x)
    measured = elbo_parts(vae.model, vae.guide, x, num_samples=400)
    single = elbo(vae.model, vae.guide, x, num_samples=400)
    exact_rate = linear.rate(guide.mean, guide.stddev)
    exact_distortion = linear.distortion(x, guide.mean, guide.stddev)
    assert torch.allclose(measured.rate.per_datum, exact_rate)
    assert measured.rate.monte_carlo_error == 0
    for estimate, exact in (
        (measured.distortion, exact_distortion),
        (single, -exact_rate - exact_distortion),
    ):
        assert 0 < estimate.monte_carlo_error < 0.02
        assert abs(estimate.value - float(exact.mean())) < 4 * estimate.monte_carlo_error
    assert torch.allclose(
        measured.elbo.per_datum, -measured.distortion.per_datum - measured.rate.per_datum
    )
    objective = measured.objective(beta)
    assert objective.value == pytest.approx(measured.distortion.value + beta * measured.rate.value)


def test_rate_without_a_closed_form_is_a_monte_carlo_mean(linear: LinearGaussian) -> None:
    x = linear.sample(100)
    vae = linear.amortized_vae()
    # The same prior, as a mixture of two equal components, which has no closed form.
    equal = dist.Categorical(torch.tensor([0.5, 0.5], dtype=torch.double))
    parts = dist.Normal(torch.zeros(2, 2, dtype=torch.double), 1.0).to_event(1)
    mixed = BetaVAE(lambda: dist.MixtureSameFamily(equal, parts), vae.decoder, vae.encoder)
    exact = elbo_parts(vae.model, vae.guide, x)
    estimate = elbo_parts(mixed.model, mixed.guide, x, num_samples=400)
    assert estimate.rate.monte_carlo_error > 0
    assert abs(estimate.rate.value - exact.rate.value) < 4 * estimate.rate.monte_carlo_error
    assert kl_per_dimension(mixed.model, mixed.guide, x).values is None


def test_kl_per_dimension_and_active_units_are_the_closed_forms() -> None:
    x = torch.randn(700, 3, dtype=torch.double)
    loc = torch.stack([2 * x[:, 0], 0.05 * x[:, 1], torch.full((700,), 0.4)], -1)
    scale = torch.tensor([0.3, 1.0, 0.9], dtype=torch.double).expand(700, 3)
    linear = LinearGaussian(torch.eye(3), 1.0)
    vae = linear.vae(loc, scale)
    kl = kl_per_dimension(vae.model, vae.guide, x)
    expected = 0.5 * (loc**2 + scale**2 - 1) - scale.log()
    assert kl.exact
    assert torch.allclose(kl.values, expected.mean(0))
    assert torch.allclose(kl.standard_errors, expected.std(0) / math.sqrt(700))
    assert torch.allclose(kl.mean_variances, loc.var(0))
    # A dead unit may have a KL: what makes a unit active is that its mean moves.
    assert kl.active.tolist() == [True, False, False]


def test_moments_do_not_depend_on_the_blocks(linear: LinearGaussian) -> None:
    x = linear.sample(1300)  # three blocks
    vae = linear.amortized_vae()
    kl = kl_per_dimension(vae.model, vae.guide, x)
    assert torch.allclose(kl.mean_variances, vae.encode(x).var(0))


# -- what evaluation leaves alone
# -----------------------------------------------------------------------------


def noisy_vae() -> BetaVAE:
    encoder = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), MLP(4, 4, (6,)))
    return BetaVAE(NormalPrior(2), Decoder(MLP(2, 4), NormalLikelihood()), NormalPosterior(encoder))


def test_measuring_moves_nothing() -> None:
    vae, x = noisy_vae(), torch.randn(30, 4)
    vae.encoder.network[0].eval()
    svi = pyro.infer.SVI(
        vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO()
    )
    svi.step(x)  # with momentum, so that a step in disguise would move weights
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    modes = [module.training for module in vae.modules()]
    store, state = pyro.get_param_store(), torch.get_rng_state()
    entries = dict(store.named_parameters())
    values = [evidence(vae.model, vae.guide, x, num_samples=50).value for _ in range(2)]
    elbo_parts(vae.model, vae.guide, x)
    kl_per_dimension(vae.model, vae.guide, x)
    assert values[0] == values[1]
    for name, value in vae.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert modes == [module.training for module in vae.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert dict(store.named_parameters()).keys() == entries.keys()
    assert all(entries[name] is value for name, value in store.named_parameters())


def test_a_model_is_measured_though_the_store_holds_another_of_its_name() -> None:
    x = torch.randn(10, 4)
    first, second = noisy_vae(), noisy_vae()
    pyro.infer.SVI(first.model, first.guide, pyro.optim.Adam({}), pyro.infer.Trace_ELBO()).step(x)
    alone = evidence(second.model, second.guide, x, num_samples=20).value
    pyro.clear_param_store()
    assert alone == evidence(second.model, second.guide, x, num_samples=20).value


def test_trained_pyro_params_stay_visible() -> None:
    x = torch.randn(8)

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(pyro.sample("h", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("h", dist.Normal(x / 2 + shift, 0.7))

    untrained = elbo(model, guide, x).value
    pyro.get_param_store().setdefault("shift", torch.tensor(5.0))
    pyro.get_param_store()["shift"] = torch.tensor(5.0)
    assert elbo(model, guide, x).value < untrained - 10


# -- any Pyro program
# -----------------------------------------------------------------------------------------


def plain_model(linear: LinearGaussian):
    def model(rows: Tensor, scale: Tensor) -> None:
        with pyro.plate("cells", len(rows)):
            first = pyro.sample("first", dist.Normal(torch.zeros((), dtype=torch.double), 1.0))
            second = pyro.sample(
                "second", dist.Normal(torch.zeros(1, dtype=torch.double), 1.0).to_event(1)
            )
            h = torch.cat([first.unsqueeze(-1), second], -1)
            pyro.deterministic("means", h @ linear.weight.T + linear.bias, event_dim=1)
            means = h @ linear.weight.T + linear.bias
            pyro.sample("head", dist.Normal(means[..., :1], scale).to_event(1), obs=rows[:, :1])
            pyro.sample("tail", dist.Normal(means[..., 1:], scale).to_event(1), obs=rows[:, 1:])

    def guide(rows: Tensor, scale: Tensor) -> None:
        loc, std = linear.best_diagonal(rows)
        with pyro.plate("cells", len(rows)), pyro.poutine.scale(scale=3.0):
            pyro.sample("second", dist.Normal(loc[:, 1:], std[:, 1:]).to_event(1))
            pyro.sample("first", dist.Normal(loc[:, 0], std[:, 0]))

    return model, guide


def test_a_program_of_other_names_is_measured(linear: LinearGaussian) -> None:
    rows = linear.sample(120)
    model, guide = plain_model(linear)
    # 'scale' has no data dimension and is passed whole.
    estimate = evidence(model, guide, rows, torch.tensor(0.7, dtype=torch.double), num_samples=1000)
    assert (
        abs(estimate.value - float(linear.evidence(rows).mean()))
        < 4 * estimate.monte_carlo_error
        < 0.02
    )
    measured = elbo_parts(
        model, guide, rows, torch.tensor(0.7, dtype=torch.double), num_samples=200
    )
    loc, scale = linear.best_diagonal(rows)
    assert measured.rate.value == pytest.approx(
        float(linear.rate(loc, scale).mean()), abs=4 * measured.rate.monte_carlo_error
    )


def test_data_need_not_be_the_first_argument(linear: LinearGaussian) -> None:
    rows, sizes = linear.sample(900), []

    def model(weight: Tensor, rows: Tensor) -> None:
        sizes.append(len(rows))
        with pyro.plate("cells", len(rows)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.double), 1.0).to_event(1))
            pyro.sample(
                "y",
                dist.Normal(z @ weight.T + linear.bias, linear.noise_scale).to_event(1),
                obs=rows,
            )

    def guide(weight: Tensor, rows: Tensor) -> None:
        loc, scale = linear.best_diagonal(rows)
        with pyro.plate("cells", len(rows)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    estimate = evidence(model, guide, linear.weight, rows, num_samples=200)
    assert (
        abs(estimate.value - float(linear.evidence(rows).mean()))
        < 4 * estimate.monte_carlo_error
        < 0.02
    )
    assert sizes.count(900) <= 1 and 512 in sizes  # looked at once, then taken in blocks


def test_observed_sites_in_a_nested_plate_are_summed(linear: LinearGaussian) -> None:
    x = linear.sample(40)

    def model(x: Tensor) -> None:
        genes = pyro.plate("genes", x.shape[1], dim=-1)
        with pyro.plate("cells", x.shape[0], dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.double), 1.0).to_event(1))
            means = (z @ linear.weight.T + linear.bias).squeeze(-2)
            with genes:
                pyro.sample("x", dist.Normal(means, linear.noise_scale), obs=x)

    def guide(x: Tensor) -> None:
        loc, scale = linear.best_diagonal(x)
        with pyro.plate("cells", x.shape[0], dim=-2):
            pyro.sample("z", dist.Normal(loc.unsqueeze(-2), scale.unsqueeze(-2)).to_event(1))

    estimate = evidence(model, guide, x, num_samples=500)
    assert (
        abs(estimate.value - float(linear.evidence(x).mean()))
        < 4 * estimate.monte_carlo_error
        < 0.05
    )


def test_masks_are_kept(linear: LinearGaussian) -> None:
    """With a feature masked, the evidence is that of the others."""
    x = linear.sample(60)
    mask = torch.tensor([True, True, False, True])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.double), 1.0).to_event(1))
            means = z @ linear.weight.T + linear.bias
            pyro.sample("x", dist.Normal(means, linear.noise_scale).mask(mask).to_event(1), obs=x)

    rest = LinearGaussian(linear.weight[mask], linear.noise_scale, linear.bias[mask])

    def guide(x: Tensor) -> None:
        loc, scale = rest.best_diagonal(x[:, mask])
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    estimate = evidence(model, guide, x, num_samples=1000)
    assert (
        abs(estimate.value - float(rest.evidence(x[:, mask]).mean()))
        < 4 * estimate.monte_carlo_error
        < 0.05
    )


def test_masks_of_handlers_are_kept_too(linear: LinearGaussian) -> None:
    x = linear.sample(60)
    mask = torch.tensor([True, True, False, True])
    rest = LinearGaussian(linear.weight[mask], linear.noise_scale, linear.bias[mask])

    def model(x: Tensor) -> None:
        features = pyro.plate("features", 4, dim=-1)
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.double), 1.0).to_event(1))
            with features, pyro.poutine.mask(mask=mask):
                means = (z @ linear.weight.T + linear.bias).squeeze(-2)
                pyro.sample("x", dist.Normal(means, linear.noise_scale), obs=x)

    def guide(x: Tensor) -> None:
        loc, scale = rest.best_diagonal(x[:, mask])
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(loc.unsqueeze(-2), scale.unsqueeze(-2)).to_event(1))

    estimate = evidence(model, guide, x, num_samples=1000)
    assert (
        abs(estimate.value - float(rest.evidence(x[:, mask]).mean()))
        < 4 * estimate.monte_carlo_error
        < 0.05
    )


def test_auxiliary_guide_sites_count(linear: LinearGaussian) -> None:
    from pyro.infer.autoguide import AutoNormal

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            scale = pyro.sample("s", dist.LogNormal(torch.zeros((), dtype=torch.double), 1.0))
            pyro.sample("x", dist.Normal(torch.zeros_like(scale), scale), obs=x)

    x = torch.linspace(0.1, 3.0, 7, dtype=torch.double)
    guide = AutoNormal(model, init_scale=0.7)
    guide(x)
    estimate = evidence(model, guide, x, num_samples=20_000)
    grid = torch.linspace(-12, 9, 8001, dtype=torch.double)  # log s
    joint = dist.Normal(0, 1).log_prob(grid)[:, None] + dist.Normal(
        0, grid.exp()[:, None]
    ).log_prob(x)
    exact = joint.logsumexp(0) + math.log(float(grid[1] - grid[0]))
    errors = (1 / estimate.effective_sample_size).sqrt()
    assert ((estimate.per_datum - exact).abs() < 5 * errors).all() and errors.max() < 0.1


def test_a_program_that_mixes_particles_is_run_singly_with_a_warning(
    linear: LinearGaussian,
) -> None:
    """A count of dimensions has the right shapes under a plate of particles, and wrong values."""
    x = linear.sample(12)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.double), 1.0).to_event(1))
            means = (0.5 * z if z.dim() == 2 else z) @ linear.weight.T
            pyro.sample("x", dist.Normal(means, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc, scale = linear.best_diagonal(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    with pytest.warns(UserWarning, match="run one particle at a time"):
        singly = evidence(model, guide, x, num_samples=50)
    z = torch.stack([guide_draw(linear, x, seed) for seed in range(50)])
    means = 0.5 * z @ linear.weight.T
    loc, scale = linear.best_diagonal(x)
    log_weights = (
        dist.Normal(0, 1).log_prob(z).sum(-1)
        + dist.Normal(means, 1.0).log_prob(x).sum(-1)
        - dist.Normal(loc, scale).log_prob(z).sum(-1)
    )
    reference = log_weights.logsumexp(0) - math.log(50)
    error = singly.monte_carlo_error + float(log_weights.exp().std(0).mean()) / math.sqrt(50)
    assert abs(singly.value - float(reference.mean())) < 4 * error + 0.2


def guide_draw(linear: LinearGaussian, x: Tensor, seed: int) -> Tensor:
    loc, scale = linear.best_diagonal(x)
    generator = torch.Generator().manual_seed(seed)
    return loc + scale * torch.randn(loc.shape, generator=generator, dtype=torch.double)


def test_a_guide_of_all_data_at_once_is_measured_whole(linear: LinearGaussian) -> None:
    x = linear.sample(200)
    vae = linear.vae(*linear.best_diagonal(x))  # a local posterior takes no part of its data
    estimate = evidence(vae.model, vae.guide, x, num_samples=500)
    assert (
        abs(estimate.value - float(linear.evidence(x).mean()))
        < 4 * estimate.monte_carlo_error
        < 0.02
    )


def test_wrapped_programs_and_hidden_modules_run_in_eval_mode() -> None:
    vae, x = noisy_vae(), torch.randn(30, 4)
    scaled = [pyro.poutine.scale(function, scale=2.0) for function in (vae.model, vae.guide)]
    hidden = [vae]

    def reach(name: str, x: Tensor) -> Tensor:
        return getattr(hidden[0], name)(x)

    functions = [lambda x: reach("model", x), lambda x: reach("guide", x)]
    statistics = vae.encoder.network[0].running_mean.clone()
    plain = evidence(vae.model, vae.guide, x, num_samples=20).value
    for model, guide in (scaled, functions):
        assert evidence(model, guide, x, num_samples=20).value == plain
        assert torch.equal(statistics, vae.encoder.network[0].running_mean)
        assert all(module.training for module in vae.modules())


def test_a_program_that_mixes_data_is_not_cut_into_blocks() -> None:
    x = (
        torch.randn(1300, 2, dtype=torch.double)
        + torch.arange(1300, dtype=torch.double)[:, None] / 100
    )

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.double), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + x.mean(0), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal((x - x.mean(0)) / 2, 0.75).to_event(1))

    estimate = evidence(model, guide, x, num_samples=200)
    exact = dist.Normal(x.mean(0), 2**0.5).log_prob(x).sum(-1)
    assert abs(estimate.value - float(exact.mean())) < 5 * estimate.monte_carlo_error < 0.05


def test_plates_left_of_the_data_are_summed(tmp_path) -> None:
    """Three replicates of each datum.

    A plate on the left of the data plate, and more data than a block holds.
    """
    x = torch.randn(3, 600, 2, dtype=torch.double)
    rows = x.movedim(0, 1)

    def model(rows: Tensor) -> None:
        with pyro.plate("replicates", 3, dim=-2), pyro.plate("data", len(rows), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.double), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=rows.movedim(1, 0))

    def guide(rows: Tensor) -> None:
        with pyro.plate("replicates", 3, dim=-2), pyro.plate("data", len(rows), dim=-1):
            pyro.sample("z", dist.Normal(rows.movedim(1, 0) / 2, 0.75).to_event(1))

    estimate = evidence(model, guide, rows, num_samples=300)
    exact = dist.Normal(0, 2**0.5).log_prob(rows).sum((-1, -2))
    assert estimate.per_datum.shape == (600,)
    assert abs(estimate.value - float(exact.mean())) < 4 * estimate.monte_carlo_error < 0.1
    kl = kl_per_dimension(model, guide, rows)
    assert kl.values.shape == kl.mean_variances.shape == (3, 2)
    assert torch.allclose(kl.mean_variances, (x / 2).var(1))
    assert to_arviz(model, guide, rows, num_draws=4)["posterior"]["z"].values.shape == (
        1,
        4,
        600,
        3,
        2,
    )


# -- refusals
# -------------------------------------------------------------------------------------------------


def latent_outside(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def subsampled(x: Tensor) -> None:
    with pyro.plate("data", len(x), subsample_size=2) as index:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


def no_latent(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def two_plates(x: Tensor) -> None:
    with pyro.plate("rows", 4, dim=-1), pyro.plate("columns", 4, dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_of(model):
    def guide(x: Tensor) -> None:
        with pyro.poutine.block():
            trace = pyro.poutine.trace(model).get_trace(x)
        site = trace.nodes.get("z")
        if site is None:
            return
        if model is two_plates:
            with pyro.plate("rows", 4, dim=-1), pyro.plate("columns", 4, dim=-2):
                pyro.sample("z", dist.Normal(0.0, 1.0))
        elif site["cond_indep_stack"]:
            with pyro.plate("data", len(x), subsample_size=2 if model is subsampled else None):
                pyro.sample("z", dist.Normal(0.0, 1.0))
        else:
            pyro.sample("z", dist.Normal(0.0, 1.0))

    return guide


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (latent_outside, torch.randn(4), "share no vectorised plate.*'z'"),
        (subsampled, torch.randn(4), r"plate 'data' is subsampled \(2 of 4\)"),
        (no_latent, torch.randn(4), "has no latent site"),
        (
            two_plates,
            torch.randn(4, 4),
            r"ambiguous: pass data_plate= one of \['columns', 'rows'\]",
        ),
    ],
)
def test_programs_without_per_datum_weights_are_refused(model, x: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evidence(model, guide_of(model), x, num_samples=2)


def test_data_plate_resolves_the_ambiguity() -> None:
    estimate = evidence(
        two_plates, guide_of(two_plates), torch.randn(4, 4), data_plate="columns", num_samples=2
    )
    assert estimate.per_datum.shape == (4,)


def test_a_guide_without_a_latent_is_refused() -> None:
    with pytest.raises(InputError, match="the guide has no site for the model's latent 'z'"):
        evidence(latent_outside, no_latent, torch.randn(4))


@pytest.mark.parametrize("num_samples", [0, -1, 2.5, True])
def test_impossible_numbers_of_samples_are_refused(
    linear: LinearGaussian, num_samples: object
) -> None:
    vae = linear.amortized_vae()
    for function in (elbo, evidence, elbo_parts):
        with pytest.raises(InputError, match="'num_samples' must be a positive integer"):
            function(vae.model, vae.guide, linear.sample(3), num_samples=num_samples)


def test_data_with_nan_are_refused_with_their_index(linear: LinearGaussian) -> None:
    x = linear.sample(5)
    x[3, 1] = math.nan
    vae = linear.amortized_vae()
    with pytest.raises(InputError, match=r"'x' must be finite, got nan at index \(3, 1\)"):
        evidence(vae.model, vae.guide, x)


def test_hand_written_programs_refuse_values_without_a_density() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("clicks", dist.Bernoulli(logits=z), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    for value in (7.0, math.nan):
        x = torch.zeros(10)
        x[3] = value
        with pytest.raises(
            InputError, match="site 'clicks' of the model has no density at its value"
        ):
            evidence(model, guide, x, num_samples=5)


def test_partly_masked_latents_and_guide_factors_are_refused(linear: LinearGaussian) -> None:
    x = linear.sample(4)
    vae = linear.amortized_vae()
    with pytest.raises(InputError, match="latent 'z' is masked out for some data"):
        evidence(
            vae.model, vae.guide, x, None, torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.double)
        )

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", vae.encoder(x))
            pyro.factor("bonus", torch.full((len(x),), 5.0), has_rsample=True)

    with pytest.raises(InputError, match="site 'bonus' of the guide is observed or a factor"):
        evidence(vae.model, guide, x)


def test_data_of_another_dtype_are_those_of_the_model(linear: LinearGaussian) -> None:
    vae, x = linear.amortized_vae(), linear.sample(3).float()
    expected = evidence(vae.model, vae.guide, x.double(), num_samples=10).per_datum
    assert torch.equal(evidence(vae.model, vae.guide, x, num_samples=10).per_datum, expected)
    words = r"'x' must be torch.float64 on cpu as the model is, got torch.float32 on cpu"
    with pytest.raises(InputError, match=words):
        vae.check_data(x)


def test_draws_of_the_model_are_not_the_draws_of_the_guide() -> None:
    """The same seed for both.

    Were they one stream, the guide's noise would be the data's own latents.
    """
    linear = LinearGaussian(torch.eye(2), 0.5)
    values = [
        elbo(v.model, v.guide, x, num_samples=1).value
        for x in [linear.sample(2000)]
        for v in [linear.amortized_vae(4.0)]
    ]
    x = linear.sample(2000)
    exact = linear.elbo(x, *linear.best_diagonal(x, 4.0)).mean()
    assert abs(values[0] - float(exact)) < 4 * 5 / math.sqrt(2000)


# -- the estimate itself
# --------------------------------------------------------------------------------------


def test_monte_carlo_error_is_the_spread_over_seeds(linear: LinearGaussian) -> None:
    x = linear.sample(20)
    vae = linear.amortized_vae(1.0, 1.0, 1.3)
    runs = [evidence(vae.model, vae.guide, x, num_samples=200, seed=seed) for seed in range(200)]
    spread = float(torch.tensor([run.value for run in runs]).std())
    claimed = sum(run.monte_carlo_error for run in runs) / len(runs)
    assert claimed == pytest.approx(
        spread, rel=0.2
    )  # four standard errors of a standard deviation over 200


def test_standard_error_of_one_datum_is_undefined() -> None:
    estimate = Estimate.over_data(torch.tensor([1.0]), torch.tensor([0.1]))
    assert math.isnan(estimate.standard_error) and estimate.monte_carlo_error == pytest.approx(0.1)


def test_an_estimate_says_how_many_data_are_untrusted() -> None:
    estimate = Estimate.over_data(torch.zeros(4), reliable=torch.tensor([True, False, False, True]))
    assert estimate.untrusted == 2
    assert not estimate.trusted and "UNTRUSTED for 2 of 4 data" in str(estimate)
    assert "UNTRUSTED" not in str(replace(estimate, reliable=torch.ones(4, dtype=torch.bool)))


@pytest.mark.parametrize(("old", "new"), [("bound", "elbo_parts"), ("Bound", "ElboParts")])
def test_names_of_the_last_release_give_the_new_ones_with_a_warning(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"evaluation\.marginal\.{new}"):
        assert getattr(evaluation, old) is getattr(evaluation, new)
