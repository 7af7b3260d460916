"""What a toolchain makes of ``matmul_16x16`` and its reference product: the golden module of the
same shape, with the kernel's names, its stack, and its sequence.

The golden one clears C by a call of its own, where the kernel's first product does, and hands its
tiles straight from shim to core.
"""

from __future__ import annotations

import re

import lowered_modules

from npu_matmul.build.plan import reference_problem
from npu_matmul.kernel import Kernel
from npu_matmul.launch import LaunchShape, launch_sequence
from npu_matmul.schedule import cover
from npu_matmul.sequence import to_mlir
from npu_matmul.streams import launch_stream
from npu_matmul.tiler import TileGrid

GOLDEN_STACK_BYTES = 1024
FIFOS = {"a": "A_L3L2_0", "b": "B_L3L2_0", "c": "C_L2L3_0"}


def lowered_build(kernel: Kernel) -> tuple[str, bytes]:
    """The lowered module and the instruction stream that a right build has."""
    shape = reference_shape(kernel)
    text = lowered_modules.text("gemm_one_core")
    text = re.sub(r".*@zero.*\n", "", text)
    symbols = kernel.symbols.first, kernel.symbols.next
    declaration = re.search(r" *func\.func private @mm.*\n", text)
    assert declaration is not None
    both = "".join(declaration.group().replace("@mm(", f"@{symbol}(") for symbol in symbols)
    text = text.replace(declaration.group(), both)
    for symbol in symbols:
        text = text.replace("func.call @mm(", f"func.call @{symbol}(", 1)
    moved = kernel.stack_bytes - GOLDEN_STACK_BYTES
    text = re.sub(r"(?<=\{address = )\d+", lambda found: str(int(found.group()) + moved), text)
    text = text.replace('"rtp"', '"rtp_0_0"')
    for short, name in FIFOS.items():
        text = text.replace(f"@{short}_shim_alloc", f"@{name}_shim_alloc")
    sequence = to_mlir(launch_sequence(kernel, shape))
    for name in FIFOS.values():
        sequence = sequence.replace(f"@{name}", f"@{name}_shim_alloc")
    own = re.search(r" *aie\.runtime_sequence.*?\n    }\n", text, re.DOTALL)
    assert own is not None
    return text.replace(own.group(), sequence), launch_stream(kernel, shape)


def reference_shape(kernel: Kernel) -> LaunchShape:
    (launch,) = cover(TileGrid(kernel, *reference_problem(kernel)))
    return launch.shape
