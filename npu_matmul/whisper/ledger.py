"""What an encoder did: every product with its counts, every stage with its seconds.

``record()`` collects what its thread does within the block, so that nothing needs to be passed
through the network's layers.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from npu_matmul.matmul import npu_matmul
from npu_matmul.report import CallReport, last_call
from npu_matmul.timeline import listening

COUNTED = ("launches", "bytes_to_device", "bytes_from_device")


@dataclass
class Ledger:
    """Host seconds by stage, counts summed over all products, and how many products ran where.

    ``seconds`` has the products under their own names. ``reports`` has each product's last report.
    """

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: Counter[str] = field(default_factory=Counter)
    products: Counter[str] = field(default_factory=Counter)
    reports: dict[str, CallReport] = field(default_factory=dict)


def places(products: Mapping[str, int]) -> str:
    """Where products were computed, the most used place first.

    >>> places({"host bf16": 2, "emulated": 5})
    'emulated (5 products), host bf16 (2 products)'
    """
    return ", ".join(
        f"{place} ({count:,} product{'s' if count > 1 else ''})"
        for place, count in Counter(products).most_common()
    )


_recording = threading.local()


@contextmanager
def record() -> Iterator[Ledger]:
    """A ledger of what this thread does within the block; blocks may nest."""
    ledger, open_ledgers = Ledger(), _ledgers()
    open_ledgers.append(ledger)
    try:
        yield ledger
    finally:
        # by identity: two ledgers may hold the same
        open_ledgers[:] = [other for other in open_ledgers if other is not ledger]


class stage:  # noqa: N801 - for ``with``, like the generator that it need not be
    """Count the host seconds of the block under ``name``."""

    __slots__ = ("_name", "_start_s")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._start_s = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        end_s = time.perf_counter()
        for ledger in _ledgers():
            ledger.seconds[self._name] += end_s - self._start_s
        listening.measured(self._name, self._start_s, end_s)


def product(name: str, *operands: Any, **how: Any) -> Any:
    """``npu_matmul(*operands, **how)``, counted under ``name``."""
    with stage(name):
        result = npu_matmul(*operands, **how)
    if _ledgers():
        report = last_call()
        for ledger in _ledgers():
            ledger.counts.update({counted: getattr(report, counted) for counted in COUNTED})
            ledger.products[report.device] += 1
            ledger.reports[name] = report
    return result


def host_products(how: str, count: int) -> None:
    """Count products that the host computed without a device, and how."""
    for ledger in _ledgers():
        ledger.products[how] += count


def _ledgers() -> list[Ledger]:
    ledgers: list[Ledger] = _recording.__dict__.setdefault("stack", [])
    return ledgers
