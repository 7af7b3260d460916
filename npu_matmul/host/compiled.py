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
from numba.core import types
from numba.core.bytecode import FunctionIdentity

from npu_matmul.host.cached import cached_property

FunctionIdentity._unique_ids = itertools.count(secrets.randbits(48))
_FILES = sorted(Path(__file__).parent.glob("*.py"))
DONE, REFUSED = 2, 1  # what tasks return
REVISION = hashlib.sha256(b"".join(file.read_bytes() for file in _FILES)).hexdigest()[:16]


def compiled(function: Callable[..., Any]) -> Any:
    """``function``, compiled when it is first called, without the GIL, and kept on disk."""
    function.__qualname__ += f"_{REVISION}"
    return numba.njit(cache=True, nogil=True)(function)


class Task:
    """A function ``task(table, first, last)`` of three int64 as one of C, compiled when its address
    is first asked for, and kept on disk: any thread can call it, without Python.

    It does part [first, last) of some work and returns ``DONE``, or ``REFUSED`` where it does not
    do it. ``table`` is the address of a list of int64. numba writes an error to stderr and returns
    0 in the place of what raised it.
    """

    def __init__(self, function: Callable[[Any, Any, Any], Any]) -> None:
        function.__qualname__ += f"_{REVISION}"
        self.function = function

    @cached_property
    def _native(self) -> Any:
        kind = types.int64(types.int64, types.int64, types.int64)
        return numba.cfunc(kind, cache=True)(self.function)

    @cached_property
    def address(self) -> int:
        return int(self._native.address)


def direct(function: Any, *kinds: Any) -> Callable[..., Any]:
    """A compiled function for arguments of these types alone, called without numba's look at what
    they are, which takes up to half a microsecond.

    numba still checks how many dimensions an array has and the bytes of an element; element types
    and layout are the caller's care.
    """
    prepare(function, *kinds)
    entry: Callable[..., Any] = function.overloads[kinds].entry_point
    return entry


def prepare(function: Any, *kinds: Any) -> None:
    """Compile a function for arguments of these types, where it is not.

    numba would take a lock of the process to find out, and an interrupt at that moment would leave
    it taken for all other threads.
    """
    if kinds not in function.overloads:
        function.compile(kinds)
