"""A core's body is run as the toolchain lowers it, or refused with the line to blame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from golden import launch, synced, unsynced
from numpy.typing import NDArray

from npu_matmul.emulator import EmulationError
from npu_matmul.emulator.machine import Machine, RestStateError
from npu_matmul.mlir.elaborate import overlay_of
from npu_matmul.mlir.reader import DesignError, read_design
from npu_matmul.sequence import Argument, Sequence, Transfer, Wait, WriteParameter, linear

BEFORE = """\
aie.device(npu1_1col) {
  %shim = aie.tile(0, 0)
  %core = aie.tile(0, 2)
  %other = aie.tile(0, 3)
  aie.objectfifo @in(%shim, {%core}, [4, 4]) : !aie.objectfifo<memref<16xi32>>
  aie.objectfifo @out(%core, {%shim}, [4, 4]) : !aie.objectfifo<memref<16xi32>>
  %rtp = aie.buffer(%core) {sym_name = "rtp", address = 1024 : i32} : memref<16xi32>
  %far = aie.buffer(%other) {sym_name = "far", address = 1024 : i32} : memref<16xi32>
  %bytes = aie.buffer(%core) {sym_name = "bytes", address = 2048 : i32} : memref<16xi8>
  %square = aie.buffer(%core) {sym_name = "square", address = 4096 : i32} : memref<4x4xi32>
  func.func private @use(memref<16xi32>)
  func.func private @strange(memref<16xi32>)
  func.func private @answer(memref<16xi32>) -> i32
  aie.core(%core) {
    %c0 = arith.constant 0 : index
    %c1 = arith.constant 1 : index
    %c2 = arith.constant 2 : index
    %max = arith.constant 9223372036854775807 : index
    scf.for %o = %c0 to %max step %c1 {
"""
AFTER = "    }\n    aie.end\n  }\n}\n"
FIRST_LINE = BEFORE.count("\n") + 1
LOOP_LINE, CORE_LINE = FIRST_LINE - 1, FIRST_LINE - 6

Lines = list[str]


def acquire(name: str, size: int = 1, fifo: str = "in", port: str = "Consume") -> str:
    view = "!aie.objectfifosubview<memref<16xi32>>"
    return f"%{name} = aie.objectfifo.acquire @{fifo}({port}, {size}) : {view}"


def access(name: str, view: str, index: int = 0) -> str:
    types = "!aie.objectfifosubview<memref<16xi32>> -> memref<16xi32>"
    return f"%{name} = aie.objectfifo.subview.access %{view}[{index}] : {types}"


def call(name: str, symbol: str = "use") -> str:
    return f"func.call @{symbol}(%{name}) : (memref<16xi32>) -> ()"


def release(size: int = 1, fifo: str = "in", port: str = "Consume") -> str:
    return f"aie.objectfifo.release @{fifo}({port}, {size})"


def load(buffer: str, index: str, kind: str) -> str:
    return f"%w = memref.load %{buffer}[{index}] : memref<{kind}>"


def loop(*body: str, name: str = "k", to: str = "c2") -> Lines:
    return [f"scf.for %{name} = %c0 to %{to} step %c1 {{", *body, "}"]


GOOD = [acquire("s"), access("e", "s"), call("e"), release()]
INSIDE = [acquire("i"), access("f", "i"), call("f"), release()]  # the same under other names


def boot(body: Lines, seen: list[NDArray[Any]] | None = None) -> Machine:
    """A machine whose core repeats ``body``; the elements given to @use are noted in ``seen``."""
    text = BEFORE + "".join(f"{line}\n" for line in body) + AFTER
    noted = [] if seen is None else seen
    models = {"use": lambda element: noted.append(element.copy()), "answer": lambda element: None}
    return Machine(overlay_of(read_design(text)), models)


def send(machine: Machine, elements: int, *before: WriteParameter) -> None:
    """One launch that sends elements [0..16), [16..32), ... and waits for their transfer."""
    words = np.arange(elements * 16, dtype=np.int32)
    given = Argument("x", words.size, words.dtype)
    transfer = Transfer("in", 0, descriptor=0, token=True, **linear(0, words.size))
    launch(machine, Sequence("send", (given,), (*before, transfer, Wait("in"))), [synced(words)])


def refusal(body: Lines, line: int) -> str:
    with pytest.raises(DesignError) as caught:
        boot(body)
    assert str(caught.value).startswith(f"design.mlir:{line}: core (0, 2)")
    return str(caught.value)


def firsts(seen: list[NDArray[Any]]) -> list[int]:
    return [int(element[0]) // 16 for element in seen]


def test_elements_arrive_in_order() -> None:
    seen: list[NDArray[Any]] = []
    send(boot(GOOD, seen), 3)
    assert [element.tolist() for element in seen] == np.arange(48).reshape(3, 16).tolist()


def test_several_elements_are_held_at_once() -> None:
    seen: list[NDArray[Any]] = []
    both = [acquire("s", 2), access("a", "s", 1), access("b", "s", 0)]
    send(boot([*both, call("a"), call("b"), release(2)], seen), 4)
    assert firsts(seen) == [1, 0, 3, 2]


def test_acquiring_what_is_held_gives_the_same_elements() -> None:
    """Acquire 1, then 2: two in all, as the toolchain counts; the first is the one held before."""
    seen: list[NDArray[Any]] = []
    more = [acquire("s"), acquire("t", 2), access("a", "t", 0), access("b", "t", 1)]
    send(boot([*more, call("a"), call("b"), release(2)], seen), 4)
    assert firsts(seen) == [0, 1, 2, 3]


def test_elements_may_be_released_one_by_one() -> None:
    seen: list[NDArray[Any]] = []
    two = [acquire("s", 2), access("a", "s", 0), access("b", "s", 1)]
    send(boot([*two, call("a"), release(), call("b"), release()], seen), 4)
    assert firsts(seen) == [0, 1, 2, 3]


def test_loop_runs_from_lower_to_upper() -> None:
    seen: list[NDArray[Any]] = []
    send(boot([*loop(*INSIDE), *GOOD], seen), 3)
    assert firsts(seen) == [0, 1, 2]


def test_loops_need_not_acquire_themselves() -> None:
    seen: list[NDArray[Any]] = []
    send(boot([*loop(*loop(*GOOD, name="l"))], seen), 8)
    assert firsts(seen) == [*range(8)]
    seen.clear()
    send(boot([*GOOD[:2], *loop(call("e")), release()], seen), 2)
    assert firsts(seen) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "inside", [[], [*loop(*GOOD, name="l", to="c0")]], ids=["nothing", "no rounds"]
)
def test_loop_that_never_waits_is_an_error(inside: Lines) -> None:
    with pytest.raises(EmulationError) as caught:
        boot(["%x = arith.constant 1 : index", *loop(*inside, to="max")])
    assert str(caught.value) == (
        f"design.mlir:{FIRST_LINE + 1}: core (0, 2): 100,000 rounds of loops without an acquire; "
        "a core that waits for nothing never ends"
    )


def test_counted_loop_before_the_endless_one_is_part_of_the_rest_state() -> None:
    """Warm-up of two rounds: after a launch of one element the core is not where it was."""
    endless = BEFORE.splitlines()[-1]
    warm_up = "\n".join([*loop(*INSIDE, name="warm"), endless])
    text = BEFORE.replace(endless, warm_up) + "\n".join(GOOD) + "\n" + AFTER
    machine = Machine(overlay_of(read_design(text)), {"use": lambda element: None})
    with pytest.raises(RestStateError, match=r"its loops than at rest: \(1,\) against"):
        send(machine, 1)


def test_parameter_is_read_again_in_every_round() -> None:
    seen: list[NDArray[Any]] = []
    steps = ["%n = arith.index_cast %w : i32 to index", *loop(*INSIDE, to="n")]
    machine = boot([*GOOD[:-1], load("rtp", "%c2", "16xi32"), release(), *steps], seen)
    for steps_of_k in (2, 0, 3):
        send(machine, 1 + steps_of_k, WriteParameter("rtp", 2, steps_of_k))
    assert firsts(seen) == [0, 1, 2, 0, 0, 1, 2, 3]


# A body, the index of the line to blame, what the message says.
UNBALANCED: dict[str, tuple[Lines, int, str]] = {
    "released twice": ([*GOOD, release()], 4, "releases more of @in"),
    "released more than acquired": ([*GOOD[:-1], release(2)], 3, "releases more of @in"),
    "released before it is acquired": ([release(), acquire("s")], 0, "releases more of @in"),
    "never released": (GOOD[:-1], 0, "acquires @in and does not release it"),
    "released in part": ([acquire("s", 2), release()], 0, "acquires @in and does not release it"),
    "acquired again": ([acquire("s"), release(), acquire("t")], 2, "acquires @in and does not"),
    "counted once when acquired twice": (
        [acquire("s"), acquire("t"), release(), release()],
        3,
        "releases more of @in",
    ),
    "released in a loop": (
        [acquire("s"), *loop(acquire("t", 1, "out", "Produce"), release())],
        3,
        "@in is acquired in an outer block and used again in an inner one",
    ),
    "acquired in a loop": ([*loop(acquire("s")), release()], 1, "acquires @in and does not"),
    "acquired before a loop that uses it": (
        [acquire("s"), *loop(acquire("t"), release())],
        2,
        "@in is acquired in an outer block and used again in an inner one",
    ),
    "held around two loops": (
        [
            acquire("s"),
            *loop(acquire("p", 1, "out", "Produce"), *loop(acquire("t"), release(), name="l")),
        ],
        4,
        "@in is acquired in an outer block and used again in an inner one",
    ),
}


@pytest.mark.parametrize("case", UNBALANCED)
def test_acquire_and_release_must_balance_in_each_block(case: str) -> None:
    body, culprit, why = UNBALANCED[case]
    assert why in refusal(body, FIRST_LINE + culprit)


def test_other_fifo_may_be_held_around_a_loop() -> None:
    seen: list[NDArray[Any]] = []
    around = [acquire("p", 1, "out", "Produce"), *loop(*GOOD), release(1, "out", "Produce")]
    machine = boot(around, seen)
    words, out = np.arange(64, dtype=np.int32), unsynced(128)
    sizes = Argument("x", 64, words.dtype), Argument("y", 32, words.dtype)
    steps = (
        Transfer("out", 1, descriptor=0, **linear(0, 32)),
        Transfer("in", 0, descriptor=1, **linear(0, 64)),
        Wait("out"),
    )
    launch(machine, Sequence("run", sizes, steps), [synced(words), out])
    assert firsts(seen) == [0, 1, 2, 3]


# A body, the index of the line to blame, what the message says.
REFUSED: dict[str, tuple[Lines, int, str]] = {
    "unknown operation": ([*GOOD, "%x = arith.addi %c1, %c1 : index"], 4, "operation arith.addi"),
    "operation of a sequence": (
        [*GOOD, "aiex.npu.dma_wait {symbol = @in}"],
        4,
        "operation aiex.npu.dma_wait is not supported in a core",
    ),
    "constant that is no integer": ([*GOOD, "%f = arith.constant 1.0 : f32"], 4, "arith.constant"),
    "store to a buffer": (
        [*GOOD, "memref.store %x, %rtp[%c0] : memref<16xi32>"],
        5,
        "memref.store",
    ),
    "loop that carries values": (
        [
            *GOOD,
            "%r = scf.for %q = %c0 to %c1 step %c1 iter_args(%v = %c0) -> (index) {",
            *INSIDE,
            "scf.yield %v : index }",
        ],
        4,
        "loops that carry values",
    ),
    "loop that stands still": (
        [*GOOD, "scf.for %q = %c0 to %c2 step %c0 {", *INSIDE, "}"],
        4,
        "step must be a constant above 0",
    ),
    "loop with a step to be read": (
        [*GOOD, "scf.for %q = %c0 to %c2 step %o {", *INSIDE, "}"],
        4,
        "step must be a constant above 0",
    ),
    "wrong side of a FIFO": (
        [acquire("s", 1, "out"), release(1, "out")],
        0,
        "is not on the Consume side of @out",
    ),
    "FIFO that is not there": (
        [acquire("s", 1, "no"), release(1, "no")],
        0,
        "is not on the Consume side of @no",
    ),
    "acquire of more than the depth": (
        [acquire("s", 5), release(5)],
        0,
        "acquires 5 of @in in core (0, 2), which has 4",
    ),
    "unknown symbol": (
        [*GOOD, acquire("t"), access("f", "t"), call("f", "strange"), release()],
        6,
        "calls @strange; there is a model of: use, answer",
    ),
    "buffer given to a function": (
        [*GOOD, call("rtp")],
        4,
        "@use may only take elements of FIFOs",
    ),
    "function that answers": (
        [*GOOD[:2], "%x = func.call @answer(%e) : (memref<16xi32>) -> i32", release()],
        2,
        "and return nothing",
    ),
    "load of an element": (
        [*GOOD[:2], load("e", "%c0", "16xi32"), release()],
        2,
        "only runtime-parameter buffers of rank 1",
    ),
    "load of two dimensions": (
        [*GOOD, load("square", "%c0, %c0", "4x4xi32")],
        4,
        "only runtime-parameter buffers of rank 1",
    ),
    "load of a byte": ([*GOOD, load("bytes", "%c0", "16xi8")], 4, "only i32 words of its own"),
    "load of another core's buffer": (
        [*GOOD, load("far", "%c0", "16xi32")],
        4,
        "only i32 words of its own buffers, not i32 of core (0, 3)'s",
    ),
}
REFUSED["store to a buffer"][0].insert(4, "%x = arith.constant 1 : i32")


@pytest.mark.parametrize("case", REFUSED)
def test_body_that_cannot_be_run_is_refused(case: str) -> None:
    body, culprit, why = REFUSED[case]
    assert why in refusal(body, FIRST_LINE + culprit)


def test_unknown_attribute_is_refused() -> None:
    with pytest.raises(DesignError, match=f"design.mlir:{FIRST_LINE}: .*attribute 'foo'"):
        boot(["%c3 = arith.constant {foo} 3 : index", *GOOD])


def test_body_of_several_blocks_is_refused() -> None:
    text = BEFORE + "\n".join(GOOD) + AFTER.replace("aie.end\n", "aie.end\n^more: aie.end\n")
    with pytest.raises(DesignError, match=f"design.mlir:{CORE_LINE}: core .*must be one block"):
        Machine(overlay_of(read_design(text)), {})


def test_body_that_ends_is_refused() -> None:
    lines = [*BEFORE.splitlines()[:-1], "aie.end", "}", "}"]
    with pytest.raises(
        DesignError, match=rf"design.mlir:{CORE_LINE}: core \(0, 2\): its body ends"
    ):
        Machine(overlay_of(read_design("\n".join(lines))), {})


@pytest.mark.parametrize("index", [1, -1])
def test_access_outside_of_what_was_acquired_is_refused(index: int) -> None:
    where = f"design.mlir:{FIRST_LINE + 1}: aie.objectfifo.subview.access: "
    with pytest.raises(DesignError, match=f"{where}element {index} of the 1 that were acquired"):
        boot([acquire("s"), access("e", "s", index), release()])


def test_element_used_after_its_release_is_an_error() -> None:
    machine = boot([*GOOD[:2], release(), call("e")])
    with pytest.raises(EmulationError) as caught:
        send(machine, 1)
    assert str(caught.value).startswith(f"design.mlir:{FIRST_LINE + 3}: core (0, 2) passes @use")
    assert "an element of @in in core (0, 2) that it has released" in str(caught.value)


def test_element_released_and_acquired_anew_is_another_element() -> None:
    machine = boot([acquire("s"), access("e", "s"), release(), acquire("t"), call("e"), release()])
    with pytest.raises(EmulationError, match="passes @use an element of @in"):
        send(machine, 2)


def test_parameter_read_before_the_first_acquire_is_an_error_at_boot() -> None:
    with pytest.raises(EmulationError) as caught:
        boot([load("rtp", "%c0", "16xi32"), *GOOD])
    assert str(caught.value).startswith(f"design.mlir:{FIRST_LINE}: core (0, 2) reads word 0 of")
    assert "parameter @rtp, which nobody has written" in str(caught.value)
    assert "read it after the first acquire of an input" in str(caught.value)


def test_parameter_that_was_never_written_is_an_error() -> None:
    machine = boot([*GOOD, load("rtp", "%c1", "16xi32")])
    with pytest.raises(EmulationError, match="reads word 1 of parameter @rtp, which nobody has"):
        send(machine, 1, WriteParameter("rtp", 0, 7))


def test_parameter_read_past_its_end_is_an_error() -> None:
    machine = boot([*GOOD, "%c16 = arith.constant 16 : index", load("rtp", "%c16", "16xi32")])
    words = [WriteParameter("rtp", index, 7) for index in range(16)]
    with pytest.raises(EmulationError, match="reads word 16 of parameter @rtp"):
        send(machine, 1, *words)
