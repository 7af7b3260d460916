"""What is wrong with a lowered module before anything runs.

``refusals``: what no hardware could be told, so the machine refuses it too. ``mistakes``: what can
be told, and would wait for ever or go wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from npu_matmul.layout_rules import loop_faults
from npu_matmul.lowered.holding import impatient, lock_groups, unbalanced_cores
from npu_matmul.lowered.module import (
    PADDING,
    Buffer,
    Descriptor,
    Lock,
    LoweredModule,
    Port,
    Program,
    UseLock,
)
from npu_matmul.memory_map import STACK, Range
from npu_matmul.memory_rules import overlaps
from npu_matmul.overlay import Tile
from npu_matmul.target import LOCK_MAXIMUM, MEMTILE_ROW, WORD_BYTES, TileLimits
from npu_matmul.violation import Violation

NEIGHBOURLY_CHANNELS = 4  # of a memtile reach the memtiles beside it [model: isBdChannelAccessible]


def refusals(module: LoweredModule) -> Iterator[Violation]:
    """Addresses, numbers and patterns that do not exist, or are given twice."""
    yield from _memory(module)
    yield from _locks(module)
    for program in module.programs.values():
        yield from _program(program, module)
    yield from _descriptors(module)
    yield from _flow_ends(module)


def mistakes(module: LoweredModule) -> Iterator[Violation]:
    """Streams that go nowhere; locks whose counts do not fit what they guard."""
    yield from _wiring(module)
    yield from _lengths(module)
    yield from _double_writes(module)
    yield from _uncovered(module)
    yield from _single_locks(module)
    yield from _hand_overs(module)
    yield from unbalanced_cores(module)


def _memory(module: LoweredModule) -> Iterator[Violation]:
    by_tile: dict[Tile, list[Buffer]] = {}
    for buffer in module.buffers.values():
        where = f"{buffer.place}: {buffer} in {buffer.tile}"
        if buffer.address is None:
            found = "a buffer without an address"
            yield Violation("memory", where, found, "run the toolchain's allocator first")
        elif not buffer.external:
            by_tile.setdefault(buffer.tile, []).append(buffer)
    stacks = {core.tile: core.stack_bytes for core in module.cores}
    for tile, buffers in sorted(by_tile.items()):
        limit = module.target.limits(tile.kind).memory_bytes
        ranges = [Range(b.name, b.address, b.bytes) for b in buffers]
        if stacks.get(tile):
            ranges.append(Range(STACK, 0, stacks[tile]))
        for found, cure in overlaps(sorted(ranges, key=lambda r: r.start or 0)):
            yield Violation("memory", f"{buffers[0].place}: {tile}", found, cure)
        for buffer in buffers:
            start = buffer.address or 0
            end = start + buffer.bytes
            where = f"{buffer.place}: {buffer} in {tile}"
            if start < 0 or end > limit:
                found = f"it ends at byte {end:,} where the tile has {limit:,}"
                yield Violation("memory", where, found, "allocate again with smaller buffers")
            if start % buffer.dtype.itemsize:
                found = f"its elements of {buffer.dtype.itemsize} B start at byte {start:,}"
                yield Violation("memory", where, found, "align it to its elements")


def _locks(module: LoweredModule) -> Iterator[Violation]:
    taken: dict[tuple[Tile, int], Lock] = {}
    for lock in module.locks:
        where, limit = f"{lock.place}: {lock} of {lock.tile}", module.target.limits(lock.tile.kind)
        if lock.number is None:
            yield Violation("locks", where, "a lock without a number", "run aie-assign-lock-ids")
            continue
        if not 0 <= lock.number < limit.locks:
            found = f"number {lock.number} where the tile has locks 0 to {limit.locks - 1}"
            yield Violation("locks", where, found, "use fewer locks")
        if not 0 <= lock.initial <= LOCK_MAXIMUM:
            found = f"it starts at {lock.initial}; a lock holds 0 to {LOCK_MAXIMUM}"
            yield Violation("locks", where, found, "start it within that")
        other = taken.setdefault((lock.tile, lock.number), lock)
        if other is not lock:
            found = f"number {lock.number} is {other}'s already"
            yield Violation("locks", where, found, "give each lock a number of its own")


def _program(program: Program, module: LoweredModule) -> Iterator[Violation]:
    port, limits = program.port, module.target.limits(program.port.tile.kind)
    where = f"{program.place}: {port}"
    if not 0 <= port.index < limits.channels:
        found = f"the tile has channels 0 to {limits.channels - 1}"
        yield Violation("channels", where, found, "use one of these")
    if program.runs > module.target.max_runs:
        found = f"{program.runs:,} runs of its chain where a start has {module.target.max_runs}"
        yield Violation("runs", where, found, "let the chain go on by aie.next_bd")
    if not program.descriptors:
        yield Violation("descriptors", where, "started without a descriptor", "name one")
    for descriptor in program.descriptors:
        place = _place(descriptor, port)
        for rule, found, cure in (
            *_reach(descriptor, port),
            *_pattern(descriptor, port, module),
        ):
            yield Violation(rule, place, found, cure)


def _descriptors(module: LoweredModule) -> Iterator[Violation]:
    """All channels of a tile share its descriptors, which hardware knows by number alone."""
    taken: dict[tuple[Tile, int], Descriptor] = {}
    for port, program in module.programs.items():
        limits = module.target.limits(port.tile.kind)
        first = port.index % limits.channel_groups * limits.descriptors_per_group
        last = first + limits.descriptors_per_group - 1
        following = (*program.descriptors[1:], program.cycle()[0] if program.cycle() else None)
        for descriptor, after in zip(program.descriptors, following, strict=False):
            number, place = descriptor.number, _place(descriptor, port)
            if number is None:
                found = "a descriptor without a number"
                yield Violation("descriptors", place, found, "run aie-assign-bd-ids")
                continue
            if not first <= number <= last:
                found = f"number {number} where this channel can use {first} to {last}"
                yield Violation("descriptors", place, found, "use one of these")
            other = taken.setdefault((port.tile, number), descriptor)
            if other is not descriptor:
                found = f"number {number} of {port.tile} is that of {other.place} already"
                yield Violation("descriptors", place, found, "give each its own")
            goes_on = None if after is None else after.number
            if descriptor.next_number != goes_on:
                chain = "ends here" if after is None else f"goes on with number {goes_on}"
                given = "missing" if descriptor.next_number is None else descriptor.next_number
                found = f"its next_bd_id is {given}, but the chain {chain}"
                yield Violation("descriptors", place, found, "run aie-assign-bd-ids")


def _place(descriptor: Descriptor, port: Port) -> str:
    return f"{descriptor.place}: {port}, descriptor of {descriptor.buffer}"


def _reach(descriptor: Descriptor, port: Port) -> Iterator[tuple[str, str, str]]:
    """A DMA reaches its own tile's memory and locks; some memtile channels those next to it."""
    things = [("memory", descriptor.buffer.tile, str(descriptor.buffer))]
    for use in (descriptor.acquire, descriptor.release):
        if use is not None:
            things.append(("lock", use.lock.tile, str(use.lock)))
    for what, tile, name in things:
        near = abs(tile.column - port.tile.column) <= 1 and tile.row == port.tile.row == MEMTILE_ROW
        neighbour = near and port.index < NEIGHBOURLY_CHANNELS
        outside = port.tile.kind == "shim" and descriptor.buffer.external and what == "memory"
        if not (tile == port.tile or neighbour or outside):
            yield "reach", f"{what} {name} is in {tile}, which it cannot reach", "use its own"


