"""The decoder's geometry.

Linear decoders, rotations, a sphere, a half-pipe and a Bernoulli line in closed form.
"""

import math

import matplotlib as mpl
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Context, Decoder
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation import decoder_geometry, geodesic
from pyro_bvae.evaluation.geometry import (
    DecoderGeometry,
    Geodesic,
    decoder_jacobian,
    fisher_rao,
    geodesics,
)
from pyro_bvae.evaluation.geometry import jacobian as geometry
from pyro_bvae.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    ContinuousBernoulliLikelihood,
    DiscretizedLogisticLikelihood,
    LaplaceLikelihood,
    NegativeBinomialLikelihood,
    NormalLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
    ZeroInflatedNegativeBinomialLikelihood,
)
from pyro_bvae.networks import MLP
from pyro_bvae.plots import decoder_geometry as draw_geometry
from pyro_bvae.plots import geodesic as draw_geodesic
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior


def around(mean: Tensor) -> dist.Distribution:
    return dist.Normal(mean, 1.0).to_event(1)


def linear(weight: Tensor):
    return lambda z: around(z @ weight.T)


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.double) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plane(angle: float) -> Tensor:
    cosine, sine = math.cos(angle), math.sin(angle)
    return torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.double)


def sphere(z: Tensor) -> dist.Distribution:
    polar, azimuth = z.unbind(-1)
    return around(
        torch.stack([polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos()], -1)
    )


def half_pipe(z: Tensor) -> dist.Distribution:
    angle, along = z.unbind(-1)
    return around(torch.stack([angle.cos(), angle.sin(), along], -1))


def vae(likelihood: nn.Module | None = None, **options) -> BetaVAE:
    likelihood = likelihood or NormalLikelihood()
    network = MLP(
        3 + options.get("num_covariates", 0), 8 * likelihood.parameters_per_feature, hidden=(16,)
    )
    return BetaVAE(
        NormalPrior(3),
        Decoder(network, likelihood, **options),
        NormalPosterior(MLP(8, 6, hidden=(16,))),
    ).double()


def test_a_linear_decoder_is_exact() -> None:
    weight, z = draws(7, 3), draws(20, 3, seed=1)
    result = decoder_geometry(linear(weight), z)
    lengths = weight.norm(dim=0)
    cosines = weight.T @ weight / torch.outer(lengths, lengths)
    exact = torch.linalg.svdvals(weight)
    assert torch.allclose(result.singular_values, exact.expand(20, 3), rtol=1e-12)
    assert torch.allclose(result.metric, (weight.T @ weight).expand(20, 3, 3), rtol=1e-12)
    assert torch.allclose(result.cosines, cosines.expand(20, 3, 3), rtol=1e-12)
    assert torch.allclose(result.log_volume, exact.log().sum().expand(20), rtol=1e-12)
    weights = torch.outer(lengths, lengths)
    off = ~torch.eye(3, dtype=torch.bool)
    score = 1 - (weights * cosines.abs())[off].sum() / weights[off].sum()
    assert result.orthogonality.estimate.value == pytest.approx(float(score), abs=1e-12)
    assert result.orthogonality.estimate.standard_error == pytest.approx(0, abs=1e-12)
    directions = torch.linalg.svd(weight).Vh  # as rows
    aligned = (exact**2 * directions.square().amax(1)).sum() / (exact**2).sum()
    assert result.alignment.estimate.value == pytest.approx(float(aligned), abs=1e-12)


@pytest.mark.parametrize("angle", [0.0, 0.1, 0.4, math.pi / 4])
def test_a_rotation_drops_the_scores_as_predicted(angle: float) -> None:
    columns = torch.linalg.qr(draws(6, 2)).Q * torch.tensor([2.0, 1.0], dtype=torch.double)
    result = decoder_geometry(linear(columns @ plane(angle)), draws(10, 2))
    a, b, cosine, sine = 4.0, 1.0, math.cos(angle), math.sin(angle)
    first, second = a * cosine**2 + b * sine**2, a * sine**2 + b * cosine**2
    predicted = 1 - (a - b) * cosine * sine / math.sqrt(first * second)
    assert result.orthogonality.estimate.value == pytest.approx(predicted, abs=1e-9)
    assert result.alignment.estimate.value == pytest.approx(max(cosine**2, sine**2), abs=1e-9)


