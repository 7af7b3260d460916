"""The instruction stream of a launch: its sequence, assembled for the kernel's design, kept per
shape."""

from __future__ import annotations

from functools import lru_cache

from npu_matmul.design import design_text
from npu_matmul.instructions import assemble
from npu_matmul.kernel import Kernel
from npu_matmul.schedule import LaunchShape, launch_sequence


@lru_cache(maxsize=256)
def launch_stream(kernel: Kernel, shape: LaunchShape) -> bytes:
    """The bytes that make the NPU do one launch of this shape."""
    from npu_matmul.mlir.elaborate import overlay_of_text  # brings xDSL, which the CPU needs not

    overlay = overlay_of_text(design_text(kernel), f"{kernel.name}.mlir")
    return assemble(launch_sequence(kernel, shape), overlay)
