"""A stand-in for the toolchain's lowering: from a design with object FIFOs to the lowered module.

Written from what the toolchain is known to do, and held against the modules that it made
(``test_lowering_double.py``); so designs can be run at both levels of which there is no module.
All cores keep their loops, as with ``dynamic_objfifo_lowering``.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

from xdsl.dialects import arith, func, memref, scf
from xdsl.ir import Block, SSAValue

from npu_matmul.lowering import DmaEnd, Pool, dma_ends, pools
from npu_matmul.memory_map import COUNTERS, memory_map
from npu_matmul.mlir import aie
from npu_matmul.mlir.elaborate import overlay_of, sequence_of
from npu_matmul.mlir.reader import read_design
from npu_matmul.overlay import Core, Dims, Fifo, Overlay, Tile, dma_channels
from npu_matmul.sequence import MLIR_TYPES, to_mlir


def lowered_text(design: str, scheme: str = "basic-sequential") -> str:
    """The lowered module of a design's text, its runtime sequence included."""
    device = read_design(design)
    overlay = overlay_of(device)
    overlay = replace(overlay, cores=tuple(replace(core, dynamic=True) for core in overlay.cores))
    functions = [op for op in device.body.block.ops if isinstance(op, func.FuncOp)]
    lines = [
        f"aie.device({overlay.device}) {{",
        *(f"  {_name(tile)} = aie.tile({tile.column}, {tile.row})" for tile in _tiles(overlay)),
        *_locks(overlay),
        *_buffers(overlay, scheme),
        *_flows(overlay),
        *(f"  func.func private @{op.sym_name.data}({_types(op)})" for op in functions),
        *(
            line
            for n, core in enumerate(overlay.cores)
            for line in _CoreText(overlay, core, n).lines
        ),
        *_allocations(overlay),
        *_programs(overlay),
    ]
    for op in device.body.block.ops:
        if isinstance(op, aie.ObjectFifoOp):
            flat, kind = _memref(overlay.fifos[op.sym_name.data]), str(op.elemType.element)
            lines = [line.replace(flat, kind) for line in lines]
    if any(isinstance(op, aie.RuntimeSequenceOp) for op in device.body.block.ops):
        names = "|".join(overlay.channels)
        lines.append(re.sub(rf"@({names})\b", r"@\1_shim_alloc", to_mlir(sequence_of(device))))
    return "\n".join([*lines, "}", ""])


def _tiles(overlay: Overlay) -> list[Tile]:
    ends = {end for fifo in overlay.fifos.values() for end in fifo.ends}
    return sorted(ends | {core.tile for core in overlay.cores})


def _name(tile: Tile) -> str:
    return f"%tile_{tile.column}_{tile.row}"


def _types(op: func.FuncOp) -> str:
    return ", ".join(map(str, op.function_type.inputs))


def _memref(fifo: Fifo) -> str:
    return f"memref<{fifo.elements}x{MLIR_TYPES[fifo.dtype.name]}>"


def _locks(overlay: Overlay) -> list[str]:
    numbers: Counter[Tile] = Counter()
    lines = []
    for pool in pools(overlay):
        for pair in range(pool.lock_pairs):
            for side, initial in (("prod", pool.depth), ("cons", 0)):
                name = f"{pool.name}_{side}_lock_{pair}"
                number = numbers[pool.tile]
                numbers[pool.tile] += 1
                lines.append(
                    f"  %{name} = aie.lock({_name(pool.tile)}, {number}) "
                    f'{{init = {initial} : i32, sym_name = "{name}"}}'
                )
    return lines


def _buffers(overlay: Overlay, scheme: str) -> list[str]:
    kinds = {
        f"{pool.name}_buff_{n}": _memref(pool.fifo)
        for pool in pools(overlay)
        for n in range(pool.depth)
    }
    for parameter in overlay.parameters.values():
        kinds[parameter.name] = f"memref<{parameter.elements}x{MLIR_TYPES[parameter.dtype.name]}>"
    for number, core in enumerate(overlay.cores):
        kinds[f"{COUNTERS}{number}"] = f"memref<{len(core.acquires)}xi32>"
    return [
        f"  %{found.name} = aie.buffer({_name(tile)}) "
        f'{{address = {found.start} : i32, sym_name = "{found.name}"}} : {kinds[found.name]}'
        for tile, ranges in memory_map(overlay, scheme).items()
        for found in ranges
        if found.name in kinds
    ]


def _flows(overlay: Overlay) -> list[str]:
    channels = list(dma_channels(overlay.fifos.values()))
    return [
        f"  aie.flow({_name(source.tile)}, DMA : {source.index}, "
        f"{_name(sink.tile)}, DMA : {sink.index})"
        for source in channels
        if source.end == 0
        for sink in channels
        if sink.fifo is source.fifo and sink.end
    ]


