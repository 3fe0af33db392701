"""What a trial leaves behind: how many cases it ran, which of them failed, the worst figure."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    """The cases of one trial as they are run.

    Attributes:
        count: Cases run.
        failures: One line per case that failed: its name and what was wrong.
        worst: The figure that stands on the page, with its unit.
        details: Further figures for the record.
    """

    count: int = 0
    failures: list[str] = field(default_factory=list)
    worst: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def add(self, case: str, problem: str | None = None) -> None:
        """Counts a case; one with a problem has failed."""
        self.count += 1
        if problem:
            self.failures.append(f"{case}: {problem}")

    @property
    def passed(self) -> int:
        """Cases that passed."""
        return self.count - len(self.failures)


def unsaid(error: Exception, *parts: str) -> str | None:
    """Returns what a message leaves out of: what was got, what was expected, and ``parts``."""
    missing = [part for part in ("got", "expected", *parts) if part not in str(error)]
    return f"{type(error).__name__} says nothing of {missing}: {error}" if missing else None
