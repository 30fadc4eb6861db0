"""Pages from templates: figures inside them, one style for all."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from pyro_bvae.report.live.charts import Chart
from pyro_bvae.report.live.content import page_data
from pyro_bvae.report.sections import Section

#: Dots an inch: sharp on dense screens and in print.
DPI = 140


@dataclass(frozen=True)
class Table:
    """A table of a page: the first cell of a row is its name, the others are numbers.

    Attributes:
        title: The heading above it.
        columns: The heads of its columns, that of the names first.
        rows: The rows of cells; with marked rows first where ``first_is_best``.
        caption: The sentences below it, each a term and its meaning.
        first_is_best: Whether the first row is set off.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: Sequence[tuple[str, str]] = ()
    first_is_best: bool = False


@dataclass(frozen=True)
class Page:
    """A page of tables and figures under a verdict.

    Attributes:
        title: The name of the page.
        lead: The sentence below it.
        verdict: The finding, in a sentence.
        limits: What the finding does not say.
        notes: Warnings.
        parts: Tables and figures, in order.
        links: Texts and addresses of other pages beside this one.
    """

    title: str
    lead: str
    verdict: str
    limits: str = ""
    notes: Sequence[str] = ()
    parts: Sequence[Table | Section] = ()
    links: Sequence[tuple[str, str]] = field(default=())

    def render(self) -> str:
        """Return the page as HTML."""
        return rendered("summary.html", page=self, is_table=lambda part: isinstance(part, Table))


def rendered(
    template: str,
    *,
    live: Mapping[str, Any] | None = None,
    scripts: Sequence[str] = ("charts.js",),
    connects: bool = False,
    dpi: int = DPI,
    **values: Any,
) -> str:
    """Return a page from a template of this folder.

    The page has one script, which its policy names by its digest, and may load nothing.

    Args:
        template: The name of the template.
        live: Test data, latents and decoder, for a page that answers.
        scripts: The files of its script.
        connects: Whether it may ask its own server, which a file has not.
        dpi: Dots an inch of its figures.
        **values: The names in the template.
    """
    folder = Path(__file__).parent
    script = "".join((folder / name).read_text(encoding="utf-8") for name in scripts)
    charts: dict[str, Chart] = {}

    def add(chart: Chart) -> str:
        """Return the name under which the page has a chart."""
        name = f"chart-{len(charts) + 1}"
        charts[name] = chart
        return name

    digest = b64encode(sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        _environment(dpi)
        .get_template(template)
        .render(
            **values,
            live=live,
            connects=connects,
            add=add,
            digest=digest,
            script=Markup(script),
            data=lambda: Markup(page_data(charts, live)),  # at the end, when all charts are known
        )
    )


def _environment(dpi: int) -> Environment:
    """Return the templates of this folder, whose figures have so many dots an inch."""
    result = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True,
    )  # fmt: skip
    result.filters.update(png=lambda figure: _png(figure, dpi), pixels=_pixels, code=_code)
    return result


def _code(text: str) -> Markup:
    """Return a text, escaped, whose commands between backticks are set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _png(figure: Figure, dpi: int) -> str:
    """Return the figure as a data URI."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode("ascii")


def _pixels(figure: Figure) -> int:
    return round(figure.get_figwidth() * 80)
