"""The ways in which this host can multiply, best first, chosen by what the CPU has.

================ ========== ============================ =======================================
path             operands   needs                        one instruction
================ ========== ============================ =======================================
avx512vnni       int8       AVX-512 with VNNI            64 products, vpdpbusd
avx2             int8       AVX2                         16 products, vpmaddwd, and an addition
portable         int8       nothing                      float32 BLAS, exact in parts of K
avx512bf16       bf16       AVX-512 with BF16            32 products, vdpbf16ps
portable         bf16       nothing                      float32 BLAS
================ ========== ============================ =======================================

``$NPU_MATMUL_CPU_PATH`` names a path to use for the operands that have it: for tests and
benchmarks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

PATH_VARIABLE = "NPU_MATMUL_CPU_PATH"


GROUP_BYTES = 4  # of what an instruction multiplies at once, along K


@dataclass(frozen=True)
class Path:
    """One way: the CPU features it needs (as LLVM calls them), columns of a panel, elements of a
    group, and multiplications per second of one core, about: 230 and 117 G were measured on a
    Zen 4 at 3.7 GHz, twice that on a Zen 5."""

    name: str
    element: str
    features: tuple[str, ...]
    columns: int
    group: int
    rate: float

    @property
    def fed_bytes(self) -> int:
        """Bytes of an element as the instruction reads it."""
        return GROUP_BYTES // self.group


VNNI = Path("avx512vnni", "int8", ("avx512f", "avx512bw", "avx512vl", "avx512vnni"), 32, 4, 230e9)
AVX2 = Path("avx2", "int8", ("avx2",), 16, 2, 90e9)
BF16 = Path("avx512bf16", "bfloat16", ("avx512f", "avx512bw", "avx512bf16"), 32, 2, 117e9)
PORTABLE = "portable"
PATHS = (
    VNNI,
    AVX2,
    Path(PORTABLE, "int8", (), 0, 0, 0),
    BF16,
    Path(PORTABLE, "bfloat16", (), 0, 0, 0),
)


@lru_cache(maxsize=1)
def cpu_features() -> frozenset[str]:
    """What numba compiles for, by LLVM's names: all that the CPU has, less what
    ``NUMBA_ENABLE_AVX=0`` takes away, or just what ``NUMBA_CPU_FEATURES`` lists."""
    from numba.core import codegen, config

    asked: str | None = config.CPU_FEATURES  # type: ignore[attr-defined]  # set at run time
    listed = codegen.get_host_cpu_features() if asked is None else asked
    found: set[str] = set()
    for feature in listed.split(","):
        (found.add if feature.startswith("+") else found.discard)(feature[1:])
    return frozenset(found)


def usable_paths(element: str) -> list[Path]:
    """The paths for ``"int8"`` or ``"bfloat16"`` that this CPU has, best first.

    >>> usable_paths("int8")[-1].name
    'portable'
    """
    return [p for p in PATHS if p.element == element and cpu_features().issuperset(p.features)]


def choose_path(element: str) -> Path:
    """The best path, or the one that ``$NPU_MATMUL_CPU_PATH`` names.

    Raises ValueError for a name that no path has, or one that this CPU cannot run.
    """
    usable = usable_paths(element)
    asked = os.environ.get(PATH_VARIABLE)
    if not asked:
        return usable[0]
    if asked not in {path.name for path in PATHS}:
        names = ", ".join(dict.fromkeys(path.name for path in PATHS))
        raise ValueError(f"${PATH_VARIABLE}={asked!r}: there is no such path; known are: {names}")
    known = [path for path in PATHS if path.name == asked and path.element == element]
    if not known:  # a path for other operands
        return usable[0]
    if known[0] not in usable:
        missing = ", ".join(sorted(set(known[0].features) - cpu_features()))
        raise ValueError(f"${PATH_VARIABLE}={asked!r}: this CPU lacks {missing}")
    return known[0]
