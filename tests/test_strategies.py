"""Each strategy computes the product and costs exactly what its formula says."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from comparing import ON_A_REAL_NPU, assert_equal_bits, product_int32, random_int8
from numpy.typing import NDArray

from npu_matmul import npu_matmul
from npu_matmul.device import Buffer, Counters, LoadedKernel, NpuDevice
from npu_matmul.device.emulated import EmulatedDevice
from npu_matmul.device.self_test import self_test
from npu_matmul.kernel import CoreGrid, Kernel, TileShape, load_kernel
from npu_matmul.launch import launch_sequence
from npu_matmul.schedule import LIMITS, Limits, cover, step_cycles
from npu_matmul.sequence import Transfer
from npu_matmul.strategies import (
    STRATEGIES,
    Counts,
    Product,
    Stages,
    expected,
    pack_resident,
)
from npu_matmul.streams import launch_stream
from npu_matmul.target import NPU2
from npu_matmul.tiler import TileGrid

Launches = list[tuple[bytes, tuple[Buffer, ...]]]
Shape = tuple[int, int, int]


def on_cores(rows: int, columns: int) -> Kernel:
    base = load_kernel("matmul_16x16")
    return dataclasses.replace(base, tile=TileShape(4, 8, 16), grid=CoreGrid(rows, columns))


KERNELS = {
    "16x16": load_kernel("matmul_16x16"),
    "2x2 cores": on_cores(2, 2),
    "1x3 cores": on_cores(1, 3),  # a tile of A is half a cache line
    "4x4 cores": on_cores(4, 4),
}
SHAPES: list[Shape] = [(1, 1, 1), (16, 16, 16), (33, 70, 50), (40, 25, 130)]
LIMIT_NAMES = ["usual limits", "parts of K", "parts of the blocks", "short streams"]

every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
# One launch per tile triple is not affected by limits.
every_strategy_and_limit = pytest.mark.parametrize(
    ("strategy", "limit"),
    [(s, name) for s in STRATEGIES for name in LIMIT_NAMES[: 1 if s == "sequential" else None]],
)
every_residence = pytest.mark.parametrize("resident", [False, True], ids=["given", "resident"])


def limits_of(name: str, grid: TileGrid) -> Limits:
    cycles, cores = step_cycles(grid.kernel), grid.kernel.grid
    two_panels = 16 + 24 * cores.rows * cores.columns + 4 * 164 * cores.columns
    return {
        "usual limits": LIMITS,
        "parts of K": Limits(core_cycles=3 * cycles),
        "parts of the blocks": Limits(core_cycles=2 * grid.Kt * cycles),
        "short streams": Limits(stream_bytes=two_panels),
    }[name]


def run(
    strategy: str,
    loaded: LoadedKernel,
    a: NDArray[np.int8],
    b: NDArray[np.int8],
    resident: bool = False,
    limits: Limits = LIMITS,
) -> tuple[NDArray[Any], Counters]:
    """The accumulators, and what the device counted (B's residence apart)."""
    grid = TileGrid(loaded.kernel, *a.shape, b.shape[1])
    operand = pack_resident(loaded, grid, b) if resident else b
    with loaded.device.record() as counters:
        got = STRATEGIES[strategy](Product(loaded, grid, a, operand, Stages(), limits))
    return got, counters


def counts(counters: Counters) -> Counts:
    counted = counters.as_dict()
    return Counts(**{field.name: counted[field.name] for field in dataclasses.fields(Counts)})


def formula(strategy: str, grid: TileGrid, resident: bool, limits: Limits) -> Counts:
    """The table of the strategies, written once more, from the shapes alone."""
    kernel, cores = grid.kernel, grid.kernel.grid
    block_launches = (grid.Mt // cores.rows) * (grid.Nt // cores.columns)
    if strategy == "sequential":
        n = block_launches * grid.Kt
        a, b = cores.rows * kernel.a_tile_bytes, cores.columns * kernel.b_tile_bytes
        c = cores.rows * cores.columns * kernel.c_tile_bytes
        given = a if resident else -(-a // 64) * 64 + b
        return Counts(n, n, n, n * given, n * c)
    parts = -(-grid.Kt // (limits.core_cycles // step_cycles(kernel)))
    launches = block_launches * parts if strategy == "output_tile" else len(cover(grid, limits))
    a, b = grid.Mt * grid.Kt * kernel.a_tile_bytes, grid.Kt * grid.Nt * kernel.b_tile_bytes
    given = a if resident else -(-a // 64) * 64 + b
    return Counts(launches, 1, 1, given, parts * grid.Mt * grid.Nt * kernel.c_tile_bytes)


@every_kernel
@every_strategy_and_limit
@every_residence
def test_the_product_is_exact_and_its_counts_equal_the_formula(
    npu: NpuDevice, kernel: Kernel, strategy: str, resident: bool, limit: str
) -> None:
    loaded = npu.load(kernel)
    for seed, (m, k, n) in enumerate(SHAPES):
        a, b = random_int8(seed, m, k), random_int8(seed + 9, k, n)
        grid = TileGrid(kernel, m, k, n)
        limits = limits_of(limit, grid)
        got, counters = run(strategy, loaded, a, b, resident, limits)
        assert_equal_bits(got, product_int32(a, b))
        assert counts(counters) == formula(strategy, grid, resident, limits)
        assert counts(counters) == expected(strategy, grid, resident, limits)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_parts_of_k_were_added_in_serves_the_next_product(
    npu: NpuDevice, strategy: str
) -> None:
    """In the same lent buffers: lines of them that the host had written and not synced, the CPU's
    cache would write over the NPU's result."""
    loaded = npu.load(KERNELS["16x16"])
    grid = TileGrid(loaded.kernel, 33, 70, 50)
    for seed in range(3):
        a, b = random_int8(seed, 33, 70), random_int8(seed + 9, 70, 50)
        got, counters = run(strategy, loaded, a, b, limits=limits_of("parts of K", grid))
        assert_equal_bits(got, product_int32(a, b))
        assert bool(counters.allocations) == (seed == 0)


def test_small_limits_really_split() -> None:
    """Else the test above would show nothing about parts."""
    grid = TileGrid(KERNELS["16x16"], 40, 70, 130)
    launches = {name: len(cover(grid, limits_of(name, grid))) for name in LIMIT_NAMES}
    assert launches["usual limits"] == 1
    assert launches["parts of K"] == 3 * 9 * 2
    assert launches["parts of the blocks"] > 9
    assert launches["short streams"] > 1
    assert expected("batched", grid, limits=limits_of("parts of K", grid)).bytes_from_device == (
        2 * grid.c_bytes
    )


CUBE = 512


@pytest.mark.parametrize("npu", ["emulated", ON_A_REAL_NPU], indirect=True)
@pytest.mark.parametrize(
    ("strategy", "launches", "syncs"),
    [("sequential", 32_768, 65_536), ("output_tile", 1_024, 2), ("batched", 1, 2)],
)
def test_a_512_cube_takes_these_launches_and_syncs(
    npu: NpuDevice, strategy: str, launches: int, syncs: int
) -> None:
    a, b = random_int8(1, CUBE, CUBE), random_int8(2, CUBE, CUBE)
    got, counters = run(strategy, npu.load(KERNELS["16x16"]), a, b)
    assert_equal_bits(got, product_int32(a, b))
    assert counters.launches == launches
    assert counters.syncs_to_device + counters.syncs_from_device == syncs


@every_strategy
@pytest.mark.parametrize("fill", [(-128, -128), (-128, 127), (127, 127)])
def test_extreme_operands_are_exact(npu: NpuDevice, strategy: str, fill: tuple[int, int]) -> None:
    a, b = np.full((17, 100), fill[0], np.int8), np.full((100, 18), fill[1], np.int8)
    got, _ = run(strategy, npu.load(KERNELS["16x16"]), a, b)
    assert_equal_bits(got, np.full((17, 18), 100 * fill[0] * fill[1], np.int32))


@pytest.fixture
def emulated() -> EmulatedDevice:
    return EmulatedDevice()


@every_kernel
@every_strategy_and_limit
@every_residence
def test_the_array_executes_what_the_host_counts(
    emulated: EmulatedDevice, kernel: Kernel, strategy: str, resident: bool, limit: str
) -> None:
    """Each block of C streams its whole rows of A and columns of B, whatever the strategy."""
    loaded = emulated.load(kernel)
    a, b = random_int8(3, 40, 70), random_int8(4, 70, 50)
    grid = TileGrid(kernel, 40, 70, 50)
    limits = limits_of(limit, grid)
    _, counters = run(strategy, loaded, a, b, resident, limits)
    machine, cores = loaded.machine_counters, kernel.grid
    block_steps = grid.Mb * grid.Nb * grid.Kt
    read = cores.rows * kernel.a_tile_bytes + cores.columns * kernel.b_tile_bytes
    assert machine.launches == counters.launches
    assert machine.kernel_calls == block_steps * cores.rows * cores.columns
    assert machine.dma_bytes == block_steps * read + counters.bytes_from_device


def test_one_launch_makes_the_transfers_of_its_sequence(emulated: EmulatedDevice) -> None:
    kernel = KERNELS["2x2 cores"]
    loaded = emulated.load(kernel)
    run("batched", loaded, random_int8(5, 40, 20), random_int8(6, 20, 90))
    (launch,) = cover(TileGrid(kernel, 40, 20, 90))
    steps = launch_sequence(kernel, launch.shape).steps
    assert loaded.machine_counters.dma_tasks == sum(isinstance(s, Transfer) for s in steps)


@every_strategy
def test_an_instruction_stream_is_synced_once_and_counted_apart(
    npu: NpuDevice, strategy: str
) -> None:
    kernel = KERNELS["2x2 cores"]
    loaded, grid = npu.load(kernel), TileGrid(kernel, 30, 40, 70)
    recorder = LaunchRecorder(loaded)
    a, b = random_int8(7, 30, 40), random_int8(8, 40, 70)
    _, first = run(strategy, loaded, a, b)
    streams = {stream for stream, _ in recorder.launches}
    assert first.instruction_syncs == len(streams) == 1
    assert first.instruction_bytes == sum(map(len, streams)) > 0
    _, again = run(strategy, loaded, a, b)
    assert (again.instruction_syncs, again.instruction_bytes) == (0, 0)
    assert counts(again) == counts(first) == expected(strategy, grid)
    assert npu.totals.instruction_syncs == 1


def test_launches_of_two_shapes_need_two_streams(npu: NpuDevice) -> None:
    kernel = KERNELS["16x16"]
    grid = TileGrid(kernel, 16, 16 * 8, 16)
    limits = Limits(core_cycles=3 * step_cycles(kernel))  # parts of 3, 3 and 2 steps
    _, counters = run(
        "batched", npu.load(kernel), random_int8(1, 16, 128), random_int8(2, 128, 16), limits=limits
    )
    shapes = {launch.shape for launch in cover(grid, limits)}
    assert counters.instruction_syncs == len(shapes) == 2
    assert counters.instruction_bytes == sum(len(launch_stream(kernel, shape)) for shape in shapes)


class LaunchRecorder:
    """Keeps what a loaded kernel is asked to launch, and lets it be launched."""

    def __init__(self, loaded: LoadedKernel) -> None:
        self.launches: Launches = []
        self._launch = loaded.launch_all
        loaded.launch_all = self.record  # type: ignore[method-assign]

    def record(self, launches: Iterable[tuple[bytes, Sequence[Buffer]]]) -> None:
        asked = [(stream, tuple(buffers)) for stream, buffers in launches]
        self.launches += asked
        self._launch(asked)


def memory(buffer: Buffer) -> tuple[int, int]:
    """First address and end of a buffer's host side."""
    start = buffer.host.__array_interface__["data"][0]
    return start, start + buffer.nbytes


def owner(buffer: Buffer) -> Any:
    return buffer.host if buffer.host.base is None else buffer.host.base


@every_kernel
@every_residence
@pytest.mark.parametrize("limit", LIMIT_NAMES)
@pytest.mark.parametrize("strategy", ["output_tile", "batched"])
def test_views_of_c_fill_one_buffer_without_overlap(
    npu: NpuDevice, kernel: Kernel, strategy: str, resident: bool, limit: str
) -> None:
    loaded, grid = npu.load(kernel), TileGrid(kernel, 33, 70, 50)
    recorder = LaunchRecorder(loaded)
    a, b = random_int8(1, 33, 70), random_int8(2, 70, 50)
    _, counters = run(strategy, loaded, a, b, resident, limits_of(limit, grid))
    views = sorted(memory(c) for _, (_, _, c) in recorder.launches)
    assert len(views) == counters.launches
    assert all(end == start for (_, end), (start, _) in pairwise(views))
    assert views[-1][1] - views[0][0] == counters.bytes_from_device
    assert len({id(owner(c)) for _, (_, _, c) in recorder.launches}) == 1


@every_kernel
@every_strategy
def test_a_and_b_are_regions_of_one_buffer_that_share_no_cache_line(
    npu: NpuDevice, kernel: Kernel, strategy: str
) -> None:
    loaded = npu.load(kernel)
    recorder = LaunchRecorder(loaded)
    run(strategy, loaded, random_int8(1, 33, 70), random_int8(2, 70, 50))
    owners = {id(owner(view)) for _, (a, b, _) in recorder.launches for view in (a, b)}
    assert len(owners) == 1
    a_end = max(memory(a)[1] for _, (a, _, _) in recorder.launches)
    a_start = min(memory(a)[0] for _, (a, _, _) in recorder.launches)
    b_start = min(memory(b)[0] for _, (_, b, _) in recorder.launches)
    assert b_start >= a_end
    assert (b_start - a_start) % 64 == 0


@every_strategy
def test_a_resident_b_is_used_where_it_lies(npu: NpuDevice, strategy: str) -> None:
    kernel = KERNELS["2x2 cores"]
    loaded, grid = npu.load(kernel), TileGrid(kernel, 9, 30, 40)
    b = random_int8(2, 30, 40)
    with npu.record() as counters:
        resident = pack_resident(loaded, grid, b)
    one_of_b = {"syncs_to_device": 1, "bytes_to_device": grid.b_bytes}
    assert counters == Counters(**one_of_b, allocations=1, allocated_bytes=grid.b_bytes)
    recorder = LaunchRecorder(loaded)
    for seed in (3, 4):
        a = random_int8(seed, 9, 30)
        got = STRATEGIES[strategy](Product(loaded, grid, a, resident, Stages()))
        assert_equal_bits(got, product_int32(a, b))
    assert {id(owner(view)) for _, (_, view, _) in recorder.launches} == {id(owner(resident))}


@every_strategy
def test_host_time_is_told_by_stage(npu: NpuDevice, strategy: str) -> None:
    kernel, stages = KERNELS["16x16"], Stages()
    a, b = random_int8(1, 20, 20), random_int8(2, 20, 20)
    STRATEGIES[strategy](Product(npu.load(kernel), TileGrid(kernel, 20, 20, 20), a, b, stages))
    assert set(stages.seconds) == {"pack", "sync", "launch", "accumulate", "unpack"}
    assert min(stages.seconds.values()) >= 0
    assert stages.seconds["launch"] > 0


@every_strategy
def test_streams_are_for_the_target_of_the_device(strategy: str) -> None:
    """Of eight columns, which npu1 has not; the array refuses a stream for another target."""
    kernel = dataclasses.replace(on_cores(1, 8), targets=("npu2",))
    device = EmulatedDevice()
    device.target = NPU2
    a, b = random_int8(1, 20, 16), random_int8(2, 16, 140)
    with device:
        found = npu_matmul(a, b, dtype=np.int32, device=device, kernel=kernel, strategy=strategy)
        assert self_test(device.load(kernel)) is None
    assert_equal_bits(found, product_int32(a, b))


def test_a_stage_that_comes_again_adds_to_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 2.0, 10.0, 14.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    stages = Stages()
    for _ in range(2):
        with stages.stage("sync"):
            pass
    assert stages.seconds == {"sync": 5.0}
