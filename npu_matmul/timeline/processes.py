"""Work in other processes of this machine, heard by the recording of the one that spread it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeVar

from npu_matmul.timeline import listening
from npu_matmul.timeline.recording import Part, Recording

R = TypeVar("R")


def recorded(work: Callable[..., R], *args: object) -> tuple[R, Part]:
    """Runs in another process: the result, and what was heard meanwhile."""
    recording = _own()
    result = work(*args)
    return result, recording.take()


@cache
def _own() -> Recording:
    """This process's recording, which goes on from task to task."""
    recording = Recording()
    listening.listen(recording)
    return recording
