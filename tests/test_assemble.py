"""Assembled transfers walk what the sequence says; what the words cannot say is refused."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

import golden
import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from npu_matmul.assemble import assemble
from npu_matmul.instructions import (
    EnableTokens,
    PatchAddress,
    StartTask,
    StreamError,
    WriteDescriptor,
    WriteWord,
    decode,
)
from npu_matmul.overlay import Channel, Overlay, Tile
from npu_matmul.sequence import (
    SYNTAXES,
    Argument,
    Sequence,
    Step,
    Syntax,
    Transfer,
    Wait,
    WriteParameter,
    to_mlir,
)

DTYPES = [np.dtype(t) for t in (np.int8, np.int16, ml_dtypes.bfloat16, np.int32, np.float32)]
ELEMENTS = 1 << 40  # of an argument: no limit of its own
MIB = 1 << 20
READ = Transfer("a", 0, 0, (1, 1, 1, 4), (0, 0, 0, 1), descriptor=5)


@pytest.fixture(scope="module")
def overlay() -> Overlay:
    """One core with FIFOs @a, @b into it and @c out of it, and parameter @rtp."""
    return golden.overlay(golden.design("gemm_one_core"))


def of_steps(*steps: Step, dtype: Any = np.int32) -> Sequence:
    return Sequence("test", (Argument("x", ELEMENTS, np.dtype(dtype)),), steps)


def refusal(overlay: Overlay, step: Step, dtype: Any = np.int32) -> str:
    first = Wait(next(iter(overlay.channels)))
    with pytest.raises(StreamError) as caught:
        assemble(of_steps(first, step, dtype=dtype), overlay)
    assert "sequence @test, step 1" in str(caught.value)
    return str(caught.value)


def bytes_moved(step: Transfer, itemsize: int) -> list[int]:
    """Every byte a transfer moves, in order, from its sizes and strides alone."""
    walk = itertools.product(*(range(size) for size in step.sizes))
    starts = [step.offset + sum(map(int.__mul__, index, step.strides)) for index in walk]
    return [start * itemsize + byte for start in starts for byte in range(itemsize)]


def bytes_of_words(overlay: Overlay, step: Transfer, dtype: np.dtype[Any]) -> list[int]:
    """The same from the assembled words: address, descriptor and runs."""
    stream = decode(assemble(of_steps(step, dtype=dtype), overlay))
    setup, patch, *_, start = stream.operations
    assert isinstance(setup, WriteDescriptor)
    assert isinstance(patch, PatchAddress)
    assert isinstance(start, StartTask)
    descriptor, moved = setup.descriptor, []
    for run in range(start.runs):
        base = patch.offset_bytes // 4 + run % descriptor.iterations * descriptor.iteration_step
        moved += [4 * (base + word) + byte for word in descriptor.offsets() for byte in range(4)]
    return moved


@st.composite
def transfers(draw: st.DrawFn) -> tuple[Transfer, np.dtype[Any]]:
    """Valid ones: whole words, strides that are whole words, any contiguity."""
    dtype = draw(st.sampled_from(DTYPES))
    unit = 4 // dtype.itemsize
    inner = draw(st.integers(1, 4)) * unit
    middle, outer, runs = (draw(st.integers(1, 4)) for _ in range(3))
    words = st.integers(1, 40).map(lambda stride: stride * unit)
    strides = (
        draw(st.one_of(st.just(0), words)),
        draw(st.one_of(st.just(inner * middle), words)),
        draw(st.one_of(st.just(inner), words)),
        1 if unit > 1 else draw(st.integers(1, 3)),
    )
    offset = draw(st.integers(0, 30)) * unit
    return Transfer("a", 0, offset, (runs, outer, middle, inner), strides, 0), dtype


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(transfers())
def test_words_move_the_bytes_that_the_transfer_names(
    case: tuple[Transfer, np.dtype[Any]],
) -> None:
    step, dtype = case
    overlay = golden.overlay_of_text(golden.design("gemm_one_core"))
    assert bytes_of_words(overlay, step, dtype) == bytes_moved(step, dtype.itemsize)


@settings(derandomize=True, database=None, deadline=None)
@given(
    transfers(),
    st.integers(-(1 << 31), (1 << 31) - 1),
    st.booleans(),
    st.sampled_from(SYNTAXES),
)
def test_printed_steps_assemble_to_the_same_words(
    case: tuple[Transfer, np.dtype[Any]], value: int, token: bool, syntax: Syntax
) -> None:
    step, dtype = case
    text = golden.design("gemm_one_core")
    body = re.compile(r"    aie\.runtime_sequence .*?\n    \}\n", re.S)
    assume(any(stride and step.offset % stride == 0 for stride in step.strides))
    steps = (WriteParameter("rtp", 15, value), dataclasses.replace(step, token=token), Wait("a"))
    sequence = of_steps(*steps, dtype=dtype)
    read = golden.sequence(body.sub(lambda _: to_mlir(sequence, syntax=syntax), text))
    assert read == sequence
    overlay = golden.overlay_of_text(text)
    assert assemble(read, overlay) == assemble(sequence, overlay)


@pytest.mark.parametrize(
    ("offset", "printed"),
    [(34, "0,0,0,2"), (26, "0,0,2,0"), (22, "0,2,0,0"), (14, "2,0,0,0"), (0, "0,0,0,0")],
)
def test_offset_is_printed_in_strides_of_one_loop(offset: int, printed: str) -> None:
    step = dataclasses.replace(READ, offset=offset, strides=(7, 11, 13, 17))
    assert f"%x[{printed}][1,1,1,4][7,11,13,17]" in to_mlir(of_steps(step))


def test_offset_that_mlir_cannot_say_is_not_printed() -> None:
    step = dataclasses.replace(READ, offset=5, strides=(0, 4, 4, 2))
    with pytest.raises(ValueError, match="@a: offset 5 is no multiple"):
        to_mlir(of_steps(step))


def test_transfer_out_of_the_array_always_reports(overlay: Overlay) -> None:
    out = dataclasses.replace(READ, fifo="c")
    operations = decode(assemble(of_steps(out), overlay)).operations
    c = Channel(0, "S2MM", 0)
    assert operations[2:] == (EnableTokens(c), StartTask(c, 5, 1, True))


def test_transfer_into_the_array_reports_when_asked(overlay: Overlay) -> None:
    a = Channel(0, "MM2S", 0)
    silent = decode(assemble(of_steps(READ), overlay)).operations
    assert silent[2:] == (StartTask(a, 5, 1, False),)
    asked = decode(assemble(of_steps(dataclasses.replace(READ, token=True)), overlay)).operations
    assert asked[2:] == (EnableTokens(a), StartTask(a, 5, 1, True))


def test_pure_repeat_does_not_step(overlay: Overlay) -> None:
    repeat = dataclasses.replace(READ, sizes=(64, 1, 1, 4))
    setup, _, start = decode(assemble(of_steps(repeat), overlay)).operations
    assert isinstance(setup, WriteDescriptor)
    assert setup.descriptor.iterations == 1
    assert isinstance(start, StartTask)
    assert start.runs == 64


@pytest.mark.parametrize("value", [0, -1, -(1 << 31), (1 << 32) - 1])
def test_parameter_takes_any_32_bits(overlay: Overlay, value: int) -> None:
    stream = decode(assemble(of_steps(WriteParameter("rtp", 15, value)), overlay))
    assert stream.operations == (WriteWord(Tile(0, 2), 1024 + 60, value % (1 << 32)),)


# Just within each limit: sizes, strides, element type.
ACCEPTED = {
    "64 runs": ((64, 1, 1, 4), (16, 0, 0, 1), np.int32),
    "wrap of 1023 words": ((1, 1, 2, 1023), (0, 0, 2000, 1), np.int32),
    "wrap of 1023 words of bytes": ((1, 1, 2, 4092), (0, 0, 8000, 1), np.int8),
    "middle loop of 1023": ((1, 1, 1023, 4), (0, 0, 8, 1), np.int32),
    "outer loop of any length": ((1, 5000, 2, 4), (0, 64, 8, 1), np.int32),
    "contiguous run of any length": ((1, 1, 1, 64 * MIB), (0, 0, 0, 1), np.int32),
    "contiguous rows of any length": ((1, 1, 4096, 4096), (0, 0, 4096, 1), np.int8),
    "longest run": ((1, 1, 1, (1 << 32) - 1), (0, 0, 0, 1), np.int32),
    "outer stride of 4 MiB": ((1, 2, 1, 4), (0, MIB, 0, 1), np.int32),
    "middle stride of 4 MiB": ((1, 1, 2, 4), (0, 0, 4 * MIB, 1), np.int8),
    "inner stride of 4 MiB": ((1, 1, 1, 2), (0, 0, 0, MIB), np.int32),
    "runs 4 MiB apart": ((2, 1, 1, 4), (4 * MIB, 0, 0, 1), np.int8),
    "any stride of one round": ((1, 1, 2, 1), (5 * MIB, 5 * MIB, 8, 5 * MIB), np.int32),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_limit_itself_is_accepted(overlay: Overlay, case: str) -> None:
    sizes, strides, dtype = ACCEPTED[case]
    step = dataclasses.replace(READ, sizes=sizes, strides=strides)
    stream = decode(assemble(of_steps(step, dtype=dtype), overlay))
    steps = zip(sizes, strides, strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    assert stream.argument_bytes() == {0: (last + 1) * np.dtype(dtype).itemsize}


# Just beyond each limit: sizes, strides, element type, what the refusal says.
REFUSED = {
    "65 runs": ((65, 1, 1, 4), (16, 0, 0, 1), np.int32, "65 runs exceed 64"),
    "65 repeats": ((65, 1, 1, 4), (0, 0, 0, 1), np.int32, "65 runs exceed 64"),
    "wrap of 1024 words": ((1, 1, 2, 1024), (0, 0, 2000, 1), np.int32, "exceed 1023 words"),
    "wrap of 1024 words of bytes": ((1, 1, 2, 4096), (0, 0, 8000, 1), np.int8, "1023 words"),
    "middle loop of 1024": ((1, 1, 1024, 4), (0, 0, 8, 1), np.int32, "exceed 1023"),
    "run too long": ((1, 1, 1, 1 << 32), (0, 0, 0, 1), np.int32, "32-bit length"),
    "outer stride": ((1, 2, 1, 4), (0, MIB + 1, 0, 1), np.int32, "4194308 B exceeds 4194304 B"),
    "middle stride": ((1, 1, 2, 4), (0, 0, 4 * MIB + 4, 1), np.int8, "4194308 B exceeds"),
    "inner stride": ((1, 1, 1, 2), (0, 0, 0, MIB + 1), np.int32, "4194308 B exceeds"),
    "runs too far apart": ((2, 1, 1, 4), (4 * MIB + 4, 0, 0, 1), np.int8, "4194308 B exceeds"),
    "part of a word": ((1, 1, 1, 6), (0, 0, 0, 1), np.int8, "6 elements of 1 B are not a multiple"),
    "half a word": ((1, 1, 2, 1), (0, 0, 4, 1), np.int16, "1 elements of 2 B are not a multiple"),
    "bytes apart": ((1, 1, 1, 8), (0, 0, 0, 4), np.int8, "must be next to each other, not 4 apart"),
    "bytes repeated": ((1, 1, 1, 8), (0, 0, 0, 0), np.int8, "must be next to each other"),
    "rows at odd bytes": ((1, 1, 2, 4), (0, 0, 6, 1), np.int8, "stride 6 x 1 B"),
    "runs at odd bytes": ((2, 1, 1, 4), (2, 0, 0, 1), np.int8, "stride 2 x 1 B"),
    "rows repeated": ((1, 1, 2, 4), (0, 0, 0, 1), np.int32, "stride 0 of a loop of 2"),
    "words repeated": ((1, 1, 1, 4), (0, 0, 0, 0), np.int32, "stride 0 of a loop of 4"),
    "one row at an odd byte": ((1, 1, 1, 8), (0, 0, 6, 1), np.int8, "stride 6 x 1 B"),
    "one run at an odd byte": ((1, 1, 1, 8), (3, 0, 0, 1), np.int8, "stride 3 x 1 B"),
    "nothing": ((1, 1, 0, 4), (0, 0, 4, 1), np.int32, "must be positive"),
    "backwards": ((1, 1, 2, 4), (0, 0, -4, 1), np.int32, "not negative"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_pattern_that_the_words_cannot_say_is_refused(overlay: Overlay, case: str) -> None:
    sizes, strides, dtype, why = REFUSED[case]
    step = dataclasses.replace(READ, sizes=sizes, strides=strides)
    message = refusal(overlay, step, dtype)
    assert "transfer of @a" in message
    assert why in message


@pytest.mark.parametrize(
    ("offset", "dtype"),
    [(1, np.int8), (2, np.int8), (3, np.int16), (1 << 30, np.int32), (-4, np.int8)],
)
def test_offset_that_no_patch_can_say_is_refused(overlay: Overlay, offset: int, dtype: Any) -> None:
    message = refusal(overlay, dataclasses.replace(READ, offset=offset), dtype)
    assert "must be a multiple of 4 and below 4 GiB" in message


def test_highest_offset_is_accepted(overlay: Overlay) -> None:
    step = dataclasses.replace(READ, offset=(1 << 32) - 4)
    operations = decode(assemble(of_steps(step, dtype=np.int8), overlay)).operations
    assert operations[1] == PatchAddress(0, 5, 0, (1 << 32) - 4)


@pytest.mark.parametrize("descriptor", [16, -1])
def test_descriptor_that_no_shim_has_is_refused(overlay: Overlay, descriptor: int) -> None:
    message = refusal(overlay, dataclasses.replace(READ, descriptor=descriptor))
    assert f"descriptor {descriptor} does not exist; a shim has 16" in message
    assemble(of_steps(dataclasses.replace(READ, descriptor=15)), overlay)


@pytest.mark.parametrize("argument", [1, -1])
def test_argument_that_is_not_given_is_refused(overlay: Overlay, argument: int) -> None:
    message = refusal(overlay, dataclasses.replace(READ, argument=argument))
    assert f"there is no argument {argument}; 1 are given" in message


def test_fifo_without_a_shim_channel_is_refused(overlay: Overlay) -> None:
    for step in (dataclasses.replace(READ, fifo="d"), Wait("d")):
        assert "@d has no shim channel; FIFOs that have one: a, b, c" in refusal(overlay, step)


def test_inner_fifo_is_refused() -> None:
    inner = golden.overlay(golden.design("transform"))
    assert "@in_l2l1 has no shim channel" in refusal(inner, Wait("in_l2l1"))


def test_parameter_that_is_not_there_is_refused(overlay: Overlay) -> None:
    message = refusal(overlay, WriteParameter("rtp_0", 0, 1))
    assert "there is no buffer @rtp_0; known: rtp" in message


@pytest.mark.parametrize("index", [16, -1])
def test_word_outside_the_parameter_is_refused(overlay: Overlay, index: int) -> None:
    assert f"word {index} is outside buffer @rtp" in refusal(
        overlay, WriteParameter("rtp", index, 1)
    )


@pytest.mark.parametrize("value", [1 << 32, -(1 << 31) - 1])
def test_value_wider_than_a_word_is_refused(overlay: Overlay, value: int) -> None:
    assert f"{value} does not fit" in refusal(overlay, WriteParameter("rtp", 0, value))


def test_parameter_without_an_address_is_refused() -> None:
    text = golden.changed(golden.design("gemm_one_core"), (", address = 1024 : i32", ""))
    message = refusal(golden.overlay(text), WriteParameter("rtp", 0, 1))
    assert "@rtp has no address attribute" in message
    assert "pin it" in message
