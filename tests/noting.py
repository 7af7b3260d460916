"""Tasks that note which parts they did, in which thread; some wait for others, or go wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from npu_matmul.host.compiled import DONE, REFUSED, Task
from npu_matmul.host.pointers import address, pointer

_sched_yield = types.ExternalFunction("sched_yield", types.int32())
_pthread_self = types.ExternalFunction("pthread_self", types.int64())
MANY = 50_000_000  # of looks, about ten seconds


@dataclass(frozen=True)
class Notes:
    """By where a part begins: where it ends, or 0, and its thread. ``chosen`` is what a task wants
    to know; ``signal`` is 0 until a test, or the last part, lets others go on."""

    words: NDArray[np.int64]
    stops: NDArray[np.int64]
    threads: NDArray[np.int64]

    @property
    def table(self) -> list[int]:
        return [address(array) for array in (self.words, self.stops, self.threads)]

    @property
    def parts(self) -> list[tuple[int, int]]:
        return [(int(start), int(self.stops[start])) for start in np.flatnonzero(self.stops)]


def notes(size: int, chosen: int = 0) -> Notes:
    words = np.array([chosen, 0, 0], np.int64)
    return Notes(words, np.zeros(size, np.int64), np.zeros(size, np.int64))


@Task
def note(table, first, last):
    t = pointer(table, np.int64)
    pointer(t[1], np.int64)[first] = last
    pointer(t[2], np.int64)[first] = _pthread_self()
    return DONE


@Task
def together(table, first, last):
    """Notes its part, then waits until as many as were chosen run at once."""
    t = pointer(table, np.int64)
    chosen, threads = pointer(t[0], np.int64)[0], pointer(t[2], np.int64)
    pointer(t[1], np.int64)[first] = last
    threads[first] = _pthread_self()
    for _ in range(MANY):
        begun = 0
        for i in range(chosen):
            begun += threads[i] != 0
        if begun == chosen:
            return DONE
        _sched_yield()
    return REFUSED


@Task
def held(table, first, last):
    """Tells that it began, waits for the test's signal, then notes its part."""
    t = pointer(table, np.int64)
    words = pointer(t[0], np.int64)
    words[2] = 1
    for _ in range(MANY):
        if words[1]:
            break
        _sched_yield()
    pointer(t[1], np.int64)[first] = last
    return DONE if words[1] else REFUSED


@Task
def refusing(table, first, last):
    """Refuses the part that begins at the chosen place."""
    t = pointer(table, np.int64)
    pointer(t[1], np.int64)[first] = last
    return REFUSED if first == pointer(t[0], np.int64)[0] else DONE


@Task
def failing(table, first, last):
    """Finds no memory for the part that begins at the chosen place."""
    t = pointer(table, np.int64)
    if first == pointer(t[0], np.int64)[0]:
        return np.empty(1 << 60, np.uint8).size
    pointer(t[1], np.int64)[first] = last
    return DONE
