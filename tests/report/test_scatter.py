"""The scatter and the charts of a page in a browser: colours, drags, a choice of data, zoom."""

import csv

import pytest
import torch

from tests.report.test_browser import MEMBERS, Visit, browser, coarse, pages, pixels, pytestmark

__all__ = ["browser", "coarse", "pages", "pytestmark"]  # fixtures and marks of the pages


def centre_of(visit, row):
    box = visit.tab.locator(f'#scatter [data-row="{row}"]').bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(visit, *points):
    mouse = visit.tab.mouse
    mouse.move(*points[0])
    mouse.down()
    for point in points[1:]:
        mouse.move(*point, steps=3)
    mouse.up()


def test_a_drag_from_datum_to_datum_decodes_the_way_between_them(browser, pages):
    vae, data = MEMBERS["mlp"]
    visit = Visit(browser, pages("mlp"))
    visit.tab.locator("#scatter > svg").scroll_into_view_if_needed()
    codes = vae.encode(data.x)
    far = (codes - codes[3]).norm(dim=1).argmax().item()
    drag(visit, centre_of(visit, 3), centre_of(visit, far))
    middle = (codes[3:4] + codes[far : far + 1]) / 2
    wanted = pixels(vae, middle, data.image_shape)
    assert (visit.levels("#decoded") - wanted).abs().max() <= 1
    assert "50% of the way" in visit.tab.locator("#about").inner_text()
    assert visit.tab.locator("#strip canvas").count() == 7
    visit.tab.locator("#share").evaluate(
        "s => { s.value = 1; s.dispatchEvent(new Event('input')); }"
    )
    end = pixels(vae, codes[far : far + 1], data.image_shape)
    assert (visit.levels("#decoded") - end).abs().max() <= 1
    assert visit.tab.locator("#cross .way").count() == 1
    visit.tab.locator('#scatter [data-row="3"]').dispatch_event("click")
    assert visit.tab.locator("#cross .way").count() == 0
    visit.close()


def test_a_drag_around_data_lists_them_with_their_names_and_gives_them_as_csv(browser, pages):
    visit = Visit(browser, pages("counts"))
    tab = visit.tab
    tab.locator("#scatter > svg").scroll_into_view_if_needed()
    box = tab.locator("#scatter > svg").bounding_box()
    spots = tab.evaluate("spots.map(([x, y, i]) => [x / scatter.drawn, y / scatter.drawn, i])")
    middle = sum(x for x, _, _ in spots) / len(spots)
    left, right, top = (box["x"] + box["width"] * s for s in (0.01, middle, 0))
    top, bottom = box["y"] + 3, box["y"] + box["height"] - 3
    drag(visit, (left, top), (right, top), (right, bottom), (left, bottom))
    wanted = {i for x, _, i in spots if x < middle}
    assert 0 < len(wanted) < 40
    assert tab.evaluate("[...chosen]") == sorted(wanted)
    assert tab.locator("#count").inner_text() == f"{len(wanted)} of 40 data chosen"
    assert tab.locator("#scatter .chosen").count() == len(wanted)
    heads = tab.locator("#chosen thead th").all_inner_texts()
    assert heads == ["datum", "label", "evidence", "Pareto k", "size factor", "covariate 0", "covariate 1"]  # fmt: skip
    with tab.expect_download() as download:
        tab.locator("#chosen-csv").click()
    rows = list(csv.DictReader(download.value.path().read_text(encoding="utf-8").splitlines()))
    assert [int(row["datum"]) for row in rows] == sorted(wanted) and "z0" in rows[0]
    tab.locator("#chosen tbody button").last.click()
    assert f"test datum {max(wanted)}" in tab.locator("#about").inner_text()
    tab.locator("#none").click()
    assert tab.locator("#chosen").inner_text() == "" and tab.evaluate("chosen.size") == 0
    visit.close()


def test_the_colours_are_all_columns_latents_and_features(browser, pages):
    visit = Visit(browser, pages("table"))
    names = visit.tab.locator("#colour option").all_inner_texts()
    assert names == ["nothing", "z1", "z2", "z0", "height", "width", "mass", "share", "age"]
    visit.tab.select_option("#colour", label="mass")
    fills = visit.tab.evaluate(
        "spots.map(([, , i]) => [colours[at('colour').value].of(i), document.querySelector(`#scatter [data-row=\"${i}\"]`).getAttribute('style')])"
    )
    shares = [
        int(style.rpartition(" ")[2].rstrip("%)")) for _, style in sorted(fills, key=lambda f: f[0])
    ]
    assert shares == sorted(shares) and (shares[0], shares[-1]) == (0, 100)
    values = torch.tensor([value for value, _ in fills])
    assert (values - MEMBERS["table"][1].x[:, 2]).abs().max() < 1e-3
    tip = visit.tab.locator('#scatter [data-row="4"]').get_attribute("data-tip")
    assert "mass" in tip
    assert "mass, by rank" in visit.tab.locator("#legend").inner_text()
    visit.close()


