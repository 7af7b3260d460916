"""Memory with a host side and a device side; only a sync carries bytes across."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from npu_matmul.device.base import Device
from npu_matmul.device.errors import BufferSizeError
from npu_matmul.target import WORD_BYTES


class Buffer(ABC):
    """``host`` is the host side, an array of bytes; what the device side is, a device knows.

    What the host has written must be synced before a launch reads it, and also before one writes
    there: a real NPU does not see the CPU's cache, which writes lines that wait in it back over the
    result, at the latest when that is synced.
    """

    def __init__(self, device: Device, host: NDArray[np.uint8], name: str) -> None:
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
        with self.device.span("sync to device", bytes=self.nbytes):
            self._sync_to_device()

    def sync_from_device(self) -> None:
        """Make the host see what the device has written."""
        self.device.count(syncs_from_device=1, bytes_from_device=self.nbytes)
        with self.device.span("sync from device", bytes=self.nbytes):
            self._sync_from_device()

    @abstractmethod
    def _view(self, offset_bytes: int, nbytes: int) -> Buffer: ...

    @abstractmethod
    def _sync_to_device(self) -> None: ...

    @abstractmethod
    def _sync_from_device(self) -> None: ...
