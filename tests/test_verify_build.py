"""A build is held against its kernel: the module that was lowered, and the toolchain's stream."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lowered_builds import lowered_build, reference_shape
from lowered_modules import text

from npu_matmul.kernel import CoreGrid, Kernel, kernel_folders, load_kernel
from npu_matmul.launch import LaunchShape, launch_sequence
from npu_matmul.schedule import cover
from npu_matmul.sequence import to_mlir
from npu_matmul.streams import launch_stream
from npu_matmul.target import NPU2
from npu_matmul.tiler import TileGrid
from npu_matmul.verify.run import verify_build
from npu_matmul.verify.subject import stream_problems

GEMM, SIXTEEN = text("gemm_one_core"), text("sixteen_cores")


def kernel_module(kernel: Kernel) -> str:
    """A lowered module of the kernel: the golden one has its shape, but clears C by a call of its
    own, where the kernel's first product does."""
    symbols = kernel.symbols.first, kernel.symbols.next
    lines: list[str] = []
    calls = 0
    for line in SIXTEEN.splitlines(keepends=True):
        if "@zero(" in line:
            continue
        if "func.func private @matmul" in line:
            lines.append(line.replace("@matmul(", f"@{symbols[0]}("))
            line = line.replace("@matmul(", f"@{symbols[1]}(")
        elif "func.call @matmul" in line:
            line = line.replace("@matmul(", f"@{symbols[calls % 2]}(")
            calls += 1
        lines.append(line)
    assert calls == 32  # in each core one before the loop and one in it
    return "".join(lines)


def build_parts(kernel: Kernel) -> tuple[str, bytes, LaunchShape]:
    """Module, stream and shape of a build whose launch makes one block of C in two steps of K."""
    shape = cover(TileGrid(kernel, 256, 128, 512))[0].shape
    source = kernel_module(kernel)
    start = source.index("    aie.runtime_sequence")
    end = source.index("    aie.shim_dma_allocation")
    sequence = to_mlir(launch_sequence(kernel, shape))
    lowered = re.sub(r"@([ABC]_\w+)", r"@\1_shim_alloc", sequence)
    return source[:start] + lowered + source[end:], launch_stream(kernel, shape), shape


def test_a_build_is_right_or_says_which_part_disagrees() -> None:
    kernel = load_kernel("matmul_64x512", "int8")
    source, insts, shape = build_parts(kernel)
    good = verify_build(kernel, shape, source, insts, count=1)
    assert good.ok, good.problems
    assert "tiles 64x64x128, 4x4 cores" in good.reference
    words = np.frombuffer(insts, "<u4").copy()
    words[8] += 1  # a runtime parameter: one step more
    wrong = verify_build(kernel, shape, source, words.tobytes(), count=1)
    assert wrong.disagrees == "stream"
    assert wrong.problems[0].text == (
        "operation 0: WriteWord to core (0, 2) at 0x800 of the given stream has value 3 where the "
        "assembled one has 2"
    )
    broken = source.replace(
        '2 : i32, sym_name = "A_L3L2_2_cons_prod', '3 : i32, sym_name = "A_L3L2_2_cons_prod'
    )
    wrong = verify_build(kernel, shape, broken, insts, count=1)
    assert wrong.disagrees == "module"
    assert {problem.kind for problem in wrong.problems} == {"locks", "race"}
    wrong.problems += stream_problems(insts, words.tobytes())
    assert wrong.disagrees == "module and stream"


def test_a_build_of_another_kernel_is_refused() -> None:
    kernel = load_kernel("matmul_64x512", "int8")
    _, insts, shape = build_parts(kernel)
    verdict = verify_build(kernel, shape, GEMM, insts, count=1)
    assert verdict.disagrees == "module"
    assert [problem.kind for problem in verdict.problems] == ["kernel", "sequence"]
    assert verdict.problems[0].text.endswith("1x1 cores; built was matmul_64x512 int8 of 4x4 cores")


def test_a_build_for_npu2_is_held_against_streams_for_npu2() -> None:
    kernel = replace(load_kernel("matmul_16x16"), targets=("npu2",))
    shape = reference_shape(kernel)
    source, for_npu1 = lowered_build(kernel)
    source = source.replace("aie.device(npu1_1col)", "aie.device(npu2_1col)")
    insts = launch_stream(kernel, shape, NPU2)
    assert insts != for_npu1
    verdict = verify_build(kernel, shape, source, insts, NPU2, count=1)
    assert verdict.ok, verdict.problems
    verdict = verify_build(kernel, shape, source, for_npu1, NPU2, count=1)
    assert [(problem.part, problem.text) for problem in verdict.problems] == [
        (
            "stream",
            "the given stream is for 1 column of npu1, the assembled one for 1 column of npu2",
        )
    ]
    verdict = verify_build(kernel, shape, source, for_npu1, count=1)
    assert verdict.disagrees == "module"


def test_a_build_is_its_own_kernels_where_another_has_the_same_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels on other grids may share a core function; the first one found is not meant."""
    kernel = load_kernel("matmul_16x16")
    manifest = (kernel_folders()["matmul_16x16"] / "kernel.toml").read_text(encoding="utf-8")
    (tmp_path / "all_columns").mkdir()
    wide = re.sub(r"(?m)^(grid = .*)columns = 1", r"\1columns = 4", manifest)
    assert wide != manifest
    (tmp_path / "all_columns" / "kernel.toml").write_text(wide, encoding="utf-8")
    monkeypatch.setenv("NPU_MATMUL_KERNELS", str(tmp_path))
    assert next(iter(kernel_folders())) == "all_columns"
    assert load_kernel("all_columns").symbols == kernel.symbols
    source, insts = lowered_build(kernel)
    verdict = verify_build(kernel, reference_shape(kernel), source, insts, count=1)
    assert verdict.ok, verdict.problems
    other = replace(kernel, grid=CoreGrid(1, 4))
    refused = verify_build(other, reference_shape(kernel), source, insts, count=1)
    assert refused.problems[0].text.endswith("1x1 cores; built was matmul_16x16 int8 of 1x4 cores")
