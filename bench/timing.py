"""Timing alternatives against each other in one run, and the environment they ran in."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

LONG_ENOUGH_S = 0.1  # of one measurement: shorter ones are repeated
ROUNDS = 7


def medians(alternatives: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of one call of each alternative, measured in turn so that drift hits all
    alike.

    Each is called once to warm up, then as often as makes one measurement long enough.
    """
    repeats = {name: _repeats(work) for name, work in alternatives.items()}
    measured: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(ROUNDS):
        for name, work in alternatives.items():
            measured[name].append(_seconds(work, repeats[name]) / repeats[name])
    return {name: statistics.median(seconds) for name, seconds in measured.items()}


def environment() -> dict[str, Any]:
    """What a reader needs to know about the machine and the libraries."""
    libraries = ("numpy", "numba", "llvmlite", "xdsl", "ml_dtypes")
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "libraries": {name: version(name) for name in libraries},
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def write_json(path: Path, results: dict[str, Any]) -> None:
    path.write_text(json.dumps({"environment": environment(), **results}, indent=2) + "\n")


def _repeats(work: Callable[[], Any]) -> int:
    work()
    repeats = 1
    while _seconds(work, repeats) < LONG_ENOUGH_S and repeats < 1 << 20:
        repeats *= 2
    return repeats


def _seconds(work: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return time.perf_counter() - start


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
