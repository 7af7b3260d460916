"""A runtime sequence as plain data: what one launch asks of the shim DMAs, in order.

The same list prints as an ``aie.runtime_sequence`` (for the standard toolchain) and assembles into
instruction words (:mod:`npu_matmul.assemble`), so either can be checked against the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

Syntax = Literal["1.3", "1.4"]
SYNTAXES: tuple[Syntax, ...] = get_args(Syntax)
"""Releases of mlir-aie whose text this writes. They differ in one operation: from 1.4 (July 2026)
on, ``aiex.npu.rtp_write`` takes its value as an operand."""

MLIR_TYPES = {"int8": "i8", "int16": "i16", "int32": "i32", "bfloat16": "bf16", "float32": "f32"}


@dataclass(frozen=True)
class WriteParameter:
    """Write ``value`` to 32-bit word ``index`` of a core's runtime-parameter buffer."""

    parameter: str
    index: int
    value: int


@dataclass(frozen=True)
class Transfer:
    """One task of the shim channel that serves object FIFO ``fifo``.

    It walks four nested loops, outermost first, of ``sizes`` elements at ``strides`` elements,
    from element ``offset`` of host buffer ``argument``. The outermost loop is the number of runs;
    its stride may be 0 (a pure repeat). ``descriptor`` is the buffer descriptor it occupies until
    it is known to be complete.
    """

    fifo: str
    argument: int
    offset: int
    sizes: tuple[int, int, int, int]
    strides: tuple[int, int, int, int]
    descriptor: int
    token: bool = False


@dataclass(frozen=True)
class Wait:
    """Wait for one token of the channel that serves ``fifo``."""

    fifo: str


Step = WriteParameter | Transfer | Wait


@dataclass(frozen=True)
class Argument:
    """A host buffer of the sequence: so many elements of one type."""

    name: str
    elements: int
    dtype: np.dtype[Any]

    @property
    def memref(self) -> str:
        return f"memref<{self.elements}x{MLIR_TYPES[self.dtype.name]}>"


@dataclass(frozen=True)
class Sequence:
    """What one launch does. ``places`` says where each step stands, if it was read from a text."""

    name: str
    arguments: tuple[Argument, ...]
    steps: tuple[Step, ...]
    places: tuple[str, ...] = field(default=(), compare=False)


def linear(offset: int, elements: int, runs: int = 1, stride: int = 0) -> dict[str, Any]:
    """The pattern of ``runs`` contiguous runs of ``elements``, ``stride`` apart (0: the same
    again).

    >>> linear(64, 256, runs=3)
    {'offset': 64, 'sizes': (3, 1, 1, 256), 'strides': (0, 0, 0, 1)}
    """
    return {"offset": offset, "sizes": (runs, 1, 1, elements), "strides": (stride, 0, 0, 1)}


def to_mlir(sequence: Sequence, indent: str = "    ", syntax: Syntax = "1.3") -> str:
    """The sequence as the text of an ``aie.runtime_sequence`` operation.

    >>> print(to_mlir(Sequence("s", (), (WriteParameter("rtp", 0, 3),)), "", "1.4"), end="")
    aie.runtime_sequence @s() {
      %value_3 = arith.constant 3 : i32
      aiex.npu.rtp_write(@rtp, 0, %value_3) : i32
    }
    """
    arguments = ", ".join(f"%{a.name}: {a.memref}" for a in sequence.arguments)
    lines = [f"aie.runtime_sequence @{sequence.name}({arguments}) {{"]
    if syntax == "1.4":
        written = [step.value for step in sequence.steps if isinstance(step, WriteParameter)]
        lines += [f"  {_value(n)} = arith.constant {n} : i32" for n in dict.fromkeys(written)]
    lines += [f"  {_step_to_mlir(step, sequence.arguments, syntax)}" for step in sequence.steps]
    return "".join(f"{indent}{line}\n" for line in [*lines, "}"])


def _value(number: int) -> str:
    """The name of the value that holds a runtime parameter."""
    return f"%value_{number}"


def _step_to_mlir(step: Step, arguments: tuple[Argument, ...], syntax: Syntax) -> str:
    if isinstance(step, WriteParameter):
        value = f"{_value(step.value)}) : i32" if syntax == "1.4" else f"{step.value})"
        return f"aiex.npu.rtp_write(@{step.parameter}, {step.index}, {value}"
    if isinstance(step, Wait):
        return f"aiex.npu.dma_wait {{symbol = @{step.fifo}}}"
    argument = arguments[step.argument]
    offsets = ",".join(map(str, _offsets(step)))
    sizes = ",".join(map(str, step.sizes))
    strides = ",".join(map(str, step.strides))
    token = ", issue_token = true" if step.token else ""
    return (
        f"aiex.npu.dma_memcpy_nd(%{argument.name}[{offsets}][{sizes}][{strides}]) "
        f"{{id = {step.descriptor} : i64, metadata = @{step.fifo}{token}}} : {argument.memref}"
    )


def _offsets(step: Transfer) -> tuple[int, ...]:
    """The offset as the operation gives it: in strides, here all of it in those of one loop."""
    for loop in (3, 2, 1, 0):
        stride = step.strides[loop]
        if stride and step.offset % stride == 0:
            return tuple(step.offset // stride if i == loop else 0 for i in range(4))
    raise ValueError(
        f"transfer of @{step.fifo}: offset {step.offset} is no multiple of one of its strides "
        f"{step.strides}, so it cannot be written as MLIR"
    )
