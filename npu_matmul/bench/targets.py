"""The project's speed targets, held against a measurement and against what the CPU allows.

A target is a ratio at every one of the Whisper-base projection shapes on one core, so the worst
shape decides. What a CPU allows is its probed peak over the baseline's own speed: a target beyond
it cannot be reached there by any code, for example where the baseline's BLAS uses the CPU's
widest instructions, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from npu_matmul.bench.contenders import (
    BASELINE,
    ORT_DYNAMIC,
    OWN_AVX2,
    OWN_BF16,
    OWN_DYNAMIC,
    OWN_INT8,
    TORCH_BF16,
    TORCH_INT8,
)
from npu_matmul.bench.session import Results, path_is_confirmed
from npu_matmul.bench.shapes import NAMED

Row = dict[str, Any]

RATIOS = (  # product, baseline, at least
    (OWN_INT8, BASELINE, 7.5),
    (OWN_INT8, TORCH_INT8, 1.0),
    (OWN_BF16, BASELINE, 3.8),
    (OWN_BF16, TORCH_BF16, 1.0),
    (OWN_DYNAMIC, BASELINE, 6.5),
    (OWN_DYNAMIC, ORT_DYNAMIC, 1.0),
    (OWN_AVX2, BASELINE, 1.8),
)
OF_PEAK = 0.93
TWO_THREADS = 1.85
SMALL_US = {16: 2.0, 64: 3.0}
ENCODER = "base"
ENCODER_RATIOS = {"int8": 3.0, "bf16": 2.0}  # times the faster one of torch's, on two threads


def judge(results: Results) -> list[Row]:
    """A row per target: what is asked, the worst and best measured, what the CPU allows, and
    whether it is reached; None where it was not measured, with a note that says why."""
    products = _of_products(results) if results.rows else []
    return [*products, *(_of_encoders(results.encoders) if results.encoders else [])]


def _of_products(results: Results) -> list[Row]:
    shapes = [list(shape) for shape in NAMED["whisper-base"]]
    rows = [row for row in results.rows if row["shape"] in shapes]
    peaks = [row for row in results.peaks if row["shape"] in shapes]
    by_ratio = [_ratio(rows, peaks, *target) for target in RATIOS]
    return [
        *by_ratio[:2],
        _of_peak(rows),
        *by_ratio[2:],
        *(_threads(rows, peaks, product) for product in (OWN_INT8, OWN_BF16, OWN_DYNAMIC)),
        *(_small_us(results.small, size) for size in SMALL_US),
        _small_ratio(results.small),
    ]


def _of_encoders(rows: list[Row]) -> list[Row]:
    found = {row["encoder"]: row for row in rows if (row["size"], row["threads"]) == (ENCODER, 2)}
    return [
        _row(
            f"{ENCODER} encoder {precision} / torch f32, two threads",
            asked,
            "x",
            [found[precision]["times_torch"]] if found else [],
            None,
            f"needs --encoders {ENCODER} and two threads",
        )
        for precision, asked in ENCODER_RATIOS.items()
    ]


def _ratio(rows: list[Row], peaks: list[Row], product: str, over: str, asked: float) -> Row:
    mine, theirs = _by_shape(rows, product, 1), _by_shape(rows, over, 1)
    shared = [shape for shape in mine if shape in theirs]
    kernel = f" ({theirs[shared[0]]['blas_kernel']})" if shared and over == BASELINE else ""
    name = f"{_short(product)} / {_short(over)}{kernel}"
    if product == OWN_AVX2 and mine and not path_is_confirmed(rows):
        return _row(name, asked, "x", [], None, "last_call().arithmetic tells no AVX2 path")
    ratios = [theirs[shape]["seconds"] / mine[shape]["seconds"] for shape in shared]
    ceilings = _ceilings(peaks, 1)
    allowed = [
        ceilings[shape, mine[shape]["peak"]] / theirs[shape]["gops"]
        for shape in shared
        if (shape, mine[shape]["peak"]) in ceilings
    ]
    missing = product if not mine else over
    return _row(
        name,
        asked,
        "x",
        ratios,
        max(allowed, default=None),
        f"no {missing} on one core in this run",
    )


def _of_peak(rows: list[Row]) -> Row:
    mine = _by_shape(rows, OWN_INT8, 1).values()
    shares = [row["of_peak"] for row in mine if row["peak"] == "int8"]
    return _row("int8 / its peak", OF_PEAK, "%", shares, 1.0, "no peak was probed")


def _threads(rows: list[Row], peaks: list[Row], product: str) -> Row:
    one, two = _by_shape(rows, product, 1), _by_shape(rows, product, 2)
    shared = [shape for shape in one if shape in two]
    ratios = [one[shape]["seconds"] / two[shape]["seconds"] for shape in shared]
    single, double = _ceilings(peaks, 1), _ceilings(peaks, 2)
    allowed = [double[key] / single[key] for key in single if key in double]
    name = f"{_short(product)}, two threads / one"
    return _row(
        name, TWO_THREADS, "x", ratios, max(allowed, default=None), "needs one core and two threads"
    )


def _small_us(small: list[Row], size: int) -> Row:
    took = [r["seconds"] * 1e6 for r in small if r["size"] == size and r["product"] == OWN_INT8]
    return _row(f"int8, {size} cube, whole call", SMALL_US[size], "us", took, None, "not measured")


def _small_ratio(small: list[Row]) -> Row:
    ratios = [row["times_np_f32"] for row in small if row["product"] == OWN_INT8]
    return _row("int8, small cubes / np f32", 1.0, "x", ratios, None, "not measured")


def _row(
    name: str, asked: float, unit: str, found: Sequence[float], allowed: float | None, note: str
) -> Row:
    at_most = unit == "us"
    worst = (max if at_most else min)(found, default=None)
    best = (min if at_most else max)(found, default=None)
    reached = None if worst is None else (worst <= asked if at_most else worst >= asked)
    return {
        "target": name,
        "unit": unit,
        "asked": asked,
        "worst": worst,
        "best": best,
        "allowed": allowed if found else None,
        "reached": reached,
        "note": "" if found else note,
    }


def _by_shape(rows: Iterable[Row], product: str, threads: int) -> dict[tuple[int, ...], Row]:
    return {
        tuple(row["shape"]): row
        for row in rows
        if row["product"] == product and row["threads"] == threads
    }


def _ceilings(peaks: Iterable[Row], threads: int) -> dict[tuple[tuple[int, ...], str], float]:
    return {
        (tuple(row["shape"]), row["kind"]): row["gops"]
        for row in peaks
        if row["threads"] == threads
    }


def _short(product: str) -> str:
    """As it stands in a target's name.

    >>> _short("npu_matmul bf16"), _short("np.matmul f32"), _short("ort DynamicQuantizeMatMul")
    ('bf16', 'np f32', 'ort dynamic')
    """
    shorter = {
        "npu_matmul ": "",
        ", AVX2 only": " AVX2",
        "np.matmul": "np",
        "DynamicQuantizeMatMul": "dynamic",
    }
    for long, short in shorter.items():
        product = product.replace(long, short)
    return product


def formatter(unit: str) -> Callable[[float], str]:
    """How a target's numbers are printed.

    >>> formatter("x")(7.5), formatter("%")(0.93), formatter("us")(3.0)
    ('7.50x', '93%', '3.0 us')
    """
    return {"x": "{:.2f}x", "%": "{:.0%}", "us": "{:.1f} us"}[unit].format
