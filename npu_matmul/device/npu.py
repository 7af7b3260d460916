"""Devices that run overlays: kernels loaded on them, and launches of instruction streams."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from npu_matmul.device.base import Device
from npu_matmul.device.buffer import Buffer
from npu_matmul.device.buffer_pool import BufferPool, pool_size
from npu_matmul.device.errors import BufferSizeError, DeviceError
from npu_matmul.instructions import Stream, decode
from npu_matmul.kernel import Kernel
from npu_matmul.stream_rules import check_stream
from npu_matmul.target import NPU1, WORD_BYTES, Target

POOL_BYTES = 128 << 20  # of buffers that a device keeps for later calls
PREPARED_STREAMS = 256  # kept per loaded kernel; the least recently used is dropped first


class NpuDevice(Device):
    """A device with buffers of its own that runs overlays.

    ``host_below`` sends products of fewer multiplications to the CPU, where packing them would cost
    more than computing them, unless a call says which kernel or strategy; 0 turns that off, and is
    the default. ``bench/host_below.py`` measures the number for a machine.
    """

    host_below = 0
    target: Target = NPU1

    def __init__(self) -> None:
        super().__init__()
        self._pool = BufferPool(POOL_BYTES)
        self.choices: dict[Hashable, Any] = {}  # what the planner decided for this device
        self.unfit: dict[Kernel, str] = {}  # computed a known product wrongly, and how

    def can_load(self, kernel: Kernel) -> bool:
        """Whether ``load`` will find what it needs; kernels that can be loaded are preferred."""
        return kernel.source.is_file()

    def is_free(self, buffer: Buffer) -> bool:
        """Whether nothing that was launched may still touch a buffer."""
        return True

    def alloc(self, nbytes: int) -> Buffer:
        """A new buffer of ``nbytes``, a positive multiple of 4; its contents are undefined on both
        sides."""
        self.require_open()
        if nbytes <= 0 or nbytes % WORD_BYTES:
            raise BufferSizeError(
                f"a buffer of {nbytes} B: the size must be a positive multiple of {WORD_BYTES} B"
            )
        self.count(allocations=1, allocated_bytes=nbytes)
        return self._alloc(nbytes)

    @contextmanager
    def lend(self, nbytes: int) -> Iterator[Buffer]:
        """A buffer of ``nbytes`` for the time of the block, as if new: one that was given back
        earlier if there is one."""
        size = pool_size(nbytes)
        whole = self._pool.take(size) or self.alloc(size)
        buffer = whole.view(0, nbytes)
        buffer.forget()
        yield buffer
        if self.is_free(whole):
            self._pool.give(whole)  # not after an error: what failed may still be writing to it

    def make_room(self) -> None:
        """Let go of what is kept only for later calls."""
        self._pool.clear()

    def close(self) -> None:
        super().close()
        self._pool.clear()

    @abstractmethod
    def _alloc(self, nbytes: int) -> Buffer: ...

    @abstractmethod
    def load(self, kernel: Kernel) -> LoadedKernel:
        """The kernel, ready to launch; loaded once and kept."""


class Run(ABC):
    """One launch under way."""

    @abstractmethod
    def wait(self, timeout_s: float) -> None:
        """Return when the launch has completed; raises :class:`LaunchFailed` when it does not."""


@dataclass(frozen=True)
class Prepared:
    """A stream that was checked, and the device's own form of it."""

    stream: Stream
    argument_bytes: dict[int, int]
    instructions: Any


class LoadedKernel(ABC):
    """A kernel on a device: launches instruction streams, each checked and transferred once."""

    TIMEOUT_S = 10.0

    def __init__(self, device: NpuDevice, kernel: Kernel) -> None:
        self.device = device
        self.kernel = kernel
        self._streams: OrderedDict[bytes, Prepared] = OrderedDict()
        self._lock = threading.RLock()

    def launch(self, stream: bytes, buffers: Sequence[Buffer]) -> Run:
        """Start one launch. Raises ``StreamError`` for a bad stream, or one whose transfers race on
        these buffers, :class:`BufferSizeError` for small ones, :class:`DeviceError` for those of
        another device."""
        with self._lock:
            prepared = self._checked(stream, buffers)
            self.device.count(launches=1)
            return self._start(prepared.instructions, buffers)

    def launch_all(self, launches: Iterable[tuple[bytes, Sequence[Buffer]]]) -> None:
        """Launch one after the other and wait for each."""
        for stream, buffers in launches:
            self.launch(stream, buffers).wait(self.TIMEOUT_S)

    def _checked(self, stream: bytes, buffers: Sequence[Buffer]) -> Prepared:
        """The stream, prepared; raises for what must not be launched on these buffers."""
        for buffer in buffers:
            if buffer.device is not self.device:
                raise DeviceError(
                    f"{buffer.name} belongs to another device {buffer.device.name!r} than kernel "
                    f"{self.kernel.name!r} was loaded on; allocate it with that one's alloc"
                )
        self.device.require_open()
        prepared = self._prepare(stream)
        if _share_memory(buffers):
            check_stream(prepared.stream, _first_words(buffers))
        for argument, needed in prepared.argument_bytes.items():
            if argument >= len(buffers) or buffers[argument].nbytes < needed:
                given = f"{buffers[argument].nbytes} B" if argument < len(buffers) else "missing"
                raise BufferSizeError(
                    f"buffer argument {argument} is {given}; the stream reaches {needed} B of it"
                )
        return prepared

    def _prepare(self, stream: bytes) -> Prepared:
        if stream in self._streams:
            self._streams.move_to_end(stream)
            return self._streams[stream]
        decoded = decode(stream)
        check_stream(decoded)
        self.device.count(instruction_syncs=1, instruction_bytes=len(stream))
        with self.device.span("sync instructions", bytes=len(stream)):
            instructions = self._load_instructions(stream, decoded)
        prepared = Prepared(decoded, decoded.argument_bytes(), instructions)
        self._streams[stream] = prepared
        if len(self._streams) > PREPARED_STREAMS:
            self._streams.popitem(last=False)
        return prepared

    def forget_streams(self) -> None:
        """Drop the streams that are kept for later launches; those under way keep their own."""
        with self._lock:
            self._streams = OrderedDict()

    @property
    def arithmetic(self) -> str:
        """How products are summed, for the report."""
        return "INT32, exact" if self.kernel.types.c == "int32" else "f32, by the AIE2"

    @abstractmethod
    def _load_instructions(self, stream: bytes, decoded: Stream) -> Any:
        """Bring the stream to the device once; what it returns is given to ``_start``."""

    @abstractmethod
    def _start(self, instructions: Any, buffers: Sequence[Buffer]) -> Run: ...


def _share_memory(buffers: Sequence[Buffer]) -> bool:
    """Whether any two are views of the same words."""
    hosts = [buffer.host for buffer in buffers]
    return any(np.may_share_memory(a, b) for i, a in enumerate(hosts) for b in hosts[:i])


def _first_words(buffers: Sequence[Buffer]) -> dict[int, int]:
    """Where each buffer argument begins, in words of the host's memory."""
    return {n: b.host.ctypes.data // WORD_BYTES for n, b in enumerate(buffers)}
