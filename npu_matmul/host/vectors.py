"""Blocks of elements as LLVM vectors, from memory to memory, for numba loops.

numba alone leaves such loops scalar as soon as rows are short or indices are computed. These
intrinsics emit generic vector instructions of any width, which LLVM turns into what the CPU has.
A block is ``rows`` x ``lanes`` elements. Addresses are integers and need no alignment; a stride is
the distance of rows in bytes, None where they follow one another. Types, rows and lanes must be
compile-time constants.

Types are ``"int8"``, ``"int32"``, ``"float32"``, ``"float64"``, ``"bfloat16"``, and two that are
only written: ``"bfloat16 low"``, what rounding to bf16 leaves, rounded too (0 where the rounded
number is not finite), and ``"bfloat16 finite"``, the rounded number, 0 where it is not finite.
A target may be several types joined by ``"|"``, written at once, ``apart`` bytes from each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_INT8, _INT16, _INT32, _INT64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_ELEMENTS: dict[str, Any] = {
    "int8": _INT8,
    "int32": _INT32,
    "float32": _FLOAT,
    "float64": _DOUBLE,
    "bfloat16": _INT16,
    "bfloat16 low": _INT16,
    "bfloat16 finite": _INT16,
}
# Adding 1.5 * 2**(bits of the mantissa) rounds to an integer, ties to even, and leaves it in the
# lowest bits.
_ROUNDING = {"float32": (1.5 * 2**23, _INT32), "float64": (1.5 * 2**52, _INT64)}

# numba does not see that a function it has cached uses another file. Functions built of these
# intrinsics keep this among their constants, so that they are compiled again when the file changes.
REVISION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]

ROW_LANES = (64, 8, 1)

compiled: Any = intrinsic(prefer_literal=True)

Value = Any  # of LLVM


def element_bytes(name: str) -> int:
    """Bytes of one element of a type."""
    return _bytes(_ELEMENTS[name.split("|")[0]])


@compiled
def convert_block(
    context, source_type, target_type, factors, rows, lanes,
    source, source_stride, target, target_stride, row_factors, column_factors, apart=None,
):  # fmt: skip
    """Read a block, multiply it by factors, convert it, and write it.

    ``factors`` says which there are: ``""``, ``"rows"``, ``"columns"`` or ``"rows columns"``. Row
    factors are one number for all rows, or the address of one per row; column factors the address
    of one per lane. They have the type that is computed in: the source's where that is float32 or
    float64, float32 for bfloat16, the target's for int32.

    Floats are rounded to nearest even. As int8 they must lie within [-128, 127] then, and must not
    be NaN; as bf16, NaN becomes the quiet NaN of its sign. INT32 becomes int8 clipped to
    [-128, 127], and floats rounded to nearest even.
    """
    given = source_type, target_type, factors
    conversion = _Conversion(*(constant.literal_value for constant in given))
    height, width = rows.literal_value, lanes.literal_value

    def codegen(context, builder, signature, args):
        values = [
            None if kind is types.none else value
            for kind, value in zip(signature.args, args, strict=True)
        ]
        conversion.emit(builder, height, width, *values[5:])
        return context.get_dummy_value()

    addresses = source, source_stride, target, target_stride, row_factors, column_factors
    return types.void(*given, rows, lanes, *addresses, _given(apart)), codegen


@compiled
def convert_row(
    context, source_type, target_type, factors,
    columns, source, target, row_factor, column_factors, apart=None,
):  # fmt: skip
    """One row of any number of columns, as :func:`convert_block`."""
    given = source_type, target_type, factors
    conversion = _Conversion(*(constant.literal_value for constant in given))

    def codegen(context, builder, signature, args):
        size, x, out, by_row, by_column, *apart = args[3:]

        def emit(lanes: int, x: Value, out: Value, by_column: Value) -> None:
            conversion.emit(builder, 1, lanes, x, None, out, None, by_row, by_column, *apart)

        _along(builder, size, list(zip((x, out, by_column), conversion.sizes, strict=True)), emit)
        return context.get_dummy_value()

    addresses = source, target, row_factor, column_factors
    return types.void(*given, columns, *addresses, _given(apart)), codegen


@compiled
def keep_largest(context, element_type, rows, columns, source, stride, target):
    """Raise each element of ``target`` to the largest magnitude in its column of ``rows`` rows.

    Magnitudes are the bits of a float without its sign, as an unsigned integer of its size: their
    order is that of the numbers, infinity lies above all numbers, and NaN above infinity.
    """
    bits = _bits_of(element_type.literal_value)

    def codegen(context, builder, signature, args):
        size, start, stride, out = args[2:]

        def emit(lanes: int, start: Value, out: Value) -> None:
            kept = _Rows(builder, 0, 1, lanes)
            largest = kept.load(out, None, bits)
            for row in range(rows.literal_value):
                value = _Rows(builder, row, 1, lanes).load(start, stride, bits)
                largest = _larger(builder, largest, _magnitude(builder, value))
            kept.store(largest, out, None)

        _along(builder, size, [(start, _bytes(bits)), (out, _bytes(bits))], emit)
        return context.get_dummy_value()

    return types.void(element_type, rows, columns, source, stride, target), codegen


@compiled
def largest_magnitude(context, element_type, columns, source):
    """The largest magnitude of one row, as of :func:`keep_largest`; 0 of none."""
    bits = _bits_of(element_type.literal_value)

    def codegen(context, builder, signature, args):
        _, size, start = args
        largest = cgutils.alloca_once_value(builder, bits(0))

        def emit(lanes: int, start: Value) -> None:
            value = _magnitude(builder, _Rows(builder, 0, 1, lanes).load(start, None, bits))
            value = _larger(builder, _largest_lane(builder, value), builder.load(largest))
            builder.store(value, largest)

        _along(builder, size, [(start, _bytes(bits))], emit)
        return builder.load(largest)

    result = types.Integer.from_bitwidth(bits.width, signed=False)
    return result(element_type, columns, source), codegen


@compiled
def transpose_block(context, element_type, lanes, source, source_stride, target, target_stride):
    """Write a square block of ``lanes`` rows, a power of two, with rows and columns exchanged."""
    element, size = _ELEMENTS[element_type.literal_value], lanes.literal_value

    def codegen(context, builder, signature, args):
        start, source_stride, out, target_stride = args[2:]
        rows = [_Rows(builder, i, 1, size) for i in range(size)]
        lines = [row.load(start, source_stride, element) for row in rows]
        low_and_high = [
            [x for i in lanes for x in (i, size + i)]
            for lanes in (range(size // 2), range(size // 2, size))
        ]
        # a perfect shuffle of the rows is one bit of their index exchanged with one of the lanes'
        for _ in range(size.bit_length() - 1):
            pairs = zip(lines[: size // 2], lines[size // 2 :], strict=True)
            lines = [_picked(builder, a, b, mask) for a, b in pairs for mask in low_and_high]
        for row, line in zip(rows, lines, strict=True):
            row.store(line, out, target_stride)
        return context.get_dummy_value()

    addresses = source, source_stride, target, target_stride
    return types.void(element_type, lanes, *addresses), codegen


@compiled
def add_partials(context, element_type, columns, total, partials, stride, count):
    """Add ``count`` rows to the row ``total``, in their order; modulo 2**32 for int32."""
    element = _ELEMENTS[element_type.literal_value]

    def codegen(context, builder, signature, args):
        size, total, partials, stride, count = args[1:]

        def emit(lanes: int, total: Value, partials: Value) -> None:
            row = _Rows(builder, 0, 1, lanes)
            value = cgutils.alloca_once_value(builder, row.load(total, None, element))
            with cgutils.for_range(builder, count) as loop:
                place = builder.add(partials, builder.mul(loop.index, stride))
                add = builder.fadd if element == _FLOAT else builder.add
                sum_ = add(builder.load(value), row.load(place, None, element))
                builder.store(sum_, value)
            row.store(builder.load(value), total, None)

        _along(builder, size, [(total, _bytes(element)), (partials, _bytes(element))], emit)
        return context.get_dummy_value()

    return types.void(element_type, columns, total, partials, stride, count), codegen


@compiled
def float_of_bits(context, bits):
    """The float32 or float64 that a uint32 or uint64 holds the bits of."""
    result = types.float32 if bits.bitwidth == 32 else types.float64

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(result))

    return result(bits), codegen


def _given(argument: Any) -> Any:
    """The type of an argument that may be left out."""
    return types.Omitted(None) if argument is None else argument


class _Conversion:
    """From one element type to another, with factors on the way."""

    def __init__(self, read: str, write: str, factors: str) -> None:
        self.read, self.writes, self.factors = read, write.split("|"), factors

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Bytes of an element of the source, of the target, and of a factor."""
        factor_bytes = 8 if "float64" in (self.read, self.writes[0]) else 4
        return element_bytes(self.read), element_bytes(self.writes[0]), factor_bytes

    def emit(
        self, builder: Any, height: int, width: int, start: Value, source_stride: Value | None,
        out: Value, target_stride: Value | None, by_row: Value, by_column: Value,
        apart: Value | None = None,
    ) -> None:  # fmt: skip
        # halves are joined to one vector, so a power of two of rows, else row by row
        step = height if height & (height - 1) == 0 else 1
        for first in range(0, height, step):
            memory = _Rows(builder, first, step, width)
            value = memory.load(start, source_stride, _ELEMENTS[self.read])
            value = _widened(builder, value, self.read, self.writes[0])
            if "rows" in self.factors:
                value = builder.fmul(value, memory.row_factors(by_row, value.type.element))
            if "columns" in self.factors:
                value = builder.fmul(value, memory.column_factors(by_column, value.type.element))
            for i, kind in enumerate(self.writes):
                target = builder.add(out, builder.mul(apart, _INT64(i))) if i else out
                memory.store(_narrowed(builder, value, kind), target, target_stride)


