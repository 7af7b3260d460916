"""The timing of ``npu-matmul bench``, for the developer's comparisons in this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from npu_matmul import writing
from npu_matmul.bench.environment import environment
from npu_matmul.bench.timing import RULE, medians

__all__ = ["environment", "medians", "write_json"]


def write_json(path: Path, results: dict[str, Any]) -> None:
    """The results, the environment they were measured in, and how."""
    writing.write_json(path, {"environment": environment(), "rule": RULE, **results})
