"""One contract for every NPU device, then what is the emulated and the CPU device's own."""

from __future__ import annotations

import dataclasses
import doctest
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from comparing import assert_equal_bits, product_int32, random_int8
from numpy.typing import NDArray

from npu_matmul import device as devices
from npu_matmul import last_call, npu_matmul
from npu_matmul.assemble import assemble
from npu_matmul.design import design_text
from npu_matmul.device import (
    Buffer,
    Counters,
    LaunchFailed,
    NpuDevice,
)
from npu_matmul.device import npu as npu_device
from npu_matmul.device.emulated import EmulatedDevice
from npu_matmul.emulator.shim import FifoChannel
from npu_matmul.instructions import StreamError, WaitToken, decode
from npu_matmul.kernel import CoreGrid, TileShape, load_kernel
from npu_matmul.launch import argument_bytes, launch_sequence
from npu_matmul.mlir.elaborate import overlay_of_text
from npu_matmul.schedule import c_order, cover
from npu_matmul.sequence import Sequence, WriteParameter
from npu_matmul.streams import launch_stream
from npu_matmul.tiler import TileGrid, pack_a, pack_b, unpack_c

KERNEL = load_kernel("matmul_16x16")
SMALL = dataclasses.replace(KERNEL, tile=TileShape(4, 8, 8))
ON_FOUR_CORES = dataclasses.replace(SMALL, grid=CoreGrid(2, 2))


# A real NPU shares its memory with the host: there is nothing to lag behind.
two_sides = pytest.mark.parametrize("npu", ["emulated", "double"], indirect=True)
# Nor may a program write what the NPU writes: the CPU's cache would write its lines over that.
two_arrays = pytest.mark.parametrize("npu", ["emulated"], indirect=True)


class Launchable:
    """One product of one launch, by hand: buffers filled and synced, everything ready to start."""

    def __init__(self, npu: NpuDevice, seed: int = 1) -> None:
        self.a, self.b = random_int8(seed, 40, 50), random_int8(seed + 1, 50, 20)
        self.grid = TileGrid(KERNEL, 40, 50, 20)
        self.loaded = npu.load(KERNEL)
        self.launches = cover(self.grid)
        self.shape = self.launches[0].shape
        self.stream = launch_stream(KERNEL, self.shape)
        sizes = argument_bytes(KERNEL, self.shape)
        self.buffers: list[Buffer] = [npu.alloc(nbytes) for nbytes in sizes]
        pack_a(self.a, self.grid, self.buffers[0].host.view(np.int8))
        pack_b(self.b, self.grid, self.buffers[1].host.view(np.int8))
        for buffer in self.buffers[:2]:
            buffer.sync_to_device()

    def launch(self) -> None:
        self.loaded.launch(self.stream, self.buffers).wait(10.0)

    def host_result(self) -> NDArray[Any]:
        packed = self.buffers[2].host.view(np.int32)
        return unpack_c(packed, c_order(self.grid, self.launches), self.grid)

    def assert_right(self) -> None:
        self.launch()
        self.buffers[2].sync_from_device()
        assert_equal_bits(self.host_result(), product_int32(self.a, self.b))


@pytest.fixture
def ready(npu: NpuDevice) -> Launchable:
    return Launchable(npu)


def filled(npu: NpuDevice, value: int, nbytes: int = 64) -> Buffer:
    buffer = npu.alloc(nbytes)
    buffer.host[:] = value
    return buffer


def test_a_launch_computes_what_was_synced(ready: Launchable) -> None:
    ready.assert_right()


@two_sides
def test_what_the_host_writes_after_the_sync_stays_on_the_host(ready: Launchable) -> None:
    ready.buffers[0].host[:] = 1
    ready.buffers[1].host[:] = 2
    ready.assert_right()


@two_sides
def test_the_host_sees_a_result_only_after_its_sync(ready: Launchable) -> None:
    ready.buffers[2].host[:] = 7
    ready.buffers[2].sync_to_device()
    ready.launch()
    assert (ready.buffers[2].host == 7).all()
    ready.buffers[2].sync_from_device()
    assert_equal_bits(ready.host_result(), product_int32(ready.a, ready.b))


