"""Whatever runs at the same time on the array, and what can go wrong with all of it together.

An actor is a generator that yields the :class:`Condition` it waits for. Who moves when is the
scheduler's business: round robin here, others in :mod:`npu_matmul.lowered.schedules`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from npu_matmul.emulator import EmulationError


class Deadlock(EmulationError):
    """Nothing can move; the message names every actor and what it waits for."""


class RestStateError(EmulationError):
    """After a launch the array is not as it was after boot, so the next launch would go wrong."""


@dataclass(frozen=True, eq=False)
class Condition:
    """What an actor waits for: asked by the scheduler, shown in a deadlock."""

    ready: Callable[[], bool]
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(eq=False)
class Actor:
    """``kind`` is what it has in common with others: a schedule may starve all of a kind."""

    name: str
    steps: Iterator[Condition]
    waits_for: Condition | None = None
    finished: bool = False
    kind: str = ""

    def advance(self) -> bool:
        """Run until it must wait; False when it could not move at all."""
        if self.finished or (self.waits_for is not None and not self.waits_for.ready()):
            return False
        self.waits_for = next(self.steps, None)
        self.finished = self.waits_for is None
        return True

    def __str__(self) -> str:
        return f"{self.name} " + ("has ended" if self.finished else f"waits for {self.waits_for}")


Settle = Callable[[Sequence[Actor]], None]  # lets actors move until nobody can


def round_robin(actors: Sequence[Actor]) -> None:
    moving = True
    while moving:
        moving = False
        for actor in actors:
            moving |= actor.advance()
