"""The model held against products that others measured, configured with their tiles.

Ratios are measured over modelled time. Rows the model misses stay in the table. Not in it are
figures without a shape, products of whole networks, and further runs of the same configuration.

What the model leaves out and most misses share is how long the contiguous runs are in which A and
B are read: it takes memory to be as fast for any. Kernels here read packed operands, whole panels
of K at once; none of the published products was packed, so that the longest runs come closest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from npu_matmul.performance.array import Array, LaunchTime, launch_time, work_of
from npu_matmul.performance.figures import (
    FIGURES,
    IGNITE,
    MEASURED,
    NPU1_FIGURES,
    PAPER,
    WHISPER_XDNA,
    CoreRates,
    Figure,
)

LEAST_RATIO, MOST_RATIO = 0.8, 1.5  # of a row that the model explains
# What parts the rows that are explained from those that may not be; no source names a limit.
LONG_RUN_BYTES = 128

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Published:
    """One measured product: its shape, its tiles, and 1e9 operations a second (2 M K N of them).

    ``run_bytes`` is the shorter of the contiguous runs in which A and B are read from memory.
    ``assumed`` names what of the configuration the source leaves open.
    """

    source: str
    types: str
    shape: Shape
    array: Array
    run_bytes: int
    rates: CoreRates
    clock_hz: float
    measured_gops: float
    target: str = "npu1"
    assumed: str = ""

    @property
    def tile(self) -> str:
        return f"{self.array.m}x{self.array.k}x{self.array.n}"

    @property
    def measured_s(self) -> float:
        return 2 * math.prod(self.shape) / (self.measured_gops * 1e9)

    @property
    def modelled(self) -> LaunchTime:
        """One launch; the tasks of its stream are not known, and not counted."""
        (M, K, N), array = self.shape, self.array
        rows, columns = -(-M // (array.m * array.rows)), -(-N // (array.n * array.columns))
        work = work_of(array, rows, columns, -(-K // array.k))
        return launch_time(array, work, self.rates, FIGURES[self.target], self.clock_hz)

    @property
    def ratio(self) -> float:
        return self.measured_s / self.modelled.total_s

    @property
    def explained(self) -> bool:
        return LEAST_RATIO <= self.ratio <= MOST_RATIO

    @property
    def long_runs(self) -> bool:
        """Whether A and B are read in runs for which the model is known to hold."""
        return self.run_bytes >= LONG_RUN_BYTES


def mean_ratio(rows: Sequence[Published]) -> float:
    """The geometric mean of their ratios."""
    return math.exp(sum(math.log(row.ratio) for row in rows) / len(rows))


def of_target(target: str) -> tuple[list[Published], list[Published]]:
    """The rows of a target: those of long runs, and the others.

    >>> long, short = of_target("npu1")
    >>> all(row.explained for row in long), sum(row.explained for row in short) < len(short)
    (True, True)
    """
    rows = [row for row in ROWS if row.target == target]
    return [row for row in rows if row.long_runs], [row for row in rows if not row.long_runs]


def trust(target: str) -> str:
    """What the rows of a target say of the model, in words.

    >>> print(trust("npu2"))
    8 published products on npu2 took 0.96 to 1.03 times what is modelled from the speed of their \
