"""For every rule a design that breaks exactly it; good designs break none."""

from __future__ import annotations

import dataclasses
import doctest
import re
from pathlib import Path

import golden
import pytest
from broken_designs import AT_RUN_TIME, GIVE_1, IN_1, RTP, TAKE_1, TILES, at_core, dims, fifo
from broken_sequences import SEQUENCES
from golden import changed
from rule_designs import GOOD, found_in, only

from npu_matmul import design_rules, memory_rules, target, violation, wiring_rules
from npu_matmul.design_rules import check, check_file, check_text
from npu_matmul.memory_map import SCHEMES
from npu_matmul.mlir.elaborate import overlay_of_text
from npu_matmul.mlir.reader import DesignError
from npu_matmul.target import NPU1, NPU2
from npu_matmul.violation import Violation

KIB = 1024


@pytest.mark.parametrize("module", [design_rules, memory_rules, wiring_rules, violation, target])
def test_the_docstring_examples_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_a_good_design_passes() -> None:
    for scheme in SCHEMES:
        assert found_in(GOOD, scheme) == []


@pytest.mark.parametrize("name", [n for n in golden.NAMES if n != "gemm_one_core_race"])
def test_what_the_real_toolchain_lowered_passes(name: str) -> None:
    assert found_in(golden.design(name)) == []


def test_a_core_that_keeps_its_loops_may_take_their_bounds_from_a_parameter() -> None:
    kept = "aie.end\n    } {dynamic_objfifo_lowering = true}\n"
    assert found_in(changed(GOOD, *AT_RUN_TIME, ("aie.end\n    }\n", kept))) == []


def test_a_design_without_a_sequence_is_checked_too() -> None:
    start, end = GOOD.index("    aie.runtime_sequence"), GOOD.rindex("  }\n}")
    assert found_in(GOOD[:start] + GOOD[end:]) == []


BROKEN = TILES | SEQUENCES


@pytest.mark.parametrize("case", BROKEN)
def test_a_design_that_breaks_one_rule_is_told_which(case: str) -> None:
    changes, rule, place, found, cure = BROKEN[case]
    broken = only(found_in(changed(GOOD, *changes)))
    assert broken.rule == rule
    assert place in broken.place
    assert found in broken.found
    assert cure in broken.cure


def test_every_rule_has_a_design_that_breaks_it() -> None:
    """But for one: operations of a design's own sequence cannot leave its partition."""
    package = Path(design_rules.__file__).parent
    files = (*package.glob("*_rules.py"), package / "balance.py")
    text = "".join(path.read_text("utf-8") for path in files)
    rules = {*re.findall(r'Violation\(\s*"([a-z ]+)"', text)}
    layout = (package / "layout_rules.py").read_text("utf-8")
    rules |= {*re.findall(r'yield "([a-z]+)", ', layout)}
    assert len(rules) > 15
    broken = {rule for _, rule, *_ in BROKEN.values()} | {"blocking", "locks", "stack", "symbols"}
    assert broken == rules - {"partition"}


@pytest.mark.parametrize("case", ["a link of something unknown", "an element of part of a word"])
def test_a_strict_reader_raises_what_the_rules_report(case: str) -> None:
    text = changed(GOOD, *BROKEN[case][0])
    with pytest.raises(DesignError) as caught:
        overlay_of_text(text)
    assert str(caught.value) == str(only(found_in(text)))


def test_all_violations_are_reported_at_once() -> None:
    cases = [
        "channels of a shim",
        "memory of a core",
        "vectors that are not aligned",
        "descriptors of a core",
        "an element that is not released",
        "too many runs",
        "a token that nobody sends",
        "six data buffers",
    ]
    text = GOOD
    for case in cases:
        text = changed(text, *BROKEN[case][0])
    assert sorted(v.rule for v in found_in(text)) == sorted(BROKEN[case][1] for case in cases)


WITHIN = {
    "descriptors of a core": ((IN_1, IN_1.replace("2 : i32", "[2, 14]")),),
    "descriptors of a memtile": (("@in(%shim, {%mem}, 2 : i32)", "@in(%shim, {%mem}, [2, 6])"),),
    "a loop of one byte": fifo("64xi8", source=f"%mem dimensionsToStream {dims((1, 1), (64, 1))}"),
    "as many elements as there are": (
        (TAKE_1, TAKE_1.replace("1)", "2)")),
        (GIVE_1, GIVE_1.replace("1)", "2)")),
    ),
}


@pytest.mark.parametrize("case", WITHIN)
def test_a_limit_itself_is_allowed(case: str) -> None:
    assert found_in(changed(GOOD, *WITHIN[case])) == []


def test_a_fifo_that_does_not_balance_is_reported_once_for_its_core() -> None:
    broken = only(found_in(golden.design("gemm_one_core_race")))
    assert (broken.rule, broken.place) == ("balance", "design.mlir:23: core (0, 2)")
    assert broken.found.startswith("@a is acquired in an outer block and used again in an inner")


def test_equal_tiles_are_judged_once() -> None:
    text = golden.design("sixteen_cores").replace("stack_size = 2048", "stack_size = 2056")
    text = text.replace("address = 2048", "address = 2080")
    assert found_in(text) == []
    broken = only(found_in(text.replace("memref<16xi32>", "memref<4xi32>")))
    assert (broken.rule, broken.place) == ("alignment", "core (0, 2) and 15 more like it")


def test_cores_of_npu2_load_wider_vectors() -> None:
    text = changed(GOOD, (RTP, RTP.replace("16xi32", "8xi32")))
    assert found_in(text) == []
    broken = only(found_in(changed(text, ("npu1_1col", "npu2_1col"))))
    assert broken.rule == "alignment"
    assert "not at a multiple of 64 B" in broken.found


