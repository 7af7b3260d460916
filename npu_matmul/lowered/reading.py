"""From an ``aie.device`` that the toolchain lowered to a :class:`LoweredModule`.

What the data cannot represent is refused here; what makes no sense is for :mod:`rules` to judge.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from xdsl.dialects import arith, func
from xdsl.dialects.builtin import IntegerAttr, MemRefType
from xdsl.ir import Block, Operation, SSAValue

from npu_matmul.lowered.module import (
    Buffer,
    CoreCode,
    Descriptor,
    Flow,
    Lock,
    LoweredModule,
    Port,
    Program,
    UseLock,
)
from npu_matmul.mlir import aie
from npu_matmul.mlir import aie_lowered as ops
from npu_matmul.mlir.constants import constant_of
from npu_matmul.mlir.elaborate import elements_of, partition_of, tile_of_op
from npu_matmul.mlir.reader import DesignError, place, read_design
from npu_matmul.overlay import Tile
from npu_matmul.target import DEFAULT_STACK_BYTES

_KINDS = {"aie.mem": "core", "aie.memtile_dma": "memtile", "aie.shim_dma": "shim"}
_HARMLESS = {  # attributes that move nothing: names for the linker, numbers for tools, speed
    "aie.core": {"link_with", "link_merge_files"},
    "aie.device": {"aiecc.pdi_id"},
    "aie.dma_bd": {"burst_length"},
    "aie.tile": {"allocation_scheme", "controller_id"},
}


def is_lowered(device: aie.DeviceOp) -> bool:
    """Whether a device holds what lowering makes, and no object FIFO any more."""
    found = {type(op) for op in device.body.block.ops}
    return aie.ObjectFifoOp not in found and bool(found & set(ops.OPERATIONS))


def read_lowered(text: str, name: str = "module.mlir") -> LoweredModule:
    """The lowered module that an MLIR text holds; raises :class:`DesignError`.

    >>> tiles = "%t = aie.tile(0, 2) %l = aie.lock(%t, 3) {init = 2 : i32}"
    >>> read_lowered(f"aie.device(npu1) {{ {tiles} }}").locks[0].initial
    2
    """
    return lowered_of(read_design(text, name), name)


def lowered_of(device: aie.DeviceOp, name: str = "module.mlir") -> LoweredModule:
    reading = _Reading(device, name)
    for op in device.body.block.ops:
        reading.add(op)
    return reading.module()


class _Reading:
    """A module under construction, operation by operation."""

    def __init__(self, device: aie.DeviceOp, name: str) -> None:
        refuse_attributes(device)
        self.name = name
        self.device = device.device.data.value
        self.target, self.columns = partition_of(self.device)
        self.tiles: dict[SSAValue, Tile] = {}
        self.buffers: dict[str, Buffer] = {}
        self.locks: list[Lock] = []
        self.programs: dict[Port, Program] = {}
        self.flows: list[Flow] = []
        self.allocations: dict[str, Port] = {}
        self.cores: list[CoreCode] = []
        self.functions: dict[str, tuple[Any, ...]] = {}
        self.values: dict[SSAValue, Buffer | Lock] = {}

    def add(self, op: Operation) -> None:
        if isinstance(op, func.FuncOp):
            self.functions[op.sym_name.data] = tuple(op.function_type.inputs)
            return
        refuse_attributes(op)
        match op:
            case aie.TileOp():
                self.tiles[op.result] = tile_of_op(op, self.target, self.columns)
            case aie.BufferOp():
                self._buffer(op)
            case ops.ExternalBufferOp():
                self._external_buffer(op)
            case ops.LockOp():
                self._lock(op)
            case ops.FlowOp():
                self.flows.append(self._flow(op))
            case ops.ShimDmaAllocationOp():
                self.allocations[op.sym_name.data] = self._allocation(op)
            case ops.DmaProgramOp():
                self._programs(op)
            case aie.CoreOp():
                self._core(op)
            case ops.PacketFlowOp():
                _control_only(op)
            case aie.RuntimeSequenceOp() | aie.EndOp():
                pass
            case _:
                raise DesignError(
                    f"{place(op)}: operation {op.name} is not supported in a lowered module"
                )

    def module(self) -> LoweredModule:
        return LoweredModule(
            name=self.name,
            device=self.device,
            target=self.target,
            columns=self.columns,
            tiles=tuple(self.tiles.values()),
            buffers=self.buffers,
            locks=tuple(self.locks),
            programs=self.programs,
            flows=tuple(self.flows),
            allocations=self.allocations,
            cores=tuple(self.cores),
            functions=self.functions,
            values=self.values,
        )

    def _buffer(self, op: aie.BufferOp) -> None:
        elements, dtype = elements_of(op.buffer.type, op)
        initial = None
        if op.initial_value is not None:
            values = op.initial_value.get_values()
            initial = np.broadcast_to(np.array(values).astype(dtype), elements)
        found = Buffer(
            name=op.sym_name.data,
            tile=self.tiles[op.tile],
            address=None if op.address is None else op.address.value.data,
            elements=elements,
            shape=_shape(op.buffer.type),
            dtype=dtype,
            place=place(op),
            initial=initial,
        )
        self.buffers[found.name] = self.values[op.buffer] = found

    def _external_buffer(self, op: ops.ExternalBufferOp) -> None:
        """Host memory has no address here: the buffers stand one behind the other."""
        elements, dtype = elements_of(op.buffer.type, op)
        name = op.sym_name.data if op.sym_name else f"external_{len(self.buffers)}"
        before = [b for b in self.buffers.values() if b.external]
        address = sum(-(-b.bytes // 32) * 32 for b in before)
        shape = _shape(op.buffer.type)
        found = Buffer(name, Tile(-1, 0), address, elements, shape, dtype, place(op), external=True)
        self.buffers[name] = self.values[op.buffer] = found

    def _lock(self, op: ops.LockOp) -> None:
        tile = self.tiles[op.tile]
        number = None if op.lockID is None else op.lockID.value.data
        name = op.sym_name.data if op.sym_name else f"lock {number} of {tile}"
        found = Lock(name, tile, number, 0 if op.init is None else op.init.value.data, place(op))
        self.locks.append(found)
        self.values[op.result] = found

    def _flow(self, op: ops.FlowOp) -> Flow:
        for bundle in (op.source_bundle.data, op.dest_bundle.data):
            if bundle != ops.Bundle.DMA:
                raise DesignError(
                    f"{place(op)}: flows of port {bundle.value} are not supported, only DMA"
                )
        source, destination = self.tiles[op.source], self.tiles[op.dest]
        return Flow(
            Port(source, "MM2S", op.source_channel.value.data),
            Port(destination, "S2MM", op.dest_channel.value.data),
            place(op),
        )

    def _allocation(self, op: ops.ShimDmaAllocationOp) -> Port:
        tile, index = self.tiles[op.tile], op.channel_index.value.data
        channels = self.target.shim.channels
        if tile.kind != "shim" or not 0 <= index < channels:
            raise DesignError(
                f"{place(op)}: @{op.sym_name.data} names channel {index} of {tile}; "
                f"it must be one of the {channels} of a shim"
            )
        return Port(tile, op.channel_dir.data.value, index)

    def _core(self, op: aie.CoreOp) -> None:
        tile = self.tiles[op.tile]
        if tile.kind != "core" or any(core.tile == tile for core in self.cores):
            why = "has a core already" if tile.kind == "core" else "cannot hold a core"
            raise DesignError(f"{place(op)}: {tile} {why}")
        stack = DEFAULT_STACK_BYTES if op.stack_size is None else op.stack_size.value.data
        self.cores.append(CoreCode(tile, op.body, stack, place(op)))

    def _programs(self, op: ops.DmaProgramOp) -> None:
        """Each block ends in the next channel's start, the last one in ``aie.end``."""
        tile = self.tiles[op.tile]
        if tile.kind != _KINDS[op.name]:
            raise DesignError(f"{place(op)}: {op.name} stands on {tile}")
        block, seen = op.body.blocks[0], set[Block]()
        while block not in seen:
            seen.add(block)
            first, start = _without_constants(block), block.last_op
            if isinstance(start, aie.EndOp):
                return
            if not isinstance(start, ops.DmaStartOp) or start is not first:
                raise DesignError(
                    f"{place(start or op)}: a block outside a chain of descriptors holds one "
                    "aie.dma_start, or aie.end"
                )
            port = Port(tile, start.channel_dir.data.value, start.channel_index.value.data)
            if port in self.programs:
                raise DesignError(f"{place(start)}: {port} is started twice")
            self.programs[port] = self._program(port, start)
            block = start.chain
        raise DesignError(f"{place(op)}: the starts of its channels lead back to an earlier one")

    def _program(self, port: Port, start: ops.DmaStartOp) -> Program:
        refuse_attributes(start)
        pad_value = 0 if start.pad_value is None else start.pad_value.value.data
        chain: dict[Block, Descriptor] = {}
        block: Block | None = start.dest
        while block is not None and block not in chain:
            if isinstance(_without_constants(block), aie.EndOp):
                block = None
                break
            chain[block] = self._descriptor(block, pad_value)
            end = block.last_op
            block = end.dest if isinstance(end, ops.NextBdOp) else None
        repeats = 0 if start.repeat_count is None else start.repeat_count.value.data
        return Program(
            port=port,
            descriptors=tuple(chain.values()),
            loop=None if block is None else list(chain).index(block),
            runs=repeats + 1,
            place=place(start),
        )

    def _descriptor(self, block: Block, pad_value: int) -> Descriptor:
        """A block of at most one acquire, one descriptor, at most one release, in this order."""
        uses: list[UseLock] = []
        found: ops.DmaBdOp | None = None
        acquire: UseLock | None = None
        for op in block.ops:
            refuse_attributes(op)
            match op:
                case ops.UseLockOp():
                    use = self.use_lock(op)
                    uses.append(use)
                    in_order = use.acquires == (found is None)
                    if not in_order or len([u for u in uses if u.acquires == use.acquires]) > 1:
                        raise DesignError(
                            f"{place(op)}: a descriptor can acquire one lock before it moves "
                            "anything, and release one afterwards"
                        )
                    acquire = use if use.acquires else acquire
                case ops.DmaBdOp() if found is None:
                    found = op
                case ops.NextBdOp() | aie.EndOp() | arith.ConstantOp():
                    pass
                case _:
                    raise DesignError(
                        f"{place(op)}: operation {op.name} is not supported in a descriptor"
                    )
        if found is None:
            where = block.first_op
            assert where is not None
            raise DesignError(f"{place(where)}: a block of a chain without an aie.dma_bd")
        release = next((use for use in uses if not use.acquires), None)
        return self._bd(found, acquire, release, pad_value)

    def _bd(
        self, op: ops.DmaBdOp, acquire: UseLock | None, release: UseLock | None, pad_value: int
    ) -> Descriptor:
        """``pad_value`` is the channel's, for a descriptor that pads."""
        buffer = self.values.get(op.buffer)
        if not isinstance(buffer, Buffer):
            raise DesignError(f"{place(op)}: a descriptor must name an aie.buffer of the device")
        pads = op.pad_dimensions or ()
        if op.pad_value is not None and op.pad_value.value.data:
            raise DesignError(  # dropped until mlir-aie's pull request 3512
                f"{place(op)}: a pad_value of a descriptor reaches no register, and zeros come "
                "instead; a channel has one for all of its descriptors: give it to aie.dma_start"
            )
        return Descriptor(
            buffer=buffer,
            offset=_number(op.offset, op.offset_value, 0, op, "where a descriptor begins"),
            length=_number(
                op.len, op.length_value, buffer.elements, op, "how long a descriptor is"
            ),
            dims=tuple((d.size.value.data, d.stride.value.data) for d in op.dimensions or ()),
            pads=tuple((pad.before.value.data, pad.after.value.data) for pad in pads),
            pad_value=pad_value if pads else 0,
            number=None if op.bd_id is None else op.bd_id.value.data,
            next_number=None if op.next_bd_id is None else op.next_bd_id.value.data,
            acquire=acquire,
            release=release,
            place=place(op),
        )

    def use_lock(self, op: ops.UseLockOp) -> UseLock:
        return use_lock(op, self.values)


