"""Measurements as pictures: the roofline of this host, where calls spend their time, and the
strategies on the emulated NPU."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npu_matmul.bench.contenders import PACKED, PACKING
from npu_matmul.bench.environment import summary
from npu_matmul.bench.session import Results, threads_text
from npu_matmul.numbers import seconds_text
from npu_matmul.pictures import DPI, PALETTE, STYLE, WIDTH_IN, plain_numbers, plain_ticks
from npu_matmul.shapes import shape_text
from npu_matmul.writing import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
KIND_COLOURS = {
    "int8": PALETTE[0],
    "dynamic int8": PALETTE[5],
    "bf16": PALETTE[1],
    "f32": PALETTE[2],
}
MARKERS = {"npu_matmul": "o", "numpy": "s", "torch": "^", "ort": "D"}


def draw(folder: Path, results: Results) -> list[Path]:
    """Write every picture that the results allow; returns their paths."""
    from matplotlib import rc_context

    strategies = results.strategies
    pictures: dict[str, Callable[[], Figure]] = {}
    if any(row["threads"] == 1 for row in results.rows):
        pictures["roofline.png"] = lambda: roofline(results)
    if results.stages or strategies:
        pictures["stages.png"] = lambda: stages(results.stages, strategies)
    if strategies:
        pictures["strategies.png"] = lambda: strategies_picture(strategies)
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in pictures.items():
        with rc_context(STYLE):
            figure = make()
            _sign(figure, results.environment)
            with whole_file(folder / name) as path:
                figure.savefig(
                    path,
                    format="png",
                    dpi=DPI,
                    facecolor="white",
                    metadata={"Description": summary(results.environment)},
                )
        written.append(folder / name)
    return written


def roofline(results: Results) -> Figure:
    """One core: operations per byte of operands against speed, under the probed ceilings; without
    the form that packs B in each call, which moves other bytes, too."""
    rows = [row for row in results.rows if row["threads"] == 1 and row["weights"] != PACKING]
    peaks = {row["kind"]: row for row in results.peaks if row["threads"] == 1}
    ceilings = {kind: peaks[kind] for kind in ("int8", "bf16", "f32") if kind in peaks}
    figure = _figure(4.9)
    axes = figure.subplots()
    intensities = [row["operations"] / row["operand_bytes"] for row in rows]
    left, right = min(2.0, min(intensities) / 2), max(intensities) * 1.5
    top = max([row["gops"] for row in (*ceilings.values(), *rows)])
    for row in results.bandwidth:
        if row["threads"] == 1:
            _slope(axes, row, left, top)
    for kind, row in ceilings.items():
        axes.axhline(row["gops"], color=KIND_COLOURS[kind], linewidth=1.2, zorder=1)
        label = f"{row['gops']:.0f} G op/s: {row['instruction']}"
        axes.text(right, row["gops"] * 1.03, label, ha="right", va="bottom", fontsize=8)
    for row, intensity in zip(rows, intensities, strict=True):
        ours = row["library"] == "npu_matmul"
        colour = KIND_COLOURS[row["kind"]]
        axes.plot(
            intensity,
            row["gops"],
            MARKERS[row["library"]],
            markersize=7,
            markeredgecolor=colour,
            markeredgewidth=1.4,
            markerfacecolor=("white" if row["path"] else (colour, 0.4)) if ours else "none",
            zorder=3 if ours else 4,
        )
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    axes.set_ylim(min(row["gops"] for row in rows) * 0.6, top * 1.45)
    axes.set_xlabel("operations per byte of A, B and C")
    axes.set_ylabel("G op/s")
    plain_numbers(axes)
    packed = dict.fromkeys(row["library"] for row in rows if row["weights"] == PACKED)
    title = f"Roofline of this host, one core; B of {' and '.join(packed)} is packed before"
    axes.set_title(title, loc="left")
    _roofline_legend(figure, rows)
    return figure


def _slope(axes: Axes, row: Row, left: float, top: float) -> None:
    """What a bandwidth allows, until it meets the highest ceiling."""
    gb_per_s, memory = row["gb_per_s"], row["where"] == "memory"
    style = "-" if memory else "--"
    ends = [left, top / gb_per_s]
    axes.plot(ends, [x * gb_per_s for x in ends], style, color="#666666", linewidth=1.2, zorder=1)
    height = top * (0.4 if memory else 0.85)
    axes.annotate(
        f"{row['where']}, {gb_per_s:.0f} GB/s",
        (height / gb_per_s, height),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
    )


def _roofline_legend(figure: Figure, rows: Sequence[Row]) -> None:
    from matplotlib.lines import Line2D

    kinds = [kind for kind in KIND_COLOURS if any(row["kind"] == kind for row in rows)]
    libraries = [name for name in MARKERS if any(row["library"] == name for row in rows)]
    handles = [Line2D([], [], color=KIND_COLOURS[kind], linewidth=4, label=kind) for kind in kinds]
    for name in libraries:
        filled = "#444444" if name == "npu_matmul" else "none"
        handles.append(_marker(MARKERS[name], filled, name))
    if any(row["path"] for row in rows):
        handles.append(_marker("o", "white", "npu_matmul, AVX2 only"))
    figure.legend(handles=handles, loc="outside upper left", ncols=5, fontsize=8)


def _marker(shape: str, filled: str, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(
        [],
        [],
        color="none",
        marker=shape,
        markeredgecolor="#444444",
        markerfacecolor=filled,
        label=label,
    )


def stages(calls: Sequence[Row], strategies: Sequence[Row]) -> Figure:
    """Shares of a call's stages: on the CPU, and of the host while it emulates an NPU."""
    panels = []
    if calls:
        bars = [(_stage_label(row), row["seconds"], row["wall_s"]) for row in calls]
        panels.append(("Where a call's time goes: device cpu, one core", bars))
    if strategies:
        last = strategies[-1]
        bars = [
            (_strategy_label(row), row["host_seconds_by_stage"], row["host_seconds"])
            for row in strategies
            if row["shape"] == last["shape"]
        ]
        size, threads = shape_text(last["shape"]), threads_text(last["threads"])
        title = f"Host's time of emulating an NPU, {size}, {threads}"
        panels.append((title, bars))
    names = list(dict.fromkeys(key for _, bars in panels for _, took, _ in bars for key in took))
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
    colours["rest of the call"] = "#DDDDDD"
    counts = [len(bars) for _, bars in panels]
    figure = _figure(1.3 + 0.27 * sum(counts) + 0.5 * len(counts))
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=counts)
    for axes, (title, bars) in zip(grid[:, 0], panels, strict=True):
        _stage_bars(axes, bars, colours)
        axes.set_title(title, loc="left")
    grid[-1, 0].set_xlabel("share of the call's wall time, %")
    handles = _patches(colours)
    figure.legend(handles=handles, loc="outside upper left", ncols=min(8, len(handles)), fontsize=8)
    return figure


