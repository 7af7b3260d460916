"""Streams: the toolchain's words exactly, there and back; descriptors walk what they say."""

from __future__ import annotations

import itertools
import re

import golden
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from npu_matmul.assemble import assemble
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
from npu_matmul.sequence import SYNTAXES, Sequence, Syntax, Transfer, to_mlir
from npu_matmul.target import NPU1

repeatable = settings(derandomize=True, database=None, deadline=None)


def assert_same_words(got: bytes, want: bytes) -> None:
    """Equal word for word; says which word is the first that differs."""
    got_words, want_words = np.frombuffer(got, "<u4"), np.frombuffer(want, "<u4")
    for index, (one, other) in enumerate(zip(got_words, want_words, strict=False)):
        assert one == other, f"word {index}: got {one:#010x}, want {other:#010x}"
    assert len(got_words) == len(want_words), f"got {len(got)} B, want {len(want)} B"


def bytes_reached(sequence: Sequence) -> dict[int, int]:
    """How far into each argument the transfers of a sequence reach, from the sequence alone."""
    reach: dict[int, int] = {}
    for step in sequence.steps:
        if isinstance(step, Transfer):
            steps = zip(step.sizes, step.strides, strict=True)
            last = step.offset + sum((size - 1) * stride for size, stride in steps)
            end = (last + 1) * sequence.arguments[step.argument].dtype.itemsize
            reach[step.argument] = max(reach.get(step.argument, 0), end)
    return reach


@pytest.mark.parametrize("name", golden.NAMES)
def test_assembled_words_equal_the_toolchains(name: str) -> None:
    text = golden.design(name)
    got = assemble(golden.sequence(text), golden.overlay(text))
    assert_same_words(got, golden.stream(name))


@pytest.mark.parametrize("name", golden.NAMES)
def test_decoded_stream_encodes_to_the_same_words(name: str) -> None:
    assert_same_words(decode(golden.stream(name)).encode(), golden.stream(name))


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("name", golden.NAMES)
def test_printed_sequence_reads_back_as_itself(name: str, syntax: Syntax) -> None:
    text = golden.design(name)
    sequence = golden.sequence(text)
    printed = to_mlir(sequence, syntax=syntax)
    assert ("arith.constant" in printed) == (syntax == "1.4" and "rtp_write" in printed)
    replaced, count = re.subn(
        r"    aie\.runtime_sequence .*?\n    \}\n", lambda _: printed, text, flags=re.S
    )
    assert count == 1
    again = golden.sequence(replaced)
    assert again == sequence
    assert_same_words(assemble(again, golden.overlay(replaced)), golden.stream(name))


@pytest.mark.parametrize("name", golden.NAMES)
def test_argument_bytes_are_what_the_sequence_reaches(name: str) -> None:
    sequence = golden.sequence(golden.design(name))
    assert decode(golden.stream(name)).argument_bytes() == bytes_reached(sequence)


def test_argument_bytes_of_the_goldens_are_known_numbers() -> None:
    assert decode(golden.stream("gemm_one_core")).argument_bytes() == {0: 3072, 1: 4096}
    assert decode(golden.stream("sixteen_cores")).argument_bytes() == {0: 3670016, 1: 12582912}


def test_operations_of_a_stream_are_what_the_sequence_asks() -> None:
    c, a, b = Channel(0, "S2MM", 0), Channel(0, "MM2S", 0), Channel(0, "MM2S", 1)
    assert decode(golden.stream("gemm_one_core")) == Stream(
        NPU1,
        1,
        (
            WriteWord(Tile(0, 2), 1024, 3),
            WriteDescriptor(0, 0, Descriptor(1024)),
            PatchAddress(0, 0, 1, 0),
            EnableTokens(c),
            StartTask(c, 0, 1, True),
            WriteDescriptor(0, 1, Descriptor(384)),
            PatchAddress(0, 1, 0, 0),
            StartTask(a, 1, 2, False),
            WriteDescriptor(0, 2, Descriptor(192)),
            PatchAddress(0, 2, 0, 1536),
            StartTask(b, 2, 2, False),
            WriteDescriptor(0, 3, Descriptor(192)),
            PatchAddress(0, 3, 0, 2304),
            StartTask(b, 3, 2, False),
            WaitToken(c),
        ),
    )


def words_walked(descriptor: Descriptor) -> list[int]:
    """The word offsets of one run, by plain loops."""
    if descriptor.wrap0 == 0:
        return list(range(descriptor.words))
    walked: list[int] = []
    for outer in itertools.count():
        for middle in range(descriptor.wrap1):
            for inner in range(descriptor.wrap0):
                if len(walked) == descriptor.words:
                    return walked
                walked.append(
                    inner * descriptor.step0 + middle * descriptor.step1 + outer * descriptor.step2
                )
    raise AssertionError


