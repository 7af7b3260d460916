"""``npu-matmul verify`` at a terminal of 80 columns: what it prints, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import golden
import pytest
from click.testing import CliRunner, Result
from lowered_modules import FOLDER, text

from npu_matmul import cli
from npu_matmul.verify import run as verify_run

WIDTH = 80


def run(*arguments: str) -> Result:
    result = CliRunner(env={"COLUMNS": str(WIDTH)}).invoke(cli.app, ["verify", *arguments])
    assert all(len(line) <= WIDTH for line in result.output.splitlines())
    return result


def words_of(result: Result) -> str:
    return " ".join(result.output.split())


def test_the_command_prints_what_was_run_and_the_verdict() -> None:
    insts = str(golden.FOLDER / "gemm_one_core.insts.bin")
    arguments = ("--insts", insts, "--schedules", "14", "--seed", "7")
    result = run(str(FOLDER / "gemm_one_core.mlir"), *arguments)
    assert result.exit_code == 0, result.output
    output = words_of(result)
    for part in (
        "gemm_one_core.mlir, lowered",
        "reference C = A @ B, int8 to int32, tiles 16x16x16, 1x1 cores",
        "schedules 14: 12 fixed, 2 random; seed 7",
        "launches 98; its own under each schedule",
        "lock operations 5,418",
        "kernel calls 784",
        "bytes compared 200,704",
        "gemm_one_core.mlir: right under every schedule",
    ):
        assert part in output


def test_the_command_tells_what_ran_under_one_schedule_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sequences of more calls than this are run once; here all are."""
    monkeypatch.setattr(verify_run, "MANY_CALLS", 1)
    output = words_of(run(str(FOLDER / "gemm_one_core.mlir"), "--schedules", "3"))
    assert "launches 19; its own under 1 of 3 schedules" in output
    assert "right: its own launch under the first schedule, made-up ones under all" in output


def test_the_command_names_what_is_wrong() -> None:
    result = run(str(FOLDER / "gemm_one_core_race.mlir"), "--schedules", "3")
    assert result.exit_code == 1
    output = words_of(result)
    assert "balance in the module" in output
    assert "race in the module, under schedule 'fixed'" in output
    assert "gemm_one_core_race.mlir: 2 problems in the module" in output


def test_the_command_takes_designs_too() -> None:
    result = run(str(golden.FOLDER / "transform.mlir"), "--schedules", "2")
    assert result.exit_code == 0
    output = words_of(result)
    assert "transform.mlir, object FIFOs" in output
    assert "the same under every schedule; there was no product to compare it with" in output
    assert "lock operations" not in output


def test_a_seed_is_drawn_and_printed() -> None:
    output = words_of(run(str(FOLDER / "transform.mlir"), "--schedules", "1"))
    assert re.search(r"1 fixed, 0 random; seed \d+", output)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nope.mlir"], "nope.mlir cannot be read: [Errno 2] No such file"),
        ([str(FOLDER / "transform.mlir"), "--insts", "nope.bin"], "nope.bin cannot be read"),
        ([str(FOLDER / "transform.mlir"), "--schedules", "0"], "0 is not in the range x>=1"),
        ([__file__], "test_verify_command.py:1:3"),
        (["EMPTY"], "empty.mlir is empty: it must hold an aie.device"),
        (
            [str(golden.FOLDER / "transform.insts.bin")],
            "transform.insts.bin holds binary data, not",
        ),
        ([str(FOLDER)], "cannot be read: [Errno 21] Is a directory"),
    ],
)
def test_what_cannot_be_verified_is_exit_code_2(
    arguments: list[str], why: str, tmp_path: Path
) -> None:
    (tmp_path / "empty.mlir").touch()
    arguments = [str(tmp_path / "empty.mlir") if a == "EMPTY" else a for a in arguments]
    command = [sys.executable, "-m", "npu_matmul", "verify", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert why in " ".join(done.stderr.split())
    assert "schedules" not in done.stdout  # no bar of what never ran
    assert "Traceback" not in done.stderr


def test_a_failed_verdict_leaves_the_next_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.mlir"
    path.write_text(text("gemm_one_core_race"))
    assert run(str(path), "--schedules", "1").exit_code == 1
    path.write_text(text("gemm_one_core"))
    assert run(str(path), "--schedules", "1").exit_code == 0


def test_a_design_is_a_reference() -> None:
    design = str(golden.FOLDER / "transform.mlir")
    result = run(str(FOLDER / "transform.mlir"), "--design", design, "--schedules", "2")
    assert result.exit_code == 0, result.output
    output = words_of(result)
    assert "reference what transform.mlir gives" in output
    assert "transform.mlir: right under every schedule" in output


def test_what_was_not_run_is_not_counted_as_done() -> None:
    output = words_of(run(str(FOLDER / "gemm_one_core_race.mlir"), "--schedules", "9"))
    assert "0/9 schedules" in output
    assert "schedules 1: 1 fixed, 0 random" in output


def test_an_interrupt_says_how_far_it_came() -> None:
    command = [sys.executable, "-m", "npu_matmul", "verify", str(FOLDER / "gemm_one_core.mlir")]
    process = subprocess.Popen(
        [*command, "--schedules", "100000", "--seed", "5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": str(WIDTH), "FORCE_COLOR": "1"},
    )
    assert process.stdout is not None
    seen = ""
    while "/100000" not in seen:  # it runs
        seen += process.stdout.read(1)
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert re.search(r"interrupted: .*\d+.* of .*100000.* schedules were run; seed .*5", output)
    assert "Traceback" not in errors
