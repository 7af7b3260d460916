"""What the host does around the launches, at rates measured on this host."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.accumulate import accumulate
from npu_matmul.kernel import Kernel
from npu_matmul.precision import EXACT, Operand, Precision, scales_of
from npu_matmul.schedule import c_order, cover
from npu_matmul.strategies import Counts
from npu_matmul.tiler import TileGrid, pack_a, unpack_c

SAMPLE = 1500, 512, 512  # a projection of Whisper base
REPEATS = 5
TILES = 16  # that are copied or added in turn, as a product's are


@dataclass(frozen=True)
class HostRates:
    """Bytes a second of each stage: of packed A and B that converting and packing writes, and of
    packed C that unpacking and adding read. ``copy_a_s``, ``copy_b_s`` and ``add_s`` are seconds
    of each launch of ``sequential``: to copy its tiles and to add what comes back."""

    pack: float
    unpack: float
    accumulate: float
    copy_a_s: float
    copy_b_s: float
    add_s: float

    def stages(
        self, grid: TileGrid, counts: Counts, strategy: str, resident: bool
    ) -> dict[str, float]:
        """Seconds by stage of a call, in the names of ``last_call().seconds``. A resident B was
        packed before, and is launched on where it is."""
        packed_bytes = grid.a_bytes if resident else grid.a_bytes + grid.b_bytes
        seconds = {"pack": packed_bytes / self.pack, "unpack": grid.c_bytes / self.unpack}
        if strategy == "sequential":
            copy_s = self.copy_a_s if resident else self.copy_a_s + self.copy_b_s
            seconds["pack"] += counts.launches * copy_s
            seconds["accumulate"] = counts.launches * self.add_s
            return seconds
        # what comes back beyond one C are partial sums of K
        added_bytes = counts.bytes_from_device - grid.c_bytes
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
    return HostRates(
        pack=grid.a_bytes / pack_s,
        unpack=grid.c_bytes / unpack_s,
        accumulate=grid.c_bytes / accumulate_s,
        copy_a_s=_copy_s(kernel.grid.rows, kernel.a_tile_bytes),
        copy_b_s=_copy_s(kernel.grid.columns, kernel.b_tile_bytes),
        add_s=_add_s(sums, kernel),
    )


def _copy_s(lanes: int, tile_bytes: int) -> float:
    """Seconds to copy a tile of each lane of a packed operand, as ``sequential`` does it."""
    packed = np.ones((lanes, TILES, tile_bytes), np.uint8)
    given = np.empty(lanes * tile_bytes, np.uint8)

    def copy() -> None:
        for place in range(TILES):
            given.reshape(lanes, -1)[:] = packed[:, place]

    return _best(copy) / TILES


def _add_s(sums: NDArray[Any], kernel: Kernel) -> float:
    """Seconds to add a launch's block of C, as ``sequential`` does it."""
    block = sums[: math.prod(kernel.block)].copy()
    total = np.zeros((TILES, block.size), block.dtype)

    def add() -> None:
        for place in range(TILES):
            accumulate(total[place], block)

    return _best(add) / TILES


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
