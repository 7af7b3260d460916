"""The host's compiled conversions against their definitions in NumPy, bit for bit."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from comparing import assert_equal_bits, assert_equal_floats
from layouts import LAYOUTS, WRITABLE
from numpy.typing import NDArray

from npu_matmul.host import convert as module
from npu_matmul.host.convert import (
    convert,
    is_plain,
    magnitudes,
    pieces,
    plain_scales,
    scale_and_inverse,
)

Matrix = NDArray[Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
POWERS = [2**n + d for n in (6, 7, 8, 9, 10) for d in (-1, 0, 1)]
SIZES = [*range(1, 41), *POWERS]
INT32_EXTREMES = [-(2**31), 2**31 - 1, -129, -128, -127, 126, 127, 128, 0, -1]
FLOAT_EXTREMES = [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e-45, -1e-45, 3.4e38, -3.4e38]
UNTOUCHED = 0x5A


def random_floats(seed: int, *shape: int, kind: Any = np.float32) -> Matrix:
    """Any bits at all, and the extremes first."""
    size = int(np.prod(shape))
    dtype = np.dtype(kind)
    bits = np.random.default_rng(seed).bytes(size * dtype.itemsize)
    x = np.frombuffer(bytearray(bits), dtype)
    with np.errstate(over="ignore"):
        x[: len(FLOAT_EXTREMES)] = np.array(FLOAT_EXTREMES, dtype)[:size]
    return x.reshape(shape)


def random_sums(seed: int, *shape: int) -> Matrix:
    """INT32 of every order of magnitude, and the extremes first."""
    random = np.random.default_rng(seed)
    x = random.integers(-(2**31), 2**31, shape) >> random.integers(0, 31, shape)
    x.reshape(-1)[: len(INT32_EXTREMES)] = INT32_EXTREMES[: x.size]
    return x.astype(np.int32)


def normals(seed: int, *shape: int) -> Matrix:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def to_bf16(x: Matrix) -> Matrix:
    with np.errstate(invalid="ignore", over="ignore"):
        return x.astype(BF16)


def low_of(x: Matrix) -> Matrix:
    high = to_bf16(x)
    with np.errstate(invalid="ignore"):
        rest = x - high.astype(x.dtype)
    return to_bf16(np.where(np.isfinite(high.astype(np.float32)), rest, 0).astype(x.dtype))


def finite_of(x: Matrix) -> Matrix:
    high = to_bf16(x)
    return np.where(np.isfinite(high.astype(np.float32)), high, BF16.type(0))


def converted(x: Matrix, target: str, *factors: Matrix | None) -> Matrix:
    """What ``convert`` writes, into the middle of bytes that must stay."""
    dtype = module.stored_as(target)
    edge = 64
    whole = np.full(x.size * dtype.itemsize + 2 * edge, UNTOUCHED, np.uint8)
    out = whole[edge:-edge].view(dtype).reshape(x.shape)
    convert(x, out, None, target, *factors)
    assert (whole[:edge] == UNTOUCHED).all() and (whole[-edge:] == UNTOUCHED).all()
    return out


def test_the_docstring_examples_hold() -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("target", "definition"),
    [("bfloat16", to_bf16), ("bfloat16 low", low_of), ("bfloat16 finite", finite_of)],
)
def test_float32_becomes_bf16_as_ml_dtypes_rounds(
    target: str, definition: Callable[[Matrix], Matrix], rows: int
) -> None:
    for size in SIZES:
        x = random_floats(size, rows, size)
        assert_equal_bits(converted(x, target), definition(x))


def test_bf16_is_right_for_each_upper_half_of_float32_and_each_kind_of_lower_half() -> None:
    upper = np.arange(1 << 16, dtype=np.uint32)[:, None] << np.uint32(16)
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    x = (upper | lower).view(np.float32)
    assert_equal_bits(converted(x, "bfloat16"), to_bf16(x))
    assert_equal_bits(converted(x, "bfloat16 low"), low_of(x))


def test_every_float16_and_int8_becomes_float32_exactly() -> None:
    for kind in (np.uint16, np.int8):
        x = np.arange(1 << 8 * np.dtype(kind).itemsize, dtype=np.int32).astype(kind)
        x = x.reshape(-1, 32).view(np.float16 if kind == np.uint16 else kind)
        with np.errstate(invalid="ignore"):
            want = x.astype(np.float32)
        assert_equal_floats(converted(x, "float32"), want)


def test_int32_becomes_int8_by_clipping() -> None:
    for size in SIZES:
        x = random_sums(size, 2, size)
        assert_equal_bits(converted(x, "int8"), np.clip(x, -128, 127).astype(np.int8))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_sums_are_scaled_back_from_left_to_right(kind: Any) -> None:
    for size in SIZES:
        x = random_sums(size, 3, size)
        a, b = normals(1, 3).astype(kind), normals(2, size).astype(kind)
        got = converted(x, np.dtype(kind).name, a, b)
        assert_equal_bits(got, x.astype(kind) * a[:, None] * b)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("axis", [0, 1])
def test_floats_become_int8_by_rounding_half_to_even(kind: Any, axis: int) -> None:
    for size in SIZES:
        x = normals(size, 5, size).astype(kind)
        x[0, : len(FLOAT_EXTREMES)] = [0.0, -0.0, 1e-45, -1e-45, *[0.5] * 6][:size]
        inverse = 127 / np.maximum(np.abs(x).max(axis), kind(1e-3))
        inverse = inverse.astype(kind)
        want = np.rint(x * np.expand_dims(inverse, axis)).astype(np.int8)
        factors = (inverse, None) if axis == 1 else (None, inverse)
        assert_equal_bits(converted(x, "int8", *factors), want)


def test_ties_go_to_even_and_both_ends_are_reached() -> None:
    x = np.arange(-255, 256, dtype=np.float32)[None] / 2
    x = x[np.abs(x) <= 127][None]
    one = np.ones(1, np.float32)
    got = converted(x, "int8", one, None)
    assert_equal_bits(got, np.rint(x).astype(np.int8))
    assert {got.min(), got.max()} == {-127, 127}


def test_the_largest_of_a_row_never_rounds_beyond_127() -> None:
    """So nothing has to be clipped: of every mantissa, as exponents cancel."""
    largest = np.arange(0x3F800000, 0x40000000, dtype=np.uint32).view(np.float32)
    assert (np.rint(largest * (np.float32(127) / largest)) == 127).all()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, BF16, np.int8])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_largest_magnitude_of_each_row_and_column(layout: str, axis: int, kind: Any) -> None:
    if kind == BF16 and layout == "other byte order":
        pytest.skip("ml_dtypes has no bfloat16 of another byte order")
    for shape in ((1, 1), (7, 33), (67, 130), (9, 64)):
        plain = (normals(3, *shape) * 50).astype(kind)
        x = LAYOUTS[layout](plain)
        got = magnitudes(x, axis)
        assert got.dtype == (np.float64 if kind == np.float64 else np.float32)
        assert_equal_bits(got, np.abs(plain.astype(got.dtype)).max(axis))


@pytest.mark.parametrize("axis", [0, 1])
def test_the_largest_magnitude_tells_infinity_and_nan(axis: int) -> None:
    for size in (1, 8, 9, 64, 65, 200):
        for place in {0, size // 2, size - 1}:
            x = np.ones((5, size), np.float32)
            x[1, place], x[2, place] = -np.inf, np.nan
            got = magnitudes(x if axis == 1 else x.T.copy(), axis)
            assert got[1] == np.inf and np.isnan(got[2]) and (got[[0, 3, 4]] == 1).all()


def test_of_nothing_the_largest_magnitude_is_zero() -> None:
    assert magnitudes(np.empty((3, 0), np.float32), 1).tolist() == [0, 0, 0]
    assert magnitudes(np.empty((0, 2)), 0).tolist() == [0, 0]


def bits_of(x: float) -> np.uint32:
    return np.float32(x).view(np.uint32)


def test_scales_are_each_rounded_once() -> None:
    largest = np.ldexp(np.abs(normals(4, 1000)) + 1, np.arange(1000) % 115 - 57)
    scale, inverse = np.empty_like(largest), np.empty_like(largest)
    assert plain_scales(largest.view(np.uint32), scale, inverse)
    assert_equal_bits(scale, largest / np.float32(127))
    assert_equal_bits(inverse, np.float32(127) / largest)
    assert scale_and_inverse(bits_of(0)) == (1, 1)


@pytest.mark.parametrize("bad", [1e-45, 1e-38, 2.0**-61, 2.0**61, 3e38, np.inf, np.nan])
def test_what_leads_out_of_float32_is_not_plain(bad: float) -> None:
    assert not is_plain(bits_of(bad))
    largest = np.array([1, bad, 2], np.float32).view(np.uint32)
    assert not plain_scales(largest, np.empty(3, np.float32), np.empty(3, np.float32))
    assert all(is_plain(bits_of(x)) for x in (0, 2.0**-60, 1, 2.0**60))


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", WRITABLE)
def test_any_layout_is_read_and_written(source: str, target: str) -> None:
    for shape in ((1, 1), (5, 1), (1, 7), (19, 70)):
        plain = normals(5, *shape)
        x, out = LAYOUTS[source](plain), LAYOUTS[target](np.zeros(shape, np.float64))
        assert out.flags.writeable
        convert(x, out)
        assert_equal_bits(np.array(out, np.float64, order="C"), plain.astype(np.float64))


@pytest.mark.parametrize("shape", [(384, 1152), (700, 300), (3, 70_000), (70_000, 3)])
@pytest.mark.parametrize("source", ["C", "F", "apart"])
@pytest.mark.parametrize("target", ["C", "F"])
def test_matrices_larger_than_the_buffer_are_read_and_written(
    shape: tuple[int, int], source: str, target: str
) -> None:
    """Whose parts begin at other columns than the first."""
    random = np.random.default_rng(5)
    wide = random.standard_normal((2 * shape[0], 2 * shape[1]), np.float32)
    x = wide[::2, ::2] if source == "apart" else np.array(wide[::2, ::2], order=source)  # type: ignore[call-overload]
    rows, columns = random.random(shape[0], np.float32), random.random(shape[1], np.float32)
    out = np.empty(shape, np.float32, order=target)  # type: ignore[call-overload]
    convert(x, out, None, None, rows, columns)
    assert_equal_bits(out, x * rows[:, np.newaxis] * columns)
    convert(x, out)
    assert_equal_bits(out, x)
    for axis in (0, 1):
        assert_equal_bits(magnitudes(x, axis), np.abs(x).max(axis))


def test_a_repeated_row_or_column_is_read() -> None:
    for x in (
        np.broadcast_to(normals(1, 1, 70), (9, 70)),
        np.broadcast_to(normals(2, 9, 1), (9, 70)),
    ):
        assert_equal_bits(converted(x, "bfloat16"), to_bf16(x))


def test_what_can_be_used_as_it_lies_is_not_copied() -> None:
    x = normals(1, 33, 70)
    parts = list(pieces(x[::2], "float32", (4, 8)))
    assert np.shares_memory(parts[0][0], x) and parts[0][0].shape == (16, 64)
    copied = sum(part.nbytes for part, _, _ in parts[1:])
    assert copied <= 2 * max(16 * 8, 4 * 72) * 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_must_be_copied_is_copied_in_small_parts(layout: str) -> None:
    x = LAYOUTS[layout](normals(1, 3000, 70))
    copies = [p for p, _, _ in pieces(x, "float32", (16, 16)) if not np.shares_memory(p, x)]
    assert all(part.nbytes <= module.BUFFER_BYTES for part in copies)


def test_several_threads_convert_at_once() -> None:
    def work(seed: int) -> None:
        for size in (1, 70, 1000):
            x = random_floats(seed, 40, size)
            assert_equal_bits(converted(x, "bfloat16"), to_bf16(x))
            y = random_sums(seed, 40, size)
            assert_equal_bits(converted(y, "int8"), np.clip(y, -128, 127).astype(np.int8))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(12)))
