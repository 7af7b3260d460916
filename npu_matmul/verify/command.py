"""``npu-matmul verify``."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@click.command(short_help="Run a design, or what the toolchain made of it.")
@click.argument("module", metavar="FILE.mlir", type=click.Path(path_type=Path))
@click.option(
    "--insts",
    type=click.Path(path_type=Path),
    help="An instruction stream: of the module's sequence, or the launch to run without one.",
)
@click.option(
    "--schedules",
    "count",
    default=20,
    show_default=True,
    type=click.IntRange(1),
    help="Orders in which the parts of the array come to move: 12 fixed ones, then random ones.",
)
@click.option("--seed", type=click.IntRange(0), help="Of operands and schedules; default: drawn.")
def verify(module: Path, insts: Path | None, count: int, seed: int | None) -> None:
    """Run a design, or what the toolchain made of it, and compare it with NumPy's product.

    Exit code 1 when it is wrong under any schedule, 2 when it cannot be read.
    """
    from npu_matmul.verify import report
    from npu_matmul.verify.run import verify_text

    console = Console()
    text = _read(module).decode(errors="replace")
    stream = None if insts is None else _read(insts)
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    with Progress(
        TextColumn("{task.description:18}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("schedules"),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        task = progress.add_task("", total=count)

        def advanced(done: int, total: int, schedule: str) -> None:
            progress.update(task, completed=done, total=total, description=schedule)

        verdict = verify_text(
            text, module.name, insts=stream, count=count, seed=seed, progress=advanced
        )
    report.show(verdict, console)
    if not verdict.ok:
        sys.exit(1)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
