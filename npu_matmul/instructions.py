"""Instruction streams: the words that XRT hands to the NPU's firmware to run one launch.

``assemble`` turns a :class:`~npu_matmul.sequence.Sequence` into bytes, ``decode`` reads bytes back
into the same operations that were encoded; both go through the dataclasses below, so a format
detail stands once. The words equal those of the standard toolchain (mlir-aie, April 2026) for
every pair in ``tests/data``.

A stream is a header of four words and then operations::

    header        rows<<24 | generation<<16 | 1<<8 | 0,  memtile rows<<8 | columns,  operations,
    bytes WRITE         0x00, 0, address, 0, value, 24 BLOCKWRITE    0x01, 0, address, 48, eight
    words of a descriptor MASKWRITE     0x03, 0, address, 0, value, mask, 28 SYNC          0x80,
    16, column<<16 | row<<8 | direction, channel<<24 | 1<<16 | 1<<8 PATCH         0x81, 48, 0, 0,
    0, 0, address, 0, argument, 0, byte offset, 0
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from npu_matmul.overlay import Channel, Overlay, Tile
from npu_matmul.sequence import Sequence, Transfer, Wait, WriteParameter
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
        index = np.arange(self.words, dtype=np.int64)
        if self.wrap0 == 0:
            return index
        inner, rest = index % self.wrap0, index // self.wrap0
        middle, outer = rest % self.wrap1, rest // self.wrap1
        return inner * self.step0 + middle * self.step1 + outer * self.step2

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

    def argument_bytes(self) -> dict[int, int]:
        """How many bytes of each buffer argument the stream's transfers reach."""
        reach: dict[int, int] = {}
        descriptors: dict[tuple[int, int], Descriptor] = {}
        for operation in self.operations:
            if isinstance(operation, WriteDescriptor):
                descriptors[operation.column, operation.number] = operation.descriptor
            elif isinstance(operation, PatchAddress):
                descriptor = descriptors.get((operation.column, operation.number), Descriptor(0))
                end = operation.offset_bytes + descriptor.reach() * WORD_BYTES
                reach[operation.argument] = max(reach.get(operation.argument, 0), end)
        return reach


def assemble(sequence: Sequence, overlay: Overlay) -> bytes:
    """The instruction stream of a sequence on an overlay; raises :class:`StreamError` beyond a
    limit."""
    operations: list[Operation] = []
    for position, step in enumerate(sequence.steps):
        where = f"sequence @{sequence.name}, step {position}"
        if isinstance(step, WriteParameter):
            operations.append(_write_parameter(step, overlay, where))
        elif isinstance(step, Wait):
            operations.append(WaitToken(_channel(step.fifo, overlay, where)))
        else:
            operations += _transfer(step, sequence, overlay, f"{where}, transfer of @{step.fifo}")
    return Stream(overlay.target, overlay.columns, tuple(operations)).encode()


def _write_parameter(step: WriteParameter, overlay: Overlay, where: str) -> WriteWord:
    parameter = overlay.parameters.get(step.parameter)
    if parameter is None:
        _refuse(
            where, f"there is no buffer @{step.parameter}; known: {', '.join(overlay.parameters)}"
        )
    if parameter.address is None:
        _refuse(
            where,
            f"buffer @{step.parameter} has no address attribute, so it cannot be written; pin it",
        )
    if not 0 <= step.index < parameter.elements * parameter.dtype.itemsize // WORD_BYTES:
        _refuse(where, f"word {step.index} is outside buffer @{step.parameter}")
    if not -(1 << 31) <= step.value < 1 << 32:
        _refuse(where, f"{step.value} does not fit a 32-bit word of buffer @{step.parameter}")
    return WriteWord(parameter.tile, parameter.address + step.index * WORD_BYTES, step.value)


def _channel(fifo: str, overlay: Overlay, where: str) -> Channel:
    if fifo not in overlay.channels:
        _refuse(
            where,
            f"@{fifo} has no shim channel; FIFOs that have one: {', '.join(overlay.channels)}",
        )
    return overlay.channels[fifo]


