"""What a reader needs to know about machine and libraries to judge a measurement."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from npu_matmul.host.threads import thread_count

LIBRARIES = ("numpy", "numba", "llvmlite", "xdsl", "ml_dtypes", "torch", "onnxruntime", "onnx")
FLAGS = (  # how products can be computed, as Linux names it
    *("fma", "avx2", "avx_vnni", "avx_vnni_int8", "avx512f", "avx512bw", "avx512vl"),
    *("avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
)
SETTINGS = ("OPENBLAS_", "OMP_", "GOMP_", "KMP_", "MKL_", "BLIS_", "NUMBA_", "ONEDNN_", "DNNL_")
BUSY = 0.5  # load average from which it is mentioned
DEFAULT_CACHE_BYTES = 32 << 20  # where the system does not tell


def environment() -> dict[str, Any]:
    """Machine, libraries and settings; the BLAS and its kernel are those of this process, and so
    are the threads of a product."""
    return {
        "cpu": _cpu_line("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in FLAGS if flag in (_cpu_line("flags") or "").split()],
        "cores": os.cpu_count(),
        "usable_cpus": usable_cpus(),
        "threads": [thread_count()],
        "caches": caches(),
        "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "load_average": _load_average(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := _version(name))},
        "blas": blas(),
        "settings": settings(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def blas() -> dict[str, str]:
    """NumPy's BLAS: name, version, and the kernel that it chose for this CPU at run time.

    OpenBLAS says which (``openblas_get_corename``); of others it is "not told".
    """
    import numpy as np

    found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]  # type: ignore[index]
    library = {"name": str(found.get("name")), "version": str(found.get("version"))}
    return {**library, "kernel": _openblas_kernel() or "not told"}


def settings() -> dict[str, str]:
    """The variables of the environment that libraries take their threads and kernels from."""
    prefixes = (*SETTINGS, "NPU_MATMUL_")
    return {name: os.environ[name] for name in sorted(os.environ) if name.startswith(prefixes)}


def usable_cpus() -> list[int]:
    """The CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def fastest_cpus(count: int) -> list[int]:
    """So many of them, each on a core of its own as far as there are cores, the fastest first: some
    CPUs have cores of two kinds, and many show two CPUs for each core."""
    cpus = sorted(usable_cpus(), key=_speed, reverse=True)
    firsts: dict[str, int] = {}
    for cpu in cpus:
        firsts.setdefault(_siblings(cpu), cpu)
    return sorted(cpus, key=lambda cpu: cpu not in firsts.values())[:count]


def _speed(cpu: int) -> tuple[int, int]:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq")
    return int(_read(path) or 0), cpu  # the last of equals: CPU 0 serves most interrupts


def _siblings(cpu: int) -> str:
    """The CPUs that share a core with it, itself among them."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return _read(path) or str(cpu)


def caches() -> dict[str, int]:
    """Bytes of the first CPU's data caches by level, such as ``{"L1": 32768}``."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if _read(folder / "type") != "Instruction":
            size = (_read(folder / "size") or "0K").removesuffix("K")
            found[f"L{_read(folder / 'level')}"] = int(size) * 1024
    return found


def last_level_cache_bytes() -> int:
    return max(caches().values(), default=DEFAULT_CACHE_BYTES)


def summary(found: dict[str, Any]) -> str:
    """The environment on one line, as it stands on tables and pictures."""
    used = ", ".join(
        f"{name} {found['libraries'][name]}"
        for name in ("numpy", "numba", "torch", "onnxruntime")
        if name in found["libraries"]
    )
    threads = " and ".join(map(str, found["threads"]))
    parts = (
        f"{found['cpu']}, {found['cores']} cores: {' '.join(found['flags'])}",
        f"{threads} thread" if threads == "1" else f"{threads} threads",
        f"Python {found['python']}, {used}",
        f"{found['blas']['name']} with its {found['blas']['kernel']} kernel",
    )
    load = found["load_average"]
    busy = f"; load average {load} at the start" if load and load >= BUSY else ""
    return "; ".join(parts) + busy


def _openblas_kernel() -> str | None:
    """Asks the OpenBLAS that is loaded, by each of the names its builds give the function."""
    maps = _read(Path("/proc/self/maps")) or ""
    for path in sorted(set(re.findall(r"/\S*openblas\S*", maps))):
        library = ctypes.CDLL(path)
        for prefix in ("", "scipy_"):
            for suffix in ("", "64_", "_64"):
                ask = getattr(library, f"{prefix}openblas_get_corename{suffix}", None)
                if ask is not None:
                    ask.argtypes, ask.restype = [], ctypes.c_char_p
                    return str(ask().decode())
    return None


def _cpu_line(key: str) -> str | None:
    found = re.search(
        rf"^{key}\s*: (.*)$", _read(Path("/proc/cpuinfo")) or "", re.MULTILINE | re.IGNORECASE
    )
    return found[1].strip() if found else None


def _load_average() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
