"""Python models of the C symbols that cores call: C = A @ B and C += A @ B on blocked tiles.

A model takes the tiles as flat arrays, exactly as the C function takes pointers, and works in the
layout that the manifest's mmul block (r, s, t) dictates. This is the only place where the emulated
NPU knows arithmetic; everything else only moves bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
from numpy.typing import NDArray

from npu_matmul.kernel import Kernel

Model = Callable[..., None]


def models(kernel: Kernel) -> dict[str, Model]:
    """The Python model of each of the kernel's C symbols, by name.

    Layout of each tile, row-major blocks of (r, s), (s, t), (r, t), with m = 4, k = 4, n = 2, r =
    s = t = 2:

    ====  ========================================  =======================================
    tile  element                                   index
    ====  ========================================  =======================================
    A     A[i, l]                                   ((i//r)*(k//s) + l//s)*r*s + (i%r)*s + l%s
    B     B[l, j]                                   ((l//s)*(n//t) + j//t)*s*t + (l%s)*t + j%t
    C     C[i, j]                                   ((i//r)*(n//t) + j//t)*r*t + (i%r)*t + j%t
    e.g.  A[1, 2] in block (0, 1)                   1*4 + 1*2 + 0 = 6
    ====  ========================================  =======================================

    int8: exact products, INT32 sums modulo 2**32, as the AIE2 multiply-accumulate makes them.
    """
    if kernel.types.a != "int8" or kernel.types.b != "int8" or kernel.types.c != "int32":
        raise NotImplementedError(f"no model for element types {kernel.types}")
    tile, block = kernel.tile, kernel.mmul
    a_shape = (tile.m // block.r, tile.k // block.s, block.r, block.s)
    b_shape = (tile.k // block.s, tile.n // block.t, block.s, block.t)
    c_shape = (tile.m // block.r, tile.n // block.t, block.r, block.t)

    def make(accumulate: bool) -> Model:
        def model(a: NDArray[np.int8], b: NDArray[np.int8], c: NDArray[np.int32]) -> None:
            _matmul_i8(a.reshape(a_shape), b.reshape(b_shape), c.reshape(c_shape), accumulate)

        return model

    return {kernel.symbols.first: make(False), kernel.symbols.next: make(True)}


@numba.njit(cache=True, nogil=True)
def _matmul_i8(a, b, c, accumulate):
    row_blocks, k_blocks, r, s = a.shape
    column_blocks, t = b.shape[1], b.shape[3]
    for i in range(row_blocks):
        for j in range(column_blocks):
            for y in range(r):
                for x in range(t):
                    total = c[i, j, y, x] if accumulate else np.int32(0)
                    for kk in range(k_blocks):
                        for z in range(s):
                            product = np.int32(a[i, kk, y, z]) * np.int32(b[kk, j, z, x])
                            total = np.int32(total + product)
                    c[i, j, y, x] = total
