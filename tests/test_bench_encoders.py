"""The encoders' part of ``npu-matmul bench``: options, tables and targets, without measuring."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from npu_matmul.bench import encoders, run, tables, targets
from npu_matmul.bench.session import Results
from npu_matmul.extras import MissingExtra

Row = dict[str, Any]
SECONDS = {"int8": 0.15, "bf16": 0.25, "bf16x3": 0.9, "openai-whisper": 0.64, "transformers": 0.6}


def rows(threads: int, size: str = "base") -> list[Row]:
    return [
        {
            **{"size": size, "threads": threads, "encoder": name, "steady": name != "bf16"},
            **{"seconds": seconds, "times_torch": 0.6 / seconds},
            "accuracy": {"relative_error": 2.3e-3, "at_most": 1e-2, "cosine": 0.9999871},
        }
        for name, seconds in SECONDS.items()
    ]


def printed(table: Table) -> list[list[str]]:
    console = Console(width=80, record=True, file=io.StringIO())
    assert console.measure(table).maximum <= 80
    console.print(table)
    text = console.export_text()
    assert "…" not in text
    return [line.split() for line in text.splitlines()]


def test_encoders_take_the_place_of_the_default_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "find_spec", lambda name: "found")
    plan = run.plan_of([], "numpy", "1", False, "tiny, base,tiny")
    assert (plan.shapes, plan.encoders) == ([], ["tiny", "base"])
    both = run.plan_of(["1,2,3"], "numpy", "1", False, "tiny")
    assert (both.shapes, both.encoders) == ([(1, 2, 3)], ["tiny"])
    assert run.plan_of([], "numpy", "1", False).encoders == []


def test_other_sizes_and_missing_libraries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'tiny,huge': allowed are tiny, base, small"):
        run.plan_of([], "numpy", "1", False, "tiny,huge")
    monkeypatch.setattr(encoders, "find_spec", lambda name: None if name == "whisper" else "found")
    with pytest.raises(MissingExtra, match=r"needs openai-whisper: pip install .*\[frameworks\]"):
        run.plan_of([], "numpy", "1", False, "tiny")


def test_encoders_stand_with_their_accuracy_in_80_columns() -> None:
    lines = printed(tables.encoder_table(rows(2)))
    assert lines[0] == ["base", "encoder,", "30", "s", "of", "audio,", "2", "threads"]
    assert ["npu_matmul", "int8", "150", "4.00", "2.3e-03", "0.999987"] in lines
    assert ["npu_matmul", "bf16", "~250", "2.40", "2.3e-03", "0.999987"] in lines
    assert ["transformers", "f32", "600", "1.00", "2.3e-03", "0.999987"] in lines


def test_an_encoder_may_err_by_what_independent_layers_add_up_to() -> None:
    of_tiny, of_large = (encoders.encoder_bound("int8", size) for size in ("tiny", "large-v3"))
    assert of_tiny == pytest.approx(0.04) and of_large == pytest.approx(of_tiny * (32 / 4) ** 0.5)


def test_our_functions_are_the_same_however_often_they_are_called() -> None:
    for name, (ready, wanted, bound) in encoders.functions("npu_matmul").items():
        for _ in range(3):
            ready.work()
        found = encoders.accuracy(ready.result(), wanted, bound)
        assert found["relative_error"] <= bound, name


def test_functions_stand_beside_torchs() -> None:
    measured = [
        {
            **{"threads": 1, "library": library, "function": "gelu 1500x512", "steady": True},
            **{"seconds": seconds, "times_torch": 4e-4 / seconds},
            "accuracy": {"relative_error": error, "at_most": 1e-6, "cosine": 1.0},
        }
        for library, seconds, error in (("npu_matmul", 2e-4, 3e-8), ("torch", 4e-4, 2e-8))
    ]
    lines = printed(tables.function_table(measured))
    assert "in place after a copy" in " ".join(word for line in lines for word in line)
    assert ["gelu", "1500x512", "200", "3.0e-08", "400", "2.0e-08", "2.00"] in lines


def test_targets_of_the_encoder_need_base_on_two_threads() -> None:
    results = Results({}, "", "", encoders=rows(1) + rows(2))
    judged = {row["target"]: row for row in targets.judge(results)}
    assert [row["reached"] for row in judged.values()] == [True, True]
    int8 = judged["base encoder int8 / torch f32, two threads"]
    assert int8["worst"] == pytest.approx(4.0) and int8["asked"] == 3.0
    results.encoders[5]["times_torch"] = 2.99
    assert [row["reached"] for row in targets.judge(results)] == [False, True]
    for wrong in ("int8", "openai-whisper"):
        of_two = rows(2)
        found = next(row for row in of_two if row["encoder"] == wrong)
        found["accuracy"] = {**found["accuracy"], "relative_error": 0.9}
        judged = {row["target"]: row for row in targets.judge(Results({}, "", "", encoders=of_two))}
        assert judged["base encoder int8 / torch f32, two threads"]["note"] == "a result is wrong"
    for other in (rows(1), rows(2, "tiny")):
        judged_other = targets.judge(Results({}, "", "", encoders=other))
        assert [row["reached"] for row in judged_other] == [None, None]
        assert "needs --encoders base and two threads" in judged_other[0]["note"]
    assert not targets.judge(Results({}, "", ""))
