"""The pictures of a run's page: ``python docs/page_pictures.py RUN/report.html FOLDER``.

It takes Playwright and Chromium, and writes ``page.png``, the first screen, and ``sliders.gif``.
"""

import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

_STEPS, _LATENTS = 8, 3


def frames(tab: Page) -> list[Image.Image]:
    """Return screenshots of the latents while each slider moves to its ends and back."""
    tab.locator("#latents").scroll_into_view_if_needed()
    box = tab.locator(".live").bounding_box()
    assert box is not None
    tab.evaluate("y => window.scrollTo(0, y)", box["y"] + tab.evaluate("scrollY") - 60)
    clip = {"x": box["x"], "y": 56, "width": box["width"], "height": 560}
    pictures = []
    for slider in tab.locator("#sliders input").all()[:_LATENTS]:
        low, high, here = (float(slider.evaluate(f"s => s.{k}")) for k in ("min", "max", "value"))
        for stop in (high, low, here):
            start = float(slider.evaluate("s => s.value"))
            for step in range(1, _STEPS + 1):
                value = start + (stop - start) * step / _STEPS
                slider.evaluate(
                    "(s, v) => { s.value = v; s.dispatchEvent(new Event('input')); }", value
                )
                shot = Image.open(BytesIO(tab.screenshot(clip=clip)))  # type: ignore[arg-type]
                pictures.append(
                    shot.convert("RGB").resize((shot.width * 2 // 3, shot.height * 2 // 3))
                )
    return pictures


def main(page: Path, folder: Path) -> None:
    """Write the two pictures."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        tab.goto(page.resolve().as_uri())
        tab.screenshot(path=folder / "page.png")
        pictures = frames(tab)
        browser.close()
    first = pictures[0].quantize(255, dither=Image.Dither.NONE)
    others = [each.quantize(palette=first, dither=Image.Dither.NONE) for each in pictures[1:]]
    first.save(
        folder / "sliders.gif",
        save_all=True,
        append_images=others,
        duration=90,
        loop=0,
        optimize=True,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
