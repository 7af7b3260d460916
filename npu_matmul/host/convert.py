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

from collections.abc import Iterator
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from npu_matmul.host.compiled import compiled
from npu_matmul.host.elements import element_bytes
from npu_matmul.host.pointers import address
from npu_matmul.host.vectors import (
    convert_row,
    float_of_bits,
    keep_largest,
    largest_magnitude,
    transpose_block,
)

ROWS_AT_ONCE = 8
BUFFER_BYTES = 1 << 18  # of what must be copied to be read: it stays in the cache
BLOCK = 8  # rows and columns that are exchanged at once
STORED_AS: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in (
        ("int8", np.int8),
        ("int32", np.int32),
        ("float32", np.float32),
        ("float64", np.float64),
        ("bfloat16", ml_dtypes.bfloat16),
        ("float16", np.float16),
    )
}
# Bits of 2**-60 and 2**60: sums are below 2**31, so that a sum times one scale has all its bits.
_LEAST_PLAIN, _MOST_PLAIN = np.uint32((127 - 60) << 23), np.uint32((127 + 60) << 23)

# Three terms make one product of three times the K: [low, high, high] of A beside
# [high; low; high] of B, the small products first. The highs that meet a low are made 0 where they
# are not finite: a low of 0 must not turn an infinity, which the product of both highs passes on,
# into NaN.
TERMS_OF_A = "bfloat16 low|bfloat16 finite|bfloat16"
TERMS_OF_B = "bfloat16 finite|bfloat16 low|bfloat16"


