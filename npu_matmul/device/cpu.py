"""The host as a device: the same arithmetic, straight on the CPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from npu_matmul.accumulate import accumulate
from npu_matmul.device import HostDevice

EXACT_STEPS = (
    1024  # 1024 products of at most 2**14 sum to at most 2**24, which float32 holds exactly
)


class CpuDevice(HostDevice):
    """Exact int8 products through float32 BLAS, in parts of K short enough to be exact."""

    name = "cpu"

    def matmul_int8(self, a: NDArray[np.int8], b: NDArray[np.int8]) -> NDArray[np.int32]:
        """(M, K) @ (K, N) as INT32, modulo 2**32.

        >>> a, b = np.array([[-128, 2]], np.int8), np.array([[-128], [3]], np.int8)
        >>> CpuDevice().matmul_int8(a, b)
        array([[16390]], dtype=int32)
        """
        total = np.zeros((a.shape[0], b.shape[1]), np.int32)
        for start in range(0, a.shape[1], EXACT_STEPS):
            part = slice(start, start + EXACT_STEPS)
            product = a[:, part].astype(np.float32) @ b[part].astype(np.float32)
            accumulate(total, product.astype(np.int32))
        return total
