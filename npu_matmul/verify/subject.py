"""A module with all that running it needs: its models, its product, the launches to try.

What is wrong with it as it stands, or with the stream that came with it, is noted on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from npu_matmul.assemble import step_operations
from npu_matmul.emulator.machine import Machine
from npu_matmul.instructions import (
    Operation,
    PatchAddress,
    Stream,
    StreamError,
    WriteDescriptor,
    WriteWord,
    decode,
)
from npu_matmul.kernel import Kernel
from npu_matmul.lowered.core import Symbol
from npu_matmul.lowered.machine import LoweredMachine
from npu_matmul.lowered.module import Buffer, LoweredModule
from npu_matmul.lowered.reading import is_lowered, lowered_of
from npu_matmul.lowered.rules import mistakes, refusals
from npu_matmul.lowered.schedules import Schedule
from npu_matmul.lowered.wiring import Way, arguments, destinations, sources
from npu_matmul.mlir import aie
from npu_matmul.mlir.elaborate import overlay_of, sequence_of
from npu_matmul.mlir.reader import DesignError
from npu_matmul.overlay import Overlay, Tile
from npu_matmul.sequence import Sequence as RuntimeSequence
from npu_matmul.verify.product import NoProduct, Product, find_product, find_symbols
from npu_matmul.verify.traffic import Trial, made_up_trials, trial_of_sequence, trial_of_stream

FINE_WORDS = 1024  # of one descriptor: longer ones are moved in larger pieces


@dataclass(frozen=True)
class Problem:
    """What is wrong with a ``part``: the module, or the instruction stream that was given."""

    part: str
    kind: str
    text: str
    schedule: str = ""


def module_problem(kind: str, text: str, schedule: str = "") -> Problem:
    return Problem("module", kind, text, schedule)


class Subject:
    """A module with what running it needs: overlay, models, product, and the launches to try.

    ``built`` is the kernel that the module was made of, where that is known.
    """

    def __init__(
        self, device: aie.DeviceOp, name: str, insts: bytes | None, built: Kernel | None = None
    ) -> None:
        self.name = name
        self.problems: list[Problem] = []
        self.module: LoweredModule | None = None
        self.product: Product | None = None
        self.symbols: dict[str, Symbol] = {}
        self.own: list[Trial] = []
        self.made_up: list[Trial] = []
        self.level = "object FIFOs"
        if is_lowered(device):
            self.level = "lowered"
            self.module = lowered_of(device, name)
            self.overlay = self.module.overlay
            self.problems += [module_problem(v.rule, str(v)) for v in refusals(self.module)]
        else:
            self.overlay = overlay_of(device)
        self.runnable = not self.problems
        self.symbols, kernel, multiplying = _found_symbols(device, built)
        try:
            self.product = find_product(device, self.overlay, kernel, multiplying)
            self.reference = str(self.product)
        except NoProduct as why:
            self.reference = f"none: {why}"
        if self.module is not None and self.runnable:
            self.problems += [module_problem(v.rule, str(v)) for v in mistakes(self.module)]
            if self.product is not None:
                self.problems += list(_wrong_ways(self.module, self.product))
        if self.runnable:
            self._plan(device, insts)

    def boot(self, schedule: Schedule) -> Machine | LoweredMachine:
        if self.module is not None:
            return LoweredMachine(self.module, self.symbols, schedule)
        models = {name: symbol.model for name, symbol in self.symbols.items()}
        return Machine(self.overlay, models, settle=schedule.settle)

    @property
    def coarse(self) -> bool:
        """Whether its transfers are too long to be moved word by word."""
        programs = () if self.module is None else self.module.programs.values()
        lengths = [d.words.size for program in programs for d in program.descriptors]
        return max(lengths, default=0) > FINE_WORDS

    def _plan(self, device: aie.DeviceOp, insts: bytes | None) -> None:
        has_sequence = any(isinstance(op, aie.RuntimeSequenceOp) for op in device.body.block.ops)
        if has_sequence:
            self._plan_sequence(sequence_of(device), insts)
        elif insts is not None:
            trial = trial_of_stream("the given stream", decode(insts), self.overlay, self.product)
            self.own.append(trial)
        if self.product is not None:
            self.made_up += made_up_trials(self.product, self.overlay)
        if not self.own and not self.made_up and not self.problems:
            raise DesignError(
                "there is nothing to run: the module has no runtime sequence and is no product "
                f"that launches could be made up for ({self.reference}); give --insts"
            )

    def _plan_sequence(self, sequence: RuntimeSequence, insts: bytes | None) -> None:
        try:
            trial = trial_of_sequence(sequence, self.overlay, self.product)
        except StreamError as error:
            self.problems.append(module_problem("sequence", str(error)))
            return
        self.own.append(trial)
        if insts is not None:
            places = operation_places(sequence, self.overlay)
            self.problems += stream_problems(trial.stream.encode(), insts, places)


def _found_symbols(
    device: aie.DeviceOp, built: Kernel | None
) -> tuple[dict[str, Symbol], Kernel | None, tuple[str, ...]]:
    try:
        return find_symbols(device, built)
    except NoProduct as error:
        raise DesignError(str(error)) from None


def stream_problems(ours: bytes, theirs: bytes, places: Sequence[str] = ()) -> list[Problem]:
    """Where a given instruction stream first differs from the one that was assembled here.

    ``places`` says where the operations of the latter come from.
    """
    if ours == theirs:
        return []
    try:
        given = decode(theirs)
    except StreamError as error:
        return [Problem("stream", "stream", f"the given stream cannot be read: {error}")]
    assembled = decode(ours)
    if (given.target, given.columns) != (assembled.target, assembled.columns):
        text = f"the given stream is for {_array(given)}, the assembled one for {_array(assembled)}"
        return [Problem("stream", "stream", text)]
    want = assembled.operations
    pairs = zip(want, given.operations, strict=False)
    shorter = min(len(want), len(given.operations))
    first = next((n for n, (a, b) in enumerate(pairs) if a != b), shorter)
    where = f"{places[first]}: " if first < len(places) else ""
    text = f"{where}operation {first}: {_difference(want, given.operations, first)}"
    return [Problem("stream", "stream", text)]


def _array(stream: Stream) -> str:
    return f"{stream.columns} column{'s' if stream.columns > 1 else ''} of {stream.target.name}"


def _difference(want: tuple[Operation, ...], given: tuple[Operation, ...], number: int) -> str:
    """How an operation of the given stream differs from the assembled one."""
    if number >= len(want) or number >= len(given):
        longer = "the given stream goes on" if len(given) > len(want) else "the given stream ends"
        return f"{longer}; it has {len(given)} operations, the assembled one {len(want)}"
    ours, theirs = want[number], given[number]
    if type(ours) is not type(theirs):
        return f"the given stream has {_named(theirs)}, the assembled one {_named(ours)}"
    parts = dict(vars(ours)), dict(vars(theirs))
    if isinstance(ours, WriteDescriptor) and isinstance(theirs, WriteDescriptor):
        parts = vars(ours) | vars(ours.descriptor), vars(theirs) | vars(theirs.descriptor)
    fields = [
        f"{name} {parts[1][name]} where the assembled one has {value}"
        for name, value in parts[0].items()
        if value != parts[1][name] and name != "descriptor"
    ]
    return f"{_named(ours)} of the given stream has {', '.join(fields)}"


def _named(operation: Operation) -> str:
    """An operation by its name, and where it does what it does."""
    name = type(operation).__name__
    match operation:
        case WriteWord():
            return f"{name} to {operation.tile} at {operation.offset:#x}"
        case WriteDescriptor() | PatchAddress():
            return f"{name} of descriptor {operation.number} of column {operation.column}"
        case _:
            return f"{name} for {operation.channel}"


def operation_places(sequence: RuntimeSequence, overlay: Overlay) -> list[str]:
    """Where each operation of a sequence's stream stands in its text."""
    return [
        place
        for step, place in zip(sequence.steps, sequence.places, strict=True)
        for _ in step_operations(step, sequence, overlay)
    ]


