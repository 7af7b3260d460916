"""How long what an array does is modelled to take, where only its order is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from npu_matmul.instructions import Stream
from npu_matmul.kernel import Kernel
from npu_matmul.overlay import Channel, Overlay
from npu_matmul.performance.figures import FIGURES
from npu_matmul.target import Target


@dataclass(frozen=True)
class Pace:
    """Durations in the array's cycles, or in seconds; see :mod:`npu_matmul.performance.figures`.

    At most ``channel_bytes`` a cycle pass one channel of a shim and ``array_bytes`` all of one
    direction; ``stream_bytes`` one of a memtile or a core.
    """

    call_cycles: Mapping[str, float]  # of one kernel call, by symbol
    channel_bytes: float
    array_bytes: float
    stream_bytes: float
    task_cycles: float  # of the runtime sequence, to start one task
    clock_hz: float
    launch_s: float
    queued_launch_s: float  # of one that was submitted together with the one before
    switch_s: float

    def shim_bytes(self, stream: Stream) -> dict[Channel, float]:
        """Bytes a cycle that pass each channel of a shim in a launch.

        Channels of a direction share what the array can move in it by what the launch moves
        through each, so that all of them need the same time: that is assumed, as in
        :mod:`npu_matmul.performance.array`.
        """
        moved, total = stream.channel_bytes(), Counter[str]()
        for channel, nbytes in moved.items():
            total[channel.direction] += nbytes
        return {
            channel: min(self.channel_bytes, self.array_bytes * nbytes / total[channel.direction])
            for channel, nbytes in moved.items()
            if nbytes
        }


def modelled_pace(kernel: Kernel, overlay: Overlay) -> Pace:
    """The pace of a kernel's overlay; see :func:`pace_of`."""
    call = kernel_call_cycles(kernel, overlay.target)
    return pace_of(overlay, dict.fromkeys((kernel.symbols.first, kernel.symbols.next), call))


def kernel_call_cycles(kernel: Kernel, target: Target) -> float:
    """How long one call of a kernel's core function takes."""
    tile = kernel.tile
    return FIGURES[target.name].rates(kernel.types.a).cycles(tile.m, tile.k, tile.n)


def pace_of(overlay: Overlay, call_cycles: Mapping[str, float]) -> Pace:
    """The pace of an overlay, at the clock of its target's figures."""
    figures = FIGURES[overlay.target.name]
    return Pace(
        call_cycles=call_cycles,
        channel_bytes=figures.channel_bytes_per_cycle,
        array_bytes=figures.array_bytes_per_cycle,
        stream_bytes=figures.stream_bytes_per_cycle,
        task_cycles=figures.task_cycles,
        clock_hz=figures.clock_hz,
        launch_s=figures.launch_s,
        queued_launch_s=figures.queued_launch_s,
        switch_s=figures.overlay_switch_s,
    )
