"""Plans beside this host's CPU: how it is timed, and from how many rows an NPU is faster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from npu_matmul.kernel import load_kernel
from npu_matmul.performance.host import HostRates
from npu_matmul.performance.product import Npu, predict
from npu_matmul.plan import planning
from npu_matmul.plan.planning import CpuProduct, plan_product
from npu_matmul.tiler import TileGrid

RATES = HostRates(10e9, 30e9, 40e9, copy_a_s=2e-6, copy_b_s=3e-6, add_s=4e-6)


def test_this_host_is_measured() -> None:
    plan = plan_product((64, 48, 32), "float-int8")
    assert plan.rates is not None and plan.cpu is not None
    assert plan.cpu.rows == 64 and plan.cpu.seconds > 0
    assert plan.cpu.arithmetic.startswith("INT32, exact")
    assert set(plan.chosen.host_s) == {"pack", "unpack"}


def test_a_large_product_is_timed_by_some_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MOST_CPU_WORK", 10 * 48 * 32)
    cpu = planning.time_on_cpu((64, 48, 32), "bf16", resident=True)
    assert cpu.rows == 10 and cpu.seconds_for(10) == cpu.seconds
    assert cpu.seconds_for(64) == cpu.fixed_s + 64 * cpu.row_s


class FakeCpu:
    """A CPU whose products take 50 us and 0.25 us a row, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(planning, "time", self)
        monkeypatch.setattr(planning, "npu_matmul", self.multiply)
        monkeypatch.setattr(planning, "last_call", lambda: SimpleNamespace(arithmetic="faked"))
        monkeypatch.setattr(planning, "measure_host", lambda *_: RATES)

    def perf_counter(self) -> float:
        return self.now_s

    def multiply(self, a: Any, *_: Any, **__: Any) -> None:
        self.now_s += 50e-6 + len(a) * 0.25e-6


def test_the_cpu_has_a_fixed_cost_and_one_for_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCpu(monkeypatch)
    for rows in (1, 7, 1500, 4000):
        cpu = planning.time_on_cpu((rows, 64, 48), "int8", resident=False)
        assert cpu.seconds == pytest.approx(50e-6 + rows * 0.25e-6)
        assert (cpu.fixed_s, cpu.row_s) == (pytest.approx(50e-6), pytest.approx(0.25e-6))


@pytest.mark.parametrize(("K", "N"), [(512, 512), (512, 64)])
def test_the_crossover_does_not_depend_on_the_rows_that_are_planned(
    K: int, N: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows, too, are lost or won by the kernel that many are computed with."""
    FakeCpu(monkeypatch)
    plans = [plan_product((rows, K, N)) for rows in (1, 7, 16, 300, 1500)]
    assert len({plan.chosen.grid.kernel.name for plan in plans}) == (1 if N == 512 else 2)
    assert len({plan.crossover_rows for plan in plans}) == 1


@pytest.mark.parametrize(("row_s", "expected"), [(1e-9, None), (1.0, 1), (1e-6, "between")])
def test_the_crossover_is_the_first_row_count_the_npu_wins(
    row_s: float, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = CpuProduct(100, 100 * row_s, 0.0, row_s, "as given")
    monkeypatch.setattr(planning, "time_on_cpu", lambda *_: cpu)
    monkeypatch.setattr(planning, "measure_host", lambda *_: RATES)
    plan = plan_product((1500, 512, 512))
    if expected != "between":
        assert plan.crossover_rows == expected
        return
    rows = plan.crossover_rows
    assert rows is not None and 100 < rows < 1500
    kernel = plan.chosen.grid.kernel

    def npu_wins(m: int) -> bool:
        return predict(TileGrid(kernel, m, 512, 512), rates=RATES).total_s <= m * row_s

    assert not npu_wins(rows - 1)
    assert all(map(npu_wins, range(rows, rows + 3 * 256)))


def test_an_npu_that_takes_as_long_as_the_cpu_has_won(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = CpuProduct(1, 1.0, fixed_s=1.0, row_s=0.0, arithmetic="as given")
    monkeypatch.setattr(planning, "predict", lambda *_: SimpleNamespace(total_s=1.0))
    grid = TileGrid(load_kernel("matmul_16x16"), 16, 16, 16)
    assert planning._crossover(grid, ["batched"], Npu.named(), False, RATES, cpu) == 1


def test_after_the_crossover_no_block_of_rows_is_lost_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first row of a block costs as much as all 256: here the NPU wins the last rows of some
    blocks long before it wins the first rows of the next."""
    monkeypatch.setattr(planning, "measure_host", lambda *_: RATES)
    for row_s in (0.3e-6, 0.5e-6, 0.7e-6, 0.9e-6, 1.2e-6):
        monkeypatch.setattr(
            planning, "time_on_cpu", lambda *_, s=row_s: CpuProduct(1, s, 0.0, s, "")
        )
        plan = plan_product((1500, 512, 512))
        kernel, rows = plan.chosen.grid.kernel, plan.crossover_rows
        assert rows is not None
        for m in (rows, *(first for first in range(1, 20_000, 256) if first >= rows)):
            npu_s = predict(TileGrid(kernel, m, 512, 512), rates=RATES).total_s
            assert npu_s <= m * row_s * (1 + 1e-12), (row_s, rows, m)


def test_operands_on_the_cpu_are_not_degenerate() -> None:
    random = np.random.default_rng(0)
    assert len(np.unique(planning._operand(random, "int8", 20, 20))) > 100
    assert planning._operand(random, "bf16", 3, 4).dtype == np.float32
