"""Runs the benchmarks, prints their tables and writes ``bench.json`` with the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import host
import strategies
from rich import box
from rich.console import Console
from rich.table import Table
from timing import environment, write_json

console = Console()


@click.command()
@click.option("--quick", is_flag=True, help="Only the 512-cube on the emulated NPU.")
@click.option("--json", "path", type=click.Path(path_type=Path), default="bench.json")
def main(quick: bool, path: Path) -> None:
    """Counts and host seconds of the strategies, and host stages against NumPy."""
    machine = environment()
    console.print(f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}\n")
    with console.status("host stages") as status:
        stages = host.run()
        products = strategies.run(quick, status.update)
    console.print(_stage_table(stages))
    console.print(_strategy_table(products))
    console.print("Seconds are this host's, emulating; they say nothing about an NPU.")
    write_json(path, {"stages": stages, "strategies": products})
    console.print(f"written to {path}", highlight=False)


def _stage_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        title="host stages: NumPy's time / ours", box=box.SIMPLE_HEAD, title_justify="left"
    )
    table.add_column("stage")
    for heading in ("shape", "us", "numpy", "numpy, words", "plain copy", "equal"):
        table.add_column(heading, justify="right")
    for row in rows:
        seconds = row["seconds"]
        ours = seconds["npu_matmul"]
        ratios = [
            f"{seconds[k] / ours:.2f}x" if k in seconds else ""
            for k in ("numpy", "numpy, words", "copy")
        ]
        shape = "x".join(map(str, row["shape"]))
        table.add_row(
            row["stage"], shape, f"{ours * 1e6:.0f}", *ratios, "yes" if row["equal"] else "NO"
        )
    return table


def _strategy_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="strategies, emulated NPU", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("M, K, N")
    table.add_column("strategy")
    for heading in ("launches", "syncs", "MB in", "MB out", "host s", "equal"):
        table.add_column(heading, justify="right")
    for row in rows:
        first = row["strategy"] == next(iter(strategies.STRATEGIES))
        table.add_row(
            ", ".join(map(str, row["shape"])) if first else "",
            row["strategy"],
            f"{row['launches']:,}",
            f"{row['syncs_to_device'] + row['syncs_from_device']:,}",
            f"{row['bytes_to_device'] / 1e6:.2f}",
            f"{row['bytes_from_device'] / 1e6:.2f}",
            f"{row['host_seconds']:.2f}",
            "yes" if row["equal"] else "NO",
        )
    return table


if __name__ == "__main__":
    main()
