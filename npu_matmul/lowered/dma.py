"""DMA channels: those of cores and memtiles run descriptor chains, those of shims start queues."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from npu_matmul.emulator.actors import Condition
from npu_matmul.emulator.shim import DescriptorState, ShimChannel, Task
from npu_matmul.lowered.locks import LockState
from npu_matmul.lowered.memory import TileMemory, Words
from npu_matmul.lowered.module import PADDING, Descriptor, Lock, Program, Span, UseLock
from npu_matmul.lowered.order import Clock, Snapshot
from npu_matmul.lowered.streams import GO_ON, Data, Inlet, Outlet, Pace
from npu_matmul.overlay import Channel, Tile


class DmaChannel:
    """Runs a program: acquire, move, release, and on to the next descriptor.

    What its releases hand over are the ``spans`` of the module, in this order.
    """

    def __init__(
        self,
        program: Program,
        spans: tuple[Span, ...],
        memories: Mapping[Tile, TileMemory],
        locks: Mapping[Lock, LockState],
        clock: Clock,
        end: Inlet | Outlet,
        pace: Pace,
    ) -> None:
        self.program = program
        self.clock = clock
        self.transfers = 0
        self.current: Descriptor | None = None
        self.acquired: UseLock | None = None
        self._waits_for_lock = False
        self._span_of = {descriptor: span for span in spans for descriptor in span.descriptors[-1:]}
        self._locks = locks
        self._end = end
        self._pace = pace
        self._states = {d: self._prepare(d, memories) for d in program.descriptors}
        self._conditions = {
            d: locks[d.acquire.lock].condition(d.acquire)
            for d in program.descriptors
            if d.acquire is not None
        }

    def run(self) -> Iterator[Condition]:
        """Execute the program: for ever, where it has a loop."""
        for _ in range(self.program.runs if self.program.loop is None else 1):
            for descriptor in self.program.descriptors:
                yield from self._execute(descriptor)
        while self.program.loop is not None:
            for descriptor in self.program.cycle():
                yield from self._execute(descriptor)

    def state(self) -> str:
        """What it waits for, and how much of a transfer is done: equal at rest, always."""
        assert self.current is not None
        if self._waits_for_lock:
            acquire = self.current.acquire
            assert acquire is not None
            return f"waiting for {acquire.amount} of lock {acquire.lock}"
        return f"{self._end.moved:,} words into a transfer"

    def _execute(self, descriptor: Descriptor) -> Iterator[Condition]:
        self.current = descriptor
        acquire, release = descriptor.acquire, descriptor.release
        if acquire is not None:
            lock, self._waits_for_lock = self._locks[acquire.lock], True
            while not lock.open_for(acquire):
                yield self._conditions[descriptor]
            lock.acquire(acquire, self.clock)
            self.acquired = acquire
            self._waits_for_lock = False
            if self._pace.fine:
                yield GO_ON
        yield from self._transfer(descriptor)
        self.transfers += 1
        if release is not None:
            self._locks[release.lock].release(
                release, self.clock, str(self.clock), self._span_of.get(descriptor)
            )
            self.acquired = None
        if self._pace.fine:
            yield GO_ON

    def _transfer(self, descriptor: Descriptor) -> Iterator[Condition]:
        """Move what a descriptor says."""
        yield from self._states[descriptor]()

    def _prepare(
        self, descriptor: Descriptor, memories: Mapping[Tile, TileMemory]
    ) -> Callable[[], Iterator[Condition]]:
        """How to execute a descriptor's transfer, with its addresses worked out."""
        memory = memories[descriptor.buffer.tile]
        words = memory.words_of(descriptor)
        where = f"at {descriptor.place}"
        if isinstance(self._end, Inlet):
            waiting = self._end.waiting(f"words for {descriptor.buffer} {where}")
            return self._receiving(memory, words, self._end, waiting)
        waiting = self._end.waiting(f"room for words of {descriptor.buffer} {where}")
        return self._sending(memory, words, descriptor.pad_value, self._end, waiting)

    def _sending(
        self, memory: TileMemory, words: Words, pad: int, outlet: Outlet, waiting: Condition
    ) -> Callable[[], Iterator[Condition]]:
        real = words[words != PADDING]
        padded = real.size < words.size
        run = _slice(words)

        def data(first: int, count: int) -> Data:
            if run is not None:
                return memory.words[run.start + first : run.start + first + count]
            part = words[first : first + count]
            found = memory.words[part]
            if padded:
                found[part == PADDING] = pad & 0xFFFF_FFFF
            return found

        def move() -> Iterator[Condition]:
            known = self.clock.give()  # the first words that arrive tell nothing of the last ones
            memory.read(self.clock, real)
            yield from outlet.send(words.size, data, known, waiting)

        return move

    def _receiving(
        self, memory: TileMemory, words: Words, inlet: Inlet, waiting: Condition
    ) -> Callable[[], Iterator[Condition]]:
        run = _slice(words)

        def sink(position: int, data: Data, known: Snapshot) -> None:
            self.clock.take(known)
            if run is not None:
                start = run.start + position
                memory.put(slice(start, start + data.size), data)
            else:
                memory.put(words[position : position + data.size], data)

        def move() -> Iterator[Condition]:
            memory.claim(self.clock, words)
            yield from inlet.receive(words.size, sink, waiting, self._pace)

        return move


