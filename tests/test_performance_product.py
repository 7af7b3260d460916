"""A prediction counts exactly what the emulated NPU counts, and more work never takes less time."""

from __future__ import annotations

import dataclasses
import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import assert_equal_bits, product_int32, random_int8
from hypothesis import example, given, settings
from hypothesis import strategies as st

from npu_matmul import npu_matmul
from npu_matmul.device.emulated import EmulatedDevice
from npu_matmul.kernel import CoreGrid, Kernel, TileShape, load_kernel
from npu_matmul.performance import product
from npu_matmul.performance.host import HostRates, measure_host
from npu_matmul.performance.product import Npu, predict
from npu_matmul.precision import EXACT, PRECISIONS
from npu_matmul.schedule import LIMITS, Limits, step_cycles
from npu_matmul.strategies import STRATEGIES, Product, Stages, pack_resident
from npu_matmul.tiler import TileGrid
from npu_matmul.timeline.trace import trace

SMALL, LARGE = load_kernel("matmul_16x16"), load_kernel("matmul_64x512", "int8")
BF16 = load_kernel("matmul_64x512", "bf16")
TWO_BY_THREE = dataclasses.replace(SMALL, tile=TileShape(4, 8, 16), grid=CoreGrid(2, 3))
ONE_BY_FOUR = dataclasses.replace(SMALL, grid=CoreGrid(1, 4))
KERNELS = {"16x16": SMALL, "64x512": LARGE, "bf16": BF16}
KERNELS |= {"2x3 cores": TWO_BY_THREE, "1x4 cores": ONE_BY_FOUR}
SHAPES = [(1, 1, 1), (70, 40, 90), (130, 70, 260)]
RATES = HostRates(1e9, 2e9, 4e9, copy_a_s=2e-6, copy_b_s=3e-6, add_s=5e-6)


def test_the_docstring_examples_hold() -> None:
    assert not doctest.testmod(product).failed


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("resident", [False, True], ids=["given", "resident"])
def test_counts_and_bytes_are_those_of_the_emulated_npu(
    kernel: Kernel, strategy: str, resident: bool
) -> None:
    device = EmulatedDevice()
    loaded = device.load(kernel)
    for seed, (m, k, n) in enumerate(SHAPES):
        grid = TileGrid(kernel, m, k, n)
        a = random_int8(seed, m, k).astype(kernel.a_dtype)
        b = random_int8(seed + 9, k, n).astype(kernel.b_dtype)
        _agree(loaded, grid, strategy, a, b, resident, LIMITS)


def test_they_agree_where_limits_split_a_product() -> None:
    device = EmulatedDevice()
    loaded = device.load(SMALL)
    m, k, n = 40, 70, 130
    grid, a, b = TileGrid(SMALL, m, k, n), random_int8(1, m, k), random_int8(2, k, n)
    cycles = step_cycles(SMALL)
    for limits in (
        Limits(core_cycles=3 * cycles),
        Limits(core_cycles=2 * grid.Kt * cycles),
        Limits(stream_bytes=16 + 24 + 4 * 164),
    ):
        for strategy in ("output_tile", "batched"):
            _agree(loaded, grid, strategy, a, b, False, limits)


def test_they_agree_where_repeats_need_several_tasks() -> None:
    """More than 64 blocks in the inner loop."""
    loaded = EmulatedDevice().load(TWO_BY_THREE)
    m, k, n = 8 * 70, 8, 48 * 3
    grid, a, b = TileGrid(TWO_BY_THREE, m, k, n), random_int8(1, m, k), random_int8(2, k, n)
    _agree(loaded, grid, "batched", a, b, False, LIMITS)


def _agree(
    loaded: Any, grid: TileGrid, strategy: str, a: Any, b: Any, resident: bool, limits: Limits
) -> None:
    prediction = predict(grid, strategy, resident=resident, limits=limits)
    operand = pack_resident(loaded, grid, b) if resident else b
    before = loaded.machine_counters
    with loaded.device.record() as counters:
        got = STRATEGIES[strategy](Product(loaded, grid, a, operand, Stages(), limits))
    if grid.kernel.a_dtype == np.int8:
        assert_equal_bits(got, product_int32(a, b))
    counted = counters.as_dict()
    for name, value in vars(prediction.counts).items():
        assert counted[name] == value, name
    after = loaded.machine_counters
    assert after.launches - before.launches == prediction.counts.launches
    assert after.kernel_calls - before.kernel_calls == prediction.kernel_calls
    assert after.dma_tasks - before.dma_tasks == prediction.dma_tasks
    assert after.dma_bytes - before.dma_bytes == prediction.dma_bytes


@pytest.mark.parametrize("name", ["16x16", "64x512", "bf16"])
def test_the_formula_takes_as_long_as_an_array_whose_every_transfer_is_timed(
    name: str, tmp_path: Path
) -> None:
    """The emulated array knows only figures and what waits for what; the formula only sums. They
    must agree within 5 %: the formula leaves out the way through the array between two blocks."""
    kernel = KERNELS[name]
    shapes = [(16, 16, 16), (96, 200, 130), (300, 512, 1100)]
    for m, k, n in shapes[: 2 if name == "16x16" else None]:
        a = random_int8(1, m, k).astype(kernel.a_dtype)
        b = random_int8(2, k, n).astype(kernel.b_dtype)
        with trace(tmp_path / "trace.json") as recording:
            npu_matmul(a, b, device="emulated", kernel=kernel)
        launches = next(track for track in recording.npu.tracks if track.kind == "launch")
        at = launches.names.index(f"{kernel.name} {kernel.variant}")
        timed_s = (launches.ends[at] - launches.starts[at]) / 1e9
        array = predict(TileGrid(kernel, m, k, n)).array
        assert timed_s == pytest.approx(array.busy_s + array.ends_s, rel=0.05)


