"""A real NPU behind the device seam: the only module that imports pyxrt.

Written for what XRT 2.20 to 2.26 have in common, with positional arguments only: bindings before
2.23 know no argument names. ``kernel(...)`` is never called, because it swallows arguments that it
does not understand; ``bo.read`` neither, because some builds of it return wrong bytes.
"""

from __future__ import annotations

import atexit
import gc
import itertools
import os
import re
import sys
import threading
import weakref
from typing import Any

from npu_matmul.build.cache import is_built
from npu_matmul.device import Buffer, DeviceError, DeviceUnavailable, NpuDevice
from npu_matmul.device.xrt_contexts import Contexts
from npu_matmul.device.xrt_errors import (
    AllocationFailed,
    DeviceDeclined,
    SelfTestFailed,
    reported,
)
from npu_matmul.device.xrt_kernel import XrtKernel
from npu_matmul.device.xrt_memory import Memory, XrtBuffer
from npu_matmul.device.xrt_runs import IN_FLIGHT
from npu_matmul.kernel import Kernel, KernelNotBuilt, kernels_named
from npu_matmul.target import TARGETS, Target

SELF_TEST_VARIABLE = "NPU_MATMUL_SELF_TEST"
TARGET_VARIABLE = "NPU_MATMUL_TARGET"
# What drivers and XRT call them: vbnv of amdxdna's npu*_regs.c, and older releases of XRT.
MODELS = {"npu1": "npu1|phoenix|hawk", "npu2": "npu[2-6]|strix|krackan|gorgon|halo"}
NEEDED = ("device", "xclbin", "hw_context", "kernel", "run", "bo", "xclBOSyncDirection")

_declined: list[str] = []  # why this process leaves the NPU alone; at most one reason
_devices: weakref.WeakSet[XrtDevice] = weakref.WeakSet()


