"""Every kernel that fits: tiles, buffer depths and types of C, by a closed form of the rules.

Candidates keep what makes the model's rates and the sums hold: the blocks that the shipped core
functions compute at once, and accumulators of 32 bits on the core. Where C has their type, it is
where sums are kept. A narrower C, rounded or saturated, is made once a block from sums that have a
buffer of their own, single, 4 B an element. Neither the generated design nor the core functions
have that buffer yet: here it is counted as bytes of the stack, to the rules as well.

There are hundreds of thousands of them, so that they are arrays. What is printed of them is checked
by the design rules themselves.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.design import MEMTILE_DEPTH, PARAMETER_WORDS
from npu_matmul.kernel import (
    ELEMENT_TYPES,
    CoreGrid,
    Depths,
    Kernel,
    TileShape,
    Types,
    load_kernel,
)
from npu_matmul.kernel_rules import MIN_STACK_BYTES
from npu_matmul.lowering import COUNTER_BYTES
from npu_matmul.performance.array import Array
from npu_matmul.target import WORD_BYTES, Target

Numbers = NDArray[np.int64]

# Types of C, that of the sums first.
OUTPUTS = {"int8": ("int32", "int16", "int8"), "bf16": ("float32", "bfloat16")}
DEPTHS = (1, 2)  # buffers of each FIFO at a core; a third one would change no modelled time
SUM_BYTES = 4  # of an accumulator: int32 or float32
FIFOS = 3  # that a core takes elements of: A, B and C


@dataclass(frozen=True)
class Candidates:
    """What cores could be made to compute; each field an array, an element a candidate.

    ``output`` is a place in :data:`OUTPUTS`.
    """

    dtype: str
    m: Numbers
    k: Numbers
    n: Numbers
    a_depth: Numbers
    b_depth: Numbers
    c_depth: Numbers
    output: Numbers

    def __len__(self) -> int:
        return len(self.m)

    def on(self, cores: CoreGrid) -> Array:
        """All of them on so many cores, for the model."""
        a_bytes = template(self.dtype).a_dtype.itemsize
        c_bytes = np.array([ELEMENT_TYPES[name].itemsize for name in OUTPUTS[self.dtype]])
        sizes: list[Any] = [a_bytes, a_bytes, c_bytes[self.output]]
        depths: list[Any] = [self.c_depth, self.a_depth, self.b_depth]
        tile: list[Any] = [self.m, self.k, self.n]
        narrow: Any = self.output > 0
        array = Array(cores.rows, cores.columns, *tile, *sizes, *depths)
        return replace(array, sums_apart=narrow)

    def kernel(self, place: int, cores: CoreGrid, target: Target) -> Kernel:
        """One of them as a manifest would have it."""
        one = {
            field.name: int(getattr(self, field.name)[place])
            for field in fields(self)
            if field.name != "dtype"
        }
        shipped = template(self.dtype)
        tile = TileShape(one["m"], one["k"], one["n"])
        types = replace(shipped.types, c=OUTPUTS[self.dtype][one["output"]])
        return replace(
            shipped,
            name=f"matmul_{tile.m}x{tile.n * cores.columns}",
            variant=self.dtype,
            targets=(target.name,),
            types=types,
            tile=tile,
            grid=cores,
            depths=Depths(one["a_depth"], one["b_depth"], one["c_depth"]),
            stack_bytes=MIN_STACK_BYTES + sums_bytes(types, tile),
        )


def template(dtype: str) -> Kernel:
    """The shipped kernel whose core function, mmul block and operands candidates share."""
    return load_kernel("matmul_64x512", dtype)


def kernels_array(kernel: Kernel) -> Array:
    """A kernel for the model, which has to know where its sums are."""
    return replace(Array.of(kernel), sums_apart=sums_bytes(kernel.types, kernel.tile) > 0)


def sums_bytes(types: Types, tile: TileShape) -> int:
    """Of the buffer for sums that C is too narrow for.

    >>> sums_bytes(Types("int8", "int8", "int16"), TileShape(64, 64, 128))
    32768
    """
    narrow = ELEMENT_TYPES[types.c].itemsize < SUM_BYTES
    return tile.m * tile.n * SUM_BYTES if narrow else 0


def enumerate_candidates(dtype: str, target: Target) -> Candidates:
    """All that fit the cores of a target, those that need the least memory of a core first.

    >>> from npu_matmul.target import NPU1
    >>> found = enumerate_candidates("int8", NPU1)
    >>> len(found), [int(found.m[0]), int(found.k[0]), int(found.n[0])]
    (65911, [16, 8, 16])
    """
    tiles, cores = _tiles(dtype, target), CoreGrid(target.core_rows, target.columns)
    parts = []
    for output, depths in itertools.product(
        range(len(OUTPUTS[dtype])), itertools.product(DEPTHS, repeat=FIFOS)
    ):
        same = [np.full(len(tiles[0]), number) for number in (*depths, output)]
        some = Candidates(dtype, *tiles, *same)
        fitting = fits(some.on(cores), target)
        parts.append([numbers[fitting] for numbers in (*tiles, *same)])
    together = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(core_bytes(Candidates(dtype, *together).on(cores)), kind="stable")
    return Candidates(dtype, *(numbers[order] for numbers in together))


def core_grids(target: Target) -> list[CoreGrid]:
    """Every part of the target that a manifest can name: A of each core row enters by the column
    of its number, so that there are as many columns as rows, or more."""
    return [
        CoreGrid(rows, columns)
        for rows in range(1, target.core_rows + 1)
        for columns in range(rows, target.columns + 1)
    ]


def core_bytes(array: Array) -> Any:
    """What a core's memory must hold: stack, sums, the parameter's buffer, buffers of FIFOs, loop
    state. What is left is for constants of the core function."""
    buffers = (
        array.a_depth * array.a_tile_bytes
        + array.b_depth * array.b_tile_bytes
        + array.c_depth * array.c_tile_bytes
    )
    sums = array.sums_apart * (array.m * array.n * SUM_BYTES)
    fixed = MIN_STACK_BYTES + PARAMETER_WORDS * WORD_BYTES + FIFOS * COUNTER_BYTES
    return fixed + sums + buffers


def fits(array: Array, target: Target) -> Any:
    """Whether the design rules would pass a kernel, of arrays of them for each.

    A core holds :func:`core_bytes`. A memtile holds two elements of A, of B and of C joined from a
    column's cores. A buffer that is no multiple of a vector would misalign those after it. Nothing
    else can be broken by a tile's size: a descriptor moves nearly all that a core holds at once.
    """
    tiles = array.a_tile_bytes, array.b_tile_bytes, array.c_tile_bytes
    joined = tiles[0] + tiles[1] + array.rows * tiles[2]
    aligned = sum(size % target.vector_bytes for size in tiles) == 0
    return (
        (core_bytes(array) <= target.core.memory_bytes)
        & (MEMTILE_DEPTH * joined <= target.memtile.memory_bytes)
        & aligned
    )


def _tiles(dtype: str, target: Target) -> tuple[Numbers, Numbers, Numbers]:
    """m, k and n of every tile whose single buffers, with sums, are no more than a core holds."""
    kernel = template(dtype)
    mmul, blocking, itemsize = kernel.mmul, kernel.blocking, kernel.a_dtype.itemsize
    steps = mmul.r * blocking.m, mmul.s, mmul.t * blocking.n
    memory = target.core.memory_bytes - MIN_STACK_BYTES
    most = memory // (steps[1] * itemsize)  # of m or n, the other operand and C left out
    m, n = (
        axis.ravel()
        for axis in np.meshgrid(
            np.arange(steps[0], most, steps[0]), np.arange(steps[2], most, steps[2])
        )
    )
    room = (memory - m * n * SUM_BYTES) // ((m + n) * itemsize) // steps[1]
    m, n, room = (numbers[room > 0] for numbers in (m, n, room))
    before = np.repeat(np.cumsum(room) - room, room)
    k = (np.arange(room.sum()) - before + 1) * steps[1]
    return np.repeat(m, room), k, np.repeat(n, room)
