"""One pool of threads for the products of this process.

A product above about 100 us of work is cut into as many static parts as there are CPUs; the calling
thread takes the first. While the pool is busy with another caller's product, a product stays in its
own thread: two products at once then use a CPU each, and none waits for the other. Handing a part
over costs 25 to 70 us, which is why smaller products stay whole.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

THREADS_VARIABLE = "NPU_MATMUL_THREADS"

_busy = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def thread_count() -> int:
    """Threads of one product: ``$NPU_MATMUL_THREADS``, else the CPUs this process may run on.

    Raises ValueError when the variable is not a positive whole number.
    """
    asked = os.environ.get(THREADS_VARIABLE)
    if not asked:
        return len(os.sched_getaffinity(0))
    if not asked.isdecimal() or int(asked) == 0:
        raise ValueError(f"${THREADS_VARIABLE}={asked!r}: allowed are whole numbers from 1")
    return int(asked)


def in_parts(work: Callable[[int, int], int], size: int, step: int) -> int:
    """``work(start, stop)`` over [0, size), cut at multiples of ``step``, in several threads.

    Returns the result of the first part whose result is not negative, else -1. An exception of any
    part is raised when all have ended.

    >>> in_parts(lambda start, stop: 7 if start <= 7 < stop else -1, 10, 2)
    7
    """
    if size <= step:
        return work(0, size)
    steps = -(-size // step)
    count = min(thread_count(), steps)
    if count == 1 or not _busy.acquire(blocking=False):
        return work(0, size)
    try:
        cuts = [min(size, steps * i // count * step) for i in range(count + 1)]
        cuts[-1] = size
        pending = [_executor().submit(work, cuts[i], cuts[i + 1]) for i in range(1, count)]
        try:
            results = [work(cuts[0], cuts[1])]
        finally:
            for future in pending:
                future.exception()  # waits: the parts share the caller's arrays
        results += [future.result() for future in pending]
    finally:
        _busy.release()
    return next((result for result in results if result >= 0), -1)


def _executor() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, thread_count() - 1), "npu_matmul")
    return _pool


def _after_fork() -> None:
    """A child has none of its parent's threads, and a lock that another thread held stays held."""
    global _pool, _busy
    _pool, _busy = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
