"""The time of one launch: what it moves and multiplies, and which of these takes longest.

Input, output and compute overlap, because every buffer on the way is double, so a launch takes as
long as the slowest of them, plus what cannot overlap: the launch itself, the tasks that come before
the first tile, that tile's way in and the last one's way out. A single C buffer adds its drain to
every block's compute, a single A or B buffer its way in to every call. The form is that of arXiv
2512.13282, section 4.5, with input and output as separate directions.

Sums over K must stay exact. So C is where they are kept where it has their type, and where it is
narrower they have a buffer of their own, from which C is made once a block: then a single C drains
during the next block.

Every number of an :class:`Array` and a :class:`Work` may be a NumPy array instead, for as many
configurations at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from npu_matmul.kernel import Kernel
from npu_matmul.launch import LaunchShape, input_tasks
from npu_matmul.performance.figures import CoreRates, Figures
from npu_matmul.target import NPU1, Target


@dataclass(frozen=True)
class Array:
    """Cores that share a product, one tile of C each: what the model needs of a kernel.

    ``m k n`` is the tile of one core, ``a_bytes`` to ``c_bytes`` are of one element, ``a_depth`` to
    ``c_depth`` are the numbers of buffers of a core. ``sums_apart`` says that sums have another.
    """

    rows: int
    columns: int
    m: int
    k: int
    n: int
    a_bytes: int
    b_bytes: int
    c_bytes: int
    c_depth: int
    a_depth: int = 2
    b_depth: int = 2
    sums_apart: bool = False

    @classmethod
    def of(cls, kernel: Kernel) -> Array:
        tile, grid, depths = kernel.tile, kernel.grid, kernel.depths
        sizes = (kernel.a_dtype.itemsize, kernel.b_dtype.itemsize, kernel.c_dtype.itemsize)
        cores = grid.rows, grid.columns
        return cls(*cores, tile.m, tile.k, tile.n, *sizes, depths.c, depths.a, depths.b)

    @property
    def a_tile_bytes(self) -> int:
        return self.m * self.k * self.a_bytes

    @property
    def b_tile_bytes(self) -> int:
        return self.k * self.n * self.b_bytes

    @property
    def c_tile_bytes(self) -> int:
        return self.m * self.n * self.c_bytes

    @property
    def cores(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Work:
    """What launches ask of an array: numbers that a device can count. ``blocks`` are those of one
    core, ``a_bytes`` to ``c_bytes`` cross the shims, re-reading included, and ``tasks`` are of
    their DMAs; ``first_tasks`` are those that must be started before the first tile can move."""

    blocks: int
    steps: int
    a_bytes: int
    b_bytes: int
    c_bytes: int
    tasks: int
    first_tasks: int

    @property
    def input_bytes(self) -> int:
        return self.a_bytes + self.b_bytes

    @property
    def dma_bytes(self) -> int:
        return self.input_bytes + self.c_bytes


def work_of(array: Array, rows: int, columns: int, steps: int, tasks: int = 0) -> Work:
    """``rows`` x ``columns`` blocks of C, one tile per core each, over ``steps`` tiles of K.

    Nothing stays in the array from one block to the next, so whichever loop is outside, each block
    reads a panel of A and one of B. ``tasks`` is 0 where a stream is not known.

    >>> array = Array(4, 4, 64, 64, 128, a_bytes=1, b_bytes=1, c_bytes=4, c_depth=1)
    >>> work = work_of(array, rows=6, columns=4, steps=8, tasks=24)
    >>> work.a_bytes, work.b_bytes, work.c_bytes  # 24 blocks of 8 steps: 4 A or B tiles each
    (3145728, 6291456, 12582912)
    """
    blocks = rows * columns
    return Work(
        blocks=blocks,
        steps=steps,
        a_bytes=blocks * steps * array.rows * array.a_tile_bytes,
        b_bytes=blocks * steps * array.columns * array.b_tile_bytes,
        c_bytes=blocks * array.cores * array.c_tile_bytes,
        tasks=tasks,
        first_tasks=_least(tasks, array.rows + 2 * array.columns),
    )


def launch_work(kernel: Kernel, shape: LaunchShape, target: Target = NPU1) -> Work:
    """What one launch of this shape asks of the kernel's array, with the tasks of its stream."""
    a_tasks, b_tasks = input_tasks(shape, target)
    grid = kernel.grid
    tasks = grid.columns + grid.rows * a_tasks + grid.columns * b_tasks
    return work_of(Array.of(kernel), shape.rows, shape.columns, shape.steps, tasks)


@dataclass(frozen=True)
class LaunchTime:
    """Modelled seconds of a launch, or of several: add them up. Of ``input_s``, ``output_s``,
    ``compute_s`` and ``issue_s``, which overlap, only the longest counts. The first tasks and the
    last block of C are in ``ends_s``, not in ``issue_s`` and ``output_s``."""

    launch_s: float = 0.0
    input_s: float = 0.0
    output_s: float = 0.0
    compute_s: float = 0.0
    issue_s: float = 0.0
    ends_s: float = 0.0  # before the first tile is there, and after the last is computed
    busy_s: float = 0.0  # of each launch the longest of the four

    @property
    def total_s(self) -> float:
        return self.launch_s + self.ends_s + self.busy_s

    @property
    def limit(self) -> str:
        """What binds: "launch" where the fixed part is longer than the rest, else "input",
        "output", "compute" or "issue" (of the stream's tasks)."""
        if self.launch_s + self.ends_s > self.busy_s:
            return "launch"
        parts = ("input", "output", "compute", "issue")
        return max(parts, key=lambda part: float(getattr(self, f"{part}_s")))

    def times(self, count: int, launch_s: float) -> LaunchTime:
        """``count`` such launches, one after the other, each at that fixed cost."""
        parts = {name: value * count for name, value in vars(self).items()}
        return LaunchTime(**{**parts, "launch_s": launch_s * count})

    def __add__(self, other: LaunchTime) -> LaunchTime:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return LaunchTime(*(mine + theirs for mine, theirs in pairs))


