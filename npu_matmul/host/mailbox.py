"""How a thread is handed a part of some work, and gives it back, without Python.

A thread that serves a mailbox never needs the GIL: it waits for a post, calls the task, and tells
that it is done. So nothing of a product's second part waits for an interpreter. Who waits looks
again and again for about half a millisecond, giving its CPU to any thread that wants it, before it
sleeps: to be woken takes 20 to 100 us, which a row of products would pay for each.

A task is a function of C, by its address, as :class:`~npu_matmul.host.compiled.Task` makes it:
``int64 task(int64 table, int64 first, int64 last)``. Semaphores are those of POSIX.
"""

from __future__ import annotations

from ctypes import CDLL, c_void_p
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, register_jitable
from numpy.typing import NDArray

from npu_matmul.host.compiled import compiled, prepare
from npu_matmul.host.pointers import LINE_BYTES, address, aligned_empty, pointer

LOOKS = 1000  # of 0.2 to 0.7 us each
WORD_BYTES = 8
# Words of a mailbox. What each side waits for is 32 bytes and has a cache line of its own.
TASK, TABLE, FIRST, LAST, RESULT, SERVED, ASLEEP = range(7)
ASKED, DONE = (line * LINE_BYTES // WORD_BYTES for line in (1, 2))
WORDS = 3 * LINE_BYTES // WORD_BYTES

_LIBC = CDLL(None)
_address, _int = types.int64, types.int32
_sem_post = types.ExternalFunction("sem_post", _int(_address))
_sem_wait = types.ExternalFunction("sem_wait", _int(_address))
_sem_trywait = types.ExternalFunction("sem_trywait", _int(_address))
_sched_yield = types.ExternalFunction("sched_yield", _int())


def new_mailbox() -> NDArray[np.int64]:
    """An empty mailbox, for one thread; what uses it is compiled now, not when work waits."""
    prepare(serve, _address)
    prepare(share, *[_address] * 6)
    mailbox = aligned_empty((WORDS,), np.dtype(np.int64))
    mailbox[:] = 0
    for semaphore in (ASKED, DONE):
        _LIBC.sem_init(c_void_p(address(mailbox[semaphore:])), 0, 0)
    return mailbox


def new_turn() -> NDArray[np.int64]:
    """What :func:`share` takes while it uses mailboxes: one caller at a time."""
    turn = aligned_empty((LINE_BYTES // WORD_BYTES,), np.dtype(np.int64))
    _LIBC.sem_init(c_void_p(address(turn)), 0, 1)
    return turn


def taken(turn: NDArray[np.int64]) -> bool:
    """Take the turn for good; False where another has it."""
    return bool(_LIBC.sem_trywait(c_void_p(address(turn))) == 0)


def stop(mailbox: NDArray[np.int64]) -> None:
    """End the thread that serves it, which must have nothing to do."""
    mailbox[TASK] = 0
    _LIBC.sem_post(c_void_p(address(mailbox[ASKED:])))


@compiled
def serve(mailbox):
    """Do what is posted, until a task of 0 is."""
    words = pointer(mailbox, np.int64)
    words[SERVED] = 1
    while True:
        _wait(mailbox, ASKED)
        if words[TASK] == 0:
            return
        words[RESULT] = _call(words[TASK], words[TABLE], words[FIRST], words[LAST])
        _sem_post(mailbox + DONE * WORD_BYTES)


@compiled
def alone(task, table, first, last):
    """All of a task in this thread."""
    return _call(task, table, first, last)


@compiled
def share(task, table, turn, cuts, count, mailboxes):
    """``count`` parts of a task, the first here, the others by those who serve the mailboxes; or
    all of it here, where another caller has the turn. No signal comes between.

    ``cuts`` is the address of ``count + 1`` numbers, between which the parts lie; ``mailboxes``
    that of ``count - 1`` addresses. Returns the least result, when all parts have ended.
    """
    cut, boxes = pointer(cuts, np.int64), pointer(mailboxes, np.int64)
    if _sem_trywait(turn) != 0:
        return _call(task, table, cut[0], cut[count])
    for i in range(1, count):
        words = pointer(boxes[i - 1], np.int64)
        words[TASK], words[TABLE], words[FIRST], words[LAST] = task, table, cut[i], cut[i + 1]
        _sem_post(boxes[i - 1] + ASKED * WORD_BYTES)
    result = _call(task, table, cut[0], cut[1])
    for i in range(1, count):
        _wait(boxes[i - 1], DONE)
        result = min(result, pointer(boxes[i - 1], np.int64)[RESULT])
    _sem_post(turn)
    return result


@register_jitable
def _wait(mailbox, what):
    semaphore = mailbox + what * WORD_BYTES
    for _ in range(LOOKS):
        if _sem_trywait(semaphore) == 0:
            return
        _sched_yield()
    words = pointer(mailbox, np.int64)
    if what == ASKED:
        words[ASLEEP] = 1
    while _sem_wait(semaphore) != 0:  # a signal came
        pass
    if what == ASKED:
        words[ASLEEP] = 0


@intrinsic
def _call(typingctx, task, table, first, last):  # type: ignore[no-untyped-def]
    """What the task at this address returns."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        function = ir.FunctionType(word, [word] * 3)
        return b.call(b.inttoptr(args[0], ir.PointerType(function)), args[1:])

    return types.int64(*[types.int64] * 4), codegen