@two_arrays
def test_a_view_shares_both_sides_and_syncs_its_own_bytes_alone(npu: NpuDevice) -> None:
    whole = filled(npu, 1)
    whole.sync_to_device()
    whole.host[:] = 2
    part = whole.view(16, 8)
    assert np.shares_memory(part.host, whole.host)
    part.sync_to_device()
    whole.sync_from_device()
    want = np.repeat(np.array([1, 2, 1], np.uint8), [16, 8, 40])
    assert_equal_bits(whole.host, want)
    whole.host[:] = 9
    whole.view(0, 4).sync_from_device()
    assert_equal_bits(whole.host, np.repeat(np.array([1, 9], np.uint8), [4, 60]))


@two_arrays
def test_a_view_of_a_view_counts_from_the_view(npu: NpuDevice) -> None:
    whole = npu.alloc(64)
    whole.host[:] = np.arange(64)
    inner = whole.view(16, 32).view(8, 4)
    assert inner.nbytes == 4
    assert inner.host.tolist() == [24, 25, 26, 27]
    inner.sync_to_device()
    inner.host[:] = 0
    whole.view(24, 4).sync_from_device()
    assert whole.host[22:30].tolist() == [22, 23, 24, 25, 26, 27, 28, 29]


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(-4, 8), (60, 8), (64, 4), (0, 68), (0, 0), (8, -4)]
)
def test_a_view_must_lie_within_its_buffer(npu: NpuDevice, offset: int, nbytes: int) -> None:
    with pytest.raises(devices.BufferSizeError, match=rf"{offset} to {offset + nbytes} .* 64 B"):
        npu.alloc(64).view(offset, nbytes)


@pytest.mark.parametrize(("offset", "nbytes"), [(2, 8), (4, 6), (1, 3)])
def test_a_view_must_be_whole_words(npu: NpuDevice, offset: int, nbytes: int) -> None:
    with pytest.raises(devices.BufferSizeError, match=rf"{offset} B and size {nbytes} B .* 4 B"):
        npu.alloc(64).view(offset, nbytes)


@pytest.mark.parametrize("nbytes", [0, -4, 1, 6, 63])
def test_a_buffer_is_a_positive_number_of_words(npu: NpuDevice, nbytes: int) -> None:
    with pytest.raises(devices.BufferSizeError, match=f"buffer of {nbytes} B: .* multiple of 4 B"):
        npu.alloc(nbytes)


def test_every_sync_and_launch_is_counted(npu: NpuDevice) -> None:
    with npu.record() as counters:
        ready = Launchable(npu)
        ready.assert_right()
        ready.buffers[2].view(4, 8).sync_to_device()
        ready.assert_right()
    a, b, c = (buffer.nbytes for buffer in ready.buffers)
    want = Counters(
        launches=2,
        syncs_to_device=3,
        syncs_from_device=2,
        bytes_to_device=a + b + 8,
        bytes_from_device=2 * c,
        instruction_syncs=1,
        instruction_bytes=len(ready.stream),
        allocations=3,
        allocated_bytes=a + b + c,
    )
    assert counters.as_dict() == want.as_dict() == npu.totals.as_dict()


def test_the_stream_that_was_used_longest_ago_goes(
    npu: NpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npu_device, "PREPARED_STREAMS", 2)
    synced = []
    for rows in (16, 32, 16, 48, 16, 48, 32):
        npu_matmul(random_int8(1, rows, 16), random_int8(2, 16, 16), device=npu, kernel=KERNEL)
        synced.append(last_call().instruction_syncs)
    assert synced == [1, 1, 0, 1, 0, 0, 1]


def test_a_record_ends_with_its_block_and_records_may_be_nested(npu: NpuDevice) -> None:
    buffer = filled(npu, 1)
    with npu.record() as outer:
        with npu.record() as empty:
            pass
        buffer.sync_to_device()
        with npu.record() as inner:
            buffer.sync_to_device()
        buffer.sync_to_device()
    buffer.sync_to_device()
    found = [c.syncs_to_device for c in (outer, empty, inner, npu.totals)]
    assert found == [3, 0, 1, 4]


def test_a_record_is_of_its_own_thread(npu: NpuDevice) -> None:
    buffer = filled(npu, 1)
    started, done = threading.Event(), threading.Event()
    of_other: list[int] = []

    def other() -> None:
        with npu.record() as counters:
            started.set()
            assert done.wait(10)
            buffer.sync_from_device()
        of_other.append(counters.syncs_from_device + counters.syncs_to_device)

    thread = threading.Thread(target=other)
    thread.start()
    assert started.wait(10)
    with npu.record() as counters:
        buffer.sync_to_device()
        buffer.sync_to_device()
        done.set()
        thread.join()
    assert (counters.syncs_to_device, counters.syncs_from_device, of_other) == (2, 0, [1])
    assert (npu.totals.syncs_to_device, npu.totals.syncs_from_device) == (2, 1)


