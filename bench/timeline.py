"""What recording a timeline costs: each product with nothing recorded and within a trace.

With nothing recorded what is left are look-ups of a variable, of which a call of ``span`` is the
dearest; it is measured by itself.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from npu_matmul import npu_matmul, pack_b, trace
from npu_matmul.timeline import listening

ROUNDS = 7
# (M, K, N), device, kernel, and how often one measurement repeats it
PRODUCTS = (
    ((16, 16, 16), "cpu", None, 2000),
    ((256, 256, 256), "cpu", None, 50),
    ((64, 64, 64), "emulated", "matmul_16x16", 5),
    ((512, 512, 512), "emulated", "matmul_64x512", 1),
)


def run() -> list[dict[str, Any]]:
    """A row per product: microseconds of one call, and spans that one leaves."""
    return [_row(*product) for product in PRODUCTS]


def look_up_ns() -> float:
    """Nanoseconds of telling nobody of a block of work, the loop included."""

    def told() -> None:
        for _ in range(10_000):
            with listening.span("work"):
                pass

    return min(_seconds(told, 1) for _ in range(ROUNDS)) * 1e9 / 10_000


def _row(
    shape: tuple[int, int, int], device: str, kernel: str | None, repeats: int
) -> dict[str, Any]:
    M, K, N = shape
    random = np.random.default_rng(0)
    a, b = (random.integers(-128, 128, size, np.int8) for size in ((M, K), (K, N)))
    weights, out = pack_b(b, device=device, kernel=kernel), np.empty((M, N), np.int32)

    def product() -> None:
        npu_matmul(a, weights, out, dtype=np.int32)

    quiet, recorded, spans = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            product()
            quiet.append(_seconds(product, repeats))
            with trace(Path(folder) / "out.json") as recording:
                product()
                recorded.append(_seconds(product, repeats))
            spans = sum(len(t.names) for group in recording.groups for t in group.tracks)
    return {
        "shape": list(shape),
        "device": device,
        "kernel": kernel,
        "quiet_s": statistics.median(quiet),
        "recorded_s": statistics.median(recorded),
        "spans": spans // (repeats + 1),
        "equal": bool(np.array_equal(out, a.astype(np.int32) @ b.astype(np.int32))),
    }


def _seconds(work: Callable[[], None], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats
