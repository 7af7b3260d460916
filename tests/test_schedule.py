"""Launches: they cover a product once, their streams obey the rules, and C is where they say."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest
from comparing import assert_equal_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from launch_kernels import KERNELS, ONE, every_kernel, on_cores, transfers
from numpy.typing import NDArray

from npu_matmul.instructions import decode
from npu_matmul.kernel import Kernel
from npu_matmul.launch import argument_bytes
from npu_matmul.schedule import (
    LIMITS,
    Launch,
    LimitError,
    Limits,
    block_launches,
    block_steps,
    c_order,
    cover,
    cover_shapes,
    step_cycles,
)
from npu_matmul.stream_rules import check_stream
from npu_matmul.streams import launch_stream
from npu_matmul.target import NPU1
from npu_matmul.tiler import TileGrid


def blocks(kernel: Kernel, rows: int, columns: int, steps: int) -> TileGrid:
    """The problem of so many whole blocks of C and K steps."""
    return TileGrid(
        kernel, rows * kernel.block[0], steps * kernel.tile.k, columns * kernel.block[1]
    )


def limits(kernel: Kernel, stream_bytes: int = 1 << 30, calls: int = 1 << 30) -> Limits:
    return Limits(stream_bytes=stream_bytes, core_cycles=calls * step_cycles(kernel))


def cores(kernel: Kernel) -> int:
    return kernel.grid.rows * kernel.grid.columns


def smallest(kernel: Kernel) -> int:
    """Bytes of a stream that one block may need: header, parameters, three tasks per lane."""
    return 16 + 24 * cores(kernel) + 3 * 164 * max(kernel.grid.rows, kernel.grid.columns)


def c_regions(kernel: Kernel, launches: list[Launch]) -> list[tuple[int, int]]:
    """First tile and end of each launch's C."""
    return [(x.c_tile, x.c_tile + x.shape.rows * x.shape.columns * cores(kernel)) for x in launches]


def assert_covers_once(grid: TileGrid, launches: list[Launch]) -> None:
    """Each (block row, block column, step) in one launch; C regions follow each other."""
    times = np.zeros((grid.Mb, grid.Nb, grid.Kt), np.int64)
    for launch in launches:
        first_step = launch.a_tile - launch.row * grid.Kt
        assert launch.b_tile == launch.column * grid.Kt + first_step
        rows = slice(launch.row, launch.row + launch.shape.rows)
        columns = slice(launch.column, launch.column + launch.shape.columns)
        steps = slice(first_step, first_step + launch.shape.steps)
        piece = times[rows, columns, steps]
        assert piece.shape == (launch.shape.rows, launch.shape.columns, launch.shape.steps)
        piece += 1
    assert (times == 1).all()
    regions = c_regions(grid.kernel, launches)
    assert regions[0][0] == 0
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(regions))


@every_kernel
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    steps=st.integers(1, 20),
    calls=st.integers(1, 400),
    spare=st.integers(0, 6000),
)
def test_launches_cover_every_product_exactly_once(
    kernel: Kernel, rows: int, columns: int, steps: int, calls: int, spare: int
) -> None:
    grid = blocks(kernel, rows, columns, steps)
    launches = cover(grid, limits(kernel, smallest(kernel) + spare, calls))
    assert_covers_once(grid, launches)
    counted = Counter(launch.shape for launch in launches)
    assert counted == dict(cover_shapes(grid, limits(kernel, smallest(kernel) + spare, calls)))
    parts = -(-steps // calls)
    assert c_regions(kernel, launches)[-1][1] == parts * grid.Mt * grid.Nt
    for launch in launches:
        assert launch.shape.rows * launch.shape.columns * launch.shape.steps <= calls


def test_launches_that_nobody_could_list_are_counted() -> None:
    grid = blocks(ONE, 10**6, 10**6, 1)
    assert sum(shape.rows * shape.columns * n for shape, n in cover_shapes(grid)) == 10**12


@every_kernel
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), steps=st.integers(1, 9))
def test_one_launch_per_block_covers_a_product_row_by_row(
    kernel: Kernel, rows: int, columns: int, steps: int
) -> None:
    grid = blocks(kernel, rows, columns, steps)
    launches = block_launches(grid)
    assert_covers_once(grid, launches)
    assert [(x.row, x.column) for x in launches] == list(np.ndindex(rows, columns))
    parts = block_launches(grid, 4)
    assert_covers_once(grid, parts)
    places = [(x.a_tile - x.row * steps, x.row, x.column) for x in parts]
    assert places == sorted(places)
    assert {x.shape.steps for x in parts[: rows * columns]} == {min(4, steps)}


