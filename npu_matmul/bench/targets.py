"""The project's speed targets, held against a measurement and against what the CPU allows.

A target is a ratio at every one of the Whisper-base projection shapes on one core, so the worst
shape decides, and it is not reached where any result is wrong. What a CPU allows is its probed peak
over the baseline's own speed, where that is least: a target beyond it cannot be reached there by
any code, for example where the baseline's BLAS uses the CPU's widest instructions, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from npu_matmul.bench.accuracy import is_right
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
from npu_matmul.bench.encoders import OPENAI, TRANSFORMERS
from npu_matmul.bench.session import Results, path_is_confirmed
from npu_matmul.shapes import NAMED

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
FIRST_S = 0.6  # Python's start and all imports within it
ENCODER = "base"
ENCODER_RATIOS = {"int8": 3.0, "bf16": 2.0}  # times the faster one of torch's, on two threads
NEEDS_SHAPES, NEEDS_ONE = "needs --shapes whisper-base", "needs --threads 1"
WRONG = "a result is wrong"


def judge(results: Results) -> list[Row]:
    """A row per target: what is asked, the worst and best measured, what the CPU allows, and
    whether it is reached; None where it was not measured. A note says why it was not measured, or
    that what was measured is wrong."""
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
        _first(results.starts),
    ]


def _of_encoders(rows: list[Row]) -> list[Row]:
    found = {row["encoder"]: row for row in rows if (row["size"], row["threads"]) == (ENCODER, 2)}
    judged = []
    for precision, asked in ENCODER_RATIOS.items():
        name = f"{ENCODER} encoder {precision} / torch f32, two threads"
        ratios = [found[precision]["times_torch"]] if found else []
        note = f"needs --encoders {ENCODER} and two threads"
        compared = [found[each] for each in (precision, OPENAI, TRANSFORMERS)] if found else []
        judged.append(_row(name, asked, "x", ratios, compared, note))
    return judged


def _ratio(rows: list[Row], peaks: list[Row], product: str, over: str, asked: float) -> Row:
    mine, theirs = _by_shape(rows, product, 1), _by_shape(rows, over, 1)
    shared = [shape for shape in mine if shape in theirs]
    kernel = f" ({theirs[shared[0]]['blas_kernel']})" if shared and over == BASELINE else ""
    name = f"{_short(product)} / {_short(over)}{kernel}"
    if product == OWN_AVX2 and mine and not path_is_confirmed(rows, "avx2"):
        return _row(name, asked, "x", [], [], "last_call().arithmetic tells no AVX2 path")
    ceilings = _ceilings(peaks, 1)
    allowed = [
        ceilings[shape, mine[shape]["peak"]] / theirs[shape]["gops"]
        for shape in shared
        if (shape, mine[shape]["peak"]) in ceilings
    ]
    return _row(
        name,
        asked,
        "x",
        [theirs[shape]["seconds"] / mine[shape]["seconds"] for shape in shared],
        [each[shape] for shape in shared for each in (mine, theirs)],
        _missing(rows, product if not mine else over),
        min(allowed, default=None),
    )


def _of_peak(rows: list[Row]) -> Row:
    mine = [row for row in _by_shape(rows, OWN_INT8, 1).values() if row["peak"] == "int8"]
    note = _missing(rows, "peak int8")
    return _row("int8 / its peak", OF_PEAK, "%", [row["of_peak"] for row in mine], mine, note, 1.0)


def _threads(rows: list[Row], peaks: list[Row], product: str) -> Row:
    one, two = _by_shape(rows, product, 1), _by_shape(rows, product, 2)
    shared = [shape for shape in one if shape in two]
    single, double = _ceilings(peaks, 1), _ceilings(peaks, 2)
    keys = [(shape, one[shape]["peak"]) for shape in shared]
    return _row(
        f"{_short(product)}, two threads / one",
        TWO_THREADS,
        "x",
        [one[shape]["seconds"] / two[shape]["seconds"] for shape in shared],
        [each[shape] for shape in shared for each in (one, two)],
        "needs one core and two threads" if rows else NEEDS_SHAPES,
        min((double[key] / single[key] for key in keys if key in double), default=None),
    )


def _small_us(small: list[Row], size: int) -> Row:
    sized = [row for row in small if (row["size"], row["threads"]) == (size, 1)]
    mine = [row for row in sized if row["product"] == OWN_INT8]
    took = [row["seconds"] * 1e6 for row in mine]
    return _row(f"int8, {size} cube, whole call", SMALL_US[size], "us", took, mine, NEEDS_ONE)


def _small_ratio(small: list[Row]) -> Row:
    single = [row for row in small if row["threads"] == 1]
    ratios = [row["times_np_f32"] for row in single if row["product"] == OWN_INT8]
    return _row("int8, small cubes / np f32", 1.0, "x", ratios, single, NEEDS_ONE)


def _first(starts: list[Row]) -> Row:
    mine = [row for row in starts if row["product"] == f"first {OWN_INT8}"]
    took = [row["seconds"] for row in mine]
    return _row("int8, a process's first result", FIRST_S, "s", took, mine, NEEDS_SHAPES)


def _missing(rows: list[Row], what: str) -> str:
    return f"no {what} on one core in this run" if rows else NEEDS_SHAPES


def _row(
    name: str,
    asked: float,
    unit: str,
    found: Sequence[float],
    compared: Sequence[Row],
    note: str,
    allowed: float | None = None,
) -> Row:
    """``found`` is measured on the rows ``compared``, which must be right; ``note`` tells why
    nothing was found."""
    at_most = unit in ("us", "s")
    worst = (max if at_most else min)(found, default=None)
    best = (min if at_most else max)(found, default=None)
    right = all(is_right(row["accuracy"]) for row in compared)
    reached = None if worst is None else right and (worst <= asked if at_most else worst >= asked)
    return {
        "target": name,
        "unit": unit,
        "asked": asked,
        "worst": worst,
        "best": best,
        "allowed": allowed if found else None,
        "reached": reached,
        "note": note if not found else "" if right else WRONG,
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

    >>> formatter("x")(7.5), formatter("%")(0.93), formatter("us")(3.0), formatter("s")(0.6)
    ('7.50x', '93%', '3.0 us', '0.60 s')
    """
    return {"x": "{:.2f}x", "%": "{:.0%}", "us": "{:.1f} us", "s": "{:.2f} s"}[unit].format