def test_the_embedding_is_a_choice_of_both_axes_and_says_its_making(browser, pages):
    visit = Visit(browser, pages("mlp"))
    visit.tab.select_option("#across", label="t-SNE 2")
    assert visit.tab.locator("#up").evaluate("s => s.selectedOptions[0].text") == "t-SNE 1"
    assert "t-SNE of the codes (scikit-learn" in visit.tab.locator("#legend").inner_text()
    visit.tab.select_option("#up", label="principal component 1")
    assert (
        visit.tab.locator("#across").evaluate("s => s.selectedOptions[0].text")
        == "principal component 2"
    )
    first, second = visit.tab.evaluate("[0, 1].map(k => places[L + k].here())")
    codes = MEMBERS["mlp"][0].encode(MEMBERS["mlp"][1].x)
    length = (codes[0] - codes.mean(0)).norm()
    assert first**2 + second**2 <= length**2 * (1 + 1e-4)
    visit.close()


def test_the_chart_zooms_by_buttons_keys_wheel_and_a_drag_and_comes_back(browser, pages):
    visit = Visit(browser, pages("mlp"))
    tab = visit.tab
    view = "() => scatter.map.box.slice(0, 3).map(p => scatter.map.x.back(p)).filter((v, i) => i !== 1)"
    low, high = tab.evaluate(view)
    tab.locator("#scatter .zoom button").first.click()
    near = tab.evaluate(view)
    assert near[1] - near[0] == pytest.approx(0.7 * (high - low))
    assert sum(near) == pytest.approx(low + high)
    tab.locator("#scatter > svg").focus()
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate(view)[0] == pytest.approx(near[0] + 0.1 * (near[1] - near[0]))
    tab.locator("#seen").click()
    assert 0 < tab.evaluate("chosen.size") < 40  # those in view
    tab.locator("#scatter > svg").focus()
    tab.keyboard.press("0")
    assert tab.evaluate(view) == pytest.approx([low, high])
    chart = tab.locator(".chart", has=tab.locator(".curve")).last
    chart.scroll_into_view_if_needed()
    name = chart.get_attribute("id")
    x, y, w, h = chart.locator("svg").bounding_box().values()
    drag(visit, (x + 0.3 * w, y + 0.3 * h), (x + 0.6 * w, y + 0.6 * h))
    assert tab.evaluate(f"at('{name}').view[0]")[0] > 1  # between epochs 1 and 2
    tab.mouse.move(x + w / 2, y + h / 2)
    before = tab.evaluate(f"at('{name}').view[0]")
    tab.keyboard.down("Control")
    tab.mouse.wheel(0, -100)
    tab.keyboard.up("Control")
    tab.wait_for_function(f"at('{name}').view[0][1] < {before[1]}")
    chart.locator(".zoom button").last.click()
    assert tab.evaluate(f"at('{name}').view") is None
    visit.close()


def test_a_pixel_tells_its_value_its_spread_and_its_datum(browser, pages):
    vae, data = MEMBERS["mlp"]
    visit = Visit(browser, pages("mlp"))
    visit.tab.locator("#decoded").scroll_into_view_if_needed()
    x, y, w, h = visit.tab.locator("#decoded").bounding_box().values()
    visit.tab.mouse.move(x + w * 1.5 / 4, y + h * 2.5 / 4)  # row 2, column 1
    tip = visit.tab.locator("#tip").inner_text().splitlines()
    value = float(tip[1].split()[1])
    assert tip[0] == "row 2, column 1" and "over draws from the guide" in tip[1]
    assert value == pytest.approx(float(vae.reconstruct(data.x[:1])[0, 9]), abs=2 / 255)
    assert float(tip[1].split()[3]) > 0
    assert float(tip[2].split()[1]) == pytest.approx(float(data.x[0, 9]), abs=1 / 255)
    visit.slide(0, 0.0)
    visit.tab.mouse.move(x + w * 1.6 / 4, y + h * 2.5 / 4)
    assert "±" not in visit.tab.locator("#tip").inner_text()  # of no datum
    visit.close()


def test_the_profile_has_errors_and_units_of_each_feature(browser, pages):
    visit = Visit(browser, pages("table"))
    assert visit.tab.locator("#profile g[data-tip]").count() == 5
    assert visit.tab.locator("#profile g[data-tip] .error").count() == 5
    tip = visit.tab.locator("#profile g[data-tip]").first.get_attribute("data-tip")
    assert "± over draws" in tip and "standard deviation of the data" in tip
    assert "standard deviations from the mean" in visit.tab.locator("#profile").inner_text()
    visit.close()
