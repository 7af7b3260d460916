"""How a product becomes launches: ``sequential``, ``output_tile`` or ``batched``.

All three pack the operands, run the launches, and write the result from the packed accumulators in
one pass. What they must cost stands beside each as a formula, and tests hold what the device
counted against it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.accumulate import accumulate
from npu_matmul.device import Buffer, LoadedKernel
from npu_matmul.launch import LaunchShape, argument_bytes
from npu_matmul.precision import Operand
from npu_matmul.schedule import (
    LIMITS,
    Launch,
    Limits,
    block_launches,
    block_steps,
    c_order,
    cover,
    cover_shapes,
)
from npu_matmul.streams import launch_stream
from npu_matmul.tiler import TileGrid, pack_a, pack_b, unpack_c
from npu_matmul.timeline import listening

REGION_ALIGNMENT_BYTES = 64  # a cache line: the regions of one buffer share none


class Stages:
    """Seconds of host time by stage of a call."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def stage(self, name: str) -> Stage:
        """For ``with``: add the block's time to the stage's."""
        return Stage(self.seconds, name)


class Stage:
    """A block that is timed; one of a few that surround each small product, so no generator."""

    __slots__ = ("_name", "_seconds", "_start_s")

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds = seconds
        self._name = name

    def __enter__(self) -> None:
        self._start_s = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        end_s = time.perf_counter()
        self._seconds[self._name] += end_s - self._start_s
        if listening.listener is not None:
            listening.measured(self._name, self._start_s, end_s)


@dataclass(frozen=True)
class Counts:
    """What a product must cost."""

    launches: int
    syncs_to_device: int
    syncs_from_device: int
    bytes_to_device: int
    bytes_from_device: int


@dataclass(frozen=True)
class Product:
    """One product on one loaded kernel.

    A and B are matrices of the kernel's element types or operands that packing converts to them; B
    can also be its packed region on the device. ``out`` takes the result, INT32 clipped to int8 or
    multiplied by ``scales``, if it must; without it the accumulators themselves are returned.
    """

    loaded: LoadedKernel
    grid: TileGrid
    a: NDArray[Any] | Operand
    b: NDArray[Any] | Operand | Buffer
    stages: Stages
    limits: Limits = LIMITS
    out: NDArray[Any] | None = None
    scales: tuple[NDArray[Any], NDArray[Any]] | None = None

    @property
    def resident(self) -> bool:
        return isinstance(self.b, Buffer)


Strategy = Callable[[Product], NDArray[Any]]


