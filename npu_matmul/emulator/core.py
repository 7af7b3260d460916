"""What one core executes: the body of its ``aie.core``, as a generator that yields what it waits
for.

The body is checked and translated once, when the machine is built; an operation that is not in the
table below is refused then. Running it costs one Python call per operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects import arith, func, memref, scf
from xdsl.dialects.builtin import IntegerAttr, i32
from xdsl.ir import Block, Operation, SSAValue

from npu_matmul.balance import unbalanced
from npu_matmul.emulator import POISON, EmulationError
from npu_matmul.emulator.actors import Condition
from npu_matmul.emulator.blocks import Model
from npu_matmul.emulator.rings import End
from npu_matmul.mlir import aie
from npu_matmul.mlir.reader import DesignError, place
from npu_matmul.overlay import Core, Tile

Environment = dict[SSAValue, Any]
Step = Callable[[Environment], Condition | None]  # None: done; a condition: try again when it holds

MAX_ROUNDS = 100_000  # of loops without an acquire: a core that never waits would run for ever


@dataclass
class ParameterMemory:
    """A core's runtime-parameter buffer; words that nobody wrote cannot be read."""

    name: str
    tile: Tile
    address: int | None
    words: NDArray[np.int32]
    written: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.written = np.zeros(self.words.size, np.bool_)


@dataclass(frozen=True)
class Element:
    """An element of a FIFO that a core got at some point; it may use it only while it holds it."""

    end: End
    number: int


@dataclass(frozen=True)
class Loop:
    lower: SSAValue
    upper: SSAValue
    step: SSAValue
    variable: SSAValue
    body: list[Step | Loop]
    place: str


