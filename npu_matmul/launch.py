"""One launch: the transfers that feed its cores, as the tasks of a runtime sequence.

``launch_sequence`` puts the tasks on the start queues in the order in which the cores will need
them; the functions after it count tasks and bytes of a stream without writing one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from npu_matmul import design
from npu_matmul.kernel import CoreGrid, Kernel
from npu_matmul.sequence import Argument, Sequence, Step, Transfer, Wait, WriteParameter, linear
from npu_matmul.target import NPU1, Target

TASK_BYTES = 164  # of a stream: descriptor 48, patch 48, token control 28, start 24, wait 16
FIXED_BYTES = 16  # the header; parameters and C add their own
VIEW_BYTES = 1 << 32  # of A, B or C in one launch: a stream says by 32 bits where a transfer begins


@dataclass(frozen=True)
class LaunchShape:
    """What an instruction stream depends on: one stream serves every launch of the same shape.

    ``rows`` x ``columns`` blocks of C, each ``steps`` tiles of K long. ``columns_outer`` says
    which loop is outside. ``a_stride`` and ``b_stride`` are the tiles from one core row's
    (column's) run to the next.
    """

    rows: int
    columns: int
    steps: int
    columns_outer: bool
    a_stride: int
    b_stride: int


@lru_cache(maxsize=256)
def launch_sequence(kernel: Kernel, shape: LaunchShape, target: Target = NPU1) -> Sequence:
    """The runtime sequence of one launch; its arguments are views of A's, B's and C's regions.

    C's transfers start first, then A's and B's tasks in the order of their first use. A task that
    would overfill a start queue waits for the oldest one on it, and takes over its buffer
    descriptor.
    """
    cores = kernel.grid
    arguments = _arguments(kernel, shape)
    steps: list[Step] = [
        WriteParameter(design.parameter(column, row), 0, shape.steps)
        for column in range(cores.columns)
        for row in range(cores.rows)
    ]
    c_elements = arguments[2].elements // cores.columns
    for column in range(cores.columns):
        pattern = linear(column * c_elements, c_elements)
        steps.append(Transfer(design.c_output(column), 2, descriptor=0, token=True, **pattern))
    steps += _input_steps(kernel, shape, target)
    steps += [Wait(design.c_output(column)) for column in range(cores.columns)]
    return Sequence("matmul", arguments, tuple(steps))


def argument_bytes(kernel: Kernel, shape: LaunchShape) -> tuple[int, int, int]:
    """Sizes of the views of A, B and C that a launch of this shape reads and writes."""
    a, b, c = (x.elements * x.dtype.itemsize for x in _arguments(kernel, shape))
    return a, b, c


def _arguments(kernel: Kernel, shape: LaunchShape) -> tuple[Argument, Argument, Argument]:
    tile, cores = kernel.tile, kernel.grid
    a_tiles = (cores.rows - 1) * shape.a_stride + shape.rows * shape.steps
    b_tiles = (cores.columns - 1) * shape.b_stride + shape.columns * shape.steps
    c_tiles = cores.rows * cores.columns * shape.rows * shape.columns
    return (
        Argument("a", a_tiles * tile.m * tile.k, kernel.a_dtype),
        Argument("b", b_tiles * tile.k * tile.n, kernel.b_dtype),
        Argument("c", c_tiles * tile.m * tile.n, kernel.c_dtype),
    )


@dataclass(frozen=True)
class _Task:
    """Some runs of a contiguous stretch of one operand's region, the same on every lane of it."""

    start: tuple[int, int]  # outer and inner loop index of its first use
    operand: int  # 0: A, 1: B
    first: int  # tiles from the start of the lane's run
    tiles: int
    runs: int


def _input_steps(kernel: Kernel, shape: LaunchShape, target: Target) -> Iterator[Step]:
    tile, cores = kernel.tile, kernel.grid
    fifos = (
        [design.a_input(row) for row in range(cores.rows)],
        [design.b_input(column) for column in range(cores.columns)],
    )
    strides = shape.a_stride, shape.b_stride
    elements = tile.m * tile.k, tile.k * tile.n
    depth = target.queue_depth
    tasks = sorted(_tasks_of(shape, target), key=lambda task: (task.start, task.operand))
    totals = [sum(task.operand == operand for task in tasks) for operand in (0, 1)]
    done = [0, 0]
    for task in tasks:
        number, operand = done[task.operand], task.operand
        done[operand] += 1
        if number >= depth:
            yield from (Wait(fifo) for fifo in fifos[operand])
        for lane, fifo in enumerate(fifos[operand]):
            first = (lane * strides[operand] + task.first) * elements[operand]
            yield Transfer(
                fifo=fifo,
                argument=operand,
                descriptor=1 + operand * depth + number % depth,
                token=number + depth < totals[operand],
                **linear(first, task.tiles * elements[operand], task.runs),
            )


def _tasks_of(shape: LaunchShape, target: Target) -> Iterator[_Task]:
    """The operand of the outer loop goes panel by panel, each repeated; the other as a whole,
    repeated."""
    outer, inner = (
        (shape.columns, shape.rows) if shape.columns_outer else (shape.rows, shape.columns)
    )
    by_panel, whole = (1, 0) if shape.columns_outer else (0, 1)
    for o in range(outer):
        for i, runs in _chunks(inner, target.max_iterations):
            yield _Task((o, i), by_panel, o * shape.steps, shape.steps, runs)
    for o, runs in _chunks(outer, target.max_iterations):
        yield _Task((o, 0), whole, 0, inner * shape.steps, runs)


def _chunks(total: int, most: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, most):
        yield start, min(most, total - start)


def input_tasks(shape: LaunchShape, target: Target = NPU1) -> tuple[int, int]:
    """Tasks of each of A's and of each of B's shim channels in a launch of this shape.

    >>> input_tasks(LaunchShape(6, 4, steps=8, columns_outer=True, a_stride=0, b_stride=0))
    (1, 4)
    """
    tasks = [task.operand for task in _tasks_of(shape, target)]
    return tasks.count(0), tasks.count(1)


def operand_tasks(outer: int, inner: int, target: Target = NPU1) -> tuple[int, int]:
    """What :func:`input_tasks` counts, from the blocks of both loops: tasks of each shim channel of
    the operand of the outer loop, and of the other's. Also of NumPy arrays of blocks.

    >>> operand_tasks(4, 6)
    (4, 1)
    """
    most = target.max_iterations
    return outer * -(-inner // most), -(-outer // most)


def columns_outside(cores: CoreGrid, rows: Any, columns: Any, target: Target = NPU1) -> Any:
    """Whether the loop over columns of blocks goes outside: the order that starts fewer tasks, on
    A's channels of all core rows and B's of all core columns. Also of NumPy arrays of blocks.

    15 x 15 blocks on 1 x 4 cores are 1 + 4 x 15 tasks with columns outside, 15 + 4 with rows.

    >>> columns_outside(CoreGrid(1, 4), 15, 15), columns_outside(CoreGrid(4, 4), 15, 15)
    (False, True)
    """
    b_panels, a_whole = operand_tasks(columns, rows, target)
    a_panels, b_whole = operand_tasks(rows, columns, target)
    by_columns = cores.rows * a_whole + cores.columns * b_panels
    return by_columns <= cores.rows * a_panels + cores.columns * b_whole


def stream_bytes(cores: CoreGrid, outer: int, inner: int, target: Target = NPU1) -> int:
    """An upper bound of the stream of a launch of so many blocks, or arrays of them."""
    parameters = cores.rows * cores.columns * 24
    lanes = max(cores.rows, cores.columns)
    tasks = sum(operand_tasks(outer, inner, target))
    return FIXED_BYTES + parameters + lanes * TASK_BYTES * (1 + tasks)
