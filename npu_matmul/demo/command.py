"""``npu-matmul demo``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from npu_matmul.device import Device, NpuDevice, auto_choice, open_device
from npu_matmul.progress import progress_bars

if TYPE_CHECKING:
    from npu_matmul.demo.products import Outcome

console = Console()


@click.command(short_help="Speech through Whisper layers, checked value by value.")
@click.option("--device", default="emulated", show_default=True, help="Where to compute.")
@click.option("--kernel", default=None, help="Which kernel; default: every one for int8.")
def demo(device: str, kernel: str | None) -> None:
    """Speech through the projections of a Whisper-tiny layer, on an NPU by all three strategies,
    then through an encoder of base size (not with --kernel).

    Exit code 1 when a single value differs from np.matmul, or a layer on the emulated NPU from the
    encoder's.
    """
    from npu_matmul.demo import products

    opened = open_device(auto_choice() if device == "auto" else device)
    console.print("Making int8 activations of the shipped recording and seeded weights ...")
    inputs = products.make_inputs()
    rows, state = inputs.activations.shape
    console.print(
        f"{len(inputs.weights)} products ({rows}, {state}) @ ({state}, {state}), "
        f"device {opened.name}\n"
    )
    outcomes: list[Outcome] = []
    names: Iterable[str | None] = [kernel]
    if kernel is None and isinstance(opened, NpuDevice):
        names = products.kernels(opened)
    for name in names:
        with progress_bars(console, "products") as bars:
            found = products.run(inputs, opened, name, _Bars(bars, len(inputs.weights)))
        console.print(_outcome_table(found, opened.name))
        outcomes += found
    if opened.name == "emulated":
        console.print("Seconds are this host's: of an NPU's speed they say nothing.\n")
    wrong = sum(outcome.wrong for outcome in outcomes)
    values = sum(outcome.values for outcome in outcomes)
    if wrong:
        console.print(f"[red]{wrong:,} of {values:,} values differ from np.matmul[/red]")
        sys.exit(1)
    console.print(f"[green]all {values:,} values equal np.matmul's, bit for bit[/green]\n")
    if kernel is None and not _encoder_is_right(opened):
        sys.exit(1)


def _encoder_is_right(asked: Device) -> bool:
    """Show the demonstration's second part; whether the emulated layer equals the encoder's."""
    from npu_matmul.whisper import demo as demonstration

    device, why = demonstration.fast_device(asked)
    console.print(
        f"Making an encoder of {demonstration.SIZE} size, {demonstration.PRECISION}, seeded "
        f"weights, on device {device.name}{why and f' ({why})'} ..."
    )
    with console.status("encoding"):
        shown = demonstration.run(device)
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


def _outcome_table(outcomes: list[Outcome], device: str) -> Table:
    """One column a strategy: what the device counted, then where the host's time went. A device
    without launches has one column, and nothing to count."""
    baseline = outcomes[0]
    stages = dict.fromkeys(stage for outcome in outcomes for stage in outcome.seconds)
    table = Table(title_justify="left", box=box.SIMPLE_HEAD)
    if baseline.kernel:
        table.title = f"kernel {baseline.kernel}, device {device}, padding {baseline.padding:.1%}"
    table.add_column("")
    for outcome in outcomes:
        table.add_column(outcome.how, justify="right")

    def row(heading: str, cell: Callable[[Outcome], str]) -> None:
        table.add_row(heading, *map(cell, outcomes))

    if not baseline.kernel:
        row("sums", lambda o: o.arithmetic)
    for count in baseline.counts if baseline.kernel else ():
        row(count.replace("_", " "), lambda o, count=count: f"{o.counts[count]:,}")  # type: ignore[misc]
    table.add_section()
    for stage in stages:
        row(f"host seconds, {stage}", lambda o, stage=stage: f"{o.seconds[stage]:.4f}")  # type: ignore[misc]
    row("host seconds, total", lambda o: f"{o.wall_s:.4f}")
    table.add_section()
    if len(outcomes) > 1:
        launches = baseline.counts["launches"]
        row("fewer launches by", lambda o: f"{launches / o.counts['launches']:,.1f}x")
        row("fewer host seconds by", lambda o: f"{baseline.wall_s / o.wall_s:,.1f}x")
    row("equal to np.matmul", lambda o: "no" if o.wrong else "yes")
    return table
