"""What the hardware is: array shapes, limits of each kind of tile, address map; each number once.

Sources, named beside the numbers: [model] mlir-aie's ``AIETargetModel`` (April 2026), whose AIE2
model serves npu1 and npu2 alike; [verifier] its verifiers of ``aie.dma_bd`` and
``aiex.npu.dma_memcpy_nd``; [aie-rt] the register tables of aie-rt (``XAie_DmaBdProp``,
``XAie_DmaChProp``). The word formats were read off instruction streams that the standard
toolchain made (``tests/data/golden/*.insts.bin``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

SHIM_ROW = 0
MEMTILE_ROW = 1
FIRST_CORE_ROW = 2

WORD_BYTES = 4  # address granularity of every DMA: getAddressGenGranularity [model]
LOCK_MAXIMUM = 63  # of a lock: 6-bit value [aie-rt]
CORE_DATA_MEMORY_BYTES = 0x10000  # getLocalMemorySize [model]
DEFAULT_STACK_BYTES = 0x400  # of an aie.core that names none: CoreOp's stack_size


@dataclass(frozen=True)
class TileLimits:
    """What one tile of a kind has, and what one of its buffer descriptors can say.

    Descriptors are shared by channels of equal index modulo ``channel_groups``. ``max_size`` is in
    elements; wraps, steps and lengths are in 32-bit words.
    """

    memory_bytes: int  # data memory: getLocalMemorySize, getMemTileSize [model]
    banks: int  # getNumBanks [model]
    descriptors: int  # getNumBDs [model]
    channel_groups: int  # isBdChannelAccessible [model]
    locks: int  # getNumLocks [model]
    channels: int  # DMA channels per direction: DMA ports of the stream switch [model]
    dimensions: int  # loops of one descriptor, the iteration not counted [verifier]
    max_size: int  # of one loop [verifier]
    max_wrap: int  # WrapMax [aie-rt]: the field's largest value, as one more would encode 0
    max_step: int  # StepSizeMax + 1 [aie-rt]: the field holds the step less one
    max_words: int  # of one run: the buffer length field [aie-rt]
    max_padding: tuple[int, ...] = ()  # on each side of a loop, from the innermost, whose padding
    # is in words: ZeroBefore and ZeroAfter fields [aie-rt]

    @property
    def descriptors_per_group(self) -> int:
        return self.descriptors // self.channel_groups

    @property
    def bank_bytes(self) -> int:
        return self.memory_bytes // self.banks


CORE = TileLimits(
    memory_bytes=CORE_DATA_MEMORY_BYTES,
    banks=4,
    descriptors=16,
    channel_groups=1,
    locks=16,
    channels=2,
    dimensions=3,
    max_size=512,  # the verifier's text says 1023, its check is 512
    max_wrap=(1 << 8) - 1,
    max_step=1 << 13,
    max_words=(1 << 14) - 1,
)

MEMTILE = TileLimits(
    memory_bytes=0x80000,
    banks=8,
    descriptors=48,
    channel_groups=2,  # even channels use descriptors 0 to 23, odd ones 24 to 47
    locks=64,
    channels=6,
    dimensions=4,
    max_size=512,
    max_wrap=(1 << 10) - 1,
    max_step=1 << 17,
    max_words=(1 << 17) - 1,
    max_padding=((1 << 6) - 1, (1 << 5) - 1, (1 << 4) - 1),
)

SHIM = TileLimits(
    memory_bytes=0,  # it reads and writes host memory
    banks=1,
    descriptors=16,
    channel_groups=1,
    locks=16,
    channels=2,
    dimensions=3,
    max_size=1023,  # of dma_memcpy_nd
    max_wrap=(1 << 10) - 1,
    max_step=1 << 20,
    max_words=(1 << 32) - 1,
)


@dataclass(frozen=True)
class Target:
    """One device family. ``partition(columns)`` is mlir-aie's name of that many columns of it."""

    name: str
    generation: int  # devGen of the TXN header
    columns: int
    rows: int
    memtile_rows: int
    shim: TileLimits
    memtile: TileLimits
    core: TileLimits
    queue_depth: int  # tasks a channel holds, the running one included: StartQSizeMax [aie-rt];
    # no MLIR pass checks it
    max_iterations: int  # runs with a stride: 6-bit field [aie-rt]; mlir-aie lets 65 pass as 1
    max_runs: int  # runs of one task: 8-bit field [aie-rt]
    max_arguments: int  # data buffers of a launch: bo0 to bo4 of aiecc's kernel metadata
    vector_bytes: int  # alignment of vector loads: aie_api's vector_decl_align; hardware drops
    # the low address bits without a word
    watchdog_s: float  # the driver stops a context whose job takes longer
    contexts: int  # hardware contexts that the driver gives out at once: hwctx_limit of amdxdna

    @property
    def core_rows(self) -> int:
        return self.rows - FIRST_CORE_ROW

    def partition(self, columns: int) -> str:
        return self.name if columns == self.columns else f"{self.name}_{columns}col"

    def limits(self, kind: str) -> TileLimits:
        """The limits of a ``shim``, ``memtile`` or ``core``.

        >>> NPU1.limits("memtile").bank_bytes
        65536
        """
        return {"shim": self.shim, "memtile": self.memtile, "core": self.core}[kind]


NPU1 = Target(  # Phoenix, Hawk Point
    name="npu1",
    generation=3,
    columns=4,
    rows=6,
    memtile_rows=1,
    shim=SHIM,
    memtile=MEMTILE,
    core=CORE,
    queue_depth=4,
    max_iterations=64,
    max_runs=256,
    max_arguments=5,
    vector_bytes=32,
    watchdog_s=2.0,
    contexts=6,
)

# Strix: the same tiles [model: BaseNPU2TargetModel is an AIE2 model], twice the columns, and cores
# of the next generation (AIE2P), which load 512 bits at once.
NPU2 = replace(NPU1, name="npu2", generation=4, columns=8, vector_bytes=64, contexts=16)

TARGETS = {target.name: target for target in (NPU1, NPU2)}


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