def test_a_kernel_is_loaded_once_and_two_do_not_disturb_each_other(npu: NpuDevice) -> None:
    ready = Launchable(npu)
    assert npu.load(dataclasses.replace(KERNEL)) is ready.loaded
    assert npu.load(SMALL) is not ready.loaded
    ready.assert_right()


FAULTS: dict[str, tuple[Callable[[Launchable], object], type[Exception], str]] = {}


def fault(error: type[Exception], message: str) -> Callable[[Any], Any]:
    """Register a way to launch wrongly, and what it must raise."""

    def register(do: Callable[[Launchable], object]) -> Callable[[Launchable], object]:
        FAULTS[do.__name__.strip("_").replace("_", " ")] = do, error, message
        return do

    return register


@fault(devices.BufferSizeError, r"argument 0 is \d+ B; the stream reaches \d+ B")
def _a_too_small(ready: Launchable) -> None:
    a = ready.buffers[0]
    ready.loaded.launch(ready.stream, [a.view(0, a.nbytes - 4), *ready.buffers[1:]])


@fault(devices.BufferSizeError, r"argument 2 is \d+ B; the stream reaches \d+ B")
def _c_too_small(ready: Launchable) -> None:
    c = ready.buffers[2]
    ready.loaded.launch(ready.stream, [*ready.buffers[:2], c.view(4, c.nbytes - 4)])


@fault(devices.BufferSizeError, "argument 2 is missing")
def _c_missing(ready: Launchable) -> None:
    ready.loaded.launch(ready.stream, ready.buffers[:2])


@fault(devices.BufferSizeError, "argument 1 is 4 B")
def _fails_in_the_middle_of_several(ready: Launchable) -> None:
    good, bad = ready.buffers, [ready.buffers[0], ready.buffers[1].view(0, 4), ready.buffers[2]]
    ready.loaded.launch_all([(ready.stream, good), (ready.stream, bad), (ready.stream, good)])


@fault(devices.DeviceError, r"buffer 0 belongs to another device '\w+' than .*that one's alloc")
def _buffer_of_another_device(ready: Launchable) -> None:
    foreign = type(ready.loaded.device)().alloc(ready.buffers[0].nbytes)
    foreign.sync_to_device()
    ready.loaded.launch(ready.stream, [foreign, *ready.buffers[1:]])


@fault(
    StreamError, r"shim \(0, 0\) MM2S 0 reads words that shim \(0, 0\) S2MM 0 may still be writing"
)
def _a_and_c_overlap(ready: Launchable) -> None:
    a, b, c = ready.buffers
    whole = ready.loaded.device.alloc(a.nbytes + c.nbytes)
    whole.sync_to_device()
    ready.loaded.launch(
        ready.stream, [whole.view(0, a.nbytes), b, whole.view(a.nbytes - 4, c.nbytes)]
    )


@fault(StreamError, "0 B")
def _no_stream(ready: Launchable) -> None:
    ready.loaded.launch(b"", ready.buffers)


@fault(StreamError, "cut off|differ")
def _stream_cut_off(ready: Launchable) -> None:
    ready.loaded.launch(ready.stream[:-8], ready.buffers)


@fault(StreamError, "no known target")
def _stream_of_another_target(ready: Launchable) -> None:
    ready.loaded.launch(b"\0\1\7\7" + ready.stream[4:], ready.buffers)


@fault(StreamError, "never waited for")
def _stream_without_its_wait(ready: Launchable) -> None:
    whole = decode(ready.stream)
    assert isinstance(whole.operations[-1], WaitToken)
    cut = dataclasses.replace(whole, operations=whole.operations[:-1])
    ready.loaded.launch(cut.encode(), ready.buffers)


def _with_steps(ready: Launchable, steps: int) -> bytes:
    """The stream, but with another number of K steps told to the cores."""
    good = launch_sequence(KERNEL, ready.shape)
    changed = [
        dataclasses.replace(step, value=steps) if isinstance(step, WriteParameter) else step
        for step in good.steps
    ]
    overlay = overlay_of_text(design_text(KERNEL), "matmul_16x16.mlir")
    return assemble(Sequence(good.name, good.arguments, tuple(changed)), overlay)