def test_the_null_is_the_mean_over_all_rotations() -> None:
    columns = torch.linalg.qr(draws(6, 2)).Q * torch.tensor([2.0, 1.0], dtype=torch.double)
    result = decoder_geometry(linear(columns), draws(5, 2), num_rotations=2000)
    a, b = 4.0, 1.0

    def score(angle: float) -> float:
        c, s = math.cos(angle) ** 2, math.sin(angle) ** 2
        return 1 - (a - b) * math.sqrt(c * s / ((a * c + b * s) * (a * s + b * c)))

    exact = quad(score, 0, math.pi / 2)[0] * 2 / math.pi
    aligned = (
        quad(lambda angle: max(math.cos(angle) ** 2, math.sin(angle) ** 2), 0, math.pi / 2)[0]
        * 2
        / math.pi
    )
    for test, mean in ((result.orthogonality, exact), (result.alignment, aligned)):
        assert test.estimate.value == pytest.approx(1, abs=1e-9)
        assert abs(float(test.null.mean()) - mean) < 4 * float(test.null.std()) / math.sqrt(2000)
        assert test.share < 0.01  # nothing scores as its own axes do


def test_angles_of_inactive_latents_are_not_scored() -> None:
    weight = torch.cat([torch.linalg.qr(draws(6, 2)).Q, draws(6, 1)], 1)
    z = draws(30, 3) * torch.tensor([1.0, 1.0, 0.01], dtype=torch.double)
    result = decoder_geometry(linear(weight), z)
    assert result.active.tolist() == [True, True, False]
    assert result.orthogonality.estimate.value == pytest.approx(1, abs=1e-12)
    everything = decoder_geometry(linear(weight), z, active=torch.ones(3, dtype=torch.bool))
    assert everything.orthogonality.estimate.value < 0.9
    alone = decoder_geometry(linear(weight), z * 0.01)
    assert alone.orthogonality is None and "fewer than two latents are active" in str(alone)


def test_a_latent_that_the_decoder_ignores_is_orthogonal_to_all() -> None:
    weight = torch.cat([draws(6, 2), torch.zeros(6, 1, dtype=torch.double)], 1)
    result = decoder_geometry(linear(weight), draws(10, 3))
    assert torch.equal(result.cosines[:, 2], torch.zeros(10, 3, dtype=torch.double))
    assert bool(torch.isneginf(result.log_volume).all() | (result.log_volume < -30).all())
    dead = decoder_geometry(linear(torch.zeros_like(weight)), draws(10, 3))
    assert dead.orthogonality.estimate.value == dead.alignment.estimate.value == 1


def test_fewer_features_than_latents() -> None:
    result = decoder_geometry(linear(draws(2, 3)), draws(4, 3))
    assert result.singular_values.shape == (4, 3) and bool(
        (result.singular_values[:, 2] == 0).all()
    )


@pytest.mark.parametrize(
    "likelihood",
    [
        BernoulliLikelihood(),
        ContinuousBernoulliLikelihood(),
        DiscretizedLogisticLikelihood(),
        CategoricalLikelihood(3),
        NormalLikelihood(),
        LaplaceLikelihood(),
        StudentTLikelihood(),
        PoissonLikelihood(),
        NegativeBinomialLikelihood(8),
        ZeroInflatedNegativeBinomialLikelihood(8),
    ],
    ids=lambda likelihood: type(likelihood).__name__,
)
def test_jacobians_are_finite_differences_of_the_mean_for_every_likelihood(
    likelihood: nn.Module,
) -> None:
    model, z = vae(likelihood), draws(4, 3)
    needs = isinstance(likelihood, PoissonLikelihood | NegativeBinomialLikelihood)
    context = (
        Context(size_factor=torch.tensor([[1.0], [2.0], [0.5], [3.0]], dtype=torch.double))
        if needs
        else None
    )
    result = decoder_jacobian(model, z, context)
    assert result.shape == (4, 8, 3)
    for latent, step in enumerate(1e-6 * torch.eye(3, dtype=torch.double)):
        slope = (model.decode(z + step, context) - model.decode(z - step, context)) / 2e-6
        assert torch.allclose(result[..., latent], slope, rtol=1e-5, atol=1e-8)


