"""Launches under way on a real NPU: kept until they are seen to have ended, and waited for.

XRT ends the process when a started run is destroyed whose end nobody has seen, even if the hardware
finished long ago. So every started run is in ``IN_FLIGHT``, with all memory that it may touch,
until its state says that it ended; what never ends is kept for ever, the interpreter's own end
included. Waiting asks for the state and sleeps in between: XRT's own waits hold the interpreter's
lock, so that neither Ctrl-C nor another thread would get through.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from npu_matmul.device.errors import DeviceError, LaunchFailed
from npu_matmul.device.npu import Run
from npu_matmul.device.xrt_errors import (
    ABORT,
    COMPLETED,
    ERROR,
    NOT_STARTED,
    ContextFailed,
    Failure,
    LaunchNotStarted,
    ended,
    overdue,
)
from npu_matmul.timeline import listening

# An end is seen late by no more than this share of the time that was waited, and what the system
# makes of a sleep: 50 us more on Linux, which is why the first questions follow at once.
LATE_SHARE = 1 / 16
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 20e-6, 1e-3
# The driver's watchdog ends a hanging launch after 2 s; as much again for its recovery.
DRAIN_S = 4.0
AFTERMATH = Failure(ABORT, "it ran after a launch that had failed in the same hardware context")

log = logging.getLogger("npu_matmul")


@dataclass(eq=False)
class Flight:
    """One command that was started in a context, or a chain of them and the command after it.

    The last of ``runs`` ends after all others, as a context works in order. ``memory`` is what the
    NPU may touch, ``owner`` whose launch it is, ``commands`` how many the driver sees.
    """

    context: Any
    owner: object
    runs: Sequence[Any]
    chain: Any
    memory: frozenset[Any]
    commands: int
    keep: tuple[Any, ...]
    shown: listening.InFlight | listening.Nothing = listening.NOTHING
    abandoned: bool = False
    failure: Failure | None = None  # of one that has ended

    def has_ended(self) -> bool:
        """Whether the NPU is done with it; the caller holds the lock of all flights.

        Asking is what lets XRT forget the run. When the end is first seen, by whom ever, XRT's
        objects are let go of: they hold a hardware context, which another overlay may need. And a
        failure marks the context, also where nobody waits for the launch.
        """
        if not self.runs:
            return True
        try:
            over = int(self.runs[-1].state()) >= COMPLETED
        except RuntimeError:  # the device went away; nothing can be known
            return False
        if over:
            self.failure = self._result() or (AFTERMATH if self.context.broken else None)
            self.context.broken = self.failure is not None
            self.runs, self.chain, self.keep = (), None, ()
        return over

    def _result(self) -> Failure | None:
        """How it ended: what a chain reports counts before its last run."""
        if self.chain is not None:
            try:
                self.chain.wait()  # returns at once: all of it came before the last run
            except RuntimeError as error:
                return _chain_failure(str(error))
        return ended(int(self.runs[-1].state()))


class Flights:
    """All launches of the process that have not been seen to end."""

    def __init__(self) -> None:
        self._flights: list[Flight] = []
        self._lock = threading.Lock()
        self.unknown: list[Flight] = []

    def add(self, flight: Flight) -> None:
        with self._lock:
            self._flights.append(flight)

    def current(self) -> list[Flight]:
        """Those that have not ended; forgets those that have."""
        with self._lock:
            return list(self._look())

    def has_ended(self, flight: Flight) -> bool:
        """Whether this one has."""
        with self._lock:
            return flight not in self._look() and flight.has_ended()

    def _look(self) -> list[Flight]:
        """Ask all, in the order in which they were started: whether a launch is to be believed
        depends on those before it in its context. The driver lets a context go on after an error;
        source: aie2_sched_resp_handler of amdxdna."""
        self._flights = [f for f in self._flights if not f.has_ended()]
        return self._flights

    def start_failed(self, flight: Flight) -> None:
        """Keep what XRT would not start: XRT 2.20 takes it for one that was, and would end the
        process for destroying it."""
        with self._lock:
            self._flights.remove(flight)
            self.unknown.append(flight)

    def abandon(self, flight: Flight) -> None:
        """Wait for its end once more, for ``DRAIN_S``. What has not ended then is for ever taken to
        be using its memory; its place among the driver's commands, the watchdog has freed."""
        flight.abandoned = True
        flight.abandoned = not self.drain([flight])
        flight.commands = 0

    def of(self, context: object) -> list[Flight]:
        """Those of one context."""
        return [flight for flight in self.current() if flight.context is context]

    def wait_for_room(self, context: object, commands: int, timeout_s: float) -> None:
        """Return when a context has no more than so many commands in flight: the driver takes four,
        and submitting a fifth would block inside XRT. Raises :class:`LaunchNotStarted`."""
        patience = _Patience(timeout_s)
        while sum(flight.commands for flight in self.of(context)) > commands:
            if not patience.pause():
                raise LaunchNotStarted(
                    f"those before it fill the driver's queue, and none has ended for {timeout_s:g}"
                    " s"
                )

    def may_touch(self, memory: Iterable[object], owner: object = None) -> bool:
        """Whether a launch that never ended, and is not ``owner``'s, may still use this memory."""
        memory = set(memory)
        return any(
            flight.abandoned and flight.owner is not owner and memory & flight.memory
            for flight in self.current()
        )

    def drain(self, flights: Iterable[Flight] | None = None) -> bool:
        """Wait until these (default: all) have ended, but no longer than ``DRAIN_S``; whether they
        have."""
        wanted = None if flights is None else set(map(id, flights))
        patience = _Patience(DRAIN_S)
        while any(wanted is None or id(f) in wanted for f in self.current()):
            if not patience.pause():
                return False
        return True

    def leave(self) -> None:
        """At exit: drain, then see to it that nothing destroys what has not ended."""
        with contextlib.suppress(KeyboardInterrupt):
            self.drain()
        keep_for_ever((*self.current(), *self.unknown))

    def disown(self) -> None:
        """In a forked child: nothing of this is its own, to destroy or to wait for."""
        keep_for_ever((*self._flights, *self.unknown))
        self._flights, self.unknown = [], []
        self._lock = threading.Lock()  # another thread of the parent may have held it


