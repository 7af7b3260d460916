"""B in the order in which the microkernels read it: (panel, group, column of the panel, 4 bytes).

With groups of four and panels of two columns, B of 5 x 3 is stored as (a letter is an element, by
rows; 0 is filling)::

    a b c      panel 0                      panel 1
    d e f      group 0       group 1        group 0       group 1
    g h i      adgj behk     m000 n000      cfil 0000     o000 0000
    j k l
    m n o
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, register_jitable

from npu_matmul.host.compiled import DONE, Task
from npu_matmul.host.convert import STORED_AS
from npu_matmul.host.paths import AVX2, BF16, VNNI, Path
from npu_matmul.host.pointers import pointer

LINE_WORDS = 16


def _zip(path: Path, flip: int = 0) -> Any:
    """An intrinsic that packs one group of a panel's columns: the elements of its rows become
    neighbours. ``flip`` is xored."""
    source, stored = 8 * STORED_AS[path.element].itemsize, 8 * path.fed_bytes  # bits of an element
    columns = path.columns

    @intrinsic
    def zipped(typingctx, first, row_bytes, to):  # type: ignore[no-untyped-def]
        def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
            address, row, target = args
            line = ir.VectorType(ir.IntType(source), columns)
            wide = ir.VectorType(ir.IntType(stored), columns)
            rows = []
            for i in range(path.group):
                where = b.add(address, b.mul(row, ir.IntType(64)(i)))
                value = b.load(b.inttoptr(where, ir.PointerType(line)), align=1)
                rows.append(b.sext(value, wide) if source != stored else value)
            while len(rows) > 1:  # a b, then ab cd
                rows = [
                    _interleave(b, rows[i], rows[i + len(rows) // 2]) for i in range(len(rows) // 2)
                ]
            value = rows[0]
            if flip:
                value = b.xor(value, ir.Constant(value.type, [flip] * value.type.count))
            b.store(value, b.inttoptr(target, ir.PointerType(value.type)), align=1)
            return context.get_dummy_value()

        return types.none(types.int64, types.int64, types.int64), codegen

    return zipped


def _interleave(b: Any, x: Any, y: Any) -> Any:
    count = x.type.count
    order = [i // 2 + (i % 2) * count for i in range(2 * count)]
    mask = ir.Constant(ir.VectorType(ir.IntType(32), 2 * count), order)
    return b.shuffle_vector(x, y, mask)


_zip_vnni, _zip_avx2, _zip_bf16 = _zip(VNNI, flip=0x80), _zip(AVX2), _zip(BF16)


@register_jitable
def _word_vnni(address, row, steps):
    """``steps`` int8, one below the other, filled up with zeros, each moved up by 128."""
    word = np.uint32(0)
    for i in range(steps):
        word |= np.uint32(pointer(address + i * row, np.uint8)[0]) << np.uint32(8 * i)
    return word ^ np.uint32(0x80808080)


@register_jitable
def _word_avx2(address, row, steps):
    """``steps`` int8 as int16."""
    word = np.uint32(0)
    for i in range(steps):
        wide = np.int16(pointer(address + i * row, np.int8)[0])
        word |= np.uint32(np.uint16(wide)) << np.uint32(16 * i)
    return word


@register_jitable
def _word_bf16(address, row, steps):
    """``steps`` bf16."""
    word = np.uint32(0)
    for i in range(steps):
        word |= np.uint32(pointer(address + i * row, np.uint16)[0]) << np.uint32(16 * i)
    return word


@Task
def pack_vnni(table, first, last):
    """Panels of 32 columns, each word four int8 moved up by 128."""
    return _pack(_zip_vnni, _word_vnni, 32, 4, 1, 0x80808080, _matrix(table), first, last)


@Task
def pack_avx2(table, first, last):
    """Panels of 16 columns, each word two int16 made from int8."""
    return _pack(_zip_avx2, _word_avx2, 16, 2, 1, 0, _matrix(table), first, last)


@Task
def pack_bf16(table, first, last):
    """Panels of 32 columns, each word two bf16."""
    return _pack(_zip_bf16, _word_bf16, 32, 2, 2, 0, _matrix(table), first, last)


@numba.njit(nogil=True)
def bf16_matrix(b):
    """All panels of one matrix of bf16, as ``_pack`` is given it."""
    return _pack(_zip_bf16, _word_bf16, 32, 2, 2, 0, b, 0, (b[4] + 31) // 32)


@numba.njit(nogil=True)
def _matrix(table):
    t = pointer(table, np.int64)
    return t[0], t[1], t[2], t[3], t[4], t[5]


@numba.njit(nogil=True)
def _pack(zip_group, word, width, per_group, size, flip, b, first, last):
    """Some panels of B: its address, the bytes from row to row and from column to column, depth,
    columns, and the address of all panels."""
    address, row, element, depth, columns, to = b
    groups = (depth + per_group - 1) // per_group
    for p in range(first, last):
        panel = numba.carray(pointer(to + 4 * p * groups * width, np.uint32), (groups, width))
        start, left = address + p * width * element, min(width, columns - p * width)
        _pack_panel(
            zip_group, word, width, per_group, size, flip, start, row, element, depth, left, panel
        )
    return DONE


@numba.njit(nogil=True)
def _pack_panel(
    zip_group, word, width, per_group, size, flip, start, row, element, depth, left, panel
):
    """``left`` columns of B from ``start`` on, filled up to ``width``.

    Whole groups of whole panels go by vectors where a row of B lies in one piece, and by words
    where a group does, as in the transpose of a matrix.
    """
    whole, done, base = depth // per_group, 0, np.int64(panel.ctypes.data)
    if left == width and element == size:
        for g in range(whole):
            zip_group(start + g * per_group * row, row, base + 4 * width * g)
        done = whole
    elif row == size and per_group * size == 4:
        _pack_words(start, element, whole, left, np.uint32(flip), panel)
        done = whole if left == width else 0  # else what is beyond the last column is missing
    for g in range(done, panel.shape[0]):
        steps = min(per_group, depth - g * per_group)
        for n in range(width):
            where = start + g * per_group * row + n * element
            panel[g, n] = word(where, row, steps if n < left else 0)


@numba.njit(nogil=True)
def _pack_words(start, element, whole, left, flip, panel):
    """Groups that lie in one piece each, a cache line's worth of each column at a time."""
    for top in range(0, whole, LINE_WORDS):
        bottom = min(whole, top + LINE_WORDS)
        for n in range(left):
            column = pointer(start + n * element, np.uint32)
            for g in range(top, bottom):
                panel[g, n] = column[g] ^ flip
