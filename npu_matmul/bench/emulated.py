"""Strategies on the emulated NPU: what the device counted, and host seconds spent emulating."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from npu_matmul import last_call, npu_matmul
from npu_matmul.bench.shapes import Shape
from npu_matmul.strategies import STRATEGIES

KERNELS = ("matmul_16x16", "matmul_64x512")
SHAPES: dict[str, Shape] = {
    "cube": (512, 512, 512),
    "whisper tiny, projection": (1500, 384, 384),
    "whisper base, projection": (1500, 512, 512),
}  # the sequential wrapper takes seconds at each


def run(
    shapes: Mapping[str, Shape] = SHAPES,
    show: Callable[[str], None] = lambda _: None,
    kernels: Sequence[str] = KERNELS,
) -> list[dict[str, Any]]:
    """One row per shape, kernel and strategy; ``equal`` is bit for bit against NumPy's int32
    product."""
    random = np.random.default_rng(0)
    warm = np.ones((17, 130), np.int8)  # several tiles of K, whose partial sums are added
    for kernel, strategy in product(kernels, STRATEGIES):  # compiles what no row shall pay for
        npu_matmul(
            warm, warm.T, dtype=np.int32, device="emulated", kernel=kernel, strategy=strategy
        )
    rows = []
    for name, (M, K, N) in shapes.items():
        a = random.integers(-128, 128, (M, K), dtype=np.int8)
        b = random.integers(-128, 128, (K, N), dtype=np.int8)
        want = (a.astype(float) @ b.astype(float)).astype(np.int32)
        for kernel, strategy in product(kernels, STRATEGIES):
            show(f"{name}: {kernel}, {strategy}")
            start = time.perf_counter()
            got = npu_matmul(
                a, b, dtype=np.int32, device="emulated", kernel=kernel, strategy=strategy
            )
            seconds = time.perf_counter() - start
            rows.append(_row(name, (M, K, N), strategy, seconds, bool(np.array_equal(got, want))))
    return rows


def _row(name: str, shape: Shape, strategy: str, seconds: float, equal: bool) -> dict[str, Any]:
    report = last_call()
    return {
        "name": name,
        "shape": list(shape),
        "strategy": strategy,
        "kernel": report.kernel,
        "device": report.device,
        "equal": equal,
        "launches": report.launches,
        "syncs_to_device": report.syncs_to_device,
        "syncs_from_device": report.syncs_from_device,
        "bytes_to_device": report.bytes_to_device,
        "bytes_from_device": report.bytes_from_device,
        "padding": report.padding,
        "host_seconds": seconds,
        "host_seconds_by_stage": report.seconds,
    }
