"""An overlay's wiring as plain data: tiles, FIFOs, links, cores, parameters and shim channels.

Read from a design's MLIR by :mod:`npu_matmul.mlir.elaborate`; used by the assembler, the emulator
and the design rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from npu_matmul.target import MEMTILE_ROW, SHIM_ROW, Target


@dataclass(frozen=True, order=True)
class Tile:
    """A place in the array."""

    column: int
    row: int

    @property
    def kind(self) -> str:
        return {SHIM_ROW: "shim", MEMTILE_ROW: "memtile"}.get(self.row, "core")

    def __str__(self) -> str:
        return f"{self.kind} ({self.column}, {self.row})"


@dataclass(frozen=True)
class Channel:
    """A DMA channel of a shim tile."""

    column: int
    direction: str  # "MM2S" reads host memory, "S2MM" writes it
    index: int

    def __str__(self) -> str:
        return f"shim ({self.column}, {SHIM_ROW}) {self.direction} {self.index}"


Dims = tuple[tuple[int, int], ...]  # (size, stride) in elements, outermost first


@dataclass(frozen=True)
class Fifo:
    """An object FIFO: elements of ``shape`` and ``dtype`` from one tile to others, in order."""

    name: str
    producer: Tile
    consumers: tuple[Tile, ...]
    depths: tuple[int, ...]  # at the producer, then at each consumer
    depths_forced: bool  # False: a core that acquires fewer gets fewer buffers
    elements: int
    dtype: np.dtype[Any]
    to_stream: Dims
    from_stream: tuple[Dims, ...]
    place: str

    @property
    def element_bytes(self) -> int:
        return self.elements * self.dtype.itemsize

    @property
    def ends(self) -> tuple[Tile, ...]:
        """The producer, then the consumers: in the order of ``depths``."""
        return (self.producer, *self.consumers)


@dataclass(frozen=True)
class Link:
    """FIFOs that share buffers in a memtile: forward (1 to 1), join (n to 1) or distribute (1 to
    n)."""

    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    offsets: tuple[int, ...]  # of each piece, in elements of the whole
    place: str


@dataclass(frozen=True)
class Parameter:
    """A core's buffer that the host may write words of."""

    name: str
    tile: Tile
    address: int | None
    elements: int
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Core:
    """A core's program. ``acquires`` has the most elements that one acquire takes, by (FIFO, port)
    in the order of the text."""

    tile: Tile
    body: Any = field(compare=False)  # an xDSL region
    place: str
    stack_bytes: int
    dynamic: bool  # the toolchain keeps its loops, and a counter for each FIFO it acquires
    acquires: Mapping[tuple[str, str], int] = field(hash=False)


@dataclass(frozen=True)
class Overlay:
    """A design, read. ``functions`` maps what cores may call to the object file it is linked with,
    ``values`` the SSA values of core buffers to their names."""

    device: str
    target: Target
    columns: int
    fifos: dict[str, Fifo]
    links: tuple[Link, ...]
    parameters: dict[str, Parameter]
    cores: tuple[Core, ...]
    functions: dict[str, str | None]
    channels: dict[str, Channel]
    values: dict[Any, str] = field(compare=False)


@dataclass(frozen=True)
class DmaChannel:
    """A DMA channel that one end of an object FIFO takes."""

    fifo: Fifo
    end: int  # 0: the producer's, 1 up: a consumer's
    tile: Tile
    direction: str
    index: int


def dma_channels(fifos: Iterable[Fifo]) -> Iterator[DmaChannel]:
    """The channels of all FIFOs, numbered per tile and direction in the order in which they appear.

    Source: assignDMAChannelIndices of mlir-aie's objectFifo pass; also where there are fewer.
    """
    used: Counter[tuple[Tile, str]] = Counter()
    for fifo in fifos:
        for end, tile in enumerate(fifo.ends):
            direction = "S2MM" if end else "MM2S"
            yield DmaChannel(fifo, end, tile, direction, used[tile, direction])
            used[tile, direction] += 1
