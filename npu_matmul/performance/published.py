"""The model held against products that others measured on npu1, configured with their tiles.

Ratios are measured over modelled time. Rows the model misses stay in the table. Not in it are
figures without a shape, and products of whole networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from npu_matmul.performance.array import Array, LaunchTime, launch_time, work_of
from npu_matmul.performance.figures import (
    IGNITE,
    MEASURED,
    NPU1_FIGURES,
    PAPER,
    WHISPER_XDNA,
    CoreRates,
    Figure,
)

LEAST_RATIO, MOST_RATIO = 0.8, 1.5  # of a row that the model explains
MEAN_RATIOS = 0.9, 1.25  # the geometric mean of all rows


@dataclass(frozen=True)
class Published:
    """One measured product: its shape, its tiles, and 1e9 operations a second (2 M K N of them).

    ``assumed`` names what of the configuration the source leaves open.
    """

    source: str
    types: str
    shape: tuple[int, int, int]
    array: Array
    rates: CoreRates
    clock_hz: float
    measured_gops: float
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
        return launch_time(array, work, self.rates, NPU1_FIGURES, self.clock_hz)

    @property
    def ratio(self) -> float:
        return self.measured_s / self.modelled.total_s

    @property
    def explained(self) -> bool:
        return LEAST_RATIO <= self.ratio <= MOST_RATIO


def mean_ratio(rows: list[Published]) -> float:
    """The geometric mean of their ratios."""
    return math.exp(sum(math.log(row.ratio) for row in rows) / len(rows))


def _array(m: int, k: int, n: int, a_bytes: int, c_bytes: int, c_depth: int) -> Array:
    return Array(4, 4, m, k, n, a_bytes, a_bytes, c_bytes, c_depth)


def _paper(
    types: str,
    tile: tuple[int, int, int],
    macs_per_cycle: float,
    shape: tuple[int, int, int],
    tops: float,
) -> Published:
    """Its table 2: tuned kernels, whose speed it measured with the core's trace; C single."""
    zero = Figure(0, "cycles", MEASURED, "within the measured rate")
    rates = CoreRates(Figure(macs_per_cycle, "MAC/cycle", MEASURED, PAPER), zero, zero)
    a_bytes = 1 if types.startswith("i8") else 2
    c_bytes = {"i8": 1, "i16": 2, "i32": 4, "bf16": 2}[types.partition("-")[2]]
    array = _array(*tile, a_bytes, c_bytes, c_depth=1)
    return Published(PAPER, types, shape, array, rates, 1.0e9, tops * 1e3)


def _stock(
    source: str,
    types: str,
    tile: tuple[int, int, int],
    shape: tuple[int, int, int],
    gops: float,
    assumed: str = "",
    c_depth: int = 2,
) -> Published:
    """mlir-aie's own kernels, compiled with Peano."""
    a_bytes, rates = (1, NPU1_FIGURES.int8) if types[:2] == "i8" else (2, NPU1_FIGURES.bf16)
    c_bytes = 2 if types.endswith("bf16") else 4
    array = _array(*tile, a_bytes, c_bytes, c_depth)
    clock_hz = 1.8e9 if source == IGNITE else 1.6e9
    return Published(source, types, shape, array, rates, clock_hz, gops, assumed)


CUBE, CLOCK = "size 1024^3", "1.6 GHz"
ROWS = [
    _paper("i8-i8", (112, 112, 112), 212.5, (4032, 4032, 4032), 6.52),
    _paper("i8-i8", (112, 104, 128), 207.4, (4032, 4160, 4096), 6.48),
    _paper("i8-i16", (96, 112, 96), 192.0, (4224, 4032, 4224), 5.85),
    _paper("i8-i16", (80, 104, 128), 186.9, (4160, 4160, 4096), 5.75),
    _paper("i8-i32", (80, 88, 96), 146.0, (4160, 4224, 4224), 4.42),
    _paper("i8-i32", (64, 80, 128), 133.1, (4096, 4160, 4096), 4.09),
    _paper("bf16-bf16", (96, 56, 96), 99.8, (4224, 4032, 4224), 3.12),
    _paper("bf16-bf16", (96, 48, 112), 97.3, (4224, 4032, 4032), 3.02),
    _stock(IGNITE, "bf16-bf16", (64, 64, 32), (512, 512, 512), 895),
    _stock(IGNITE, "bf16-bf16", (64, 64, 32), (1024, 1024, 1024), 2072),
    _stock(IGNITE, "bf16-f32", (64, 64, 32), (2048, 4096, 4096), 1776, "the tile"),
    _stock(IGNITE, "bf16-bf16", (64, 64, 64), (1024, 1024, 1024), 2559, CUBE, c_depth=1),
    _stock(IGNITE, "bf16-bf16", (32, 64, 128), (1024, 1024, 1024), 2700, f"{CUBE}, k", c_depth=1),
    _stock(IGNITE, "i8-i32", (64, 64, 64), (1024, 1024, 1024), 4528, CUBE),
    _stock(IGNITE, "i8-i32", (64, 64, 32), (1024, 1024, 1024), 2387, CUBE),
    _stock(WHISPER_XDNA, "bf16-f32", (64, 64, 32), (1536, 1536, 384), 1761, CLOCK),
    _stock(WHISPER_XDNA, "bf16-f32", (64, 64, 32), (1536, 5120, 1280), 1514, CLOCK),
    _stock(WHISPER_XDNA, "bf16-f32", (64, 64, 32), (1536, 1280, 1280), 1409, CLOCK),
    _stock(WHISPER_XDNA, "bf16-f32", (32, 64, 64), (1536, 64, 1536), 386, CLOCK),
    _stock(WHISPER_XDNA, "bf16-f32", (64, 64, 32), (1536, 64, 1536), 412, CLOCK),
    _stock(
        WHISPER_XDNA, "i8-i32", (64, 64, 32), (1536, 1280, 1280), 1975, f"{CLOCK}, tile, shape, C"
    ),
]