def _wrong_ways(module: LoweredModule, product: Product) -> Iterator[Problem]:
    """The first flow that brings a core what another one should have, or takes its C elsewhere."""
    names = {port: name for name, port in module.allocations.items()}
    pieces: dict[str, list[tuple[int, ...]]] = {name: [] for name in product.c}
    for row, cores in enumerate(product.cores):
        for column, tile in enumerate(cores):
            wanted = product.a[row], product.b[column], product.c[column]
            for position, want in enumerate(wanted):
                for buffer in product_buffers(module, product, tile, position):
                    ways = (destinations if position == 2 else sources)(buffer, module)
                    text = _wrong_way(ways, names, want)
                    if position == 2 and not text:
                        pieces[want].append(ways[0].offsets)
                        if pieces[want] != sorted(pieces[want]):
                            text = f"lands in @{want} before that of the core row before it"
                            text += f", by the flows at {ways[0].places}"
                    if text:
                        what = f"{buffer.place}: {'ABC'[position]} of {tile}, {buffer},"
                        yield module_problem("wiring", f"{what} {text}")
                        return


def product_buffers(
    module: LoweredModule, product: Product, tile: Tile, position: int
) -> Iterator[Buffer]:
    """What a core passes to the functions that multiply, as A, B or C."""
    core = next(core for core in module.cores if core.tile == tile)
    for symbol in product.symbols:
        yield from arguments(core, module, symbol, position)


def _wrong_way(ways: list[Way], names: dict[Any, str], want: str) -> str:
    for way in ways:
        name = names.get(way.end, str(way.end))
        if name != want:
            return f"is connected to @{name} instead of @{want} by the flows at {way.places}"
    return "" if ways else f"is connected to no shim channel; it should be to @{want}"
