"""An exploration as a picture: modelled time against what it costs of a core and of the target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from npu_matmul.explore.candidates import OUTPUTS
from npu_matmul.explore.found import Found
from npu_matmul.explore.fronts import front
from npu_matmul.explore.table import KIB, title
from npu_matmul.numbers import three_digits
from npu_matmul.pictures import DPI, PALETTE, STYLE, WIDTH_IN, check_installed, plain_numbers
from npu_matmul.writing import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT_IN = 4.6
SAMPLE = 4000  # of the candidates of each type of C, as a cloud
CLOUD = "#BBBBBB"
FROM, TO = 0.85, 9  # of the fastest time: what is slower is cut off
CORES = (1, 2, 4, 8, 16, 32)


def draw(folder: Path, found: Found) -> Path:
    """Write ``explore-DTYPE-TARGET.png`` to ``folder``."""
    check_installed()
    from matplotlib import rc_context

    folder.mkdir(parents=True, exist_ok=True)
    ranking = found.ranking
    path = folder / f"explore-{ranking.candidates.dtype}-{ranking.npu.target.name}.png"
    with rc_context(STYLE), whole_file(path) as part:
        picture(found).savefig(part, format="png", dpi=DPI, facecolor="white")
    return path


def picture(found: Found) -> Figure:
    """Left: the memory of a core, and the front of each type of C. Right: the number of cores."""
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
    memory, cores = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for output, name in enumerate(OUTPUTS[found.ranking.candidates.dtype]):
        style = {"color": PALETTE[output], "markersize": 3.5, "zorder": 3}
        _memory(memory, found, output, {**style, "label": f"C {name}"})
        _cores(cores, found, output, style)
    _mark_found(memory, cores, found)
    for axes in (memory, cores):
        axes.set(xscale="log", yscale="log")
        plain_numbers(axes)
    fastest = found.ranking.seconds.min() * 1e3
    memory.set_ylim(fastest * FROM, fastest * TO)
    memory.set(xlabel="memory of a core, KiB", ylabel="modelled time, ms")
    most = max(grid.rows * grid.columns for grid in found.ranking.grids)
    cores.set_xticks([number for number in CORES if number <= most])
    cores.minorticks_off()
    cores.set_xlabel("cores")
    figure.suptitle(title(found), x=0.01, ha="left", fontsize=10)
    heading = "Lines: nothing is as fast with less memory of a core, or with fewer cores"
    figure.legend(
        loc="outside lower left",
        ncols=5,
        fontsize=8,
        title=heading,
        title_fontsize=8,
        alignment="left",
    )
    return figure


def _memory(axes: Axes, found: Found, output: int, style: dict[str, Any]) -> None:
    ranking = found.ranking
    places, seconds = ranking.least(output)
    kib, ms = ranking.core_bytes[places] / KIB, seconds * 1e3
    some = np.random.default_rng(output).choice(len(places), min(SAMPLE, len(places)), False)
    label = "" if output else "others, a sample"
    axes.plot(kib[some], ms[some], ".", color=CLOUD, markersize=1.5, zorder=1, label=label)
    best = front(ms, kib)
    axes.plot(kib[best], ms[best], "-o", **style)


def _cores(axes: Axes, found: Found, output: int, style: dict[str, Any]) -> None:
    ranking = found.ranking
    places, _ = ranking.least(output)
    cores = np.array([grid.rows * grid.columns for grid in ranking.grids])
    ms = ranking.seconds[:, places].min(axis=1) * 1e3
    best = front(ms, cores)
    axes.plot(cores, ms, ".", color=CLOUD, markersize=4, zorder=1)
    axes.plot(cores[best], ms[best], "-o", **style)


def _mark_found(memory: Axes, cores: Axes, found: Found) -> None:
    """The fastest of the kernels that were found, by name."""
    row = found.reference
    if row is None:
        return
    number, ms = row.kernel.grid.rows * row.kernel.grid.columns, row.total_s * 1e3
    style: dict[str, Any] = {"color": "black", "markersize": 9, "zorder": 5, "linestyle": "none"}
    memory.plot(row.core_bytes / KIB, ms, marker="*", label=row.kernel.name, **style)
    cores.plot(number, ms, marker="*", **style)
    cores.annotate(
        f"{row.kernel.name}\n{three_digits(ms)} ms",
        (number, ms),
        xytext=(1.0, 0.98),  # where more cores would take more time: empty
        textcoords="axes fraction",
        arrowprops={"arrowstyle": "-", "color": "black", "linewidth": 0.6, "shrinkB": 5},
        ha="right",
        va="top",
        fontsize=8,
    )
