"""Every call tells what it did: counts equal the formulas, and a fallback is never silent."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import assert_equal_bits, product_int32, random_int8

from npu_matmul import CallReport, call, last_call, matmul, npu_matmul, pack_b, trace
from npu_matmul.device import (
    Buffer,
    DeviceUnavailable,
    LaunchFailed,
    NpuDevice,
    Run,
    UnknownDevice,
)
from npu_matmul.device.emulated import EmulatedDevice, EmulatedKernel
from npu_matmul.kernel import Kernel
from npu_matmul.precision import PRECISIONS
from npu_matmul.strategies import STRATEGIES, Counts, expected
from npu_matmul.tiler import TileGrid

every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def counts(report: CallReport, times: int = 1) -> Counts:
    """What a report counts, divided by the number of equal products."""
    numbers = (
        report.launches,
        report.syncs_to_device,
        report.syncs_from_device,
        report.bytes_to_device,
        report.bytes_from_device,
    )
    assert all(number % times == 0 for number in numbers)
    return Counts(*(number // times for number in numbers))


@every_strategy
def test_the_report_of_a_call_equals_the_formula(
    npu: NpuDevice, int8_kernel: Kernel, strategy: str
) -> None:
    a, b = random_int8(1, 40, 50), random_int8(2, 50, 60)
    npu_matmul(a, b, device=npu, kernel=int8_kernel, strategy=strategy)
    report, grid = last_call(), TileGrid(int8_kernel, 40, 50, 60)
    assert counts(report) == expected(strategy, grid)
    assert report.instruction_syncs == 1
    assert report.instruction_bytes > 0
    assert (report.device, report.kernel) == (npu.name, int8_kernel.name)
    assert report.strategy == strategy
    assert "as asked" in report.reason
    assert report.padding == grid.padding > 0
    stages = {"convert", "pack", "sync", "launch", "accumulate", "unpack"}
    assert set(report.seconds) == stages
    npu_matmul(a, b, device=npu, kernel=int8_kernel, strategy=strategy, dtype=np.int32)
    assert counts(last_call()) == expected(strategy, grid)
    assert last_call().instruction_syncs == 0


def test_batched_is_taken_when_nothing_is_asked(npu: NpuDevice) -> None:
    a = random_int8(1, 40, 40)
    npu_matmul(a, a, device=npu)
    assert last_call().strategy == "batched"
    assert (last_call().launches, last_call().syncs_to_device) == (1, 1)


@every_strategy
def test_a_resident_b_moves_no_weight_bytes(
    npu: NpuDevice, int8_kernel: Kernel, strategy: str
) -> None:
    b = random_int8(1, 50, 60)
    with npu.record() as packing:
        packed = pack_b(b, device=npu, kernel=int8_kernel)
    grid = TileGrid(int8_kernel, 40, 50, 60)
    assert (packing.syncs_to_device, packing.bytes_to_device) == (1, grid.b_bytes)
    for seed in (2, 3):
        a = random_int8(seed, 40, 50)
        got = npu_matmul(a, packed, strategy=strategy, dtype=np.int32)
        assert_equal_bits(got, product_int32(a, b))
        assert counts(last_call()) == expected(strategy, grid, resident=True)
    assert "B is packed for it" in last_call().reason
    if strategy != "sequential":
        assert last_call().bytes_to_device == grid.a_bytes


def test_a_stack_times_one_matrix_is_one_product_and_a_stack_of_both_is_many(
    npu: NpuDevice, int8_kernel: Kernel
) -> None:
    a = random_int8(1, 3, 20, 50)
    npu_matmul(a, random_int8(2, 50, 30), device=npu, kernel=int8_kernel)
    assert counts(last_call()) == expected("batched", TileGrid(int8_kernel, 60, 50, 30))
    npu_matmul(a, random_int8(2, 3, 50, 30), device=npu, kernel=int8_kernel)
    assert counts(last_call(), 3) == expected("batched", TileGrid(int8_kernel, 20, 50, 30))


def test_the_cpu_reports_no_launches(npu: NpuDevice) -> None:
    a = random_int8(1, 20, 20)
    npu_matmul(a, a, device="cpu")
    report = last_call()
    assert (report.device, report.kernel, report.strategy) == ("cpu", None, None)
    assert counts(report) == Counts(0, 0, 0, 0, 0)
    assert report.padding == 0
    assert "without kernels" in report.reason
    assert set(report.seconds) == {"pack", "compute"}


@pytest.mark.parametrize("precision", [None, *PRECISIONS])
@pytest.mark.parametrize("given", ["nothing", "out", "overlapping", "another order", "trace"])
def test_the_straight_way_to_the_host_differs_in_nothing_but_its_stages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: str | None, given: str
) -> None:
    """Of a product with a packed B: an ``out`` that does not suit goes the longer way, as does a
    call that a trace is to see."""
    a, b = random_int8(1, 5000, 70), random_int8(2, 70, 70)
    if precision:
        a, b = a.astype(np.float32), b.astype(np.float32)
    packed, straight = pack_b(b, device="cpu", precision=precision), []
    want = npu_matmul(a, packed, on_error="cpu")
    longer, take = last_call(), matmul.straight
    monkeypatch.setattr(
        matmul, "straight", lambda *args: straight.append(take(*args)) or straight[-1]
    )
    outs = {
        "out": np.empty_like(a),
        "overlapping": a.copy(),
        "another order": np.empty((70, 5000), a.dtype).T,
    }
    out = outs.get(given)
    with trace(tmp_path / "trace.json") if given == "trace" else nullcontext():
        got = npu_matmul(out if given == "overlapping" else a, packed, out)
    assert_equal_bits(got, want)
    assert got is out or out is None
    assert len(straight) == 1
    assert (straight[0] is not None) == (given in ("nothing", "out"))
    assert replace(last_call(), seconds={}) == replace(longer, seconds={})
    assert "compute" in last_call().seconds


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_an_empty_product_computes_nothing_on_the_host_that_packed_b(
    shape: tuple[int, int, int],
) -> None:
    M, K, N = shape
    packed = pack_b(np.ones((K, N), np.int8), device="cpu")
    assert_equal_bits(npu_matmul(np.ones((M, K), np.int8), packed), np.zeros((M, N), np.int8))
    assert (last_call().arithmetic, last_call().seconds) == ("", {})


def test_an_empty_product_costs_nothing(npu: NpuDevice) -> None:
    npu_matmul(np.empty((3, 0), np.int8), np.empty((0, 4), np.int8), device=npu)
    assert counts(last_call()) == Counts(0, 0, 0, 0, 0)
    assert last_call().padding == 0


def test_the_report_is_of_the_last_completed_call_of_its_thread(npu: NpuDevice) -> None:
    a = random_int8(1, 20, 20)
    npu_matmul(a, a, device=npu, strategy="output_tile")
    before = last_call()
    with pytest.raises(ValueError, match="mismatch"):
        npu_matmul(a, a[:-1], device=npu)
    assert last_call() is before
    in_thread: list[Any] = []

    def other() -> None:
        try:
            last_call()
        except LookupError as error:
            in_thread.append(str(error))
        npu_matmul(a, a, device="cpu")
        in_thread.append(last_call().device)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert in_thread == ["no npu_matmul call has completed in this thread yet", "cpu"]
    assert last_call() is before


def test_threads_on_one_device_get_their_own_products_and_counts(
    npu: NpuDevice, int8_kernel: Kernel
) -> None:
    weights = random_int8(99, 33, 40)
    packed = pack_b(weights, device=npu, kernel=int8_kernel)
    together = threading.Barrier(8)

    def work(worker: int) -> None:
        together.wait(30)
        for turn in range(6):
            strategy = list(STRATEGIES)[(worker + turn) % len(STRATEGIES)]
            rows = 1 + 7 * worker + turn
            a, b = random_int8(worker, rows, 33), random_int8(turn, 33, 40)
            resident = turn % 2 == 1
            operand, matrix = (packed, weights) if resident else (b, b)
            got = npu_matmul(
                a, operand, device=npu, kernel=int8_kernel, strategy=strategy, dtype=np.int32
            )
            assert_equal_bits(got, product_int32(a, matrix))
            grid = TileGrid(int8_kernel, rows, 33, 40)
            assert counts(last_call()) == expected(strategy, grid, resident)

    with npu.record() as of_this_thread, ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert of_this_thread.launches == 0


class _Broken(Run):
    def wait(self, timeout_s: float) -> None:
        raise LaunchFailed("the launch failed: no answer\nand a long explanation")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> NpuDevice:
    """A device whose every launch after the first fails."""
    monkeypatch.setattr(call, "_given_up", set())
    launched: list[int] = []
    start = EmulatedKernel._start

    def start_once(self: EmulatedKernel, instructions: Any, buffers: Sequence[Buffer]) -> Run:
        launched.append(1)
        return start(self, instructions, buffers) if len(launched) == 1 else _Broken()

    monkeypatch.setattr(EmulatedKernel, "_start", start_once)
    return EmulatedDevice()


@every_strategy
def test_a_failing_device_raises_and_after_it_the_next_call_works(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    npu = EmulatedDevice()
    a, b = random_int8(1, 40, 40), random_int8(2, 40, 40)
    with monkeypatch.context() as patch:
        patch.setattr(EmulatedKernel, "_start", lambda *_: _Broken())
        with pytest.raises(LaunchFailed, match="no answer"):
            npu_matmul(a, b, device=npu, strategy=strategy)
    got = npu_matmul(a, b, device=npu, strategy=strategy, dtype=np.int32)
    assert_equal_bits(got, product_int32(a, b))
    assert last_call().device == npu.name


@every_strategy
@pytest.mark.parametrize("resident", [False, True])
def test_on_error_cpu_gives_the_same_result_and_says_so(
    failing: NpuDevice, strategy: str, resident: bool, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = random_int8(1, 40, 50), random_int8(2, 50, 40)
    operand = pack_b(b, device=failing) if resident else b
    npu_matmul(a[:1, :9], b[:9, :1], device=failing)  # the one launch that does not fail
    with caplog.at_level(logging.WARNING, logger="npu_matmul"):
        for _ in range(3):
            got = npu_matmul(
                a, operand, device=failing, strategy=strategy, on_error="cpu", dtype=np.int32
            )
            assert_equal_bits(got, product_int32(a, b))
            report = last_call()
            assert (report.device, report.padding) == ("cpu", 0)
            assert report.reason == (
                "finished on the CPU: device 'emulated' failed: the launch failed: no answer"
            )
            assert report.launches == report.syncs_to_device == 1
    (message,) = caplog.messages
    assert "'emulated' failed" in message
    assert "on_error='cpu'" in message


@pytest.mark.parametrize("precision", PRECISIONS)
def test_floats_that_were_packed_for_a_device_that_fails_keep_their_accuracy(
    failing: NpuDevice, precision: str
) -> None:
    a, b = (np.random.default_rng(7).standard_normal((33, 33)) for _ in range(2))
    packed = pack_b(b, device=failing, precision=precision)
    npu_matmul(a[:1, :9], b[:9, :1], device=failing)  # the one launch that does not fail
    got = npu_matmul(a, packed, on_error="cpu")
    assert last_call().device == "cpu"
    want = npu_matmul(a, b, device="cpu", precision=precision)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)  # sums of floats, in another order


def test_a_stack_that_fails_in_its_middle_is_finished_on_the_cpu(
    failing: NpuDevice, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = random_int8(1, 4, 9, 20), random_int8(2, 4, 20, 7)
    with caplog.at_level(logging.WARNING, logger="npu_matmul"):
        got = npu_matmul(a, b, device=failing, on_error="cpu", dtype=np.int32)
    assert_equal_bits(got, product_int32(a, b))
    assert last_call().device == "cpu"
    assert len(caplog.messages) == 1


def test_on_error_cpu_covers_a_device_that_cannot_be_opened(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(call, "_given_up", set())
    monkeypatch.setitem(sys.modules, "pyxrt", None)  # cannot be imported
    a, b = random_int8(1, 9, 20), random_int8(2, 20, 7)
    with pytest.raises(DeviceUnavailable):
        npu_matmul(a, b, device="xrt")
    with caplog.at_level(logging.WARNING, logger="npu_matmul"):
        for _ in range(2):
            got = npu_matmul(a, b, device="xrt", on_error="cpu", dtype=np.int32)
            assert_equal_bits(got, product_int32(a, b))
            assert last_call().device == "cpu"
            assert last_call().reason.startswith("computed on the CPU: ")
            assert "cannot import pyxrt" in last_call().reason
    (message,) = caplog.messages
    assert message.startswith("computing on the CPU, as on_error='cpu' asks: ")
    with pytest.raises(UnknownDevice):
        npu_matmul(a, b, device="gpu", on_error="cpu")


def test_on_error_cpu_changes_nothing_while_the_device_works(npu: NpuDevice) -> None:
    a = random_int8(1, 20, 20)
    got = npu_matmul(a, a, device=npu, on_error="cpu", dtype=np.int32)
    assert_equal_bits(got, product_int32(a, a))
    assert last_call().device == npu.name


def test_on_error_cpu_does_not_hide_a_callers_mistake(npu: NpuDevice) -> None:
    a = random_int8(1, 20, 20)
    with pytest.raises(ValueError, match="mismatch"):
        npu_matmul(a, a[:-1], device=npu, on_error="cpu")
    with pytest.raises(TypeError, match="int64"):
        npu_matmul(a, a.astype(np.int64), device=npu, on_error="cpu")