class _Rows:
    """Rows ``first`` to ``first + count`` of a block in memory, as one vector."""

    def __init__(self, builder: Any, first: int, count: int, lanes: int) -> None:
        self.builder, self.first, self.count, self.lanes = builder, first, count, lanes

    def load(self, start: Value, stride: Value | None, element: Any) -> Value:
        if stride is None:
            offset = self.first * self.lanes * _bytes(element)
            return self._load(self._plus(start, _INT64(offset)), element, self.count * self.lanes)
        parts = [self._load(self._row(start, stride, i), element, self.lanes) for i in self._range]
        return _joined(self.builder, parts)

    def store(self, value: Value, start: Value, stride: Value | None) -> None:
        if stride is None:
            offset = self.first * self.lanes * _bytes(value.type.element)
            self._store(value, self._plus(start, _INT64(offset)))
            return
        for i in self._range:
            x = (i - self.first) * self.lanes
            part = _lanes(self.builder, value, range(x, x + self.lanes))
            self._store(part, self._row(start, stride, i))

    def column_factors(self, start: Value, element: Any) -> Value:
        """The factor of each lane, on each row."""
        factors = self._load(start, element, self.lanes)
        return _lanes(self.builder, factors, [*range(self.lanes)] * self.count)

    def row_factors(self, given: Value, element: Any) -> Value:
        """The factor of each row, on each of its lanes."""
        builder, count = self.builder, self.count
        if given.type == element:
            one = ir.Constant(ir.VectorType(element, 1), ir.Undefined)
            value, rows = builder.insert_element(one, given, _INT32(0)), [0] * count
        else:
            offset = _INT64(self.first * _bytes(element))
            value, rows = self._load(self._plus(given, offset), element, count), [*range(count)]
        return _lanes(builder, value, [i for i in rows for _ in range(self.lanes)])

    @property
    def _range(self) -> range:
        return range(self.first, self.first + self.count)

    def _row(self, start: Value, stride: Value, i: int) -> Value:
        return self._plus(start, self.builder.mul(stride, _INT64(i)))

    def _plus(self, address: Value, offset: Value) -> Value:
        return self.builder.add(address, offset)

    def _load(self, address: Value, element: Any, lanes: int) -> Value:
        kind = ir.VectorType(element, lanes)
        loaded = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))
        loaded.align = 1
        return loaded

    def _store(self, value: Value, address: Value) -> None:
        pointer = self.builder.inttoptr(address, value.type.as_pointer())
        self.builder.store(value, pointer).align = 1


