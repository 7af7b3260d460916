"""The array as a machine: cores, movers and shim channels as actors under one scheduler.

``Machine(overlay, models)`` builds and boots it: the cores run until each waits for its first
input, and that is the rest state. ``launch`` executes a stream; afterwards every actor must wait
for the same thing as after boot and every FIFO be as full, or the next launch would start from
something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from npu_matmul.emulator import EmulationError
from npu_matmul.emulator.actors import (
    Actor,
    Condition,
    Deadlock,
    RestStateError,
    Settle,
    round_robin,
)
from npu_matmul.emulator.blocks import Model
from npu_matmul.emulator.core import CoreProgram, ParameterMemory
from npu_matmul.emulator.host import Host
from npu_matmul.emulator.patterns import order
from npu_matmul.emulator.rings import End, Ring
from npu_matmul.emulator.shim import DeviceMemory, FifoChannel
from npu_matmul.instructions import Stream, WriteWord
from npu_matmul.lowering import depth_at
from npu_matmul.mlir import aie
from npu_matmul.mlir.reader import DesignError
from npu_matmul.overlay import Channel, Core, Fifo, Link, Overlay, Tile


@dataclass
class MachineCounters:
    """What was executed since boot."""

    launches: int = 0
    dma_tasks: int = 0
    dma_bytes: int = 0
    kernel_calls: int = 0


@dataclass
class Machine:
    """One overlay, booted. After an error build a new one: the array's state is lost.

    ``settle`` schedules the actors; what is computed does not depend on it.
    """

    ring_type: ClassVar[type[Ring]] = Ring
    channel_type: ClassVar[type[FifoChannel]] = FifoChannel

    overlay: Overlay
    models: Mapping[str, Model]
    launches: int = 0
    settle: Settle = round_robin
    _channels: dict[Channel, FifoChannel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rings, sides = _build_rings(self.overlay, self.ring_type)
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
        self._cores = [self._core(core, sides, by_value) for core in self.overlay.cores]
        self._actors += [Actor(core.name, core.run(), kind="core") for core in self._cores]
        partition = self.overlay.target, self.overlay.columns
        self._host = Host(partition, self._channels, self._write_word)
        self.settle(self._actors)
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
        self._host.check(stream)
        host = Actor("the runtime sequence", self._host.run(stream, arguments), kind="host")
        self.settle([host, *self._actors])
        if not host.finished:
            actors = "\n".join(
                f"  {actor}" for actor in (host, *self._actors) if not actor.finished
            )
            raise Deadlock(f"launch {self.launches}: nothing can move:\n{actors}")
        self._check_rest()
        self.launches += 1

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

    def _core(
        self, core: Core, sides: Sides, parameters: Mapping[Any, ParameterMemory]
    ) -> CoreProgram:
        return CoreProgram(core, sides.of_core(core.tile), parameters, self.models)

    def _mover(self, fifo: Fifo, sides: Sides) -> Actor:
        """The actor that moves a FIFO's elements: a shim channel, or DMAs between memories."""
        channel = self.overlay.channels.get(fifo.name)
        if channel is None:
            name = f"the DMA of @{fifo.name} from {fifo.producer}"
            moves = _move(sides.leaving[fifo.name], sides.arriving[fifo.name], fifo)
            return Actor(name, moves, kind=f"{fifo.producer.kind} DMA")
        if channel.direction == "S2MM":
            ends = [sides.leaving[fifo.name]]
        else:
            ends = sides.arriving[fifo.name]
        if any(fifo.from_stream) or fifo.to_stream:
            raise DesignError(
                f"{fifo.place}: @{fifo.name}: layout transformations "
                "beside a shim are not supported"
            )
        found = self._channels[channel] = self.channel_type(channel, fifo.name, ends)
        return Actor(str(found), found.run(), kind="shim DMA")

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
    if isinstance(part, FifoChannel):
        return (
            f"{part}: {now[0]} tasks, {now[1]} tokens, {now[2]} B of an element begun; at rest none"
        )
    return f"{part} is filled differently than at rest: {now} against {was}"


@dataclass
class Sides:
    """Who takes from and gives to which ring: per FIFO for the movers, per tile and port for
    cores."""

    leaving: dict[str, End] = field(default_factory=dict)
    arriving: dict[str, list[End]] = field(default_factory=dict)
    cores: dict[tuple[Tile, str, aie.Port], End] = field(default_factory=dict)

    def of_core(self, tile: Tile) -> dict[tuple[str, aie.Port], End]:
        return {
            (name, port): end for (where, name, port), end in self.cores.items() if where == tile
        }


def _build_rings(overlay: Overlay, ring_type: type[Ring]) -> tuple[list[Ring], Sides]:
    sides = Sides(arriving={name: [] for name in overlay.fifos})
    rings = [_memtile_ring(link, overlay, sides, ring_type) for link in overlay.links]
    for fifo in overlay.fifos.values():
        rings += _core_rings(fifo, overlay, sides, ring_type)
    return rings, sides


def _memtile_ring(link: Link, overlay: Overlay, sides: Sides, ring_type: type[Ring]) -> Ring:
    """Linked FIFOs share one ring: a join's has the pieces' writers, a distribute's their
    readers."""
    joins = len(link.sources) > 1
    whole = overlay.fifos[link.destinations[0] if joins else link.sources[0]]
    tile = whole.producer if joins else whole.consumers[0]
    depth = whole.depths[0 if joins else 1]
    ring = ring_type(whole.name, str(tile), depth, whole.elements, whole.dtype)
    for position, name in enumerate(link.sources):
        offset = link.offsets[position] if joins else 0
        sides.arriving[name].append(ring.writer(offset, overlay.fifos[name].elements))
    for position, name in enumerate(link.destinations):
        offset = 0 if joins else link.offsets[position]
        sides.leaving[name] = ring.reader(offset, overlay.fifos[name].elements)
    return ring


def _core_rings(
    fifo: Fifo, overlay: Overlay, sides: Sides, ring_type: type[Ring]
) -> Iterator[Ring]:
    if fifo.producer.kind == "core":
        ring = ring_type(
            fifo.name, str(fifo.producer), depth_at(overlay, fifo, 0), fifo.elements, fifo.dtype
        )
        sides.cores[fifo.producer, fifo.name, aie.Port.PRODUCE] = ring.writer()
        sides.leaving[fifo.name] = ring.reader()
        yield ring
    for position, tile in enumerate(fifo.consumers):
        if tile.kind == "core":
            depth = depth_at(overlay, fifo, position + 1)
            ring = ring_type(fifo.name, str(tile), depth, fifo.elements, fifo.dtype)
            sides.arriving[fifo.name].append(ring.writer())
            sides.cores[tile, fifo.name, aie.Port.CONSUME] = ring.reader()
            yield ring


def _move(source: End, sinks: list[End], fifo: Fifo) -> Iterator[Condition]:
    """Move elements for ever from one memory to others, all of which must have room (broadcast)."""
    gather = order(fifo.to_stream)
    scatter = [order(dims) for dims in fifo.from_stream]
    while True:
        while not source.can_take(1):
            yield source.until(1)
        for sink in sinks:
            while not sink.can_take(1):
                yield sink.until(1)
        data = source.array(source.take())
        if gather is not None:
            data = data[gather]
        for sink, places in zip(sinks, scatter, strict=True):
            target = sink.array(sink.take())
            if places is None:
                target[:] = data
            else:
                target[places] = data
        for end in (source, *sinks):
            end.give()
