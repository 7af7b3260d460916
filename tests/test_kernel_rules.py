"""Rules of kernels: their designs, their stacks and the symbols of their sources."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from rule_designs import only, small_kernel

from npu_matmul.kernel import (
    Blocking,
    CoreGrid,
    Depths,
    Kernel,
    Symbols,
    TileShape,
    kernel_folders,
    load_variants,
)
from npu_matmul.kernel_rules import check_kernel
from npu_matmul.target import TARGETS

ALL = [kernel for name in kernel_folders() for kernel in load_variants(name).values()]


@pytest.mark.parametrize("kernel", ALL, ids=lambda kernel: f"{kernel.name}-{kernel.variant}")
@pytest.mark.parametrize("name", ["npu1", "npu2"])
def test_shipped_kernels_pass(kernel: Kernel, name: str) -> None:
    checked = check_kernel(kernel, name)
    assert checked.violations == ()
    assert checked.overlay.target == TARGETS[name]
    assert bool(checked.notes) != kernel.source.is_file()


def test_a_small_stack_of_a_kernel_is_reported() -> None:
    broken = only(check_kernel(small_kernel(stack_bytes=1024)).violations)
    assert (broken.rule, broken.place) == ("stack", "matmul_16x16 int8: stack_bytes")
    assert broken.found == "1,024 B where a kernel's cores need 2,048 B"


@pytest.mark.parametrize(
    ("tile", "place", "cure"),
    [((8, 16, 16), "m", "a multiple of 16"), ((16, 16, 24), "n", "a multiple of 16")],
)
def test_a_tile_that_the_core_function_refuses_is_reported(
    tile: tuple[int, int, int], place: str, cure: str
) -> None:
    broken = only(check_kernel(small_kernel(tile=TileShape(*tile))).violations)
    assert (broken.rule, broken.place) == ("blocking", f"matmul_16x16 int8: tile {place}")
    assert cure in broken.cure
    any_blocks = small_kernel(tile=TileShape(*tile), blocking=Blocking(1, 1))
    assert check_kernel(any_blocks).violations == ()


def test_a_kernel_that_does_not_fit_is_reported_with_its_cores() -> None:
    wide = next(iter(load_variants("matmul_64x512").values()))
    broken = only(check_kernel(dataclasses.replace(wide, depths=Depths(2, 2, 2))).violations)
    assert (broken.rule, broken.place) == ("memory", "core (0, 2) and 15 more like it")
    assert "give @C_L1L2_0_0 depth 1 there, which saves 32,768 B" in broken.cure


def test_a_kernel_may_be_wider_on_npu2() -> None:
    wide = small_kernel(grid=CoreGrid(4, 8))
    assert check_kernel(wide, "npu2").violations == ()


SOURCE = """// first_i8 is only a comment here
extern "C" {
void matmul_first_i8_i32(const int8_t*, const int8_t*, int32_t*) {}
void matmul_i8_i32(const int8_t*, const int8_t*, int32_t*) {}
}
"""


@pytest.mark.parametrize(
    ("source", "symbols", "found"),
    [
        (SOURCE, Symbols("matmul_first_i8_i32", "matmul_i8_i32"), []),
        (SOURCE, Symbols("first_i8", "matmul_i8_i32"), ["does not define first_i8"]),
        (SOURCE, Symbols("matmul_i8", "i8_i32"), ["does not define matmul_i8", "does not define"]),
        (SOURCE.replace('extern "C"', "namespace"), None, ['has no extern "C"']),
        ("", None, ["does not define", "does not define", "has no extern"]),
        (
            SOURCE.replace(
                "_i8_i32(const int8_t*, const int8_t*, int32_t*) {}",
                "_i8_i32(const int8_t*, const int8_t*, int32_t*);",
            ),
            None,
            ["does not define matmul_first_i8_i32", "does not define matmul_i8_i32"],
        ),
        (
            SOURCE.replace("void matmul_i8_i32", 'const char* name = "matmul_i8_i32"; void f'),
            None,
            ["does not define matmul_i8_i32"],
        ),
        (SOURCE.replace("(const int8_t*,", "(const int8_t* (&a)[2], // {\n"), None, []),
    ],
)
def test_symbols_must_be_in_the_source(
    tmp_path: Path, source: str, symbols: Symbols | None, found: list[str]
) -> None:
    path = tmp_path / "core.cc"
    path.write_text(source)
    kernel = small_kernel(source=path)
    if symbols is not None:
        kernel = dataclasses.replace(kernel, symbols=symbols)
    checked = check_kernel(kernel)
    assert {v.rule for v in checked.violations} <= {"symbols"}
    assert [v.place for v in checked.violations] == ["matmul_16x16 int8: core.cc"] * len(found)
    for broken, part in zip(checked.violations, found, strict=True):
        assert part in broken.found


@pytest.mark.parametrize(
    "export",
    [
        "#define EXPORT(a, c) void matmul##_##a##_##c(const a*, const a*, c*) {}\nEXPORT(i8, i32)",
        "#define EXPORT(name) void name(const int8_t*, const int8_t*, int32_t*) {}\n"
        "EXPORT(matmul_i8_i32)",
    ],
)
def test_names_that_macros_may_make_are_only_noted(tmp_path: Path, export: str) -> None:
    path = tmp_path / "core.cc"
    path.write_text(re.sub(r"void matmul_i8_i32.*", lambda _: export, SOURCE))
    checked = check_kernel(small_kernel(source=path))
    assert checked.violations == ()
    assert checked.notes == ("core.cc may define matmul_i8_i32 by a macro: it was not checked",)


def test_a_source_that_is_not_there_is_only_noted(tmp_path: Path) -> None:
    checked = check_kernel(small_kernel(source=tmp_path / "later.cc"))
    assert checked.violations == ()
    assert checked.notes == ("later.cc is not there: its symbols were not checked",)
