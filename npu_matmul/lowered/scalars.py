"""Integer arithmetic of lowered cores, with the wrap-around of its types; indices have 64 bits."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from xdsl.dialects import arith
from xdsl.dialects.builtin import IndexType, IntegerAttr, IntegerType
from xdsl.ir import Attribute, Operation, SSAValue

from npu_matmul.emulator import EmulationError
from npu_matmul.mlir.aie_lowered import IndexCastUIOp
from npu_matmul.mlir.reader import DesignError, place

INDEX_BITS = 64

Values = list[Any]
Step = Callable[[Values], None]
Slot = Callable[[SSAValue], int]


def _divide(a: int, b: int) -> int:
    """Towards zero."""
    return -(-a // b) if (a < 0) != (b < 0) else a // b


_SIGNED: dict[type[Operation], Callable[[int, int], int]] = {
    arith.AddiOp: operator.add,
    arith.SubiOp: operator.sub,
    arith.MuliOp: operator.mul,
    arith.AndIOp: operator.and_,
    arith.OrIOp: operator.or_,
    arith.XOrIOp: operator.xor,
    arith.ShLIOp: operator.lshift,
    arith.ShRSIOp: operator.rshift,
    arith.DivSIOp: _divide,
    arith.RemSIOp: lambda a, b: a - b * _divide(a, b),
    arith.MinSIOp: min,
    arith.MaxSIOp: max,
}
_UNSIGNED: dict[type[Operation], Callable[[int, int], int]] = {
    arith.DivUIOp: operator.floordiv,
    arith.RemUIOp: operator.mod,
    arith.ShRUIOp: operator.rshift,
    arith.MinUIOp: min,
    arith.MaxUIOp: max,
}
_SHIFTS = (arith.ShLIOp, arith.ShRSIOp, arith.ShRUIOp)
_DIVISIONS = (arith.DivSIOp, arith.DivUIOp, arith.RemSIOp, arith.RemUIOp)
# In the order of arith.cmpi's predicates; the last four compare without sign.
_COMPARISONS = (
    operator.eq,
    operator.ne,
    operator.lt,
    operator.le,
    operator.gt,
    operator.ge,
    operator.lt,
    operator.le,
    operator.gt,
    operator.ge,
)
_FIRST_UNSIGNED = 6


def translate_scalar(op: Operation, slot: Slot) -> Step | None:
    """An operation on integers as a call on the list of values; None when it is not one.

    A value of one bit is 0 or 1; of more, a signed integer.
    """
    match op:
        case arith.ConstantOp(value=IntegerAttr()):
            return _constant(op, slot)
        case arith.CmpiOp():
            return _compare(op, slot)
        case arith.SelectOp():
            return _select(op, slot)
        case arith.IndexCastOp() | arith.ExtSIOp() | arith.TruncIOp():
            return _cast(op, slot, unsigned=False)
        case arith.ExtUIOp() | IndexCastUIOp():
            return _cast(op, slot, unsigned=True)
    if type(op) in _SIGNED or type(op) in _UNSIGNED:
        return _binary(op, slot)
    return None


def wrapped(value: int, bits: int) -> int:
    """A value as the type of so many bits holds it.

    >>> wrapped(200, 8), wrapped(-1, 1), wrapped(1 << 31, 32)
    (-56, 1, -2147483648)
    """
    value &= (1 << bits) - 1
    return value - (1 << bits) if bits > 1 and value >> (bits - 1) else value


def _bits(kind: Attribute) -> int:
    return kind.width.data if isinstance(kind, IntegerType) else INDEX_BITS


def _constant(op: arith.ConstantOp, slot: Slot) -> Step:
    assert isinstance(op.value, IntegerAttr)
    result, value = slot(op.result), wrapped(op.value.value.data, _bits(op.result.type))

    def constant(values: Values) -> None:
        values[result] = value

    return constant


def _compare(op: arith.CmpiOp, slot: Slot) -> Step:
    predicate, mask = op.predicate.value.data, (1 << _bits(op.lhs.type)) - 1
    left, right, result = slot(op.lhs), slot(op.rhs), slot(op.result)
    compare = _COMPARISONS[predicate]
    if predicate < _FIRST_UNSIGNED:

        def signed(values: Values) -> None:
            values[result] = int(compare(values[left], values[right]))

        return signed

    def unsigned(values: Values) -> None:
        values[result] = int(compare(values[left] & mask, values[right] & mask))

    return unsigned


def _select(op: arith.SelectOp, slot: Slot) -> Step:
    condition, left, right, result = map(slot, (op.cond, op.lhs, op.rhs, op.result))

    def select(values: Values) -> None:
        values[result] = values[left] if values[condition] else values[right]

    return select


def _cast(op: Operation, slot: Slot, unsigned: bool) -> Step:
    source, result = slot(op.operands[0]), slot(op.results[0])
    bits, mask = _bits(op.results[0].type), (1 << _bits(op.operands[0].type)) - 1

    def cast(values: Values) -> None:
        values[result] = wrapped(values[source] & mask if unsigned else values[source], bits)

    return cast


def _binary(op: Operation, slot: Slot) -> Step:
    bits = _bits(op.results[0].type)
    if not isinstance(op.results[0].type, IntegerType | IndexType):
        raise DesignError(f"{place(op)}: {op.name} of {op.results[0].type} is not supported")
    left, right = (slot(operand) for operand in op.operands)
    result, where = slot(op.results[0]), place(op)
    signed, unsigned = _SIGNED.get(type(op)), _UNSIGNED.get(type(op))
    mask = (1 << bits) - 1

    def binary(values: Values) -> None:
        a, b = values[left], values[right]
        if isinstance(op, _SHIFTS) and not 0 <= b < bits:
            raise EmulationError(f"{where}: {op.name} by {b} of {bits} bits has no defined result")
        if isinstance(op, _DIVISIONS) and b == 0:
            raise EmulationError(f"{where}: {op.name} by zero")
        if signed is not None:
            values[result] = wrapped(signed(a, b), bits)
        else:
            assert unsigned is not None
            values[result] = wrapped(unsigned(a & mask, b & mask), bits)

    return binary
