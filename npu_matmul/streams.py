"""The instruction stream of a launch: its sequence, assembled for the kernel's design, kept per
shape."""

from __future__ import annotations

from functools import lru_cache

from npu_matmul.assemble import assemble
from npu_matmul.design import design_text
from npu_matmul.instructions import Stream
from npu_matmul.kernel import Kernel
from npu_matmul.launch import LaunchShape, launch_sequence
from npu_matmul.overlay import Channel
from npu_matmul.schedule import step_cycles
from npu_matmul.target import NPU1, Target


@lru_cache(maxsize=256)
def launch_stream(kernel: Kernel, shape: LaunchShape, target: Target = NPU1) -> bytes:
    """The bytes that make an NPU of a target do one launch of this shape."""
    from npu_matmul.mlir.elaborate import overlay_of_text  # brings xDSL, which the CPU needs not

    overlay = overlay_of_text(design_text(kernel, target.name), f"{kernel.name}.mlir")
    return assemble(launch_sequence(kernel, shape, target), overlay)


def stream_cycles(kernel: Kernel, stream: Stream) -> int:
    """A pessimistic number of cycles of one launch of a stream: the core calls that its longest
    input feeds, each at ``step_cycles``."""
    moved: dict[tuple[Channel, int], int] = {}
    for task in stream.tasks():
        if task.channel.direction == "MM2S":
            key = task.channel, task.argument
            moved[key] = moved.get(key, 0) + task.moved_bytes
    tile_bytes = {0: kernel.a_tile_bytes, 1: kernel.b_tile_bytes}
    calls = [-(-nbytes // tile_bytes[argument]) for (_, argument), nbytes in moved.items()]
    return max(calls, default=0) * step_cycles(kernel)


def written_arguments(stream: Stream) -> set[int]:
    """The buffer arguments that a stream's transfers write."""
    return {task.argument for task in stream.tasks() if task.channel.direction == "S2MM"}
