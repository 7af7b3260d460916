"""Kernels of several core grids, and what a launch of them moves."""

from __future__ import annotations

import dataclasses

import pytest

from npu_matmul.kernel import CoreGrid, Kernel, TileShape, load_kernel
from npu_matmul.launch import LaunchShape, launch_sequence
from npu_matmul.sequence import Transfer

ONE = load_kernel("matmul_16x16")


def on_cores(rows: int, columns: int) -> Kernel:
    return dataclasses.replace(ONE, tile=TileShape(4, 8, 8), grid=CoreGrid(rows, columns))


KERNELS = {"1x1 core": ONE, "1x3 cores": on_cores(1, 3), "4x4 cores": on_cores(4, 4)}
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def transfers(kernel: Kernel, shape: LaunchShape) -> list[Transfer]:
    return [s for s in launch_sequence(kernel, shape).steps if isinstance(s, Transfer)]
