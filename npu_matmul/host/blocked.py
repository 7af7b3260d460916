"""C = A @ B and C += A @ B on tiles stored as blocks, the layout of an NPU's core, with VNNI."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from npu_matmul.host import microkernel
from npu_matmul.host.compiled import compiled
from npu_matmul.host.gemm import MOVED_UP, VNNI, rows_at_once
from npu_matmul.host.pointers import pointer, stack_words

BLOCK = 8  # rows and columns of a block of B, and columns of one of C
WIDTH, MOST_ROWS = VNNI


@compiled
def multiply(a, b, c, accumulate):
    """Contiguous tiles: A (m/r, k/8, r, 8) and B (k/8, n/8, 8, 8) int8, C (m/r, n/8, r, 8) INT32;
    sums are modulo 2**32."""
    r, across = a.shape[2], b.shape[1]
    m, k, n = a.shape[0] * r, a.shape[1] * BLOCK, across * BLOCK
    panels = (n + WIDTH - 1) // WIDTH
    scratch = np.empty(panels * k * WIDTH + 20 * m + 64, np.int8)
    right = (np.int64(scratch.ctypes.data) + 63) // 64 * 64  # no vector of B crosses cache lines
    a_rows = right + panels * k * WIDTH  # where each row of A begins, then each of C
    c_rows = a_rows + 8 * m
    starts = c_rows + 8 * m
    block_bytes = 4 * r * BLOCK  # of C
    _panels_of_blocks(np.int64(b.ctypes.data), right, k, across)
    _begin_rows(np.int64(a.ctypes.data), a.shape[0], r, k * r, BLOCK, a_rows)
    _begin_rows(np.int64(c.ctypes.data), c.shape[0], r, across * block_bytes, 4 * BLOCK, c_rows)
    _start_sums(np.int64(a.ctypes.data), a.shape[0], r, k * r, starts)
    keep = -1 if accumulate else 0
    i = 0
    while i < m:
        count = rows_at_once(m - i, MOST_ROWS)
        for p in range(panels):
            microkernel.vnni_blocks(
                count, a_rows + 8 * i, r * BLOCK, k // BLOCK, starts + 4 * i, 0,
                right + p * k * WIDTH, c_rows + 8 * i, block_bytes, n - WIDTH * p, keep,
                p * 4 * block_bytes,
            )  # fmt: skip
        i += count
    return scratch.size  # keeps it alive until here


@numba.njit(nogil=True)
def _begin_rows(start, down, r, down_bytes, row_bytes, to):
    """The addresses of all rows in the first of their blocks, at ``to``."""
    table = pointer(to, np.int64)
    for i in range(down):
        for y in range(r):
            table[i * r + y] = start + i * down_bytes + y * row_bytes


@numba.njit(nogil=True)
def _start_sums(a, down, r, down_bytes, to):
    """What the sums of each row start from. Eight bytes, two words, are one row's in a block, so
    rows come again each ``r`` pairs of words."""
    pairs, starts = stack_words(16), pointer(to, np.int32)
    for i in range(down):
        microkernel.vnni_word_sums(a + i * down_bytes, down_bytes, pairs)
        words = pointer(pairs, np.int32)
        for y in range(r):
            total = np.int32(0)
            for x in range(2 * y, 16, 2 * r):
                total += words[x] + words[x + 1]
            starts[i * r + y] = -MOVED_UP * total


@numba.njit(nogil=True)
def _panels_of_blocks(b, to, k, across):
    """Blocks of B as panels; what lies beyond the last block is left as it is."""
    for j in range(across):
        p, place = divmod(j, WIDTH // BLOCK)
        panel = to + p * k * WIDTH + place * 4 * BLOCK
        for kk in range(k // BLOCK):
            _zip_block(b + (kk * across + j) * BLOCK * BLOCK, panel + kk * BLOCK * WIDTH)


@intrinsic
def _zip_block(typingctx, source, to):  # type: ignore[no-untyped-def]
    """One block of B as two groups of eight columns, moved up by 128."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        block = ir.VectorType(ir.IntType(8), 64)
        group = ir.VectorType(ir.IntType(8), 32)
        value = b.load(b.inttoptr(args[0], ir.PointerType(block)), align=1)
        value = b.xor(value, ir.Constant(block, [0x80] * 64))
        for half in range(2):
            lanes = [(4 * half + z) * BLOCK + x for x in range(BLOCK) for z in range(4)]
            mask = ir.Constant(ir.VectorType(ir.IntType(32), 32), lanes)
            where = b.add(args[1], ir.IntType(64)(4 * WIDTH * half))
            part = b.shuffle_vector(value, ir.Constant(block, ir.Undefined), mask)
            b.store(part, b.inttoptr(where, ir.PointerType(group)), align=1)
        return context.get_dummy_value()

    return types.none(source, to), codegen