def _pattern(
    descriptor: Descriptor, port: Port, module: LoweredModule
) -> Iterator[tuple[str, str, str]]:
    limits = module.target.limits(port.tile.kind)
    buffer, itemsize = descriptor.buffer, descriptor.buffer.dtype.itemsize
    whole = f"DMAs move whole words of {WORD_BYTES} B"
    faults = list(loop_faults(descriptor.dims, itemsize, limits))
    for what, value in (
        ("an address of", buffer.address or 0),
        ("an offset of", descriptor.offset * itemsize),
        ("a length of", descriptor.length * itemsize),
    ):
        if value % WORD_BYTES:
            faults.append(("granularity", f"{what} {value} B", whole))
    if len(descriptor.dims) > limits.dimensions:
        found = f"{len(descriptor.dims)} dimensions where a descriptor there has "
        faults.append(("pattern", f"{found}{limits.dimensions}", "leave some to the other end"))
    if not 0 < descriptor.length * itemsize <= limits.max_words * WORD_BYTES:
        found = f"a length of {descriptor.length:,} elements"
        faults.append(("pattern", found, f"it moves 1 to {limits.max_words:,} words"))
    faults += _padding(descriptor, port, limits)
    yield from faults
    if faults:
        return
    touched = descriptor.elements[descriptor.elements != PADDING]
    if touched.size and int(touched.max()) >= buffer.elements:
        found = f"it reaches element {int(touched.max()):,} of {buffer.elements:,}"
        yield "pattern", found, "correct offset, length, sizes or strides"