def launch_time(
    array: Array, work: Work, rates: CoreRates, figures: Figures, clock_hz: float
) -> LaunchTime:
    """Modelled time of one launch.

    By hand for the 24 blocks of :func:`work_of` at 1.6 GHz: input 9,437,184 B at 15 B a cycle are
    629,146 cycles; output 12,582,912 B, but for the last block, are 803,908, and 12 of the 24
    tasks at 2,800 cycles are 33,600. A call takes 524,288 / 227.6 + 8,192 x 0.2695
    + 186 = 4,698 cycles, a block 8 calls and 32,768 B / 4 B of drain: 24 x 45,776 are 1,098,624.
    Before and after: 12 tasks of 2,800, a tile of 8,192 B in (3.9 B a cycle, then 4), 131,072 B out
    are 71,356. With 150 us for the launch that is 150 + (1,098,624 + 71,356) / 1,600 = 881 us.

    >>> from npu_matmul.performance.figures import NPU1_FIGURES as figures
    >>> array = Array(4, 4, 64, 64, 128, a_bytes=1, b_bytes=1, c_bytes=4, c_depth=1)
    >>> work = work_of(array, rows=6, columns=4, steps=8, tasks=24)
    >>> time = launch_time(array, work, figures.int8, figures, 1.6e9)
    >>> [round(1.6e9 * s) for s in (time.input_s, time.output_s, time.compute_s, time.issue_s)]
    [629146, 803908, 1098624, 33600]
    >>> time.limit, f"{time.total_s * 1e3:.3f} ms"
    ('compute', '0.881 ms')
    """
    in_cycles = _most(
        work.input_bytes / figures.array_bytes_per_cycle,
        work.a_bytes / array.rows / figures.channel_bytes_per_cycle,
        work.b_bytes / array.columns / figures.channel_bytes_per_cycle,
    )
    out_cycles = (1 - 1 / work.blocks) * _most(
        work.c_bytes / figures.array_bytes_per_cycle,
        work.c_bytes / array.columns / figures.channel_bytes_per_cycle,
    )
    compute_cycles = work.blocks * _block_cycles(array, work.steps, rates, figures)
    issue_cycles = (work.tasks - work.first_tasks) * figures.task_cycles
    first_tile = _most(array.a_tile_bytes, array.b_tile_bytes) * (
        1 / figures.channel_bytes_per_cycle + 1 / figures.stream_bytes_per_cycle
    )
    last_block = array.rows * array.c_tile_bytes / figures.channel_bytes_per_cycle
    ends = work.first_tasks * figures.task_cycles + first_tile + last_block
    return LaunchTime(
        launch_s=figures.launch_s,
        input_s=in_cycles / clock_hz,
        output_s=out_cycles / clock_hz,
        compute_s=compute_cycles / clock_hz,
        issue_s=issue_cycles / clock_hz,
        ends_s=ends / clock_hz,
        busy_s=_most(in_cycles, out_cycles, compute_cycles, issue_cycles) / clock_hz,
    )


def _block_cycles(array: Array, steps: int, rates: CoreRates, figures: Figures) -> Any:
    """Cycles from one block of C to the next on a core, its inputs being there.

    By hand for 8 steps of 64x64x128, each 4,698 cycles, with int16 C: to make it from the sums are
    8,192 x 0.2695 = 2,208, to drain it 16,384 B / 4 B = 4,096, which the 8 steps hide. A single A
    would add 4,096 B / 4 B to each step.

    >>> from npu_matmul.performance.figures import NPU1_FIGURES as figures
    >>> def cycles(c_bytes, c_depth, a_depth, sums_apart):
    ...     array = Array(4, 4, 64, 64, 128, 1, 1, c_bytes, c_depth, a_depth, 2, sums_apart)
    ...     return round(_block_cycles(array, 8, figures.int8, figures))
    >>> cycles(4, 2, 2, False), cycles(4, 1, 2, False)  # the second as in :func:`launch_time`
    (37584, 45776)
    >>> cycles(2, 1, 2, True) - 37584, cycles(4, 2, 1, False) - 37584
    (2208, 8192)
    """
    waits = _most(
        array.a_tile_bytes * (array.a_depth == 1), array.b_tile_bytes * (array.b_depth == 1)
    )
    step = rates.cycles(array.m, array.k, array.n) + waits / figures.stream_bytes_per_cycle
    products = steps * step
    drain = array.c_tile_bytes / figures.stream_bytes_per_cycle
    exposed = _most(drain - array.sums_apart * products, 0) * (array.c_depth == 1)
    convert = array.sums_apart * array.m * array.n * figures.convert_cycles
    return products + convert + exposed


def _most(*values: Any) -> Any:
    """The largest, or that of each place where some are arrays: a number stays a Python number."""
    return reduce(np.maximum, values) if _any_array(values) else max(values)


def _least(*values: Any) -> Any:
    return reduce(np.minimum, values) if _any_array(values) else min(values)


def _any_array(values: tuple[Any, ...]) -> bool:
    return any(isinstance(value, np.ndarray) for value in values)
