"""The developer's comparisons: host stages, models, timelines and precisions of this checkout.

Prints their tables and writes a JSON file with the environment. ``npu-matmul bench`` measures the
cpu device against other libraries, and the strategies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import host
import host_below
import models
import precisions
import timeline
from rich import box
from rich.console import Console
from rich.table import Table
from timing import rule

from npu_matmul.bench.environment import environment, summary
from npu_matmul.writing import write_json

console = Console()


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), default="bench.json")
def main(path: Path) -> None:
    """Host stages against NumPy, and what else this checkout's parts take on this host."""
    machine = environment()
    console.print(f"{summary(machine)}\n{rule()}\n", highlight=False)
    with console.status("host stages") as status:
        stages = host.run()
        threshold = host_below.run()
        status.update("models of the emulated NPU")
        modelled = models.run()
        status.update("timelines")
        recording = {"look_up_ns": timeline.look_up_ns(), "rows": timeline.run()}
        status.update("precisions")
        accuracy = precisions.run()
    console.print(_stage_table(stages))
    console.print(_threshold_table(threshold))
    console.print(_model_table(modelled))
    console.print(_timeline_table(recording))
    console.print(_precision_table(accuracy))
    console.print("Seconds are this host's, emulating; they say nothing about an NPU.")
    results = {"stages": stages, "host_below": threshold, "models": modelled}
    results |= {"precisions": accuracy, "timelines": recording}
    write_json(path, {"environment": machine, "rule": rule(), **results})
    console.print(f"written to {path}", highlight=False)


def _stage_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        title="host stages: speed of a plain copy of as many bytes, and of NumPy, is 1",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("stage")
    for heading in ("matrix", "us", "of a\ncopy", "goal", "of\nNumPy", "equal"):
        table.add_column(heading, justify="right")
    for row in rows:
        seconds = row["seconds"]
        ours = seconds["npu_matmul"]
        table.add_row(
            row["stage"],
            "x".join(map(str, row["shape"])),
            f"{ours * 1e6:.0f}",
            f"{seconds['copy'] / ours:.2f}",
            f"{row['goal']:.2f}",
            f"{seconds['numpy'] / ours:.1f}",
            "yes" if row["equal"] else "NO",
        )
    return table


def _threshold_table(threshold: dict[str, Any]) -> Table:
    title = f"where packing cannot pay: host_below = {threshold['host_below']:,} here"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("cube", "multiplications", "CPU product, us", "packing alone, us"):
        table.add_column(heading, justify="right")
    for row in threshold["rows"]:
        seconds = (f"{row[key] * 1e6:.1f}" for key in ("host_s", "packing_s"))
        table.add_row(str(row["size"]), f"{row['multiplications']:,}", *seconds)
    return table


def _model_table(rows: list[dict[str, Any]]) -> Table:
    title = "the emulated NPU's int8 products, one core: tiles packed as a core has them"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("m k n", "G op/s", "x np.matmul f32", "of peak", "equal"):
        table.add_column(heading, justify="right")
    for row in rows:
        share = "" if row["of_peak"] is None else f"{row['of_peak']:.0%}"
        speeds = f"{row['g_op_per_s']:.0f}", f"{row['of_numpy']:.2f}", share
        table.add_row(" ".join(map(str, row["tile"])), *speeds, "yes" if row["equal"] else "NO")
    return table


def _timeline_table(recording: dict[str, Any]) -> Table:
    title = f"timelines: telling nobody of a block takes {recording['look_up_ns']:.0f} ns here"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("M, K, N on device")
    for heading in ("us", "us recorded", "spans of a call", "equal"):
        table.add_column(heading, justify="right")
    for row in recording["rows"]:
        shape = "x".join(map(str, row["shape"]))
        seconds = (f"{row[key] * 1e6:,.1f}" for key in ("quiet_s", "recorded_s"))
        equal = "yes" if row["equal"] else "NO"
        table.add_row(f"{shape}, {row['device']}", *seconds, f"{row['spans']:,}", equal)
    return table


def _precision_table(rows: list[dict[str, Any]]) -> Table:
    shape = "x".join(map(str, rows[0]["shape"]))
    table = Table(title=f"precisions, {shape}", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("device", "precision", "sums"):
        table.add_column(heading)
    for heading in ("relative error", "host s"):
        table.add_column(heading, justify="right")
    for row in rows:
        error, seconds = f"{row['relative_error']:.1e}", f"{row['host_seconds']:.3f}"
        table.add_row(row["device"], row["precision"], row["arithmetic"], error, seconds)
    return table


if __name__ == "__main__":
    main()