@every_kernel
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 150),
    columns=st.integers(1, 150),
    steps=st.integers(1, 5),
    calls=st.integers(1, 300),
    spare=st.integers(0, 9000),
)
def test_every_stream_obeys_the_rules_the_limit_and_its_views(
    kernel: Kernel, rows: int, columns: int, steps: int, calls: int, spare: int
) -> None:
    grid, stream_bytes = blocks(kernel, rows, columns, steps), smallest(kernel) + spare
    launches = cover(grid, limits(kernel, stream_bytes, calls))
    for shape in {launch.shape for launch in launches}:
        stream = launch_stream(kernel, shape)
        assert len(stream) <= stream_bytes
        decoded = decode(stream)
        check_stream(decoded)
        assert tuple(decoded.argument_bytes()[i] for i in range(3)) == argument_bytes(kernel, shape)
    for launch in launches:
        a, b, c = argument_bytes(kernel, launch.shape)
        assert launch.a_tile * kernel.a_tile_bytes + a <= grid.a_bytes
        assert launch.b_tile * kernel.b_tile_bytes + b <= grid.b_bytes
        assert c == launch.shape.rows * launch.shape.columns * cores(kernel) * kernel.c_tile_bytes


@every_kernel
def test_without_need_there_is_one_launch(kernel: Kernel) -> None:
    for rows, columns, steps in [(1, 1, 1), (1, 70, 2), (70, 1, 2), (33, 65, 3), (130, 67, 1)]:
        (launch,) = cover(blocks(kernel, rows, columns, steps))
        assert (launch.shape.rows, launch.shape.columns, launch.shape.steps) == (
            rows,
            columns,
            steps,
        )
        assert (launch.row, launch.column, launch.a_tile, launch.b_tile, launch.c_tile) == (0,) * 5


@pytest.mark.parametrize(
    ("most_blocks", "shapes"),
    [(25, [(2, 10)] * 3), (13, [(1, 10)] * 6), (10, [(1, 10)] * 6), (5, [(1, 5)] * 12)],
)
def test_a_launch_is_as_large_as_the_calls_allow(
    most_blocks: int, shapes: list[tuple[int, int]]
) -> None:
    small = limits(ONE, calls=2 * most_blocks)
    launches = cover(blocks(ONE, 6, 10, 2), small)
    assert [(x.shape.rows, x.shape.columns) for x in launches] == shapes
    turned = cover(blocks(ONE, 10, 6, 2), small)
    assert [(x.shape.columns, x.shape.rows) for x in turned] == shapes


@pytest.mark.parametrize("kernel", [ONE, KERNELS["4x4 cores"]], ids=["1x1 core", "4x4 cores"])
@pytest.mark.parametrize("stream_bytes", [3500, 4000, 6000])
def test_a_launch_is_as_large_as_its_stream_may_be(kernel: Kernel, stream_bytes: int) -> None:
    """The bound counts a token and a wait for every task; the last four of a channel have none."""
    launches = cover(blocks(kernel, 50, 40, 2), limits(kernel, stream_bytes=stream_bytes))
    assert len(launches) > 1
    shape = launches[0].shape
    assert (shape.rows, shape.columns_outer) == (50, True)
    larger = launch_stream(kernel, dataclasses.replace(shape, columns=shape.columns + 1))
    unused = 2 * kernel.grid.rows * 4 * (28 + 16)
    assert len(larger) + unused > stream_bytes


@every_kernel
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 200), columns=st.integers(1, 200))
def test_the_loop_order_is_the_one_with_fewer_tasks(
    kernel: Kernel, rows: int, columns: int
) -> None:
    """Of all channels: a grid with more columns than rows starts B's more often."""
    (launch,) = cover(blocks(kernel, rows, columns, 1), limits(kernel))
    shape = launch.shape
    other = dataclasses.replace(shape, columns_outer=not shape.columns_outer)
    taken, left = (
        sum(t.argument < 2 for t in transfers(kernel, either)) for either in (shape, other)
    )
    assert taken <= left


def order_by_nesting(grid: TileGrid, launches: list[Launch]) -> NDArray[np.int64]:
    """[launch][core column][block in the order of the launch][core row]."""
    rows, columns = grid.kernel.grid.rows, grid.kernel.grid.columns
    order = np.full((grid.Mt, grid.Nt), -1)
    number = 0
    for launch in launches:
        shape = launch.shape
        places = [
            (launch.row + i, launch.column + j) for i, j in np.ndindex(shape.rows, shape.columns)
        ]
        if shape.columns_outer:
            places.sort(key=lambda place: place[1])
        for column in range(columns):
            for i, j in places:
                for row in range(rows):
                    order[i * rows + row, j * columns + column] = number
                    number += 1
    return order


