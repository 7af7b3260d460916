"""What a trace-event file must be, written from the format's public description.

"Trace Event Format" (the Chromium project): the object form, complete events and metadata events.
Perfetto's documentation adds that events of one thread may only nest.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

Event = dict[str, Any]

METADATA = {
    "process_name": ("name", str),
    "process_labels": ("labels", str),
    "process_sort_index": ("sort_index", int),
    "thread_name": ("name", str),
    "thread_sort_index": ("sort_index", int),
}


def read(path: Path) -> dict[str, Any]:
    """The file's object; raises AssertionError where it is not in the format."""
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    trace: dict[str, Any] = json.loads(text)
    assert isinstance(trace["traceEvents"], list)
    assert trace["displayTimeUnit"] in ("ms", "ns")
    assert isinstance(trace["otherData"], dict)
    events: list[Event] = trace["traceEvents"]
    for event in events:
        check_event(event)
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    processes = {e["pid"] for e in events if e["name"] == "process_name"}
    for event in spans(trace):
        assert (event["pid"], event["tid"]) in named, event
        assert event["pid"] in processes, event
    for track, found in by_track(trace).items():
        check_nesting(track, found)
    return trace


def check_event(event: Event) -> None:
    assert isinstance(event["name"], str) and event["name"], event
    assert type(event["pid"]) is int and type(event["tid"]) is int, event
    assert event["ph"] in ("X", "M"), event
    if event["ph"] == "M":
        key, kind = METADATA[event["name"]]
        assert set(event["args"]) == {key} and type(event["args"][key]) is kind, event
        return
    assert isinstance(event["cat"], str) and event["cat"], event
    for key in ("ts", "dur"):
        assert type(event[key]) in (int, float) and event[key] >= 0, event
    assert isinstance(event.get("args", {}), dict), event
    assert set(event) <= {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"}, event


def check_nesting(track: object, events: list[Event]) -> None:
    """In the file's order each begins after, or within, those before it."""
    open_until: list[int] = []
    last = 0
    for event in events:
        start = ns(event["ts"])
        end = start + ns(event["dur"])
        assert start >= last, (track, event)
        last = start
        while open_until and open_until[-1] <= start:
            open_until.pop()
        assert not open_until or end <= open_until[-1], (track, event)
        if end > start:
            open_until.append(end)


def ns(us: float) -> int:
    return round(us * 1000)


def spans(trace: dict[str, Any], process: str = "", track: str = "") -> list[Event]:
    """Complete events of processes and threads with these texts in their names."""
    names = {
        (event["name"], event["pid"], event["tid"] * (event["name"] == "thread_name")): event[
            "args"
        ]["name"]
        for event in trace["traceEvents"]
        if event["ph"] == "M" and "name" in event["args"]
    }
    return [
        event
        for event in trace["traceEvents"]
        if event["ph"] == "X"
        and process in names["process_name", event["pid"], 0]
        and track in names["thread_name", event["pid"], event["tid"]]
    ]


def by_track(trace: dict[str, Any]) -> dict[tuple[int, int], list[Event]]:
    found = defaultdict(list)
    for event in spans(trace):
        found[event["pid"], event["tid"]].append(event)
    return found


def tracks(trace: dict[str, Any], process: str = "") -> list[str]:
    """Names of threads of such processes, in the order in which they are shown."""
    processes = {
        event["pid"]
        for event in trace["traceEvents"]
        if event["name"] == "process_name" and process in event["args"]["name"]
    }
    found = [
        event
        for event in trace["traceEvents"]
        if event["name"] == "thread_name" and event["pid"] in processes
    ]
    return [event["args"]["name"] for event in found]
