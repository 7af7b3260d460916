"""The crew: parts cover all work once, nobody waits for another caller, errors come through."""

from __future__ import annotations

import _thread
import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import noting
import numpy as np
import pytest
from fresh import run_fresh
from numba.core import event

from npu_matmul.host import mailbox, threads
from npu_matmul.host.compiled import DONE
from npu_matmul.host.threads import (
    ASLEEP_S,
    AWAKE_S,
    THREADS_VARIABLE,
    WORTH_S,
    in_parts,
    thread_count,
)

LONG_S = 1.0  # of work, beside which it does not count that a part starts late


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, "3")


def covered(size: int, step: int, one_thread_s: float = LONG_S) -> list[tuple[int, int]]:
    made = noting.notes(size)
    assert in_parts(noting.note, made.table, size, step, one_thread_s)
    return made.parts


@pytest.mark.parametrize("step", [1, 2, 14])
def test_the_parts_are_whole_steps_and_cover_everything_once(step: int) -> None:
    for size in (1, 2, 3, 13, 14, 15, 28, 29, 100):
        parts = covered(size, step)
        assert len(parts) == min(3, -(-size // step))
        assert parts[0][0] == 0 and parts[-1][1] == size
        for (_, stop), (start, _) in itertools.pairwise(parts):
            assert stop == start and start % step == 0
        lengths = [stop - start for start, stop in parts]
        assert max(lengths) - min(lengths) < 2 * step


def test_little_work_stays_whole_and_more_goes_to_more_threads() -> None:
    assert covered(300, 1, 0.99 * WORTH_S) == [(0, 300)]
    assert len(covered(300, 1, WORTH_S)) == 2
    assert len(covered(300, 1, 1.49 * WORTH_S)) == 2
    assert len(covered(300, 1, 1.5 * WORTH_S)) == 3


@pytest.mark.parametrize(("asleep", "late_s"), [(False, AWAKE_S), (True, ASLEEP_S)])
def test_the_first_part_is_larger_by_what_is_done_before_the_others_start(
    monkeypatch: pytest.MonkeyPatch, asleep: bool, late_s: float
) -> None:
    boxes, seen = [mailbox.new_mailbox(), mailbox.new_mailbox()], []
    boxes[1][mailbox.ASLEEP] = asleep
    monkeypatch.setattr(threads, "_mailboxes", lambda count: boxes)
    monkeypatch.setattr(threads, "_run", lambda task, table, cuts, boxes: seen.extend(cuts) or DONE)
    assert in_parts(noting.note, [], 100_000, 1, 1e-3)
    first, second, third = np.diff(seen)
    assert second == third
    assert first - second == pytest.approx(100_000 * late_s / 1e-3, rel=0.01)


def test_each_part_has_a_step_however_late_it_starts() -> None:
    assert covered(3, 1, 1.5 * WORTH_S) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("started", [0, 1])
def test_what_no_thread_can_be_started_for_is_done_by_the_others(
    monkeypatch: pytest.MonkeyPatch, started: int
) -> None:
    """The system has no more threads, or the interpreter is shutting down."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if len(threads._crew) >= started:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threads, "_crew", [])
        patched.setattr(threading.Thread, "start", refuse)
        parts = covered(12, 1)
        dismiss_crew()
    assert len(parts) == 1 + started
    assert len(covered(3, 1)) == 3  # the next call has a crew again


def test_ctrl_c_comes_through_when_all_parts_have_ended() -> None:
    made = noting.notes(3)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it

    def interrupt() -> None:
        while not made.words[2]:
            time.sleep(0.001)
        _thread.interrupt_main()
        made.words[1] = 1

    other = threading.Thread(target=interrupt)
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            in_parts(noting.held, made.table, 3, 1, LONG_S)
    finally:
        signal.signal(signal.SIGINT, before)
    assert made.parts == [(0, 1), (1, 2), (2, 3)]
    other.join()
    assert len(covered(3, 1)) == 3  # the crew is free again


def test_the_crew_grows_with_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(covered(5, 1)) == 3
    monkeypatch.setenv(THREADS_VARIABLE, "5")
    assert in_parts(noting.together, noting.notes(5, chosen=5).table, 5, 1, LONG_S)


def test_parts_run_in_threads_of_their_own_the_first_in_the_callers() -> None:
    made = noting.notes(3, chosen=3)
    assert in_parts(noting.together, made.table, 3, 1, LONG_S)
    assert made.threads[0] == threading.get_ident()
    assert len(set(made.threads)) == 3


@contextlib.contextmanager
def another_callers_work() -> Iterator[None]:
    """The crew is at the work of another thread, and ends it after the block."""
    made = noting.notes(3)
    other = threading.Thread(target=in_parts, args=(noting.held, made.table, 3, 1, LONG_S))
    other.start()
    while not made.words[2]:
        time.sleep(0.001)
    yield
    made.words[1] = 1
    other.join()
    assert len(made.parts) == 3


def test_a_second_caller_does_its_work_alone() -> None:
    with another_callers_work():
        assert covered(3, 1) == [(0, 3)]
    assert len(covered(3, 1)) == 3


def test_python_goes_on_while_all_parts_run() -> None:
    """None of them holds the GIL, nor does the caller while it waits."""
    made = noting.notes(3)
    other = threading.Thread(target=lambda: made.words.__setitem__(1, 1))
    timer = threading.Timer(0.05, other.start)
    timer.start()
    assert in_parts(noting.held, made.table, 3, 1, LONG_S)
    timer.join()
    other.join()


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_part_that_refuses_is_told_of(at: int) -> None:
    made = noting.notes(3, chosen=at)
    assert not in_parts(noting.refusing, made.table, 3, 1, LONG_S)
    assert len(made.parts) == 3


@pytest.mark.parametrize("at", [0, 2])
def test_an_error_is_raised_after_all_parts_have_ended(
    monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    made = noting.notes(3, chosen=at)
    with pytest.raises(MemoryError, match="lacks memory for the rows"):
        in_parts(noting.failing, made.table, 3, 1, LONG_S)
    assert [type(one.exc_value) for one in told] == [MemoryError]
    assert len(made.parts) == 2
    assert len(covered(3, 1)) == 3  # the crew is free again


def test_the_count_is_that_of_the_cpus_unless_the_variable_says_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert thread_count() == 3
    monkeypatch.delenv(THREADS_VARIABLE)
    assert thread_count() == len(os.sched_getaffinity(0))
    for wrong in ("0", "two", "-1", "1.5"):
        monkeypatch.setenv(THREADS_VARIABLE, wrong)
        with pytest.raises(ValueError, match="allowed are whole numbers from 1"):
            thread_count()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_forked_child_has_a_crew_of_its_own() -> None:
    """The parent's threads do not exist in the child, nor the one that has the turn."""
    with another_callers_work():
        child = os.fork()
        if child == 0:
            os._exit(0 if len(covered(3, 1)) == 3 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_signal_that_raises_at_any_point_leaves_the_crew_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    covered(3, 1)  # all is compiled: LLVM does not survive an error in the midst of its work
    others, calls, interrupted = set(threading.enumerate()), 0, []

    def interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code is not in_parts.__code__:
            frame = frame.f_back
        if frame is not None and interrupted[-1:] != [calls]:  # once in a call
            interrupted.append(calls)
            raise KeyboardInterrupt

    covered(3, 1, one_thread_s=0.0)
    monkeypatch.setattr(threads, "_crew", [])
    monkeypatch.setattr(sys, "unraisablehook", lambda told: None)  # they may come in a finalizer
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
    end = time.monotonic() + 60
    try:
        with event.install_recorder("numba:compiler_lock") as locked:
            while len(interrupted) < 300:
                assert time.monotonic() < end
                calls += 1
                with contextlib.suppress(KeyboardInterrupt):
                    covered(3, 1)
                dismiss_crew()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not locked.buffer  # an interrupt could leave it taken: other threads would wait for ever
    assert len(covered(3, 1)) == 3
    assert len(threads._crew) == 2
    dismiss_crew()
    end = time.monotonic() + 10
    while any(thread.is_alive() for thread in set(threading.enumerate()) - others):  # orphans
        assert time.monotonic() < end
        time.sleep(0.001)


def dismiss_crew() -> None:
    """End the threads of the crew."""
    for thread, box in threads._crew:
        mailbox.stop(box)
        thread.join(10)
        assert not thread.is_alive()
    threads._crew.clear()


def test_a_thread_that_cannot_begin_is_no_part_of_the_crew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(box: object) -> None:
        raise MemoryError

    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    monkeypatch.setattr(threads, "_crew", [])
    monkeypatch.setattr(threads, "_serve", fail)
    assert covered(3, 1) == [(0, 3)]
    assert threads._crew == [] and len(told) == 1


LATER = """
import atexit
import numpy as np

def product():
    a, b = np.random.default_rng(0).integers(-128, 128, (2, 700, 700), np.int8)
    result = npu_matmul(a, b, dtype=np.int32, device="cpu")
    alive = sum(thread.is_alive() for thread, _ in threads._crew)
    print((result == a.astype(np.int32) @ b).all(), alive)

atexit.register(product)  # runs after what is registered later
from npu_matmul import npu_matmul
from npu_matmul.host import threads
product()
"""


def test_the_crew_ends_with_the_interpreter_and_products_after_it_run_alone() -> None:
    done = run_fresh(LATER, **{THREADS_VARIABLE: "2"})
    assert done.stdout.split() == ["True", "1", "True", "0"]
    assert done.stderr == ""


ENDLESS = """
import threading, time
import noting
from npu_matmul.host import threads

threads.DISMISS_S = 0.1
made = noting.notes(3)
work = noting.held, made.table, 3, 1, 1.0
threading.Thread(target=threads.in_parts, args=work, daemon=True).start()
while not made.words[2]:
    time.sleep(0.001)
print("begun")
"""


def test_the_interpreter_does_not_wait_for_a_product_for_ever() -> None:
    done = run_fresh(ENDLESS, timeout_s=8)  # what is held would go on for ten seconds
    assert (done.stdout, done.stderr) == ("begun\n", "")
