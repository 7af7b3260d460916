"""The commands of a build are exactly what the toolchain takes, whichever release is there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from build_tools import changed_kernels
from click.testing import CliRunner

from npu_matmul import cli
from npu_matmul.build.identity import overlay_inputs, overlay_name
from npu_matmul.build.plan import (
    Tools,
    build_steps,
    reference_design,
    reference_problem,
    syntax_of,
)
from npu_matmul.kernel import Kernel, load_kernel
from npu_matmul.sequence import SYNTAXES, Syntax

KERNEL = load_kernel("matmul_16x16")
TOOLS = Tools(
    compiler=Path("/p/bin/clang++"),
    peano=Path("/p"),
    aiecc=Path("/m/bin/aiecc"),
    headers=Path("/m/include"),
    xclbinutil=Path("/x/bin/xclbinutil"),
    options=frozenset(
        {"--no-compile-host", "--no-xchesscc", "--no-xbridge", "--aie-generate-xclbin", "--tmpdir"}
    ),
)
LATER = dataclasses.replace(TOOLS, options=frozenset({"--get", "--tmpdir", "--xchesscc"}))


def test_the_commands_are_exactly_these() -> None:
    kernel = load_kernel("matmul_64x512", "bf16")
    core, overlay = build_steps(kernel, "npu1", TOOLS, "matmul_00ff")
    assert core.command == (
        "/p/bin/clang++",
        "--target=aie2-none-unknown-elf",
        "-O2",
        "-std=c++20",
        "-Wno-parentheses",
        "-Wno-attributes",
        "-Wno-macro-redefined",
        "-Wno-empty-body",
        "-Wno-missing-template-arg-list-after-template-kw",
        "-DNDEBUG",
        "-D__AIE_API_AIE_ADF_HPP__",
        "-I/m/include",
        "-DDIM_M=64",
        "-DDIM_K=32",
        "-DDIM_N=128",
        "-c",
        str(kernel.source.resolve()),
        "-o",
        "matmul_bf16.o",
    )
    assert overlay.command == (
        "/m/bin/aiecc",
        "--no-compile-host",
        "--no-xchesscc",
        "--no-xbridge",
        "--alloc-scheme=basic-sequential",
        "--peano=/p",
        "--tmpdir=aiecc.prj",
        "--aie-generate-xclbin",
        "--aie-generate-npu-insts",
        "--xclbin-name=overlay.xclbin",
        "--xclbin-kernel-name=matmul_00ff",
        "--npu-insts-name=insts.bin",
        "design.mlir",
    )
    assert (core.produces, overlay.produces) == (
        ("matmul_bf16.o",),
        ("overlay.xclbin", "insts.bin"),
    )


def test_later_releases_are_asked_for_outputs_by_other_names() -> None:
    _, overlay = build_steps(KERNEL, "npu1", LATER, "matmul_00ff")
    assert overlay.command == (
        "/m/bin/aiecc",
        "--alloc-scheme=basic-sequential",
        "--peano=/p",
        "--tmpdir=aiecc.prj",
        "--get-xclbin",
        "--get-npu-insts",
        "--get-input-with-addresses",
        "--xclbin-name=overlay.xclbin",
        "--xclbin-kernel-name=matmul_00ff",
        "--npu-insts-name=insts.bin",
        "design.mlir",
    )


def test_npu2_has_another_compiler_target() -> None:
    core, _ = build_steps(KERNEL, "npu2", TOOLS, "x")
    assert "--target=aie2p-none-unknown-elf" in core.command


def test_the_object_is_the_one_that_the_design_links_with(kernel: Kernel) -> None:
    core, _ = build_steps(kernel, "npu1", TOOLS, "x")
    assert f'link_with = "{core.produces[0]}"' in reference_design(kernel, "npu1")


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_compiled_module_is_what_emit_writes(
    kernel: Kernel, tmp_path: Path, syntax: Syntax
) -> None:
    sizes = zip(("-m", "-k", "-n"), map(str, reference_problem(kernel)), strict=True)
    words = [word for pair in sizes for word in pair]
    path = tmp_path / "design.mlir"
    runner = CliRunner()
    name = ["emit", kernel.name, "--variant", kernel.variant, *words, "-o", str(path)]
    assert runner.invoke(cli.app, [*name, "--mlir-aie", syntax]).exit_code == 0
    assert path.read_text() == reference_design(kernel, "npu1", syntax)


def test_the_module_has_the_syntax_of_the_aiecc_that_is_installed() -> None:
    assert (syntax_of(TOOLS.options), syntax_of(LATER.options)) == ("1.3", "1.4")


def test_all_that_a_source_includes_is_an_input(tmp_path: Path) -> None:
    """Of any suffix, in any folder, and what that includes in turn; once, though in a circle."""
    files = {
        "kernel/core.cc": '#include <aie_api/aie.hpp>\n#include "parts/inner.inl"\n',
        "kernel/parts/inner.inl": '  #  include "../../common/types.h"\n#include "twin.cc"\n',
        "kernel/parts/twin.cc": '#include "inner.inl"\n',
        "common/types.h": '// #include is not at the beginning: #include "other.h"\n',
        "common/other.h": "",
        "kernel/beside.h": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    kernel = dataclasses.replace(KERNEL, source=tmp_path / "kernel/core.cc")
    before = overlay_inputs(kernel, "npu1")
    assert {name for name in before if name.startswith("included ")} == {
        "included parts/inner.inl",
        "included parts/twin.cc",
        "included ../common/types.h",
    }
    (tmp_path / "common/types.h").write_text("// changed")
    after = overlay_inputs(kernel, "npu1")
    assert {n for n in before if before[n] != after.get(n)} == {"included ../common/types.h"}


def test_the_name_in_the_xclbin_stands_for_all_inputs(tmp_path: Path) -> None:
    kernels = [KERNEL, *changed_kernels().values()]
    source = tmp_path / KERNEL.source.name
    source.write_bytes(KERNEL.source.read_bytes())
    here = dataclasses.replace(KERNEL, source=source)
    names = [overlay_name(overlay_inputs(kernel, "npu1")) for kernel in kernels]
    assert overlay_name(overlay_inputs(here, "npu1")) == names[0]  # wherever the source lies
    source.write_bytes(source.read_bytes() + b"\n")
    names.append(overlay_name(overlay_inputs(here, "npu1")))
    names.append(overlay_name(overlay_inputs(KERNEL, "npu2")))
    assert len(set(names)) == len(names) == len(kernels) + 2
    assert all(len(name) < 64 - len(":MLIRAIE") for name in names)  # an xclbin's field for it
