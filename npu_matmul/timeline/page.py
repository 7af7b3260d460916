"""A page that shows a timeline by itself: everything it needs is in the file."""

from __future__ import annotations

import json
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

from npu_matmul.timeline.recording import Recording
from npu_matmul.timeline.strands import Track
from npu_matmul.timeline.trace_events import about, ordered

PLACE = "@TIMELINE@"


def write_page(recording: Recording, path: Path) -> None:
    template = files("npu_matmul.timeline").joinpath("page.html").read_text("utf-8")
    before, after = template.split(PLACE)
    with path.open("w", encoding="utf-8") as file:
        file.write(before)
        file.write(f'{{"about":{_quoted(list(about(recording).values()))},"groups":[')
        for number, group in enumerate(recording.groups):
            file.write("," if number else "")
            file.write(f'{{"name":{_quoted(group.name)},"clock":"{group.clock}","tracks":[')
            for position, track in enumerate(track for track in group.tracks if track.names):
                file.write(("," if position else "") + _quoted(content(track)))
            file.write("]}")
        file.write("]}" + after)


def content(track: Track) -> dict[str, Any]:
    """A track as the page has it: ``starts`` in ns, each from the one before, ``lengths`` in ns,
    ``named`` by position in ``names``, ``details`` by position of the span."""
    order = ordered(track)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(track.names))}
    starts = [int(track.starts[i]) for i in order]
    new_place = {old: new for new, old in enumerate(order)} if track.details else {}
    return {
        "name": track.name,
        "names": list(numbers),
        "named": [numbers[track.names[i]] for i in order],
        "starts": [b - a for a, b in zip(chain([0], starts), starts, strict=False)],
        "lengths": [int(track.ends[i] - track.starts[i]) for i in order],
        "details": {new_place[old]: details for old, details in track.details.items()},
    }


def _quoted(value: Any) -> str:
    """As JSON that can stand in a page: no tag begins in it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
