"""Shim DMAs: descriptors, start queues and tokens, between host memory and the array's streams."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npu_matmul.emulator import EmulationError
from npu_matmul.emulator.actors import Condition
from npu_matmul.emulator.rings import End
from npu_matmul.instructions import Descriptor
from npu_matmul.overlay import Channel
from npu_matmul.target import WORD_BYTES


@dataclass(frozen=True)
class DeviceMemory:
    """The device's side of a buffer argument: words, and which of them anybody has put there."""

    name: str
    words: NDArray[np.uint32]
    known: NDArray[np.bool_]


@dataclass
class DescriptorState:
    """A descriptor as written, where its address was patched to, and how many runs it has made."""

    descriptor: Descriptor
    memory: DeviceMemory | None = None
    offset_words: int = 0
    runs: int = 0

    def next_run(self) -> slice | NDArray[np.int64]:
        """The words of the next run; checks that they lie in the buffer."""
        assert self.memory is not None
        descriptor = self.descriptor
        start = self.offset_words + self.runs % descriptor.iterations * descriptor.iteration_step
        self.runs += 1
        where: slice | NDArray[np.int64]
        if descriptor.wrap0 == 0:
            end = start + descriptor.words
            where = slice(start, end)
        else:
            offsets = descriptor.offsets() + start
            end, where = int(offsets.max()) + 1, offsets
        if end > self.memory.words.size:
            raise EmulationError(
                f"a transfer reaches byte {end * WORD_BYTES} of {self.memory.name}, "
                f"which has {self.memory.words.nbytes}"
            )
        return where

    def read(self, reader: object) -> NDArray[np.uint32]:
        """The words of the next run, which somebody must have put there."""
        where, memory = self.next_run(), self.memory
        assert memory is not None
        known = memory.known[where]
        if not known.all():
            first = np.arange(memory.words.size)[where][int(np.argmin(known))] * WORD_BYTES
            raise EmulationError(
                f"{reader} reads byte {first} of {memory.name}, which "
                "was never synced to the device: "
                "write it and sync it before the launch"
            )
        return memory.words[where]

    def write(self, where: slice | NDArray[np.int64], data: NDArray[np.uint32]) -> None:
        """Put the words of a run where ``next_run`` said."""
        assert self.memory is not None
        self.memory.words[where] = data
        self.memory.known[where] = True


@dataclass(frozen=True)
class Task:
    state: DescriptorState
    runs: int
    token: bool


class ShimChannel:
    """One DMA channel of a shim: runs its start queue in order and reports what is done.

    How the words of a run leave for the array or come from it is ``_send`` and ``_receive``.
    """

    def __init__(self, channel: Channel, name: str) -> None:
        self.channel = channel
        self.name = name
        self.queue: deque[Task] = deque()
        self.tokens = 0
        self.tasks_done = 0
        self.bytes_moved = 0
        self._busy = Condition(lambda: bool(self.queue), "a task")
        self.token_sent = Condition(lambda: self.tokens > 0, f"a token of {self}")

    def run(self) -> Iterator[Condition]:
        """Execute tasks for ever."""
        moves = self._send if self.channel.direction == "MM2S" else self._receive
        while True:
            while not self.queue:
                yield self._busy
            task = self.queue[0]
            for _ in range(task.runs):
                yield from moves(task.state)
            self.queue.popleft()
            self.finish(task)

    def start(self, task: Task) -> None:
        """Put a task on the start queue."""
        self.queue.append(task)

    def finish(self, task: Task) -> None:
        """A task has left the queue; its token, if it sends one, is there."""
        self.tasks_done += 1
        self.tokens += task.token

    def take_token(self) -> None:
        self.tokens -= 1

    def _send(self, state: DescriptorState) -> Iterator[Condition]:
        raise NotImplementedError

    def _receive(self, state: DescriptorState) -> Iterator[Condition]:
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{self.channel} (@{self.name})"


class FifoChannel(ShimChannel):
    """A shim channel that moves its words into or out of the elements of an object FIFO."""

    def __init__(self, channel: Channel, fifo: str, ends: list[End]) -> None:
        super().__init__(channel, fifo)
        self.ends = ends
        self.part_bytes = 0  # of an element begun and not finished

    def _send(self, state: DescriptorState) -> Iterator[Condition]:
        data = state.read(self).view(np.uint8)
        sent = 0
        while sent < data.size:
            yield from self._open_element()
            targets = [end.data(end.acquired - 1) for end in self.ends]
            count = min(data.size - sent, targets[0].size - self.part_bytes)
            for target in targets:
                target[self.part_bytes : self.part_bytes + count] = data[sent : sent + count]
            sent += count
            self._moved(count, targets[0].size)

    def _receive(self, state: DescriptorState) -> Iterator[Condition]:
        where = state.next_run()
        data = np.empty(state.descriptor.words * WORD_BYTES, np.uint8)
        received = 0
        end = self.ends[0]
        while received < data.size:
            yield from self._open_element()
            source = end.data(end.acquired - 1)
            count = min(data.size - received, source.size - self.part_bytes)
            data[received : received + count] = source[self.part_bytes : self.part_bytes + count]
            received += count
            self._moved(count, source.size)
        state.write(where, data.view(np.uint32))

    def _open_element(self) -> Iterator[Condition]:
        """Hold an element at every end: a broadcast moves only when all its readers can."""
        if self.part_bytes:
            return
        for end in self.ends:
            while not end.can_take(1):
                yield end.until(1)
        for end in self.ends:
            end.take()

    def _moved(self, count: int, element_bytes: int) -> None:
        self.bytes_moved += count
        self.part_bytes += count
        if self.part_bytes == element_bytes:
            self.part_bytes = 0
            for end in self.ends:
                end.give()

    def level(self) -> tuple[int, int, int]:
        return len(self.queue), self.tokens, self.part_bytes
