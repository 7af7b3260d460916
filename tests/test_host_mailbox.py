"""A thread that serves a mailbox, awake and asleep; parts that it is handed and gives back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import noting
import numpy as np
import pytest
from numpy.typing import NDArray

from npu_matmul.host import mailbox
from npu_matmul.host.compiled import DONE, REFUSED
from npu_matmul.host.pointers import address

TURN = mailbox.new_turn()


@pytest.fixture
def served() -> Iterator[NDArray[np.int64]]:
    box = mailbox.new_mailbox()
    thread = threading.Thread(target=mailbox.serve, args=(address(box),))
    thread.start()
    yield box
    mailbox.stop(box)
    thread.join(10)
    assert not thread.is_alive()


def shared(
    made: noting.Notes, task: noting.Task, cuts: list[int], *boxes: NDArray[np.int64]
) -> int:
    table, places = np.array(made.table), np.array([*cuts, *map(address, boxes)])
    at = address(places) + len(cuts) * mailbox.WORD_BYTES
    count, turn = len(cuts) - 1, address(TURN)
    return int(mailbox.share(task.address, address(table), turn, address(places), count, at))


def fall_asleep(box: NDArray[np.int64]) -> None:
    end = time.monotonic() + 10
    while not box[mailbox.ASLEEP]:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_one_part_needs_no_mailbox() -> None:
    for many in (False, True):
        made = noting.notes(9)
        if many:
            assert shared(made, noting.note, [2, 7]) == DONE
        else:
            assert mailbox.alone(noting.note.address, address(np.array(made.table)), 2, 7) == DONE
        assert made.parts == [(2, 7)]
        assert made.threads[2] == threading.get_ident()


def test_who_has_no_turn_does_all_alone(
    served: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = mailbox.new_turn()
    assert mailbox.taken(turn) and not mailbox.taken(turn)
    monkeypatch.setitem(globals(), "TURN", turn)
    made = noting.notes(9)
    assert shared(made, noting.note, [2, 5, 7], served) == DONE
    assert made.parts == [(2, 7)]


def test_parts_are_handed_over_and_come_back(served: NDArray[np.int64]) -> None:
    for again in range(1, 200):
        made = noting.notes(9)
        assert shared(made, noting.note, [0, again % 8 + 1, 9], served) == DONE
        assert made.parts == [(0, again % 8 + 1), (again % 8 + 1, 9)]
    assert len(set(made.threads) - {0}) == 2


def test_who_sleeps_is_woken(served: NDArray[np.int64]) -> None:
    for _ in range(3):
        fall_asleep(served)
        made = noting.notes(2, chosen=2)
        assert shared(made, noting.together, [0, 1, 2], served) == DONE


def test_a_caller_that_waits_long_sleeps_and_is_woken(served: NDArray[np.int64]) -> None:
    made = noting.notes(2)
    timer = threading.Timer(0.1, made.words.__setitem__, (1, 1))
    timer.start()
    assert shared(made, noting.held, [0, 1, 2], served) == DONE
    assert made.parts == [(0, 1), (1, 2)]


@pytest.mark.parametrize("at", [0, 1])
def test_the_least_result_is_returned(served: NDArray[np.int64], at: int) -> None:
    assert shared(noting.notes(2, chosen=at), noting.refusing, [0, 1, 2], served) == REFUSED
