"""Products on the host: rows of A, B in panels, C written once.

``walk`` goes over C in blocks of rows and as many panels of columns as stay in the second-level
cache, there along a few rows at a time, so that C is written in long runs; the loop over K is in
``microkernel``. What differs between the kinds of product is handed in: a *microkernel*, which
holds the instruction and what becomes of the sums; a *feed*, which copies a block of A's rows into
what the instruction reads (int8 and bf16 rows need none where they lie well); and a *start*, which
tells what the sums of a row start from, and marks a row that the instruction would get wrong.

Every address is an int64, so that one compiled form serves every layout.
"""

from __future__ import annotations

import numba
import numpy as np
from numba.extending import register_jitable

from npu_matmul.host import microkernel
from npu_matmul.host.compiled import DONE, REFUSED, Task
from npu_matmul.host.convert import TERMS_OF_A, is_plain, scale_and_inverse
from npu_matmul.host.pointers import pointer, stack_words
from npu_matmul.host.vectors import convert_row, largest_magnitude

MOST_ROWS = 14  # of one call of a microkernel
BLOCK_ROWS = 84  # a multiple of 14, 12 and 6; 172 kB of A at K = 2048
NEAR_BYTES = 1 << 19  # of B that is used again and again: half a second-level cache
F32, F64, F16, B16, I8 = range(5)  # kinds of elements of A

# columns of a panel, and the most rows at once
VNNI, AVX2, BF16 = (
    (2 * unit.lanes, unit.most_rows)
    for unit in (microkernel.VNNI, microkernel.AVX2, microkernel.BF16)
)


@Task
def vnni_sums(table, first, last):
    return _part(microkernel.vnni_sums, copy_i8, start_vnni, VNNI, table, first, last)


@Task
def vnni_clipped(table, first, last):
    return _part(microkernel.vnni_clipped, copy_i8, start_vnni, VNNI, table, first, last)


@Task
def vnni_scaled(table, first, last):
    return _part(microkernel.vnni_scaled, _quantise_i8, start_vnni, VNNI, table, first, last)


@Task
def avx2_sums(table, first, last):
    return _part(microkernel.avx2_sums, widen_i8, start_avx2, AVX2, table, first, last)


@Task
def avx2_clipped(table, first, last):
    return _part(microkernel.avx2_clipped, widen_i8, start_avx2, AVX2, table, first, last)


@Task
def avx2_scaled(table, first, last):
    return _part(microkernel.avx2_scaled, _quantise_i16, start_avx2, AVX2, table, first, last)


@Task
def bf16_sums(table, first, last):
    return _part(microkernel.bf16_sums, _copy_bf16, _start_bf16, BF16, table, first, last)


@Task
def bf16_rounded(table, first, last):
    return _part(microkernel.bf16_sums, _round_bf16, _start_bf16, BF16, table, first, last)


@Task
def bf16_split(table, first, last):
    return _part(microkernel.bf16_sums, _split_bf16, _start_bf16, BF16, table, first, last)


@Task
def vnni_quantised(table, first, last):
    return _feed(_quantise_i8, table, first, last)


@Task
def avx2_quantised(table, first, last):
    return _feed(_quantise_i16, table, first, last)


@numba.njit(nogil=True)
def _feed(feed, table, first, last):
    """Some rows of A as the instruction reads them. ``table``: A's address, bytes to the next row
    and element, the element's kind, K; then where the rows go, bytes between them, and scales."""
    t = pointer(table, np.int64)
    source, to, scales = t[0] + first * t[1], t[5] + first * t[6], t[7] + 4 * first
    done = feed(source, t[1], t[2], t[3], t[4], last - first, to, t[6], scales)
    return DONE if done else REFUSED


@numba.njit(nogil=True)
def _part(kernel, feed, start, unit, table, first, last):
    """Some rows of C with all panels, or some panels with all rows.

    ``table`` holds what ``walk`` is given: nine numbers of A, three of B, three of C; then how
    many rows there are, how many panels, and whether it is the panels that are shared out.
    """
    t = pointer(table, np.int64)
    a = t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8]
    b, c = (t[9], t[10], t[11]), (t[12], t[13], t[14])
    rows, panels = (first, last), (np.int64(0), t[16])
    if t[17]:
        rows, panels = (np.int64(0), t[15]), (first, last)
    done = walk(kernel, feed, start, unit, a, rows, b, panels, c)
    return DONE if done else REFUSED


