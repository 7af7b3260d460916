"""What recording a timeline costs: each product with nothing recorded and within a trace.

With nothing recorded what is left are look-ups of a variable, of which a call of ``span`` is the
dearest; it is measured by itself.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from timing import MOST_S, TURN_S, medians

from npu_matmul import npu_matmul, pack_b, trace
from npu_matmul.bench.timing import calls_per_turn, elapsed, take_turns
from npu_matmul.timeline import listening

PRODUCTS = (  # (M, K, N), device, kernel
    ((16, 16, 16), "cpu", None),
    ((256, 256, 256), "cpu", None),
    ((64, 64, 64), "emulated", "matmul_16x16"),
    ((512, 512, 512), "emulated", "matmul_64x512"),
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

    return medians({"told": told})["told"] * 1e9 / 10_000


def _row(shape: tuple[int, int, int], device: str, kernel: str | None) -> dict[str, Any]:
    M, K, N = shape
    random = np.random.default_rng(0)
    a, b = (random.integers(-128, 128, size, np.int8) for size in ((M, K), (K, N)))
    weights, out = pack_b(b, device=device, kernel=kernel), np.empty((M, N), np.int32)
    spans = 0

    def product() -> None:
        npu_matmul(a, weights, out, dtype=np.int32)

    calls = calls_per_turn(product, TURN_S)

    def recorded(path: Path) -> float:
        nonlocal spans
        with trace(path) as recording:
            took = elapsed(product, calls)
        spans = sum(len(t.names) for group in recording.groups for t in group.tracks)
        return took.wall_s

    with tempfile.TemporaryDirectory() as folder:
        samples = take_turns(
            {
                "quiet": lambda: elapsed(product, calls).wall_s,
                "recorded": lambda: recorded(Path(folder) / "out.json"),
            },
            most_s=MOST_S,
        )
    return {
        "shape": list(shape),
        "device": device,
        "kernel": kernel,
        "quiet_s": samples["quiet"].median,
        "recorded_s": samples["recorded"].median,
        "spans": spans // (calls + 1),  # one call of a turn is not timed
        "equal": bool(np.array_equal(out, a.astype(np.int32) @ b.astype(np.int32))),
    }
