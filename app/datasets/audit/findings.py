"""What an audit says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# leak: a score on these data is not to be believed. suspect: it may be, a person must look.
Severity = Literal["leak", "suspect"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One leak: a sentence with its figures, what helps, and the figures again for programs."""

    code: str
    severity: Severity
    message: str
    remedy: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def view(self) -> dict[str, Any]:
        """Render it as JSON."""
        return {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "remedy": self.remedy,
            "evidence": dict(self.evidence),
        }
