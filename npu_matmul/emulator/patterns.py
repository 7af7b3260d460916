"""Address patterns: the nested loops of a layout transformation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from npu_matmul.overlay import Dims


def order(dims: Dims) -> NDArray[np.int64] | None:
    """Element indices in the order of a layout transformation, outermost loop first; None when
    there is none.

    >>> order(((2, 1), (3, 2))).tolist()
    [0, 2, 4, 1, 3, 5]
    """
    if not dims:
        return None
    found = np.zeros(1, np.int64)
    for size, stride in dims:
        found = (found[:, None] + np.arange(size) * stride).reshape(-1)
    return found
