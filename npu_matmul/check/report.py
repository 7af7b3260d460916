"""How ``npu-matmul check`` shows what it found: violations, and what stands where in each tile."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from npu_matmul.design_rules import Checked
from npu_matmul.memory_map import COUNTERS, Range, layouts, memory_map
from npu_matmul.memory_rules import place_of
from npu_matmul.overlay import Tile
from npu_matmul.target import TileLimits


def show(checked: Checked, console: Console) -> None:
    """Print one design: its verdict, each violation, and the map of each tile layout."""
    overlay, count = checked.overlay, len(checked.violations)
    verdict = Text("obeys every rule", "green")
    if count:
        verdict = Text(f"{count} violation{'s' if count > 1 else ''}", "bold red")
    console.print(Text.assemble((checked.name, "bold"), f", {overlay.device}: ", verdict))
    for note in checked.notes:
        console.print(Text(note, "dim"))
    if count:
        console.print(_violations(checked))
    console.print()
    for tiles, ranges in layouts(memory_map(overlay, checked.scheme)):
        limits = overlay.target.limits(tiles[0].kind)
        console.print(_map(tiles, ranges, limits, checked.scheme))


def _violations(checked: Checked) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="red", no_wrap=True)
    table.add_column(overflow="fold")
    for violation in checked.violations:
        table.add_row(f"  {violation.rule}", Text(violation.place, "bold"))
        table.add_row("", Text(violation.found))
        table.add_row("", Text(f"cure: {violation.cure}", "cyan"))
    return table


def _map(tiles: list[Tile], ranges: list[Range], limits: TileLimits, scheme: str) -> Table:
    """One row a range, by address, the gaps between them too; in red what has no place."""
    table = Table(
        title=f"{place_of(tiles)}, {limits.memory_bytes:,} B, {scheme}",
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("name", overflow="fold")
    table.add_column("range", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("percent", justify="right", no_wrap=True)
    for name, start, size, style in _rows(ranges, limits):
        where = "no room" if start is None else f"0x{start:05X}-0x{start + size - 1:05X}"
        percent = f"{size / limits.memory_bytes:.1%}"
        note = " (FIFO counters)" if name.startswith(COUNTERS) else ""
        table.add_row(Text(name + note), where, f"{size:,}", percent, style=style)
    return table


def _rows(ranges: list[Range], limits: TileLimits) -> Iterator[tuple[str, int | None, int, str]]:
    address = 0
    for r in ranges:
        if r.start is None:
            continue
        if r.start > address:
            yield "(free)", address, r.start - address, "dim"
        if r.bytes:
            inside = address <= r.start and r.end <= limits.memory_bytes
            yield r.name, r.start, r.bytes, "" if inside else "red"
        address = max(address, r.end)
    if address < limits.memory_bytes:
        yield "(free)", address, limits.memory_bytes - address, "dim"
    for r in ranges:
        if r.start is None:
            yield r.name, None, r.bytes, "red"
