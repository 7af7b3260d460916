"""Host stages against a plain copy of as many bytes, and against NumPy's form of the same.

Each stage runs on one thread and is timed by the process's CPU time, because other work may share
the cores; the alternatives take turns. "Of a copy" is the time of ``np.copyto`` of as many bytes,
read and written, divided by the stage's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
from timing import medians

from npu_matmul.accumulate import accumulate, clip_to_int8
from npu_matmul.host.convert import convert, magnitudes
from npu_matmul.kernel import CoreGrid, Kernel, load_variants
from npu_matmul.precision import PRECISIONS, finish, split_bf16
from npu_matmul.tiler import TileGrid, pack_a, pack_b, unpack_b, unpack_c

SHAPES = ((1536, 512), (1536, 2048), (8192, 4096))  # float32: 3, 12 and 128 MiB
PARTIALS = 8
MOVING = 0.65, 0.45  # goals of what only changes the order
Matrix = np.ndarray[Any, Any]
Pack = Callable[[Any, TileGrid, Matrix], Any]
BF16 = np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass
class Stage:
    """What is compared: ``ours`` and ``numpy`` give the same arrays; bytes are read and written.

    ``goal`` is the fraction of a copy's speed aimed at, in the cache and in memory.
    """

    name: str
    goal: tuple[float, float]
    nbytes: int
    ours: Callable[[], Any]
    numpy: Callable[[], Any]


def run() -> list[dict[str, Any]]:
    """One row per stage and shape: CPU seconds of each form, and whether both gave equal bits."""
    rows = []
    for shape in SHAPES:
        for stage in _stages(*shape):
            half = np.ones(stage.nbytes // 2, np.uint8)
            target = np.zeros_like(half)
            forms = {
                "npu_matmul": stage.ours,
                "numpy": stage.numpy,
                "copy": lambda target=target, half=half: np.copyto(target, half),
            }
            equal = _same(stage.ours(), stage.numpy())
            in_memory = shape == SHAPES[-1]
            rows.append(
                {
                    "stage": stage.name,
                    "shape": list(shape),
                    "equal": equal,
                    "goal": stage.goal[in_memory],
                    "seconds": medians(forms, clock="cpu_s"),
                }
            )
    return rows


def _stages(M: int, K: int) -> Iterator[Stage]:
    x = np.random.default_rng(0).standard_normal((M, K), np.float32)
    sums = np.random.default_rng(1).integers(-(1 << 20), 1 << 20, (M, K), dtype=np.int32)
    yield from _flat(x, sums)
    for name in ("matmul_16x16", "matmul_64x512"):
        yield from _packing(x, _one_core(name, "int8"))
        yield from _unpacking(sums, _one_core(name, "int8"))
    yield from _packing_bf16(x, _one_core("matmul_64x512", "bf16"))
    yield from _sums(sums)


def _one_core(name: str, variant: str) -> Kernel:
    """The kernel's tiles on one core, so that NumPy can have their order by transposing."""
    return dataclasses.replace(load_variants(name)[variant], grid=CoreGrid(1, 1))


def _flat(x: Matrix, sums: Matrix) -> Iterator[Stage]:
    """Stages that take each element by itself."""
    flat = 0.9, 0.9
    inverse = np.float32(127) / np.abs(x).max(1)
    q, half = np.empty(x.shape, np.int8), np.empty(x.shape, BF16)
    yield Stage(
        "absmax of rows", flat, x.nbytes, lambda: magnitudes(x, 1), lambda: np.abs(x).max(1)
    )
    yield Stage(
        "absmax of columns", flat, x.nbytes, lambda: magnitudes(x, 0), lambda: np.abs(x).max(0)
    )
    yield Stage(
        "quantise",
        flat,
        x.nbytes + q.nbytes,
        lambda: _into(q, lambda: convert(x, q, None, None, inverse)),
        lambda: _quantised(x, inverse[:, None]),
    )
    yield Stage(
        "bf16",
        flat,
        x.nbytes + half.nbytes,
        lambda: _into(half, lambda: convert(x, half)),
        lambda: x.astype(BF16),
    )
    yield Stage("bf16 high, low", flat, 2 * x.nbytes, lambda: split_bf16(x), lambda: _split(x))
    yield from _flat_sums(sums, flat)


