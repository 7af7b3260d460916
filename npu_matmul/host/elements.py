"""What vectors hold and become: element types, magnitudes, and conversions as LLVM instructions.

Every function emits instructions for all lanes of a vector alike. The types are those of
``vectors``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

Value = Any  # of LLVM

INT8, INT16, INT32, INT64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()
ELEMENTS: dict[str, Any] = {
    "int8": INT8,
    "int32": INT32,
    "float32": FLOAT,
    "float64": DOUBLE,
    "float16": INT16,
    "bfloat16": INT16,
    "bfloat16 low": INT16,
    "bfloat16 finite": INT16,
}
# Adding 1.5 * 2**(bits of the mantissa) rounds to an integer, ties to even, and leaves it in the
# lowest bits.
_ROUNDING = {"float32": (1.5 * 2**23, INT32), "float64": (1.5 * 2**52, INT64)}


def call(builder: Any, name: str, result: Any, *args: Value) -> Value:
    """A call of one of LLVM's own functions, an instruction mostly."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, args)


def element_bytes(name: str) -> int:
    """Bytes of one element of a type."""
    return bytes_of(ELEMENTS[name.split("|")[0]])


def like(value: Value, element: Any) -> Any:
    return ir.VectorType(element, value.type.count)


def all_of(value: Value, number: int | float) -> Any:
    """A constant of ``value``'s type with this number in each lane."""
    return ir.Constant(value.type, [value.type.element(number)] * value.type.count)


def bytes_of(element: Any) -> int:
    return 8 if element == DOUBLE else 4 if element == FLOAT else int(element.width) // 8


def bits_of(kind: str) -> Any:
    return ir.IntType(8 * bytes_of(ELEMENTS[kind]))


def lanes_of(builder: Any, value: Value, places: Sequence[int]) -> Value:
    """The lanes of a vector at these places."""
    return picked(builder, value, ir.Constant(value.type, ir.Undefined), places)


def picked(builder: Any, a: Value, b: Value, places: Sequence[int]) -> Value:
    """Lanes of two vectors, those of the second numbered after those of the first."""
    mask = ir.Constant(ir.VectorType(INT32, len(places)), [INT32(i) for i in places])
    return builder.shuffle_vector(a, b, mask)


def magnitude(builder: Any, bits: Value) -> Value:
    without_sign = (1 << (bits.type.element.width - 1)) - 1
    return builder.and_(bits, all_of(bits, without_sign))


def larger(builder: Any, a: Value, b: Value) -> Value:
    return builder.select(builder.icmp_unsigned(">", a, b), a, b)


def widened(builder: Any, value: Value, read: str, write: str) -> Value:
    """float16, bf16 and int8 as float32 and INT32 as the float that is written; the rest as it
    is."""
    if read == write:
        return value
    if read == "bfloat16":
        return _float_of_bf16(builder, value)
    if read == "float16":
        return _float_of_half(builder, value)
    if read == "int8":
        return builder.sitofp(value, like(value, FLOAT))
    if read == "int32" and write in ("float32", "float64"):
        return builder.sitofp(value, like(value, ELEMENTS[write]))
    return value


def narrowed(builder: Any, value: Value, write: str) -> Value:
    if value.type.element == ELEMENTS[write]:
        return value
    if write == "int8":
        from_int = value.type.element == INT32
        return (_clipped_to_int8 if from_int else _rounded_to_int8)(builder, value)
    if write == "float64":
        return builder.fpext(value, like(value, DOUBLE))
    return _TO_BF16[write](builder, value)


def _clipped_to_int8(builder: Any, value: Value) -> Value:
    for compare, limit in (("<", 127), (">", -128)):
        within = builder.icmp_signed(compare, value, all_of(value, limit))
        value = builder.select(within, value, all_of(value, limit))
    return builder.trunc(value, like(value, INT8))


def _rounded_to_int8(builder: Any, value: Value) -> Value:
    number, bits = _ROUNDING["float32" if value.type.element == FLOAT else "float64"]
    rounded = builder.bitcast(builder.fadd(value, all_of(value, number)), like(value, bits))
    return builder.trunc(rounded, like(value, INT8))


def _float_of_bf16(builder: Any, value: Value) -> Value:
    wide = builder.zext(value, like(value, INT32))
    return builder.bitcast(builder.shl(wide, all_of(wide, 16)), like(value, FLOAT))


