"""``npu-matmul demo``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from npu_matmul.device import auto_choice

if TYPE_CHECKING:
    from npu_matmul.demo.products import Outcome

console = Console()


@click.command(short_help="Speech through Whisper layers, checked value by value.")
@click.option("--device", default="emulated", show_default=True, help="Where to compute.")
@click.option("--kernel", default=None, help="Which kernel; default: every one for int8.")
def demo(device: str, kernel: str | None) -> None:
    """Speech through the projections of a Whisper-tiny layer, by all three strategies, then
    through an encoder of base size (not with --kernel).

    Exit code 1 when a single value differs from np.matmul, or from the CPU's.
    """
    from npu_matmul.demo import products

    console.print("Making int8 activations of the shipped recording and seeded weights ...")
    inputs = products.make_inputs()
    rows, state = inputs.activations.shape
    console.print(
        f"{len(inputs.weights)} products ({rows}, {state}) @ ({state}, {state}), device {device}\n"
    )
    outcomes: list[Outcome] = []
    for name in [kernel] if kernel or device == "cpu" else products.kernels():
        with _progress() as progress:
            found = products.run(inputs, device, name, _Bars(progress, len(inputs.weights)))
        console.print(_outcome_table(found, device))
        outcomes += found
    if device == "emulated":
        console.print("Seconds are this host's: of an NPU's speed they say nothing.\n")
    wrong = sum(outcome.wrong for outcome in outcomes)
    values = sum(outcome.values for outcome in outcomes)
    if wrong:
        console.print(f"[red]{wrong:,} of {values:,} values differ from np.matmul[/red]")
        sys.exit(1)
    console.print(f"[green]all {values:,} values equal np.matmul's, bit for bit[/green]\n")
    if kernel is None and not _encoder_is_right():
        sys.exit(1)


def _encoder_is_right() -> bool:
    """Show the second part of the demonstration; whether the emulated layer equals the CPU's."""
    from npu_matmul.whisper import demo as demonstration

    console.print(f"Making an encoder of {demonstration.SIZE} size, int8, seeded weights ...")
    with console.status("encoding"):
        shown = demonstration.run(auto_choice())
    demonstration.show(shown, console)
    return not shown.layer_wrong


class _Bars:
    """A progress bar per strategy, shown from its first product on."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._bars: dict[str, TaskID] = {}

    def __call__(self, strategy: str, done: int) -> None:
        if strategy not in self._bars:
            self._bars[strategy] = self._progress.add_task(strategy, total=self._total)
        self._progress.update(self._bars[strategy], completed=done)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("products"),
        TimeElapsedColumn(),
        console=console,
    )


def _outcome_table(outcomes: list[Outcome], device: str) -> Table:
    """One column a strategy: what the device counted, then where the host's time went."""
    baseline = outcomes[0]
    stages = dict.fromkeys(stage for outcome in outcomes for stage in outcome.seconds)
    table = Table(
        title=f"kernel {baseline.kernel or 'none'}, device {device}, "
        f"padding {baseline.padding:.1%}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("")
    for outcome in outcomes:
        table.add_column(outcome.strategy, justify="right")

    def row(heading: str, cell: Callable[[Outcome], str], end_section: bool = False) -> None:
        table.add_row(heading, *map(cell, outcomes), end_section=end_section)

    row("launches", lambda o: f"{o.counts['launches']:,}")
    row("syncs to device", lambda o: f"{o.counts['syncs_to_device']:,}")
    row("syncs from device", lambda o: f"{o.counts['syncs_from_device']:,}")
    row("bytes to device", lambda o: f"{o.counts['bytes_to_device']:,}")
    row("bytes from device", lambda o: f"{o.counts['bytes_from_device']:,}", end_section=True)
    for stage in stages:
        row(f"host seconds, {stage}", lambda o, stage=stage: f"{o.seconds[stage]:.4f}")  # type: ignore[misc]
    row("host seconds, total", lambda o: f"{o.wall_s:.4f}", end_section=True)
    row("fewer launches by", lambda o: _ratio(baseline.counts["launches"], o.counts["launches"]))
    row("fewer host seconds by", lambda o: _ratio(baseline.wall_s, o.wall_s))
    row("equal to np.matmul", lambda o: "no" if o.wrong else "yes")
    return table


def _ratio(baseline: float, value: float) -> str:
    return f"{baseline / value:,.1f}x" if value else "-"