def _padding(
    descriptor: Descriptor, port: Port, limits: TileLimits
) -> Iterator[tuple[str, str, str]]:
    if not descriptor.pads:
        return
    if port.tile.kind != "memtile" or port.direction != "MM2S":
        yield "padding", "only a memtile that sends can pad", "pad there, or on the host"
    if len(descriptor.pads) != len(descriptor.dims):
        found = f"{len(descriptor.pads)} paddings for {len(descriptor.dims)} dimensions"
        yield "padding", found, "give one for each"
        return
    if any(count * descriptor.buffer.dtype.itemsize % WORD_BYTES for count in descriptor.pads[-1]):
        yield "granularity", "padding of part of a word", "pad the inner loop by whole words"
    yield from _too_much_padding(descriptor, limits)
    sizes = [
        size + before + after
        for (size, _), (before, after) in zip(descriptor.dims, descriptor.pads, strict=True)
    ]
    if int(np.prod(sizes)) != descriptor.length:
        found = f"a length of {descriptor.length} where the padded loops make {np.prod(sizes)}"
        yield "padding", found, "the length counts the padding"


def _too_much_padding(descriptor: Descriptor, limits: TileLimits) -> Iterator[tuple[str, str, str]]:
    cure = "pad less there, or on the host"
    for loop, pads in enumerate(reversed(descriptor.pads)):
        if loop >= len(limits.max_padding):
            if any(pads):
                found = f"padding of loop {loop + 1} from the innermost"
                yield "padding", f"{found}; {len(limits.max_padding)} can be padded", cure
            continue
        unit = "words" if loop == 0 else "steps"
        amount = max(pads) * (descriptor.buffer.dtype.itemsize / WORD_BYTES if loop == 0 else 1)
        if amount > limits.max_padding[loop]:
            found = f"padding of {amount:,.0f} {unit} of loop {loop + 1} from the innermost"
            yield "padding", f"{found}; it holds {limits.max_padding[loop]} on each side", cure


def _flow_ends(module: LoweredModule) -> Iterator[Violation]:
    fed: dict[Port, str] = {}
    for flow in module.flows:
        for port in (flow.source, flow.destination):
            channels = module.target.limits(port.tile.kind).channels
            if not 0 <= port.index < channels:
                found = f"{port} does not exist; the tile has channels 0 to {channels - 1}"
                yield Violation("wiring", f"{flow.place}: flow", found, "use one of these")
        if flow.destination in fed:
            found = f"{flow.destination} is fed by the flow at {fed[flow.destination]} already"
            yield Violation("wiring", f"{flow.place}: flow", found, "give each channel one source")
        fed[flow.destination] = flow.place


def _wiring(module: LoweredModule) -> Iterator[Violation]:
    """Each channel that moves words has a flow, and each flow a channel at both ends."""
    connected = {port for flow in module.flows for port in (flow.source, flow.destination)}
    for program in module.programs.values():
        if program.port not in connected:
            waits = "nothing is sent to it" if program.port.direction == "S2MM" else "goes nowhere"
            found = f"no flow is connected to it: what it sends {waits}"
            if program.port.direction == "S2MM":
                found = f"no flow leads to it: {waits}, and what waits for it waits for ever"
            where = f"{program.place}: {program.port}"
            yield Violation("wiring", where, found, "add the flow, or leave the channel out")
    started = set(module.programs) | set(module.allocations.values())
    for flow in module.flows:
        for port in (flow.source, flow.destination):
            if port not in started:
                found = f"{port} is never started, so nothing moves through this flow"
                yield Violation("wiring", f"{flow.place}: flow", found, "start it, or remove this")
    for name, port in module.allocations.items():
        if port not in connected:
            found = f"{port} has no flow"
            yield Violation("wiring", f"@{name}", found, "connect it to the array")