def test_fisher_rao_is_the_jacobian_weighted_by_the_information() -> None:
    z = draws(5, 3)
    for likelihood, information in (
        (BernoulliLikelihood(), lambda mean: 1 / (mean * (1 - mean))),
        (PoissonLikelihood(), lambda mean: 1 / mean),
    ):
        model = vae(likelihood)
        jacobian = decoder_jacobian(model, z)
        weighted = jacobian.mT @ (information(model.decode(z)).unsqueeze(-1) * jacobian)
        result = decoder_geometry(model, z, view=fisher_rao)
        assert torch.allclose(result.metric, weighted, rtol=1e-9)
        assert not torch.allclose(result.metric, decoder_geometry(model, z).metric, rtol=0.1)


def test_fisher_rao_stays_finite_where_means_round_to_zero_and_one() -> None:
    def decoder(z: Tensor) -> dist.Distribution:
        return dist.Bernoulli(logits=z).to_event(1)

    result = decoder_jacobian(decoder, torch.tensor([[-200.0], [0.0], [200.0]]), view=fisher_rao)
    assert result.flatten().tolist() == pytest.approx([0, 0.5, 0])
    # From one end of a Bernoulli to the other is a quarter of a circle of radius 2.
    path = geodesic(decoder, torch.tensor([-30.0]), torch.tensor([30.0]), view=fisher_rao)
    assert path.length == pytest.approx(math.pi, abs=1e-4)


def test_context_reaches_the_decoder_row_by_row() -> None:
    model = vae(num_covariates=2)
    context = Context(covariates=draws(6, 2, seed=3))
    z = draws(6, 3)
    result = decoder_geometry(model, z, context)
    for row in range(6):
        one = Context(covariates=context.covariates[row : row + 1])
        assert torch.allclose(
            decoder_geometry(model, z[row : row + 1], one).metric[0], result.metric[row]
        )
    path = geodesic(model, z[0], z[1], Context(covariates=context.covariates[:1]))
    assert path.length <= path.straight_length
    with pytest.raises(
        InputError, match=r"'context.covariates' must have one row for the whole path.*\(6, 2\)"
    ):
        geodesic(model, z[0], z[1], context)


def test_data_are_streamed_and_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, seen = draws(7, 3), []

    def decoder(z: Tensor) -> dist.Distribution:
        seen.append(len(z))
        return around((z @ weight.T).sin())

    whole = decoder_geometry(decoder, draws(50, 3))
    assert max(seen) == 50
    seen.clear()
    monkeypatch.setattr(geometry, "_BLOCK_NUMBERS", 7 * 3 * 8)
    blocks = decoder_geometry(decoder, draws(50, 3))
    assert max(seen) == 8
    assert torch.allclose(blocks.metric, whole.metric, rtol=1e-12)
    assert blocks.orthogonality.estimate.value == pytest.approx(
        whole.orthogonality.estimate.value, rel=1e-12
    )


def test_modes_and_random_states_are_left_alone_and_dropout_is_off() -> None:
    network = nn.Sequential(
        nn.Linear(3, 20), nn.Dropout(0.5), nn.BatchNorm1d(20), nn.Tanh(), nn.Linear(20, 8)
    )
    model = BetaVAE(
        NormalPrior(3), Decoder(network, NormalLikelihood()), NormalPosterior(MLP(8, 6, hidden=()))
    )
    network[2].eval()
    z, before = draws(5, 3, dtype=torch.float), torch.get_rng_state()
    result, again = (decoder_geometry(model, z, seed=4) for _ in range(2))
    path = geodesic(model, z[0], z[1])
    assert torch.equal(result.metric, again.metric)
    assert torch.equal(result.orthogonality.null, again.orthogonality.null)
    assert torch.equal(torch.get_rng_state(), before)
    assert network[1].training and not network[2].training and model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(path.decoded, model.decode(path.path))
    assert torch.equal(path.path[0], z[0]) and torch.allclose(path.path[-1], z[1], rtol=1e-6)


def test_the_geodesic_of_a_linear_decoder_is_the_straight_line() -> None:
    weight, z = draws(7, 3), draws(2, 3, seed=1)
    result = geodesic(linear(weight), *z)
    exact = float((weight @ (z[1] - z[0])).norm())
    assert result.converged
    assert result.length == pytest.approx(
        exact, rel=1e-9
    ) and result.straight_length == pytest.approx(exact, rel=1e-9)
    assert result.energy == pytest.approx(exact**2, rel=1e-9)
    assert torch.allclose(result.path, result.straight, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float, torch.double])
