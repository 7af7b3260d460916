"""Kernels and products for tests of the device "xrt" on the double of pyxrt."""

from __future__ import annotations

import dataclasses

import numpy as np
from comparing import assert_equal_bits, product_int32, random_int8

from npu_matmul import last_call, npu_matmul, open_device
from npu_matmul.device.xrt import XrtDevice
from npu_matmul.device.xrt_kernel import XrtKernel
from npu_matmul.device.xrt_memory import XrtBuffer
from npu_matmul.kernel import Kernel, TileShape, load_kernel
from npu_matmul.schedule import cover
from npu_matmul.streams import launch_stream
from npu_matmul.tiler import TileGrid

KERNEL = load_kernel("matmul_16x16")


def opened() -> XrtDevice:
    device = open_device("xrt")
    assert isinstance(device, XrtDevice)
    return device


def tiles_of(k: int) -> Kernel:
    return dataclasses.replace(KERNEL, tile=TileShape(16, k, 16))


def ready(device: XrtDevice) -> tuple[XrtKernel, bytes, tuple[XrtBuffer, XrtBuffer]]:
    """A kernel, the stream of its smallest product, A (all ones, for B too) and C."""
    shape = cover(TileGrid(KERNEL, 16, 16, 16))[0].shape
    a, c = device.alloc(256), device.alloc(1024)
    a.host[:] = 1
    a.sync_to_device()
    return device.load(KERNEL), launch_stream(KERNEL, shape), (a, c)


def check(kernel: Kernel = KERNEL, strategy: str = "batched", seed: int = 1) -> None:
    a, b = random_int8(seed, 40, 50), random_int8(seed + 1, 50, 60)
    got = npu_matmul(a, b, device="xrt", kernel=kernel, strategy=strategy, dtype=np.int32)
    assert_equal_bits(got, product_int32(a, b))
    assert last_call().device == "xrt"