def _flat_sums(sums: Matrix, flat: tuple[float, float]) -> Iterator[Stage]:
    M, N = sums.shape
    small, scaled = np.empty((M, N), np.int8), np.empty((M, N), np.float32)
    scales = np.ones(M, np.float32), np.linspace(1, 2, N, dtype=np.float32)
    yield Stage(
        "clip to int8",
        flat,
        sums.nbytes + small.nbytes,
        lambda: clip_to_int8(sums, small),
        lambda: np.clip(sums, -128, 127).astype(np.int8),
    )
    yield Stage(
        "dequantise",
        flat,
        2 * sums.nbytes,
        lambda: _into(scaled, lambda: finish(sums, scaled, scales)),
        lambda: sums.astype(np.float32) * scales[0][:, None] * scales[1],
    )


def _packing(x: Matrix, kernel: Kernel) -> Iterator[Stage]:
    tile, block = kernel.tile, kernel.mmul
    how = PRECISIONS["int8"]
    a, b = how.a(x), how.b(x)
    grid_a, grid_b = TileGrid(kernel, *x.shape, 1), TileGrid(kernel, 1, *x.shape)
    place_a = (tile.m, tile.k), (block.r, block.s), False
    place_b = (tile.k, tile.n), (block.s, block.t), True
    yield from _packed("A", pack_a, a, grid_a, place_a, a.inverse[:, None])
    yield from _packed("B", pack_b, b, grid_b, place_b, b.inverse)
    if tile.m == 16:
        turned = dataclasses.replace(b, source=np.asfortranarray(x))
        yield _quantised_and_packed("B.T", pack_b, turned, grid_b, place_b, b.inverse)
    tiled = np.empty(x.size, np.int8)
    rows, again = np.empty(x.shape, np.int8), np.empty(x.shape, np.int8)
    yield Stage(
        f"unpack B, {tile.m}",
        MOVING,
        2 * x.size,
        lambda: unpack_b(tiled, grid_b, rows),
        lambda: _untiled(tiled, again, *place_b),
    )


def _packed(
    name: str, pack: Pack, operand: Any, grid: TileGrid, place: Any, factors: Matrix
) -> Iterator[Stage]:
    ready = operand.matrix
    out, tiled = np.empty(ready.size, np.int8), np.empty(ready.size, np.int8)
    yield Stage(
        f"pack {name}, {grid.kernel.tile.m}",
        MOVING,
        2 * ready.size,
        lambda: _into(out, lambda: pack(ready, grid, out)),
        lambda: _tiled(ready, tiled, *place),
    )
    yield _quantised_and_packed(name, pack, operand, grid, place, factors)


def _quantised_and_packed(
    name: str, pack: Pack, operand: Any, grid: TileGrid, place: Any, factors: Matrix
) -> Stage:
    source, m = operand.source, grid.kernel.tile.m
    out, tiled = np.empty(source.size, np.int8), np.empty(source.size, np.int8)
    return Stage(
        f"quantise and pack {name}, {m}",
        (0.8, 0.8) if m == 16 else (0.7, 0.7),
        source.nbytes + source.size,
        lambda: _into(out, lambda: pack(operand, grid, out)),
        lambda: _tiled(_quantised(source, factors), tiled, *place),
    )


