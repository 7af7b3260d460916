"""What ``npu-matmul bench`` does: checks what was asked for, measures, prints and writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from npu_matmul.bench import contenders, emulated, encoders, plots, tables
from npu_matmul.bench.encoder_session import measure_encoders
from npu_matmul.bench.environment import summary, usable_cpus
from npu_matmul.bench.session import Plan, Results, Show, inaccurate, measure, results_for
from npu_matmul.bench.start import measure_starts
from npu_matmul.bench.targets import judge
from npu_matmul.bench.workers import WorkerFailed
from npu_matmul.extras import MissingExtra
from npu_matmul.shapes import DEFAULT_SHAPES, parse_shapes
from npu_matmul.whisper.dimensions import SIZES
from npu_matmul.writing import write_json

LIBRARIES = ("numpy", "torch", "ort")


def plan_of(
    shapes: Sequence[str],
    against: str | None,
    threads: str | None,
    in_cache: bool,
    sizes: str | None = None,
) -> Plan:
    """The options as a plan; raises ValueError, with what is allowed, for what is not. ``sizes`` of
    encoders take the place of the default shapes."""
    found = parse_shapes(shapes or (() if sizes else DEFAULT_SHAPES))
    counts = _threads(threads)
    return Plan(found, _libraries(against), counts, in_cache, _sizes(sizes))


def run(plan: Plan, plot: Path | None, json: Path | None, console: Console) -> bool:
    """Measure the plan, print its tables, then write the files, each whole or not at all.

    Returns whether all of it was measured and every result is right; what is not is printed.
    """
    results = results_for(plan)
    with console.status("starting") as status:
        failures = _measure(plan, results, status.update, console)
        if plot is not None:
            _measure_strategies(plan, results, status.update, console)
    show(results, plan, console)
    if json is not None:
        write_json(json, content(results))
        console.print(f"written: {escape(str(json))}", highlight=False, soft_wrap=True)
    if plot is not None:
        for path in plots.draw(plot, results):
            console.print(f"written: {escape(str(path))}", highlight=False, soft_wrap=True)
    failures += inaccurate(results)
    for line in failures:
        console.print(f"error: {line}", style="red", highlight=False, markup=False)
    return not failures


def _measure(plan: Plan, results: Results, tell: Show, console: Console) -> list[str]:
    """Print tables as they become ready; what ended the measurement before its end, in words."""
    try:
        measure(
            plan,
            results,
            tell,
            lambda rows, peaks: console.print(tables.products_table(rows, peaks)),
        )
        if plan.shapes:
            measure_starts(results, tell)
        measure_encoders(
            plan,
            results,
            tell,
            lambda rows: console.print(tables.encoder_table(rows)),
            lambda rows: console.print(tables.function_table(rows)),
        )
    except WorkerFailed as error:
        return [f"{error}; nothing more was measured"]
    return []


def _measure_strategies(plan: Plan, results: Results, tell: Show, console: Console) -> None:
    shapes, skipped = emulated.feasible(plan.shapes)
    results.skipped += skipped
    results.strategies = emulated.run(shapes, tell)
    console.print(tables.strategy_table(results.strategies))


def content(results: Results) -> dict[str, Any]:
    """What stands in the JSON file."""
    return {**asdict(results), "targets": judge(results)}


def show(results: Results, plan: Plan, console: Console) -> None:
    """What is not a table of one shape: pairs, small products, starts and targets; then what a
    reader of the tables must know."""
    if results.beside:
        console.print(tables.beside_table(results.beside))
    for threads in plan.threads:
        small = [row for row in results.small if row["threads"] == threads]
        if small:
            console.print(tables.small_table(small))
    if results.starts:
        console.print(tables.start_table(results.starts))
    targets = judge(results)
    if any(row["reached"] is not None for row in targets):
        console.print(tables.target_table(targets, results.operands))
    for line in _notes(results, plan, targets):
        console.print(line, highlight=False, markup=False)


def _notes(results: Results, plan: Plan, targets: Sequence[dict[str, Any]]) -> list[str]:
    notes = [f"{summary(results.environment)}.", f"{results.rule}."]
    notes += [f"{tables.weights_note(results.rows)}."] if results.rows else []
    notes += results.skipped
    if any(row["reached"] is not None for row in targets):
        notes += _not_measured(targets)
    if any(tables.verdict(row).endswith("*") for row in targets):
        notes.append("* beyond what the peak that was probed in the same turns allows")
    measured = *results.rows, *results.peaks, *results.beside, *results.small, *results.starts
    measured = *measured, *results.strategies, *results.encoders, *results.functions
    if not all(row["steady"] for row in measured):
        notes.append(tables.UNSTEADY)
    disturbed = tables.disturbed(results.peaks)
    absent = [name for name in LIBRARIES if plan.shapes and name not in plan.against]
    if absent:
        notes.append(
            f"not compared: {', '.join(absent)}; pip install 'npu-matmul[bench]' and --against"
        )
    return [*notes, *([disturbed] if disturbed else [])]


def _not_measured(targets: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each reason, with the targets that it holds for."""
    reasons: dict[str, list[str]] = {}
    for row in targets:
        if row["reached"] is None:
            reasons.setdefault(row["note"], []).append(row["target"])
    return [f"not measured, {why}: {'; '.join(names)}" for why, names in reasons.items()]


def _libraries(against: str | None) -> list[str]:
    """Those asked for, which must be installed; by default those that are."""
    if against is None:
        return [name for name in LIBRARIES if _is_installed(name)]
    names = [name.strip() for name in against.split(",")]
    unknown = [name for name in names if name not in LIBRARIES]
    if unknown:
        raise ValueError(
            f"--against {against!r}: allowed are {', '.join(LIBRARIES)}, separated by commas"
        )
    for name in names:
        contenders.check_installed(name)
    return list(dict.fromkeys(names))


def _sizes(text: str | None) -> list[str]:
    """Sizes of encoders, which need the libraries that they are compared with."""
    if text is None:
        return []
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    if not set(names) <= set(SIZES):
        raise ValueError(f"--encoders {text!r}: allowed are {', '.join(SIZES)}, with commas")
    encoders.check_installed()
    return names


def _is_installed(name: str) -> bool:
    try:
        contenders.check_installed(name)
    except MissingExtra:
        return False
    return True


def _threads(text: str | None) -> list[int]:
    """By default one and two, as far as there are CPUs."""
    allowed = len(usable_cpus())
    if text is None:
        return [1, 2][:allowed]
    try:
        counts = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        counts = [0]
    if not all(1 <= count <= allowed for count in counts):
        raise ValueError(
            f"--threads {text!r}: allowed are whole numbers from 1 to {allowed}, the CPUs that "
            "this process may use, separated by commas"
        )
    return counts
