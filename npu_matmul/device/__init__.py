"""The device seam: what strategies may ask of a device, and how devices are opened.

Three nouns of XRT: a :class:`Buffer` with a host side and a device side that a sync copies
between, a :class:`LoadedKernel` that launches instruction streams on views of buffers, and the
:class:`Run` of one launch. The base classes count launches, syncs and bytes, so that no device
counts its own way. A :class:`HostDevice` has none of them: it computes products itself.
"""

from __future__ import annotations

import logging
import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.buffer_pool import BufferPool, pool_size
from npu_matmul.instructions import Stream, decode
from npu_matmul.kernel import Kernel
from npu_matmul.precision import Operand, Precision
from npu_matmul.stream_rules import check_stream
from npu_matmul.target import WORD_BYTES

DEVICE_VARIABLE = "NPU_MATMUL_DEVICE"
DEVICES = ("auto", "xrt", "emulated", "cpu")
POOL_BYTES = 128 << 20  # of buffers that a device keeps for later calls
PREPARED_STREAMS = 256  # kept per loaded kernel; the least recently used is dropped first

log = logging.getLogger("npu_matmul")


class DeviceError(RuntimeError):
    """A device could not do what was asked; after it, the next call works."""


class UnknownDevice(ValueError):
    """No device has that name."""


class DeviceUnavailable(DeviceError):
    """The device exists in name, but cannot be used here."""


class BufferSizeError(DeviceError):
    """A buffer is too small, or a view of it is out of bounds or misaligned."""


class LaunchFailed(DeviceError):
    """A launch did not complete; its outputs must not be used."""


@dataclass
class Counters:
    """What a device did. Syncs, bytes and allocations are of data buffers; instruction streams are
    counted apart."""

    launches: int = 0
    syncs_to_device: int = 0
    syncs_from_device: int = 0
    bytes_to_device: int = 0
    bytes_from_device: int = 0
    instruction_syncs: int = 0
    instruction_bytes: int = 0
    allocations: int = 0
    allocated_bytes: int = 0

    def add(self, amounts: dict[str, int]) -> None:
        for name, amount in amounts.items():
            setattr(self, name, getattr(self, name) + amount)

    def as_dict(self) -> dict[str, int]:
        return dict(vars(self))


class Device(ABC):
    """What every device has: a name, counters, and an end."""

    name: str

    def __init__(self) -> None:
        self.totals = Counters()
        self.closed = False
        self._counting = threading.Lock()
        self._recording = threading.local()

    @contextmanager
    def record(self) -> Iterator[Counters]:
        """Count what this thread makes the device do within the block."""
        counters = Counters()
        stack: list[Counters] = self._recording.__dict__.setdefault("stack", [])
        stack.append(counters)
        try:
            yield counters
        finally:
            # by identity: another record may have counted as much
            stack[:] = [other for other in stack if other is not counters]

    def count(self, **amounts: int) -> None:
        with self._counting:
            self.totals.add(amounts)
        for counters in self._recording.__dict__.get("stack", ()):
            counters.add(amounts)

    def require_open(self) -> None:
        """Raise :class:`DeviceError` once the device was closed."""
        if self.closed:
            raise DeviceError(
                f"device {self.name!r} was closed; open it again: open_device({self.name!r})"
            )

    def close(self) -> None:
        """Release what the device holds; ``open_device`` makes a new one afterwards."""
        self.closed = True
        with _opening:
            for name in [name for name, device in _open.items() if device is self]:
                del _open[name]

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


class HostDevice(Device):
    """A device that computes products itself, without tiles, buffers or launches."""

    @abstractmethod
    def pack(self, b: Operand) -> Any:
        """A converted matrix B in the device's own form, for :meth:`multiply`."""

    @abstractmethod
    def multiply(
        self,
        a: NDArray[Any],
        b: Any,
        how: Precision,
        result: np.dtype[Any],
        out: NDArray[Any] | None = None,
    ) -> tuple[NDArray[Any], str]:
        """A (M, K) as the caller has it times a packed B (K, N) as ``result``, in ``out`` if that
        is given; and how products were summed, for the report."""


class NpuDevice(Device):
    """A device with buffers of its own that runs overlays.

    ``host_below`` sends products of fewer multiplications to the CPU, where packing them would cost
    more than computing them; 0 turns that off, and is the default. ``bench/host_below.py`` measures
    the number for a machine.
    """

    host_below = 0

    def __init__(self) -> None:
        super().__init__()
        self._pool = BufferPool(POOL_BYTES)

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
        self._pool.give(whole)  # not after an error: what failed may still be writing to it

    def close(self) -> None:
        super().close()
        self._pool.clear()

    @abstractmethod
    def _alloc(self, nbytes: int) -> Buffer: ...

    @abstractmethod
    def load(self, kernel: Kernel) -> LoadedKernel:
        """The kernel, ready to launch; loaded once and kept."""


