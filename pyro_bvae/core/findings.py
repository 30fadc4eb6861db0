"""The one record of a check: of an audit, a diagnosis, a verdict, the training checklist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Severity: TypeAlias = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Attributes:
        code: The kind of finding, in a word or two with hyphens.
        severity: ``'error'`` where the numbers are wrong or there are none, ``'warning'`` where
            they may be or could be better, ``'note'`` where nothing is to be done.
        subject: Names of the sites, plates or parameters that it concerns, or numbers of latents.
        message: The observation, with its numbers.
        advice: The remedy, where the message does not hold it.
    """

    code: str
    severity: Severity
    subject: tuple[Any, ...]
    message: str
    advice: str = ""

    @property
    def sites(self) -> tuple[Any, ...]:
        """The subject of an audit's finding: names of sites, plates or parameters."""
        return self.subject

    @property
    def sentence(self) -> str:
        """Message and advice."""
        return f"{self.message}: {self.advice}." if self.advice else f"{self.message}."

    def __str__(self) -> str:
        return f"{self.severity}  {self.code}  {', '.join(self.subject)}\n    {self.message}"
