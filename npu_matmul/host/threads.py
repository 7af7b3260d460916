"""One pool of threads for the products of this process.

Work of about 100 us and more is cut into as many static parts as there are CPUs; the calling thread
takes the first. A part that is handed over starts late, as its thread has to wake up: so the first
part is larger by what is done meanwhile, and all end at about the same time. While the pool is busy
with another caller's work, work stays in its own thread: two products at once then use a CPU each,
and none waits for the other.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

THREADS_VARIABLE = "NPU_MATMUL_THREADS"
WORTH_S = 100e-6  # of one thread: less work is not worth a second one
# A part that is handed over begins 16 us after the first, and waiting for it takes as long again.
LATE_S = 30e-6

_busy = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


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


def in_parts(work: Callable[[int, int], int], size: int, step: int, one_thread_s: float) -> int:
    """``work(start, stop)`` over [0, size), cut at multiples of ``step``, in several threads.

    ``one_thread_s`` is how long one thread would take, about, in seconds. Returns the result of the
    first part whose result is not negative, else -1. An exception of any part is raised when all
    have ended.

    >>> in_parts(lambda start, stop: 7 if start <= 7 < stop else -1, 10, 2, one_thread_s=1e-3)
    7
    """
    if one_thread_s < WORTH_S or size <= step:
        return work(0, size)
    count = min(thread_count(), -(-size // step), int(2 * one_thread_s / WORTH_S))
    if count == 1 or not _busy.acquire(blocking=False):
        return work(0, size)
    try:
        return _run(work, _cuts(size, step, count, LATE_S / one_thread_s))
    finally:
        _busy.release()


def _cuts(size: int, step: int, count: int, late: float) -> list[int]:
    """Where parts begin and end: all but the first do ``late`` of all work less than it, to the
    nearest step, as far as each still gets one."""
    steps = -(-size // step)
    nearest = math.ceil((1 - late) * steps / count - 0.5)
    other = min(max(1, nearest), (steps - 1) // (count - 1))
    first = steps - (count - 1) * other
    return [0, *(min(size, step * (first + i * other)) for i in range(count))]


def _run(work: Callable[[int, int], int], cuts: list[int]) -> int:
    """The first part here, the others in the pool; what the pool does not take, here too."""
    parts = list(itertools.pairwise(cuts))
    pending: list[Future[int]] = []
    try:
        _hand_over(work, parts[1:], pending)
        own = [work(*part) for part in (parts[0], *parts[1 + len(pending) :])]
    finally:
        _wait(pending)
    results = own[0], *(future.result() for future in pending), *own[1:]
    return next((result for result in results if result >= 0), -1)


def _hand_over(
    work: Callable[[int, int], int], parts: list[tuple[int, int]], pending: list[Future[int]]
) -> None:
    """As many of the parts, from the first on, as there are threads for."""
    global _pool
    pool = _executor(len(parts))
    try:
        for part in parts:
            pending.append(pool.submit(work, *part))
    except RuntimeError:  # no thread can be started, or the interpreter is shutting down
        pool.shutdown(wait=True, cancel_futures=True)  # nothing may run after the call
        pending[:] = [future for future in pending if not future.cancelled()]
        _pool = None


def _wait(pending: list[Future[int]]) -> None:
    """Until all have ended, also when Ctrl-C comes meanwhile: they use the caller's arrays."""
    interrupt = None
    for future in pending:
        while not future.done():
            try:
                future.exception()
            except KeyboardInterrupt as error:
                interrupt = error
    if interrupt is not None:
        raise interrupt


def _executor(threads: int) -> ThreadPoolExecutor:
    """A pool of at least so many threads."""
    global _pool, _pool_size
    if _pool is None or _pool_size < threads:
        if _pool is not None:
            _pool.shutdown(wait=False)
        _pool, _pool_size = ThreadPoolExecutor(threads, "npu_matmul"), threads
    return _pool


def _after_fork() -> None:
    """A child has none of its parent's threads, and a lock that another thread held stays held."""
    global _pool, _busy
    _pool, _busy = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
