"""The emulated NPU behind the device seam: buffers with two sides, and a machine per loaded kernel.

It is stricter than hardware: both sides of a new or newly lent buffer are poisoned, and a transfer
of bytes that were never synced is an error. It reports counts, never a time; only a timeline shows
modelled ones.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from npu_matmul.design import design_text
from npu_matmul.device.base import Device
from npu_matmul.device.buffer import Buffer
from npu_matmul.device.errors import LaunchFailed
from npu_matmul.device.npu import LoadedKernel, NpuDevice, Run
from npu_matmul.emulator import POISON, EmulationError
from npu_matmul.emulator.machine import Machine, MachineCounters
from npu_matmul.emulator.pace import modelled_pace
from npu_matmul.emulator.shim import DeviceMemory
from npu_matmul.emulator.symbols import models
from npu_matmul.emulator.timed import TimedMachine
from npu_matmul.instructions import Stream
from npu_matmul.kernel import Kernel
from npu_matmul.mlir.elaborate import overlay_of_text
from npu_matmul.target import WORD_BYTES
from npu_matmul.timeline import listening


class EmulatedDevice(NpuDevice):
    """Runs overlays on arrays; see :mod:`npu_matmul.emulator`."""

    name = "emulated"

    def __init__(self) -> None:
        super().__init__()
        self._loaded: dict[Kernel, EmulatedKernel] = {}
        self._loading = threading.Lock()
        self._buffer_numbers = itertools.count()

    def _alloc(self, nbytes: int) -> EmulatedBuffer:
        words = nbytes // WORD_BYTES
        name = f"buffer {next(self._buffer_numbers)}"
        poison = np.full(nbytes, POISON, np.uint8)
        memory = DeviceMemory(name, poison.copy().view(np.uint32), np.zeros(words, np.bool_))
        return EmulatedBuffer(self, poison, memory)

    def load(self, kernel: Kernel) -> EmulatedKernel:
        self.require_open()
        with self._loading:
            if kernel not in self._loaded:
                self._loaded[kernel] = EmulatedKernel(self, kernel)
            return self._loaded[kernel]

    def close(self) -> None:
        super().close()
        with self._loading:
            self._loaded.clear()


class EmulatedBuffer(Buffer):
    """Two arrays, host and device; a sync copies one into the other."""

    def __init__(self, device: Device, host: NDArray[np.uint8], memory: DeviceMemory) -> None:
        super().__init__(device, host, memory.name)
        self.memory = memory

    def _view(self, offset_bytes: int, nbytes: int) -> EmulatedBuffer:
        words = slice(offset_bytes // WORD_BYTES, (offset_bytes + nbytes) // WORD_BYTES)
        name = f"{self.name}[{offset_bytes}:{offset_bytes + nbytes}]"
        memory = DeviceMemory(name, self.memory.words[words], self.memory.known[words])
        return EmulatedBuffer(self.device, self.host[offset_bytes : offset_bytes + nbytes], memory)

    def forget(self) -> None:
        self.host.fill(POISON)
        self.memory.words.view(np.uint8).fill(POISON)
        self.memory.known.fill(False)

    def _sync_to_device(self) -> None:
        self.memory.words.view(np.uint8)[:] = self.host
        self.memory.known[:] = True

    def _sync_from_device(self) -> None:
        self.host[:] = self.memory.words.view(np.uint8)


class EmulatedKernel(LoadedKernel):
    """A machine built from the kernel's design text; after an error a new one is booted."""

    device: EmulatedDevice

    def __init__(self, device: EmulatedDevice, kernel: Kernel) -> None:
        super().__init__(device, kernel)
        kernel.require_source()
        self._overlay = overlay_of_text(
            design_text(kernel, device.target.name), f"{kernel.name}.mlir"
        )
        self._models = models(kernel)
        self._machine = self._boot(timed=False)
        self._together = threading.local()  # .queued: submitted with the launch before

    @property
    def machine_counters(self) -> MachineCounters:
        """What the machine itself executed since it was booted: a count of its own, for
        comparison."""
        return self._machine.counters

    def launch_all(self, launches: Iterable[tuple[bytes, Sequence[Buffer]]]) -> None:
        """As for any device; timelines take all but the first for queued, as on a real NPU."""
        try:
            for stream, buffers in launches:
                self.launch(stream, buffers).wait(self.TIMEOUT_S)
                self._together.queued = True
        finally:
            self._together.queued = False

    def _load_instructions(self, stream: bytes, decoded: Stream) -> Stream:
        return decoded

    def _start(self, instructions: Stream, buffers: Sequence[Buffer]) -> Run:
        memories = []
        for buffer in buffers:
            assert isinstance(buffer, EmulatedBuffer)
            memories.append(buffer.memory)
        hearing = listening.listener
        if isinstance(self._machine, TimedMachine) != (hearing is not None):
            self._machine = self._boot(hearing is not None)  # at rest it is as after boot
        machine = self._machine
        with self.device.span(f"launch {self.kernel.name}", launches=1) as span:
            run = self._launched(machine, instructions, memories)
            if hearing is not None and isinstance(machine, TimedMachine):
                queued = getattr(self._together, "queued", False)
                number = hearing.place(machine.shown(self._overlay_name, queued))
                if span is not None:
                    span.details["launch"] = number
        return run

    def _launched(
        self, machine: Machine, stream: Stream, memories: Sequence[DeviceMemory]
    ) -> _Finished:
        try:
            machine.launch(stream, memories)
        except EmulationError as error:
            self._machine = self._boot(isinstance(machine, TimedMachine))
            return _Finished(error)
        except BaseException:  # an interrupt, say: the machine is in the middle of something
            self._machine = self._boot(isinstance(machine, TimedMachine))
            raise
        return _Finished(None)

    @property
    def _overlay_name(self) -> str:
        return f"{self.kernel.name} {self.kernel.variant}"

    def _boot(self, timed: bool) -> Machine:
        """A new machine; a timed one while a timeline is recorded."""
        if not timed:
            return Machine(self._overlay, self._models)
        with listening.span(f"boot {self.kernel.name}"):
            pace = modelled_pace(self.kernel, self._overlay)
            return TimedMachine(self._overlay, self._models, pace)


class _Finished(Run):
    def __init__(self, error: EmulationError | None) -> None:
        self._error = error

    def wait(self, timeout_s: float) -> None:
        if self._error is not None:
            raise LaunchFailed(
                f"the launch failed on the emulated NPU: {self._error}"
            ) from self._error
