"""The strategies on the emulated device, counted and timed in turn."""

from __future__ import annotations

from typing import Any

import pytest

from npu_matmul.bench import emulated
from npu_matmul.kernel import load_kernel
from npu_matmul.strategies import STRATEGIES, expected
from npu_matmul.tiler import TileGrid


def test_strategies_are_counted_by_the_emulated_device_and_timed_in_turn(
    quick: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    rows = emulated.run([(20, 33, 17)], shown.append, kernels=["matmul_16x16"])
    assert [row["strategy"] for row in rows] == list(STRATEGIES)
    for row in rows:
        grid = TileGrid(load_kernel(row["kernel"]), 20, 33, 17)
        assert row["launches"] == expected(row["strategy"], grid).launches
        assert row["equal"] and row["host_seconds"] > 0 and row["host_seconds_by_stage"]
        assert row["rounds"] == 6 and row["threads"] >= 1
    names = [text.rsplit(" ", 1)[1] for text in shown]
    order = list(STRATEGIES)  # first all once, not timed
    assert names == [*order, *(order + order[::-1]) * 3]


def test_a_strategy_that_is_wrong_once_is_wrong(
    quick: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = emulated._timed, []

    def wrong_once(a: Any, b: Any, kernel: str, strategy: str) -> Any:
        seconds, got = real(a, b, kernel, strategy)
        calls.append(strategy)
        if strategy == "batched" and calls.count("batched") == 3:
            got[-1, -1] += 1
        return seconds, got

    monkeypatch.setattr(emulated, "_timed", wrong_once)
    rows = emulated.run([(20, 33, 17)], kernels=["matmul_16x16"])
    assert {row["strategy"]: row["equal"] for row in rows} == {
        name: name != "batched" for name in STRATEGIES
    }
