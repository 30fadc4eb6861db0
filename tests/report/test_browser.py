"""The page in a browser: no error, no request, pixels of the decoder, layout, accessibility."""

import shutil

import pytest
import torch

from pyro_bvae.report import rendering
from pyro_bvae.report.page import render
from pyro_bvae.report.rendering import Page, Table
from tests.report.pages import ATTACK, LATENTS, images, members, run_of, vae_of
from tests.report.test_report import make_evaluation

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]
MEMBERS = members()
WIDTHS, SCHEMES = (390, 768, 1280), ("light", "dark")


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Draw pictures with few dots."""
    monkeypatch.setattr(rendering, "DPI", 30)


@pytest.fixture(scope="module")
def browser():
    """Start one browser for all tests."""
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Visit:
    """A page in a tab, with all that it asked for and complained of."""

    def __init__(self, browser, path, **options):
        self.seen, self.own, self.tab = [], path.as_uri(), browser.new_page(**options)
        self.tab.on("console", lambda message: self.seen.append(message.text))
        self.tab.on("pageerror", lambda error: self.seen.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.seen.append(f"dialog {dialog.message}"))
        self.tab.on("request", self.count)
        self.tab.goto(self.own)
        self.tab.wait_for_function("document.querySelectorAll('.chart svg > *').length > 0")

    def count(self, request):
        """Note requests for anything but the page and what it holds."""
        if request.url != self.own and request.url.partition(":")[0] not in ("data", "blob"):
            self.seen.append(f"request {request.url[:200]}")

    def levels(self, name):
        """Return the grey levels of a canvas, (H, W, 3)."""
        script = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
        canvas = self.tab.locator(name)
        height, width = (int(canvas.get_attribute(side)) for side in ("height", "width"))
        return torch.tensor(canvas.evaluate(script)).reshape(height, width, 4)[..., :3]

    def slide(self, latent, value):
        script = "(s, v) => { s.value = v; s.dispatchEvent(new Event('input')); }"
        self.tab.locator(f"#z{latent}").evaluate(script, value)

    def close(self):
        assert self.seen == []
        self.tab.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Write the page of a member when it is asked for."""
    folder, known = tmp_path_factory.mktemp("pages"), {}

    def path_of(name):
        if name not in known:
            known[name] = folder / f"report-{name}.html"
            verdict = "amortization is 61% of the gap: `pyro-bvae improve RUN`. More of it."
            units = {"count": 3, "active": [True] * 3, "variances": [1.0, 0.5, 0.2]}
            run = run_of(*MEMBERS[name])
            evaluation = make_evaluation(verdict=verdict, active_units=units)
            known[name].write_text(render(run, evaluation), encoding="utf-8")
        return known[name]

    return path_of


def pixels(vae, z, shape):
    """Return the decoder's own levels, (H, W, 3)."""
    levels = (255 * vae.decode(z)[0].clamp(0, 1)).reshape(shape).permute(1, 2, 0)
    return levels.expand(-1, -1, 3)


@pytest.mark.parametrize("name", ["mlp", "convolutional"])
def test_a_slider_and_a_click_show_the_pixels_of_the_decoder(browser, pages, name):
    vae, data = MEMBERS[name]
    visit = Visit(browser, pages(name))
    codes = vae.encode(data.x)
    z = codes[:1].clone()
    assert (visit.levels("#decoded") - pixels(vae, z, data.image_shape)).abs().max() <= 1
    assert (visit.levels("#datum") - pixels_of(data, 0)).abs().max() <= 1
    before = visit.levels("#decoded")
    for latent in range(LATENTS):
        z[0, latent] = float(codes[:, latent].max())
        visit.slide(latent, float(z[0, latent]))
    assert (visit.levels("#decoded") - pixels(vae, z, data.image_shape)).abs().max() <= 1
    assert (visit.levels("#decoded") - before).abs().max() > 3
    visit.tab.locator('#scatter [data-row="7"]').dispatch_event("click")
    assert (visit.levels("#decoded") - pixels(vae, codes[7:8], data.image_shape)).abs().max() <= 1
    assert (visit.levels("#datum") - pixels_of(data, 7)).abs().max() <= 1
    assert "test datum 7" in visit.tab.locator("#about").inner_text()
    visit.close()


def pixels_of(data, row):
    levels = (255 * data.x[row]).reshape(data.image_shape).permute(1, 2, 0)
    return levels.expand(-1, -1, 3)


@pytest.mark.parametrize("name", ["residual", "grey", "tanh", "counts", "zero-inflated", "table"])
def test_the_page_decodes_as_the_model_does(browser, pages, name):
    vae, data = MEMBERS[name]
    visit = Visit(browser, pages(name))
    z = torch.tensor([[0.3, -0.7, 1.1]])
    made = torch.tensor(visit.tab.evaluate("[...decode([0.3, -0.7, 1.1], 3)]"))
    wanted = vae.decode(z, None if data.context is None else data[3:4].context)[0]
    spread = 1.0 if data.image_shape else torch.maximum(data.x.amax(0) - data.x.amin(0), wanted)
    assert ((made - wanted).abs() / spread).max() <= 1 / 255
    visit.close()


