"""A score with its interval and its parts, and the resampling that the interval comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import BOOTSTRAP_STREAM, stream_seed

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Score:
    """A score of a representation between 0 and 1, with how sure it is.

    Attributes:
        name: The name of the metric.
        value: The score.
        standard_error: Over data that are drawn again; None where no bootstrap was asked for.
        parts: A row for each factor (or latent) that the score is made of: ``value`` and
            ``standard_error``.
        num_data: N, the data behind it.
    """

    name: str
    value: float
    standard_error: float | None
    parts: pd.DataFrame
    num_data: int

    @classmethod
    def of(
        cls, name: str, values: Array, errors: Array | None, parts: Sequence[str], num_data: int
    ) -> Score:
        """Return the score of ``values``, then those of its parts, with errors if there are any."""
        import pandas as pd

        columns = {"value": values[1:], "standard_error": np.nan if errors is None else errors[1:]}
        table = pd.DataFrame(columns, index=list(parts))
        return cls(
            name, float(values[0]), None if errors is None else float(errors[0]), table, num_data
        )

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval, 1.96 standard errors each way, within [0, 1]; None without errors."""
        if self.standard_error is None:
            return None
        return max(0.0, self.value - 1.96 * self.standard_error), min(
            1.0, self.value + 1.96 * self.standard_error
        )

    def to_dict(self) -> dict[str, Any]:
        """Return value, error, interval and the values of the parts for a JSON file."""
        parts = {str(name): float(value) for name, value in self.parts["value"].items()}
        interval = None if self.interval is None else list(self.interval)
        return {
            "value": self.value,
            "standard_error": self.standard_error,
            "interval": interval,
            "parts": parts,
        }

    def __repr__(self) -> str:
        return f"Score({self})"

    def __str__(self) -> str:
        sure = "" if self.interval is None else f" [{self.interval[0]:.3f}, {self.interval[1]:.3f}]"
        parts = ", ".join(f"{name} {value:.3f}" for name, value in self.parts["value"].items())
        return f"{self.name} {self.value:.3f}{sure} over {self.num_data} data: {parts}"


def generator(seed: int, *path: int) -> np.random.Generator:
    """Return NumPy's generator at the start of a stream below a seed."""
    return np.random.default_rng(stream_seed(seed, *path))


def bootstrap_errors(
    statistic: Callable[[Array], Array], num_data: int, num_bootstrap: int, seed: int
) -> Array | None:
    r"""Return the standard deviation of a statistic over data that are drawn again.

    Data drawn with replacement are the same data, each weighted by how often it was drawn. So
    nothing is copied, and whatever does not depend on the weights, such as the cells that data fall
    into, is found once (Efron 1979).

    Args:
        statistic: From weights ``(N,)``, whole numbers that add up to N, to values ``(P,)``.
        num_data: N.
        num_bootstrap: How often the data are drawn again; 0 for no errors.
        seed: Seed of the draws.

    Returns:
        Shape ``(P,)``, or None.

    Raises:
        InputError: if ``num_bootstrap`` is 1, negative or no integer.
    """
    check_bootstrap(num_bootstrap)
    if not num_bootstrap:
        return None
    rng = generator(seed, BOOTSTRAP_STREAM)
    draws = (
        np.bincount(rng.integers(num_data, size=num_data), minlength=num_data)
        for _ in range(num_bootstrap)
    )
    spread: Array = np.stack([statistic(weights.astype(float)) for weights in draws]).std(0, ddof=1)
    return spread


def check_bootstrap(num_bootstrap: int) -> None:
    """Raise unless a spread can be had from so many draws, or none is asked for.

    Raises:
        InputError: with the value.
    """
    if not isinstance(num_bootstrap, int) or num_bootstrap < 0 or num_bootstrap == 1:
        raise InputError(
            f"'num_bootstrap' must be 0, for no interval, or at least 2, got {num_bootstrap!r}"
        )
