"""The progress bars of all commands: what, a bar, how many of how many, for how long."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)


def progress_bars(console: Console, unit: str = "") -> Progress:
    """A display whose tasks are a line each; ``unit`` is what their numbers count."""
    columns: list[ProgressColumn] = [
        TextColumn("{task.description:20}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
    ]
    if unit:
        columns.append(TextColumn(unit))
    return Progress(*columns, TimeElapsedColumn(), console=console)
