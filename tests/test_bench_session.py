"""A measurement of tiny products end to end: processes, accuracy, rows, the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npu_matmul.bench import contenders, peak, run, session, workers
from npu_matmul.bench.accuracy import error_bound, is_right
from npu_matmul.bench.contenders import (
    BASELINE,
    BOTH,
    OPTIONAL,
    OWN_AVX2,
    OWN_INT8,
    Form,
    Problem,
    Ready,
    forms,
)
from npu_matmul.bench.session import Plan, Results, measure, results_for
from npu_matmul.bench.worker import Worker
from npu_matmul.bench.workers import Process, WorkerFailed, processes

SHAPE = 37, 45, 29
EXTRAS = [
    pytest.param(
        library,
        marks=pytest.mark.skipif(
            not all(map(find_spec, packages)), reason=f"{' and '.join(packages)} not installed"
        ),
    )
    for library, packages in OPTIONAL.items()
]


@pytest.fixture(scope="module")
def results(quick: pytest.MonkeyPatch) -> Results:
    quick.setattr(session, "POOL_CACHES", 1e-3)  # a few sets of operands
    plan = Plan([SHAPE], against=("numpy",), threads=(1,), small_cubes=(16,))
    results = results_for(plan)
    measure(plan, results)
    return results


def test_every_product_has_its_accuracy_beside_its_speed(results: Results) -> None:
    rows = {row["product"]: row for row in results.rows}
    assert set(rows) == {*(form.name for form in forms("npu_matmul")), OWN_AVX2, BASELINE}
    operations = 2 * 37 * 45 * 29
    for row in results.rows:
        assert row["shape"] == list(SHAPE) and row["threads"] == 1
        assert row["clock"] == "CPU time of the process"
        assert row["gops"] == pytest.approx(operations / row["seconds"] / 1e9)
        ratio = rows[BASELINE]["seconds"] / row["seconds"]
        assert row["times_np_f32"] == pytest.approx(ratio)
        assert row["low_s"] <= row["seconds"] <= row["high_s"] and row["rounds"] == 6
        if row["kind"] == "int8":
            assert row["accuracy"] == {"wrong_values": 0, "values": 37 * 29}
        else:
            bound = row["accuracy"]["at_most"]
            assert bound == error_bound(row["kind"], 45)
            assert bound / 1e4 < row["accuracy"]["relative_error"] < bound
    assert rows[OWN_INT8]["sets"] > 1
    assert rows[BASELINE]["blas_kernel"] == results.environment["blas"]["kernel"]


def test_peaks_are_probed_in_the_same_turns_or_said_to_be_skipped(results: Results) -> None:
    probed = {row["kind"]: row for row in results.peaks}
    assert set(probed) == {probe.kind for probe in peak.usable_probes()}
    assert len(probed) + len(peak.skipped_probes()) == len(peak.PROBES)
    assert set(peak.skipped_probes()) <= set(results.skipped)
    for row in results.rows:
        if row["peak"]:
            ceiling = probed[row["peak"]]["gops"]
            assert row["of_peak"] == pytest.approx(row["gops"] / ceiling)
    forced = next(row for row in results.rows if row["product"] == OWN_AVX2)
    assert forced["path"] == "avx2" and forced["peak"] in ("int8 AVX2", None)


@pytest.mark.parametrize("library", ["npu_matmul", "numpy", "torch", "peak"])
def test_a_process_gets_its_limits_whatever_the_shell_has_set(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPU_MATMUL_THREADS", "7")
    monkeypatch.setenv("NPU_MATMUL_CPU_PATH", "portable")
    variables = workers._variables(library, 2, None)
    assert variables["NPU_MATMUL_THREADS"] == variables["OMP_NUM_THREADS"] == "2"
    assert "NPU_MATMUL_CPU_PATH" not in variables
    assert variables["OPENBLAS_THREAD_TIMEOUT"] == "10"  # its threads sleep in others' turns
    assert "OPENBLAS_THREAD_TIMEOUT" not in workers._variables("both", 2, None)
    assert workers._variables(library, 1, "avx2")["NPU_MATMUL_CPU_PATH"] == "avx2"


def test_each_library_has_a_process_limited_to_one_thread_and_cpu(results: Results) -> None:
    told = results.environment["processes"]
    assert [each["library"] for each in told] == ["npu_matmul", "numpy", "peak", "npu_matmul"]
    assert [each["path"] for each in told] == [None, None, None, "avx2"]
    for each in told:
        assert each["settings"]["OPENBLAS_NUM_THREADS"] == "1"
        assert each["settings"]["NUMBA_NUM_THREADS"] == "1"
        assert len(each["cpus"]) == 1 or not hasattr(os, "sched_setaffinity")
    assert told[-1]["settings"]["NPU_MATMUL_CPU_PATH"] == "avx2"


def test_small_products_stages_and_copies_are_measured_too(results: Results) -> None:
    assert [(row["size"], row["product"]) for row in results.small] == [
        (16, OWN_INT8),
        (16, BASELINE),
    ]
    assert all(row["sets"] == 1 for row in results.small)  # in cache
    assert {row["product"] for row in results.stages} == {f.name for f in forms("npu_matmul")}
    for row in results.stages:  # an exact product as small as this is not timed by stage
        assert bool(row["seconds"]) == (row["product"] != OWN_INT8)
    assert {row["where"] for row in results.bandwidth} == {"cache", "memory"}


def test_all_of_it_can_be_written_as_json(results: Results, tmp_path: Path) -> None:
    content = run.content(results)
    assert json.loads(json.dumps(content)) == content


@pytest.mark.parametrize("library", EXTRAS)
def test_what_we_are_compared_with_computes_the_same_product(library: str) -> None:
    with processes([library], threads=1) as (process,):
        told = process.ask("hello")
        assert told["settings"]["OMP_NUM_THREADS"] == "1" and told.get("threads", 1) == 1
        rows = process.ask("products", shape=SHAPE, pool_bytes=0, turn_s=1e-4)
        assert [row.get("error") for row in rows] == [None] * len(forms(library))
        for row in rows:
            assert process.turn(row["product"]) > 0
            if row["kind"] == "int8":
                assert row["accuracy"] == {"wrong_values": 0, "values": 37 * 29}
            else:
                bound = row["accuracy"]["at_most"]
                assert bound / 1e4 < row["accuracy"]["relative_error"] < bound
                assert process.ask("check", name=row["product"]) == row["accuracy"]


def test_accuracy_counts_wrong_values_and_measures_errors() -> None:
    problem = Problem.random(SHAPE)
    exact = problem.a_int8.astype(np.int64) @ problem.b_int8.astype(np.int64)
    exact[3, 4] += 1
    assert problem.accuracy("int8", exact) == {"wrong_values": 1, "values": 37 * 29}
    product = problem.a_f32.astype(float) @ problem.b_f32.astype(float)
    assert problem.accuracy("f32", product * 1.01)["relative_error"] == pytest.approx(0.01)


class Erring:
    """A form that computes (2, 3) @ (3, 4) rightly for so many calls, then ``then`` happens."""

    def __init__(self, right_calls: int, then: Callable[[np.ndarray], Any]) -> None:
        self.left, self.then = right_calls, then

    def prepare(self, problem: Problem) -> Ready:
        exact = problem.a_int8.astype(np.int64) @ problem.b_int8.astype(np.int64)
        memory = exact.copy()  # as after a first call

        def work() -> None:
            self.left -= 1
            if self.left >= 0:
                memory[...] = exact
            else:
                self.then(memory)

        return Ready(work, lambda: memory)


@pytest.mark.parametrize("then", [lambda memory: memory.fill(0), lambda memory: None])
@pytest.mark.parametrize("right_calls", [0, 4])
def test_a_result_must_be_right_and_new_before_and_after_its_turns(
    then: Callable[[np.ndarray], Any], right_calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = Form("x", "int8", (1, 1, 4), Erring(right_calls, then).prepare)
    monkeypatch.setattr(contenders, "forms", lambda library, path: [form])
    worker = Worker("numpy", None, 1)
    (row,) = worker.products([2, 3, 4], pool_bytes=3 * (6 + 12 + 32), turn_s=0.0)
    assert row["sets"] == 3
    assert is_right(row["accuracy"]) == (right_calls > 0)
    worker.turn("x")
    assert worker.check("x") == {"wrong_values": 8, "values": 8}


class Here:
    """A library's process that is this one."""

    def __init__(self, library: str, threads: int = 1, path: str | None = None) -> None:
        self.library, self.threads, self.path = library, threads, path
        self.worker = Worker(library, path, 1)

    def ask(self, request: str, **arguments: Any) -> Any:
        return getattr(self.worker, request)(**arguments)

    def turn(self, name: str) -> float:
        return self.worker.turn(name)["wall_s"]


