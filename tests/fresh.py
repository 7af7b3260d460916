"""Programs in a Python process of their own, which finds what the tests find."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_fresh(
    program: str,
    *arguments: str,
    timeout_s: float = 100,
    folder: Path | None = None,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """The program with these arguments and environment variables; it must exit with 0. What lies in
    ``folder``, by default the present one, is found first."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
        check=True,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=folder,
    )
