"""Adds partial sums of K and clips accumulators to int8, in one pass each."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from npu_matmul.host.convert import convert

BLOCK = 4096  # elements of the total that stay in the nearest cache while all partials are added


def accumulate(total: NDArray[Any], partials: NDArray[Any]) -> None:
    """Add partial sums to ``total`` in place, in their order; modulo 2**32 for INT32.

    ``partials`` is one of them, of ``total``'s shape, or several along a first axis, which are all
    read in one pass. Both are contiguous and of one dtype.

    >>> total = np.array([1, 2**31 - 1], np.int32)
    >>> accumulate(total, np.array([[1, 1], [3, 0]], np.int32))
    >>> total.tolist()
    [5, -2147483648]
    """
    assert total.dtype == partials.dtype
    assert total.shape in (partials.shape, partials.shape[1:])
    if total.size:
        _add(total.reshape(-1), partials.reshape(-1, total.size))


def clip_to_int8(
    accumulators: NDArray[np.int32], out: NDArray[np.int8] | None = None
) -> NDArray[np.int8]:
    """INT32 accumulators saturated to [-128, 127]; a row or a matrix of them.

    >>> clip_to_int8(np.array([-300, 5, 300], np.int32)).tolist()
    [-128, 5, 127]
    """
    out = np.empty(accumulators.shape, np.int8) if out is None else out
    convert(np.atleast_2d(accumulators), np.atleast_2d(out))
    return out


@numba.njit(cache=True, nogil=True)
def _add(total, partials):
    for start in range(0, total.size, BLOCK):
        block = total[start : start + BLOCK]
        for p in range(partials.shape[0]):
            partial = partials[p, start : start + BLOCK]
            for i in range(block.size):
                block[i] += partial[i]
