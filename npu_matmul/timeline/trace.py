"""``trace``: record what happens within a ``with`` block, into a file."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from types import TracebackType

from npu_matmul.timeline import listening
from npu_matmul.timeline.page import write_page
from npu_matmul.timeline.recording import Recording
from npu_matmul.timeline.trace_events import write_gzip, write_json
from npu_matmul.writing import part_of, whole_file

log = logging.getLogger("npu_matmul")

WRITERS: dict[str, Callable[[Recording, Path], None]] = {
    ".json": write_json,
    ".json.gz": write_gzip,
    ".html": write_page,
}

_beginning = threading.Lock()
_recorded: list[Path] = []  # the file of the trace that is being recorded


class TraceError(RuntimeError):
    """A trace cannot begin while another is being recorded."""


def trace(path: str | PathLike[str]) -> Trace:
    """For ``with``: record what every thread of this process does within the block, and processes
    that encode files for it, into a file.

    ``.html`` is a page that shows the timeline by itself; ``.json`` and ``.json.gz`` are
    trace-event files, for ui.perfetto.dev or chrome://tracing. The host's calls, stages, syncs and
    launches have measured times. An emulated NPU's transfers, element moves and kernel calls have
    its order and **modelled** times, in a process of their own that says so: its clock is another,
    and begins at 0 with the first launch.

    The file is written when the block ends, also by an exception. Beyond 2 million spans no more
    are kept; the file then says how many were left out, and so does a warning.

    Raises
    ------
    ValueError for another suffix, OSError when the file cannot be written (before anything is
    recorded, where that can be known), :class:`TraceError` within another trace, of any thread.

    >>> with trace("out.json"):  # doctest: +SKIP
    ...     npu_matmul(A, B, device="emulated")
    """
    return Trace(Path(path))


class Trace:
    """A file, and while its block runs the recording that goes into it."""

    def __init__(self, path: Path) -> None:
        suffix = next((suffix for suffix in WRITERS if path.name.endswith(suffix)), None)
        if suffix is None:
            raise ValueError(f"{path}: a trace's name must end in {', '.join(WRITERS)}")
        self._path = path
        self._write = WRITERS[suffix]

        self.written = False

    def __enter__(self) -> Recording:
        with _beginning:
            if _recorded:
                raise TraceError(
                    f"a trace into {_recorded[0]} is being recorded; it hears all threads, and "
                    f"must end before one into {self._path} can begin"
                )
            self._check()
            _recorded.append(self._path)
            self._recording = Recording()
            listening.listen(self._recording)
        return self._recording

    def __exit__(
        self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None
    ) -> None:
        listening.listen(None)
        _recorded.clear()
        recording = self._recording
        del self._recording
        recording.close()
        if recording.left_out:
            log.warning("%s: %s spans were left out", self._path, f"{recording.left_out:,}")
        try:
            with whole_file(self._path) as part:
                self._write(recording, part)
            self.written = True
        except OSError as failure:
            if kind is None:
                raise _cannot_write(self._path, failure) from failure
            log.error("%s", _cannot_write(self._path, failure))  # what ended the block matters more

    def _check(self) -> None:
        """Raise now for a file that cannot be written later."""
        part = part_of(self._path)
        try:
            if self._path.is_dir():
                raise IsADirectoryError(0, "it is a directory")
            part.touch()
        except OSError as failure:
            raise _cannot_write(self._path, failure) from failure
        finally:
            part.unlink(missing_ok=True)


def _cannot_write(path: Path, failure: OSError) -> OSError:
    return OSError(f"the trace cannot be written to {path}: {failure.strerror or failure}")
