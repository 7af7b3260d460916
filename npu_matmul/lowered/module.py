"""A lowered module as plain data: buffers, locks, DMA programs, flows and cores.

Read from MLIR by :mod:`npu_matmul.lowered.reading`; run by :mod:`npu_matmul.lowered.machine`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.emulator.patterns import order
from npu_matmul.overlay import Channel, Dims, Overlay, Parameter, Tile
from npu_matmul.target import WORD_BYTES, Target

PADDING = -1  # in a descriptor's word offsets: the constant, not a word of memory


@dataclass(frozen=True, eq=False)
class Buffer:
    """A range of a tile's memory; an external one is host memory behind a shim."""

    name: str
    tile: Tile
    address: int | None
    elements: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    place: str
    initial: NDArray[Any] | None = None
    external: bool = False

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.itemsize

    def __str__(self) -> str:
        return f"@{self.name}"


@dataclass(frozen=True, eq=False)
class Lock:
    """A counting semaphore of a tile."""

    name: str
    tile: Tile
    number: int | None
    initial: int
    place: str

    def __str__(self) -> str:
        return f"@{self.name}"


@dataclass(frozen=True, eq=False)
class UseLock:
    """``exact``: an acquire that waits for just this value, not for as much or more."""

    lock: Lock
    acquires: bool
    amount: int
    exact: bool
    place: str


@dataclass(frozen=True, order=True)
class Port:
    """A DMA channel of a tile, as the stream switch sees it."""

    tile: Tile
    direction: str  # "MM2S" reads memory and sends, "S2MM" receives and writes memory
    index: int

    def __str__(self) -> str:
        return f"{self.tile} {self.direction} {self.index}"


@dataclass(frozen=True, eq=False)
class Descriptor:
    """A buffer descriptor with its locks; offset, length, dims and pads are in elements.

    ``length`` counts what goes through the stream, padding included.
    """

    buffer: Buffer
    offset: int
    length: int
    dims: Dims
    pads: tuple[tuple[int, int], ...]  # before and after, for each of dims
    pad_value: int
    number: int | None
    next_number: int | None
    acquire: UseLock | None
    release: UseLock | None
    place: str

    @cached_property
    def elements(self) -> NDArray[np.int64]:
        """Element indices from the start of the buffer, in stream order; PADDING for constants."""
        if not self.dims:
            found = np.arange(self.length, dtype=np.int64)
        elif self.pads:
            found = self._padded()
        else:
            inner = int(np.prod([size for size, _ in self.dims[1:]], dtype=np.int64))
            # The outermost loop has no count of its own: the length ends it.
            outer = (-(-self.length // inner), self.dims[0][1])
            found = order((outer, *self.dims[1:]))  # type: ignore[assignment]
        found = found[: self.length]
        return np.where(found == PADDING, PADDING, found + self.offset)

    @cached_property
    def words(self) -> NDArray[np.int64]:
        """The same in words of 4 B, which is what a DMA moves."""
        itemsize = self.buffer.dtype.itemsize
        first = self.elements[:: max(1, WORD_BYTES // itemsize)]
        per_element = max(1, itemsize // WORD_BYTES)
        words = first * itemsize // WORD_BYTES
        if per_element > 1:
            words = (words[:, None] + np.arange(per_element)).reshape(-1)
        return np.where(words < 0, PADDING, words)

    def _padded(self) -> NDArray[np.int64]:
        found = np.zeros((), np.int64)
        for size, stride in self.dims:
            found = found[..., None] + np.arange(size, dtype=np.int64) * stride
        return np.pad(found, self.pads, constant_values=PADDING).reshape(-1)


@dataclass(frozen=True, eq=False)
class Program:
    """What a DMA channel executes: descriptors in order, then again from ``loop`` on.

    Without a loop it stops after ``runs`` times the whole chain.
    """

    port: Port
    descriptors: tuple[Descriptor, ...]
    loop: int | None
    runs: int
    place: str

    def cycle(self) -> tuple[Descriptor, ...]:
        """The descriptors that repeat for ever, in the order in which they run."""
        return self.descriptors[self.loop :] if self.loop is not None else ()


@dataclass(frozen=True)
class Flow:
    source: Port
    destination: Port
    place: str


@dataclass(frozen=True, eq=False)
class CoreCode:
    """A core's program; ``body`` is an xDSL region of several blocks."""

    tile: Tile
    body: Any
    stack_bytes: int
    place: str


@dataclass(frozen=True)
class Span:
    """What a DMA channel does between an acquire and the next release: the hand-over of memory.

    ``releases`` takes the memory to the other side, which gives it back through ``acquires``.
    """

    program: Program
    descriptors: tuple[Descriptor, ...]
    acquires: UseLock | None
    releases: UseLock | None

    @property
    def port(self) -> Port:
        return self.program.port


@dataclass(frozen=True)
class LoweredModule:
    """``values`` maps SSA values to what they are: a buffer or a lock."""

    name: str
    device: str
    target: Target
    columns: int
    tiles: tuple[Tile, ...]
    buffers: dict[str, Buffer]
    locks: tuple[Lock, ...]
    programs: dict[Port, Program]
    flows: tuple[Flow, ...]
    allocations: dict[str, Port]
    cores: tuple[CoreCode, ...]
    functions: dict[str, tuple[Any, ...]]  # name: the memref types of its arguments
    values: dict[Any, Buffer | Lock] = field(compare=False)

    @cached_property
    def overlay(self) -> Overlay:
        """What assembling a runtime sequence needs: channels and parameters by name."""
        parameters = {
            b.name: Parameter(b.name, b.tile, b.address, b.elements, b.dtype)
            for b in self.buffers.values()
            if b.tile.kind == "core"
        }
        channels = {
            name: Channel(port.tile.column, port.direction, port.index)
            for name, port in self.allocations.items()
        }
        return Overlay(
            device=self.device,
            target=self.target,
            columns=self.columns,
            fifos={},
            links=(),
            parameters=parameters,
            cores=(),
            functions=dict.fromkeys(self.functions),
            channels=channels,
            values={},
        )

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """All hand-overs that repeat, channel by channel, in the order in which they run."""
        return tuple(span for program in self.programs.values() for span in _spans(program))

    def guards(self, buffer: Buffer, word: int | None = None) -> tuple[Lock, ...]:
        """The locks that hand over a buffer; with ``word``, only those that hand this one over."""
        found: dict[Lock, None] = {}
        for span in self.spans:
            if any(
                descriptor.buffer is buffer and (word is None or word in descriptor.words)
                for descriptor in span.descriptors
            ):
                for use in (span.acquires, span.releases):
                    if use is not None:
                        found[use.lock] = None
        return tuple(found)


def _spans(program: Program) -> Iterator[Span]:
    acquired: UseLock | None = None
    covered: list[Descriptor] = []
    for descriptor in program.cycle():
        acquired = descriptor.acquire or acquired
        covered.append(descriptor)
        if descriptor.release is not None:
            yield Span(program, tuple(covered), acquired, descriptor.release)
            acquired, covered = None, []
    if covered:
        yield Span(program, tuple(covered), acquired, None)
