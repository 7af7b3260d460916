"""The modelled time of a whole product: launches by a strategy, syncs, the host's stages."""

from __future__ import annotations

from dataclasses import dataclass, field

from npu_matmul.launch import LaunchShape
from npu_matmul.performance.array import Array, LaunchTime, Work, launch_time, launch_work
from npu_matmul.performance.figures import FIGURES, Figures
from npu_matmul.performance.host import HostRates
from npu_matmul.schedule import LIMITS, Limits, block_shapes, block_steps, cover_shapes
from npu_matmul.strategies import Counts, expected
from npu_matmul.target import TARGETS, Target
from npu_matmul.tiler import TileGrid


@dataclass(frozen=True)
class Npu:
    """The NPU that a prediction is for: a target's figures at a clock."""

    target: Target
    figures: Figures
    clock_hz: float

    @classmethod
    def named(cls, target: str = "npu1", clock_hz: float | None = None) -> Npu:
        """That target, at the clock of its figures unless another is given.

        >>> Npu.named().clock_hz
        1600000000.0
        """
        figures = FIGURES[target]
        return cls(TARGETS[target], figures, float(clock_hz or figures.clock_hz))


@dataclass(frozen=True)
class Prediction:
    """What a product by one strategy would take. ``work`` is the sum over its launches, ``counts``
    what its device must count. All times are modelled, but for ``host_s``, which follows from
    rates measured on this host; it is empty without such rates."""

    grid: TileGrid
    strategy: str
    npu: Npu
    counts: Counts
    work: tuple[tuple[Work, int], ...]  # of each kind of launch, and how many there are
    array: LaunchTime
    sync_s: float
    host_s: dict[str, float] = field(default_factory=dict)

    @property
    def device_s(self) -> float:
        """Launches and syncs, without the host's stages."""
        return self.array.total_s + self.sync_s

    @property
    def total_s(self) -> float:
        return self.device_s + sum(self.host_s.values())

    @property
    def kernel_calls(self) -> int:
        """Calls of core functions, of all cores."""
        cores = self.grid.kernel.grid.rows * self.grid.kernel.grid.columns
        return sum(work.blocks * work.steps * cores * count for work, count in self.work)

    @property
    def dma_tasks(self) -> int:
        return sum(work.tasks * count for work, count in self.work)

    @property
    def dma_bytes(self) -> int:
        return sum(work.dma_bytes * count for work, count in self.work)

    @property
    def peak_fraction(self) -> float:
        """Useful multiplications in ``device_s`` as a part of what all cores of the target, not of
        the kernel, could do in it."""
        grid, target = self.grid, self.npu.target
        peak = self.npu.figures.peak(grid.kernel.types.a) * target.columns * target.core_rows
        useful = grid.M * grid.K * grid.terms * grid.N
        return useful / (self.device_s * self.npu.clock_hz * peak)


def predict(
    grid: TileGrid,
    strategy: str = "batched",
    npu: Npu | None = None,
    resident: bool = False,
    rates: HostRates | None = None,
    limits: Limits = LIMITS,
) -> Prediction:
    """What a product takes on an NPU. ``resident`` means that B is packed and on the device.

    >>> from npu_matmul.kernel import load_kernel
    >>> grid = TileGrid(load_kernel("matmul_64x512", "int8"), 1500, 512, 512)
    >>> batched, sequential = predict(grid), predict(grid, "sequential")
    >>> batched.counts.launches, sequential.counts.launches
    (1, 48)
    >>> batched.device_s < sequential.device_s / 10
    True
    """
    npu = npu or Npu.named()
    kernel, figures = grid.kernel, npu.figures
    shapes = launch_shapes(grid, strategy, limits)
    work = tuple((launch_work(kernel, shape, npu.target), count) for shape, count in shapes)
    counts = expected(strategy, grid, resident, limits)
    launch_s = _launch_s(figures, strategy, counts.launches)
    array, total = Array.of(kernel), LaunchTime()
    for part, count in work:
        one = launch_time(array, part, figures.rates(kernel.types.a), figures, npu.clock_hz)
        total += one.times(count, launch_s)
    syncs = counts.syncs_to_device + counts.syncs_from_device
    moved = counts.bytes_to_device + counts.bytes_from_device
    sync_s = syncs * figures.sync_s + moved / figures.sync_bytes_per_s
    host_s = {} if rates is None else rates.stages(grid, counts, strategy, resident)
    return Prediction(grid, strategy, npu, counts, work, total, sync_s, host_s)


def launch_shapes(
    grid: TileGrid, strategy: str, limits: Limits = LIMITS
) -> list[tuple[LaunchShape, int]]:
    """The kinds of launches that a strategy makes, and how many of each."""
    if strategy == "sequential":
        return block_shapes(grid, 1)
    if strategy == "output_tile":
        return block_shapes(grid, block_steps(grid, limits))
    return cover_shapes(grid, limits)


def _launch_s(figures: Figures, strategy: str, launches: int) -> float:
    """Fixed cost of each launch: the wrapper waits for each; the others submit all together."""
    if strategy == "sequential":
        return figures.launch_s
    return (figures.launch_s + (launches - 1) * figures.queued_launch_s) / launches
