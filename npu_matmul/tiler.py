"""Packs matrices into the order in which the NPU streams them, and unpacks C.

The kernel is the master, the packing is the slave: tile and block shapes come from the manifest. A
matrix is stored as tiles; a tile as row-major blocks of the ``aie::mmul`` intrinsic. Where each
tile goes is an index table made by :class:`TileGrid`; moving the elements is one compiled loop
over rows of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from npu_matmul.kernel import Kernel


@dataclass(frozen=True)
class TileGrid:
    """The problem M, K, N cut into a kernel's tiles, padded to whole blocks of the core grid.

    ``Mt``, ``Kt``, ``Nt`` count tiles with padding; ``Mb`` and ``Nb`` blocks of C, one tile per
    core.

    >>> from npu_matmul.kernel import load_kernel
    >>> grid = TileGrid(load_kernel("matmul_16x16"), 17, 16, 40)
    >>> grid.Mt, grid.Kt, grid.Nt, round(grid.padding, 3)
    (2, 1, 3, 0.557)
    """

    kernel: Kernel
    M: int
    K: int
    N: int

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
        return -(-self.K // self.kernel.tile.k)

    @property
    def padding(self) -> float:
        """The fraction of multiplications that are wasted on padding."""
        tile = self.kernel.tile
        return 1 - self.M * self.K * self.N / (
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


def pack_a(a: NDArray[Any], grid: TileGrid, out: NDArray[Any]) -> None:
    """Pack A (M, K) into the flat array ``out`` of ``grid.a_bytes``, padding with zeros."""
    tile, block = grid.kernel.tile, grid.kernel.mmul
    _pack(a, out, grid.a_order, (tile.m, tile.k), (block.r, block.s))


def pack_b(b: NDArray[Any], grid: TileGrid, out: NDArray[Any]) -> None:
    """Pack B (K, N) into the flat array ``out`` of ``grid.b_bytes``, padding with zeros."""
    tile, block = grid.kernel.tile, grid.kernel.mmul
    _pack(b, out, grid.b_order, (tile.k, tile.n), (block.s, block.t))


def unpack_a(packed: NDArray[Any], grid: TileGrid) -> NDArray[Any]:
    """A (M, K) again from what ``pack_a`` made of it."""
    tile, block = grid.kernel.tile, grid.kernel.mmul
    return _unpack(packed, grid.a_order, (grid.M, grid.K), (tile.m, tile.k), (block.r, block.s))


def unpack_b(packed: NDArray[Any], grid: TileGrid) -> NDArray[Any]:
    """B (K, N) again from what ``pack_b`` made of it."""
    tile, block = grid.kernel.tile, grid.kernel.mmul
    return _unpack(packed, grid.b_order, (grid.K, grid.N), (tile.k, tile.n), (block.s, block.t))


def unpack_c(packed: NDArray[Any], order: NDArray[np.int64], grid: TileGrid) -> NDArray[Any]:
    """C (M, N) from its tiles; ``order[i, j]`` says where tile (i, j) is stored. Padding is
    dropped."""
    tile, block = grid.kernel.tile, grid.kernel.mmul
    return _unpack(packed, order, (grid.M, grid.N), (tile.m, tile.n), (block.r, block.t))


@dataclass(frozen=True)
class _WordLayout:
    """How a tile lies in memory, in machine words: its row i and word w of the row are at
    ``row_offsets[i] + spread[w]``.

    For a tile of 16 x 16 int8 in blocks of 4 x 8 a word is 8 B: ``spread == [0, 4]`` (a block has
    4 words), ``row_offsets == [0, 1, 2, 3, 8, 9, ...]`` (two blocks lie side by side).
    """

    word: np.dtype[Any]
    row_offsets: NDArray[np.uint64]
    spread: NDArray[np.uint64]

    @property
    def tables(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64], np.uint64]:
        return self.row_offsets, self.spread, np.uint64(self.row_offsets.size * self.spread.size)

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, tile: tuple[int, int], block: tuple[int, int], itemsize: int) -> _WordLayout:
        block_row_bytes = block[1] * itemsize
        word_bytes = min(8, block_row_bytes & -block_row_bytes)
        across, words = tile[1] // block[1], block_row_bytes // word_bytes
        row = np.arange(tile[0])
        row_offsets = (row // block[0] * across * block[0] + row % block[0]) * words
        spread = np.arange(across)[:, None] * (block[0] * words) + np.arange(words)
        return cls(
            np.dtype(f"u{word_bytes}"),
            row_offsets.astype(np.uint64),
            spread.reshape(-1).astype(np.uint64),
        )


def _pack(
    matrix: NDArray[Any],
    out: NDArray[Any],
    order: NDArray[np.int64],
    tile: tuple[int, int],
    block: tuple[int, int],
) -> None:
    layout = _WordLayout.of(tile, block, matrix.dtype.itemsize)
    if matrix.shape[0] != order.shape[0] * tile[0]:
        out.view(np.uint8).fill(0)
    source = _whole_tiles(matrix, order.shape[1] * tile[1], layout.word)
    _pack_tiles(source, out.view(layout.word), order.view(np.uint64), *layout.tables)


def _unpack(
    packed: NDArray[Any],
    order: NDArray[np.int64],
    shape: tuple[int, int],
    tile: tuple[int, int],
    block: tuple[int, int],
) -> NDArray[Any]:
    layout = _WordLayout.of(tile, block, packed.dtype.itemsize)
    columns = order.shape[1] * tile[1]
    padded = np.empty((shape[0], columns), packed.dtype)
    _unpack_tiles(
        packed.view(layout.word), padded.view(layout.word), order.view(np.uint64), *layout.tables
    )
    return padded if columns == shape[1] else np.ascontiguousarray(padded[:, : shape[1]])


def _whole_tiles(matrix: NDArray[Any], columns: int, word: np.dtype[Any]) -> NDArray[Any]:
    """The matrix as rows of words, widened to ``columns`` with zeros; a copy only where it must
    be."""
    fits = matrix.shape[1] == columns and matrix.flags.c_contiguous and matrix.dtype.isnative
    if fits and (words := matrix.view(word)).flags.aligned:
        return words
    copy = np.zeros((matrix.shape[0], columns), matrix.dtype.newbyteorder("="))
    copy[:, : matrix.shape[1]] = matrix
    return copy.view(word)


# Both loops go tile by tile, because tiles that are neighbours in the matrix can lie a power of two
# apart when packed, where they evict each other from the cache. They index with unsigned numbers:
# with signed ones numba adds a wrap-around test to every access. Tile rows that are all padding (on
# a grid of cores) are left out: unsigned, the rows that remain for them would be a huge number.


@numba.njit(cache=True, nogil=True)
def _pack_tiles(source, out, order, row_offsets, spread, tile_words):
    height, width = np.uint64(row_offsets.size), np.uint64(spread.size)
    stride = np.uint64(source.shape[1])
    words = source.reshape(-1)
    total = np.uint64(source.shape[0])
    for y in range((total + height - np.uint64(1)) // height):
        rows = min(height, total - y * height)
        for x in range(np.uint64(order.shape[1])):
            start, corner = order[y, x] * tile_words, y * height * stride + x * width
            for w in range(width):
                target, first = start + spread[w], corner + w
                for i in range(rows):
                    out[target + row_offsets[i]] = words[first + i * stride]


@numba.njit(cache=True, nogil=True)
def _unpack_tiles(packed, out, order, row_offsets, spread, tile_words):
    height, width = np.uint64(row_offsets.size), np.uint64(spread.size)
    stride = np.uint64(out.shape[1])
    words = out.reshape(-1)
    total = np.uint64(out.shape[0])
    for y in range((total + height - np.uint64(1)) // height):
        rows = min(height, total - y * height)
        for x in range(np.uint64(order.shape[1])):
            start, corner = order[y, x] * tile_words, y * height * stride + x * width
            for i in range(rows):
                for w in range(width):
                    words[corner + i * stride + w] = packed[start + row_offsets[i] + spread[w]]
