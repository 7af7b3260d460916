"""What happened before what: vector clocks of actors, and who touched each word of a memory when.

An actor's clock has a count for every actor: how much of the other's past it knows of. Whatever
hands something over (a lock's release, a word in a stream, a task put on a queue, a token) carries
the giver's clock along; whoever takes it knows as much from then on. Two accesses to a word, one of
them a write, must be ordered by this, whatever order they happened to come in. So a race is found
under any schedule, also one under which the values come out right.

The loops over words are compiled; words of 4 B are the least that a DMA moves.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

Snapshot = NDArray[np.int64]

FINE, NEVER_WRITTEN, UNORDERED_WRITE, HANDED_OVER, UNORDERED_READ = range(5)
NOBODY = -1


class Clock:
    """The clock of one actor; all clocks of a machine have the same length."""

    def __init__(self, name: str, number: int, actors: int) -> None:
        self.name = name
        self.number = number
        self.times = np.zeros(actors, np.int64)
        self.times[number] = 1
        self._last: Snapshot | None = None

    def give(self) -> Snapshot:
        """What this actor knows and did so far; what it does from now on is not part of it."""
        now: Snapshot = self.times.copy()
        self.times[self.number] += 1
        return now

    def take(self, other: Snapshot) -> None:
        """Know what another one gave."""
        if other is not self._last:
            np.maximum(self.times, other, out=self.times)
            self._last = other

    def __str__(self) -> str:
        return self.name


class History:
    """Who wrote and who read each word of one memory last, and when by their own clocks.

    ``slots`` are the actors that can reach the memory, by their numbers.
    """

    def __init__(self, words: int, slots: list[int]) -> None:
        self.slots = np.array(slots, np.int64)
        self.slot_of = {number: slot for slot, number in enumerate(slots)}
        self.writer = np.full(words, NOBODY, np.int16)
        self.written_at = np.zeros(words, np.int64)
        self.written = np.zeros(words, np.bool_)  # since the word was last handed over
        self.read_at = np.zeros((words, len(slots)), np.int64)

    def read(self, clock: Clock, where: NDArray[np.int64]) -> tuple[int, int, int]:
        """Record a read: what is wrong with it, at which word, and the number of the other."""
        fault, word, slot = _read(
            where,
            self.slot_of[clock.number],
            clock.number,
            clock.times,
            self.slots,
            self.writer,
            self.written_at,
            self.written,
            self.read_at,
        )
        return fault, word, self._actor(slot)

    def write(self, clock: Clock, where: NDArray[np.int64], complete: bool) -> tuple[int, int, int]:
        """Record a write, or (not ``complete``) that all this may be written from now on."""
        fault, word, slot = _write(
            where,
            self.slot_of[clock.number],
            clock.number,
            clock.times,
            self.slots,
            self.writer,
            self.written_at,
            self.written,
            self.read_at,
            complete,
        )
        return fault, word, self._actor(slot)

    def _actor(self, slot: int) -> int:
        return int(self.slots[slot]) if slot >= 0 else NOBODY


@numba.njit(cache=True, nogil=True)
def _read(where, slot, me, times, slots, writer, written_at, written, read_at):
    now = times[me]
    for word in where:
        by = writer[word]
        if by == NOBODY:
            return NEVER_WRITTEN, word, NOBODY
        if by != slot and written_at[word] > times[slots[by]]:
            return UNORDERED_WRITE, word, by
        if not written[word]:
            return HANDED_OVER, word, by
        read_at[word, slot] = now
    return FINE, NOBODY, NOBODY


@numba.njit(cache=True, nogil=True)
def _write(where, slot, me, times, slots, writer, written_at, written, read_at, complete):
    now = times[me]
    for word in where:
        by = writer[word]
        if by != NOBODY and by != slot and written_at[word] > times[slots[by]]:
            return UNORDERED_WRITE, word, by
        for reader in range(slots.size):
            if reader != slot and read_at[word, reader] > times[slots[reader]]:
                return UNORDERED_READ, word, reader
        writer[word] = slot
        written_at[word] = now
        written[word] = complete
    return FINE, NOBODY, NOBODY
