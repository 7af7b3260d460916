"""The sixteen cores as the toolchain lowered them: host seconds of reading, judging and running.

``python bench/lowered.py --schedules 100`` also runs small launches under that many schedules.
"""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from npu_matmul.bench.environment import environment
from npu_matmul.instructions import decode
from npu_matmul.lowered.schedules import FIXED
from npu_matmul.mlir.reader import read_design
from npu_matmul.verify.run import Verdict, launch_trial, verify_text
from npu_matmul.verify.subject import Subject

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "data" / "golden"
NAME = "sixteen_cores"


def run() -> list[dict[str, Any]]:
    """A row per level: the module's own launch, 1536x1024 @ 1024x2048, compared with NumPy."""
    insts = (GOLDEN / f"{NAME}.insts.bin").read_bytes()
    rows = []
    for level, path in (("lowered", GOLDEN / "lowered"), ("object FIFOs", GOLDEN)):
        text = (path / f"{NAME}.mlir").read_text(encoding="utf-8")
        marks = [time.perf_counter()]
        device = read_design(text, f"{NAME}.mlir")
        marks.append(time.perf_counter())
        subject = Subject(device, f"{NAME}.mlir", insts)
        marks.append(time.perf_counter())
        verdict = Verdict(NAME, level, subject.reference, seed=0, problems=subject.problems)
        warm, machine = subject.boot(FIXED), subject.boot(FIXED)
        marks.append(time.perf_counter())
        (own,) = subject.own
        assert own.stream == decode(insts)
        launch_trial(warm, subject.made_up[0], subject, {}, np.random.default_rng(0), verdict)
        started = time.perf_counter()
        launch_trial(machine, own, subject, {}, np.random.default_rng(1), verdict)
        ended = time.perf_counter()
        seconds = [b - a for a, b in pairwise(marks)]
        rows.append(
            {
                "level": level,
                "read_s": seconds[0],
                "judge_s": seconds[1],
                "boot_s": seconds[2] / 2,
                "run_s": ended - started,
                "counters": vars(machine.counters),
                "equal": verdict.ok,
            }
        )
    return rows


@click.command()
@click.option("--schedules", "count", default=0, help="Also verify under this many schedules.")
@click.option("--seed", default=1)
def main(count: int, seed: int) -> None:
    console, machine = Console(), environment()
    console.print(f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}\n")
    table = Table(title=f"{NAME}, host seconds", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("level")
    for heading in ("read", "judge", "boot", "run and compare", "kernel calls", "locks", "equal"):
        table.add_column(heading, justify="right")
    for row in run():
        counters = row["counters"]
        table.add_row(
            row["level"],
            *(f"{row[key]:.2f}" for key in ("read_s", "judge_s", "boot_s", "run_s")),
            f"{counters['kernel_calls']:,}",
            f"{counters.get('lock_operations', 0):,}",
            "yes" if row["equal"] else "NO",
        )
    console.print(table)
    if count:
        text = (GOLDEN / "lowered" / f"{NAME}.mlir").read_text(encoding="utf-8")
        started = time.perf_counter()
        verdict = verify_text(text, f"{NAME}.mlir", count=count, seed=seed)
        console.print(
            f"{len(verdict.schedules)} schedules from seed {seed}: {verdict.counters.launches:,} "
            f"launches, {verdict.counters.kernel_calls:,} kernel calls, "
            f"{'right' if verdict.ok else verdict.problems}, "
            f"{time.perf_counter() - started:.0f} s"
        )


if __name__ == "__main__":
    main()