cores, which was measured; that of this project's cores there is assumed.
    """
    long, short = of_target(target)
    ratios = [row.ratio for row in long]
    took = f"published products on {target} took {min(ratios):.2f} to {max(ratios):.2f} times"
    if target != "npu1":
        return (
            f"{len(long)} {took} what is modelled from the speed of their cores, which was "
            "measured; that of this project's cores there is assumed."
        )
    missed, most = sum(not row.explained for row in short), max(row.ratio for row in short)
    return (
        f"{len(long)} {took} what is modelled, {mean_ratio(long):.2f} on average, where A and B "
        f"are read in runs of {LONG_RUN_BYTES} B or more, as packed ones are; int8 among them is "
        f"of tuned kernels, by their own speed. Of {len(short)} with shorter runs, which the model "
        f"does not know, {missed} took over {MOST_RATIO} times, up to {most:.1f}."
    )


def _bytes_of(types: str) -> tuple[int, int]:
    """Of an element of A or B, and of C."""
    given, _, made = types.partition("-")
    sizes = {"i8": 1, "i16": 2, "bf16": 2, "i32": 4, "f32": 4}
    return sizes[given], sizes[made]


def _paper(
    types: str,
    tile: Shape,
    macs_per_cycle: float,
    shape: Shape,
    tops: float,
    run: int,
    target: str = "npu1",
    assumed: str = "",
) -> Published:
    """Its tables 2 and 3: tuned kernels, whose speed it measured with the core's trace; C single,
    B by columns. Section 5.2.2 gives the elements of K in a ``run``, for the first of two."""
    zero = Figure(0, "cycles", MEASURED, "within the measured rate")
    rates = CoreRates(Figure(macs_per_cycle, "MAC/cycle", MEASURED, PAPER), zero, zero)
    a_bytes, c_bytes = _bytes_of(types)
    columns, clock_hz = {"npu1": (4, 1.0e9), "npu2": (8, 1.8e9)}[target]
    array = Array(4, columns, *tile, a_bytes, a_bytes, c_bytes, c_depth=1)
    run_bytes = run * a_bytes
    return Published(
        PAPER, types, shape, array, run_bytes, rates, clock_hz, tops * 1e3, target, assumed
    )


def _stock(
    source: str, types: str, tile: Shape, shape: Shape, gops: float, assumed: str = "", c: int = 2
) -> Published:
    """mlir-aie's own design and kernels, compiled with Peano: A and B by rows, so that a run is a
    tile's k or n elements. ``c`` buffers of C."""
    a_bytes, c_bytes = _bytes_of(types)
    rates = NPU1_FIGURES.int8 if types.startswith("i8") else NPU1_FIGURES.bf16
    array = Array(4, 4, *tile, a_bytes, a_bytes, c_bytes, c)
    run_bytes = min(tile[1], tile[2]) * a_bytes
    clock_hz = 1.6e9 if source == WHISPER_XDNA else 1.8e9
    return Published(source, types, shape, array, run_bytes, rates, clock_hz, gops, assumed=assumed)


def _cube(size: int) -> Shape:
    return size, size, size


