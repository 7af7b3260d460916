"""A row of scores as powers of two, in vectors: what lies between the two products of attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from npu_matmul.host.elements import FLOAT, INT16, INT32, INT64, Value, all_of, bytes_of, call

FEATURES = "avx512dq", "avx512bf16"
LANES = 16
AT_ONCE = 2  # vectors of one step: the largest of a vector waits for that of the one before
VECTOR = ir.VectorType(FLOAT, LANES)

# 2**f of 0 <= f <= 1, at most 6e-6 of itself off and exact at both ends: the polynomial that has
# its values at the Chebyshev extrema of degree 4; the highest power first.
EXP2 = (0.01368398, 0.05183618, 0.24144451, 0.69303533, 1.0)
FLOOR = INT32(9)  # towards -infinity, and no exception
ROUND_AS_USUAL = INT32(4)
FUSED = ("contract",)  # x * y + z is rounded once


@intrinsic
def weigh_row(typingctx, size, scores, weights):  # type: ignore[no-untyped-def]
    """Float32 scores as bf16 weights: 2 to the power of each score's distance to the largest.

    ``scores`` and ``weights`` are addresses, ``size`` is a multiple of 32. Returns the sum of the
    weights before they were rounded: NaN where a score is NaN, or the largest is infinite. Weights
    below the smallest normal number are 0. For CPUs that have ``FEATURES``.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _weigh(builder, *args)

    return types.float32(types.int64, types.int64, types.int64), codegen


def _weigh(b: Any, size: Value, scores: Value, weights: Value) -> Value:
    largest = [_variable(b, -math.inf) for _ in range(AT_ONCE)]
    total = [_variable(b, 0.0) for _ in range(AT_ONCE)]
    steps = b.udiv(size, INT64(AT_ONCE * LANES))
    with cgutils.for_range(b, steps) as loop:
        for i, kept in enumerate(largest):
            b.store(_larger(b, _load(b, scores, loop.index, i), b.load(kept)), kept)
    top = _across(b, largest, _larger)
    with cgutils.for_range(b, steps) as loop:
        for i, kept in enumerate(total):
            power = _exp2(b, b.fsub(_load(b, scores, loop.index, i), top))
            b.store(b.fadd(b.load(kept), power), kept)
            _store(b, _bf16(b, power), weights, loop.index, i)
    return b.extract_element(_across(b, total, ir.IRBuilder.fadd), INT32(0))


def _variable(b: Any, number: float) -> Value:
    return cgutils.alloca_once_value(b, ir.Constant(VECTOR, [number] * LANES))


def _exp2(b: Any, x: Value) -> Value:
    """2**x = 2**floor(x) * 2**f."""
    f = _masked(b, "reduce", x, FLOOR)  # x - floor(x)
    p = all_of(x, EXP2[0])
    for coefficient in EXP2[1:]:
        p = b.fadd(b.fmul(p, f, flags=FUSED), all_of(x, coefficient), flags=FUSED)
    return _masked(b, "scalef", p, x)  # times 2**floor(x)


def _masked(b: Any, name: str, x: Value, y: Value) -> Value:
    """An instruction of two operands, in all lanes."""
    all_lanes = ir.IntType(LANES)(-1)
    return call(
        b, f"llvm.x86.avx512.mask.{name}.ps.512", x.type, x, y, x, all_lanes, ROUND_AS_USUAL
    )


def _bf16(b: Any, x: Value) -> Value:
    return call(b, "llvm.x86.avx512bf16.cvtneps2bf16.512", ir.VectorType(INT16, LANES), x)


def _larger(b: Any, x: Value, y: Value) -> Value:
    """Of each lane; ``y`` where one of them is NaN."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def _across(b: Any, kept: list[Value], join: Callable[[Any, Value, Value], Value]) -> Value:
    """All lanes of these variables joined, in each lane."""
    x = reduce(partial(join, b), [b.load(one) for one in kept])
    for apart in (8, 4, 2, 1):
        lanes = ir.Constant(ir.VectorType(INT32, LANES), [INT32(i ^ apart) for i in range(LANES)])
        x = join(b, x, b.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), lanes))
    return x


def _load(b: Any, start: Value, step: Value, i: int) -> Value:
    return b.load(_place(b, start, step, i, VECTOR), align=1)


def _store(b: Any, value: Value, start: Value, step: Value, i: int) -> None:
    b.store(value, _place(b, start, step, i, value.type), align=1)


def _place(b: Any, start: Value, step: Value, i: int, kind: Any) -> Value:
    """Where vector ``i`` of a step of a row is."""
    size = bytes_of(kind.element) * LANES
    offset = b.add(b.mul(step, INT64(AT_ONCE * size)), INT64(i * size))
    return b.inttoptr(b.add(start, offset), kind.as_pointer())
