"""Descriptors move what they say: patterns, padding, chains, repeats, neighbours, host memory."""

from __future__ import annotations

import re

import numpy as np
import pytest
from comparing import assert_equal_bits
from golden import changed, unsynced
from lowered_modules import INTO, LOOP, OUT_OF, SYMBOLS, every_schedule, machine, through

from npu_matmul.assemble import assemble
from npu_matmul.emulator import POISON
from npu_matmul.emulator.actors import Deadlock, RestStateError
from npu_matmul.instructions import decode
from npu_matmul.lowered.machine import LoweredMachine
from npu_matmul.lowered.memory import RaceError
from npu_matmul.lowered.reading import read_lowered
from npu_matmul.sequence import Argument, Sequence, Transfer, Wait, linear

WHOLE = "memref<16xi32>, 0, 16"
INT32 = np.int32


def words(count: int = 16) -> np.ndarray:
    return np.random.default_rng(count).integers(-(2**31), 2**31, count, dtype=INT32)


def test_words_go_in_and_come_out_again() -> None:
    given = words(80)
    for schedule in every_schedule(30):
        booted = machine(LOOP, schedule)
        assert_equal_bits(through(booted, given), given)
        assert (booted.counters.transfers, booted.counters.dma_bytes) == (10, 640)
        assert booted.counters.lock_operations == 21  # of which one waits for the next launch


def test_what_is_handed_over_to_be_filled_is_gone() -> None:
    """After a launch the channel has taken the buffer for what comes next."""
    booted = machine(LOOP)
    through(booted, words())
    assert (booted.memory("buffer").view(np.uint8) == POISON).all()


def test_transfers_need_not_end_with_a_descriptor() -> None:
    given = words(16)
    assert_equal_bits(through(machine(LOOP), given), given)


@pytest.mark.parametrize("side", [INTO, OUT_OF])
def test_a_pattern_reorders(side: str) -> None:
    dims = "[<size = 2, stride = 1>, <size = 4, stride = 4>, <size = 2, stride = 2>]"
    order = [i + 4 * j + 2 * k for i in range(2) for j in range(4) for k in range(2)]
    given, want = words(), words()
    if side == INTO:
        want[order] = given
    else:
        want = given[order]
    booted = machine(changed(LOOP, (side + WHOLE, f"{side}{WHOLE}, {dims}")))
    assert_equal_bits(through(booted, given), want)


def test_offset_and_length_are_in_elements() -> None:
    source = changed(LOOP, (INTO + WHOLE, f"{INTO}memref<16xi32>, 4, 8"))
    source = changed(source, (OUT_OF + WHOLE, f"{OUT_OF}memref<16xi32>, 6, 5"))
    given = words(8)
    assert_equal_bits(through(machine(source), given, 5), given[2:7])


def test_padding_is_made_up_on_the_way_out() -> None:
    padded = (
        f"{OUT_OF}memref<16xi32>, 0, 30, [<size = 4, stride = 4>, <size = 4, stride = 1>], "
        "[<const_pad_before = 0, const_pad_after = 1>, <const_pad_before = 2, const_pad_after = 0>]"
    )
    of_channel = "(MM2S, 0, ^out, ^end)", "(MM2S, 0, ^out, ^end) {pad_value = -3 : i32}"
    given = words()
    want = np.full((5, 6), -3, INT32)
    want[:4, 2:] = given.reshape(4, 4)
    for schedule in every_schedule(16):
        booted = machine(changed(LOOP, (OUT_OF + WHOLE, padded), of_channel), schedule)
        assert_equal_bits(through(booted, given, 30), want.reshape(-1))


def test_words_that_never_came_are_not_sent() -> None:
    source = changed(LOOP, (INTO + WHOLE, f"{INTO}memref<16xi32>, 0, 12"))
    with pytest.raises(RaceError) as caught:
        through(machine(source), words(12), 16)
    assert re.fullmatch(
        r"launch 0, after 0 kernel calls: memtile \(0, 1\) MM2S 0 at m\.mlir:22 \(transfer 0\) "
        r"reads byte 48 of @buffer in memtile \(0, 1\), which nobody has written; @full and @empty "
        r"hand it over; memtile \(0, 1\) MM2S 0 has acquired @full",
        str(caught.value),
    )


def test_a_chain_that_ends_runs_as_often_as_it_says() -> None:
    finite = changed(
        LOOP,
        ("^in, ^next)", "^in, ^next, repeat_count = 2)"),
        ("aie.next_bd ^in\n", "aie.next_bd ^end\n"),
        (", next_bd_id = 0 : i32", ""),
    )
    with pytest.raises(RestStateError) as caught:
        through(machine(finite), words(48))
    assert "memtile (0, 1) S2MM 0 is ended; at rest 0 words into a transfer" in str(caught.value)
    with pytest.raises(Deadlock, match=r"shim \(0, 0\) MM2S 0 \(@in\) waits for room for words"):
        through(machine(finite), words(80))


