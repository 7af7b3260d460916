"""Fresh processes, timed until their first result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from npu_matmul.bench import start
from npu_matmul.bench.session import Results
from npu_matmul.bench.workers import WorkerFailed

SHAPE = 37, 45, 29


def test_a_fresh_process_tells_when_its_first_result_is_there_and_how_right_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in start.PROGRAMS:
        _, accuracy = start.first_result_s(name, SHAPE)
        assert accuracy == {"wrong_values": 0, "values": 37 * 29}
    monkeypatch.setitem(start.PROGRAMS, "off", ("", "c = a.astype(int) @ b + 1"))
    _, accuracy = start.first_result_s("off", SHAPE)
    assert accuracy == {"wrong_values": 37 * 29, "values": 37 * 29}
    given = ("import os", "c = a.astype(int) @ b + (os.environ['GIVEN'] != 'yes')")
    monkeypatch.setitem(start.PROGRAMS, "given", given)
    _, accuracy = start.first_result_s("given", SHAPE, GIVEN="yes")
    assert accuracy["wrong_values"] == 0
    for imports, product in (("import no_such", "c = a"), ("", "c = a @ a")):
        monkeypatch.setitem(start.PROGRAMS, "dies", (imports, product))
        with pytest.raises(WorkerFailed, match=r"that computes dies ended .*(no_such|matmul)"):
            start.first_result_s("dies", SHAPE)


def test_starts_are_timed_in_turn_and_every_one_must_be_right(
    quick: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    folders: list[str] = []

    def canned(name: str, **environment: str) -> Any:
        order.append(name)
        folders.extend(environment.values())
        assert not any(any(Path(folder).iterdir()) for folder in environment.values())
        return len(order), {"wrong_values": int(len(order) == 5), "values": 9}

    monkeypatch.setattr(start, "first_result_s", canned)
    results = Results({}, "", "")
    start.measure_starts(results)
    a, b = start.PROGRAMS
    assert order == [a, b, *(a, b, b, a) * 3, *[a] * 6]
    assert len(set(folders)) == 6 and not any(map(os.path.exists, folders))
    assert [row["accuracy"]["wrong_values"] for row in results.starts] == [0, 1, 0]
    assert [row["clock"] for row in results.starts] == ["wall"] * 3
    assert results.starts[0]["seconds"] == 8.5  # of 3, 6, 7, 10, 11, 14
    assert results.starts[2]["seconds"] == 17.5
