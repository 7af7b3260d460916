"""The array as a machine: cores, movers and shim channels as actors under one scheduler.

``Machine(overlay, models)`` builds and boots it: the cores run until each waits for its first
input, and that is the rest state. ``launch`` executes a stream; afterwards every actor must wait
for the same thing as after boot and every FIFO be as full, or the next launch would start from
something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.emulator import EmulationError
from npu_matmul.emulator.core import CoreProgram, ParameterMemory
from npu_matmul.emulator.rings import Condition, End, Ring
from npu_matmul.emulator.shim import DescriptorState, DeviceMemory, ShimChannel, Task
from npu_matmul.emulator.symbols import Model
from npu_matmul.instructions import (
    EnableTokens,
    PatchAddress,
    StartTask,
    Stream,
    WaitToken,
    WriteDescriptor,
    WriteWord,
)
from npu_matmul.lowering import depth_at
from npu_matmul.mlir import aie
from npu_matmul.mlir.reader import DesignError
from npu_matmul.overlay import Channel, Dims, Fifo, Overlay, Tile
from npu_matmul.stream_rules import check_stream


class Deadlock(EmulationError):
    """Nothing can move; the message names every actor and what it waits for."""


class RestStateError(EmulationError):
    """After a launch the array is not as it was after boot, so the next launch would go wrong."""


@dataclass(eq=False)
class Actor:
    name: str
    steps: Iterator[Condition]
    waits_for: Condition | None = None
    finished: bool = False

    def advance(self) -> bool:
        """Run until it must wait; False when it could not move at all."""
        if self.finished or (self.waits_for is not None and not self.waits_for.ready()):
            return False
        self.waits_for = next(self.steps, None)
        self.finished = self.waits_for is None
        return True

    def __str__(self) -> str:
        return f"{self.name} " + ("has ended" if self.finished else f"waits for {self.waits_for}")


@dataclass
class MachineCounters:
    """What was executed since boot."""

    launches: int = 0
    dma_tasks: int = 0
    dma_bytes: int = 0
    kernel_calls: int = 0


@dataclass
class Machine:
    """One overlay, booted. After an error build a new one: the array's state is lost."""

    overlay: Overlay
    models: Mapping[str, Model]
    launches: int = 0
    _channels: dict[Channel, ShimChannel] = field(default_factory=dict)
    _descriptors: dict[tuple[int, int], DescriptorState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rings, sides = _build_rings(self.overlay)
        self._parameters = {
            name: ParameterMemory(
                name, p.tile, p.address, np.zeros(p.elements * p.dtype.itemsize // 4, np.int32)
            )
            for name, p in self.overlay.parameters.items()
        }
        by_value = {value: self._parameters[name] for value, name in self.overlay.values.items()}
        self._actors: list[Actor] = []
        for fifo in self.overlay.fifos.values():
            self._actors.append(self._mover(fifo, sides))
        self._cores = [
            CoreProgram(core, sides.of_core(core.tile), by_value, self.models)
            for core in self.overlay.cores
        ]
        self._actors += [Actor(core.name, core.run()) for core in self._cores]
        self._settle(self._actors)
        ended = next((actor for actor in self._actors if actor.finished), None)
        if ended is not None:
            core = next(core for core in self._cores if core.name == ended.name)
            raise DesignError(
                f"{core.core.place}: {core.name}: its body ends; a core must loop for ever, "
                "each launch continues it"
            )
        self._rest = self._levels()

    @property
    def counters(self) -> MachineCounters:
        return MachineCounters(
            launches=self.launches,
            dma_tasks=sum(channel.tasks_done for channel in self._channels.values()),
            dma_bytes=sum(channel.bytes_moved for channel in self._channels.values()),
            kernel_calls=sum(core.kernel_calls for core in self._cores),
        )

    def launch(self, stream: Stream, arguments: Sequence[DeviceMemory]) -> None:
        """Execute a stream on buffers; raises :class:`EmulationError` or ``StreamError``."""
        if (stream.target, stream.columns) != (self.overlay.target, self.overlay.columns):
            raise EmulationError(
                f"the stream is for {stream.columns} columns of "
                f"{stream.target.name}, the overlay for "
                f"{self.overlay.columns} of {self.overlay.target.name}"
            )
        check_stream(stream)
        host = Actor("the runtime sequence", self._execute(stream, arguments))
        self._settle([host, *self._actors])
        if not host.finished:
            actors = "\n".join(
                f"  {actor}" for actor in (host, *self._actors) if not actor.finished
            )
            raise Deadlock(f"launch {self.launches}: nothing can move:\n{actors}")
        self._check_rest()
        self.launches += 1

    def _settle(self, actors: Sequence[Actor]) -> None:
        """Round robin until nobody can move."""
        moving = True
        while moving:
            moving = False
            for actor in actors:
                moving |= actor.advance()

    def _execute(self, stream: Stream, arguments: Sequence[DeviceMemory]) -> Iterator[Condition]:
        for operation in stream.operations:
            match operation:
                case WriteWord():
                    self._write_word(operation)
                case WriteDescriptor():
                    key = operation.column, operation.number
                    self._descriptors[key] = DescriptorState(operation.descriptor)
                case PatchAddress():
                    self._patch(operation, arguments)
                case StartTask():
                    state = self._descriptors[operation.channel.column, operation.number]
                    self._channel(operation.channel).queue.append(
                        Task(state, operation.runs, operation.token)
                    )
                case WaitToken():
                    channel = self._channel(operation.channel)
                    while not channel.tokens:
                        yield channel.token_sent
                    channel.take_token()
                case EnableTokens():
                    pass  # check_stream holds that a task asking for a token comes after this

    def _write_word(self, operation: WriteWord) -> None:
        for memory in self._parameters.values():
            if memory.tile == operation.tile and memory.address is not None:
                word, rest = divmod(operation.offset - memory.address, 4)
                if rest == 0 and 0 <= word < memory.words.size:
                    memory.words[word] = np.uint32(operation.value).view(np.int32)
                    memory.written[word] = True
                    return
        raise EmulationError(
            f"the stream writes {operation.tile} at {operation.offset:#x}, where no buffer is"
        )

    def _patch(self, operation: PatchAddress, arguments: Sequence[DeviceMemory]) -> None:
        if operation.argument >= len(arguments):
            raise EmulationError(
                f"the stream uses buffer {operation.argument}; the launch has {len(arguments)}"
            )
        state = self._descriptors[operation.column, operation.number]
        state.memory = arguments[operation.argument]
        state.offset_words = operation.offset_bytes // 4

    def _channel(self, channel: Channel) -> ShimChannel:
        if channel not in self._channels:
            raise EmulationError(
                f"the stream uses {channel}, which no object FIFO of the design is connected to"
            )
        return self._channels[channel]

    def _mover(self, fifo: Fifo, sides: _Sides) -> Actor:
        """The actor that moves a FIFO's elements: a shim channel, or DMAs between memories."""
        channel = self.overlay.channels.get(fifo.name)
        if channel is None:
            name = f"the DMA of @{fifo.name} from {fifo.producer}"
            return Actor(name, _move(sides.leaving[fifo.name], sides.arriving[fifo.name], fifo))
        if channel.direction == "S2MM":
            ends = [sides.leaving[fifo.name]]
        else:
            ends = sides.arriving[fifo.name]
        if any(fifo.from_stream) or fifo.to_stream:
            raise DesignError(
                f"{fifo.place}: @{fifo.name}: layout transformations "
                "beside a shim are not supported"
            )
        self._channels[channel] = ShimChannel(channel, fifo.name, ends)
        return Actor(str(self._channels[channel]), self._channels[channel].run())

    def _levels(self) -> list[tuple[Any, Any]]:
        """Each part of the array with its state: equal lists mean the same rest state."""
        levels: list[tuple[Any, Any]] = [(actor, actor.waits_for) for actor in self._actors]
        levels += [(core, core.position()) for core in self._cores]
        levels += [(ring, ring.level()) for ring in self._rings]
        levels += [(channel, channel.level()) for channel in self._channels.values()]
        return levels

    def _check_rest(self) -> None:
        now = self._levels()
        if now == self._rest:
            return
        changed = [
            (part, was, now_is)
            for (part, was), (_, now_is) in zip(self._rest, now, strict=True)
            if was != now_is
        ]
        lines = [_difference(part, was, now_is) for part, was, now_is in changed]
        raise RestStateError(
            f"launch {self.launches} ended, but the array is not at rest (the "
            "sequence moved too much or too little, or "
            "a runtime parameter does not match it):\n" + "\n".join(f"  {line}" for line in lines)
        )


def _difference(part: Any, was: Any, now: Any) -> str:
    if isinstance(part, Actor):
        return f"{part.name} waits for {now}; at rest it waits for {was}"
    if isinstance(part, CoreProgram):
        return f"{part.name} is elsewhere in its loops than at rest: {now} against {was}"
    if isinstance(part, ShimChannel):
        return (
            f"{part}: {now[0]} tasks, {now[1]} tokens, {now[2]} B of an element begun; at rest none"
        )
    return f"{part} is filled differently than at rest: {now} against {was}"


@dataclass
class _Sides:
    """Who takes from and gives to which ring: per FIFO for the movers, per tile and port for
    cores."""

    leaving: dict[str, End] = field(default_factory=dict)
    arriving: dict[str, list[End]] = field(default_factory=dict)
    cores: dict[tuple[Tile, str, aie.Port], End] = field(default_factory=dict)

    def of_core(self, tile: Tile) -> dict[tuple[str, aie.Port], End]:
        return {
            (name, port): end for (where, name, port), end in self.cores.items() if where == tile
        }


def _build_rings(overlay: Overlay) -> tuple[list[Ring], _Sides]:
    sides = _Sides(arriving={name: [] for name in overlay.fifos})
    rings = [_memtile_ring(link, overlay, sides) for link in overlay.links]
    for fifo in overlay.fifos.values():
        rings += _core_rings(fifo, overlay, sides)
    return rings, sides


def _memtile_ring(link: Any, overlay: Overlay, sides: _Sides) -> Ring:
    """Linked FIFOs share one ring: a join's has the pieces' writers, a distribute's their
    readers."""
    joins = len(link.sources) > 1
    whole = overlay.fifos[link.destinations[0] if joins else link.sources[0]]
    tile = whole.producer if joins else whole.consumers[0]
    ring = Ring(whole.name, str(tile), whole.depths[0 if joins else 1], whole.elements, whole.dtype)
    for position, name in enumerate(link.sources):
        offset = link.offsets[position] if joins else 0
        sides.arriving[name].append(ring.writer(offset, overlay.fifos[name].elements))
    for position, name in enumerate(link.destinations):
        offset = 0 if joins else link.offsets[position]
        sides.leaving[name] = ring.reader(offset, overlay.fifos[name].elements)
    return ring


def _core_rings(fifo: Fifo, overlay: Overlay, sides: _Sides) -> Iterator[Ring]:
    if fifo.producer.kind == "core":
        ring = Ring(
            fifo.name, str(fifo.producer), depth_at(overlay, fifo, 0), fifo.elements, fifo.dtype
        )
        sides.cores[fifo.producer, fifo.name, aie.Port.PRODUCE] = ring.writer()
        sides.leaving[fifo.name] = ring.reader()
        yield ring
    for position, tile in enumerate(fifo.consumers):
        if tile.kind == "core":
            depth = depth_at(overlay, fifo, position + 1)
            ring = Ring(fifo.name, str(tile), depth, fifo.elements, fifo.dtype)
            sides.arriving[fifo.name].append(ring.writer())
            sides.cores[tile, fifo.name, aie.Port.CONSUME] = ring.reader()
            yield ring


def _move(source: End, sinks: list[End], fifo: Fifo) -> Iterator[Condition]:
    """Move elements for ever from one memory to others, all of which must have room (broadcast)."""
    gather = _order(fifo.to_stream)
    scatter = [_order(dims) for dims in fifo.from_stream]
    while True:
        while not source.can_take(1):
            yield source.until(1)
        for sink in sinks:
            while not sink.can_take(1):
                yield sink.until(1)
        data = source.array(source.take())
        if gather is not None:
            data = data[gather]
        for sink, order in zip(sinks, scatter, strict=True):
            target = sink.array(sink.take())
            if order is None:
                target[:] = data
            else:
                target[order] = data
            sink.give()
        source.give()


def _order(dims: Dims) -> NDArray[np.int64] | None:
    """Element indices in the order of a layout transformation, outermost loop first; None when
    there is none.

    >>> _order(((2, 1), (3, 2))).tolist()
    [0, 2, 4, 1, 3, 5]
    """
    if not dims:
        return None
    order = np.zeros(1, np.int64)
    for size, stride in dims:
        order = (order[:, None] + np.arange(size) * stride).reshape(-1)
    return order
