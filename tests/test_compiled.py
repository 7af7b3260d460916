"""Compiled loops that processes left on disk, each of its own, work together in another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import npu_matmul

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


def test_what_two_processes_compiled_works_in_a_third(tmp_path: Path) -> None:
    """The machine code of both kinds of product holds a function of one name, called with another
    microkernel in each."""
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(Path(npu_matmul.__file__).parents[1]),
    }

    def run(*dtypes: str) -> None:
        command = [sys.executable, "-c", PROGRAM, *dtypes]
        subprocess.run(command, env=environment, check=True, timeout=100)

    run("int8", "int32")  # what both use, so that each next one compiles a single function
    for file in [*tmp_path.rglob("gemm.*_clipped*"), *tmp_path.rglob("gemm.*_sums*")]:
        file.unlink()
    run("int8")
    run("int32")
    run("int32", "int8")
