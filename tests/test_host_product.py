"""Products on the host: every path of this CPU, against NumPy's integers and float64."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from comparing import assert_equal_bits, product_int32, random_int8
from host_paths import paths_for
from numpy.typing import NDArray

from npu_matmul.host import gemm, product
from npu_matmul.host.paths import Path
from npu_matmul.host.threads import WORTH_S
from npu_matmul.precision import BF16, to_bf16

SIZES = range(1, 41)
POWERS = [2**n + d for n in (6, 7, 8) for d in (-1, 0, 1)]


every_int8_path = pytest.mark.parametrize("path", paths_for("int8", portable=False))
every_bf16_path = pytest.mark.parametrize("path", paths_for("bfloat16", portable=False))


def sums(a: NDArray[Any], b: NDArray[Any], path: Path, dtype: Any = np.int32) -> NDArray[Any]:
    """The product by a path, into memory that held other values before."""
    out = np.full((a.shape[0], b.shape[1]), 77, dtype)
    assert not product.product(a, product.pack(b, path), out).size
    return out


def layouts(x: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """The same matrix, laid out in every way that strides allow."""
    rows, columns = x.shape
    yield "C", x
    yield "Fortran", np.asfortranarray(x)
    yield "both reversed", np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]
    spread = np.full((2 * rows, 3 * columns), 5, x.dtype)
    spread[1::2, 2::3] = x
    yield "every third of every second", spread[1::2, 2::3]
    width = -(-columns * x.itemsize // 4096) * 4096 // x.itemsize
    conflicting = np.full((rows, width), 5, x.dtype)
    conflicting[:, :columns] = x
    yield "rows whole pages apart", conflicting[:, :columns]
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    raw[...] = x
    yield "odd address", raw


@every_int8_path
def test_int8_is_exact_for_all_small_sizes(path: Path) -> None:
    """Every M with every K and N of a kind: all row counts of the microkernels, all tails."""
    for (m, k, n), seed in zip(
        itertools.product(SIZES, (1, 2, 3, 5, 8, 29), (1, 7, 16, 33)), itertools.count()
    ):
        a, b = random_int8(seed, m, k), random_int8(seed + 1, k, n)
        assert_equal_bits(sums(a, b, path), product_int32(a, b))
    for (k, n), seed in zip(itertools.product(SIZES, SIZES), itertools.count()):
        a, b = random_int8(seed, 3, k), random_int8(seed + 1, k, n)
        assert_equal_bits(sums(a, b, path), product_int32(a, b))


@every_int8_path
def test_int8_is_exact_around_powers_of_two(path: Path) -> None:
    for size in POWERS:
        for m, k, n in [(size, 30, 20), (20, size, 30), (30, 20, size)]:
            a, b = random_int8(size, m, k), random_int8(size + 1, k, n)
            assert_equal_bits(sums(a, b, path), product_int32(a, b))
            want = np.clip(product_int32(a, b), -128, 127).astype(np.int8)
            assert_equal_bits(sums(a, b, path, np.int8), want)


@every_int8_path
@pytest.mark.parametrize("value", [(-128, -128), (-128, 127), (127, -128), (127, 127)])
def test_extreme_values_are_exact_and_wrap_as_numpy_does(
    path: Path, value: tuple[int, int]
) -> None:
    for k in (1, 4, 2047, 131_073):  # the last is beyond INT32
        a, b = np.full((3, k), value[0], np.int8), np.full((k, 17), value[1], np.int8)
        b[0, 3] = 1  # not all alike
        assert_equal_bits(sums(a, b, path), product_int32(a, b))


@every_int8_path
def test_every_layout_of_both_operands_is_accepted(path: Path) -> None:
    for m, k, n in [(7, 13, 37), (19, 64, 32), (30, 66, 40)]:
        a, b = random_int8(m, m, k), random_int8(n, k, n)
        want = product_int32(a, b)
        for (a_name, left), (b_name, right) in itertools.product(layouts(a), layouts(b)):
            got = sums(left, right, path)
            assert np.array_equal(got, want), f"A {a_name}, B {b_name}"
        row = np.broadcast_to(a[:1], (m, k))
        assert_equal_bits(sums(row, b, path), product_int32(row, b))


@every_int8_path
def test_only_c_is_written(path: Path) -> None:
    """Neither the columns beside a C that is part of a larger array, nor the rows around it."""
    for n in (1, 15, 16, 17, 31, 32, 40):
        a, b = random_int8(1, 15, 21), random_int8(2, 21, n)
        for dtype in (np.int32, np.int8):
            around = np.full((17, n + 8), 99, dtype)
            assert not product.product(a, product.pack(b, path), around[1:-1, 4:-4]).size
            want = np.full((17, n + 8), 99, dtype)
            sums_of_int32 = product_int32(a, b)
            clipped = np.clip(sums_of_int32, -128, 127)
            want[1:-1, 4:-4] = clipped if dtype == np.int8 else sums_of_int32
            assert_equal_bits(around, want)


@every_int8_path
def test_blocks_of_rows_and_many_panels_fit_together(path: Path) -> None:
    a, b = random_int8(3, 2 * gemm.BLOCK_ROWS + 5, 70), random_int8(4, 70, 130)
    assert_equal_bits(sums(a, b, path), product_int32(a, b))
    assert_equal_bits(sums(b.T, a.T, path), product_int32(b.T, a.T))
    columns = 3 * gemm.NEAR_BYTES // 4098 // path.fed_bytes  # B fills what stays near three times
    a, b = random_int8(5, 17, 4098), random_int8(6, 4098, columns)
    assert_equal_bits(sums(a, b, path), product_int32(a, b))


@every_int8_path
def test_what_is_packed_can_be_unpacked(path: Path) -> None:
    for k, n in [(1, 1), (5, 3), (64, 32), (66, 70), (0, 4), (4, 0)]:
        b = random_int8(k, k, n)
        for _, layout in layouts(b) if b.size else [("C", b)]:
            assert_equal_bits(product.unpack(product.pack(layout, path)), b)


@every_int8_path
def test_scaled_sums_are_those_of_the_rows_quantised_in_float32(path: Path) -> None:
    random = np.random.default_rng(5)
    for m, k, n in [(1, 1, 1), (3, 5, 7), (20, 64, 33), (100, 130, 70)]:
        a = (random.standard_normal((m, k)) * 10.0 ** random.integers(-9, 9, (m, 1))).astype(
            np.float32
        )
        a[m // 2] = 0
        b, scale = random_int8(n, k, n), random.random(n, np.float32) + np.float32(0.01)
        largest = np.abs(a).max(axis=1, keepdims=True)
        largest[largest == 0] = 127
        rows = np.rint(a * (np.float32(127) / largest)).astype(np.int8)
        want = product_int32(rows, b).astype(np.float32) * (largest / np.float32(127)) * scale
        panels = product.pack(b, path)
        for name, layout in layouts(a):
            out = np.full((m, n), 77, np.float32)
            done = product.product(layout, panels, out, product.panel_scale(scale, panels))
            assert not done.size, name
            assert_equal_bits(out, want)


@every_int8_path
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e-45, 1e-30, 3e38])
def test_rows_that_float32_cannot_quantise_are_refused(path: Path, value: float) -> None:
    a = np.random.default_rng(0).standard_normal((40, 9)).astype(np.float32)
    a[37] = 0
    a[37, 8] = value
    panels = product.pack(random_int8(0, 9, 5), path)
    scale = product.panel_scale(np.ones(5, np.float32), panels)
    left = product.product(a, panels, np.zeros((40, 5), np.float32), scale)
    assert left.tolist() == [*range(40)]
    assert not product.product(a[:37], panels, np.zeros((37, 5), np.float32), scale).size


@every_bf16_path
def test_bf16_sums_keep_to_the_bound(path: Path) -> None:
    """2e-6 sqrt(K) of the float64 product of the same operands: f32 sums in any order."""
    random = np.random.default_rng(6)
    for m, k, n in [(1, 1, 1), (3, 5, 7), (15, 33, 40), (100, 512, 70), (20, 2049, 30)]:
        a = random.standard_normal((m, k)).astype(np.float32)
        b = random.standard_normal((k, n)).astype(BF16)
        exact = a.astype(BF16).astype(np.float64) @ b.astype(np.float64)
        bound = 2e-6 * np.sqrt(k) * np.linalg.norm(exact)
        for name, layout in layouts(a.astype(BF16)):
            assert np.linalg.norm(sums(layout, b, path, np.float32) - exact) <= bound, name
        for _, layout in layouts(a):  # rounded on the way: the same operands, the same bits
            rounded = sums(layout, b, path, np.float32)
            assert_equal_bits(rounded, sums(a.astype(BF16), b, path, np.float32))


@every_bf16_path
def test_bf16_small_integers_are_exact_for_all_tails(path: Path) -> None:
    for (m, k, n), seed in zip(
        itertools.product((1, 3, 14, 15), SIZES, (1, 16, 17, 32, 33)), itertools.count()
    ):
        a, b = random_int8(seed, m, k), random_int8(seed + 1, k, n)
        got = sums(a.astype(BF16), b.astype(BF16), path, np.float32)
        assert_equal_bits(got, product_int32(a, b).astype(np.float32))
    for _, layout in layouts(random_int8(9, 66, 70).astype(BF16)):
        assert_equal_bits(
            product.unpack(product.pack(layout, path)), random_int8(9, 66, 70).astype(BF16)
        )


@every_bf16_path
def test_every_float16_is_rounded_to_bf16_as_numpy_does(path: Path) -> None:
    """With one column and 1 below it, the product is what was rounded. (No float16 is subnormal as
    bf16.)"""
    a = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 1)
    with np.errstate(invalid="ignore"):
        want = a.astype(np.float32).astype(BF16).astype(np.float32)
    for left in (a, np.repeat(a, 3, 1)[:, 1:2], np.ascontiguousarray(a[::-1])[::-1]):
        got = sums(left, np.ones((1, 1), BF16), path, np.float32)
        number = ~np.isnan(want)
        assert_equal_bits(np.isnan(got), ~number)
        assert_equal_bits(got[number] + 0, want[number] + 0)  # a sum with 0 is never -0


@every_bf16_path
def test_every_element_type_of_every_layout_is_rounded_once(path: Path) -> None:
    """int8 and float64 too, of which float32 would round some to the middle of two bf16 numbers."""
    random = np.random.default_rng(7)
    b = random.standard_normal((33, 40)).astype(BF16)
    for kind in (np.float16, np.float64, np.int8):
        a = (50 * random.standard_normal((15, 33))).astype(kind)
        if kind == np.float64:
            a[::2] = 1 + 2**-8 + 2**-40
        want = sums(to_bf16(a), b, path, np.float32)
        for name, layout in layouts(a):
            assert np.array_equal(sums(layout, b, path, np.float32), want), name


@every_bf16_path
def test_bf16_passes_on_what_is_not_finite(path: Path) -> None:
    a = np.array([[1, np.inf], [1, np.nan], [np.inf, 1], [3e38, 3e38], [2, 3]], np.float32)
    b = np.array([[1, 0, -2], [1, 1, np.inf]], np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        want = a.astype(BF16).astype(np.float64) @ b.astype(BF16).astype(np.float64)
        want = want.astype(np.float32)
    got = sums(a, b.astype(BF16), path, np.float32)
    assert np.array_equal(np.isnan(got), np.isnan(want))
    finite = ~np.isnan(want)
    assert_equal_bits(got[finite], want[finite])


@every_bf16_path
def test_subnormal_bf16_is_refused_because_the_instruction_takes_it_for_zero(path: Path) -> None:
    smallest = float(np.float32(2.0**-126))
    for value, fits in [
        (smallest, True),
        (smallest / 2, False),
        (-(2.0**-133), False),
        (-0.0, True),
    ]:
        a = np.ones((30, 9), np.float32)
        a[28, 8] = value
        panels = product.pack(np.ones((9, 3), BF16), path)
        for left in (a, a.astype(BF16)):
            rows = product.product(left, panels, np.zeros((30, 3), np.float32))
            assert rows.tolist() == ([] if fits else [28])
        assert product.suits(a.astype(BF16), path) is fits


@pytest.mark.parametrize("path", [*paths_for("int8", False), *paths_for("bfloat16", False)])
def test_few_rows_are_expected_to_take_as_long_as_reading_b(path: Path) -> None:
    """One row of a large B is worth more threads, though there is little to multiply."""
    kind = np.int8 if path.element == "int8" else BF16
    small, large = (product.pack(np.ones((n, n), kind), path) for n in (256, 4096))
    assert product.expected_s(1, large) == large.words.nbytes / product.READ_PER_S
    assert product.expected_s(10**6, small) == 10**6 * 256 * 256 / path.rate
    most = product.rows_of_one_thread(small)
    assert product.expected_s(most, small) <= WORTH_S < product.expected_s(most + 1, small)
    assert product.expected_s(0, large) > WORTH_S and product.rows_of_one_thread(large) == 0
