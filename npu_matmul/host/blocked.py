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
from npu_matmul.host.gemm import VNNI, _rows_at_once, _start_vnni
from npu_matmul.host.pointers import pointer

BLOCK = 8  # rows and columns of a block of B, and columns of one of C


@compiled
def multiply(a, b, c, accumulate):
    """Contiguous tiles: A (m/r, k/8, r, 8) and B (k/8, n/8, 8, 8) int8, C (m/r, n/8, r, 8) INT32;
    sums are modulo 2**32."""
    r, across = a.shape[2], b.shape[1]
    m, k, n = a.shape[0] * r, a.shape[1] * BLOCK, across * BLOCK
    _, most = VNNI
    panel_bytes = (n + 31) // 32 * k * 32
    scratch = np.empty(panel_bytes + m * k + 12 * m + 64, np.int8)
    right = (np.int64(scratch.ctypes.data) + 63) // 64 * 64  # no vector of B crosses cache lines
    left = right + panel_bytes
    table = left + m * k  # where each row of C begins
    starts = table + 8 * m
    _rows_of_blocks(np.int64(a.ctypes.data), left, m, k, r)
    _panels_of_blocks(np.int64(b.ctypes.data), right, k, across)
    block_bytes = 4 * r * BLOCK  # of C
    for i in range(m):
        pointer(starts, np.int32)[i] = _start_vnni(left + i * k, k)[1]
        first = np.int64(c.ctypes.data) + i // r * across * block_bytes + i % r * 4 * BLOCK
        pointer(table, np.int64)[i] = first
    keep = -1 if accumulate else 0
    i = 0
    while i < m:
        count = _rows_at_once(m - i, most)
        for p in range((n + 31) // 32):
            microkernel.vnni_blocks(
                count, left + i * k, k, k // 4, starts + 4 * i, 0, right + p * k * 32,
                table + 8 * i, block_bytes, n - 32 * p, keep, p * 4 * block_bytes,
            )  # fmt: skip
        i += count
    return scratch.size  # keeps it alive until here


@numba.njit(nogil=True)
def _rows_of_blocks(a, to, m, k, r):
    """Blocks of A as plain rows, eight bytes at a time."""
    for i in range(m // r):
        for y in range(r):
            source = pointer(a + i * r * k + y * BLOCK, np.uint64)
            row = pointer(to + (i * r + y) * k, np.uint64)
            for kk in range(k // BLOCK):
                row[kk] = source[kk * r]


@numba.njit(nogil=True)
def _panels_of_blocks(b, to, k, across):
    """Blocks of B as panels of 32 columns; what lies beyond the last block is left as it is."""
    for j in range(across):
        panel = to + j // 4 * k * 32 + j % 4 * 4 * BLOCK
        for kk in range(k // BLOCK):
            _zip_block(b + (kk * across + j) * BLOCK * BLOCK, panel + kk * 8 * 32)


@intrinsic
def _zip_block(typingctx, source, to):  # type: ignore[no-untyped-def]
    """One block of B as two groups of eight columns, moved up by 128; a group is 128 bytes on."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        block = ir.VectorType(ir.IntType(8), 64)
        group = ir.VectorType(ir.IntType(8), 32)
        value = b.load(b.inttoptr(args[0], ir.PointerType(block)), align=1)
        value = b.xor(value, ir.Constant(block, [0x80] * 64))
        for half in range(2):
            lanes = [(4 * half + z) * BLOCK + x for x in range(BLOCK) for z in range(4)]
            mask = ir.Constant(ir.VectorType(ir.IntType(32), 32), lanes)
            where = b.add(args[1], ir.IntType(64)(128 * half))
            part = b.shuffle_vector(value, ir.Constant(block, ir.Undefined), mask)
            b.store(part, b.inttoptr(where, ir.PointerType(group)), align=1)
        return context.get_dummy_value()

    return types.none(source, to), codegen
