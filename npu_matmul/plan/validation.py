"""The model beside what others measured: tables and a picture. Rows it misses are shown as such."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from npu_matmul.bench.plots import DPI, PALETTE, STYLE, WIDTH_IN, check_installed
from npu_matmul.bench.shapes import shape_text
from npu_matmul.kernel import load_kernel
from npu_matmul.performance import original
from npu_matmul.performance.figures import FIGURES
from npu_matmul.performance.product import Npu, predict
from npu_matmul.performance.published import LEAST_RATIO, MOST_RATIO, ROWS, Published, mean_ratio
from npu_matmul.tiler import TileGrid
from npu_matmul.writing import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show_published(console: Console) -> None:
    """Every published product, then the wrapper that the strategies replace."""
    table = Table(
        title="Published products on npu1: measured time / modelled time",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ("", "types", "m k n", "M K N"):
        table.add_column(heading, no_wrap=True)
    for heading in ("measured\nms", "modelled\nms", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("binds", no_wrap=True)
    for row in ROWS:
        colour = "" if row.explained else "[red]"
        table.add_row(
            _tag(row),
            row.types,
            row.tile,
            shape_text(row.shape),
            f"{row.measured_s * 1e3:.3g}",
            f"{row.modelled.total_s * 1e3:.3g}",
            f"{colour}{row.ratio:.2f}",
            row.modelled.limit,
        )
    console.print(table)
    for tag, source in _sources().items():
        rows = [row for row in ROWS if row.source == source]
        open_ = sorted({row.assumed for row in rows if row.assumed})
        text = f"{tag}: {source}, {rows[0].clock_hz / 1e9:.1f} GHz"
        text += f"; assumed in some rows: {'; '.join(open_)}" if open_ else ""
        console.print(text, highlight=False)
    explained = sum(row.explained for row in ROWS)
    console.print(
        f"Geometric mean of the ratios: {mean_ratio(ROWS):.2f}. {explained} of {len(ROWS)} rows "
        f"are within {LEAST_RATIO} to {MOST_RATIO}.",
        highlight=False,
    )
    for row in ROWS:
        if not row.explained:
            missed = f"{_tag(row)}, {row.types}, {row.measured_gops:g} G op/s"
            text = f"[red]Missed:[/red] {missed}; its source leaves open: {row.assumed}."
            console.print(text, highlight=False)
    console.print()
    _show_original(console)


def _show_original(console: Console) -> None:
    table = Table(
        title="The tile-by-tile wrapper, from its own listed costs",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for heading in ("product", "launches", "measured", "modelled", "ratio"):
        table.add_column(heading, justify="left" if heading == "product" else "right")
    for product in original.MEASURED_PRODUCTS:
        modelled_s = original.modelled_s(product.tiles)
        table.add_row(
            shape_text((product.size,) * 3),
            f"{product.tiles:,}",
            _time(product.measured_s),
            _time(modelled_s),
            f"{product.measured_s / modelled_s:.2f}",
        )
    console.print(table)
    grid = TileGrid(load_kernel("matmul_16x16"), 512, 512, 512)
    predictions = {name: predict(grid, name) for name in ("sequential", "output_tile", "batched")}
    waves = original.WAVES
    console.print(
        "A day later the same steps were timed apart, in waves of 512 tiles: "
        f"{_time(waves.measured_s)} measured, {_time(original.waves_s(waves.tiles))} from the "
        f"parts, of which {original.TIMED_S['launch'] / sum(original.TIMED_S.values()):.0%} are "
        f"{waves.tiles:,} launches of {original.TIMED_S['launch'] * 1e3:.2f} ms.\nSo what batching "
        "must save is launches. This project's strategies on a kernel of the same tile, modelled: "
        + ", ".join(
            f"{name} {_time(p.device_s)} for {p.counts.launches:,}"
            for name, p in predictions.items()
        )
        + ".",
        highlight=False,
    )


def show_figures(console: Console, npu: Npu) -> None:
    """The constants of the model."""
    for name, figure in FIGURES[npu.target.name].named():
        shown = f"{float(figure):.4g} {figure.unit}"
        console.print(f"[bold]{name}[/bold]  {shown}  [dim]{figure.kind}[/dim]", highlight=False)
        console.print(Padding(figure.source, (0, 0, 0, 4)), highlight=False)


def picture() -> Figure:
    """Measured over modelled time, a row each, and the band that the model claims."""
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(WIDTH_IN, 6.0), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    rows = list(reversed(ROWS))
    colours = dict(zip(_sources(), PALETTE, strict=False))
    axes.axvspan(LEAST_RATIO, MOST_RATIO, color="#EEEEEE", zorder=0)
    axes.axvline(1.0, color="#666666", linewidth=1, zorder=1)
    for place, row in enumerate(rows):
        filled = colours[_tag(row)] if row.explained else "white"
        axes.plot(row.ratio, place, "o", color=colours[_tag(row)], markerfacecolor=filled, zorder=2)
        axes.text(2.1, place, f"{row.ratio:.2f}", ha="right", va="center")
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.set_xlim(0.7, 2.1)
    axes.set_xlabel(
        f"measured / modelled time; grey: {LEAST_RATIO} to {MOST_RATIO}; hollow: missed"
    )
    title = f"Modelled and measured products on npu1: geometric mean {mean_ratio(ROWS):.2f}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    for tag, source in _sources().items():
        axes.plot([], [], "o", color=colours[tag], label=f"{tag}: {source}")
    figure.legend(loc="outside lower center", fontsize=8)
    return figure


def draw(folder: Path) -> Path:
    """Write the picture to ``folder``."""
    check_installed()
    from matplotlib import rc_context

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "published.png"
    with rc_context(STYLE), whole_file(path) as part:
        picture().savefig(part, format="png")
    return path


def _sources() -> dict[str, str]:
    """A letter for each source, in the order of the rows."""
    return dict(zip("ABC", dict.fromkeys(row.source for row in ROWS), strict=True))


def _tag(row: Published) -> str:
    return next(tag for tag, source in _sources().items() if source == row.source)


def _label(row: Published) -> str:
    return f"{_tag(row)}  {row.types}  {row.tile}  of  {shape_text(row.shape)}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
