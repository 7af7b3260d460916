"""What ``npu-matmul plan`` does: plans, prints, draws and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from npu_matmul.performance.product import Npu, Prediction
from npu_matmul.performance.published import ROWS
from npu_matmul.pictures import check_outputs
from npu_matmul.plan import tables, validation
from npu_matmul.plan.encoder import Projection, plan_encoder
from npu_matmul.plan.planning import Plan, plan_product
from npu_matmul.strategies import STRATEGIES
from npu_matmul.whisper.dimensions import SIZES
from npu_matmul.writing import write_json


def run(
    console: Console,
    shape: tuple[int, int, int],
    whisper: str | None,
    published: bool,
    figures: bool,
    dtype: str,
    target: str,
    clock: str | None,
    kernel: str | None,
    strategy: str | None,
    resident: bool,
    no_host: bool,
    plot: Path | None,
    json_file: Path | None,
) -> None:
    """One of the four things to plan; see the command's options."""
    check_outputs(plot, json_file)
    npu = Npu.named(target, None if clock is None else float(clock) * 1e9)
    if strategy is not None and strategy not in STRATEGIES:
        raise ValueError(f"there is no strategy {strategy!r}; known are: {', '.join(STRATEGIES)}")
    content: dict[str, Any]
    if figures:
        validation.show_figures(console, npu)
        content = {name: figure.as_dict() for name, figure in npu.figures.named()}
    elif published:
        validation.show_published(console)
        content = {"rows": [_published(row) for row in ROWS]}
    elif whisper is not None:
        with console.status("") as status:
            planned = plan_encoder(
                SIZES[whisper], dtype, npu, not no_host, lambda name: status.update(f"{name} ...")
            )
        tables.show_encoder(whisper, planned, console)
        content = {"whisper": whisper, "projections": [_projection(one) for one in planned]}
    else:
        with console.status("measuring this host ..."):
            planned_product = plan_product(
                shape, dtype, npu, kernel, strategy, resident, not no_host
            )
        tables.show_plan(planned_product, console)
        content = _plan(planned_product)
    if plot is not None:
        console.print(f"written: {escape(str(validation.draw(plot)))}", highlight=False)
    if json_file is not None:
        write_json(json_file, content)
        console.print(f"written: {escape(str(json_file))}", highlight=False)


def _published(row: Any) -> dict[str, Any]:
    return {
        "source": row.source,
        "target": row.target,
        "types": row.types,
        "shape": row.shape,
        "tile": row.tile,
        "run_bytes": row.run_bytes,
        "clock_hz": row.clock_hz,
        "measured_s": row.measured_s,
        "modelled_s": row.modelled.total_s,
        "ratio": row.ratio,
        "explained": row.explained,
        "assumed": row.assumed,
    }


def _projection(one: Projection) -> dict[str, Any]:
    return {"name": one.name, "count": one.count, **_plan(one.plan)}


def _plan(plan: Plan) -> dict[str, Any]:
    cpu = plan.cpu
    return {
        "shape": plan.shape,
        "dtype": plan.dtype,
        "target": plan.npu.target.name,
        "clock_hz": plan.npu.clock_hz,
        "modelled_as_if_for_this_target": plan.as_if,
        "chosen": _prediction(plan.chosen),
        "strategies": {name: _prediction(p) for name, p in plan.strategies.items()},
        "cpu_measured_s": None if cpu is None else cpu.seconds_for(plan.shape[0]),
        "crossover_rows": "never" if cpu and not plan.crossover_rows else plan.crossover_rows,
    }


def _prediction(prediction: Prediction) -> dict[str, Any]:
    grid, array = prediction.grid, prediction.array
    return {
        "kernel": grid.kernel.name,
        "variant": grid.kernel.variant,
        "strategy": prediction.strategy,
        "loop_order": tables.loop_order(prediction),
        "padding": grid.padding,
        **vars(prediction.counts),
        "dma_tasks": prediction.dma_tasks,
        "dma_bytes": prediction.dma_bytes,
        "kernel_calls": prediction.kernel_calls,
        "modelled": {**vars(array), "sync_s": prediction.sync_s, "device_s": prediction.device_s},
        "host_stages_s": prediction.host_s,
        "binds": array.limit,
        "peak_fraction": prediction.peak_fraction,
    }
