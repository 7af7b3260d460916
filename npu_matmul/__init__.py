"""np.matmul on AMD Ryzen AI NPUs, in INT8 and BF16, every byte of the path testable without one.

>>> import numpy as np
>>> from npu_matmul import npu_matmul
>>> npu_matmul(np.array([[3, 4]], np.int8), np.array([[5], [6]], np.int8), device="cpu")
array([[39]], dtype=int8)

Importing this package loads neither a compiler nor a device; both come with the first call.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npu_matmul.device import Device as Device
    from npu_matmul.device import DeviceError as DeviceError
    from npu_matmul.device import open_device as open_device
    from npu_matmul.kernel import Kernel as Kernel
    from npu_matmul.kernel import KernelNotBuilt as KernelNotBuilt
    from npu_matmul.kernel import UnknownKernel as UnknownKernel
    from npu_matmul.kernel import load_kernel as load_kernel
    from npu_matmul.matmul import npu_matmul as npu_matmul
    from npu_matmul.matmul import pack_b as pack_b
    from npu_matmul.packed import PackedMatrix as PackedMatrix
    from npu_matmul.report import CallReport as CallReport
    from npu_matmul.report import last_call as last_call
    from npu_matmul.timeline.trace import TraceError as TraceError
    from npu_matmul.timeline.trace import trace as trace

__version__ = "0.1.0"

_PLACES = {
    "npu_matmul": "matmul",
    "pack_b": "matmul",
    "PackedMatrix": "packed",
    "open_device": "device",
    "Device": "device",
    "DeviceError": "device",
    "last_call": "report",
    "CallReport": "report",
    "load_kernel": "kernel",
    "Kernel": "kernel",
    "KernelNotBuilt": "kernel",
    "UnknownKernel": "kernel",
    "trace": "timeline.trace",
    "TraceError": "timeline.trace",
}
__all__ = [*_PLACES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
