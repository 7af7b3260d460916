"""``make test-frameworks`` asks for torch without CUDA, and goes on where there is none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"

# In the place of python: notes what it is asked for, and has no network where it is told so.
PYTHON = """#!/bin/sh
echo "$@" >>"$ASKED"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *--index-url*) exit "$UNREACHABLE" ;;
esac
"""


@pytest.mark.parametrize(
    "options, unreachable, index",
    [
        ((), 0, CPU_BUILDS),
        ((), 1, CPU_BUILDS),
        (("TORCH_INDEX=https://mirror.example/cpu",), 0, "https://mirror.example/cpu"),
        (("TORCH_INDEX=",), 0, None),
    ],
)
def test_the_build_of_torch_without_cuda_is_tried_first(
    options: tuple[str, ...], unreachable: int, index: str | None, tmp_path: Path
) -> None:
    python, asked = tmp_path / "python", tmp_path / "asked"
    python.write_text(PYTHON)
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "test-frameworks", f"PYTHON={python}", f"FRAMEWORKS={tmp_path / 'env'}", *options],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "ASKED": str(asked), "UNREACHABLE": str(unreachable)},
        capture_output=True,
        text=True,
        check=True,
    )
    _, *installs, tests = asked.read_text().splitlines()
    assert installs.pop().endswith("--editable .[frameworks]")
    assert tests == "-m pytest tests/frameworks"
    if index is None:
        assert installs == []
    else:
        assert len(installs) == 1 and installs[0].endswith(f"--index-url {index} torch")
    assert (f"no torch from {CPU_BUILDS}" in done.stdout) == bool(unreachable)
