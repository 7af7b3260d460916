"""Schedules let actors move in the order that their names say, and random ones can be repeated."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from weakref import ref

import pytest

from npu_matmul.emulator.actors import Actor, Condition
from npu_matmul.lowered.schedules import KINDS, Schedule, random_schedule, schedules

READY = Condition(lambda: True, "its turn")
STEPS = 4


def moves(schedule: Schedule) -> list[str]:
    """Who moved when, of one actor of each kind that can always move, for a few steps each."""
    log: list[str] = []

    def steps(kind: str) -> Iterator[Condition]:
        for _ in range(STEPS):
            log.append(kind)
            yield READY

    schedule.settle([Actor(kind, steps(kind), kind=kind) for kind in KINDS])
    return log


def test_all_that_can_move_do_so_to_their_ends() -> None:
    for schedule in schedules(40, 3):
        assert sorted(moves(schedule)) == sorted(list(KINDS) * STEPS)


def test_the_first_two_go_round_in_turn_forward_and_backward() -> None:
    forward, backward = schedules(2, 0)
    assert moves(forward) == list(KINDS) * STEPS
    assert moves(backward) == list(KINDS[::-1]) * STEPS


@pytest.mark.parametrize("kind", KINDS)
def test_the_starved_move_only_when_nobody_else_can(kind: str) -> None:
    last, first = (s for s in schedules(12, 0) if s.name in (f"{kind} last", f"{kind} first"))
    assert moves(last)[-STEPS:] == [kind] * STEPS
    assert moves(first)[:STEPS] == [kind] * STEPS


def test_random_schedules_are_repeated_by_their_seed() -> None:
    assert moves(random_schedule(11)) == moves(random_schedule(11))
    assert random_schedule(11).pace == random_schedule(11).pace
    assert len({tuple(moves(random_schedule(seed))) for seed in range(20)}) > 15
    assert len({random_schedule(seed).pace for seed in range(40)}) > 15


def test_no_schedule_keeps_what_it_moved() -> None:
    """All schedules of a run are there to its end; each machine's actors lead to all its memory."""
    for schedule in schedules(14, 3):
        actor = Actor("core", iter([READY]), kind="core")
        moved = ref(actor)
        schedule.settle([actor])
        del actor
        gc.collect()
        assert moved() is None, schedule.name
