"""Encoders and their functions in turns: each size, then the functions, by number of threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from npu_matmul.bench import timing
from npu_matmul.bench.encoders import ENCODERS, OPENAI, TRANSFORMERS
from npu_matmul.bench.session import (
    Plan,
    Results,
    Row,
    Show,
    rechecked,
    threads_text,
    timing_of,
)
from npu_matmul.bench.workers import Process, processes

Finished = Callable[[list[Row]], None]


def measure_encoders(
    plan: Plan,
    results: Results,
    show: Show = lambda _: None,
    encoders_done: Finished = lambda _: None,
    functions_done: Finished = lambda _: None,
) -> None:
    """Fill ``results.encoders`` and ``results.functions``; each part is told when it is done."""
    with TemporaryDirectory() as folder:
        for threads in plan.threads if plan.encoders else ():
            with processes(list(ENCODERS), threads) as started:
                for size in plan.encoders:
                    told = partial(_tell, show, f"{size} encoder, {threads_text(threads)}")
                    rows = _encoders(started, size, Path(folder) / f"{size}.npy", told)
                    results.encoders += rows
                    encoders_done(rows)
                rows = _functions(started, partial(_tell, show, threads_text(threads)))
                results.functions += rows
                functions_done(rows)


def _encoders(
    started: list[Process], size: str, want: Path, show: Callable[[int], None]
) -> list[Row]:
    if not want.exists():
        show(0)
        _torch(started).ask("encoder_reference", size=size, path=str(want))
    rows, turns, makers = [], {}, {}
    for process in started:
        told = process.ask("encoders", size=size, want=str(want), turn_s=timing.TURN_S)
        rows += told
        turns.update({row["encoder"]: partial(process.turn, row["encoder"]) for row in told})
        makers.update({row["encoder"]: process for row in told})
    samples = timing.take_turns(turns, show)
    threads = started[0].threads
    rows = [
        {
            **{"size": size, "threads": threads, **row},
            **timing_of(samples[row["encoder"]], threads),
            "accuracy": rechecked(row, makers[row["encoder"]], row["encoder"]),
        }
        for row in rows
    ]
    torch_s = min(row["seconds"] for row in rows if row["encoder"] in (OPENAI, TRANSFORMERS))
    return [{**row, "times_torch": torch_s / row["seconds"]} for row in rows]


def _functions(started: list[Process], show: Callable[[int], None]) -> list[Row]:
    """Each function of ours with torch's beside it."""
    rows, turns, makers = {}, {}, {}
    for process in started:
        makers[process.library] = process
        for row in process.ask("functions", turn_s=timing.TURN_S):
            rows[process.library, row["function"]] = row
            name = f"{process.library} {row['function']}"
            turns[name] = partial(process.turn, row["function"])
    samples = timing.take_turns(turns, show)
    threads, found = started[0].threads, []
    for (library, name), row in rows.items():
        timed = timing_of(samples[f"{library} {name}"], threads)
        torch_s = samples[f"torch {name}"].median
        ratio = torch_s / timed["seconds"]
        accuracy = rechecked(row, makers[library], name)
        common = {"threads": threads, "library": library, **row}
        found.append({**common, **timed, "accuracy": accuracy, "times_torch": ratio})
    return found


def _torch(started: list[Process]) -> Process:
    return next(process for process in started if process.library == "torch")


def _tell(show: Show, what: str, number: int) -> None:
    show(f"{what}: round {number}" if number else f"{what}: the reference")