def iterations() -> st.SearchStrategy[dict[str, int]]:
    many = st.tuples(st.integers(2, 64), st.integers(1, 1 << 20))
    return st.one_of(
        st.just({}), many.map(lambda it: {"iterations": it[0], "iteration_step": it[1]})
    )


steps = st.integers(1, 1 << 20)
wraps = st.integers(1, 1023)
words32 = st.integers(0, (1 << 32) - 1)
linear_descriptors = st.builds(
    lambda words, more: Descriptor(words, **more), st.integers(1, (1 << 32) - 1), iterations()
)
nested_descriptors = st.builds(
    lambda words, loops, more: Descriptor(words, *loops, **more),
    st.integers(1, (1 << 32) - 1),
    st.tuples(wraps, wraps, steps, steps, steps),
    iterations(),
)
small_descriptors = st.builds(
    lambda words, loops, more: Descriptor(words, *loops, **more),
    st.integers(1, 300),
    st.tuples(*[st.integers(1, 9)] * 2, *[st.integers(1, 50)] * 3),
    iterations(),
)
columns = st.integers(0, 3)
channels = st.builds(Channel, columns, st.sampled_from(["S2MM", "MM2S"]), st.integers(0, 1))
numbers = st.integers(0, 15)
offsets = st.integers(0, 0x3FFF).map(lambda word: word * 4)
operations: st.SearchStrategy[Operation] = st.one_of(
    st.builds(WriteWord, st.builds(Tile, columns, st.integers(2, 5)), offsets, words32),
    st.builds(WriteDescriptor, columns, numbers, st.one_of(linear_descriptors, nested_descriptors)),
    st.builds(PatchAddress, columns, numbers, words32, words32),
    st.builds(EnableTokens, channels),
    st.builds(StartTask, channels, numbers, st.integers(1, 256), st.booleans()),
    st.builds(WaitToken, channels),
)
streams = st.builds(Stream, st.just(NPU1), st.integers(1, 4), st.lists(operations).map(tuple))


@repeatable
@given(streams)
def test_every_stream_decodes_to_itself(stream: Stream) -> None:
    assert decode(stream.encode()) == stream


@repeatable
@given(st.one_of(linear_descriptors, nested_descriptors))
def test_every_descriptor_decodes_to_itself(descriptor: Descriptor) -> None:
    words = descriptor.encode()
    assert len(words) == 8
    assert all(0 <= word < 1 << 32 for word in words)
    assert Descriptor.decode(words) == descriptor


@repeatable
@given(st.one_of(small_descriptors, st.builds(Descriptor, st.integers(1, 300))))
def test_descriptor_walks_its_nested_loops(descriptor: Descriptor) -> None:
    assert descriptor.offsets().tolist() == words_walked(descriptor)


@repeatable
@given(small_descriptors)
@example(Descriptor(2, 3, 4, 5, 10, 100))  # part of a row
@example(Descriptor(6, 3, 4, 5, 10, 100))  # two rows of four
@example(Descriptor(24, 3, 4, 5, 10, 100))  # two planes
def test_reach_covers_every_word_that_is_touched(descriptor: Descriptor) -> None:
    end = max(words_walked(descriptor)) + 1
    end += (descriptor.iterations - 1) * descriptor.iteration_step
    row, plane = descriptor.wrap0, descriptor.wrap0 * descriptor.wrap1
    words = descriptor.words
    if words <= row or (words <= plane and words % row == 0) or words % plane == 0:
        assert descriptor.reach() == end  # every loop runs to its end
    else:
        assert descriptor.reach() >= end


@repeatable
@given(linear_descriptors)
def test_reach_of_linear_runs_is_exact(descriptor: Descriptor) -> None:
    runs = (descriptor.iterations - 1) * descriptor.iteration_step
    assert descriptor.reach() == descriptor.words + runs


@repeatable
@given(st.binary(max_size=200))
def test_noise_is_refused_and_nothing_else_happens(noise: bytes) -> None:
    header = golden.stream("gemm_one_core")[:16]
    for stream in (noise, header + noise):
        with pytest.raises(StreamError):
            decode(stream)


