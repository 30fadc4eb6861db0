"""The house, measured from its code: ``python -m tests.house [FOLDER]`` prints rooms, arrows, circles and habits.

A room is a file or folder directly below the package. Every import counts, those for type checkers too; a name that
a door hands on is an import of the door.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

# From the ground up; rooms of one line know nothing of each other, but for what `WITHIN` names.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("compilation",),
    ("distributions", "networks", "datasets", "program"),
    ("priors", "likelihoods", "posteriors"),
    ("vae",),
    ("oracle",),
    ("evaluation",),
    ("training",),
    ("plots",),
    ("runs",),
    ("latents",),
    ("sklearn",),
    ("report",),
    ("cli",),
)
ROOT_FILES = {"__init__", "__main__", "vae", "oracle"}


class Import(NamedTuple):
    """An import of one module of the package by another, with the names that are taken from it."""

    importer: str
    imported: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class House:
    """A package as its source shows it.

    Args:
        root: The folder of the package.
    """

    root: Path

    @cached_property
    def files(self) -> dict[str, Path]:
        """The files by the names of their modules below the package.

        A door has the name of its folder.
        """
        named = {}
        for path in sorted(self.root.rglob("*.py")):
            parts = path.relative_to(self.root).with_suffix("").parts
            named[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = (
                path
            )
        return named

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        """The syntax trees of the files."""
        return {
            name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.files.items()
        }

    @cached_property
    def imports(self) -> list[Import]:
        """All imports of the package's modules by each other."""
        package, taken = self.root.name, []
        for importer, tree in self.trees.items():
            for node in ast.walk(tree):
                if (
                    isinstance(node, ast.ImportFrom)
                    and (node.module or "").split(".")[0] == package
                ):
                    module = (node.module or "").partition(".")[2]
                    for alias in node.names:
                        inner = f"{module}.{alias.name}".lstrip(".")
                        is_module = inner in self.files
                        taken.append(
                            Import(importer, inner if is_module else module, (alias.name,))
                        )
                elif isinstance(node, ast.Import):
                    names = [
                        alias.name for alias in node.names if alias.name.startswith(f"{package}.")
                    ]
                    taken += [Import(importer, name.partition(".")[2], ()) for name in names]
        return [
            each
            for each in taken
            if each.imported and each.importer not in ("__init__", "__main__")
        ]

    @property
    def rooms(self) -> set[str]:
        """Files and folders directly below the package."""
        return {name.split(".")[0] for name in self.files} - {"__init__", "__main__"}

    @property
    def arrows(self) -> set[tuple[str, str]]:
        """Pairs of rooms of which one imports the other."""
        pairs = {
            (each.importer.split(".")[0], each.imported.split(".")[0]) for each in self.imports
        }
        return {pair for pair in pairs if pair[0] != pair[1]}

    def arrows_up(self) -> set[tuple[str, str]]:
        """Arrows between rooms that do not lead to a floor below."""
        floor = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
        return {pair for pair in self.arrows if floor.get(pair[1], 99) >= floor.get(pair[0], -1)}

    def circles(self) -> list[set[str]]:
        """Modules that import each other round a circle, doors left out: a door lists its room."""
        edges: dict[str, set[str]] = {name: set() for name in self.files}
        for each in self.imports:
            if not each.importer.startswith(f"{each.imported}."):
                edges[each.importer].add(each.imported)
        doors = {name for name, path in self.files.items() if path.name == "__init__.py"}
        return strongly_connected({k: v - doors for k, v in edges.items() if k not in doors})

    def private_imports(self) -> list[Import]:
        """Imports of private names from another file.

        A private module's public names are no private names.
        """
        return [each for each in self.imports if any(is_private(name) for name in each.names)]

    def shadowed(self) -> list[str]:
        """Modules that bear the name of a function or class that their package, or one above, hands
        out."""
        wrong = []
        for name in self.files:
            *above, own = name.split(".")
            doors = [".".join(above[:depth]) or "__init__" for depth in range(len(above) + 1)]
            if above and any(own in self.exports(door) for door in doors):
                wrong.append(name)
        return wrong

    def exports(self, door: str) -> set[str]:
        """Names that a door hands out and that are no modules of its own, from its source or its
        stub."""
        path = self.files[door]
        stub = path.with_suffix(".pyi")
        tree = ast.parse((stub if stub.exists() else path).read_text(encoding="utf-8"))
        names: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                above = "" if not node.level or door == "__init__" else f"{door}."
                inside = above + (node.module or "").removeprefix(self.root.name).strip(".")
                handed = {alias.name: alias.asname or alias.name for alias in node.names}
                names |= {
                    shown
                    for name, shown in handed.items()
                    if f"{inside}.{name}".strip(".") not in self.files
                }
        return names

    def foreign_private(self) -> list[str]:
        """Private names of other libraries' objects, where they stand."""
        own = {name for _, node in self.functions() for name in [node.name]}
        own |= {
            node.attr
            for tree in self.trees.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "cls")
        }
        own |= {"_replace", "_asdict", "_fields"}  # public ones of named tuples
        return [
            f"{name}:{node.lineno} {node.attr}"
            for name, tree in self.trees.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own
        ]

    def folder_sizes(self) -> dict[str, int]:
        """The number of files of each folder, doors included."""
        folders = {path.parent for path in self.files.values()}
        return {str(f.relative_to(self.root)): len(list(f.glob("*.py"))) for f in folders}

    def functions(self) -> Iterator[tuple[str, ast.FunctionDef]]:
        """Yield every function with the module that it stands in."""
        for name, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef):
                    yield name, node

    def argument_counts(self) -> dict[str, int]:
        """The number of arguments of each function and method, ``self`` left out."""
        counts = {}
        for module, node in self.functions():
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            own = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
            counts[f"{module}.{node.name}"] = max(len(own), counts.get(f"{module}.{node.name}", 0))
        return counts

    def single_use(self) -> tuple[int, int]:
        """How many private functions are named at one place alone, and how many there are."""
        uses: dict[str, int] = {}
        for tree in self.trees.values():
            for node in ast.walk(tree):
                name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", None)
                if isinstance(name, str):
                    uses[name] = uses.get(name, 0) + 1
        private = [node.name for _, node in self.functions() if is_private(node.name)]
        return sum(uses.get(name, 0) == 1 for name in private), len(private)

    def wide_lines(self, width: int = 100) -> list[str]:
        """Lines that are wider than this."""
        texts = {name: path.read_text(encoding="utf-8") for name, path in self.files.items()}
        return [
            f"{name}:{number}"
            for name, text in texts.items()
            for number, line in enumerate(text.splitlines(), 1)
            if len(line) > width
        ]

    def whats(self) -> float:
        """The number of times that a docstring says "what", per 1,000 words of all docstrings."""
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        nodes = [
            node
            for tree in self.trees.values()
            for node in ast.walk(tree)
            if isinstance(node, kinds)
        ]
        words = re.findall(
            r"[^\W\d_]+", " ".join(ast.get_docstring(node) or "" for node in nodes).lower()
        )
        return 1000 * words.count("what") / max(1, len(words))

    def num_lines(self) -> int:
        """The number of lines of all files."""
        return sum(path.read_text(encoding="utf-8").count("\n") for path in self.files.values())


