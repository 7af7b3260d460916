"""How alternatives are timed: in turn, until each median is steady.

Alternatives take turns, ABBA: every other round runs backwards, so that a drifting clock speeds up
or slows down all alike and none always follows the same neighbour. A turn is one call that is not
timed and then as many timed calls as last ``TURN_S``; it gives the seconds of one call.

The median of the rounds is steady when its 95 % confidence interval lies within ``STEADY`` of it
to both sides. The interval is that of order statistics, which assumes no distribution
(Conover, Practical Nonparametric Statistics, section 3.2). All go on until all are steady, or for
``MAX_ROUNDS``, or for ``MOST_S`` where calls are long; what is not steady by then says so.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

TURN_S = 0.05
STEADY = 0.02
MIN_ROUNDS = 6  # fewer have no 95 % interval: 2 * 2**-5 > 0.05
MAX_ROUNDS = 30
MOST_S = 60.0  # after which no round beyond MIN_ROUNDS begins


def rule(turn_s: float = TURN_S, most_s: float = MOST_S) -> str:
    """How it was timed, as it stands beside results."""
    return (
        f"Alternatives in turn (ABBA), {turn_s} s a turn after one untimed call, until the 95 % "
        f"interval of each median is within {STEADY:.0%} of it: {MIN_ROUNDS} to {MAX_ROUNDS} "
        f"rounds, fewer where they take over {most_s:.0f} s"
    )


@dataclass(frozen=True)
class Sample:
    """Seconds of one call, a number per round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def interval(self) -> tuple[float, float]:
        return median_interval(self.seconds)

    @property
    def steady(self) -> bool:
        return is_steady(self.seconds)


@dataclass(frozen=True)
class Elapsed:
    """Seconds of one call by both clocks: CPU time of the whole process, and wall time."""

    cpu_s: float
    wall_s: float


def median_interval(seconds: Sequence[float]) -> tuple[float, float]:
    """Bounds of the median with 95 % confidence; all of the line for fewer than 6 values.

    >>> median_interval([3, 1, 2, 5, 4, 6])
    (1, 6)
    >>> median_interval(range(20))
    (5, 14)
    """
    n = len(seconds)
    tails = [sum(comb(n, i) for i in range(k + 1)) / 2**n for k in range(n)]
    cut = sum(tail <= 0.025 for tail in tails) - 1
    if cut < 0:
        return float("-inf"), float("inf")
    ordered = sorted(seconds)
    return ordered[cut], ordered[n - 1 - cut]


def is_steady(seconds: Sequence[float]) -> bool:
    """Whether the interval lies within ``STEADY`` of the median to both sides.

    >>> is_steady([1.0, 1.01, 0.99, 1.0, 1.01, 0.99]), is_steady([1.0, 1.0, 1.0, 1.0, 1.0, 1.1])
    (True, False)
    """
    low, high = median_interval(seconds)
    middle = statistics.median(seconds)
    return middle - low <= STEADY * middle and high - middle <= STEADY * middle


def take_turns(
    turns: Mapping[str, Callable[[], float]],
    show: Callable[[int], None] = lambda _: None,
    most_s: float = MOST_S,
) -> dict[str, Sample]:
    """Run the turns in rounds until all medians are steady; ``show`` is told each round's
    number."""
    measured: dict[str, list[float]] = {name: [] for name in turns}
    started = time.perf_counter()
    for number in range(1, MAX_ROUNDS + 1):
        show(number)
        names = list(turns)
        for name in names if number % 2 else reversed(names):
            measured[name].append(turns[name]())
        late = time.perf_counter() - started > most_s
        if number >= MIN_ROUNDS and (late or all(map(is_steady, measured.values()))):
            break
    return {name: Sample(tuple(seconds)) for name, seconds in measured.items()}


def medians(
    alternatives: Mapping[str, Callable[[], Any]],
    turn_s: float = TURN_S,
    clock: str = "wall_s",
    most_s: float = MOST_S,
) -> dict[str, float]:
    """Median seconds of one call of each alternative, within this process; ``clock`` is one of
    :class:`Elapsed`."""
    calls = {name: calls_per_turn(work, turn_s) for name, work in alternatives.items()}
    turns = {
        name: lambda work=work, n=calls[name]: getattr(elapsed(work, n), clock)
        for name, work in alternatives.items()
    }
    return {name: sample.median for name, sample in take_turns(turns, most_s=most_s).items()}


def calls_per_turn(work: Callable[[], Any], turn_s: float) -> int:
    """How many calls last ``turn_s``, to a power of two; one call before warms up."""
    work()
    calls = 1
    while calls < 1 << 20 and elapsed(work, calls).wall_s * calls < turn_s:
        calls *= 2
    return calls


def elapsed(work: Callable[[], Any], calls: int) -> Elapsed:
    """One turn: a call that is not timed, then the mean of so many."""
    work()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Elapsed(cpu / calls, wall / calls)
