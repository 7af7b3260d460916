"""Which launches make a product.

A :class:`Launch` is a rectangle of C blocks over a run of K steps. ``cover`` cuts a whole product
into as few launches as the limits allow; ``npu_matmul/launch.py`` writes each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npu_matmul.kernel import Kernel
from npu_matmul.launch import (
    VIEW_BYTES,
    LaunchShape,
    argument_bytes,
    columns_outside,
    stream_bytes,
)
from npu_matmul.target import NPU1, Target
from npu_matmul.tiler import TileGrid


@dataclass(frozen=True)
class Limits:
    """What one launch may be.

    ``stream_bytes`` is our own bound: streams live in the 64 MiB that the driver sets aside for
    each process, and one is kept per shape. ``core_cycles`` keeps a launch well under the driver's
    watchdog of 2 s at npu1's lowest clock of 0.8 GHz; cycles are the pessimistic estimate of
    ``step_cycles``.
    """

    stream_bytes: int = 256 * 1024
    core_cycles: int = 400_000_000

    def steps(self, kernel: Kernel) -> int:
        """Most core calls of one core in one launch."""
        return max(1, self.core_cycles // step_cycles(kernel))


LIMITS = Limits()


class LimitError(ValueError):
    """Not even the smallest launch of a product fits the limits."""


def step_cycles(kernel: Kernel) -> int:
    """A pessimistic number of cycles of one core call: slow compute plus slow transfer plus call
    overhead.

    Assumed, not measured: a quarter of the peak of 256 int8 products a cycle (half that for bf16),
    2 B a cycle on each input channel where 3.9 were measured on npu1, and 200 cycles for the call.
    """
    tile = kernel.tile
    return call_cycles(
        kernel.a_dtype.itemsize,
        tile.m * tile.k * tile.n,
        max(kernel.a_tile_bytes, kernel.b_tile_bytes),
    )


def call_cycles(operand_bytes: int, products: int, tile_bytes: int) -> int:
    """``step_cycles`` of so many products of elements of ``operand_bytes``, the larger of whose
    tiles has ``tile_bytes``. Also of NumPy arrays of them."""
    peak = 256 if operand_bytes == 1 else 128
    return products * 4 // peak + tile_bytes // 2 + 200


@dataclass(frozen=True)
class Launch:
    """One launch of a product: its shape, and where its views begin, in tiles of each region."""

    shape: LaunchShape
    row: int
    column: int
    a_tile: int
    b_tile: int
    c_tile: int

    def views(self, kernel: Kernel) -> list[tuple[int, int]]:
        """First byte and bytes of what it uses of A's, B's and C's regions."""
        tiles = self.a_tile, self.b_tile, self.c_tile
        sizes = kernel.a_tile_bytes, kernel.b_tile_bytes, kernel.c_tile_bytes
        firsts = (tile * nbytes for tile, nbytes in zip(tiles, sizes, strict=True))
        return list(zip(firsts, argument_bytes(kernel, self.shape), strict=True))


def block_steps(grid: TileGrid, limits: Limits = LIMITS, target: Target = NPU1) -> int:
    """The most steps of K, up to all, that a launch of one block may have; raises
    :class:`LimitError` where not even one may."""
    kernel, cores = grid.kernel, grid.kernel.grid
    steps = min(grid.Kt, limits.steps(kernel))
    stream = stream_bytes(cores, 1, 1, target)
    if stream > limits.stream_bytes:
        raise LimitError(
            f"kernel {kernel.name!r}: a launch of one block needs a stream of up to {stream} B; "
            f"the limit is {limits.stream_bytes} B"
        )
    a, b, _ = argument_bytes(kernel, _shape(grid, 1, 1, steps, columns_outer=False))
    for name, view_bytes, cut in (("A", a, "rows"), ("B", b, "columns")):
        if view_bytes > VIEW_BYTES:
            raise LimitError(
                f"kernel {kernel.name!r}: {name}'s parts for its {getattr(cores, cut)} {cut} of "
                f"cores lie within {view_bytes} B, and a launch can reach {VIEW_BYTES} B; multiply "
                f"fewer {cut} of {name} at a time, or use a kernel of one core"
            )
    return steps


def block_launches(grid: TileGrid, steps: int | None = None) -> list[Launch]:
    """One launch per block of C (and per ``steps`` of K, where given), row by row; K parts
    outermost."""
    steps = grid.Kt if steps is None else steps
    launches: list[Launch] = []
    for first in range(0, grid.Kt, steps):
        for row in range(grid.Mb):
            for column in range(grid.Nb):
                shape = _shape(grid, 1, 1, min(steps, grid.Kt - first), columns_outer=False)
                launches.append(
                    _launch(grid, shape, row, column, first, len(launches) * _cores(grid.kernel))
                )
    return launches


def block_shapes(grid: TileGrid, steps: int) -> list[tuple[LaunchShape, int]]:
    """The shapes of ``block_launches``, and how many launches have each."""
    return [
        (_shape(grid, 1, 1, length, columns_outer=False), grid.Mb * grid.Nb * count)
        for length, count in _parts(grid.Kt, steps)
    ]


