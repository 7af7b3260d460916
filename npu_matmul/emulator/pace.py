"""How long what an array does is modelled to take, where only its order is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from npu_matmul.kernel import Kernel
from npu_matmul.overlay import Overlay
from npu_matmul.performance.figures import FIGURES
from npu_matmul.target import Target


@dataclass(frozen=True)
class Pace:
    """Durations in the array's cycles, or in seconds; see :mod:`npu_matmul.performance.figures`.

    ``shim_bytes`` a cycle pass one channel of a shim, by its direction; ``stream_bytes`` one of a
    memtile or a core.
    """

    call_cycles: Mapping[str, float]  # of one kernel call, by symbol
    shim_bytes: Mapping[str, float]
    stream_bytes: float
    task_cycles: float  # of the runtime sequence, to start one task
    clock_hz: float
    launch_s: float
    queued_launch_s: float  # of one that was submitted together with the one before
    switch_s: float


def modelled_pace(kernel: Kernel, overlay: Overlay) -> Pace:
    """The pace of a kernel's overlay; see :func:`pace_of`."""
    call = kernel_call_cycles(kernel, overlay.target)
    return pace_of(overlay, dict.fromkeys((kernel.symbols.first, kernel.symbols.next), call))


def kernel_call_cycles(kernel: Kernel, target: Target) -> float:
    """How long one call of a kernel's core function takes."""
    tile = kernel.tile
    return FIGURES[target.name].rates(kernel.types.a).cycles(tile.m, tile.k, tile.n)


def pace_of(overlay: Overlay, call_cycles: Mapping[str, float]) -> Pace:
    """The pace of an overlay, at its target's fastest clock.

    What the array can move in a direction is shared by all channels of the overlay in equal parts,
    which is assumed: of 8 inputs, each has 15 / 8 B a cycle; a single one the 3.9 B of a channel.
    """
    figures = FIGURES[overlay.target.name]
    channels = Counter(channel.direction for channel in overlay.channels.values())
    return Pace(
        call_cycles=call_cycles,
        shim_bytes={
            direction: min(figures.channel_bytes_per_cycle, figures.array_bytes_per_cycle / count)
            for direction, count in channels.items()
        },
        stream_bytes=figures.stream_bytes_per_cycle,
        task_cycles=figures.task_cycles,
        clock_hz=figures.clock_hz,
        launch_s=figures.launch_s,
        queued_launch_s=figures.queued_launch_s,
        switch_s=figures.overlay_switch_s,
    )
