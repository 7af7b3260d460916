"""Faults of a real NPU, injected behind pyxrt: nothing hangs, no wrong result comes out, and the
next call works or says why not."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
from comparing import assert_equal_bits, product_int32, random_int8
from pyxrt_double import npu as npu_double
from pyxrt_double.npu import Npu
from xrt_products import opened, ready

from npu_matmul import call, last_call, npu_matmul, open_device
from npu_matmul.device import DeviceError, DeviceUnavailable, LaunchFailed, NpuDevice, xrt_runs
from npu_matmul.device.xrt_errors import (
    AllocationFailed,
    ContextFailed,
    DeviceDeclined,
    LaunchAborted,
    LaunchNotStarted,
    LaunchRejected,
    LaunchTimedOut,
)
from npu_matmul.kernel import load_kernel
from npu_matmul.strategies import STRATEGIES

KERNEL = load_kernel("matmul_16x16")
TIMEOUT_S = 0.05
CREATE = "DRM_IOCTL_AMDXDNA_CREATE_HWCTX IOCTL failed (err={}): Invalid argument"


@pytest.fixture(autouse=True)
def quick(clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for something that never comes waits shortly."""
    monkeypatch.setattr("npu_matmul.device.LoadedKernel.TIMEOUT_S", TIMEOUT_S)
    monkeypatch.setattr(xrt_runs, "DRAIN_S", 4 * TIMEOUT_S)
    monkeypatch.setattr(call, "_given_up", set())


@pytest.fixture
def machine(double: Npu, everything_built: None) -> Iterator[Npu]:
    """A machine whose overlay has been tested, and run lists tried; what hangs ends with it."""
    check(strategy="output_tile")
    yield double
    for context in list(double.contexts):
        for command in context.queue:
            command.hangs = False
    double.vanished = False
    assert xrt_runs.IN_FLIGHT.drain()


def check(seed: int = 1, strategy: str = "batched", on_error: str = "raise") -> None:
    """A product that is right, or an exception."""
    a, b = random_int8(seed, 40, 50), random_int8(seed + 1, 50, 60)
    got = npu_matmul(
        a, b, device="xrt", kernel=KERNEL, strategy=strategy, dtype=np.int32, on_error=on_error
    )
    assert_equal_bits(got, product_int32(a, b))


def fail(machine: Npu, *faults: str, first: int = 1) -> None:
    """Make the next launches go wrong."""
    for number, fault in enumerate(faults):
        machine.faults[machine.launches + first + number] = fault


ONCE = ["hang", "timeout", "abort", "error"]


@pytest.mark.parametrize(
    ("fault", "strategy"),
    [(f, s) for f in ONCE for s in STRATEGIES if (f, s) != ("hang", "sequential")],
)
def test_a_launch_that_fails_once_is_launched_again_in_a_new_context(
    machine: Npu, fault: str, strategy: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = machine.events.count("context made")
    fail(machine, fault, first=3 if strategy == "output_tile" else 1)
    check(seed=5, strategy=strategy)
    report = last_call()
    chained = {"output_tile": 12, "sequential": 1, "batched": 1}[strategy]
    assert (report.device, report.relaunches) == ("xrt", chained)
    assert machine.events.count("context made") == made + 1
    (message,) = caplog.messages
    assert "trying once more in a new hardware context" in message
    check(seed=7, strategy=strategy)
    assert last_call().relaunches == 0


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("hang", LaunchTimedOut, "it had not ended after 0.05 s"),
        ("timeout", LaunchTimedOut, "the driver's watchdog stopped it (TIMEOUT)"),
        ("abort", LaunchAborted, "the driver aborted it (ABORT)"),
        ("error", LaunchRejected, "the firmware reported an error (ERROR)"),
    ],
)
@pytest.mark.parametrize("strategy", ["batched", "output_tile"])
def test_a_second_failure_is_told_apart_and_declines_the_device(
    machine: Npu, fault: str, error: type[LaunchFailed], words: str, strategy: str
) -> None:
    goes_on = (fault, strategy) == ("error", "output_tile")  # with what is behind the chain
    fail(machine, *[fault] * (3 if goes_on else 2))
    with pytest.raises(error) as caught:
        check(seed=5, strategy=strategy)
    message = str(caught.value)
    assert words in message  # what happened
    assert "its hardware context was rebuilt and it was launched once more" in message
    assert "npu-matmul doctor" in message
    launches = machine.launches
    for use in (check, lambda: open_device("xrt").close() or open_device("xrt")):
        with pytest.raises(DeviceDeclined, match="failed twice in a row and this process leaves"):
            use()
    assert machine.launches == launches


