"""What one core executes: a graph of blocks with explicit lock operations, on its tile's bytes.

The program is checked and translated once, when the machine is built: each operation becomes one
Python call on a list of values. An operation that is not known is refused then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from xdsl.dialects import func, memref
from xdsl.dialects.builtin import IntegerType
from xdsl.ir import Block, Operation, SSAValue

from npu_matmul.emulator import EmulationError
from npu_matmul.emulator.actors import Condition
from npu_matmul.emulator.blocks import Model
from npu_matmul.lowered.control import Code, Values, following, leave
from npu_matmul.lowered.locks import LockError, LockState
from npu_matmul.lowered.memory import RaceError, TileMemory
from npu_matmul.lowered.module import Buffer, CoreCode, Lock, LoweredModule, Span, UseLock
from npu_matmul.lowered.order import Clock
from npu_matmul.lowered.reading import refuse_attributes, use_lock
from npu_matmul.lowered.scalars import translate_scalar
from npu_matmul.lowered.streams import GO_ON, Pace
from npu_matmul.mlir import aie_lowered as ops
from npu_matmul.mlir.reader import DesignError, place
from npu_matmul.overlay import Tile


class AlignmentError(EmulationError):
    """A C function gets a buffer that its vector loads and stores cannot address."""


REMEMBERED = 64  # operations by which a core's wait is told from another one at the same lock

Step = Callable[[Values], None]


@dataclass(frozen=True)
class Symbol:
    """A C symbol: its model, and whether it reads ("r"), writes ("w") or updates ("rw") each
    argument."""

    model: Model
    access: tuple[str, ...]


@dataclass(frozen=True)
class Region:
    """A buffer as a core has it: a memref."""

    buffer: Buffer
    memory: TileMemory
    array: NDArray[Any]


@dataclass
class Acquire:
    use: UseLock
    lock: LockState
    condition: Condition


@dataclass
class Release:
    use: UseLock
    lock: LockState


@dataclass
class Call:
    name: str
    symbol: Symbol
    operands: tuple[int, ...]
    place: str


class CoreProgram:
    """A core's program, translated, and what it holds while it runs."""

    def __init__(
        self,
        core: CoreCode,
        module: LoweredModule,
        memories: Mapping[Tile, TileMemory],
        locks: Mapping[Lock, LockState],
        symbols: Mapping[str, Symbol],
        clock: Clock,
        pace: Pace,
    ) -> None:
        self.core = core
        self.name = str(core.tile)
        self.clock = clock
        self.kernel_calls = 0
        self.position = core.place
        self.held: list[Span] = []
        self._waits_for = ""
        self.history: deque[tuple[str, ...]] = deque(maxlen=REMEMBERED)
        self._blocks_of_history: deque[Block] = deque(maxlen=REMEMBERED)
        self._module = module
        self._memories = memories
        self._locks = locks
        self._symbols = symbols
        self._pace = pace
        self._index: dict[SSAValue, int] = {}
        self._constants: dict[int, Any] = {}
        guarded = [span for span in module.spans if span.acquires and span.releases]
        self._guarded = {d.buffer for span in guarded for d in span.descriptors}
        self._returning = {span.acquires.lock for span in guarded if span.acquires}
        self._blocks = {block: Code(block, [], lambda values: None) for block in core.body.blocks}
        for block, code in self._blocks.items():
            self._translate(block, code)
        self._block = core.body.blocks[0]
        self._entry = self._blocks[self._block]

    def run(self) -> Iterator[Condition]:
        """Execute from the first block; ends when the program does."""
        values: Values = [None] * len(self._index)
        for index, value in self._constants.items():
            values[index] = value
        code: Code | None = self._entry
        while code is not None:
            self._block = code.block
            for step in code.steps:
                if step.__class__ is Acquire:
                    yield from self._acquire(step)  # type: ignore[arg-type]
                elif step.__class__ is Release:
                    self._release(step)  # type: ignore[arg-type]
                    if self._pace.fine:
                        yield GO_ON
                elif step.__class__ is Call:
                    yield from self._call(step, values)  # type: ignore[arg-type]
                else:
                    step(values)  # type: ignore[operator]
            code = code.leave(values)

    def _acquire(self, step: Acquire) -> Iterator[Condition]:
        self.position = step.use.place
        self._waits_for = f"{step.use.amount} of lock {step.use.lock}"
        while not step.lock.open_for(step.use):
            yield step.condition
        for unit in step.lock.acquire(step.use, self.clock):
            if unit.span is not None:
                if unit.span not in self.held and unit.span.port.direction == "MM2S":
                    self._claim(unit.span)
                self.held.append(unit.span)
        self._note("acquire", step.use.lock.name, str(step.use.amount))
        if self._pace.fine:
            yield GO_ON

    def _claim(self, span: Span) -> None:
        """An empty buffer is handed over to be filled."""
        for descriptor in span.descriptors:
            memory = self._memories[descriptor.buffer.tile]
            memory.claim(self.clock, memory.words_of(descriptor))

    def _release(self, step: Release) -> None:
        self.position = step.use.place
        for _ in range(step.use.amount if step.use.lock in self._returning else 0):
            held = (s for s in self.held if s.acquires and s.acquires.lock is step.use.lock)
            given = next(held, None)
            if given is None:
                raise LockError(
                    f"{self.name} at {step.use.place} releases {step.use.lock}, but holds no "
                    f"buffer to hand over by it: an acquire is missing{self.holding()}"
                )
            self.held.remove(given)
        step.lock.release(step.use, self.clock, self.name)
        self._note("release", step.use.lock.name, str(step.use.amount))

    def _call(self, step: Call, values: Values) -> Iterator[Condition]:
        self.position = step.place
        regions = [values[operand] for operand in step.operands]
        for region, access in zip(regions, step.symbol.access, strict=True):
            self._require(region, f"passes @{step.name} the buffer")
            if (region.buffer.address or 0) % self._module.target.vector_bytes:
                raise AlignmentError(
                    f"{self.name} at {step.place} passes @{step.name} {region.buffer} at address "
                    f"{region.buffer.address}: its vectors need a multiple of "
                    f"{self._module.target.vector_bytes}, or hardware drops the low bits"
                )
            if "r" in access:
                region.memory.read(self.clock, region.memory.where(region.buffer))
        if self._pace.fine:
            yield GO_ON
        for region, access in zip(regions, step.symbol.access, strict=True):
            if "w" in access:
                region.memory.write(self.clock, region.memory.where(region.buffer))
        step.symbol.model(*(region.array for region in regions))
        self.kernel_calls += 1
        self._note("call", step.name)
        if self._pace.fine:
            yield GO_ON

    def _require(self, region: Region, verb: str) -> None:
        """What a DMA channel moves in and out may be touched only while it is held."""
        buffer = region.buffer
        if buffer in self._guarded and not any(
            descriptor.buffer is buffer for span in self.held for descriptor in span.descriptors
        ):
            guards = " and ".join(map(str, self._module.guards(buffer)))
            raise RaceError(
                f"{self.name} at {self.position} {verb} {buffer}, which it does not hold: "
                f"{guards} hand it over{self.holding()}"
            )

    def _note(self, *step: str) -> None:
        self.history.append(step)
        self._blocks_of_history.append(self._block)

    def rest_steps(self) -> int:
        """How many of its last steps come again before the next rest like this one: not what it
        did once, on its way into the loop."""
        again = following(self._block)
        if self._block not in again:
            return len(self.history)
        once = (n for n, b in enumerate(reversed(self._blocks_of_history)) if b not in again)
        return next(once, len(self.history))

    def state(self, steps: int) -> str:
        """What it waits for, and what it did last: so many steps of its program, which tell this
        wait from another one for the same lock. (Its place in the text would not do: unrolled
        loops have several that mean the same.)"""
        last = ", ".join(" ".join(step) for step in list(self.history)[-steps:] if steps)
        return f"waiting for {self._waits_for}" + (f" after {last}" if last else "")

    def holding(self) -> str:
        """What the core holds, for errors."""
        names = dict.fromkeys(str(d.buffer) for span in self.held for d in span.descriptors)
        return f"; {self.name} holds {', '.join(names) or 'nothing'}"

    def _slot(self, value: SSAValue) -> int:
        if value not in self._index:
            self._index[value] = len(self._index)
            found = self._module.values.get(value)
            if isinstance(found, Buffer):
                self._constants[self._index[value]] = self._region(found)
        return self._index[value]

    def _region(self, buffer: Buffer) -> Region:
        if not reaches(self.core.tile, buffer.tile):
            raise DesignError(f"{self.core.place}: {self.name} cannot reach {buffer.tile}'s memory")
        memory = self._memories[buffer.tile]
        return Region(buffer, memory, memory.array(buffer))

    def _translate(self, block: Block, code: Code) -> None:
        for op in block.ops:
            if op.next_op is None:
                code.leave = leave(op, self._blocks, self._slot, self.name)
            else:
                code.steps.append(self._step(op))

    def _step(self, op: Operation) -> Step | Acquire | Release | Call:
        refuse_attributes(op)
        match op:
            case ops.UseLockOp():
                return self._use_lock(op)
            case func.CallOp():
                return self._translate_call(op)
            case memref.LoadOp():
                return self._load(op)
            case memref.StoreOp():
                return self._store(op)
        scalar = translate_scalar(op, self._slot)
        if scalar is None:
            raise DesignError(
                f"{place(op)}: {self.name}: operation {op.name} is not supported in a lowered core"
            )
        return scalar

    def _use_lock(self, op: ops.UseLockOp) -> Acquire | Release:
        use = use_lock(op, self._module.values)
        if not reaches(self.core.tile, use.lock.tile):
            raise DesignError(
                f"{use.place}: {self.name} uses {use.lock} of {use.lock.tile}, which it cannot "
                "reach: only its own and those of its neighbours north, south and west"
            )
        lock = self._locks[use.lock]
        if use.acquires:
            return Acquire(use, lock, lock.condition(use))
        return Release(use, lock)

    def _translate_call(self, op: func.CallOp) -> Call:
        name = op.callee.string_value()
        if name not in self._symbols:
            raise DesignError(
                f"{place(op)}: {self.name} calls @{name}; there is a model of: "
                f"{', '.join(self._symbols)}"
            )
        symbol, arguments = self._symbols[name], tuple(op.arguments)
        if op.results or len(arguments) != len(symbol.access):
            raise DesignError(
                f"{place(op)}: {self.name}: @{name} takes {len(symbol.access)} buffers and "
                "returns nothing"
            )
        return Call(name, symbol, tuple(self._slot(value) for value in arguments), place(op))

    def _address(self, op: Any) -> Callable[[Values, Region], int]:
        """The index of the element that a load or store means."""
        slots = tuple(self._slot(index) for index in op.indices)
        where = f"{place(op)}: {self.name}"

        def address(values: Values, region: Region) -> int:
            found = 0
            for slot, size in zip(slots, region.buffer.shape, strict=True):
                index = values[slot]
                if not 0 <= index < size:
                    raise RaceError(
                        f"{where} uses index {index} of {region.buffer}, whose size is {size}"
                    )
                found = found * size + index
            return found

        return address

    def _load(self, op: memref.LoadOp) -> Step:
        source, result, address = self._slot(op.memref), self._slot(op.res), self._address(op)
        where = place(op)

        def load(values: Values) -> None:
            region = values[source]
            self.position = where
            self._require(region, "loads from")
            index = address(values, region)
            region.memory.read(self.clock, region.memory.word_of(region.buffer, index))
            values[result] = int(region.array[index])

        return self._integers(op, op.memref, load)

    def _store(self, op: memref.StoreOp) -> Step:
        value, target, address = self._slot(op.value), self._slot(op.memref), self._address(op)
        where = place(op)

        def store(values: Values) -> None:
            region = values[target]
            self.position = where
            self._require(region, "stores into")
            index = address(values, region)
            region.memory.write(self.clock, region.memory.word_of(region.buffer, index))
            region.array[index] = values[value]

        return self._integers(op, op.memref, store)

    def _integers(self, op: Operation, value: SSAValue, step: Step) -> Step:
        if not isinstance(value.type.element_type, IntegerType):  # type: ignore[attr-defined]
            raise DesignError(
                f"{place(op)}: {self.name}: only integers can be loaded and stored, not "
                f"elements of {value.type}"
            )
        return step


def reaches(core: Tile, other: Tile) -> bool:
    """Whether a core can use a tile's memory and locks: its own, and those of the cores north,
    south and west of it. Source: isLegalMemAffinity [model].

    >>> reaches(Tile(1, 3), Tile(1, 4)), reaches(Tile(1, 3), Tile(2, 3))
    (True, False)
    """
    column, row = other.column - core.column, other.row - core.row
    return other.kind == "core" and (column, row) in {(0, 0), (0, 1), (0, -1), (-1, 0)}
