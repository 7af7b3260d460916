"""Targets: what is asked, measured and allowed; only right results reach one."""

from __future__ import annotations

import math

import pytest
from bench_results import RATES, Row, results_of, target

from npu_matmul.bench import (
    accuracy,
    contenders,
    run,
    session,
    tables,
    targets,
)
from npu_matmul.bench.contenders import (
    BASELINE,
    OWN_INT8,
)


def test_the_worst_shape_decides_a_target() -> None:
    results = results_of({**RATES, OWN_INT8: 415.0})
    assert target(results, "int8 / torch._int_mm")["reached"] is True
    slow = next(r for r in results.rows if r["product"] == OWN_INT8 and r["shape"][1] == 2048)
    slow["seconds"] *= 1.5
    row = target(results, "int8 / torch._int_mm")
    assert row["reached"] is False
    assert row["worst"] == pytest.approx(415 / 410 / 1.5) and row["best"] == pytest.approx(
        415 / 410
    )


def test_what_is_asked_is_enough_and_nothing_measured_allows_nothing() -> None:
    right = [{"accuracy": {"wrong_values": 0, "values": 9}}]
    for unit, off in (("x", -0.1), ("us", 0.1)):
        assert targets._row("a", 7.5, unit, [7.5], right, "")["reached"] is True
        assert targets._row("a", 7.5, unit, [7.5 + off], right, "")["reached"] is False
    nothing = targets._row("a", 7.5, "x", [], right, "not run", allowed=8.0)
    assert (nothing["allowed"], nothing["reached"], nothing["note"]) == (None, None, "not run")


def test_the_cpu_allows_its_peak_over_the_baseline() -> None:
    results = results_of()
    allowed = {row["target"]: row["allowed"] for row in targets.judge(results)}
    assert allowed["int8 / np f32 (SkylakeX)"] == pytest.approx(4.70)
    assert allowed["bf16 / np f32 (SkylakeX)"] == pytest.approx(2.35)
    assert allowed["int8 AVX2 / np f32 (SkylakeX)"] == pytest.approx(2.35)
    assert allowed["int8, two threads / one"] == pytest.approx(2.0)
    assert target(results, "int8 / its peak")["worst"] == pytest.approx(400 / 470)
    assert target(results, "int8, two threads")["worst"] == pytest.approx(1.9)


def test_the_shape_and_the_peak_that_allow_least_decide() -> None:
    results = results_of()
    baseline = [row for row in results.rows if row["product"] == BASELINE and row["threads"] == 1]
    baseline[1]["gops"] *= 1.25
    assert target(results, "int8 / np f32")["allowed"] == pytest.approx(4.70 / 1.25)
    for row in results.peaks:
        if row["threads"] == 2:  # of the two threads one was late, but in the probe of f32 alone
            row["gops"] *= 0.5 if row["kind"] == "f32" else 1.0
            row["gops"] *= 0.9 if (row["kind"], row["shape"][2]) == ("int8", 2048) else 1.0
    assert target(results, "int8, two threads")["allowed"] == pytest.approx(1.8)
    assert target(results, "bf16, two threads")["allowed"] == pytest.approx(2.0)
    assert target(results, "dynamic int8, two threads")["allowed"] == pytest.approx(1.8)


@pytest.mark.parametrize(
    ("product", "accuracy"),
    [
        (OWN_INT8, {"wrong_values": 1, "values": 768_000}),
        (contenders.TORCH_INT8, {"wrong_values": 768_000, "values": 768_000}),
    ],
)
def test_no_target_is_reached_by_wrong_results(product: str, accuracy: Row) -> None:
    results = results_of({**RATES, OWN_INT8: 4000.0})
    assert target(results, "int8 / torch._int_mm")["reached"] is True
    first = next(row for row in results.rows if row["product"] == product)
    first["accuracy"] = accuracy
    row = target(results, "int8 / torch._int_mm")
    assert row["reached"] is False and row["note"] == "a result is wrong"
    assert tables.verdict(row) == "wrong result"
    assert target(results, "int8 / its peak")["reached"] is (product != OWN_INT8)
    assert target(results, "dynamic int8 / ort dynamic")["reached"] is True


