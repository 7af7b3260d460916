"""The model beside what others measured: tables and a picture. Rows it misses are shown as such."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from npu_matmul.kernel import load_kernel
from npu_matmul.numbers import seconds_text
from npu_matmul.performance import original
from npu_matmul.performance.figures import FIGURES
from npu_matmul.performance.product import Npu, predict
from npu_matmul.performance.published import (
    LEAST_RATIO,
    LONG_RUN_BYTES,
    MOST_RATIO,
    ROWS,
    Published,
    trust,
)
from npu_matmul.pictures import DPI, PALETTE, STYLE, WIDTH_IN, check_installed
from npu_matmul.shapes import shape_text
from npu_matmul.tiler import TileGrid
from npu_matmul.writing import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show_published(console: Console) -> None:
    """Every published product, then the wrapper that the strategies replace."""
    table = Table(
        title="Published products: measured time / modelled time",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ("", "types", "m k n", "M K N"):
        table.add_column(heading, no_wrap=True)
    table.show_edge = False
    for heading in ("run\nB", "took\nms", "model\nms", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("binds", no_wrap=True)
    for row in ROWS:
        colour = "" if row.explained else "[red]"
        table.add_row(
            _tag(row),
            row.types,
            row.tile,
            shape_text(row.shape),
            str(row.run_bytes),
            f"{row.measured_s * 1e3:.3g}",
            f"{row.modelled.total_s * 1e3:.3g}",
            f"{colour}{row.ratio:.2f}",
            row.modelled.limit,
        )
    console.print(table)
    for tag, (source, target) in _sources().items():
        rows = [row for row in ROWS if _tag(row) == tag]
        open_ = sorted({row.assumed for row in rows if row.assumed})
        text = f"{tag}: {source}, {target}, {rows[0].clock_hz / 1e9:.1f} GHz"
        text += f"; assumed in some rows: {'; '.join(open_)}" if open_ else ""
        console.print(text, highlight=False)
    console.print(
        "run: the shorter of the contiguous runs in which A and B are read. Red: missed, not "
        f"within {LEAST_RATIO} to {MOST_RATIO}.\n{trust('npu1')}\n{trust('npu2')}\n",
        highlight=False,
    )
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
            seconds_text(product.measured_s),
            seconds_text(modelled_s),
            "fitted" if product.fitted else f"{product.measured_s / modelled_s:.2f}",
        )
    console.print(table)
    grid = TileGrid(load_kernel("matmul_16x16"), 512, 512, 512)
    predictions = {name: predict(grid, name) for name in ("sequential", "output_tile", "batched")}
    waves = original.WAVES
    launch_s = original.TIMED_S["launch"]
    share = launch_s / sum(original.TIMED_S.values())
    measured, added = map(seconds_text, (waves.measured_s, original.waves_s(waves.tiles)))
    console.print(
        "A day later the same steps were timed apart, in waves of 512 tiles: "
        f"{measured} measured, {added} from the parts, of which {share:.0%} are "
        f"{waves.tiles:,} launches of {launch_s * 1e3:.2f} ms.\nSo what batching "
        "must save is launches. This project's strategies on a kernel of the same tile, modelled: "
        + ", ".join(
            f"{name} {seconds_text(p.device_s)} for {p.counts.launches:,}"
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
    """Measured over modelled time by the length of runs, and the band that the model claims."""
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(WIDTH_IN, 4.6), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    lengths = sorted({row.run_bytes for row in ROWS})
    axes.axhspan(LEAST_RATIO, MOST_RATIO, color="#EEEEEE", zorder=0)
    axes.axhline(1.0, color="#666666", linewidth=1, zorder=1)
    axes.axvline(lengths.index(LONG_RUN_BYTES) - 0.5, color="#666666", linestyle=":", zorder=1)
    for (tag, (source, target)), colour in zip(_sources().items(), PALETTE, strict=False):
        axes.plot([], [], "o", color=colour, label=f"{tag}: {source}, {target}")
        for row, place in _spread(lengths):
            if _tag(row) == tag:
                filled = colour if row.explained else "white"
                axes.plot(place, row.ratio, "o", color=colour, markerfacecolor=filled, zorder=2)
    axes.set_xticks(range(len(lengths)), [f"{length}" for length in lengths])
    axes.set(yscale="log", xlabel="bytes in a contiguous run of A or of B, the shorter")
    axes.set_yticks([LEAST_RATIO, 1, MOST_RATIO, 2, 3, 4], ["0.8", "1", "1.5", "2", "3", "4"])
    axes.minorticks_off()
    axes.set_ylabel("measured / modelled time")
    title = f"Published products; grey: {LEAST_RATIO} to {MOST_RATIO}; hollow: missed"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.legend(loc="outside lower left", fontsize=8)
    return figure


def _spread(lengths: list[int]) -> Iterator[tuple[Published, float]]:
    """Each row with its place: those of one length side by side."""
    for place, length in enumerate(lengths):
        rows = [row for row in ROWS if row.run_bytes == length]
        for number, row in enumerate(rows):
            yield row, place + 0.8 * ((number + 0.5) / len(rows) - 0.5)


def draw(folder: Path) -> Path:
    """Write the picture to ``folder``."""
    check_installed()
    from matplotlib import rc_context

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "published.png"
    with rc_context(STYLE), whole_file(path) as part:
        picture().savefig(part, format="png")
    return path


def _sources() -> dict[str, tuple[str, str]]:
    """A letter for each source and target, in the order of the rows."""
    return dict(zip("ABCD", dict.fromkeys((row.source, row.target) for row in ROWS), strict=True))


def _tag(row: Published) -> str:
    return next(tag for tag, of in _sources().items() if of == (row.source, row.target))
