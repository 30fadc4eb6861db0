"""The decoder of a page: its steps give the decoder's own means, or it is not taken."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pyro_bvae import Context
from pyro_bvae.likelihoods import BernoulliLikelihood, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.report.live import steps as module
from pyro_bvae.report.live.charts import Chart, moments, profile_chart, ranges_chart
from pyro_bvae.report.live.columns import columns_of, spread_of
from pyro_bvae.report.live.content import live_content, page_data
from pyro_bvae.report.live.points import latent_names, neighbours, points_of, principal_axes
from pyro_bvae.report.live.steps import decoder_of
from tests.report.pages import images, members, run_of, vae_of

MEMBERS = members()
MEANS = {"grey": "grey", "tanh": "identity", "counts": "softmax", "zero-inflated": "gated-exp", "table": "identity"}  # fmt: skip


@pytest.mark.parametrize("name", MEMBERS)
def test_every_network_and_mean_is_taken_as_steps(name):
    vae, data = MEMBERS[name]
    codes = vae.encode(data.x, data.context)
    decoder = decoder_of(vae, codes, data.context, live_spread(vae, data))
    assert decoder.mean == MEANS.get(name, "sigmoid")
    assert decoder.deviation <= 0.5 / 255
    assert decoder.type == "float16" or name != "mlp"


def live_spread(vae, data):
    return 1.0 if data.image_shape else data.x.amax(0) - data.x.amin(0)


def test_a_decoder_that_half_precision_would_change_is_kept_in_single():
    data = images()
    vae = vae_of(MLP(3, 16, hidden=()), BernoulliLikelihood(), 16)
    with torch.no_grad():
        vae.decoder.network.layers[0].weight.mul_(3000)
    codes = vae.encode(data.x)
    assert decoder_of(vae, codes, None, 1.0).type == "float32"


def test_a_decoder_that_is_unknown_or_too_large_is_not_taken(monkeypatch):
    data = images()
    unknown = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Softplus(beta=2.0))
    vae = vae_of(unknown, BernoulliLikelihood(), 16)
    codes = vae.encode(data.x)
    assert decoder_of(vae, codes, None, 1.0) is None
    content = live_content(run_of(vae, data), {})
    assert content["decoder"] is None and content["sheets"]["nodes"] == 9
    assert len(content["decoded"]["values"]) == len(content["data"]["values"])
    known, _ = MEMBERS["mlp"]
    monkeypatch.setattr(module, "_MOST_BYTES", 10)
    assert decoder_of(known, codes, None, 1.0) is None


def test_the_latents_come_by_their_kl_and_bear_the_name_of_their_label():
    data = images()
    vae, _ = MEMBERS["mlp"]
    points = points_of(run_of(vae, data), {})
    signal = (data.labels == 1).float()
    codes = torch.stack([signal, -signal + 0.1 * data.x[:, 0], data.x[:, 1]], 1)
    names = latent_names(points._replace(codes=codes))
    assert names[0] == "z0: label a class with a rather long name 0, correlation 1.00"
    assert names[1].startswith("z1: label a class") and names[1].endswith("correlation −1.00")
    assert names[2] == "z2"
    evaluation = {"kl_per_dimension": {"values": [0.5, 2.0, 1.0]}}
    latents = live_content(run_of(vae, data), evaluation)["latents"]
    assert [each["index"] for each in latents] == [1, 2, 0]


def test_missing_pixels_leave_the_greys_of_a_page():
    vae, data = MEMBERS["mlp"]
    holes = replace(data, x=data.x.masked_fill(data.x < 0.5, math.nan), missing=True)
    vae.missing = True
    try:
        assert live_content(run_of(vae, holes), {})["grey"] == [0.0, 1.0]
    finally:
        vae.missing = False


def test_principal_axes_are_those_of_the_largest_variance():
    codes = torch.zeros(50, 3)
    codes[:, 1] = torch.linspace(-5, 5, 50)
    codes[:, 2] = torch.linspace(-1, 1, 50) ** 2
    centre, axes = principal_axes(codes)
    assert abs(axes[0, 1]) == pytest.approx(1) and abs(axes[1, 2]) == pytest.approx(1)
    assert centre == pytest.approx(codes.mean(0).numpy(), abs=1e-6)
    assert principal_axes(codes[:, :1])[1].tolist() in ([[1.0], [0.0]], [[-1.0], [0.0]])


def test_data_of_a_page_end_no_tag_and_hold_no_number_that_json_lacks():
    chart = Chart("lines", ("x", "</script>"), [(1, math.nan), (math.inf, 2.0)])
    text = page_data({"a": chart}, {"name": "</script><!--"})
    assert "<" not in text and "NaN" not in text and "Infinity" not in text
    assert '"rows":[[1.0,null],[null,2.0]]' in text


# --- columns, spreads, embedding


def test_the_columns_are_those_of_the_run_and_constant_ones_are_left_out():
    vae, data = MEMBERS["counts"]
    points = points_of(run_of(vae, data), {})
    names = [each["name"] for each in columns_of(points)]
    assert names == ["size factor", "covariate 0", "covariate 1"]  # neither label nor evidence
    cells = SimpleNamespace(all_categories=(("donor", ("a", "b")),), scales=(("age", 40.0, 10.0),))
    context = Context(None, torch.tensor([[1.0, 0, -1], [0, 1, 0.5]]))
    two = points._replace(data=replace(data[:2], context=context))
    donor, age = columns_of(
        two._replace(evidence=two.evidence[:2], pareto_k=two.pareto_k[:2]),
        SimpleNamespace(cells=cells),
    )
    assert donor == {"name": "donor", "values": [0, 1], "classes": ["a", "b"]}
    assert age == {"name": "age", "values": [30.0, 45.0]}
    shown = points_of(run_of(MEMBERS["mlp"][0], images()), {})
    factors = replace(shown.data, factors=torch.arange(40.0)[:, None], factor_names=("size",))
    label, size = columns_of(shown._replace(data=factors))
    assert label["classes"][1] == "a class with a rather long name 0" and label["values"][1] == 1
    assert size == {"name": "size", "values": [float(i) for i in range(40)]}


def test_the_spread_of_a_reconstruction_is_that_of_a_linear_decoder():
    data = images()
    vae = vae_of(MLP(3, 16, hidden=()), NormalLikelihood(1.0), 16)
    points = points_of(run_of(vae, data), {})
    found = spread_of(run_of(vae, data), points, [0, 5], draws=600)
    weight = vae.decoder.network.layers[0].weight.double()
    variance = vae.posterior(data.x[[0, 5]]).variance.double()
    wanted = (variance @ weight.T**2).sqrt()  # of a linear function of independent latents
    assert (found / wanted - 1).abs().max() < 5 / math.sqrt(2 * 600)


def test_the_embedding_keeps_clusters_apart_and_is_left_out_of_few_latents():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(60, 4, generator=generator)
    codes[30:, 0] += 30
    shown = torch.from_numpy(neighbours(codes)).double()
    distance = torch.cdist(shown, shown).fill_diagonal_(math.inf)
    nearest = distance.argmin(1)
    assert ((nearest >= 30) == (torch.arange(60) >= 30)).all()
    assert neighbours(codes[:, :2]) is None and neighbours(codes[:9]) is None
    assert live_content(run_of(*MEMBERS["mlp"]), {}, embed=False)["embedding"] is None


def test_counts_are_kept_in_few_bytes_and_means_are_not_rounded():
    vae, data = MEMBERS["counts"]
    content = live_content(run_of(vae, data), {})
    assert content["data"]["type"] == "uint8" and content["spread"]["type"] == "float32"
    large = replace(data, x=data.x + 300)
    assert live_content(run_of(vae, large), {})["data"]["type"] == "uint16"
    assert live_content(run_of(*MEMBERS["table"]), {})["data"]["type"] == "float32"


def test_features_of_several_units_come_by_their_distance_from_the_mean():
    scale = (torch.tensor([0.0, 1000.0]), torch.tensor([1.0, 100.0]))
    mean, datum = torch.tensor([3.0, 1100.0]), torch.tensor([2.0, 1050.0])
    first, second = profile_chart(["a", "b"], mean, datum, scale).rows
    assert first == ("a", 3.0, 1.0, 2.0, None, 0.0, 1.0)
    assert second == ("b", 1100.0, 50.0, 1050.0, None, 1000.0, 100.0)
    assert [row[0] for row in profile_chart(["a", "b"], mean, datum).rows] == ["b", "a"]
    x = torch.tensor([[1.0, 2.0], [3.0, math.nan]])
    assert [each.tolist() for each in moments(x)] == [[2.0, 2.0], [1.0, 1.0]]


def test_the_ranges_of_data_and_draws_come_by_their_difference():
    data = torch.linspace(0, 10, 101)[:, None].repeat(1, 2)
    drawn = data + torch.tensor([0.0, 5.0])
    first, second = ranges_chart(["same", "moved"], data, drawn).rows
    assert first[0] == "moved"
    assert first[1:7] == pytest.approx((1, 5, 9, 6, 10, 14), abs=1e-5)
    assert second[1:4] == pytest.approx(second[4:7])