def _uncovered(module: LoweredModule) -> Iterator[Violation]:
    """What one side puts into a buffer the other takes: a core all of it, DMA what its descriptors
    say. Words that neither moves are of no concern."""
    moved: dict[tuple[Buffer, str], NDArray[np.bool_]] = {}
    places: dict[tuple[Buffer, str], str] = {}
    for port, program in module.programs.items():
        for descriptor in program.descriptors:
            buffer, key = descriptor.buffer, (descriptor.buffer, port.direction)
            words = moved.setdefault(key, np.zeros(-(-buffer.bytes // WORD_BYTES), np.bool_))
            words[descriptor.words[descriptor.words != PADDING]] = True
            places.setdefault(key, f"{descriptor.place}: {buffer} in {buffer.tile}")
    for (buffer, direction), words in moved.items():
        other = moved.get((buffer, "S2MM" if direction == "MM2S" else "MM2S"))
        if buffer.tile.kind == "core":
            other = np.ones_like(words)
        missed = np.zeros_like(words) if other is None else other & ~words
        if missed.any():
            verb = "read" if direction == "MM2S" else "write"
            found = f"its descriptors {verb} {int(words.sum()):,} of its {words.size:,} words, "
            found += f"the word {int(np.argmax(missed)):,} never"
            cure = "correct offset, length, sizes or strides"
            yield Violation("pattern", places[buffer, direction], found, cure)


def _lengths(module: LoweredModule) -> Iterator[Violation]:
    """Loops make as many elements as are moved: what comes after them depends on how many loops the
    hardware has."""
    for program in module.programs.values():
        for descriptor in program.descriptors:
            made = math.prod(size for size, _ in descriptor.dims)
            if descriptor.dims and not descriptor.pads and made != descriptor.length:
                where = f"{descriptor.place}: {program.port}, descriptor of {descriptor.buffer}"
                found = f"a length of {descriptor.length:,} where the loops make {made:,} elements"
                yield Violation("pattern", where, found, "make them agree")


def _double_writes(module: LoweredModule) -> Iterator[Violation]:
    for program in module.programs.values():
        for descriptor in program.descriptors:
            if program.port.direction == "S2MM" and descriptor.dims:
                times = Counter(descriptor.words.tolist())
                twice = [word for word, count in times.items() if count > 1]
                if twice:
                    where = f"{descriptor.place}: {program.port}"
                    found = f"it writes word {twice[0]} of {descriptor.buffer} {times[twice[0]]} "
                    yield Violation("pattern", where, f"{found}times", "correct the strides")


def _single_locks(module: LoweredModule) -> Iterator[Violation]:
    """A descriptor uses two locks or none: configureLocksInBdBlock of mlir-aie takes no other."""
    for port, program in module.programs.items():
        for descriptor in program.descriptors:
            acquire, release = descriptor.acquire, descriptor.release
            if (acquire is None) != (release is None):
                found = f"it acquires {_of(acquire)} and releases {_of(release)}"
                cure = "a descriptor uses a lock before and one after, or none"
                yield Violation("locks", f"{descriptor.place}: {port}", found, cure)


def _hand_overs(module: LoweredModule) -> Iterator[Violation]:
    """What a channel takes it gives back, and as much is about as its chain goes round."""
    for span in module.spans:
        taken = 0 if span.acquires is None else span.acquires.amount
        given = 0 if span.releases is None else span.releases.amount
        if taken != given:
            where = f"{span.descriptors[-1].place}: {span.port}"
            found = f"it acquires {_of(span.acquires)} and releases {_of(span.releases)}"
            yield Violation("locks", where, found, "hand over as much as was taken")
    group_of = {lock: group for group in lock_groups(module) for lock in group}
    for span in module.spans:
        fault = None if span.acquires is None else impatient(span.acquires, group_of)
        if span.acquires is not None and fault is not None:
            yield Violation("locks", f"{span.acquires.place}: {span.port}", *fault)
    rounds: Counter[tuple[tuple[Lock, ...], Port]] = Counter()
    reported: set[tuple[Lock, ...]] = set()
    for span in module.spans:
        if span.acquires is not None and span.acquires.lock in group_of:
            rounds[group_of[span.acquires.lock], span.port] += span.acquires.amount
    for (group, port), amount in rounds.items():
        total = sum(lock.initial for lock in group)
        if amount != total and group not in reported:
            reported.add(group)
            starts = " and ".join(f"{lock} at {lock.initial}" for lock in group)
            lock = max(group, key=lambda lock: lock.initial)
            where = f"{lock.place}: {lock} of {lock.tile}"
            found = f"{starts}: {total} in all, where {port} goes round {amount}"
            cure = "start the lock of the empty side at what the chain of descriptors holds"
            yield Violation("locks", where, found, cure)


def _of(use: UseLock | None) -> str:
    return "nothing" if use is None else f"{use.amount} of {use.lock}"