def sequential(product: Product) -> NDArray[Any]:
    """One launch per tile triple (i, j, kk), synced in and out each time; the host adds over K.

    This is the wrapper that the other strategies replace, and the baseline they are measured
    against.
    """
    grid, loaded, stages = product.grid, product.loaded, product.stages
    kernel = grid.kernel
    launches = block_launches(grid, steps=1)
    shape = _one_tile_shape(launches[0].shape, product.resident)
    stream = launch_stream(kernel, shape, loaded.device.target)
    a_bytes, b_bytes, c_bytes = argument_bytes(kernel, shape)
    with stages.stage("pack"):
        a, b = _packed_on_host(product)
    total = np.zeros((grid.Mb * grid.Nb, c_bytes // kernel.c_dtype.itemsize), kernel.c_dtype)
    with _lent(product, a_bytes, b_bytes, c_bytes) as (given, a_view, b_view, out):
        partial = out.host.view(kernel.c_dtype)
        for position, launch in enumerate(launches):
            with stages.stage("pack"):
                a_view.host.reshape(len(a), -1)[:] = a[:, launch.a_tile]
                if isinstance(product.b, Buffer):
                    b_view = product.b.view(launch.b_tile * kernel.b_tile_bytes, b_bytes)
                else:
                    b_view.host.reshape(len(b), -1)[:] = b[:, launch.b_tile]
            with stages.stage("sync"):
                given.sync_to_device()
            with stages.stage("launch"):
                loaded.launch_all([(stream, (a_view, b_view, out))])
            with stages.stage("sync"):
                out.sync_from_device()
            with stages.stage("accumulate"):
                accumulate(total[position % len(total)], partial)
    with stages.stage("unpack"):
        return _unpacked(product, total.reshape(-1), launches)


def output_tile(product: Product) -> NDArray[Any]:
    """One launch per block of C, on views of one buffer that was synced once."""
    return _one_sync(product, _blocks(product.grid, product.limits))


def batched(product: Product) -> NDArray[Any]:
    """As few launches as one stream's limits allow (mostly one), one sync each way."""
    return _one_sync(product, cover(product.grid, product.limits))


STRATEGIES: dict[str, Strategy] = {
    "sequential": sequential,
    "output_tile": output_tile,
    "batched": batched,
}


def expected(
    strategy: str, grid: TileGrid, resident: bool = False, limits: Limits = LIMITS
) -> Counts:
    """What a strategy must cost, by formula; Mt Kt Nt count tiles (blocks, on a grid of cores).

    ===========  ==================  ======================  ==============================
    strategy     launches            syncs (in, out)         bytes in, bytes out
    ===========  ==================  ======================  ==============================
    sequential   Mt Kt Nt            Mt Kt Nt, Mt Kt Nt      (a + b) Mt Kt Nt, c Mt Kt Nt
    output_tile  Mt Nt               1, 1                    A + B, C
    batched      1 (or few)          1, 1                    A + B, C
    ===========  ==================  ======================  ==============================

    a, b, c are bytes of one tile per core, A, B, C of a whole packed region; each sum starts B at
    a cache line. A resident B moves no bytes. Where one launch cannot cover K, C comes in parts.
    """
    if strategy == "sequential":
        launches = grid.Mb * grid.Kt * grid.Nb
        cores = grid.kernel.grid
        a, b = cores.rows * grid.kernel.a_tile_bytes, cores.columns * grid.kernel.b_tile_bytes
        c = cores.rows * cores.columns * grid.kernel.c_tile_bytes
        moved = a if resident else _aligned(a) + b
        return Counts(launches, launches, launches, launches * moved, launches * c)
    steps = limits.steps(grid.kernel)
    parts = -(-grid.Kt // steps)
    if strategy == "output_tile":
        launches = grid.Mb * grid.Nb * parts
    else:
        launches = sum(count for _, count in cover_shapes(grid, limits))
    moved = grid.a_bytes if resident else _aligned(grid.a_bytes) + grid.b_bytes
    return Counts(launches, 1, 1, moved, parts * grid.c_bytes)


def pack_resident(loaded: LoadedKernel, grid: TileGrid, b: NDArray[Any] | Operand) -> Buffer:
    """B packed into a device buffer of its own and synced: later products move only A."""
    buffer = loaded.device.alloc(grid.b_bytes)
    pack_b(b, grid, buffer.host.view(grid.kernel.b_dtype))
    buffer.sync_to_device()
    return buffer


def _one_sync(product: Product, launches: list[Launch]) -> NDArray[Any]:
    grid, loaded, stages = product.grid, product.loaded, product.stages
    parts = -(-grid.Kt // launches[0].shape.steps)
    sizes = grid.a_bytes, grid.b_bytes, parts * grid.c_bytes
    with _lent(product, *sizes) as (given, a_region, b_region, out):
        with stages.stage("pack"):
            pack_a(product.a, grid, a_region.host.view(grid.kernel.a_dtype))
            if not isinstance(product.b, Buffer):
                pack_b(product.b, grid, b_region.host.view(grid.kernel.b_dtype))
        with stages.stage("sync"):
            given.sync_to_device()
        with stages.stage("launch"):
            loaded.launch_all(_on_views(loaded, launches, a_region, b_region, out))
        with stages.stage("sync"):
            out.sync_from_device()
        packed = out.host.view(grid.kernel.c_dtype).reshape(parts, -1)
        total = packed[0]
        with stages.stage("accumulate"):
            if parts > 1:
                total = total.copy()  # what the NPU writes, the host only reads: see Buffer
                accumulate(total, packed[1:])
        with stages.stage("unpack"):
            return _unpacked(product, total, launches)


@contextmanager
def _lent(
    product: Product, a_bytes: int, b_bytes: int, c_bytes: int
) -> Iterator[tuple[Buffer, Buffer, Buffer, Buffer]]:
    """The input buffer, its regions of A and B, and the output buffer. A resident B has its own."""
    device, b_start = product.loaded.device, _aligned(a_bytes)
    given_bytes = a_bytes if product.resident else b_start + b_bytes
    with device.lend(given_bytes) as given, device.lend(c_bytes) as out:
        b = product.b if isinstance(product.b, Buffer) else given.view(b_start, b_bytes)
        yield given, given.view(0, a_bytes), b, out


def _unpacked(product: Product, packed: NDArray[Any], launches: list[Launch]) -> NDArray[Any]:
    order = c_order(product.grid, launches)
    return unpack_c(packed, order, product.grid, product.out, product.scales)


def _on_views(
    loaded: LoadedKernel, launches: list[Launch], a: Buffer, b: Buffer, c: Buffer
) -> Iterator[tuple[bytes, tuple[Buffer, Buffer, Buffer]]]:
    kernel, target = loaded.kernel, loaded.device.target
    for launch in launches:
        of_a, of_b, of_c = launch.views(kernel)
        views = a.view(*of_a), b.view(*of_b), c.view(*of_c)
        yield launch_stream(kernel, launch.shape, target), views


def _blocks(grid: TileGrid, limits: Limits) -> list[Launch]:
    return block_launches(grid, block_steps(grid, limits))


def _one_tile_shape(shape: LaunchShape, resident: bool) -> LaunchShape:
    """Copied tiles lie next to each other, lane after lane; those of a resident B stay where they
    are."""
    b_stride = shape.b_stride if resident else min(1, shape.b_stride)
    return replace(shape, a_stride=min(1, shape.a_stride), b_stride=b_stride)


def _packed_on_host(product: Product) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A and B packed, as bytes by [lane][tile of the lane's run]; no B when it is on the device."""
    grid, kernel = product.grid, product.grid.kernel
    a = np.empty(grid.a_bytes, np.uint8)
    pack_a(product.a, grid, a.view(kernel.a_dtype))
    b = np.empty(0 if product.resident else grid.b_bytes, np.uint8)
    if not isinstance(product.b, Buffer):
        pack_b(product.b, grid, b.view(kernel.b_dtype))
    a_lanes = a.reshape(kernel.grid.rows, -1, kernel.a_tile_bytes)
    return a_lanes, b.reshape(kernel.grid.columns, -1, kernel.b_tile_bytes)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // REGION_ALIGNMENT_BYTES) * REGION_ALIGNMENT_BYTES
