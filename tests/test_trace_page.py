"""The page shows what the trace-event file holds, and needs nothing but itself."""

from __future__ import annotations

import json
import re
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import trace_format
from comparing import random_int8

from npu_matmul import npu_matmul, trace
from npu_matmul.timeline.page import write_page
from npu_matmul.timeline.recording import Recording
from npu_matmul.timeline.trace_events import write_json

DATA = re.compile(r'<script type="application/json" id="timeline">(.*?)</script>', re.DOTALL)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Both kernels, and a name that would end a script."""
    a, b = random_int8(1, 70, 90), random_int8(2, 90, 40)
    with trace(tmp_path_factory.mktemp("any") / "out.json") as found:
        for kernel in ("matmul_16x16", "matmul_64x512"):
            npu_matmul(a, b, device="emulated", kernel=kernel, strategy="sequential")
        now_s = time.perf_counter()
        found.span("</script><b>", now_s, now_s + 1, {"why": "</script>"})
    return found


def shown(path: Path) -> dict[str, Any]:
    found = DATA.search(path.read_text("utf-8"))
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


def test_the_page_holds_every_span_of_the_trace(recording: Recording, tmp_path: Path) -> None:
    write_json(recording, tmp_path / "out.json")
    write_page(recording, tmp_path / "out.html")
    events = trace_format.read(tmp_path / "out.json")
    page = shown(tmp_path / "out.html")
    assert [group["clock"] for group in page["groups"]] == ["measured", "modelled"]
    total = 0
    by_track = trace_format.by_track(events)
    for process, group in enumerate(page["groups"], start=1):
        assert [track["name"] for track in group["tracks"]] == trace_format.tracks(
            events, group["name"]
        )
        for thread, track in enumerate(group["tracks"], start=1):
            found = [
                {"name": track["names"][name], "start": start, "length": length, "args": details}
                for name, start, length, details in zip(
                    track["named"],
                    accumulate(track["starts"]),
                    track["lengths"],
                    (track["details"].get(str(i)) for i in range(len(track["named"]))),
                    strict=True,
                )
            ]
            assert found == [
                {
                    "name": event["name"],
                    "start": trace_format.ns(event["ts"]),
                    "length": trace_format.ns(event["dur"]),
                    "args": event.get("args"),
                }
                for event in by_track[process, thread]
            ]
            total += len(found)
    assert total == len(trace_format.spans(events)) > 100


def test_the_page_loads_nothing(recording: Recording, tmp_path: Path) -> None:
    write_page(recording, tmp_path / "out.html")
    text = tmp_path.joinpath("out.html").read_text("utf-8")
    assert not re.search(r"https?:|src\s*=|<link|@import|url\(|fetch\(|import\(", text)
    assert text.count("</script>") == 2
    assert "@TIMELINE@" not in text


def test_an_empty_recording_makes_a_page_and_a_file(tmp_path: Path) -> None:
    for name in ("out.html", "out.json"):
        with trace(tmp_path / name):
            pass
    assert shown(tmp_path / "out.html")["groups"] == []
    assert trace_format.spans(trace_format.read(tmp_path / "out.json")) == []
