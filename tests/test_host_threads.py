"""The pool: parts cover all work once, nobody waits for another caller, errors come through."""

from __future__ import annotations

import itertools
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from npu_matmul.host import threads
from npu_matmul.host.threads import LATE_S, THREADS_VARIABLE, WORTH_S, in_parts, thread_count

LONG_S = 1.0  # of work, beside which it does not count that a part starts late


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, "3")
    monkeypatch.setattr(threads, "_pool", None)


def covered(size: int, step: int, one_thread_s: float = LONG_S) -> list[tuple[int, int]]:
    parts: list[tuple[int, int]] = []

    def work(start: int, stop: int) -> int:
        parts.append((start, stop))
        return -1

    assert in_parts(work, size, step, one_thread_s) == -1
    return sorted(parts)


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


def test_the_first_part_is_larger_by_what_is_done_before_the_others_start() -> None:
    (_, first), second, third = covered(100_000, 1, 1e-3)
    assert second[1] - second[0] == third[1] - third[0]
    late = first - (second[1] - second[0])
    assert late == pytest.approx(100_000 * LATE_S / 1e-3, rel=0.01)


def test_each_part_has_a_step_however_late_it_starts() -> None:
    assert covered(3, 1, 1.5 * WORTH_S) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("refused", [0, 1])
def test_what_the_pool_does_not_take_is_done_by_the_caller(
    monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    """No thread can be started, or the interpreter is shutting down."""
    submit = ThreadPoolExecutor.submit

    def refuse(pool: ThreadPoolExecutor, work: Any, *part: int) -> Any:
        if part[0] > refused:
            raise RuntimeError("can't start new thread")
        return submit(pool, work, *part)

    with monkeypatch.context() as patched:
        patched.setattr(ThreadPoolExecutor, "submit", refuse)
        assert covered(3, 1) == [(0, 1), (1, 2), (2, 3)]
    assert len(covered(3, 1)) == 3  # the next call has a pool again


def test_ctrl_c_while_waiting_comes_through_when_all_parts_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended, interrupted = [], threading.Event()
    wait = Future.exception

    def interrupt_once(future: Future[int], timeout: float | None = None) -> Any:
        if interrupted.is_set():
            return wait(future, timeout)
        interrupted.set()
        raise KeyboardInterrupt

    def work(start: int, stop: int) -> int:
        if start:
            assert interrupted.wait(10)
        ended.append(start)
        return -1

    monkeypatch.setattr(Future, "exception", interrupt_once)
    with pytest.raises(KeyboardInterrupt):
        in_parts(work, 3, 1, LONG_S)
    assert sorted(ended) == [0, 1, 2]


def test_the_pool_grows_with_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(covered(5, 1)) == 3
    monkeypatch.setenv(THREADS_VARIABLE, "5")
    together = threading.Barrier(5, timeout=10)  # passes only if all five run at once

    def work(start: int, stop: int) -> int:
        together.wait()
        return -1

    assert in_parts(work, 5, 1, LONG_S) == -1


def test_parts_run_in_threads_of_their_own_the_first_in_the_callers() -> None:
    names: dict[int, str] = {}
    together = threading.Barrier(3, timeout=10)  # passes only if all three run at once

    def work(start: int, stop: int) -> int:
        together.wait()
        names[start] = threading.current_thread().name
        return -1

    in_parts(work, 3, 1, LONG_S)
    assert names[0] == threading.current_thread().name
    assert len(set(names.values())) == 3


def test_a_second_caller_does_its_work_alone() -> None:
    started, finish = threading.Event(), threading.Event()

    def slow(start: int, stop: int) -> int:
        started.set()
        assert finish.wait(10)
        return -1

    other = threading.Thread(target=in_parts, args=(slow, 3, 1, LONG_S))
    other.start()
    assert started.wait(10)
    assert covered(3, 1) == [(0, 3)]
    finish.set()
    other.join()
    assert len(covered(3, 1)) == 3


def test_the_first_result_that_says_something_is_returned() -> None:
    assert in_parts(lambda start, stop: start if start else -1, 3, 1, LONG_S) == 1
    assert in_parts(lambda start, stop: 0, 3, 1, LONG_S) == 0


@pytest.mark.parametrize("at", [0, 2])
def test_an_error_is_raised_after_all_parts_have_ended(at: int) -> None:
    ended = []

    def work(start: int, stop: int) -> int:
        if start == at:
            raise KeyError(start)
        ended.append(start)
        return -1

    with pytest.raises(KeyError):
        in_parts(work, 3, 1, LONG_S)
    assert len(ended) == 2
    assert len(covered(3, 1)) == 3  # the pool is free again


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
def test_a_forked_child_has_a_pool_of_its_own() -> None:
    """The parent's threads do not exist in the child; its lock may be held by one of them."""
    assert len(covered(3, 1)) == 3
    with threads._busy:
        child = os.fork()
        if child == 0:
            os._exit(0 if len(covered(3, 1)) == 3 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
