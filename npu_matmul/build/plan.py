"""Which commands make an overlay: pure, so that every word of them can be tested.

Flags are those of mlir-aie's own examples and of its ``aiecc`` driver, which has had two command
lines: releases 1.3 (March 2026) ask for outputs by ``--aie-generate-...`` and take AMD's
proprietary compiler unless told otherwise; 1.4 (July 2026) by ``--get-...``, and from August on it
takes Peano (llvm-aie), the free one. 1.4 also has another syntax of one operation. Which it is, its
``--help`` tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from npu_matmul.design import design_text
from npu_matmul.kernel import Kernel
from npu_matmul.launch import launch_sequence
from npu_matmul.schedule import cover
from npu_matmul.sequence import Syntax
from npu_matmul.target import TARGETS
from npu_matmul.tiler import TileGrid

DESIGN = "design.mlir"
XCLBIN = "overlay.xclbin"
INSTRUCTIONS = "insts.bin"  # of the sequence in the design, for comparison with ours
WORK = "aiecc.prj"  # aiecc's own products
LOWERED = "input_with_addresses.mlir"  # in the work folder, or beside the xclbin

TRIPLES = {"npu1": "aie2-none-unknown-elf", "npu2": "aie2p-none-unknown-elf"}
COMPILER_FLAGS = (
    "-O2",
    "-std=c++20",
    "-Wno-parentheses",
    "-Wno-attributes",
    "-Wno-macro-redefined",
    "-Wno-empty-body",
    "-Wno-missing-template-arg-list-after-template-kw",
    "-DNDEBUG",
    # An include guard: without it some releases of aie_api (those of May 2026) include <adf.h>,
    # which only Vitis has.
    "-D__AIE_API_AIE_ADF_HPP__",
)
ALLOCATION = "--alloc-scheme=basic-sequential"  # the one whose memory map the design rules check
OUTPUTS = {  # by the option that a release must have for them
    "--aie-generate-xclbin": ("--aie-generate-xclbin", "--aie-generate-npu-insts"),
    "--get": ("--get-xclbin", "--get-npu-insts", "--get-input-with-addresses"),
}
# What all of this is written for. Later, acquire returns memrefs and there is no subview.access
# (mlir-aie's pull request 3553, reviewed from 20 August 2026 on).
RELEASES = "mlir-aie 1.3 (from March 2026 on) and 1.4 until August 2026"
UNWANTED = ("--no-compile-host", "--no-xchesscc", "--no-xbridge")  # where there is such a switch
OPTIONS_1_3 = frozenset({"--aie-generate-xclbin", *UNWANTED})  # as far as they matter here


@dataclass(frozen=True)
class Tools:
    """Where the programs of a build are."""

    compiler: Path
    peano: Path
    aiecc: Path
    headers: Path  # has aie_api/
    xclbinutil: Path
    options: frozenset[str]  # that aiecc's --help lists


@dataclass(frozen=True)
class Step:
    """One command: ``produces`` are files that must exist afterwards, in the working folder;
    ``hint`` is what to think of when it fails."""

    title: str
    command: tuple[str, ...]
    produces: tuple[str, ...]
    hint: str = ""


def reference_problem(kernel: Kernel) -> tuple[int, int, int]:
    """M, K, N of the product whose sequence the design is compiled with: two blocks each way, three
    steps of K.

    An overlay serves every shape; this one only lets aiecc write a stream that ours can be held
    against.
    """
    rows, columns = kernel.block
    return 2 * rows, 3 * kernel.tile.k, 2 * columns


def syntax_of(options: frozenset[str]) -> Syntax:
    """The syntax that an aiecc with these options reads."""
    return "1.4" if "--get" in options else "1.3"


def reference_design(kernel: Kernel, target: str, syntax: Syntax = "1.3") -> str:
    """The module that is compiled: the overlay's design with the reference product's sequence."""
    grid = TileGrid(kernel, *reference_problem(kernel))
    (launch,) = cover(grid, target=TARGETS[target])
    sequence = launch_sequence(kernel, launch.shape, TARGETS[target])
    return design_text(kernel, target, sequence, syntax)


def build_steps(kernel: Kernel, target: str, tools: Tools, name: str) -> tuple[Step, ...]:
    """The commands that make a kernel's overlay, to be run in a folder that holds the design.

    ``name`` is what the overlay's kernel is called inside the xclbin.
    """
    linked = f"{kernel.source.stem}.o"
    compile_core = (
        str(tools.compiler),
        f"--target={TRIPLES[target]}",
        *COMPILER_FLAGS,
        f"-I{tools.headers}",
        *(f"-D{macro}={value}" for macro, value in kernel.defines.items()),
        "-c",
        str(kernel.source.resolve()),
        "-o",
        linked,
    )
    compile_overlay = (
        str(tools.aiecc),
        *(switch for switch in UNWANTED if switch in tools.options),
        ALLOCATION,
        f"--peano={tools.peano}",
        f"--tmpdir={WORK}",
        *next((given for option, given in OUTPUTS.items() if option in tools.options), ()),
        f"--xclbin-name={XCLBIN}",
        f"--xclbin-kernel-name={name}",
        f"--npu-insts-name={INSTRUCTIONS}",
        DESIGN,
    )
    hint = (
        f"By its options this aiecc is of mlir-aie {syntax_of(tools.options)}, so {DESIGN} has the "
        f"syntax of that. This version is written for {RELEASES}: builds between their releases "
        "may want the other syntax, and later ones that have no aie.objectfifo.subview.access read "
        "neither."
    )
    return (
        Step(f"compile {kernel.source.name}", compile_core, (linked,)),
        Step("compile the overlay", compile_overlay, (XCLBIN, INSTRUCTIONS), hint),
    )
