"""Memory for what lives within one call, used again by the next call of its thread.

Memory that is freed goes back to the system or stays, as the allocator finds best; the next array
of some megabytes may then cost a page fault for each 4 KB, which takes longer than filling it.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.host.pointers import aligned_empty

MOST_BYTES = 64 << 20  # of one array; a larger one is freed when it is no longer used

_kept = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """As ``aligned_empty``, until this thread asks for the same name again: then the memory is that
    array's. Nothing that a caller keeps may be made of it.

    >>> first = scratch("example", (2, 3), np.dtype(np.int8))
    >>> np.may_share_memory(first, scratch("example", (6,), np.dtype(np.int8)))
    True
    """
    arrays: dict[str, NDArray[np.uint8]] = vars(_kept)
    count = int(np.prod(shape)) * dtype.itemsize
    memory = arrays.get(name)
    if memory is None or memory.size < count:
        memory = aligned_empty((count,), np.dtype(np.uint8))
        if count <= MOST_BYTES:
            arrays[name] = memory
    return memory[:count].view(dtype).reshape(shape)
