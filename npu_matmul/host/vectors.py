"""Blocks of elements as LLVM vectors, from memory to memory, for numba loops.

numba alone leaves such loops scalar as soon as rows are short or indices are computed. These
intrinsics emit generic vector instructions of any width, which LLVM turns into what the CPU has.
A block is ``rows`` x ``lanes`` elements. Addresses are integers and need no alignment; a stride is
the distance of rows in bytes, None where they follow one another. Types, rows and lanes must be
compile-time constants.

Types are ``"int8"``, ``"int32"``, ``"float32"``, ``"float64"``, ``"bfloat16"``, one that is only
read, ``"float16"``, and two that are only written: ``"bfloat16 low"``, what rounding to bf16
leaves, rounded too (0 where the rounded number is not finite), and ``"bfloat16 finite"``, the
rounded number, 0 where it is not finite.
A target may be several types joined by ``"|"``, written at once, ``apart`` bytes from each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from npu_matmul.host.elements import (
    ELEMENTS,
    FLOAT,
    INT32,
    INT64,
    Value,
    bits_of,
    bytes_of,
    element_bytes,
    lanes_of,
    larger,
    magnitude,
    narrowed,
    picked,
    widened,
)

ROW_LANES = (64, 8, 1)

instructions: Any = intrinsic(prefer_literal=True)


@instructions
def convert_block(
    context, source_type, target_type, factors, rows, lanes, abreast, turned,
    source, source_stride, target, target_stride, row_factors, column_factors, apart=None,
):  # fmt: skip
    """Read ``abreast`` blocks that lie beside each other, multiply them by factors, convert them,
    and write them. Where there is no stride they lie one after the other, each by its rows, or,
    with ``turned``, by its columns; for more than one, and for turned ones, ``rows`` must be a
    power of two.

    ``factors`` says which there are: ``""``, ``"rows"``, ``"columns"`` or ``"rows columns"``. Row
    factors are one number for all rows, or the address of one per row; column factors the address
    of one per lane. They have the type that is computed in: the source's where that is float32 or
    float64, float32 for smaller ones, the target's for int32.

    Floats are rounded to nearest even. As int8 they must lie within [-128, 127] then, and must not
    be NaN; as bf16, NaN becomes the quiet NaN of its sign. INT32 becomes int8 clipped to
    [-128, 127], and floats rounded to nearest even.
    """
    given = source_type, target_type, factors
    conversion = _Conversion(*(constant.literal_value for constant in given))
    sizes = rows, lanes, abreast, turned
    height, width, count, by_columns = (constant.literal_value for constant in sizes)
    order = _order_of_blocks(height, width, count, by_columns)

    def codegen(context, builder, signature, args):
        values = [
            None if kind is types.none else value
            for kind, value in zip(signature.args, args, strict=True)
        ]
        conversion.emit(builder, height, count * width, *values[7:], order=order)
        return context.get_dummy_value()

    addresses = source, source_stride, target, target_stride, row_factors, column_factors
    return types.void(*given, *sizes, *addresses, _given(apart)), codegen


@instructions
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


@instructions
def keep_largest(context, element_type, rows, columns, source, stride, target):
    """Raise each element of ``target`` to the largest magnitude in its column of ``rows`` rows.

    Magnitudes are the bits of a float without its sign, as an unsigned integer of its size: their
    order is that of the numbers, infinity lies above all numbers, and NaN above infinity.
    """
    bits = bits_of(element_type.literal_value)

    def codegen(context, builder, signature, args):
        size, start, stride, out = args[2:]

        def emit(lanes: int, start: Value, out: Value) -> None:
            kept = _Rows(builder, 0, 1, lanes)
            largest = kept.load(out, None, bits)
            for row in range(rows.literal_value):
                value = _Rows(builder, row, 1, lanes).load(start, stride, bits)
                largest = larger(builder, largest, magnitude(builder, value))
            kept.store(largest, out, None)

        _along(builder, size, [(start, bytes_of(bits)), (out, bytes_of(bits))], emit)
        return context.get_dummy_value()

    return types.void(element_type, rows, columns, source, stride, target), codegen


@instructions
def largest_magnitude(context, element_type, columns, source):
    """The largest magnitude of one row, as of :func:`keep_largest`; 0 of none."""
    bits = bits_of(element_type.literal_value)

    def codegen(context, builder, signature, args):
        _, size, start = args
        largest = cgutils.alloca_once_value(builder, bits(0))

        def emit(lanes: int, start: Value) -> None:
            value = magnitude(builder, _Rows(builder, 0, 1, lanes).load(start, None, bits))
            value = larger(builder, _largest_lane(builder, value), builder.load(largest))
            builder.store(value, largest)

        _along(builder, size, [(start, bytes_of(bits))], emit)
        return builder.load(largest)

    result = types.Integer.from_bitwidth(bits.width, signed=False)
    return result(element_type, columns, source), codegen


@instructions
def transpose_block(context, element_type, lanes, source, source_stride, target, target_stride):
    """Write a square block of ``lanes`` rows, a power of two, with rows and columns exchanged."""
    element, size = ELEMENTS[element_type.literal_value], lanes.literal_value

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
            lines = [picked(builder, a, b, mask) for a, b in pairs for mask in low_and_high]
        for row, line in zip(rows, lines, strict=True):
            row.store(line, out, target_stride)
        return context.get_dummy_value()

    addresses = source, source_stride, target, target_stride
    return types.void(element_type, lanes, *addresses), codegen


@instructions
def add_partials(context, element_type, columns, total, partials, stride, count):
    """Add ``count`` rows to the row ``total``, in their order; modulo 2**32 for int32."""
    element = ELEMENTS[element_type.literal_value]

    def codegen(context, builder, signature, args):
        size, total, partials, stride, count = args[1:]

        def emit(lanes: int, total: Value, partials: Value) -> None:
            row = _Rows(builder, 0, 1, lanes)
            value = cgutils.alloca_once_value(builder, row.load(total, None, element))
            with cgutils.for_range(builder, count) as loop:
                place = builder.add(partials, builder.mul(loop.index, stride))
                add = builder.fadd if element == FLOAT else builder.add
                sum_ = add(builder.load(value), row.load(place, None, element))
                builder.store(sum_, value)
            row.store(builder.load(value), total, None)

        _along(builder, size, [(total, bytes_of(element)), (partials, bytes_of(element))], emit)
        return context.get_dummy_value()

    return types.void(element_type, columns, total, partials, stride, count), codegen


@instructions
def float_of_bits(context, bits):
    """The float32 or float64 that a uint32 or uint64 holds the bits of."""
    result = types.float32 if bits.bitwidth == 32 else types.float64

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(result))

    return result(bits), codegen


def _order_of_blocks(height: int, width: int, abreast: int, by_columns: bool) -> list[int] | None:
    """Which element of their rows the elements of blocks are, one block after the other; None where
    that is the order of their rows."""
    sizes = (abreast, width, height) if by_columns else (abreast, height, width)
    steps = (width, 1, abreast * width) if by_columns else (width, abreast * width, 1)
    order = [
        i * steps[0] + j * steps[1] + k * steps[2]
        for i in range(sizes[0])
        for j in range(sizes[1])
        for k in range(sizes[2])
    ]
    if order == sorted(order):
        return None
    assert height & (height - 1) == 0
    return order


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
        apart: Value | None = None, order: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        """``order`` is that of elements where there is no stride."""
        # halves are joined to one vector, so a power of two of rows, else row by row
        step = height if height & (height - 1) == 0 else 1
        for first in range(0, height, step):
            memory = _Rows(builder, first, step, width)
            value = memory.load(start, source_stride, ELEMENTS[self.read])
            if order and source_stride is None:
                value = lanes_of(builder, value, sorted(range(len(order)), key=order.__getitem__))
            value = widened(builder, value, self.read, self.writes[0])
            if "rows" in self.factors:
                value = builder.fmul(value, memory.row_factors(by_row, value.type.element))
            if "columns" in self.factors:
                value = builder.fmul(value, memory.column_factors(by_column, value.type.element))
            for i, kind in enumerate(self.writes):
                target = builder.add(out, builder.mul(apart, INT64(i))) if i else out
                result = narrowed(builder, value, kind)
                if order and target_stride is None:
                    result = lanes_of(builder, result, order)
                memory.store(result, target, target_stride)


class _Rows:
    """Rows ``first`` to ``first + count`` of a block in memory, as one vector."""

    def __init__(self, builder: Any, first: int, count: int, lanes: int) -> None:
        self.builder, self.first, self.count, self.lanes = builder, first, count, lanes

    def load(self, start: Value, stride: Value | None, element: Any) -> Value:
        if stride is None:
            offset = self.first * self.lanes * bytes_of(element)
            return self._load(self._plus(start, INT64(offset)), element, self.count * self.lanes)
        parts = [self._load(self._row(start, stride, i), element, self.lanes) for i in self._range]
        return _joined(self.builder, parts)

    def store(self, value: Value, start: Value, stride: Value | None) -> None:
        if stride is None:
            offset = self.first * self.lanes * bytes_of(value.type.element)
            self._store(value, self._plus(start, INT64(offset)))
            return
        for i in self._range:
            x = (i - self.first) * self.lanes
            part = lanes_of(self.builder, value, range(x, x + self.lanes))
            self._store(part, self._row(start, stride, i))

    def column_factors(self, start: Value, element: Any) -> Value:
        """The factor of each lane, on each row."""
        factors = self._load(start, element, self.lanes)
        return lanes_of(self.builder, factors, [*range(self.lanes)] * self.count)

    def row_factors(self, given: Value, element: Any) -> Value:
        """The factor of each row, on each of its lanes."""
        builder, count = self.builder, self.count
        if given.type == element:
            one = ir.Constant(ir.VectorType(element, 1), ir.Undefined)
            value, rows = builder.insert_element(one, given, INT32(0)), [0] * count
        else:
            offset = INT64(self.first * bytes_of(element))
            value, rows = self._load(self._plus(given, offset), element, count), [*range(count)]
        return lanes_of(builder, value, [i for i in rows for _ in range(self.lanes)])

    @property
    def _range(self) -> range:
        return range(self.first, self.first + self.count)

    def _row(self, start: Value, stride: Value, i: int) -> Value:
        return self._plus(start, self.builder.mul(stride, INT64(i)))

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
        count = builder.udiv(size, INT64(lanes))
        with cgutils.for_range(builder, count) as loop:
            first = builder.mul(loop.index, INT64(lanes))
            emit(lanes, *(_plus(builder, start, first, each) for start, each in addresses))
        done = builder.mul(count, INT64(lanes))
        size = builder.sub(size, done)
        addresses = [(_plus(builder, start, done, each), each) for start, each in addresses]


def _plus(builder: Any, start: Value, elements: Value, bytes_each: int) -> Value:
    return builder.add(start, builder.mul(elements, INT64(bytes_each)))


def _joined(builder: Any, parts: list[Value]) -> Value:
    while len(parts) > 1:
        lanes = range(2 * parts[0].type.count)
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [picked(builder, low, high, lanes) for low, high in pairs]
    return parts[0]


def _largest_lane(builder: Any, value: Value) -> Value:
    while value.type.count > 1:
        half = value.type.count // 2
        low, high = (lanes_of(builder, value, range(x, x + half)) for x in (0, half))
        value = larger(builder, low, high)
    return builder.extract_element(value, INT32(0))
