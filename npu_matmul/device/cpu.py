"""The host as a device: the same numbers as an NPU's, at the speed of the CPU's own instructions.

B is converted and packed for one of the host's paths. int8 and bf16 rows of A are read as they lie;
other elements are converted on the way, a block of rows at a time, so that no converted copy of A
is made, and sums are clipped or scaled before they are stored. Only where a row may be refused and
the caller's ``out`` must then be as it was, all of A is quantised first. What float32 cannot
quantise, a float64 A for int8 too, goes step by step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.device.base import HostDevice
from npu_matmul.host import product
from npu_matmul.host.paths import PORTABLE, choose_path
from npu_matmul.host.pointers import aligned_empty
from npu_matmul.host.product import FLOAT32, INT32, HostMatrix, Panels
from npu_matmul.precision import EXACT, Operand, Precision, finish, scales_of

EXACT_STEPS = 1024  # 1024 products of at most 2**14 sum to at most 2**24, which float32 holds

_SUMS = {"int32": "INT32, exact", "float32": "f32"}


class CpuDevice(HostDevice):
    """Computes by the best path the CPU has, or the one that ``$NPU_MATMUL_CPU_PATH`` names."""

    name = "cpu"

    def __init__(self) -> None:
        super().__init__()
        self.paths = {element: choose_path(element) for element in ("int8", "bfloat16")}

    def pack(self, b: Operand) -> HostMatrix:
        """A converted B in the form that products want; it shares nothing with ``b``."""
        self.require_open()
        matrix = b.matrix
        path = self.paths[matrix.dtype.name]
        if path.name == PORTABLE or not product.suits(matrix, path):
            return HostMatrix(matrix.astype(np.float32, order="C"), matrix.dtype, b.scale)
        panels = product.pack(matrix, path)
        if b.scale is None or b.scale.dtype != FLOAT32:
            return HostMatrix(panels, matrix.dtype, b.scale)
        panel_scale = product.panel_scale(b.scale, panels)
        return HostMatrix(panels, matrix.dtype, b.scale, panel_scale)

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
        neighbours; it shares no memory with A. ``QuantiseError`` is raised before that.

        >>> cpu, a = CpuDevice(), np.array([[-128, 2]], np.int8)
        >>> b = cpu.pack(EXACT.b(np.array([[-128], [3]], np.int8)))
        >>> cpu.multiply(a, b, EXACT, np.dtype(np.int32))[0]
        array([[16390]], dtype=int32)
        """
        self.require_open()
        if not a.dtype.isnative:
            a = a.astype(a.dtype.newbyteorder("="))
        if how is EXACT:
            sums, path = _exact(a, b, result, out)
        elif how.accumulator == "float32":
            sums, path = _float_sums(a, b, how, out)
        else:
            sums, path = _quantised(a, b, how, result, out)
        return _as(sums, result, out), f"{_SUMS[how.accumulator]} ({path})"


def _exact(
    a: NDArray[np.int8], b: HostMatrix, kind: np.dtype[Any], out: NDArray[Any] | None
) -> tuple[NDArray[Any], str]:
    """The sums as INT32, or of ``kind`` where the path can, and the path's name."""
    if isinstance(b.content, Panels):
        sums = _place(a, b, kind, out)
        product.product(a, b.content, sums)
        return sums, b.content.path.name
    sums = _place(a, b, INT32, out)
    sums[...] = 0
    for start in range(0, a.shape[1], EXACT_STEPS):
        part = slice(start, start + EXACT_STEPS)
        sums += (a[:, part].astype(np.float32) @ b.float32[part]).astype(np.int32)
    return sums, PORTABLE


def _float_sums(
    a: NDArray[Any], b: HostMatrix, how: Precision, out: NDArray[Any] | None
) -> tuple[NDArray[Any], str]:
    """The f32 sums, and the path's name; rows that it would not treat as it must go the portable
    way."""
    sums = _place(a, b, FLOAT32, out)
    if not isinstance(b.content, Panels):
        return _by_blas(how.a(a).matrix, b, sums), PORTABLE
    rows, name = product.product(a, b.content, sums), b.content.path.name
    if rows.size:
        sums[rows] = _by_blas(how.a(a[rows]).matrix, b)
        name += f"; {PORTABLE} for {rows.size} of {len(a)} rows"
    return sums, name


def _by_blas(
    a: NDArray[Any], b: HostMatrix, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    rows = a.astype(np.float32, order="C")  # BLAS sums columns in another order
    with np.errstate(invalid="ignore", over="ignore"):
        product: NDArray[np.float32] = np.matmul(rows, b.float32, out=out)
    return product


def _quantised(
    a: NDArray[Any],
    b: HostMatrix,
    how: Precision,
    result: np.dtype[Any],
    out: NDArray[Any] | None,
) -> tuple[NDArray[Any], str]:
    """Scaled sums, as f32 or in the result's type, and the path's name."""
    if b.panel_scale is not None and a.dtype != np.float64:
        assert isinstance(b.content, Panels)
        sums = _place(a, b, FLOAT32, out)
        if not product.product(a, b.content, sums, b.panel_scale, spare=sums is out).size:
            return sums, b.content.path.name
    left = how.a(a)
    assert left.scale is not None and b.scale is not None
    sums, path = _exact(left.matrix, b, INT32, None)
    scaled = np.empty(sums.shape, result) if out is None else out
    finish(sums, scaled, scales_of(left.scale, b.scale))
    return scaled, path


def _place(
    a: NDArray[Any], b: HostMatrix, kind: np.dtype[Any], out: NDArray[Any] | None
) -> NDArray[Any]:
    """``out``, where it is of this element type; else new memory of the product's shape."""
    if out is not None and out.dtype == kind:
        return out
    return aligned_empty((a.shape[0], b.columns), kind)


def _as(x: NDArray[Any], result: np.dtype[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    """``x`` in the result's type; in ``out``, where there is one."""
    if x is out or (out is None and x.dtype == result):
        return x
    target = np.empty(x.shape, result) if out is None else out
    finish(x, target, None)
    return target
