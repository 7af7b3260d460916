"""Opening a device by its name: shared, opened anew after its end, or refused with what helps."""

from __future__ import annotations

import logging
import sys

import pytest

from npu_matmul import device as devices
from npu_matmul.device import (
    Device,
    DeviceUnavailable,
    UnknownDevice,
    auto_choice,
    base,
    open_device,
)
from npu_matmul.device.cpu import CpuDevice
from npu_matmul.device.emulated import EmulatedDevice


@pytest.fixture(autouse=True)
def nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: dict[str, Device] = {}
    for module in (devices, base):  # both have the same one
        monkeypatch.setattr(module, "OPEN", nothing)
    monkeypatch.delenv("NPU_MATMUL_DEVICE", raising=False)


@pytest.mark.parametrize(("name", "kind"), [("emulated", EmulatedDevice), ("cpu", CpuDevice)])
def test_a_device_is_opened_by_name_and_shared(name: str, kind: type) -> None:
    device = open_device(name)
    assert type(device) is kind
    assert device.name == name
    assert open_device(name) is device


@pytest.mark.parametrize("name", ["emulated", "cpu"])
def test_the_variable_names_the_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPU_MATMUL_DEVICE", name)
    assert open_device() is open_device(name)
    assert open_device("cpu").name == "cpu"


@pytest.mark.parametrize("name", ["emulated", "cpu", "auto"])
def test_a_closed_device_is_opened_anew(name: str) -> None:
    first, other = open_device(name), open_device("emulated" if name != "emulated" else "cpu")
    first.close()
    assert open_device(name) is not first
    assert open_device(other.name) is other
    with open_device(name) as second:
        assert open_device(name) is second
    assert open_device(name) is not second


def test_an_unknown_name_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownDevice, match="'gpu'; known are: auto, xrt, emulated, cpu"):
        open_device("gpu")
    monkeypatch.setenv("NPU_MATMUL_DEVICE", "tpu")
    with pytest.raises(UnknownDevice, match="'tpu'"):
        open_device()


def test_a_real_npu_is_not_pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyxrt", None)  # cannot be imported
    with pytest.raises(DeviceUnavailable, match=r"cannot import pyxrt.*npu-matmul doctor"):
        open_device("xrt")


@pytest.mark.parametrize("variable", [None, "", "auto"])
def test_auto_says_once_what_it_takes(
    variable: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if variable is not None:
        monkeypatch.setenv("NPU_MATMUL_DEVICE", variable)
    with caplog.at_level(logging.WARNING, logger="npu_matmul"):
        assert open_device() is open_device() is open_device("auto")
    assert open_device() is open_device(auto_choice())
    (message,) = caplog.messages
    assert repr(auto_choice()) in message
    assert "$NPU_MATMUL_DEVICE" in message
