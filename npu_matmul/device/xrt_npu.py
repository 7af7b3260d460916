"""An NPU that was opened through XRT, as far as its kernels and its buffers share it.

It is given the binding and imports none. Which reason this process has to leave the NPU alone is
kept here too.
"""

from __future__ import annotations

import gc
import os
import re
import threading
from collections.abc import Callable
from typing import Any

from npu_matmul.device.errors import DeviceError, DeviceUnavailable
from npu_matmul.device.xrt_contexts import Contexts
from npu_matmul.device.xrt_errors import AllocationFailed, DeviceDeclined, reported
from npu_matmul.device.xrt_memory import Memory
from npu_matmul.target import TARGETS, Target

TARGET_VARIABLE = "NPU_MATMUL_TARGET"
# What drivers and XRT call them: vbnv of amdxdna's npu*_regs.c, and older releases of XRT. There,
# npu3 and those from npu9 on are of a later architecture than either.
MODELS = {"npu1": r"npu1\b|phoenix|hawk", "npu2": r"npu[2456]\b|strix|krackan|gorgon|halo"}

DECLINED: list[str] = []  # why this process leaves the NPU alone; at most one reason


class Npu:
    """The first NPU that XRT sees; raises ``DeviceUnavailable`` with what is missing.

    ``launching`` is the lock of everything that a launch changes, ``chains`` whether chains of
    launches work (None: not yet tried).
    """

    def __init__(self, api: Any) -> None:
        if DECLINED:
            raise DeviceDeclined(DECLINED[0])
        self.api = api
        self.handle, self.model, self.target = open_npu(api)
        self.contexts = Contexts(api, self.handle, self.target.contexts)
        self.launching = threading.RLock()
        self.chains: bool | None = None
        self._process = os.getpid()

    def require_usable(self) -> None:
        """Raise :class:`DeviceError` where this process must leave the NPU alone."""
        if DECLINED:
            raise DeviceDeclined(DECLINED[0])
        if self.is_the_parents():
            raise DeviceError(
                "the NPU was opened before this process was forked, and cannot be used here: start "
                "processes with the 'spawn' method, or fork before anything opens the NPU"
            )

    def is_the_parents(self) -> bool:
        """Whether this process was forked from the one that opened it. They share the driver's
        file: what one of them destroyed, the other would lose."""
        return os.getpid() != self._process

    def decline(self, error: Exception) -> None:
        """Leave the NPU alone until the process ends."""
        if not DECLINED:
            DECLINED.append(
                "the NPU failed twice in a row and this process leaves it alone: start the process "
                f"anew, or use device='cpu'. What happened: {error}"
            )

    def memory(self, nbytes: int, flags: Any, group: int, make_room: Callable[[], None]) -> Memory:
        """A buffer object; where there is no memory, once more after ``make_room``."""
        doing = f"a buffer of {nbytes:,} B"
        try:
            with reported(doing, AllocationFailed):
                return Memory(self.api, self.api.bo(self.handle, nbytes, flags, group))
        except AllocationFailed:
            make_room()
            gc.collect()  # what only a circle holds makes room too
            with reported(doing, AllocationFailed):
                return Memory(self.api, self.api.bo(self.handle, nbytes, flags, group))


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