def test_a_neighbours_memory_and_locks_serve_as_well() -> None:
    source = LOOP.replace("npu1_1col", "npu1_2col").replace("aie.lock(%mem", "aie.lock(%beside")
    source = changed(source, ("  %mem =", "  %beside = aie.tile(1, 1)\n  %mem ="))
    given = words(32)
    beside = changed(source, ("aie.buffer(%mem)", "aie.buffer(%beside)"))
    assert_equal_bits(through(machine(beside), given), given)


STATIC = """\
aie.device(npu1_1col) {
  %shim = aie.tile(0, 0)
  %mem = aie.tile(0, 1)
  %source = aie.external_buffer {sym_name = "source"} : memref<12xi32>
  %result = aie.external_buffer {sym_name = "result"} : memref<12xi32>
  %go = aie.lock(%shim, 0) {init = 1 : i32, sym_name = "go"}
  %gone = aie.lock(%shim, 1) {init = 0 : i32, sym_name = "gone"}
  %buffer = aie.buffer(%mem) {address = 0 : i32, sym_name = "buffer"} : memref<12xi32>
  %empty = aie.lock(%mem, 0) {init = 1 : i32, sym_name = "empty"}
  %full = aie.lock(%mem, 1) {init = 0 : i32, sym_name = "full"}
  aie.flow(%shim, DMA : 0, %mem, DMA : 0)
  aie.flow(%mem, DMA : 0, %shim, DMA : 0)
  %host = aie.shim_dma(%shim) {
    %0 = aie.dma_start(MM2S, 0, ^out, ^next)
  ^out:
    aie.use_lock(%go, AcquireGreaterEqual, 1)
    aie.dma_bd(%source : memref<12xi32>, 0, 12, [<size = 3, stride = 1>, <size = 4, stride = 3>])
      {bd_id = 0 : i32}
    aie.use_lock(%gone, Release, 1)
    aie.next_bd ^end
  ^next:
    %1 = aie.dma_start(S2MM, 0, ^in, ^end)
  ^in:
    aie.dma_bd(%result : memref<12xi32>) {bd_id = 1 : i32}
    aie.next_bd ^end
  ^end:
    aie.end
  }
  %dma = aie.memtile_dma(%mem) {
    %0 = aie.dma_start(S2MM, 0, ^in, ^next)
  ^in:
    aie.use_lock(%empty, AcquireGreaterEqual, 1)
    aie.dma_bd(%buffer : memref<12xi32>) {bd_id = 0 : i32, next_bd_id = 0 : i32}
    aie.use_lock(%full, Release, 1)
    aie.next_bd ^in
  ^next:
    %1 = aie.dma_start(MM2S, 0, ^out, ^end)
  ^out:
    aie.use_lock(%full, Acquire, 1)
    aie.dma_bd(%buffer : memref<12xi32>) {bd_id = 1 : i32, next_bd_id = 1 : i32}
    aie.use_lock(%empty, Release, 1)
    aie.next_bd ^out
  ^end:
    aie.end
  }
}
"""


def test_a_static_shim_program_moves_external_buffers() -> None:
    given = words(12)
    booted = LoweredMachine(read_lowered(STATIC), SYMBOLS, external={"source": given})
    assert_equal_bits(booted.memory("result"), given.reshape(4, 3).T.reshape(-1))


def test_a_buffer_starts_with_its_initial_values() -> None:
    source = changed(
        LOOP,
        (
            ": memref<16xi32>\n",
            f": memref<16xi32> = dense<{list(range(16))}>\n",
        ),
        ("{init = 1 ", "{init = 0 "),
        ('{init = 0 : i32, sym_name = "full"', '{init = 1 : i32, sym_name = "full"'),
    )
    booted = machine(source)
    int32 = np.dtype(np.int32)
    steps = (Transfer("out", 0, descriptor=0, token=True, **linear(0, 16)), Wait("out"))
    sequence = Sequence("drain", (Argument("b", 16, int32),), steps)
    out = unsynced(64)
    with pytest.raises(
        RestStateError, match=r"into shim \(0, 0\) S2MM 0 is holding 0 words; at rest holding 16"
    ):  # what came with boot comes only once
        booted.launch(decode(assemble(sequence, booted.module.overlay)), [out])
    assert_equal_bits(out.words.view(INT32), np.arange(16, dtype=INT32))


def test_external_buffers_must_be_filled() -> None:
    with pytest.raises(RaceError, match=r"reads byte 0 of @source in the host's memory, which nob"):
        machine(STATIC)
