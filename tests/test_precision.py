"""Operands of caller's types become those of a kernel by the rules of rounding, to the last bit."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
from comparing import assert_equal_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS
from numpy.typing import NDArray

from npu_matmul.host.convert import in_columns, in_rows
from npu_matmul.precision import (
    BF16,
    PRECISIONS,
    QuantiseError,
    finish,
    quantise,
    scales_of,
    split_bf16,
    to_bf16,
)

MAX_BF16 = float(np.uint16(0x7F7F).view(BF16))
SPECIALS = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 5e-324, -5e-324, 1e-45, 2**-133, 2**-134]


@cache
def bf16_values() -> list[Fraction]:
    """0 to the largest bf16, then where infinity stands for rounding."""
    values = [Fraction(float(v)) for v in np.arange(0x7F80, dtype=np.uint16).view(BF16)]
    return [*values, 2 * values[-1] - values[-2]]


def nearest_bf16(x: float) -> float:
    """The bf16 number nearest to a finite x, ties to even, by exact fractions over all of them."""
    values = bf16_values()
    exact = abs(Fraction(x))
    low, high = 0, len(values) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if values[middle] <= exact else (low, middle)
    below, above = exact - values[low], values[high] - exact
    pick = low if below < above or (below == above and low % 2 == 0) else high
    pick = low if exact == values[low] else pick
    return float(np.copysign(float(np.uint16(pick).view(BF16)), x))


@settings(deadline=None)  # the first call compiles
@given(st.floats(allow_nan=False, allow_infinity=False, width=64))
def test_a_float64_is_rounded_to_bf16_once(x: float) -> None:
    got = float(to_bf16(np.array([x]))[0])
    assert got == nearest_bf16(x) and np.signbit(got) == np.signbit(x)


@pytest.mark.parametrize("offset", [2.0**-30, -(2.0**-30), 2.0**-50, 0.0])
def test_float64_beside_the_middle_of_two_bf16_numbers_goes_to_its_own_side(offset: float) -> None:
    for base in (1.0, 1.0078125, 3.0, 2.0**-120, 2.0**100):
        middle = base * (1 + 2**-8)
        x = middle * (1 + offset)
        assert float(to_bf16(np.array([x, -x]))[0]) == nearest_bf16(x)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, BF16])
def test_specials_round_as_ml_dtypes_rounds_float32(dtype: Any) -> None:
    with np.errstate(over="ignore"):
        x = np.array([*SPECIALS, 65504.0, 3.4e38, MAX_BF16], dtype)
    want = x.astype(np.float32).astype(BF16)
    assert_equal_bits(to_bf16(x).view(np.uint16), want.view(np.uint16))


def test_every_bf16_stays_itself() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    x = bits.view(BF16)
    number = ~np.isnan(x.astype(np.float32))
    for kind in (np.float32, np.float64):
        with np.errstate(invalid="ignore"):  # signalling NaNs
            wide = x.astype(kind)
        assert_equal_bits(to_bf16(wide).view(np.uint16)[number], bits[number])
        assert np.isnan(to_bf16(wide).astype(np.float32)[~number]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_two_terms_are_within_a_sixteenth_bit_and_low_is_small(dtype: Any) -> None:
    x = np.random.default_rng(1).standard_normal(10_000).astype(dtype) * 1e3
    high, low = (t.astype(np.float64) for t in split_bf16(x))
    assert_equal_bits(high, to_bf16(x).astype(np.float64))
    # bf16 keeps 8 bits: each rounding leaves at most 2**-9 of what it rounds
    assert (np.abs(x - high) <= np.abs(x) * 2.0**-8).all()
    assert (np.abs(x - (high + low)) <= np.abs(x) * 2.0**-17).all()


def test_what_is_not_finite_has_no_low_term() -> None:
    high, low = split_bf16(np.array([np.inf, -np.inf, np.nan, 3.4e38], np.float32))
    assert np.isinf(high[:2].astype(np.float32)).all() and np.isnan(np.float32(high[2]))
    assert not low.astype(np.float32).any()


def test_three_terms_meet_as_low_high_then_high_low_then_high_high() -> None:
    x = np.random.default_rng(2).standard_normal((3, 4))
    high, low = (t.astype(np.float32) for t in split_bf16(x))
    a = PRECISIONS["bf16x3"].a(x).matrix.astype(np.float32)
    b = PRECISIONS["bf16x3"].b(x.T).matrix.astype(np.float32)
    assert_equal_bits(a, np.hstack([low, high, high]))
    assert_equal_bits(b, np.vstack([high.T, low.T, high.T]))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_matrix_of_any_layout_is_converted_alike(layout: str, precision: str) -> None:
    random = np.random.default_rng(4)
    x = (random.standard_normal((19, 37)) * random.uniform(0.01, 30, (19, 37))).astype(np.float32)
    for make in (PRECISIONS[precision].a, PRECISIONS[precision].b):
        want, got = make(x), make(LAYOUTS[layout](x))
        assert_equal_bits(np.ascontiguousarray(got.matrix), want.matrix)
        if want.scale is not None and got.scale is not None:
            assert_equal_bits(got.scale, want.scale)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_b_that_is_a_transpose_stays_one(precision: str) -> None:
    """Its elements are the neighbours that they were, so that nothing is exchanged to convert
    it."""
    x = np.random.default_rng(4).standard_normal((19, 37), np.float32)
    b = PRECISIONS[precision].b(x.T)
    assert in_columns(b.matrix) and in_rows(PRECISIONS[precision].a(x.T).matrix)
    turned = b.transposed()
    assert_equal_bits(turned.matrix.T, b.matrix)
    if b.scale is not None and turned.scale is not None:
        assert_equal_bits(turned.scale.T, b.scale)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, BF16])
def test_quantising_fills_each_lane_and_is_within_half_a_step(axis: int, dtype: Any) -> None:
    random = np.random.default_rng(3)
    x = (random.standard_normal((20, 30)) * random.uniform(0.01, 30, (20, 30))).astype(dtype)
    operand = quantise(x, axis=axis, name="A")
    assert operand.scale is not None and operand.matrix.dtype == np.int8
    assert (np.abs(operand.matrix.astype(int)).max(axis=axis) == 127).all()
    scale = operand.scale.astype(np.float64)
    error = np.abs(operand.matrix * scale - x.astype(np.float64))
    # half a step of rounding; scale, inverse and product are each off by half a bit in 127 steps
    assert (error <= scale * (0.5 + 127 * 1.5 * np.finfo(operand.scale.dtype).eps)).all()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, BF16, np.int8])
def test_scale_and_elements_are_float32_arithmetic(axis: int, dtype: Any) -> None:
    x = (np.random.default_rng(5).standard_normal((21, 70)) * 9).astype(dtype)
    x[:, 3] = x[4] = 0
    operand = quantise(x, axis=axis, name="A")
    wide = x.astype(np.float32)
    largest = np.abs(wide).max(axis, keepdims=True)
    none = largest == 0
    largest[none] = 127
    assert operand.scale is not None
    assert_equal_bits(operand.scale, largest / np.float32(127))
    inverse = np.float32(127) / largest
    assert_equal_bits(operand.matrix, np.rint(wide * inverse).clip(-127, 127).astype(np.int8))


@pytest.mark.parametrize("exponent", [-149, -140, -128, -127, -126, -120, -61, 61, 120, 127])
@pytest.mark.parametrize("axis", [0, 1])
def test_what_leads_float32_out_of_its_range_is_quantised_in_float64(
    axis: int, exponent: int
) -> None:
    """A row of extreme numbers among others: each element is the nearest step, each step right."""
    x = np.random.default_rng(6).uniform(-1, 1, (5, 40)).astype(np.float32)
    x[2] = np.ldexp(x[2] / np.abs(x[2]).max() * np.float32(1.99), exponent)
    given = x if axis == 1 else x.T
    operand = quantise(given, axis=axis, name="A")
    assert operand.scale is not None and operand.scale.dtype == np.float64
    wide = given.astype(np.float64)
    largest = np.abs(wide).max(axis, keepdims=True)
    assert_equal_bits(operand.scale, largest / 127)
    assert np.abs(operand.matrix).max(axis).tolist() == [127] * 5
    error = np.abs(operand.matrix * operand.scale - wide)
    assert (error <= operand.scale * (0.5 + 1e-12)).all()


def test_a_float64_so_small_that_its_inverse_overflows_keeps_its_nearest_step() -> None:
    x = np.array([[2.0**-1070, -(2.0**-1074), 0], [2.0**-1020, 2.0**-1022, -(2.0**-1019)]])
    operand = quantise(x, axis=1, name="A")
    assert operand.scale is not None and np.isfinite(operand.scale).all()
    assert (np.abs(operand.matrix * operand.scale - x) <= operand.scale / 2).all()


def test_a_lane_of_zeros_stays_exactly_zero() -> None:
    x = np.array([[0.0, -0.0], [1e-300, 2e-300], [5e-324, 0.0]])
    operand = quantise(x, axis=1, name="A")
    assert operand.matrix.tolist() == [[0, 0], [64, 127], operand.matrix[2].tolist()]
    assert operand.scale is not None and np.isfinite(operand.scale).all()


@pytest.mark.parametrize(("bad", "words"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_quantising_says_where_the_first_value_is_that_int8_lacks(bad: float, words: str) -> None:
    x = np.ones((4, 5), np.float32)
    x[2, 3] = x[3, 0] = bad
    with pytest.raises(QuantiseError, match=rf"operand B holds {words} at \(2, 3\).*bf16"):
        quantise(x, axis=0, name="B")


def test_dequantising_multiplies_by_both_scales() -> None:
    sums = np.array([[10, -20], [30, 40]], np.int32)
    a, b = np.array([[0.5], [2.0]]), np.array([[0.25, 4.0]])
    out = np.empty((2, 2))
    finish(sums, out, scales_of(a, b))
    want: NDArray[Any] = np.array([[1.25, -40.0], [15.0, 320.0]])
    assert_equal_bits(out, want)
