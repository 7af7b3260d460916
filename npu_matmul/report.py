"""What the last call did: counted by its device, timed by stage on the host."""

from __future__ import annotations

import threading
from dataclasses import dataclass

_calls = threading.local()


@dataclass(frozen=True)
class CallReport:
    """One call of ``npu_matmul``.

    ``device`` is where it was computed, which ``reason`` explains. ``arithmetic`` says how
    products were summed, where devices or models differ. ``seconds`` are host seconds by stage; on
    the emulated device they say nothing about an NPU. ``padding`` is the fraction of
    multiplications wasted on padding. Syncs, bytes and allocations are of data buffers; an
    instruction stream moves once, when it is first used, and is counted in ``instruction_syncs``.
    """

    device: str
    kernel: str | None
    strategy: str | None
    precision: str
    arithmetic: str
    reason: str
    launches: int
    syncs_to_device: int
    syncs_from_device: int
    bytes_to_device: int
    bytes_from_device: int
    instruction_syncs: int
    instruction_bytes: int
    allocations: int
    allocated_bytes: int
    seconds: dict[str, float]
    padding: float


def last_call() -> CallReport:
    """The report of this thread's last completed ``npu_matmul``; raises LookupError before the
    first."""
    report: CallReport | None = getattr(_calls, "last", None)
    if report is None:
        raise LookupError("no npu_matmul call has completed in this thread yet")
    return report


def remember(report: CallReport) -> None:
    _calls.last = report
