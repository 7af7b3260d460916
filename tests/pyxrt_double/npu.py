"""The machine behind the double: memory, hardware contexts, command queues, and what fails.

Time passes only when somebody asks for a command's state: each question but a command's first ends
the oldest command of that context, or every n-th question does. So every test sees launches that
are still under way.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from npu_matmul.emulator import POISON, EmulationError
from npu_matmul.emulator.machine import Machine
from npu_matmul.emulator.shim import DeviceMemory
from npu_matmul.emulator.symbols import models
from npu_matmul.instructions import decode
from npu_matmul.mlir.elaborate import overlay_of_text
from npu_matmul.streams import written_arguments
from pyxrt_double.xclbin import kernel_of

NEW, COMPLETED, ERROR, ABORT, TIMEOUT = 1, 4, 5, 6, 8
IN_FLIGHT = 4  # commands that the driver takes of a context
HEAP_BYTES = 64 * 2**20
HEAP_GRANULE_BYTES = 32 * 2**10
HOST, SRAM, NO_BANK = 0, 1, 0xFFFF
CACHE_LINE_BYTES = 64
GONE = "DRM_IOCTL_AMDXDNA_{} IOCTL failed (err=-19): No such device"


class Crash(BaseException):
    """Here the genuine binding ends the process, or blocks it for ever."""


@dataclass(eq=False)
class Launch:
    """What the array does when it comes to a launch, and the memory that it touches."""

    perform: Callable[[bool], None]  # on an array that is as it should be, or is not
    stores: list[Store]


@dataclass(eq=False)
class Command:
    """What one entry of a context's queue is: launches, each with its outcome."""

    launches: list[Launch]
    state: int = NEW
    asked: int = 0
    hangs: bool = False


class Npu:
    """Counts and faults are plain attributes: tests set and read them."""

    def __init__(self, model: str = "NPU Phoenix", context_limit: int = 6) -> None:
        self.model = model
        self.context_limit = context_limit
        self.devices = 1
        self.lockable_bytes: int | None = None  # None: no limit
        self.locked_bytes = 0
        self.heap_bytes = 0
        self.vanished = False
        self.open_fails = ""
        self.faults: dict[int, str] = {}  # by number of the launch, from 1
        self.context_faults: deque[str] = deque()  # texts to raise instead of making a context
        self.asks_a_step = 1
        self.launches = 0
        self.chains = 0
        self.calls: Counter[str] = Counter()
        self.crashes: list[str] = []
        self.lock = threading.RLock()  # the genuine binding holds the interpreter's
        self.contexts: weakref.WeakSet[ContextState] = weakref.WeakSet()
        self.events: list[str] = []
        self.pending_when_made: list[int] = []  # commands in flight when a context was made
        self._slots = itertools.count(1)
        self._random = np.random.default_rng(7)
        self.groups: dict[int, tuple[int, int]] = {}  # opaque number -> slot, bank

    def crash(self, text: str) -> None:
        self.crashes.append(text)
        raise Crash(text)

    def require_present(self, request: str) -> None:
        if self.vanished:
            raise RuntimeError(GONE.format(request))

    def in_flight(self) -> list[Launch]:
        with self.lock:  # whoever looks at a context keeps it alive for that time
            queues = [context.queue for context in self.contexts]
            return [launch for queue in queues for command in queue for launch in command.launches]

    def group(self, slot: int, bank: int) -> int:
        while True:
            number = int(self._random.integers(1, 2**31))
            if number not in self.groups:
                self.groups[number] = slot, bank
                return number

    def make_context(self, table: dict[str, Any]) -> ContextState:
        self.require_present("CREATE_HWCTX")
        if self.context_faults:
            raise RuntimeError(self.context_faults.popleft())
        with self.lock:
            there = len(self.contexts)
        if there >= self.context_limit:
            raise RuntimeError("DRM_IOCTL_AMDXDNA_CREATE_HWCTX IOCTL failed (err=-2): No such file")
        self.pending_when_made.append(sum(len(context.queue) for context in self.contexts))
        context = ContextState(self, next(self._slots), table)
        self.contexts.add(context)
        self.events.append("context made")
        return context


