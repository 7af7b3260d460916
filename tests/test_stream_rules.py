"""A good stream passes; a stream that breaks one rule is refused, with the culprit named."""

from __future__ import annotations

import re

import golden
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

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
from npu_matmul.stream_rules import check_stream
from npu_matmul.target import NPU1

OUT = Channel(0, "S2MM", 0)
IN = Channel(0, "MM2S", 0)
OTHER = Channel(0, "MM2S", 1)

GOOD: list[Operation] = [
    WriteWord(Tile(0, 2), 1024, 3),
    WriteDescriptor(0, 0, Descriptor(16)),  # 1
    PatchAddress(0, 0, 1, 0),
    EnableTokens(OUT),  # 3
    StartTask(OUT, 0, 1, True),  # 4
    WriteDescriptor(0, 1, Descriptor(16)),  # 5
    PatchAddress(0, 1, 0, 64),
    EnableTokens(IN),  # 7
    StartTask(IN, 1, 2, True),  # 8
    WaitToken(IN),  # 9
    WaitToken(OUT),  # 10
]


def check(operations: list[Operation], columns: int = 1) -> None:
    check_stream(Stream(NPU1, columns, tuple(operations)))


def refusal(operations: list[Operation], columns: int = 1) -> str:
    with pytest.raises(StreamError) as caught:
        check(operations, columns)
    return str(caught.value)


def without(position: int) -> list[Operation]:
    return GOOD[:position] + GOOD[position + 1 :]


def with_(position: int, *operations: Operation) -> list[Operation]:
    return [*GOOD[:position], *operations, *GOOD[position:]]


def silent(number: int = 1) -> StartTask:
    return StartTask(OTHER, number, 1, False)


def setup(number: int, column: int = 0) -> list[Operation]:
    return [
        WriteDescriptor(column, number, Descriptor(16)),
        PatchAddress(column, number, 0, 0),
    ]


@pytest.mark.parametrize("name", golden.NAMES)
def test_golden_stream_passes(name: str) -> None:
    check_stream(decode(golden.stream(name)))


def test_good_stream_passes() -> None:
    check(GOOD)
    check([])


def test_descriptor_must_be_written_before_its_address() -> None:
    assert "operation 5: sets the address of descriptor 1 of column 0" in refusal(without(5))


def test_descriptor_must_have_an_address_before_its_start() -> None:
    assert "operation 7: starts descriptor 1 of column 0, which is not set up" in refusal(
        without(6)
    )


def test_descriptor_must_be_set_up_before_its_start() -> None:
    never = [*GOOD[:8], StartTask(IN, 9, 1, True), *GOOD[9:]]
    assert "operation 8: starts descriptor 9 of column 0, which is not set up" in refusal(never)


def test_writing_a_descriptor_forgets_its_address() -> None:
    again = with_(7, WriteDescriptor(0, 1, Descriptor(8)))
    assert "operation 9: starts descriptor 1 of column 0, which is not set up" in refusal(again)


def test_descriptor_of_another_column_is_another_descriptor() -> None:
    elsewhere = [StartTask(Channel(1, "MM2S", 0), 1, 1, False)]
    message = refusal(with_(9, *elsewhere), columns=2)
    assert "operation 9: starts descriptor 1 of column 1, which is not set up" in message
    check(with_(9, *setup(1, column=1), *elsewhere), columns=2)


def test_address_must_be_a_words() -> None:
    odd = with_(7, PatchAddress(0, 1, 0, 66))
    assert "operation 7: sets the address of descriptor 1 of column 0 to byte 66" in refusal(odd)


@pytest.mark.parametrize("change", setup(1))
def test_descriptor_in_flight_must_not_change(change: Operation) -> None:
    message = refusal(with_(9, change))
    assert "operation 9: descriptor 1 of column 0 is changed while a task of" in message
    assert f"{IN} that uses it may be in flight" in message
    check(with_(10, change))  # after the wait


def test_descriptor_in_flight_may_be_started_again() -> None:
    check(with_(9, StartTask(IN, 1, 1, False)))


def test_descriptor_of_a_task_without_a_token_stays_in_flight() -> None:
    reused = [*GOOD[:8], StartTask(OTHER, 1, 1, False), *setup(1), GOOD[10]]
    message = refusal(reused)
    assert f"operation 9: descriptor 1 of column 0 is changed while a task of {OTHER}" in message


def test_token_proves_earlier_tasks_of_its_channel_complete() -> None:
    earlier = [*setup(2), StartTask(IN, 2, 1, False)]
    check(with_(8, *earlier, *setup(3)) + setup(2))