def test_threads_are_measured_beside_numpys_and_around_where_they_begin(
    quick: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def all_here(libraries: list[str], threads: int, paths: tuple[str, ...]) -> Iterator[Any]:
        yield [Here(library, threads) for library in libraries]

    monkeypatch.setattr(session, "processes", all_here)
    plan = Plan([SHAPE], against=("numpy",), threads=(1, 2), in_cache=True, small_cubes=(16,))
    results = results_for(plan)
    measure(plan, results)
    assert [(row["size"], row["threads"]) for row in results.small] == [(16, 1)] * 2 + [(16, 2)] * 2
    (pair,) = results.beside
    assert (pair["product"], pair["threads"], pair["shape"]) == (BOTH, 2, list(SHAPE))
    assert pair["accuracy"] == {"wrong_values": 0, "values": 37 * 29}
    took = {(row["product"], row["threads"]): row["seconds"] for row in results.rows}
    assert BOTH not in {name for name, _ in took}
    alone = took[OWN_INT8, 2] + took[BASELINE, 2]
    assert pair["times_alone"] == pytest.approx(pair["seconds"] / alone)


def test_a_pair_is_numpys_product_and_then_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    makers = {name: getattr(contenders, name) for name in ("_numpy_f32", "_own_int8")}

    def spied(name: str, problem: Problem) -> Ready:
        ready = makers[name](problem)
        return Ready(lambda: (order.append(name), ready.work()), ready.result)

    for name in makers:
        monkeypatch.setattr(contenders, name, partial(spied, name))
    (form,) = forms("both")
    problem = Problem.random(SHAPE)
    pair = form.prepare(problem)
    pair.result()[...] = 0
    pair.work()
    assert order == ["_numpy_f32", "_own_int8"]
    assert is_right(problem.accuracy(form.kind, pair.result()))


def test_numpys_threads_spin_as_usual_only_beside_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_THREAD_TIMEOUT", raising=False)
    assert "OPENBLAS_THREAD_TIMEOUT" in workers._variables("numpy", 2, None)
    both = workers._variables("both", 2, None)
    assert "OPENBLAS_THREAD_TIMEOUT" not in both
    assert both["OPENBLAS_NUM_THREADS"] == both["NPU_MATMUL_THREADS"] == "2"


def small_products(
    ours: Callable[[Problem], Ready], quick: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> Results:
    """A small cube of a form of ours, and of one that is right as NumPy's."""
    made = {"npu_matmul": (OWN_INT8, ours), "numpy": (BASELINE, Erring(1 << 40, len).prepare)}

    def forms_here(library: str, path: str | None) -> list[Form]:
        name, prepare = made[library]
        return [Form(name, "int8", (1, 1, 4), prepare)]

    monkeypatch.setattr(contenders, "forms", forms_here)
    monkeypatch.setattr(Worker, "_arithmetic", lambda self: None)
    results = Results({"blas": {"kernel": "SkylakeX"}}, "", "")
    started: Any = [Here(library) for library in made]
    session._small(results, Plan([], small_cubes=(4,)), started, lambda _: None)
    return results


def test_what_becomes_wrong_in_its_turns_is_wrong_in_its_row(
    quick: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    erring = Erring(5, lambda memory: memory.fill(0))
    ours, numpys = small_products(erring.prepare, quick, monkeypatch).small
    assert erring.left < 0
    assert ours["accuracy"] == {"wrong_values": 16, "values": 16}
    assert numpys["accuracy"] == {"wrong_values": 0, "values": 16}


def test_a_form_that_raises_is_skipped_and_said_once() -> None:
    results = Results({}, "", "")
    row = {"product": "torch._int_mm", "error": "RuntimeError: no kernel"}
    for _ in range(2):
        session._skip(results, [row, {"product": "torch f32"}])
    assert results.skipped == ["torch._int_mm: not measured: RuntimeError: no kernel"]


def test_a_small_product_that_raises_is_skipped_too(
    quick: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(problem: Problem) -> Ready:
        raise RuntimeError("no kernel")

    results = small_products(raising, quick, monkeypatch)
    assert results.small == []
    assert results.skipped == [f"{OWN_INT8}: not measured: RuntimeError: no kernel"]


def test_a_process_that_dies_is_an_error_with_its_last_words() -> None:
    process = Process("numpy", 1)
    try:
        with pytest.raises(WorkerFailed, match=r"measures numpy ended with 1: .*no_such"):
            process.ask("no_such")
    finally:
        process.close()


def test_processes_end_with_the_block_even_when_interrupted() -> None:
    with pytest.raises(KeyboardInterrupt), processes(["numpy"], threads=1) as started:
        raise KeyboardInterrupt
    assert started[0]._process.poll() is not None
