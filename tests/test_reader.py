"""Designs are read and printed alike; what is not well formed is refused with its place."""

from __future__ import annotations

import re

import golden
import pytest
from golden import changed
from xdsl.dialects.builtin import FileLineColLoc, ModuleOp

from npu_matmul.mlir.aie import DeviceOp
from npu_matmul.mlir.reader import DesignError, place, read_design

SMALL = """\
module {
  aie.device(npu1_1col) {
    %shim = aie.tile(0, 0)
    %core = aie.tile(0, 2)
    aie.objectfifo @a(%shim, {%core}, 2 : i32) : !aie.objectfifo<memref<16xi32>>
    %buffer = aie.buffer(%core) {sym_name = "rtp", address = 1024 : i32} : memref<16xi32>
    func.func private @use(memref<16xi32>)
    aie.core(%core) {
      %s = aie.objectfifo.acquire @a(Consume, 1) : !aie.objectfifosubview<memref<16xi32>>
      %e = aie.objectfifo.subview.access %s[0] : !aie.objectfifosubview<memref<16xi32>> \
-> memref<16xi32>
      func.call @use(%e) : (memref<16xi32>) -> ()
      aie.objectfifo.release @a(Consume, 1)
      aie.end
    }
    aie.runtime_sequence @run(%a: memref<16xi32>) {
      aiex.npu.dma_memcpy_nd(%a[0,0,0,0][1,1,1,16][0,0,0,1]) \
{id = 0 : i64, metadata = @a} : memref<16xi32>
    }
  }
}
"""

ALL_SYNTAX = """\
module {
  aie.device(npu1_2col) @main {
    %s = aie.tile(0, 0)
    %m = aie.tile(0, 1)
    %k = aie.tile(0, 2)
    %l = aie.tile(1, 2)
    aie.objectfifo @in(%s, {%m dimensionsFromStream [<size = 4, stride = 4>, \
<size = 4, stride = 1>]}, [2, 3]) : !aie.objectfifo<memref<16xbf16>>
    aie.objectfifo @out(%m dimensionsToStream [<size = 2, stride = 8>, <size = 8, stride = 1>], \
{%k dimensionsFromStream [<size = 16, stride = 1>], %l}, [2, 1, 2]) : \
!aie.objectfifo<memref<16xbf16>>
    aie.objectfifo.link [@in] -> [@out]([] [0])
    aie.runtime_sequence(%a: memref<2x8xbf16>, %b: memref<4xf32>) {
      aiex.npu.dma_memcpy_nd(%a[0,0,1,2][1,1,1,16][0,0,8,1]) \
{id = 3 : i64, metadata = @in, issue_token = true} : memref<2x8xbf16>
      aiex.npu.dma_wait {symbol = @in}
    }
  }
}
"""


# What releases of mlir-aie from 1.4 on write otherwise.
LATER = changed(
    SMALL,
    ("@run(%a: memref<16xi32>) {\n",
     "@run(%a: memref<16xi32>) {\n"
     "      %three = arith.constant 3 : i32\n"
     "      %four = arith.constant 4 : i64\n"
     "      aiex.npu.rtp_write(@rtp, 0, %three) : i32\n"),
    ("[0,0,0,0][1,1,1,16]", "[0,0,0,%four][1,%four,1,%four]"),
)  # fmt: skip


def module_of(device: DeviceOp) -> ModuleOp:
    module = device.get_toplevel_object()
    assert isinstance(module, ModuleOp)
    return module


def refusal(text: str) -> str:
    with pytest.raises(DesignError) as caught:
        read_design(text, "small.mlir")
    return str(caught.value)


@pytest.mark.parametrize("name", golden.NAMES)
def test_golden_design_is_read(name: str) -> None:
    device = read_design(golden.design(name), f"{name}.mlir")
    assert device.device.data.value == (
        "npu1" if "column" in name or "sixteen" in name else "npu1_1col"
    )


@pytest.mark.parametrize("name", golden.NAMES)
def test_every_operation_knows_its_line(name: str) -> None:
    text = golden.design(name)
    lines = text.splitlines()
    located = set()
    for op in read_design(text, "some.mlir").walk():
        if isinstance(op.location, FileLineColLoc):
            line = op.location.line.data
            assert place(op) == f"some.mlir:{line}"
            assert op.name in lines[line - 1]
            assert lines[line - 1].find(lines[line - 1].strip()) + 1 == op.location.column.data
            located.add(line)
    assert located == {n for n, line in enumerate(lines, 1) if re.search(r"\b[a-z]+\.[a-z]", line)}


