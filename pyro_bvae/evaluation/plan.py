"""How much is measured: a budget of time, and the counts that it is turned into."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.bounds import quoted
from pyro_bvae.core.inputs.files import check_text
from pyro_bvae.core.inputs.public import public

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
# The counts of a plan that may be 0.
_OPTIONAL = ("gap_samples", "annealing")


@public
@dataclass(frozen=True)
class Budget:
    """Time for an evaluation, and the counts that hold whatever it takes.

    Attributes:
        seconds: Seconds, positive and finite; a measurement that has begun is finished.
        num_data: How many data have their evidence, bound and KL measured; None for as many as the
            time allows.
        num_samples: Particles for each datum; None for a number that its error asks for.
        gaps: Whether gaps are measured.
    """

    seconds: float = 60.0
    num_data: int | None = None
    num_samples: int | None = None
    gaps: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise InputError(f"'seconds' must be positive and finite, got {self.seconds}")
        for name in ("num_data", "num_samples"):
            count = getattr(self, name)
            if count is not None and not (type(count) is int and count > 0):
                raise InputError(f"'{name}' must be a positive integer or None, got {count!r}")


def seconds_of(text: str) -> float:
    """Return the seconds of a time such as ``60s``, ``5m``, ``2h`` or ``90``.

    Raises:
        InputError: for another text.
    """
    number = re.fullmatch(r"(\d+(?:\.\d*)?)([smh]?)", text.strip())
    seconds = float(number[1]) * _UNITS[number[2]] if number else 0.0
    if not 0 < seconds < math.inf:
        raise InputError(f"'budget' must be a time such as 60s, 5m or 2h, got {quoted(text)}")
    return seconds


@public
@dataclass(frozen=True)
class Plan:
    """The counts of an evaluation: they and its seed give the same numbers again.

    Attributes:
        num_data: Data whose evidence, bound and KL are measured, drawn by the seed.
        num_samples: Particles for each of them.
        gap_blocks: How many of them have their gaps measured, block by block, from the first on;
            none without gaps. Where these are all of the data, the evidence is that of their
            refits.
        gap_samples: Particles for each datum behind the gaps.
        annealing: Decoder evaluations that annealing may take for data whose evidence cannot be
            trusted.
    """

    num_data: int
    num_samples: int
    gap_blocks: tuple[int, ...] = ()
    gap_samples: int = 0
    annealing: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            counts = value if isinstance(value, tuple) else (value,)
            least = int(field.name not in _OPTIONAL)
            if not all(type(count) is int and count >= least for count in counts):
                kind = "positive" if least else "non-negative"
                entries = "integers, each" if isinstance(value, tuple) else "an integer,"
                raise InputError(f"'{field.name}' must be {entries} {kind}, got {value!r}")
        if self.num_gaps > self.num_data:
            raise InputError(
                f"'gap_blocks' must be of at most the {self.num_data} data that are measured, got"
                f" {self.num_gaps}"
            )
        if self.gap_blocks and not self.gap_samples:
            raise InputError("'gap_samples' must be positive where there are gaps, got 0")

    @property
    def num_gaps(self) -> int:
        """How many data have their gaps measured."""
        return sum(self.gap_blocks)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts for a JSON file."""
        return {**asdict(self), "gap_blocks": list(self.gap_blocks)}

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Plan:
        """Return the plan of a JSON file: its counts, or an ``evaluation.json`` that has them.

        Raises:
            InputError: if the file holds no plan.
        """
        place = Path(path)
        if not place.is_file():
            raise InputError(f"there is no file {place} with a plan")
        check_text(place)
        try:
            content = json.loads(place.read_bytes().decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place} is no JSON: {error}") from None
        counts = content.get("plan", content) if isinstance(content, dict) else None
        names = {field.name for field in fields(cls)}
        if not isinstance(counts, dict) or set(counts) != names:
            raise InputError(
                f"{place} holds no plan: it must have {', '.join(sorted(names))}, or be the"
                " evaluation.json of an evaluation within a budget"
            )
        blocks = counts["gap_blocks"]
        blocks = tuple(blocks) if isinstance(blocks, list) else blocks
        return cls(**{**counts, "gap_blocks": blocks})
