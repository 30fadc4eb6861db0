"""The site of the documentation: `make docs` writes it to docs/_build/html."""

import re
from importlib import import_module
from pathlib import Path

project = "pyro_bvae"
copyright = "the pyro_bvae authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
html_theme = "furo"
html_title = "pyro_bvae"
exclude_patterns = ["_build"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"

_DOCS = Path(__file__).parent
_RESULTS = _DOCS.parent / "analysis" / "results"
_REPOSITORY = ("analysis", "examples", "tests", "pyro_bvae", "README", "CONTRIBUTING", "CITATION")
# The rooms whose names a person imports, in the order of the reference.
_ROOMS = (
    "pyro_bvae", "priors", "likelihoods", "posteriors", "networks", "datasets", "training",
    "evaluation", "latents", "plots", "runs", "oracle",
)  # fmt: skip


def _reference() -> None:
    """Write a page of the reference for each room, from the names that it shows."""
    (_DOCS / "reference").mkdir(exist_ok=True)
    for room in _ROOMS:
        name = room if room == "pyro_bvae" else f"pyro_bvae.{room}"
        module = import_module(name)
        shown = [each for each in getattr(module, "__all__", dir(module)) if each[0] != "_"]
        lines = [f"# {name}", "", (module.__doc__ or "").strip(), ""]
        for each in shown:
            value = getattr(module, each, None)
            kind = "autoclass" if isinstance(value, type) else "autofunction"
            if callable(value) and getattr(value, "__module__", "").startswith("pyro_bvae"):
                options = "\n:members:\n:noindex:" if kind == "autoclass" else "\n:noindex:"
                lines += [f"```{{eval-rst}}\n.. {kind}:: {name}.{each}"]
                lines += [f"   {option}" for option in options.split() if option] + ["```", ""]
        text = "\n".join(lines)
        path = _DOCS / "reference" / f"{room}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _gallery() -> None:
    """Write a page of all figures of the studies, each with its script."""
    lines = ["# Gallery", "", "Every figure of the studies. The script above each makes it.", ""]
    for figure in sorted(_RESULTS.glob("*/*.png")):
        script = _RESULTS.parent / f"{figure.parent.name}.py"
        if script.exists():
            lines += [f"## {figure.parent.name.replace('_', ' ')}: {figure.stem}", ""]
            lines += [f"`python analysis/{script.name}`", ""]
            lines += [
                f"![{figure.parent.name}](../analysis/results/{figure.parent.name}/{figure.name})",
                "",
            ]
    (_DOCS / "gallery.md").write_text("\n".join(lines), encoding="utf-8")


def _link(match: re.Match[str]) -> str:
    """Turn a link to a file of the repository, which the site has not, into its name."""
    return f"{match[1]} (`{match[2]}`)"


def _leave_links(app: object, name: str, source: list[str]) -> None:
    files = "|".join(_REPOSITORY)
    source[0] = re.sub(rf"(?<!!)\[([^\]]+)\]\((?:\.\./)+((?:{files})[^)]*)\)", _link, source[0])


def setup(app: object) -> None:
    """Write the reference and the gallery, and leave links that lead out of the site."""
    _reference()
    _gallery()
    app.connect("source-read", _leave_links)  # type: ignore[attr-defined]
