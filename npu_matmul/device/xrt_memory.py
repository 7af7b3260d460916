"""Buffers of a real NPU: host memory that it reaches through the IOMMU, and views of it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.device.base import Device
from npu_matmul.device.buffer import Buffer
from npu_matmul.device.xrt_errors import reported

MEMORIES: weakref.WeakSet[Memory] = weakref.WeakSet()  # all there are


class Memory:
    """A buffer object of XRT, alive as long as any array of its bytes is.

    The map of a buffer object does not keep it alive; an array made from this object does.
    """

    def __init__(self, api: Any, bo: Any) -> None:
        self.api = api
        self.bo = bo
        self._map = bo.map()
        self.__array_interface__ = np.frombuffer(self._map, np.uint8).__array_interface__
        MEMORIES.add(self)

    def array(self) -> NDArray[np.uint8]:
        return np.asarray(self)


class XrtBuffer(Buffer):
    """Memory that host and NPU share; a sync writes back and drops the CPU's cache lines of it."""

    def __init__(
        self,
        device: Device,
        host: NDArray[np.uint8],
        name: str,
        memory: Memory,
        offset_bytes: int = 0,
    ) -> None:
        super().__init__(device, host, name)
        self.memory = memory
        self.offset_bytes = offset_bytes
        self._part: Any = None

    def argument(self) -> Any:
        """The buffer object of exactly these bytes."""
        if self.nbytes == self.memory.bo.size():
            return self.memory.bo
        if self._part is None:  # size before offset, as everywhere in pyxrt
            self._part = self.memory.api.bo(self.memory.bo, self.nbytes, self.offset_bytes)
        return self._part

    def forget(self) -> None:
        """Nothing to do: hardware does not check what is read."""

    def _view(self, offset_bytes: int, nbytes: int) -> XrtBuffer:
        name = f"{self.name}[{offset_bytes}:{offset_bytes + nbytes}]"
        host = self.host[offset_bytes : offset_bytes + nbytes]
        return XrtBuffer(self.device, host, name, self.memory, self.offset_bytes + offset_bytes)

    def _sync_to_device(self) -> None:
        self._sync(self.memory.api.xclBOSyncDirection.XCL_BO_SYNC_BO_TO_DEVICE)

    def _sync_from_device(self) -> None:
        self._sync(self.memory.api.xclBOSyncDirection.XCL_BO_SYNC_BO_FROM_DEVICE)

    def _sync(self, direction: Any) -> None:
        with reported(f"a sync of {self.name}"):
            self.memory.bo.sync(direction, self.nbytes, self.offset_bytes)


def xrt_buffers(buffers: Sequence[Buffer]) -> list[XrtBuffer]:
    """The same buffers, which the base class has found to be this device's."""
    found = [buffer for buffer in buffers if isinstance(buffer, XrtBuffer)]
    assert len(found) == len(buffers)
    return found
