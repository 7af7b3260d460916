"""Trace-event files, as chrome://tracing and ui.perfetto.dev read them.

Source: "Trace Event Format" (the Chromium project's document). Used of it: complete events (X) with
``ts`` and ``dur`` in microseconds, and metadata events (M) that name processes and threads. Groups
are processes, tracks are threads; a track's spans come in the order of their starts, an outer one
before what it holds.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from npu_matmul.timeline.recording import Group, Recording
from npu_matmul.timeline.strands import Track

NS_PER_US = 1000


def write_json(recording: Recording, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        _write(recording, file)


def write_gzip(recording: Recording, path: Path) -> None:
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=5) as file:
        _write(recording, file)


def about(recording: Recording) -> dict[str, Any]:
    """What a reader of any file must know of its times."""
    notes = {
        "measured": "host: wall time of this machine",
        "modelled": "emulated NPU: its own order, at modelled times; nothing of them was measured",
        "clocks": "the two clocks are independent; both start at 0",
    }
    known = {group.clock for group in recording.groups}
    if recording.left_out:
        notes["left out"] = f"{recording.left_out:,} spans, beyond what is kept"
    return {name: note for name, note in notes.items() if name != "modelled" or name in known}


def _write(recording: Recording, file: TextIO) -> None:
    lines = _events(recording)
    file.write('{"displayTimeUnit":"ns","otherData":')
    file.write(json.dumps(about(recording)) + ',"traceEvents":[\n')
    file.write(next(lines, ""))
    for line in lines:
        file.write(",\n" + line)
    file.write("\n]}\n")


def _events(recording: Recording) -> Iterator[str]:
    for process, group in enumerate(recording.groups, start=1):
        yield _metadata(process, 0, "process_name", name=group.name)
        yield _metadata(process, 0, "process_sort_index", sort_index=process)
        yield _metadata(process, 0, "process_labels", labels=f"{group.clock} time")
        for thread, track in enumerate(group.tracks, start=1):
            yield _metadata(process, thread, "thread_name", name=track.name)
            yield _metadata(process, thread, "thread_sort_index", sort_index=thread)
        for thread, track in enumerate(group.tracks, start=1):
            yield from _spans(track, group, process, thread)


def _metadata(process: int, thread: int, name: str, /, **args: Any) -> str:
    return json.dumps({"ph": "M", "pid": process, "tid": thread, "name": name, "args": args})


def ordered(track: Track) -> list[int]:
    """Positions of a track's spans by their starts; of those that start together the longest
    first."""
    order: list[int] = np.lexsort((-np.asarray(track.ends), np.asarray(track.starts))).tolist()
    return order


def _spans(track: Track, group: Group, process: int, thread: int) -> Iterator[str]:
    common = f'"ph":"X","pid":{process},"tid":{thread},"cat":"{group.clock}"'
    quoted = {name: json.dumps(name) for name in set(track.names)}
    for position in ordered(track):
        start, end = track.starts[position], track.ends[position]
        line = (
            f'{{"name":{quoted[track.names[position]]},{common},'
            f'"ts":{start / NS_PER_US:.3f},"dur":{(end - start) / NS_PER_US:.3f}'
        )
        details = track.details.get(position)
        yield f'{line},"args":{json.dumps(details)}}}' if details else line + "}"
