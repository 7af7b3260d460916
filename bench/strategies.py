"""Strategies by shape on the emulated device: ``npu_matmul.bench.emulated`` at more shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from npu_matmul.bench import emulated
from npu_matmul.bench.shapes import NAMED
from npu_matmul.strategies import STRATEGIES as STRATEGIES

_, FIRST_MLP, SECOND_MLP = NAMED["whisper-base"]
SHAPES = {
    **emulated.SHAPES,
    "whisper base, first MLP": FIRST_MLP,
    "whisper base, second MLP": SECOND_MLP,
}
QUICK = ("cube",)


def run(quick: bool, show: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row per shape, kernel and strategy; ``quick`` takes the cube alone."""
    return emulated.run({name: SHAPES[name] for name in (QUICK if quick else SHAPES)}, show)
