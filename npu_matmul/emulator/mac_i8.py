"""The int8 multiply-accumulate of the AIE2: C = A @ B and C += A @ B on blocked tiles."""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
from numba.core import types

from npu_matmul.emulator.blocks import Model, blocks_of, of_blocks
from npu_matmul.host import blocked
from npu_matmul.host.compiled import direct
from npu_matmul.host.paths import choose_path
from npu_matmul.kernel import Mmul, TileShape


def model(tile: TileShape, block: Mmul, accumulate: bool) -> Model:
    """What a C function does to flat tiles, in the fastest way that this CPU has."""
    if is_fast(block):
        multiply, (down, depth, across) = vnni(block.r), blocks_of(tile, block)
        return lambda a, b, c: multiply(a, b, c, down, depth, across, accumulate)
    return of_blocks(matmul_i8, tile, block, accumulate)


def is_fast(block: Mmul) -> bool:
    """Whether there are instructions for such blocks."""
    suits = block.s == block.t == blocked.BLOCK and block.r in blocked.ROWS
    return suits and choose_path("int8").name == "avx512vnni"


@cache
def vnni(r: int) -> Any:
    """``blocked.multiplier`` for arrays of the right element types."""
    a_or_b, c = (types.Array(kind, 1, "C") for kind in (types.int8, types.int32))
    sizes = [types.int64] * 3
    return direct(blocked.multiplier(r), a_or_b, a_or_b, c, *sizes, types.boolean)


@numba.njit(cache=True, nogil=True)
def matmul_i8(a, b, c, accumulate):
    """Exact products, INT32 sums modulo 2**32; their order does not matter.

    A row of C at a time, so that the innermost loop runs over whole rows of B and vectorises.
    """
    down, k_blocks, r, s = a.shape
    across, t = b.shape[1], b.shape[3]
    wide = _rows(b)
    sums = np.empty(across * t, np.int32)
    for i in range(down):
        for y in range(r):
            for j in range(across):
                for x in range(t):
                    sums[j * t + x] = c[i, j, y, x] if accumulate else 0
            for kk in range(k_blocks):
                for z in range(s):
                    left, row = np.int32(a[i, kk, y, z]), wide[kk * s + z]
                    for x in range(row.size):
                        sums[x] = np.int32(sums[x] + np.int32(left * row[x]))
            for j in range(across):
                for x in range(t):
                    c[i, j, y, x] = sums[j * t + x]


@numba.njit(cache=True, nogil=True)
def _rows(blocks):
    """Blocks as plain rows of int32."""
    down, across, height, width = blocks.shape
    rows = np.empty((down * height, across * width), np.int32)
    for i in range(down):
        for j in range(across):
            for y in range(height):
                for x in range(width):
                    rows[i * height + y, j * width + x] = blocks[i, j, y, x]
    return rows
