"""A lowered core executes its blocks as MLIR means them, and what it does not know is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from comparing import assert_equal_bits
from golden import changed
from hypothesis import given, settings
from hypothesis import strategies as st
from lowered_modules import every_schedule, machine, text

from npu_matmul.emulator import EmulationError
from npu_matmul.lowered.core import AlignmentError
from npu_matmul.lowered.machine import LoweredMachine
from npu_matmul.lowered.memory import RaceError
from npu_matmul.mlir.reader import DesignError

# A core that computes something once, then waits for a lock that nobody gives.
ALONE = """\
aie.device(npu1_1col) {{
  %tile = aie.tile(0, 2)
  %north = aie.tile(0, 3)
  %never = aie.lock(%tile, 0) {{init = 0 : i32, sym_name = "never"}}
  %in = aie.buffer(%tile) {{address = 64 : i32, sym_name = "in"}} : memref<4x2xi32> = dense<{given}>
  %out = aie.buffer(%tile) {{address = 1088 : i32, sym_name = "out"}} : memref<8xi32>
  %core = aie.core(%tile) {{
    %c0 = arith.constant 0 : index
    %c1 = arith.constant 1 : index
    %c2 = arith.constant 2 : index
    %a = memref.load %in[%c0, %c0] : memref<4x2xi32>
    %b = memref.load %in[%c0, %c1] : memref<4x2xi32>
{body}
    cf.br ^wait
  ^wait:
    aie.use_lock(%never, AcquireGreaterEqual, 1)
    cf.br ^wait
  ^end:
    aie.end
  }} {{stack_size = 64 : i32}}
}}
"""


def alone(body: str, given: list[list[int]] | None = None) -> LoweredMachine:
    given = given or [[5, -3], [7, 11], [13, 17], [19, 23]]
    return machine(ALONE.format(body=body, given=given))


I32 = st.integers(-(2**31), 2**31 - 1)
# NumPy's own arithmetic on int32 and uint32; division towards zero as C does it.
BINARY = {
    "addi": lambda a, b: a + b,
    "subi": lambda a, b: a - b,
    "muli": lambda a, b: a * b,
    "andi": lambda a, b: a & b,
    "ori": lambda a, b: a | b,
    "xori": lambda a, b: a ^ b,
    "minsi": np.minimum,
    "maxsi": np.maximum,
    "divsi": lambda a, b: np.trunc(a.astype(np.float64) / b.astype(np.float64)).astype(np.int64),
    "remsi": lambda a, b: np.fmod(a, b),
    "divui": lambda a, b: (a.view(np.uint32) // b.view(np.uint32)).view(np.int32),
    "remui": lambda a, b: (a.view(np.uint32) % b.view(np.uint32)).view(np.int32),
    "minui": lambda a, b: np.minimum(a.view(np.uint32), b.view(np.uint32)).view(np.int32),
    "maxui": lambda a, b: np.maximum(a.view(np.uint32), b.view(np.uint32)).view(np.int32),
}


@given(I32, I32)
@settings(max_examples=12, deadline=None)
def test_integers_wrap_around_as_numpys_do(a: int, b: int) -> None:
    names = [name for name in BINARY if b or not name.startswith(("div", "rem"))]
    body = "\n".join(f"    %r{n} = arith.{name} %a, %b : i32" for n, name in enumerate(names))
    booted = alone(body + "\n" + _stores(len(names)), [[a, b], [0, 0], [0, 0], [0, 0]])
    x, y = np.array([a], np.int32), np.array([b], np.int32)
    want = [np.asarray(BINARY[name](x, y)).astype(np.int32)[0] for name in names]
    assert booted.memory("out").tolist() == _kept(want)


def _stores(count: int) -> str:
    """More results than places: the last ones stay, each at its number modulo 8."""
    lines = [f"    %p{n} = arith.constant {n % 8} : index" for n in range(count)]
    return "\n".join(
        lines + [f"    memref.store %r{n}, %out[%p{n}] : memref<8xi32>" for n in range(count)]
    )


def _kept(values: list[Any]) -> list[int]:
    return [int([v for n, v in enumerate(values) if n % 8 == place][-1]) for place in range(8)]


PREDICATES = {
    "eq": np.equal, "ne": np.not_equal, "slt": np.less, "sle": np.less_equal,
    "sgt": np.greater, "sge": np.greater_equal, "ult": np.less, "ule": np.less_equal,
    "ugt": np.greater, "uge": np.greater_equal,
}  # fmt: skip


@pytest.mark.parametrize("predicate", PREDICATES)
@pytest.mark.parametrize(("a", "b"), [(5, -3), (-3, 5), (-3, -3), (0, 2**31 - 1), (-(2**31), 1)])
def test_comparisons_are_numpys(predicate: str, a: int, b: int) -> None:
    x, y = np.array([a], np.int32), np.array([b], np.int32)
    if predicate.startswith("u"):
        x, y = x.view(np.uint32), y.view(np.uint32)
    got = _compared(predicate, a, b)
    assert got == int(PREDICATES[predicate](x, y)[0])


def _compared(predicate: str, a: int, b: int) -> int:
    body = (
        f"    %r = arith.cmpi {predicate}, %a, %b : i32\n"
        "    %t = arith.extui %r : i1 to i32\n"
        "    memref.store %t, %out[%c0] : memref<8xi32>"
    )
    return int(alone(body, [[a, b], [0, 0], [0, 0], [0, 0]]).memory("out")[0])


@pytest.mark.parametrize(
    ("expression", "want"),
    [
        ("arith.shli %a, %b : i32", 40),
        ("arith.shrsi %a, %b : i32", 0),
        ("arith.select %true, %a, %b : i32", 5),
        ("arith.select %false, %a, %b : i32", 3),
    ],
)
def test_shifts_and_selections(expression: str, want: int) -> None:
    true = "    %true = arith.constant true\n    %false = arith.constant false\n"
    body = f"{true}    %r = {expression}\n    memref.store %r, %out[%c0] : memref<8xi32>"
    assert alone(body, [[5, 3], [0, 0], [0, 0], [0, 0]]).memory("out")[0] == want


def test_casts_keep_sign_or_not() -> None:
    body = """\
    %t = arith.trunci %a : i32 to i8
    %s = arith.extsi %t : i8 to i32
    %u = arith.extui %t : i8 to i32
    %x = arith.index_cast %b : i32 to index
    %y = arith.index_cast %x : index to i32
    %z = arith.index_castui %b : i32 to index
    %c32 = arith.constant 32 : index
    %h = arith.shrsi %z, %c32 : index
    %w = arith.index_cast %h : index to i32
    %c3 = arith.constant 3 : index
    memref.store %w, %out[%c3] : memref<8xi32>
    memref.store %s, %out[%c0] : memref<8xi32>
    memref.store %u, %out[%c1] : memref<8xi32>
    memref.store %y, %out[%c2] : memref<8xi32>"""
    out = alone(body, [[0x1F0, -3], [0, 0], [0, 0], [0, 0]]).memory("out")
    assert out[:4].tolist() == [-16, 240, -3, 0]


def test_branches_carry_values_all_at_once() -> None:
    """A swap: each block argument gets what the other was."""
    body = """\
    cf.br ^swap(%a, %b, %c0 : i32, i32, index)
  ^swap(%x: i32, %y: i32, %n: index):
    %m = arith.addi %n, %c1 : index
    %c3 = arith.constant 3 : index
    %more = arith.cmpi slt, %m, %c3 : index
    cf.cond_br %more, ^swap(%y, %x, %m : i32, i32, index), ^done(%x, %y : i32, i32)
  ^done(%p: i32, %q: i32):
    memref.store %p, %out[%c0] : memref<8xi32>
    memref.store %q, %out[%c1] : memref<8xi32>"""
    assert alone(body).memory("out")[:2].tolist() == [5, -3]


@pytest.mark.parametrize(("flag", "want"), [(0, 10), (1, 11), (2, 12), (-1, 12), (9, 12)])
def test_a_switch_takes_its_case_or_the_default(flag: int, want: int) -> None:
    body = """\
    %ten = arith.constant 10 : i32
    %eleven = arith.constant 11 : i32
    %twelve = arith.constant 12 : i32
    cf.switch %a : i32, [
      default: ^done(%twelve : i32),
      0: ^done(%ten : i32),
      1: ^done(%eleven : i32)
    ]
  ^done(%p: i32):
    memref.store %p, %out[%c0] : memref<8xi32>"""
    assert alone(body, [[flag, 0], [0, 0], [0, 0], [0, 0]]).memory("out")[0] == want


def test_elements_of_two_dimensions_are_row_major() -> None:
    body = """\
    %r = memref.load %in[%c2, %c1] : memref<4x2xi32>
    memref.store %r, %out[%c0] : memref<8xi32>"""
    assert alone(body).memory("out")[0] == 17


def test_small_elements_are_loaded_and_stored_by_themselves() -> None:
    source = ALONE.replace("memref<8xi32>", "memref<8xi8>").format(
        given=[[5, -3], [0, 0], [0, 0], [0, 0]],
        body="    %t = arith.trunci %b : i32 to i8\n"
        "    memref.store %t, %out[%c1] : memref<8xi8>\n"
        "    %u = memref.load %out[%c1] : memref<8xi8>\n"
        "    memref.store %u, %out[%c2] : memref<8xi8>",
    )
    assert_equal_bits(machine(source).memory("out")[1:3], np.array([-3, -3], np.int8))


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("    %r = arith.divsi %a, %c : i32", EmulationError, "arith.divsi by zero"),
        ("    %r = arith.shli %a, %b : i32", EmulationError, "by -3 of 32 bits"),
        ("    %x = arith.index_cast %b : i32 to index\n"
         "    memref.store %a, %out[%x] : memref<8xi32>", RaceError,
         "uses index -3 of @out, whose size is 8"),
        ("    %r = memref.load %in[%c1, %c2] : memref<4x2xi32>", RaceError,
         "uses index 2 of @in, whose size is 2"),
        ("    %r = memref.load %out[%c1] : memref<8xi32>", RaceError,
         "reads byte 4 of @out in core (0, 2), which nobody has written"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_an_error_with_its_place(
    body: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        alone("    %c = arith.constant 0 : i32\n" + body)
    assert message in str(caught.value)
    assert re.search(r"boot, after 0 kernel calls: .*m\.mlir:\d+", str(caught.value))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    %r = arith.sitofp %a : i32 to f32", "operation arith.sitofp is not supported"),
        ("    scf.for %i = %c0 to %c1 step %c1 {\n    }", "operation scf.for is not supported"),
        ("    %x = aie.tile(0, 4)", "operation aie.tile is not supported in a lowered core"),
    ],
)
def test_what_a_lowered_core_does_not_have_is_refused(body: str, message: str) -> None:
    with pytest.raises(DesignError) as caught:
        alone(body)
    assert message in str(caught.value)
    assert "m.mlir:13: core (0, 2)" in str(caught.value)


def test_a_core_uses_its_neighbours_memory_but_no_others() -> None:
    north = ALONE.format(
        given=[[1, 2], [3, 4], [5, 6], [7, 8]],
        body="    memref.store %b, %out[%c1] : memref<8xi32>",
    )
    near = changed(
        north, ("aie.buffer(%tile) {address = 1088", "aie.buffer(%north) {address = 1088")
    )
    assert machine(near).memory("out")[1] == 2
    far = changed(near, ("aie.tile(0, 3)", "aie.tile(0, 4)"))
    with pytest.raises(DesignError, match=r"core \(0, 2\) cannot reach core \(0, 4\)'s memory"):
        machine(far)


def test_a_core_uses_its_neighbours_locks_but_no_others() -> None:
    source = ALONE.format(given=[[1, 2], [3, 4], [5, 6], [7, 8]], body="")
    machine(changed(source, ("aie.lock(%tile, 0)", "aie.lock(%north, 0)")))
    far = changed(source, ("aie.lock(%tile, 0)", "aie.lock(%north, 0)"), ("(0, 3)", "(0, 5)"))
    with pytest.raises(DesignError, match=r"uses @never of core \(0, 5\), which it cannot reach"):
        machine(far)


def test_a_core_that_ends_is_refused() -> None:
    source = ALONE.format(given=[[1, 2], [3, 4], [5, 6], [7, 8]], body="")
    with pytest.raises(DesignError, match="its body ends; a core must loop for ever"):
        machine(changed(source, ("    cf.br ^wait\n", "    cf.br ^end\n")))


def test_a_symbol_without_a_model_is_refused() -> None:
    source = text("gemm_one_core").replace("@mm(", "@mystery(")
    with pytest.raises(DesignError, match="calls @mystery; there is a model of: zero, copy, mm"):
        machine(source)


def test_a_symbol_with_other_arguments_is_refused() -> None:
    with pytest.raises(DesignError, match="@copy takes 2 buffers and returns nothing"):
        machine(text("gemm_one_core").replace("@mm(", "@copy("))


def test_vectors_must_be_aligned() -> None:
    """Hardware would drop the low bits of the address."""
    source = changed(text("gemm_one_core"), ("address = 1088 : i32", "address = 4176 : i32"))
    with pytest.raises(AlignmentError) as caught:
        machine(source)
    assert re.fullmatch(
        r"boot, after 0 kernel calls: core \(0, 2\) at m\.mlir:62 passes @zero @c_buff_0 at "
        r"address 4176: its vectors need a multiple of 32, or hardware drops the low bits",
        str(caught.value),
    )


LOOPED = """\
aie.device(npu1_1col) {
  %tile = aie.tile(0, 2)
  %empty = aie.lock(%tile, 0) {init = 1 : i32, sym_name = "empty"}
  %full = aie.lock(%tile, 1) {init = 0 : i32, sym_name = "full"}
  %x = aie.buffer(%tile) {address = 1024 : i32, sym_name = "x"} : memref<64xi32> = dense<1>
  %y = aie.buffer(%tile) {address = 2048 : i32, sym_name = "y"} : memref<16xi32>
  aie.flow(%tile, DMA : 0, %tile, DMA : 0)
  %mem = aie.mem(%tile) {
    %0 = aie.dma_start(S2MM, 0, ^in, ^next)
  ^in:
    aie.use_lock(%empty, AcquireGreaterEqual, 1)
    aie.dma_bd(%y : memref<16xi32>) {bd_id = 0 : i32, next_bd_id = 0 : i32}
    aie.use_lock(%full, Release, 1)
    aie.next_bd ^in
  ^next:
    %1 = aie.dma_start(MM2S, 0, ^out, ^end)
  ^out:
    aie.dma_bd(%x : memref<64xi32>) {bd_id = 1 : i32}
    aie.next_bd ^end
  ^end:
    aie.end
  }
  %core = aie.core(%tile) {
    %last = arith.constant 63 : index
    %one = arith.constant 1 : i32
    aie.use_lock(%full, AcquireGreaterEqual, 1)
    memref.store %one, %x[%last] : memref<64xi32>
    aie.use_lock(%full, AcquireGreaterEqual, 1)
    aie.end
  }
}
"""


def test_words_that_came_say_nothing_of_those_still_to_be_read() -> None:
    """The core got the first words of a transfer; the last ones are still in the sender's memory,
    where it must not write."""
    for schedule in every_schedule(16):
        with pytest.raises(RaceError) as caught:
            machine(LOOPED, schedule)
        assert re.fullmatch(
            r"boot, after 0 kernel calls: core \(0, 2\) at m\.mlir:27 writes byte 252 of @x in "
            r"core \(0, 2\), which core \(0, 2\) MM2S 0 reads, and nothing orders the one after "
            r"the other; core \(0, 2\) holds @y",
            str(caught.value),
        )
