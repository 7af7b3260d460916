"""Tiles as a core has them: flat in memory, row-major blocks of (r, s), (s, t) and (r, t)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from npu_matmul.kernel import Mmul, TileShape

Model = Callable[..., None]  # of the flat arrays that a C function takes
Blocks = NDArray[Any]  # a tile as (blocks down, blocks across, rows, columns)
Product = Callable[[Blocks, Blocks, Blocks, bool], None]  # of A, B, C; True adds to C


def blocks_of(tile: TileShape, block: Mmul) -> tuple[int, int, int]:
    """How many blocks there are along m, k and n."""
    return tile.m // block.r, tile.k // block.s, tile.n // block.t


def of_blocks(product: Product, tile: TileShape, block: Mmul, accumulate: bool) -> Model:
    """A product of blocks as a model of flat tiles; ValueError for tiles of another size."""
    down, depth, across = blocks_of(tile, block)
    a_shape = down, depth, block.r, block.s
    b_shape = depth, across, block.s, block.t
    c_shape = down, across, block.r, block.t

    def model(a: NDArray[Any], b: NDArray[Any], c: NDArray[Any]) -> None:
        product(a.reshape(a_shape), b.reshape(b_shape), c.reshape(c_shape), accumulate)

    return model
