"""numba's decorator with a cache on disk that notices changes of every file of this package.

numba looks only at the file of the function itself; what it calls may have changed meanwhile, and
the old code would run on. So the functions carry a digest of all files in the name under which
numba keeps them.

Machine code from disk keeps the symbols of the process that compiled it, which numba numbers from
one on. Two functions that processes compiled on their own can then hold different code by the same
symbol (numba tells two intrinsics apart by their names alone), and one of them would run the
other's. So each process numbers from a random start.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.bytecode import FunctionIdentity

FunctionIdentity._unique_ids = itertools.count(secrets.randbits(48))
_FILES = sorted(Path(__file__).parent.glob("*.py"))
REVISION = hashlib.sha256(b"".join(file.read_bytes() for file in _FILES)).hexdigest()[:16]


def compiled(function: Callable[..., Any]) -> Any:
    """``function``, compiled when it is first called, without the GIL, and kept on disk."""
    function.__qualname__ += f"_{REVISION}"
    return numba.njit(cache=True, nogil=True)(function)


def direct(function: Any, *types: Any) -> Callable[..., Any]:
    """A compiled function for arguments of these types alone, called without numba's look at what
    they are, which takes up to half a microsecond.

    numba still checks how many dimensions an array has and the bytes of an element; element types
    and layout are the caller's care.
    """
    function.compile(types)
    entry: Callable[..., Any] = function.overloads[types].entry_point
    return entry
