"""The self-test of an overlay: it notices what it should, and leaves no other trace."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from comparing import assert_equal_bits, product_int32, random_int8
from pyxrt_double.built import publish
from pyxrt_double.npu import Npu
from xrt_products import KERNEL, check, opened

from npu_matmul import last_call, npu_matmul, open_device, pack_b
from npu_matmul.device import emulated as emulated_module
from npu_matmul.device import xrt
from npu_matmul.device.emulated import EmulatedBuffer, EmulatedDevice
from npu_matmul.device.self_test import launch_latency_s, self_test
from npu_matmul.device.xrt_errors import (
    DeviceDeclined,
    LaunchTimedOut,
    SelfTestFailed,
)
from npu_matmul.emulator.symbols import Model
from npu_matmul.kernel import Kernel, kernels_named, load_kernel

# --- the self-test -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2])
def test_an_overlay_that_computes_wrongly_is_not_used(
    double: Npu, everything_built: None, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second launch would leave the first one's result behind."""
    double.faults[number] = "lost"
    for _ in range(2):
        with pytest.raises(SelfTestFailed, match=r"computed a known product wrongly: .*wr"):
            check()
    a = random_int8(1, 20, 20)
    got = npu_matmul(a, a, device="xrt", kernel="matmul_64x512", dtype=np.int32)
    assert_equal_bits(got, product_int32(a, a))
    open_device("xrt").close()
    monkeypatch.setenv(xrt.SELF_TEST_VARIABLE, "0")
    check()


@pytest.mark.parametrize("lost", [1, 2])
def test_another_kernel_is_chosen_in_place_of_one_that_computes_wrongly(
    double: Npu, lost: int
) -> None:
    for kernel in kernels_named():
        if kernel.types.a == "int8":
            publish(kernel)
    a = random_int8(1, 20, 20)
    double.faults[lost] = "lost"
    with pytest.raises(SelfTestFailed, match="'matmul_16x16'"):
        npu_matmul(a, a, device="xrt")
    for _ in range(2):
        got = npu_matmul(a, a, device="xrt", dtype=np.int32)
        assert_equal_bits(got, product_int32(a, a))
        assert last_call().kernel == "matmul_64x512"
        assert "not matmul_16x16, which failed the self-test" in last_call().reason
        assert "not built" not in last_call().reason
    assert pack_b(a[:, :1], device="xrt").kernel == load_kernel("matmul_64x512", "int8")
    with pytest.raises(SelfTestFailed):
        npu_matmul(a, a, device="xrt", kernel="matmul_16x16")


