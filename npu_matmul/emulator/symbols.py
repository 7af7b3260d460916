"""Python models of the C symbols that cores call: C = A @ B and C += A @ B on blocked tiles.

A model takes the tiles as flat arrays, exactly as the C function takes pointers, and works in the
layout that the manifest's mmul block (r, s, t) dictates. The arithmetic is in ``mac_i8`` and
``mac_bf16``, one file for each multiply-accumulate of the vector unit; nothing else of the emulated
NPU knows any, it only moves bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.emulator import mac_bf16, mac_i8
from npu_matmul.kernel import Kernel

Model = Callable[..., None]
Blocks = NDArray[Any]  # a tile as (blocks down, blocks across, rows, columns)
Product = Callable[[Blocks, Blocks, Blocks, bool], None]  # of A, B, C; True adds to C


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
    product = _product(kernel)
    tile, block = kernel.tile, kernel.mmul
    a_shape = (tile.m // block.r, tile.k // block.s, block.r, block.s)
    b_shape = (tile.k // block.s, tile.n // block.t, block.s, block.t)
    c_shape = (tile.m // block.r, tile.n // block.t, block.r, block.t)

    def make(accumulate: bool) -> Model:
        def model(a: NDArray[Any], b: NDArray[Any], c: NDArray[Any]) -> None:
            product(a.reshape(a_shape), b.reshape(b_shape), c.reshape(c_shape), accumulate)

        return model

    return {kernel.symbols.first: make(False), kernel.symbols.next: make(True)}


def _product(kernel: Kernel) -> Product:
    types = (kernel.types.a, kernel.types.b, kernel.types.c)
    if types not in _PRODUCTS:
        known = "; ".join(_shown(*each) for each in _PRODUCTS)
        raise NoModel(
            f"kernel {kernel.name!r}, variant {kernel.variant!r}: products of "
            f"{_shown(*types)} have no model in the emulated NPU; there is one for: {known}"
        )
    if kernel.types.a == "bfloat16" and kernel.mmul.s != mac_bf16.STEP:
        raise NoModel(
            f"kernel {kernel.name!r}, variant {kernel.variant!r}: mmul s = {kernel.mmul.s}; bf16 "
            f"products are modelled for s = {mac_bf16.STEP}, the number that one instruction adds"
        )
    return _PRODUCTS[types](kernel)


def _shown(a: str, b: str, c: str) -> str:
    return f"{a} with {b} into {c}"


def _product_bf16(a: Blocks, b: Blocks, c: Blocks, accumulate: bool) -> None:
    mac_bf16.matmul_bf16(a.view(np.uint16), b.view(np.uint16), c, accumulate)


_PRODUCTS: dict[tuple[str, str, str], Callable[[Kernel], Product]] = {
    ("int8", "int8", "int32"): lambda kernel: mac_i8.product(kernel.mmul),
    ("bfloat16", "bfloat16", "float32"): lambda kernel: _product_bf16,
}
