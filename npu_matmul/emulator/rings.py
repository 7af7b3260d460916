"""Rings of buffers between the actors of the array: what an object FIFO is at one tile.

A ring has ``depth`` slots. Every end counts elements from the start of time: ``acquired`` and
``released`` only grow, element number n lives in slot n mod depth. A writer may take an element
when every reader has released the one that was there before; a reader when every writer has
released it. Joins have a writer for each piece of an element, distributes a reader.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from npu_matmul.emulator import POISON
from npu_matmul.emulator.actors import Condition


class Ring:
    """``depth`` element buffers in the memory of one tile, poisoned until they are written."""

    end_type: ClassVar[type[End]]

    def __init__(
        self, name: str, place: str, depth: int, elements: int, dtype: np.dtype[Any]
    ) -> None:
        self.name = name
        self.place = place
        self.depth = depth
        self.slots = np.full((depth, elements * dtype.itemsize), POISON, np.uint8)
        self.elements = elements
        self.dtype = dtype
        self.writers: list[End] = []
        self.readers: list[End] = []

    def writer(self, offset: int = 0, elements: int | None = None) -> End:
        end = self.end_type(self, True, offset, self.elements if elements is None else elements)
        self.writers.append(end)
        return end

    def reader(self, offset: int = 0, elements: int | None = None) -> End:
        end = self.end_type(self, False, offset, self.elements if elements is None else elements)
        self.readers.append(end)
        return end

    def level(self) -> tuple[int, ...]:
        """How far apart the ends are: the same at rest after every launch."""
        base = min(end.released for end in self.readers)
        return tuple(
            n - base for end in (*self.writers, *self.readers) for n in (end.acquired, end.released)
        )

    def __str__(self) -> str:
        return f"@{self.name} in {self.place}"


class End:
    """One side of a ring: takes elements in order and gives them back in order."""

    def __init__(self, ring: Ring, writes: bool, offset: int, elements: int) -> None:
        self.ring = ring
        self.writes = writes
        self.acquired = 0
        self.released = 0
        itemsize = ring.dtype.itemsize
        part = ring.slots[:, offset * itemsize : (offset + elements) * itemsize]
        self.bytes: list[NDArray[np.uint8]] = list(part)
        self.arrays: list[NDArray[Any]] = [row.view(ring.dtype) for row in part]
        self._conditions: dict[int, Condition] = {}

    @property
    def held(self) -> int:
        return self.acquired - self.released

    def can_take(self, count: int) -> bool:
        wanted = self.acquired + count
        if self.writes:
            return all(wanted - end.released <= self.ring.depth for end in self.ring.readers)
        return all(wanted <= end.released for end in self.ring.writers)

    def until(self, count: int) -> Condition:
        """The condition that ``count`` more elements can be taken (always the same object)."""
        if count not in self._conditions:
            self._conditions[count] = self.condition(count)
        return self._conditions[count]

    def condition(self, count: int, where: str = "") -> Condition:
        """A condition like ``until``'s, but of one place in a core's body only."""
        kind = "a free" if self.writes else "a filled"
        return Condition(lambda: self.can_take(count), f"{kind} element of {self.ring}{where}")

    def take(self) -> int:
        """Take the next element and return its number; the caller has checked ``can_take``."""
        number = self.acquired
        self.acquired = number + 1
        return number

    def give(self, count: int = 1) -> None:
        assert self.released + count <= self.acquired, "released more than acquired"
        self.released += count

    def owns(self, number: int) -> bool:
        return self.released <= number < self.acquired

    def array(self, number: int) -> NDArray[Any]:
        return self.arrays[number % self.ring.depth]

    def data(self, number: int) -> NDArray[np.uint8]:
        return self.bytes[number % self.ring.depth]


Ring.end_type = End
