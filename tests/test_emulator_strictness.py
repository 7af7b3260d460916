"""Whatever the NPU would punish, or silently get wrong, is an error that names the culprit."""

from __future__ import annotations

from collections.abc import Sequence as Several

import golden
import numpy as np
import pytest
from comparing import random_int8
from golden import changed, gemm_sequence, launch, machine, synced, unsynced
from numpy.typing import NDArray

from npu_matmul.emulator import POISON, EmulationError
from npu_matmul.emulator.machine import Deadlock, Machine, RestStateError
from npu_matmul.emulator.shim import DeviceMemory
from npu_matmul.instructions import (
    Descriptor,
    EnableTokens,
    Operation,
    PatchAddress,
    StartTask,
    Stream,
    StreamError,
    WaitToken,
    WriteDescriptor,
    WriteWord,
    decode,
)
from npu_matmul.overlay import Channel, Tile
from npu_matmul.sequence import Argument, Sequence, Step, Transfer, Wait, WriteParameter, linear
from npu_matmul.target import NPU1

GEMM = golden.design("gemm_one_core")
TILE = 256  # elements
INT8, INT32 = np.dtype(np.int8), np.dtype(np.int32)
OUT, IN_A = Channel(0, "S2MM", 0), Channel(0, "MM2S", 0)


def inputs(nbytes: int = 16 * TILE) -> DeviceMemory:
    return synced(random_int8(7, nbytes), "the input")


def outputs(nbytes: int = 16 * TILE * 4) -> DeviceMemory:
    return unsynced(nbytes, "the output")


def of_steps(*steps: Step) -> Sequence:
    return Sequence("s", (Argument("x", 1 << 20, INT8), Argument("y", 1 << 20, INT32)), steps)


def product(k: int, c_tiles: int, a_tiles: int, b_tiles: int) -> Sequence:
    """A launch with a parameter and amounts of data that may not fit together."""
    return of_steps(
        WriteParameter("rtp", 0, k),
        Transfer("c", 1, descriptor=0, **linear(0, c_tiles * TILE)),
        Transfer("a", 0, descriptor=1, **linear(0, a_tiles * TILE)),
        Transfer("b", 0, descriptor=2, **linear(0, b_tiles * TILE)),
        Wait("c"),
    )


def error_of(
    kind: type[Exception],
    steps: Sequence | Several[Operation],
    memories: list[DeviceMemory] | None = None,
    booted: Machine | None = None,
) -> str:
    booted = booted or machine(GEMM)
    memories = [inputs(), outputs()] if memories is None else memories
    with pytest.raises(kind) as caught:
        if isinstance(steps, Sequence):
            launch(booted, steps, memories)
        else:
            booted.launch(decode(Stream(NPU1, 1, tuple(steps)).encode()), memories)
    assert caught.type is kind
    return str(caught.value)


def test_amounts_that_fit_together_run() -> None:
    launch(machine(GEMM), product(3, 2, 6, 6), [inputs(), outputs()])


# Poison