@dataclass
class CoreProgram:
    """A core's body, translated. ``ends`` are its sides of FIFOs by (name, port)."""

    core: Core
    ends: Mapping[tuple[str, aie.Port], End]
    parameters: Mapping[SSAValue, ParameterMemory]
    models: Mapping[str, Model]
    kernel_calls: int = 0
    _loops: list[int] = field(default_factory=list)  # under way, outermost first
    _rounds: int = 0  # of loops, since the last acquire

    def __post_init__(self) -> None:
        self.name = str(self.core.tile)
        if len(self.core.body.blocks) != 1:
            raise DesignError(f"{self.core.place}: {self.name}: a core body must be one block")
        block = self.core.body.block
        for violation in unbalanced(self.core):
            raise DesignError(str(violation))
        self._steps = self._translate(block)

    def run(self) -> Iterator[Condition]:
        """Execute the body from its start; ends when the body does, which a good core never lets
        happen."""
        return self._run(self._steps, {})

    def position(self) -> tuple[int, ...]:
        """How far each loop is, but for the body's last, which counts for ever."""
        return tuple(self._loops)

    def _run(self, steps: list[Step | Loop], env: Environment) -> Iterator[Condition]:
        for step in steps:
            if step.__class__ is Loop:
                self._loops.append(0)
                counts = step is not self._steps[-1]
                for value in range(env[step.lower], env[step.upper], env[step.step]):  # type: ignore[union-attr]
                    self._loops[-1] = value if counts else 0
                    self._count_round(step.place)  # type: ignore[union-attr]
                    env[step.variable] = value  # type: ignore[union-attr]
                    yield from self._run(step.body, env)  # type: ignore[union-attr]
                self._loops.pop()
            else:
                while (condition := step(env)) is not None:  # type: ignore[operator]
                    yield condition

    def _count_round(self, where: str) -> None:
        self._rounds += 1
        if self._rounds > MAX_ROUNDS:
            raise EmulationError(
                f"{where}: {self.name}: {MAX_ROUNDS:,} rounds of loops without an acquire; a core "
                "that waits for nothing never ends"
            )

    def _translate(self, block: Block) -> list[Step | Loop]:
        return [step for op in block.ops if (step := self._translate_op(op)) is not None]

    def _translate_op(self, op: Operation) -> Step | Loop | None:
        if op.attributes:
            raise DesignError(
                f"{place(op)}: {op.name}: attribute {next(iter(op.attributes))!r} is not supported"
            )
        match op:
            case arith.ConstantOp(value=IntegerAttr()):
                return _constant(op)
            case arith.IndexCastOp():
                return _index_cast(op)
            case memref.LoadOp():
                return self._load(op)
            case scf.ForOp():
                return self._loop(op)
            case aie.AcquireOp():
                return self._acquire(op)
            case aie.ReleaseOp():
                return self._release(op)
            case aie.AccessOp():
                return _access(op)
            case func.CallOp():
                return self._call(op)
            case aie.EndOp() | scf.YieldOp():
                return None
        raise DesignError(
            f"{place(op)}: {self.name}: operation {op.name} is not supported in a core"
        )

    def _loop(self, op: scf.ForOp) -> Loop:
        if op.iter_args:
            raise DesignError(
                f"{place(op)}: {self.name}: loops that carry values are not supported"
            )
        step = op.step.owner
        if not (isinstance(step, arith.ConstantOp) and step.value.value.data > 0):  # type: ignore[union-attr]
            raise DesignError(f"{place(op)}: {self.name}: a loop's step must be a constant above 0")
        body = self._translate(op.body.block)
        return Loop(op.lb, op.ub, op.step, op.body.block.args[0], body, place(op))

    def _end(self, op: aie.AcquireOp | aie.ReleaseOp) -> End:
        key = op.objFifo_name.string_value(), op.port.data
        if key not in self.ends:
            raise DesignError(
                f"{place(op)}: {self.name} is not on the {key[1].value} side of @{key[0]}"
            )
        return self.ends[key]

    def _acquire(self, op: aie.AcquireOp) -> Step:
        end, size, result = self._end(op), op.size.value.data, op.subview
        if size > end.ring.depth:
            raise DesignError(
                f"{place(op)}: {self.name} acquires {size} of {end.ring}, "
                f"which has {end.ring.depth}"
            )
        # Of this operation alone, so that the rest state tells where in its body a core waits.
        conditions = [end.condition(count, f" at {place(op)}") for count in range(1, size + 1)]

        def acquire(env: Environment) -> Condition | None:
            missing = size - end.held
            if missing > 0:
                if not end.can_take(missing):
                    return conditions[missing - 1]
                self._rounds = 0
                for _ in range(missing):
                    number = end.take()
                    if end.writes:
                        end.data(number).fill(POISON)
            env[result] = [Element(end, end.released + i) for i in range(size)]
            return None

        return acquire

    def _release(self, op: aie.ReleaseOp) -> Step:
        end, size = self._end(op), op.size.value.data

        def release(env: Environment) -> None:
            end.give(size)

        return release

    def _load(self, op: memref.LoadOp) -> Step:
        if op.memref not in self.parameters or len(op.indices) != 1:
            raise DesignError(
                f"{place(op)}: {self.name}: only runtime-parameter buffers of rank 1 can be loaded"
            )
        owner = self.parameters[op.memref].tile
        if owner != self.core.tile or op.res.type != i32:
            raise DesignError(
                f"{place(op)}: {self.name} can load only i32 words of its own buffers, "
                f"not {op.res.type} of {owner}'s"
            )
        memory, index, result = self.parameters[op.memref], op.indices[0], op.res

        def load(env: Environment) -> None:
            word = env[index]
            if not (0 <= word < memory.words.size and memory.written[word]):
                raise EmulationError(
                    f"{place(op)}: {self.name} reads word {word} of parameter "
                    f"@{memory.name}, which nobody has written; "
                    "write it in the sequence, and read it after the first acquire of an input"
                )
            env[result] = int(memory.words[word])

        return load

    def _call(self, op: func.CallOp) -> Step:
        symbol = op.callee.string_value()
        if symbol not in self.models:
            raise DesignError(
                f"{place(op)}: {self.name} calls @{symbol}; there is a "
                f"model of: {', '.join(self.models)}"
            )
        model, operands = self.models[symbol], tuple(op.arguments)
        if op.results or not all(isinstance(value.owner, aie.AccessOp) for value in operands):
            raise DesignError(
                f"{place(op)}: {self.name}: @{symbol} may only take elements of FIFOs, "
                "and return nothing"
            )

        def call(env: Environment) -> None:
            self.kernel_calls += 1
            arrays = []
            for value in operands:
                element = env[value]
                if not element.end.owns(element.number):
                    raise EmulationError(
                        f"{place(op)}: {self.name} passes @{symbol} an element of "
                        f"{element.end.ring} that it has released"
                    )
                arrays.append(element.end.array(element.number))
            model(*arrays)

        return call


def _constant(op: arith.ConstantOp) -> Step:
    assert isinstance(op.value, IntegerAttr)
    value, result = op.value.value.data, op.result

    def constant(env: Environment) -> None:
        env[result] = value

    return constant


def _index_cast(op: arith.IndexCastOp) -> Step:
    operand, result = op.input, op.result

    def cast(env: Environment) -> None:
        env[result] = env[operand]

    return cast


def _access(op: aie.AccessOp) -> Step:
    subview, index, output = op.subview, op.index.value.data, op.output

    def access(env: Environment) -> None:
        env[output] = env[subview][index]

    return access
