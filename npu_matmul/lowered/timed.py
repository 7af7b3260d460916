"""The lowered machine with modelled times, for timelines: what it executes and in which order is
untouched.

Whatever hands something over gives its clock along (:mod:`npu_matmul.lowered.order`); here a clock
has one count more, the modelled cycle at which its actor is. Who takes a clock goes on no sooner.
So the waits of the model are just the orderings that the hardware enforces: locks, stream words,
queued tasks and tokens. Beside these a sender waits for its receivers, which tell it nothing.
Durations are those of :mod:`npu_matmul.emulator.pace`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

from npu_matmul.emulator.actors import Condition
from npu_matmul.emulator.pace import Pace
from npu_matmul.emulator.shim import DeviceMemory, Task
from npu_matmul.emulator.timed import timed_call
from npu_matmul.instructions import Stream
from npu_matmul.lowered.core import Symbol
from npu_matmul.lowered.dma import DmaChannel, StreamChannel
from npu_matmul.lowered.locks import LockState, Unit
from npu_matmul.lowered.machine import LoweredMachine
from npu_matmul.lowered.module import Descriptor, LoweredModule, Port, Span, UseLock
from npu_matmul.lowered.order import Clock, Snapshot
from npu_matmul.lowered.streams import Inlet, Outlet
from npu_matmul.overlay import Channel, Tile
from npu_matmul.target import WORD_BYTES
from npu_matmul.timeline.strands import Array, ArrayLaunch, Strand


class TimedClock(Clock):
    """The last count is the cycle that the actor's strand has come to."""

    def __init__(self, name: str, number: int, actors: int, strand: Strand, pace: Pace) -> None:
        super().__init__(name, number, actors + 1)
        self.strand = strand
        self.pace = pace

    def give(self) -> Snapshot:
        self.times[-1] = max(self.times[-1], math.ceil(self.strand.now))
        return super().give()

    def take(self, other: Snapshot) -> None:
        super().take(other)
        self.strand.wait(float(other[-1]))


class TimedLock(LockState):
    """Shows how long each acquire waited, and each release."""

    def acquire(self, use: UseLock, clock: Clock) -> list[Unit]:
        strand = cast(TimedClock, clock).strand
        began = strand.now
        units = super().acquire(use, clock)
        strand.show("acquire", began, self._details(use))
        return units

    def release(self, use: UseLock, clock: Clock, who: str, span: Span | None = None) -> None:
        super().release(use, clock, who, span)
        strand = cast(TimedClock, clock).strand
        strand.show("release", strand.now, self._details(use))

    def _details(self, use: UseLock) -> dict[str, Any]:
        standing = {"amount": use.amount, "stands at": self.value}
        return {"lock": f"{self.lock} of {self.lock.tile}", **standing, "place": use.place}


class TimedInlet(Inlet):
    """Knows who receives, and how many bytes a cycle it takes."""

    clock: TimedClock
    bytes_per_cycle: float


class TimedOutlet(Outlet):
    """Words pass when the sender and all receivers are there, as fast as the slowest of them."""

    clock: TimedClock
    bytes_per_cycle: float

    def _passing(self, count: int, straight: bool, known: Snapshot) -> Snapshot:
        strand, slowest = self.clock.strand, self.bytes_per_cycle
        for inlet in cast(list[TimedInlet], self.inlets):
            slowest = min(slowest, inlet.bytes_per_cycle)
            if straight:
                strand.wait(inlet.clock.strand.now)
        strand.now += count * WORD_BYTES / slowest
        told: Snapshot = known.copy()
        told[-1] = max(told[-1], math.ceil(strand.now))
        return told


class TimedDma(DmaChannel):
    """A span for each descriptor that runs, stalls included."""

    def _transfer(self, descriptor: Descriptor) -> Iterator[Condition]:
        strand = cast(TimedClock, self.clock).strand
        began = strand.now
        yield from super()._transfer(descriptor)
        nbytes = descriptor.words.size * WORD_BYTES
        details = {"bytes": nbytes, "buffer": str(descriptor.buffer), "place": descriptor.place}
        strand.show("transfer", began, details)