def cover(grid: TileGrid, limits: Limits = LIMITS, target: Target = NPU1) -> list[Launch]:
    """As few launches as the limits allow, each a range of the outer loop or a part of one of its
    steps.

    The outer loop is the one that needs fewer tasks. A K too long for one launch of a single block
    is cut into parts, whose C the host adds.
    """
    most_steps = block_steps(grid, limits, target)
    if grid.Kt > most_steps:
        return block_launches(grid, most_steps)
    columns_outer, (outer, inner), (outer_size, inner_size) = _cut(grid, limits, target)
    launches: list[Launch] = []
    c_tile = 0
    for o in range(0, outer, outer_size):
        for i in range(0, inner, inner_size):
            sizes = min(outer_size, outer - o), min(inner_size, inner - i)
            rows, columns = sizes[::-1] if columns_outer else sizes
            row, column = (i, o) if columns_outer else (o, i)
            launch = _launch(
                grid, _shape(grid, rows, columns, grid.Kt, columns_outer), row, column, 0, c_tile
            )
            launches.append(launch)
            c_tile += rows * columns * _cores(grid.kernel)
    return launches


def cover_shapes(
    grid: TileGrid, limits: Limits = LIMITS, target: Target = NPU1
) -> list[tuple[LaunchShape, int]]:
    """The shapes of ``cover``, and how many launches have each: of millions, too."""
    most_steps = block_steps(grid, limits, target)
    if grid.Kt > most_steps:
        return block_shapes(grid, most_steps)
    columns_outer, (outer, inner), (outer_size, inner_size) = _cut(grid, limits, target)
    kinds = []
    for o, outer_count in _parts(outer, outer_size):
        for i, inner_count in _parts(inner, inner_size):
            rows, columns = (i, o) if columns_outer else (o, i)
            shape = _shape(grid, rows, columns, grid.Kt, columns_outer)
            kinds.append((shape, outer_count * inner_count))
    return kinds


def c_order(grid: TileGrid, launches: list[Launch]) -> NDArray[np.int64]:
    """Where tile (i, j) of C is stored by these launches: [launch][core column][block][core row].

    For one launch of 2 x 2 blocks on 2 x 2 cores, columns outside (4 x 4 tiles)::

        j        0   1   2   3
        i = 0    0   8   4  12
        i = 1    1   9   5  13
        i = 2    2  10   6  14
        i = 3    3  11   7  15

    Launches of later K parts store at the same places of their own part.
    """
    cores = grid.kernel.grid
    order = np.empty((grid.Mb, cores.rows, grid.Nb, cores.columns), np.int64)
    for launch in launches:
        shape = launch.shape
        if launch.c_tile >= grid.Mt * grid.Nt:
            break
        row, column = np.arange(shape.rows)[:, None], np.arange(shape.columns)
        block = column * shape.rows + row if shape.columns_outer else row * shape.columns + column
        within = np.arange(cores.rows)[:, None, None] + block[:, None, :, None] * cores.rows
        lane = np.arange(cores.columns) * (shape.rows * shape.columns * cores.rows)
        rows = slice(launch.row, launch.row + shape.rows)
        columns = slice(launch.column, launch.column + shape.columns)
        order[rows, :, columns] = launch.c_tile + within + lane
    return order.reshape(grid.Mt, grid.Nt)


def _largest(
    grid: TileGrid, outer: int, inner: int, columns_outer: bool, limits: Limits, target: Target
) -> tuple[int, int]:
    """The largest part of the outer loop, or else of the inner one, that one launch may be; one
    block of it may be one."""

    def fits(outer_size: int, inner_size: int) -> bool:
        sizes = (inner_size, outer_size) if columns_outer else (outer_size, inner_size)
        views = argument_bytes(grid.kernel, _shape(grid, *sizes, grid.Kt, columns_outer))
        return (
            stream_bytes(grid.kernel.grid, outer_size, inner_size, target) <= limits.stream_bytes
            and outer_size * inner_size * grid.Kt <= limits.steps(grid.kernel)
            and max(views) <= VIEW_BYTES
        )

    if fits(1, inner):
        return _bisect(outer, lambda size: fits(size, inner)), inner
    return 1, _bisect(inner, lambda size: fits(1, size))


def _cut(
    grid: TileGrid, limits: Limits, target: Target
) -> tuple[bool, tuple[int, int], tuple[int, int]]:
    """Whether columns are outside; blocks of the outer and the inner loop; those of a launch."""
    columns_outer = columns_outside(grid.kernel.grid, grid.Mb, grid.Nb, target)
    loops = (grid.Nb, grid.Mb) if columns_outer else (grid.Mb, grid.Nb)
    return columns_outer, loops, _largest(grid, *loops, columns_outer, limits, target)


def _parts(total: int, size: int) -> list[tuple[int, int]]:
    """The lengths of parts of at most that size, and how many have each."""
    whole, rest = divmod(total, size)
    return [(length, count) for length, count in ((size, whole), (rest, 1)) if length and count]


def _bisect(most: int, fits: Callable[[int], bool]) -> int:
    """The largest size up to ``most`` that fits; 1 does, and what fits does so for every smaller
    size."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _shape(grid: TileGrid, rows: int, columns: int, steps: int, columns_outer: bool) -> LaunchShape:
    """Strides matter only where an operand has more than one lane: leaving them out shares
    streams."""
    cores = grid.kernel.grid
    a_stride = grid.Mb * grid.Kt if cores.rows > 1 else 0
    b_stride = grid.Nb * grid.Kt if cores.columns > 1 else 0
    return LaunchShape(rows, columns, steps, columns_outer, a_stride, b_stride)


def _launch(
    grid: TileGrid, shape: LaunchShape, row: int, column: int, first_step: int, c_tile: int
) -> Launch:
    a_tile, b_tile = row * grid.Kt + first_step, column * grid.Kt + first_step
    return Launch(shape, row, column, a_tile, b_tile, c_tile)


def _cores(kernel: Kernel) -> int:
    return kernel.grid.rows * kernel.grid.columns
