"""The wheel holds what an installed npu-matmul needs: kernels, recording, types, licence."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (
    "npu_matmul/kernels/matmul_16x16/kernel.toml",
    "npu_matmul/kernels/matmul_16x16/matmul_i8.cc",
    "npu_matmul/kernels/matmul_64x512/kernel.toml",
    "npu_matmul/kernels/matmul_64x512/matmul_bf16.cc",
    "npu_matmul/data/speech.wav",
    "npu_matmul/py.typed",
    "npu_matmul/timeline/page.html",
    "npu_matmul/build/run.py",  # of a name that build products often have
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)
    return next(folder.glob("*.whl"))


def test_wheel_holds_kernels_and_data_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert set(NEEDED) <= names
    assert any(name.endswith("LICENSE") for name in names)
    assert not any(name.startswith(("tests", "bench")) for name in names)


def test_the_unpacked_wheel_finds_its_kernels_and_multiplies(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        "import numpy as np, npu_matmul as n, npu_matmul.kernel as k;"
        "assert k.search_path()[0].parent.name == 'npu_matmul', k.search_path();"
        "a = np.arange(-8, 8, dtype=np.int8).reshape(4, 4);"
        "c = n.npu_matmul(a, a.T, device='emulated', dtype=np.int32);"
        "assert (c == a.astype(np.int32) @ a.T).all()"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
