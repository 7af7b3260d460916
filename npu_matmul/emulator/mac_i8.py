"""The int8 multiply-accumulate of the AIE2: C = A @ B and C += A @ B on blocked tiles."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def matmul_i8(a, b, c, accumulate):
    """Exact products, INT32 sums modulo 2**32; their order does not matter."""
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
