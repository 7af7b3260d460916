"""The instruction stream of a launch: its sequence, assembled for the kernel's design, kept per
shape."""

from __future__ import annotations

from functools import lru_cache

from npu_matmul.assemble import assemble
from npu_matmul.design import design_text
from npu_matmul.instructions import PatchAddress, StartTask, Stream, WriteDescriptor
from npu_matmul.kernel import Kernel
from npu_matmul.launch import LaunchShape, launch_sequence
from npu_matmul.overlay import Channel
from npu_matmul.schedule import step_cycles
from npu_matmul.target import NPU1, WORD_BYTES, Target


@lru_cache(maxsize=256)
def launch_stream(kernel: Kernel, shape: LaunchShape, target: Target = NPU1) -> bytes:
    """The bytes that make an NPU of a target do one launch of this shape."""
    from npu_matmul.mlir.elaborate import overlay_of_text  # brings xDSL, which the CPU needs not

    overlay = overlay_of_text(design_text(kernel, target.name), f"{kernel.name}.mlir")
    return assemble(launch_sequence(kernel, shape, target), overlay)


def stream_cycles(kernel: Kernel, stream: Stream) -> int:
    """A pessimistic number of cycles of one launch of a stream: the core calls that its longest
    input feeds, each at ``step_cycles``."""
    words: dict[tuple[int, int], int] = {}
    arguments: dict[tuple[int, int], int] = {}
    moved: dict[tuple[Channel, int], int] = {}
    for operation in stream.operations:
        if isinstance(operation, WriteDescriptor):
            words[operation.column, operation.number] = operation.descriptor.words
        elif isinstance(operation, PatchAddress):
            arguments[operation.column, operation.number] = operation.argument
        elif isinstance(operation, StartTask) and operation.channel.direction == "MM2S":
            place = operation.channel.column, operation.number
            key = operation.channel, arguments[place]
            moved[key] = moved.get(key, 0) + words[place] * operation.runs * WORD_BYTES
    tile_bytes = {0: kernel.a_tile_bytes, 1: kernel.b_tile_bytes}
    calls = [-(-nbytes // tile_bytes[argument]) for (_, argument), nbytes in moved.items()]
    return max(calls, default=0) * step_cycles(kernel)


def written_arguments(stream: Stream) -> set[int]:
    """The buffer arguments that a stream's transfers write."""
    arguments: dict[tuple[int, int], int] = {}
    written = set()
    for operation in stream.operations:
        if isinstance(operation, PatchAddress):
            arguments[operation.column, operation.number] = operation.argument
        elif isinstance(operation, StartTask) and operation.channel.direction == "S2MM":
            written.add(arguments[operation.channel.column, operation.number])
    return written