SIZES = st.integers(1, 6000)


@settings(max_examples=60)
@example("2x3 cores", "batched", (25, 15, 152), (25, 15, 392))
@example("1x4 cores", "batched", (15 * 16, 64, 15 * 64), (15 * 16, 64, 16 * 64))
@given(
    st.sampled_from(sorted(KERNELS)),
    st.sampled_from(sorted(STRATEGIES)),
    st.tuples(SIZES, SIZES, SIZES),
    st.tuples(SIZES, SIZES, SIZES),
)
def test_more_work_never_takes_less_time(
    name: str, strategy: str, shape: tuple[int, int, int], more: tuple[int, int, int]
) -> None:
    larger = tuple(max(sizes) for sizes in zip(shape, more, strict=True))
    small, large = (
        predict(TileGrid(KERNELS[name], *sizes), strategy, rates=RATES) for sizes in (shape, larger)
    )
    assert small.device_s <= large.device_s * (1 + 1e-12)
    assert small.total_s <= large.total_s * (1 + 1e-12)


def test_the_strategies_in_order_and_why() -> None:
    grid = TileGrid(SMALL, 512, 512, 512)
    sequential, output_tile, batched = (predict(grid, name) for name in STRATEGIES)
    assert [p.counts.launches for p in (sequential, output_tile, batched)] == [32768, 1024, 1]
    assert sequential.device_s > 32768 * 150e-6
    assert output_tile.device_s == pytest.approx(
        150e-6 + 1023 * 36e-6 + output_tile.array.busy_s + output_tile.array.ends_s
        + output_tile.sync_s
    )  # fmt: skip
    assert batched.device_s < output_tile.device_s < sequential.device_s
    assert (sequential.array.limit, batched.array.limit) == ("launch", "compute")


def test_host_stages_follow_from_bytes_and_rates() -> None:
    grid = TileGrid(SMALL, 64, 48, 32)
    given, resident = (predict(grid, resident=r, rates=RATES).host_s for r in (False, True))
    assert given == {"pack": (64 * 48 + 48 * 32) / 1e9, "unpack": 64 * 32 * 4 / 2e9}
    assert resident == {"pack": 64 * 48 / 1e9, "unpack": 64 * 32 * 4 / 2e9}
    parts = Limits(core_cycles=step_cycles(SMALL))
    cut = predict(grid, "output_tile", rates=RATES, limits=parts)  # K in three
    assert cut.host_s["accumulate"] == pytest.approx(2 * 64 * 32 * 4 / 4e9)


def test_sequential_copies_tiles_and_adds_all_that_comes_back_in_each_launch() -> None:
    grid = TileGrid(SMALL, 64, 48, 32)
    given, resident = (predict(grid, "sequential", resident=r, rates=RATES) for r in (False, True))
    packed_s = {False: (64 * 48 + 48 * 32) / 1e9, True: 64 * 48 / 1e9}
    assert given.host_s["pack"] == pytest.approx(packed_s[False] + 24 * 5e-6)
    assert resident.host_s["pack"] == pytest.approx(packed_s[True] + 24 * 2e-6)
    assert given.host_s["accumulate"] == resident.host_s["accumulate"] == pytest.approx(24 * 5e-6)
    assert given.total_s == pytest.approx(given.device_s + sum(given.host_s.values()))


def test_no_host_no_stages() -> None:
    grid = TileGrid(SMALL, 64, 48, 32)
    assert predict(grid).host_s == {}


@pytest.mark.parametrize(
    ("kernel", "precision"),
    [
        (SMALL, EXACT),
        (LARGE, PRECISIONS["int8"]),
        (BF16, PRECISIONS["bf16"]),
        (BF16, PRECISIONS["bf16x3"]),
    ],
)
def test_the_host_is_measured(kernel: Kernel, precision: Any) -> None:
    rates = measure_host(kernel, precision)
    seconds = rates.copy_a_s, rates.copy_b_s, rates.add_s
    assert min(seconds) > 0 and max(seconds) < 0.1
    assert min(rates.pack, rates.unpack, rates.accumulate) > 1e6  # any machine does that
    assert measure_host(kernel, precision) is rates


def test_terms_are_that_many_products() -> None:
    one, three = (predict(TileGrid(BF16, 1500, 512, 512, terms)) for terms in (1, 3))
    assert three.kernel_calls == 3 * one.kernel_calls
    assert three.array.compute_s < 3 * one.array.compute_s  # C is drained once
    assert three.peak_fraction == predict(TileGrid(BF16, 1500, 3 * 512, 512)).peak_fraction


def test_a_fraction_of_the_targets_peak() -> None:
    npu = Npu.named("npu1", 1.0e9)
    prediction = predict(TileGrid(LARGE, 4096, 4096, 4096), npu=npu)
    assert prediction.peak_fraction == pytest.approx(
        4096**3 / (prediction.device_s * 1e9 * 16 * 256)
    )
    assert 0.3 < prediction.peak_fraction < 1
    on_npu2 = predict(TileGrid(LARGE, 4096, 4096, 4096), npu=Npu.named("npu2", 1.0e9))
    assert on_npu2.peak_fraction == pytest.approx(4096**3 / (on_npu2.device_s * 1e9 * 32 * 512))
