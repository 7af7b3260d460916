"""Fixtures: every kernel that can run, every NPU device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from npu_matmul.device import NpuDevice, open_device
from npu_matmul.kernel import Kernel, kernel_folders, load_variants

NPU_DEVICES = ["emulated"]


def _runnable_kernels() -> list[Any]:
    return [
        pytest.param(kernel, id=f"{name}-{variant}")
        for name in kernel_folders()
        for variant, kernel in load_variants(name).items()
        if kernel.source.is_file()
    ]


def _is_int8(kernel: Kernel) -> bool:
    return (kernel.types.a, kernel.types.b, kernel.types.c) == ("int8", "int8", "int32")


@pytest.fixture(params=_runnable_kernels())
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Each variant of each manifest whose core function exists."""
    found: Kernel = request.param
    return found


@pytest.fixture(params=[param for param in _runnable_kernels() if _is_int8(param.values[0])])
def int8_kernel(request: pytest.FixtureRequest) -> Kernel:
    """Those of them that multiply int8."""
    found: Kernel = request.param
    return found


@pytest.fixture(params=NPU_DEVICES)
def npu(request: pytest.FixtureRequest) -> Iterator[NpuDevice]:
    """Each NPU device, opened for this test alone."""
    open_device(request.param).close()
    device = open_device(request.param)
    assert isinstance(device, NpuDevice)
    yield device
    device.close()
