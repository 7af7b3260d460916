"""Lowered modules to test with: the golden ones, and small ones made of parts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import golden
import numpy as np
from golden import synced, unsynced
from numpy.typing import NDArray

from npu_matmul.assemble import assemble
from npu_matmul.instructions import decode
from npu_matmul.lowered.core import Symbol
from npu_matmul.lowered.machine import LoweredMachine
from npu_matmul.lowered.module import LoweredModule
from npu_matmul.lowered.reading import read_lowered
from npu_matmul.lowered.schedules import FIXED, Schedule, schedules
from npu_matmul.sequence import Argument, Sequence, Transfer, Wait, linear

FOLDER = golden.FOLDER / "lowered"
GOLDEN = ("gemm_one_core", "sixteen_cores", "transform")
SYMBOLS = {
    "zero": Symbol(golden.MODELS["zero"], ("w",)),
    "copy": Symbol(golden.MODELS["copy"], ("r", "w")),
    "mm": Symbol(golden.MODELS["mm"], ("r", "r", "rw")),
    "matmul": Symbol(golden.MODELS["matmul"], ("r", "r", "rw")),
}
SEED = 20261121


def text(name: str) -> str:
    """What the standard toolchain made of a golden design."""
    return (FOLDER / f"{name}.mlir").read_text(encoding="utf-8")


@cache
def module(name: str) -> LoweredModule:
    return read_lowered(text(name), f"{name}.mlir")


def machine(source: str | LoweredModule, schedule: Schedule = FIXED) -> LoweredMachine:
    found = read_lowered(source, "m.mlir") if isinstance(source, str) else source
    return LoweredMachine(found, SYMBOLS, schedule)


def every_schedule(count: int, coarse: bool = False) -> Iterator[Schedule]:
    """So many, from a seed that pytest shows where one of them fails."""
    for schedule in schedules(count, SEED, coarse):
        print("schedule:", schedule)
        yield schedule


def after_line(source: str, line: str, new: str) -> str:
    """The text with more after its first line that holds ``line``."""
    lines = source.splitlines(keepends=True)
    position = next(n for n, found in enumerate(lines) if line in found)
    return "".join([*lines[: position + 1], new, *lines[position + 1 :]])


def line_of(source: str, part: str, nth: int = 0) -> int:
    """The number of the nth line that holds ``part``."""
    return [n for n, line in enumerate(source.splitlines(), 1) if part in line][nth]


# Words in from the shim to a memtile buffer and out again; nothing else.
LOOP = """\
aie.device(npu1_1col) {
  %shim = aie.tile(0, 0)
  %mem = aie.tile(0, 1)
  %buffer = aie.buffer(%mem) {address = 64 : i32, sym_name = "buffer"} : memref<16xi32>
  %empty = aie.lock(%mem, 0) {init = 1 : i32, sym_name = "empty"}
  %full = aie.lock(%mem, 1) {init = 0 : i32, sym_name = "full"}
  aie.flow(%shim, DMA : 0, %mem, DMA : 0)
  aie.flow(%mem, DMA : 0, %shim, DMA : 0)
  aie.shim_dma_allocation @in(%shim, MM2S, 0)
  aie.shim_dma_allocation @out(%shim, S2MM, 0)
  %dma = aie.memtile_dma(%mem) {
    %0 = aie.dma_start(S2MM, 0, ^in, ^next)
  ^in:
    aie.use_lock(%empty, AcquireGreaterEqual, 1)
    aie.dma_bd(%buffer : memref<16xi32>, 0, 16) {bd_id = 0 : i32, next_bd_id = 0 : i32}
    aie.use_lock(%full, Release, 1)
    aie.next_bd ^in
  ^next:
    %1 = aie.dma_start(MM2S, 0, ^out, ^end)
  ^out:
    aie.use_lock(%full, AcquireGreaterEqual, 1)
    aie.dma_bd(%buffer : memref<16xi32>, 0, 16) {bd_id = 1 : i32, next_bd_id = 1 : i32}
    aie.use_lock(%empty, Release, 1)
    aie.next_bd ^out
  ^end:
    aie.end
  }
}
"""
INTO = "^in:\n    aie.use_lock(%empty, AcquireGreaterEqual, 1)\n    aie.dma_bd(%buffer : "
OUT_OF = "^out:\n    aie.use_lock(%full, AcquireGreaterEqual, 1)\n    aie.dma_bd(%buffer : "


def through(
    booted: LoweredMachine, data: NDArray[Any], words_out: int | None = None
) -> NDArray[Any]:
    """Send an array through @in and get what comes by @out, in one launch."""
    count = data.nbytes // 4
    words_out = count if words_out is None else words_out
    int32 = np.dtype(np.int32)
    steps = (
        Transfer("out", 1, descriptor=0, token=True, **linear(0, words_out)),
        Transfer("in", 0, descriptor=1, **linear(0, count)),
        Wait("out"),
    )
    arguments = Argument("a", count, int32), Argument("b", words_out, int32)
    stream = decode(assemble(Sequence("through", arguments, steps), booted.module.overlay))
    out = unsynced(words_out * 4)
    booted.launch(stream, [synced(data), out])
    return out.words.view(data.dtype)