def _slice(words: Words) -> slice | None:
    """The same words as a slice, where they are consecutive: faster."""
    if words.size and words[0] != PADDING and (np.diff(words) == 1).all():
        return slice(int(words[0]), int(words[-1]) + 1)
    return None


class StreamChannel(ShimChannel):
    """A shim channel that runs start queues against a stream; knowledge travels with its tasks,
    words and tokens."""

    def __init__(
        self,
        channel: Channel,
        name: str,
        host: Clock,
        clock: Clock,
        end: Inlet | Outlet,
        pace: Pace,
    ) -> None:
        super().__init__(channel, name)
        self.clock = clock
        self._host = host
        self._end = end
        self._pace = pace
        self._tasks_known: deque[Snapshot] = deque()
        self._tokens_known: deque[Snapshot] = deque()
        if isinstance(end, Inlet):
            self._waiting = end.waiting("words")
        else:
            self._waiting = end.waiting("room for words")

    def start(self, task: Task) -> None:
        self._tasks_known.append(self._host.give())
        super().start(task)

    def finish(self, task: Task) -> None:
        super().finish(task)
        if task.token:
            self._tokens_known.append(self.clock.give())

    def take_token(self) -> None:
        super().take_token()
        self._host.take(self._tokens_known.popleft())

    def _begin(self) -> None:
        """Know what the host knew when it queued the task that runs."""
        while len(self._tasks_known) >= len(self.queue):
            self.clock.take(self._tasks_known.popleft())

    def _send(self, state: DescriptorState) -> Iterator[Condition]:
        self._begin()
        words = state.read(self)
        assert isinstance(self._end, Outlet)

        def data(first: int, count: int) -> Data:
            return words[first : first + count]

        yield from self._end.send(words.size, data, self.clock.give(), self._waiting)
        self.bytes_moved += words.nbytes

    def _receive(self, state: DescriptorState) -> Iterator[Condition]:
        self._begin()
        where = state.next_run()
        words = np.empty(state.descriptor.words, np.uint32)
        assert isinstance(self._end, Inlet)

        def sink(position: int, data: Data, known: Snapshot) -> None:
            self.clock.take(known)
            words[position : position + data.size] = data

        yield from self._end.receive(words.size, sink, self._waiting, self._pace)
        state.write(where, words)
        self.bytes_moved += words.nbytes

    def state(self) -> str:
        """How many tasks and tokens there are, and how much of a transfer is done."""
        moved = self._end.moved if self.queue else 0
        return f"with {len(self.queue)} tasks, {self.tokens} tokens, {moved:,} words moved"