@pytest.mark.parametrize("word", [0, 17, 1535 // 4, 5 * 64])
def test_transfer_of_words_nobody_synced_is_an_error(word: int) -> None:
    memory = inputs()
    memory.known[word] = False
    message = error_of(EmulationError, gemm_sequence(2, 3, 2), [memory, outputs()])
    assert f"reads byte {4 * word} of the input, which was never synced to the device" in message
    assert message.startswith("shim (0, 0) MM2S 0 (@a)")


def test_unsynced_words_beside_a_transfer_do_not_matter() -> None:
    memory = inputs()
    memory.known[6 * TILE // 4 :] = False
    memory.known[TILE // 4 : 3 * TILE // 4] = False
    rows = {"offset": 0, "sizes": (1, 1, 2, TILE), "strides": (0, 0, 3 * TILE, 1)}
    steps = of_steps(
        WriteParameter("rtp", 0, 2),
        Transfer("c", 1, descriptor=0, **linear(0, TILE)),
        Transfer("a", 0, descriptor=1, **rows),  # type: ignore[arg-type]
        Transfer("b", 0, descriptor=2, **linear(4 * TILE, 2 * TILE)),
        Wait("c"),
    )
    launch(machine(GEMM), steps, [memory, outputs()])


def test_words_that_the_device_wrote_may_be_read_again() -> None:
    memory = outputs()
    booted = machine(golden.design("transform"))
    booted.launch(decode(golden.stream("transform")), [synced(random_int8(1, 4096)), memory])
    assert memory.known[:1024].all()
    assert not memory.known[1024:].any()
    booted.launch(decode(golden.stream("transform")), [memory, outputs()])


def test_result_that_no_core_wrote_is_poison() -> None:
    models = {**golden.MODELS, "zero": lambda c: None, "mm": lambda a, b, c: None}
    memory = synced(np.zeros(8 * TILE, np.int8), "the output")
    booted = Machine(golden.overlay(GEMM), models)
    launch(booted, product(3, 2, 6, 6), [inputs(), memory])
    assert (memory.words.view(np.uint8) == POISON).all()


def test_core_gets_poison_for_its_output_every_time() -> None:
    fresh: list[bool] = []

    def zero(c: NDArray[np.int32]) -> None:
        fresh.append(bool((c.view(np.uint8) == POISON).all()))
        c[:] = 0

    booted = Machine(golden.overlay(GEMM), {**golden.MODELS, "zero": zero})
    launch(booted, product(1, 5, 5, 5), [inputs(), outputs()])
    assert fresh == [True] * 6


# Buffers


@pytest.mark.parametrize("short", [4, 16 * TILE])
def test_transfer_past_the_end_of_its_input_is_an_error(short: int) -> None:
    memory = inputs(16 * TILE)
    steps = product(1, 1, 1, 1)
    far = Transfer("b", 0, descriptor=2, **linear(15 * TILE + short, TILE))
    message = error_of(
        EmulationError, of_steps(*steps.steps[:3], far, steps.steps[4]), [memory, outputs()]
    )
    assert (
        message
        == f"a transfer reaches byte {16 * TILE + short} of the input, which has {16 * TILE}"
    )


def test_transfer_past_the_end_of_its_output_is_an_error() -> None:
    message = error_of(EmulationError, product(1, 2, 2, 2), [inputs(), outputs(2 * TILE * 4 - 4)])
    assert message == "a transfer reaches byte 2048 of the output, which has 2044"


def test_strided_transfer_past_the_end_is_an_error() -> None:
    rows = {"offset": 0, "sizes": (1, 1, 2, 128), "strides": (0, 0, 5 * TILE, 1)}
    steps = of_steps(
        WriteParameter("rtp", 0, 1),
        Transfer("a", 0, descriptor=1, token=True, **rows),  # type: ignore[arg-type]
        Wait("a"),
    )
    message = error_of(EmulationError, steps, [inputs(5 * TILE)])
    assert message == f"a transfer reaches byte {5 * TILE + 128} of the input, which has {5 * TILE}"


def test_later_run_past_the_end_is_an_error() -> None:
    steps = of_steps(Transfer("a", 0, descriptor=1, token=True, **linear(0, 64, 4, 64)), Wait("a"))
    assert "reaches byte 256 of the input" in error_of(EmulationError, steps, [inputs(192)])


def test_buffer_that_the_launch_does_not_give_is_an_error() -> None:
    message = error_of(EmulationError, gemm_sequence(1, 1, 1), [inputs()])
    assert message == "the stream uses buffer 1; the launch has 1"


# Parameters


@pytest.mark.parametrize(
    ("tile", "offset"),
    [(Tile(0, 2), 1020), (Tile(0, 2), 1088), (Tile(0, 3), 1024), (Tile(0, 2), 1026)],
)
def test_write_where_no_buffer_is_is_an_error(tile: Tile, offset: int) -> None:
    message = error_of(EmulationError, [WriteWord(tile, offset, 3)])
    assert message == f"the stream writes {tile} at {offset:#x}, where no buffer is"


def test_buffer_without_an_address_is_in_nobodys_way() -> None:
    line = next(line for line in GEMM.splitlines() if "aie.buffer" in line)
    other = line.replace("%rtp", "%q").replace('"rtp", address = 1024 : i32', '"q"')
    text = changed(GEMM, (line, f"{other}\n{line}"))
    launch(machine(text), gemm_sequence(1, 1, 1), [inputs(), outputs()])


def test_every_word_of_a_parameter_can_be_written() -> None:
    words = [WriteWord(Tile(0, 2), 1024 + 4 * word, 0xFFFF_FFFF) for word in range(16)]
    machine(GEMM).launch(Stream(NPU1, 1, tuple(words)), [])


def test_parameter_that_was_not_written_is_an_error() -> None:
    sequence = gemm_sequence(1, 1, 1)
    unwritten = Sequence("gemm", sequence.arguments, sequence.steps[1:])
    message = error_of(EmulationError, unwritten)
    assert "core (0, 2) reads word 0 of parameter @rtp, which nobody has written" in message


def test_parameter_read_before_the_first_acquire_is_an_error_at_boot() -> None:
    load = "        %n32 = memref.load %rtp[%c0] : memref<16xi32>\n"
    early = changed(GEMM, (load, ""), ("        %sc =", f"{load}        %sc ="))
    with pytest.raises(EmulationError, match=r"design.mlir:16: core \(0, 2\) reads word 0 of"):
        machine(early)


# Rest state


def test_parameter_below_the_supply_is_an_error() -> None:
    message = error_of(RestStateError, product(2, 2, 6, 6))
    assert message.startswith("launch 0 ended, but the array is not at rest")
    assert "@c in core (0, 2) is filled differently than at rest" in message


def test_parameter_above_the_supply_is_a_deadlock() -> None:
    message = error_of(Deadlock, product(4, 2, 6, 6))
    assert "the runtime sequence waits for a token of shim (0, 0) S2MM 0 (@c)" in message
    assert (
        "core (0, 2) waits for a filled element of @a in core (0, 2) at design.mlir:29" in message
    )


@pytest.mark.parametrize(
    ("a_tiles", "b_tiles", "left"),
    [
        (7, 6, "core (0, 2) waits for a filled element of @b in core (0, 2) at design.mlir:23"),
        (6, 7, "@b in core (0, 2) is filled differently than at rest"),
        (7, 7, "core (0, 2) waits for a filled element of @a in core (0, 2) at design.mlir:29"),
        (8, 8, "core (0, 2) waits for a filled element of @a in core (0, 2) at design.mlir:29"),
        (9, 9, "@c in core (0, 2) is filled differently than at rest"),
        (15, 6, "shim (0, 0) MM2S 0 (@a): 1 tasks, 0 tokens, 0 B of an element begun"),
    ],
)
def test_too_much_data_is_an_error(a_tiles: int, b_tiles: int, left: str) -> None:
    assert left in error_of(RestStateError, product(3, 2, a_tiles, b_tiles))


def test_half_an_element_left_is_an_error() -> None:
    half = Transfer("a", 0, descriptor=3, **linear(0, TILE // 2))
    steps = product(3, 2, 6, 6).steps
    message = error_of(RestStateError, of_steps(*steps[:-1], half, steps[-1]))
    assert "shim (0, 0) MM2S 0 (@a): 0 tasks, 0 tokens, 128 B of an element begun" in message


def test_half_an_element_of_output_left_is_an_error() -> None:
    part = Transfer("c", 1, descriptor=0, **linear(0, TILE + TILE // 4))
    steps = product(3, 2, 6, 6).steps
    message = error_of(RestStateError, of_steps(steps[0], part, *steps[2:]))
    assert "shim (0, 0) S2MM 0 (@c): 0 tasks, 0 tokens, 256 B of an element begun" in message


def test_less_output_than_was_computed_is_an_error() -> None:
    assert "@c in core (0, 2) is filled" in error_of(RestStateError, product(3, 1, 6, 6))


def test_more_output_than_was_computed_is_a_deadlock() -> None:
    message = error_of(Deadlock, product(3, 3, 6, 6))
    assert "the runtime sequence waits for a token of shim (0, 0) S2MM 0 (@c)" in message
    assert "S2MM 0 (@c) waits for a filled element of @c in core (0, 2)" in message


def test_core_in_the_middle_of_a_counted_loop_is_not_at_rest() -> None:
    """With every FIFO as at rest, the core waiting for the same one, two rounds on."""
    pair = TILE * 4
    text = changed(
        golden.design("transform"),
        ("scf.for %o", "scf.for %f = %c0 to %max step %c1 {\n      scf.for %o"),
        ("to %max step %c1 {\n        %si", "to %c4 step %c1 {\n        %si"),
        ("%c0 = arith", "%c4 = arith.constant 4 : index\n      %c0 = arith"),
        ("Produce, 1)\n      }", f"Produce, 1)\n      }}\n{ONE_MORE}      }}"),
    )
    booted = machine(text)
    good, bad = (linear(0, elements * pair) for elements in (5, 2))
    memories = [inputs(8 * pair), outputs(8 * pair)]
    for pattern in (good, good):
        launch(booted, copying(pattern), memories)
    message = error_of(RestStateError, copying(bad), memories, booted)
    assert "core (0, 2) is elsewhere in its loops than at rest: (0, 2) against (0, 0)" in message


ONE_MORE = """\
        %ti = aie.objectfifo.acquire @in_l2l1(Consume, 1) : \
!aie.objectfifosubview<memref<32x32xi8>>
        %to = aie.objectfifo.acquire @out(Produce, 1) : !aie.objectfifosubview<memref<32x32xi8>>
        aie.objectfifo.release @in_l2l1(Consume, 1)
        aie.objectfifo.release @out(Produce, 1)
"""


def copying(pattern: dict[str, object]) -> Sequence:
    sizes = Argument("x", 1 << 20, INT8), Argument("y", 1 << 20, INT8)
    steps = (
        Transfer("out", 1, descriptor=0, **pattern),  # type: ignore[arg-type]
        Transfer("in_l3l2", 0, descriptor=1, **pattern),  # type: ignore[arg-type]
        Wait("out"),
    )
    return Sequence("copy", sizes, steps)


# Streams


def setup(number: int, words: int, argument: int = 0) -> list[Operation]:
    return [WriteDescriptor(0, number, Descriptor(words)), PatchAddress(0, number, argument, 0)]


def test_stream_for_another_partition_is_an_error() -> None:
    with pytest.raises(EmulationError, match="for 4 columns of npu1, the overlay for 1 of npu1"):
        machine(GEMM).launch(decode(golden.stream("two_columns")), [inputs(), outputs()])


def test_channel_that_no_fifo_uses_is_an_error() -> None:
    nowhere = Channel(0, "S2MM", 1)
    steps = [
        *setup(0, 4),
        EnableTokens(nowhere),
        StartTask(nowhere, 0, 1, True),
        WaitToken(nowhere),
    ]
    message = error_of(EmulationError, steps)
    assert (
        message == f"the stream uses {nowhere}, which no object FIFO of the design is connected to"
    )


def test_token_that_never_comes_is_a_deadlock() -> None:
    steps = [*setup(0, 256, 1), EnableTokens(OUT), StartTask(OUT, 0, 1, True), WaitToken(OUT)]
    message = error_of(Deadlock, steps)
    assert f"the runtime sequence waits for a token of {OUT} (@c)" in message
    assert "core (0, 2) waits for a filled element of @a" in message


def test_full_start_queue_is_refused_before_anything_moves() -> None:
    memory, starts = outputs(), [StartTask(IN_A, 0, 1, False)] * 5
    booted = machine(GEMM)
    message = error_of(StreamError, [*setup(0, 64), *starts], [inputs(), memory], booted)
    assert f"operation 6: 5 tasks on {IN_A}, whose start queue holds 4" in message
    assert booted.counters.dma_bytes == 0


def test_descriptor_reused_in_flight_is_refused_before_anything_moves() -> None:
    booted = machine(GEMM)
    steps = [*setup(0, 64), StartTask(IN_A, 0, 1, False), *setup(0, 64)]
    message = error_of(StreamError, steps, booted=booted)
    assert "operation 3: descriptor 0 of column 0 is changed while a task of" in message
    assert booted.counters.dma_bytes == 0


def test_second_stream_cannot_lean_on_the_first_ones_descriptors() -> None:
    booted = machine(GEMM)
    launch(booted, gemm_sequence(1, 1, 1), [inputs(), outputs()])
    message = error_of(StreamError, [StartTask(IN_A, 1, 1, False)], booted=booted)
    assert "starts descriptor 1 of column 0, which is not set up" in message


def test_no_change_of_a_bit_does_worse_than_an_error() -> None:
    """A stream with any one bit flipped is refused, fails by name, or still ends at rest."""
    words = np.frombuffer(golden.stream("gemm_one_core"), "<u4")
    booted, memories = machine(GEMM), [inputs(3072), outputs(4096)]
    completed = 0
    for index, bit in np.ndindex(words.size, 32):
        other = words.copy()
        other[index] ^= np.uint32(1 << bit)
        try:
            stream = decode(other.tobytes())
            if max(stream.argument_bytes().values()) > 1 << 24:
                continue
            booted.launch(stream, memories)
            completed += 1
        except StreamError:
            pass
        except EmulationError:
            booted = machine(GEMM)
    assert completed > 0