def is_private(name: str) -> bool:
    """Whether a name is private: one underscore before it."""
    return name.startswith("_") and not name.startswith("__")


def strongly_connected(edges: dict[str, set[str]]) -> list[set[str]]:
    """Return the circles of a graph: the sets of more than one node that all reach each other."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        rest = [start]
        while rest:
            for node in edges.get(rest.pop(), set()) - seen:
                seen.add(node)
                rest.append(node)
        return seen

    reach = {node: reached(node) for node in edges}
    circles = {
        frozenset(b for b in reach[a] if a in reach.get(b, set())) for a in edges if a in reach[a]
    }
    return [set(circle) for circle in circles if len(circle) > 1]


def report(house: House) -> str:
    """Return the measurements, a line each."""
    sizes, arguments = house.folder_sizes(), house.argument_counts()
    largest = max(sizes, key=lambda folder: sizes[folder])
    once, private = house.single_use()
    lines = [
        f"rooms: {len(house.rooms)}",
        f"floors: {len(FLOORS)}",
        f"arrows between rooms: {len(house.arrows)}",
        f"arrows up or sideways: {len(house.arrows_up())}",
        f"circles of modules: {len(house.circles())}",
        f"files in the root: {sizes['.']}",
        f"files in the largest folder: {sizes[largest]} ({largest})",
        f"functions with more than 8 arguments: {sum(count > 8 for count in arguments.values())}",
        f"functions with more than 10: "
        f"{sorted(name for name, count in arguments.items() if count > 10)}",
        f"private functions named once: {once} of {private}, {100 * once / max(1, private):.0f}%",
        f"private names across files: {len(house.private_imports())}",
        f"modules with the name of an exported function: {len(house.shadowed())}",
        f"lines over 100 characters: {len(house.wide_lines())}",
        f'"what" per 1,000 docstring words: {house.whats():.1f}',
        f"lines: {house.num_lines():,}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "pyro_bvae"
    print(report(House(given)))
