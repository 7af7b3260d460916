"""What the standard toolchain makes of an overlay's object FIFOs: buffers, locks, DMA programs.

Only names, sizes and counts; nothing here says what runs. Source: mlir-aie's pass
``aie-objectFifo-stateful-transform`` (April 2026), checked against modules that it lowered
(``tests/data/golden/lowered``). Beyond this: where a memtile is full it moves buffers into a
neighbouring one, which is not followed here, as nothing else in this project could use them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from npu_matmul.overlay import Core, Dims, Fifo, Link, Overlay, Tile, dma_channels

COUNTER_BYTES = 4  # dynamic_objfifo_lowering: an i32 index for each (FIFO, port) a core acquires


@dataclass(frozen=True)
class Pool:
    """The buffers of an object FIFO at one tile; linked FIFOs share one in their memtile.

    Its buffers are called ``name`` and ``_buff_0`` up. A shim has locks but no buffers: depth 0.
    """

    name: str
    fifo: Fifo
    tile: Tile
    depth: int
    element_bytes: int
    lock_pairs: int  # one for each piece of a join or distribution

    @property
    def bytes(self) -> int:
        return self.depth * self.element_bytes


@dataclass(frozen=True)
class DmaEnd:
    """The DMA program of one end of a FIFO: its channel, and the descriptors it cycles through."""

    fifo: Fifo
    tile: Tile
    direction: str
    index: int
    descriptors: int
    dims: Dims


def depth_at(overlay: Overlay, fifo: Fifo, end: int) -> int:
    """How many buffers the toolchain makes at an end of a FIFO (0: the producer's).

    An array of depths is taken at its word. A single depth is, too, at a memtile and where no core
    acquires; else there is one buffer more than the most a core acquires at once, so that the next
    element can arrive meanwhile: fewer than were asked for, or, when a core acquires all of them,
    one more. Source: findObjectFifoSize.
    """
    depth, tile = fifo.depths[end], fifo.ends[end]
    acquired = max(
        (
            count
            for core in overlay.cores
            for (name, _), count in core.acquires.items()
            if core.tile == tile and name == fifo.name
        ),
        default=0,
    )
    taken_at_its_word = fifo.depths_forced or tile.kind != "core" or depth <= 1
    if taken_at_its_word or not 0 < acquired <= depth:
        return depth
    return acquired + 1


def pools(overlay: Overlay) -> list[Pool]:
    """All buffers that the FIFOs get, in the order in which the toolchain lists them.

    That is: FIFOs last to first, and of each the consumers' side before the producer's.
    """
    found = []
    for fifo in reversed(overlay.fifos.values()):
        for end in (*range(1, len(fifo.ends)), 0):
            pool = _pool(overlay, fifo, end)
            if pool is not None:
                found.append(pool)
    return found


def dma_ends(overlay: Overlay) -> Iterator[DmaEnd]:
    """The DMA program of each end of each FIFO; a shim's has no descriptors before a launch."""
    for channel in dma_channels(overlay.fifos.values()):
        fifo, end, tile = channel.fifo, channel.end, channel.tile
        link = _link_at(overlay, fifo, end)
        if tile.kind == "shim":
            descriptors = 0
        elif link is None:
            descriptors = depth_at(overlay, fifo, end)
        else:
            owner, owner_end = _owner(overlay, link)
            pieces = _pieces(link) if (owner, owner_end) == (fifo, end) else 1
            descriptors = depth_at(overlay, owner, owner_end) * pieces
        dims = fifo.from_stream[end - 1] if end else fifo.to_stream
        yield DmaEnd(fifo, tile, channel.direction, channel.index, descriptors, dims)


def counters(core: Core) -> int:
    """Bytes of loop state that the toolchain adds to a core that keeps its loops (``dynamic``)."""
    return COUNTER_BYTES * len(core.acquires)


def _pool(overlay: Overlay, fifo: Fifo, end: int) -> Pool | None:
    """The buffers at one end; None where a linked FIFO has them."""
    tile, name = fifo.ends[end], fifo.name
    if end:
        name += f"_{end - 1}_cons" if len(fifo.consumers) > 1 else "_cons"
    link = _link_at(overlay, fifo, end)
    if link is not None and _owner(overlay, link) != (fifo, end):
        return None
    depth = 0 if tile.kind == "shim" else depth_at(overlay, fifo, end)
    lock_pairs = 1 if link is None else _pieces(link)
    return Pool(name, fifo, tile, depth, fifo.element_bytes, lock_pairs)


def _link_at(overlay: Overlay, fifo: Fifo, end: int) -> Link | None:
    """The link that joins this end of a FIFO to others in the same memtile."""
    if fifo.ends[end].kind != "memtile":
        return None
    side = "sources" if end else "destinations"
    return next((link for link in overlay.links if fifo.name in getattr(link, side)), None)


def _owner(overlay: Overlay, link: Link) -> tuple[Fifo, int]:
    """The FIFO and its end whose buffers a link uses: the whole of a join or distribution, and the
    source of a forward."""
    if len(link.sources) > 1:
        return overlay.fifos[link.destinations[0]], 0
    return overlay.fifos[link.sources[0]], 1


def _pieces(link: Link) -> int:
    return max(len(link.sources), len(link.destinations))