def _allocations(overlay: Overlay) -> list[str]:
    return [
        f"  aie.shim_dma_allocation @{name}_shim_alloc({_name(Tile(channel.column, 0))}, "
        f"{channel.direction}, {channel.index})"
        for name, channel in overlay.channels.items()
    ]


def _pool_of(overlay: Overlay, fifo: Fifo, end: int) -> tuple[Pool, list[tuple[int, int, int]]]:
    """The buffers at an end of a FIFO, and which pieces it moves: offset, length, lock pair."""
    tile = fifo.ends[end]
    for link in overlay.links:
        if tile.kind == "memtile" and fifo.name in (link.destinations, link.sources)[bool(end)]:
            family = {*link.sources, *link.destinations}
            pool = next(p for p in pools(overlay) if p.tile == tile and p.fifo.name in family)
            parts = link.sources if len(link.sources) > 1 else link.destinations
            pieces = [
                (offset, overlay.fifos[part].elements, pair)
                for pair, (offset, part) in enumerate(zip(link.offsets, parts, strict=True))
            ]
            whole = fifo.name not in parts
            return pool, pieces if whole else [pieces[parts.index(fifo.name)]]
    name = fifo.name
    if end:
        name += f"_{end - 1}_cons" if len(fifo.consumers) > 1 else "_cons"
    pool = next(p for p in pools(overlay) if p.tile == tile and p.name == name)
    return pool, [(0, fifo.elements, 0)]


def _programs(overlay: Overlay) -> list[str]:
    by_tile: dict[Tile, list[DmaEnd]] = {}
    for end in dma_ends(overlay):
        if end.tile.kind != "shim":
            by_tile.setdefault(end.tile, []).append(end)
    lines = []
    for tile, ends in by_tile.items():
        op = "aie.memtile_dma" if tile.kind == "memtile" else "aie.mem"
        lines.append(f"  %dma_{tile.column}_{tile.row} = {op}({_name(tile)}) {{")
        numbers: Counter[int] = Counter()
        for n, end in enumerate(ends):
            start = end.index % 2 * 24 if tile.kind == "memtile" else 0
            chain = _chain(overlay, end)
            lines.append(f"    %{n} = aie.dma_start({end.direction}, {end.index}, ^d{n}_0, ^s{n})")
            for i, descriptor in enumerate(chain):
                after = (i + 1) % len(chain)
                first = start + numbers[start]
                ids = f"bd_id = {first + i} : i32, next_bd_id = {first + after} : i32"
                acquire, bd, release = descriptor
                lines += [f"  ^d{n}_{i}:", acquire, f"{bd} {{{ids}}}", release]
                lines.append(f"    aie.next_bd ^d{n}_{after}")
            numbers[start] += len(chain)
            lines.append(f"  ^s{n}:")
        lines += ["    aie.end", "  }"]
    return lines


def _chain(overlay: Overlay, end: DmaEnd) -> list[tuple[str, str, str]]:
    sends = end.direction == "MM2S"
    ends = [n for n, tile in enumerate(end.fifo.ends) if tile == end.tile and bool(n) != sends]
    pool, pieces = _pool_of(overlay, end.fifo, ends[0])
    taken, given = ("cons", "prod") if sends else ("prod", "cons")
    return [
        (
            f"    aie.use_lock(%{pool.name}_{taken}_lock_{pair}, AcquireGreaterEqual, 1)",
            f"    aie.dma_bd(%{pool.name}_buff_{number} : {_memref(pool.fifo)}, "
            f"{offset}, {length}{_dims(end.dims)})",
            f"    aie.use_lock(%{pool.name}_{given}_lock_{pair}, Release, 1)",
        )
        for number in range(pool.depth)
        for offset, length, pair in pieces
    ]


def _dims(dims: Dims) -> str:
    entries = ", ".join(f"<size = {size}, stride = {stride}>" for size, stride in dims)
    return f", [{entries}]" if dims else ""


