"""Runs a kernel's C++ core function on the host: built with the aie_api stand-in, called by ctypes.

``load_core_function(kernel)`` gives a :class:`CoreFunction`; its ``call(symbol, a, b, c)`` runs one
symbol on arrays from :func:`aligned`. What the stand-in objects to is raised as
:class:`StandInError` instead of ending the process. The state of the emulated core (rounding,
saturation) belongs to the compiled library and outlives a call, as it does on the hardware.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from npu_matmul.kernel import Kernel

STAND_IN = Path(__file__).resolve().parent / "aie_api_host"
STAND_IN_FILES = (*sorted(STAND_IN.glob("*/*.hpp")), STAND_IN / "host_call.cc")
FLAGS = ("-std=c++20", "-O2", "-fwrapv", "-Wall", "-Wextra", "-Werror", "-fPIC", f"-I{STAND_IN}")
ALIGNMENT = 32
# The C++ standard library's own templates and operators new and delete, which libraries may export.
_STANDARD_LIBRARY = re.compile(r"_Z(n[aw]|d[al]|(Z|TI|TS|TV)?N?K?St)")


class CompileError(RuntimeError):
    """The C++ compiler refused a source; the message is what it printed."""


class StandInError(RuntimeError):
    """The core function did something that aie_api or the hardware leaves undefined."""


def compiler() -> list[str] | None:
    """The C++ compiler's command: ``$CXX`` if set, else the first one found; None without any."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    found = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    return [found] if found else None


requires_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler; $CXX names one")


def check_compiles(text: str, *flags: str) -> None:
    """Raise :class:`CompileError` unless the C++ ``text`` is accepted; later ``flags`` win."""
    source = _write_source(text)
    _run_compiler([*FLAGS, *flags, "-fsyntax-only", str(source)])


def compiler_messages(bodies: Mapping[str, str], preamble: str) -> dict[str, str]:
    """What the compiler says to each function body, by name; nothing where it is accepted."""

    def message(body: str) -> str:
        try:
            check_compiles(f"{preamble}void f() {{ {body} }}\n", "-Wno-unused-variable")
        except CompileError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor() as pool:  # side by side to save time
        return dict(zip(bodies, pool.map(message, bodies.values()), strict=True))


def load_core_function(kernel: Kernel) -> CoreFunction:
    """The kernel's C++ source, compiled with the macros of its manifest."""
    return load_source(kernel.require_source(), kernel.defines)


def load_source(source: Path, defines: Mapping[str, int]) -> CoreFunction:
    """The C++ ``source`` compiled with ``defines``, once per content and session."""
    macros = tuple(f"-D{name}={value}" for name, value in defines.items())
    content = "".join(path.read_text(encoding="utf-8") for path in (source, *STAND_IN_FILES))
    return CoreFunction(_build(source, macros, content))


def load_text(text: str) -> CoreFunction:
    """C++ given as ``text``, compiled like a core function's source."""
    return load_source(_write_source(text), {})


def aligned(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros, aligned as vector loads need, with memory of no operand on both sides.

    An access just outside such an array cannot land in another operand and so go unnoticed.
    """
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(nbytes + 4 * ALIGNMENT, np.uint8)
    start = ALIGNMENT + -(memory.ctypes.data + ALIGNMENT) % ALIGNMENT
    return memory[start : start + nbytes].view(dtype).reshape(shape)


def aligned_copy(array: NDArray[Any]) -> NDArray[Any]:
    """A copy of ``array`` made by :func:`aligned`."""
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    return copy


class CoreFunction:
    """A loaded core function and the state of the core it runs on."""

    def __init__(self, library: Path) -> None:
        self.path = library
        self._library = ctypes.CDLL(str(library))
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._library.host_call3.argtypes = [pointer, *(pointer, size) * 3]
        self._library.host_call3.restype = ctypes.c_char_p
        self._library.host_set_modes.argtypes = [ctypes.c_uint, ctypes.c_uint]
        self._library.host_set_modes.restype = None
        self._library.host_reset.restype = None
        self._library.host_rounding.restype = ctypes.c_uint
        self._library.host_saturation.restype = ctypes.c_uint

    def call(self, symbol: str, a: NDArray[Any], b: NDArray[Any], c: NDArray[Any]) -> None:
        """``symbol(a, b, c)`` in place on ``c``; raises :class:`StandInError` when it objects."""
        for name, array in zip("abc", (a, b, c), strict=True):
            if not array.flags.c_contiguous or array.ctypes.data % ALIGNMENT:
                raise ValueError(
                    f"operand {name} must be contiguous and aligned; make it with aligned()"
                )
        function = ctypes.cast(getattr(self._library, symbol), ctypes.c_void_p)
        operands = [part for array in (a, b, c) for part in (array.ctypes.data, array.nbytes)]
        objection = self._library.host_call3(function, *operands)
        if objection is not None:
            raise StandInError(f"{symbol}: {objection.decode()}")

    @property
    def modes(self) -> tuple[int, int]:
        """The codes in crRnd and crSat: rounding and saturation."""
        return self._library.host_rounding(), self._library.host_saturation()

    @modes.setter
    def modes(self, codes: tuple[int, int]) -> None:
        self._library.host_set_modes(*codes)

    def reset(self) -> None:
        """The core as it comes out of reset: floor and no saturation."""
        self._library.host_reset()

    def exported_symbols(self) -> set[str]:
        """Every symbol the source defines for others to link, seen in the library by ``nm``."""
        command = ["nm", "--dynamic", "--defined-only", "--format=posix", str(self.path)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        names = {line.split()[0] for line in listing.splitlines()}
        return {n for n in names if not n.startswith("host_") and not _STANDARD_LIBRARY.match(n)}


@cache
def _build(source: Path, macros: tuple[str, ...], content: str) -> Path:
    """The shared library of ``source``; ``content`` is in the key so that an edit is seen."""
    digest = hashlib.sha256("\0".join((*macros, str(source), content)).encode()).hexdigest()[:16]
    library = _folder() / f"{source.stem}_{digest}.so"
    host_call = STAND_IN / "host_call.cc"
    _run_compiler([*FLAGS, *macros, "-shared", str(source), str(host_call), "-o", str(library)])
    return library


def _run_compiler(arguments: list[str]) -> None:
    command = compiler()
    if command is None:
        raise CompileError("there is no C++ compiler; install one or name it in $CXX")
    # The C locale keeps the messages, which tests look into, free of translation and curly quotes.
    done = subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode:
        raise CompileError(done.stderr)


def _write_source(text: str) -> Path:
    source = _folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.cc"
    source.write_text(text, encoding="utf-8")
    return source


@cache
def _folder() -> Path:
    """A folder of this session, removed at its end."""
    folder = tempfile.TemporaryDirectory(prefix="core_function_")
    atexit.register(folder.cleanup)
    return Path(folder.name)
