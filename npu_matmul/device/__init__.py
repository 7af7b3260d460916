"""The device seam: what strategies may ask of a device, and how devices are opened.

Three nouns of XRT: a :class:`Buffer` with a host side and a device side that a sync copies
between, a :class:`LoadedKernel` that launches instruction streams on views of buffers, and the
:class:`Run` of one launch. A :class:`HostDevice` has none of them: it computes products itself.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from npu_matmul.device.base import OPEN, OPENING, Counters, Device, HostDevice
from npu_matmul.device.buffer import Buffer
from npu_matmul.device.errors import (
    BufferSizeError,
    DeviceError,
    DeviceUnavailable,
    LaunchFailed,
    UnknownDevice,
)
from npu_matmul.device.npu import LoadedKernel, NpuDevice, Prepared, Run
from npu_matmul.kernel import kernels_on

__all__ = [
    "Buffer",
    "BufferSizeError",
    "Counters",
    "Device",
    "DeviceError",
    "DeviceUnavailable",
    "HostDevice",
    "LaunchFailed",
    "LoadedKernel",
    "NpuDevice",
    "Prepared",
    "Run",
    "UnknownDevice",
    "auto_choice",
    "npu_nodes",
    "open_device",
]

DEVICE_VARIABLE = "NPU_MATMUL_DEVICE"
DEVICES = ("auto", "xrt", "emulated", "cpu")

log = logging.getLogger("npu_matmul")


def open_device(name: str = "auto") -> Device:
    """The device called ``name``, opened once per process and shared.

    ``"xrt"`` is a real NPU, ``"emulated"`` runs the same designs and streams on arrays, ``"cpu"``
    computes the same numbers on the host. ``"auto"`` is what ``$NPU_MATMUL_DEVICE`` names, else the
    NPU where there is one that any kernel is for, else the CPU; that choice is announced once.

    Raises :class:`UnknownDevice`, :class:`DeviceUnavailable` with what is missing, or ValueError
    where a variable of the environment is not understood.

    >>> open_device("cpu").name
    'cpu'
    """
    if name == "auto":
        name = _named()
    if name not in DEVICES:
        raise UnknownDevice(f"there is no device {name!r}; known are: {', '.join(DEVICES)}")
    with OPENING:
        if name not in OPEN:
            OPEN[name] = _make(name)
        return OPEN[name]


def _make(name: str) -> Device:
    if name == "emulated":
        from npu_matmul.device.emulated import EmulatedDevice

        return EmulatedDevice()
    if name == "cpu":
        from npu_matmul.device.cpu import CpuDevice

        return CpuDevice()
    if name == "xrt":
        from npu_matmul.device.xrt import XrtDevice

        return XrtDevice()
    chosen, why = _auto()
    level = logging.INFO if chosen == "xrt" else logging.WARNING
    log.log(
        level,
        "device 'auto': %s, computing on device %r; $%s chooses a device without this notice",
        why,
        chosen,
        DEVICE_VARIABLE,
    )
    return open_device(chosen)


def auto_choice() -> str:
    """The device that ``"auto"`` stands for on this machine, without the notice."""
    name = _named()
    return _auto()[0] if name == "auto" else name


def _named() -> str:
    """What the environment says that ``"auto"`` is."""
    name = os.environ.get(DEVICE_VARIABLE) or "auto"
    if name not in DEVICES:
        raise UnknownDevice(
            f"${DEVICE_VARIABLE}={name!r}: there is no such device; known are: {', '.join(DEVICES)}"
        )
    return name


def npu_nodes() -> list[Path]:
    """The device nodes of accelerators: without one, this machine has no NPU that is set up."""
    return sorted(Path("/dev/accel").glob("accel*"))


def _auto() -> tuple[str, str]:
    """The NPU where there is one that can be opened and any kernel is for, else the CPU; and
    why."""
    if not npu_nodes():
        return "cpu", "no NPU can be used here"
    try:
        npu = open_device("xrt")
    except DeviceUnavailable as error:
        return "cpu", f"the NPU here cannot be used: {error}"
    assert isinstance(npu, NpuDevice)
    if not kernels_on(npu.target.name):
        return "cpu", f"the NPU here is {npu.target.name}, which no kernel that was found is for"
    return "xrt", "there is an NPU"