def _transfer(
    step: Transfer, sequence: Sequence, overlay: Overlay, where: str
) -> Iterator[Operation]:
    channel = _channel(step.fifo, overlay, where)
    if not 0 <= step.argument < len(sequence.arguments):
        _refuse(where, f"there is no argument {step.argument}; {len(sequence.arguments)} are given")
    argument = sequence.arguments[step.argument]
    if not 0 <= step.descriptor < overlay.target.descriptors:
        _refuse(
            where,
            f"descriptor {step.descriptor} does not exist; a shim has {overlay.target.descriptors}",
        )
    offset_bytes = step.offset * argument.dtype.itemsize
    if offset_bytes % WORD_BYTES or not 0 <= offset_bytes < 1 << 32:
        _refuse(
            where,
            f"offset {offset_bytes} B must be a multiple of 4 and below 4 GiB; start a view there",
        )
    token = step.token or channel.direction == "S2MM"  # the toolchain's rule: writes always report
    descriptor = _descriptor(step, argument.dtype.itemsize, overlay.target, where)
    yield WriteDescriptor(channel.column, step.descriptor, descriptor)
    yield PatchAddress(channel.column, step.descriptor, step.argument, offset_bytes)
    if token:
        yield EnableTokens(channel)
    yield StartTask(channel, step.descriptor, step.sizes[0], token)


def _descriptor(step: Transfer, itemsize: int, target: Target, where: str) -> Descriptor:
    runs, outer, middle, inner = step.sizes
    _check_pattern(step, itemsize, target, where)
    words = outer * middle * inner * itemsize // WORD_BYTES
    steps = [stride * itemsize // WORD_BYTES for stride in step.strides]
    walks = runs > 1 and step.strides[0] > 0
    iteration = {"iterations": runs, "iteration_step": steps[0]} if walks else {}
    if _is_contiguous(step):
        return Descriptor(words, **iteration)
    return Descriptor(
        words,
        wrap0=inner * itemsize // WORD_BYTES,
        wrap1=middle,
        step0=steps[3] if inner > 1 and step.strides[3] > 1 else 1,
        step1=steps[2] if middle > 1 else 1,
        step2=steps[1] if outer > 1 else 1,
        **iteration,
    )


def _is_contiguous(step: Transfer) -> bool:
    """A row-major scan of the lower three loops is one linear run, whatever its length."""
    _, outer, middle, inner = step.sizes
    _, outer_stride, middle_stride, inner_stride = step.strides
    return (
        inner_stride == 1
        and (middle == 1 or middle_stride == inner)
        and (outer == 1 or outer_stride == inner * middle)
    )


def _check_pattern(step: Transfer, itemsize: int, target: Target, where: str) -> None:
    runs, outer, middle, inner = step.sizes
    if min(step.sizes) < 1 or min(step.strides) < 0:
        _refuse(
            where, f"sizes {step.sizes} must be positive and strides {step.strides} not negative"
        )
    if inner * itemsize % WORD_BYTES:
        _refuse(where, f"{inner} elements of {itemsize} B are not a multiple of 4 B")
    if inner > 1 and step.strides[3] != 1 and itemsize % WORD_BYTES:
        _refuse(
            where,
            f"elements of {itemsize} B must be next to each other, not {step.strides[3]} apart",
        )
    if outer * middle * inner * itemsize // WORD_BYTES >= 1 << 32:
        _refuse(where, f"sizes {step.sizes} of one run exceed a descriptor's 32-bit length")
    if runs > target.max_iterations:
        _refuse(
            where, f"{runs} runs exceed {target.max_iterations}; split them over several transfers"
        )
    if not _is_contiguous(step) and max(inner * itemsize // WORD_BYTES, middle) > target.max_wrap:
        _refuse(
            where,
            f"sizes {step.sizes} exceed {target.max_wrap} words; make "
            "the inner run contiguous or shorter",
        )
    for position, (size, stride) in enumerate(zip(step.sizes, step.strides, strict=True)):
        innermost_unit = position == 3 and stride == 1
        if size == 1 or innermost_unit or (position == 0 and stride == 0):
            continue
        if stride == 0 or stride * itemsize % WORD_BYTES:
            _refuse(where, f"stride {stride} x {itemsize} B must be a positive multiple of 4 B")
        if stride * itemsize // WORD_BYTES > target.max_step:
            _refuse(
                where, f"stride of {stride * itemsize} B exceeds {target.max_step * WORD_BYTES} B"
            )


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


def _refuse(where: str, why: str) -> NoReturn:
    raise StreamError(f"{where}: {why}")
