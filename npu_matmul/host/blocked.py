"""C = A @ B and C += A @ B on tiles stored as blocks, the layout of an NPU's core, with VNNI.

A is read and C is added to where they lie, some rows of blocks at a time; B is made panels first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from npu_matmul.host.compiled import compiled
from npu_matmul.host.elements import Value, lanes_of, picked
from npu_matmul.host.microkernel import (
    INT,
    MOVED_UP,
    VNNI,
    WORD,
    along_k,
    first_sums,
    load,
    one_group,
    one_of,
    splat,
    sums_of_words,
)

BLOCK = 8  # rows and columns of a block of B, and columns of one of A and C
ROWS = 2, 4, 8  # of a block of A and C: powers of two, as two rows of C make a vector
WIDTH = 2 * VNNI.lanes
B_BYTES, ROW_BYTES = BLOCK * BLOCK, 4 * BLOCK  # of a block of B, and of a row of one of C


@cache
def multiplier(r: int) -> Any:
    """The compiled ``multiply(a, b, c, down, depth, across, accumulate)`` of flat tiles of so many
    blocks: A (down, depth, r, 8) and B (depth, across, 8, 8) int8, C (down, across, r, 8) INT32;
    sums are modulo 2**32. ``r`` is one of ``ROWS``.

    Raises ValueError for tiles of another size.
    """
    most = VNNI.most_rows // r

    @compiled
    def multiply(a, b, c, down, depth, across, accumulate):
        k, n = depth * BLOCK, across * BLOCK
        if a.size != down * r * k or b.size != k * n or c.size != down * r * n:
            raise ValueError("a tile of another size than the kernel's")
        panels = (n + WIDTH - 1) // WIDTH
        scratch = np.empty(panels * k * WIDTH + 4 * down * r + 64, np.int8)
        right = (np.int64(scratch.ctypes.data) + 63) // 64 * 64  # no vector crosses cache lines
        starts = right + panels * k * WIDTH
        left, out = np.int64(a.ctypes.data), np.int64(c.ctypes.data)
        _panels_of_blocks(np.int64(b.ctypes.data), right, depth, across)
        for i in range(down):
            _block_starts(left + i * k * r, k * r, r, starts + 4 * i * r)
        i = 0
        while i < down:
            calls = (down - i + most - 1) // most
            count = (down - i + calls - 1) // calls
            for p in range(panels):
                _block_rows(
                    r, count, left + i * r * k, depth, starts + 4 * i * r,
                    right + p * k * WIDTH, out + (i * across * BLOCK + p * WIDTH) * 4 * r, across,
                    n - p * WIDTH, -1 if accumulate else 0,
                )  # fmt: skip
            i += count
        return scratch.size  # keeps it alive until here

    return multiply


@intrinsic(prefer_literal=True)
def _block_rows(  # type: ignore[no-untyped-def]
    typingctx, r, count, a, depth, starts, panel, c, across, columns, keep
):
    """Multiplies ``count`` rows of blocks with a panel. ``columns`` are what C still has, ``keep``
    is -1 to add to C, 0 to overwrite it; all but ``r`` are int64."""
    rows = r.literal_value

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, count, a, depth, starts, panel, c, across, columns, keep = args

        def some(down: int) -> None:
            sums = _sums(b, rows, down, a, depth, starts, panel)
            _add_blocks(b, rows, sums, c, across, columns, keep)

        one_of(b, count, range(1, VNNI.most_rows // rows + 1), some)
        return context.get_dummy_value()

    return types.none(r, *[types.int64] * 9), codegen


def _sums(
    b: ir.IRBuilder, r: int, down: int, a: Value, depth: Value, starts: Value, panel: Value
) -> list[Value]:
    """Two vectors for each row of ``down`` rows of blocks of A."""
    lines = [b.add(a, b.mul(depth, INT(i * r * BLOCK))) for i in range(down)]

    def step(place: Value, sums: Sequence[Value]) -> list[Value]:
        """One block of each: two groups."""
        offset = b.mul(place, INT(r * BLOCK))
        rows = [b.add(b.add(line, offset), INT(y * BLOCK)) for line in lines for y in range(r)]
        for group in range(2):
            lefts = [b.add(row, INT(4 * group)) for row in rows]
            here = b.add(b.mul(place, INT(2)), INT(group))
            sums = one_group(b, VNNI, lefts, b.add(panel, b.mul(here, INT(4 * WIDTH))), sums)
        return list(sums)

    return along_k(b, depth, first_sums(b, VNNI, starts, down * r), step)


def _add_blocks(
    b: ir.IRBuilder,
    r: int,
    sums: Sequence[Value],
    c: Value,
    across: Value,
    columns: Value,
    keep: Value,
) -> None:
    """Into C: two rows of a block are a vector."""
    kept = splat(b, b.trunc(keep, WORD), VNNI.lanes)
    for i in range(0, len(sums) // 2, 2):
        down, y = divmod(i, r)
        start = b.add(b.add(c, b.mul(across, INT(down * r * ROW_BYTES))), INT(y * ROW_BYTES))
        for block in range(WIDTH // BLOCK):
            v, half = divmod(block, 2)
            with b.if_then(b.icmp_signed(">", columns, INT(BLOCK * block))):
                upper, lower = sums[2 * i + v], sums[2 * i + 2 + v]
                lanes = [BLOCK * half + x + rest for rest in (0, VNNI.lanes) for x in range(BLOCK)]
                both = picked(b, upper, lower, lanes)
                where = b.add(start, INT(block * r * ROW_BYTES))
                total = b.add(both, b.and_(load(b, where, both.type), kept))
                b.store(total, b.inttoptr(where, ir.PointerType(both.type)), align=1)


@intrinsic(prefer_literal=True)
def _block_starts(typingctx, address, size, r, to):  # type: ignore[no-untyped-def]
    """What the sums of a row of blocks start from, ``r`` INT32 at ``to``: less the sums of A's
    rows, times what B is moved up by. Eight bytes, two words, are one row's; so rows come again
    each ``r`` pairs of words."""
    rows = r.literal_value

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        total = sums_of_words(b, *args[:2])
        while total.type.count > 2 * rows:
            half = total.type.count // 2
            total = b.add(*(lanes_of(b, total, range(x, x + half)) for x in (0, half)))
        total = b.add(*(lanes_of(b, total, range(x, 2 * rows, 2)) for x in (0, 1)))
        start = b.mul(total, ir.Constant(total.type, [-MOVED_UP] * rows))
        b.store(start, b.inttoptr(args[3], ir.PointerType(start.type)), align=1)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, r, types.int64), codegen


@numba.njit(nogil=True)
def _panels_of_blocks(b, to, depth, across):
    """Blocks of B as panels; what lies beyond the last block is left as it is."""
    for j in range(across):
        p, place = divmod(j, WIDTH // BLOCK)
        panel = to + p * depth * BLOCK * WIDTH + place * 4 * BLOCK
        for kk in range(depth):
            _zip_block(b + (kk * across + j) * B_BYTES, panel + kk * BLOCK * WIDTH)


@intrinsic
def _zip_block(typingctx, source, to):  # type: ignore[no-untyped-def]
    """One block of B as two groups of eight columns, moved up by 128."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        block = ir.VectorType(ir.IntType(8), B_BYTES)
        value = b.xor(load(b, args[0], block), ir.Constant(block, [0x80] * B_BYTES))
        for half in range(2):
            places = [(4 * half + z) * BLOCK + x for x in range(BLOCK) for z in range(4)]
            group = lanes_of(b, value, places)
            where = b.add(args[1], INT(4 * WIDTH * half))
            b.store(group, b.inttoptr(where, ir.PointerType(group.type)), align=1)
        return context.get_dummy_value()

    return types.none(source, to), codegen
