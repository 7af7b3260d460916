"""How many elements fit between the actors: what the toolchain makes of a design's depths."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from golden import changed, launch, machine, synced, unsynced

from npu_matmul.emulator.machine import Deadlock
from npu_matmul.mlir.reader import DesignError
from npu_matmul.sequence import Argument, Sequence, Transfer, Wait, linear

# The core takes SIZE elements of @in for each element of @go, and answers with one of @out.
GATED = """\
aie.device(npu1_1col) {
  %shim = aie.tile(0, 0)
  %mem = aie.tile(0, 1)
  %core = aie.tile(0, 2)
  aie.objectfifo @in(%shim, {%core}, DEPTH) : !aie.objectfifo<memref<16xi32>>
  aie.objectfifo @go(%shim, {%core}, 4 : i32) : !aie.objectfifo<memref<16xi32>>
  aie.objectfifo @out(%core, {%shim}, 2 : i32) : !aie.objectfifo<memref<16xi32>>
  func.func private @copy(memref<16xi32>, memref<16xi32>)
  aie.core(%core) {
    %c0 = arith.constant 0 : index
    %c1 = arith.constant 1 : index
    %max = arith.constant 9223372036854775807 : index
    scf.for %o = %c0 to %max step %c1 {
      %g = aie.objectfifo.acquire @go(Consume, 1) : !aie.objectfifosubview<memref<16xi32>>
      %i = aie.objectfifo.acquire @in(Consume, SIZE) : !aie.objectfifosubview<memref<16xi32>>
      %a = aie.objectfifo.subview.access %i[0] : !aie.objectfifosubview<memref<16xi32>> \
-> memref<16xi32>
      %p = aie.objectfifo.acquire @out(Produce, 1) : !aie.objectfifosubview<memref<16xi32>>
      %b = aie.objectfifo.subview.access %p[0] : !aie.objectfifosubview<memref<16xi32>> \
-> memref<16xi32>
      func.call @copy(%a, %b) : (memref<16xi32>, memref<16xi32>) -> ()
      aie.objectfifo.release @go(Consume, 1)
      aie.objectfifo.release @in(Consume, SIZE)
      aie.objectfifo.release @out(Produce, 1)
    }
    aie.end
  }
}
"""

VIA_MEMTILE = (
    "@in(%shim, {%core}, DEPTH) : !aie.objectfifo<memref<16xi32>>",
    "@from(%shim, {%mem}, 3 : i32) : !aie.objectfifo<memref<16xi32>>\n"
    "  aie.objectfifo @in(%mem, {%core}, DEPTH) : !aie.objectfifo<memref<16xi32>>\n"
    "  aie.objectfifo.link [@from] -> [@in]([] [])",
)


def send_before_go(text: str, elements: int, size: int, fifo: str = "in") -> None:
    """Wait until ``elements`` of @in are in the array; only then let the core take any."""
    rounds = -(-elements // size)
    sizes = [Argument(name, 1 << 10, np.dtype(np.int32)) for name in ("x", "y")]
    rest = rounds * size - elements
    later = [Transfer(fifo, 0, descriptor=3, **linear(elements * 16, rest * 16))] if rest else []
    steps = (
        Transfer("out", 1, descriptor=0, **linear(0, rounds * 16)),
        Transfer(fifo, 0, descriptor=1, token=True, **linear(0, elements * 16)),
        Wait(fifo),
        Transfer("go", 0, descriptor=2, **linear(0, rounds * 16)),
        *later,
        Wait("out"),
    )
    words, out = np.arange(1 << 10, dtype=np.int32), unsynced(1 << 12)
    launch(machine(text), Sequence("gated", tuple(sizes), steps), [synced(words), out])
    got = out.words[: rounds * 16].reshape(rounds, 16)
    assert got.tolist() == words[: rounds * size * 16].reshape(rounds, -1)[:, :16].tolist()


def split(depths: dict[str, str]) -> str:
    text = golden.SPLIT
    for name in ("in", "in_1", "in_2", "out_1", "out_2", "out"):
        line = next(line for line in text.splitlines() if f"@{name}(" in line)
        text = changed(text, (line, line.replace("2 : i32", depths.get(name, "[1, 1]"))))
    return text


def send_before_receiving(text: str, elements: int, size: int) -> None:
    """Wait until ``elements`` are in the array; only then start taking them out."""
    words, out = np.arange(elements * size, dtype=np.int32), unsynced(elements * 32 * 4)
    sizes = [Argument(name, 1 << 10, words.dtype) for name in ("x", "y")]
    steps = (
        Transfer("in", 0, descriptor=1, token=True, **linear(0, words.size)),
        Wait("in"),
        Transfer("out", 1, descriptor=0, **linear(0, elements * 32)),
        Wait("out"),
    )
    launch(machine(text), Sequence("split", tuple(sizes), steps), [synced(words), out])
    rows = words.reshape(elements, -1)
    assert out.words.reshape(elements, 32).tolist() == np.hstack([rows] * (32 // size)).tolist()


def gated(depth: str, size: int) -> str:
    return GATED.replace("DEPTH", depth).replace("SIZE", str(size))


@pytest.mark.parametrize(
    ("depth", "size", "fits"),
    [
        ("1 : i32", 1, 1),
        ("2 : i32", 1, 2),
        ("4 : i32", 1, 2),  # a scalar gives what the core acquires, plus one
        ("4 : i32", 2, 3),
        ("4 : i32", 3, 4),
        ("2 : i32", 2, 3),  # one more than the depth: the core acquires all of them at once
        ("[4, 4]", 1, 4),  # an array is kept
        ("[1, 4]", 1, 4),  # the first is at the producer, a shim, which has no buffers
        ("[4, 2]", 1, 2),
        ("[4, 4]", 2, 4),
    ],
)
def test_core_side_holds_as_many_elements_as_the_toolchain_makes(
    depth: str, size: int, fits: int
) -> None:
    send_before_go(gated(depth, size), fits, size)
    with pytest.raises(Deadlock, match=r"@in\) waits for a free element of @in in core \(0, 2\)"):
        send_before_go(gated(depth, size), fits + 1, size)


def test_depth_follows_what_is_acquired_of_the_fifo_itself() -> None:
    """Three elements of @go at a time make four buffers of @go, but still two of @in."""
    text = gated("4 : i32", 1).replace("@go(Consume, 1)", "@go(Consume, 3)")
    with pytest.raises(Deadlock, match=r"@in\) waits for a free element of @in in core \(0, 2\)"):
        send_before_go(text, 3, 1)


@pytest.mark.parametrize(("depth", "at_core"), [("4 : i32", 2), ("[3, 1]", 1)])
def test_memtile_holds_as_many_elements_as_are_written(depth: str, at_core: int) -> None:
    text = changed(GATED, VIA_MEMTILE).replace("SIZE", "1").replace("DEPTH", depth)
    send_before_go(text, 3 + at_core, 1, fifo="from")
    with pytest.raises(Deadlock, match=r"waits for a free element of @from in memtile \(0, 1\)"):
        send_before_go(text, 3 + at_core + 1, 1, fifo="from")


# Of the FIFOs on the way, one in turn with more buffers on one side: how many elements fit in all
# between the shim's two channels, with one buffer everywhere else.
CAPACITY = {
    "everywhere one": ({}, 4),
    "shim that feeds a distribution": ({"in": "[3, 1]"}, 4),
    "distribution": ({"in": "[1, 3]"}, 6),
    "before the piece": ({"in_1": "[3, 1]", "in_2": "[3, 1]"}, 4),
    "core's input": ({"in_1": "[1, 3]", "in_2": "[1, 3]"}, 6),
    "one core's input": ({"in_1": "[1, 3]"}, 4),
    "core's output": ({"out_1": "[3, 1]", "out_2": "[3, 1]"}, 6),
    "after the piece": ({"out_1": "[1, 3]", "out_2": "[1, 3]"}, 4),
    "join": ({"out": "[3, 1]"}, 6),
    "shim that a join feeds": ({"out": "[1, 3]"}, 4),
}


@pytest.mark.parametrize("case", CAPACITY)
def test_every_buffer_on_the_way_is_on_the_side_it_is_written_for(case: str) -> None:
    depths, fits = CAPACITY[case]
    send_before_receiving(split(depths), fits, 32)
    with pytest.raises(Deadlock, match="waits for a free element of @in in memtile"):
        send_before_receiving(split(depths), fits + 1, 32)


def test_broadcast_waits_for_its_slowest_reader() -> None:
    whole = "aie.objectfifo @in(%shim, {%one, %two}, [9, 1, 3]) : !aie.objectfifo<memref<16xi32>>\n"
    text = split({})
    start, end = text.index("    aie.objectfifo @in("), text.index("    aie.objectfifo @out_1")
    text = text[:start] + whole + text[end:].replace("@in_1", "@in").replace("@in_2", "@in")
    send_before_receiving(text, 3, 16)
    with pytest.raises(Deadlock, match=r"waits for a free element of @in in core \(0, 2\)"):
        send_before_receiving(text, 4, 16)


def test_core_that_acquires_more_than_the_depth_is_refused() -> None:
    with pytest.raises(DesignError, match=r"core \(0, 2\) acquires 3 of @in .*, which has 2"):
        machine(gated("2 : i32", 3))


LINKED = """\
aie.device(npu1_1col) {
  %shim = aie.tile(0, 0)
  %mem = aie.tile(0, 1)
  %core = aie.tile(0, 2)
  aie.objectfifo @in(%shim, {%mem}, 2 : i32) : !aie.objectfifo<memref<16xi32>>
  aie.objectfifo @to(%mem, {%core}, 2 : i32) : !aie.objectfifo<memref<16xi32>>
  aie.objectfifo.link [@in] -> [@to]([] [])
}
"""


def test_fifo_that_ends_in_a_memtile_is_refused() -> None:
    machine(LINKED)
    link = "  aie.objectfifo.link [@in] -> [@to]([] [])\n"
    with pytest.raises(DesignError, match=r"@in: it ends in memtile \(0, 1\) without a link"):
        machine(changed(LINKED, (link, "")))


def test_fifo_that_starts_in_a_memtile_is_refused() -> None:
    start, end = LINKED.index("  aie.objectfifo @in"), LINKED.index("  aie.objectfifo @to")
    text = LINKED[:start] + LINKED[end:]
    link = "  aie.objectfifo.link [@in] -> [@to]([] [])\n"
    with pytest.raises(DesignError, match=r"@to: it starts in memtile \(0, 1\) without a link"):
        machine(changed(text, (link, "")))


def test_layout_at_a_core_beside_a_shim_is_refused() -> None:
    dims = "@out(%core dimensionsToStream [<size = 16, stride = 1>]"
    text = changed(gated("2 : i32", 1), ("@out(%core", dims))
    with pytest.raises(DesignError, match="@out: layout transformations beside a shim"):
        machine(text)


def test_layout_at_the_other_end_of_a_shims_fifo_is_refused() -> None:
    dims = "{%mem dimensionsFromStream [<size = 16, stride = 1>]}"
    with pytest.raises(DesignError, match="@in: layout transformations beside a shim"):
        machine(changed(LINKED, ("{%mem}", dims)))
