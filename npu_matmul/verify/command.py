"""``npu-matmul verify``."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

import click
from rich.console import Console

from npu_matmul.progress import progress_bars


@click.command(short_help="Run a design, or what the toolchain made of it.")
@click.argument("module", metavar="FILE.mlir", type=click.Path(path_type=Path))
@click.option(
    "--insts",
    type=click.Path(path_type=Path),
    help="An instruction stream: of the module's sequence, or the launch to run without one.",
)
@click.option(
    "--design",
    type=click.Path(path_type=Path),
    help="The design that a lowered FILE.mlir was made of: both must give the same bytes.",
)
@click.option(
    "--schedules",
    "count",
    default=20,
    show_default=True,
    type=click.IntRange(1),
    help="Orders in which the parts of the array come to move: 12 fixed ones, then random ones.",
)
@click.option(
    "--timeline",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Draw one launch into FILE (.html, .json, .json.gz): locks, transfers and calls of each "
    "part of the array, at modelled times.",
)
@click.option("--seed", type=click.IntRange(0), help="Of operands and schedules; default: drawn.")
def verify(
    module: Path,
    insts: Path | None,
    design: Path | None,
    count: int,
    timeline: Path | None,
    seed: int | None,
) -> None:
    """Run a design, or what the toolchain made of it, and compare it with NumPy's product.

    Exit code 1 when it is wrong under any schedule, 2 when it cannot be read, 130 when interrupted.
    """
    from npu_matmul.timeline import listening
    from npu_matmul.timeline.trace import trace
    from npu_matmul.verify import report
    from npu_matmul.verify.run import verify_text
    from npu_matmul.verify.timeline import record_timeline

    if timeline is not None:
        trace(timeline)  # a name that it cannot have is told before anything runs
        if listening.listener is not None:
            raise click.UsageError("--timeline and --trace cannot be given together")
    console = Console()
    text = _text(module)
    stream = None if insts is None else _read(insts)
    source = None if design is None else (_text(design), design.name)
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    bar = _Bar(console)
    try:
        verdict = verify_text(
            text,
            module.name,
            insts=stream,
            design=source,
            count=count,
            seed=seed,
            progress=bar.advanced,
        )
    except KeyboardInterrupt:
        bar.stop()
        console.print(f"interrupted: {bar.done} of {bar.total} schedules were run; seed {seed}")
        sys.exit(130)
    finally:
        bar.stop()
    report.show(verdict, console)
    if timeline is not None:
        drawn = record_timeline(text, module.name, stream, timeline)
        what = (
            f"launch {drawn}: {timeline}" if drawn else "no launch was begun, so nothing is drawn"
        )
        console.print(what, highlight=False, soft_wrap=True, markup=False)
    if not verdict.ok:
        sys.exit(1)


class _Bar:
    """A progress bar that is there once something runs: what cannot be read has none."""

    def __init__(self, console: Console) -> None:
        self.done = self.total = 0
        self._progress = progress_bars(console, "schedules")
        self._task = self._progress.add_task("", total=None)

    def advanced(self, done: int, total: int, schedule: str) -> None:
        if not self.total:
            self._progress.start()
        self.done, self.total = done, total
        self._progress.update(self._task, completed=done, total=total, description=schedule)

    def stop(self) -> None:
        if self._progress.live.is_started:
            self._progress.stop()


def _text(path: Path) -> str:
    return _read(path).decode(errors="replace")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