def _packing_bf16(x: Matrix, kernel: Kernel) -> Iterator[Stage]:
    tile, block = kernel.tile, kernel.mmul
    place = (tile.m, tile.k), (block.r, block.s), False
    for name in ("bf16", "bf16x3"):
        how = PRECISIONS[name]
        grid = TileGrid(kernel, *x.shape, 1, how.terms)
        out, tiled = np.empty(grid.a_bytes // 2, BF16), np.empty(grid.a_bytes // 2, BF16)
        yield Stage(
            f"{name} and pack A, {tile.m}",
            (0.7, 0.7),
            x.nbytes + out.nbytes,
            lambda how=how, grid=grid, out=out: _into(out, lambda: pack_a(how.a(x), grid, out)),
            lambda how=how, tiled=tiled: _tiled(_terms_of_a(x, how.terms), tiled, *place),
        )


def _unpacking(sums: Matrix, kernel: Kernel) -> Iterator[Stage]:
    tile, block = kernel.tile, kernel.mmul
    M, N = sums.shape
    grid = TileGrid(kernel, M, 1, N)
    order = np.arange(grid.Mt * grid.Nt).reshape(grid.Mt, grid.Nt)
    place = (tile.m, tile.n), (block.r, block.t), False
    packed = np.empty(sums.size, np.int32)
    _tiled(sums, packed, *place)
    scales = np.linspace(1, 2, M, dtype=np.float32), np.linspace(2, 3, N, dtype=np.float32)
    wide = np.empty_like(sums)

    def rows() -> Matrix:
        return _untiled(packed, wide, *place)

    finishes: list[tuple[str, Matrix, Any, Callable[[], Matrix]]] = [
        ("unpack C", np.empty_like(sums), None, rows),
        (
            "unpack C and clip",
            np.empty((M, N), np.int8),
            None,
            lambda: np.clip(rows(), -128, 127).astype(np.int8),
        ),
        (
            "unpack C and dequantise",
            np.empty((M, N), np.float32),
            scales,
            lambda: rows().astype(np.float32) * scales[0][:, None] * scales[1],
        ),
    ]
    for name, out, given, numpy_form in finishes:
        yield Stage(
            f"{name}, {tile.m}",
            MOVING,
            sums.nbytes + out.nbytes,
            lambda out=out, given=given: unpack_c(packed, order, grid, out, given),
            numpy_form,
        )


def _sums(partial: Matrix) -> Iterator[Stage]:
    """Sums modulo 2**32 of one and of several partial sums, into a total that is also read."""
    ours, theirs = np.zeros_like(partial), np.zeros_like(partial)
    yield Stage(
        "add a partial sum",
        (1.0, 1.0),
        3 * partial.nbytes,
        lambda: _into(ours, lambda: accumulate(ours, partial)),
        lambda: np.add(theirs, partial, out=theirs),
    )
    if partial.nbytes > 1 << 26:
        return
    partials = np.stack([partial + i for i in range(PARTIALS)])
    total, result = partials[0].copy(), partials[0].copy()

    def each_by_itself() -> Matrix:
        np.copyto(result, partials[0])
        for other in partials[1:]:
            np.add(result, other, out=result)
        return result

    def at_once() -> None:
        np.copyto(total, partials[0])
        accumulate(total, partials[1:])

    yield Stage(
        f"sum of {PARTIALS} partial sums",
        (1.0, 1.0),
        partials.nbytes + partial.nbytes,
        lambda: _into(total, at_once),
        each_by_itself,
    )


def _into(out: Matrix, work: Callable[[], object]) -> Matrix:
    work()
    return out


def _quantised(x: Matrix, factors: Matrix) -> Matrix:
    return np.clip(np.rint(x * factors), -127, 127).astype(np.int8)


def _split(x: Matrix) -> tuple[Matrix, Matrix]:
    high = x.astype(BF16)
    return high, (x - high.astype(np.float32)).astype(BF16)


def _terms_of_a(x: Matrix, terms: int) -> Matrix:
    if terms == 1:
        return x.astype(BF16)
    high, low = _split(x)
    return np.concatenate([low, high, high], axis=1)


def _tiles_of(
    rows: Matrix, tile: tuple[int, int], block: tuple[int, int], columns_first: bool
) -> Matrix:
    """A view of a matrix by tile row, tile column, and the blocks and their elements within."""
    (high, wide), (r, s) = tile, block
    view = rows.reshape(rows.shape[0] // high, high // r, r, rows.shape[1] // wide, wide // s, s)
    return view.transpose(3, 0, 1, 4, 2, 5) if columns_first else view.transpose(0, 3, 1, 4, 2, 5)


def _tiled(matrix: Matrix, out: Matrix, *place: Any) -> Matrix:
    view = _tiles_of(matrix, *place)
    np.copyto(out.reshape(view.shape), view)
    return out


def _untiled(packed: Matrix, out: Matrix, *place: Any) -> Matrix:
    view = _tiles_of(out, *place)
    np.copyto(view, packed.reshape(view.shape))
    return out


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, tuple):
        return all(map(_same, ours, theirs))
    return bool(ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes())
