"""Streams of 32-bit words between DMA channels: finite, so that who sends must wait for who takes.

A stream has one sender and, in a broadcast, several receivers; a word moves when all of them have
room. Where every receiver stands open and empty, any number of words goes straight through, which
is one of the ways a bounded stream can behave.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npu_matmul.emulator.actors import Condition
from npu_matmul.lowered.order import Snapshot

Data = NDArray[np.uint32]
Sink = Callable[[int, Data, Snapshot], None]  # position in the transfer, words, what is known

GO_ON = Condition(lambda: True, "its turn")


@dataclass(frozen=True)
class Pace:
    """How words move: the room of a stream, the most that move at once, and whether they may go
    straight through. ``fine``: actors stop for others after each step."""

    depth_words: int = 16
    chunk_words: int | None = None
    straight: bool = True
    fine: bool = False


class Inlet:
    """A receiver's end of a stream."""

    def __init__(self) -> None:
        self.level = 0
        self.wanted = 0  # words that the transfer under way still takes
        self._total = 0
        self._sink: Sink | None = None
        self._parts: deque[tuple[Data, Snapshot]] = deque()

    def receive(
        self, total: int, sink: Sink, waiting: Condition, pace: Pace
    ) -> Iterator[Condition]:
        """Pass ``total`` words to the sink as they come."""
        self.wanted = self._total = total
        self._sink = sink
        while self.wanted:
            if not self.level:
                yield waiting
                continue
            self._take(pace)
            if pace.fine:
                yield GO_ON
        self._sink = None

    def waiting(self, text: str) -> Condition:
        return Condition(lambda: self.level > 0 or not self.wanted, text)

    @property
    def moved(self) -> int:
        """Words of the transfer under way that have come."""
        return self._total - self.wanted

    @property
    def empty_and_open(self) -> bool:
        return bool(self.wanted) and not self.level

    def put(self, data: Data, known: Snapshot) -> None:
        self._parts.append((data.copy(), known))
        self.level += data.size

    def accept(self, data: Data, known: Snapshot) -> None:
        """Words straight into the transfer under way."""
        assert self._sink is not None
        self._sink(self._total - self.wanted, data, known)
        self.wanted -= data.size

    def _take(self, pace: Pace) -> None:
        data, known = self._parts.popleft()
        count = min(data.size, self.wanted, pace.chunk_words or data.size)
        if count < data.size:
            self._parts.appendleft((data[count:], known))
        self.level -= count
        self.accept(data[:count], known)


class Outlet:
    """A sender's end of a stream."""

    def __init__(self, pace: Pace) -> None:
        self.inlets: list[Inlet] = []
        self.pace = pace
        self.moved = 0  # words of the transfer under way that have left

    def waiting(self, text: str) -> Condition:
        return Condition(lambda: self._room()[0] > 0, text)

    def send(
        self, total: int, data: Callable[[int, int], Data], known: Snapshot, waiting: Condition
    ) -> Iterator[Condition]:
        """Send words; ``data(first, count)`` fetches them when there is room."""
        self.moved = 0
        while self.moved < total:
            room, straight = self._room()
            count = min(room, total - self.moved, self.pace.chunk_words or total)
            if not count:
                yield waiting
                continue
            words, told = data(self.moved, count), self._passing(count, straight, known)
            for inlet in self.inlets:
                if straight:
                    inlet.accept(words, told)
                else:
                    inlet.put(words, told)
            self.moved += count
            if self.pace.fine:
                yield GO_ON

    def _passing(self, count: int, straight: bool, known: Snapshot) -> Snapshot:
        """So many words leave now; what their receivers come to know."""
        return known

    def _room(self) -> tuple[int, bool]:
        if not self.inlets:
            return 0, False
        if self.pace.straight and all(inlet.empty_and_open for inlet in self.inlets):
            return min(inlet.wanted for inlet in self.inlets), True
        return self.pace.depth_words - max(inlet.level for inlet in self.inlets), False
