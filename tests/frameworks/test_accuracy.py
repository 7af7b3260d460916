"""The table at the end: what ``make test-frameworks`` reports of each precision."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = """
import numpy as np
import pytest
from accuracy import check

want = np.array([3.0, 4.0], np.float32)

@pytest.mark.parametrize("precision, got", [("int8", [3.0, 4.5]), ("bf16x3", [3.0, 4.1])])
def test_features(precision, got, record_property):
    check(np.array(got, np.float32), want, precision, record_property)

def test_of_something_else():
    pass
"""


def test_what_tests_recorded_is_printed_also_where_they_failed(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "accuracy", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (here, here.parent)))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    table = done.stdout[done.stdout.index("features against the framework's") :].splitlines()
    assert [line.split() for line in table[1:4]] == [
        ["relative", "error", "cosine", "test"],
        ["2.0e-02", "0.999930", "test_features[bf16x3-got1]"],  # 0.1 of 5
        ["1.0e-01", "0.998460", "test_features[int8-got0]"],  # 0.5 of 5
    ]
    assert "something_else" not in "".join(table)
