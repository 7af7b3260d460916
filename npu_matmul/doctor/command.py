"""``npu-matmul doctor``: one screen that says whether device "xrt" would work."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from npu_matmul.doctor.checks import Line

STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red"}


@click.command(short_help="Whether a real NPU can be used here, and what to do where not.")
@click.option("--json", "as_json", is_flag=True, help="Print facts and lines as JSON.")
def doctor(as_json: bool) -> None:
    """Examine whether a real NPU can be used here, and tell the cure where not.

    Runs the self-test of every kernel that is built. Exit code 0 when device "xrt" would work, else
    1.
    """
    from npu_matmul.doctor.checks import examine, would_work
    from npu_matmul.doctor.facts import gather

    facts = gather()
    lines = examine(facts)
    works = would_work(lines)
    if as_json:
        table = {"works": works, "lines": [asdict(x) for x in lines], "facts": asdict(facts)}
        click.echo(json.dumps(table, indent=1))
    else:
        show(lines, facts.distribution_name, works, Console())
    sys.exit(0 if works else 1)


def show(lines: list[Line], system: str, works: bool, console: Console) -> None:
    """Print the lines, each cure below what it cures."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for line in lines:
        table.add_row(Text(line.status, STYLES[line.status]), line.name, Text(line.found))
        if line.cure:
            table.add_row("", "", Text(f"-> {line.cure}", "cyan"))
    console.print(table)
    if works:
        verdict = Text("device 'xrt' works", "bold green")
    else:
        failed = sum(line.status == "fail" for line in lines)
        verdict = Text(f"device 'xrt' does not work: {failed} to put right", "bold red")
    console.print(Text.assemble(verdict, f"  ({system})"))
