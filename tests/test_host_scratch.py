"""Memory that calls use again: a room per name and thread, lent to one call at a time."""

from __future__ import annotations

import doctest
import threading

import numpy as np
import pytest
from comparing import peak_bytes

from npu_matmul.host import scratch
from npu_matmul.host.pointers import LINE_BYTES, address
from npu_matmul.host.scratch import FLOAT32, Room, lent

INT8 = np.dtype(np.int8)


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    scratch.release()


def test_the_docstring_example_holds() -> None:
    result = doctest.testmod(scratch)
    assert result.failed == 0 and result.attempted > 0


def test_the_same_name_is_the_same_memory_whatever_its_shape_and_type() -> None:
    room = Room()
    first = room.array("x", (10, 20))
    for shape, dtype in [((10, 20), FLOAT32), ((800,), INT8), ((3, 5), INT8), ((0, 7), FLOAT32)]:
        again = room.array("x", shape, dtype)
        assert (again.shape, again.dtype) == (shape, dtype)
        assert address(again) == address(first)
        assert address(again) % LINE_BYTES == 0 and again.flags.c_contiguous


def test_other_names_have_memory_of_their_own() -> None:
    room = Room()
    made = [room.array(name, (100,)) for name in "xyz"]
    for i, one in enumerate(made):
        assert not any(np.may_share_memory(one, two) for two in made[:i])


def test_a_larger_array_is_made_and_kept() -> None:
    room = Room()
    room.array("x", (100,))
    larger = room.array("x", (101,))
    assert larger.shape == (101,)
    assert address(room.array("x", (100,))) == address(larger)


def test_asking_again_allocates_nothing_unless_it_is_too_large_to_be_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room, shape, size = Room(), (1000, 100), 400_000
    monkeypatch.setattr(scratch, "MOST_BYTES", size)
    room.array("x", shape)
    assert peak_bytes(lambda: room.array("x", shape)) < size / 100
    assert peak_bytes(lambda: room.array("y", (1001, 100))) > size


def test_a_room_is_lent_again_also_after_an_error() -> None:
    with pytest.raises(KeyError), lent("x") as first:
        raise KeyError
    with lent("x") as again, lent("y") as other:
        assert again is first
        assert other is not first


def test_who_asks_while_a_room_is_lent_gets_another() -> None:
    """A signal's handler, or what a callback computes."""
    with lent("x") as outer:
        with lent("x") as inner:
            assert inner is not outer
        with lent("x") as next_to:
            assert next_to is inner
    with lent("x") as later:
        assert later is outer  # one is kept


def test_each_thread_has_rooms_of_its_own() -> None:
    rooms = []

    def ask() -> None:
        with lent("x") as room:
            rooms.append(room)

    ask()
    other = threading.Thread(target=ask)
    other.start()
    other.join()
    ask()
    assert rooms[0] is not rooms[1] and rooms[0] is rooms[2]


def test_released_is_what_every_thread_keeps_but_not_what_it_uses() -> None:
    lending, released, kept = threading.Event(), threading.Event(), []

    def ask() -> None:
        with lent("idle") as idle:
            kept.append(idle)
        with lent("used") as used:
            kept.append(used)
            lending.set()
            assert released.wait(10)
        with lent("idle") as idle, lent("used") as used:
            kept.extend((idle, used))

    other = threading.Thread(target=ask)
    other.start()
    assert lending.wait(10)
    scratch.release()
    released.set()
    other.join()
    idle, used, idle_again, used_again = kept
    assert idle_again is not idle and used_again is used