class ContextState:
    """One hardware context: the array as its overlay configured it, and its queue."""

    def __init__(self, npu: Npu, slot: int, table: dict[str, Any]) -> None:
        self.npu = npu
        self.kernels: dict[str, int] = dict(table["kernels"])
        self.queue: deque[Command] = deque()
        self.dirty = False  # the array holds leftovers of a launch that failed
        self.asked = 0
        overlay = overlay_of_text(table["design"], "overlay.mlir")
        self.machine = Machine(overlay, models(kernel_of(table["manifest"])))
        self.data_group, self.instruction_group, self.no_group = (
            npu.group(slot, bank) for bank in (HOST, SRAM, NO_BANK)
        )

    def submit(self, command: Command) -> None:
        self.npu.require_present("EXEC_CMD")
        with self.npu.lock:
            if len(self.queue) >= IN_FLIGHT:
                self.npu.crash("a fifth command in flight blocks inside the driver")
            self.queue.append(command)

    def ask(self, command: Command) -> int:
        """The state of a command; time passes."""
        with self.npu.lock:
            command.asked += 1
            self.asked += command.asked > 1
            due = command.asked > 1 and self.asked % self.npu.asks_a_step == 0
            if due and self.queue and not self.npu.vanished:
                self._step()
            return command.state

    def _step(self) -> None:
        command = self.queue[0]
        if command.hangs:
            return
        for launch in command.launches:
            outcome = self._launch(launch)
            if outcome is None:
                command.hangs = True
                return
            if outcome != COMPLETED:
                self._fail(command, outcome)
                return
        command.state = COMPLETED
        self.queue.popleft()

    def _launch(self, launch: Launch) -> int | None:
        self.npu.launches += 1
        fault = self.npu.faults.get(self.npu.launches)
        if fault == "hang":
            return None
        if fault in ("timeout", "abort", "error"):
            return {"timeout": TIMEOUT, "abort": ABORT, "error": ERROR}[fault]
        if fault == "vanish":
            self.npu.vanished = True
            return None
        if fault == "lost":  # says that it is done, and did nothing
            return COMPLETED
        try:
            launch.perform(self.dirty)
        except EmulationError as error:
            self.npu.events.append(str(error))
            return TIMEOUT
        return COMPLETED

    def _fail(self, command: Command, state: int) -> None:
        """The driver ends the command. Only where its watchdog stops the context does it abort what
        is behind; an error of the firmware stops nothing. What comes later, also after a restart,
        computes on what the array was left with."""
        self.dirty = True
        command.state = state
        self.queue.remove(command)
        if state != ERROR:
            for other in self.queue:
                other.state = ABORT
            self.queue.clear()


@dataclass(eq=False)
class Store:
    """Memory of a buffer object: what the host sees, what the NPU sees, and what the host saw after
    its last sync: bytes that differ from that are in the CPU's cache only, which writes them back
    whenever it likes, whole lines and over whatever the NPU has written."""

    npu: Npu
    nbytes: int
    bank: int
    cacheable: bool
    host: Any = field(init=False)
    synced: Any = field(init=False)
    words: Any = field(init=False)
    known: Any = field(init=False)

    def __post_init__(self) -> None:
        padded = -(-self.nbytes // 4) * 4
        self.host = np.full(padded, POISON, np.uint8)
        self.synced = self.host.copy()
        self.words = self.host.copy().view(np.uint32)
        self.known = np.zeros(padded // 4, np.bool_)
        self._account(1)

    def _account(self, sign: int) -> None:
        npu = self.npu
        if self.cacheable:
            granules = -(-self.nbytes // HEAP_GRANULE_BYTES) * HEAP_GRANULE_BYTES
            if sign > 0 and npu.heap_bytes + granules > HEAP_BYTES:
                raise RuntimeError(f"Heap at max size {HEAP_BYTES}, can't expand further (err=28)")
            npu.heap_bytes += sign * granules
            return
        limit = npu.lockable_bytes
        if sign > 0 and limit is not None and npu.locked_bytes + self.nbytes > limit:
            raise RuntimeError(
                f"mmap(addr=0, len={self.nbytes}, prot=3, flags=8193, offset=0) failed (err=-11): "
                "Resource temporarily unavailable"
            )
        npu.locked_bytes += sign * self.nbytes

    def free(self) -> None:
        if any(self in launch.stores for launch in self.npu.in_flight()):
            self.npu.crashes.append("memory was freed that a launch in flight touches")
        self._account(-1)
        self.host[:] = 0xDD  # what a map without its buffer object would show

    def part(self, offset: int, nbytes: int) -> DeviceMemory:
        words = slice(offset // 4, -(-(offset + nbytes) // 4))
        return DeviceMemory("a buffer object", self.words[words], self.known[words])

    def require_clean(self, offset: int, nbytes: int) -> None:
        """No cache line of these bytes was written by the host since its last sync."""
        first = offset // CACHE_LINE_BYTES * CACHE_LINE_BYTES
        end = -(-(offset + nbytes) // CACHE_LINE_BYTES) * CACHE_LINE_BYTES
        if not np.array_equal(self.host[first:end], self.synced[first:end]):
            self.npu.crash("the CPU's cache writes lines back over what the NPU has written")

    def sync(self, to_device: bool, offset: int, nbytes: int) -> None:
        device = self.words.view(np.uint8)
        where = slice(offset, offset + nbytes)
        if not to_device:
            self.require_clean(offset, nbytes)
        self.synced[where] = self.host[where] if to_device else device[where]
        if to_device:
            device[where] = self.host[where]
            self.known[offset // 4 : -(-(offset + nbytes) // 4)] = True
        else:
            self.host[where] = device[where]


def launch_of(
    context: ContextState, instructions: Store, words: int, data: list[tuple[Store, int, int]]
) -> Launch:
    """A launch on parts of data buffers (offset and size in bytes); the array reads the stream only
    when it comes to it."""
    arguments = [store.part(offset, nbytes) for store, offset, nbytes in data]

    def perform(dirty: bool) -> None:
        if not instructions.known[:words].all():
            raise EmulationError("the firmware reads instructions that were never synced")
        stream = decode(instructions.words[:words].tobytes())
        for number in written_arguments(stream):
            store, offset, nbytes = data[number]
            store.require_clean(offset, nbytes)
        context.machine.launch(stream, arguments)
        if dirty:
            for number in written_arguments(stream):
                np.bitwise_xor(arguments[number].words, 1, out=arguments[number].words)

    return Launch(perform, [instructions, *(store for store, _, _ in data)])
