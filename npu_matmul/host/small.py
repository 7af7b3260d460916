"""Small exact products of arrays: one compiled call checks its operands and computes.

Around a product of a microsecond there is no time for Python: what an operand must be is asked in
the compiled function itself, which does nothing and says so where one is not.
"""

from __future__ import annotations

import numba
import numpy as np

from npu_matmul.host import gemm, microkernel
from npu_matmul.host.compiled import compiled
from npu_matmul.host.pointers import pointer


@compiled
def vnni_sums(a, b, c):
    return _small(microkernel.vnni_sums, gemm.copy_i8, gemm.start_vnni, gemm.VNNI, a, b, c)


@compiled
def vnni_clipped(a, b, c):
    return _small(microkernel.vnni_clipped, gemm.copy_i8, gemm.start_vnni, gemm.VNNI, a, b, c)


@compiled
def avx2_sums(a, b, c):
    return _small(microkernel.avx2_sums, gemm.widen_i8, gemm.start_avx2, gemm.AVX2, a, b, c)


@compiled
def avx2_clipped(a, b, c):
    return _small(microkernel.avx2_clipped, gemm.widen_i8, gemm.start_avx2, gemm.AVX2, a, b, c)


@numba.njit(nogil=True)
def _small(kernel, feed, start, unit, a, b, c):
    """All of C = A @ B for arrays A and C, unless their shapes do not fit, they overlap, columns of
    C are no neighbours, or the work is too much for one thread.

    ``b`` is the address of a table of int64, as each argument costs time, and an array most:
    address, K, columns, panels, most rows, bytes of a fed element. Returns whether it was done.
    """
    (M, K), plan = a.shape, pointer(b, np.int64)
    if plan[1] != K or plan[4] < M or c.shape != (M, plan[2]) or c.strides[1] != c.itemsize:
        return False
    left, right = np.int64(a.ctypes.data), np.int64(c.ctypes.data)
    a_row, a_element = a.strides
    if _overlap(left, M, a_row, K, a_element, right, M, c.strides[0], c.shape[1], c.itemsize):
        return False
    fed_row = 0 if plan[5] == 1 and a_element == 1 else K * plan[5]
    nothing = np.int64(0)
    source = left, a_row, a_element, np.int64(gemm.I8), K, K * plan[5], fed_row, nothing, nothing
    target = right, c.strides[0], c.itemsize
    matrix = plan[0], plan[2], nothing
    return gemm.walk(kernel, feed, start, unit, source, (0, M), matrix, (0, plan[3]), target)


@numba.njit(nogil=True)
def _overlap(a, a_rows, a_row, a_columns, a_element, c, c_rows, c_row, c_columns, c_element):
    """Whether the memory that two arrays span has a byte in common."""
    a_first = a + min(0, (a_rows - 1) * a_row) + min(0, (a_columns - 1) * a_element)
    c_first = c + min(0, (c_rows - 1) * c_row)
    a_last = a + max(0, (a_rows - 1) * a_row) + max(0, (a_columns - 1) * a_element)
    c_last = c + max(0, (c_rows - 1) * c_row) + c_columns * c_element - 1
    return a_first <= c_last and c_first <= a_last
