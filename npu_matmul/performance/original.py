"""The wrapper that the strategies replace, from the costs that its authors published.

Unicorn-Amanuensis multiplied int8 matrices on one core of a Phoenix, one 16x16x16 tile a launch:
copy two tiles into a buffer, sync, launch, wait, sync back, add on the host. Its analysis of
2025-11-02 (MATMUL_BATCHING_ANALYSIS.md) lists what each step costs per tile and what whole products
took. A report of the next day (BATCHED_MATMUL_OPTIMIZATION_REPORT.md) timed the steps apart and
found that most of it is the launch.
"""

from __future__ import annotations

from dataclasses import dataclass

# What a product costs beside its tiles: fitted, so that the 16x16 one of MEASURED_PRODUCTS, which
# has a single tile, comes out right. It says nothing of the model.
FIRST_TILE_S = 1.5e-3

# seconds per tile, as listed on 2025-11-02
LISTED_S = {
    "copy into the buffer": 30e-6,  # concatenate 10, write 20
    "sync to device": 50e-6,
    "NPU": 50e-6,
    "sync from device": 50e-6,
    "copy out of the buffer": 30e-6,  # read 20, reshape 10
    "add on the host": 260e-6,
}
# seconds per tile, as timed on 2025-11-03 in waves of 512 tiles
TIMED_S = {
    "copy into the buffer": 1.3e-3 / 512,
    "sync to device": 1.6e-3 / 512,
    "launch": 165e-3 / 512,
    "wait": 0.6e-3 / 512,
    "sync from device": 0.2e-3 / 512,
    "copy out of the buffer": 1.0e-3 / 512,
}


@dataclass(frozen=True)
class Measured:
    """A product of (size, size) @ (size, size) that was measured there."""

    size: int
    measured_s: float

    @property
    def fitted(self) -> bool:
        """Whether the model was made to give just that."""
        return self.tiles == 1

    @property
    def tiles(self) -> int:
        return (self.size // 16) ** 3


MEASURED_PRODUCTS = [
    Measured(16, 1.97e-3),
    Measured(64, 34.3e-3),
    Measured(128, 234.7e-3),
    Measured(512, 15.11),
]
WAVES = Measured(512, 11.485)  # by TIMED_S


def modelled_s(tiles: int) -> float:
    """What so many tiles take by the listed costs.

    >>> f"{modelled_s(1) * 1e3:.2f} ms, {modelled_s(32**3):.1f} s"
    '1.97 ms, 15.4 s'
    """
    return FIRST_TILE_S + tiles * sum(LISTED_S.values())


def waves_s(tiles: int) -> float:
    """What so many tiles take by the timed costs.

    >>> f"{waves_s(32**3):.1f} s"
    '10.9 s'
    """
    return tiles * sum(TIMED_S.values())
