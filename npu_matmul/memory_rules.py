"""What must hold of a memory map: everything has a place of its own, and vectors are aligned.

Tiles whose maps are equal but for names are judged once; the place says how many they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from npu_matmul.lowering import pools
from npu_matmul.memory_map import ELEMENT, STACK, Range, layouts
from npu_matmul.overlay import Overlay, Tile
from npu_matmul.target import TileLimits
from npu_matmul.violation import Violation

Maps = dict[Tile, list[Range]]


def memory_violations(overlay: Overlay, maps: Maps, scheme: str) -> Iterator[Violation]:
    """What does not fit, and what stands on top of something else."""
    for tiles, ranges in layouts(maps):
        limits = overlay.target.limits(tiles[0].kind)
        placed = [r for r in ranges if r.start is not None]
        if scheme == "bank-aware":
            found = [*_crossings(placed, limits), *_without_room(overlay, ranges, limits)]
        else:
            found = [*overlaps(placed), *_excess(overlay, tiles[0], placed, limits)]
        for text, cure in found:
            yield Violation("memory", place_of(tiles), text, cure)


def alignment_violations(overlay: Overlay, maps: Maps) -> Iterator[Violation]:
    """Buffers that cores load vectors from must be aligned: hardware drops the low address bits
    without a word, and the allocator aligns nothing."""
    unit = overlay.target.vector_bytes
    programmed = {core.tile for core in overlay.cores}
    elements = {
        (pool.tile, f"{pool.name}_buff_{number}")
        for pool in pools(overlay)
        for number in range(pool.depth)
    }
    for tiles, ranges in layouts({tile: r for tile, r in maps.items() if tile in programmed}):
        wrong = [
            f"{r.name} at {r.start:,}"
            for r in ranges
            if (tiles[0], r.name) in elements and r.start is not None and r.start % unit
        ]
        if wrong:
            odd = [f"{name} of {size:,} B" for name, size in _sizes(ranges).items() if size % unit]
            odd += [
                f"{parameter.name} pinned at {parameter.address:,}"
                for parameter in overlay.parameters.values()
                if parameter.tile == tiles[0] and (parameter.address or 0) % unit
            ]
            cure = f"make multiples of {unit} B of what stands before them: {', '.join(odd)}"
            found = f"not at a multiple of {unit} B: {', '.join(wrong)}"
            yield Violation("alignment", place_of(tiles), found, cure)


def place_of(tiles: list[Tile]) -> str:
    """Tiles of the same layout in few words.

    >>> place_of([Tile(0, 2), Tile(0, 3), Tile(1, 2)])
    'core (0, 2) and 2 more like it'
    """
    return f"{tiles[0]} and {len(tiles) - 1} more like it" if len(tiles) > 1 else str(tiles[0])


def _needed(overlay: Overlay, placed: list[Range]) -> int:
    """Where the allocator ends; of pinned buffers the reader has seen that they are inside."""
    pinned = {name for name, p in overlay.parameters.items() if p.address is not None}
    return max((r.end for r in placed if r.name not in pinned), default=0)


def _excess(
    overlay: Overlay, tile: Tile, placed: list[Range], limits: TileLimits
) -> Iterator[tuple[str, str]]:
    needed = _needed(overlay, placed)
    excess = needed - limits.memory_bytes
    if excess <= 0:
        return
    counts = Counter(_group(r.name) for r in placed)
    parts = [
        f"{name} {f'{counts[name]} x ' if counts[name] > 1 else ''}{size:,} B"
        for name, size in _sizes(placed).items()
    ]
    found = f"{needed:,} B needed where {limits.memory_bytes:,} B are, {excess:,} B too many: "
    yield found + ", ".join(parts), _saving(overlay, tile, needed, excess)


def _saving(overlay: Overlay, tile: Tile, needed: int, excess: int) -> str:
    """What single buffers would save: of one FIFO where that is enough, else of all."""
    spare = {
        pool.fifo.name: pool.bytes - pool.element_bytes
        for pool in pools(overlay)
        if pool.tile == tile and pool.depth > 1
    }
    enough = [(saved, name) for name, saved in spare.items() if saved >= excess]
    if enough:
        saved, name = min(enough)
        return f"give @{name} depth 1 there, which saves {saved:,} B"
    rest = needed - sum(spare.values())
    if spare and sum(spare.values()) >= excess:
        return f"single-buffer its FIFOs, which leaves {rest:,} B"
    if spare:
        return f"make the elements smaller: with single buffers it would still be {rest:,} B"
    return "make the elements smaller"


def overlaps(placed: list[Range]) -> Iterator[tuple[str, str]]:
    """Which of the ranges, sorted by start, stand on top of each other, and the cure."""
    pairs = []
    for number, lower in enumerate(placed):
        for upper in range(number + 1, len(placed)):
            if (placed[upper].start or 0) >= lower.end:
                break
            if min(lower.bytes, placed[upper].bytes):
                pairs.append(f"{lower.name} and {placed[upper].name}")
    if pairs:
        cure = "pin buffers behind the stack and apart from each other"
        yield f"on top of each other: {', '.join(pairs)}", cure


def _crossings(placed: list[Range], limits: TileLimits) -> Iterator[tuple[str, str]]:
    for r in placed:
        first, last = (r.start or 0) // limits.bank_bytes, (r.end - 1) // limits.bank_bytes
        if r.bytes and first != last:
            found = f"{r.name} reaches from bank {first} into bank {last}"
            cure = f"banks are {limits.bank_bytes:,} B: make it smaller, or pin it elsewhere"
            yield found, f"{cure}; basic-sequential knows no banks"


def _without_room(
    overlay: Overlay, ranges: list[Range], limits: TileLimits
) -> Iterator[tuple[str, str]]:
    for r in ranges:
        if r.start is not None:
            continue
        parameter = overlay.parameters.get(r.name)
        if parameter is not None and parameter.address is not None:
            found = f"{r.name} is pinned at {parameter.address:,}, where its bank is taken"
            yield found, "pin buffers behind the stack, in the order of their addresses"
        else:
            found = f"no bank has room for {r.name} of {r.bytes:,} B"
            cure = f"banks are {limits.bank_bytes:,} B and no buffer crosses one"
            yield found, f"{cure}: make it smaller, or use basic-sequential"


def _sizes(ranges: list[Range]) -> dict[str, int]:
    """The size of each kind of range: a FIFO's buffers are all equal."""
    return {_group(r.name): r.bytes for r in ranges}


def _group(name: str) -> str:
    return "stack" if name == STACK else ELEMENT.sub("", name)
