"""Adds partial sums of K and clips accumulators to int8, in one pass each."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.host.compiled import compiled
from npu_matmul.host.convert import convert, type_name
from npu_matmul.host.pointers import address
from npu_matmul.host.vectors import add_partials


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
    assert total.flags.c_contiguous and partials.flags.c_contiguous
    if partials.size:
        count = partials.size // total.size
        add = _adder(type_name(total.dtype))
        add(address(total), total.size, address(partials), total.nbytes, count)


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


@cache
def _adder(element_type: str) -> Any:
    @compiled
    def add(total, size, partials, stride, count):
        add_partials(element_type, size, total, partials, stride, count)

    return add
