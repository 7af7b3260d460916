"""What the hardware is: array shapes, address map and limits of the shim DMAs, each number once.

Sources: mlir-aie's AIETargetModel and AIEX verifier (April 2026) and aie-rt's register tables; the
word formats were read off instruction streams that the standard toolchain made
(``tests/data/*.insts.bin``).
"""

from __future__ import annotations

from dataclasses import dataclass

SHIM_ROW = 0
MEMTILE_ROW = 1
FIRST_CORE_ROW = 2

WORD_BYTES = 4  # address granularity of every DMA


@dataclass(frozen=True)
class Target:
    """One device family.

    ``partition(columns)`` is the name mlir-aie gives to that many columns of it. Limits are of one
    shim tile unless they say otherwise; wraps and steps in 32-bit words.
    """

    name: str
    generation: int  # devGen of the TXN header
    columns: int
    rows: int
    memtile_rows: int
    descriptors: int  # buffer descriptors of one shim
    channels: int  # DMA channels per direction
    queue_depth: int  # tasks a channel holds, the running one included; no MLIR pass checks it
    max_iterations: int  # runs with a stride: 6-bit field
    max_runs: int  # runs of one task: 8-bit field
    max_wrap: int  # 10-bit field
    max_step: int  # 20-bit field
    watchdog_s: float  # the driver stops a context whose job takes longer

    @property
    def core_rows(self) -> int:
        return self.rows - FIRST_CORE_ROW

    def partition(self, columns: int) -> str:
        return self.name if columns == self.columns else f"{self.name}_{columns}col"


NPU1 = Target(
    name="npu1",
    generation=3,
    columns=4,
    rows=6,
    memtile_rows=1,
    descriptors=16,
    channels=2,
    queue_depth=4,
    max_iterations=64,
    max_runs=256,
    max_wrap=1023,
    max_step=1 << 20,
    watchdog_s=2.0,
)

TARGETS = {target.name: target for target in (NPU1,)}


def address(column: int, row: int, offset: int) -> int:
    """Array address of a byte in a tile: column in bits 25 up, row in bits 20 to 24."""
    return column << 25 | row << 20 | offset


def tile_of(array_address: int) -> tuple[int, int, int]:
    """Column, row and offset of an array address.

    >>> tile_of(address(2, 0, 0x1D214))
    (2, 0, 119316)
    """
    return array_address >> 25, array_address >> 20 & 0x1F, array_address & 0xFFFFF


# Shim DMA registers (offsets in the tile).
DESCRIPTOR_BASE = 0x1D000
DESCRIPTOR_BYTES = 0x20
CHANNEL_CONTROL = {
    ("S2MM", 0): 0x1D200,
    ("S2MM", 1): 0x1D208,
    ("MM2S", 0): 0x1D210,
    ("MM2S", 1): 0x1D218,
}
START_QUEUE = {key: control + 4 for key, control in CHANNEL_CONTROL.items()}
CORE_DATA_MEMORY_BYTES = 0x10000
