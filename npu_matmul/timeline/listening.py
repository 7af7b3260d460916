"""Who hears what happens: nobody, or the recording of a trace.

Hooks look at ``listening.listener`` when something happens, never earlier: a trace may begin and
end at any time, in any thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, Protocol, TypeVar

from npu_matmul.timeline.strands import ArrayLaunch

P = ParamSpec("P")
R = TypeVar("R")
Details = dict[str, Any]  # of one span; strings, numbers and lists of them


class Listener(Protocol):
    """What hears. Seconds are those of ``time.perf_counter``."""

    def span(self, name: str, start_s: float, end_s: float, details: Details) -> None:
        """This thread did something."""

    def flight(self, name: str, start_s: float, end_s: float, details: Details) -> None:
        """Something ran beside the threads, perhaps while others did."""

    def place(self, launch: ArrayLaunch) -> int:
        """A modelled launch has ended; its number."""

    def join(self, part: Any) -> None:
        """Another process has sent what it heard: a ``recording.Part``."""


listener: Listener | None = None
followers: list[Callable[[], None]] = []  # called when the listener has changed


def listen(hearing: Listener | None) -> None:
    """Let ``hearing`` hear from now on, or nobody."""
    global listener
    listener = hearing
    for follow in followers:
        follow()


class Span:
    """A block of this thread's work, measured. What is learnt within goes into ``details``."""

    def __init__(self, hearing: Listener, name: str, details: Details) -> None:
        self.details = details
        self._listener = hearing
        self._name = name

    def __enter__(self) -> Span:
        self._start_s = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.details["failed"] = kind.__name__
        end_s = time.perf_counter()
        self._listener.span(self._name, self._start_s, end_s, self.details)


class InFlight:
    """Something that was begun, whose end may be seen by another thread, or never."""

    def __init__(self, hearing: Listener, name: str, details: Details) -> None:
        self._listener: Listener | None = hearing
        self._name = name
        self._details = details
        self._start_s = time.perf_counter()

    def end(self, **details: Any) -> None:
        """Its end was seen; only the first counts."""
        hearing, self._listener = self._listener, None
        if hearing is not None:
            found = {**self._details, **details}
            hearing.flight(self._name, self._start_s, time.perf_counter(), found)


class Nothing:
    """What stands in place of the two above when nobody listens."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None

    def end(self, **_: Any) -> None:
        return None


NOTHING = Nothing()


def span(name: str, **details: Any) -> Span | Nothing:
    """For ``with``: a block of this thread's work. ``as`` gives the span, or None when nobody
    listens."""
    hearing = listener
    return NOTHING if hearing is None else Span(hearing, name, details)


def in_flight(name: str, **details: Any) -> InFlight | Nothing:
    """Something begins now that runs beside this thread; the caller tells of its ``end``."""
    hearing = listener
    return NOTHING if hearing is None else InFlight(hearing, name, details)


def spanned(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """For a function: each call is a span."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with span(name):
                return function(*args, **kwargs)

        return call

    return decorate


def measured(name: str, start_s: float, end_s: float) -> None:
    """Tell of work whose time was taken anyway, by ``time.perf_counter``."""
    hearing = listener
    if hearing is not None:
        hearing.span(name, start_s, end_s, {})
