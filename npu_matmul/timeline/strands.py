"""Modelled time of an array whose order is known and whose speed is not.

Each actor has a strand, which is at some cycle of the launch. It waits for what others hand over
and works for as many cycles as documented figures say. So a kernel call starts when its inputs
have arrived and its core is free, a transfer when there is room; and nothing depends on the order
in which actors happened to be run.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Of tracks, in the order in which they are shown: threads and launches of the host; then launches
# of the array, its runtime sequence, and the parts that data passes on its way in and out.
KINDS = (
    *("thread", "in flight", "launch", "sequence"),
    *("shim MM2S", "memtile DMA", "core", "core DMA", "shim S2MM"),
)


@dataclass
class Track:
    """Spans of one actor or thread, compactly. ``starts`` and ``ends`` are whole nanoseconds, or
    cycles; ``details`` has those of the spans that have any, by their position."""

    name: str
    kind: str
    names: list[str] = field(default_factory=list)
    starts: array[Any] = field(default_factory=lambda: array("d"))
    ends: array[Any] = field(default_factory=lambda: array("d"))
    details: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, start: float, end: float, details: dict[str, Any] | None) -> None:
        if details:
            self.details[len(self.names)] = details
        self.names.append(name)
        self.starts.append(start)
        self.ends.append(end)

    def extend(self, other: Track, scale: float, offset: float) -> None:
        """Add another's spans, whose times t become ``t * scale + offset``, in whole numbers."""
        for position, details in other.details.items():
            self.details[len(self.names) + position] = details
        self.names += other.names
        for mine, new in ((self.starts, other.starts), (self.ends, other.ends)):
            mine.frombytes(np.rint(np.asarray(new) * scale + offset).tobytes())

    def take(self) -> Track:
        """The spans so far, which it has no more."""
        taken = Track(self.name, self.kind, self.names, self.starts, self.ends, self.details)
        self.names, self.starts, self.ends, self.details = [], array("d"), array("d"), {}
        return taken


class Strand:
    """One actor's modelled time in cycles of the launch; what it does, it does one by one."""

    __slots__ = ("now", "track")

    def __init__(self, track: Track) -> None:
        self.track = track
        self.now = 0.0

    def wait(self, until: float) -> None:
        """Go on no sooner than ``until``."""
        if until > self.now:
            self.now = until

    def work(self, name: str, cycles: float, details: dict[str, Any] | None = None) -> None:
        """Do something that takes so many cycles, and shows."""
        start = self.now
        self.now = start + cycles
        self.track.add(name, start, self.now, details)

    def show(self, name: str, start: float, details: dict[str, Any] | None = None) -> None:
        """Show what was done from ``start`` until now."""
        self.track.add(name, start, self.now, details)


@dataclass(frozen=True)
class ArrayLaunch:
    """One launch, in cycles from its start, and what it costs beside: ``launch_s``, and
    ``switch_s`` where the array held another overlay."""

    overlay: str
    cycles: float
    clock_hz: float
    launch_s: float
    switch_s: float
    tracks: tuple[Track, ...]


class Array:
    """The strands of one machine. Every launch starts at cycle 0 of all of them."""

    def __init__(self) -> None:
        self._strands: list[Strand] = []

    def strand(self, name: str, kind: str) -> Strand:
        """A new strand; ``kind`` puts its track beside those of its like: one of ``KINDS``."""
        strand = Strand(Track(name, kind))
        self._strands.append(strand)
        return strand

    def begin(self) -> None:
        """Forget what was shown; a launch, or boot, starts."""
        for strand in self._strands:
            strand.now = 0.0
            strand.track = Track(strand.track.name, strand.track.kind)

    def end(self) -> tuple[float, tuple[Track, ...]]:
        """Cycles until the last strand was done, and what was shown, since ``begin``."""
        tracks = tuple(strand.track for strand in self._strands if strand.track.names)
        cycles = max((strand.now for strand in self._strands), default=0.0)
        self.begin()
        return cycles, tracks
