"""Each way in which lowering could hand memory over wrongly is caught, under whatever schedule.

Only what runs is asked here: the rules that judge a module as it stands have tests of their own.
Where a mistake ends in a deadlock or in wrong values only, that is what is expected.
"""

from __future__ import annotations

import numpy as np
import pytest
from golden import changed
from lowered_modules import SEED, after_line, every_schedule, line_of, text

from npu_matmul.emulator import EmulationError
from npu_matmul.mlir.reader import DesignError, read_design
from npu_matmul.verify.run import Verdict, WrongValues, launch_trial
from npu_matmul.verify.subject import Subject

GEMM = text("gemm_one_core")
TRANSFORM = text("transform")
CALL = "func.call @mm(%9, %15, %5) : (memref<256xi8>, memref<256xi8>, memref<256xi32>) -> ()\n"
FLOW = "aie.flow(%shim_noc_tile_0_0, DMA : {}, %tile_0_2, DMA : {})"
A_1 = "aie.dma_bd(%a_cons_buff_1 : memref<256xi8>"
GIVE_A = "aie.use_lock(%a_cons_prod_lock_0, Release, 1)\n"

# What is changed; the error's class; what its message must hold, with the place.
CASES: dict[str, tuple[str, str, str]] = {
    "three units for two buffers": (
        GEMM.replace('2 : i32, sym_name = "a_cons_prod', '3 : i32, sym_name = "a_cons_prod'),
        "RaceError",
        "and nothing orders the one after the other; @a_cons_prod_lock_0 and @a_cons_cons_lock_0 "
        "hand it over; core (0, 2) ",
    ),
    "a full buffer that nobody filled": (
        GEMM.replace('0 : i32, sym_name = "b_cons_cons', '1 : i32, sym_name = "b_cons_cons'),
        "RaceError",
        "core (0, 2) at m.mlir:{func.call @mm} reads byte 0 of @b_cons_buff_0",
    ),
    "a chain that starts with its second buffer": (
        GEMM.replace("(S2MM, 0, ^bb1, ^bb3)", "(S2MM, 0, ^bb2, ^bb3)"),
        "RaceError",
        "core (0, 2) at m.mlir:{func.call @mm} passes @mm the buffer @a_cons_buff_0, which it does "
        "not hold: @a_cons_prod_lock_0 and @a_cons_cons_lock_0 hand it over; core (0, 2) holds "
        "@c_buff_0, @a_cons_buff_1, @b_cons_buff_0",
    ),
    "a chain that leaves a buffer out": (
        changed(GEMM, ("next_bd_id = 1", "next_bd_id = 0"), ("next_bd ^bb2", "next_bd ^bb1")),
        "RaceError",
        "and nothing orders the one after the other; @a_cons_prod_lock_0 and @a_cons_cons_lock_0 "
        "hand it over; core (0, 2) ",
    ),
    "released before it is used": (
        changed(GEMM, (f"{CALL}      {GIVE_A}", f"{GIVE_A}      {CALL}")),
        "RaceError",
        "core (0, 2) at m.mlir:{func.call @mm} passes @mm the buffer @a_cons_buff_0, which it does",
    ),
    "an acquire that is lost": (
        changed(GEMM, ("^bb15\n      aie.use_lock(%a_cons_cons_lock_0, AcquireGreaterEqual, 1)\n",
                       "^bb15\n")),
        "RaceError",
        "passes @mm the buffer @a_cons_buff_1, which it does not hold",
    ),
    "an index that is not advanced": (
        changed(GEMM, ("store %40, %_anonymous0[%c1]", "store %36, %_anonymous0[%c1]")),
        "RaceError",
        "core (0, 2) holds @c_buff_0, @a_cons_buff_0, @b_cons_buff_0",
    ),
    "a length that is too short": (
        changed(GEMM, (f"{A_1}, 0, 256", f"{A_1}, 0, 192")),
        "RaceError",
        "reads byte 192 of @a_cons_buff_1 in core (0, 2), which nobody has written",
    ),
    "an offset that is wrong": (
        changed(GEMM, (f"{A_1}, 0, 256", f"{A_1}, 4, 252")),
        "RaceError",
        "reads byte 0 of @a_cons_buff_1 in core (0, 2), which nobody has written",
    ),
    "an offset into another's piece": (
        TRANSFORM.replace("(%in_l3l2_cons_buff_1 : memref<32x32xi8>, 0, 1024)",
                          "(%in_l3l2_cons_buff_0 : memref<32x32xi8>, 0, 1024)"),
        "RaceError",
        "of @in_l3l2_cons_buff_0 in memtile (0, 1), which memtile (0, 1)",
    ),
    "a parameter read before the first element": (
        after_line(
            changed(GEMM, ("      %10 = memref.load %rtp[%c0] : memref<16xi32>\n", "")),
            "func.call @zero", "      %10 = memref.load %rtp[%c0] : memref<16xi32>\n",
        ),
        "RaceError",
        "boot, after 1 kernel calls: core (0, 2) at m.mlir:{%10 = memref.load} reads byte 0 of "
        "@rtp in core (0, 2), which nobody has written",
    ),
    "sums that nobody clears": (
        changed(GEMM, ("      func.call @zero(%5) : (memref<256xi32>) -> ()\n", "")),
        "RaceError",
        "reads byte 0 of @c_buff_0 in core (0, 2), which were handed to core (0, 2) to be written "
        "and are not written since; @c_cons_lock_0 and @c_prod_lock_0 hand it over",
    ),
    "sums that leave too early": (
        after_line(
            changed(GEMM, ("      aie.use_lock(%c_cons_lock_0, Release, 1)\n", "")),
            CALL.strip(), "      aie.use_lock(%c_cons_lock_0, Release, 1)\n",
        ),
        "RaceError",
        "passes @mm the buffer @c_buff_0, which it does not hold",
    ),
    "a descriptor that gives twice": (
        GEMM.replace("(%a_cons_cons_lock_0, Release, 1)", "(%a_cons_cons_lock_0, Release, 2)"),
        "RaceError",
        "passes @mm the buffer @a_cons_buff_1, which it does not hold",
    ),
    "a core that gives twice": (
        changed(GEMM, (GIVE_A, GIVE_A.replace("Release, 1", "Release, 2"))),
        "LockError",
        "core (0, 2) at m.mlir:{aie.use_lock(%a_cons_prod_lock_0, Release, 2)} releases "
        "@a_cons_prod_lock_0, but holds no buffer to hand over by it",
    ),
    "a core that does not release": (
        changed(GEMM, ("aie.use_lock(%b_cons_prod_lock_0, Release, 1)\n      %41", "%41")),
        "Deadlock",
        "core (0, 2) S2MM 1 waits for at least 1 of lock @b_cons_prod_lock_0 of core (0, 2)",
    ),
    "a descriptor that does not release": (
        changed(GEMM, ("      aie.use_lock(%c_prod_lock_0, Release, 1)\n", "")),
        "RaceError",
        "passes @zero the buffer @c_buff_1, which it does not hold",
    ),
    "flows that are swapped": (
        changed(GEMM, (FLOW.format(0, 0), FLOW.format(0, 7)),
                (FLOW.format(1, 1), FLOW.format(1, 0)), (FLOW.format(0, 7), FLOW.format(0, 1))),
        "WrongValues",
        "C tile 0 of core (0, 2), element 0 of 256: got ",
    ),
    "a stride of a descriptor that is one word too long": (
        TRANSFORM.replace("<size = 4, stride = 8>", "<size = 4, stride = 12>"),
        "DesignError",
        "m.mlir:{<size = 4, stride = 12>}: memtile (0, 1) MM2S 0, descriptor of "
        "@in_l3l2_cons_buff_0: it reaches element 1,035 of 1,024",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_hands_memory_over_wrongly_is_caught_under_every_schedule(case: str) -> None:
    source, kind, message = CASES[case]
    assert source not in (GEMM, TRANSFORM)
    for part in [piece.partition("}")[0] for piece in message.split("{")[1:]]:
        message = message.replace("{" + part + "}", str(line_of(source, part)))
    subject = Subject(read_design(source, "m.mlir"), "m.mlir", None)
    for schedule in every_schedule(24):
        with pytest.raises((EmulationError, DesignError, WrongValues)) as caught:
            machine, steps = subject.boot(schedule), {}
            random = np.random.default_rng(SEED)
            for trial in (*subject.own, *subject.made_up):
                launch_trial(machine, trial, subject, steps, random, Verdict("", "", "", 0))
        assert caught.typename == kind, caught.value
        assert message in str(caught.value)


def test_one_unit_for_two_buffers_is_slow_but_right() -> None:
    """So only the count of what the lock starts with can tell."""
    source = GEMM.replace('2 : i32, sym_name = "a_cons_prod', '1 : i32, sym_name = "a_cons_prod')
    subject = Subject(read_design(source, "m.mlir"), "m.mlir", None)
    assert [problem.kind for problem in subject.problems] == ["locks"]
    for schedule in every_schedule(12):
        machine, steps = subject.boot(schedule), {}
        random = np.random.default_rng(SEED)
        for trial in subject.own:
            launch_trial(machine, trial, subject, steps, random, Verdict("", "", "", 0))
