"""``npu-matmul demo``: what it counts, what it compares, where it computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from pyxrt_double.built import publish
from pyxrt_double.npu import Npu

from npu_matmul import cli, device, strategies
from npu_matmul.demo import command as demo_command
from npu_matmul.demo import products
from npu_matmul.device import DEVICE_VARIABLE, NpuDevice, open_device, xrt
from npu_matmul.kernel import load_kernel
from npu_matmul.performance.product import predict
from npu_matmul.strategies import expected
from npu_matmul.tiler import TileGrid
from npu_matmul.whisper import demo
from npu_matmul.whisper.dimensions import Dimensions

SMALL = Dimensions(80, 1500, n_audio_state=64, n_audio_head=1, n_audio_layer=1)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def words(result: Result) -> str:
    return " ".join(result.output.split())


@pytest.fixture
def small_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SIZES", {"base": SMALL})


def test_demo_counts_and_exits_with_0_when_all_values_are_equal(small_encoder: None) -> None:
    result = run("demo")
    assert result.exit_code == 0, result.output
    said = words(result)
    assert "kernel matmul_16x16, device emulated" in said
    assert "launches 48,384 2,016 4" in said
    assert "syncs to device 48,384 4 4" in said
    assert "kernel matmul_64x512, device emulated" in said
    assert "launches 48 8 4" in said
    assert said.count("equal to np.matmul yes yes yes") == 2
    assert "Making an encoder of base size, int8, seeded weights, on device cpu ..." in said
    assert "all 96,000 values equal those of device cpu, bit for bit" in said


HONEST = strategies.STRATEGIES["batched"]


def one_off(product: strategies.Product) -> np.ndarray:
    """A strategy whose last sum is wrong."""
    result = HONEST(product)
    result[-1, -1] += 1
    return result


def test_demo_exits_with_1_when_one_value_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(strategies.STRATEGIES, "sequential", HONEST)
    monkeypatch.setitem(strategies.STRATEGIES, "batched", one_off)
    result = run("demo", "--kernel", "matmul_64x512")
    assert result.exit_code == 1
    assert "4 of 1,520,640 values differ" in result.output


# On other devices


def test_a_device_without_launches_has_no_strategies_to_compare() -> None:
    result = run("demo", "--device", "cpu", "--kernel", "matmul_16x16")
    assert result.exit_code == 0, result.output
    said = words(result)
    assert "(384, 384), device cpu" in said and "cpu ━" in said
    assert "sums INT32, exact (" in said and "equal to np.matmul yes" in said
    for absent in ("sequential", "batched", "launches", "fewer", "padding", "none"):
        assert absent not in said, absent
    assert "all 506,880 values equal np.matmul's" in said


def test_auto_is_told_by_the_name_of_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICE_VARIABLE, "emulated")
    said = words(run("demo", "--device", "auto", "--kernel", "matmul_64x512"))
    assert "(384, 384), device emulated" in said
    assert "kernel matmul_64x512, device emulated" in said and "launches 48 8 4" in said


@pytest.fixture
def an_npu(double: Npu, monkeypatch: pytest.MonkeyPatch) -> NpuDevice:
    """A machine with an NPU, for which nothing is built."""
    monkeypatch.setattr(device, "npu_nodes", lambda: [Path("/dev/accel/accel0")])
    monkeypatch.setenv(xrt.SELF_TEST_VARIABLE, "0")  # test_self_test.py has tests of it
    opened = open_device("xrt")
    assert isinstance(opened, NpuDevice)
    return opened


def test_the_encoder_is_computed_on_the_cpu_where_the_npus_kernels_are_not_built(
    an_npu: NpuDevice, small_encoder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "kernels", lambda device: ["matmul_64x512"])  # quicker
    result = run("demo")
    assert result.exit_code == 0, (result.output, result.exception)
    said = words(result)
    assert "device cpu (no kernel for int8 is built for the NPU here: npu-matmul build)" in said
    assert "all 96,000 values equal those of device cpu, bit for bit" in said


def test_the_encoder_is_computed_on_the_npu_that_is_there(
    an_npu: NpuDevice, small_encoder: None
) -> None:
    publish(load_kernel("matmul_64x512", "int8"))
    assert products.kernels(an_npu) == ["matmul_64x512"]
    _, why = demo.fast_device(an_npu)
    assert why == "no kernel for bf16x3 is built for the NPU here: npu-matmul build"
    publish(load_kernel("matmul_64x512", "bf16"))
    assert demo.fast_device(open_device("emulated")) == (an_npu, "")
    result = run("demo", "--device", "xrt")
    assert result.exit_code == 0, (result.output, result.exception)
    said = words(result)
    assert "kernel matmul_64x512, device xrt" in said and "matmul_16x16, device" not in said
    assert "on device xrt ..." in said and "xrt (8 products)" in said
    assert "all 96,000 values equal those of device xrt, bit for bit" in said


def test_an_npu_that_no_kernel_is_for_is_said_to_be_one(double: Npu) -> None:
    double.model = "NPU Strix"
    result = run("demo", "--device", "xrt")
    assert result.exit_code == 1
    assert "no kernel for int8 operands on npu2 was found" in str(result.exception)


def test_the_encoder_is_not_computed_on_another_emulated_npu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulated, cpu = open_device("emulated"), open_device("cpu")
    assert demo.fast_device(cpu) == (cpu, "")
    monkeypatch.setenv(DEVICE_VARIABLE, "emulated")
    assert demo.fast_device(emulated) == (cpu, "an emulated NPU is no fast device")


# The demonstration's second part


@pytest.fixture(scope="module")
def shown() -> demo.Shown:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SIZE", "tiny")
        return demo.run(open_device("cpu"))


def test_the_demonstration_compares_a_layer_and_counts_its_products(shown: demo.Shown) -> None:
    assert shown.features == (1500, 384)
    assert (shown.layer_values, shown.layer_wrong) == (1500 * 384, 0)
    assert [one.name for one in shown.projections] == list(demo.PROJECTIONS)
    for one in shown.projections:
        counts = one.sequential
        wrapper = TileGrid(load_kernel("matmul_16x16"), *one.shape)
        assert counts == expected("sequential", wrapper)
        assert one.batched.launches == 1 and one.batched.device == "emulated"
        assert one.sequential_s == predict(wrapper, "sequential").device_s
        kernel = load_kernel("matmul_64x512", "int8")
        batched = predict(TileGrid(kernel, *one.shape), resident=True)
        assert one.batched_s == batched.device_s
        assert one.batched.bytes_to_device == batched.counts.bytes_to_device


def test_the_demonstration_sees_one_sum_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SIZE", "tiny")
    monkeypatch.setattr(demo, "SIZES", {"tiny": SMALL})
    assert demo.run(open_device("cpu")).layer_wrong == 0
    monkeypatch.setitem(strategies.STRATEGIES, "batched", one_off)
    assert 0 < demo.run(open_device("cpu")).layer_wrong < 1500 * 64


def test_the_demonstration_fails_when_a_layer_differs(
    shown: demo.Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "run", lambda device: shown)
    assert demo_command._encoder_is_right(open_device("cpu"))
    monkeypatch.setattr(demo, "run", lambda device: replace(shown, layer_wrong=1))
    assert not demo_command._encoder_is_right(open_device("cpu"))


def test_the_demonstration_says_that_times_are_modelled_and_what_differs(
    shown: demo.Shown, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    demo.show(shown, Console(width=80))
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "modelled: device time as npu-matmul plan models it" in said and "real-time factor" in said
    )
    assert "sequential 216,576" in said and "batched 1" in said
    assert "all 576,000 values equal those of device cpu, bit for bit" in said
    demo.show(replace(shown, layer_wrong=3), Console(width=80))
    assert "3 of 576,000 values differ" in " ".join(capsys.readouterr().out.split())