@pytest.mark.parametrize("text", [*map(golden.design, golden.NAMES), SMALL, ALL_SYNTAX, LATER])
def test_printed_design_reads_back_equal(text: str) -> None:
    module = module_of(read_design(text))
    again = module_of(read_design(str(module)))
    assert again.is_structurally_equivalent(module)


def test_designs_that_differ_are_not_equal() -> None:
    one, other = (
        read_design(SMALL),
        read_design(changed(SMALL, ("@a(Consume, 1)", "@a(Consume, 2)"))),
    )
    assert not module_of(one).is_structurally_equivalent(module_of(other))


def test_module_around_the_device_may_be_left_out() -> None:
    assert read_design("aie.device(npu1) { %t = aie.tile(0, 2) }").device.data.value == "npu1"


ACCESS = (
    "%x = aie.objectfifo.subview.access %s[0] : !aie.objectfifosubview<memref<16xi32>> "
    "-> memref<8xi32>\n      "
)

# What is changed, what it becomes, the line to blame, what the message says.
REFUSED = {
    "punctuation is missing": ("(0, 2)", "(0 2)", 4, "Expected ','"),
    "unknown operation": ("aie.tile(0, 2)", "aie.lock(0, 2)", 4, "aie.lock"),
    "unknown device": ("npu1_1col", "npu1_4col", 2, "npu1_2col"),
    "unknown port": ("@a(Consume, 1) :", "@a(Eat, 1) :", 9, "`Consume`"),
    "type forgotten": ("2 : i32) : !aie.objectfifo<memref<16xi32>>", "2 : i32)", 6, "Expected ':'"),
    "core without aie.end": ("      aie.end\n", "", 8, "must end with aie.end"),
    "depth without its type": ("2 : i32)", "2)", 5, "i32"),
    "depth of another type": ("2 : i32)", "2 : i64)", 5, "i32"),
    "too few depths": ("2 : i32)", "[2])", 5, "one for each of its 1 consumers"),
    "too many depths": ("2 : i32)", "[2, 2, 2])", 5, "gives 3 depths"),
    "number beyond its type": ("1024 : i32", "4294967296 : i32", 6, "4294967296"),
    "symbol defined twice": ('"rtp"', '"a"', 2, 'symbol "a"'),
    "unknown function": ("func.call @use", "func.call @lose", 11, "@lose"),
    "access of another type": (
        "func.call @use(%e)",
        ACCESS + "func.call @use(%e)",
        11,
        "memref<8xi32>",
    ),
    "acquire of a memref": (
        "!aie.objectfifosubview<memref<16xi32>>\n",
        "memref<16xi32>\n",
        9,
        "that of mlir-aie after August 2026, which gives memrefs, is not read here",
    ),
    "acquire of nothing": ("@a(Consume, 1) :", "@a(Consume, 0) :", 9, "a count of 0 elements"),
    "release of nothing": ("@a(Consume, 1)\n", "@a(Consume, -1)\n", 12, "a count of -1 elements"),
    "element of another shape": (
        "{%core}, 2 : i32) : !aie.objectfifo<memref<16xi32>>",
        "{%core}, 2 : i32) : !aie.objectfifo<memref<4x4xi32>>",
        9,
        "elements of @a are memref<4x4xi32>, not memref<16xi32> as the acquire says",
    ),
    "offset before the buffer": ("[0,0,0,0][1", "[0,0,-1,0][1", 16, "must not be negative"),
    "offset that is lost": (
        "[0,0,0,0][1",
        "[2,0,0,0][1",
        16,
        "an offset of 2 with a stride of 0 is lost",
    ),
    "offset that is no constant": ("[0,0,0,0][1", "[0,0,0,%i][1", 15, "constants"),
    "size that is no constant": ("[1,1,1,16]", "[1,1,%i,16]", 15, "constants"),
    "stride that is no constant": ("[0,0,0,1]", "[0,%i,0,1]", 15, "constants"),
    "three dimensions": ("[0,0,0,0][1,1,1,16]", "[0,0,0,0][1,1,16]", 16, "four sizes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_ill_formed_design_is_refused_with_its_place(case: str) -> None:
    old, new, line, why = REFUSED[case]
    text = changed(SMALL, (old, new))
    if "%i" in new:
        text = changed(text, ("%a: memref<16xi32>) {", "%a: memref<16xi32>, %i: i64) {"))
        line += 1
    message = refusal(text)
    assert f"small.mlir:{line}" in message
    assert why in message


LATER_REFUSED = {
    "value without its type": ("%three) : i32", "%three)", "Expected ':' and the type i32"),
    "value of another type": ("%three) : i32", "%three) : i64", "has type i64; i32 is allowed"),
    "constant of another type": ("3 : i32", "3 : i64", "type i32"),
    "value that is missing": (", %three) : i32", ")", "which value to write is missing"),
    "number with a type": ("%three) : i32", "3) : i32", "aiex.npu.rtp_write(@rtp, 0, 3) : i32"),
    "value that is computed": (
        "aiex.npu.rtp_write(@rtp, 0, %three)",
        "%six = arith.addi %three, %three : i32 aiex.npu.rtp_write(@rtp, 0, %six)",
        "the value of a runtime parameter must be a constant",
    ),
    "offset that is negative": ("4 : i64", "-4 : i64", "offsets must not be negative"),
}


@pytest.mark.parametrize("case", LATER_REFUSED)
def test_ill_formed_later_syntax_is_refused_with_its_place(case: str) -> None:
    old, new, why = LATER_REFUSED[case]
    message = refusal(changed(LATER, (old, new)))
    assert re.search(r"small\.mlir:(18|19)", message) and why in message


def test_value_used_before_its_definition_is_refused() -> None:
    tile = "    %core = aie.tile(0, 2)\n"
    message = refusal(changed(SMALL, (tile, ""), ("    %buffer", f"{tile}    %buffer")))
    assert "small.mlir:4" in message
    assert "%core before or outside its definition" in message


@pytest.mark.parametrize("before", ["    aie.core", "    aie.runtime_sequence"])
def test_value_of_a_sibling_region_is_refused(before: str) -> None:
    """xDSL minds only an earlier sibling, and says no more than that the value is not known."""
    sibling = (
        "    %other = aie.tile(0, 3)\n"
        "    aie.core(%other) {\n"
        "      func.call @use(%e) : (memref<16xi32>) -> ()\n"
        "      aie.end\n    }\n"
    )
    message = refusal(changed(SMALL, (before, f"{sibling}{before}")))
    assert "small.mlir:" in message
    assert "%e" in message
    if before == "    aie.core":
        assert message == "small.mlir:10: func.call uses %e before or outside its definition"


BRANCHES = """\
aie.device(npu1_1col) {
  %core = aie.tile(0, 2)
  aie.core(%core) {
    %true = arith.constant true
    cf.cond_br %true, ^left, ^right
  ^left:
    %x = arith.constant 1 : i32
    cf.br ^end
  ^right:
    cf.br ^end
  ^end:
    %y = arith.addi %x, %x : i32
    aie.end
  }
}
"""


def test_value_of_one_branch_only_is_refused() -> None:
    message = refusal(BRANCHES)
    assert message == "small.mlir:12: arith.addi uses %x before or outside its definition"
    both = changed(BRANCHES, ("cf.cond_br %true, ^left, ^right", "cf.br ^left"))
    assert read_design(both)  # the other way leads nowhere


def test_text_that_is_none_is_refused() -> None:
    for text, why in (("", "is empty"), (" \n", "is empty"), ("a\0b", "holds binary data")):
        with pytest.raises(DesignError, match=f"m.mlir {why}"):
            read_design(text, "m.mlir")


def test_value_that_is_never_defined_is_refused_by_name() -> None:
    message = refusal(changed(SMALL, ("@a(%shim", "@a(%ship")))
    assert "small.mlir:" in message
    assert "%ship" in message


def test_value_from_around_the_device_is_refused() -> None:
    tile, device = "    %shim = aie.tile(0, 0)\n", "  aie.device(npu1_1col) {\n"
    message = refusal(changed(SMALL, (device + tile, tile + device)))
    assert message == "small.mlir:5: aie.objectfifo uses %shim before or outside its definition"


def test_two_devices_are_refused_at_the_second() -> None:
    device = "aie.device(npu1) { %t = aie.tile(0, 2) }"
    assert "small.mlir:1: holds 2 aie.device" in refusal(f"{device} {device}")
    assert "small.mlir:19: holds 2 aie.device" in refusal(f"{SMALL[:-2]}{device}\n}}\n")


def test_text_without_a_device_is_refused() -> None:
    assert (
        refusal("module {}") == "small.mlir: holds 0 aie.device operations; exactly one is needed"
    )


def test_refusal_of_a_long_line_is_cut() -> None:
    message = refusal(changed(SMALL, ("(0, 2)", f"(0 2) // {'long ' * 200}")))
    assert "small.mlir:4" in message
    assert message.endswith(" ...")
    assert len(message) < 700
