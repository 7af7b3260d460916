"""What is measured, in which order: for each number of threads and each shape, all products in
turn with the probed peaks; then small products, and where a call's time goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from npu_matmul.bench import timing
from npu_matmul.bench.contenders import BASELINE, OWN_AVX2, OWN_INT8
from npu_matmul.bench.environment import environment, last_level_cache_bytes
from npu_matmul.bench.peak import skipped_probes
from npu_matmul.bench.shapes import SMALL_CUBES, Shape, shape_text
from npu_matmul.bench.timing import Sample
from npu_matmul.bench.workers import Process, processes

Row = dict[str, Any]
Show = Callable[[str], None]
Finished = Callable[[list[Row], list[Row]], None]
FORCED_PATHS = ("avx2",)
POOL_CACHES = 1.25  # operands of one form, in last-level caches


@dataclass(frozen=True)
class Plan:
    """``against``: "numpy", "torch", "ort"; np.matmul in float32 is always measured, as what ratios
    are of. ``in_cache`` computes one product over and over instead of taking turns with more
    operands than the last-level cache holds. ``encoders`` are Whisper sizes."""

    shapes: Sequence[Shape]
    against: Sequence[str] = ("numpy",)
    threads: Sequence[int] = (1, 2)
    in_cache: bool = False
    encoders: Sequence[str] = ()
    small_cubes: Sequence[int] = SMALL_CUBES

    @property
    def libraries(self) -> list[str]:
        others = (name for name in self.against if name != "numpy")
        return ["npu_matmul", "numpy", *others, "peak"]

    @property
    def pool_bytes(self) -> int:
        return 0 if self.in_cache else int(POOL_CACHES * last_level_cache_bytes())


@dataclass
class Results:
    """Rows are plain dicts, as they stand in the JSON file."""

    environment: Row
    rule: str
    operands: str
    rows: list[Row] = field(default_factory=list)
    peaks: list[Row] = field(default_factory=list)
    bandwidth: list[Row] = field(default_factory=list)
    small: list[Row] = field(default_factory=list)
    stages: list[Row] = field(default_factory=list)
    encoders: list[Row] = field(default_factory=list)
    functions: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def measure(
    plan: Plan, show: Show = lambda _: None, finished: Finished = lambda *_: None
) -> Results:
    """The products of the plan; ``show`` is told what is being done, ``finished`` gets the rows and
    peaks of each shape."""
    held = "in cache" if plan.in_cache else f"{plan.pool_bytes >> 20} MiB in turn"
    results = Results(environment(), timing.RULE, held)
    results.skipped += skipped_probes()
    for threads in plan.threads if plan.shapes else ():
        show(f"starting processes, {threads_text(threads)}")
        with processes(plan.libraries, threads, FORCED_PATHS) as started:
            _introduce(results, started, threads)
            _bandwidth(results, started, threads)
            for shape in plan.shapes:
                tell = f"{shape_text(shape)}, {threads_text(threads)}"
                finished(*_products(results, plan, started, shape, partial(_round, show, tell)))
                if threads == 1:
                    _stages(results, started, shape)
            if threads == 1:
                _small(results, plan, started, show)
    return results


def threads_text(threads: int) -> str:
    return "one core" if threads == 1 else f"{threads} threads"


def _round(show: Show, tell: str, number: int) -> None:
    show(f"{tell}: round {number}")


def _introduce(results: Results, started: list[Process], threads: int) -> None:
    """Note what each process is limited to; NumPy's own process tells its BLAS kernel."""
    for process in started:
        told = process.ask("hello")
        results.environment.setdefault("processes", []).append(
            {"path": process.path, "limit": threads, **told}
        )
        if process.library == "numpy":
            results.environment["blas"] = told["blas"]


def _one_of(started: list[Process], library: str) -> Process:
    return next(p for p in started if p.library == library and p.path is None)


def _bandwidth(results: Results, started: list[Process], threads: int) -> None:
    process = _one_of(started, "peak")
    rows = process.ask("copies", turn_s=timing.TURN_S)
    samples = timing.take_turns({row["copy"]: partial(process.turn, row["copy"]) for row in rows})
    for row in rows:
        sample = samples[row["copy"]]
        timed = {"threads": threads, **timing_of(sample, threads)}
        results.bandwidth.append({**row, **timed, "gb_per_s": row["bytes"] / sample.median / 1e9})


