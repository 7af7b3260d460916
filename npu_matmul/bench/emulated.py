"""Strategies on the emulated NPU: what the device counted, and host seconds spent emulating.

Alternatives are timed in turn as everywhere here, with one call a turn: the sequential wrapper
takes seconds. The first call of each, which compiles and warms up, is compared and not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul import last_call, npu_matmul
from npu_matmul.bench.timing import Sample, take_turns
from npu_matmul.host.threads import thread_count
from npu_matmul.kernel import load_kernel
from npu_matmul.report import CallReport
from npu_matmul.shapes import Shape, shape_text
from npu_matmul.strategies import STRATEGIES, expected
from npu_matmul.tiler import TileGrid

KERNELS = ("matmul_16x16", "matmul_64x512")
CUBE: Shape = (512, 512, 512)
MOST_LAUNCHES = 100_000  # of one call: the emulator makes about 10,000 a second

Alternative = tuple[str, str]  # kernel, strategy


def feasible(shapes: Iterable[Shape]) -> tuple[list[Shape], list[str]]:
    """The cube and those shapes that the sequential wrapper computes within ``MOST_LAUNCHES``, and
    what is to be said of the others."""
    found, skipped = [CUBE], []
    for shape in dict.fromkeys(shapes):
        launches = expected("sequential", TileGrid(load_kernel(KERNELS[0]), *shape)).launches
        if launches <= MOST_LAUNCHES:
            found.append(shape)
        else:
            skipped.append(
                f"strategies: {shape_text(shape)} was left out, as sequential would need "
                f"{launches:,} launches on {KERNELS[0]}"
            )
    return list(dict.fromkeys(found)), skipped


def run(
    shapes: Sequence[Shape],
    show: Callable[[str], None] = lambda _: None,
    kernels: Sequence[str] = KERNELS,
) -> list[dict[str, Any]]:
    """One row per shape, kernel and strategy; ``equal`` is bit for bit against NumPy's int32
    product, in every call."""
    return [row for shape in shapes for row in _of_shape(shape, show, kernels)]


def _of_shape(
    shape: Shape, show: Callable[[str], None], kernels: Sequence[str]
) -> list[dict[str, Any]]:
    M, K, N = shape
    random = np.random.default_rng(0)
    a = random.integers(-128, 128, (M, K), dtype=np.int8)
    b = random.integers(-128, 128, (K, N), dtype=np.int8)
    want = (a.astype(float) @ b.astype(float)).astype(np.int32)
    calls: dict[Alternative, list[tuple[float, CallReport]]] = {}
    equal = dict.fromkeys(product(kernels, STRATEGIES), True)

    def turn(alternative: Alternative) -> float:
        kernel, strategy = alternative
        show(f"{shape_text(shape)}: {kernel}, {strategy}")
        seconds, got = _timed(a, b, kernel, strategy)
        equal[alternative] &= bool(np.array_equal(got, want))
        calls.setdefault(alternative, []).append((seconds, last_call()))
        return seconds

    for alternative in equal:
        turn(alternative)
    calls.clear()
    named = {" ".join(alternative): alternative for alternative in equal}
    samples = take_turns({name: partial(turn, each) for name, each in named.items()})
    return [
        _row(shape, each[1], samples[name], calls[each], equal[each])
        for name, each in named.items()
    ]


def _timed(
    a: NDArray[np.int8], b: NDArray[np.int8], kernel: str, strategy: str
) -> tuple[float, NDArray[Any]]:
    start = time.perf_counter()
    got = npu_matmul(a, b, dtype=np.int32, device="emulated", kernel=kernel, strategy=strategy)
    return time.perf_counter() - start, got


def _row(
    shape: Shape,
    strategy: str,
    sample: Sample,
    calls: Sequence[tuple[float, CallReport]],
    equal: bool,
) -> dict[str, Any]:
    """The stages are those of the call that took about as long as the median."""
    _, report = min(calls, key=lambda call: abs(call[0] - sample.median))
    return {
        "shape": list(shape),
        "strategy": strategy,
        "kernel": report.kernel,
        "device": report.device,
        "threads": thread_count(),
        "equal": equal,
        "launches": report.launches,
        "syncs_to_device": report.syncs_to_device,
        "syncs_from_device": report.syncs_from_device,
        "bytes_to_device": report.bytes_to_device,
        "bytes_from_device": report.bytes_from_device,
        "padding": report.padding,
        "host_seconds": sample.median,
        "rounds": len(sample.seconds),
        "steady": sample.steady,
        "host_seconds_by_stage": report.seconds,
    }
