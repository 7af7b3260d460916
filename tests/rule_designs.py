"""Designs to judge: a small good one, one core with FIFOs of any size, and kernels' manifests."""

from __future__ import annotations

import dataclasses

from npu_matmul.design_rules import check_text
from npu_matmul.kernel import Kernel, load_kernel
from npu_matmul.violation import Violation

# Words dealt to two cores through a memtile, and what they make of them joined again.
GOOD = """\
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
    %rtp = aie.buffer(%one) {sym_name = "rtp", address = 1024 : i32} : memref<16xi32>
    CORE 1 CORE 2
    aie.runtime_sequence @run(%x: memref<4096xi32>, %y: memref<4096xi32>) {
      aiex.npu.rtp_write(@rtp, 0, 1)
      aiex.npu.dma_memcpy_nd(%y[0,0,0,0][1,1,1,128][0,0,0,1]) \
{id = 0 : i64, metadata = @out, issue_token = true} : memref<4096xi32>
      aiex.npu.dma_memcpy_nd(%x[0,0,0,0][4,1,1,32][32,0,0,1]) \
{id = 1 : i64, metadata = @in} : memref<4096xi32>
      aiex.npu.dma_wait {symbol = @out}
    }
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
GOOD = GOOD.replace("CORE 1", COPYING.format(tile="one", source="in_1", target="out_1"))
GOOD = GOOD.replace("CORE 2", COPYING.format(tile="two", source="in_2", target="out_2"))


def one_core(
    inputs: dict[str, str], outputs: dict[str, str], depths: dict[str, int], stack: int
) -> str:
    """A core that takes one element of each FIFO in turn; elements as ``64x512xbf16``."""
    fifos = [("%shim", "%core", name, kind) for name, kind in inputs.items()]
    fifos += [("%core", "%shim", name, kind) for name, kind in outputs.items()]
    declared = [
        f"aie.objectfifo @{name}({source}, {{{target}}}, {depths.get(name, 2)} : i32) "
        f": !aie.objectfifo<memref<{kind}>>"
        for source, target, name, kind in fifos
    ]
    ports = dict.fromkeys(inputs, "Consume") | dict.fromkeys(outputs, "Produce")
    acquires = [
        f"%{name} = aie.objectfifo.acquire @{name}({ports[name]}, 1) "
        f": !aie.objectfifosubview<memref<{kind}>>"
        for _, _, name, kind in fifos
    ]
    releases = [f"aie.objectfifo.release @{name}({port}, 1)" for name, port in ports.items()]
    lines = [
        "aie.device(npu1_1col) {",
        "%shim = aie.tile(0, 0)",
        "%core = aie.tile(0, 2)",
        *declared,
        "aie.core(%core) {",
        "%c0 = arith.constant 0 : index",
        "%c1 = arith.constant 1 : index",
        "scf.for %o = %c0 to %c1 step %c1 {",
        *acquires,
        *releases,
        "}",
        "aie.end",
        f"}} {{stack_size = {stack} : i32}}",
        "}",
    ]
    return "\n".join(lines)


def mel_frames(frames: int, depth: int) -> str:
    """A log-mel front end that takes batches of frames: 800 B in and 80 B out a frame."""
    sizes = {"frames": f"{800 * frames}xi8"}, {"mel": f"{80 * frames}xi8"}
    return one_core(*sizes, {"frames": depth, "mel": depth}, stack=1024)


def small_kernel(**changes: object) -> Kernel:
    """The shipped one-core kernel with some of its manifest changed."""
    return dataclasses.replace(load_kernel("matmul_16x16"), **changes)  # type: ignore[arg-type]


def found_in(text: str, scheme: str = "basic-sequential") -> list[Violation]:
    return list(check_text(text, scheme=scheme).violations)


def only(violations: list[Violation] | tuple[Violation, ...]) -> Violation:
    assert len(violations) == 1, [str(violation) for violation in violations]
    return violations[0]
