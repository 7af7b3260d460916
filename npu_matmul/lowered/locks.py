"""Locks as the hardware has them: small counters that are taken from and given to.

An acquire waits until the counter is large enough (or exactly so large) and takes its amount away;
a release adds. Each unit is remembered with what its giver knew and which memory it hands over:
units are taken in the order in which they were given.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from npu_matmul.emulator import EmulationError
from npu_matmul.emulator.actors import Condition
from npu_matmul.lowered.module import Lock, Span, UseLock
from npu_matmul.lowered.order import Clock, Snapshot
from npu_matmul.target import LOCK_MAXIMUM


class LockError(EmulationError):
    """A lock beyond what the hardware's counter holds, or given back by who does not hold it."""


@dataclass(frozen=True)
class Unit:
    """One of a lock's count: what its giver knew, and the memory that comes with it."""

    known: Snapshot | None
    span: Span | None


class LockState:
    """A lock while the machine runs. ``spans`` come with the initial units, in this order."""

    def __init__(self, lock: Lock, spans: list[Span]) -> None:
        self.lock = lock
        self.units = deque(
            Unit(None, spans[n] if n < len(spans) else None) for n in range(lock.initial)
        )
        self.peak = lock.initial
        self.operations = 0

    @property
    def value(self) -> int:
        return len(self.units)

    def open_for(self, use: UseLock) -> bool:
        return self.value == use.amount if use.exact else self.value >= use.amount

    def condition(self, use: UseLock) -> Condition:
        """Waiting for this acquire; the same object for the same place in a program."""
        wanted = f"{use.amount}" if use.exact else f"at least {use.amount}"
        text = f"{wanted} of lock {self.lock} of {self.lock.tile} at {use.place}"
        return Condition(lambda: self.open_for(use), text)

    def acquire(self, use: UseLock, clock: Clock) -> list[Unit]:
        """Take units that are there."""
        self.operations += 1
        units = [self.units.popleft() for _ in range(use.amount)]
        for unit in units:
            if unit.known is not None:
                clock.take(unit.known)
        return units

    def release(self, use: UseLock, clock: Clock, who: str, span: Span | None = None) -> None:
        """Give units, with all that happened before."""
        self.operations += 1
        if self.value + use.amount > LOCK_MAXIMUM:
            raise LockError(
                f"{who} at {use.place} releases {use.amount} of lock {self.lock} of "
                f"{self.lock.tile}, which stands at {self.value}; a lock holds {LOCK_MAXIMUM}"
            )
        known = clock.give()
        self.units.extend(Unit(known, span) for _ in range(use.amount))
        self.peak = max(self.peak, self.value)
