"""The AIE2's bf16 multiply-accumulate written once more, slowly, from its rule; operands to try.

Numbers are Python floats, which hold every bf16 and fp32 value; sums are fractions. Nothing here is
shared with the emulator's model or with the stand-in's C++.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

STEP = 8
LEAST_EXPONENT = -126
MOST = (2 - 2.0**-23) * 2.0**127  # the greatest fp32
INF, NAN = math.inf, math.nan

Numbers = Sequence[float]
Step = Callable[[float, Numbers, Numbers], float]


# ---- The rule -----------------------------------------------------------------------------------


def hardware_step(total: float, a: Numbers, b: Numbers) -> float:
    """total + the products of a and b, eight terms each, as one instruction adds them."""
    special = _special(total, a, b)
    if special is not None:
        return special
    terms = [(Fraction(x) * Fraction(y), _exponent(x) + _exponent(y)) for x, y in _pairs(a, b)]
    terms.append((Fraction(total), _exponent(total)))
    greatest = max((exponent for value, exponent in terms if value), default=0)
    grid = Fraction(2) ** (greatest - 23)
    return to_fp32(grid * sum(round(value / grid) for value, _ in terms))  # round: half to even


def rounded_once_step(total: float, a: Numbers, b: Numbers) -> float:
    """Not the hardware: the exact sum, rounded once."""
    special = _special(total, a, b)
    if special is not None:
        return special
    return to_fp32(Fraction(total) + sum(Fraction(x) * Fraction(y) for x, y in _pairs(a, b)))


def fused_step(total: float, a: Numbers, b: Numbers) -> float:
    """Not the hardware: one fused multiply-add after the other."""
    for x, y in _pairs(a, b):
        total = rounded_once_step(total, [x], [y])
    return total


def to_fp32(value: Fraction) -> float:
    """Rounded to 24 bits, half to even; +0 below the least normal number, infinite above MOST."""
    if value == 0:
        return 0.0
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    assert 1 <= abs(value) / Fraction(2) ** exponent < 2  # the denominator is a power of two
    unit = Fraction(2) ** (exponent - 23)
    rounded = round(value / unit) * unit
    if abs(rounded) < Fraction(2) ** LEAST_EXPONENT:
        return 0.0
    if abs(rounded) > MOST:
        return INF if rounded > 0 else -INF
    return float(rounded)


def _special(total: float, a: Numbers, b: Numbers) -> float | None:
    """The result where an infinity or NaN decides it: float64 has the same rules."""
    specials = [x * y for x, y in _pairs(a, b) if not math.isfinite(x) or not math.isfinite(y)]
    specials += [] if math.isfinite(total) else [total]
    return sum(specials) if specials else None


def _exponent(value: float) -> int:
    return max(math.frexp(value)[1] - 1, LEAST_EXPONENT)


def _pairs(a: Numbers, b: Numbers) -> list[tuple[float, float]]:
    return list(zip(a, b, strict=True))


def product(a: NDArray[Any], b: NDArray[Any], c: NDArray[Any], step: Step) -> NDArray[np.float32]:
    """c + a @ b in plain rows, each lane by ``step``."""
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        rows, columns = a.astype(float).tolist(), b.astype(float).T.tolist()
    result = np.empty(c.shape, np.float32)
    for i, j in np.ndindex(*c.shape):
        total = float(c[i, j])
        for start in range(0, a.shape[1], STEP):
            part = slice(start, start + STEP)
            total = step(total, rows[i][part], columns[j][part])
        result[i, j] = total
    return result


# ---- Single steps whose result is known ---------------------------------------------------------


@dataclass(frozen=True)
class Corner:
    """One step: the sum before, the pairs to multiply (zeros fill the eight), the sum after."""

    before: float
    pairs: Sequence[tuple[float, float]]
    after: float

    @property
    def a(self) -> list[float]:
        return [x for x, _ in self.pairs] + [0.0] * (STEP - len(self.pairs))

    @property
    def b(self) -> list[float]:
        return [y for _, y in self.pairs] + [0.0] * (STEP - len(self.pairs))


def p(exponent: int) -> float:
    """2**exponent."""
    return math.ldexp(1.0, exponent)


def _sum_of_25_bits(exponent: int, last: tuple[int, int]) -> list[tuple[float, float]]:
    """Products whose exponents are at most E = 2 * exponent. On the grid of 2**(E - 23) they are
    512 * 255**2 units, four times 255**2, and a sixteenth of the product of ``last``."""
    x = p(exponent - 7)
    return [
        (255 * x, 255 * x),
        *[(255 * x * p(-4), 255 * x * p(-5))] * 4,
        (last[0] * x * p(-6), last[1] * x * p(-7)),
    ]


# With these ``last``, the sum is 2**25 - 1 and 2**25 - 2 units; 156 * 157 / 16 is 1530.75.
ODD, EVEN = (156, 157), (160, 153)
HALF, UNIT = (p(-12), p(-12)), (p(-12), p(-11))  # in units of 2**-23, the grid of 1.0

CORNERS: dict[str, Corner] = {
    # Each term is rounded by itself, half to even.
    "two half units are both lost": Corner(1.0, [HALF, HALF], 1.0),
    "so are two negative ones": Corner(1.0, [(-p(-12), p(-12))] * 2, 1.0),
    "three times three quarters are three": Corner(
        1.0, [(1.5 * p(-12), p(-12))] * 3, 1.0 + 3 * p(-23)
    ),
    "one and a half units are two": Corner(1.0, [(1.5 * p(-12), p(-11))], 1.0 + p(-22)),
    "half a unit of the sum is lost like one of a product": Corner(p(-24), [(1, 1), HALF], 1.0),
    "three quarters of the sum are one": Corner(1.5 * p(-24), [(1, 1), HALF], 1.0 + p(-23)),
    "a sum far below is lost": Corner(p(-120), [(p(100), 1)], p(100)),
    "a product far below is lost": Corner(p(127), [(p(-126), p(-126))], p(127)),
    # E is the exponents of the factors added, and only of what is not zero.
    "2.25 has exponent 0": Corner(0.0, [(1.5, 1.5), UNIT, UNIT], 2.25 + p(-22)),
    "a product with zero has none": Corner(p(-30), [(0.0, p(100)), (p(100), -0.0)], p(-30)),
    "a subnormal operand has -126": Corner(p(-23), [(p(-133), p(127))], p(-6)),
    "a subnormal sum has -126": Corner(p(-149), _sum_of_25_bits(-64, ODD), p(-126)),
    # The total is rounded, half to even.
    "half a unit down": Corner(0.0, [(1.5, 1.5), UNIT], 2.25),
    "half a unit up": Corner(0.0, [(1.5, 1.5), UNIT, UNIT, UNIT], 2.25 + p(-21)),
    "a carry into the next power of two": Corner(2 - p(-23), [(1.5 * p(-12), p(-12))], 2.0),
    # Zeros are +0.
    "negative zeros": Corner(-0.0, [(-0.0, 1), (0.0, -1)], 0.0),
    "a difference of equals": Corner(-1.0, [(1, 1)], 0.0),
    "a difference of equals, the rest lost": Corner(-1.0, [(p(60), 1), (-p(60), 1)], 0.0),
    # Below the least normal number is +0 as well.
    "least normal number": Corner(-p(-126), [], -p(-126)),
    "subnormal result": Corner(p(-126), [(-p(-63), p(-64))], 0.0),
    "negative subnormal result": Corner(-p(-126), [(p(-63), p(-64))], 0.0),
    "subnormal sum left alone": Corner(p(-127), [], 0.0),
    "subnormal sum that becomes normal": Corner(p(-127), [(p(-63), p(-64))], p(-126)),
    "rounded up to the least normal number": Corner(0.0, _sum_of_25_bits(-64, ODD), p(-126)),
    "half a unit less is not": Corner(0.0, _sum_of_25_bits(-64, EVEN), 0.0),
    # Above the greatest number.
    "greatest and two lost halves": Corner(MOST, [(p(52), p(51))] * 2, MOST),
    "greatest and three quarters": Corner(MOST, [(1.5 * p(52), p(51))], INF),
    "negative overflow": Corner(-MOST, [(-1.5 * p(52), p(51))], -INF),
    "rounded up to infinity": Corner(0.0, _sum_of_25_bits(63, ODD), INF),
    "the greatest, not rounded up": Corner(0.0, _sum_of_25_bits(63, EVEN), MOST),
    "a product of 2**128": Corner(0.0, [(p(64), p(64))], INF),
    "2**128 on the way only": Corner(0.0, [(p(64), p(64)), (-p(64), p(63))], p(127)),
    "2**254 on the way only": Corner(MOST, [(p(127), p(127)), (-p(127), p(127))], 0.0),
    # Infinities and NaN.
    "infinity times zero": Corner(0.0, [(INF, 0.0)], NAN),
    "zero times infinity": Corner(1.0, [(-0.0, -INF)], NAN),
    "opposite products": Corner(0.0, [(INF, 1), (1, -INF)], NAN),
    "product opposite to the sum": Corner(INF, [(-INF, p(-133))], NAN),
    "NaN operand": Corner(INF, [(NAN, 0.0)], NAN),
    "NaN sum": Corner(NAN, [(INF, 1)], NAN),
    "infinity dominates": Corner(-MOST, [(-p(127), p(127)), (-INF, -p(-133))], INF),
    "infinite sum dominates": Corner(-INF, [(p(127), p(127))], -INF),
    "infinite sum left alone": Corner(INF, [], INF),
}


# ---- Operands in bulk ---------------------------------------------------------------------------

Random = np.random.Generator
Rows = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def bf16(values: ArrayLike) -> NDArray[Any]:
    return np.asarray(values, np.float64).astype(ml_dtypes.bfloat16)


def _bits(random: Random, shape: tuple[int, int], least: int, most: int, fraction: int) -> Any:
    """Any sign, an exponent field of ``least`` to ``most``, so many bits of fraction."""
    sign = random.integers(0, 2, shape) << 8
    field = random.integers(least, most + 1, shape)
    return (sign | field) << fraction | random.integers(0, 1 << fraction, shape)


def bf16_within(random: Random, shape: tuple[int, int], least: int, most: int) -> NDArray[Any]:
    return _bits(random, shape, least, most, 7).astype(np.uint16).view(ml_dtypes.bfloat16)


def fp32_within(
    random: Random, shape: tuple[int, int], least: int, most: int
) -> NDArray[np.float32]:
    bits: NDArray[np.uint32] = _bits(random, shape, least, most, 23).astype(np.uint32)
    return bits.view(np.float32)


def _normals(scale: float) -> Callable[[Random, int, int, int], Rows]:
    def make(random: Random, m: int, k: int, n: int) -> Rows:
        a, b = random.normal(0, scale, (m, k)), random.normal(0, scale, (k, n))
        c = random.normal(0, scale * scale * k**0.5, (m, n))
        return bf16(a), bf16(b), c.astype(np.float32)

    return make


def _within(
    a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]
) -> Callable[[Random, int, int, int], Rows]:
    """Exponent fields: 0 is zero or subnormal, 127 is one, 255 infinite or NaN."""

    def make(random: Random, m: int, k: int, n: int) -> Rows:
        return (
            bf16_within(random, (m, k), *a),
            bf16_within(random, (k, n), *b),
            fp32_within(random, (m, n), *c),
        )

    return make


def _ties(random: Random, m: int, k: int, n: int) -> Rows:
    """Powers of two and half as much more, so that halves of a unit are frequent."""

    def few(shape: tuple[int, int]) -> NDArray[np.float64]:
        return random.choice([1, -1, 1.5, -1.5], shape) * np.exp2(random.integers(-13, 1, shape))

    c = few((m, n)) + few((m, n)) * np.exp2(random.integers(-12, -8, (m, n)))
    return bf16(few((m, k))), bf16(few((k, n))), c.astype(np.float32)


def _cancelling(random: Random, m: int, k: int, n: int) -> Rows:
    """Products in pairs that nearly cancel, and a sum that nearly cancels what is left."""
    a, b, _ = _normals(1)(random, m, k, n)
    b[1::2] = -b[::2]
    a[:, 1::2] = a[:, ::2] * bf16(1 + random.choice([0, p(-7), -p(-7)], (m, k // 2)))
    c = -(a.astype(np.float64) @ b.astype(np.float64))
    return a, b, (c * (1 + random.choice([0, p(-12), p(-18)], c.shape))).astype(np.float32)


def _zeros(random: Random, m: int, k: int, n: int) -> Rows:
    def few(shape: tuple[int, int]) -> NDArray[np.float64]:
        return random.choice([0.0, -0.0, 1, -1], shape, p=[0.4, 0.4, 0.1, 0.1])

    return bf16(few((m, k))), bf16(few((k, n))), few((m, n)).astype(np.float32)


def _specials(random: Random, m: int, k: int, n: int) -> Rows:
    """Normal numbers, and a few infinities, NaN and zeros."""
    a, b, c = _normals(1)(random, m, k, n)
    for array, share in ((a, 0.01), (b, 0.01), (c, 0.1)):
        some = random.random(array.shape) < share
        array[some] = random.choice([INF, INF, -INF, NAN, 0.0], int(some.sum()))
    return a, b, c


MIXES: dict[str, Callable[[Random, int, int, int], Rows]] = {
    "normals": _normals(1),
    "large normals": _normals(p(50)),
    "small normals": _normals(p(-50)),
    "any exponents": _within((64, 190), (64, 190), (1, 254)),
    "ties": _ties,
    "cancelling": _cancelling,
    "subnormal operands": _within((0, 1), (200, 254), (70, 130)),
    "subnormal sums and results": _within((58, 64), (58, 64), (0, 3)),
    "signed zeros": _zeros,
    "infinities and NaN": _specials,
    "about to overflow": _within((186, 190), (186, 190), (248, 254)),
    "any bits": _within((0, 255), (0, 255), (0, 255)),
}


@cache
def mixed(mix: str, m: int, k: int, n: int) -> Rows:
    """Operands of a product (m, k) @ (k, n) and the sums before it, in plain rows."""
    return MIXES[mix](np.random.default_rng(list(MIXES).index(mix)), m, k, n)


@cache
def mixed_product(
    mix: str, m: int, k: int, n: int, accumulate: bool, step: Step = hardware_step
) -> NDArray[np.float32]:
    """What becomes of them."""
    a, b, c = mixed(mix, m, k, n)
    return product(a, b, c if accumulate else np.zeros_like(c), step)
