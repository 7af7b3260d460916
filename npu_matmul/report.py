"""What the last call did: counted by its device, timed by stage on the host."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

calls = threading.local()  # .last is the report of this thread's last call


@dataclass(frozen=True)
class CallReport:
    """One call of ``npu_matmul``.

    ``device`` is where it was computed, which ``reason`` explains. ``arithmetic`` says how
    products were summed, where devices or models differ. ``seconds`` are host seconds by stage; on
    the emulated device they say nothing about an NPU. ``padding`` is the fraction of
    multiplications wasted on padding. Syncs, bytes and allocations are of data buffers; an
    instruction stream moves once, when it is first used, and is counted in ``instruction_syncs``.
    ``relaunches`` are launches that failed and were tried again, once each.
    """

    device: str
    precision: str
    arithmetic: str
    reason: str
    kernel: str | None = None
    strategy: str | None = None
    launches: int = 0
    syncs_to_device: int = 0
    syncs_from_device: int = 0
    bytes_to_device: int = 0
    bytes_from_device: int = 0
    instruction_syncs: int = 0
    instruction_bytes: int = 0
    relaunches: int = 0
    allocations: int = 0
    allocated_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    padding: float = 0.0

    def shown(self) -> dict[str, Any]:
        """What a timeline shows of a call: all but what is zero, and the seconds, which are there
        as spans."""
        return {name: value for name, value in vars(self).items() if value and name != "seconds"}


def last_call() -> CallReport:
    """The report of this thread's last completed ``npu_matmul``; raises LookupError before the
    first."""
    report: CallReport | None = getattr(calls, "last", None)
    if report is None:
        raise LookupError("no npu_matmul call has completed in this thread yet")
    return report
