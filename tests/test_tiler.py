"""Packing: every element at the place that the layout's formula and the order tables say."""

from __future__ import annotations

import dataclasses
import doctest
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from comparing import assert_equal_bits, random_int8
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS, WRITABLE
from numpy.typing import NDArray

from npu_matmul import tiler
from npu_matmul.host import convert, threads
from npu_matmul.kernel import CoreGrid, Kernel, Mmul, TileShape, Types, load_kernel
from npu_matmul.precision import PRECISIONS, Operand, finish, scales_of
from npu_matmul.tiler import TileGrid, pack_a, pack_b, unpack_a, unpack_b, unpack_c

BASE = load_kernel("matmul_16x16")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
UNWRITTEN = 0x55

Matrix = NDArray[Any]


def variant(
    tile: tuple[int, int, int],
    mmul: tuple[int, int, int],
    grid: tuple[int, int],
    types: tuple[str, str, str] = ("int8", "int8", "int32"),
) -> Kernel:
    return dataclasses.replace(
        BASE, tile=TileShape(*tile), mmul=Mmul(*mmul), grid=CoreGrid(*grid), types=Types(*types)
    )


KERNELS = {
    "16x16": BASE,
    "4x4 cores": variant((4, 8, 8), (4, 8, 8), (4, 4)),
    "2x3 cores, all sizes different": variant((8, 24, 16), (4, 8, 8), (2, 3)),
    "words of 2 B": variant((6, 4, 12), (2, 2, 6), (1, 2)),
    "bf16": variant((8, 16, 12), (4, 8, 4), (2, 2), ("bfloat16", "bfloat16", "float32")),
}
SIZES = st.integers(1, 70)


def values(kernel_dtype: np.dtype[Any], seed: int, *shape: int) -> Matrix:
    """Random bits; for floats finite values, so that equal bits mean equal elements."""
    if kernel_dtype == np.int8:
        return random_int8(seed, *shape)
    generator = np.random.default_rng(seed)
    return generator.integers(-(2**15), 2**15, shape).astype(kernel_dtype)


