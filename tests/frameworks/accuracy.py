"""How near features are to those of a framework: the bounds, and a table at the end of the tests.

A plugin of pytest, which prints what tests recorded of ``check``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from naive_encoder import cosine, relative_error
from numpy.typing import NDArray

Features = NDArray[np.float32]


def check(
    got: Features, want: Features, precision: str, record: Callable[[str, object], None]
) -> None:
    """The bounds of tiny depth; int8 is reported, and not nonsense."""
    error, likeness = relative_error(got, want), cosine(got, want)
    record("relative_error", error)
    record("cosine", likeness)
    if precision == "bf16x3":
        assert error <= 1e-3
    assert likeness >= (0.99 if precision == "int8" else 0.9995)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports: list[pytest.TestReport] = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
    ]
    recorded = [(report.nodeid, dict(report.user_properties)) for report in reports]
    rows = sorted((nodeid, found) for nodeid, found in recorded if "cosine" in found)
    if not rows:
        return
    terminalreporter.section("features against the framework's")
    terminalreporter.write_line("relative error    cosine  test")
    for nodeid, found in rows:
        error, likeness = found["relative_error"], found["cosine"]
        terminalreporter.write_line(f"{error:14.1e}  {likeness:.6f}  {nodeid.partition('::')[2]}")
