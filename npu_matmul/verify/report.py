"""How ``npu-matmul verify`` shows what it ran and what it found."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from npu_matmul.verify.run import Verdict

RANDOM = "random "  # how the names of random schedules begin


def show(verdict: Verdict, console: Console) -> None:
    """Print what was run, then each problem, then the verdict."""
    console.print(_table(verdict))
    if verdict.problems:
        console.print(_problems(verdict))
        count = len(verdict.problems)
        text = f"{count} problem{'s' if count > 1 else ''} in the {verdict.disagrees}"
        console.print(Text.assemble((verdict.name, "bold"), ": ", (text, "bold red")))
    else:
        text = "right under every schedule"
        if 0 < verdict.own_schedules < len(verdict.schedules):
            text = "right: its own launch under the first schedule, made-up ones under all"
        if not verdict.compared:
            text = "the same under every schedule; there was no product to compare it with"
        console.print(Text.assemble((verdict.name, "bold"), ": ", (text, "bold green")))


def _table(verdict: Verdict) -> Table:
    table = Table(
        title=f"{verdict.name}, {verdict.level}",
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        show_header=False,
    )
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    counters = verdict.counters
    for name, value in (
        ("reference", verdict.reference),
        ("schedules", _schedules(verdict)),
        ("launches", f"{counters.launches:,}{_origin(verdict)}"),
        ("shim tasks", f"{counters.dma_tasks:,}, {counters.dma_bytes:,} B"),
        ("transfers", f"{counters.transfers:,}"),
        ("lock operations", f"{counters.lock_operations:,}"),
        ("kernel calls", f"{counters.kernel_calls:,}"),
        ("bytes compared", f"{verdict.bytes_compared:,}"),
    ):
        if verdict.level == "lowered" or name not in ("transfers", "lock operations"):
            table.add_row(name, Text(value))
    return table


def _schedules(verdict: Verdict) -> str:
    """How many, and what repeats them."""
    count = len(verdict.schedules)
    drawn = sum(name.startswith(RANDOM) for name in verdict.schedules)
    return f"{count}: {count - drawn} fixed, {drawn} random; seed {verdict.seed}"


def _origin(verdict: Verdict) -> str:
    """How often the launch ran that is the module's own: that of its sequence, or of --insts."""
    own, count = verdict.own_schedules, len(verdict.schedules)
    if not verdict.ok:
        return ""
    which = "each schedule" if own == count else f"{own} of {count} schedules"
    return f"; its own under {which}" if own else "; none its own"


def _problems(verdict: Verdict) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="red", no_wrap=True)
    table.add_column(overflow="fold")
    for problem in verdict.problems:
        head = f"in the {problem.part}"
        head += f", under schedule {problem.schedule!r}" if problem.schedule else ""
        table.add_row(f"  {problem.kind}", Text(head, "bold"))
        table.add_row("", Text(problem.text))
    return table
