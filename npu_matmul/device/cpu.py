"""The host as a device: the same numbers as an NPU's, at the speed of the CPU's own instructions.

B is converted and packed for one of the host's paths. int8 and bf16 rows of A are read as they lie;
floats are converted on the way, a block of rows at a time, so that no converted copy of A is made,
and sums are clipped or scaled before they are stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.accumulate import accumulate
from npu_matmul.device.base import HostDevice
from npu_matmul.host import product
from npu_matmul.host.convert import type_name
from npu_matmul.host.paths import PORTABLE, choose_path
from npu_matmul.host.pointers import aligned_empty
from npu_matmul.host.product import HostMatrix, Panels
from npu_matmul.precision import BF16, EXACT, Operand, Precision, finish, scales_of

EXACT_STEPS = 1024  # 1024 products of at most 2**14 sum to at most 2**24, which float32 holds
FLOAT32 = np.dtype(np.float32)

_SUMS = {"int32": "INT32, exact", "float32": "f32"}
_SUM_TYPES = {np.dtype(np.int8): np.int32, BF16: np.float32}


class CpuDevice(HostDevice):
    """Computes by the best path the CPU has, or the one that ``$NPU_MATMUL_CPU_PATH`` names."""

    name = "cpu"

    def __init__(self) -> None:
        super().__init__()
        self.paths = {element: choose_path(element) for element in ("int8", "bfloat16")}

    def pack(self, b: Operand) -> HostMatrix:
        """A converted B in the form that products want; it shares nothing with ``b``."""
        self.require_open()
        path = self.paths[b.matrix.dtype.name]
        if path.name == PORTABLE or not product.suits(b.matrix, path):
            return HostMatrix(np.array(b.matrix, order="C"), b.scale)
        panels = product.pack(b.matrix, path)
        if b.scale is None or b.scale.dtype != FLOAT32:
            return HostMatrix(panels, b.scale)
        return HostMatrix(panels, b.scale, product.panel_scale(b.scale, panels))

    def multiply(
        self,
        a: NDArray[Any],
        b: HostMatrix,
        how: Precision,
        result: np.dtype[Any],
        out: NDArray[Any] | None = None,
    ) -> tuple[NDArray[Any], str]:
        """A (M, K) as the caller has it times a packed B, as ``result``; and how it was summed.

        Written to ``out`` where that is given: (M, N), of the result's type, its columns
        neighbours; it shares no memory with A.

        >>> cpu, a = CpuDevice(), np.array([[-128, 2]], np.int8)
        >>> b = cpu.pack(EXACT.b(np.array([[-128], [3]], np.int8)))
        >>> cpu.multiply(a, b, EXACT, np.dtype(np.int32))[0]
        array([[16390]], dtype=int32)
        """
        self.require_open()
        if out is not None and how.name == "int8":
            how.a(a)  # which refuses what int8 lacks before any of ``out`` is written
        if isinstance(b.content, Panels):
            summed = result if how is EXACT else FLOAT32
            target = out if out is not None and summed == result else None
            if target is None:
                target = aligned_empty((a.shape[0], b.content.columns), summed)
            if self._in_one_pass(a, b, how, target):
                path = b.content.path.name
                return _as(target, result, out), f"{_SUMS[how.accumulator]} ({path})"
        left = how.a(a)
        sums, path = self._sums(left.matrix, b)
        scales = None
        if left.scale is not None and b.scale is not None:
            scales = scales_of(left.scale, b.scale)
        target = np.empty(sums.shape, result) if out is None else out
        finish(sums, target, scales)
        return target, f"{_SUMS[how.accumulator]} ({path})"

    def _in_one_pass(
        self,
        a: NDArray[Any],
        b: HostMatrix,
        how: Precision,
        target: NDArray[Any],
    ) -> bool:
        """Convert, multiply and scale a block of rows at a time; False where that cannot be: for
        float64, and for values that the path would not treat as it must."""
        assert isinstance(b.content, Panels)
        if how is EXACT or (a.dtype == BF16 and how.name == "bf16"):
            return product.product(a, b.content, target)
        quantised = how.element == "int8"
        if type_name(a.dtype) == "float64" or (quantised and b.panel_scale is None):
            return False
        return product.product(a.astype(np.float32, copy=False), b.content, target, b.panel_scale)

    def _sums(self, a: NDArray[Any], b: HostMatrix) -> tuple[NDArray[Any], str]:
        """Sums of converted operands, INT32 or f32, and the name of the path."""
        if isinstance(b.content, Panels):
            sums = np.empty((a.shape[0], b.content.columns), _SUM_TYPES[a.dtype])
            if product.product(a, b.content, sums):
                return sums, b.content.path.name
        right = b.matrix()
        if a.dtype == BF16:
            with np.errstate(invalid="ignore", over="ignore"):
                return np.asarray(a.astype(np.float32) @ right.astype(np.float32)), PORTABLE
        total = np.zeros((a.shape[0], right.shape[1]), np.int32)
        for start in range(0, a.shape[1], EXACT_STEPS):
            part = slice(start, start + EXACT_STEPS)
            product_of_part = a[:, part].astype(np.float32) @ right[part].astype(np.float32)
            accumulate(total, product_of_part.astype(np.int32))
        return total, PORTABLE


def _as(x: NDArray[Any], result: np.dtype[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    """``x`` in the result's type; in ``out``, where there is one."""
    if x is out or (out is None and x.dtype == result):
        return x
    target = np.empty(x.shape, result) if out is None else out
    finish(x, target, None)
    return target