@pytest.mark.parametrize("name", ["gemm_one_core", "transform", "two_columns"])
def test_stream_with_one_word_changed_is_refused_or_keeps_the_change(name: str) -> None:
    """Every bit of every word means something: no change of one decodes to the same operations."""
    words = np.frombuffer(golden.stream(name), "<u4")
    good = decode(golden.stream(name))
    accepted = 0
    for index, bit in itertools.product(range(words.size), range(32)):
        other = words.copy()
        other[index] ^= np.uint32(1 << bit)
        try:
            found = decode(other.tobytes())
        except StreamError:
            continue
        accepted += 1
        assert found != good, f"bit {bit} of word {index} is ignored"
        found.argument_bytes()
    assert accepted > 0


HEADER = 4  # words
FIRST_WRITE = HEADER  # of the parameter
DESCRIPTOR = HEADER + 6
PATCH = DESCRIPTOR + 12
TOKENS = PATCH + 12
START = TOKENS + 7

# Which word of gemm_one_core's stream is set to what, and what the refusal says.
MALFORMED = {
    "unknown generation": (0, 0x0605_0100, "no known target"),
    "unknown version": (0, 0x0603_0200, "no known target"),
    "other number of rows": (0, 0x0503_0100, "no known target"),
    "other memtile rows": (1, 0x201, "header or padding"),
    "wrong count": (2, 14, "header or padding"),
    "wrong bytes": (3, 560, "header or padding"),
    "unknown operation": (FIRST_WRITE, 0x02, "word 4: unknown operation 0x2"),
    "junk in a write": (FIRST_WRITE + 1, 1, "header or padding"),
    "wrong size of a write": (FIRST_WRITE + 5, 28, "header or padding"),
    "write to a memtile": (FIRST_WRITE + 2, 0x0010_0400, "word 4: operation 0x0 on tile (0, 1)"),
    "write past a core's memory": (FIRST_WRITE + 2, 0x0021_0000, "word 4: operation 0x0 on tile"),
    "write to an unknown register": (START + 2, 0x1D220, "word 41: operation 0x0 on shim register"),
    "mask write to an unknown register": (TOKENS + 2, 0x1D204, "word 34: operation 0x3 on shim"),
    "other token controller": (TOKENS + 4, 0xE00, "header or padding"),
    "block write beside a descriptor": (DESCRIPTOR + 2, 0x1D004, "word 10: 0x1d004 is not a shim"),
    "block write past the descriptors": (DESCRIPTOR + 2, 0x1D200, "word 10: 0x1d200 is not a shim"),
    "block write to a core": (DESCRIPTOR + 2, 0x21D000, "word 10: operation 0x1 on tile (0, 2)"),
    "patch beside an address": (PATCH + 6, 0x1D008, "word 22: 0x1d004 is not a shim"),
    "patch of a core": (PATCH + 6, 0x21D004, "word 22: operation 0x81 on tile (0, 2)"),
    "junk in a patch": (PATCH + 3, 1, "header or padding"),
    "descriptor of no words": (DESCRIPTOR + 4, 0, "moves nothing"),
    "descriptor with an address": (DESCRIPTOR + 5, 4, "sets fields"),
    "descriptor with a lock": (DESCRIPTOR + 11, 0x0200_0001, "sets fields"),
    "descriptor that is not valid": (DESCRIPTOR + 11, 0, "sets fields"),
    "descriptor in an iteration": (DESCRIPTOR + 10, 1 << 26, "sets fields"),
    "linear descriptor with a step": (DESCRIPTOR + 7, 7, "loops without a count"),
    "linear descriptor with a wrap": (DESCRIPTOR + 8, 0x8030_0000, "loops without a count"),
    "descriptor without a second wrap": (DESCRIPTOR + 7, 4 << 20, "loops without a count"),
    "junk in a start": (START + 4, 0x8000_0010, "header or padding"),
    "wait for a core": (-2, 0x0000_0200, "header or padding"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_stream_is_refused(case: str) -> None:
    index, value, why = MALFORMED[case]
    words = np.frombuffer(golden.stream("gemm_one_core"), "<u4").copy()
    words[index] = value
    with pytest.raises(StreamError, match=re.escape(why)):
        decode(words.tobytes())


@pytest.mark.parametrize("length", [0, 12, 563, 561])
def test_stream_of_part_of_a_word_or_header_is_refused(length: int) -> None:
    with pytest.raises(StreamError, match=f"a stream of {length} B"):
        decode(golden.stream("gemm_one_core")[:length])


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_stream_that_is_cut_off_is_refused(missing: int) -> None:
    with pytest.raises(StreamError, match="word 137: operation 0x80 is cut off"):
        decode(golden.stream("gemm_one_core")[: -4 * missing])


def test_stream_that_ends_early_is_refused() -> None:
    with pytest.raises(StreamError, match="count, bytes"):
        decode(golden.stream("gemm_one_core")[:-16])
