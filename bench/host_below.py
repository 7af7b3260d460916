"""Where packing cannot pay: the size below which the CPU has a product before it would be packed.

For cubes of growing size the host's product is timed against packing its operands and unpacking its
result, which every NPU call has to do whatever the NPU takes, until the product is the slower. The
size before that still goes to the CPU: ``NpuDevice.host_below`` is one multiplication more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from timing import medians

from npu_matmul.device import HostDevice, open_device
from npu_matmul.kernel import load_kernel
from npu_matmul.precision import EXACT, converted
from npu_matmul.schedule import c_order, cover
from npu_matmul.tiler import TileGrid, pack_a, pack_b, unpack_c

SMALLEST = 16


def run() -> dict[str, Any]:
    """A row per size, and the threshold they give."""
    rows = [_row(SMALLEST)]
    while rows[-1]["host_s"] <= rows[-1]["packing_s"]:
        rows.append(_row(2 * rows[-1]["size"]))
    won = [row["multiplications"] + 1 for row in rows[:-1]]
    return {"rows": rows, "host_below": max(won, default=0)}


def _row(size: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    a, b = random.integers(-128, 128, (2, size, size), dtype=np.int8)
    grid = TileGrid(load_kernel("matmul_16x16"), size, size, size)
    order = c_order(grid, cover(grid))
    packed_a, packed_b = np.empty(grid.a_bytes, np.int8), np.empty(grid.b_bytes, np.int8)
    packed_c = np.zeros(grid.c_bytes // 4, np.int32)
    host = open_device("cpu")
    assert isinstance(host, HostDevice)

    def packing() -> None:
        pack_a(a, grid, packed_a)
        pack_b(b, grid, packed_b)
        unpack_c(packed_c, order, grid)

    def product() -> None:
        host.multiply(a, host.pack(converted(b)), EXACT, np.dtype(np.int32))

    seconds = medians({"host": product, "packing": packing})
    return {
        "size": size,
        "multiplications": size**3,
        "host_s": seconds["host"],
        "packing_s": seconds["packing"],
    }
