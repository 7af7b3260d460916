"""An exploration as a table of 80 columns, as Markdown, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from npu_matmul.explore.found import Found, Row
from npu_matmul.explore.rank import SHARE, SLOWEST
from npu_matmul.numbers import three_digits
from npu_matmul.performance.published import trust
from npu_matmul.sequence import MLIR_TYPES

KIB = 1024
HEADINGS = ("rank", "m k n", "bufs", "grid", "C", "KiB", "ms", "x", "pad", "limit", "kernel")


def title(found: Found) -> str:
    """What was explored for what, and where."""
    ranking = found.ranking
    dtype, npu = ranking.candidates.dtype, ranking.npu
    return (
        f"{dtype} kernels for {ranking.products.name} on {npu.target.name} at "
        f"{npu.clock_hz / 1e9:g} GHz, modelled"
    )


def show(found: Found, console: Console) -> None:
    """Print the fronts, the kernels that were found, and what the columns are."""
    table = Table(title=title(found), title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.show_edge = False
    for heading in HEADINGS:
        left = heading in ("limit", "kernel")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for rows in found.sections.values():
        for row in rows:
            table.add_row(*_cells(row, found), style="bold" if row.found else "")
        table.add_section()
    console.print(table, "")
    for line in notes(found):
        console.print(line, highlight=False)


def markdown(found: Found) -> str:
    """The same rows, and no notes."""
    rows = [_cells(row, found) for row in found.rows]
    lines = [f"| {' | '.join(row)} |" for row in (HEADINGS, *rows)]
    lines.insert(1, f"|{'---|' * len(HEADINGS)}")
    return "\n".join(lines) + "\n"


def notes(found: Found) -> Iterator[str]:
    """How to read the table, and how far to trust it."""
    ranking, reference = found.ranking, found.reference
    yield (
        f"Of {ranking.seconds.size:,} candidates, for each type of C: the fastest, then always the "
        f"fastest with {SHARE:.0%} of the memory of the row above or less, up to {SLOWEST:g} times "
        "the first. Then likewise with fewer columns. All obey the design rules."
    )
    memory = ranking.npu.target.core.memory_bytes // KIB
    times = "" if reference is None else f"; x: beside {reference.kernel.name}"
    yield (
        f"bufs: buffers of A, B and C; grid: of cores; KiB: of the {memory} of a core; ms: "
        f"{ranking.products.measure}{times}; pad: multiplications of padding."
    )
    yield f"Modelled, not measured. {trust(ranking.npu.target.name)}"
    if any(row.sums_bytes for row in found.rows):
        yield (
            "C narrower than its sums, which are kept apart: design and core function for that are "
            "to be written." + _saturating(found)
        )
    target = ranking.npu.target.name
    for row in found.rows:
        if target not in row.kernel.targets:
            yield f"{row.kernel.name} is not for {target}: modelled as if it were."
    for kernel in found.broken:
        yield f"{kernel.name} breaks a design rule here: npu-matmul check {kernel.name}"


def content(found: Found) -> dict[str, Any]:
    """What stands in the JSON file; seconds are modelled."""
    ranking = found.ranking
    products, npu = ranking.products, ranking.npu
    return {
        "modelled": True,
        "dtype": ranking.candidates.dtype,
        "target": npu.target.name,
        "clock_hz": npu.clock_hz,
        "products": asdict(products),
        "candidates": int(ranking.seconds.size),
        "figures": {name: figure.as_dict() for name, figure in npu.figures.named()},
        "sections": {
            name: [_row_content(row) for row in rows] for name, rows in found.sections.items()
        },
    }


def _saturating(found: Found) -> str:
    if found.ranking.candidates.dtype != "int8":
        return ""
    return " Sums of Whisper saturate in int16 and int8 unless a core scales them first."


def _cells(row: Row, found: Found) -> tuple[str, ...]:
    kernel, reference = row.kernel, found.reference
    tile, depths, cores = kernel.tile, kernel.depths, kernel.grid
    return (
        f"{row.rank:,}" if row.rank < 1e5 else f"{row.rank // 1000}k",
        f"{tile.m} {tile.k} {tile.n}",
        f"{depths.a} {depths.b} {depths.c}",
        f"{cores.rows}x{cores.columns}",
        MLIR_TYPES[kernel.types.c],
        f"{row.core_bytes / KIB:.1f}",
        three_digits(row.total_s * 1e3),
        "" if reference is None else _ratio(row.total_s / reference.total_s),
        f"{row.padding:.0%}",
        row.limit,
        kernel.name if row.found else "",
    )


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else three_digits(value)


def _row_content(row: Row) -> dict[str, Any]:
    kernel, launches = row.kernel, row.modelled.launches
    parts = {name: float(value) for name, value in vars(launches).items()}
    return {
        "name": kernel.name,
        "found": row.found,
        "rank": row.rank,
        **{part: asdict(getattr(kernel, part)) for part in ("types", "tile", "grid", "depths")},
        "core_bytes": row.core_bytes,
        "sums_bytes": row.sums_bytes,
        "padding": row.padding,
        "total_s": row.total_s,
        "sync_s": float(row.modelled.sync_s),
        **parts,
        "limit": row.limit,
    }