class XrtDevice(NpuDevice):
    """The NPU of this machine, through XRT.

    An overlay computes a known product when it is first loaded; ``$NPU_MATMUL_SELF_TEST=0`` skips
    that. Raises ``DeviceUnavailable`` with what is missing.
    """

    name = "xrt"

    def __init__(self) -> None:
        super().__init__()
        if _declined:
            raise DeviceDeclined(_declined[0])
        self.api = import_binding()
        self.handle, self.model, self.target = open_npu(self.api)
        self.launching = threading.RLock()
        self.contexts = Contexts(self.api, self.handle, self.target.contexts)
        self.chains: bool | None = None  # whether chains of launches work; None: not yet tried
        self._kernels: dict[Kernel, XrtKernel] = {}
        self._tested: dict[Kernel, str | None] = {}  # what the self-test found wrong
        self._built: set[Kernel] = set()
        self._numbers = itertools.count()
        self._process = os.getpid()
        _devices.add(self)

    def require_open(self) -> None:
        super().require_open()
        if _declined:
            raise DeviceDeclined(_declined[0])
        if os.getpid() != self._process:
            raise DeviceError(
                "the NPU was opened before this process was forked, and cannot be used here: start "
                "processes with the 'spawn' method, or open the device in each"
            )

    def can_load(self, kernel: Kernel) -> bool:
        if kernel not in self._built and is_built(kernel, self.target.name):
            self._built.add(kernel)
        return kernel in self._built

    def is_free(self, buffer: Buffer) -> bool:
        assert isinstance(buffer, XrtBuffer)
        return not IN_FLIGHT.may_touch([buffer.memory])

    def _alloc(self, nbytes: int) -> XrtBuffer:
        with self.launching:
            memory = self._memory(nbytes, self.api.bo.flags.host_only, self._data_group())
        return XrtBuffer(self, memory.array()[:], f"buffer {next(self._numbers)}", memory)

    def load(self, kernel: Kernel) -> XrtKernel:
        self.require_open()
        with self.launching:
            loaded = self._untested(kernel)
            if kernel not in self._tested and os.environ.get(SELF_TEST_VARIABLE) != "0":
                self._tested[kernel] = loaded.known_product()
            problem = self._tested.get(kernel)
            if problem is not None:
                raise SelfTestFailed(
                    f"{loaded.overlay.label} computed a known product wrongly: {problem}; it is "
                    "not used in this process: build it again (npu-matmul build --force), or use "
                    f"device='cpu'. ${SELF_TEST_VARIABLE}=0 skips this test"
                )
            return loaded

    def close(self) -> None:
        super().close()
        IN_FLIGHT.drain()
        with self.launching:
            self._kernels.clear()
            self.contexts.close()

    def decline(self, error: Exception) -> None:
        """Leave the NPU alone until the process ends."""
        if not _declined and not self.closed:
            _declined.append(
                "the NPU failed twice in a row and this process leaves it alone: start the process "
                f"anew, or use device='cpu'. What happened: {error}"
            )

    def instruction_memory(self, nbytes: int, group: int) -> Memory:
        """Memory for a stream, from the driver's heap for them; when that is full, streams that are
        kept for later launches make room."""
        flags = self.api.bo.flags.cacheable
        try:
            return self._memory(nbytes, flags, group)
        except AllocationFailed:
            for loaded in self._kernels.values():
                loaded.forget_streams()
            return self._memory(nbytes, flags, group)

    def _memory(self, nbytes: int, flags: Any, group: int) -> Memory:
        doing = f"a buffer of {nbytes:,} B"
        try:
            with reported(doing, AllocationFailed):
                return Memory(self.api.bo(self.handle, nbytes, flags, group))
        except AllocationFailed:
            self._pool.clear()  # what is kept for later calls, or by a circle, makes room
            gc.collect()
            with reported(doing, AllocationFailed):
                return Memory(self.api.bo(self.handle, nbytes, flags, group))

    def _untested(self, kernel: Kernel) -> XrtKernel:
        if kernel not in self._kernels:
            self._kernels[kernel] = XrtKernel(self, kernel)
        return self._kernels[kernel]

    def _data_group(self) -> int:
        """The memory group of data buffers, which a context tells. It is the host's memory in every
        overlay of aiecc, and XRT looks only at that part of the number: buffers may be used in
        contexts made later. Source: validate_bo_at_index of XRT's xrt_kernel.cpp."""
        context = self.contexts.latest() or self.contexts.get(self._any_built().overlay)
        return int(context.data_group)

    def _any_built(self) -> XrtKernel:
        for kernel in kernels_named():
            if self.target.name in kernel.targets and self.can_load(kernel):
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


def open_npu(api: Any) -> tuple[Any, str, Target]:
    """The first NPU that XRT sees: its handle, the model's name, and which target that is."""
    with reported("looking for NPUs", DeviceUnavailable):
        count = int(api.enumerate_devices())
    seen = []
    for index in range(max(1, count)):
        with reported("opening the NPU", DeviceUnavailable):
            handle = api.device(index)
            model = str(handle.get_info(api.xrt_info_device.name))
        target = target_of(model)
        if target is not None:
            return handle, model, target
        seen.append(model)
    raise DeviceUnavailable(
        f"XRT sees no NPU that is known here, only {', '.join(seen)}; if the first is one, say "
        f"which by ${TARGET_VARIABLE}={' or '.join(TARGETS)}"
    )


def target_of(model: str) -> Target | None:
    """The target that a model is, or that ``$NPU_MATMUL_TARGET`` says it is.

    >>> target_of("NPU Phoenix").name, target_of("NPU Strix Halo").name, target_of("U250")
    ('npu1', 'npu2', None)
    """
    named = os.environ.get(TARGET_VARIABLE)
    if named:
        if named not in TARGETS:
            raise DeviceUnavailable(f"${TARGET_VARIABLE} is {named!r}; known: {', '.join(TARGETS)}")
        return TARGETS[named]
    for target, pattern in MODELS.items():
        if re.search(pattern, model, re.IGNORECASE):
            return TARGETS[target]
    return None


@atexit.register
def _close_all() -> None:
    """Runs before kernels before contexts before devices; the interpreter's own end keeps no
    order."""
    for device in list(_devices):
        if not device.closed:
            device.close()
