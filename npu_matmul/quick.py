"""Small exact products with a packed B, with as little Python around them as possible.

A product of 64 x 64 x 64 takes about a microsecond; so do a few lines of Python. What can be
settled when B is packed is settled here; a call then checks its two arrays and runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from npu_matmul.device import Device
from npu_matmul.host import small
from npu_matmul.host.compiled import direct
from npu_matmul.host.pointers import address
from npu_matmul.host.product import Panels, rows_of_one_thread
from npu_matmul.precision import EXACT
from npu_matmul.report import CallReport

_WALKS: dict[str, tuple[Any, Any]] = {
    "avx512vnni": (small.vnni_sums, small.vnni_clipped),
    "avx2": (small.avx2_sums, small.avx2_clipped),
}
_INT8, _INT32, _INT32_TYPE = np.dtype(np.int8), np.dtype(np.int32), np.int32
_ARRAY = np.ndarray


@dataclass(frozen=True)
class Quick:
    """``run(a, out, dtype)`` computes ``out = a @ b`` and returns True, or returns False and leaves
    ``out`` as it was, where the call is not of the common, small kind.

    That kind: A (M, K) of int8; ``out`` (M, N) of int8, or INT32 and ``dtype=np.int32``, with
    neighbouring columns; both plain arrays that do not overlap; and there is little work.
    """

    run: Callable[[Any, Any, Any], bool]
    report: CallReport
    memory: tuple[Panels, NDArray[np.int64]]  # whose addresses ``run`` reads


def quick_product(device: Device, b: Panels) -> Quick:
    """The short way for a B that ``device`` has packed."""
    path = b.path
    sizes = b.depth, b.columns, b.words.shape[0], rows_of_one_thread(b), path.fed_bytes
    plan = np.array([b.address, *sizes], np.int64)
    place = address(plan)

    sums: Any = None
    clipped: Any = None

    def first(which: int, *args: Any) -> bool:
        """Compile both products, which a matrix that has no small ones need not wait for."""
        nonlocal sums, clipped
        sums, clipped = _compiled(path.name)
        return bool((sums, clipped)[which](*args))

    sums, clipped = partial(first, 0), partial(first, 1)

    # A function and its variables: calls of objects and their attributes would take longer.
    def run(a: Any, out: Any, dtype: Any) -> bool:
        try:
            if type(a) is not _ARRAY or type(out) is not _ARRAY:
                return False  # a subclass may have more to it, as masked arrays do
            if a.dtype is not _INT8 or not out.flags.writeable or not device.direct:
                return False
            if dtype is _INT32_TYPE:
                return out.dtype is _INT32 and sums(a, place, out)
            return dtype is None and out.dtype is _INT8 and clipped(a, place, out)
        except (AttributeError, TypeError):  # not arrays, or not of two dimensions
            return False

    report = CallReport(
        device=device.name,
        precision=EXACT.name,
        arithmetic=f"INT32, exact ({path.name})",
        reason=f"device {device.name!r} computes without kernels; too small to time by stage",
    )
    return Quick(run, report, (b, plan))


@cache
def _compiled(path: str) -> tuple[Callable[..., bool], Callable[..., bool]]:
    """Both products of a path; the caller checks element types."""
    sums, clipped = (
        direct(walk, types.Array(types.int8, 2, "A"), types.int64, types.Array(element, 2, "A"))
        for walk, element in zip(_WALKS[path], (types.int32, types.int8), strict=True)
    )
    return sums, clipped
