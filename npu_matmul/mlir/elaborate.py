"""From an ``aie.device`` operation to plain data: an :class:`Overlay` and a :class:`Sequence`.

Whatever these cannot represent is refused: a reader that skips what it does not know would give a
design a meaning of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
from xdsl.dialects import arith, builtin, func
from xdsl.dialects.builtin import ArrayAttr, MemRefType, StringAttr
from xdsl.ir import Operation, SSAValue

from npu_matmul.mlir import aie, aie_lowered, aiex
from npu_matmul.mlir.directives import DimAttr
from npu_matmul.mlir.reader import DesignError, place, read_design
from npu_matmul.overlay import (
    Channel,
    Core,
    Dims,
    Fifo,
    Link,
    Overlay,
    Parameter,
    Tile,
    dma_channels,
)
from npu_matmul.sequence import Argument, Sequence, Step, Transfer, Wait, WriteParameter
from npu_matmul.target import DEFAULT_STACK_BYTES, TARGETS, Target
from npu_matmul.violation import Violation
from npu_matmul.wiring_rules import (
    channel_violation,
    fifo_violations,
    link_violations,
    parameter_violations,
    unlinked_violations,
)

DTYPES: dict[Any, np.dtype[Any]] = {
    builtin.i8: np.dtype(np.int8),
    builtin.i16: np.dtype(np.int16),
    builtin.i32: np.dtype(np.int32),
    builtin.bf16: np.dtype(ml_dtypes.bfloat16),
    builtin.f32: np.dtype(np.float32),
}


@lru_cache(maxsize=32)
def overlay_of_text(text: str, name: str = "design.mlir") -> Overlay:
    """The overlay that an MLIR text describes, read once per text."""
    return overlay_of(read_design(text, name))


def overlay_of(device: aie.DeviceOp, refused: list[Violation] | None = None) -> Overlay:
    """The overlay that a device operation describes; raises :class:`DesignError` for what it
    refuses.

    With a list ``refused``, wiring that breaks a rule is put there instead, and a link that does
    is left out.
    """
    _refuse_attributes(device)
    reading = _Reading(device, refused)
    lowered = (aie_lowered.LockOp, aie_lowered.FlowOp, aie_lowered.DmaProgramOp)
    for op in device.body.block.ops:
        if isinstance(op, lowered):
            raise DesignError(
                f"{place(op)}: {op.name} is of a lowered module, not of a design with object "
                "FIFOs: npu-matmul verify runs it"
            )
    for op in device.body.block.ops:
        if not isinstance(op, func.FuncOp):
            _refuse_attributes(op)
        reading.add(op)
    return reading.overlay()


class _Reading:
    """An overlay under construction, operation by operation."""

    def __init__(self, device: aie.DeviceOp, refused: list[Violation] | None) -> None:
        self.device = device.device.data.value
        self.target, self.columns = partition_of(self.device)
        self.refused = refused
        self.tiles: dict[SSAValue, Tile] = {}
        self.fifos: dict[str, Fifo] = {}
        self.links: list[Link] = []
        self.links_left_out = False
        self.parameters: dict[str, Parameter] = {}
        self.values: dict[SSAValue, str] = {}
        self.cores: list[Core] = []
        self.functions: dict[str, str | None] = {}

    def add(self, op: Operation) -> None:
        match op:
            case aie.TileOp():
                tile = tile_of_op(op, self.target, self.columns)
                if tile in self.tiles.values():
                    raise DesignError(f"{place(op)}: {tile} is declared already; use its name")
                self.tiles[op.result] = tile
            case aie.ObjectFifoOp():
                fifo = self.fifos[op.sym_name.data] = _fifo(op, self.tiles)
                self._refuse(fifo_violations(fifo))
            case aie.LinkOp():
                self._link(op)
            case aie.BufferOp():
                self._parameter(op)
            case aie.CoreOp():
                self.cores.append(_core(op, self.tiles[op.tile], self.cores))
            case func.FuncOp():
                link = op.attributes.get("link_with")
                name = link.data if isinstance(link, StringAttr) else None
                self.functions[op.sym_name.data] = name
            case aie.RuntimeSequenceOp() | aie.EndOp():
                pass
            case _:
                raise DesignError(f"{place(op)}: operation {op.name} is not supported here")

    def overlay(self) -> Overlay:
        if not self.links_left_out:
            self._refuse(unlinked_violations(self.fifos.values(), self.links))
        channels: dict[str, Channel] = {}
        for channel in dma_channels(self.fifos.values()):
            if channel.tile.kind == "shim":
                self._refuse(channel_violation(channel, self.target))
                found = Channel(channel.tile.column, channel.direction, channel.index)
                channels[channel.fifo.name] = found
        return Overlay(
            device=self.device,
            target=self.target,
            columns=self.columns,
            fifos=self.fifos,
            links=tuple(self.links),
            parameters=self.parameters,
            cores=tuple(self.cores),
            functions=self.functions,
            channels=channels,
            values=self.values,
        )

    def _refuse(self, violations: Iterable[Violation]) -> bool:
        """Raise the first, or collect all; whether there were any."""
        found = list(violations)
        if found and self.refused is None:
            raise DesignError(str(found[0]))
        if self.refused is not None:
            self.refused += found
        return bool(found)

    def _link(self, op: aie.LinkOp) -> None:
        link, given_offsets = _link(op)
        linked = [n for link in self.links for n in (*link.sources, *link.destinations)]
        if self._refuse(link_violations(link, given_offsets, self.fifos, linked)):
            self.links_left_out = True
        else:
            self.links.append(link)

    def _parameter(self, op: aie.BufferOp) -> None:
        elements, dtype = elements_of(op.buffer.type, op)
        address = None if op.address is None else op.address.value.data
        name, tile = op.sym_name.data, self.tiles[op.tile]
        self.parameters[name] = Parameter(name, tile, address, elements, dtype)
        self.values[op.buffer] = name
        if op.initial_value is not None:
            raise DesignError(f"{place(op)}: @{name}: initial values are not supported here")
        self._refuse(parameter_violations(self.parameters[name], self.target, place(op)))


def sequence_of(device: aie.DeviceOp) -> Sequence:
    """The one runtime sequence of a design as plain data."""
    found = [op for op in device.body.block.ops if isinstance(op, aie.RuntimeSequenceOp)]
    if len(found) != 1:
        raise DesignError(
            f"{place(found[1] if found else device)}: the design holds {len(found)} runtime "
            "sequences; exactly one is needed"
        )
    block = found[0].body.block
    arguments = []
    for position, value in enumerate(block.args):
        elements, dtype = elements_of(value.type, found[0])
        arguments.append(Argument(value.name_hint or f"arg{position}", elements, dtype))
    name = found[0].sym_name.data if found[0].sym_name else "sequence"
    steps = list(_steps(found[0], block.args))
    return Sequence(
        name,
        tuple(arguments),
        tuple(step for step, _ in steps),
        tuple(where for _, where in steps),
    )


def _steps(sequence: aie.RuntimeSequenceOp, arguments: Any) -> Iterator[tuple[Step, str]]:
    """What a sequence does, step by step, and where each stands."""
    for op in sequence.body.block.ops:
        _refuse_attributes(op)
        match op:
            case aiex.RtpWriteOp():
                buffer, index = op.buffer.string_value(), op.index.value.data
                yield WriteParameter(buffer, index, op.written()), place(op)
            case arith.ConstantOp():
                pass
            case aiex.DmaWaitOp():
                yield Wait(op.symbol.string_value()), place(op)
            case aiex.DmaMemcpyNdOp():
                if op.memref not in arguments:
                    raise DesignError(
                        f"{place(op)}: {op.name}: only arguments of the sequence can be transferred"
                    )
                offsets, sizes, strides = op.pattern()
                transfer = Transfer(
                    fifo=op.metadata.string_value(),
                    argument=list(arguments).index(op.memref),
                    offset=sum(o * s for o, s in zip(offsets, strides, strict=True)),
                    sizes=sizes,  # type: ignore[arg-type]
                    strides=strides,  # type: ignore[arg-type]
                    descriptor=op.id.value.data,
                    token=op.issue_token is not None and bool(op.issue_token.value.data),
                )
                yield transfer, place(op)
            case _:
                raise DesignError(
                    f"{place(op)}: operation {op.name} is not supported in a runtime sequence"
                )


def _refuse_attributes(op: Operation) -> None:
    if op.attributes:
        raise DesignError(
            f"{place(op)}: {op.name}: attribute {next(iter(op.attributes))!r} is not supported "
            "here; leave it out"
        )


def partition_of(name: str) -> tuple[Target, int]:
    """Family and number of columns of a device name: ``npu1_1col`` is one column of npu1."""
    base, _, columns = name.partition("_")
    target = TARGETS[base]
    return target, int(columns.removesuffix("col")) if columns else target.columns


def tile_of_op(op: aie.TileOp, target: Target, columns: int) -> Tile:
    """Where an ``aie.tile`` is; it must be in the partition."""
    tile = Tile(op.col.value.data, op.row.value.data)
    if not (0 <= tile.column < columns and 0 <= tile.row < target.rows):
        raise DesignError(
            f"{place(op)}: tile ({tile.column}, {tile.row}) is outside the device: "
            f"{columns} columns, {target.rows} rows"
        )
    return tile


def _core(op: aie.CoreOp, tile: Tile, cores: list[Core]) -> Core:
    if tile.kind != "core":
        raise DesignError(f"{place(op)}: {tile} cannot hold a core")
    if any(core.tile == tile for core in cores):
        raise DesignError(f"{place(op)}: {tile} has a core already")
    acquires: dict[tuple[str, str], int] = {}
    for acquire in op.body.walk():
        if isinstance(acquire, aie.AcquireOp):
            end = acquire.objFifo_name.string_value(), acquire.port.data.value
            acquires[end] = max(acquires.get(end, 0), acquire.size.value.data)
    stack, dynamic = op.stack_size, op.dynamic_objfifo_lowering
    return Core(
        tile=tile,
        body=op.body,
        place=place(op),
        stack_bytes=DEFAULT_STACK_BYTES if stack is None else stack.value.data,
        dynamic=dynamic is not None and bool(dynamic.value.data),
        acquires=acquires,
    )


def elements_of(kind: Any, op: Operation) -> tuple[int, np.dtype[Any]]:
    """How many elements of which type a memref has; ``op`` is blamed when that is not known."""
    if (
        not isinstance(kind, MemRefType)
        or kind.element_type not in DTYPES
        or min(kind.get_shape(), default=1) < 1
    ):
        raise DesignError(f"{place(op)}: {kind} is not a memref of known size and element type")
    return int(np.prod(kind.get_shape(), dtype=np.int64)), DTYPES[kind.element_type]


def _fifo(op: aie.ObjectFifoOp, tiles: dict[SSAValue, Tile]) -> Fifo:
    elements, dtype = elements_of(op.elemType.element, op)
    consumers = tuple(tiles[value] for value in op.consumerTiles)
    forced = isinstance(op.elemNumber, ArrayAttr)
    if isinstance(op.elemNumber, ArrayAttr):
        depths = tuple(depth.value.data for depth in op.elemNumber)
    else:
        depths = (op.elemNumber.value.data,) * (1 + len(consumers))
    return Fifo(
        name=op.sym_name.data,
        producer=tiles[op.producerTile],
        consumers=consumers,
        depths=depths,
        depths_forced=forced,
        elements=elements,
        dtype=dtype,
        to_stream=_dims(op.dimensionsToStream),
        from_stream=tuple(_dims(dims) for dims in op.dimensionsFromStreamPerConsumer),
        place=place(op),
    )


def _dims(dims: ArrayAttr[DimAttr]) -> Dims:
    return tuple((dim.size.value.data, dim.stride.value.data) for dim in dims)


def _link(op: aie.LinkOp) -> tuple[Link, tuple[tuple[int, ...], tuple[int, ...]]]:
    """The link, and the offsets as they stand at its sources and destinations."""
    sources = tuple(ref.string_value() for ref in op.fifoIns)
    destinations = tuple(ref.string_value() for ref in op.fifoOuts)
    at_sources = tuple(offset.value.data for offset in op.src_offsets)
    at_destinations = tuple(offset.value.data for offset in op.dst_offsets)
    offsets = (at_sources if len(sources) > 1 else at_destinations) or (0,)
    link = Link(sources, destinations, offsets, place(op))
    return link, (at_sources, at_destinations)
