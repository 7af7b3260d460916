"""Host stages against NumPy: packing, unpacking, INT32 accumulation, clipping.

Each is compared with its obvious NumPy form and, where there is a better one, with the best NumPy
form known (whole machine words instead of single elements), and with a plain copy of as many
bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from timing import medians

from npu_matmul.accumulate import accumulate, clip_to_int8
from npu_matmul.kernel import load_kernel
from npu_matmul.schedule import c_order, cover
from npu_matmul.tiler import TileGrid, pack_a, pack_b, unpack_c

SHAPES = ((512, 512, 512), (1536, 512, 512), (1536, 2048, 512))
Case = tuple[str, dict[str, Callable[[], Any]], Callable[[], bool]]


def run() -> list[dict[str, Any]]:
    """One row per stage and shape: seconds of each form, and whether all gave equal results."""
    rows = []
    for M, K, N in SHAPES:
        for stage, forms, check in _cases(M, K, N):
            seconds = medians(forms)
            rows.append({"stage": stage, "shape": [M, K, N], "equal": check(), "seconds": seconds})
    return rows


def _cases(M: int, K: int, N: int) -> Iterator[Case]:
    random = np.random.default_rng(0)
    grid = TileGrid(load_kernel("matmul_16x16"), M, K, N)
    a = random.integers(-128, 128, (M, K), dtype=np.int8)
    b = random.integers(-128, 128, (K, N), dtype=np.int8)
    c = random.integers(-(1 << 20), 1 << 20, (M, N), dtype=np.int32)
    yield _pack_case("pack A", a, grid, pack_a, (4, 8), lambda x: x)
    yield _pack_case(
        "pack B", b, grid, pack_b, (8, 8), lambda x: x.transpose(1, 0, *range(2, x.ndim))
    )
    yield _unpack_case(c, grid)
    yield _accumulate_case(c)
    yield _clip_case(c)


def _pack_case(
    stage: str,
    matrix: np.ndarray,
    grid: TileGrid,
    pack: Callable[..., None],
    block: tuple[int, int],
    tile_order: Callable[[np.ndarray], np.ndarray],
) -> Case:
    rows = matrix.shape[0]
    ours, obvious, words = (np.empty(matrix.size, np.int8) for _ in range(3))
    high, wide = block

    def numpy_form(source: np.ndarray, target: np.ndarray, width: int) -> None:
        tiles = source.reshape(rows // 16, 16 // high, high, -1, 2, width).transpose(
            0, 3, 1, 4, 2, 5
        )
        np.copyto(target.view(source.dtype).reshape(tile_order(tiles).shape), tile_order(tiles))

    forms = {
        "npu_matmul": lambda: pack(matrix, grid, ours),
        "numpy": lambda: numpy_form(matrix, obvious, wide),
        "numpy, words": lambda: numpy_form(matrix.view(np.uint64), words, wide // 8),
        "copy": lambda: np.copyto(words.reshape(matrix.shape), matrix),
    }

    def check() -> bool:
        forms["numpy, words"]()
        return np.array_equal(ours, obvious) and np.array_equal(ours, words)

    return stage, forms, check


def _unpack_case(c: np.ndarray, grid: TileGrid) -> Case:
    M, N = c.shape
    order = c_order(grid, cover(grid))
    tiles = c.reshape(M // 16, 4, 4, N // 16, 2, 8).transpose(0, 3, 1, 4, 2, 5).reshape(-1, 256)
    packed = np.empty_like(tiles)
    packed[order.reshape(-1)] = tiles
    flat = packed.reshape(-1)
    columns_outer = order[0, 0] + 1 == order[1, 0]
    target = np.empty_like(c)

    def numpy_form(source: np.ndarray, out: np.ndarray, width: int) -> None:
        view = out.reshape(M // 16, 4, 4, N // 16, 2, width).transpose(0, 3, 1, 4, 2, 5)
        view = view.transpose(1, 0, 2, 3, 4, 5) if columns_outer else view
        np.copyto(view, source.reshape(view.shape))

    forms = {
        "npu_matmul": lambda: unpack_c(flat, order, grid),
        "numpy": lambda: numpy_form(flat, target, 8),
        "numpy, words": lambda: numpy_form(flat.view(np.complex128), target.view(np.complex128), 2),
        "copy": lambda: np.copyto(target, c),
    }

    def check() -> bool:
        forms["numpy"]()
        return np.array_equal(unpack_c(flat, order, grid), c) and np.array_equal(target, c)

    return "unpack C", forms, check


def _accumulate_case(c: np.ndarray) -> Case:
    total = np.zeros_like(c)  # one for all: where memory lies is worth a tenth of the time

    def check() -> bool:
        total[:] = 7
        accumulate(total, c)
        return np.array_equal(total, np.add(c, np.int32(7)))

    forms = {
        "npu_matmul": lambda: accumulate(total, c),
        "numpy": lambda: np.add(total, c, out=total),
        "copy": lambda: np.copyto(total, c),
    }
    return "accumulate INT32", forms, check


def _clip_case(c: np.ndarray) -> Case:
    small = np.empty(c.shape, np.int8)
    forms = {
        "npu_matmul": lambda: clip_to_int8(c),
        "numpy": lambda: np.clip(c, -128, 127).astype(np.int8),
        "copy": lambda: np.copyto(small, c, casting="unsafe"),
    }
    return "clip to int8", forms, lambda: np.array_equal(forms["npu_matmul"](), forms["numpy"]())
