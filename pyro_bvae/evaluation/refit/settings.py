"""How local refits run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import public


@public
@dataclass(frozen=True)
class RefitSettings:
    """How local refits run.

    Attributes:
        num_particles: Particles behind each gradient.
        steps_per_round: Steps between two looks at the objective; the step size is lowered after
            each round.
        max_rounds: Rounds after which a refit ends without having converged.
        learning_rate: Step size of Adam in the first round, in units of the guide's scales.
        tolerance: A round that improves the mean objective by less, in nats, is a plateau.
        decay: Factor on the step size after a plateau.
        num_plateaus: A refit has converged after so many plateaus, each at a smaller step size.
        check_particles: Particles behind each look, the same ones every time.
        certified_gain: A datum's refit is certified when another gradient step is sure, by two
            errors, to gain less: this many nats of KL, β times that of the objective.
        num_starts: Places beside the encoder's answer from which the posterior's modes are searched
            for: the answer mirrored in the prior, another datum's, draws of the prior; 0 for the
            encoder's answer alone.
        local_guide: For guides whose sites have no local version or depend on each other: called
            with the arguments of a block of data, returns a guide module with free parameters for
            them.
        families: Richer families that :func:`~pyro_bvae.inference_gaps` fits to each datum too, in
            this order: ``"full-rank"``, a normal over all latents of a datum, and ``"flow"``,
            which bends it; each would leave a part of the approximation gap.
    """

    num_particles: int = 16
    steps_per_round: int = 50
    max_rounds: int = 40
    learning_rate: float = 0.1
    tolerance: float = 2e-3
    decay: float = 0.4
    num_plateaus: int = 5
    check_particles: int = 128
    certified_gain: float = 0.01
    num_starts: int = 6
    local_guide: Callable[..., Any] | None = None
    families: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        least = {
            "num_particles": 1,
            "steps_per_round": 1,
            "max_rounds": 1,
            "num_plateaus": 1,
            "check_particles": 2,
        }
        least["num_starts"] = 0
        for name, smallest in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
                raise InputError(f"'{name}' must be an integer from {smallest}, got {value!r}")
        for name in ("learning_rate", "certified_gain"):
            if not getattr(self, name) > 0:
                raise InputError(f"'{name}' must be positive, got {getattr(self, name)}")
        if not 0 < self.decay <= 1:
            raise InputError(f"'decay' must be above 0 and at most 1, got {self.decay}")
