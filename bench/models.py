"""The emulated NPU's model of the int8 multiply-accumulate, against np.matmul in float32.

Both on one core, in turn: CPU time of the process. np.matmul and the probe of the CPU's int8 peak
run in processes of their own, limited to one thread. Tiles are packed as a core has them, and C
stays in memory: every call adds to it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from timing import MOST_S, TURN_S

from npu_matmul.bench.timing import calls_per_turn, elapsed, take_turns
from npu_matmul.bench.workers import processes
from npu_matmul.emulator import mac_i8
from npu_matmul.kernel import Mmul, TileShape

TILES = (16, 16, 16), (32, 32, 32), (64, 64, 64), (64, 64, 128)  # m, k, n
BLOCK = Mmul(4, 8, 8)
BASELINE = 1500, 512, 512


def run() -> list[dict[str, Any]]:
    """A row per tile size: its speed, as a multiple of np.matmul's too, and as a part of the peak;
    operands are random."""
    random = np.random.default_rng(0)
    operations: dict[str, int] = {}
    turns: dict[str, Callable[[], float]] = {}
    with processes(["numpy", "peak"], threads=1) as (numpy, peak):
        given = numpy.ask("products", shape=BASELINE, pool_bytes=0, turn_s=TURN_S)
        probes = peak.ask("peaks", turn_s=TURN_S)
        for process, name, row in [
            *((numpy, row["product"], row) for row in given),
            *((peak, row["kind"], row) for row in probes if row["kind"] == "int8"),
        ]:
            operations[name] = row["operations"]
            turns[name] = partial(process.turn, row.get("peak", name))
        equal = {}
        for tile in TILES:
            work, equal[tile] = _model(random, *tile)
            calls = calls_per_turn(work, TURN_S)
            operations[str(tile)] = 2 * int(np.prod(tile))
            turns[str(tile)] = lambda work=work, calls=calls: elapsed(work, calls).cpu_s
        speeds = {
            name: operations[name] / s.median
            for name, s in take_turns(turns, most_s=MOST_S).items()
        }
    return [
        {
            "tile": list(tile),
            "g_op_per_s": speeds[str(tile)] / 1e9,
            "of_numpy": speeds[str(tile)] / speeds[given[0]["product"]],
            "of_peak": speeds[str(tile)] / speeds["int8"] if "int8" in speeds else None,
            "equal": equal[tile],
        }
        for tile in TILES
    ]


def _model(random: np.random.Generator, m: int, k: int, n: int) -> tuple[Callable[[], Any], bool]:
    """One call that adds to C, and whether C is NumPy's after a first product and after one that is
    added."""
    tile = TileShape(m, k, n)
    first, following = (mac_i8.model(tile, BLOCK, accumulate) for accumulate in (False, True))
    a, b = (random.integers(-128, 128, shape, np.int8) for shape in ((m, k), (k, n)))
    left, right = _blocks(a, BLOCK.r, BLOCK.s), _blocks(b, BLOCK.s, BLOCK.t)
    c = np.zeros(m * n, np.int32)
    want = _blocks(a.astype(np.int32) @ b.astype(np.int32), BLOCK.r, BLOCK.t)
    first(left, right, c)
    equal = np.array_equal(c, want)
    following(left, right, c)
    return lambda: following(left, right, c), equal and np.array_equal(c, 2 * want)


def _blocks(x: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = x.shape
    parts = x.reshape(rows // height, height, columns // width, width).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(parts).reshape(-1)
