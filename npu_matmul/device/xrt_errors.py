"""What goes wrong with a real NPU, as errors that say what happened, what was tried, what to do.

pyxrt raises RuntimeError for everything that comes from C++, with a text and no number to ask for.
``explain`` finds the cause by the texts of XRT 2.20 to 2.26 and of the amdxdna driver.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from npu_matmul.device.errors import DeviceError, DeviceUnavailable, LaunchFailed

# ert_cmd_state of XRT's ert.h: from COMPLETED on a command has ended, one way or another.
COMPLETED, ERROR, ABORT, TIMEOUT = 4, 5, 6, 8
NOT_STARTED = 0  # ours
STATE_NAMES = {4: "COMPLETED", 5: "ERROR", 6: "ABORT", 8: "TIMEOUT", 9: "NORESPONSE"}
DOCTOR = "`npu-matmul doctor` tells more"


class LaunchTimedOut(LaunchFailed):
    """A launch did not end in time, by the driver's watchdog or by ours."""


class LaunchAborted(LaunchFailed):
    """The driver ended a launch because of trouble elsewhere: in another launch, or in the
    firmware."""


class LaunchRejected(LaunchFailed):
    """The firmware ended a launch with an error: it does not accept the stream or its arguments."""


class LaunchNotStarted(LaunchFailed):
    """XRT or the driver did not take a launch."""


class ContextFailed(DeviceError):
    """No hardware context could be had for an overlay."""


class AllocationFailed(DeviceError):
    """The device has no memory for a buffer, or may not lock it."""


class OverlayMismatch(DeviceError):
    """An xclbin is not the overlay of the kernel at hand."""


class SelfTestFailed(DeviceError):
    """An overlay computed a wrong product; it is not used in this process."""


class DeviceDeclined(DeviceUnavailable):
    """The NPU failed twice in a row and is left alone by this process."""


@dataclass(frozen=True)
class Failure:
    """How a launch ended that did not complete: its state, and what that means."""

    state: int
    text: str

    def error(self, kernel: str, tried: str) -> LaunchFailed:
        """The exception to raise; ``tried`` says what was done about it."""
        kind, cure = _KINDS.get(self.state, (LaunchFailed, "try again"))
        return kind(f"a launch of kernel {kernel!r} failed: {self.text}; {tried}; {cure}; {DOCTOR}")


_KINDS: dict[int, tuple[type[LaunchFailed], str]] = {
    NOT_STARTED: (LaunchNotStarted, "the NPU may be gone, or may have to be reset"),
    TIMEOUT: (
        LaunchTimedOut,
        "the NPU may need its driver reloaded (sudo modprobe -r amdxdna && sudo modprobe amdxdna) "
        "or a reboot",
    ),
    ABORT: (
        LaunchAborted,
        "if every launch ends so, firmware and driver do not fit together: update both",
    ),
    ERROR: (
        LaunchRejected,
        "build the kernel again (npu-matmul build), and report the shape if it stays so",
    ),
}


def ended(state: int) -> Failure | None:
    """What a command's last state means; None when it completed."""
    if state == COMPLETED:
        return None
    texts = {
        TIMEOUT: "the driver's watchdog stopped it (TIMEOUT): no job completed within its limit",
        ABORT: "the driver aborted it (ABORT)",
        ERROR: "the firmware reported an error (ERROR)",
    }
    name = STATE_NAMES.get(state, str(state))
    return Failure(state, texts.get(state, f"it ended in state {name}"))


def overdue(timeout_s: float) -> Failure:
    return Failure(TIMEOUT, f"it had not ended after {timeout_s:g} s")


_CAUSES = (
    (
        r"^opening.*mmap.*(err=-11|Resource temporarily unavailable)",
        "the driver locks 64 MiB of memory when the device is opened, and this user may lock "
        "{lockable} (ulimit -l): raise the memlock limit",
    ),
    (
        r"mmap.*(err=-11|Resource temporarily unavailable)",
        "all buffers of this process and the 64 MiB of an open NPU are locked memory, of which "
        "this user may have {lockable} (ulimit -l): raise the memlock limit, or keep fewer packed "
        "matrices at once",
    ),
    (
        r"No such device with index",
        "XRT sees no NPU: its plugin for amdxdna is missing or of another version, the node "
        "/dev/accel/accel0 is missing, or this user may not open it",
    ),
    (
        r"CREATE_HWCTX.*err=-2\b",
        "the driver has given out all its hardware contexts: close other programs that use the NPU",
    ),
    (
        r"CREATE_HWCTX.*err=-22",
        "the firmware refused the context: other programs may hold all there are, firmware and "
        "driver may not fit together, the overlay may be for another NPU, or the firmware may be "
        "wedged (reload amdxdna, or reboot)",
    ),
    (r"err=-19|No such device", "the NPU is gone or has no columns left"),
    (
        r"Heap at max size|err=-28",
        "the 64 MiB that the driver has for instruction streams are used up: use fewer shapes at "
        "once, or another process",
    ),
    (r"EXEC_CMD.*err=-5\b", "the NPU did not take the command: it may have to be reset"),
    (r"err=-62", "the firmware does not answer: reload amdxdna, or reboot"),
    (r"err=-95", "the driver does not know this request: XRT is newer than the amdxdna driver"),
    (r"err=-13|Permission denied", "this user may not use /dev/accel/accel0: join its group"),
    (r"err=-12|Cannot allocate memory|bad_alloc|mmap", "there is not enough lockable memory"),
    (r"Invalid xclbin|No such file", "the overlay is damaged: build it again (npu-matmul build)"),
)


def explain(text: str) -> str:
    """What a message of XRT, after what was being done, means and what to do, or where to look."""
    for pattern, cause in _CAUSES:
        if re.search(pattern, text, re.DOTALL):
            return f"{cause.format(lockable=_lockable())}; {DOCTOR}"
    return DOCTOR


def is_shortage(error: ContextFailed) -> bool:
    """Whether a context may have been refused because others hold what it needs: ENOENT of the
    legacy driver, ENODEV and EINVAL of the one in Linux."""
    return bool(re.search(r"CREATE_HWCTX.*err=-(2|19|22)\b", str(error), re.DOTALL))


def _lockable() -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return "any amount" if soft == resource.RLIM_INFINITY else f"{soft / 2**20:,.3g} MiB"


@contextmanager
def reported(doing: str, kind: type[DeviceError] = DeviceError) -> Iterator[None]:
    """Turn what pyxrt raises into an error of ours; ``doing`` says what was being done."""
    try:
        yield
    except (RuntimeError, IndexError, TypeError, MemoryError, OSError) as error:
        if isinstance(error, DeviceError):
            raise
        text = " ".join(str(error).split())
        meaning = explain(f"{doing}: {text}")
        raise kind(f"{doing}: XRT says {text!r}: {meaning}") from error