EMULATED_ONLY = {"too many steps", "too few steps", "stream for another partition"}


@fault(LaunchFailed, "nothing can move")
def _too_many_steps(ready: Launchable) -> None:
    ready.loaded.launch(_with_steps(ready, ready.shape.steps + 1), ready.buffers).wait(2.0)


@fault(LaunchFailed, "not at rest")
def _too_few_steps(ready: Launchable) -> None:
    ready.loaded.launch(_with_steps(ready, ready.shape.steps - 1), ready.buffers).wait(2.0)


@fault(LaunchFailed, "2 columns")
def _stream_for_another_partition(ready: Launchable) -> None:
    shape = cover(TileGrid(ON_FOUR_CORES, 8, 8, 8))[0].shape
    ready.loaded.launch(launch_stream(ON_FOUR_CORES, shape), ready.buffers).wait(2.0)


@pytest.mark.parametrize(("do", "error", "message"), FAULTS.values(), ids=FAULTS)
def test_after_a_refused_or_failed_launch_the_next_is_right(
    request: pytest.FixtureRequest,
    ready: Launchable,
    do: Callable[[Launchable], object],
    error: type[Exception],
    message: str,
) -> None:
    if ready.loaded.device.name != "emulated" and not EMULATED_ONLY.isdisjoint(
        request.node.callspec.id.split("-")
    ):
        pytest.skip("an NPU hangs, or goes on with wrong data: it cannot tell")
    for _ in range(2):
        with pytest.raises(error, match=message):
            do(ready)
        ready.assert_right()


@pytest.mark.parametrize("name", ["stream without its wait", "no stream", "c too small"])
def test_a_refused_launch_is_not_counted(ready: Launchable, name: str) -> None:
    do, error, _ = FAULTS[name]
    ready.launch()
    with ready.loaded.device.record() as counters, pytest.raises(error):
        do(ready)
    assert counters == Counters()


def test_views_side_by_side_do_not_race(ready: Launchable) -> None:
    a, b, c = ready.buffers
    whole = ready.loaded.device.alloc(a.nbytes + c.nbytes)
    whole.host[: a.nbytes] = a.host
    whole.sync_to_device()
    ready.buffers = [whole.view(0, a.nbytes), b, whole.view(a.nbytes, c.nbytes)]
    ready.assert_right()


def test_a_closed_device_says_so(ready: Launchable) -> None:
    npu = ready.loaded.device
    npu.close()
    for use in (ready.launch, lambda: npu.alloc(4), lambda: npu.load(KERNEL)):
        with pytest.raises(devices.DeviceError, match=r"was closed; open it again: open_device\('"):
            use()


def test_a_closed_emulated_device_keeps_no_kernel() -> None:
    npu = EmulatedDevice()
    loaded = weakref.ref(npu.load(KERNEL))
    npu.close()
    gc.collect()
    assert loaded() is None


def test_fresh_emulated_memory_is_poisoned_on_both_sides() -> None:
    buffer = EmulatedDevice().alloc(16)
    assert set(buffer.host.tolist()) == {0xA5}
    buffer.host[:] = 0
    buffer.sync_from_device()
    assert set(buffer.host.tolist()) == {0xA5}


@pytest.mark.parametrize("operand", [0, 1])
def test_the_emulated_device_refuses_bytes_that_were_never_synced(operand: int) -> None:
    npu = EmulatedDevice()
    ready = Launchable(npu)
    unsynced = npu.alloc(ready.buffers[operand].nbytes)
    unsynced.host[:] = 0
    unsynced.view(0, unsynced.nbytes - 4).sync_to_device()  # all but the last word
    buffers = [unsynced if i == operand else b for i, b in enumerate(ready.buffers)]
    with pytest.raises(LaunchFailed, match="never synced to the device"):
        ready.loaded.launch(ready.stream, buffers).wait(2.0)
    ready.assert_right()


def test_an_interrupted_launch_leaves_the_emulated_device_usable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ready = Launchable(EmulatedDevice())

    def interrupt(_: FifoChannel) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FifoChannel, "_open_element", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ready.launch()
    ready.assert_right()


def test_the_docstring_examples_hold() -> None:
    assert doctest.testmod(devices).failed == 0
