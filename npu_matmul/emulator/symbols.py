"""Python models of the C symbols that cores call: C = A @ B and C += A @ B on blocked tiles.

A model takes the tiles as flat arrays, exactly as the C function takes pointers, and works in the
layout that the manifest's mmul block (r, s, t) dictates. The arithmetic is in ``mac_i8`` and
``mac_bf16``, one file for each multiply-accumulate of the vector unit; nothing else of the emulated
NPU knows any, it only moves bytes.
"""

from __future__ import annotations

from collections.abc import Callable

from npu_matmul.emulator import mac_bf16, mac_i8
from npu_matmul.emulator.blocks import Model
from npu_matmul.kernel import Kernel, Mmul, TileShape

Maker = Callable[[TileShape, Mmul, bool], Model]  # True adds to C


class NoModel(ValueError):
    """Nothing here computes what a kernel's C symbols do; the message says what is missing."""


def models(kernel: Kernel) -> dict[str, Model]:
    """The Python model of each of the kernel's C symbols, by name; they give the hardware's bits.

    Raises :class:`NoModel` for element types or an mmul block that no model here is for.

    Layout of each tile, row-major blocks of (r, s), (s, t), (r, t), with m = 4, k = 4, n = 2, r =
    s = t = 2:

    ====  ========================================  =======================================
    tile  element                                   index
    ====  ========================================  =======================================
    A     A[i, l]                                   ((i//r)*(k//s) + l//s)*r*s + (i%r)*s + l%s
    B     B[l, j]                                   ((l//s)*(n//t) + j//t)*s*t + (l%s)*t + j%t
    C     C[i, j]                                   ((i//r)*(n//t) + j//t)*r*t + (i%r)*t + j%t
    e.g.  A[1, 2] in block (0, 1)                   1*4 + 1*2 + 0 = 6
    ====  ========================================  =======================================

    """
    make, symbols = _maker(kernel), kernel.symbols
    parts = (symbols.first, False), (symbols.next, True)
    return {name: make(kernel.tile, kernel.mmul, accumulate) for name, accumulate in parts}


def _maker(kernel: Kernel) -> Maker:
    types = (kernel.types.a, kernel.types.b, kernel.types.c)
    if types not in _MAKERS:
        known = "; ".join(_shown(*each) for each in _MAKERS)
        raise NoModel(
            f"kernel {kernel.name!r}, variant {kernel.variant!r}: products of "
            f"{_shown(*types)} have no model in the emulated NPU; there is one for: {known}"
        )
    if kernel.types.a == "bfloat16" and kernel.mmul.s != mac_bf16.STEP:
        raise NoModel(
            f"kernel {kernel.name!r}, variant {kernel.variant!r}: mmul s = {kernel.mmul.s}; bf16 "
            f"products are modelled for s = {mac_bf16.STEP}, the number that one instruction adds"
        )
    return _MAKERS[types]


def _shown(a: str, b: str, c: str) -> str:
    return f"{a} with {b} into {c}"


_MAKERS: dict[tuple[str, str, str], Maker] = {
    ("int8", "int8", "int32"): mac_i8.model,
    ("bfloat16", "bfloat16", "float32"): mac_bf16.model,
}
