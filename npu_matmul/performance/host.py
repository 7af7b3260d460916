"""What the host does around the launches, at rates measured on this host."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from npu_matmul.accumulate import accumulate
from npu_matmul.kernel import Kernel
from npu_matmul.precision import EXACT, Operand, Precision, scales_of
from npu_matmul.schedule import c_order, cover
from npu_matmul.strategies import Counts
from npu_matmul.tiler import TileGrid, pack_a, unpack_c

SAMPLE = 1500, 512, 512  # a projection of Whisper base
REPEATS = 5


@dataclass(frozen=True)
class HostRates:
    """Bytes a second of each stage: of packed A and B that converting and packing writes, and of
    packed C that unpacking and adding read."""

    pack: float
    unpack: float
    accumulate: float

    def stages(self, grid: TileGrid, counts: Counts, resident: bool) -> dict[str, float]:
        """Seconds by stage of a call, in the names of ``last_call().seconds``. A resident B was
        packed before."""
        packed_bytes = grid.a_bytes if resident else grid.a_bytes + grid.b_bytes
        # what comes back beyond one C are partial sums of K
        added_bytes = counts.bytes_from_device - grid.c_bytes
        seconds = {"pack": packed_bytes / self.pack, "unpack": grid.c_bytes / self.unpack}
        if added_bytes:
            seconds["accumulate"] = added_bytes / self.accumulate
        return seconds


@lru_cache(maxsize=16)
def measure_host(kernel: Kernel, precision: Precision = EXACT) -> HostRates:
    """The rates of this host for a kernel and a precision; takes some tenths of a second, once.

    Each is the best of a few repeats on operands of (1500, 512) @ (512, 512): what a quiet machine
    does.
    """
    grid = TileGrid(kernel, *SAMPLE, precision.terms)
    random = np.random.default_rng(0)
    a = random.integers(-128, 128, (grid.M, grid.K)).astype(np.int8)
    if precision is not EXACT:
        a = a.astype(np.float32)
    packed = np.empty(grid.a_bytes // kernel.a_dtype.itemsize, kernel.a_dtype)
    sums = random.integers(-99, 99, grid.c_bytes // kernel.c_dtype.itemsize).astype(kernel.c_dtype)
    more, order = sums.copy(), c_order(grid, cover(grid))
    out = np.empty((grid.M, grid.N), a.dtype)
    scales = _scales(precision.a(a), precision.b(a[: grid.K]))
    pack_s = _best(lambda: pack_a(precision.a(a), grid, packed))
    unpack_s = _best(lambda: unpack_c(sums, order, grid, out, scales))
    accumulate_s = _best(lambda: accumulate(sums, more))
    return HostRates(grid.a_bytes / pack_s, grid.c_bytes / unpack_s, grid.c_bytes / accumulate_s)


def _scales(left: Operand, right: Operand) -> Any:
    if left.scale is None or right.scale is None:
        return None
    return scales_of(left.scale, right.scale)


def _best(stage: Callable[[], object]) -> float:
    stage()  # compiles, and brings its memory in
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        stage()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