def _stage_bars(axes: Axes, bars: Sequence[Any], colours: dict[str, str]) -> None:
    for place, (_, took, wall_s) in enumerate(bars):
        total, begin = max(wall_s, sum(took.values())), 0.0
        shares = {**took, "rest of the call": max(0.0, total - sum(took.values()))}
        for name, seconds in shares.items():
            share = 100 * seconds / total
            axes.barh(place, share, left=begin, color=colours[name], height=0.72)
            begin += share
        axes.text(101, place, seconds_text(total), va="center", ha="left", fontsize=8)
    axes.set_yticks(range(len(bars)), [label for label, _, _ in bars])
    axes.set_xlim(0, 111)
    axes.set_xticks(range(0, 101, 20))
    axes.spines["bottom"].set_bounds(0, 100)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def strategies_picture(rows: Sequence[Row]) -> Figure:
    """What each strategy makes the emulated device do, and its factor over ``sequential``."""
    kernels = list(dict.fromkeys(row["kernel"] for row in rows))
    names = list(dict.fromkeys(row["strategy"] for row in rows))
    colours = dict(zip(names, PALETTE, strict=False))
    measures: dict[str, Callable[[Row], float]] = {
        "launches of a call": lambda row: row["launches"],
        "syncs of a call, both ways": lambda row: row["syncs_to_device"] + row["syncs_from_device"],
        "host's ms of emulating": lambda row: row["host_seconds"] * 1e3,
    }
    shapes = list(dict.fromkeys(shape_text(row["shape"]) for row in rows))
    figure = _figure(0.9 + len(kernels) * (0.6 + 0.6 * len(shapes)))
    grid = figure.subplots(len(kernels), len(measures), squeeze=False, sharey=True)
    for line, kernel in zip(grid, kernels, strict=True):
        for axes, (measure, value) in zip(line, measures.items(), strict=True):
            mine = [row for row in rows if row["kernel"] == kernel]
            _strategy_bars(axes, mine, shapes, colours, value)
            axes.set_xlabel(measure)
        line[0].set_title(f"kernel {kernel}", loc="left")
        line[0].set_ylabel("M x K x N")
    handles = _patches(colours)
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=len(handles),
        title=(
            "Emulated NPU: factors over sequential; times are the emulator's, not an NPU's, "
            f"{threads_text(rows[0]['threads'])}"
        ),
        title_fontsize=9,
        alignment="left",
        fontsize=8,
    )
    return figure


def _strategy_bars(
    axes: Axes,
    rows: Sequence[Row],
    shapes: Sequence[str],
    colours: dict[str, str],
    value: Callable[[Row], float],
) -> None:
    thick = 0.8 / len(colours)
    values = [value(row) for row in rows]
    axes.set_xscale("log")
    for row in rows:
        sequential = next(
            r for r in rows if r["shape"] == row["shape"] and r["strategy"] == "sequential"
        )
        order = list(colours).index(row["strategy"])
        place = shapes.index(shape_text(row["shape"])) + (order - (len(colours) - 1) / 2) * thick
        axes.barh(place, value(row), height=thick * 0.92, color=colours[row["strategy"]])
        if row is not sequential:
            counted = isinstance(value(row), int)
            steady = counted or (row["steady"] and sequential["steady"])
            text = f" {'' if steady else '~'}{_factor(value(sequential) / value(row))}"
            axes.text(value(row), place, text, va="center", ha="left", fontsize=7)
    axes.set_xlim(min(values) / 2, max(values) * 2.5)
    if max(values) < 50 * min(values):
        plain_ticks(axes.xaxis, (1, 3))
    axes.set_yticks(range(len(shapes)), shapes)
    axes.set_ylim(len(shapes) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.minorticks_off()


def _factor(ratio: float) -> str:
    return f"{ratio:,.0f}x" if ratio >= 10 else f"{ratio:.1f}x"


def _stage_label(row: Row) -> str:
    return f"{row['product'].removeprefix('npu_matmul ')}, {shape_text(row['shape'])}"


def _strategy_label(row: Row) -> str:
    return f"{row['kernel'].removeprefix('matmul_')}, {row['strategy']}"


def _patches(colours: dict[str, str]) -> list[Any]:
    from matplotlib.patches import Patch

    return [Patch(color=colour, label=name) for name, colour in colours.items()]


def _figure(height_in: float) -> Figure:
    """Without pyplot, which would keep every figure and look for a screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


def _sign(figure: Figure, environment: Row) -> None:
    """The environment under every picture."""
    text = "\n".join(textwrap.wrap(summary(environment), 150))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=6.5, color="#555555")