def test_a_declined_device_is_replaced_by_the_cpu_where_that_was_asked_for(
    machine: Npu, caplog: pytest.LogCaptureFixture
) -> None:
    fail(machine, "timeout", "timeout")
    with caplog.at_level(logging.WARNING, logger="npu_matmul"):
        for seed in (5, 7, 9):
            check(seed=seed, on_error="cpu")
            assert last_call().device == "cpu"
            assert "'xrt' failed" in last_call().reason
    assert sum("finishing on the CPU" in message for message in caplog.messages) == 1


def test_an_unbuilt_kernel_is_replaced_by_the_cpu_where_that_was_asked_for(double: Npu) -> None:
    check(on_error="cpu")
    assert last_call().device == "cpu"
    assert "not built for npu1" in last_call().reason


@pytest.mark.parametrize(
    ("number", "meaning"),
    [(-2, "hardware contexts"), (-22, "firmware refused"), (-19, "gone or has no columns")],
)
def test_a_context_that_cannot_be_had_is_explained(
    double: Npu, everything_built: None, number: int, meaning: str
) -> None:
    double.context_faults.append(CREATE.format(number))
    with pytest.raises(ContextFailed, match=meaning):
        check()
    check()
    assert last_call().device == "xrt"


def test_a_context_that_cannot_be_rebuilt_declines_the_device(machine: Npu) -> None:
    fail(machine, "timeout")
    machine.context_faults.append(CREATE.format(-22))
    with pytest.raises(LaunchTimedOut, match=r"which failed: a hardware context .*err=-22") as info:
        check()
    assert isinstance(info.value.__cause__, ContextFailed)
    with pytest.raises(DeviceDeclined):
        check()


def test_memory_that_may_not_be_locked_is_explained_and_can_be_cured(
    double: Npu, everything_built: None
) -> None:
    double.open_fails = (
        "mmap(addr=0x7f00, len=67108864, prot=3, flags=8209, offset=0) failed (err=-11): "
        "Resource temporarily unavailable"
    )
    with pytest.raises(DeviceUnavailable, match=r"locks 64 MiB .*raise the memlock limit"):
        check()
    double.open_fails = ""
    check()


def test_no_device_is_explained(double: Npu, everything_built: None) -> None:
    double.devices = 0
    with pytest.raises(DeviceUnavailable, match="its plugin for amdxdna is missing"):
        check()
    check(on_error="cpu")
    assert last_call().device == "cpu"
    double.devices = 1
    check()
    assert last_call().device == "xrt"


def test_a_buffer_that_cannot_be_had_is_refused_and_a_smaller_one_is_not(machine: Npu) -> None:
    device = open_device("xrt")
    assert isinstance(device, NpuDevice)
    machine.lockable_bytes = machine.locked_bytes + 2**20
    big = random_int8(1, 2048, 1024)
    with pytest.raises(AllocationFailed, match=r"a buffer of [0-9,]+ B: .*all buffers of this pro"):
        npu_matmul(big, big.T, device="xrt", kernel=KERNEL)
    check()
    assert last_call().device == "xrt"


