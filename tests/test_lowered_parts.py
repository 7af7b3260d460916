"""Clocks and histories, locks, streams: what the lowered machine is made of, each by itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from comparing import assert_equal_bits

from npu_matmul.emulator.actors import Actor, Condition, round_robin
from npu_matmul.lowered.locks import LockError, LockState
from npu_matmul.lowered.module import Lock, UseLock
from npu_matmul.lowered.order import (
    FINE,
    HANDED_OVER,
    NEVER_WRITTEN,
    NOBODY,
    UNORDERED_READ,
    UNORDERED_WRITE,
    Clock,
    History,
)
from npu_matmul.lowered.streams import Inlet, Outlet, Pace
from npu_matmul.overlay import Tile

FIRST, SECOND, THIRD = 2, 5, 6  # numbers of actors, of eight
SOME = np.array([3, 4, 9])


def clocks() -> tuple[Clock, Clock, Clock]:
    one, two, three = (Clock(f"actor {n}", n, 8) for n in (FIRST, SECOND, THIRD))
    return one, two, three


def history() -> History:
    return History(16, [FIRST, SECOND, THIRD])


def test_a_word_that_nobody_wrote_cannot_be_read() -> None:
    writer = clocks()[0]
    found = history()
    assert found.write(writer, SOME[:2], True) == (FINE, NOBODY, NOBODY)
    assert found.read(writer, SOME) == (NEVER_WRITTEN, 9, NOBODY)


def test_a_write_must_be_known_before_it_is_read() -> None:
    writer, reader, _ = clocks()
    found = history()
    found.write(writer, SOME, True)
    assert found.read(reader, SOME) == (UNORDERED_WRITE, 3, FIRST)
    reader.take(writer.give())
    assert found.read(reader, SOME)[0] == FINE


def test_what_comes_after_a_hand_over_is_not_part_of_it() -> None:
    writer, reader, _ = clocks()
    found = history()
    reader.take(writer.give())
    found.write(writer, SOME, True)
    assert found.read(reader, SOME) == (UNORDERED_WRITE, 3, FIRST)


def test_order_goes_through_others() -> None:
    writer, between, reader = clocks()
    found = history()
    found.write(writer, SOME, True)
    between.take(writer.give())
    reader.take(between.give())
    assert found.read(reader, SOME)[0] == FINE


def test_nobody_writes_what_another_may_still_be_reading() -> None:
    writer, reader, other = clocks()
    found = history()
    found.write(writer, SOME, True)
    for each in (reader, other):
        each.take(writer.give())
        assert found.read(each, SOME)[0] == FINE
    writer.take(reader.give())
    assert found.write(writer, SOME, True) == (UNORDERED_READ, 3, THIRD)
    writer.take(other.give())
    assert found.write(writer, SOME, True)[0] == FINE


def test_two_writes_must_be_ordered_too() -> None:
    one, two, _ = clocks()
    found = history()
    found.write(one, SOME, True)
    assert found.write(two, SOME[1:], True) == (UNORDERED_WRITE, 4, FIRST)


def test_what_was_handed_over_to_be_written_is_gone_until_it_is_written() -> None:
    writer, reader, _ = clocks()
    found = history()
    found.write(writer, SOME, True)
    found.write(writer, SOME, False)
    reader.take(writer.give())
    assert found.read(reader, SOME) == (HANDED_OVER, 3, FIRST)
    found.written[[3, 9]] = True
    assert found.read(reader, SOME) == (HANDED_OVER, 4, FIRST)
    found.written[4] = True
    assert found.read(reader, SOME)[0] == FINE


def lock(initial: int) -> LockState:
    return LockState(Lock("l", Tile(0, 2), 3, initial, "m.mlir:1"), [])


def use(state: LockState, amount: int, acquires: bool = True, exact: bool = False) -> UseLock:
    return UseLock(state.lock, acquires, amount, exact, "m.mlir:7")


def test_an_acquire_waits_for_as_much_and_takes_it_away() -> None:
    state = lock(2)
    assert not state.open_for(use(state, 3))
    assert state.open_for(use(state, 1))
    state.acquire(use(state, 1), clocks()[0])
    assert state.value == 1
    assert state.open_for(use(state, 1))
    state.acquire(use(state, 1), clocks()[0])
    assert not state.open_for(use(state, 1))


def test_an_exact_acquire_waits_for_just_this_value() -> None:
    state = lock(2)
    assert not state.open_for(use(state, 1, exact=True))
    assert state.open_for(use(state, 2, exact=True))
    state.acquire(use(state, 2, exact=True), clocks()[0])
    assert state.value == 0


def test_units_carry_what_their_givers_knew_in_the_order_they_came() -> None:
    one, two, taker = clocks()
    state = lock(0)
    state.release(use(state, 1, acquires=False), one, "one")
    state.release(use(state, 1, acquires=False), two, "two")
    state.acquire(use(state, 1), taker)
    assert (taker.times[FIRST], taker.times[SECOND]) == (1, 0)
    state.acquire(use(state, 1), taker)
    assert (taker.times[FIRST], taker.times[SECOND]) == (1, 1)
    assert (state.peak, state.operations) == (2, 4)


def test_a_lock_holds_63() -> None:
    state = lock(62)
    state.release(use(state, 1, acquires=False), clocks()[0], "core (0, 2)")
    with pytest.raises(LockError) as caught:
        state.release(use(state, 1, acquires=False), clocks()[0], "core (0, 2)")
    assert str(caught.value) == (
        "core (0, 2) at m.mlir:7 releases 1 of lock @l of core (0, 2), which stands at 63; "
        "a lock holds 63"
    )


def connect(pace: Pace, receivers: int) -> tuple[Outlet, list[Inlet]]:
    outlet = Outlet(pace)
    outlet.inlets = [Inlet() for _ in range(receivers)]
    return outlet, outlet.inlets


def sending(outlet: Outlet, words: np.ndarray) -> Iterator[Condition]:
    return outlet.send(
        words.size,
        lambda first, count: words[first : first + count],
        np.zeros(1, np.int64),
        outlet.waiting("room"),
    )


def receiving(inlet: Inlet, into: np.ndarray, pace: Pace) -> Iterator[Condition]:
    def sink(position: int, data: np.ndarray, known: np.ndarray) -> None:
        into[position : position + data.size] = data

    return inlet.receive(into.size, sink, inlet.waiting("words"), pace)


def test_a_stream_holds_so_many_words_and_no_more() -> None:
    pace = Pace(depth_words=5)
    outlet, (inlet,) = connect(pace, 1)
    sender = Actor("sender", sending(outlet, np.arange(12, dtype=np.uint32)))
    round_robin([sender])
    assert (inlet.level, outlet.moved, sender.finished) == (5, 5, False)
    got = np.zeros(12, np.uint32)
    round_robin([sender, Actor("receiver", receiving(inlet, got, pace))])
    assert sender.finished
    assert_equal_bits(got, np.arange(12, dtype=np.uint32))


@pytest.mark.parametrize("straight", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, None])
def test_a_broadcast_moves_only_when_all_have_room(straight: bool, chunk: int | None) -> None:
    pace = Pace(depth_words=4, chunk_words=chunk, straight=straight, fine=True)
    outlet, inlets = connect(pace, 3)
    words = np.arange(10, dtype=np.uint32)
    sender = Actor("sender", sending(outlet, words))
    got = [np.zeros(10, np.uint32) for _ in inlets]
    actors = [
        Actor(f"receiver {n}", receiving(inlet, got[n], pace)) for n, inlet in enumerate(inlets)
    ]
    round_robin([sender, *actors[:2]])
    assert [inlet.level + inlet.moved for inlet in inlets] == [4, 4, 4]
    assert inlets[2].level == 4
    round_robin([sender, *actors])
    for found in got:
        assert_equal_bits(found, words)


def test_what_waits_in_a_stream_is_what_was_sent() -> None:
    """Not what the sender's memory holds by then."""
    pace = Pace(depth_words=8)
    outlet, (inlet,) = connect(pace, 1)
    words = np.arange(6, dtype=np.uint32)
    round_robin([Actor("sender", sending(outlet, words))])
    words[:] = 99
    got = np.zeros(6, np.uint32)
    round_robin([Actor("receiver", receiving(inlet, got, pace))])
    assert_equal_bits(got, np.arange(6, dtype=np.uint32))


def test_who_sends_to_nobody_waits() -> None:
    outlet, _ = connect(Pace(), 0)
    sender = Actor("sender", sending(outlet, np.zeros(1, np.uint32)))
    round_robin([sender])
    assert not sender.finished
