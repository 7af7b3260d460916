"""Plans of single products: what the planner would choose, what it would take, what the CPU takes.

Times of the NPU are modelled; the host's stages and the CPU's product are measured on this host.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from npu_matmul.choose import (
    MANY_ROWS,
    best_strategy,
    choose_kernel,
    kernels_for,
    ranked,
)
from npu_matmul.kernel import Kernel, UnknownKernel, load_variants
from npu_matmul.launch import VIEW_BYTES
from npu_matmul.matmul import npu_matmul, pack_b
from npu_matmul.performance.host import HostRates, measure_host
from npu_matmul.performance.product import Npu, Prediction, predict
from npu_matmul.precision import EXACT, PRECISIONS, Precision
from npu_matmul.report import last_call
from npu_matmul.schedule import LimitError
from npu_matmul.strategies import STRATEGIES
from npu_matmul.tiler import TileGrid

Shape = tuple[int, int, int]

# How products are computed, by the names that users give: int8 operands, or floats by a precision.
DTYPES = {
    "int8": EXACT,
    "bf16": PRECISIONS["bf16"],
    "bf16x3": PRECISIONS["bf16x3"],
    "float-int8": PRECISIONS["int8"],
}
MOST_CPU_WORK = 2e10  # multiplications that the CPU is timed with; larger products by fewer rows
CPU_TURN_S = 0.2  # the CPU's product is repeated for so long, the first time apart
# The crossover is looked for up to so many rows of A, as far as a launch can reach all of them.
MOST_ROWS, MOST_A_BYTES = 1 << 20, VIEW_BYTES


@dataclass(frozen=True)
class CpuProduct:
    """Products of one K and N on this host's CPU, timed: the best of some. ``rows`` in ``seconds``
    is the one that is planned, or as many of its rows as can be waited for. What any other takes
    is on the line through one row and many: ``fixed_s``, B's packing in it, and ``row_s``."""

    rows: int
    seconds: float
    fixed_s: float
    row_s: float
    arithmetic: str

    def seconds_for(self, rows: int) -> float:
        """As measured, or on the line.

        >>> CpuProduct(7, 2.0, fixed_s=1.0, row_s=0.25, arithmetic="").seconds_for(8)
        3.0
        """
        return self.seconds if rows == self.rows else self.on_line(rows)

    def on_line(self, rows: int) -> float:
        """What does not depend on the product that is planned."""
        return self.fixed_s + rows * self.row_s


@dataclass(frozen=True)
class Plan:
    """One product: what was chosen, the other strategies and kernels beside it, and the CPU."""

    shape: Shape
    dtype: str
    resident: bool
    npu: Npu
    chosen: Prediction
    strategies: dict[str, Prediction]
    kernels: list[tuple[float, Kernel]]  # modelled seconds, the fastest first
    as_if: bool  # no kernel is for this target: modelled as if those for another were
    rates: HostRates | None
    cpu: CpuProduct | None
    crossover_rows: int | None  # from so many rows on the NPU is modelled to be faster


def plan_product(
    shape: Shape,
    dtype: str = "int8",
    npu: Npu | None = None,
    kernel: str | None = None,
    strategy: str | None = None,
    resident: bool = False,
    with_host: bool = True,
) -> Plan:
    """Plan (M, K) @ (K, N). ``with_host`` measures this host's stages and its CPU.

    Raises ``UnknownKernel`` when no kernel computes such products, ``LimitError`` when what is
    asked for has no room in a launch. Other strategies that have none are left out.

    >>> plan = plan_product((1500, 512, 512), npu=Npu.named("npu1", 1.6e9), with_host=False)
    >>> plan.chosen.grid.kernel.name, plan.chosen.strategy, plan.chosen.array.limit
    ('matmul_64x512', 'batched', 'launch')
    """
    npu, how = npu or Npu.named(), DTYPES[dtype]
    candidates, as_if = _candidates(kernel, how, npu)
    names = tuple(STRATEGIES) if strategy is None else (strategy,)

    assumed = Npu.named(npu.target.name)  # npu_matmul does not know the clock

    def chosen_for(rows: int) -> Kernel:
        problem = (rows, *shape[1:], how.terms)
        if as_if:
            return ranked(candidates, problem, assumed, names)[0][1]
        by_strategy = None if resident else strategy  # pack_b does not know it yet
        return choose_kernel(kernel, how.types, problem, npu.target, strategy=by_strategy)[0]

    grid = TileGrid(chosen_for(MANY_ROWS if resident else shape[0]), *shape, how.terms)
    rates = measure_host(grid.kernel, how) if with_host else None
    predictions = {}
    for name in STRATEGIES:
        with suppress(LimitError):
            predictions[name] = predict(grid, name, npu, resident, rates)
    asked = strategy or best_strategy(grid, assumed)
    chosen = predictions.get(asked) or predict(grid, asked, npu, resident, rates)
    cpu = crossover = None
    if with_host:
        cpu = time_on_cpu(shape, dtype, resident)
        large = TileGrid(chosen_for(MANY_ROWS), *shape, how.terms)
        crossover = _crossover(large, names, npu, resident, measure_host(large.kernel, how), cpu)
    kernels = ranked(candidates, (*shape, how.terms), npu, names)
    return Plan(
        shape, dtype, resident, npu, chosen, predictions, kernels, as_if, rates, cpu, crossover
    )