class TimedShim(StreamChannel):
    """A span for each task, stalls included; the runtime sequence's own are shown with it."""

    _began_at: float | None = None
    _moved_before = 0

    def start(self, task: Task) -> None:
        host = cast(TimedClock, self._host)
        host.strand.work("start task", host.pace.task_cycles, {"channel": str(self)})
        super().start(task)

    def take_token(self) -> None:
        strand = cast(TimedClock, self._host).strand
        began = strand.now
        super().take_token()
        strand.show("wait for token", began, {"channel": str(self)})

    def finish(self, task: Task) -> None:
        assert self._began_at is not None and task.state.memory is not None
        details = {
            "bytes": self.bytes_moved - self._moved_before,
            "runs": task.runs,
            "memory": task.state.memory.name,
        }
        cast(TimedClock, self.clock).strand.show("transfer", self._began_at, details)
        self._began_at = None
        super().finish(task)

    def _begin(self) -> None:
        super()._begin()
        if self._began_at is None:
            self._began_at = cast(TimedClock, self.clock).strand.now
            self._moved_before = self.bytes_moved


class TimedLoweredMachine(LoweredMachine):
    """A machine whose actors have strands. Of one launch after boot: it starts where boot ended."""

    inlet_type = TimedInlet
    outlet_type = TimedOutlet
    lock_type = TimedLock
    dma_type = TimedDma
    shim_type = TimedShim

    def __init__(self, module: LoweredModule, symbols: Mapping[str, Symbol], pace: Pace) -> None:
        self._array = Array()
        self._pace = pace
        self._by_name: dict[Port | Tile | None, TimedClock] = {}
        self._shim_ends: dict[Channel, TimedInlet | TimedOutlet] = {}
        super().__init__(module, symbols)

    def launch(self, stream: Stream, arguments: Sequence[DeviceMemory]) -> None:
        """Execute a stream, its transfers at the pace that its bytes give them."""
        for channel, rate in self._pace.shim_bytes(stream).items():
            if channel in self._shim_ends:
                self._shim_ends[channel].bytes_per_cycle = rate
        super().launch(stream, arguments)

    def shown(self, name: str) -> ArrayLaunch:
        """What boot and the launch did and took, as far as they came; without what dispatching a
        launch costs."""
        cycles, tracks = self._array.end()
        return ArrayLaunch(name, cycles, self._pace.clock_hz, 0.0, self._pace.switch_s, tracks)

    def _new_clock(self, actor: Port | Tile | None, number: int, actors: int) -> Clock:
        name = "runtime sequence" if actor is None else str(actor)
        strand = self._array.strand(name, _kind(actor))
        clock = self._by_name[actor] = TimedClock(name, number, actors, strand, self._pace)
        return clock

    def _end(self, port: Port) -> Inlet | Outlet:
        """An end of a stream is timed by who moves words through it."""
        end = cast(TimedInlet | TimedOutlet, super()._end(port))
        end.bytes_per_cycle = self._pace.stream_bytes
        if port.tile.kind == "shim":
            self._shim_ends[Channel(port.tile.column, port.direction, port.index)] = end
        end.clock = self._by_name[port]
        return end

    def _symbols_of(self, clock: Clock, symbols: Mapping[str, Symbol]) -> Mapping[str, Symbol]:
        strand = cast(TimedClock, clock).strand
        cycles = self._pace.call_cycles
        return {
            name: Symbol(partial(timed_call, found.model, strand, name, cycles[name]), found.access)
            for name, found in symbols.items()
        }


def _kind(actor: Port | Tile | None) -> str:
    if actor is None:
        return "sequence"
    if isinstance(actor, Tile):
        return "core"
    return f"shim {actor.direction}" if actor.tile.kind == "shim" else f"{actor.tile.kind} DMA"