def places(
    order: NDArray[np.int64],
    tile: tuple[int, int],
    block: tuple[int, int],
    shape: tuple[int, int],
) -> NDArray[np.int64]:
    """Where each element of a matrix must be stored, by the formula of the kernel's layout."""
    y, x = np.arange(shape[0])[:, None], np.arange(shape[1])
    (rows, columns), (r, s) = tile, block
    i, j = y % rows, x % columns
    within = ((i // r) * (columns // s) + j // s) * r * s + (i % r) * s + j % s
    found: NDArray[np.int64] = order[y // rows, x // columns] * rows * columns + within
    return found


def places_a(grid: TileGrid) -> NDArray[np.int64]:
    tile, block = grid.kernel.tile, grid.kernel.mmul
    return places(grid.a_order, (tile.m, tile.k), (block.r, block.s), (grid.M, grid.K))


def places_b(grid: TileGrid) -> NDArray[np.int64]:
    tile, block = grid.kernel.tile, grid.kernel.mmul
    return places(grid.b_order, (tile.k, tile.n), (block.s, block.t), (grid.K, grid.N))


def packed(pack: Callable[..., None], matrix: Matrix, grid: TileGrid, nbytes: int) -> Matrix:
    out = np.full(nbytes, UNWRITTEN, np.uint8).view(matrix.dtype.newbyteorder("="))
    pack(matrix, grid, out)
    return out


def spread(matrix: Matrix, where: NDArray[np.int64], nbytes: int) -> Matrix:
    """The packed form by definition: zeros, and each element at its place."""
    native = matrix.dtype.newbyteorder("=")
    out = np.zeros(nbytes // native.itemsize, native)
    out[where] = matrix
    return out


def order_by_nesting(tiles: int, steps: int, lanes: int) -> NDArray[np.int64]:
    """[lane][block][step], one tile after the other."""
    order = np.full((tiles, steps), -1)
    number = 0
    for lane in range(lanes):
        for block in range(tiles // lanes):
            for step in range(steps):
                order[block * lanes + lane, step] = number
                number += 1
    return order


def table_in(text: str | None) -> list[list[int]]:
    """The rows of an index table in a docstring: ``i = 0   0  1  2``."""
    rows = re.findall(r"^ *\w+ = \d+ ((?: +\d+)+)$", text or "", re.MULTILINE)
    return [[int(number) for number in row.split()] for row in rows]


def test_the_docstring_examples_hold() -> None:
    assert doctest.testmod(tiler).failed == 0


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@settings(max_examples=40, deadline=None)
@given(
    m=SIZES,
    k=SIZES,
    n=SIZES,
    seed=st.integers(0, 2**32 - 1),
    lie=st.sampled_from(["rows", "columns"]),
)
def test_operands_are_packed_where_the_layout_says_and_unpack_to_themselves(
    kernel: Kernel, m: int, k: int, n: int, seed: int, lie: str
) -> None:
    grid = TileGrid(kernel, m, k, n)
    a = LAYOUTS[lie](values(kernel.a_dtype, seed, m, k))
    b = LAYOUTS[lie](values(kernel.b_dtype, seed + 1, k, n))
    packed_a = packed(pack_a, a, grid, grid.a_bytes)
    packed_b = packed(pack_b, b, grid, grid.b_bytes)
    assert_equal_bits(packed_a, spread(a, places_a(grid), grid.a_bytes))
    assert_equal_bits(packed_b, spread(b, places_b(grid), grid.b_bytes))
    assert_equal_bits(unpack_a(packed_a, grid), a)
    assert_equal_bits(unpack_b(packed_b, grid), b)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@settings(max_examples=20, deadline=None)
@given(m=SIZES, n=SIZES, seed=st.integers(0, 2**32 - 1))
def test_c_is_unpacked_from_any_order_of_its_tiles(
    kernel: Kernel, m: int, n: int, seed: int
) -> None:
    grid = TileGrid(kernel, m, 1, n)
    tile, block = kernel.tile, kernel.mmul
    tiles = grid.Mt * grid.Nt
    order = np.random.default_rng(seed).permutation(tiles).reshape(grid.Mt, grid.Nt)
    stored = values(kernel.c_dtype, seed, tiles * tile.m * tile.n)
    where = places(order, (tile.m, tile.n), (block.r, block.t), (m, n))
    got = unpack_c(stored, order, grid)
    assert_equal_bits(got, stored[where])
    assert got.flags.c_contiguous


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 33, 65), (64, 64, 64), (70, 5, 128)])
def test_each_shim_reads_its_tiles_in_one_run(kernel: Kernel, shape: tuple[int, int, int]) -> None:
    grid = TileGrid(kernel, *shape)
    assert_equal_bits(grid.a_order, order_by_nesting(grid.Mt, grid.Kt, kernel.grid.rows))
    assert_equal_bits(grid.b_order, order_by_nesting(grid.Nt, grid.Kt, kernel.grid.columns).T)


def test_the_order_of_a_is_the_table_in_its_docstring() -> None:
    grid = TileGrid(variant((4, 8, 8), (4, 8, 8), (2, 2)), 16, 24, 16)
    table = [[0, 1, 2], [6, 7, 8], [3, 4, 5], [9, 10, 11]]
    assert grid.a_order.tolist() == table
    assert table_in(vars(TileGrid)["a_order"].__doc__) == table


def test_the_order_of_b_is_the_table_in_its_docstring() -> None:
    grid = TileGrid(variant((4, 8, 8), (4, 8, 8), (2, 2)), 8, 24, 32)
    table = [[0, 6, 3, 9], [1, 7, 4, 10], [2, 8, 5, 11]]
    assert grid.b_order.tolist() == table
    assert table_in(vars(TileGrid)["b_order"].__doc__) == table


def test_a_tile_of_int8_lies_in_memory_as_the_layout_table_says() -> None:
    numbered = np.arange(256, dtype=np.uint8).view(np.int8).reshape(16, 16)
    grid = TileGrid(BASE, 16, 16, 16)
    a = packed(pack_a, numbered, grid, 256).view(np.uint8)
    assert a[:8].tolist() == list(range(8))  # block (0, 0): row 0, columns 0 to 7
    assert a[8:16].tolist() == list(range(16, 24))  # its row 1
    assert a[32:40].tolist() == list(range(8, 16))  # block (0, 1): row 0, columns 8 to 15
    assert a[64:72].tolist() == list(range(64, 72))  # block (1, 0): row 4
    b = packed(pack_b, numbered, grid, 256).view(np.uint8)
    assert b[64:72].tolist() == list(range(8, 16))  # block (0, 1), after 8 rows of block (0, 0)
    assert b[128:136].tolist() == list(range(128, 136))  # block (1, 0): row 8


@pytest.mark.parametrize(
    ("kernel", "shape", "tiles", "nbytes", "used"),
    [
        ("16x16", (1, 1, 1), (1, 1, 1), (256, 256, 1024), 1 / 4096),
        ("16x16", (17, 16, 40), (2, 1, 3), (512, 768, 6144), 17 * 40 / (32 * 48)),
        ("4x4 cores", (17, 9, 33), (8, 2, 8), (512, 1024, 8192), 17 * 9 * 33 / (32 * 16 * 64)),
        ("bf16", (16, 17, 25), (2, 2, 4), (1024, 3072, 3072), 17 * 25 / (32 * 48)),
    ],
)
def test_the_grid_counts_tiles_bytes_and_padding(
    kernel: str,
    shape: tuple[int, int, int],
    tiles: tuple[int, int, int],
    nbytes: tuple[int, int, int],
    used: float,
) -> None:
    grid = TileGrid(KERNELS[kernel], *shape)
    assert (grid.Mt, grid.Kt, grid.Nt) == tiles
    assert (grid.a_bytes, grid.b_bytes, grid.c_bytes) == nbytes
    assert grid.padding == pytest.approx(1 - used)
    assert TileGrid(KERNELS[kernel], *shape, terms=3).padding == pytest.approx(1 - used)


SOURCES: dict[str, Callable[[Matrix], Matrix]] = {
    **LAYOUTS,
    "one row repeated": lambda matrix: np.broadcast_to(matrix[:1], matrix.shape),
}


@pytest.mark.parametrize("shape", [(16, 32), (15, 30)])
@pytest.mark.parametrize("types", ["int8", "int32", "float32"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_source_of_any_memory_layout_is_packed_alike(
    source: str, types: str, shape: tuple[int, int]
) -> None:
    kernel = variant((8, 16, 8), (4, 8, 8), (2, 1), (types, types, types))
    matrix = SOURCES[source](values(kernel.a_dtype, 3, *shape))
    before = matrix.tobytes()
    grid_a = TileGrid(kernel, *shape, 1)
    got_a = packed(pack_a, matrix, grid_a, grid_a.a_bytes)
    assert_equal_bits(got_a, spread(matrix, places_a(grid_a), grid_a.a_bytes))
    grid_b = TileGrid(kernel, 1, *shape)
    got_b = packed(pack_b, matrix, grid_b, grid_b.b_bytes)
    assert_equal_bits(got_b, spread(matrix, places_b(grid_b), grid_b.b_bytes))
    assert matrix.tobytes() == before


def test_random_bfloat16_is_packed_without_rounding() -> None:
    kernel = KERNELS["bf16"]
    bits = np.random.default_rng(8).integers(0, 1 << 16, (37, 41)).astype(np.uint16)
    matrix = bits.view(BFLOAT16)
    grid = TileGrid(kernel, 37, 41, 1)
    restored = unpack_a(packed(pack_a, matrix, grid, grid.a_bytes), grid)
    assert_equal_bits(restored.view(np.uint16), bits)


FLOAT_KERNELS = {
    "int8": variant((16, 16, 24), (4, 8, 8), (2, 3)),
    "bf16": KERNELS["bf16"],
    "bf16x3": KERNELS["bf16"],
}
FLOATS = [np.float16, np.float32, np.float64, BFLOAT16, np.int8]


def floats(kind: Any, seed: int, *shape: int) -> Matrix:
    """Normal numbers of many sizes; int8 where that is asked for."""
    random = np.random.default_rng(seed)
    x: Matrix = random.standard_normal(shape) * random.choice([0.01, 1, 30], shape)
    return x.astype(kind)


def packed_operands(operands: tuple[Operand, Operand], grid: TileGrid) -> tuple[Matrix, Matrix]:
    """Both packed into memory that held something else."""
    packed = []
    for pack, operand, nbytes in zip(
        (pack_a, pack_b), operands, (grid.a_bytes, grid.b_bytes), strict=True
    ):
        out = np.full(nbytes, UNWRITTEN, np.uint8).view(grid.kernel.a_dtype)
        pack(operand, grid, out)
        packed.append(out)
    return packed[0], packed[1]


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_floats_packed_at_once_are_what_is_packed_after_converting(
    precision: str, kind: Any
) -> None:
    how, kernel = PRECISIONS[precision], FLOAT_KERNELS[precision]
    for m, k, n in ((1, 1, 1), (17, 33, 25), (64, 64, 96), (40, 130, 7)):
        operands = how.a(floats(kind, 1, m, k)), how.b(floats(kind, 2, k, n))
        grid = TileGrid(kernel, m, k, n, how.terms)
        a, b = packed_operands(operands, grid)
        for term, part in enumerate(np.split(operands[0].matrix, how.terms, 1)):
            one = TileGrid(kernel, m, k, n)
            order = np.split(grid.a_order, how.terms, 1)[term]
            tile, block = kernel.tile, kernel.mmul
            at = places(order, (tile.m, tile.k), (block.r, block.s), (m, k))
            assert_equal_bits(a[at], part)
            assert one.Kt * how.terms == grid.Kt
        assert np.count_nonzero(a.view(np.uint8)) == np.count_nonzero(
            np.ascontiguousarray(operands[0].matrix).view(np.uint8)
        )
        assert_equal_bits(unpack_a(a, grid), np.ascontiguousarray(operands[0].matrix))
        assert_equal_bits(unpack_b(b, grid), np.ascontiguousarray(operands[1].matrix))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_floats_of_any_layout_are_packed_alike(layout: str, precision: str) -> None:
    how, kernel = PRECISIONS[precision], FLOAT_KERNELS[precision]
    for m, k, n in ((19, 37, 30), (32, 64, 48)):
        a, b = floats(np.float32, 3, m, k), floats(np.float32, 4, k, n)
        grid = TileGrid(kernel, m, k, n, how.terms)
        want = packed_operands((how.a(a), how.b(b)), grid)
        got = packed_operands((how.a(LAYOUTS[layout](a)), how.b(LAYOUTS[layout](b))), grid)
        for one, other in zip(got, want, strict=True):
            assert_equal_bits(one, other)


def test_a_transpose_of_whole_tiles_is_packed_from_where_it_lies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("copied before it was packed")

    monkeypatch.setattr(convert, "_buffered", refuse)
    kernel, x = FLOAT_KERNELS["int8"], floats(np.float32, 6, 48, 64)
    grid = TileGrid(kernel, 64, 48, 48)
    packed_operands((PRECISIONS["int8"].a(x.T), PRECISIONS["int8"].b(x[:, :48].T)), grid)
    every_second = x.astype(np.int8)[:, ::2]
    with pytest.raises(AssertionError, match="copied"):
        packed(pack_a, every_second, TileGrid(kernel, 48, 32, 1), grid.a_bytes)


@pytest.mark.parametrize("layout", WRITABLE)
@pytest.mark.parametrize("kind", [np.int8, np.int32, *FLOATS[:4]])
def test_c_is_finished_as_it_is_unpacked(kind: Any, layout: str) -> None:
    """Into any layout, and nothing beside it is touched."""
    if kind == BFLOAT16 and layout == "other byte order":
        pytest.skip("ml_dtypes has no bfloat16 of another byte order")
    kernel = FLOAT_KERNELS["int8"]
    tile, block = kernel.tile, kernel.mmul
    for m, n in ((1, 1), (32, 72), (37, 31), (50, 100)):
        grid = TileGrid(kernel, m, 1, n)
        order = np.random.default_rng(m).permutation(grid.Mt * grid.Nt).reshape(grid.Mt, grid.Nt)
        stored = np.random.default_rng(n).integers(-(2**31), 2**31, grid.c_bytes // 4)
        stored = (stored >> 8 * (np.arange(stored.size) % 4)).astype(np.int32)
        sums = stored[places(order, (tile.m, tile.n), (block.r, block.t), (m, n))]
        scales = None
        if kind not in (np.int8, np.int32):
            wide = np.float64 if kind == np.float64 else np.float32
            a, b = floats(wide, 5, m, 1), floats(wide, 6, 1, n)
            scales = scales_of(a, b)
            with np.errstate(over="ignore"):
                want = (sums.astype(wide) * a * b).astype(kind)
        else:
            want = np.clip(sums, -128, 127).astype(kind) if kind == np.int8 else sums
        out = LAYOUTS[layout](np.full((m, n), 99, kind))
        assert unpack_c(stored, order, grid, out, scales) is out
        assert_equal_bits(out.astype(want.dtype), want)
        flat = np.empty((m, n), kind)
        finish(sums, flat, scales)
        assert_equal_bits(flat, want)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_threads_change_no_byte(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    how, kernel = PRECISIONS[precision], FLOAT_KERNELS[precision]
    m, k, n = 5 * kernel.tile.m + 3, 2 * kernel.tile.k + 5, 3 * kernel.tile.n
    operands = how.a(floats(np.float32, 7, m, k)), how.b(floats(np.float32, 8, k, n))
    grid = TileGrid(kernel, m, k, n, how.terms)
    order = np.random.default_rng(9).permutation(grid.Mt * grid.Nt).reshape(grid.Mt, grid.Nt)
    stored = values(kernel.c_dtype, 10, grid.c_bytes // 4)
    scales = scales_of(floats(np.float32, 11, m, 1), floats(np.float32, 12, 1, n))

    def everything() -> list[Matrix]:
        return [
            *packed_operands(operands, grid),
            unpack_c(stored, order, grid, np.empty((m, n), np.float32), scales),
        ]

    want = everything()
    monkeypatch.setattr(threads, "WORTH_S", 1e-12)
    monkeypatch.setenv(threads.THREADS_VARIABLE, "3")
    parts = []
    work = threads._run
    monkeypatch.setattr(threads, "_run", lambda *given: parts.append(given[2]) or work(*given))
    for got, expected in zip(everything(), want, strict=True):
        assert_equal_bits(got, expected)
    assert len(parts) >= 3
