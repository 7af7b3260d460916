"""From an ``aie.device`` operation to plain data: an :class:`Overlay` and a :class:`Sequence`.

Whatever these cannot represent is refused: a reader that skips what it does not know would give a
design a meaning of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
from xdsl.dialects import builtin, func
from xdsl.dialects.builtin import ArrayAttr, MemRefType
from xdsl.ir import Operation, SSAValue

from npu_matmul.mlir import aie, aiex
from npu_matmul.mlir.reader import DesignError, place, read_design
from npu_matmul.overlay import Channel, Core, Dims, Fifo, Link, Overlay, Parameter, Tile
from npu_matmul.sequence import Argument, Sequence, Step, Transfer, Wait, WriteParameter
from npu_matmul.target import CORE_DATA_MEMORY_BYTES, TARGETS, WORD_BYTES, Target

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


def overlay_of(device: aie.DeviceOp) -> Overlay:
    """The overlay that a device operation describes; raises :class:`DesignError` for what it
    refuses."""
    name = device.device.data.value
    target, columns = _partition(name, device)
    _refuse_attributes(device)
    tiles: dict[SSAValue, Tile] = {}
    fifos: dict[str, Fifo] = {}
    links: list[Link] = []
    parameters: dict[str, Parameter] = {}
    values: dict[SSAValue, str] = {}
    cores: list[Core] = []
    functions: list[str] = []
    for op in device.body.block.ops:
        if not isinstance(op, func.FuncOp):
            _refuse_attributes(op)
        match op:
            case aie.TileOp():
                tiles[op.result] = _tile(op, target, columns)
            case aie.ObjectFifoOp():
                fifos[op.sym_name.data] = _fifo(op, tiles)
            case aie.LinkOp():
                links.append(_link(op, fifos, links))
            case aie.BufferOp():
                parameters[op.sym_name.data] = _parameter(op, tiles[op.tile])
                values[op.buffer] = op.sym_name.data
            case aie.CoreOp():
                cores.append(_core(op, tiles[op.tile], cores))
            case func.FuncOp():
                functions.append(op.sym_name.data)
            case aie.RuntimeSequenceOp() | aie.EndOp():
                pass
            case _:
                raise DesignError(f"{place(op)}: operation {op.name} is not supported here")
    return Overlay(
        device=name,
        target=target,
        columns=columns,
        fifos=fifos,
        links=tuple(links),
        parameters=parameters,
        cores=tuple(cores),
        functions=tuple(functions),
        channels=_channels(fifos, target),
        values=values,
    )


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
    return Sequence(name, tuple(arguments), tuple(_steps(found[0], block.args)))


def _steps(sequence: aie.RuntimeSequenceOp, arguments: Any) -> Iterator[Step]:
    for op in sequence.body.block.ops:
        _refuse_attributes(op)
        match op:
            case aiex.RtpWriteOp():
                yield WriteParameter(
                    op.buffer.string_value(), op.index.value.data, op.value.value.data
                )
            case aiex.DmaWaitOp():
                yield Wait(op.symbol.string_value())
            case aiex.DmaMemcpyNdOp():
                if op.memref not in arguments:
                    raise DesignError(
                        f"{place(op)}: {op.name}: only arguments of the sequence can be transferred"
                    )
                offsets, sizes, strides = (
                    tuple(int(v) for v in p.get_values())
                    for p in (op.static_offsets, op.static_sizes, op.static_strides)
                )
                yield Transfer(
                    fifo=op.metadata.string_value(),
                    argument=list(arguments).index(op.memref),
                    offset=sum(o * s for o, s in zip(offsets, strides, strict=True)),
                    sizes=sizes,  # type: ignore[arg-type]
                    strides=strides,  # type: ignore[arg-type]
                    descriptor=op.id.value.data,
                    token=op.issue_token is not None and bool(op.issue_token.value.data),
                )
            case _:
                raise DesignError(
                    f"{place(op)}: operation {op.name} is not supported in a runtime sequence"
                )


def _refuse_attributes(op: Operation) -> None:
    if op.attributes:
        raise DesignError(
            f"{place(op)}: {op.name}: attribute {next(iter(op.attributes))!r} is not supported"
        )


def _partition(name: str, op: Operation) -> tuple[Target, int]:
    base, _, columns = name.partition("_")
    if base not in TARGETS:
        raise DesignError(
            f"{place(op)}: device {name!r} is not supported; known targets: {', '.join(TARGETS)}"
        )
    target = TARGETS[base]
    return target, int(columns.removesuffix("col")) if columns else target.columns


def _tile(op: aie.TileOp, target: Target, columns: int) -> Tile:
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
    return Core(tile, op.body, place(op))


def _parameter(op: aie.BufferOp, tile: Tile) -> Parameter:
    elements, dtype = elements_of(op.buffer.type, op)
    address = None if op.address is None else op.address.value.data
    start = address or 0
    fits = 0 <= start <= CORE_DATA_MEMORY_BYTES - elements * dtype.itemsize
    if tile.kind != "core" or start % WORD_BYTES or not fits:
        raise DesignError(
            f"{place(op)}: buffer @{op.sym_name.data} at {address} of {tile}: it must start at a "
            f"multiple of {WORD_BYTES} within the {CORE_DATA_MEMORY_BYTES} B of a core"
        )
    return Parameter(op.sym_name.data, tile, address, elements, dtype)


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
    fifo = Fifo(
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
    _check_fifo(fifo)
    return fifo


def _dims(dims: ArrayAttr[aie.DimAttr]) -> Dims:
    return tuple((dim.size.value.data, dim.stride.value.data) for dim in dims)


def _check_fifo(fifo: Fifo) -> None:
    where = f"{fifo.place}: object FIFO @{fifo.name}"
    if min(fifo.depths) < 1:
        raise DesignError(f"{where}: a depth must be at least 1, got {fifo.depths}")
    if fifo.element_bytes % 4:
        raise DesignError(
            f"{where}: an element of {fifo.element_bytes} B cannot be moved: DMAs move 4 B words"
        )
    if not fifo.consumers:
        raise DesignError(f"{where}: it has no consumer")
    if fifo.producer.kind == "shim" and any(tile.kind == "shim" for tile in fifo.consumers):
        raise DesignError(f"{where}: FIFOs from shim to shim are not supported")
    if fifo.producer.kind == "core" and any(tile.kind == "core" for tile in fifo.consumers):
        raise DesignError(f"{where}: FIFOs from core to core are not supported")
    if any(tile.kind == "shim" for tile in fifo.consumers) and len(fifo.consumers) > 1:
        raise DesignError(f"{where}: a FIFO to a shim has no other consumers")
    for tile, dims in [
        (fifo.producer, fifo.to_stream),
        *zip(fifo.consumers, fifo.from_stream, strict=True),
    ]:
        if not dims:
            continue
        if tile.kind == "shim":
            raise DesignError(f"{where}: layout transformations are not supported at a shim")
        if not _is_permutation(dims, fifo.elements):
            size = int(np.prod([size for size, _ in dims]))
            last = sum((size - 1) * stride for size, stride in dims)
            raise DesignError(
                f"{where}: its layout transformation moves {size} elements "
                f"up to index {last}; it must move each of the {fifo.elements} once"
            )


def _is_permutation(dims: Dims, elements: int) -> bool:
    """Whether the loops reach every index below ``elements`` exactly once.

    They do when each stride, smallest first, is the number of indices that the smaller ones cover.

    >>> _is_permutation(((2, 1), (3, 2)), 6), _is_permutation(((2, 1), (3, 1)), 6)
    (True, False)
    """
    covered = 1
    for stride, size in sorted((stride, size) for size, stride in dims if size != 1):
        if stride != covered:
            return False
        covered *= size
    return covered == elements


def _link(op: aie.LinkOp, fifos: dict[str, Fifo], others: list[Link]) -> Link:
    sources = tuple(ref.string_value() for ref in op.fifoIns)
    destinations = tuple(ref.string_value() for ref in op.fifoOuts)
    where = f"{place(op)}: link {list(sources)} -> {list(destinations)}"
    for name in (*sources, *destinations):
        if name not in fifos:
            raise DesignError(f"{where}: there is no object FIFO @{name}")
        linked = [n for link in others for n in (*link.sources, *link.destinations)]
        if [*linked, *sources, *destinations].count(name) > 1:
            raise DesignError(f"{where}: @{name} can be linked only once")
    if not sources or not destinations:
        raise DesignError(f"{where}: a link has FIFOs on both sides")
    if len(sources) > 1 and len(destinations) > 1:
        raise DesignError(f"{where}: joins and distributes at once")
    meeting = {fifos[n].consumers for n in sources} | {(fifos[n].producer,) for n in destinations}
    if len(meeting) != 1 or next(iter(meeting))[0].kind != "memtile":
        raise DesignError(f"{where}: all its FIFOs must meet in one memtile")
    joins = len(sources) > 1
    pieces = [fifos[n] for n in (sources if joins else destinations)]
    whole = fifos[destinations[0] if joins else sources[0]]
    if any(piece.dtype != whole.dtype for piece in pieces):
        raise DesignError(f"{where}: its FIFOs have different element types")
    given, other = (op.src_offsets, op.dst_offsets) if joins else (op.dst_offsets, op.src_offsets)
    if len(other):
        raise DesignError(f"{where}: only the side with the pieces has offsets")
    offsets = tuple(v.value.data for v in given) or (0,)
    if len(offsets) != len(pieces):
        raise DesignError(f"{where}: {len(offsets)} offsets for {len(pieces)} pieces")
    ends = sorted((o, o + piece.elements) for o, piece in zip(offsets, pieces, strict=True))
    covered = [0, *(end for _, end in ends)]
    if [start for start, _ in ends] != covered[:-1] or covered[-1] != whole.elements:
        raise DesignError(
            f"{where}: pieces {ends} do not cover the {whole.elements} elements of @{whole.name}"
        )
    if len(pieces) > 1 and (whole.to_stream if joins else whole.from_stream[0]):
        raise DesignError(
            f"{where}: a layout transformation of joined or distributed pieces is not supported"
        )
    return Link(sources, destinations, offsets, place(op))


def _channels(fifos: dict[str, Fifo], target: Target) -> dict[str, Channel]:
    """Shim channels, numbered per tile and direction in the order in which the FIFOs appear."""
    channels: dict[str, Channel] = {}
    used: dict[tuple[int, str], int] = {}
    for fifo in fifos.values():
        for tile, direction in ((fifo.producer, "MM2S"), (fifo.consumers[0], "S2MM")):
            if tile.kind != "shim":
                continue
            index = used.get((tile.column, direction), 0)
            if index == target.channels:
                raise DesignError(
                    f"{fifo.place}: @{fifo.name} needs another {direction} channel "
                    f"of {tile}, which has {target.channels}"
                )
            used[tile.column, direction] = index + 1
            channels[fifo.name] = Channel(tile.column, direction, index)
    return channels