class _CoreText:
    """One core's program as a graph of blocks, with a counter for each end it acquires from."""

    def __init__(self, overlay: Overlay, core: Core, number: int) -> None:
        self.overlay, self.core = overlay, core
        self.counters = f"%{COUNTERS}{number} "
        self.kind = f"memref<{len(core.acquires)}xi32>"
        self.slots = list(core.acquires)
        self.names: dict[SSAValue, str] = {v: f"%{n}" for v, n in overlay.values.items()}
        self.fresh = 0
        self.lines = [f"  aie.core({_name(core.tile)}) {{", "    %zero = arith.constant 0 : i32"]
        self.lines.append("    %one = arith.constant 1 : i32")
        for slot in range(len(self.slots)):
            self._add(f"%slot{slot} = arith.constant {slot} : index")
            self._add(f"memref.store %zero, {self.counters.strip()}[%slot{slot}] : {self.kind}")
        self._body(core.body.blocks[0])
        self.lines += ["    aie.end", f"  }} {{stack_size = {core.stack_bytes} : i32}}"]

    def _add(self, line: str) -> None:
        self.lines.append(f"    {line}")

    def _new(self, prefix: str = "v") -> str:
        self.fresh += 1
        return f"{prefix}{self.fresh}"

    def _body(self, block: Block) -> None:
        for op in block.ops:
            match op:
                case arith.ConstantOp():
                    name = self.names[op.result] = f"%{self._new()}"
                    self._add(f"{name} = arith.constant {op.value.value.data} : {op.result.type}")
                case arith.IndexCastOp():
                    name = f"%{self._new()}"
                    kinds = f"{op.input.type} to {op.result.type}"
                    self._add(f"{name} = arith.index_cast {self.names[op.input]} : {kinds}")
                    self.names[op.result] = name
                case memref.LoadOp():
                    name = f"%{self._new()}"
                    index = self.names[op.indices[0]]
                    source = self.names[op.memref]
                    self._add(f"{name} = memref.load {source}[{index}] : {op.memref.type}")
                    self.names[op.res] = name
                case func.CallOp():
                    arguments = ", ".join(self.names[a] for a in op.arguments)
                    kinds = ", ".join(str(a.type) for a in op.arguments)
                    callee = op.callee.string_value()
                    self._add(f"func.call @{callee}({arguments}) : ({kinds}) -> ()")
                case aie.AcquireOp():
                    self._use(op, acquires=True)
                case aie.AccessOp():
                    self._access(op)
                case aie.ReleaseOp():
                    self._use(op, acquires=False)
                    self._advance(op)
                case scf.ForOp():
                    self._loop(op)

    def _pool(self, op: Any) -> tuple[Pool, int]:
        fifo, port = op.objFifo_name.string_value(), op.port.data.value
        found = self.overlay.fifos[fifo]
        end = 0 if port == "Produce" else 1 + found.consumers.index(self.core.tile)
        return _pool_of(self.overlay, found, end)[0], self.slots.index((fifo, port))

    def _use(self, op: Any, acquires: bool) -> None:
        produces = op.port.data.value == "Produce"
        side = "prod" if produces == acquires else "cons"
        action = "AcquireGreaterEqual" if acquires else "Release"
        amount = op.size.value.data
        self._add(f"aie.use_lock(%{self._pool(op)[0].name}_{side}_lock_0, {action}, {amount})")

    def _access(self, op: aie.AccessOp) -> None:
        pool, slot = self._pool(op.subview.owner)
        index, join, kind = f"%{self._new()}", self._new("join"), _memref(pool.fifo)
        labels = [self._new("case") for _ in range(pool.depth)]
        self._add(f"{index} = memref.load {self.counters.strip()}[%slot{slot}] : {self.kind}")
        cases = ", ".join(f"{n}: ^{label}" for n, label in enumerate(labels))
        self._add(f"cf.switch {index} : i32, [ default: ^{labels[0]}, {cases} ]")
        for number, label in enumerate(labels):
            buffer = f"%{pool.name}_buff_{(number + op.index.value.data) % pool.depth}"
            self.lines += [f"  ^{label}:", f"    cf.br ^{join}({buffer} : {kind})"]
        name = self.names[op.output] = f"%{self._new()}"
        self.lines.append(f"  ^{join}({name}: {kind}):")

    def _advance(self, op: aie.ReleaseOp) -> None:
        pool, slot = self._pool(op)
        where = f"{self.counters.strip()}[%slot{slot}] : {self.kind}"
        old, new, depth, over, less, last = (f"%{self._new()}" for _ in range(6))
        self._add(f"{depth} = arith.constant {pool.depth} : i32")
        self._add(f"{old} = memref.load {where}")
        self._add(f"{new} = arith.addi {old}, %one : i32")
        self._add(f"{over} = arith.cmpi sge, {new}, {depth} : i32")
        self._add(f"{less} = arith.subi {new}, {depth} : i32")
        self._add(f"{last} = arith.select {over}, {less}, {new} : i32")
        self._add(f"memref.store {last}, {where}")

    def _loop(self, op: scf.ForOp) -> None:
        head, body, end = self._new("head"), self._new("body"), self._new("end")
        index, more, following = (f"%{self._new()}" for _ in range(3))
        start, stop, step = (self.names[v] for v in (op.lb, op.ub, op.step))
        self._add(f"cf.br ^{head}({start} : index)")
        self.lines.append(f"  ^{head}({index}: index):")
        self._add(f"{more} = arith.cmpi slt, {index}, {stop} : index")
        self._add(f"cf.cond_br {more}, ^{body}, ^{end}")
        self.lines.append(f"  ^{body}:")
        self.names[op.body.block.args[0]] = index
        self._body(op.body.block)
        self._add(f"{following} = arith.addi {index}, {step} : index")
        self._add(f"cf.br ^{head}({following} : index)")
        self.lines.append(f"  ^{end}:")
