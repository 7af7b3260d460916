"""Results of ``npu-matmul bench`` that nobody measured: at given speeds, right in every value."""

from __future__ import annotations

from typing import Any

import numpy as np

from npu_matmul.bench import (
    contenders,
    session,
    targets,
)
from npu_matmul.bench import environment as env
from npu_matmul.bench.contenders import (
    BASELINE,
    OWN_AVX2,
    OWN_DYNAMIC,
    OWN_INT8,
    OWN_PACKING,
)
from npu_matmul.bench.session import Results
from npu_matmul.bench.start import COMPILING
from npu_matmul.shapes import NAMED

Row = dict[str, Any]
RATES = {  # G op/s of one core at every shape
    OWN_INT8: 400.0,
    OWN_PACKING: 330.0,
    contenders.OWN_BF16: 200.0,
    OWN_DYNAMIC: 350.0,
    OWN_AVX2: 185.0,
    BASELINE: 100.0,
    contenders.TORCH_INT8: 410.0,
    contenders.TORCH_BF16: 190.0,
    contenders.TORCH_F32: 90.0,
    contenders.ORT_INT8: 380.0,
    contenders.ORT_DYNAMIC: 300.0,
}
PEAKS = {"int8": 470.0, "int8 AVX2": 235.0, "bf16": 235.0, "f32": 117.0, "f32 AVX2": 117.0}
FORMS = {
    form.name: (library, form)
    for library in ("npu_matmul", "numpy", "torch", "ort")
    for form in contenders.forms(library)
} | {OWN_AVX2: ("npu_matmul", contenders.forms("npu_matmul", "avx2")[0])}


def product_row(
    name: str, shape: tuple[int, int, int], threads: int, rates: dict[str, float]
) -> Row:
    library, form = FORMS[name]
    operations = 2 * int(np.prod(shape))
    seconds = operations / (rates[name] * 1e9 * (1.9 if threads == 2 else 1.0))
    exact = {"wrong_values": 0, "values": shape[0] * shape[2]}
    return {
        "product": name,
        "library": library,
        "kind": form.kind,
        "path": form.path,
        "weights": form.weights,
        "shape": list(shape),
        "threads": threads,
        "operations": operations,
        "operand_bytes": form.operand_bytes(shape),
        "accuracy": exact if form.kind == "int8" else {"relative_error": 2.3e-3, "at_most": 6.8e-3},
        "arithmetic": f"INT32, exact ({form.path or 'avx512vnni'})" if "npu" in library else None,
        "seconds": seconds,
        "steady": name != contenders.TORCH_F32,
        "gops": operations / seconds / 1e9,
    }


def results_of(rates: dict[str, float] = RATES, of: Any = NAMED["whisper-base"]) -> Results:
    """As measured, with those speeds at each shape."""
    results = Results(env.environment(), "the rule", "the operands")
    for threads in (1, 2):
        for shape in of:
            rows = [product_row(name, shape, threads, rates) for name in rates]
            peaks = [
                {
                    **{"peak": f"peak {kind}", "kind": kind, "instruction": "vpdpbusd"},
                    **{"shape": list(shape), "threads": threads, "gops": rate * threads},
                    **{"steady": True},
                }
                for kind, rate in PEAKS.items()
            ]
            session._compare(rows, peaks, "SkylakeX")
            results.rows += rows
            results.peaks += peaks
    for size, microseconds in ((16, 1.9), (64, 3.1)):
        rows = [product_row(name, (size,) * 3, 1, rates) for name in (OWN_INT8, BASELINE)]
        for row, seconds in zip(rows, (microseconds * 1e-6, 5e-6), strict=True):
            row |= {"size": size, "seconds": seconds}
        session._compare(rows, [], "SkylakeX")
        results.small += rows
    results.starts = [
        {
            **{"product": f"first {name}", "shape": [1500, 512, 512], "threads": 2},
            **{"seconds": seconds, "steady": True},
            "accuracy": {"wrong_values": 0, "values": 768_000},
        }
        for name, seconds in ((OWN_INT8, 0.55), (BASELINE, 0.15), (COMPILING, 5.0))
    ]
    results.bandwidth = [
        {"copy": f"copy {where}", "where": where, "threads": 1, "gb_per_s": speed}
        for where, speed in (("cache", 95.0), ("memory", 36.0))
    ]
    took = {"convert": 0.001, "compute": 0.002, "finish": 0.0005}
    results.stages = [
        {
            "product": name,
            "shape": [1500, 512, 512],
            "device": "cpu",
            "wall_s": 4e-3,
            "seconds": took,
        }
        for name in (OWN_INT8, OWN_DYNAMIC)
    ]
    return results


def target(results: Results, name: str) -> Row:
    return next(row for row in targets.judge(results) if row["target"].startswith(name))
