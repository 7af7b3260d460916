"""Tiles of a kernel for tests: other sizes, contents, and where an element lies in the blocks."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from core_function import aligned_copy
from numpy.typing import NDArray

from npu_matmul.kernel import Kernel, TileShape

Operands = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def resized(kernel: Kernel, m: int, k: int, n: int) -> Kernel:
    return dataclasses.replace(kernel, tile=TileShape(m, k, n))


def filled(kernel: Kernel, a: Any, b: Any, c: Any) -> Operands:
    """Flat tiles of the kernel's sizes and types with these contents."""
    tile = kernel.tile
    sizes = (tile.m * tile.k, tile.k * tile.n, tile.m * tile.n)
    types = (kernel.a_dtype, kernel.b_dtype, kernel.c_dtype)
    arrays = [
        aligned_copy(np.broadcast_to(np.asarray(value, dtype), (size,)))
        for value, size, dtype in zip((a, b, c), sizes, types, strict=True)
    ]
    return arrays[0], arrays[1], arrays[2]


def places(kernel: Kernel) -> Operands:
    """The index in the flat tile of A[i, l], of B[l, j] and of C[i, j]."""
    (m, k, n), (r, s, t) = dataclasses.astuple(kernel.tile), dataclasses.astuple(kernel.mmul)
    i, l = np.indices((m, k))  # noqa: E741
    a = ((i // r) * (k // s) + l // s) * (r * s) + (i % r) * s + l % s
    l, j = np.indices((k, n))  # noqa: E741
    b = ((l // s) * (n // t) + j // t) * (s * t) + (l % s) * t + j % t
    i, j = np.indices((m, n))
    c = ((i // r) * (n // t) + j // t) * (r * t) + (i % r) * t + j % t
    return a, b, c
