"""What is measured, in which order: for each number of threads and each shape, all products in
turn with the probed peaks; then small products, and where a call's time goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from npu_matmul.bench import timing
from npu_matmul.bench.accuracy import is_right, worst, wrong_text
from npu_matmul.bench.contenders import BASELINE, OWN_INT8
from npu_matmul.bench.environment import environment, last_level_cache_bytes
from npu_matmul.bench.peak import skipped_probes
from npu_matmul.bench.timing import Sample
from npu_matmul.bench.worker import STAGE_CALLS
from npu_matmul.bench.workers import Process, processes
from npu_matmul.shapes import SMALL_CUBES, Shape, shape_text

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
    beside: list[Row] = field(default_factory=list)
    small: list[Row] = field(default_factory=list)
    starts: list[Row] = field(default_factory=list)
    stages: list[Row] = field(default_factory=list)
    encoders: list[Row] = field(default_factory=list)
    functions: list[Row] = field(default_factory=list)
    strategies: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def results_for(plan: Plan) -> Results:
    """Nothing measured yet, in the environment of now."""
    held = "in cache" if plan.in_cache else f"{plan.pool_bytes >> 20} MiB in turn"
    rule = (
        f"{timing.rule()}; of strategies and fresh processes a turn is one call; stages are "
        f"medians of {STAGE_CALLS} calls"
    )
    return Results({**environment(), "threads": list(plan.threads)}, rule, held)


def measure(
    plan: Plan,
    results: Results,
    show: Show = lambda _: None,
    finished: Finished = lambda *_: None,
) -> None:
    """Fill the results with the plan's products; ``show`` is told what is being done, ``finished``
    gets the rows and peaks of each shape."""
    results.skipped += skipped_probes()
    for threads in plan.threads if plan.shapes else ():
        show(f"starting processes, {threads_text(threads)}")
        both = ["both"] if threads > 1 else []  # one thread is in nobody's way
        with processes([*plan.libraries, *both], threads, FORCED_PATHS) as started:
            _introduce(results, started, threads)
            _bandwidth(results, started, threads)
            for shape in plan.shapes:
                tell = f"{shape_text(shape)}, {threads_text(threads)}"
                finished(*_products(results, plan, started, shape, partial(_round, show, tell)))
                if threads == 1:
                    _stages(results, started, shape)
            _small(results, plan, started, show)


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
    """All products of one shape and the peaks, in the same turns; NumPy's and ours in one process,
    too."""
    common = {"shape": list(shape), "threads": started[0].threads}
    libraries = [process for process in started if process.library != "peak"]
    prober = _one_of(started, "peak")
    peaks = prober.ask("peaks", turn_s=timing.TURN_S)
    probes = {row["peak"]: partial(prober.turn, row["peak"]) for row in peaks}
    asked = {"shape": shape, "pool_bytes": plan.pool_bytes}
    rows, samples = _in_turn(results, libraries, asked, common, show, probes)
    products = [row for row in rows if row["library"] != "both"]
    peaks = [{**common, **row, **timed(row, samples[row["peak"]], common)} for row in peaks]
    _compare(products, peaks, results.environment["blas"]["kernel"])
    results.peaks += peaks
    results.rows += products
    results.beside += [_beside(row, results.rows) for row in rows if row["library"] == "both"]
    return products, peaks


def _beside(row: Row, rows: Sequence[Row]) -> Row:
    """The pair of products beside what each takes alone, also with ours on one core: while a thread
    of NumPy's spins after its product, there is a core less."""
    alone = {
        (each["product"], each["threads"]): each["seconds"]
        for each in rows
        if each["shape"] == row["shape"]
    }
    numpy_s = alone[BASELINE, row["threads"]]
    each_s = numpy_s + alone[OWN_INT8, row["threads"]]
    one_core_s = alone.get((OWN_INT8, 1))
    return {
        **row,
        "alone_s": each_s,
        "times_alone": row["seconds"] / each_s,
        "times_with_a_core_less": (numpy_s + one_core_s) / each_s if one_core_s else None,
    }


def _in_turn(
    results: Results,
    libraries: list[Process],
    asked: Row,
    common: Row,
    show: Callable[[int], None],
    others: Mapping[str, Callable[[], float]],
) -> tuple[list[Row], dict[str, Sample]]:
    """Rows of the products that the processes are asked for, and the samples of all that had a
    turn."""
    makers: dict[str, Process] = {}
    rows: list[Row] = []
    for process in libraries:
        answer = process.ask("products", turn_s=timing.TURN_S, **asked)
        _skip(results, answer)
        done = [row for row in answer if "error" not in row]
        makers.update({row["product"]: process for row in done})
        rows += done
    turns = {name: partial(process.turn, name) for name, process in makers.items()}
    samples = timing.take_turns({**turns, **others}, show)
    for row in rows:
        name = row["product"]
        row["accuracy"] = rechecked(row, makers[name], name)
        row |= {**common, **timed(row, samples[name], common)}
    return rows, samples


def rechecked(row: Row, process: Process, name: str) -> Row:
    """The accuracy before its turns or after them, whichever is worse."""
    return worst([row["accuracy"], process.ask("check", name=name)])


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
    """Cubes through the public function, operands in cache, against np.matmul with ``out=``; among
    them are those from which on there is work enough for a second thread."""
    contestants = [_one_of(started, "npu_matmul"), _one_of(started, "numpy")]
    threads = started[0].threads
    for size in plan.small_cubes:
        asked = {"shape": [size] * 3, "pool_bytes": 0, "only": [OWN_INT8, BASELINE]}
        common = {"size": size, "shape": [size] * 3, "threads": threads}
        told = partial(_round, show, f"{size} cube, {threads_text(threads)}")
        rows, _ = _in_turn(results, contestants, asked, common, told, {})
        if len(rows) == len(contestants):
            _compare(rows, [], results.environment["blas"]["kernel"])
            results.small += rows


def path_is_confirmed(rows: Sequence[Row], path: str) -> bool:
    """Whether ``last_call().arithmetic`` of each row that was forced to a path names that path."""
    forced = [row["arithmetic"] for row in rows if row["path"] == path]
    return bool(forced) and all(f"({path})" in text for text in forced)


def inaccurate(results: Results) -> list[str]:
    """A line for each thing that was measured and is not right."""
    rows = *results.rows, *results.beside, *results.small, *results.starts
    rows = *rows, *results.encoders, *results.functions
    wrong = [row for row in rows if not is_right(row["accuracy"])]
    unequal = [row for row in results.strategies if not row["equal"]]
    return [
        *(f"{_what(row)}: {wrong_text(row['accuracy'])}" for row in wrong),
        *(
            f"{row['strategy']} on {row['kernel']}, {shape_text(row['shape'])}: values are wrong"
            for row in unequal
        ),
    ]


def _what(row: Row) -> str:
    """
    >>> _what({"product": "npu_matmul int8", "shape": [5, 6, 7], "threads": 1})
    'npu_matmul int8, 5x6x7, one core'
    """
    if "product" in row:
        name = f"{row['product']}, {shape_text(row['shape'])}"
    elif "encoder" in row:
        name = f"{row['encoder']}, {row['size']} encoder"
    else:
        name = f"{row['library']} {row['function']}"
    return f"{name}, {threads_text(row['threads'])}"