@numba.njit(nogil=True)
def walk(kernel, feed, start, unit, a, rows, b, panels, c):
    """Blocks of the rows ``rows`` and of the panels ``panels`` of C = A @ B.

    ``a`` is (address, bytes to the next row, to the next element, the element's kind, K, bytes of a
    fed row, bytes between fed rows or 0 to read A itself, scales, marks of rows); ``b`` (address,
    columns, scales); ``c`` (address, bytes to the next row, to the next element). ``unit`` is one
    of the tuples above.

    Returns False where the feed refuses a row.
    """
    source, a_row, a_element, kind, depth, row_bytes, fed_row, row_scale, marks = a
    fed = np.empty(min(BLOCK_ROWS, rows[1] - rows[0]) * fed_row, np.uint8)
    starts, tails = stack_words(BLOCK_ROWS), stack_words(BLOCK_ROWS)
    for top in range(rows[0], rows[1], BLOCK_ROWS):
        block = min(BLOCK_ROWS, rows[1] - top)
        left, left_row = source + top * a_row, a_row
        if fed_row:
            near, scales = np.int64(fed.ctypes.data), row_scale + 4 * top
            if not feed(left, a_row, a_element, kind, depth, block, near, fed_row, scales):
                return False
            left, left_row = near, fed_row
        for i in range(block):
            row = left + i * left_row
            pointer(starts, np.int32)[i] = start(row, row_bytes, marks + top + i)
            if row_bytes % 4:
                pointer(tails, np.uint32)[i] = _tail(row + row_bytes, row_bytes, row_bytes % 4)
        near_rows = left, left_row, row_bytes, starts, tails, row_scale + 4 * top
        _block(kernel, unit, near_rows, block, b, panels, (c[0] + top * c[1], c[1], c[2]))
    return True


