"""Small exact products with a packed B, with as little Python around them as possible.

A product of 64 x 64 x 64 takes about a microsecond; so do a few lines of Python. What can be
settled when B is packed is settled here; a call then checks its two arrays and runs.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
from numba.core import types

from npu_matmul.device import Device
from npu_matmul.host import gemm
from npu_matmul.host.product import Panels
from npu_matmul.precision import EXACT
from npu_matmul.report import CallReport

_WALKS: dict[str, tuple[Any, Any]] = {
    "avx512vnni": (gemm.vnni_small_sums, gemm.vnni_small_clipped),
    "avx2": (gemm.avx2_small_sums, gemm.avx2_small_clipped),
}
_INT8, _INT32, _INT32_TYPE = np.dtype(np.int8), np.dtype(np.int32), np.int32


class QuickProduct:
    """``quick(a, out, dtype)`` computes ``out = a @ b`` and returns True, or returns False and
    leaves ``out`` as it was, where the call is not of the common, small kind.

    That kind: int8 A (M, K); ``out`` (M, N) int8, or INT32 and ``dtype=np.int32``, with
    neighbouring columns; they do not overlap, and there is little work.
    """

    __slots__ = ("_clipped", "_device", "_panels", "_plan", "_sums", "report")

    def __init__(self, device: Device, b: Panels) -> None:
        path = b.path
        most_rows = path.small // max(1, b.depth * b.columns)
        sizes = b.depth, b.columns, b.words.shape[0], most_rows, path.fed_bytes
        self._plan = np.array([b.address, *sizes], np.int64)
        self._panels = b  # keeps the address valid
        self._device = device
        self._sums = partial(self._first, 0)
        self._clipped = partial(self._first, 1)
        self.report = CallReport(
            device=device.name,
            precision=EXACT.name,
            arithmetic=f"INT32, exact ({path.name})",
            reason=f"device {device.name!r} computes without kernels; too small to time by stage",
        )

    def __call__(self, a: Any, out: Any, dtype: Any) -> bool:
        try:
            if a.dtype is not _INT8 or not out.flags.writeable or self._device.closed:
                return False
            if dtype is _INT32_TYPE:
                return out.dtype is _INT32 and self._sums(a, self._plan, out)
            return dtype is None and out.dtype is _INT8 and self._clipped(a, self._plan, out)
        except (AttributeError, TypeError):  # not arrays, or not of two dimensions
            return False

    def _first(self, which: int, *args: Any) -> bool:
        """The first product: compiles both, which a matrix that has no small ones need not wait
        for."""
        self._sums, self._clipped = _compiled(self._panels.path.name)
        return bool((self._sums, self._clipped)[which](*args))


@cache
def _compiled(path: str) -> tuple[Any, Any]:
    """Both products of a path, called without numba's look at the types of the arguments, which
    takes a third of a 16 x 16 x 16 product's time. The caller checks element types; what numba
    calls unboxing checks dimensions."""
    plan = types.Array(types.int64, 1, "C")
    a = types.Array(types.int8, 2, "A")
    found = []
    elements: tuple[Any, Any] = types.int32, types.int8
    for walk, element in zip(_WALKS[path], elements, strict=True):
        signature = a, plan, types.Array(element, 2, "A")
        walk.compile(signature)
        found.append(walk.overloads[signature].entry_point)
    return found[0], found[1]
