"""The stand-in for the toolchain's lowering makes what the toolchain made, and what it makes of
every design runs like the design."""

from __future__ import annotations

from typing import Any

import golden
import lowered_modules
import numpy as np
import pytest
from comparing import assert_equal_bits, random_int8
from golden import synced, unsynced
from lowered_modules import machine, module
from lowering_double import lowered_text

from npu_matmul.build.plan import reference_design, reference_problem
from npu_matmul.emulator.actors import Deadlock
from npu_matmul.instructions import decode
from npu_matmul.kernel import Kernel, load_variants
from npu_matmul.launch import LaunchShape
from npu_matmul.lowered.module import LoweredModule
from npu_matmul.lowered.reading import read_lowered
from npu_matmul.schedule import cover
from npu_matmul.streams import launch_stream
from npu_matmul.tiler import TileGrid
from npu_matmul.verify.run import verify_build, verify_text

KERNELS = [
    kernel for name in ("matmul_16x16", "matmul_64x512") for kernel in load_variants(name).values()
]
RUNNING = ("gemm_one_core", "transform")


def wiring(found: LoweredModule) -> dict[str, Any]:
    """All of a module but its cores' code, the numbers of locks and the order of the text."""
    programs = {
        port: [
            (
                *(d.buffer.name, d.offset, d.length, d.dims, d.number, d.next_number),
                *((use.lock.name, use.amount) for use in (d.acquire, d.release) if use),
            )
            for d in program.descriptors
        ]
        for port, program in found.programs.items()
    }
    return {
        "programs": programs,
        "loops": {port: program.loop for port, program in found.programs.items()},
        "flows": {(flow.source, flow.destination) for flow in found.flows},
        "locks": {(lock.name, lock.tile, lock.initial) for lock in found.locks},
        "buffers": {(b.name, b.tile, b.address, b.shape, b.dtype) for b in found.buffers.values()},
        "allocations": found.allocations,
    }


@pytest.mark.parametrize("name", ["gemm_one_core", "sixteen_cores", "transform"])
def test_it_makes_what_the_toolchain_made(name: str) -> None:
    ours, theirs = wiring(read_lowered(lowered_text(golden.design(name)))), wiring(module(name))
    if name == "transform":  # its core was unrolled: no counters
        ours["buffers"] = {buffer for buffer in ours["buffers"] if "_anonymous" not in buffer[0]}
    for part, found in theirs.items():
        assert ours[part] == found, part


@pytest.mark.parametrize("name", RUNNING)
def test_it_runs_like_the_design_and_like_the_toolchains(name: str) -> None:
    stream = decode(golden.stream(name))
    sizes = stream.argument_bytes()
    design = golden.machine(golden.design(name))
    lowered = machine(lowered_text(golden.design(name))), machine(module(name))
    for seed in range(3):
        data = random_int8(seed, sizes[0])
        want = unsynced(sizes[1])
        design.launch(stream, [synced(data), want])
        for booted in lowered:
            got = unsynced(sizes[1])
            booted.launch(stream, [synced(data), got])
            assert_equal_bits(got.words, want.words)


@pytest.mark.parametrize("name", ["one_core", "two_columns", "four_columns"])
def test_designs_that_wait_for_ever_do_so_at_both_levels(name: str) -> None:
    """They only show what a stream looks like: their operands do not suffice for their results."""
    stream = decode(golden.stream(name))
    buffers = [
        synced(np.zeros(-(-nbytes // 4) * 4, np.int8))
        for _, nbytes in sorted(stream.argument_bytes().items())
    ]
    for booted in (
        golden.machine(golden.design(name)),
        machine(lowered_text(golden.design(name))),
    ):
        with pytest.raises(Deadlock, match="nothing can move:\n  the runtime sequence waits for"):
            booted.launch(stream, buffers)


def reference(kernel: Kernel) -> tuple[str, LaunchShape, bytes]:
    """The lowered module of a kernel's reference product, its launch, and its stream."""
    (launch,) = cover(TileGrid(kernel, *reference_problem(kernel)))
    text = lowered_text(reference_design(kernel, "npu1"))
    return text, launch.shape, launch_stream(kernel, launch.shape)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: f"{kernel.name}-{kernel.variant}")
def test_a_right_build_of_each_kernel_is_found_right(kernel: Kernel) -> None:
    text, shape, stream = reference(kernel)
    verdict = verify_build(kernel, shape, text, stream, count=2)
    assert verdict.ok, verdict.problems
    assert verdict.product is not None
    assert verdict.product.kernel == kernel
    rows, columns = kernel.block
    own = 2 * rows * 2 * columns  # the reference product; then made-up ones: 4 or 13 blocks
    assert verdict.bytes_compared >= 2 * 4 * rows * columns * 4 + own * 4


@pytest.mark.parametrize("scheme", ["basic-sequential", "bank-aware"])
def test_either_allocator_will_do(scheme: str) -> None:
    verdict = verify_text(lowered_text(golden.design("gemm_one_core"), scheme), count=3)
    assert verdict.ok, verdict.problems


@pytest.mark.parametrize("depths", ["[1, 1]", "[3, 3]", "[2, 4]", "[4, 1]"])
def test_any_depth_will_do(depths: str) -> None:
    design = golden.design("gemm_one_core")
    for name in "abc":
        end = "%core, {%shim}" if name == "c" else "%shim, {%core}"
        assert f"@{name}({end}, 2 : i32)" in design
        design = design.replace(f"@{name}({end}, 2 : i32)", f"@{name}({end}, {depths})")
    verdict = verify_text(lowered_text(design), count=14, seed=3)
    assert verdict.ok, verdict.problems
    depth = 1 if depths in ("[1, 1]", "[4, 1]") else int(depths[-2])
    module = read_lowered(lowered_text(design))
    assert sum("b_cons_buff" in name for name in module.buffers) == depth


def test_the_golden_modules_are_those_of_the_folder() -> None:
    assert {path.stem for path in lowered_modules.FOLDER.glob("*.mlir")} == {
        *lowered_modules.GOLDEN,
        "gemm_one_core_race",
    }