def keep_for_ever(objects: Iterable[object]) -> None:
    """See to it that nothing destroys these, not even the interpreter's own end."""
    for kept in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


IN_FLIGHT = Flights()
atexit.register(IN_FLIGHT.leave)


class _Patience:
    """Pauses that grow with the time that was waited, until a deadline."""

    def __init__(self, timeout_s: float) -> None:
        self._start = time.monotonic()
        self._timeout_s = timeout_s

    def pause(self) -> bool:
        """Sleep a little, which lets other threads run and Ctrl-C through; False when the time is
        up."""
        waited_s = time.monotonic() - self._start
        if waited_s >= self._timeout_s:
            return False
        pause_s = min(waited_s * LATE_SHARE, LONGEST_PAUSE_S)
        time.sleep(pause_s if pause_s >= SHORTEST_PAUSE_S else 0)
        return True


def wait(flight: Flight, timeout_s: float) -> Failure | None:
    """Wait for a launch's end; None when it completed. It is drained when an exception unwinds."""
    patience = _Patience(timeout_s)
    try:
        while not IN_FLIGHT.has_ended(flight):
            if not patience.pause():
                flight.abandoned = True
                flight.shown.end(failed="did not end")
                return overdue(timeout_s)
    except BaseException:
        IN_FLIGHT.abandon(flight)
        flight.shown.end(failed="interrupted")
        raise
    failure = flight.failure
    flight.shown.end(**({"failed": failure.text} if failure else {}))
    return failure


class Submission(Protocol):
    """What was launched, and can be launched again."""

    @property
    def kernel_name(self) -> str: ...

    def start_again(self, failed: Flight | None) -> Flight:
        """Make the context anew that it failed in, and launch it."""

    def decline(self, error: Exception) -> None:
        """Leave the device alone from now on."""


class XrtRun(Run):
    """One launch or one chain, started. When it fails it is launched once more in a new context;
    when that fails too, the device is declined for this process."""

    def __init__(
        self, submission: Submission, start: Callable[[], Flight], try_again: bool = True
    ) -> None:
        self._submission = submission
        self._try_again = try_again
        self._flight: Flight | None = None
        self._outcome: DeviceError | Failure | None = None  # of a launch that is not in flight
        try:
            self._flight = start()
        except LaunchNotStarted as error:
            self._outcome = Failure(NOT_STARTED, str(error))

    def wait(self, timeout_s: float) -> None:
        flight = self._flight
        if flight is not None:
            self._outcome = wait(flight, timeout_s)
            self._flight = None
        if isinstance(self._outcome, Failure):
            self._outcome = self._after(flight, self._outcome, timeout_s)
        if self._outcome is not None:
            raise self._outcome

    def _after(
        self, flight: Flight | None, failure: Failure, timeout_s: float
    ) -> DeviceError | None:
        """What to raise after a failure: nothing, when the second try completes. What kept it from
        being launched again without being the NPU's fault, lack of memory say, is raised as it
        is."""
        name = self._submission.kernel_name
        if not self._try_again:
            return failure.error(name, "it was a trial")
        log.warning(
            "launching kernel %r failed: %s; trying once more in a new hardware context",
            name,
            failure.text,
        )
        tried = "its hardware context was rebuilt and it was launched once more"
        try:
            second = wait(self._submission.start_again(flight), timeout_s)
        except (LaunchFailed, ContextFailed) as error:
            found = failure.error(name, f"{tried}, which failed: {error}")
            found.__cause__ = error
        except DeviceError as error:
            error.__cause__ = failure.error(name, tried)
            return error
        else:
            if second is None:
                return None
            found = second.error(name, f"{tried}, after: {failure.text}")
        self._submission.decline(found)
        return found


def _chain_failure(text: str) -> Failure:
    """What a chain raised: XRT names the state of the first run that failed."""
    for state, name in ((8, "TIMEOUT"), (6, "ABORT"), (5, "ERROR")):
        if f"ERT_CMD_STATE_{name}" in text:
            found = ended(state)
            assert found is not None
            return found
    return Failure(ERROR, f"a chain of launches failed: {text}")
