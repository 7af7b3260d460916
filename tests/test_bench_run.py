"""The command ``bench``: what it prints and writes, and what its exit code says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import npu_matmul.cli
from npu_matmul.bench import contenders, run, timing
from npu_matmul.bench.contenders import BASELINE
from npu_matmul.bench.session import Plan, Results, measure
from npu_matmul.bench.workers import WorkerFailed


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(npu_matmul.cli.app, ["bench", *arguments], catch_exceptions=True)


def test_the_command_prints_tables_and_writes_json(
    quick: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def canned(plan: Plan, *rest: Any) -> None:
        seen.append(plan)
        measure(Plan(plan.shapes, ("numpy",), (1,), small_cubes=(16,)), *rest)

    monkeypatch.setattr(run, "measure", canned)
    monkeypatch.setattr(run, "measure_starts", lambda *_: None)
    path = tmp_path / "b.json"
    done = invoke("--against", "numpy", "--shapes", "9,8,7", "5,6,7", "--json", str(path))
    assert done.exit_code == 0, done.output
    assert [plan.shapes for plan in seen] == [[(9, 8, 7), (5, 6, 7)]]
    assert "9x8x7, one core" in done.output and "5x6x7, one core" in done.output
    assert max(map(len, done.output.splitlines())) <= 80
    assert "pip install 'npu-matmul[bench]'" in " ".join(done.output.split())
    found = json.loads(path.read_text())
    assert {tuple(row["shape"]) for row in found["rows"]} == {(9, 8, 7), (5, 6, 7)}
    assert found["environment"]["cpu"] and found["rule"].startswith(timing.rule())


def test_an_interrupted_run_exits_with_130_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "measure", interrupted)
    done = invoke("--against", "numpy", "--json", str(tmp_path / "b.json"))
    assert done.exit_code == 130 and "nothing was written half" in done.output
    assert not list(tmp_path.iterdir())


def a_row(values: int, wrong: int) -> dict[str, Any]:
    return {
        **{"product": BASELINE, "library": "numpy", "kind": "f32", "shape": [9, 8, 7]},
        **{"threads": 1, "seconds": 1e-3, "gops": 1.0, "steady": True, "path": None},
        **{
            "weights": contenders.AS_GIVEN,
            "times_np_f32": 1.0,
            "of_peak": None,
            "peak": None,
            "blas_kernel": "SkylakeX",
        },
        "accuracy": {"wrong_values": wrong, "values": values},
    }


def test_a_process_that_dies_ends_the_run_but_not_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(plan: Plan, results: Results, *_: Any) -> None:
        results.rows.append(a_row(63, 0))
        raise WorkerFailed("the process that measures torch ended with -9: it said nothing")

    monkeypatch.setattr(run, "measure", dying)
    path = tmp_path / "b.json"
    done = invoke("--against", "numpy", "--json", str(path))
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    words = " ".join(done.output.split())
    assert "error: the process that measures torch ended with -9: it said nothing" in words
    assert len(json.loads(path.read_text())["rows"]) == 1


@pytest.mark.parametrize(("wrong", "code"), [(0, 0), (63, 1)])
def test_a_wrong_result_is_said_and_is_exit_code_1(
    wrong: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(plan: Plan, results: Results, *_: Any) -> None:
        results.rows.append(a_row(63, wrong))

    monkeypatch.setattr(run, "measure", measured)
    monkeypatch.setattr(run, "measure_starts", lambda *_: None)
    done = invoke("--against", "numpy", "--threads", "1")
    assert done.exit_code == code
    said = f"error: {BASELINE}, 9x8x7, one core: 63 of 63 values are wrong"
    assert (said in " ".join(done.output.split())) == bool(wrong)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shapes", "whisper"], "allowed are whisper-tiny, whisper-base, "),
        (["--against", "jax"], "allowed are numpy, torch, ort"),
        (["--threads", "none"], "whole numbers from 1"),
        (["--threads", "1,4096"], "the CPUs that this process may use"),
        (["--json", "/no/such/folder/b.json"], "a folder that exists"),
    ],
)
def test_what_a_person_can_cure_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sys.argv", ["npu-matmul", "bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        npu_matmul.cli.main()
    assert ended.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())
