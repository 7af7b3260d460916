"""The emulated NPU's model of the int8 multiply-accumulate, against np.matmul in float32.

Both on one core: CPU time of the process, whatever threads it has. Tiles are packed as a core has
them, and C stays in memory: every call adds to it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from npu_matmul.emulator import mac_i8
from npu_matmul.kernel import Mmul

TILES = (16, 16, 16), (32, 32, 32), (64, 64, 64), (64, 64, 128)  # m, k, n
BLOCK = Mmul(4, 8, 8)
BASELINE = 1500, 512, 512
ROUNDS = 9


def run() -> list[dict[str, Any]]:
    """A row per tile size, and its speed as a multiple of np.matmul's; operands are random."""
    random = np.random.default_rng(0)
    M, K, N = BASELINE
    a, b = (random.standard_normal(shape, np.float32) for shape in ((M, K), (K, N)))
    c = np.empty((M, N), np.float32)
    baseline = 2 * M * K * N / _seconds(lambda: np.matmul(a, b, out=c), 4)
    rows = []
    for m, k, n in TILES:
        speed, equal = _model(random, m, k, n)
        row = {"tile": [m, k, n], "g_op_per_s": speed / 1e9, "of_numpy": speed / baseline}
        rows.append({**row, "equal": equal})
    return rows


def _model(random: np.random.Generator, m: int, k: int, n: int) -> tuple[float, bool]:
    """Operations a second, and whether C is NumPy's."""
    model = mac_i8.product(BLOCK)
    a, b = (random.integers(-128, 128, shape, np.int8) for shape in ((m, k), (k, n)))
    left, right = _blocks(a, BLOCK.r, BLOCK.s), _blocks(b, BLOCK.s, BLOCK.t)
    c = np.zeros((m // BLOCK.r, n // BLOCK.t, BLOCK.r, BLOCK.t), np.int32)
    model(left, right, c, False)
    equal = np.array_equal(c, _blocks(a.astype(np.int32) @ b.astype(np.int32), BLOCK.r, BLOCK.t))
    return 2 * m * k * n / _seconds(lambda: model(left, right, c, True), 2000), bool(equal)


def _blocks(x: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = x.shape
    parts = x.reshape(rows // height, height, columns // width, width).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(parts)


def _seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median CPU seconds of one call."""
    work()
    measured = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(repeats):
            work()
        measured.append((time.process_time() - start) / repeats)
    return statistics.median(measured)
