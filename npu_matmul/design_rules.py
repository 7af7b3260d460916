"""Design rules: what of an overlay the toolchain, the hardware or this project would not bear.

``check_text`` and ``check_file`` read a design and report everything that breaks a rule, each with
place, numbers and cure; nothing raises on the first. Limits and their sources are in
:mod:`npu_matmul.target`; here is what counts per tile, core and sequence, while memory and layouts
have ``memory_rules`` and ``layout_rules``, kernels ``kernel_rules``, C++ sources ``symbol_rules``,
and what the readers, the assembler and the emulator check as well is in ``wiring_rules``,
``transfer_rules``, ``stream_rules`` and ``balance``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from xdsl.dialects import func, scf

from npu_matmul.assemble import step_operations
from npu_matmul.balance import unbalanced
from npu_matmul.instructions import Operation, Stream
from npu_matmul.layout_rules import layout_violations
from npu_matmul.lowering import dma_ends, pools
from npu_matmul.memory_map import memory_map
from npu_matmul.memory_rules import alignment_violations, memory_violations
from npu_matmul.mlir import aie
from npu_matmul.mlir.constants import constant_of
from npu_matmul.mlir.elaborate import overlay_of, sequence_of
from npu_matmul.mlir.reader import DesignError, place, read_design
from npu_matmul.overlay import Overlay, Tile, dma_channels
from npu_matmul.sequence import Sequence, Step, Transfer, WriteParameter
from npu_matmul.stream_rules import stream_violations
from npu_matmul.symbol_rules import judged_symbols
from npu_matmul.transfer_rules import step_violations
from npu_matmul.violation import Violation
from npu_matmul.wiring_rules import channel_violation


@dataclass(frozen=True)
class Checked:
    """A design, and everything in it that breaks a rule; ``notes`` says what was not checked."""

    name: str
    overlay: Overlay
    scheme: str
    violations: tuple[Violation, ...]
    notes: tuple[str, ...] = ()


def check_text(text: str, name: str = "design.mlir", scheme: str = "basic-sequential") -> Checked:
    """Everything that is wrong with a design's MLIR text.

    Raises :class:`~npu_matmul.mlir.reader.DesignError` where it cannot be read at all.

    >>> fifo = "aie.objectfifo @f(%s, {%c}, 9 : i32) : !aie.objectfifo<memref<2048xi32>>"
    >>> tiles = "%s = aie.tile(0, 0) %c = aie.tile(0, 2)"
    >>> found = check_text(f"aie.device(npu1) {{ {tiles} {fifo} }}").violations
    >>> [(violation.rule, violation.place) for violation in found]
    [('memory', 'core (0, 2)')]
    """
    device = read_design(text, name)
    refused: list[Violation] = []
    overlay = overlay_of(device, refused)
    has_sequence = any(isinstance(op, aie.RuntimeSequenceOp) for op in device.body.block.ops)
    sequence = sequence_of(device) if has_sequence else None
    return Checked(name, overlay, scheme, (*refused, *check(overlay, sequence, scheme)))


def check_file(path: Path, scheme: str = "basic-sequential") -> Checked:
    """Everything that is wrong with the design in a file, and with the symbols of the C++ sources
    beside it that its functions are linked with; raises ``DesignError`` as well where there is no
    such file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DesignError(f"{path} cannot be read: {error}") from None
    checked = check_text(text, path.name, scheme)
    linked: dict[str, list[str]] = {}
    called = _called(checked.overlay)
    for symbol, link in checked.overlay.functions.items():
        if link is not None:
            linked.setdefault(f"{Path(link).stem}.cc", []).append(symbol)
        elif symbol in called:
            note = f"@{symbol} has no link_with: there is no source in which to look for it"
            checked = replace(checked, notes=(*checked.notes, note))
    for name, symbols in linked.items():
        violations, notes = judged_symbols(path.parent / name, symbols, name)
        checked = replace(
            checked,
            violations=(*checked.violations, *violations),
            notes=(*checked.notes, *notes),
        )
    return checked


def check(
    overlay: Overlay, sequence: Sequence | None = None, scheme: str = "basic-sequential"
) -> list[Violation]:
    """All violations of a design that was read, in the order memory, tiles, cores, sequence."""
    maps = memory_map(overlay, scheme)
    return [
        *memory_violations(overlay, maps, scheme),
        *alignment_violations(overlay, maps),
        *_channels(overlay),
        *_descriptors(overlay),
        *_locks(overlay),
        *layout_violations(overlay),
        *_acquires(overlay),
        *_unrolled(overlay),
        *(violation for core in overlay.cores for violation in unbalanced(core)),
        *(_sequence(overlay, sequence) if sequence is not None else ()),
    ]


def _called(overlay: Overlay) -> set[str]:
    calls = (op for core in overlay.cores for op in core.body.walk() if isinstance(op, func.CallOp))
    return {call.callee.string_value() for call in calls}


def _channels(overlay: Overlay) -> Iterator[Violation]:
    """Those of shims are refused, or reported, when the design is read."""
    for channel in dma_channels(overlay.fifos.values()):
        if channel.tile.kind != "shim":
            yield from channel_violation(channel, overlay.target)


