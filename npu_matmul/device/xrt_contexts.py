"""Hardware contexts of a real NPU: one per overlay, as many as the driver gives out.

When it gives out no more, the context that was used longest ago goes. Buffers stay: they belong to
the device, so that weights which were packed once survive the eviction of their overlay.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from npu_matmul.device.xrt_errors import ContextFailed, is_shortage, reported
from npu_matmul.device.xrt_runs import IN_FLIGHT

# Arguments of the kernel that aiecc describes in an xclbin: opcode, instructions, their number of
# words, then up to five data buffers.
OPCODE, INSTRUCTIONS, WORDS, FIRST_DATA = range(4)

log = logging.getLogger("npu_matmul")


@dataclass(frozen=True)
class Registered:
    """An overlay that the device knows: what a context is made of."""

    uuid: Any
    name: str
    label: str
    arguments: int
    forget: Callable[[], None]  # told when the context goes: instruction buffers are bound to it


class Context:
    """A hardware context, its kernel, and the memory groups of its arguments: opaque numbers that
    differ from context to context. ``broken`` says that a launch failed in it: the array may hold
    leftovers of that one, and what ran after it is not to be believed."""

    def __init__(self, api: Any, handle: Any, overlay: Registered) -> None:
        self.hardware = api.hw_context(handle, overlay.uuid)
        self.kernel = api.kernel(self.hardware, overlay.name)
        self.instruction_group = self.kernel.group_id(INSTRUCTIONS)
        self.data_group = self.kernel.group_id(FIRST_DATA)
        self.overlay = overlay
        self.broken = False

    def close(self) -> None:
        """Kernel before context, as XRT wants it."""
        self.overlay.forget()
        del self.kernel
        del self.hardware


class Contexts:
    """The contexts of one device. The caller holds the device's lock."""

    def __init__(self, api: Any, handle: Any, limit: int) -> None:
        self._api = api
        self._handle = handle
        self._limit = limit
        self._open: OrderedDict[str, Context] = OrderedDict()
        self._alone: set[str] = set()  # overlays that got none even where there was no other

    def __len__(self) -> int:
        return len(self._open)

    def get(self, overlay: Registered) -> Context:
        """The overlay's context, made where there is none; raises :class:`ContextFailed`."""
        context = self._open.get(overlay.name)
        if context is None:
            context = self._make(overlay)
            self._open[overlay.name] = context
            self._alone.discard(overlay.name)
        self._open.move_to_end(overlay.name)
        return context

    def latest(self) -> Context | None:
        """The one that was used last."""
        return next(reversed(self._open.values()), None)

    def discard(self, context: Context) -> None:
        """Close a context that has gone wrong, unless another has taken its place since."""
        if self._open.get(context.overlay.name) is context:
            del self._open[context.overlay.name]
            context.close()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def _make(self, overlay: Registered) -> Context:
        while len(self._open) >= self._limit and self._evict():
            pass
        while True:
            try:
                with reported(f"a hardware context for {overlay.label}", ContextFailed):
                    return Context(self._api, self._handle, overlay)
            except ContextFailed as error:
                # Another process may hold some of what the driver gives out, and an overlay of many
                # columns may need the place of several. But none goes for one that fails anyway.
                if not self._open:
                    self._alone.add(overlay.name)
                needless = overlay.name in self._alone or not is_shortage(error)
                if needless or not self._evict():
                    raise
                log.info("closed a hardware context and trying again: %s", error)

    def _evict(self) -> bool:
        """Close the context that was used longest ago, of those with nothing in flight; where all
        are busy, the oldest as soon as it is not."""
        idle = [context for context in self._open.values() if not IN_FLIGHT.of(context)]
        context = next(iter(idle or self._open.values()), None)
        if context is None or not IN_FLIGHT.drain(IN_FLIGHT.of(context)):
            return False
        self.discard(context)
        return True
