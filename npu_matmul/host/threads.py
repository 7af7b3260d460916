"""One crew of threads for the products of this process.

Work of about 100 us and more is cut into as many static parts as there are CPUs; the calling thread
takes the first. A part that is handed over starts late, the more so where its thread sleeps: so the
first part is larger by what is done meanwhile, and all end at about the same time. While the crew
is busy with another caller's work, work stays in its own thread: two products at once then use a
CPU each, and none waits for the other.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from npu_matmul.host import mailbox
from npu_matmul.host.compiled import DONE, Task
from npu_matmul.host.pointers import address

THREADS_VARIABLE = "NPU_MATMUL_THREADS"
THREAD_VARIABLES = (  # ours, and what NumPy's BLAS, OpenMP and numba read when a process starts
    THREADS_VARIABLE,
    *("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS"),
)
WORTH_S = 100e-6  # of one thread: less work is not worth a second one
# When a part that is handed over begins after the first: its thread looks for work, or sleeps.
AWAKE_S, ASLEEP_S = 1e-6, 60e-6
DISMISS_S = 5.0  # the longest that the interpreter's end waits for a product of another thread

_turn = mailbox.new_turn()  # of the caller whose work the crew does
_growing = threading.RLock()
_crew: list[tuple[threading.Thread, NDArray[np.int64]]] = []  # with the mailbox that each serves


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


def in_parts(task: Task, table: Sequence[int], size: int, step: int, one_thread_s: float) -> bool:
    """``task`` over [0, size), cut at multiples of ``step``, in several threads.

    ``table`` has the numbers that the task reads; what their addresses point to must be kept alive
    by the caller. ``one_thread_s`` is how long one thread would take, about, in seconds. Returns
    whether all parts said that they did it.

    Raises MemoryError, when all parts have ended, where one of them failed: it can lack nothing
    else.
    """
    words = np.array(table, np.int64)
    count = 1
    if one_thread_s >= WORTH_S and size > step:
        count = min(thread_count(), -(-size // step), int(2 * one_thread_s / WORTH_S))
    boxes = _mailboxes(count - 1) if count > 1 else []
    if boxes:
        late_s = ASLEEP_S if any(box[mailbox.ASLEEP] for box in boxes) else AWAKE_S
        result = _run(task, words, _cuts(size, step, len(boxes) + 1, late_s / one_thread_s), boxes)
    else:
        result = mailbox.alone(task.address, address(words), 0, size)
    if result == 0:
        raise MemoryError("a part of a product lacks memory for the rows that it works on")
    return bool(result == DONE)


def start() -> None:
    """Start the crew now, and compile what it needs; else the first product that is worth it does,
    and takes the time."""
    _mailboxes(thread_count() - 1)


def _cuts(size: int, step: int, count: int, late: float) -> list[int]:
    """Where parts begin and end: all but the first do ``late`` of all work less than it, to the
    nearest step, as far as each still gets one."""
    steps = -(-size // step)
    nearest = math.ceil((1 - late) * steps / count - 0.5)
    other = min(max(1, nearest), (steps - 1) // (count - 1))
    first = steps - (count - 1) * other
    return [0, *(min(size, step * (first + i * other)) for i in range(count))]


def _run(
    task: Task, table: NDArray[np.int64], cuts: list[int], boxes: list[NDArray[np.int64]]
) -> int:
    places = np.array([*cuts, *map(address, boxes)], np.int64)
    start, count = address(places), len(boxes) + 1
    boxes_at = start + (count + 1) * mailbox.WORD_BYTES
    turn = address(_turn)
    return int(mailbox.share(task.address, address(table), turn, start, count, boxes_at))


def _mailboxes(count: int) -> list[NDArray[np.int64]]:
    """Those of so many threads, or of as many as can be started."""
    if len(_crew) < count:
        with _growing:
            while len(_crew) < count and _grown():
                pass
    return [box for _, box in _crew[:count]]


def _grown() -> bool:
    """Whether one more thread could be started."""
    box = mailbox.new_mailbox()
    name = f"npu_matmul_{len(_crew)}"
    thread = threading.Thread(target=_serve, args=(box,), name=name, daemon=True)
    try:
        thread.start()
        while not box[mailbox.SERVED]:
            if not thread.is_alive():  # it could not begin, which Python has told of
                return False
            time.sleep(0)
        _crew.append((thread, box))
    except RuntimeError:  # no more threads, or the interpreter is shutting down
        return False
    finally:
        if not any(member is thread for member, _ in _crew):
            mailbox.stop(box)
    return True


def _serve(box: NDArray[np.int64]) -> None:
    mailbox.serve(address(box))


@atexit.register
def _dismiss() -> None:
    """Before compiled code is taken out of memory. The turn stays taken: what comes later runs in
    its own thread. A product that another thread is at is waited for, but not for ever."""
    end = time.monotonic() + DISMISS_S
    while not mailbox.taken(_turn):
        if time.monotonic() > end:
            return
        time.sleep(0.001)
    for thread, box in _crew:
        mailbox.stop(box)
        thread.join()


def _after_fork() -> None:
    """A child has none of its parent's threads, and what another thread had taken stays taken."""
    global _growing, _turn
    _growing, _turn = threading.RLock(), mailbox.new_turn()
    _crew.clear()


os.register_at_fork(after_in_child=_after_fork)
