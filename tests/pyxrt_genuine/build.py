"""Compiling the binding of a checkout of XRT, and putting it in front of the double."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import subprocess
import sysconfig
import types
from pathlib import Path
from typing import Any

from pyxrt_double import binding

HERE = Path(__file__).resolve().parent
FLAGS = ("-std=c++17", "-O0", "-fPIC", "-w")
VERSION = """#pragma once
#define XRT_VERSION(major, minor) (((major) << 16) | (minor))
#define XRT_MAJOR(code) ((code) >> 16)
#define XRT_MINOR(code) ((code) & 0xffff)
#define XRT_VERSION_CODE XRT_VERSION({}, {})
"""  # what XRT's build generates
FORMAT = """#pragma once
#include <string>
namespace boost {
struct format {
  std::string text;
  explicit format(const std::string& t) : text(t) {}
  template <class T> format& operator%(const T&) { return *this; }
  std::string str() const { return text; }
};
}
"""  # XRT's headers format log lines with Boost; nothing is logged here


def build(source: Path, folder: Path) -> Path:
    """The module made of the binding in a checkout of XRT, in ``folder``."""
    import pybind11  # only this needs it

    (folder / "include" / "xrt" / "detail").mkdir(parents=True)
    (folder / "include" / "boost").mkdir()
    (folder / "include" / "boost" / "format.hpp").write_text(FORMAT)
    for name in ("version.h", "version-slim.h"):
        path = folder / "include" / "xrt" / "detail" / name
        path.write_text(VERSION.format(*_version(source)))
    includes = (
        folder / "include",
        source / "src/runtime_src/core/include",
        pybind11.get_include(),
        sysconfig.get_paths()["include"],
    )
    objects = []
    for part in (source / "src/python/pybind11/src/pyxrt.cpp", HERE / "behind.cpp"):
        objects.append(folder / f"{part.stem}.o")
        paths = [f"-I{include}" for include in includes]
        _run("g++", *FLAGS, *paths, "-c", part, "-o", objects[-1])
    unused = folder / "unused.s"
    unused.write_text(_unused(objects))
    module = folder / "pyxrt.so"
    _run("g++", "-shared", "-o", module, *objects, unused, "-luuid")
    return module


def stand_before_the_double(module: Path) -> None:
    """From now on the double's bindings are met through this one."""
    spec = importlib.util.spec_from_file_location("pyxrt", module)
    assert spec is not None and spec.loader is not None
    genuine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(genuine)
    set_backend = ctypes.PyDLL(str(module)).set_backend
    set_backend.argtypes = [ctypes.py_object]

    def front(double: types.ModuleType) -> types.ModuleType:
        set_backend(double)
        return genuine

    binding.FRONT = front


def _version(source: Path) -> tuple[str, str]:
    files = [source / "src/CMake/settings.cmake", source / "src/CMakeLists.txt"]
    text = "".join(path.read_text() for path in files if path.is_file())
    found = dict(re.findall(r"XRT_VERSION_(MAJOR|MINOR)\s+(\d+)", text, re.IGNORECASE))
    return found["MAJOR"], found["MINOR"]


def _unused(objects: list[Path]) -> str:
    """Assembly of the functions of XRT that are bound and never called here: they end the
    process."""
    wanted = set(_run("nm", "-u", "--format=just-symbols", *objects).split())
    defined = set(_run("nm", "--defined-only", "--format=just-symbols", *objects).split())
    missing = sorted(n for n in wanted - defined if "xrt" in n or "xcl" in n)
    lines = ["    .text", *(f"    .globl {n}\n{n}:\n    ud2" for n in missing)]
    return "\n".join([*lines, '    .section .note.GNU-stack,"",@progbits', ""])


def _run(*command: Any) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
