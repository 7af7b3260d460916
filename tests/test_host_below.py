"""Products too small to be worth packing go to the CPU when, and only when, a device is told so."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

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


@pytest.mark.parametrize("asked", [{"kernel": "matmul_16x16"}, {"strategy": "sequential"}])
def test_what_asks_for_a_kernel_or_a_strategy_gets_it(
    device: NpuDevice, asked: dict[str, str]
) -> None:
    device.host_below = 10**6
    npu_matmul(random_int8(1, 8, 9), random_int8(2, 9, 10), device=device, **asked)
    assert last_call().launches > 0
    assert asked.items() <= vars(last_call()).items()


@pytest.mark.parametrize(("a_stack", "b_stack"), [((), (10,)), ((10,), (10,)), ((2, 1), (2, 5))])
def test_each_product_of_a_stack_counts_alone(
    device: NpuDevice, a_stack: tuple[int, ...], b_stack: tuple[int, ...]
) -> None:
    a, b = random_int8(1, *a_stack, 4, 5), random_int8(2, *b_stack, 5, 6)
    device.host_below = 4 * 5 * 6 + 1
    got = npu_matmul(a, b, device=device, dtype="int32")
    assert_equal_bits(got, product_int32(a, b))
    assert last_call().launches == 0
    assert "120 multiplications each, host_below=121" in last_call().reason
    device.host_below = 4 * 5 * 6
    npu_matmul(a, b, device=device)
    assert last_call().launches == 10


def test_the_size_that_the_benchmark_gives_goes_to_the_cpu(
    device: NpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "bench")
    bench = importlib.import_module("host_below")
    for first_lost, below in [(16, 0), (32, 16**3 + 1), (2048, 1024**3 + 1)]:

        def row(size: int, first_lost: int = first_lost) -> dict[str, float]:
            return {
                "size": size,
                "multiplications": size**3,
                "host_s": 2.0 if size >= first_lost else 1.0,
                "packing_s": 1.0,
            }

        monkeypatch.setattr(bench, "_row", row)
        assert bench.run()["host_below"] == below
    device.host_below = 16**3 + 1
    npu_matmul(random_int8(1, 16, 16), random_int8(2, 16, 16), device=device)
    assert last_call().device == "cpu"


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
