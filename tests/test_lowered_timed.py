"""Timelines of lowered modules: what ran is untouched, and both levels are modelled alike."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
from click.testing import CliRunner
from comparing import assert_equal_bits
from lowered_modules import FOLDER, module, text

from npu_matmul import cli
from npu_matmul.emulator.pace import pace_of
from npu_matmul.emulator.timed import TimedMachine
from npu_matmul.lowered.machine import LoweredMachine
from npu_matmul.lowered.timed import TimedLoweredMachine
from npu_matmul.mlir.elaborate import overlay_of_text
from npu_matmul.mlir.reader import read_design
from npu_matmul.timeline.strands import ArrayLaunch, Track
from npu_matmul.verify.subject import Subject
from npu_matmul.verify.timeline import record_timeline
from npu_matmul.verify.traffic import Trial, trial_memories

CYCLES = {"zero": 40.0, "mm": 170.0, "matmul": 2500.0, "copy": 100.0}


def trial_of(name: str) -> tuple[Subject, Trial]:
    subject = Subject(read_design(text(name)), name, None)
    return subject, (subject.made_up[0] if name == "sixteen_cores" else subject.own[0])


def lowered(name: str) -> tuple[TimedLoweredMachine, ArrayLaunch, list[Any]]:
    subject, trial = trial_of(name)
    booted = TimedLoweredMachine(
        module(name), subject.symbols, pace_of(module(name).overlay, CYCLES)
    )
    memories = trial_memories(trial, np.random.default_rng(5))
    booted.launch(trial.stream, memories)
    return booted, booted.shown(name), memories


def spans(launch: ArrayLaunch, kind: str) -> list[Track]:
    return [track for track in launch.tracks if track.kind == kind]


@pytest.mark.parametrize("name", ["gemm_one_core", "transform"])
def test_what_runs_is_untouched(name: str) -> None:
    booted, _, memories = lowered(name)
    subject, trial = trial_of(name)
    plain = LoweredMachine(module(name), subject.symbols)
    others = trial_memories(trial, np.random.default_rng(5))
    plain.launch(trial.stream, others)
    assert booted.counters == plain.counters
    for memory, other in zip(memories, others, strict=True):
        assert_equal_bits(memory.words, other.words)


@pytest.mark.parametrize("name", ["gemm_one_core", "transform", "sixteen_cores"])
def test_both_levels_take_as_long(name: str) -> None:
    """The same launch, modelled from object FIFOs and from locks and descriptors: the waits must be
    the same, but for hand-overs in whole cycles here."""
    _, found, _ = lowered(name)
    _, trial = trial_of(name)
    overlay = overlay_of_text(golden.design(name))
    models = {symbol: golden.MODELS[symbol] for symbol in overlay.functions}
    design = TimedMachine(overlay, models, pace_of(overlay, CYCLES))
    design.launch(trial.stream, trial_memories(trial, np.random.default_rng(5)))
    want = design.shown(name).cycles
    assert want > 5000
    assert abs(found.cycles - want) <= 20


def test_every_lock_operation_transfer_and_call_is_shown() -> None:
    booted, launch, _ = lowered("gemm_one_core")
    shown = Counter(name for track in launch.tracks for name in track.names)
    counters = booted.counters
    assert shown["acquire"] + shown["release"] == counters.lock_operations
    assert shown["transfer"] == counters.transfers + counters.dma_tasks
    assert shown["mm"] + shown["zero"] == counters.kernel_calls
    (core,) = spans(launch, "core")
    position = core.names.index("acquire")
    assert core.details[position] == {
        "lock": "@c_prod_lock_0 of core (0, 2)",
        "amount": 1,
        "stands at": 1,
        "place": "gemm_one_core.mlir:46",
    }


def test_a_core_does_one_thing_at_a_time_and_nothing_before_its_operands() -> None:
    _, launch, _ = lowered("gemm_one_core")
    (core,) = spans(launch, "core")
    calls = [
        (start, end)
        for name, start, end in zip(core.names, core.starts, core.ends, strict=True)
        if name in CYCLES
    ]
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(calls))
    assert sum(end - start for start, end in calls) == 12 * 170 + 5 * 40
    first_product = calls[1][0]
    arrivals = [
        track.ends[track.names.index("transfer")]
        for track in spans(launch, "core DMA")
        if "S2MM" in track.name
    ]
    assert len(arrivals) == 2
    assert first_product >= max(arrivals)


def test_a_sender_waits_for_its_receivers() -> None:
    """C is slow to leave while the core makes it: the shim's one transfer lasts as long."""
    _, launch, _ = lowered("gemm_one_core")
    (out,) = spans(launch, "shim S2MM")
    (core,) = spans(launch, "core")
    assert out.ends[0] - out.starts[0] > 0.5 * (core.ends[-1] - core.starts[0])
    a = min(spans(launch, "shim MM2S"), key=lambda track: track.name)
    assert a.ends[-1] > core.starts[core.names.index("mm")]  # not all of A fits before


