"""Designs to test with: the golden ones with their streams, and models of the symbols they call."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.assemble import assemble
from npu_matmul.emulator.machine import Machine
from npu_matmul.emulator.shim import DeviceMemory
from npu_matmul.emulator.symbols import Model
from npu_matmul.instructions import decode
from npu_matmul.mlir.elaborate import overlay_of, overlay_of_text, sequence_of
from npu_matmul.mlir.reader import read_design
from npu_matmul.overlay import Overlay
from npu_matmul.sequence import Argument, Sequence, Step, Transfer, Wait, WriteParameter, linear

FOLDER = Path(__file__).resolve().parent / "data" / "golden"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.mlir")))


def design(name: str) -> str:
    """The MLIR text of a golden design."""
    return (FOLDER / f"{name}.mlir").read_text(encoding="utf-8")


def stream(name: str) -> bytes:
    """What the standard toolchain made of a golden design's runtime sequence."""
    return (FOLDER / f"{name}.insts.bin").read_bytes()


def changed(text: str, *changes: tuple[str, str]) -> str:
    """The text with each first ``old`` replaced by its ``new``; every ``old`` must be there."""
    for old, new in changes:
        assert old in text, f"{old!r} is not in the text"
        text = text.replace(old, new, 1)
    return text


def overlay(text: str) -> Overlay:
    return overlay_of(read_design(text))


def sequence(text: str) -> Sequence:
    return sequence_of(read_design(text))


def machine(text: str) -> Machine:
    return Machine(overlay_of_text(text), MODELS)


def launch(booted: Machine, steps: Sequence, memories: Iterable[DeviceMemory]) -> None:
    """Run a sequence on a machine, through its bytes."""
    booted.launch(decode(assemble(steps, booted.overlay)), list(memories))


def gemm_sequence(Mt: int, Kt: int, Nt: int) -> Sequence:
    """A product of so many tiles on gemm_one_core, in one launch; C comes column by column."""
    tile, a_tiles = 256, Mt * Kt
    steps: list[Step] = [
        WriteParameter("rtp", 0, Kt),
        Transfer("c", 1, descriptor=0, token=True, **linear(0, Mt * Nt * tile)),
        Transfer("a", 0, descriptor=1, **linear(0, a_tiles * tile, runs=Nt)),
    ]
    for j in range(Nt):
        first = (a_tiles + j * Kt) * tile
        steps.append(Transfer("b", 0, descriptor=2 + j, **linear(first, Kt * tile, runs=Mt)))
    sizes = (
        Argument("ab", (a_tiles + Kt * Nt) * tile, np.dtype(np.int8)),
        Argument("c", Mt * Nt * tile, np.dtype(np.int32)),
    )
    return Sequence("gemm", sizes, (*steps, Wait("c")))


def synced(array: NDArray[Any], name: str = "given") -> DeviceMemory:
    """Device memory that holds a copy of the array."""
    words = np.frombuffer(array.tobytes(), np.uint32).copy()
    return DeviceMemory(name, words, np.ones(words.size, np.bool_))


def unsynced(nbytes: int, name: str = "fresh") -> DeviceMemory:
    """Device memory that nobody has written."""
    words = np.full(nbytes // 4, 0xA5A5A5A5, np.uint32)
    return DeviceMemory(name, words, np.zeros(words.size, np.bool_))


def _zero(c: NDArray[np.int32]) -> None:
    c[:] = 0


def _copy(source: NDArray[Any], target: NDArray[Any]) -> None:
    target[:] = source


def _accumulate(m: int, k: int, n: int) -> Model:
    """C += A @ B on plain row-major tiles."""

    def model(a: NDArray[np.int8], b: NDArray[np.int8], c: NDArray[np.int32]) -> None:
        product = a.reshape(m, k).astype(np.float32) @ b.reshape(k, n).astype(np.float32)
        c += product.astype(np.int32).reshape(-1)

    return model


MODELS: dict[str, Model] = {
    "zero": _zero,
    "copy": _copy,
    "mm": _accumulate(16, 16, 16),
    "matmul": _accumulate(64, 64, 128),
}

# Words in through a memtile that deals them to two cores and joins what the cores copy.
SPLIT = """\
module {
  aie.device(npu1_1col) {
    %shim = aie.tile(0, 0)
    %mem = aie.tile(0, 1)
    %one = aie.tile(0, 2)
    %two = aie.tile(0, 3)
    func.func private @copy(memref<16xi32>, memref<16xi32>)
    aie.objectfifo @in(%shim, {%mem}, 2 : i32) : !aie.objectfifo<memref<32xi32>>
    aie.objectfifo @in_1(%mem, {%one}, 2 : i32) : !aie.objectfifo<memref<16xi32>>
    aie.objectfifo @in_2(%mem, {%two}, 2 : i32) : !aie.objectfifo<memref<16xi32>>
    aie.objectfifo.link [@in] -> [@in_1, @in_2]([] [0, 16])
    aie.objectfifo @out_1(%one, {%mem}, 2 : i32) : !aie.objectfifo<memref<16xi32>>
    aie.objectfifo @out_2(%two, {%mem}, 2 : i32) : !aie.objectfifo<memref<16xi32>>
    aie.objectfifo @out(%mem, {%shim}, 2 : i32) : !aie.objectfifo<memref<32xi32>>
    aie.objectfifo.link [@out_1, @out_2] -> [@out]([0, 16] [])
    CORE 1 CORE 2
  }
}
"""

COPYING = """
    aie.core(%{tile}) {{
      %c0 = arith.constant 0 : index
      %c1 = arith.constant 1 : index
      %max = arith.constant 9223372036854775807 : index
      scf.for %o = %c0 to %max step %c1 {{
        %s = aie.objectfifo.acquire @{source}(Consume, 1) : !aie.objectfifosubview<memref<16xi32>>
        %a = aie.objectfifo.subview.access %s[0] : !aie.objectfifosubview<memref<16xi32>> \
-> memref<16xi32>
        %t = aie.objectfifo.acquire @{target}(Produce, 1) : !aie.objectfifosubview<memref<16xi32>>
        %b = aie.objectfifo.subview.access %t[0] : !aie.objectfifosubview<memref<16xi32>> \
-> memref<16xi32>
        func.call @copy(%a, %b) : (memref<16xi32>, memref<16xi32>) -> ()
        aie.objectfifo.release @{source}(Consume, 1)
        aie.objectfifo.release @{target}(Produce, 1)
      }}
      aie.end
    }}
"""
SPLIT = changed(
    SPLIT,
    ("CORE 1", COPYING.format(tile="one", source="in_1", target="out_1")),
    ("CORE 2", COPYING.format(tile="two", source="in_2", target="out_2")),
)
