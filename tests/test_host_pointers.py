"""Addresses of arrays, against what NumPy tells of them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from npu_matmul.host.pointers import LINE_BYTES, address, aligned_empty

BASE = np.arange(60, dtype=np.int32).reshape(6, 10)


@pytest.mark.parametrize(
    "array",
    [
        BASE,
        BASE[2:, 3:],
        BASE[::-1, ::-2],
        BASE.T,
        np.zeros((0, 3), np.int8),
        np.array(5.0),
        np.ones(3, ml_dtypes.bfloat16),
        np.broadcast_to(np.float64(1), (4, 4)),
        np.ma.masked_array(BASE, BASE > 3),
        np.array([object()]),
    ],
    ids=lambda x: f"{type(x).__name__}-{x.dtype}-{x.shape}",
)
def test_an_address_is_the_one_that_numpy_tells(array: np.ndarray) -> None:
    assert address(array) == array.ctypes.data


@pytest.mark.parametrize("kind", [np.int8, np.float32, np.float64, ml_dtypes.bfloat16])
def test_aligned_memory_begins_with_a_cache_line(kind: type) -> None:
    kept = []  # so that each size gets memory of its own
    for rows in range(1, 60):
        array = aligned_empty((rows, 7), np.dtype(kind))
        kept.append(array)
        assert (array.shape, array.dtype) == ((rows, 7), np.dtype(kind))
        assert array.flags.c_contiguous and array.flags.writeable
        assert address(array) % LINE_BYTES == 0
        array[...] = 1  # all of it is there