def test_token_proves_nothing_of_later_tasks_or_other_channels() -> None:
    later = with_(9, *setup(2), StartTask(IN, 2, 1, False)) + setup(2)
    assert f"operation 14: descriptor 2 of column 0 is changed while a task of {IN}" in refusal(
        later
    )
    beside = with_(9, *setup(2), silent(2)) + setup(2)
    assert f"changed while a task of {OTHER}" in refusal(beside)


def test_start_queue_of_four_is_full() -> None:
    check(with_(9, *[silent()] * NPU1.queue_depth))
    message = refusal(with_(9, *[silent()] * (NPU1.queue_depth + 1)))
    assert "operation 13: 5 tasks on shim (0, 0) MM2S 1, whose start queue holds 4" in message


def test_start_queue_counts_the_task_that_runs() -> None:
    """The task of GOOD itself and three more fill it; another needs the wait before it."""
    check(with_(9, *[StartTask(IN, 1, 1, False)] * 3))
    full = with_(9, *[StartTask(IN, 1, 1, False)] * 4)
    assert f"operation 12: 5 tasks on {IN}" in refusal(full)
    check(with_(10, *[StartTask(IN, 1, 1, False)] * 4))


def test_wait_frees_only_what_it_proves() -> None:
    """After one wait three of four tasks may still be there, so there is room for one."""
    tokens = [StartTask(IN, 1, 1, True)] * 3
    waits = [WaitToken(IN)] * 3
    check([*GOOD[:9], *tokens, WaitToken(IN), StartTask(IN, 1, 1, True), *waits, *GOOD[9:]])
    more = [*GOOD[:9], *tokens, WaitToken(IN), *[StartTask(IN, 1, 1, True)] * 2, *waits, *GOOD[9:]]
    assert f"operation 14: 5 tasks on {IN}" in refusal(more)


def test_queues_of_other_channels_are_their_own() -> None:
    check(with_(9, *[silent()] * 4, *[StartTask(IN, 1, 1, False)] * 3))


def racing(first: Operation, second: Operation, *between: Operation) -> list[Operation]:
    """OUT writes words 0 to 15 of buffer 1 beside a second transfer of a descriptor and address."""
    assert isinstance(second, PatchAddress)
    start = StartTask(OTHER, second.number, 1, False)
    return [*GOOD[:5], *between, first, second, start, *GOOD[5:]]


@pytest.mark.parametrize(("first_byte", "races"), [(0, True), (60, True), (64, False)])
def test_words_being_written_must_not_be_read(first_byte: int, races: bool) -> None:
    stream = racing(WriteDescriptor(0, 2, Descriptor(4)), PatchAddress(0, 2, 1, first_byte))
    if not races:
        check(stream)
        return
    message = refusal(stream)
    assert f"operation 7: {OTHER} reads words that {OUT} may still be writing" in message


def test_words_being_read_or_written_must_not_be_written() -> None:
    second = Channel(0, "S2MM", 1)
    setup_2 = [WriteDescriptor(0, 2, Descriptor(4)), PatchAddress(0, 2, 1, 0), EnableTokens(second)]
    both = [*GOOD[:5], *setup_2, StartTask(second, 2, 1, True), *GOOD[5:], WaitToken(second)]
    assert f"{second} writes words that {OUT} may still be using" in refusal(both)
    reads = [*setup(3), StartTask(OTHER, 3, 1, False)]  # words 0 to 15 of buffer 0
    same = [WriteDescriptor(0, 2, Descriptor(4)), PatchAddress(0, 2, 0, 0), *setup_2[2:]]
    after = [*GOOD, *reads, *same, StartTask(second, 2, 1, True), WaitToken(second)]
    assert f"{second} writes words that {OTHER} may still be using" in refusal(after)


def test_a_token_ends_a_race() -> None:
    again = [WriteDescriptor(0, 2, Descriptor(4)), PatchAddress(0, 2, 1, 0)]
    check([*GOOD, *again, StartTask(OTHER, 2, 1, False)])


def test_tasks_of_one_channel_run_in_order_and_reads_do_not_race() -> None:
    again = [WriteDescriptor(0, 2, Descriptor(4)), PatchAddress(0, 2, 1, 0)]
    check([*GOOD[:5], *again, StartTask(OUT, 2, 1, True), *GOOD[5:], WaitToken(OUT)])
    check(with_(9, *setup(2), silent(2)))


