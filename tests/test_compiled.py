"""Compiled loops on disk: those of several processes work together, those of old code do not."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
from fresh import run_fresh

import npu_matmul
from npu_matmul.host.paths import PORTABLE, choose_path

PROGRAM = """
import sys
import numpy as np
from npu_matmul import npu_matmul

random = np.random.default_rng(5)
a, b = (random.integers(-128, 128, shape).astype(np.int8) for shape in ((40, 1000), (1000, 72)))
sums = a.astype(np.int32) @ b.astype(np.int32)
for dtype in sys.argv[1:]:
    got = npu_matmul(a, b, dtype=dtype, device="cpu")
    want = sums if dtype == "int32" else np.clip(sums, -128, 127).astype(np.int8)
    assert np.array_equal(got, want), (dtype, np.count_nonzero(got != want))
"""


SATURATED = """
import numpy as np
from npu_matmul import npu_matmul

ones = np.ones((300, 300), np.int8)
print(npu_matmul(ones, ones, device="cpu").max())
"""


@pytest.mark.skipif(choose_path("int8").name == PORTABLE, reason="NumPy clips on the portable path")
def test_what_was_compiled_is_not_used_when_another_file_has_changed(tmp_path: Path) -> None:
    """numba sees only that the file of the task itself is the same."""
    package = Path(npu_matmul.__file__).parent
    copied = tmp_path / package.name
    shutil.copytree(package, copied, ignore=shutil.ignore_patterns("__pycache__"))
    run = partial(run_fresh, SATURATED, folder=tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert run().stdout == "127\n"
    changed = copied / "host" / "elements.py"
    text = changed.read_text()
    assert text.count('(("<", 127),') == 1
    changed.write_text(text.replace('(("<", 127),', '(("<", 100),'))
    assert run().stdout == "100\n"


def test_what_two_processes_compiled_works_in_a_third(tmp_path: Path) -> None:
    """The machine code of both kinds of product holds a function of one name, called with another
    microkernel in each."""

    def run(*dtypes: str) -> None:
        run_fresh(PROGRAM, *dtypes, NUMBA_CACHE_DIR=str(tmp_path))

    run("int8", "int32")  # what both use, so that each next one compiles a single function
    for file in [*tmp_path.rglob("gemm.*_clipped*"), *tmp_path.rglob("gemm.*_sums*")]:
        file.unlink()
    run("int8")
    run("int32")
    run("int32", "int8")
