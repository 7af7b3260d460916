"""Adds partial sums of K and clips accumulators to int8, in one pass each."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


def accumulate(total: NDArray[Any], partial: NDArray[Any]) -> None:
    """``total += partial`` in place, modulo 2**32 for INT32; both contiguous, of one shape and
    dtype.

    >>> total = np.array([1, 2**31 - 1], np.int32)
    >>> accumulate(total, np.array([1, 1], np.int32))
    >>> total.tolist()
    [2, -2147483648]
    """
    assert total.shape == partial.shape and total.dtype == partial.dtype
    _add(total.reshape(-1), partial.reshape(-1))


def clip_to_int8(accumulators: NDArray[np.int32]) -> NDArray[np.int8]:
    """INT32 accumulators saturated to [-128, 127].

    >>> clip_to_int8(np.array([-300, 5, 300], np.int32)).tolist()
    [-128, 5, 127]
    """
    out = np.empty(accumulators.shape, np.int8)
    _clip(np.ascontiguousarray(accumulators).reshape(-1), out.reshape(-1))
    return out


@numba.njit(cache=True, nogil=True)
def _add(total, partial):
    for i in range(total.size):
        total[i] += partial[i]


@numba.njit(cache=True, nogil=True)
def _clip(accumulators, out):
    for i in range(accumulators.size):
        out[i] = max(np.int32(-128), min(np.int32(127), accumulators[i]))
