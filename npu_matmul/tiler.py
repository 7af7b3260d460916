"""Packs matrices into the order in which the NPU streams them, and unpacks C.

The kernel is the master, the packing is the slave: tile and block shapes come from the manifest. A
matrix is stored as tiles; a tile as row-major blocks of the ``aie::mmul`` intrinsic. Where each
tile goes is an index table made by :class:`TileGrid`; moving the elements is one compiled loop
over blocks, which converts them on the way: floats are packed straight as the int8 or bf16 of a
kernel, and accumulators are unpacked straight as results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.host.cached import cached_property
from npu_matmul.host.compiled import DONE, Task
from npu_matmul.host.convert import in_columns, pieces, stored_as, type_name, written_as
from npu_matmul.host.elements import element_bytes
from npu_matmul.host.pointers import LINE_BYTES, address, pointer
from npu_matmul.host.threads import in_parts
from npu_matmul.host.vectors import convert_block
from npu_matmul.kernel import Kernel
from npu_matmul.precision import Operand

# Bytes read and written by one core. 46 to 55 G were measured; a part that is handed over has to
# come from another core's cache, which pays from about 6 MB on.
MOVED_PER_S = 65e9


@dataclass(frozen=True)
class TileGrid:
    """The problem M, K, N cut into a kernel's tiles, padded to whole blocks of the core grid.

    ``Mt``, ``Kt``, ``Nt`` count tiles with padding; ``Mb`` and ``Nb`` blocks of C, one tile per
    core. Operands of several ``terms`` have K that many times, each padded to whole tiles.

    >>> from npu_matmul.kernel import load_kernel
    >>> grid = TileGrid(load_kernel("matmul_16x16"), 17, 16, 40)
    >>> grid.Mt, grid.Kt, grid.Nt, round(grid.padding, 3)
    (2, 1, 3, 0.557)
    """

    kernel: Kernel
    M: int
    K: int
    N: int
    terms: int = 1

    @cached_property
    def Mb(self) -> int:
        return -(-self.M // self.kernel.block[0])

    @cached_property
    def Nb(self) -> int:
        return -(-self.N // self.kernel.block[1])

    @cached_property
    def Mt(self) -> int:
        return self.Mb * self.kernel.grid.rows

    @cached_property
    def Nt(self) -> int:
        return self.Nb * self.kernel.grid.columns

    @cached_property
    def Kt(self) -> int:
        return self.terms * -(-self.K // self.kernel.tile.k)

    @property
    def padding(self) -> float:
        """The fraction of multiplications that are wasted on padding."""
        tile = self.kernel.tile
        return 1 - self.M * self.terms * self.K * self.N / (
            self.Mt * tile.m * self.Kt * tile.k * self.Nt * tile.n
        )

    @property
    def a_bytes(self) -> int:
        return self.Mt * self.Kt * self.kernel.a_tile_bytes

    @property
    def b_bytes(self) -> int:
        return self.Kt * self.Nt * self.kernel.b_tile_bytes

    @property
    def c_bytes(self) -> int:
        return self.Mt * self.Nt * self.kernel.c_tile_bytes

    @cached_property
    def a_order(self) -> NDArray[np.int64]:
        """Where tile (i, kk) of A is stored: [core row][block row][kk], so each shim reads one run.

        For 2 core rows, 4 x 3 tiles (core row = i % 2, block row = i // 2)::

            kk      0   1   2
            i = 0   0   1   2
            i = 1   6   7   8
            i = 2   3   4   5
            i = 3   9  10  11
        """
        return _panels(self.Mt, self.Kt, self.kernel.grid.rows)

    @cached_property
    def b_order(self) -> NDArray[np.int64]:
        """Where tile (kk, j) of B is stored: [core column][block column][kk], the transpose of A's
        rule.

        For 2 core columns, 3 x 4 tiles::

            j        0   1   2   3
            kk = 0   0   6   3   9
            kk = 1   1   7   4  10
            kk = 2   2   8   5  11
        """
        return np.ascontiguousarray(_panels(self.Nt, self.Kt, self.kernel.grid.columns).T)


def _panels(tiles: int, steps: int, lanes: int) -> NDArray[np.int64]:
    tile = np.arange(tiles, dtype=np.int64)
    panel = tile % lanes * (tiles // lanes) + tile // lanes
    return panel[:, None] * steps + np.arange(steps, dtype=np.int64)


def pack_a(a: NDArray[Any] | Operand, grid: TileGrid, out: NDArray[Any]) -> None:
    """Pack A (M, K) into the flat array ``out`` of ``grid.a_bytes``, padding with zeros.

    A matrix must have the kernel's element type; an :class:`Operand` is converted to it.
    """
    tile, block = grid.kernel.tile, grid.kernel.mmul
    _pack(a, grid.a_order, 1, out, _Layout((tile.m, tile.k), (block.r, block.s)))


def pack_b(b: NDArray[Any] | Operand, grid: TileGrid, out: NDArray[Any]) -> None:
    """Pack B (K, N) into the flat array ``out`` of ``grid.b_bytes``, as :func:`pack_a`."""
    tile, block = grid.kernel.tile, grid.kernel.mmul
    _pack(b, grid.b_order, 0, out, _Layout((tile.k, tile.n), (block.s, block.t)))


def unpack_a(packed: NDArray[Any], grid: TileGrid, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """A (M, terms * K) again from what ``pack_a`` made of it."""
    tile, block = grid.kernel.tile, grid.kernel.mmul
    shape = grid.M, grid.terms * grid.K
    out = np.empty(shape, packed.dtype) if out is None else out
    _unpack(packed, grid.a_order, 1, out, _Layout((tile.m, tile.k), (block.r, block.s)), grid.terms)
    return out


def unpack_b(packed: NDArray[Any], grid: TileGrid, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """B (terms * K, N) again from what ``pack_b`` made of it."""
    tile, block = grid.kernel.tile, grid.kernel.mmul
    shape = grid.terms * grid.K, grid.N
    out = np.empty(shape, packed.dtype) if out is None else out
    _unpack(packed, grid.b_order, 0, out, _Layout((tile.k, tile.n), (block.s, block.t)), grid.terms)
    return out


def unpack_c(
    packed: NDArray[Any],
    order: NDArray[np.int64],
    grid: TileGrid,
    out: NDArray[Any] | None = None,
    scales: tuple[NDArray[Any], NDArray[Any]] | None = None,
) -> NDArray[Any]:
    """C (M, N) from its tiles; ``order[i, j]`` says where tile (i, j) is stored. Padding is
    dropped.

    Written into ``out`` in its element type: INT32 saturates to int8; or is multiplied by the
    scales of rows and columns, flat arrays of the float type to compute in.
    """
    tile, block = grid.kernel.tile, grid.kernel.mmul
    out = np.empty((grid.M, grid.N), packed.dtype) if out is None else out
    layout = _Layout((tile.m, tile.n), (block.r, block.t))
    if scales is None:
        layout.unpack(packed, order, out, written_as(out.dtype))
    else:
        layout.unpack(packed, order, out, type_name(scales[0].dtype), *scales)
    return out


def _pack(
    given: NDArray[Any] | Operand,
    order: NDArray[np.int64],
    axis: int,
    out: NDArray[Any],
    layout: _Layout,
) -> None:
    name = type_name(out.dtype)
    operand = given if isinstance(given, Operand) else Operand(given, name, name, axis)
    assert stored_as(operand.write_as) == out.dtype
    layout.pack(operand, order, axis, out)


def _unpack(
    packed: NDArray[Any],
    order: NDArray[np.int64],
    axis: int,
    out: NDArray[Any],
    layout: _Layout,
    terms: int,
) -> None:
    parts = _split(order, terms, axis), _split(out, terms, axis)
    for places, part in zip(*parts, strict=True):
        layout.unpack(packed, places, part, type_name(packed.dtype))


def _split(whole: NDArray[Any], terms: int, axis: int) -> list[NDArray[Any]]:
    return [whole] if terms == 1 else np.split(whole, terms, axis)


@dataclass(frozen=True)
class _Layout:
    """A matrix as tiles of row-major blocks: moves it between its rows and its tiles.

    ``order[i, j]`` is where tile (i, j) is stored. Factors of rows and columns multiply on the way.
    With ``turned`` the matrix is the transpose of what is stored, and tile and block are its: the
    blocks of a tile, and the elements of a block, lie in columns.
    """

    tile: tuple[int, int]
    block: tuple[int, int]
    turned: bool = False

    def transposed(self) -> _Layout:
        """That of the transpose, packed to the same places."""
        return _Layout(self.tile[::-1], self.block[::-1], not self.turned)

    @property
    def whole_vectors(self) -> bool:
        """Whether a block can be turned within vectors: its rows must be a power of two."""
        rows = self.block[0]
        return rows & (rows - 1) == 0

    def abreast(self, packed_bytes: int) -> int:
        """How many blocks beside each other are moved at once: two, where one would fill half a
        vector and they are stored one after the other."""
        blocks = self.tile[1] // self.block[1]
        small = 2 * self.block[0] * self.block[1] * packed_bytes <= LINE_BYTES
        return 2 if small and blocks % 2 == 0 and self.whole_vectors and not self.turned else 1

    def pack(
        self, operand: Operand, order: NDArray[np.int64], axis: int, out: NDArray[Any]
    ) -> None:
        """Terms lie along ``axis``, which is K: each tile as far from that of the term before."""
        matrix = operand.source
        if in_columns(matrix) and (turned := self.transposed()).whole_vectors:
            turned.pack(operand.transposed(), order.T, 1 - axis, out)
            return
        down, across = (-(-matrix.shape[i] // self.tile[i]) for i in (0, 1))
        apart = 0
        if order.shape != (down, across):
            apart = self._pad(order, down, across, axis, out)
        factors = operand.factors
        move = self._mover(operand.read_as, operand.write_as, order, out, *factors, apart)
        for part, y, x in pieces(matrix, operand.read_as, self.tile):
            move(part, y, x)

    def _pad(
        self, order: NDArray[np.int64], down: int, across: int, axis: int, out: NDArray[Any]
    ) -> int:
        """Zeros in tiles that a grid of cores has beyond a matrix of so many. Returns the bytes
        between a tile and that of the next term."""
        tiles = out.reshape(-1, self.tile[0] * self.tile[1])
        beyond, next_term = order[down:], order[:, across:]
        if axis == 0:
            beyond, next_term = next_term, beyond
        if beyond.size:
            tiles[beyond] = 0
        return int(next_term[0, 0] - order[0, 0]) * tiles.strides[0] if next_term.size else 0

    def unpack(
        self,
        packed: NDArray[Any],
        order: NDArray[np.int64],
        out: NDArray[Any],
        write_as: str,
        row_factors: NDArray[Any] | None = None,
        column_factors: NDArray[Any] | None = None,
    ) -> None:
        read_as = type_name(packed.dtype)
        move = self._mover(read_as, write_as, order, packed, row_factors, column_factors)
        with np.errstate(over="ignore", invalid="ignore"):  # of floats that become float16
            for part, y, x in pieces(out, write_as, self.tile, fill=True):
                move(part, y, x)

    def _mover(
        self,
        read_as: str,
        write_as: str,
        order: NDArray[np.int64],
        packed: NDArray[Any],
        row_factors: NDArray[Any] | None,
        column_factors: NDArray[Any] | None,
        apart: int | None = None,
    ) -> Callable[[NDArray[Any], int, int], None]:
        """What moves whole tiles of a matrix, given with the row and column they begin at: packs
        them if it is told how far ``apart`` terms lie, else unpacks them."""
        given = {"rows": row_factors, "columns": column_factors}
        factors = " ".join(name for name, numbers in given.items() if numbers is not None)
        by_row, by_column = map(_padded, (row_factors, column_factors), self.tile)
        loop = _tile_loop(read_as, write_as, factors, self, apart is not None)
        order = np.ascontiguousarray(order)

        def move(part: NDArray[Any], y: int, x: int) -> None:
            table = (
                address(part), part.strides[0], part.shape[1], address(packed), address(order),
                order.shape[1], y, x, _place(by_row, y), _place(by_column, x), apart or 0,
            )  # fmt: skip
            moved_bytes = part.size * (part.itemsize + packed.itemsize)
            in_parts(loop, table, len(part), self.tile[0], moved_bytes / MOVED_PER_S)

        return move


def _padded(factors: NDArray[Any] | None, tile: int) -> NDArray[Any] | None:
    """Factors of all rows or columns of whole tiles; None when there are none."""
    if factors is None or factors.size % tile == 0:
        return factors
    padded = np.ones(-(-factors.size // tile) * tile, factors.dtype)
    padded[: factors.size] = factors
    return padded


def _place(factors: NDArray[Any] | None, first: int) -> int:
    return 0 if factors is None else address(factors) + first * factors.itemsize


@cache
def _tile_loop(
    source_type: str, target_type: str, factors: str, layout: _Layout, packing: bool
) -> Any:
    """The task that moves whole tiles, some blocks at a time, from a matrix to where they are
    packed, or back. Tiles and blocks are constants of the loop. Its table has the matrix's
    address, bytes to the next row and columns; the addresses of what is packed and of the order,
    and the columns of that; the first row and column within the whole, the addresses of their
    factors, and how far terms lie apart.

    A row of blocks goes through all tiles before the next one: its few rows are read as so many
    streams. The rows of a whole tile evict each other from the cache where they lie a power of two
    apart: 8 KB apart, that took twice as long.
    """
    sizes = element_bytes(source_type), element_bytes(target_type)
    matrix_bytes, packed_bytes = sizes if packing else sizes[::-1]
    (high, wide), (r, s), turned = layout.tile, layout.block, layout.turned
    abreast = layout.abreast(packed_bytes)
    tile_bytes, block_bytes = high * wide * packed_bytes, r * s * packed_bytes
    down_bytes, across_bytes = block_bytes, block_bytes
    if turned:
        across_bytes *= high // r
    else:
        down_bytes *= wide // s
    factor_bytes = 8 if "float64" in (source_type, target_type) else 4

    @Task
    def move(table, first, last):
        t = pointer(table, np.int64)
        matrix, stride, columns, packed, order, order_columns = t[0], t[1], t[2], t[3], t[4], t[5]
        first_row, first_column, by_row, by_column, apart = t[6], t[7], t[8], t[9], t[10]
        places = pointer(order, np.int64)
        for i in range(first, last, r):
            tile_row, row = (first_row + i) // high, by_row + i * factor_bytes
            within = packed + i % high // r * down_bytes
            for x in range(0, columns, wide):
                place = tile_row * order_columns + (first_column + x) // wide
                inside = within + places[place] * tile_bytes
                for j in range(x, x + wide, s * abreast):
                    column = by_column + j * factor_bytes
                    outside = matrix + i * stride + j * matrix_bytes
                    if packing:
                        convert_block(
                            source_type, target_type, factors, r, s, abreast, turned,
                            outside, stride, inside, None, row, column, apart,
                        )  # fmt: skip
                    else:
                        convert_block(
                            source_type, target_type, factors, r, s, abreast, turned,
                            inside, None, outside, stride, row, column,
                        )  # fmt: skip
                    inside += across_bytes * abreast
        return DONE

    return move
