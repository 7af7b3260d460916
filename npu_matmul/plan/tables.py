"""Plans as tables of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from npu_matmul.choose import MANY_ROWS
from npu_matmul.numbers import seconds_text, three_digits
from npu_matmul.performance.product import Npu, Prediction, launch_shapes
from npu_matmul.performance.published import trust
from npu_matmul.plan.encoder import Projection, overlay_switches
from npu_matmul.plan.planning import MOST_ROWS, Plan
from npu_matmul.shapes import shape_text

BINDS = {
    "launch": "what a launch costs beside its work: the product is small for an NPU",
    "input": "reading A and B, which larger tiles would read fewer times",
    "output": "writing C",
    "compute": "the cores",
    "issue": "starting the tasks of the instruction stream",
}


def show_plan(plan: Plan, console: Console) -> None:
    """What was chosen and why, where the time goes, the other strategies, the CPU."""
    console.print(f"[bold]{_title(plan)}[/bold]", highlight=False)
    if plan.as_if:
        console.print(_as_if(plan.npu), highlight=False)
    console.print(_facts(plan), _times(plan), _strategies(plan))
    console.print(_cpu_text(plan), highlight=False)
    console.print(_band(plan.npu), highlight=False)


def show_encoder(name: str, planned: Sequence[Projection], console: Console) -> None:
    """The projections of an encoder: where the time of each goes, what each counts; the whole."""
    first = planned[0].plan
    console.print(
        f"[bold]Whisper {name}, one window of 30 s, {first.dtype}, on {_npu_text(first.npu)}; NPU "
        "times are modelled[/bold]",
        highlight=False,
    )
    if first.as_if:
        console.print(_as_if(first.npu), highlight=False)
    console.print(_encoder_times(planned), _encoder_counts(planned))
    console.print(
        "Weights are resident, each product is launched by itself. Changes of the overlay in the "
        f"sum: {overlay_switches(planned)}. Not in it: the products inside attention, softmax, "
        f"LayerNorm and GELU.\n{_band(first.npu)}",
        highlight=False,
    )


def _encoder_times(planned: Sequence[Projection]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("product\nM, K, N", no_wrap=True)
    for heading in (
        "times",
        "of\npeak",
        "binds",
        "NPU\nms",
        "+ host\nms",
        "CPU\nms",
        "NPU wins\nfrom M",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in planned:
        plan, chosen = one.plan, one.plan.chosen
        measured = plan.rates is not None
        table.add_row(
            f"{one.name}\n{shape_text(plan.shape)}",
            str(one.count),
            f"{chosen.peak_fraction:.0%}",
            chosen.array.limit,
            three_digits(one.device_s * 1e3),
            three_digits(one.total_s * 1e3) if measured else "-",
            "-" if one.cpu_s is None else three_digits(one.cpu_s * 1e3),
            _crossover(plan),
            end_section=one is planned[-1],
        )
    switch_s = overlay_switches(planned) * planned[0].plan.npu.figures.overlay_switch_s
    sums = [sum(one.device_s for one in planned) + switch_s]
    if all(one.cpu_s is not None for one in planned):
        sums += [sum(one.total_s for one in planned) + switch_s]
        sums += [sum(one.cpu_s or 0 for one in planned)]
    shown = [three_digits(seconds * 1e3) for seconds in sums]
    table.add_row("all", str(sum(one.count for one in planned)), "", "", *shown)
    return table


def _crossover(plan: Plan) -> str:
    if plan.cpu is None:
        return "-"
    return "never" if plan.crossover_rows is None else f"{plan.crossover_rows:,}"


def _encoder_counts(planned: Sequence[Projection]) -> Table:
    """Of one product of each kind."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("each", no_wrap=True)
    table.add_column("kernel, strategy, loop order", no_wrap=True)
    for heading in ("padding", "launches", "MB in\nand out", "MB by\nshims"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in planned:
        chosen = one.plan.chosen
        counts = chosen.counts
        table.add_row(
            one.name,
            f"{chosen.grid.kernel.name}, {chosen.strategy}\n{loop_order(chosen)}",
            f"{chosen.grid.padding:.1%}",
            f"{counts.launches:,}",
            f"{counts.bytes_to_device / 1e6:.2f}\n{counts.bytes_from_device / 1e6:.2f}",
            f"{chosen.dma_bytes / 1e6:.2f}",
        )
    return table


def _title(plan: Plan) -> str:
    M, K, N = plan.shape
    given = ", B resident" if plan.resident else ""
    return f"({M}, {K}) @ ({K}, {N}), {plan.dtype}{given}, on {_npu_text(plan.npu)}"


def _npu_text(npu: Npu) -> str:
    return f"{npu.target.name} at {npu.clock_hz / 1e9:g} GHz"


def _as_if(npu: Npu) -> str:
    return (
        f"[yellow]No kernel here is for {npu.target.name}: modelled as if those for another target "
        "were, on as many of its cores.[/yellow]"
    )


def _band(npu: Npu) -> str:
    return f"{trust(npu.target.name)} See npu-matmul plan --published."


def _facts(plan: Plan) -> Table:
    chosen = plan.chosen
    grid, kernel, counts = chosen.grid, chosen.grid.kernel, chosen.counts
    work = chosen.work
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    others = "".join(
        f"; {other.name} {seconds_text(seconds)}"
        for seconds, other in plan.kernels
        if other != kernel
    )
    tile, cores = kernel.tile, kernel.grid
    table.add_row(
        "kernel",
        f"{kernel.name}, {cores.rows}x{cores.columns} cores of {tile.m}x{tile.k}x{tile.n}{others}"
        f"{_chosen_for(plan)}",
    )
    table.add_row("strategy", f"{chosen.strategy}; {loop_order(chosen)}")
    table.add_row("padding", f"{grid.padding:.1%} of the multiplications")
    syncs = counts.syncs_to_device + counts.syncs_from_device
    moved = f"{_mb(counts.bytes_to_device)} in, {_mb(counts.bytes_from_device)} out"
    table.add_row(
        "counts",
        f"launches {counts.launches:,}, syncs {syncs:,}, {moved}, core calls "
        f"{chosen.kernel_calls:,}",
    )
    read, once = sum(part.input_bytes * count for part, count in work), grid.a_bytes + grid.b_bytes
    written = sum(part.c_bytes * count for part, count in work)
    table.add_row(
        "through shims",
        f"A and B {_mb(read)} ({read / once:.1f} times each, on average), C {_mb(written)}",
    )
    return table


def _chosen_for(plan: Plan) -> str:
    """What npu_matmul assumes where it cannot know better."""
    default_hz = plan.npu.figures.clock_hz
    at = f" at {default_hz / 1e9:g} GHz" if plan.npu.clock_hz != default_hz else ""
    rows = f" for {MANY_ROWS:,} rows, as B is packed" if plan.resident else ""
    return f"; chosen{at}{rows}" if at or rows else ""


def loop_order(prediction: Prediction) -> str:
    """How the blocks of C are walked in the largest launch, and how often all launches together
    read A and B."""
    shapes = launch_shapes(prediction.grid, prediction.strategy)
    shape = max((shape for shape, _ in shapes), key=lambda shape: shape.rows * shape.columns)
    if shape.rows * shape.columns == 1:
        return "a block of C a launch"
    a, b = reads(prediction)
    if shape.columns_outer:
        return f"columns outside: B {b:,.0f}x, A {a:,.0f}x"
    return f"rows outside: A {a:,.0f}x, B {b:,.0f}x"


def reads(prediction: Prediction) -> tuple[float, float]:
    """How often A and B are read, padding included."""
    grid, work = prediction.grid, prediction.work
    a_bytes = sum(part.a_bytes * count for part, count in work)
    b_bytes = sum(part.b_bytes * count for part, count in work)
    return a_bytes / grid.a_bytes, b_bytes / grid.b_bytes


def _times(plan: Plan) -> Table:
    """Overlapping parts are marked; the longest of them is what counts."""
    chosen, array = plan.chosen, plan.chosen.array
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("modelled time")
    table.add_column("ms", justify="right")
    table.add_column("")
    table.add_row("launch", _plain(array.launch_s), "")
    table.add_row("first tile in, last block out", _plain(array.ends_s), "")
    for part in ("input", "output", "compute", "issue"):
        note = "overlapping; " + ("the longest" if _longest(chosen) == part else "hidden")
        name = "tasks of the stream" if part == "issue" else part
        table.add_row(name, _plain(getattr(array, f"{part}_s")), note)
    table.add_row("syncs", _plain(chosen.sync_s), "", end_section=True)
    table.add_row("NPU", _plain(chosen.device_s), f"{chosen.peak_fraction:.1%} of its peak")
    if plan.rates is not None:
        for stage, seconds in chosen.host_s.items():
            table.add_row(stage, _plain(seconds), "at the rate measured on this host")
        table.add_row("all", _plain(chosen.total_s), "")
    table.caption = f"It is bound by {_binds(chosen, plan.strategies.get('batched'))}."
    table.caption_justify = "left"
    return table


def _binds(chosen: Prediction, batched: Prediction | None) -> str:
    """In words; many launches are the strategy's fault, not the product's, where ``batched`` has
    fewer."""
    launches = chosen.counts.launches
    if chosen.array.limit != "launch" or launches == 1:
        return BINDS[chosen.array.limit]
    fewest = launches if batched is None else batched.counts.launches
    instead = f"; batched makes {fewest:,}" if fewest < launches else ""
    return f"what each of {launches:,} launches costs beside its work{instead}"


def _longest(chosen: Prediction) -> str:
    parts = ("input", "output", "compute", "issue")
    return max(parts, key=lambda part: float(getattr(chosen.array, f"{part}_s")))


def _strategies(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("strategy")
    for heading in ("launches", "syncs", "NPU, modelled"):
        table.add_column(heading, justify="right")
    for name, prediction in plan.strategies.items():
        counts = prediction.counts
        syncs = counts.syncs_to_device + counts.syncs_from_device
        table.add_row(name, f"{counts.launches:,}", f"{syncs:,}", seconds_text(prediction.device_s))
    return table


def _cpu_text(plan: Plan) -> str:
    if plan.cpu is None:
        return ""
    M = plan.shape[0]
    note = "" if plan.cpu.rows == M else f", from {plan.cpu.rows:,} of {M:,} rows"
    took = seconds_text(plan.cpu.seconds_for(M))
    text = f"CPU, this host, measured: {took} ({plan.cpu.arithmetic}{note})"
    if plan.crossover_rows is None:
        return f"{text}; the NPU is modelled to be slower for any M up to {MOST_ROWS:,}."
    if plan.crossover_rows == 1:
        return f"{text}; with this K and N the NPU is modelled to be faster for every M."
    return (
        f"{text}; with this K and N the NPU is modelled to be faster from M = "
        f"{plan.crossover_rows:,} on."
    )


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.2f} MB"


def _plain(seconds: float) -> str:
    return f"{seconds * 1e3:,.3f}"
