"""The host's paths as parameters of tests: those that this CPU lacks are skipped, with the
reason."""

from __future__ import annotations

from typing import Any

import pytest

from npu_matmul.host.paths import PATHS, PORTABLE, usable_paths


def paths_for(element: str, portable: bool = True) -> list[Any]:
    """Each path for ``"int8"`` or ``"bfloat16"``; all but the portable one have instructions of
    their own."""
    found = []
    for path in PATHS:
        if path.element == element and (portable or path.name != PORTABLE):
            lacks = pytest.mark.skipif(
                path not in usable_paths(element), reason=f"this CPU lacks one of {path.features}"
            )
            found.append(pytest.param(path, id=path.name, marks=lacks))
    return found
