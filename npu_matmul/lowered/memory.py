"""The memory of one tile: one array of bytes, at the addresses that the allocator gave.

Every access says who makes it, so that one which nothing orders after another's is found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.emulator import POISON, EmulationError
from npu_matmul.lowered.module import PADDING, Buffer, Descriptor
from npu_matmul.lowered.order import (
    FINE,
    HANDED_OVER,
    NEVER_WRITTEN,
    NOBODY,
    UNORDERED_WRITE,
    Clock,
    History,
)
from npu_matmul.overlay import Tile
from npu_matmul.target import WORD_BYTES

Words = NDArray[np.int64]  # word numbers in the tile's memory


class RaceError(EmulationError):
    """Bytes are read or written while nothing orders this after another one's access."""


class TileMemory:
    """``describe`` tells, for errors, whose access to which word of a buffer it is, and where it
    stands."""

    def __init__(
        self,
        tile: Tile,
        buffers: Sequence[Buffer],
        clocks: Sequence[Clock],
        reaching: list[int],
        describe: Callable[[Clock, Buffer | None, int], tuple[str, str]],
        nbytes: int,
    ) -> None:
        self.name = "the host's memory" if buffers[0].external else str(tile)
        self.bytes = np.full(nbytes, POISON, np.uint8)
        self.words = self.bytes.view(np.uint32)
        self.history = History(self.words.size, reaching)
        self.buffers = sorted(buffers, key=lambda buffer: buffer.address or 0)
        self._clocks = clocks
        self._describe = describe
        self._where: dict[str, Words] = {}
        for buffer in buffers:
            if buffer.initial is not None:
                self.fill(buffer, buffer.initial)

    def fill(self, buffer: Buffer, data: NDArray[Any]) -> None:
        """Contents from before anything runs: known to all."""
        self.array(buffer)[:] = data
        self.history.writer[self.where(buffer)] = 0
        self.history.written[self.where(buffer)] = True

    def array(self, buffer: Buffer) -> NDArray[Any]:
        """A buffer's elements, in place."""
        start = buffer.address
        assert start is not None
        return self.bytes[start : start + buffer.bytes].view(buffer.dtype)

    def where(self, buffer: Buffer) -> Words:
        """The words of a whole buffer."""
        if buffer.name not in self._where:
            start = buffer.address or 0
            last = start + buffer.bytes - 1
            self._where[buffer.name] = np.arange(start // WORD_BYTES, last // WORD_BYTES + 1)
        return self._where[buffer.name]

    def words_of(self, descriptor: Descriptor) -> Words:
        """The words that a descriptor moves, in stream order; PADDING for constants."""
        base = (descriptor.buffer.address or 0) // WORD_BYTES
        return np.where(descriptor.words == PADDING, PADDING, descriptor.words + base)

    def word_of(self, buffer: Buffer, element: int) -> Words:
        """The word, or words, of one element of a buffer."""
        first = (buffer.address or 0) % WORD_BYTES + element * buffer.dtype.itemsize
        last = first + buffer.dtype.itemsize - 1
        return self.where(buffer)[first // WORD_BYTES : last // WORD_BYTES + 1]

    def read(self, clock: Clock, where: Words) -> None:
        """Somebody reads these words from now on; they must be written, and before this."""
        fault, word, other = self.history.read(clock, where)
        if fault != FINE:
            self._raise(clock, "reads", fault, word, other)

    def write(self, clock: Clock, where: Words) -> None:
        """Somebody writes these words; whoever used them before must have given them back."""
        fault, word, other = self.history.write(clock, where, True)
        if fault != FINE:
            self._raise(clock, "writes", fault, word, other)

    def claim(self, clock: Clock, where: Words) -> None:
        """These words are handed to somebody to be written; what stood there is gone."""
        fault, word, other = self.history.write(clock, where, False)
        if fault != FINE:
            self._raise(clock, "begins to write", fault, word, other)
        self.words[where] = np.uint32(POISON * 0x01010101)

    def put(self, where: Words | slice, data: NDArray[np.uint32]) -> None:
        """Words arrive in what was claimed."""
        self.words[where] = data
        self.history.written[where] = True

    def buffer_at(self, address: int) -> Buffer | None:
        for buffer in self.buffers:
            start = buffer.address or 0
            if start <= address < start + buffer.bytes:
                return buffer
        return None

    def _raise(self, clock: Clock, verb: str, fault: int, word: int, other: int) -> None:
        address = word * WORD_BYTES
        buffer = self.buffer_at(address)
        where = f"byte {address} of {self.name}"
        if buffer is not None:
            address -= buffer.address or 0
            where = f"byte {address} of {buffer} in {self.name}"
        who, locks = self._describe(clock, buffer, max(address, 0) // WORD_BYTES)
        name = "" if other == NOBODY else str(self._clocks[other])
        if fault == NEVER_WRITTEN:
            why = "which nobody has written"
        elif fault == HANDED_OVER:
            why = f"which were handed to {name} to be written and are not written since"
        elif fault == UNORDERED_WRITE:
            why = f"which {name} writes, and nothing orders the one after the other"
        else:
            why = f"which {name} reads, and nothing orders the one after the other"
        raise RaceError(f"{who} {verb} {where}, {why}{locks}")