@numba.njit(nogil=True)
def _block(kernel, unit, a, rows, b, panels, c):
    """A block of rows with all panels: with as many of them as stay near, a few rows at a time.

    ``a`` is (address, bytes to the next row, bytes of a row, and where starts, tails and scales
    begin).
    """
    width, most = unit
    left, left_row, row_bytes, starts, tails, row_scale = a
    b_address, columns, column_scale = b
    words, rest = row_bytes // 4, row_bytes % 4
    panel_bytes = (row_bytes + 3) // 4 * 4 * width
    chunk = max(1, NEAR_BYTES // max(1, panel_bytes))
    for near in range(panels[0], panels[1], chunk):
        r = 0
        while r < rows:
            if r and (rows - r) % 2:  # one row again is less work than one row alone
                r -= 1
            n = rows_at_once(rows - r, most)
            for p in range(near, min(near + chunk, panels[1])):
                column = p * width
                kernel(
                    n, left + r * left_row, left_row, words, starts + 4 * r,
                    tails + 4 * r if rest else 0, b_address + p * panel_bytes,
                    c[0] + r * c[1] + column * c[2], c[1], columns - column,
                    row_scale + 4 * r, column_scale + 4 * column,
                )  # fmt: skip
            r += n


@numba.njit(nogil=True)
def rows_at_once(left, most):
    """Rows for the next call: as even a split as the microkernels, which are for even numbers,
    allow."""
    if left == 1:
        return 1
    calls = (left + most - 1) // most
    rows = (left + calls - 1) // calls
    return min(rows + rows % 2, left - left % 2)


@register_jitable
def start_vnni(row, size, mark):
    """Takes away what B's elements were moved up by, times the row's own sum."""
    return np.int32(-microkernel.MOVED_UP) * microkernel.vnni_row_sum(row, size)


@register_jitable
def start_avx2(row, size, mark):
    return np.int32(0)


@register_jitable
def _start_bf16(row, size, mark):
    """Marks rows with subnormal elements, which the instruction takes for zero."""
    pointer(mark, np.uint8)[0] = _has_subnormal(row, size // 2)
    return np.int32(0)


@numba.njit(nogil=True)
def _has_subnormal(address, size):
    """Whether any of ``size`` bf16 is subnormal: exponent zero, mantissa not. Without the sign and
    less one, that is the least of all values; zero becomes the largest."""
    least = np.uint16(0xFFFF)
    for bits in numba.carray(pointer(address, np.uint16), size):
        least = min(least, np.uint16(np.uint16(bits << np.uint16(1)) - np.uint16(1)))
    return least < np.uint16(0xFF)


@numba.njit(nogil=True)
def _tail(end, size, rest):
    """The last, incomplete word of a row, which ends at ``end``, filled up with zeros."""
    if size >= 4:
        return pointer(end - 4, np.uint32)[0] >> np.uint32(32 - 8 * rest)
    word = np.uint32(0)
    for i in range(rest):
        word |= np.uint32(pointer(end - rest + i, np.uint8)[0]) << np.uint32(8 * i)
    return word


@register_jitable
def copy_i8(source, row, element, kind, depth, rows, to, to_row, scales):
    for i in range(rows):
        _gather(np.int8, source + i * row, element, depth, to + i * to_row)
    return True


@register_jitable
def widen_i8(source, row, element, kind, depth, rows, to, to_row, scales):
    near = np.empty(depth, np.int8)
    for i in range(rows):
        start = source + i * row
        if element != 1:
            _gather(np.int8, start, element, depth, np.int64(near.ctypes.data))
            start = np.int64(near.ctypes.data)
        _widen(start, depth, to + i * to_row)
    return True


@register_jitable
def _copy_bf16(source, row, element, kind, depth, rows, to, to_row, scales):
    for i in range(rows):
        _gather(np.int16, source + i * row, element, depth, to + i * to_row)
    return True


@register_jitable
def _quantise_i8(source, row, element, kind, depth, rows, to, to_row, scales):
    """Rows as symmetric int8, and their scales; refuses a row that float32 cannot quantise."""
    near = np.empty(depth, np.float64)
    for i in range(rows):
        start = _row_of_floats(source + i * row, element, kind, depth, near)
        magnitude = largest_magnitude("float32", depth, start)
        if not is_plain(magnitude):
            return False
        scale, inverse = scale_and_inverse(magnitude)
        pointer(scales, np.float32)[i] = scale
        convert_row("float32", "int8", "rows", depth, start, to + i * to_row, inverse, 0)
    return True


@register_jitable
def _quantise_i16(source, row, element, kind, depth, rows, to, to_row, scales):
    """As ``_quantise_i8``, then widened."""
    small = np.empty(depth, np.int8)
    for i in range(rows):
        start, line = source + i * row, np.int64(small.ctypes.data)
        if not _quantise_i8(start, row, element, kind, depth, 1, line, depth, scales + 4 * i):
            return False
        _widen(line, depth, to + i * to_row)
    return True


@register_jitable
def _round_bf16(source, row, element, kind, depth, rows, to, to_row, scales):
    near = np.empty(depth, np.float64)
    for i in range(rows):
        start, line = _row_of_floats(source + i * row, element, kind, depth, near), to + i * to_row
        if kind == F64:
            convert_row("float64", "bfloat16", "", depth, start, line, 0, 0)
        else:
            convert_row("float32", "bfloat16", "", depth, start, line, 0, 0)
    return True


@register_jitable
def _split_bf16(source, row, element, kind, depth, rows, to, to_row, scales):
    """Rows as three bf16 terms each, in the order of ``precision``'s bf16x3."""
    near = np.empty(depth, np.float64)
    for i in range(rows):
        start, line = _row_of_floats(source + i * row, element, kind, depth, near), to + i * to_row
        if kind == F64:
            convert_row("float64", TERMS_OF_A, "", depth, start, line, 0, 0, 2 * depth)
        else:
            convert_row("float32", TERMS_OF_A, "", depth, start, line, 0, 0, 2 * depth)
    return True


@numba.njit(nogil=True)
def _widen(start, size, to):
    """int8 that follow one another, as int16."""
    wide = numba.carray(pointer(to, np.int16), size)
    near = numba.carray(pointer(start, np.int8), size)
    for i in range(near.size):
        wide[i] = near[i]


@register_jitable
def _row_of_floats(start, element, kind, depth, near):
    """The address of a row as float32, or float64, whose elements follow one another: itself, or
    what it became in ``near``, which has 8 bytes an element."""
    if kind == F32 and element == 4:
        return start
    return _as_floats(start, element, kind, depth, np.int64(near.ctypes.data))


@numba.njit(nogil=True)
def _as_floats(start, element, kind, depth, to):
    behind = to + 4 * depth  # what is smaller than float32 and does not lie in line
    if kind == F32:
        return _in_line(np.float32, 4, start, element, depth, to)
    if kind == F64:
        return _in_line(np.float64, 8, start, element, depth, to)
    if kind == I8:
        line = _in_line(np.int8, 1, start, element, depth, behind)
        convert_row("int8", "float32", "", depth, line, to, 0, 0)
    elif kind == F16:
        line = _in_line(np.int16, 2, start, element, depth, behind)
        convert_row("float16", "float32", "", depth, line, to, 0, 0)
    else:
        line = _in_line(np.int16, 2, start, element, depth, behind)
        convert_row("bfloat16", "float32", "", depth, line, to, 0, 0)
    return to


@numba.njit(nogil=True)
def _in_line(kind, size, start, element, depth, to):
    """The address of elements of ``size`` bytes that follow one another: themselves, or their copy
    at ``to``."""
    if element == size:
        return start
    _gather(kind, start, element, depth, to)
    return to


@numba.njit(nogil=True)
def _gather(kind, start, element, depth, to):
    """``depth`` elements that lie ``element`` bytes apart, one after the other at ``to``."""
    line = numba.carray(pointer(to, kind), depth)
    if element == line.itemsize:
        near = numba.carray(pointer(start, kind), depth)
        for k in range(near.size):  # numba makes no vectors of line[:] = near
            line[k] = near[k]
    else:
        for k in range(depth):
            line[k] = pointer(start + k * element, kind)[0]