# results/aie/int8_matmul_sweep_npu.log, one sitting: the sweeps with the tile that the design comes
# with and with n = 64, and the tiles tried at 2048^3.
SWEPT: dict[tuple[str, Shape], dict[Shape, float]] = {
    ("i8-i32", (64, 64, 32)): {
        _cube(512): 982.52,
        (512, 512, 1024): 1529.33,
        (512, 512, 2048): 1994.47,
        _cube(1024): 2743.72,
        _cube(2048): 2373.66,
        (4096, 2048, 2048): 2387.01,
        (2048, 4096, 4096): 2047.66,
        (512, 4096, 4096): 1875.49,
        (1024, 4096, 4096): 1956.97,
    },
    ("i8-i32", (16, 64, 32)): {(128, 4096, 4096): 585.31, (512, 4096, 4096): 609.93},
    ("i8-i32", (32, 64, 32)): {(256, 4096, 4096): 1041.28, (512, 4096, 4096): 1045.84},
    ("i8-i32", (64, 128, 32)): {_cube(2048): 2788.00},
    ("i8-i32", (128, 64, 32)): {_cube(2048): 3192.69},
    ("i8-i32", (64, 64, 64)): {
        _cube(512): 974.29,
        (512, 512, 1024): 1764.51,
        (512, 512, 2048): 2544.29,
        _cube(1024): 3544.29,
        _cube(2048): 4447.97,
        (4096, 2048, 2048): 4607.05,
        (2048, 4096, 4096): 3263.99,
        (512, 4096, 4096): 3160.96,
        (1024, 4096, 4096): 3282.40,
    },
    ("i8-i32", (16, 64, 64)): {(128, 4096, 4096): 1091.53},
    ("i8-i32", (32, 64, 64)): {(256, 4096, 4096): 1888.39},
    ("bf16-f32", (64, 64, 32)): {
        _cube(512): 846.40,
        _cube(1024): 1875.30,
        _cube(2048): 1775.65,
        (2048, 4096, 4096): 1801.18,
        (512, 4096, 4096): 1671.94,
        (1024, 4096, 4096): 1779.78,
    },
    ("bf16-f32", (16, 64, 32)): {(128, 4096, 4096): 595.42, (512, 4096, 4096): 631.46},
    ("bf16-f32", (32, 64, 32)): {(256, 4096, 4096): 1034.96, (512, 4096, 4096): 1057.94},
}
# docs/SILICON.md, section 3.1, one buffer of C: its type is inferred from what it is compared with.
SINGLE_C: dict[Shape, dict[Shape, float]] = {
    (64, 64, 64): {_cube(2048): 2477.23, (2048, 4096, 4096): 2641.41},
    (32, 64, 128): {_cube(2048): 2494.61, (2048, 4096, 4096): 2700.44},
    (128, 64, 32): {_cube(2048): 2136.09},
    (128, 32, 64): {_cube(2048): 2070.87},
    (64, 32, 128): {_cube(2048): 2146.76},
}
SOURCE = f"{IGNITE}, and results/aie/int8_matmul_sweep_npu.log"
CLOCK, RUN = "1.6 GHz, A and B by rows", "the run"
NO_TILE = f"midpoint of 1930 to 2020, {CLOCK}, tile, shape, C"
ROWS = [
    _paper("i8-i8", (112, 112, 112), 212.5, (4032, 4032, 4032), 6.52, run=448),
    _paper("i8-i8", (112, 104, 128), 207.4, (4032, 4160, 4096), 6.48, run=448, assumed=RUN),
    _paper("i8-i16", (96, 112, 96), 192.0, (4224, 4032, 4224), 5.85, run=448),
    _paper("i8-i16", (80, 104, 128), 186.9, (4160, 4160, 4096), 5.75, run=448, assumed=RUN),
    _paper("i8-i32", (80, 88, 96), 146.0, (4160, 4224, 4224), 4.42, run=352),
    _paper("i8-i32", (64, 80, 128), 133.1, (4096, 4160, 4096), 4.09, run=352, assumed=RUN),
    _paper("bf16-bf16", (96, 56, 96), 99.8, (4224, 4032, 4224), 3.12, run=224),
    _paper("bf16-bf16", (96, 48, 112), 97.3, (4224, 4032, 4032), 3.02, run=224, assumed=RUN),
    _paper("bf16-bf16", (96, 56, 96), 99.8, (4224, 4032, 4224), 1.27, run=56, assumed="shape"),
    _stock(SOURCE, "bf16-bf16", (64, 64, 32), _cube(512), 895),
    _stock(SOURCE, "bf16-bf16", (64, 64, 32), _cube(1024), 2072.54),
    _stock(SOURCE, "bf16-f32", (64, 64, 32), (4096, 2048, 2048), 1846.96),
    *(
        _stock(SOURCE, types, tile, shape, gops)
        for (types, tile), measured in SWEPT.items()
        for shape, gops in measured.items()
    ),
    *(
        _stock(SOURCE, "bf16-f32", tile, shape, gops, "C is f32", c=1)
        for tile, measured in SINGLE_C.items()
        for shape, gops in measured.items()
    ),
    _stock(WHISPER_XDNA, "bf16-f32", (64, 64, 32), (1536, 1536, 384), 1761, CLOCK),
    _stock(WHISPER_XDNA, "bf16-f32", (64, 64, 32), (1536, 5120, 1280), 1514, CLOCK),
    _stock(WHISPER_XDNA, "bf16-f32", (64, 64, 32), (1536, 1280, 1280), 1409, CLOCK),
    _stock(WHISPER_XDNA, "bf16-f32", (32, 64, 64), (1536, 64, 1536), 386, CLOCK),
    _stock(WHISPER_XDNA, "bf16-f32", (64, 64, 32), (1536, 64, 1536), 412, CLOCK),
    _stock(WHISPER_XDNA, "i8-i32", (64, 64, 32), (1536, 1280, 1280), 1975, NO_TILE),
    _paper("i8-i8", (144, 72, 144), 343.0, (4032, 4320, 4608), 37.35, 432, "npu2"),
    _paper("i8-i8", (160, 64, 144), 322.6, (4480, 4224, 4608), 36.13, 432, "npu2", RUN),
    _paper("i8-i16", (128, 72, 112), 307.2, (4096, 4320, 4480), 30.77, 432, "npu2"),
    _paper("i8-i16", (160, 64, 96), 271.4, (4480, 4224, 4608), 29.59, 432, "npu2", RUN),
    _paper("i8-i32", (96, 64, 96), 256.0, (4224, 4224, 4608), 24.74, 384, "npu2"),
    _paper("i8-i32", (128, 56, 80), 209.9, (4096, 4032, 4480), 21.67, 384, "npu2", RUN),
    _paper("bf16-bf16", (112, 48, 96), 137.2, (4032, 4224, 4608), 14.52, 384, "npu2"),
    _paper("bf16-bf16", (160, 40, 80), 124.1, (4480, 4160, 4480), 13.67, 384, "npu2", RUN),
]
