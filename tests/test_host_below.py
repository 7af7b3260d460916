"""Products too small to be worth packing go to the CPU when, and only when, a device is told so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from comparing import assert_equal_bits, product_int32, random_int8

from npu_matmul import last_call, npu_matmul, pack_b
from npu_matmul.device import NpuDevice
from npu_matmul.device.emulated import EmulatedDevice


@pytest.fixture
def device() -> Iterator[NpuDevice]:
    with EmulatedDevice() as opened:
        yield opened


def test_nothing_goes_to_the_host_by_default(device: NpuDevice) -> None:
    a = random_int8(1, 2, 2)
    npu_matmul(a, a, device=device)
    assert (last_call().device, last_call().launches) == ("emulated", 1)


def test_fewer_multiplications_than_the_limit_are_computed_on_the_cpu(device: NpuDevice) -> None:
    a, b = random_int8(1, 8, 9), random_int8(2, 9, 10)
    device.host_below = 8 * 9 * 10 + 1
    got = npu_matmul(a, b, device=device, dtype="int32")
    assert_equal_bits(got, product_int32(a, b))
    report = last_call()
    assert (report.device, report.launches, report.kernel) == ("cpu", 0, None)
    assert "720 multiplications, host_below=721" in report.reason


def test_as_many_as_the_limit_go_to_the_npu(device: NpuDevice) -> None:
    device.host_below = 8 * 9 * 10
    npu_matmul(random_int8(1, 8, 9), random_int8(2, 9, 10), device=device)
    assert (last_call().device, last_call().launches) == ("emulated", 1)


def test_what_is_packed_already_goes_to_the_npu(device: NpuDevice) -> None:
    packed = pack_b(random_int8(1, 8, 8), device=device)
    device.host_below = 1 << 40
    npu_matmul(random_int8(2, 8, 8), packed)
    assert (last_call().device, last_call().launches) == ("emulated", 1)


def test_zero_turns_it_off_again(device: NpuDevice) -> None:
    device.host_below = 1 << 40
    device.host_below = 0
    npu_matmul(random_int8(1, 8, 8), random_int8(2, 8, 8), device=device)
    assert last_call().device == "emulated"