def _candidates(name: str | None, how: Precision, npu: Npu) -> tuple[list[Kernel], bool]:
    """The kernels to choose from, and whether they are for another target in truth."""
    found = [kernel for kernel in kernels_for(how.types, npu.target) if name in (None, kernel.name)]
    if found:
        return found, False
    if name is not None:
        load_variants(name)  # a name that does not exist is another error
    other = [kernel for kernel in _for_any_target(how) if name in (None, kernel.name)]
    if not other:
        called = "no kernel" if name is None else f"kernel {name!r} has nothing"
        raise UnknownKernel(f"{called} for {how.types[0]} operands")
    return [replace(kernel, targets=(npu.target.name,)) for kernel in other], True


def _for_any_target(how: Precision) -> list[Kernel]:
    from npu_matmul.target import TARGETS

    return [kernel for target in TARGETS.values() for kernel in kernels_for(how.types, target)]


def time_on_cpu(shape: Shape, dtype: str, resident: bool) -> CpuProduct:
    """The same product by the ``cpu`` device, B packed before where it is ``resident``; and those
    of one row and of :data:`MANY_ROWS` with the same B."""
    M, K, N = shape
    most = max(2, int(MOST_CPU_WORK / (K * N)))
    rows, many = min(M, most), min(MANY_ROWS, most)
    how: dict[str, Any] = {} if dtype == "int8" else {"precision": DTYPES[dtype].name}
    random = np.random.default_rng(0)
    a, b = (_operand(random, dtype, *size) for size in ((max(rows, many), K), (K, N)))
    right: Any = pack_b(b, device="cpu", **how) if resident else b
    out = np.empty((len(a), N), np.int32 if dtype == "int8" else np.float32)

    def least_s(rows: int) -> float:
        def seconds() -> float:
            start = time.perf_counter()
            npu_matmul(a[:rows], right, out[:rows], dtype=out.dtype, device="cpu", **how)
            return time.perf_counter() - start

        seconds()  # compiles
        least, until_s = seconds(), time.perf_counter() + CPU_TURN_S
        while time.perf_counter() < until_s:
            least = min(least, seconds())
        return least

    one_s, many_s, asked_s = (least_s(number) for number in (1, many, rows))
    row_s = max(0.0, many_s - one_s) / (many - 1)
    return CpuProduct(rows, asked_s, one_s - row_s, row_s, last_call().arithmetic)


def _operand(random: np.random.Generator, dtype: str, rows: int, columns: int) -> Any:
    if dtype == "int8":
        return random.integers(-128, 128, (rows, columns), np.int8)
    return random.standard_normal((rows, columns), np.float32)


def _crossover(
    grid: TileGrid,
    strategies: Iterable[str],
    npu: Npu,
    resident: bool,
    rates: HostRates,
    cpu: CpuProduct,
) -> int | None:
    """The fewest rows of A from which on the NPU, host stages included, takes no longer than the
    CPU; None where that is so for none up to ``MOST_ROWS`` or ``MOST_A_BYTES``. By the kernel of
    many rows: it does not depend on how many were asked for."""
    rows_of_block = grid.kernel.block[0]

    def npu_s(rows: int) -> float:
        part = TileGrid(grid.kernel, rows, grid.K, grid.N, grid.terms)
        return min(predict(part, name, npu, resident, rates).total_s for name in strategies)

    def npu_wins(block: int) -> bool:
        """From the first row of a block of rows on, which costs as much as all of it."""
        first = block * rows_of_block + 1
        return npu_s(first) <= cpu.on_line(first)

    row_bytes = grid.Kt * grid.kernel.tile.k * grid.kernel.a_dtype.itemsize
    low, high = -1, (min(MOST_ROWS, MOST_A_BYTES // row_bytes) - 1) // rows_of_block
    if not npu_wins(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if npu_wins(middle) else (middle, high)
    if high == 0:
        return 1
    # The NPU may also win the last rows of the block before, whose first row it loses.
    last = high * rows_of_block
    if cpu.row_s == 0:
        return last + 1
    return min(last + 1, math.ceil((npu_s(last) - cpu.fixed_s) / cpu.row_s))