def use_lock(op: ops.UseLockOp, values: dict[Any, Buffer | Lock]) -> UseLock:
    """An ``aie.use_lock``; without a value it is 1."""
    lock = values.get(op.lock)
    amount = _number(op.value, op.amount, 1, op, "how much of a lock is used")
    if not isinstance(lock, Lock):
        raise DesignError(f"{place(op)}: aie.use_lock must name an aie.lock of the device")
    if amount < 1:
        raise DesignError(f"{place(op)}: {lock} is used with {amount}; at least 1 is needed")
    action = op.action.data
    exact = action == ops.LockAction.ACQUIRE
    return UseLock(lock, action != ops.LockAction.RELEASE, amount, exact, place(op))


def refuse_attributes(op: Operation) -> None:
    unknown = sorted(set(op.attributes) - _HARMLESS.get(op.name, set()))
    if unknown:
        raise DesignError(f"{place(op)}: {op.name}: attribute {unknown[0]!r} is not supported")


def _number(
    written: IntegerAttr | None, value: SSAValue | None, default: int, op: Operation, what: str
) -> int:
    """A number that stands in the operation, or is a constant value, or is left out."""
    if value is None:
        return default if written is None else written.value.data
    found = constant_of(value)
    if found is None:
        raise DesignError(f"{place(op)}: {what} must be a constant")
    return found


def _without_constants(block: Block) -> Operation | None:
    """The first operation of a block that does something."""
    return next((op for op in block.ops if not isinstance(op, arith.ConstantOp)), None)


def _shape(kind: Any) -> tuple[int, ...]:
    assert isinstance(kind, MemRefType)
    return tuple(kind.get_shape())


def _control_only(op: ops.PacketFlowOp) -> None:
    """Packets of control ports play no part in a run; any others would."""
    for port in _ports(op):
        if isinstance(port, ops.PacketSourceOp) and port.bundle.data != ops.Bundle.TILE_CONTROL:
            raise DesignError(
                f"{place(port)}: packets of port {port.bundle.data.value} are not supported, "
                "only those of TileControl"
            )


def _ports(op: ops.PacketFlowOp) -> Iterator[ops.PacketPortOp]:
    for inner in op.ports.block.ops:
        if isinstance(inner, ops.PacketPortOp):
            yield inner
        else:
            raise DesignError(f"{place(inner)}: operation {inner.name} in a packet flow")