class Buffer(ABC):
    """Memory with a host side (``host``) and a device side; only a sync carries bytes across."""

    def __init__(self, device: NpuDevice, host: NDArray[np.uint8], name: str) -> None:
        self.device = device
        self.host = host
        self.name = name

    @property
    def nbytes(self) -> int:
        return self.host.size

    def view(self, offset_bytes: int, nbytes: int) -> Buffer:
        """A part of the buffer that shares both its sides; keeps the whole alive."""
        if offset_bytes % WORD_BYTES or nbytes % WORD_BYTES:
            raise BufferSizeError(
                f"view of {self.name}: offset {offset_bytes} B and size {nbytes} "
                f"B must be multiples of {WORD_BYTES} B"
            )
        if offset_bytes < 0 or nbytes <= 0 or offset_bytes + nbytes > self.nbytes:
            raise BufferSizeError(
                f"view of {self.name}: bytes {offset_bytes} to {offset_bytes + nbytes} "
                f"are not within its {self.nbytes} B"
            )
        return self._view(offset_bytes, nbytes)

    @abstractmethod
    def forget(self) -> None:
        """Contents are undefined again on both sides; a device that checks what is read makes them
        so."""

    def sync_to_device(self) -> None:
        """Make the device see what the host has written."""
        self.device.count(syncs_to_device=1, bytes_to_device=self.nbytes)
        self._sync_to_device()

    def sync_from_device(self) -> None:
        """Make the host see what the device has written."""
        self.device.count(syncs_from_device=1, bytes_from_device=self.nbytes)
        self._sync_from_device()

    @abstractmethod
    def _view(self, offset_bytes: int, nbytes: int) -> Buffer: ...

    @abstractmethod
    def _sync_to_device(self) -> None: ...

    @abstractmethod
    def _sync_from_device(self) -> None: ...


class Run(ABC):
    """One launch under way."""

    @abstractmethod
    def wait(self, timeout_s: float) -> None:
        """Return when the launch has completed; raises :class:`LaunchFailed` when it does not."""


@dataclass(frozen=True)
class _Prepared:
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
        self._streams: OrderedDict[bytes, _Prepared] = OrderedDict()
        self._lock = threading.RLock()

    def launch(self, stream: bytes, buffers: Sequence[Buffer]) -> Run:
        """Start one launch. Raises ``StreamError`` for a bad stream, or one whose transfers race on
        these buffers, :class:`BufferSizeError` for small ones, :class:`DeviceError` for those of
        another device."""
        for buffer in buffers:
            if buffer.device is not self.device:
                raise DeviceError(
                    f"{buffer.name} belongs to another device {buffer.device.name!r} than kernel "
                    f"{self.kernel.name!r} was loaded on; allocate it with that one's alloc"
                )
        self.device.require_open()
        with self._lock:
            prepared = self._prepare(stream)
            if _share_memory(buffers):
                check_stream(prepared.stream, _first_words(buffers))
            for argument, needed in prepared.argument_bytes.items():
                if argument >= len(buffers) or buffers[argument].nbytes < needed:
                    given = (
                        f"{buffers[argument].nbytes} B" if argument < len(buffers) else "missing"
                    )
                    raise BufferSizeError(
                        f"buffer argument {argument} is {given}; the stream "
                        f"reaches {needed} B of it"
                    )
            self.device.count(launches=1)
            return self._start(prepared.instructions, buffers)

    def launch_all(self, launches: Iterable[tuple[bytes, Sequence[Buffer]]]) -> None:
        """Launch one after the other and wait for each."""
        for stream, buffers in launches:
            self.launch(stream, buffers).wait(self.TIMEOUT_S)

    def _prepare(self, stream: bytes) -> _Prepared:
        if stream in self._streams:
            self._streams.move_to_end(stream)
            return self._streams[stream]
        decoded = decode(stream)
        check_stream(decoded)
        self.device.count(instruction_syncs=1, instruction_bytes=len(stream))
        instructions = self._load_instructions(stream, decoded)
        prepared = _Prepared(decoded, decoded.argument_bytes(), instructions)
        self._streams[stream] = prepared
        if len(self._streams) > PREPARED_STREAMS:
            self._streams.popitem(last=False)
        return prepared

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


_open: dict[str, Device] = {}
_opening = threading.RLock()


def open_device(name: str = "auto") -> Device:
    """The device called ``name``, opened once per process and shared.

    ``"xrt"`` is a real NPU, ``"emulated"`` runs the same designs and streams on arrays, ``"cpu"``
    computes the same numbers on the host. ``"auto"`` is what ``$NPU_MATMUL_DEVICE`` names, else the
    NPU where there is one, else the CPU; that choice is announced once.

    Raises :class:`UnknownDevice`, or :class:`DeviceUnavailable` with what is missing.

    >>> open_device("cpu").name
    'cpu'
    """
    if name == "auto":
        name = os.environ.get(DEVICE_VARIABLE) or "auto"
    if name not in DEVICES:
        raise UnknownDevice(f"there is no device {name!r}; known are: {', '.join(DEVICES)}")
    with _opening:
        if name not in _open:
            _open[name] = _make(name)
        return _open[name]


def _make(name: str) -> Device:
    if name == "emulated":
        from npu_matmul.device.emulated import EmulatedDevice

        return EmulatedDevice()
    if name == "cpu":
        from npu_matmul.device.cpu import CpuDevice

        return CpuDevice()
    if name == "xrt":
        raise DeviceUnavailable(
            "driving a real NPU is not part of this version; use 'emulated', which runs the same "
            "designs and instruction streams, or 'cpu'"
        )
    log.warning(
        "device 'auto': no NPU can be used here, computing on device %r; $%s chooses a device "
        "without this notice",
        auto_choice(),
        DEVICE_VARIABLE,
    )
    return open_device(auto_choice())


def auto_choice() -> str:
    """The device that ``"auto"`` stands for on this machine."""
    return "cpu"
