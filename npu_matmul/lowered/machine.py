"""The array as the toolchain lowered it: cores, DMA channels and streams under one schedule.

``LoweredMachine(module, symbols)`` builds and boots it, ``launch`` executes a stream, with the
meaning that :class:`npu_matmul.emulator.machine.Machine` gives to both; but what runs are the
module's locks, descriptors and blocks, on its addresses, and every access to memory must be
ordered after the one that it depends on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from npu_matmul.emulator import EmulationError
from npu_matmul.emulator.actors import Actor, Deadlock, RestStateError
from npu_matmul.emulator.host import Host
from npu_matmul.emulator.machine import MachineCounters
from npu_matmul.emulator.shim import DeviceMemory
from npu_matmul.instructions import Stream, WriteWord
from npu_matmul.lowered.core import CoreProgram, Symbol, reaches
from npu_matmul.lowered.dma import DmaChannel, StreamChannel
from npu_matmul.lowered.locks import LockState
from npu_matmul.lowered.memory import TileMemory
from npu_matmul.lowered.module import Buffer, CoreCode, Lock, LoweredModule, Port, Program, Span
from npu_matmul.lowered.order import Clock
from npu_matmul.lowered.rules import refusals
from npu_matmul.lowered.schedules import FIXED, Schedule
from npu_matmul.lowered.streams import Inlet, Outlet
from npu_matmul.mlir.reader import DesignError
from npu_matmul.overlay import Channel, Tile
from npu_matmul.target import WORD_BYTES

FEW = 8
SHOWN = 12  # actors of a deadlock, or differences from the rest state, that an error names

Part = CoreProgram | DmaChannel | StreamChannel


@dataclass
class LoweredCounters(MachineCounters):
    """Also: descriptors executed by cores' and memtiles' DMAs, and lock operations."""

    transfers: int = 0
    lock_operations: int = 0


class LoweredMachine:
    """One lowered module, booted. After an error build a new one: the array's state is lost."""

    inlet_type: type[Inlet] = Inlet
    outlet_type: type[Outlet] = Outlet
    lock_type: type[LockState] = LockState
    dma_type: type[DmaChannel] = DmaChannel
    shim_type: type[StreamChannel] = StreamChannel

    def __init__(
        self,
        module: LoweredModule,
        symbols: Mapping[str, Symbol],
        schedule: Schedule = FIXED,
        external: Mapping[str, NDArray[np.generic]] | None = None,
    ) -> None:
        """``external`` has the contents of external buffers, which the host fills before it starts
        the array."""
        for violation in refusals(module):
            raise DesignError(str(violation))
        self.module = module
        self.schedule = schedule
        self.launches = 0
        self._booted = False
        self._parts: dict[Clock, Part] = {}
        ports = _shim_ports(module)
        names: list[Port | Tile] = [*module.programs, *ports]
        names += [core.tile for core in module.cores]
        whole: list[Port | Tile | None] = [None, *names]
        self._clocks = [self._new_clock(actor, n, len(whole)) for n, actor in enumerate(whole)]
        self._clock = self._clocks[0]
        clock_of = dict(zip(names, self._clocks[1:], strict=True))
        self._inlets, self._outlets = self._streams()
        self._locks = {
            lock: self.lock_type(lock, _initial_spans(lock, module)) for lock in module.locks
        }
        self._memories = self._build_memories(clock_of)
        for name, data in (external or {}).items():
            buffer = module.buffers[name]
            self._memories[buffer.tile].fill(buffer, data)
        self.channels = [self._dma(p, clock_of[p.port]) for p in module.programs.values()]
        self.shims = [self._shim(port, clock_of[port]) for port in ports]
        self.cores = [self._core(c, clock_of[c.tile], symbols) for c in module.cores]
        parts: list[Part] = [*self.channels, *self.shims, *self.cores]
        self._parts.update((part.clock, part) for part in parts)
        self._actors = self._build_actors()
        self._host = Host(
            (module.target, module.columns),
            {shim.channel: shim for shim in self.shims},
            self._write_word,
            "flow",
        )
        self._boot()

    def _core(self, core: CoreCode, clock: Clock, symbols: Mapping[str, Symbol]) -> CoreProgram:
        known, memories = self._symbols_of(clock, symbols), self._memories
        return CoreProgram(
            core, self.module, memories, self._locks, known, clock, self.schedule.pace
        )

    @property
    def counters(self) -> LoweredCounters:
        return LoweredCounters(
            launches=self.launches,
            dma_tasks=sum(shim.tasks_done for shim in self.shims),
            dma_bytes=sum(shim.bytes_moved for shim in self.shims),
            kernel_calls=sum(core.kernel_calls for core in self.cores),
            transfers=sum(channel.transfers for channel in self.channels),
            lock_operations=sum(lock.operations for lock in self._locks.values()),
        )

    def launch(self, stream: Stream, arguments: Sequence[DeviceMemory]) -> None:
        """Execute a stream on buffers; raises :class:`EmulationError` or ``StreamError``."""
        self._host.check(stream)
        host = Actor("the runtime sequence", self._host.run(stream, arguments), kind="host")
        self._settle([host, *self._actors])
        if not host.finished:
            raise Deadlock(
                f"launch {self.launches}: nothing can move:\n{self._stuck([host, *self._actors])}"
            )
        self._check_rest()
        self.launches += 1

    def unused(self) -> Iterator[str]:
        """What has moved nothing yet, and where it stands: launches so far do not speak of it."""
        for channel in self.channels:
            if not channel.transfers:
                yield f"{channel.program.place}: {channel.clock}"
        for core in self.cores:
            if all(step[0] == "acquire" for step in core.history):
                yield f"{core.core.place}: {core.name}"

    def memory(self, buffer: str) -> NDArray[np.generic]:
        """A buffer's elements as they are now, by its name."""
        found = self.module.buffers[buffer]
        return self._memories[found.tile].array(found)

    def _new_clock(self, actor: Port | Tile | None, number: int, actors: int) -> Clock:
        """The clock of a DMA channel, a core, or (None) the runtime sequence."""
        return Clock("the runtime sequence" if actor is None else str(actor), number, actors)

    def _symbols_of(self, clock: Clock, symbols: Mapping[str, Symbol]) -> Mapping[str, Symbol]:
        """What a core calls."""
        return symbols

    def _streams(self) -> tuple[dict[Port, Inlet], dict[Port, Outlet]]:
        ports = {*self.module.programs, *_shim_ports(self.module)}
        ports |= {port for f in self.module.flows for port in (f.source, f.destination)}
        inlets = {port: self.inlet_type() for port in sorted(ports) if port.direction == "S2MM"}
        outlets = {
            port: self.outlet_type(self.schedule.pace)
            for port in sorted(ports)
            if port.direction == "MM2S"
        }
        for flow in self.module.flows:
            outlets[flow.source].inlets.append(inlets[flow.destination])
        return inlets, outlets

    def _end(self, port: Port) -> Inlet | Outlet:
        return self._inlets[port] if port.direction == "S2MM" else self._outlets[port]

    def _build_memories(self, clock_of: Mapping[Port | Tile, Clock]) -> dict[Tile, TileMemory]:
        by_tile: dict[Tile, list[Buffer]] = {}
        for buffer in self.module.buffers.values():
            by_tile.setdefault(buffer.tile, []).append(buffer)
        memories = {}
        for tile, buffers in by_tile.items():
            reaching = [self._clock.number]
            for port, program in self.module.programs.items():
                if any(descriptor.buffer.tile == tile for descriptor in program.descriptors):
                    reaching.append(clock_of[port].number)
            for core in self.module.cores:
                if reaches(core.tile, tile):
                    reaching.append(clock_of[core.tile].number)
            if buffers[0].external:
                nbytes = max((b.address or 0) + b.bytes for b in buffers)
                nbytes = -(-nbytes // WORD_BYTES) * WORD_BYTES
            else:
                nbytes = self.module.target.limits(tile.kind).memory_bytes
            memories[tile] = TileMemory(
                tile, buffers, self._clocks, reaching, self._describe, nbytes
            )
        return memories

    def _dma(self, program: Program, clock: Clock) -> DmaChannel:
        spans = tuple(span for span in self.module.spans if span.program is program)
        return self.dma_type(
            program,
            spans,
            self._memories,
            self._locks,
            clock,
            self._end(program.port),
            self.schedule.pace,
        )

    def _shim(self, port: Port, clock: Clock) -> StreamChannel:
        name = next((n for n, p in self.module.allocations.items() if p == port), "unnamed")
        channel = Channel(port.tile.column, port.direction, port.index)
        end, pace = self._end(port), self.schedule.pace
        return self.shim_type(channel, name, self._clock, clock, end, pace)

    def _build_actors(self) -> list[Actor]:
        actors = [
            Actor(str(part.clock), part.run(), kind=f"{part.program.port.tile.kind} DMA")
            for part in self.channels
        ]
        actors += [Actor(str(part), part.run(), kind="shim DMA") for part in self.shims]
        return actors + [Actor(part.name, part.run(), kind="core") for part in self.cores]

    def _boot(self) -> None:
        self._settle(self._actors)
        for core, actor in zip(reversed(self.cores), reversed(self._actors), strict=False):
            if actor.finished:
                raise DesignError(
                    f"{core.core.place}: {core.name}: its body ends; a core must loop for ever, "
                    "each launch continues it"
                )
        self._booted = True
        self._rest_steps = [core.rest_steps() for core in self.cores]
        self._rest = dict(self._state())

    def _settle(self, actors: Sequence[Actor]) -> None:
        """Let actors move; what goes wrong is told with how far the launch had come."""
        try:
            self.schedule.settle(actors)
        except EmulationError as error:
            calls = sum(core.kernel_calls for core in self.cores)
            when = f"launch {self.launches}" if self._booted else "boot"
            raise type(error)(f"{when}, after {calls:,} kernel calls: {error}") from error

    def _write_word(self, operation: WriteWord) -> None:
        """A runtime parameter lands at its address, whatever is there."""
        memory = self._memories.get(operation.tile)
        buffer = None if memory is None else memory.buffer_at(operation.offset)
        if memory is None or buffer is None or operation.offset % WORD_BYTES:
            raise EmulationError(
                f"the stream writes {operation.tile} at {operation.offset:#x}, where no buffer is"
            )
        word = operation.offset // WORD_BYTES
        memory.write(self._clock, np.array([word]))
        memory.words[word] = np.uint32(operation.value & 0xFFFF_FFFF)

    def _describe(self, clock: Clock, buffer: Buffer | None, word: int) -> tuple[str, str]:
        """Who touches memory, where in the module and holding what; which locks guard it."""
        guards = () if buffer is None else self.module.guards(buffer, word)
        locks = f"; {' and '.join(map(str, guards))} hand it over" if guards else ""
        part = self._parts.get(clock)
        if isinstance(part, CoreProgram):
            return f"{part.name} at {part.position}", locks + part.holding()
        if isinstance(part, DmaChannel) and part.current is not None:
            taken = "no lock" if part.acquired is None else str(part.acquired.lock)
            where = f"{clock} at {part.current.place} (transfer {part.transfers:,})"
            return where, f"{locks}; {clock} has acquired {taken}"
        return str(clock), locks

    def _state(self) -> Iterator[tuple[str, object]]:
        """What must be after every launch as it was after boot, by what it is of."""
        for lock in self._locks.values():
            yield f"lock {lock.lock} of {lock.lock.tile}", f"at {lock.value}"
        for port, inlet in self._inlets.items():
            yield f"the stream into {port}", f"holding {inlet.level:,} words"
        for channel, actor in zip(self.channels, self._actors, strict=False):
            yield str(channel.clock), "ended" if actor.finished else channel.state()
        for shim in self.shims:
            yield str(shim), shim.state()
        for core, steps in zip(self.cores, self._rest_steps, strict=True):
            yield core.name, core.state(steps)

    def _check_rest(self) -> None:
        changed = [
            f"  {part} is {now}; at rest {self._rest[part]}"
            for part, now in self._state()
            if now != self._rest[part]
        ]
        if changed:
            raise RestStateError(
                f"launch {self.launches} ended, but the array is not at rest (the sequence moved "
                "too much or too little, a runtime parameter does not match it, or locks are not "
                "handed back as they were taken):\n" + _shortened(changed)
            )

    def _stuck(self, actors: Sequence[Actor]) -> str:
        """What each actor waits for; of those that wait as at rest, only the first few."""
        state = dict(self._state())
        waiting = [actor for actor in actors if not actor.finished]
        waiting.sort(key=lambda a: state.get(a.name) == self._rest.get(a.name, ""))
        moved = [a for a in waiting if state.get(a.name) != self._rest.get(a.name, "")]
        return _shortened([f"  {actor}" for actor in waiting], max(len(moved), FEW))


def _shortened(lines: list[str], most: int = SHOWN) -> str:
    shown = lines[: min(most, SHOWN)]
    more = len(lines) - len(shown)
    return "\n".join(shown + ([f"  and {more} more"] if more else []))


def _shim_ports(module: LoweredModule) -> list[Port]:
    """Shim channels that run start queues: those of flows and names that no program has."""
    ports = {port for flow in module.flows for port in (flow.source, flow.destination)}
    ports |= set(module.allocations.values())
    return sorted(p for p in ports if p.tile.kind == "shim" and p not in module.programs)


def _initial_spans(lock: Lock, module: LoweredModule) -> list[Span]:
    """The memory that comes with a lock's first units: as if each channel that gives units to it
    had run once around, in turns."""
    by_program: dict[Program, list[Span]] = {}
    for span in module.spans:
        if span.releases is not None and span.releases.lock is lock:
            by_program.setdefault(span.program, []).extend([span] * span.releases.amount)
    turns = zip_longest(*by_program.values())
    return [span for turn in turns for span in turn if span is not None]
