"""A broken rule, as every checker reports it and as the readers' errors say it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """Which rule is broken where, what was found against what is allowed, and what cures it.

    >>> str(Violation("locks", "core (0, 2)", "18 locks, which has 16", "join some FIFOs"))
    'core (0, 2): 18 locks, which has 16; join some FIFOs'
    """

    rule: str
    place: str
    found: str
    cure: str

    def __str__(self) -> str:
        return f"{self.place}: {self.found}; {self.cure}"
