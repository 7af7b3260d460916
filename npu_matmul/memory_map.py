"""Where the toolchain's allocator puts everything in the memory of each core and memtile.

Comes in: an overlay and one of the two schemes of mlir-aie's ``aie-assign-buffer-addresses`` (April
2026). Goes out: per tile the ranges it allots, checked against the addresses in modules it made
(``tests/data/golden/lowered``). It places what does not fit as well, so that one can see by how
much: judging is the design rules' part. Nothing aligns a buffer, under either scheme.

What follows the highest range is left for the constants of the core function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from npu_matmul.lowering import counters, pools
from npu_matmul.overlay import Overlay, Tile
from npu_matmul.target import TileLimits

STACK = "(stack)"
COUNTERS = "_anonymous"  # what the toolchain calls the loop state of cores that keep their loops
ELEMENT = re.compile(r"_buff_\d+$")  # the end of the names of FIFOs' buffers


class Range(NamedTuple):
    """A buffer's place in its tile; ``start`` is None where the allocator found none."""

    name: str
    start: int | None
    bytes: int

    @property
    def end(self) -> int:
        """The byte after the last one."""
        return (self.start or 0) + self.bytes


class Buffer(NamedTuple):
    """What has to be placed; ``address`` where the design pins it."""

    name: str
    bytes: int
    address: int | None = None


def memory_map(overlay: Overlay, scheme: str = "basic-sequential") -> dict[Tile, list[Range]]:
    """The ranges of every core and memtile that holds something, by address, the unplaced last."""
    allocate = SCHEMES[scheme]
    maps = {}
    for tile, (stack, buffers) in sorted(_contents(overlay).items()):
        ranges = allocate(stack, buffers, overlay.target.limits(tile.kind))
        if stack:
            ranges.append(Range(STACK, 0, stack))
        maps[tile] = sorted(ranges, key=lambda r: (r.start is None, r.start or 0))
    return maps


def layouts(maps: dict[Tile, list[Range]]) -> list[tuple[list[Tile], list[Range]]]:
    """Tiles of one kind whose ranges are equal but for the names of FIFOs, parameters and counters,
    with those of the first."""
    groups: dict[tuple[object, ...], tuple[list[Tile], list[Range]]] = {}
    for tile, ranges in maps.items():
        key = (tile.kind, *((r.start, r.bytes, bool(ELEMENT.search(r.name))) for r in ranges))
        groups.setdefault(key, ([], ranges))[0].append(tile)
    return list(groups.values())


def basic_sequential(stack: int, buffers: Iterable[Buffer], limits: TileLimits) -> list[Range]:
    """The stack at 0, then the buffers by size, largest first, back to back around pinned ones.

    >>> from npu_matmul.target import CORE
    >>> [tuple(r) for r in basic_sequential(64, [Buffer("small", 8), Buffer("large", 32)], CORE)]
    [('large', 64, 32), ('small', 96, 8)]

    A buffer that would run into a pinned one goes behind it, even when that is further down.
    """
    pinned = sorted(_pinned(buffers), key=lambda found: found[0])
    ranges = [Range(buffer.name, start, buffer.bytes) for start, buffer in pinned]
    address = stack
    for buffer in _largest_first(buffers):
        while pinned and address + buffer.bytes > pinned[0][0]:
            start, other = pinned.pop(0)
            address = start + other.bytes
        ranges.append(Range(buffer.name, address, buffer.bytes))
        address += buffer.bytes
    return ranges


def bank_aware(stack: int, buffers: Iterable[Buffer], limits: TileLimits) -> list[Range]:
    """The stack at the start of bank 0; then the buffers by size, largest first, each at the next
    free address of the bank after the last one used, or the next one that has room.

    >>> from npu_matmul.target import CORE
    >>> [tuple(r) for r in bank_aware(64, [Buffer("small", 8), Buffer("large", 32)], CORE)]
    [('large', 64, 32), ('small', 16384, 8)]

    Pinned buffers come before, in the order of the text; what they leave below them in their bank
    is lost. No buffer crosses a bank.
    """
    free = [bank * limits.bank_bytes for bank in range(limits.banks)]
    free[0] += stack
    ranges = []
    for address, buffer in _pinned(buffers):
        bank = min(max(address, 0) // limits.bank_bytes, limits.banks - 1)
        fits = address >= free[bank]
        ranges.append(Range(buffer.name, address if fits else None, buffer.bytes))
        if fits:
            free[bank] = address + buffer.bytes
    bank = 0
    for buffer in _largest_first(buffers):
        start = None
        for candidate in (*range(bank, limits.banks), *range(bank)):
            if free[candidate] + buffer.bytes <= (candidate + 1) * limits.bank_bytes:
                start, bank = free[candidate], (candidate + 1) % limits.banks
                free[candidate] += buffer.bytes
                break
        ranges.append(Range(buffer.name, start, buffer.bytes))
    return ranges


SCHEMES: dict[str, Callable[[int, Iterable[Buffer], TileLimits], list[Range]]] = {
    "basic-sequential": basic_sequential,
    "bank-aware": bank_aware,
}


def _contents(overlay: Overlay) -> dict[Tile, tuple[int, list[Buffer]]]:
    """Stack and buffers of each tile, in the order in which the allocator meets them: those of
    FIFOs, the design's own, and the loop state of cores."""
    stacks = {core.tile: core.stack_bytes for core in overlay.cores}
    buffers: dict[Tile, list[Buffer]] = {tile: [] for tile in stacks}
    for pool in pools(overlay):
        for number in range(pool.depth):
            buffer = Buffer(f"{pool.name}_buff_{number}", pool.element_bytes)
            buffers.setdefault(pool.tile, []).append(buffer)
    for parameter in overlay.parameters.values():
        size = parameter.elements * parameter.dtype.itemsize
        own = Buffer(parameter.name, size, parameter.address)
        buffers.setdefault(parameter.tile, []).append(own)
    dynamic = [core for core in overlay.cores if core.dynamic]
    for number, core in enumerate(dynamic):
        buffers[core.tile].append(Buffer(f"{COUNTERS}{number}", counters(core)))
    return {
        tile: (stacks.get(tile, 0), found) for tile, found in buffers.items() if tile.kind != "shim"
    }


def _pinned(buffers: Iterable[Buffer]) -> list[tuple[int, Buffer]]:
    return [(buffer.address, buffer) for buffer in buffers if buffer.address is not None]


def _largest_first(buffers: Iterable[Buffer]) -> list[Buffer]:
    """Equal sizes keep their order; the toolchain's std::sort promises that for 16 at most."""
    return sorted((b for b in buffers if b.address is None), key=lambda b: -b.bytes)
