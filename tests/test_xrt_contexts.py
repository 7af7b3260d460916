"""Hardware contexts of the device "xrt" on a double of pyxrt: one per overlay, while there are."""

from __future__ import annotations

import gc
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from comparing import assert_equal_bits, product_int32, random_int8
from pyxrt_double.npu import Npu
from xrt_products import KERNEL, check, opened, ready, tiles_of

from npu_matmul import last_call, npu_matmul, pack_b
from npu_matmul.device import xrt, xrt_runs
from npu_matmul.device.xrt_errors import ContextFailed
from npu_matmul.tiler import TileGrid


def test_an_overlay_has_one_context_and_the_oldest_goes(
    double: Npu, everything_built: None
) -> None:
    kernels = [tiles_of(8 * n) for n in range(1, 9)]
    weights = random_int8(5, 50, 60)
    packed = pack_b(weights, device="xrt", kernel=kernels[0])
    for kernel in kernels:
        check(kernel)
        assert len(double.contexts) <= double.context_limit
    made = double.events.count("context made")
    assert made == len(kernels)
    check(kernels[-1])
    assert double.events.count("context made") == made
    a = random_int8(6, 9, 50)
    got = npu_matmul(a, packed, dtype=np.int32)  # its context went long ago; its weights did not
    assert_equal_bits(got, product_int32(a, weights))
    assert double.events.count("context made") == made + 1
    assert last_call().bytes_to_device == TileGrid(kernels[0], 9, 50, 60).a_bytes


def test_the_context_that_was_used_last_stays(double: Npu, everything_built: None) -> None:
    kernels = [tiles_of(8 * n) for n in range(1, 8)]
    for kernel in (*kernels[:6], kernels[0], kernels[6]):
        check(kernel)
    made = double.events.count("context made")
    check(kernels[0])
    assert double.events.count("context made") == made
    check(kernels[1])
    assert double.events.count("context made") == made + 1
    assert last_call().instruction_syncs == 1  # streams go with their context


def test_a_context_with_something_in_flight_goes_when_that_has_ended(
    double: Npu, everything_built: None
) -> None:
    device = opened()
    loaded, stream, (a, c) = ready(device)
    double.asks_a_step = 20
    run = loaded.launch(stream, [a, a, c])
    double.context_faults.append("DRM_IOCTL_AMDXDNA_CREATE_HWCTX IOCTL failed (err=-2): No such")
    check(tiles_of(8))
    assert double.pending_when_made[-1] == 0
    run.wait(1.0)
    c.sync_from_device()
    assert (c.host.view(np.int32) == 16).all()


def test_an_idle_context_goes_before_an_older_one_that_is_busy(
    double: Npu, everything_built: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xrt_runs, "DRAIN_S", 0.05)
    double.context_limit = 2
    loaded, stream, (a, c) = ready(opened())
    double.faults[double.launches + 1] = "hang"
    run = loaded.launch(stream, [a, a, c])
    for k in (8, 24):
        check(tiles_of(k))
    for context in list(double.contexts):
        for command in context.queue:
            command.hangs = False
    double.faults.clear()
    run.wait(1.0)
    made = double.events.count("context made")
    check(KERNEL)
    assert double.events.count("context made") == made == 3


@pytest.mark.parametrize("code", [2, 19])
def test_contexts_that_others_hold_cost_one_of_ours(
    double: Npu, everything_built: None, code: int
) -> None:
    check(tiles_of(8))
    double.context_faults.append(f"DRM_IOCTL_AMDXDNA_CREATE_HWCTX IOCTL failed (err=-{code}): No")
    check(tiles_of(16))
    assert len(double.contexts) == 1
    check(tiles_of(8))


def test_threads_that_need_more_overlays_than_there_are_contexts_take_turns(
    double: Npu, everything_built: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(xrt.SELF_TEST_VARIABLE, "0")
    double.context_limit = 2
    kernels = [tiles_of(8 * n) for n in range(1, 5)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(check, k, seed=s) for s in range(3) for k in kernels]:
                done.result()
    finally:
        sys.setswitchinterval(before)
    assert len(double.contexts) <= 2


def test_no_context_goes_for_an_error_that_is_no_shortage(
    double: Npu, everything_built: None
) -> None:
    check(tiles_of(8))
    check(tiles_of(16))
    double.context_faults.append("DRM_IOCTL_AMDXDNA_CREATE_HWCTX IOCTL failed (err=-62): Timer")
    with pytest.raises(ContextFailed, match="the firmware does not answer"):
        check(tiles_of(24))
    assert len(double.contexts) == 2


def test_no_context_goes_for_an_overlay_that_fails_alone(
    double: Npu, everything_built: None
) -> None:
    refused = "DRM_IOCTL_AMDXDNA_CREATE_HWCTX IOCTL failed (err=-22): Invalid argument"
    kernels = [tiles_of(8), tiles_of(16)]
    for kernel in kernels:
        check(kernel)
    double.context_faults.extend([refused] * 3)
    with pytest.raises(ContextFailed):
        check(tiles_of(24))
    assert len(double.contexts) == 0  # it may have needed the place of both
    for kernel in kernels:
        check(kernel)
    double.context_faults.append(refused)
    with pytest.raises(ContextFailed):
        check(tiles_of(24))
    assert len(double.contexts) == 2
    check(tiles_of(24))
    double.context_faults.append(refused)
    opened().load(tiles_of(24)).rebuild(None)  # as of one that has had a context
    assert len(double.contexts) == 2


def test_closing_ends_runs_kernels_and_contexts(double: Npu, everything_built: None) -> None:
    device = opened()
    check()
    loaded = weakref.ref(device.load(KERNEL))
    kernel, stream, (a, c) = ready(device)
    double.asks_a_step = 50  # so that closing has something to wait for
    kernel.launch(stream, [a, a, c])
    del kernel
    device.close()
    assert not any(context.queue for context in double.contexts)
    assert xrt_runs.IN_FLIGHT.current() == []
    double.asks_a_step = 1
    gc.collect()
    assert len(double.contexts) == 0
    assert loaded() is None
    assert double.heap_bytes == 0
    check()  # opened anew
