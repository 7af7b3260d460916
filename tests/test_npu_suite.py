"""`pytest -m npu` as on a machine with an NPU: it fails where nothing was computed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pyxrt_double.built import publish

from npu_matmul.build import cache
from npu_matmul.kernel import load_kernel

TESTS = Path(__file__).resolve().parent
BINDING = """
import sys
from pyxrt_double.binding import make_binding
from pyxrt_double.npu import Npu

machine = Npu()
machine.faults.update({faults})
sys.modules[__name__] = make_binding(machine)
"""
LAUNCHES = "test_device.py::test_a_launch_computes_what_was_synced"
COUNTS = "test_device.py::test_every_sync_and_launch_is_counted"
OF_ITS_OWN_KERNEL = (
    "test_strategies.py::test_a_and_b_are_regions_of_one_buffer_that_share_no_cache_line"
    "[xrt-batched-2x2 cores]"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path


def run(folder: Path, *tests: str, faults: str = "{}") -> tuple[int, str]:
    """The exit code of `pytest -m npu` with the double for a binding, and what it said last."""
    (folder / "pyxrt.py").write_text(BINDING.format(faults=faults), encoding="utf-8")
    path = os.pathsep.join([str(folder), str(TESTS), str(TESTS.parent)])
    command = [sys.executable, "-m", "pytest", "-m", "npu", "-p", "no:cacheprovider", "-v", "-rs"]
    done = subprocess.run(
        [*command, *(str(TESTS / test) for test in tests)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stdout


def counts(said: str) -> dict[str, int]:
    found = re.findall(r"(\d+) (passed|failed|skipped|error)", said.splitlines()[-1])
    return {what: int(number) for number, what in found}


def test_a_kernel_of_ours_that_is_not_built_is_a_failure(folder: Path) -> None:
    code, said = run(folder, LAUNCHES)
    assert (code, counts(said)) == (1, {"error": 1}), said
    assert "is not built for npu1" in said


def test_one_that_is_built_is_tested_and_one_that_only_a_test_has_is_skipped(folder: Path) -> None:
    publish(load_kernel("matmul_16x16"))
    code, said = run(folder, LAUNCHES, OF_ITS_OWN_KERNEL)
    assert (code, counts(said)) == (0, {"passed": 1, "skipped": 1}), said
    assert "only a test has this kernel: kernel 'matmul_16x16'" in said


def test_an_npu_that_was_declined_is_a_failure_of_every_test(folder: Path) -> None:
    publish(load_kernel("matmul_16x16"))
    code, said = run(folder, LAUNCHES, COUNTS, faults="{1: 'timeout', 2: 'timeout'}")
    assert (code, counts(said)) == (1, {"error": 2}), said
    assert "LaunchTimedOut" in said and "DeviceDeclined" in said