def test_an_overlay_that_was_built_again_is_tested_again(
    double: Npu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kernels" / "other"
    shutil.copytree(KERNEL.source.parent, folder)
    monkeypatch.setenv("NPU_MATMUL_KERNELS", str(folder.parent))
    monkeypatch.setenv(xrt.SELF_TEST_VARIABLE, "1")  # only 0 turns it off
    kernel = load_kernel("other")
    publish(kernel)
    double.faults[1] = "lost"
    with pytest.raises(SelfTestFailed):
        check(kernel)
    kernel.source.write_text(kernel.source.read_text() + "// mended\n")
    publish(kernel)
    launches = double.launches
    check(kernel)
    assert double.launches > launches + 1


def test_streams_that_are_forgotten_during_a_self_test_stay_so(
    double: Npu, everything_built: None
) -> None:
    """They are bound to a context that is gone."""
    check()
    loaded = opened().load(KERNEL)
    assert loaded._streams
    assert loaded.known_product(lambda launches: loaded.forget_streams()) is not None
    assert not loaded._streams


def test_a_self_test_that_hangs_twice_declines_the_device(
    double: Npu, everything_built: None
) -> None:
    double.faults.update({1: "timeout", 2: "timeout"})
    with pytest.raises(LaunchTimedOut):
        check()
    with pytest.raises(DeviceDeclined):
        check()


def test_the_self_test_leaves_no_trace_in_counts(double: Npu, everything_built: None) -> None:
    check(strategy="output_tile")
    assert double.launches > 12
    assert open_device("xrt").totals.launches == 12
    assert open_device("xrt").totals.instruction_syncs == 1


def test_a_product_of_the_self_tests_own_shape_brings_its_stream(
    double: Npu, everything_built: None
) -> None:
    a, b = random_int8(1, 32, 48), random_int8(2, 48, 32)
    npu_matmul(a, b, device="xrt", kernel=KERNEL)
    assert last_call().instruction_syncs == 1


Spoil = Callable[[Model, Kernel], Model]


def zeros(model: Model, kernel: Kernel) -> Model:
    return lambda a, b, c: c.fill(0)


def transposed(model: Model, kernel: Kernel) -> Model:
    def spoilt(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
        model(a, b, c)
        m, n, r, t = kernel.tile.m, kernel.tile.n, kernel.mmul.r, kernel.mmul.t
        blocks = c.reshape(m // r, n // t, r, t)
        c[:] = np.ascontiguousarray(blocks.transpose(0, 1, 3, 2)).reshape(-1)

    return spoilt


def swapped(model: Model, kernel: Kernel) -> Model:
    return lambda a, b, c: model(b, a, c)


def blocks_of_a_in_another_order(model: Model, kernel: Kernel) -> Model:
    return lambda a, b, c: model(np.ascontiguousarray(np.roll(a, a.size // 2)), b, c)


def stale(model: Model, kernel: Kernel) -> Model:
    """Remembers the first operands it was given."""
    first: list[np.ndarray] = []

    def spoilt(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
        if not first:
            first.append(a.copy())
        model(first[0], b, c)

    return spoilt


def one_value_off(model: Model, kernel: Kernel) -> Model:
    def spoilt(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
        model(a, b, c)
        c[-1] += 1

    return spoilt


SPOILS: list[Spoil] = [
    zeros,
    transposed,
    swapped,
    blocks_of_a_in_another_order,
    stale,
    one_value_off,
]


@pytest.mark.parametrize("which", ["first", "next"])
@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
def test_the_self_test_notices(monkeypatch: pytest.MonkeyPatch, spoil: Spoil, which: str) -> None:
    kernel = KERNEL  # square tiles: nothing but values can give a swap away
    honest = emulated_module.models

    def spoilt(asked: Kernel) -> dict[str, Model]:
        found = honest(asked)
        symbol = getattr(asked.symbols, which)
        return {**found, symbol: spoil(found[symbol], asked)}

    monkeypatch.setattr(emulated_module, "models", spoilt)
    assert self_test(EmulatedDevice().load(kernel)) is not None


def test_the_self_test_notices_operands_that_are_those_of_the_launch_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sync, synced = EmulatedBuffer.sync_to_device, []

    def lost(buffer: EmulatedBuffer) -> None:
        synced.append(buffer)
        if synced.count(buffer) == 1 or buffer is synced[2]:  # C is told it is not written
            sync(buffer)

    monkeypatch.setattr(EmulatedBuffer, "sync_to_device", lost)
    problem = self_test(EmulatedDevice().load(KERNEL))
    assert problem is not None and "are wrong" in problem
    assert len(synced) == 6


def test_the_self_test_is_exact_for_every_kernel(kernel: Kernel) -> None:
    assert self_test(EmulatedDevice().load(kernel)) is None


def test_all_zeros_and_nothing_written_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = EmulatedDevice().load(KERNEL)
    monkeypatch.setattr(
        emulated_module, "models", lambda k: dict.fromkeys([k.symbols.first, k.symbols.next], zero)
    )
    assert self_test(EmulatedDevice().load(KERNEL)) == "all values are zero"
    problem = self_test(loaded, lambda launches: list(launches) and None)
    assert problem is not None and "nothing was written" in problem


def zero(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    c.fill(0)


def test_latency_is_that_of_launches(double: Npu, everything_built: None) -> None:
    loaded = open_device("xrt").load(KERNEL)  # type: ignore[attr-defined]
    launches = double.launches
    assert 0 < launch_latency_s(loaded, 5) < 1
    assert double.launches == launches + 5
