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

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, register_jitable
from numpy.typing import NDArray

from npu_matmul.host.compiled import compiled
from npu_matmul.host.convert import STORED_AS
from npu_matmul.host.paths import AVX2, BF16, VNNI, Path
from npu_matmul.host.pointers import pointer

LINE_WORDS = 16

Packer = Callable[[int, int, int, int, int, NDArray[np.uint32]], None]


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


@compiled
def pack_vnni(address, row, element, depth, columns, panels):
    """``panels``: uint32 (panels, groups, 32), each word four int8 moved up by 128."""
    _pack(_zip_vnni, _word_vnni, 4, 1, 0x80808080, address, row, element, depth, columns, panels)


@compiled
def pack_avx2(address, row, element, depth, columns, panels):
    """``panels``: uint32 (panels, groups, 16), each word two int16 made from int8."""
    _pack(_zip_avx2, _word_avx2, 2, 1, 0, address, row, element, depth, columns, panels)


@compiled
def pack_bf16(address, row, element, depth, columns, panels):
    """``panels``: uint32 (panels, groups, 32), each word two bf16."""
    _pack(_zip_bf16, _word_bf16, 2, 2, 0, address, row, element, depth, columns, panels)


@numba.njit(nogil=True)
def _pack(zip_group, word, per_group, size, flip, address, row, element, depth, columns, panels):
    """B at ``address``, with ``row`` bytes from row to row and ``element`` from column to column.

    Whole groups of whole panels go by vectors where a row of B lies in one piece, and by words
    where a group does, as in the transpose of a matrix.
    """
    count, groups, width = panels.shape
    whole = depth // per_group
    base = panels.ctypes.data
    for p in range(count):
        start = address + p * width * element
        left = min(width, columns - p * width)
        done = 0
        if left == width and element == size:
            for g in range(whole):
                zip_group(start + g * per_group * row, row, base + 4 * width * (p * groups + g))
            done = whole
        elif row == size and per_group * size == 4:
            _pack_words(start, element, whole, left, np.uint32(flip), panels[p])
            done = whole if left == width else 0  # else what is beyond the last column is missing
        for g in range(done, groups):
            steps = min(per_group, depth - g * per_group)
            for n in range(width):
                where = start + g * per_group * row + n * element
                panels[p, g, n] = word(where, row, steps if n < left else 0)


@numba.njit(nogil=True)
def _pack_words(start, element, whole, left, flip, panel):
    """Groups that lie in one piece each, a cache line's worth of each column at a time."""
    for top in range(0, whole, LINE_WORDS):
        bottom = min(whole, top + LINE_WORDS)
        for n in range(left):
            column = pointer(start + n * element, np.uint32)
            for g in range(top, bottom):
                panel[g, n] = column[g] ^ flip