@pytest.mark.parametrize(
    "ends", [((0.6, 0.0), (1.0, 2.5)), ((1.2, -0.5), (0.9, 0.7)), ((0.4, 0.0), (2.5, 1.5))]
)
def test_geodesics_of_a_sphere_are_great_circles(ends: tuple, dtype: torch.dtype) -> None:
    start, end = (torch.tensor(point, dtype=dtype) for point in ends)
    result = geodesic(sphere, start, end)
    exact = math.acos(float(sphere(start.double()).mean @ sphere(end.double()).mean))
    assert result.converged
    assert result.length == pytest.approx(exact, rel=1e-3)
    assert result.energy == pytest.approx(exact**2, rel=2e-3)  # at constant pace
    assert result.straight_length > result.length
    # Great circles lie in a plane through the centre.
    assert float(torch.linalg.svdvals(result.decoded)[2]) < 0.01 * len(result.path) ** 0.5


def test_a_half_pipe_is_flat() -> None:
    start, end = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 2.0])
    result = geodesic(half_pipe, start, end)
    assert result.length == pytest.approx(math.hypot(3, 2), rel=1e-3)
    assert torch.allclose(result.path, result.straight, atol=5e-3)


def test_a_line_at_uneven_pace_is_gone_through_evenly() -> None:
    result = geodesic(
        lambda z: around(z**3), torch.tensor([0.0]).double(), torch.tensor([2.0]).double()
    )
    assert result.length == pytest.approx(8, rel=1e-9) == result.straight_length
    assert result.straight_energy == pytest.approx(
        64 * 9 / 5, rel=1e-3
    )  # of the integral of (24 t^2)^2
    assert result.energy == pytest.approx(64, rel=1e-2)


def test_the_geodesic_is_never_longer_and_says_when_it_has_not_converged() -> None:
    model = vae(BernoulliLikelihood())
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(6)
    for seed in range(5):
        start, end = 2 * draws(2, 3, seed=seed)
        result = geodesic(model, start, end)
        assert result.length <= result.straight_length
        assert result.energy >= result.length**2 * (1 - 1e-12)
    hurried = geodesic(
        sphere,
        torch.tensor([0.05, 0.0]),
        torch.tensor([0.05, 3.1]),
        max_iterations=1,
        tolerance=1e-9,
    )
    assert not hurried.converged and "NOT CONVERGED" in str(hurried)
    assert hurried.length <= hurried.straight_length


def test_a_path_that_came_out_longer_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def astray(show, line: Tensor, *_: object) -> tuple[Tensor, bool, int]:
        return torch.linspace(0, math.pi, len(line)).sin().unsqueeze(1).expand_as(line), False, 20

    monkeypatch.setattr(geodesics, "_bend", astray)
    result = geodesic(half_pipe, torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0]))
    assert result.length == result.straight_length and torch.equal(result.path, result.straight)
    assert "NOT CONVERGED after 20 iterations" in str(result)


def test_a_path_from_a_point_to_itself_has_no_length() -> None:
    result = geodesic(sphere, torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.0]))
    assert result.length == result.straight_length == 0 and result.converged
    assert "0.0% shorter" in str(result)


class Detached(nn.Module):
    def forward(self, z: Tensor) -> dist.Distribution:
        return around(z.detach() * 2)


