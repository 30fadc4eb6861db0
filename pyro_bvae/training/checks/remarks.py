"""The record of the training checklist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyro_bvae.core.findings import Finding, Severity


@dataclass(frozen=True)
class Remark(Finding):
    """A finding about a training: an error where the training is of no use with it.

    Attributes:
        when: ``before``, ``during`` or ``after`` training.
    """

    when: str = "before"

    @property
    def seen(self) -> str:
        """The observation, with its number."""
        return self.message

    @property
    def grave(self) -> bool:
        """Whether a training is of no use with it."""
        return self.severity == "error"

    def __str__(self) -> str:
        return f"{self.message}: {self.advice}"

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> Remark:
        """Return the remark of a checkpoint; those of 0.1.0 have neither code nor subject."""
        if "code" in saved:
            return cls(**saved)
        severity: Severity = "error" if saved.get("grave") else "warning"
        return cls("remark", severity, (), saved["seen"], saved["advice"], saved["when"])
