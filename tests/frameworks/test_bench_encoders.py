"""What ``npu-matmul bench --encoders`` compares computes the same thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from npu_matmul.bench import encoder_session, encoders, timing
from npu_matmul.bench.accuracy import is_right
from npu_matmul.bench.session import Plan, Results
from npu_matmul.bench.worker import Worker
from npu_matmul.whisper import dimensions
from npu_matmul.whisper.dimensions import Dimensions

NARROW = Dimensions(80, 1500, n_audio_state=128, n_audio_head=2, n_audio_layer=2)


class Here:
    """A library's process that is this one."""

    threads = 1

    def __init__(self, library: str) -> None:
        self.library, self.worker = library, Worker(library, None, 1)

    def ask(self, request: str, **arguments: Any) -> Any:
        return getattr(self.worker, request)(**arguments)

    def turn(self, name: str) -> float:
        return self.worker.turn(name)["cpu_s"]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Here]:
    monkeypatch.setitem(dimensions.SIZES, "tiny", NARROW)
    monkeypatch.setattr(timing, "TURN_S", 1e-4)
    monkeypatch.setattr(timing, "MAX_ROUNDS", 6)
    return [Here(library) for library in encoders.ENCODERS]


def test_all_encoders_are_near_the_reference(here: Any, tmp_path: Path) -> None:
    rows = encoder_session._encoders(here, "tiny", tmp_path / "tiny.npy", lambda _: None)
    assert [row["encoder"] for row in rows] == [*encoders.PRECISIONS, *encoders.ENCODERS["torch"]]
    torch_s = min(row["seconds"] for row in rows[3:])
    for row in rows:
        accuracy = row["accuracy"]
        assert 1e-9 < accuracy["relative_error"] <= accuracy["at_most"], row
        assert 0.999 < accuracy["cosine"] <= 1 + 1e-12
        assert row["seconds"] > 0 and row["times_torch"] == torch_s / row["seconds"]


def test_all_functions_are_near_the_reference(here: Any) -> None:
    rows = encoder_session._functions(here, lambda _: None)
    ours = [row["function"] for row in rows if row["library"] == "npu_matmul"]
    theirs = [row["function"] for row in rows if row["library"] == "torch"]
    assert set(ours) <= set(theirs) and "layer_norm 1500x512" in ours and len(theirs) == 5
    for row in rows:
        in_bf16 = row["library"] == "npu_matmul" and row["function"].startswith("attention")
        assert row["accuracy"]["at_most"] == (1e-2 if in_bf16 else 1e-6)
        assert is_right(row["accuracy"]), row  # after its turns, too


def test_a_plan_without_encoders_starts_nothing() -> None:
    results = Results({}, "", "")
    encoder_session.measure_encoders(Plan([(1, 2, 3)]), results)
    assert results.encoders == results.functions == []