def test_draws_interpolation_search_and_order(browser, pages):
    visit = Visit(browser, pages("counts"))
    tab = visit.tab
    assert tab.locator("#profile g[data-tip]").count() == 24
    tab.locator("#search").fill("gene1")
    assert tab.locator("#profile g[data-tip]").count() == 11
    tab.locator("#search").fill("onerror")
    assert ATTACK in tab.locator("#profile g[data-tip]").get_attribute("data-tip")
    start = tab.evaluate("[...state.z]")
    tab.locator("#from").click()
    tab.locator("#row").fill("5")
    tab.locator("#row").dispatch_event("change")
    end = tab.evaluate("[...state.z]")
    tab.locator("#to").click()
    tab.locator("#share").evaluate("s => { s.value = 0.25; s.dispatchEvent(new Event('input')); }")
    between = [0.75 * a + 0.25 * b for a, b in zip(start, end, strict=True)]
    assert tab.evaluate("[...state.z]") == pytest.approx(between, abs=1e-5)
    tab.locator("#draw").click()
    assert "draw from the prior" in tab.locator("#about").inner_text()
    with tab.expect_download() as download:
        tab.locator("#scatter button.data").click()
    lines = download.value.path().read_text(encoding="utf-8").splitlines()
    assert len(lines) == 41 and lines[0].startswith(
        "datum,label,evidence,Pareto k,size factor,covariate 0,covariate 1,z1,"
    )
    visit.close()


@pytest.mark.parametrize("name", ["mlp", "counts"])
def test_layout_contrast_and_names_at_three_widths(browser, pages, name):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed"
    )
    visit = Visit(browser, pages(name))
    parts = "'.verdict, .key, .opening svg, .opening img'"
    ends = f"[...document.querySelectorAll({parts})].map(e => e.getBoundingClientRect().bottom)"
    for scheme in SCHEMES:
        visit.tab.emulate_media(color_scheme=scheme)
        for width in WIDTHS:
            visit.tab.set_viewport_size({"width": width, "height": 800})
            visit.tab.wait_for_timeout(150)
            assert visit.tab.evaluate("document.documentElement.scrollWidth") <= width
        assert max(visit.tab.evaluate(ends)) <= 800  # the first screen
        found = axe.Axe().run(visit.tab).response["violations"]
        serious = [each for each in found if each["impact"] in ("serious", "critical")]
        assert not serious, [(each["id"], each["nodes"][0]["html"][:200]) for each in serious]
    assert paper(visit) <= 6
    visit.close()


def paper(visit):
    """Return how many pages of A4 a page takes."""
    sides = dict.fromkeys(("top", "bottom", "left", "right"), "1cm")
    return visit.tab.pdf(format="A4", margin=sides).count(b"/Type /Page\n")


def test_more_than_a_dozen_classes_are_told_apart(browser, tmp_path):
    data = images(classes=30)
    run = run_of(vae_of(MEMBERS["mlp"][0].decoder.network, MEMBERS["mlp"][0].decoder.likelihood, 16), data)  # fmt: skip
    path = tmp_path / "report.html"
    path.write_text(render(run, make_evaluation()), encoding="utf-8")
    visit = Visit(browser, path)
    marks = "[...document.querySelectorAll('#scatter .dot')].map(d => d.tagName + (d.getAttribute('d')?.split('L').length ?? '') + getComputedStyle(d).fill)"
    assert len(set(visit.tab.evaluate(marks))) == 30
    assert visit.tab.locator("#legend button").count() == 30
    assert visit.tab.locator("#legend button").first.inner_text() == ATTACK
    visit.tab.locator("#legend button").nth(2).click()
    assert visit.tab.locator("#scatter .dot").count() == 2
    visit.close()


def test_a_decoder_that_the_page_cannot_run_is_shown_from_sheets(browser, tmp_path):
    unknown = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Softplus(beta=2.0))
    vae, data = vae_of(unknown, MEMBERS["mlp"][0].decoder.likelihood, 16), images()
    path = tmp_path / "report.html"
    path.write_text(render(run_of(vae, data), make_evaluation(active_units=None)), encoding="utf-8")
    visit = Visit(browser, path)
    codes = vae.encode(data.x)
    latent = visit.tab.evaluate("live.latents[0].index")
    visit.slide(latent, 8)
    z = codes[:1].clone()
    z[0, latent] = visit.tab.evaluate("live.latents[0].high")
    assert (visit.levels("#decoded") - pixels(vae, z, data.image_shape)).abs().max() <= 1
    visit.tab.locator('#scatter [data-row="7"]').dispatch_event("click")
    assert (visit.levels("#decoded") - pixels(vae, codes[7:8], data.image_shape)).abs().max() <= 1
    visit.close()


def test_a_table_sorts_by_its_numbers(browser, tmp_path):
    rows = [("a", "10.5 ± 0.1", "1,000"), ("b", "−2.0 ± 0.1", "20"), ("c", "3.0", "none")]
    path = tmp_path / "report.html"
    page = Page("t", "l", "v.", parts=[Table("Runs", ("run", "value", "n"), rows)])
    path.write_text(page.render(), encoding="utf-8")
    tab = browser.new_page()
    tab.goto(path.as_uri())
    names = lambda: tab.locator("tbody th").all_inner_texts()  # noqa: E731
    tab.locator("thead button").nth(1).click()
    assert names() == ["b", "c", "a"]
    tab.locator("thead button").nth(1).click()
    assert names() == ["a", "c", "b"]
    tab.locator("thead button").nth(2).click()
    assert names() == ["b", "a", "c"]
    tab.close()
