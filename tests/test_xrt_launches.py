"""The device "xrt" on a double of pyxrt: launches, chains, and how all of it ends."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from comparing import random_int8
from pyxrt_double.binding import make_binding
from pyxrt_double.npu import Npu
from xrt_products import KERNEL, check, opened, ready

from npu_matmul import last_call, npu_matmul
from npu_matmul.build import cache
from npu_matmul.device import DeviceError, xrt_kernel, xrt_npu, xrt_runs
from npu_matmul.device.xrt_errors import AllocationFailed
from npu_matmul.device.xrt_kernel import CHAIN_RUNS
from npu_matmul.device.xrt_runs import Flight, Flights
from npu_matmul.instructions import decode
from npu_matmul.kernel import CoreGrid, TileShape
from npu_matmul.schedule import LIMITS, block_launches, cover, step_cycles
from npu_matmul.streams import launch_stream, stream_cycles
from npu_matmul.tiler import TileGrid

ROOT = Path(__file__).resolve().parent


def test_a_product_of_many_launches_goes_in_chains(double: Npu, everything_built: None) -> None:
    check(strategy="output_tile")
    device = opened()
    assert device.npu.chains is True
    a = random_int8(1, 16 * 10, 16)
    chains, starts = double.chains, double.calls["start"]
    npu_matmul(a, a.T, device="xrt", kernel=KERNEL, strategy="output_tile")
    assert last_call().launches == 100
    assert double.chains - chains == -(-100 // CHAIN_RUNS)
    assert double.calls["start"] - starts == -(-100 // CHAIN_RUNS)
    assert double.calls["blocking waits"] == 0  # they would keep Ctrl-C and threads out


def test_two_launches_make_no_chain(double: Npu, everything_built: None) -> None:
    check(strategy="output_tile")
    loaded, stream, (a, c) = ready(opened())
    chains = double.chains
    loaded.launch_all([(stream, [a, a, c])] * 2)
    assert double.chains == chains
    loaded.launch_all([(stream, [a, a, c])] * 3)
    assert double.chains == chains + 1


def test_a_chain_waits_until_both_of_its_commands_have_room(
    double: Npu, everything_built: None
) -> None:
    """The driver takes four commands of a context; a fifth would block within XRT."""
    check(strategy="output_tile")
    loaded, stream, (a, c) = ready(opened())
    double.asks_a_step = 100  # so that all are in flight
    runs = [loaded.launch(stream, [a, a, c]) for _ in range(3)]
    loaded.launch_all([(stream, [a, a, c])] * 3)
    for run in runs:
        run.wait(1.0)
    c.sync_from_device()
    assert (c.host.view(np.int32) == 16).all()


def test_a_binding_without_run_lists_launches_one_by_one(
    double: Npu, everything_built: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyxrt", make_binding(double, without=("runlist",)))
    check(strategy="output_tile")
    assert opened().npu.chains is False
    assert (double.chains, last_call().launches) == (0, 12)


@pytest.mark.parametrize("fault", ["lost", "timeout", "error", "hang"])
def test_run_lists_that_do_not_work_are_found_out(
    double: Npu,
    everything_built: None,
    clock: object,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    monkeypatch.setattr("npu_matmul.device.LoadedKernel.TIMEOUT_S", 0.05)
    opened().load(KERNEL)
    double.faults[double.launches + 2] = fault  # within the trial
    with caplog.at_level(logging.INFO, logger="npu_matmul"):
        check(strategy="output_tile")
    assert opened().npu.chains is False
    assert last_call().relaunches == 0
    assert "chains do not work" in caplog.text
    chains = double.chains
    check(strategy="output_tile", seed=3)
    assert double.chains == chains
    for queued in list(double.contexts):
        for command in queued.queue:
            command.hangs = False  # so that the process may end


def test_what_else_fails_in_the_trial_of_run_lists_says_nothing_of_them(
    double: Npu, everything_built: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened().load(KERNEL)

    def fails(*_: object) -> None:
        raise AllocationFailed("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(xrt_kernel, "self_test", fails)
        with pytest.raises(AllocationFailed):
            check(strategy="output_tile")
    assert opened().npu.chains is None
    check(strategy="output_tile")
    assert opened().npu.chains is True
    assert double.events.count("context made") == 1


@pytest.mark.parametrize("length_s", [5e-5, 1e-4, 1e-3, 3e-3, 0.1, 1.0])
def test_the_end_of_a_launch_is_seen_soon(clock: Any, length_s: float) -> None:
    asked = []

    class Running:
        def state(self) -> int:
            asked.append(clock.now_s)
            return 4 if clock.now_s >= length_s else 1

    context: Any = SimpleNamespace(broken=False)
    flight = xrt_runs.Flight(context, None, [Running()], None, frozenset(), 1, ())
    assert xrt_runs.wait(flight, 10.0) is None
    assert clock.now_s - length_s < min(length_s / 16, 1e-3) + 2e-6
    assert len(asked) < 2000


def test_a_chain_takes_no_longer_than_a_launch_may(double: Npu, everything_built: None) -> None:
    """The driver's watchdog sees a chain as one job."""
    device = opened()
    loaded = device.load(KERNEL)
    grid = TileGrid(KERNEL, 16, 16 * 512, 16)
    (launch,) = cover(grid)
    stream = launch_stream(KERNEL, launch.shape)
    cycles = stream_cycles(KERNEL, decode(stream))
    assert cycles == 512 * step_cycles(KERNEL)
    buffers = [device.alloc(n) for n in (grid.a_bytes, grid.b_bytes, grid.c_bytes)]
    parts = list(loaded._parts([(stream, buffers)] * 60))
    assert list(map(len, parts)) == [24, 24, 12]
    slow = dataclasses.replace(LIMITS, core_cycles=5 * cycles + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("npu_matmul.device.xrt_kernel.LIMITS", slow)
        assert list(map(len, loaded._parts([(stream, buffers)] * 12))) == [5, 5, 2]


def test_the_cycles_of_a_stream_are_those_of_its_core_calls() -> None:
    kernel = dataclasses.replace(KERNEL, tile=TileShape(4, 8, 8), grid=CoreGrid(2, 2))
    grid = TileGrid(kernel, 40, 30, 50)
    for launch in (*cover(grid), *block_launches(grid)):
        calls = launch.shape.rows * launch.shape.columns * launch.shape.steps
        stream = decode(launch_stream(kernel, launch.shape))
        assert stream_cycles(kernel, stream) == calls * step_cycles(kernel)


@pytest.mark.parametrize("asks", [1, 30])
def test_a_launch_nobody_waits_for_is_kept_until_it_ends(
    double: Npu, everything_built: None, asks: int
) -> None:
    loaded, stream, (a, c) = ready(opened())
    double.asks_a_step = asks
    for _ in range(9):  # more than the driver takes at once
        loaded.launch(stream, [a, a, c])
    gc.collect()
    assert xrt_runs.IN_FLIGHT.drain()
    c.sync_from_device()
    assert (c.host.view(np.int32) == 16).all()


def test_ctrl_c_gets_through_and_what_was_launched_is_seen_to_end(
    double: Npu, everything_built: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    check()
    pauses: list[float] = []

    def interrupted(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(xrt_runs.time, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            check()
    assert not any(context.queue for context in double.contexts)
    assert xrt_runs.IN_FLIGHT.current() == []
    check()


@pytest.mark.parametrize("started", [False, True])
def test_ctrl_c_in_the_midst_of_starting_leaves_the_context_usable(
    double: Npu,
    everything_built: None,
    clock: object,
    monkeypatch: pytest.MonkeyPatch,
    started: bool,
) -> None:
    check()
    monkeypatch.setattr(xrt_runs, "DRAIN_S", 0.02)
    kind = opened().npu.api.run
    start = kind.start

    def interrupted(run: object) -> None:
        if started:
            start(run)
        raise KeyboardInterrupt

    for _ in range(6):  # more than the driver takes at once
        with monkeypatch.context() as patch:
            patch.setattr(kind, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                check()
        check()
    assert len(double.contexts) <= double.context_limit


SCRIPT = """
import gc, os, sys
sys.path.insert(0, {tests!r})
from pyxrt_double.npu import Npu
from pyxrt_double.binding import make_binding
from pyxrt_double.built import publish
import numpy as np
from npu_matmul import open_device
from npu_matmul.device import xrt_runs
from npu_matmul.kernel import load_kernel
from npu_matmul.schedule import cover
from npu_matmul.streams import launch_stream
from npu_matmul.tiler import TileGrid

class Mortal(list):
    def append(self, text):
        os.write(2, text.encode()); os._exit(134)

npu = Npu()
npu.crashes = Mortal()
sys.modules["pyxrt"] = make_binding(npu)
kernel = load_kernel("matmul_16x16")
publish(kernel)
device = open_device("xrt")
loaded = device.load(kernel)
stream = launch_stream(kernel, cover(TileGrid(kernel, 16, 16, 16))[0].shape)
a, c = device.alloc(256), device.alloc(1024)
a.host[:] = 1
a.sync_to_device()
xrt_runs.DRAIN_S = 0.05
{action}
"""
EXITS = {
    "launched and not waited for": "loaded.launch(stream, [a, a, c])",
    "an exception": "loaded.launch(stream, [a, a, c]); raise SystemExit(3)",
    "never ends": "npu.faults[npu.launches + 1] = 'hang'; loaded.launch(stream, [a, a, c])",
    "device closed": "loaded.launch(stream, [a, a, c]); device.close()",
}


def run_script(action: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What becomes of a process that opens the device and does this."""
    script = SCRIPT.format(tests=str(ROOT), action=action)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT.parent),
        cache.CACHE_VARIABLE: str(folder),
        "NPU_MATMUL_SELF_TEST": "0",
    }
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("action", EXITS.values(), ids=EXITS)
def test_the_process_ends_in_peace(action: str, tmp_path: Path) -> None:
    """XRT would abort it, were a run destroyed whose end nobody has seen."""
    done = run_script(action, tmp_path)
    assert done.returncode == (3 if "SystemExit" in action else 0), done.stderr
    assert done.stderr == ""


FORKS = """
npu.events = Mortal()  # that a context or a run is gone ends the process
other = device.alloc(64)
locked = npu.locked_bytes
{before}
child = os.fork()
if not child:
    try:
        device.alloc(64)
    except Exception as error:
        assert "'spawn'" in str(error), error
    with device:
        pass
    del a, c, other, loaded, device
    gc.collect()
    assert npu.locked_bytes == locked
    sys.exit(7)
npu.events = []
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert xrt_runs.IN_FLIGHT.drain()
"""


@pytest.mark.parametrize("before", ["", "loaded.launch(stream, [a, a, c])"])
def test_a_forked_process_destroys_nothing_of_its_parents(before: str, tmp_path: Path) -> None:
    """Both have the driver's file open: the parent would lose its contexts and buffers."""
    done = run_script(FORKS.format(before=before), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_process_is_told_to_open_its_own(
    double: Npu, everything_built: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = opened()
    with monkeypatch.context() as patch:
        patch.setattr(xrt_npu.os, "getpid", lambda: -1)
        with pytest.raises(DeviceError, match=r"before this process was forked.*'spawn'"):
            device.alloc(64)
    assert device.alloc(64).nbytes == 64


class _Gone:
    """A run of a device that went away."""

    def state(self) -> int:
        raise RuntimeError("no such device")


def flight_of(run: object, context: object) -> Flight:
    return Flight(context, object(), [run], None, frozenset({"memory"}), commands=2, keep=())


def test_a_launch_whose_state_cannot_be_asked_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    flights, context = Flights(), object()
    monkeypatch.setattr(xrt_runs, "IN_FLIGHT", flights)
    monkeypatch.setattr(xrt_runs, "DRAIN_S", 0.01)
    flight = flight_of(_Gone(), context)
    flights.add(flight)
    failure = xrt_runs.wait(flight, 0.01)
    assert failure is not None and "had not ended" in failure.text
    assert flights.may_touch(["memory"])
    flights.abandon(flight)  # the driver's watchdog ends it: others may be submitted
    assert flights.of(context) == [flight] and flight.commands == 0


def test_a_child_can_ask_after_launches_whatever_its_parent_was_doing() -> None:
    flights = Flights()
    flights.add(flight_of(_Gone(), object()))
    flights._lock.acquire()
    flights.disown()
    assert flights.current() == []
