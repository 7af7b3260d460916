"""Element types of matrices and their scales, converted at the speed of memory.

Compiled loops over matrices by address, for other compiled loops and for the functions of arrays
in ``precision`` and ``accumulate``. A matrix is the address of its first element and the bytes
between its rows; within a row, elements follow one another. Nothing needs alignment. Each loop is
compiled when it is first called, and kept on disk.

Symmetric int8, the same on every device: of the largest magnitude of a row (of A) or column (of
B), ``scale = largest / 127`` and ``inverse = 127 / largest``, each rounded once; both are 1 where
all is zero. An element becomes ``clip(rint(x * inverse), -127, 127)``, which needs no clipping: as
``|x| <= largest``, the product is at most 127 and a rounding error. A sum becomes
``sum * a_scale * b_scale``, from left to right. All of that in float32 where :func:`is_plain`
allows, else in float64.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from npu_matmul.host.vectors import (
    REVISION,
    convert_row,
    float_of_bits,
    keep_largest,
    largest_magnitude,
)

ROWS_AT_ONCE = 4
# Bits of 2**-60 and 2**60: sums are below 2**31, so that a sum times one scale has all its bits.
_LEAST_PLAIN, _MOST_PLAIN = np.uint32((127 - 60) << 23), np.uint32((127 + 60) << 23)


@cache
def converter(source_type: str, target_type: str, factors: str = "") -> Any:
    """The compiled ``convert(source, source_stride, target, target_stride, rows, columns,
    row_factors, column_factors)``; types and factors are those of ``vectors.convert_block``.

    Both factors are addresses, 0 where there are none.

    >>> x, scale = np.array([[1.0, -2.5]], np.float32), np.array([2.0], np.float32)
    >>> out = np.zeros((1, 2), np.int8)
    >>> quantise = converter("float32", "int8", "rows")
    >>> quantise(address(x), 0, address(out), 0, 1, 2, address(scale), 0)
    >>> out.tolist()
    [[2, -5]]
    """
    factor_bytes = 8 if "float64" in (source_type, target_type) else 4
    revision = REVISION

    @numba.njit(cache=True, nogil=True)
    def convert(source, source_stride, target, target_stride, rows, columns, by_row, by_column):
        assert revision
        for i in range(rows):
            convert_row(
                source_type, target_type, factors, columns,
                source + i * source_stride, target + i * target_stride,
                by_row + i * factor_bytes, by_column,
            )  # fmt: skip

    return convert


@cache
def row_magnitudes(element_type: str) -> Any:
    """The compiled ``find(source, stride, rows, columns, out)``: the largest magnitude of each row
    into the array ``out``, as ``vectors.keep_largest`` defines them.

    >>> x, out = np.array([[1.0, -2.5], [0.0, np.nan]], np.float32), np.zeros(2, np.uint32)
    >>> row_magnitudes("float32")(address(x), 8, 2, 2, out)
    >>> out.view(np.float32).tolist()
    [2.5, nan]
    """
    revision = REVISION

    @numba.njit(cache=True, nogil=True)
    def find(source, stride, rows, columns, out):
        assert revision
        for i in range(rows):
            out[i] = largest_magnitude(element_type, columns, source + i * stride)

    return find


@cache
def column_magnitudes(element_type: str) -> Any:
    """The compiled ``find(source, stride, rows, columns, out)``: raises the array ``out`` to the
    largest magnitude of each column."""
    revision = REVISION

    @numba.njit(cache=True, nogil=True)
    def find(source, stride, rows, columns, out):
        assert revision
        whole = rows - rows % ROWS_AT_ONCE
        for i in range(0, whole, ROWS_AT_ONCE):
            keep_largest(
                element_type, ROWS_AT_ONCE, columns, source + i * stride, stride, out.ctypes.data
            )
        for i in range(whole, rows):
            keep_largest(element_type, 1, columns, source + i * stride, stride, out.ctypes.data)

    return find


@numba.njit(cache=True, nogil=True)
def is_plain(magnitude):
    """Whether a row or column of this largest magnitude (uint32, the bits of a float32) can be
    quantised in float32: it is 0, or neither so small nor so large that an intermediate result
    would leave float32's range where the product does not."""
    return magnitude == 0 or _LEAST_PLAIN <= magnitude <= _MOST_PLAIN


@numba.njit(cache=True, nogil=True, error_model="numpy")
def scale_and_inverse(magnitude):
    """Both of a plain row or column, in float32, from its largest magnitude (uint32)."""
    if magnitude == 0:
        return np.float32(1), np.float32(1)
    largest = float_of_bits(np.uint32(magnitude))
    return largest / np.float32(127), np.float32(127) / largest


def address(array: NDArray[Any]) -> int:
    """Where the first element lies; the array must be kept alive while it is used."""
    found: int = array.__array_interface__["data"][0]
    return found
