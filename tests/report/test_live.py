"""The decoder of a page: its steps give the decoder's own means, or it is not taken."""

import math
from dataclasses import replace

import pytest
import torch

from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.report.live import steps as module
from pyro_bvae.report.live.charts import Chart
from pyro_bvae.report.live.content import live_content, page_data
from pyro_bvae.report.live.points import latent_names, points_of, principal_axes
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
    axes = principal_axes(codes)
    assert abs(abs(axes[0, 0]) - 5) < 1e-5
    assert axes[:, 0].var() > axes[:, 1].var() > 0
    assert principal_axes(codes[:, :1]).shape == (50, 2)


def test_data_of_a_page_end_no_tag_and_hold_no_number_that_json_lacks():
    chart = Chart("lines", ("x", "</script>"), [(1, math.nan), (math.inf, 2.0)])
    text = page_data({"a": chart}, {"name": "</script><!--"})
    assert "<" not in text and "NaN" not in text and "Infinity" not in text
    assert '"rows":[[1.0,null],[null,2.0]]' in text