@cache
def converter(source_type: str, target_type: str, factors: str = "") -> Any:
    """The compiled ``convert(source, source_stride, target, target_stride, rows, columns,
    row_factors, column_factors, apart)``; types and factors are those of
    ``vectors.convert_block``.

    Both factors are addresses, 0 where there are none; ``apart`` can be left out.

    >>> x, scale = np.array([[1.0, -2.5]], np.float32), np.array([2.0], np.float32)
    >>> out = np.zeros((1, 2), np.int8)
    >>> quantise = converter("float32", "int8", "rows")
    >>> quantise(address(x), 0, address(out), 0, 1, 2, address(scale), 0)
    >>> out.tolist()
    [[2, -5]]
    """
    factor_bytes = 8 if "float64" in (source_type, target_type) else 4

    @compiled
    def convert(
        source, source_stride, target, target_stride, rows, columns, by_row, by_column, apart=0
    ):
        for i in range(rows):
            convert_row(
                source_type, target_type, factors, columns,
                source + i * source_stride, target + i * target_stride,
                by_row + i * factor_bytes, by_column, apart,
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

    @compiled
    def find(source, stride, rows, columns, out):
        for i in range(rows):
            out[i] = largest_magnitude(element_type, columns, source + i * stride)

    return find


@cache
def column_magnitudes(element_type: str) -> Any:
    """The compiled ``find(source, stride, rows, columns, out)``: raises the array ``out`` to the
    largest magnitude of each column."""

    @compiled
    def find(source, stride, rows, columns, out):
        whole = rows - rows % ROWS_AT_ONCE
        for i in range(0, whole, ROWS_AT_ONCE):
            keep_largest(
                element_type, ROWS_AT_ONCE, columns, source + i * stride, stride, out.ctypes.data
            )
        for i in range(whole, rows):
            keep_largest(element_type, 1, columns, source + i * stride, stride, out.ctypes.data)

    return find


@compiled
def is_plain(magnitude):
    """Whether a row or column of this largest magnitude (uint32, the bits of a float32) can be
    quantised in float32: it is 0, or neither so small nor so large that an intermediate result
    would leave float32's range where the product does not."""
    return (magnitude == 0) | ((magnitude >= _LEAST_PLAIN) & (magnitude <= _MOST_PLAIN))


@compiled
def scale_and_inverse(magnitude):
    """Both of a plain row or column, in float32, from its largest magnitude (uint32)."""
    if magnitude == 0:
        return np.float32(1), np.float32(1)
    largest = float_of_bits(np.uint32(magnitude))
    return largest / np.float32(127), np.float32(127) / largest


@compiled
def plain_scales(magnitudes, scale, inverse):
    """Fill both for all rows or columns; False when one of them is not plain, or not finite."""
    plain = True
    for i in range(magnitudes.size):
        scale[i], inverse[i] = scale_and_inverse(magnitudes[i])
        plain &= is_plain(magnitudes[i])
    return plain


@cache
def type_name(dtype: np.dtype[Any]) -> str:
    """The name of an element type for these loops, in whichever byte order it is stored.

    >>> type_name(np.dtype(np.float16)), type_name(np.dtype(">f8"))
    ('float16', 'float64')
    """
    name: str = dtype.name
    assert name in STORED_AS
    return name


def written_as(dtype: np.dtype[Any]) -> str:
    """As :func:`type_name`, of what is written: NumPy makes float16 of float32."""
    name = type_name(dtype)
    return "float32" if name == "float16" else name


@cache
def stored_as(element_type: str) -> np.dtype[Any]:
    """What NumPy calls a type of these loops, or several that are written at once.

    >>> stored_as("bfloat16|bfloat16 low").name
    'bfloat16'
    """
    return STORED_AS[element_type.split("|")[0].split()[0]]


def pieces(
    matrix: NDArray[Any], element_type: str, tile: tuple[int, int] = (1, 1), fill: bool = False
) -> Iterator[tuple[NDArray[Any], int, int]]:
    """A matrix of any layout in parts that the loops can use: whole tiles, of an element type,
    with the elements of a row one after another; each with its first row and column.

    Most is one view of the matrix if that allows it. The rest passes through a small buffer, padded
    with zeros. With ``fill`` the parts are to be written: what was put into the buffer goes to the
    matrix when the next part is asked for.

    >>> [(part.shape, i, j) for part, i, j in pieces(np.ones((7, 9)), "float64", (4, 4))]
    [((4, 8), 0, 0), ((4, 4), 0, 8), ((4, 12), 4, 0)]
    """
    if not matrix.size:
        return
    (rows, columns), (height, width) = matrix.shape, tile
    dtype = stored_as(element_type)
    whole_rows, whole_columns = rows - rows % height, columns - columns % width
    if matrix.dtype != dtype or not in_rows(matrix):
        whole_rows = whole_columns = 0
    if whole_rows and whole_columns:
        yield matrix[:whole_rows, :whole_columns], 0, 0
    if whole_rows and whole_columns < columns:
        yield from _buffered(matrix[:whole_rows], whole_columns, 0, dtype, tile, fill)
    if whole_rows < rows:
        yield from _buffered(matrix, 0, whole_rows, dtype, tile, fill)


def in_rows(matrix: NDArray[Any]) -> bool:
    """Whether the elements of each row follow one another."""
    return matrix.shape[1] == 1 or matrix.strides[1] == matrix.dtype.itemsize


def in_columns(matrix: NDArray[Any]) -> bool:
    """Whether it is the transpose of a matrix in rows, and of several rows itself."""
    return matrix.shape[0] > 1 and not in_rows(matrix) and in_rows(matrix.T)


def _buffered(
    matrix: NDArray[Any],
    left: int,
    top: int,
    dtype: np.dtype[Any],
    tile: tuple[int, int],
    fill: bool,
) -> Iterator[tuple[NDArray[Any], int, int]]:
    high, wide = _buffer_shape(matrix[top:, left:], tile, dtype.itemsize)
    buffer = np.empty((high, wide), dtype)
    for i in range(top, matrix.shape[0], high):
        for j in range(left, matrix.shape[1], wide):
            part = matrix[i : i + high, j : j + wide]
            rows, columns = part.shape
            used = buffer[: _whole(rows, tile[0]), : _whole(columns, tile[1])]
            if not fill:
                _copy(part, used[:rows, :columns])
                used[rows:] = used[:, columns:] = 0
            yield used, i, j
            if fill:
                _copy(used[:rows, :columns], part)


def _buffer_shape(matrix: NDArray[Any], tile: tuple[int, int], itemsize: int) -> tuple[int, int]:
    """Whole tiles of at most ``BUFFER_BYTES`` (or one), long in the direction in which the elements
    of the matrix follow one another."""
    along = 0 if in_columns(matrix) else 1
    sizes, room = [_whole(*pair) for pair in zip(matrix.shape, tile, strict=True)], BUFFER_BYTES
    shape = list(tile)
    for axis in (along, 1 - along):
        fitting = room // (itemsize * shape[1 - axis] * tile[axis]) * tile[axis]
        shape[axis] = max(tile[axis], min(sizes[axis], fitting))
    return shape[0], shape[1]


def _whole(size: int, tile: int) -> int:
    return -(-size // tile) * tile


def _copy(source: NDArray[Any], target: NDArray[Any]) -> None:
    """``target[...] = source``; blocks of columns become blocks of rows (or back) as vectors."""
    if in_rows(source):
        source, target = source.T, target.T
    turned = in_rows(source.T) and in_rows(target) and source.dtype == target.dtype
    rows, columns = (size - size % BLOCK for size in source.shape)
    if not (turned and rows and columns):
        target[...] = source
        return
    transposer(type_name(source.dtype))(
        address(source), source.strides[1], address(target), target.strides[0], rows, columns
    )
    target[rows:] = source[rows:]
    target[:rows, columns:] = source[:rows, columns:]


@cache
def transposer(element_type: str) -> Any:
    """The compiled ``turn(source, source_stride, target, target_stride, rows, columns)``: columns,
    whose elements follow one another at ``source``, become columns of rows; multiples of ``BLOCK``.
    """
    size = element_bytes(element_type)

    @compiled
    def turn(source, source_stride, target, target_stride, rows, columns):
        for j in range(0, columns, BLOCK):
            for i in range(0, rows, BLOCK):
                transpose_block(
                    element_type, BLOCK, source + j * source_stride + i * size, source_stride,
                    target + i * target_stride + j * size, target_stride,
                )  # fmt: skip

    return turn


def convert(
    x: NDArray[Any],
    out: NDArray[Any],
    source_type: str | None = None,
    target_type: str | None = None,
    row_factors: NDArray[Any] | None = None,
    column_factors: NDArray[Any] | None = None,
    apart: int = 0,
) -> None:
    """Convert a matrix into another of its shape, both of any memory layout.

    Types are those of the arrays unless given. Factors multiply on the way; they are
    one-dimensional, contiguous, and of the type that is computed in, as in
    ``vectors.convert_block``. Of several targets ``out`` is the first; the others lie ``apart``
    bytes from each other, and the elements of their rows must follow one another.

    >>> out = np.zeros((1, 2), np.float32)
    >>> scales = np.array([2], np.float32), np.array([1, 0.5], np.float32)
    >>> convert(np.array([[3, 5]], np.int32), out, None, None, *scales)
    >>> out.tolist()
    [[6.0, 5.0]]
    """
    source_type = source_type or type_name(x.dtype)
    target_type = target_type or written_as(out.dtype)
    given = {"rows": row_factors, "columns": column_factors}
    factors = " ".join(name for name, numbers in given.items() if numbers is not None)
    by_row, by_column = (0 if numbers is None else address(numbers) for numbers in given.values())
    row_step, column_step = (
        0 if numbers is None else numbers.itemsize for numbers in given.values()
    )
    loop = converter(source_type, target_type, factors)
    assert not apart or in_rows(out)
    for source, top, left in pieces(x, source_type):
        part = out[top : top + source.shape[0], left : left + source.shape[1]]
        for target, i, j in pieces(part, target_type, fill=True):
            loop(
                address(source[i:, j:]), source.strides[0], address(target), target.strides[0],
                *target.shape, by_row + (top + i) * row_step, by_column + (left + j) * column_step,
                apart,
            )  # fmt: skip


def magnitudes(x: NDArray[Any], axis: int) -> NDArray[Any]:
    """The largest magnitude along an axis of a matrix of floats (or int8), as a float; NaN where
    one is. Of float64 it is float64, of all else float32.

    >>> magnitudes(np.array([[1, -3], [2, 0]], np.float16), axis=1).tolist()
    [3.0, 2.0]
    """
    if in_columns(x):
        x, axis = x.T, 1 - axis
    kind = "float32" if x.dtype == np.int8 else type_name(x.dtype)
    bits = np.zeros(x.shape[1 - axis], f"u{stored_as(kind).itemsize}")
    for part, top, left in pieces(x, kind):
        if axis == 0:
            columns = bits[left : left + part.shape[1]]
            column_magnitudes(kind)(address(part), part.strides[0], *part.shape, columns)
        else:
            found, rows = np.empty(len(part), bits.dtype), bits[top : top + len(part)]
            row_magnitudes(kind)(address(part), part.strides[0], *part.shape, found)
            np.maximum(rows, found, out=rows)
    found = bits.view(stored_as(kind))
    if found.itemsize > 2:
        return found
    with np.errstate(invalid="ignore"):  # of a signalling NaN
        return found.astype(np.float32)