def _descriptors(overlay: Overlay) -> Iterator[Violation]:
    needed: dict[tuple[Tile, int], dict[str, int]] = {}
    for end in dma_ends(overlay):
        group = end.index % overlay.target.limits(end.tile.kind).channel_groups
        users = needed.setdefault((end.tile, group), {})
        users[end.fifo.name] = users.get(end.fifo.name, 0) + end.descriptors
    for (tile, group), users in needed.items():
        limits = overlay.target.limits(tile.kind)
        count, allowed = sum(users.values()), limits.descriptors_per_group
        if count > allowed:
            which = ["even", "odd"][group] + " channels" if limits.channel_groups > 1 else "DMA"
            uses = ", ".join(f"@{name} {number}" for name, number in users.items() if number)
            yield Violation(
                "descriptors",
                str(tile),
                f"{count} buffer descriptors needed where its {which} can use {allowed}: {uses}",
                "each buffer of a FIFO takes one: use smaller depths or fewer pieces",
            )


def _locks(overlay: Overlay) -> Iterator[Violation]:
    needed: dict[Tile, int] = {}
    for pool in pools(overlay):
        needed[pool.tile] = needed.get(pool.tile, 0) + 2 * pool.lock_pairs
    for tile, count in sorted(needed.items()):
        allowed = overlay.target.limits(tile.kind).locks
        if count > allowed:
            found = f"{count} locks needed where it has {allowed}"
            cure = "each FIFO takes two, in joins and distributions two a piece: use fewer"
            yield Violation("locks", str(tile), found, cure)


def _acquires(overlay: Overlay) -> Iterator[Violation]:
    """Cores take elements only of FIFOs that end at them, and no more than these are deep."""
    for core in overlay.cores:
        for (name, port), count in core.acquires.items():
            where = f"{core.place}: {core.tile}"
            fifo = overlay.fifos.get(name)
            ends = () if fifo is None else fifo.ends[1:] if port == "Consume" else fifo.ends[:1]
            if fifo is None or core.tile not in ends:
                found = f"is not on the {port} side of @{name}"
                yield Violation("wiring", where, found, "make it an end of that FIFO")
                continue
            depth = fifo.depths[ends.index(core.tile) + (port == "Consume")]
            if count > depth:
                yield Violation(
                    "depth",
                    where,
                    f"acquires {count} of @{name} at once, whose depth there is {depth}",
                    f"make it {count + 1}, so that the next one can arrive meanwhile",
                )


def _unrolled(overlay: Overlay) -> Iterator[Violation]:
    """Loops that the toolchain unrolls, by the depths of what they acquire, must go round a known
    number of times. Source: unrollForLoops of mlir-aie's objectFifo pass."""
    for core in overlay.cores:
        for op in () if core.dynamic else core.body.walk():
            if not isinstance(op, scf.ForOp):
                continue
            if not any(isinstance(inner, aie.AcquireOp) for inner in op.body.block.ops):
                continue
            bounds = constant_of(op.lb), constant_of(op.ub)
            if None in bounds or bounds[0] >= bounds[1]:  # type: ignore[operator]
                found = "a loop that acquires goes round "
                found += "as often as is known at run time" if None in bounds else "no times"
                yield Violation(
                    "loops",
                    f"{place(op)}: {core.tile}",
                    f"{found}, but the toolchain unrolls it",
                    "give the core dynamic_objfifo_lowering = true, which keeps its loops",
                )


def _sequence(overlay: Overlay, sequence: Sequence) -> Iterator[Violation]:
    allowed = overlay.target.max_arguments
    if len(sequence.arguments) > allowed:
        found = f"{len(sequence.arguments)} data buffers where a launch has {allowed}"
        place = f"sequence @{sequence.name}"
        yield Violation("arguments", place, found, "put several into one, at offsets")
    operations: list[Operation] = []
    places: list[str] = []
    for position, step in enumerate(sequence.steps):
        where = f"sequence @{sequence.name}, step {position}"
        if sequence.places:
            where = f"{sequence.places[position]}: {where}"
        violations = list(step_violations(step, sequence, overlay, where))
        yield from violations
        if violations and isinstance(step, Transfer):
            # What it moves is judged; it still takes its turn, whatever its loops.
            d3, d2, d1, d0 = (max(size, 1) for size in step.sizes)
            step = replace(step, offset=0, sizes=(d3, d2, d1, d0))
        if _names_what_there_is(step, sequence, overlay):
            operations += step_operations(step, sequence, overlay)
            places += [where] * (len(operations) - len(places))
    stream = Stream(overlay.target, overlay.columns, tuple(operations))
    yield from dict.fromkeys(stream_violations(stream, places))  # of several words, one step


def _names_what_there_is(step: Step, sequence: Sequence, overlay: Overlay) -> bool:
    """Whether a step can be followed; the rules of steps report it where not."""
    if isinstance(step, WriteParameter):
        return step.parameter in overlay.parameters
    known = step.fifo in overlay.channels
    return known and not (
        isinstance(step, Transfer) and not 0 <= step.argument < len(sequence.arguments)
    )
