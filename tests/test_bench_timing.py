"""The timing rule: whose turn it is, when a median is steady, and what a turn is."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from npu_matmul.bench import timing
from npu_matmul.bench.timing import Sample, calls_per_turn, elapsed, median_interval, take_turns


def test_the_interval_holds_the_median_in_95_percent_of_samples() -> None:
    """Against its definition: of a uniform distribution the median is 1/2."""
    source = random.Random(0)
    for size in (6, 11, 20):
        hits = 0
        for _ in range(2000):
            low, high = median_interval([source.random() for _ in range(size)])
            hits += low <= 0.5 <= high
        assert 0.94 < hits / 2000 < 0.995  # 95 %, and as little more as whole ranks allow


def test_fewer_than_six_values_bound_nothing() -> None:
    assert median_interval([1.0] * 5) == (-math.inf, math.inf)
    assert not timing.is_steady([1.0] * 5)
    assert timing.is_steady([1.0] * 6)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 50.0])
def test_steady_is_relative_to_the_median_to_both_sides(scale: float) -> None:
    inside, outside = 1 + timing.STEADY * 0.99, 1 + timing.STEADY * 1.01
    for spread, steady in ((inside, True), (outside, False)):
        assert timing.is_steady([scale] * 5 + [scale * spread]) is steady
        assert timing.is_steady([scale] * 5 + [scale * (2 - spread)]) is steady


def turns_of(script: dict[str, list[float]]) -> tuple[dict[str, Callable[[], float]], list[str]]:
    """Turns that answer what is written, the last for ever, and note who had a turn."""
    order: list[str] = []

    def turn(name: str) -> float:
        order.append(name)
        left = script[name]
        return left.pop(0) if len(left) > 1 else left[0]

    return {name: lambda name=name: turn(name) for name in script}, order


def test_alternatives_take_turns_and_every_other_round_runs_backwards() -> None:
    turns, order = turns_of({"a": [1.0], "b": [2.0], "c": [3.0]})
    samples = take_turns(turns)
    assert "".join(order) == "abccba" * 3
    assert {name: sample.median for name, sample in samples.items()} == {"a": 1, "b": 2, "c": 3}


def test_all_go_on_until_the_last_is_steady() -> None:
    wild = [1.0, 2.0] * 4
    turns, order = turns_of({"calm": [1.0], "wild": [*wild, 1.5]})
    samples = take_turns(turns)
    rounds = len(samples["wild"].seconds)
    assert rounds > len(wild) + 1
    assert order.count("calm") == order.count("wild") == rounds < timing.MAX_ROUNDS
    assert samples["wild"].steady


def test_what_never_settles_stops_and_says_so() -> None:
    turns, _ = turns_of({"a": [1.0, 2.0] * 100})
    sample = take_turns(turns)["a"]
    assert len(sample.seconds) == timing.MAX_ROUNDS
    assert not sample.steady
    low, high = sample.interval
    assert (low, high) == (1.0, 2.0)


def test_long_calls_have_no_more_than_the_least_rounds_after_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clocks(monkeypatch)

    def slow() -> float:
        clock.now += timing.MOST_S / 3 / 7.5  # of wall time, a 7.5th of what is allowed
        return 1.0 + clock.now

    for rounds, least in ((8, timing.MIN_ROUNDS), (10, 10)):
        monkeypatch.setattr(timing, "MIN_ROUNDS", least)
        sample = take_turns({"a": slow})["a"]
        assert len(sample.seconds) == rounds and not sample.steady


def test_rounds_are_shown_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []
    take_turns(turns_of({"a": [1.0]})[0], shown.append)
    assert shown == [1, 2, 3, 4, 5, 6]


class Clocks:
    """Both clocks, which only work advances: wall time three times as fast as CPU time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls = 0.0, 0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: 3 * self.now)
        monkeypatch.setattr(timing.time, "process_time", lambda: self.now)

    def work(self) -> None:
        self.calls += 1
        self.now += 100.0 if self.calls == 1 else 0.01  # the first call is cold


def test_a_turn_starts_with_a_call_that_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks(monkeypatch)
    took = elapsed(clocks.work, 4)
    assert clocks.calls == 5
    assert took.cpu_s == pytest.approx(0.01) and took.wall_s == pytest.approx(0.03)


def test_a_turn_has_as_many_calls_as_last_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert calls_per_turn(Clocks(monkeypatch).work, 0.2) == 8  # 4 calls last 0.12 s, 8 last 0.24 s
    assert calls_per_turn(Clocks(monkeypatch).work, 0.02) == 1


def test_medians_are_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks(monkeypatch)
    clocks.work()
    assert timing.medians({"a": clocks.work}) == pytest.approx({"a": 0.03})
    assert timing.medians({"a": clocks.work}, 0.01, "cpu_s") == pytest.approx({"a": 0.01})


def test_the_rule_that_is_printed_has_the_numbers_that_are_used() -> None:
    for number in (timing.TURN_S, timing.MIN_ROUNDS, timing.MAX_ROUNDS, int(timing.MOST_S)):
        assert f"{number}" in timing.rule()
    assert f"within {timing.STEADY:.0%}" in timing.rule()
    assert "0.25 s a turn" in timing.rule(0.25)
    assert Sample((1.0,) * 6).steady