@pytest.mark.parametrize(
    ("decoder", "z", "words"),
    [
        (None, draws(4, 3), "'vae' must be a model with a decoder, or a decoder, got NoneType"),
        (vae(), draws(4, 5), "'z' must have 3 latents as the decoder has, got 5"),
        (linear(draws(7, 3)), draws(4, 5), r"the decoder cannot be run on 'z' of shape \(1, 5\)"),
        (
            vae(),
            draws(4),
            r"'z' must be a floating-point tensor \(N, L\).*got torch.float64 of shape \(4,\)",
        ),
        (
            vae(),
            torch.zeros(2, 3, dtype=torch.long),
            r"'z' must be a floating-point tensor.*got torch.int64",
        ),
        (vae(), draws(0, 3), r"at least one row, got torch.float64 of shape \(0, 3\)"),
        (
            vae(),
            draws(4, 3).index_fill(0, torch.tensor(1), math.nan),
            r"'z' must be finite, got nan at index \(1, 0\)",
        ),
        (
            lambda z: z @ draws(3, 7),
            draws(4, 3),
            "must return a distribution that knows its mean, got Tensor",
        ),
        (lambda z: 3.0, draws(4, 3), "must return a distribution that knows its mean, got float"),
        (
            lambda z: dist.Normal(z.mean(), 1.0),
            draws(4, 3),
            "must return a distribution for each row of 'z', 1 of",
        ),
        (
            Detached(),
            draws(4, 3),
            "no derivative in latent 0, on which it depends: is it detached, or rounded",
        ),
        (
            lambda z: around(z.round()),
            3 * draws(4, 3),
            "no derivative in latent 0.*detached, or rounded",
        ),
        (
            lambda z: around(torch.from_numpy(z.numpy())),
            draws(4, 3),
            "the decoder cannot be differentiated",
        ),
        (lambda z: around(z / 0), draws(4, 3), "'the decoder's output' must be finite"),
        (lambda z: around((z - z).sqrt()), draws(4, 3), "'the decoder's Jacobian' must be finite"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(decoder, z: Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        decoder_geometry(decoder, z)


def test_settings_that_cannot_be_used_are_refused_in_words() -> None:
    z = draws(4, 3)
    with pytest.raises(InputError, match=r"'active' must be a bool tensor \(3,\)"):
        decoder_geometry(vae(), z, active=torch.ones(3))
    with pytest.raises(InputError, match="'num_rotations' must be a positive integer, got 0"):
        decoder_geometry(vae(), z, num_rotations=0)
    with pytest.raises(
        InputError, match="fisher_rao knows Bernoulli and Poisson features, got Normal"
    ):
        decoder_geometry(linear(draws(7, 3)), z, view=fisher_rao)
    for arguments, words in (
        ((z, z[1]), r"'start' must be a tensor \(L,\), got shape \(4, 3\)"),
        ((z[0], z[1, :2]), "'end' must have 3 latents as 'start' has, got 2"),
        ((z[0, :2], z[1, :2]), "must have 3 latents as the decoder has, got 2"),
        ((z[0], z[1] / 0), "must be finite"),
    ):
        with pytest.raises(InputError, match=words):
            geodesic(vae(), *arguments)
    for settings, words in (
        ({"num_points": 10}, "'num_points' must be at least 24, twice 'num_terms', got 10"),
        ({"num_terms": 0}, "'num_terms' must be a positive integer, got 0"),
        ({"tolerance": 0.0}, "'tolerance' must be positive and finite, got 0.0"),
    ):
        with pytest.raises(InputError, match=words):
            geodesic(vae(), z[0], z[1], **settings)
    with pytest.raises(InputError, match="the decoder cannot be differentiated in its latents"):
        geodesic(Detached(), z[0], z[1])


def words_of(figure: mpl.figure.Figure) -> str:
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(mpl.text.Text))


def test_figures_show_the_numbers() -> None:
    result: DecoderGeometry = decoder_geometry(linear(draws(16, 3)), draws(20, 3))
    shown = words_of(draw_geometry(result))
    assert (
        f"{result.orthogonality.estimate.value:.2f}" in shown
        and f"{result.alignment.estimate.value:.2f}" in shown
    )
    assert f"{float(result.cosines[0, 0, 1].abs()):.2f}"[1:] in shown
    alone = decoder_geometry(linear(draws(16, 3)), 0.01 * draws(20, 3))
    assert "no latent is active" in words_of(draw_geometry(alone))
    path: Geodesic = geodesic(lambda z: around((z @ draws(2, 16)).sin()), *draws(2, 2))
    drawn = words_of(draw_geodesic(path, (4, 4), num=5))
    assert (
        f"geodesic, {path.length:.2f}" in drawn
        and f"straight line, {path.straight_length:.2f}" in drawn
    )
    with pytest.raises(
        InputError, match="'num' must be at most the 129 points of the path, got 500"
    ):
        draw_geodesic(path, (4, 4), num=500)
    with pytest.raises(InputError, match="'image_shape' must be"):
        draw_geodesic(path, (4, 5))
