"""Operands for tests, and a comparison that shows what differs: integers are equal bit for bit."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

ON_A_REAL_NPU = pytest.param("xrt", marks=pytest.mark.npu)  # a device for `pytest -m npu`


def random_int8(seed: int, *shape: int) -> NDArray[np.int8]:
    """Seeded values of all of int8, -128 and 127 included."""
    return np.random.default_rng(seed).integers(-128, 128, shape, dtype=np.int8)


def product_int32(a: ArrayLike, b: ArrayLike) -> NDArray[np.int32]:
    """What INT32 accumulators must be, from NumPy."""
    product: NDArray[np.int32] = np.matmul(np.asarray(a, np.int32), np.asarray(b, np.int32))
    return product


def clipped_int8(a: ArrayLike, b: ArrayLike) -> NDArray[np.int8]:
    """What a saturated product must be, from NumPy."""
    saturated: NDArray[np.int8] = np.clip(product_int32(a, b), -128, 127).astype(np.int8)
    return saturated


def peak_bytes(call: Callable[[], object]) -> int:
    """What Python and NumPy allocate at most at one time, in a second call."""
    call()
    tracemalloc.start()
    call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def assert_equal_bits(got: ArrayLike, want: ArrayLike) -> None:
    """Same element type, same shape, same bits; says how many differ, and the first of them."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype, f"got {got.dtype}, want {want.dtype}"
    assert got.shape == want.shape, f"got shape {got.shape}, want {want.shape}"
    differ = _bits(got) != _bits(want)
    if differ.any():
        position = int(np.argmax(differ))
        first = tuple(int(i) for i in np.unravel_index(position, got.shape))
        raise AssertionError(
            f"{np.count_nonzero(differ)} of {got.size} elements differ; "
            f"first at {first}: got {got[first]!r}, want {want[first]!r}"
        )


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    return np.frombuffer(array.tobytes(), f"u{array.dtype.itemsize}")


def assert_equal_floats(got: ArrayLike, want: ArrayLike) -> None:
    """Same bits, signs of zeros included; but one NaN is as good as another."""
    got, want = np.array(got), np.array(want)
    both_nan = np.isnan(got) & np.isnan(want)
    got[both_nan] = want[both_nan] = 0
    assert_equal_bits(got, want)
