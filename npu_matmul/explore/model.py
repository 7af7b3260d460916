"""What products would take, modelled for arrays of configurations at once.

This is what :func:`npu_matmul.performance.product.predict` says of a ``batched`` product whose B is
on the device: tests hold one against the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from npu_matmul.kernel import CoreGrid
from npu_matmul.launch import columns_outside, operand_tasks, stream_bytes
from npu_matmul.performance.array import Array, LaunchTime, launch_time, work_of
from npu_matmul.performance.product import Npu
from npu_matmul.schedule import LIMITS, Limits, call_cycles

Shape = tuple[int, int, int]
SYNCS = 2  # of a product: A in, C out


@dataclass(frozen=True)
class Products:
    """Products to be fast at, and how often each is computed; ``measure`` names the sum."""

    name: str
    shapes: tuple[Shape, ...]
    counts: tuple[int, ...]
    measure: str

    @property
    def multiplications(self) -> int:
        pairs = zip(self.shapes, self.counts, strict=True)
        return sum(M * K * N * count for (M, K, N), count in pairs)


@dataclass(frozen=True)
class Modelled:
    """Modelled seconds of products, of launches and syncs, and their multiplications, padding
    included: numbers, or arrays of one for each configuration."""

    launches: LaunchTime
    sync_s: Any
    multiplications: Any

    @property
    def total_s(self) -> Any:
        return self.launches.total_s + self.sync_s


def model(array: Array, products: Products, npu: Npu, dtype: str) -> Modelled:
    """All products, one after the other."""
    launches, sync_s, multiplications = LaunchTime(), 0.0, 0
    for shape, count in zip(products.shapes, products.counts, strict=True):
        one = _product(array, shape, npu, dtype)
        launches += one.launches.times(count, one.launches.launch_s)
        sync_s = sync_s + count * one.sync_s
        multiplications = multiplications + count * one.multiplications
    return Modelled(launches, sync_s, multiplications)


def _product(array: Array, shape: Shape, npu: Npu, dtype: str) -> Modelled:
    M, K, N = shape
    figures = npu.figures
    rows = -(-M // (array.m * array.rows))
    columns = -(-N // (array.n * array.columns))
    steps = -(-K // array.k)
    launches = _launches(array, rows, columns, steps, npu)
    number = sum(count for _, _, _, count in launches)
    launch_s = (figures.launch_s + (number - 1) * figures.queued_launch_s) / number
    total = LaunchTime()
    for rows_of_one, columns_of_one, tasks, count in launches:
        work = work_of(array, rows_of_one, columns_of_one, steps, tasks)
        one = launch_time(array, work, figures.rates(dtype), figures, npu.clock_hz)
        total += one.times(count, launch_s)
    moved = rows * array.rows * steps * array.a_tile_bytes
    moved = moved + rows * columns * array.cores * array.c_tile_bytes
    sync_s = SYNCS * figures.sync_s + moved / figures.sync_bytes_per_s
    calls = rows * columns * steps * array.cores
    return Modelled(total, sync_s, calls * array.m * array.k * array.n)


def _launches(
    array: Array, rows: Any, columns: Any, steps: Any, npu: Npu, limits: Limits = LIMITS
) -> list[tuple[Any, Any, Any, Any]]:
    """What :func:`npu_matmul.schedule.cover` makes of so many blocks: rows and columns of blocks,
    tasks, and the number of launches of each kind: whole ones, and what is left of both loops."""
    cores = CoreGrid(array.rows, array.columns)
    tile_bytes = np.maximum(array.a_tile_bytes, array.b_tile_bytes)
    cycles = call_cycles(array.a_bytes, array.m * array.k * array.n, tile_bytes)
    most_calls = limits.core_cycles // cycles
    # sums of a narrow C cannot be parted over K, and within the largest K none is
    assert np.all(steps <= most_calls)

    def fits(outer: Any, inner: Any) -> Any:
        stream = stream_bytes(cores, outer, inner, npu.target)
        return (stream <= limits.stream_bytes) & (outer * inner * steps <= most_calls)

    columns_outer = columns_outside(cores, rows, columns, npu.target)
    outer = np.where(columns_outer, columns, rows)
    inner = np.where(columns_outer, rows, columns)
    sizes = _largest(outer, inner, fits)
    kinds = []
    for outer_part, outer_count in _parts(outer, sizes[0]):
        for inner_part, inner_count in _parts(inner, sizes[1]):
            count = outer_count * inner_count
            if np.any(count):
                by_panel, whole = operand_tasks(outer_part, inner_part, npu.target)
                a_tasks = np.where(columns_outer, whole, by_panel)
                b_tasks = np.where(columns_outer, by_panel, whole)
                tasks = array.columns + array.rows * a_tasks + array.columns * b_tasks
                part_rows = np.where(columns_outer, inner_part, outer_part)
                part_columns = np.where(columns_outer, outer_part, inner_part)
                kinds.append((part_rows, part_columns, tasks, count))
    return kinds


def _parts(blocks: Any, size: Any) -> list[tuple[Any, Any]]:
    """Launches along one loop: their blocks, and how many there are, of the rest one or none."""
    rest = blocks % size
    return [(size, blocks // size), (np.maximum(rest, 1), np.minimum(rest, 1))]


def _largest(outer: Any, inner: Any, fits: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
    """Blocks of the outer and the inner loop that one launch may be: as ``schedule`` has it, a
    part of the outer loop, or else of the inner."""
    if np.all(fits(outer, inner)):
        return outer, inner
    return _bisect(outer, lambda size: fits(size, inner)), _bisect(inner, lambda s: fits(1, s))


def _bisect(most: Any, fits: Callable[[Any], Any]) -> Any:
    """The largest size up to ``most`` that fits, at each place; 1 where none does."""
    low, high = np.ones_like(most), most
    while np.any(low < high):
        middle = (low + high + 1) // 2
        fit = fits(middle)
        low, high = np.where(fit, middle, low), np.where(fit, high, np.maximum(middle - 1, low))
    return low
