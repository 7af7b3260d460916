"""The same machine with modelled times, for timelines: what it executes and in which order is
untouched.

An element, a queued task and a token carry the time at which they were handed over; who takes one
waits until then, on the strand of its own (see :mod:`npu_matmul.timeline.strands`). The durations
are those of :mod:`npu_matmul.emulator.pace`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

from npu_matmul.emulator.actors import Actor, Condition
from npu_matmul.emulator.blocks import Model
from npu_matmul.emulator.core import CoreProgram, ParameterMemory
from npu_matmul.emulator.machine import Machine, Sides
from npu_matmul.emulator.pace import Pace
from npu_matmul.emulator.rings import End, Ring
from npu_matmul.emulator.shim import DescriptorState, DeviceMemory, FifoChannel, Task
from npu_matmul.instructions import Stream
from npu_matmul.overlay import Channel, Core, Fifo, Overlay
from npu_matmul.timeline.strands import Array, ArrayLaunch, Strand


class TimedEnd(End):
    """Remembers when it gave back each element that its ring still has."""

    strand: Strand
    cycles = 0.0  # that its owner takes to move an element on

    def __init__(self, ring: Ring, writes: bool, offset: int, elements: int) -> None:
        super().__init__(ring, writes, offset, elements)
        self.given_at = [0.0] * ring.depth

    def take(self) -> int:
        number = super().take()
        slot = number % self.ring.depth
        for other in self.ring.readers if self.writes else self.ring.writers:
            self.strand.wait(cast(TimedEnd, other).given_at[slot])
        return number

    def give(self, count: int = 1) -> None:
        if self.cycles:
            self.strand.work("element", self.cycles)
        for number in range(self.released, self.released + count):
            self.given_at[number % self.ring.depth] = self.strand.now
        super().give(count)


class TimedRing(Ring):
    end_type = TimedEnd


class TimedChannel(FifoChannel):
    """Tasks begin when the runtime sequence has queued them; a span a task, stalls included."""

    strand: Strand
    sequence: Strand
    pace: Pace
    bytes_per_cycle: float  # in the launch that runs

    def __init__(self, channel: Channel, fifo: str, ends: list[End]) -> None:
        super().__init__(channel, fifo, ends)
        self._queued_at: deque[float] = deque()
        self._tokens_at: deque[float] = deque()
        self._began_at: float | None = None
        self._moved_before = 0

    def start(self, task: Task) -> None:
        self.sequence.work("start task", self.pace.task_cycles, {"channel": str(self)})
        self._queued_at.append(self.sequence.now)
        super().start(task)

    def take_token(self) -> None:
        began = self.sequence.now
        self.sequence.wait(self._tokens_at.popleft())
        if self.sequence.now > began:
            self.sequence.show("wait for token", began, {"channel": str(self)})
        super().take_token()

    def finish(self, task: Task) -> None:
        assert self._began_at is not None and task.state.memory is not None
        nbytes = self.bytes_moved - self._moved_before
        details = {
            "bytes": nbytes,
            "runs": task.runs,
            "memory": task.state.memory.name,
            "moving cycles": round(nbytes / self.bytes_per_cycle),
        }
        self.strand.show("transfer", self._began_at, details)
        self._began_at = None
        if task.token:
            self._tokens_at.append(self.strand.now)
        super().finish(task)

    def _send(self, state: DescriptorState) -> Iterator[Condition]:
        self._begin()
        return super()._send(state)

    def _receive(self, state: DescriptorState) -> Iterator[Condition]:
        self._begin()
        return super()._receive(state)

    def _begin(self) -> None:
        """The first run of a task."""
        if self._began_at is None:
            self.strand.wait(self._queued_at.popleft())
            self._began_at, self._moved_before = self.strand.now, self.bytes_moved

    def _moved(self, count: int, element_bytes: int) -> None:
        self.strand.now += count / self.bytes_per_cycle
        super()._moved(count, element_bytes)


class TimedMachine(Machine):
    """A machine whose actors have strands."""

    ring_type = TimedRing
    channel_type = TimedChannel

    def __init__(self, overlay: Overlay, models: Mapping[str, Model], pace: Pace) -> None:
        self._array = Array()
        self._pace = pace
        self._sequence = self._array.strand("runtime sequence", "sequence")
        super().__init__(overlay, models)

    def launch(self, stream: Stream, arguments: Sequence[DeviceMemory]) -> None:
        """Execute a stream, from cycle 0 on."""
        self._array.begin()
        for ring in self._rings:
            for end in (*ring.writers, *ring.readers):
                cast(TimedEnd, end).given_at[:] = [0.0] * ring.depth
        for channel, rate in self._pace.shim_bytes(stream).items():
            if channel in self._channels:
                cast(TimedChannel, self._channels[channel]).bytes_per_cycle = rate
        super().launch(stream, arguments)

    def shown(self, name: str, queued: bool = False) -> ArrayLaunch:
        """What the last launch did and took, as far as it came. ``name`` is the overlay's;
        ``queued`` means that it was submitted together with the one before."""
        cycles, tracks = self._array.end()
        pace = self._pace
        launch_s = pace.queued_launch_s if queued else pace.launch_s
        return ArrayLaunch(name, cycles, pace.clock_hz, launch_s, pace.switch_s, tracks)

    def _core(
        self, core: Core, sides: Sides, parameters: Mapping[Any, ParameterMemory]
    ) -> CoreProgram:
        strand = self._array.strand(str(core.tile), "core")
        ends = sides.of_core(core.tile)
        _put_on(strand, ends.values())
        models = {
            symbol: partial(timed_call, model, strand, symbol, self._pace.call_cycles[symbol])
            for symbol, model in self.models.items()
        }
        return CoreProgram(core, ends, parameters, models)

    def _mover(self, fifo: Fifo, sides: Sides) -> Actor:
        actor = super()._mover(fifo, sides)
        channel = self.overlay.channels.get(fifo.name)
        if channel is None:
            strand = self._array.strand(f"{fifo.producer} DMA @{fifo.name}", actor.kind)
            source = sides.leaving[fifo.name]
            _put_on(strand, [source, *sides.arriving[fifo.name]])
            cast(TimedEnd, source).cycles = fifo.element_bytes / self._pace.stream_bytes
        else:
            strand = self._array.strand(actor.name, f"shim {channel.direction}")
            found = cast(TimedChannel, self._channels[channel])
            found.strand, found.sequence, found.pace = strand, self._sequence, self._pace
            _put_on(strand, found.ends)
        return actor


def _put_on(strand: Strand, ends: Iterable[End]) -> None:
    for end in ends:
        cast(TimedEnd, end).strand = strand


def timed_call(model: Model, strand: Strand, symbol: str, cycles: float, *arrays: Any) -> None:
    """A core's call of a C function, shown."""
    model(*arrays)
    strand.work(symbol, cycles)
