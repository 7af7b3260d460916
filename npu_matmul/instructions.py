"""Instruction streams: the words that XRT hands to the NPU's firmware to run one launch.

``npu_matmul/assemble.py`` turns a :class:`~npu_matmul.sequence.Sequence` into operations,
``decode`` reads bytes back into the same ones; both go through the dataclasses below, so a format
detail stands once. The words equal those of the standard toolchain (mlir-aie, April 2026) for
every pair in ``tests/data``.

A stream is a header of four words and then operations::

    header      rows<<24 | generation<<16 | 1<<8 | 0, memtile rows<<8 | columns, operations, bytes
    WRITE       0x00, 0, address, 0, value, 24
    BLOCKWRITE  0x01, 0, address, 48, eight words of a descriptor
    MASKWRITE   0x03, 0, address, 0, value, mask, 28
    SYNC        0x80, 16, column<<16 | row<<8 | direction, channel<<24 | 1<<16 | 1<<8
    PATCH       0x81, 48, 0, 0, 0, 0, address, 0, argument, 0, byte offset, 0
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npu_matmul.overlay import Channel, Tile
from npu_matmul.target import (
    CHANNEL_CONTROL,
    CORE_DATA_MEMORY_BYTES,
    DESCRIPTOR_BASE,
    DESCRIPTOR_BYTES,
    FIRST_CORE_ROW,
    SHIM_ROW,
    START_QUEUE,
    TARGETS,
    WORD_BYTES,
    Target,
    address,
    tile_of,
)

DIRECTIONS = ("S2MM", "MM2S")  # 0 and 1 in a SYNC
TOKEN_CONTROLLER = (
    0xF00,
    0x1F00,
)  # value and mask of a channel's control register: who gets its tokens
TOKEN_BIT = 1 << 31
VALID = 0x0200_0000  # word 7: valid, no locks
BURST = 2 << 30  # word 4: the longest burst of npu1, 256 B
CACHE = 2 << 24  # word 5: the AXI cache bits that the toolchain sets


class StreamError(ValueError):
    """A stream or sequence is malformed, beyond a limit, or unsafe; the message says where and
    what to do."""


@dataclass(frozen=True)
class Descriptor:
    """A shim buffer descriptor, in 32-bit words: three nested loops, then the step between runs.

    ``wrap0 == 0`` means linear: ``words`` in a row. The third loop has no count; ``words`` ends it.
    ``iterations`` runs walk ``iteration_step`` further each, then start over; 1 means no step.
    """

    words: int
    wrap0: int = 0
    wrap1: int = 0
    step0: int = 1
    step1: int = 1
    step2: int = 1
    iterations: int = 1
    iteration_step: int = 1

    def encode(self) -> list[int]:
        iteration = (
            0 if self.iterations == 1 else (self.iterations - 1) << 20 | (self.iteration_step - 1)
        )
        return [
            self.words,
            0,
            0,
            self.wrap0 << 20 | (self.step0 - 1),
            BURST | self.wrap1 << 20 | (self.step1 - 1),
            CACHE | (self.step2 - 1),
            iteration,
            VALID,
        ]

    @classmethod
    def decode(cls, words: list[int]) -> Descriptor:
        low = (1 << 20) - 1
        found = cls(
            words=words[0],
            wrap0=words[3] >> 20 & 0x3FF,
            wrap1=words[4] >> 20 & 0x3FF,
            step0=(words[3] & low) + 1,
            step1=(words[4] & low) + 1,
            step2=(words[5] & low) + 1,
            iterations=(words[6] >> 20 & 0x3F) + 1,
            iteration_step=(words[6] & low) + 1 if words[6] else 1,
        )
        if found.encode() != words:
            raise StreamError(
                f"descriptor {[hex(w) for w in words]} sets fields that this format does not use"
            )
        loops = found.wrap0, found.wrap1, found.step0, found.step1, found.step2
        if not found.words or (loops != (0, 0, 1, 1, 1) and not (found.wrap0 and found.wrap1)):
            raise StreamError(
                f"descriptor {[hex(w) for w in words]} moves nothing, or has loops without a count"
            )
        return found

    def offsets(self) -> NDArray[np.int64]:
        """Word offsets of one run, in the order in which they are moved.

        >>> Descriptor(words=8, wrap0=2, wrap1=2, step1=10, step2=100).offsets().tolist()
        [0, 1, 10, 11, 100, 101, 110, 111]
        """
        return self._at(np.arange(self.words, dtype=np.int64))

    def _at(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """The word offset of each of a run's words, by their numbers."""
        if self.wrap0 == 0:
            return index
        inner, rest = index % self.wrap0, index // self.wrap0
        middle, outer = rest % self.wrap1, rest // self.wrap1
        return inner * self.step0 + middle * self.step1 + outer * self.step2

    def stretches(self) -> tuple[NDArray[np.int64], int]:
        """Where the words of all runs lie: offsets of stretches, in order, and words of each.

        >>> Descriptor(words=8, wrap0=2, wrap1=2, step1=10, step2=100).stretches()
        (array([  0,  10, 100, 110]), 2)
        """
        length = self.words
        if self.wrap0:
            length = math.gcd(self.wrap0, self.words) if self.step0 == 1 else 1
        runs = np.arange(self.iterations)[:, np.newaxis] * self.iteration_step
        return np.unique(runs + self._at(np.arange(0, self.words, length))), length

    def reach(self) -> int:
        """One past the highest word that any run touches, from the descriptor's address."""
        runs = (self.iterations - 1) * self.iteration_step
        if self.wrap0 == 0:
            return self.words + runs
        inner = min(self.wrap0, self.words)
        middle = min(self.wrap1, -(-self.words // self.wrap0))
        outer = -(-self.words // (self.wrap0 * self.wrap1))
        last = (inner - 1) * self.step0 + (middle - 1) * self.step1 + (outer - 1) * self.step2
        return last + 1 + runs


@dataclass(frozen=True)
class WriteWord:
    """Write a word of a core's data memory: a runtime parameter."""

    tile: Tile
    offset: int
    value: int

    def encode(self) -> list[int]:
        where = address(self.tile.column, self.tile.row, self.offset)
        return [0x00, 0, where, 0, self.value & 0xFFFF_FFFF, 24]


@dataclass(frozen=True)
class WriteDescriptor:
    column: int
    number: int
    descriptor: Descriptor

    def encode(self) -> list[int]:
        return [
            0x01,
            0,
            _descriptor_address(self.column, self.number),
            48,
            *self.descriptor.encode(),
        ]


@dataclass(frozen=True)
class PatchAddress:
    """Set a descriptor's address to that of a buffer argument, plus an offset."""

    column: int
    number: int
    argument: int
    offset_bytes: int

    def encode(self) -> list[int]:
        where = _descriptor_address(self.column, self.number) + WORD_BYTES
        return [0x81, 48, 0, 0, 0, 0, where, 0, self.argument, 0, self.offset_bytes, 0]


@dataclass(frozen=True)
class EnableTokens:
    channel: Channel

    def encode(self) -> list[int]:
        control = CHANNEL_CONTROL[self.channel.direction, self.channel.index]
        value, mask = TOKEN_CONTROLLER
        return [0x03, 0, address(self.channel.column, SHIM_ROW, control), 0, value, mask, 28]


@dataclass(frozen=True)
class StartTask:
    """Put a descriptor on a channel's start queue, to run ``runs`` times."""

    channel: Channel
    number: int
    runs: int
    token: bool

    @property
    def column(self) -> int:
        return self.channel.column

    def encode(self) -> list[int]:
        queue = START_QUEUE[self.channel.direction, self.channel.index]
        value = (TOKEN_BIT if self.token else 0) | (self.runs - 1) << 16 | self.number
        return [0x00, 0, address(self.channel.column, SHIM_ROW, queue), 0, value, 24]


@dataclass(frozen=True)
class WaitToken:
    channel: Channel

    def encode(self) -> list[int]:
        direction = DIRECTIONS.index(self.channel.direction)
        where = self.channel.column << 16 | SHIM_ROW << 8 | direction
        return [0x80, 16, where, self.channel.index << 24 | 1 << 16 | 1 << 8]


Operation = WriteWord | WriteDescriptor | PatchAddress | EnableTokens | StartTask | WaitToken


@dataclass(frozen=True)
class Task:
    """A start of a descriptor, with what that was last written as, and what its address was last
    set to."""

    start: StartTask
    descriptor: Descriptor
    patch: PatchAddress

    @property
    def channel(self) -> Channel:
        return self.start.channel

    @property
    def argument(self) -> int:
        return self.patch.argument

    @property
    def moved_bytes(self) -> int:
        return self.descriptor.words * WORD_BYTES * self.start.runs


@dataclass(frozen=True)
class Stream:
    """A decoded stream: for which partition it was made, and its operations."""

    target: Target
    columns: int
    operations: tuple[Operation, ...]

    def encode(self) -> bytes:
        body = [word for operation in self.operations for word in operation.encode()]
        header = [
            self.target.rows << 24 | self.target.generation << 16 | 1 << 8,
            self.target.memtile_rows << 8 | self.columns,
            len(self.operations),
            (4 + len(body)) * WORD_BYTES,
        ]
        return np.array(header + body, dtype="<u4").tobytes()

    def tasks(self) -> Iterator[Task]:
        """What the stream starts, in order; without what has no descriptor or no address, which is
        refused when it is run."""
        descriptors: dict[tuple[int, int], Descriptor] = {}
        patches: dict[tuple[int, int], PatchAddress] = {}
        for operation in self.operations:
            if isinstance(operation, WriteDescriptor):
                descriptors[operation.column, operation.number] = operation.descriptor
            elif isinstance(operation, PatchAddress):
                patches[operation.column, operation.number] = operation
            elif isinstance(operation, StartTask):
                place = operation.column, operation.number
                if place in descriptors and place in patches:
                    yield Task(operation, descriptors[place], patches[place])

    def channel_bytes(self) -> dict[Channel, int]:
        """How many bytes the stream's tasks move through each channel."""
        moved: dict[Channel, int] = {}
        for task in self.tasks():
            moved[task.channel] = moved.get(task.channel, 0) + task.moved_bytes
        return moved

    def argument_bytes(self) -> dict[int, int]:
        """How many bytes of each buffer argument the stream's transfers reach."""
        reach: dict[int, int] = {}
        for task in self.tasks():
            end = task.patch.offset_bytes + task.descriptor.reach() * WORD_BYTES
            reach[task.argument] = max(reach.get(task.argument, 0), end)
        return reach


def decode(stream: bytes) -> Stream:
    """The operations of a stream; raises :class:`StreamError` for anything the format does not
    have."""
    if len(stream) % WORD_BYTES or len(stream) < 16:
        raise StreamError(f"a stream of {len(stream)} B is not a header and whole words")
    words = np.frombuffer(stream, dtype="<u4").tolist()
    target = next((t for t in TARGETS.values() if t.generation == words[0] >> 16 & 0xFF), None)
    if target is None or words[0] & 0xFFFF != 1 << 8 or words[0] >> 24 != target.rows:
        raise StreamError(f"header word {words[0]:#x} is of no known target")
    operations, position = [], 4
    while position < len(words):
        operation, size = _decode_operation(words, position)
        operations.append(operation)
        position += size
    found = Stream(target, words[1] & 0xFF, tuple(operations))
    if found.encode() != stream:
        raise StreamError(
            "header or padding words differ from what the operations need (count, bytes, zeros)"
        )
    return found


_SIZES = {0x00: 6, 0x01: 12, 0x03: 7, 0x80: 4, 0x81: 12}


def _decode_operation(words: list[int], position: int) -> tuple[Operation, int]:
    code = words[position]
    size = _SIZES.get(code)
    if size is None:
        raise StreamError(f"word {position}: unknown operation {code:#x}")
    entry = words[position : position + size]
    if len(entry) < size:
        raise StreamError(f"word {position}: operation {code:#x} is cut off")
    if code == 0x80:
        return WaitToken(Channel(entry[2] >> 16, DIRECTIONS[entry[2] & 1], entry[3] >> 24)), size
    column, row, offset = tile_of(entry[6] if code == 0x81 else entry[2])
    if code == 0x00 and row >= FIRST_CORE_ROW and offset < CORE_DATA_MEMORY_BYTES:
        return WriteWord(Tile(column, row), offset, entry[4]), size
    if row != SHIM_ROW:
        raise StreamError(
            f"word {position}: operation {code:#x} on tile ({column}, {row}), offset {offset:#x}"
        )
    if code == 0x01:
        return WriteDescriptor(
            column, _descriptor_number(offset, position), Descriptor.decode(entry[4:])
        ), size
    if code == 0x81:
        number = _descriptor_number(offset - WORD_BYTES, position)
        return PatchAddress(column, number, entry[8], entry[10]), size
    registers = START_QUEUE if code == 0x00 else CHANNEL_CONTROL
    for (direction, index), register in registers.items():
        if register == offset:
            channel = Channel(column, direction, index)
            if code == 0x03:
                return EnableTokens(channel), size
            value = entry[4]
            return StartTask(
                channel, value & 0xF, (value >> 16 & 0xFF) + 1, bool(value & TOKEN_BIT)
            ), size
    raise StreamError(
        f"word {position}: operation {code:#x} on shim register {offset:#x}, which is not known"
    )


def _descriptor_address(column: int, number: int) -> int:
    return address(column, SHIM_ROW, DESCRIPTOR_BASE + number * DESCRIPTOR_BYTES)


def _descriptor_number(offset: int, position: int) -> int:
    number, rest = divmod(offset - DESCRIPTOR_BASE, DESCRIPTOR_BYTES)
    if rest or not 0 <= number < 16:
        raise StreamError(f"word {position}: {offset:#x} is not a shim buffer descriptor")
    return number
