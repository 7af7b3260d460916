"""What was heard while a trace was recorded: tracks of spans, in two groups with a clock each.

The group of the host has a track per thread, and one for each launch that was under way beside
others. The group of the emulated array has a track per actor; modelled launches stand one after the
other in it, in the order in which they ended, with the modelled costs of dispatching each.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from npu_matmul.timeline.strands import KINDS, ArrayLaunch, Track

# 24 B each while recording, about 95 B in a .json: chrome://tracing reads at most 256 MB.
MOST_SPANS = 2_000_000
MEASURED, MODELLED = "measured", "modelled"
HOST, FLIGHT, LAUNCH = "thread", "in flight", "launch"
NS = 1e9


@dataclass
class Group:
    """Tracks that share a clock."""

    name: str
    clock: str  # MEASURED or MODELLED
    tracks: list[Track] = field(default_factory=list)


@dataclass
class Part:
    """What a process heard. ``origin_s`` is when it began to, by ``time.perf_counter``, which all
    processes of a machine share."""

    process: int
    origin_s: float
    groups: list[Group]
    left_out: int


class Recording:
    """Hears everything from when it is made on; a :class:`~.listening.Listener`.

    ``left_out`` counts the spans beyond ``MOST_SPANS``.
    """

    def __init__(self, most_spans: int = MOST_SPANS) -> None:
        self.host = Group(f"host, process {os.getpid()} (measured time)", MEASURED)
        self.npu = Group("emulated NPU (modelled time)", MODELLED)
        self.left_out = 0
        self._room = most_spans
        self._origin_s = time.perf_counter()
        self._own = threading.local()  # .track is that of this thread
        self._adding = threading.RLock()
        self._by_name: dict[tuple[str, str], Track] = {}
        self._others: dict[str, Group] = {}  # of other processes, by name
        self._flights: list[Track] = []
        self._closed = False
        self._launches = 0
        self._overlay: str | None = None
        self._modelled_ns = 0.0  # where the next modelled launch begins

    def close(self) -> None:
        """Hear no more: what other threads still do is not part of it."""
        with self._adding:
            self._closed = True

    @property
    def groups(self) -> list[Group]:
        """Those with anything in them."""
        return [g for g in (self.host, self.npu, *self._others.values()) if g.tracks]

    def span(self, name: str, start_s: float, end_s: float, details: dict[str, Any]) -> None:
        track: Track | None = getattr(self._own, "track", None)
        if track is None:
            track = self._own.track = self._new(self.host, threading.current_thread().name, HOST)
        self._add(track, name, start_s, end_s, details)

    def flight(self, name: str, start_s: float, end_s: float, details: dict[str, Any]) -> None:
        with self._adding:
            start_ns = self._ns(start_s)
            # spans come in the order of their ends: what a track has ended before its last did
            free = (t for t in self._flights if not t.ends or t.ends[-1] <= start_ns)
            track = next(free, None)
            if track is None:
                title = f"launches in flight {len(self._flights) + 1}"
                track = self._new(self.host, title, FLIGHT)
                self._flights.append(track)
            self._add(track, name, start_s, end_s, details)

    def take(self) -> Part:
        """What was heard since the last time, for a recording of another process."""
        with self._adding:
            groups = [
                Group(group.name, group.clock, [track.take() for track in group.tracks])
                for group in self.groups
            ]
            left_out, self.left_out = self.left_out, 0
            return Part(os.getpid(), self._origin_s, groups, left_out)

    def join(self, part: Part) -> None:
        with self._adding:
            self.left_out += part.left_out
            offset_ns = (part.origin_s - self._origin_s) * NS
            for group in part.groups:
                modelled = f"emulated NPU of process {part.process} (modelled time)"
                name = modelled if group.clock == MODELLED else group.name
                mine = self._others.setdefault(name, Group(name, group.clock))
                for track in group.tracks:
                    if self._take_room(len(track.names)):
                        kept = self._track(mine, track.name, track.kind)
                        kept.extend(track, 1, 0 if group.clock == MODELLED else offset_ns)

    def place(self, launch: ArrayLaunch) -> int:
        with self._adding:
            self._launches += 1
            number = {"launch": self._launches}
            if self._overlay not in (None, launch.overlay):
                self._modelled("switch of overlays", launch.switch_s * NS, {})
            self._overlay = launch.overlay
            self._modelled("dispatch", launch.launch_s * NS, number)
            start_ns, ns_per_cycle = self._modelled_ns, NS / launch.clock_hz
            self._modelled(launch.overlay, launch.cycles * ns_per_cycle, number)
            for track in sorted(launch.tracks, key=lambda track: track.kind.endswith("DMA")):
                if self._take_room(len(track.names)):  # element moves are the first to go
                    kept = self._track(self.npu, track.name, track.kind)
                    kept.extend(track, ns_per_cycle, start_ns)
            return self._launches

    def _modelled(self, name: str, ns: float, details: dict[str, Any]) -> None:
        """Let the array's clock go on, and show why."""
        start = self._modelled_ns
        self._modelled_ns += ns
        if self._take_room(1):
            track = self._track(self.npu, "launches", LAUNCH)
            track.add(name, round(start), round(self._modelled_ns), details)

    def _track(self, group: Group, name: str, kind: str) -> Track:
        """The group's track of that name, which is one part's."""
        key = group.name, name
        if key not in self._by_name:
            self._by_name[key] = self._new(group, name, kind)
        return self._by_name[key]

    def _add(
        self, track: Track, name: str, start_s: float, end_s: float, details: dict[str, Any]
    ) -> None:
        with self._adding:
            if self._take_room(1):
                track.add(name, self._ns(start_s), self._ns(end_s), details)

    def _new(self, group: Group, name: str, kind: str) -> Track:
        track = Track(name, kind)
        with self._adding:
            group.tracks.append(track)
            group.tracks.sort(key=lambda each: KINDS.index(each.kind))
        return track

    def _ns(self, time_s: float) -> int:
        """Since the recording began; what had begun before it is seen from then on."""
        return max(0, round((time_s - self._origin_s) * NS))

    def _take_room(self, spans: int) -> bool:
        """Whether so many more may be kept; they are counted as left out otherwise."""
        if self._closed:
            return False
        if spans > self._room:
            self.left_out += spans
            return False
        self._room -= spans
        return True