def test_a_launch_that_goes_wrong_is_drawn_as_far_as_it_came(tmp_path: Path) -> None:
    path = tmp_path / "race.json"
    assert record_timeline(text("gemm_one_core_race"), "race.mlir", None, path) == "@gemm"
    events = json.loads(path.read_text())["traceEvents"]
    names = Counter(event["name"] for event in events if event["ph"] == "X")
    assert names["mm"] == 1  # the second reads what has not come
    assert names["acquire"] > 3


def test_designs_are_drawn_too(tmp_path: Path) -> None:
    path = tmp_path / "design.json"
    record_timeline(golden.design("gemm_one_core"), "d.mlir", None, path)
    events = json.loads(path.read_text())["traceEvents"]
    names = Counter(event["name"] for event in events if event["ph"] == "X")
    assert (names["mm"], names["acquire"]) == (12, 0)


def run(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, ["verify", *arguments])


def test_the_command_draws_a_timeline(tmp_path: Path) -> None:
    path = tmp_path / "one.html"
    result = run(str(FOLDER / "transform.mlir"), "--schedules", "1", "--timeline", str(path))
    assert result.exit_code == 0, result.output
    assert f"launch @run: {path}" in result.output
    assert "memtile (0, 1) MM2S 0" in path.read_text()


@pytest.mark.parametrize(
    ("change", "why", "drawn"),
    [
        (
            ("      cf.br ^bb1(", "      %early = memref.load %rtp[%c0] : memref<16xi32>\n"
             "      cf.br ^bb1("),
            "boot, after 0 kernel calls", "no launch was begun, so nothing is drawn",
        ),
        (
            ("      aiex.npu.dma_wait {symbol = @c_shim_alloc}\n", ""),
            "is never waited for", "launch @gemm: ",
        ),
    ],
)  # fmt: skip
def test_a_module_that_cannot_begin_is_drawn_as_far_as_that_goes(
    change: tuple[str, str], why: str, drawn: str, tmp_path: Path
) -> None:
    wrong, path = tmp_path / "m.mlir", tmp_path / "m.json"
    wrong.write_text(golden.changed(text("gemm_one_core"), change))
    result = run(str(wrong), "--schedules", "1", "--timeline", str(path))
    assert result.exit_code == 1, result.output
    assert why in " ".join(result.output.split())
    assert drawn in result.output
    assert path.exists() == drawn.startswith("launch")


def test_a_timeline_that_cannot_be_is_told_before_anything_runs(tmp_path: Path) -> None:
    module_file = str(FOLDER / "transform.mlir")
    result = run(module_file, "--timeline", str(tmp_path / "a.txt"))
    assert "must end in .json, .json.gz, .html" in str(result.exception)
    both = run(
        module_file, "--timeline", str(tmp_path / "a.json"), "--trace", str(tmp_path / "b.json")
    )
    assert both.exit_code == 2
    assert "cannot be given together" in both.output