def _along(
    builder: Any, size: Value, addresses: list[tuple[Value, int]], emit: Callable[..., None]
) -> None:
    """Emit loops over ``size`` elements: ``emit(lanes, *addresses)`` for many lanes, then for the
    few that are left. Beside each address stand the bytes of an element there."""
    for lanes in ROW_LANES:
        count = builder.udiv(size, _INT64(lanes))
        with cgutils.for_range(builder, count) as loop:
            first = builder.mul(loop.index, _INT64(lanes))
            emit(lanes, *(_plus(builder, start, first, each) for start, each in addresses))
        done = builder.mul(count, _INT64(lanes))
        size = builder.sub(size, done)
        addresses = [(_plus(builder, start, done, each), each) for start, each in addresses]


def _plus(builder: Any, start: Value, elements: Value, bytes_each: int) -> Value:
    return builder.add(start, builder.mul(elements, _INT64(bytes_each)))


def _lanes(builder: Any, value: Value, places: Sequence[int]) -> Value:
    """The lanes of a vector at these places."""
    return _picked(builder, value, ir.Constant(value.type, ir.Undefined), places)


def _picked(builder: Any, a: Value, b: Value, places: Sequence[int]) -> Value:
    """Lanes of two vectors, those of the second numbered after those of the first."""
    mask = ir.Constant(ir.VectorType(_INT32, len(places)), [_INT32(i) for i in places])
    return builder.shuffle_vector(a, b, mask)