def test_buffers_that_share_memory_are_one() -> None:
    stream = Stream(NPU1, 1, tuple(GOOD))  # IN reads words 16 to 31 of buffer 0
    check_stream(stream, {0: 100, 1: 132})
    check_stream(stream, {0: 100, 1: 100})
    for first in (101, 131):
        with pytest.raises(StreamError, match=f"{re.escape(str(IN))} reads words that"):
            check_stream(stream, {0: 100, 1: first})


DESCRIPTORS = st.builds(
    Descriptor,
    words=st.integers(1, 12),
    wrap0=st.integers(1, 4),
    wrap1=st.integers(1, 3),
    step0=st.integers(1, 3),
    step1=st.integers(1, 9),
    step2=st.integers(1, 30),
    iterations=st.integers(1, 3),
    iteration_step=st.integers(1, 40),
) | st.builds(
    Descriptor,
    words=st.integers(1, 12),
    iterations=st.integers(1, 3),
    iteration_step=st.integers(1, 40),
)


@example(Descriptor(1), Descriptor(9, wrap0=4, wrap1=1, step2=4), 9)  # ends within its inner loop
@given(DESCRIPTORS, DESCRIPTORS, st.integers(0, 40))
def test_transfers_race_when_they_share_a_word(one: Descriptor, other: Descriptor, at: int) -> None:
    def words(descriptor: Descriptor, start: int) -> set[int]:
        runs = range(descriptor.iterations)
        steps = [start + run * descriptor.iteration_step for run in runs]
        return {step + offset for step in steps for offset in descriptor.offsets().tolist()}

    stream = [
        WriteDescriptor(0, 0, one),
        PatchAddress(0, 0, 0, 80),
        EnableTokens(OUT),
        StartTask(OUT, 0, 1, True),
        WriteDescriptor(0, 1, other),
        PatchAddress(0, 1, 0, at * 4),
        StartTask(IN, 1, 1, False),
        WaitToken(OUT),
    ]
    if words(one, 20) & words(other, at):
        assert "reads words" in refusal(stream)
    else:
        check(stream)


def test_token_needs_to_be_told_where_to_go() -> None:
    assert f"operation 7: asks {IN} for a token" in refusal(without(7))
    assert f"operation 3: asks {OUT} for a token" in refusal(without(3))


@pytest.mark.parametrize("channel", [IN, OUT, OTHER])
def test_wait_needs_a_task_to_come_from(channel: Channel) -> None:
    message = refusal([*GOOD, WaitToken(channel)])
    assert f"operation 11: waits for a token of {channel}, but no task there" in message


def test_wait_needs_a_task_with_a_token() -> None:
    mute = [*GOOD[:8], StartTask(IN, 1, 2, False), *GOOD[9:]]
    assert f"operation 9: waits for a token of {IN}, but no task there" in refusal(mute)


def test_wait_comes_after_its_task() -> None:
    early = [*GOOD[:8], GOOD[9], GOOD[8], GOOD[10]]
    assert f"operation 8: waits for a token of {IN}" in refusal(early)


def test_every_token_must_be_waited_for() -> None:
    message = refusal(without(9))
    assert f"end of stream: the task with descriptor 1 on {IN} is never waited for" in message


def test_every_transfer_into_host_memory_must_be_waited_for() -> None:
    message = refusal(without(10))
    assert f"end of stream: the task with descriptor 0 on {OUT} is never waited for" in message
    mute = [*GOOD[:4], StartTask(OUT, 0, 1, False), *GOOD[5:10]]
    assert f"end of stream: the task with descriptor 0 on {OUT}" in refusal(mute)


def test_input_without_a_token_may_be_left_unproven() -> None:
    check([*GOOD[:7], StartTask(IN, 1, 2, False), GOOD[10]])


def test_parameter_must_not_change_while_a_task_may_run() -> None:
    message = refusal(with_(9, GOOD[0]))
    assert "operation 9: writes a parameter of core (0, 2) while" in message
    assert "may be running" in message
    assert f"while {OUT} may be running" in refusal(with_(10, GOOD[0]))
    check([*GOOD, GOOD[0]])


@pytest.mark.parametrize(
    "operation",
    [
        WriteWord(Tile(1, 2), 1024, 3),
        WriteDescriptor(1, 0, Descriptor(16)),
        PatchAddress(1, 0, 0, 0),
        EnableTokens(Channel(1, "S2MM", 0)),
        StartTask(Channel(1, "S2MM", 0), 0, 1, True),
        WaitToken(Channel(1, "S2MM", 0)),
    ],
)
def test_no_operation_may_leave_the_partition(operation: Operation) -> None:
    message = refusal([operation, *GOOD])
    assert "operation 0: column 1 is outside the partition of 1 columns" in message
