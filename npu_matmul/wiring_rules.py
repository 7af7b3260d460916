"""What object FIFOs, their links and runtime parameters must be for an overlay to mean something.

The reader of designs raises the first of these, because neither the toolchain nor the emulator
could go on; the design rules report them all. Limits of how much there is of something stand in
:mod:`npu_matmul.design_rules`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np

from npu_matmul.overlay import Dims, DmaChannel, Fifo, Link, Parameter
from npu_matmul.target import WORD_BYTES, Target
from npu_matmul.violation import Violation


def fifo_violations(fifo: Fifo) -> Iterator[Violation]:
    """Depths, elements, ends and layout transformations of one object FIFO."""
    where = f"{fifo.place}: object FIFO @{fifo.name}"
    if min(fifo.depths) < 1:
        found = f"a depth must be at least 1, got {fifo.depths}"
        yield Violation("depth", where, found, "give 2 to overlap transfer and use, 1 to save room")
    if fifo.element_bytes % WORD_BYTES:
        yield Violation(
            "granularity",
            where,
            f"an element of {fifo.element_bytes} B cannot be moved: DMAs move {WORD_BYTES} B words",
            f"make the element a multiple of {WORD_BYTES} B",
        )
    yield from _end_violations(fifo, where)
    for tile, dims in zip(fifo.ends, (fifo.to_stream, *fifo.from_stream), strict=True):
        if dims and tile.kind == "shim":
            found = "layout transformations are not supported at a shim"
            yield Violation("layout", where, found, "transform at the other end")
        elif dims and not is_permutation(dims, fifo.elements):
            moved = int(np.prod([size for size, _ in dims]))
            last = sum((size - 1) * stride for size, stride in dims)
            found = f"its layout transformation moves {moved} elements up to index {last}"
            cure = f"it must move each of the {fifo.elements} once"
            yield Violation("layout", where, found, cure)


def _end_violations(fifo: Fifo, where: str) -> Iterator[Violation]:
    kinds = [tile.kind for tile in fifo.consumers]
    through = "pass through a memtile: two FIFOs and a link"
    if not kinds:
        yield Violation("wiring", where, "it has no consumer", "name one, or remove it")
    if fifo.producer.kind == "shim" and "shim" in kinds:
        found = "FIFOs from shim to shim are not supported"
        yield Violation("wiring", where, found, through)
    if fifo.producer.kind == "core" and "core" in kinds:
        found = "FIFOs from core to core are not supported"
        yield Violation("wiring", where, found, through)
    if "shim" in kinds and len(kinds) > 1:
        found = "a FIFO to a shim has no other consumers"
        yield Violation("wiring", where, found, "give the others a FIFO of their own")


def unlinked_violations(fifos: Iterable[Fifo], links: Iterable[Link]) -> Iterator[Violation]:
    """A memtile computes nothing: what arrives there must leave, and what leaves have arrived."""
    linked = {(name, False) for link in links for name in link.sources}
    linked |= {(name, True) for link in links for name in link.destinations}
    for fifo in fifos:
        for end, tile in enumerate(fifo.ends):
            if tile.kind == "memtile" and (fifo.name, end == 0) not in linked:
                where = f"{fifo.place}: object FIFO @{fifo.name}"
                found = f"it {'ends' if end else 'starts'} in {tile} without a link"
                cure = "link it to the FIFO that goes on from there, or comes from there"
                yield Violation("wiring", where, found, cure)


def is_permutation(dims: Dims, elements: int) -> bool:
    """Whether the loops reach every index below ``elements`` exactly once.

    They do when each stride, smallest first, is the number of indices that the smaller ones cover.

    >>> is_permutation(((2, 1), (3, 2)), 6), is_permutation(((2, 1), (3, 1)), 6)
    (True, False)
    """
    covered = 1
    for stride, size in sorted((stride, size) for size, stride in dims if size != 1):
        if stride != covered:
            return False
        covered *= size
    return covered == elements


def link_violations(
    link: Link,
    given_offsets: tuple[tuple[int, ...], tuple[int, ...]],
    fifos: Mapping[str, Fifo],
    linked: Collection[str],
) -> Iterator[Violation]:
    """What is wrong with a link; ``given_offsets`` are those at its sources and destinations,
    ``linked`` the FIFOs of earlier links."""
    where = f"{link.place}: link {list(link.sources)} -> {list(link.destinations)}"
    structure = [
        Violation("wiring", where, found, cure)
        for found, cure in _structure(link.sources, link.destinations, fifos, linked)
    ]
    yield from structure
    if not structure:
        for found, cure in _pieces(link, given_offsets, fifos):
            yield Violation("wiring", where, found, cure)


def _structure(
    sources: tuple[str, ...],
    destinations: tuple[str, ...],
    fifos: Mapping[str, Fifo],
    linked: Collection[str],
) -> Iterator[tuple[str, str]]:
    names = [*sources, *destinations]
    unknown = [name for name in names if name not in fifos]
    for name in unknown:
        yield f"there is no object FIFO @{name}", "declare it above the link"
    for name in dict.fromkeys(names):
        if [*linked, *names].count(name) > 1:
            yield f"@{name} can be linked only once", "make all its pieces part of one link"
    if not sources or not destinations:
        yield "a link has FIFOs on both sides", "name them"
    elif len(sources) > 1 and len(destinations) > 1:
        yield "joins and distributes at once", "join into one FIFO, or distribute from one"
    elif not unknown:
        meeting = {fifos[n].consumers for n in sources}
        meeting |= {(fifos[n].producer,) for n in destinations}
        if len(meeting) != 1 or next(iter(meeting))[0].kind != "memtile":
            cure = "end the sources and start the destinations there"
            yield "all its FIFOs must meet in one memtile", cure


def _pieces(
    link: Link,
    given_offsets: tuple[tuple[int, ...], tuple[int, ...]],
    fifos: Mapping[str, Fifo],
) -> Iterator[tuple[str, str]]:
    joins = len(link.sources) > 1
    pieces = [fifos[n] for n in (link.sources if joins else link.destinations)]
    whole = fifos[link.destinations[0] if joins else link.sources[0]]
    if any(piece.dtype != whole.dtype for piece in pieces):
        yield "its FIFOs have different element types", "give all the type of the whole"
    if given_offsets[1 if joins else 0]:
        yield "only the side with the pieces has offsets", "leave the other brackets empty"
    if len(link.offsets) != len(pieces):
        found = f"{len(link.offsets)} offsets for {len(pieces)} pieces"
        yield found, "give each piece its offset in the whole"
        return
    if len(pieces) == 1 and pieces[0].elements != whole.elements:
        found = f"elements of {whole.elements} become elements of {pieces[0].elements}"
        yield f"{found}, which is not supported here", "give both FIFOs the same elements"
        return
    ends = sorted((o, o + piece.elements) for o, piece in zip(link.offsets, pieces, strict=True))
    covered = [0, *(end for _, end in ends)]
    if [start for start, _ in ends] != covered[:-1] or covered[-1] != whole.elements:
        found = f"pieces {ends} do not cover the {whole.elements} elements of @{whole.name}"
        yield found, "cut it without gaps or overlaps"
    if len(pieces) > 1 and (whole.to_stream if joins else whole.from_stream[0]):
        found = "a layout transformation of joined or distributed pieces is not supported"
        yield found, "transform the pieces"


def parameter_violations(parameter: Parameter, target: Target, place: str) -> Iterator[Violation]:
    """A buffer that the design declares must be whole words of a core's memory."""
    memory = target.core.memory_bytes
    start, size = parameter.address or 0, parameter.elements * parameter.dtype.itemsize
    where = f"{place}: buffer @{parameter.name} at {parameter.address} of {parameter.tile}"
    cure = f"it must start at a multiple of {WORD_BYTES} within the {memory} B of a core"
    if parameter.tile.kind != "core":
        yield Violation("wiring", where, "only cores have buffers of their own here", cure)
    if start % WORD_BYTES:
        yield Violation("granularity", where, f"{start % WORD_BYTES} B past a word", cure)
    if not 0 <= start <= memory - size:
        yield Violation("memory", where, f"bytes {start:,} to {start + size - 1:,}", cure)


def channel_violation(channel: DmaChannel, target: Target) -> Iterator[Violation]:
    """A tile has only so many DMA channels in each direction."""
    allowed = target.limits(channel.tile.kind).channels
    if channel.index >= allowed:
        yield Violation(
            "channels",
            channel.fifo.place,
            f"@{channel.fifo.name} needs another {channel.direction} channel of {channel.tile}, "
            f"which has {allowed}",
            "use another tile, or carry two operands in one FIFO",
        )
