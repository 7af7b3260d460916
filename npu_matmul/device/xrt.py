"""A real NPU behind the device seam: the only module that imports pyxrt.

Written for what XRT 2.20 to 2.26 have in common, with positional arguments only: bindings before
2.23 know no argument names. ``kernel(...)`` is never called, because it swallows arguments that it
does not understand; ``bo.read`` neither, because some builds of it return wrong bytes.
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import weakref
from typing import Any

from npu_matmul.build.cache import is_built
from npu_matmul.device.buffer import Buffer
from npu_matmul.device.errors import DeviceUnavailable
from npu_matmul.device.npu import NpuDevice
from npu_matmul.device.xrt_errors import SelfTestFailed
from npu_matmul.device.xrt_kernel import XrtKernel
from npu_matmul.device.xrt_memory import MEMORIES, XrtBuffer
from npu_matmul.device.xrt_npu import Npu
from npu_matmul.device.xrt_runs import IN_FLIGHT, keep_for_ever
from npu_matmul.kernel import Kernel, KernelNotBuilt, kernels_on, no_kernel

SELF_TEST_VARIABLE = "NPU_MATMUL_SELF_TEST"
NEEDED = (
    *("device", "enumerate_devices", "xrt_info_device", "xclbin", "hw_context"),
    *("kernel", "run", "bo", "xclBOSyncDirection"),
)

_devices: weakref.WeakSet[XrtDevice] = weakref.WeakSet()


class XrtDevice(NpuDevice):
    """The NPU of this machine, through XRT.

    An overlay computes a known product when it is first loaded; ``$NPU_MATMUL_SELF_TEST=0`` skips
    that. Raises ``DeviceUnavailable`` with what is missing.
    """

    name = "xrt"

    def __init__(self) -> None:
        super().__init__()
        self.npu = Npu(import_binding())
        self.target = self.npu.target
        self._kernels: dict[Kernel, XrtKernel] = {}
        self._tested: set[Kernel] = set()
        self._built: set[Kernel] = set()
        self._numbers = itertools.count()
        _devices.add(self)

    def require_open(self) -> None:
        super().require_open()
        self.npu.require_usable()

    def can_load(self, kernel: Kernel) -> bool:
        return kernel not in self.unfit and self._is_built(kernel)

    def is_free(self, buffer: Buffer) -> bool:
        assert isinstance(buffer, XrtBuffer)
        return not IN_FLIGHT.may_touch([buffer.memory])

    def _alloc(self, nbytes: int) -> XrtBuffer:
        npu = self.npu
        with npu.launching:
            group = self._data_group()
            memory = npu.memory(nbytes, npu.api.bo.flags.host_only, group, self.make_room)
        return XrtBuffer(self, memory.array()[:], f"buffer {next(self._numbers)}", memory)

    def load(self, kernel: Kernel) -> XrtKernel:
        self.require_open()
        with self.npu.launching:
            try:
                loaded = self._untested(kernel)
            except KernelNotBuilt:  # any more: another one may be chosen from now on
                self._built.discard(kernel)
                self.choices.clear()
                raise
            if kernel not in self._tested and os.environ.get(SELF_TEST_VARIABLE) != "0":
                problem = loaded.known_product()
                self._tested.add(kernel)
                if problem is not None:
                    self.unfit[kernel] = problem
                    self.choices.clear()
            if kernel in self.unfit:
                raise SelfTestFailed(
                    f"{loaded.overlay.label} computed a known product wrongly: "
                    f"{self.unfit[kernel]}; it is not used in this process: build it again "
                    "(npu-matmul build --force), or use device='cpu'. "
                    f"${SELF_TEST_VARIABLE}=0 skips this test"
                )
            return loaded

    def close(self) -> None:
        super().close()
        if self.npu.is_the_parents():
            return
        IN_FLIGHT.drain()
        with self.npu.launching:
            self._kernels.clear()
            self.npu.contexts.close()

    def make_room(self) -> None:
        super().make_room()
        for loaded in self._kernels.values():
            loaded.forget_streams()

    def _is_built(self, kernel: Kernel) -> bool:
        if kernel not in self._built and is_built(kernel, self.target.name):
            self._built.add(kernel)
        return kernel in self._built

    def _untested(self, kernel: Kernel) -> XrtKernel:
        loaded = self._kernels.get(kernel)
        if loaded is None or not loaded.is_current():
            loaded = self._kernels[kernel] = XrtKernel(self, self.npu, kernel)
            self._tested.discard(kernel)
            self.unfit.pop(kernel, None)
        return loaded

    def _data_group(self) -> int:
        """The memory group of data buffers, which a context tells. It is the host's memory in every
        overlay of aiecc, and XRT looks only at that part of the number: buffers may be used in
        contexts made later. Source: validate_bo_at_index of XRT's xrt_kernel.cpp."""
        contexts = self.npu.contexts
        context = contexts.latest() or contexts.get(self._any_built().overlay)
        return int(context.data_group)

    def _any_built(self) -> XrtKernel:
        kernels = kernels_on(self.target.name)
        if not kernels:
            raise no_kernel("any operands", self.target.name)
        for kernel in filter(self._is_built, kernels):
            return self._untested(kernel)
        raise KernelNotBuilt(f"no kernel is built for {self.target.name}; run: npu-matmul build")


def import_binding() -> Any:
    """The module ``pyxrt``; raises ``DeviceUnavailable`` where this Python cannot import it."""
    python = f"{sys.executable} (Python {sys.version_info[0]}.{sys.version_info[1]})"
    try:
        import pyxrt
    except ImportError as error:
        raise DeviceUnavailable(
            f"{python} cannot import pyxrt, XRT's Python binding: {error}; it comes with XRT, not "
            "from a package index, and is made for one version of Python; `npu-matmul doctor` "
            "tells how to get it"
        ) from error
    missing = [name for name in NEEDED if not hasattr(pyxrt, name)]
    if missing:
        raise DeviceUnavailable(
            f"the pyxrt that {python} imports, {getattr(pyxrt, '__file__', None)}, is not XRT's: "
            f"it has no {missing[0]}"
        )
    return pyxrt


@atexit.register
def _close_all() -> None:
    """Runs before kernels before contexts before devices; the interpreter's own end keeps no
    order."""
    for device in list(_devices):
        if not device.closed:
            device.close()


def _after_fork() -> None:
    """In the child: see to it that nothing is destroyed that the parent still uses."""
    IN_FLIGHT.disown()
    keep_for_ever((*_devices, *MEMORIES))
    _devices.clear()


os.register_at_fork(after_in_child=_after_fork)