def test_symbols_are_looked_for_in_the_sources_beside_a_file(tmp_path: Path) -> None:
    path, source = tmp_path / "gemm.mlir", tmp_path / "mm.cc"
    path.write_text(golden.design("gemm_one_core"))
    assert check_file(path).violations == ()
    assert check_file(path).notes == ("mm.cc is not there: its symbols were not checked",)
    unlinked = changed(path.read_text(), (' attributes {link_with = "mm.o"}', ""))
    (tmp_path / "unlinked.mlir").write_text(unlinked)
    assert check_file(tmp_path / "unlinked.mlir").notes[0] == (
        "@zero has no link_with: there is no source in which to look for it"
    )
    source.write_text('extern "C" { void zero(int* c) {} void mm(char* a, char* b, int* c) {} }')
    assert (check_file(path).violations, check_file(path).notes) == ((), ())
    source.write_text('extern "C" void zero(int* c) {}  // mm comes later')
    broken = only(check_file(path).violations)
    assert (broken.rule, broken.place, broken.found) == ("symbols", "mm.cc", "does not define mm")


# Limits that a design can only break together with others: with a table that has less.


def with_core(**limits: int) -> list[Violation]:
    read = overlay_of_text(changed(GOOD, *at_core((2, 8), (8, 1))))
    less = dataclasses.replace(NPU1, core=dataclasses.replace(NPU1.core, **limits))
    return check(dataclasses.replace(read, target=less))


def test_locks_are_counted() -> None:
    assert with_core(locks=4) == []
    one, two = with_core(locks=3)
    assert (one.rule, one.place, two.place) == ("locks", "core (0, 2)", "core (0, 3)")
    assert one.found == "4 locks needed where it has 3"


def test_steps_are_limited() -> None:
    assert with_core(max_step=8) == []
    broken = only(with_core(max_step=7))
    assert broken.rule == "layout"
    assert "<size = 2, stride = 8>: a step of 32 B where the field holds 28 B" in broken.found


def test_the_table_has_the_numbers_of_the_hardware() -> None:
    core, memtile, shim = NPU1.core, NPU1.memtile, NPU1.shim
    assert (core.memory_bytes, memtile.memory_bytes) == (64 * KIB, 512 * KIB)
    assert (core.bank_bytes, memtile.bank_bytes) == (16 * KIB, 64 * KIB)
    assert [kind.descriptors for kind in (core, memtile, shim)] == [16, 48, 16]
    assert [kind.locks for kind in (core, memtile, shim)] == [16, 64, 16]
    assert [kind.channels for kind in (core, memtile, shim)] == [2, 6, 2]
    assert [kind.max_step * 4 for kind in (core, memtile, shim)] == [32 * KIB, 512 * KIB, 4 << 20]
    assert [kind.max_wrap for kind in (core, memtile, shim)] == [255, 1023, 1023]
    assert (NPU1.columns, NPU1.generation) == (4, 3)
    assert (NPU2.columns, NPU2.generation, NPU2.partition(8)) == (8, 4, "npu2")
    assert [NPU2.partition(columns) for columns in (1, 7)] == ["npu2_1col", "npu2_7col"]
    assert (NPU2.core, NPU2.memtile, NPU2.shim) == (core, memtile, shim)


@pytest.mark.parametrize("columns", range(1, 9))
def test_every_partition_of_npu2_is_read(columns: int) -> None:
    read = overlay_of_text(f"aie.device({NPU2.partition(columns)}) {{ %t = aie.tile(0, 2) }}")
    assert (read.target, read.columns) == (NPU2, columns)


# Layout transformations of what is smaller than a word break the rule in each loop.


@pytest.mark.parametrize(
    ("loops", "found"),
    [
        (((16, 4), (2, 2), (2, 1)), "<size = 2, stride = 1>: an inner run of 2 B"),
        (((16, 4), (2, 2), (2, 1)), "<size = 2, stride = 2>: a stride of 2 B"),
        (((2, 1), (32, 2)), "<size = 32, stride = 2>: elements of 1 B that are 2 apart"),
    ],
)
def test_bytes_cannot_be_picked_apart(loops: tuple[tuple[int, int], ...], found: str) -> None:
    text = changed(GOOD, *fifo("64xi8", source=f"%mem dimensionsToStream {dims(*loops)}"))
    violations = found_in(text)
    assert {v.rule for v in violations} == {"granularity"}
    assert found in [v.found for v in violations]


# What cannot be read


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("module { }", "holds 0 aie.device operations"),
        ("aie.device(npu1) {", "design.mlir:1:19"),
        ("aie.device(npu1) { aie.foo }", "aie.foo"),
        (GOOD.replace("aie.tile(0, 3)", "aie.tile(1, 3)"), "(1, 3) is outside the device"),
    ],
)
def test_what_cannot_be_read_raises(text: str, why: str) -> None:
    with pytest.raises(DesignError, match=re.escape(why)):
        check_text(text)


def test_a_file_is_named_in_its_violations(tmp_path: Path) -> None:
    path = tmp_path / "mine.mlir"
    path.write_text(changed(GOOD, *BROKEN["too many runs"][0]))
    checked = check_file(path)
    assert checked.name == "mine.mlir"
    assert only(checked.violations).place.startswith("mine.mlir:")
    with pytest.raises(DesignError, match="cannot be read"):
        check_file(tmp_path / "other.mlir")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DesignError, match="cannot be read"):
        check_file(path)
