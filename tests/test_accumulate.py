"""Partial sums are added exactly, and only the whole sum is saturated."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
from comparing import assert_equal_bits, product_int32, random_int8
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from npu_matmul import accumulate as accumulate_module
from npu_matmul import npu_matmul
from npu_matmul.accumulate import accumulate, clip_to_int8
from npu_matmul.device import NpuDevice
from npu_matmul.kernel import Kernel
from npu_matmul.strategies import STRATEGIES

LOWEST, HIGHEST = -(2**31), 2**31 - 1
BORDERS = [0, 1, -1, 2, HIGHEST, HIGHEST - 1, LOWEST, LOWEST + 1]
INT32 = st.integers(LOWEST, HIGHEST)


def wrapped(value: int) -> int:
    """What INT32 holds of a sum, in Python's unbounded integers."""
    return (value + 2**31) % 2**32 - 2**31


def saturated(value: int) -> int:
    return max(-128, min(127, value))


def test_the_docstring_examples_hold() -> None:
    assert doctest.testmod(accumulate_module).failed == 0


@given(st.lists(st.tuples(INT32, INT32), max_size=40))
def test_sums_wrap_modulo_two_to_the_32(pairs: list[tuple[int, int]]) -> None:
    total = np.array([a for a, _ in pairs], np.int32)
    partial = np.array([b for _, b in pairs], np.int32)
    accumulate(total, partial)
    assert_equal_bits(total, np.array([wrapped(a + b) for a, b in pairs], np.int32))
    assert_equal_bits(partial, np.array([b for _, b in pairs], np.int32))


def test_sums_are_exact_at_every_pair_of_limits() -> None:
    total = np.repeat(np.array(BORDERS, np.int32), len(BORDERS)).reshape(len(BORDERS), -1)
    partial = np.ascontiguousarray(total.T)
    accumulate(total, partial)
    assert total.tolist() == [[wrapped(a + b) for b in BORDERS] for a in BORDERS]


def test_float_partial_sums_are_added_in_float32() -> None:
    generator = np.random.default_rng(1)
    total, partial = generator.normal(0, 1e6, (2, 3, 5)).astype(np.float32)
    want = total + partial
    accumulate(total, partial)
    assert_equal_bits(total, want)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)])
def test_empty_arrays_stay_empty(shape: tuple[int, ...]) -> None:
    total = np.empty(shape, np.int32)
    accumulate(total, np.empty(shape, np.int32))
    assert clip_to_int8(total).shape == shape
    assert clip_to_int8(total).dtype == np.int8


@pytest.mark.parametrize(
    "partial", [np.zeros(3, np.int32), np.zeros((2, 2), np.int32), np.zeros(4, np.int64)]
)
def test_partial_sums_of_another_shape_or_type_are_refused(partial: NDArray[Any]) -> None:
    with pytest.raises(AssertionError):
        accumulate(np.zeros(4, np.int32), partial)


def test_clipping_keeps_int8_and_saturates_the_rest() -> None:
    values = [LOWEST, -(2**16), -129, -128, -127, -1, 0, 1, 126, 127, 128, 255, 256, 2**16, HIGHEST]
    assert clip_to_int8(np.array(values, np.int32)).tolist() == [saturated(v) for v in values]


@given(st.lists(st.lists(st.integers(-400, 400), min_size=3, max_size=3), min_size=1, max_size=9))
def test_clipping_keeps_shape_and_order_whatever_the_memory_layout(rows: list[list[int]]) -> None:
    values = np.array(rows, np.int32)
    want = np.array([[saturated(v) for v in row] for row in rows], np.int8)
    assert_equal_bits(clip_to_int8(values), want)
    assert_equal_bits(clip_to_int8(values.T), want.T.copy())
    assert_equal_bits(clip_to_int8(values[::-1, ::2]), want[::-1, ::2].copy())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_sum_of_saturated_parts_is_not_taken_for_the_saturated_sum(
    npu: NpuDevice, int8_kernel: Kernel, strategy: str
) -> None:
    """Parts of K overflow int8 far in both directions, while the whole sum fits."""
    k = int8_kernel.tile.k
    a = np.concatenate([np.full(k, 127), np.full(k, -127), [1] * (k - 3), [60, -3, 0]])
    b = np.concatenate([np.full(2 * k, 127), np.zeros(k - 3), [1, 1, 1]])
    column = b.astype(np.int8)[:, np.newaxis]
    got = npu_matmul(
        a.astype(np.int8)[np.newaxis], column, device=npu, kernel=int8_kernel, strategy=strategy
    )
    assert got.tolist() == [[57]]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_whole_sum_is_saturated_once(
    npu: NpuDevice, int8_kernel: Kernel, strategy: str
) -> None:
    depth = 3 * int8_kernel.tile.k + 1
    a, b = random_int8(2, 9, depth), random_int8(3, depth, 7)
    a[0], b[:, 0] = -128, -128
    a[1] = 127
    a[2] = np.arange(depth) == 5  # sums that do not saturate
    got = npu_matmul(a, b, device=npu, kernel=int8_kernel, strategy=strategy)
    want = np.clip(product_int32(a, b), -128, 127).astype(np.int8)
    assert_equal_bits(got, want)
    assert {-128, 127} < set(want.ravel().tolist())