def test_an_error_beyond_its_bound_is_wrong_too() -> None:
    results = results_of()
    for row in results.rows:
        if row["product"] == contenders.OWN_BF16 and row["threads"] == 2:
            row["accuracy"] = {"relative_error": 1.0, "at_most": 6.8e-3}
    assert target(results, "bf16, two threads / one")["note"] == "a result is wrong"
    assert target(results, "bf16 / torch bf16")["reached"] is True  # of one core
    for row in results.small:
        row["accuracy"] = {"wrong_values": 4096, "values": 4096}
    assert [target(results, f"int8, {what}")["reached"] for what in ("16", "small")] == [False] * 2


def test_each_wrong_result_is_said_with_what_it_is_of() -> None:
    results = results_of()
    assert session.inaccurate(results) == []
    results.rows[0]["accuracy"] = {"wrong_values": 3, "values": 768_000}
    results.small[0]["accuracy"] = {"wrong_values": 9, "values": 4096}
    wrong = {"accuracy": {"relative_error": 0.5, "at_most": 1e-6}, "threads": 2}
    results.encoders = [{"encoder": "bf16", "size": "tiny", **wrong}]
    results.functions = [{"library": "torch", "function": "gelu 3x4", **wrong}]
    error = "its error is 5.0e-01, which should be at most 1.0e-06"
    assert session.inaccurate(results) == [
        "npu_matmul int8, 1500x512x512, one core: 3 of 768,000 values are wrong",
        "npu_matmul int8, 16x16x16, one core: 9 of 4,096 values are wrong",
        f"bf16, tiny encoder, 2 threads: {error}",
        f"torch gelu 3x4, 2 threads: {error}",
    ]


def test_the_worst_accuracy_is_kept_and_nan_is_worse_than_any() -> None:
    few, many = ({"wrong_values": count, "values": 9} for count in (1, 2))
    assert accuracy.worst([few, many, few]) is many
    found = [{"relative_error": error, "at_most": 1.0} for error in (0.1, math.nan, 10.0)]
    assert accuracy.worst(found) is found[1]


def test_what_was_not_measured_is_neither_reached_nor_not() -> None:
    rates = {name: rate for name, rate in RATES.items() if "torch" not in name}
    row = target(results_of(rates), "int8 / torch._int_mm")
    assert row["reached"] is None and "no torch._int_mm on one core in this run" in row["note"]
    others = targets.judge(results_of(of=[(64, 64, 64)]))
    assert [row["reached"] for row in others[:10]] == [None] * 10
    (line,) = run._not_measured(others)
    assert line.startswith("not measured, needs --shapes whisper-base: int8 / np f32; int8 / torch")


def test_a_forced_path_counts_only_when_the_call_says_it_was_taken() -> None:
    results = results_of()
    assert target(results, "int8 AVX2")["reached"] is True
    for said in ("INT32, exact (portable)", "INT32, exact"):
        forced = next(row for row in results.rows if row["path"] == "avx2")
        forced["arithmetic"] = said
        row = target(results, "int8 AVX2")
        assert row["reached"] is None and "arithmetic" in row["note"]


def test_times_of_small_products_must_be_at_most_what_is_asked() -> None:
    results = results_of()
    assert target(results, "int8, 16 cube")["reached"] is True
    assert target(results, "int8, 64 cube")["reached"] is False
    assert target(results, "int8, small cubes")["reached"] is True
    slow = {**results.small[0], "threads": 2, "seconds": 1.0, "times_np_f32": 0.1}
    results.small.append(slow)  # targets are of one core
    assert target(results, "int8, 16 cube")["reached"] is True
    assert target(results, "int8, small cubes")["reached"] is True
    results.small[0]["times_np_f32"] = 0.99
    assert target(results, "int8, small cubes")["reached"] is False


def test_probes_that_did_not_get_their_cores_are_reported() -> None:
    results = results_of()
    assert tables.disturbed(results.peaks) is None
    for row in results.peaks:
        row["gops"] *= 0.7 if row["threads"] == 2 else 1.0
    assert "as fast as 1.4 cores at worst" in str(tables.disturbed(results.peaks))


# strategies
