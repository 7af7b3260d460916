"""The timing of ``npu-matmul bench`` for the comparisons in this folder: they are many, so that
turns are shorter and rounds fewer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from npu_matmul.bench import timing

TURN_S = 0.01
MOST_S = 3.0


def rule() -> str:
    return timing.rule(TURN_S, MOST_S)


def medians(
    alternatives: Mapping[str, Callable[[], Any]], clock: str = "wall_s"
) -> dict[str, float]:
    """Median seconds of one call of each, in turn; ``clock`` may be "cpu_s", of the process."""
    return timing.medians(alternatives, TURN_S, clock, MOST_S)