def _joined(builder: Any, parts: list[Value]) -> Value:
    while len(parts) > 1:
        lanes = range(2 * parts[0].type.count)
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [_picked(builder, low, high, lanes) for low, high in pairs]
    return parts[0]


def _like(value: Value, element: Any) -> Any:
    return ir.VectorType(element, value.type.count)


def _all(value: Value, number: int | float) -> Any:
    """A constant of ``value``'s type with this number in each lane."""
    return ir.Constant(value.type, [value.type.element(number)] * value.type.count)


def _bytes(element: Any) -> int:
    return 8 if element == _DOUBLE else 4 if element == _FLOAT else int(element.width) // 8


def _bits_of(kind: str) -> Any:
    return ir.IntType(8 * _bytes(_ELEMENTS[kind]))


def _magnitude(builder: Any, bits: Value) -> Value:
    without_sign = (1 << (bits.type.element.width - 1)) - 1
    return builder.and_(bits, _all(bits, without_sign))


def _larger(builder: Any, a: Value, b: Value) -> Value:
    return builder.select(builder.icmp_unsigned(">", a, b), a, b)


def _largest_lane(builder: Any, value: Value) -> Value:
    while value.type.count > 1:
        half = value.type.count // 2
        low, high = (_lanes(builder, value, range(x, x + half)) for x in (0, half))
        value = _larger(builder, low, high)
    return builder.extract_element(value, _INT32(0))


def _widened(builder: Any, value: Value, read: str, write: str) -> Value:
    """bf16 as float32 and INT32 as the float that is written; the rest as it is."""
    if read == "bfloat16" and write != "bfloat16":
        return _float_of_bf16(builder, value)
    if read == "int32" and write in ("float32", "float64"):
        return builder.sitofp(value, _like(value, _ELEMENTS[write]))
    return value


def _narrowed(builder: Any, value: Value, write: str) -> Value:
    if value.type.element == _ELEMENTS[write]:
        return value
    if write == "int8":
        from_int = value.type.element == _INT32
        return (_clipped_to_int8 if from_int else _rounded_to_int8)(builder, value)
    if write == "float64":
        return builder.fpext(value, _like(value, _DOUBLE))
    return _TO_BF16[write](builder, value)


