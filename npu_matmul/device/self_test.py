"""A product that a broken device, overlay or binding would get wrong, to be asked for at first use.

Operands are seeded random integers, so small that every sum is exact in INT32 and in f32 alike:
results must be equal bit for bit on every device. Two blocks each way and three steps of K, with
nothing symmetric, show transposed tiles, swapped operands and lost steps; doing it twice with
other operands, into memory filled with a pattern, shows outputs that stay zero and buffers that
stay stale.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npu_matmul.build.plan import reference_problem
from npu_matmul.device.buffer import Buffer
from npu_matmul.device.npu import LoadedKernel
from npu_matmul.kernel import Kernel
from npu_matmul.launch import argument_bytes
from npu_matmul.schedule import Launch, block_launches, c_order, cover
from npu_matmul.streams import launch_stream
from npu_matmul.target import Target
from npu_matmul.tiler import TileGrid, pack_a, pack_b, unpack_c

LARGEST = 8  # of an operand's magnitude: exact in bf16, and so are all sums up to K = 2**18 in f32
PATTERN = 0x5A
SEEDS = (11, 12)

LaunchAll = Callable[[Iterable[tuple[bytes, Sequence[Buffer]]]], None]


@dataclass(frozen=True)
class _Buffers:
    a: Buffer
    b: Buffer
    c: Buffer


def self_test(loaded: LoadedKernel, launch_all: LaunchAll | None = None) -> str | None:
    """Compute known products; None, or what is wrong with the result. Where a way to launch several
    is given, it is tested: each block of C is a launch."""
    grid = TileGrid(loaded.kernel, *reference_problem(loaded.kernel))
    launches = cover(grid) if launch_all is None else block_launches(grid)
    launch_all = launch_all or loaded.launch_all
    device = loaded.device
    buffers = _Buffers(*(device.alloc(n) for n in (grid.a_bytes, grid.b_bytes, grid.c_bytes)))
    for seed in SEEDS:
        a, b = _operands(grid, seed)
        got = _product(launch_all, grid, launches, device.target, buffers, a, b)
        problem = judge(got, a, b)
        if problem is not None:
            return problem
    return None


def launch_latency_s(loaded: LoadedKernel, launches: int = 50) -> float:
    """Seconds of host time from starting a launch to seeing its end: the median of so many launches
    of the smallest product. On an emulated device it says nothing about an NPU."""
    kernel = loaded.kernel
    rows, columns = kernel.block
    grid = TileGrid(kernel, rows, kernel.tile.k, columns)
    launch = cover(grid)[0]
    buffers = [loaded.device.alloc(n) for n in argument_bytes(kernel, launch.shape)]
    for buffer in buffers:
        buffer.host[:] = 0
        buffer.sync_to_device()
    stream = launch_stream(kernel, launch.shape, loaded.device.target)
    seconds = []
    for _ in range(launches):
        start = time.perf_counter()
        loaded.launch(stream, buffers).wait(loaded.TIMEOUT_S)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def judge(got: NDArray[np.float64], a: NDArray[np.int64], b: NDArray[np.int64]) -> str | None:
    """None where the result is the product of A and B; else what it looks like instead.

    >>> a, b = np.array([[1, 2], [3, 4]]), np.array([[0, 1], [2, 3]])
    >>> judge((a @ b).astype(float), a, b)
    >>> judge(np.zeros((2, 2)), a, b)
    'all values are zero'
    """
    want = (a @ b).astype(np.float64)
    wrong = int(np.count_nonzero(got != want))
    if not wrong:
        return None
    if not got.any():
        return "all values are zero"
    if (got == got.flat[0]).all():
        return f"all values are {got.flat[0]:g}: nothing was written"
    first = tuple(int(i) for i in np.argwhere(got != want)[0])
    return (
        f"{wrong:,} of {want.size:,} values are wrong, the first at {first}: "
        f"{got[first]:g}, not {want[first]:g}"
    )


def _operands(grid: TileGrid, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    shapes = (grid.M, grid.K), (grid.K, grid.N)
    a, b = (random.integers(-LARGEST, LARGEST + 1, shape) for shape in shapes)
    return a, b


def _product(
    launch_all: LaunchAll,
    grid: TileGrid,
    launches: list[Launch],
    target: Target,
    buffers: _Buffers,
    a: NDArray[np.int64],
    b: NDArray[np.int64],
) -> NDArray[np.float64]:
    kernel = grid.kernel
    pack_a(a.astype(kernel.a_dtype), grid, buffers.a.host.view(kernel.a_dtype))
    pack_b(b.astype(kernel.b_dtype), grid, buffers.b.host.view(kernel.b_dtype))
    buffers.c.host[:] = PATTERN
    for buffer in (buffers.a, buffers.b, buffers.c):
        buffer.sync_to_device()
    launch_all(
        (launch_stream(kernel, launch.shape, target), _views(kernel, launch, buffers))
        for launch in launches
    )
    buffers.c.sync_from_device()
    packed = buffers.c.host.view(kernel.c_dtype)
    return unpack_c(packed, c_order(grid, launches), grid).astype(np.float64)


def _views(kernel: Kernel, launch: Launch, buffers: _Buffers) -> tuple[Buffer, Buffer, Buffer]:
    a, b, c = launch.views(kernel)
    return buffers.a.view(*a), buffers.b.view(*b), buffers.c.view(*c)
