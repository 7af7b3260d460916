"""The generated design: it reads back as the wiring that the manifest asks for, and it fits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from npu_matmul.assemble import assemble
from npu_matmul.design import design_text
from npu_matmul.kernel import (
    CoreGrid,
    Kernel,
    TileShape,
    kernel_folders,
    load_kernel,
    load_variants,
)
from npu_matmul.launch import LaunchShape, launch_sequence
from npu_matmul.mlir.elaborate import overlay_of, overlay_of_text, sequence_of
from npu_matmul.mlir.reader import read_design
from npu_matmul.overlay import Channel, Overlay, Tile
from npu_matmul.schedule import cover
from npu_matmul.streams import launch_stream
from npu_matmul.target import CORE_DATA_MEMORY_BYTES, NPU1
from npu_matmul.tiler import TileGrid

VECTOR_BYTES = 32  # what the core loads at once, and what its address must be a multiple of
MEMTILE_BYTES = 512 * 1024
SHIPPED = {
    f"{name}-{variant}": kernel
    for name in kernel_folders()
    for variant, kernel in load_variants(name).items()
}


def on_cores(rows: int, columns: int) -> Kernel:
    base = load_kernel("matmul_16x16")
    return dataclasses.replace(base, tile=TileShape(4, 8, 16), grid=CoreGrid(rows, columns))


KERNELS = SHIPPED | {f"{r}x{c} cores": on_cores(r, c) for r, c in [(1, 2), (2, 2), (2, 4), (4, 4)]}
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
every_shipped_kernel = pytest.mark.parametrize("kernel", SHIPPED.values(), ids=SHIPPED)


def wiring(kernel: Kernel) -> Overlay:
    return overlay_of_text(design_text(kernel))


@every_kernel
def test_the_design_is_for_as_many_columns_as_the_grid_has(kernel: Kernel) -> None:
    overlay = wiring(kernel)
    columns = kernel.grid.columns
    assert overlay.device == ("npu1" if columns == 4 else f"npu1_{columns}col")
    assert (overlay.target, overlay.columns) == (NPU1, columns)


@every_kernel
def test_each_core_row_gets_its_a_and_each_core_column_its_b(kernel: Kernel) -> None:
    fifos, grid = wiring(kernel).fifos, kernel.grid
    operands = [
        ("A", grid.rows, kernel.a_tile_bytes, kernel.a_dtype, kernel.depths.a),
        ("B", grid.columns, kernel.b_tile_bytes, kernel.b_dtype, kernel.depths.b),
    ]
    for operand, lanes, nbytes, dtype, depth in operands:
        for lane in range(lanes):
            cores = (
                [Tile(column, 2 + lane) for column in range(grid.columns)]
                if operand == "A"
                else [Tile(lane, 2 + row) for row in range(grid.rows)]
            )
            outer, inner = fifos[f"{operand}_L3L2_{lane}"], fifos[f"{operand}_L2L1_{lane}"]
            assert (outer.producer, outer.consumers) == (Tile(lane, 0), (Tile(lane, 1),))
            assert (inner.producer, inner.consumers) == (Tile(lane, 1), tuple(cores))
            assert inner.depths == (2, *[depth] * len(cores))
            for fifo in (outer, inner):
                assert (fifo.element_bytes, fifo.dtype) == (nbytes, dtype)
                assert fifo.depths_forced
                assert not fifo.to_stream
                assert not any(fifo.from_stream)


@every_kernel
def test_each_core_column_joins_its_c_from_top_to_bottom(kernel: Kernel) -> None:
    overlay, grid = wiring(kernel), kernel.grid
    elements = kernel.tile.m * kernel.tile.n
    joins = {link.destinations[0]: link for link in overlay.links}
    for column in range(grid.columns):
        whole = overlay.fifos[f"C_L2L3_{column}"]
        assert (whole.producer, whole.consumers) == (Tile(column, 1), (Tile(column, 0),))
        assert (whole.elements, whole.dtype) == (grid.rows * elements, kernel.c_dtype)
        link = joins[whole.name]
        assert link.sources == tuple(f"C_L1L2_{column}_{row}" for row in range(grid.rows))
        assert link.offsets == tuple(row * elements for row in range(grid.rows))
        for row, name in enumerate(link.sources):
            piece = overlay.fifos[name]
            assert (piece.producer, piece.consumers) == (Tile(column, 2 + row), (Tile(column, 1),))
            assert (piece.elements, piece.dtype) == (elements, kernel.c_dtype)
            assert piece.depths == (kernel.depths.c, 2)


@every_kernel
def test_nothing_is_wired_twice_or_besides(kernel: Kernel) -> None:
    overlay, grid = wiring(kernel), kernel.grid
    cores = [Tile(c, 2 + r) for c in range(grid.columns) for r in range(grid.rows)]
    assert len(overlay.fifos) == 2 * grid.rows + 2 * grid.columns + (grid.rows + 1) * grid.columns
    assert len(overlay.links) == grid.rows + 2 * grid.columns
    assert sorted(core.tile for core in overlay.cores) == cores
    linked = f"{kernel.source.stem}.o"
    symbols = kernel.symbols
    assert overlay.functions == {symbols.first: linked, symbols.next: linked}
    for parameter in overlay.parameters.values():
        column, row = parameter.tile.column, parameter.tile.row - 2
        assert parameter.name == f"rtp_{column}_{row}"
        assert (parameter.elements, parameter.dtype) == (16, np.int32)
        assert parameter.address == kernel.stack_bytes
    assert sorted(parameter.tile for parameter in overlay.parameters.values()) == cores


@every_kernel
def test_shim_channels_are_a_then_b_in_and_c_out(kernel: Kernel) -> None:
    """The toolchain numbers a shim's channels in the order in which its FIFOs are written."""
    rows, columns = kernel.grid.rows, kernel.grid.columns
    want = {f"A_L3L2_{row}": Channel(row, "MM2S", 0) for row in range(rows)}
    for column in range(columns):
        want[f"B_L3L2_{column}"] = Channel(column, "MM2S", 1 if column < rows else 0)
        want[f"C_L2L3_{column}"] = Channel(column, "S2MM", 0)
    assert wiring(kernel).channels == want