def _products(
    results: Results,
    plan: Plan,
    started: list[Process],
    shape: Shape,
    show: Callable[[int], None],
) -> tuple[list[Row], list[Row]]:
    """All products of one shape and the peaks, in the same turns."""
    peaks, products, turns = [], [], {}
    for process in started:
        if process.library == "peak":
            peaks = process.ask("peaks", turn_s=timing.TURN_S)
            turns.update({row["peak"]: partial(process.turn, row["peak"]) for row in peaks})
            continue
        rows = process.ask(
            "products", shape=shape, pool_bytes=plan.pool_bytes, turn_s=timing.TURN_S
        )
        _skip(results, rows)
        done = [row for row in rows if "error" not in row]
        products += done
        turns.update({row["product"]: partial(process.turn, row["product"]) for row in done})
    samples = timing.take_turns(turns, show)
    common = {"shape": list(shape), "threads": started[0].threads}
    peaks = [{**common, **row, **timed(row, samples[row["peak"]], common)} for row in peaks]
    products = [
        {**common, **row, **timed(row, samples[row["product"]], common)} for row in products
    ]
    _compare(products, peaks, results.environment["blas"]["kernel"])
    results.peaks += peaks
    results.rows += products
    return products, peaks


def _compare(products: list[Row], peaks: list[Row], blas_kernel: str) -> None:
    """Put each product beside the baseline, whose BLAS kernel is named, and beside its peak."""
    ceilings = {row["kind"]: row["gops"] for row in peaks}
    baseline = next(row for row in products if row["product"] == BASELINE)
    for row in products:
        peak = peak_kind(row, ceilings)
        row |= {
            "times_np_f32": baseline["seconds"] / row["seconds"],
            "peak": peak,
            "of_peak": row["gops"] / ceilings[peak] if peak else None,
            "blas_kernel": blas_kernel if row is baseline else None,
        }


def _skip(results: Results, rows: list[Row]) -> None:
    """Say once what could not be measured."""
    for row in rows:
        if "error" in row:
            text = f"{row['product']}: not measured: {row['error']}"
            results.skipped += [] if text in results.skipped else [text]


def peak_kind(row: Row, ceilings: dict[str, float]) -> str | None:
    """The probe whose instruction bounds a product: that of its forced path, else the widest."""
    kind = row["kind"].removeprefix("dynamic ")
    names = [f"{kind} AVX2"] if row["path"] == "avx2" else [kind, f"{kind} AVX2"]
    return next((name for name in names if name in ceilings), None)


def timing_of(sample: Sample, threads: int) -> Row:
    low, high = sample.interval
    return {
        "seconds": sample.median,
        "low_s": low,
        "high_s": high,
        "rounds": len(sample.seconds),
        "steady": sample.steady,
        "clock": "CPU time of the process" if threads == 1 else "wall",
    }


def timed(row: Row, sample: Sample, common: Row) -> Row:
    """Its time and its speed in G operations/s, a multiply and an add being two."""
    gops = row["operations"] / sample.median / 1e9
    return {**timing_of(sample, common["threads"]), "gops": gops}


def _stages(results: Results, started: list[Process], shape: Shape) -> None:
    """Of our products that were just measured."""
    ours = [r for r in results.rows if r["library"] == "npu_matmul" and r["path"] is None]
    for row in ours:
        if row["shape"] == list(shape) and row["threads"] == 1:
            took = _one_of(started, "npu_matmul").ask("stages", name=row["product"])
            results.stages.append(
                {"product": row["product"], "shape": row["shape"], "device": "cpu", **took}
            )


def _small(results: Results, plan: Plan, started: list[Process], show: Show) -> None:
    """Cubes through the public function, operands in cache, against np.matmul with ``out=``."""
    contestants = [_one_of(started, "npu_matmul"), _one_of(started, "numpy")]
    for size in plan.small_cubes:
        turns, rows = {}, []
        for process in contestants:
            rows += process.ask(
                "products",
                shape=[size] * 3,
                pool_bytes=0,
                turn_s=timing.TURN_S,
                only=[OWN_INT8, BASELINE],
            )
            turns[rows[-1]["product"]] = partial(process.turn, rows[-1]["product"])
        samples = timing.take_turns(turns, partial(_round, show, f"{size} cube, one core"))
        common = {"size": size, "threads": 1}
        rows = [{**common, **row, **timed(row, samples[row["product"]], common)} for row in rows]
        _compare(rows, [], results.environment["blas"]["kernel"])
        results.small += rows


def path_is_confirmed(rows: Sequence[Row]) -> bool:
    """Whether ``last_call().arithmetic`` tells that the forced path was taken: by its name, or by
    differing from what is said without force."""
    forced = {row["arithmetic"] for row in rows if row["product"] == OWN_AVX2}
    free = {row["arithmetic"] for row in rows if row["product"] == OWN_INT8}
    return bool(forced) and (not forced & free or all("avx2" in text.lower() for text in forced))
