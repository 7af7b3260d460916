"""What every device has: a name, counters, an end, and its place among those that are open.

Counting is done here, so that no device counts its own way.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from npu_matmul.device.errors import DeviceError
from npu_matmul.precision import Operand, Precision
from npu_matmul.timeline import listening

OPEN: dict[str, Device] = {}  # by the name it was opened under; one device may have several
OPENING = threading.RLock()


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
    relaunches: int = 0  # launches that failed and were tried again; counted as launches too
    allocations: int = 0
    allocated_bytes: int = 0

    def add(self, amounts: dict[str, int]) -> None:
        for name, amount in amounts.items():
            setattr(self, name, getattr(self, name) + amount)

    def as_dict(self) -> dict[str, int]:
        return dict(vars(self))


class Device(ABC):
    """What every device has: a name, counters, and an end. ``direct`` says that small products may
    take the short way: it is open, and no timeline wants to see them."""

    name: str

    def __init__(self) -> None:
        self.totals = Counters()
        self.closed = False
        with _LISTING:
            _ALL.add(self)
        self.follow()
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

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Let what this thread does within the block leave no trace in any count: a test of the
        device itself is no caller's work."""
        state = self._recording.__dict__
        before = state.get("uncounted", False)
        state["uncounted"] = True
        try:
            with listening.span("test of the device"):
                yield
        finally:
            state["uncounted"] = before

    def count(self, **amounts: int) -> None:
        if self._recording.__dict__.get("uncounted"):
            return
        with self._counting:
            self.totals.add(amounts)
        for counters in self._recording.__dict__.get("stack", ()):
            counters.add(amounts)

    def follow(self) -> None:
        """It was closed, or the recording of a timeline has begun or ended."""
        self.direct = not self.closed and listening.listener is None

    @property
    def heard(self) -> bool:
        """Whether a timeline shows what this thread makes the device do: not what is not
        counted."""
        return listening.listener is not None and not self._recording.__dict__.get("uncounted")

    def span(self, name: str, **details: Any) -> listening.Span | listening.Nothing:
        """For ``with``: what this thread makes the device do."""
        return listening.span(name, **details) if self.heard else listening.NOTHING

    def require_open(self) -> None:
        """Raise :class:`DeviceError` once the device was closed."""
        if self.closed:
            raise DeviceError(
                f"device {self.name!r} was closed; open it again: open_device({self.name!r})"
            )

    def close(self) -> None:
        """Release what the device holds; ``open_device`` makes a new one afterwards."""
        self.closed = True
        self.follow()
        with OPENING:
            for name in [name for name, device in OPEN.items() if device is self]:
                del OPEN[name]

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


def _follow_all() -> None:
    with _LISTING:
        devices = tuple(_ALL)
    for device in devices:
        device.follow()


_ALL: WeakSet[Device] = WeakSet()
_LISTING = threading.Lock()
listening.followers.append(_follow_all)


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
