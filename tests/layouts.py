"""The ways in which a matrix can lie in memory, each with the same elements as the one given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[Any]


def _unaligned(matrix: Matrix) -> Matrix:
    shifted = np.frombuffer(bytearray(b"?" + matrix.tobytes()), matrix.dtype, offset=1)
    return shifted.reshape(matrix.shape)


def _read_only(matrix: Matrix) -> Matrix:
    matrix = matrix.copy()
    matrix.flags.writeable = False
    return matrix


LAYOUTS: dict[str, Callable[[Matrix], Matrix]] = {
    "rows": lambda matrix: matrix,
    "columns": np.asfortranarray,
    "rows reversed": lambda matrix: matrix[::-1].copy()[::-1],
    "both reversed": lambda matrix: matrix[::-1, ::-1].copy()[::-1, ::-1],
    "columns, reversed": lambda matrix: np.asfortranarray(matrix[::-1])[::-1],
    "every second row": lambda matrix: np.repeat(matrix, 2, 0)[::2],
    "every second element": lambda matrix: np.repeat(np.repeat(matrix, 2, 0), 2, 1)[::2, ::2],
    "a part of a wider one": lambda matrix: np.pad(matrix, ((1, 0), (2, 3)))[1:, 2:-3],
    "unaligned": _unaligned,
    "other byte order": lambda matrix: matrix.astype(matrix.dtype.newbyteorder()),
    "read only": _read_only,
}
WRITABLE = [name for name in LAYOUTS if name != "read only"]
