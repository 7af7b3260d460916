"""What an instruction stream must not do, judged from the stream alone.

A check while running would depend on which transfer happened to finish first, so these rules count
only what the stream itself proves: a token waited for proves its task complete, and with it every
earlier task of the same channel, because a channel runs its start queue in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

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
)
from npu_matmul.overlay import Channel
from npu_matmul.target import WORD_BYTES
from npu_matmul.violation import Violation


@dataclass
class _Proof:
    """What is known at one point of the stream."""

    addresses: Mapping[int, int]  # the first word of buffer arguments that may share memory
    started: dict[Channel, deque[StartTask]] = field(default_factory=dict)  # not proven complete
    written: dict[tuple[int, int], Descriptor] = field(default_factory=dict)
    patched: dict[tuple[int, int], PatchAddress] = field(default_factory=dict)
    reporting: set[Channel] = field(default_factory=set)

    def in_flight(self, column: int, number: int) -> Channel | None:
        for channel, tasks in self.started.items():
            if channel.column == column and any(task.number == number for task in tasks):
                return channel
        return None

    def first_word(self, key: tuple[int, int]) -> int:
        """Where a descriptor begins; arguments of which nothing is known are far apart."""
        patch = self.patched[key]
        apart = patch.argument << 64
        return self.addresses.get(patch.argument, apart) + patch.offset_bytes // WORD_BYTES


def check_stream(stream: Stream, addresses: Mapping[int, int] | None = None) -> None:
    """Raise :class:`StreamError` for the first operation that breaks a rule."""
    for violation in stream_violations(stream, addresses=addresses):
        raise StreamError(str(violation))


def stream_violations(
    stream: Stream,
    places: Sequence[str] | None = None,
    addresses: Mapping[int, int] | None = None,
) -> Iterator[Violation]:
    """Everything that breaks a rule; ``places`` says where each operation comes from, ``addresses``
    the first word of each buffer argument, where they may share memory.

    Rules: no operation leaves the partition; a descriptor is written, patched with the address of a
    word and then started, and changed only while no task that uses it may be running; no channel
    holds more tasks than its start queue; every token has a task to come from and is waited for;
    every transfer into host memory is proven complete at the end, and no other one touches its
    words before; runtime parameters are written only while nothing runs.
    """
    proof = _Proof(addresses or {})
    for position, operation in enumerate(stream.operations):
        where = f"operation {position}" if places is None else places[position]
        yield from _check(operation, proof, stream, where)
    for channel, tasks in proof.started.items():
        late = next((task for task in tasks if task.token or channel.direction == "S2MM"), None)
        if late is not None:
            yield Violation(
                "tokens",
                "end of stream",
                f"the task with descriptor {late.number} on {channel} is never waited for",
                "add a wait, or the host would read before the data is there",
            )


def _check(operation: Operation, proof: _Proof, stream: Stream, where: str) -> Iterator[Violation]:
    column = _column(operation)
    if column >= stream.columns:
        found = f"column {column} is outside the partition of {stream.columns} columns"
        yield Violation("partition", where, found, "use a column of it, or a wider partition")
    if isinstance(operation, WriteWord):
        yield from _check_parameter(operation, proof, where)
    elif isinstance(operation, WriteDescriptor | PatchAddress):
        yield from _check_descriptor(operation, proof, where)
    elif isinstance(operation, EnableTokens):
        proof.reporting.add(operation.channel)
    elif isinstance(operation, StartTask):
        yield from _check_start(operation, proof, stream, where)
    else:
        yield from _check_wait(operation, proof, where)


def _column(operation: Operation) -> int:
    if isinstance(operation, WriteWord):
        return operation.tile.column
    if isinstance(operation, WriteDescriptor | PatchAddress):
        return operation.column
    return operation.channel.column


def _check_parameter(operation: WriteWord, proof: _Proof, where: str) -> Iterator[Violation]:
    running = next((channel for channel, tasks in proof.started.items() if tasks), None)
    if running is not None:
        found = f"writes a parameter of {operation.tile} while {running} may be running"
        yield Violation("parameters", where, found, "write parameters first")


def _check_descriptor(
    operation: WriteDescriptor | PatchAddress, proof: _Proof, where: str
) -> Iterator[Violation]:
    key = operation.column, operation.number
    user = proof.in_flight(*key)
    if user is not None:
        yield Violation(
            "descriptors",
            where,
            f"descriptor {operation.number} of column {operation.column} is changed while a task "
            f"of {user} that uses it may be in flight",
            "wait for that task's token first, or use another descriptor",
        )
    if isinstance(operation, WriteDescriptor):
        proof.written[key] = operation.descriptor
        proof.patched.pop(key, None)
        return
    if key not in proof.written or operation.offset_bytes % WORD_BYTES:
        yield Violation(
            "descriptors",
            where,
            f"sets the address of descriptor {operation.number} of column {operation.column} to "
            f"byte {operation.offset_bytes}",
            f"it must be a multiple of {WORD_BYTES}, and the descriptor written before",
        )
    proof.patched[key] = operation


def _check_start(
    operation: StartTask, proof: _Proof, stream: Stream, where: str
) -> Iterator[Violation]:
    channel, number = operation.channel, operation.number
    key = channel.column, number
    if not (key in proof.written and key in proof.patched):
        found = f"starts descriptor {number} of column {channel.column}, which is not set up"
        yield Violation("descriptors", where, found, "write it, then its address, then start it")
    else:
        yield from _races(operation, proof, where)
    if operation.token and channel not in proof.reporting:
        found = f"asks {channel} for a token, which was never told where to send it"
        yield Violation("tokens", where, found, "enable its tokens first")
    tasks = proof.started.setdefault(channel, deque())
    tasks.append(operation)
    depth = stream.target.queue_depth
    if len(tasks) > depth:
        found = f"{len(tasks)} tasks on {channel}, whose start queue holds {depth}"
        yield Violation("start queue", where, found, "wait for a token before starting more")


def _races(operation: StartTask, proof: _Proof, where: str) -> Iterator[Violation]:
    """Tasks of other channels that may be running and touch the same words, one of them writing."""
    mine = operation.channel
    for channel, tasks in proof.started.items():
        if channel == mine or "S2MM" not in (channel.direction, mine.direction):
            continue
        for task in tasks:
            if _overlap((mine.column, operation.number), (channel.column, task.number), proof):
                done, doing = (
                    ("reads", "writing") if mine.direction == "MM2S" else ("writes", "using")
                )
                yield Violation(
                    "races",
                    where,
                    f"{mine} {done} words that {channel} may still be {doing}",
                    "wait for that task's token first, or use another part of the buffer",
                )


def _overlap(one: tuple[int, int], other: tuple[int, int], proof: _Proof) -> bool:
    """Whether two tasks, by their descriptors, touch a common word in any of their runs."""
    if not (one in proof.patched and other in proof.patched):
        return False
    a, b = proof.written[one], proof.written[other]
    start, other_start = proof.first_word(one), proof.first_word(other)
    if start + a.reach() <= other_start or other_start + b.reach() <= start:
        return False
    (a_at, a_words), (b_at, b_words) = a.stretches(), b.stretches()
    a_at = a_at + (start - other_start)
    following = np.searchsorted(b_at, a_at)
    reaches_next = np.append(b_at, np.iinfo(np.int64).max)[following] < a_at + a_words
    in_previous = np.append(np.iinfo(np.int64).min, b_at + b_words)[following] > a_at
    return bool((reaches_next | in_previous).any())


def _check_wait(operation: WaitToken, proof: _Proof, where: str) -> Iterator[Violation]:
    tasks = proof.started.get(operation.channel, deque())
    if not any(task.token for task in tasks):
        found = f"waits for a token of {operation.channel}, but no task there will send one"
        yield Violation("tokens", where, found, "ask a transfer before it for a token")
        return
    while not tasks.popleft().token:
        pass