@every_kernel
@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 12), columns=st.integers(1, 12), calls=st.integers(2, 300))
def test_c_comes_back_in_the_order_of_launch_column_block_row(
    kernel: Kernel, rows: int, columns: int, calls: int
) -> None:
    grid = blocks(kernel, rows, columns, 2)
    launches = cover(grid, limits(kernel, calls=calls))
    assert_equal_bits(c_order(grid, launches), order_by_nesting(grid, launches))
    assert_equal_bits(c_order(grid, block_launches(grid, 1)), c_order(grid, block_launches(grid)))
    singles = block_launches(grid)
    assert_equal_bits(c_order(grid, singles), order_by_nesting(grid, singles))


def test_the_order_of_c_is_the_table_in_its_docstring() -> None:
    grid = blocks(on_cores(2, 2), 2, 2, 1)
    launches = cover(grid)
    assert [x.shape.columns_outer for x in launches] == [True]
    table = [[0, 8, 4, 12], [1, 9, 5, 13], [2, 10, 6, 14], [3, 11, 7, 15]]
    assert c_order(grid, launches).tolist() == table
    for row, numbers in enumerate(table):
        line = f"i = {row}" + "".join(f"{number:5}" for number in numbers)
        assert " ".join(line.split()) in " ".join((c_order.__doc__ or "").split())


def test_a_k_too_long_for_one_launch_comes_in_parts() -> None:
    grid = blocks(ONE, 2, 3, 11)
    launches = cover(grid, limits(ONE, calls=4))
    assert [x.shape.steps for x in launches] == [4] * 6 + [4] * 6 + [3] * 6
    assert [x.c_tile for x in launches] == list(range(18))


@every_kernel
def test_not_even_one_block_within_the_stream_limit_is_an_error(kernel: Kernel) -> None:
    grid = blocks(kernel, 3, 3, 3)
    too_small = smallest(kernel) - 1
    with pytest.raises(LimitError, match=rf"'{kernel.name}'.* the limit is {too_small} B"):
        cover(grid, limits(kernel, stream_bytes=too_small))


def test_a_c_beyond_4_gib_is_cut_where_its_offsets_end() -> None:
    """A stream says where a transfer begins in C by 32 bits."""
    kernel = KERNELS["4x4 cores"]
    block_bytes = cores(kernel) * kernel.c_tile_bytes
    columns = 700  # of blocks; the rows are what goes beyond
    grid = blocks(kernel, (1 << 32) // (columns * block_bytes) + 1, columns, 1)
    launches = cover(grid, limits(kernel))
    assert len(launches) == 2
    assert sum(la.shape.rows * la.shape.columns for la in launches) == grid.Mb * grid.Nb
    assert max(la.shape.rows * la.shape.columns * block_bytes for la in launches) <= 1 << 32
    assert max(t.offset * 4 for la in launches for t in transfers(kernel, la.shape)) < 1 << 32


def test_an_operand_is_refused_where_its_parts_lie_beyond_4_gib() -> None:
    """A launch begins at the first core row's part of A and reaches into the last one's."""
    kernel = KERNELS["4x4 cores"]
    steps = 1 << 20
    most = (1 << 32) // (3 * steps * kernel.a_tile_bytes)  # blocks of rows between two parts
    within = blocks(kernel, most, 1, steps)
    offsets = [t.offset for la in cover(within)[:1] for t in transfers(kernel, la.shape)]
    assert (1 << 32) - 4 * steps * kernel.a_tile_bytes < max(offsets) < 1 << 32
    beyond = blocks(kernel, most + 1, 1, steps)
    turned = blocks(kernel, 1, (1 << 32) // (3 * steps * kernel.b_tile_bytes) + 1, steps)
    for grid, words in ((beyond, "A's parts for its 4 rows of cores"), (turned, "B's .* columns")):
        for plan in (cover, cover_shapes, block_steps):
            with pytest.raises(LimitError, match=rf"{words}.*; multiply fewer (rows|columns) of"):
                plan(grid)
        assert len(block_launches(grid, steps)) == grid.Mb * grid.Nb  # what is copied tile by tile


def test_at_least_one_step_is_always_allowed() -> None:
    assert Limits(core_cycles=1).steps(ONE) == 1
    assert limits(ONE, calls=7).steps(ONE) == 7


@every_kernel
def test_the_default_limits_end_a_launch_well_before_the_watchdog(kernel: Kernel) -> None:
    slowest_clock_hz = 0.8e9
    assert LIMITS.core_cycles / slowest_clock_hz <= NPU1.watchdog_s / 2
    assert LIMITS.steps(kernel) * step_cycles(kernel) <= LIMITS.core_cycles
    large = blocks(kernel, 1, 1, LIMITS.steps(kernel) + 1)
    assert len(cover(large)) == 2
    assert len(cover(blocks(kernel, 1, 1, LIMITS.steps(kernel)))) == 1