def test_memory_that_only_circles_hold_is_given_back_first(machine: Npu) -> None:
    device = open_device("xrt")
    assert isinstance(device, NpuDevice)
    machine.lockable_bytes = machine.locked_bytes + 2**20
    circle: list[object] = [device.alloc(2**20)]
    circle.append(circle)
    del circle
    assert device.alloc(2**20).nbytes == 2**20


def test_memory_kept_for_later_calls_is_given_back_too(machine: Npu) -> None:
    device = open_device("xrt")
    assert isinstance(device, NpuDevice)
    with device.lend(2**20):
        pass
    machine.lockable_bytes = machine.locked_bytes + 2**19
    assert device.alloc(2**20).nbytes == 2**20


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_device_that_vanishes_under_way_is_declined(machine: Npu, strategy: str) -> None:
    fail(machine, "vanish")
    with pytest.raises(DeviceError, match="gone or has no columns left"):
        check(strategy=strategy)
    with pytest.raises(DeviceDeclined):
        check()


def test_a_device_that_vanishes_between_calls_is_said_to_be_gone(machine: Npu) -> None:
    machine.vanished = True
    with pytest.raises(DeviceError, match="gone or has no columns left"):
        check()
    check(on_error="cpu")
    assert last_call().device == "cpu"


def test_a_launch_that_is_not_taken_is_tried_again(
    machine: Npu, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyxrt_double.npu import ContextState

    submit, refused = ContextState.submit, []

    def once(self: ContextState, command: object) -> None:
        if not refused:
            refused.append(command)
            raise RuntimeError("DRM_IOCTL_AMDXDNA_EXEC_CMD IOCTL failed (err=-5): I/O error")
        submit(self, command)  # type: ignore[arg-type]

    monkeypatch.setattr(ContextState, "submit", once)
    check()
    assert last_call().relaunches == 1
    monkeypatch.setattr(ContextState, "submit", lambda *_: once.__get__(0)(refused.clear()))
    with pytest.raises(LaunchNotStarted, match="did not take the command"):
        check()


def test_a_chain_whose_last_launch_is_not_taken_is_waited_for(
    machine: Npu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would go on writing memory that is used for something else by then."""
    from pyxrt_double.npu import Command, ContextState

    submit, refused = ContextState.submit, []

    def once(self: ContextState, command: Command) -> None:
        if len(command.launches) == 1 and not refused:
            refused.append(command)
            raise RuntimeError("DRM_IOCTL_AMDXDNA_EXEC_CMD IOCTL failed (err=-5): I/O error")
        submit(self, command)

    monkeypatch.setattr(ContextState, "submit", once)
    launches = machine.launches
    check(seed=5, strategy="output_tile")
    assert machine.launches - launches == 11 + 12
    assert machine.pending_when_made[-1] == 0
    assert last_call().relaunches == 12


def test_others_in_flight_are_launched_again_too(machine: Npu) -> None:
    """The driver aborts what is behind a hanging launch; each is tried again in the one new
    context."""
    loaded, stream, (a, _) = ready(opened())
    outs = [loaded.device.alloc(1024) for _ in range(3)]
    made = machine.events.count("context made")
    fail(machine, "timeout")
    runs = [loaded.launch(stream, [a, a, out]) for out in outs]
    for run in runs:
        run.wait(TIMEOUT_S)
    for out in outs:
        out.sync_from_device()
        assert (out.host.view(np.int32) == 16).all()
    assert machine.events.count("context made") == made + 1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_what_ran_after_an_error_is_not_believed(machine: Npu, order: tuple[int, ...]) -> None:
    """The driver lets a context go on after an error, on an array that holds leftovers."""
    loaded, stream, (a, _) = ready(opened())
    outs = [loaded.device.alloc(1024) for _ in order]
    made = machine.events.count("context made")
    fail(machine, "error", first=2)
    machine.asks_a_step = 100  # so that all are in flight
    runs = [loaded.launch(stream, [a, a, out]) for out in outs]
    machine.asks_a_step = 1
    for number in order:
        runs[number].wait(TIMEOUT_S)
        outs[number].sync_from_device()
        assert (outs[number].host.view(np.int32) == 16).all()
    assert machine.events.count("context made") == made + 1
    assert loaded.device.totals.relaunches == 2  # not the first, which had completed


@pytest.mark.parametrize("fault", ["error", "abort", "timeout"])
def test_after_a_failure_that_nobody_waits_for_the_context_is_a_new_one(
    machine: Npu, fault: str
) -> None:
    loaded, stream, (a, c) = ready(opened())
    made = machine.events.count("context made")
    fail(machine, fault)
    loaded.launch(stream, [a, a, c])
    assert xrt_runs.IN_FLIGHT.drain()
    check(strategy="output_tile")
    assert last_call().relaunches == 0
    assert machine.events.count("context made") == made + 1


def test_after_a_failure_that_ctrl_c_hid_the_context_is_a_new_one(
    machine: Npu, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, stream, (a, c) = ready(opened())
    made = machine.events.count("context made")
    fail(machine, "error")
    run, sleep = loaded.launch(stream, [a, a, c]), xrt_runs.time.sleep

    def interrupted(seconds: float) -> None:
        monkeypatch.setattr(xrt_runs.time, "sleep", sleep)
        raise KeyboardInterrupt

    monkeypatch.setattr(xrt_runs.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.wait(TIMEOUT_S)
    check()
    assert last_call().relaunches == 0
    assert machine.events.count("context made") == made + 1


def test_what_is_not_the_npus_fault_does_not_decline_it(
    machine: Npu, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, stream, (a, c) = ready(opened())
    fail(machine, "timeout")
    run = loaded.launch(stream, [a, a, c])
    with monkeypatch.context() as patch:
        patch.setattr(npu_double, "HEAP_BYTES", 0)  # for the new context's instructions
        for _ in range(2):
            with pytest.raises(AllocationFailed, match="instruction streams are used up") as caught:
                run.wait(TIMEOUT_S)
            assert isinstance(caught.value.__cause__, LaunchTimedOut)
    check()
    assert last_call().device == "xrt"


def test_a_launch_behind_a_full_queue_that_hangs_gets_a_new_context(machine: Npu) -> None:
    loaded, stream, (a, _) = ready(opened())
    outs = [loaded.device.alloc(1024) for _ in range(5)]
    made = machine.events.count("context made")
    fail(machine, "hang")
    runs = [loaded.launch(stream, [a, a, out]) for out in outs]
    runs[-1].wait(TIMEOUT_S)
    outs[-1].sync_from_device()
    assert (outs[-1].host.view(np.int32) == 16).all()
    assert machine.events.count("context made") == made + 1


def test_memory_of_a_launch_that_never_ended_is_not_used_again(machine: Npu) -> None:
    loaded, stream, (a, out) = ready(opened())
    fail(machine, "hang")
    loaded.launch(stream, [a, a, out]).wait(TIMEOUT_S)  # the second try completes
    with pytest.raises(DeviceError, match="may still use this buffer"):
        loaded.launch(stream, [a, a, out])
    copy = loaded.device.alloc(256)
    copy.host[:] = 1
    copy.sync_to_device()
    loaded.launch(stream, [copy, copy, loaded.device.alloc(1024)]).wait(TIMEOUT_S)


def test_sequential_stops_at_a_launch_that_never_ends(machine: Npu) -> None:
    """Its next launch would need the same memory; the next call has other memory."""
    fail(machine, "hang")
    with pytest.raises(DeviceError, match="may still use this buffer"):
        check(strategy="sequential")
    check(strategy="sequential")
    assert last_call().device == "xrt"


def test_a_failed_launch_stays_failed_when_it_is_waited_for_again(machine: Npu) -> None:
    loaded, stream, (a, c) = ready(opened())
    fail(machine, "error", "error")
    run = loaded.launch(stream, [a, a, c])
    for _ in range(2):
        with pytest.raises(LaunchRejected):
            run.wait(TIMEOUT_S)
