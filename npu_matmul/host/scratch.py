"""Memory for what lives within one call, used again by the next call of its thread.

Memory that is freed goes back to the system or stays, as the allocator finds best; the next array
of some megabytes may then cost a page fault for each 4 KB, which takes longer than filling it.
"""

from __future__ import annotations

import threading
from math import prod
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from npu_matmul.host.pointers import aligned_empty

MOST_BYTES = 64 << 20  # of one array; a larger one is freed when it is no longer used
FLOAT32 = np.dtype(np.float32)


class Room:
    """Arrays by name, each as large as the largest that was asked for."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[np.uint8]] = {}

    def array(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any] = FLOAT32
    ) -> NDArray[Any]:
        """As ``aligned_empty``, until the same name is asked for again: then the memory is that
        array's."""
        size = prod(shape) * dtype.itemsize
        memory = self._arrays.get(name)
        if memory is None or memory.size < size:
            memory = aligned_empty((size,), np.dtype(np.uint8))
            if size <= MOST_BYTES:
                self._arrays[name] = memory
        return memory[:size].view(dtype).reshape(shape)


class _Rooms:
    """The rooms of a thread that nobody uses now."""

    def __init__(self) -> None:
        self.free: dict[str, Room] = {}


_threads = threading.local()
_all: WeakSet[_Rooms] = WeakSet()
_listing = threading.Lock()


class lent:  # noqa: N801 - for ``with``
    """The room of that name, for one call; nothing that a caller keeps may be made of it.

    Whatever runs within the block and asks for the same, as a signal's handler may, gets another.

    >>> with lent("example") as room:
    ...     first = room.array("x", (2, 3))
    >>> with lent("example") as room:
    ...     np.may_share_memory(first, room.array("x", (6,)))
    True
    """

    __slots__ = ("_name", "_room")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> Room:
        self._room = _of_this_thread().free.pop(self._name, Room())
        return self._room

    def __exit__(self, *_: object) -> None:
        _of_this_thread().free[self._name] = self._room


def release() -> None:
    """Free what no call of any thread uses now."""
    with _listing:
        for rooms in _all:
            rooms.free.clear()


def _of_this_thread() -> _Rooms:
    rooms: _Rooms | None = getattr(_threads, "rooms", None)
    if rooms is None:
        rooms = _threads.rooms = _Rooms()
        with _listing:
            _all.add(rooms)
    return rooms
