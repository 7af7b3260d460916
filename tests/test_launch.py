"""The sequence of one launch: its tasks bring each core what it needs, when it needs it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launch_kernels import every_kernel, transfers

from npu_matmul.kernel import Kernel
from npu_matmul.launch import LaunchShape, input_tasks, launch_sequence, operand_tasks
from npu_matmul.sequence import Wait, WriteParameter
from npu_matmul.target import NPU1


@given(rows=st.integers(1, 300), columns=st.integers(1, 300), columns_outer=st.booleans())
def test_tasks_follow_from_the_blocks_of_both_loops(
    rows: int, columns: int, columns_outer: bool
) -> None:
    shape = LaunchShape(rows, columns, 3, columns_outer, a_stride=0, b_stride=0)
    a, b = input_tasks(shape)
    if columns_outer:
        assert operand_tasks(columns, rows) == (b, a)
    else:
        assert operand_tasks(rows, columns) == (a, b)


def expected_tiles(kernel: Kernel, shape: LaunchShape, operand: int, lane: int) -> list[int]:
    """The tiles of an operand in the order in which the cores of a lane need them."""
    first = (shape.a_stride, shape.b_stride)[operand] * lane
    if shape.columns_outer:
        order = [(i, j) for j in range(shape.columns) for i in range(shape.rows)]
    else:
        order = [(i, j) for i in range(shape.rows) for j in range(shape.columns)]
    return [
        first + block[operand] * shape.steps + kk for block in order for kk in range(shape.steps)
    ]


def streamed_tiles(kernel: Kernel, shape: LaunchShape, operand: int, lane: int) -> list[int]:
    """The tiles of an operand in the order in which the transfers of a lane read them."""
    tile = kernel.tile
    elements = (tile.m * tile.k, tile.k * tile.n)[operand]
    found: list[int] = []
    for transfer in transfers(kernel, shape):
        if transfer.fifo == f"{'AB'[operand]}_L3L2_{lane}":
            runs, one, other, length = transfer.sizes
            assert (transfer.argument, one, other) == (operand, 1, 1)
            assert transfer.strides == (0, 0, 0, 1)
            assert runs <= NPU1.max_iterations
            assert transfer.offset % elements == length % elements == 0
            first = transfer.offset // elements
            found += [*range(first, first + length // elements)] * runs
    return found


SHAPES = [
    (rows, columns, steps, outer)
    for rows, columns, steps in [
        (1, 1, 1),
        (2, 3, 4),
        (65, 2, 2),
        (3, 129, 1),
        (64, 64, 1),
        (9, 9, 3),
    ]
    for outer in (True, False)
]


@every_kernel
@pytest.mark.parametrize(("rows", "columns", "steps", "outer"), SHAPES)
def test_transfers_bring_each_core_its_tiles_in_the_order_of_use(
    kernel: Kernel, rows: int, columns: int, steps: int, outer: bool
) -> None:
    shape = LaunchShape(rows, columns, steps, outer, 1000, 3000)
    for lane in range(kernel.grid.rows):
        assert streamed_tiles(kernel, shape, 0, lane) == expected_tiles(kernel, shape, 0, lane)
    for lane in range(kernel.grid.columns):
        assert streamed_tiles(kernel, shape, 1, lane) == expected_tiles(kernel, shape, 1, lane)


@every_kernel
def test_each_core_column_writes_its_c_in_one_run_and_is_waited_for(kernel: Kernel) -> None:
    shape = LaunchShape(3, 70, 2, True, 6, 140)
    sequence = launch_sequence(kernel, shape)
    elements = 3 * 70 * kernel.grid.rows * kernel.tile.m * kernel.tile.n
    outputs = [t for t in transfers(kernel, shape) if t.argument == 2]
    fifos = [f"C_L2L3_{column}" for column in range(kernel.grid.columns)]
    assert [t.fifo for t in outputs] == fifos
    assert [t.offset for t in outputs] == [c * elements for c in range(kernel.grid.columns)]
    assert {t.sizes for t in outputs} == {(1, 1, 1, elements)}
    waits = Counter(step.fifo for step in sequence.steps if isinstance(step, Wait))
    assert all(waits[fifo] == 1 for fifo in fifos)
    assert [s.fifo for s in sequence.steps[-len(fifos) :] if isinstance(s, Wait)] == fifos


@every_kernel
def test_every_core_is_told_the_number_of_steps_first(kernel: Kernel) -> None:
    steps = launch_sequence(kernel, LaunchShape(2, 2, 7, False, 14, 14)).steps
    written = [s for s in steps if isinstance(s, WriteParameter)]
    assert list(steps[: len(written)]) == written
    assert {s.parameter for s in written} == {
        f"rtp_{c}_{r}" for c in range(kernel.grid.columns) for r in range(kernel.grid.rows)
    }
    assert {(s.index, s.value) for s in written} == {(0, 7)}