def test_on_four_by_four_cores_every_shim_has_the_same_channels() -> None:
    channels = wiring(KERNELS["4x4 cores"]).channels
    for column in range(4):
        assert channels[f"A_L3L2_{column}"] == Channel(column, "MM2S", 0)
        assert channels[f"B_L3L2_{column}"] == Channel(column, "MM2S", 1)
        assert channels[f"C_L2L3_{column}"] == Channel(column, "S2MM", 0)


SHAPES = [
    LaunchShape(1, 1, 1, True, 0, 0),
    LaunchShape(3, 2, 5, False, 30, 20),
    LaunchShape(70, 9, 3, True, 210, 27),  # more than 64 runs, and more tasks than a queue holds
]


@every_kernel
@pytest.mark.parametrize("shape", SHAPES, ids=["one block", "rows outside", "columns outside"])
def test_the_sequence_in_the_design_makes_the_words_of_the_stream(
    kernel: Kernel, shape: LaunchShape
) -> None:
    sequence = launch_sequence(kernel, shape)
    device = read_design(design_text(kernel, sequence=sequence))
    assert sequence_of(device) == sequence
    assert assemble(sequence_of(device), overlay_of(device)) == launch_stream(kernel, shape)


def test_a_sequence_changes_nothing_else_of_the_design() -> None:
    kernel = KERNELS["2x2 cores"]
    shape = cover(TileGrid(kernel, 30, 30, 30))[0].shape
    plain = design_text(kernel).splitlines()
    whole = design_text(kernel, sequence=launch_sequence(kernel, shape)).splitlines()
    assert whole[: len(plain) - 2] == plain[:-2]
    assert "aie.runtime_sequence @matmul(" in whole[len(plain) - 2]


