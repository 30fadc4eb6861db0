"""The page of a run: whole, self-contained, escaped, and with the numbers of the evaluation."""

import base64
import hashlib
import html
import json
import re
from dataclasses import make_dataclass
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch

from pyro_bvae import plots
from pyro_bvae.core import atomic_files as files
from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets.dataset import Dataset
from pyro_bvae.priors import NormalPrior
from pyro_bvae.report import page as build
from pyro_bvae.report import rendering, write_report
from pyro_bvae.report import sections as figures
from pyro_bvae.report import tables as words
from pyro_bvae.training import History

LATENTS, FEATURES = 3, 12


class LinearVAE:
    """A stand-in for a trained model: a code is the first features, decoding repeats it."""

    prior = NormalPrior(LATENTS)

    def encode(self, x, context=None):
        return x[:, :LATENTS].clone()

    def decode(self, z, context=None):
        if context is not None:
            assert context.size_factor.shape[0] == z.shape[-2]
        return z.repeat_interleave(FEATURES // LATENTS, dim=-1)

    def reconstruct(self, x, context=None):
        return self.decode(self.encode(x, context), context)

    def posterior(self, x, context=None):
        return torch.distributions.Normal(self.encode(x, context), 0.5)

    def generate(self, num_samples, context=None, *, noise=False, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return self.decode(torch.randn(num_samples, LATENTS, generator=generator), context)


def estimate(value, standard_error=0.25, monte_carlo_error=0.01):
    return {
        "value": value,
        "standard_error": standard_error,
        "monte_carlo_error": monte_carlo_error,
    }


def make_evaluation(**changes):
    values = {"elbo": -28.31, "evidence": -24.9, "distortion": 23.2, "rate": 5.1, "objective": 43.6}
    values |= {
        "variational_gap": 3.41,
        "approximation_gap": 0.35,
        "beta_gap": 3.61,
        "amortization_gap": -0.55,
    }
    described = {
        "dataset": "digits",
        "beta": 4.0,
        "split": "test",
        "num_data": 360,
        "num_samples": 5000,
    }
    return {
        **described,
        **{name: estimate(value) for name, value in values.items()},
        "gaps_note": None,
        "kl_per_dimension": {"values": [0.001, 2.0, 1.0], "standard_errors": [0.001, 0.1, 0.1]},
        "active_units": {"count": 2, "active": [False, True, True], "variances": [0.001, 0.5, 0.9]},
        "pareto_k": {"share_above_0.7": 0.01, "untrusted": 4, "max": 0.9},
        "refits": {"converged": True, "certified": 360, "steps": 600},
        **changes,
    }


def make_run(num_data=12, image_shape=(1, 3, 4), context=None, labels=True, **settings):
    x = torch.rand(num_data, FEATURES, generator=torch.Generator().manual_seed(0))
    kinds = torch.arange(num_data) % 2 if labels else None
    test = Dataset(
        x, context=context, labels=kinds, image_shape=image_shape, label_names=("a", "b")
    )
    settings = {"dataset": "digits", "hidden": (40, 20), "data_root": None, **settings}
    config = make_dataclass("Config", list(settings))(**settings)
    columns = ("epoch", "beta", "distortion", "rate", "objective")
    history = History(
        [{name: epoch if name == "epoch" else 3.0 for name in columns} for epoch in (1.0, 2.0)]
    )
    return SimpleNamespace(
        vae=LinearVAE(), config=config, splits=SimpleNamespace(test=test), history=history,
        part=lambda name: test,
    )  # fmt: skip


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write the page of a run that is never read from disk, and return it."""

    def write_page(run=None, evaluation=None):
        monkeypatch.setattr(build, "load", lambda directory, checkpoint, data: run or make_run())
        (tmp_path / "evaluation.json").write_text(json.dumps(evaluation or make_evaluation()))
        monkeypatch.setattr(rendering, "DPI", 20)
        path = write_report(tmp_path)
        assert path == tmp_path / "report.html"
        return path.read_text(encoding="utf-8")

    return write_page


class Links(HTMLParser):
    """Collects what a page would fetch, its tags, and whether they close."""

    def __init__(self, page):
        super().__init__()
        self.addresses, self.tags, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [
            value for name, value in attrs if name in ("src", "href", "srcset", "action")
        ]
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def headings(page):
    return re.findall(r"<h2[^>]*>(.*?)</h2>", page)


def script_of(page):
    return page.rpartition("<script>")[2].partition("</script>")[0]


def data_of(page):
    found = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page)
    return json.loads(found[1])


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


# --- the page


def test_the_page_has_every_section_and_its_figures(write, tmp_path):
    page = write()
    assert headings(page) == [
        "Where the ELBO loses",
        "Reconstructions",
        "Explore the latents",
        "What was seen, and what to try",
        "The numbers",
        "Rate per latent",
        "Traversals",
        "Interpolation",
        "Samples from the prior",
        "Training",
        "Configuration",
    ]
    assert "<h1>β-VAE on digits, β = 4</h1>" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.json", "report.html"]


def test_the_page_needs_nothing_but_itself(write):
    page = write()
    links = Links(page)
    assert not links.open
    assert all(address.startswith(("data:", "#")) for address in links.addresses)
    assert not {"iframe", "object", "form"} & set(links.tags)
    assert links.tags.count("script") == 2  # one of them is data
    rest = re.sub(r"data:image/png;base64,[^\"]*", "", page.replace(script_of(page), ""))
    assert not re.search(r"https?:|//|@import|url\(", re.sub(r'"[A-Za-z0-9+/=]{40,}"', "", rest))
    assert not re.search(r"https?:|fetch\(|XMLHttp|import\(|WebSocket|eval\(", script_of(page))
    images = [
        address for address in links.addresses if address.startswith("data:image/png;base64,")
    ]
    assert len(images) == 4
    assert all(base64.b64decode(image.split(",")[1]).startswith(b"\x89PNG") for image in images)


def test_the_policy_allows_the_script_of_the_page_alone(write):
    page = write()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    digest = base64.b64encode(hashlib.sha256(script_of(page).encode()).digest()).decode()
    assert html.unescape(policy).split("; ") == [
        "default-src 'none'",
        f"script-src 'sha256-{digest}'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_the_same_run_gives_the_same_page(write):
    assert write() == write()


def test_hostile_text_is_escaped(write):
    attack = "<script>alert('x')</script>\"&"
    run = make_run(path=attack, **{"nested": {"prior": attack}})
    note = {
        "approximation_gap": None,
        "beta_gap": None,
        "amortization_gap": None,
        "gaps_note": attack + "$\\x$",
    }
    page = write(run, make_evaluation(dataset=attack, split=attack, **note))
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;") >= 5
    assert "nested.prior" in page


def test_the_configuration_is_a_table(write):
    text = text_of(write(make_run(network={"kind": "mlp", "sizes": []})))
    assert "hidden 40, 20" in text
    assert "data_root none" in text
    assert "network.kind mlp" in text
    assert "network.sizes none" in text


def test_an_old_page_survives_a_failure(write, tmp_path, monkeypatch):
    old = write()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(evaluation=make_evaluation(dataset="other"))
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == old
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(InputError, match="is not a run directory: it has no") as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"), [("{", "is no JSON"), ("[]", "must hold a JSON object, got list")]
)
def test_an_evaluation_that_cannot_be_read_is_an_error(tmp_path, content, said):
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(InputError, match=said):
        write_report(tmp_path)


# --- what is left out, and what is said instead


def test_data_that_are_not_images_have_no_traversals(write):
    page = write(make_run(image_shape=None, labels=False))
    assert {"Traversals", "Interpolation"}.isdisjoint(headings(page))
    assert {"A datum and its reconstruction", "Samples from the prior"} <= set(headings(page))


def test_a_guide_without_kl_per_dimension(write, monkeypatch):
    rows = []
    monkeypatch.setattr(figures.plots, "traversals", record(plots.traversals, rows))
    page = write(evaluation=make_evaluation(kl_per_dimension=None))
    assert "Rate per latent" not in headings(page)
    assert [each["index"] for each in data_of(page)["live"]["latents"]] == [2, 1, 0]
    assert rows[0][0][2] is None
    assert rows[0][0][4] == [2, 1]


def test_a_collapsed_model_says_so(write):
    units = {"count": 0, "active": [False] * 3, "variances": [0.0] * 3}
    page = write(evaluation=make_evaluation(active_units=units))
    assert "No latent is active" in page
    assert "0 of 3" in page


def test_one_datum_has_nobody_to_be_interpolated_to(write):
    assert "Interpolation" not in headings(write(make_run(num_data=1)))


def test_a_run_without_history_or_evidence(write):
    run = make_run()
    run.history = History()
    page = write(run, make_evaluation(evidence=None, variational_gap=None, pareto_k=None))
    assert {"Training", "Where the ELBO loses"}.isdisjoint(headings(page))
    assert "not available" in page


def test_a_context_is_passed_row_by_row_and_named(write):
    context = Context(size_factor=torch.ones(12, 1))
    assert "Every density here is conditional" in write(make_run(context=context))
    assert "conditional" not in write()


# --- figures get the right arrays


def record(function, calls):
    def recorded(*args, **kwargs):
        calls.append((args, kwargs))
        return function(*args, **kwargs)

    return recorded


def test_traversals_move_one_active_latent_at_a_time_around_the_first_datum(monkeypatch):
    calls, run = [], make_run()
    monkeypatch.setattr(figures.plots, "traversals", record(plots.traversals, calls))
    figures.sections(run, make_evaluation())
    (images, values, kl, shape, latents), _ = calls[0]
    assert latents == [1, 2]
    assert list(kl) == [2.0, 1.0]
    assert shape == (1, 3, 4)
    assert values[0] == -3 and values[-1] == 3
    code = run.splits.test.x[0, :LATENTS]
    for row, latent in enumerate(latents):
        for column, value in enumerate(values):
            moved = code.clone()
            moved[latent] = value
            torch.testing.assert_close(images[row, column], run.vae.decode(moved))


def test_interpolation_starts_and_ends_at_the_reconstructions(monkeypatch):
    calls, run = [], make_run(num_data=7)
    monkeypatch.setattr(figures.plots, "interpolation", record(plots.interpolation, calls))
    figures.sections(run, make_evaluation())
    images = calls[0][0][0]
    means = run.vae.reconstruct(run.splits.test.x)
    assert len(images) == 3
    torch.testing.assert_close(images[:, 0], means[0:6:2])
    torch.testing.assert_close(images[:, -1], means[1:6:2])
    torch.testing.assert_close(images[:, 4], (means[0:6:2] + means[1:6:2]) / 2)


# --- words


def test_the_headline_keeps_the_two_errors_apart():
    rows = {row.name: row for row in words.headline(make_evaluation())}
    assert rows["ELBO"][1:4] == ("−28.31", "0.25", "0.01")
    assert rows["Amortization gap"].value == "−0.55"
    assert rows["Active units"].value == "2 of 3"
    assert rows["Untrusted evidence"].value == "4 of 360"
    assert rows["Certified refits"].value == "360 of 360"
    assert all(row.meaning for row in rows.values())


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        (estimate(1234.5, 12.0, 0.5), ("1234.50", "12.00", "0.5")),
        (estimate(0.12345, 0.0012, 0.00012), ("0.123", "0.001", "0.00012")),
        (estimate(0.0, 0.0, 0.0), ("0.00", "0.00", "0")),
        (estimate(1.0, None, None), ("1.00", "", "")),
        (estimate(1.0, float("nan"), float("inf")), ("1.00", "", "")),
        (estimate(float("nan")), ("not available", "", "")),
        (None, ("not available", "", "")),
    ],
)
def test_estimates_are_printed_to_their_precision(given, printed):
    assert words.format_estimate(given) == printed


def test_the_headline_counts_what_can_be_trusted_and_shows_the_families():
    counts = {"pareto_k": {"share_above_0.7": 0.0, "untrusted": 3, "max": 0.6}}
    counts |= {"refits": {"converged": False, "certified": 358, "steps": 600}}
    listed = words.headline(make_evaluation(**counts, families={"flow": estimate(0.07)}))
    rows = {row.name: row.value for row in listed}
    assert rows["Untrusted evidence"] == "3 of 360"
    assert rows["Certified refits"] == "358 of 360"
    names = [row.name for row in listed]
    assert names[names.index("Approximation gap") + 1] == "– with a flow guide"
    assert rows["– with a flow guide"] == "0.07"


def test_the_headline_names_the_estimators_and_the_untrusted_rows():
    data = {"guide": 0, "refit": 358, "annealing": 2}
    named = {"data": data, "untrusted_rows": [7, 31], "budget": 9, "cost": 8}
    rows = {row.name: row for row in words.headline(make_evaluation(estimators=named))}
    assert rows["Evidence by estimator"].value == "refit 358, annealing 2"
    assert rows["Untrusted evidence"].meaning.endswith("beyond the budget: rows 7, 31.")
    rows = {row.name: row for row in words.headline(make_evaluation(estimators=None))}
    assert "Evidence by estimator" not in rows
    assert rows["Untrusted evidence"].meaning.endswith("to be trusted.")


VERDICT = (
    "amortization is 61% of the gap (2.10 of 3.41 nats): enlarge the encoder. The refits of "
    "2 of 360 data are not."
)


def test_the_verdict_stands_at_the_head_of_the_page(write):
    page = write(
        evaluation=make_evaluation(verdict=VERDICT, refits={"converged": False, "steps": 10})
    )
    head = text_of(page).partition("Explore the latents")[0]
    assert (
        "Amortization is 61% of the gap (2.10 of 3.41 nats): enlarge the encoder. The refits of 2 "
        "of 360" in head
    )
    assert "did not converge" not in page  # the verdict says it better
    assert 'class="verdict"' not in write()


def test_a_hostile_verdict_is_escaped(write):
    assert "<script>alert" not in write(
        evaluation=make_evaluation(verdict="<script>alert()</script>. <script>")
    )


def test_a_verdict_is_a_headline_and_its_limits():
    assert words.verdict({"verdict": VERDICT}) == (
        VERDICT.split(". ")[0].capitalize(),
        VERDICT.split(". ")[1],
    )
    assert words.verdict({"verdict": "the gap is 0.05 nats: fine."}) == (
        "The gap is 0.05 nats: fine",
        "",
    )
    assert words.verdict({"verdict": None}) == words.verdict({}) == ("", "")


def test_a_good_guide_is_no_reason_for_rest_beside_problems_of_the_training():
    good = {
        "verdict": "the gap is 0.05 nats: the guide is as good as it needs to be. Looked for modes."
    }
    assert words.verdict(good)[0].endswith("the guide is as good as it needs to be")
    assert words.verdict(good, 2) == (
        "The gap is 0.05 nats: the guide is as good as it needs to be, but the training is not: 2 "
        "remarks below",
        "Looked for modes.",
    )
    assert "remark" not in words.verdict({"verdict": VERDICT}, 2)[0]


def test_a_number_that_is_not_trusted_is_marked():
    rows = {
        row.name: row.value
        for row in words.headline(make_evaluation(evidence={**estimate(-24.9), "trusted": False}))
    }
    assert rows["Evidence, log p(x)"].endswith("(untrusted)")
    assert "untrusted" not in rows["ELBO"]


def test_the_chart_of_the_gaps_leads_from_the_elbo_to_the_evidence_and_shows_the_families():
    evaluation = make_evaluation(verdict=VERDICT, families={"flow": estimate(0.07)})
    section = figures.opening(make_run(), evaluation)[0]
    assert "richer guides" in section.caption
    chart = section.charts[0].as_dict()
    rows = {name: (start, end) for name, start, end, _ in chart["rows"]}
    assert list(rows) == ["Amortization", "β", "Approximation", "– with a flow guide"]
    assert rows["Amortization"][0] == chart["start"] == -28.31
    assert rows["Amortization"][1] == pytest.approx(-28.31 - 0.55)
    assert rows["Approximation"][1] == pytest.approx(chart["end"]) == pytest.approx(-24.9)
    start, end = rows["– with a flow guide"]
    assert start == rows["Approximation"][0] and end - start == pytest.approx(0.07)


def test_the_summary_is_one_sentence():
    assert words.summary(make_evaluation()) == (
        "Under the model, a datum has a log density of −24.90 nats (standard error 0.25); "
        "the ELBO lies 3.41 nats below it, and 2 of 3 latents are active."
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pareto_k": {"share_above_0.7": 0.2, "max": 1.5}}, "may be too low"),
        ({"gaps_note": "joint over the data"}, "joint over the data"),
    ],
)
def test_what_makes_numbers_doubtful_is_said(change, said):
    assert words.notes(make_evaluation(), conditional=False) == []
    assert any(said in note for note in words.notes(make_evaluation(**change), conditional=False))


def test_a_command_in_the_verdict_is_set_as_code_and_escaped(write):
    text = write(evaluation=make_evaluation(verdict="a gap: `pyro-bvae improve <x>`. Rest."))
    assert "<code>pyro-bvae improve &lt;x&gt;</code>" in text


def test_a_first_look_says_in_place_of_a_verdict_which_command_gives_one():
    evaluation = make_evaluation(first_look="pyro-bvae evaluate runs/a", num_data=64)
    assert words.verdict(evaluation) == (
        "None yet: this is a first look at 64 data", "`pyro-bvae evaluate runs/a` gives one."
    )  # fmt: skip


def test_gaps_of_fewer_data_are_named_so_beside_the_evidence():
    few = make_evaluation(refits={"num_data": 4})
    assert words.key_numbers(few)[2][0] == "Gap between them, of 4 of the data"
    assert words.key_numbers(make_evaluation())[2][0] == "Gap between them"


@pytest.mark.parametrize(
    ("config", "dataset", "name"),
    [
        ({"data.path": "/data/a/birds.csv"}, "file", "birds.csv"),
        ({"data.path": "none"}, "h5ad", "h5ad"),
        ({"data.path": "/data/shapes.npz"}, "dsprites", "dsprites"),
    ],
)
def test_the_page_is_named_after_the_file_of_ones_own_data(config, dataset, name):
    assert words.data_name(config, dataset) == name
