"""What ``npu-matmul verify`` does: read, run with a progress bar, show the verdict."""

from __future__ import annotations

import secrets
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from npu_matmul.verify import report
from npu_matmul.verify.run import verify_text


def run(module: Path, insts: Path | None, count: int, seed: int | None, console: Console) -> bool:
    """Whether the module is right; a seed is drawn where none is given."""
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
    return verdict.ok


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