def allocate(
    pinned: dict[str, tuple[int, int]], sizes: dict[str, int], start: int
) -> dict[str, int]:
    """Addresses by mlir-aie's basic-sequential scheme: after the stack, back to back, largest
    first, each moved behind pinned buffers (address, size) that it would overlap."""
    addresses, address = {}, start
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        for pinned_at, pinned_size in sorted(pinned.values()):
            if address < pinned_at + pinned_size and pinned_at < address + size:
                address = pinned_at + pinned_size
        addresses[name] = address
        address += size
    return addresses


def core_buffers(overlay: Overlay, core: Tile) -> dict[str, int]:
    """Every buffer of a core's FIFOs with its size: one per depth."""
    sizes = {}
    for fifo in overlay.fifos.values():
        for side, tile in enumerate((fifo.producer, *fifo.consumers)):
            if tile == core:
                for number in range(fifo.depths[side]):
                    sizes[f"{fifo.name}_{number}"] = fifo.element_bytes
    return sizes


@every_shipped_kernel
def test_all_of_a_core_fits_its_memory_and_vectors_are_aligned(kernel: Kernel) -> None:
    overlay = wiring(kernel)
    parameters = {parameter.tile: parameter for parameter in overlay.parameters.values()}
    for core in overlay.cores:
        parameter, sizes = parameters[core.tile], core_buffers(overlay, core.tile)
        assert parameter.address is not None
        pinned_size = parameter.elements * parameter.dtype.itemsize
        assert parameter.address >= kernel.stack_bytes
        pinned = {parameter.name: (parameter.address, pinned_size)}
        addresses = allocate(pinned, sizes, kernel.stack_bytes)
        assert len(sizes) == kernel.depths.a + kernel.depths.b + kernel.depths.c
        assert all(address % VECTOR_BYTES == 0 for address in addresses.values())
        assert min(addresses.values()) == kernel.stack_bytes + pinned_size
        end = max(addresses[name] + size for name, size in sizes.items())
        assert end <= CORE_DATA_MEMORY_BYTES


@every_shipped_kernel
def test_all_of_a_memtile_fits_its_memory(kernel: Kernel) -> None:
    """Linked FIFOs share the buffers of the larger one."""
    overlay = wiring(kernel)
    for column in range(kernel.grid.columns):
        held = 0
        for link in overlay.links:
            fifos = [overlay.fifos[name] for name in (*link.sources, *link.destinations)]
            if Tile(column, 1) in fifos[0].consumers:
                held += 2 * max(fifo.element_bytes for fifo in fifos)
        assert 0 < held <= MEMTILE_BYTES


def test_two_accumulators_of_the_large_kernel_would_not_fit() -> None:
    """What the test above would say of a design that is too large."""
    kernel = SHIPPED["matmul_64x512-int8"]
    doubled = dataclasses.replace(kernel, depths=dataclasses.replace(kernel.depths, c=2))
    sizes = core_buffers(wiring(doubled), Tile(0, 2))
    addresses = allocate({}, sizes, kernel.stack_bytes)
    assert max(addresses[name] + size for name, size in sizes.items()) > CORE_DATA_MEMORY_BYTES


@every_kernel
def test_the_parameter_is_read_after_the_first_acquire_of_an_input(kernel: Kernel) -> None:
    """Before it, a core that runs ahead would read the number of the launch before."""
    body = design_text(kernel).partition("aie.core(")[2].partition("aie.end")[0]
    events = [
        "acquire @C_L1L2_0_0(Produce",
        "acquire @A_L2L1_0(Consume",
        "memref.load %rtp_0_0",
        f"call @{kernel.symbols.first}(",
        "scf.for %step",
        f"call @{kernel.symbols.next}(",
        "release @C_L1L2_0_0(Produce",
    ]
    places = [body.index(event) for event in events]
    assert places == sorted(places)
    assert all(body.count(event) == 1 for event in events if "@A_" not in event)