def _float_of_half(builder: Any, value: Value) -> Value:
    """By its bits, as a CPU may lack the instruction: its exponents are 112 less than float32's,
    and the largest of them means infinity or NaN."""
    wide = builder.zext(value, like(value, INT32))
    bits = builder.shl(builder.and_(wide, all_of(wide, 0x7FFF)), all_of(wide, 13))
    number = builder.bitcast(bits, like(value, FLOAT))
    number = builder.bitcast(builder.fmul(number, all_of(number, 2.0**112)), bits.type)
    special = builder.or_(bits, all_of(bits, 0x7F800000))
    is_number = builder.icmp_unsigned("<", bits, all_of(bits, 0x7C00 << 13))
    sign = builder.shl(builder.and_(wide, all_of(wide, 0x8000)), all_of(wide, 16))
    bits = builder.or_(builder.select(is_number, number, special), sign)
    return builder.bitcast(bits, like(value, FLOAT))


def _bf16(builder: Any, value: Value) -> Value:
    """Nearest even on the bits; of NaN only sign and quiet bit, else the carry could make it a
    number."""
    if value.type.element == DOUBLE:
        value = _odd_float(builder, value)
    bits = builder.bitcast(value, like(value, INT32))
    quiet = builder.or_(builder.and_(bits, all_of(bits, 0x80000000)), all_of(bits, 0x7FC00000))
    is_nan = builder.fcmp_unordered("uno", value, value)
    chosen = builder.select(is_nan, quiet, _rounded_at_16(builder, bits))
    return _upper_half(builder, chosen)


def _upper_half(builder: Any, bits: Value) -> Value:
    """Of each INT32, as INT16: one shuffle of two vectors, where a shift and a narrowing would be
    six instructions."""
    count = bits.type.count
    halves = builder.bitcast(bits, ir.VectorType(INT16, 2 * count))
    upper = ir.Constant(like(bits, INT32), [2 * i + 1 for i in range(count)])
    return builder.shuffle_vector(halves, ir.Constant(halves.type, ir.Undefined), upper)


def _rounded_at_16(builder: Any, bits: Value) -> Value:
    """To nearest, ties to even; the lower 16 bits are rubbish then."""
    even = builder.and_(builder.lshr(bits, all_of(bits, 16)), all_of(bits, 1))
    return builder.add(builder.add(bits, all_of(bits, 0x7FFF)), even)


def _odd_float(builder: Any, value: Value) -> Value:
    """float64 as float32 rounded to odd (Boldo and Melquiond, 2008), so that rounding it once more
    rounds right: where it is inexact, cut off towards 0 and with the lowest bit set."""
    nearest = builder.fptrunc(value, like(value, FLOAT))
    exact = builder.fpext(nearest, value.type)
    wide, back = (builder.bitcast(x, like(value, INT64)) for x in (value, exact))
    beyond = builder.icmp_unsigned(">", magnitude(builder, back), magnitude(builder, wide))
    bits = builder.bitcast(nearest, like(value, INT32))
    odd = builder.or_(builder.sub(bits, builder.zext(beyond, bits.type)), all_of(bits, 1))
    inexact = builder.and_(
        builder.fcmp_ordered("!=", exact, value),
        builder.icmp_unsigned("<", magnitude(builder, bits), all_of(bits, 0x7F800000)),
    )
    return builder.bitcast(builder.select(inexact, odd, bits), nearest.type)


def _is_finite(builder: Any, bf16: Value) -> Value:
    return builder.icmp_unsigned("<", magnitude(builder, bf16), all_of(bf16, 0x7F80))


def _bf16_finite(builder: Any, value: Value) -> Value:
    high = _bf16(builder, value)
    return builder.select(_is_finite(builder, high), high, all_of(high, 0))


def _bf16_low(builder: Any, value: Value) -> Value:
    high = _bf16(builder, value)
    wide = _float_of_bf16(builder, high)
    if value.type.element == DOUBLE:
        rest = _odd_float(builder, builder.fsub(value, builder.fpext(wide, value.type)))
    else:
        rest = builder.fsub(value, wide)
    bits = _rounded_at_16(builder, builder.bitcast(rest, like(rest, INT32)))
    low = _upper_half(builder, bits)
    return builder.select(_is_finite(builder, high), low, all_of(low, 0))  # else rest may be NaN


_TO_BF16 = {"bfloat16": _bf16, "bfloat16 low": _bf16_low, "bfloat16 finite": _bf16_finite}
