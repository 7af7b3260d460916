"""Who moves when: many orders in which the parts of the array could come to move.

Comparing values under one fair order proves nothing: with a DMA that stays ahead, a core that does
not wait reads what it should. So there are a fixed order and its reverse, orders in which all of a
kind move only when nobody else can, or move first, and random ones, each from a seed that is
printed. A random order also draws the room of streams and how many words move at once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from npu_matmul.emulator.actors import Actor, Settle, round_robin
from npu_matmul.lowered.streams import Pace

KINDS = ("core", "core DMA", "memtile DMA", "shim DMA", "host")


@dataclass(frozen=True)
class Schedule:
    """``settle`` lets actors move until nobody can; ``pace`` says how words do."""

    name: str
    settle: Settle
    pace: Pace

    def __str__(self) -> str:
        return self.name


FIXED = Schedule("fixed", round_robin, Pace())


def schedules(count: int, seed: int, coarse: bool = False) -> Iterator[Schedule]:
    """So many schedules: the fixed kinds first, then random ones from ``seed`` on.

    ``coarse`` ones move words in larger pieces, for modules with large buffers.

    >>> [schedule.name for schedule in schedules(4, 7)][:3]
    ['fixed', 'reversed', 'core last']
    """
    named = [FIXED, Schedule("reversed", _reversed, Pace(depth_words=4, straight=coarse))]
    for kind in KINDS:
        named.append(Schedule(f"{kind} last", _starving(kind), Pace()))
        named.append(Schedule(f"{kind} first", _preferring(kind), Pace(fine=True)))
    yield from named[:count]
    for number in range(count - len(named)):
        yield random_schedule(seed + number, coarse)


def random_schedule(seed: int, coarse: bool = False) -> Schedule:
    """An order drawn at every turn, in which some actors are slower than others."""
    draw = random.Random(seed)
    straight = draw.random() < (0.9 if coarse else 0.5)
    pace = Pace(
        depth_words=32 if coarse else draw.choice((1, 2, 4, 8, 16, 32)),
        chunk_words=draw.choice((256, 2048, None) if coarse else (1, 3, 8, 32, 64, None)),
        straight=straight,
        fine=draw.random() < 0.75,
    )
    speeds: WeakKeyDictionary[Actor, float] = WeakKeyDictionary()  # a schedule outlives machines

    def settle(actors: Sequence[Actor]) -> None:
        turns = [(a, speeds.setdefault(a, draw.choice((0.05, 0.3, 1.0)))) for a in actors]
        while True:
            draw.shuffle(turns)
            moved = False
            for actor, speed in turns:
                if draw.random() < speed:
                    moved |= actor.advance()
            if not moved and not any(actor.advance() for actor, _ in turns):
                return

    return Schedule(f"random {seed}", settle, pace)


def _reversed(actors: Sequence[Actor]) -> None:
    round_robin(actors[::-1])


def _starving(kind: str) -> Settle:
    def settle(actors: Sequence[Actor]) -> None:
        _first(
            [actor for actor in actors if actor.kind != kind],
            [actor for actor in actors if actor.kind == kind],
        )

    return settle


def _preferring(kind: str) -> Settle:
    def settle(actors: Sequence[Actor]) -> None:
        _first(
            [actor for actor in actors if actor.kind == kind],
            [actor for actor in actors if actor.kind != kind],
        )

    return settle


def _first(favoured: list[Actor], starved: list[Actor]) -> None:
    """One step of one of the starved whenever no other can move."""
    moving = True
    while moving:
        round_robin(favoured)
        moving = any(actor.advance() for actor in starved)
