"""Device buffers that calls have given back, kept for the next ones."""

from __future__ import annotations

import threading

from npu_matmul.device.buffer import Buffer


class BufferPool:
    """Buffers that were given back, at most ``limit_bytes`` of them: the oldest go first. One that
    is larger by itself is not kept."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._free: list[Buffer] = []
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._free)

    def take(self, nbytes: int) -> Buffer | None:
        """A buffer of exactly ``nbytes``, the one that was used last; None when there is none."""
        with self._lock:
            for place in reversed(range(len(self._free))):
                if self._free[place].nbytes == nbytes:
                    return self._free.pop(place)
        return None

    def give(self, buffer: Buffer) -> None:
        if buffer.nbytes > self.limit_bytes:
            return
        with self._lock:
            self._free.append(buffer)
            while self.nbytes > self.limit_bytes:
                del self._free[0]

    def clear(self) -> None:
        with self._lock:
            self._free.clear()


def pool_size(nbytes: int) -> int:
    """The size of the buffer that is lent for ``nbytes``: so that calls of about the same size
    share buffers, a multiple of an eighth of the power of two below; at least a page.

    >>> pool_size(100), pool_size(70_000), pool_size(1_000_000)
    (4096, 73728, 1048576)
    """
    step = max(4096, 1 << max(0, nbytes.bit_length() - 4))
    return max(1, -(-nbytes // step)) * step