def _clipped_to_int8(builder: Any, value: Value) -> Value:
    for compare, limit in (("<", 127), (">", -128)):
        within = builder.icmp_signed(compare, value, _all(value, limit))
        value = builder.select(within, value, _all(value, limit))
    return builder.trunc(value, _like(value, _INT8))


def _rounded_to_int8(builder: Any, value: Value) -> Value:
    number, bits = _ROUNDING["float32" if value.type.element == _FLOAT else "float64"]
    rounded = builder.bitcast(builder.fadd(value, _all(value, number)), _like(value, bits))
    return builder.trunc(rounded, _like(value, _INT8))


def _float_of_bf16(builder: Any, value: Value) -> Value:
    wide = builder.zext(value, _like(value, _INT32))
    return builder.bitcast(builder.shl(wide, _all(wide, 16)), _like(value, _FLOAT))


def _bf16(builder: Any, value: Value) -> Value:
    """Nearest even on the bits; of NaN only sign and quiet bit, else the carry could make it a
    number."""
    if value.type.element == _DOUBLE:
        value = _odd_float(builder, value)
    bits = builder.bitcast(value, _like(value, _INT32))
    quiet = builder.or_(builder.and_(bits, _all(bits, 0x80000000)), _all(bits, 0x7FC00000))
    is_nan = builder.fcmp_unordered("uno", value, value)
    chosen = builder.select(is_nan, quiet, _rounded_at_16(builder, bits))
    return builder.trunc(builder.lshr(chosen, _all(bits, 16)), _like(value, _INT16))


def _rounded_at_16(builder: Any, bits: Value) -> Value:
    """To nearest, ties to even; the lower 16 bits are rubbish then."""
    even = builder.and_(builder.lshr(bits, _all(bits, 16)), _all(bits, 1))
    return builder.add(builder.add(bits, _all(bits, 0x7FFF)), even)


def _odd_float(builder: Any, value: Value) -> Value:
    """float64 as float32 rounded to odd (Boldo and Melquiond, 2008), so that rounding it once more
    rounds right: where it is inexact, cut off towards 0 and with the lowest bit set."""
    nearest = builder.fptrunc(value, _like(value, _FLOAT))
    exact = builder.fpext(nearest, value.type)
    wide, back = (builder.bitcast(x, _like(value, _INT64)) for x in (value, exact))
    beyond = builder.icmp_unsigned(">", _magnitude(builder, back), _magnitude(builder, wide))
    bits = builder.bitcast(nearest, _like(value, _INT32))
    odd = builder.or_(builder.sub(bits, builder.zext(beyond, bits.type)), _all(bits, 1))
    inexact = builder.and_(
        builder.fcmp_ordered("!=", exact, value),
        builder.icmp_unsigned("<", _magnitude(builder, bits), _all(bits, 0x7F800000)),
    )
    return builder.bitcast(builder.select(inexact, odd, bits), nearest.type)


def _is_finite(builder: Any, bf16: Value) -> Value:
    return builder.icmp_unsigned("<", _magnitude(builder, bf16), _all(bf16, 0x7F80))


def _bf16_finite(builder: Any, value: Value) -> Value:
    high = _bf16(builder, value)
    return builder.select(_is_finite(builder, high), high, _all(high, 0))


def _bf16_low(builder: Any, value: Value) -> Value:
    high = _bf16(builder, value)
    wide = _float_of_bf16(builder, high)
    if value.type.element == _DOUBLE:
        rest = _odd_float(builder, builder.fsub(value, builder.fpext(wide, value.type)))
    else:
        rest = builder.fsub(value, wide)
    bits = _rounded_at_16(builder, builder.bitcast(rest, _like(rest, _INT32)))
    low = builder.trunc(builder.lshr(bits, _all(bits, 16)), high.type)
    return builder.select(_is_finite(builder, high), low, _all(low, 0))  # else rest may be NaN


_TO_BF16 = {"bfloat16": _bf16, "bfloat16 low": _bf16_low, "bfloat16 finite": _bf16_finite}
