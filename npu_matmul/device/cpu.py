"""The host as a device: the same arithmetic, straight on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.accumulate import accumulate
from npu_matmul.device import HostDevice

EXACT_STEPS = 1024  # 1024 products of at most 2**14 sum to at most 2**24, which float32 holds


class CpuDevice(HostDevice):
    """int8 exactly, through float32 BLAS in parts of K short enough; bf16 as float32 products."""

    name = "cpu"

    def product(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        """(M, K) @ (K, N): int8 as INT32 modulo 2**32, bf16 as f32.

        >>> a, b = np.array([[-128, 2]], np.int8), np.array([[-128], [3]], np.int8)
        >>> CpuDevice().product(a, b)
        array([[16390]], dtype=int32)
        """
        if a.dtype != np.int8:
            with np.errstate(invalid="ignore", over="ignore"):
                return np.asarray(a.astype(np.float32) @ b.astype(np.float32))
        total = np.zeros((a.shape[0], b.shape[1]), np.int32)
        for start in range(0, a.shape[1], EXACT_STEPS):
            part = slice(start, start + EXACT_STEPS)
            product = a[:, part].astype(np.float32) @ b[part].astype(np.float32)
            accumulate(total, product.astype(np.int32))
        return total

    def arithmetic(self, dtype: np.dtype[Any]) -> str:
        return "INT32, exact" if dtype == np.int8 else "f32, by BLAS"
