"""The classes of pyxrt, whose functions take what the oldest supported binding takes."""

from __future__ import annotations

import enum
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from pyxrt_double.npu import ABORT, COMPLETED, HOST, NEW, SRAM, Command, Npu, Store, launch_of
from pyxrt_double.xclbin import read_xclbin

# What stands before the double: nothing, or XRT's own binding (see pyxrt_genuine).
FRONT: Callable[[types.ModuleType], types.ModuleType] | None = None
NAMES = {4: "COMPLETED", 5: "ERROR", 6: "ABORT", 8: "TIMEOUT"}
INSTRUCTIONS, WORDS, FIRST_DATA = 1, 2, 3


class ert_cmd_state(enum.IntEnum):  # noqa: N801
    ERT_CMD_STATE_NEW = 1
    ERT_CMD_STATE_QUEUED = 2
    ERT_CMD_STATE_COMPLETED = 4
    ERT_CMD_STATE_ERROR = 5
    ERT_CMD_STATE_ABORT = 6
    ERT_CMD_STATE_SUBMITTED = 7
    ERT_CMD_STATE_TIMEOUT = 8
    ERT_CMD_STATE_NORESPONSE = 9


class xclBOSyncDirection(enum.Enum):  # noqa: N801
    XCL_BO_SYNC_BO_TO_DEVICE = 0
    XCL_BO_SYNC_BO_FROM_DEVICE = 1


class xrt_info_device(enum.Enum):  # noqa: N801
    bdf = 0
    interface_uuid = 1
    name = 5
    host = 14


class flags(enum.Enum):  # noqa: N801
    normal = 0
    cacheable = 1 << 24
    device_only = 1 << 28
    host_only = 1 << 29


def refuse(*given: Any) -> TypeError:
    kinds = ", ".join(type(value).__name__ for value in given)
    return TypeError(f"incompatible function arguments. Invoked with: {kinds}")


def integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool | enum.Enum)


class uuid:  # noqa: N801
    def __init__(self, text: str) -> None:
        self._text = text

    def to_string(self) -> str:
        return self._text


class xclbinkernel:  # noqa: N801
    def __init__(self, name: str, arguments: int) -> None:
        self._name, self._arguments = name, arguments

    def get_name(self) -> str:
        return self._name

    def get_num_args(self) -> int:
        return self._arguments


class xclbin:  # noqa: N801
    def __init__(self, path: str, /) -> None:
        if type(path) is not str:
            raise refuse(path)
        try:
            self._table = read_xclbin(path)
        except FileNotFoundError:
            raise RuntimeError(f"No such file '{path}'") from None
        except ValueError:
            raise RuntimeError("Invalid xclbin") from None

    def get_uuid(self) -> uuid:
        return uuid(self._table["uuid"])

    def get_kernels(self) -> list[xclbinkernel]:
        return [xclbinkernel(*entry) for entry in self._table["kernels"]]


def make_binding(npu: Npu, without: tuple[str, ...] = ()) -> types.ModuleType:
    """A module ``pyxrt`` for one machine; ``without`` names what an older binding lacks."""

    def enumerate_devices() -> int:
        return npu.devices

    class device:  # noqa: N801
        def __init__(self, index: int | str, /) -> None:
            if npu.open_fails:
                raise RuntimeError(npu.open_fails)
            if index not in range(npu.devices):
                raise RuntimeError(f" No such device with index '{index}'")
            self._overlays: dict[str, dict[str, Any]] = {}

        def register_xclbin(self, overlay: xclbin, /) -> uuid:
            if not isinstance(overlay, xclbin):
                raise refuse(overlay)
            self._overlays[overlay._table["uuid"]] = overlay._table
            return overlay.get_uuid()

        def load_xclbin(self, overlay: Any, /) -> uuid:
            raise RuntimeError("load_axlf: Operation not supported")

        def get_info(self, key: xrt_info_device, /) -> str:
            if not isinstance(key, xrt_info_device):
                raise refuse(key)
            known = {
                xrt_info_device.name: npu.model,
                xrt_info_device.bdf: "0000:c5:00.1",
                xrt_info_device.host: '{"version": "2.21.75"}',
            }
            if key not in known:
                raise RuntimeError("No such query request")
            return known[key]

    class hw_context:  # noqa: N801
        def __init__(self, opened: device, overlay: uuid, /) -> None:
            if not isinstance(opened, device) or not isinstance(overlay, uuid):
                raise refuse(opened, overlay)
            table = opened._overlays.get(overlay.to_string())
            if table is None:
                raise RuntimeError(f"No xclbin with uuid '{overlay.to_string()}': Invalid argument")
            self._state = npu.make_context(table)
            self._device = opened

        def __del__(self) -> None:
            npu.events.append("context gone")

    class kernel:  # noqa: N801
        def __init__(self, context: hw_context, name: str, /) -> None:
            if not isinstance(context, hw_context):
                raise refuse(context, name)
            if name not in context._state.kernels:
                raise RuntimeError(f"No such kernel '{name}': Invalid argument")
            self._context = context
            self._arguments = context._state.kernels[name]

        def group_id(self, argument: int, /) -> int:
            if not integer(argument):
                raise refuse(argument)
            state = self._context._state
            if argument == INSTRUCTIONS:
                return state.instruction_group
            if FIRST_DATA <= argument < self._arguments:
                return state.data_group
            return state.no_group

        def __call__(self, *_: Any) -> None:
            npu.crash("kernel(...) was called: it swallows bad arguments")

    class bo:  # noqa: N801
        def __init__(self, first: Any, size: Any, second: Any, /, *group: Any) -> None:
            self._parent = None
            if isinstance(first, bo) and integer(size) and integer(second) and not group:
                if second + size > first.size() or not size:
                    raise RuntimeError("sub buffer size and offset: Invalid argument")
                self._store, self._offset = first._store, first._offset + second
                self._parent, self._size = first, size
                return
            whole = isinstance(first, device) and integer(size) and isinstance(second, flags)
            if not whole or len(group) != 1 or not integer(group[0]):
                raise refuse(first, size, second, *group)
            npu.require_present("CREATE_BO")
            if second not in (flags.cacheable, flags.host_only):
                raise RuntimeError("unsupported buffer type: none flag (err=95)")
            if size <= 0:
                raise RuntimeError("mmap_range(len=0) failed")
            _, bank = npu.groups.get(group[0], (0, None))
            self._store = Store(npu, size, bank, second is flags.cacheable)
            self._offset, self._size = 0, size

        def __del__(self) -> None:
            if self.__dict__.get("_parent") is None and "_store" in self.__dict__:
                self._store.free()

        def map(self) -> memoryview:
            return memoryview(self._store.host[self._offset : self._offset + self._size])

        def size(self) -> int:
            return int(self._size)

        def read(self, *_: Any) -> None:
            npu.crash("bo.read returns wrong bytes in some builds")

        def sync(self, direction: Any, /, *where: Any) -> None:
            if not isinstance(direction, xclBOSyncDirection) or len(where) not in (0, 2):
                raise refuse(direction, *where)
            if not all(map(integer, where)):
                raise refuse(direction, *where)
            npu.require_present("SYNC_BO")
            size, offset = where or (self._size, 0)
            if offset + size > self._size or min(size, offset) < 0:
                raise RuntimeError(f"Invalid BO offset and size for sync'ing: {offset}, {size}")
            to_device = direction is xclBOSyncDirection.XCL_BO_SYNC_BO_TO_DEVICE
            self._store.sync(to_device, self._offset + offset, size)

    bo.flags = flags  # type: ignore[attr-defined]

    class run:  # noqa: N801
        def __init__(self, made_of: kernel, /) -> None:
            if not isinstance(made_of, kernel):
                raise refuse(made_of)
            self._kernel, self._state = made_of, made_of._context._state
            self._given: dict[int, Any] = {}
            self._command: Command | None = None
            self._in_list = False
            self._seen_ended = True

        def set_arg(self, index: int, value: Any, /) -> None:
            if not integer(index) or not (isinstance(value, bo) or integer(value)):
                raise refuse(index, value)
            if isinstance(value, bo):
                if not (index == INSTRUCTIONS or FIRST_DATA <= index < self._kernel._arguments):
                    npu.crash(f"a buffer object as argument {index}")
                bank = SRAM if index == INSTRUCTIONS else HOST
                if value._store.bank != bank:
                    raise RuntimeError("No host side buffer in destination buffer")
                if value._store.cacheable != (index == INSTRUCTIONS):
                    npu.crash(f"the wrong kind of memory as argument {index}")
            elif not -(2**31) <= value < 2**31:
                raise refuse(index, value)
            elif not 0 <= index < self._kernel._arguments:
                raise IndexError(f"argument {index}")
            elif index in (INSTRUCTIONS, *range(FIRST_DATA, self._kernel._arguments)):
                npu.crash(f"an integer as argument {index}")
            self._given[index] = value

        def _launch(self) -> Any:
            if self._given.get(0) != 3 or not {INSTRUCTIONS, WORDS} <= set(self._given):
                npu.crash("opcode, instructions or their number are missing")
            words = self._given[WORDS]
            data = [index for index in sorted(self._given) if index >= FIRST_DATA]
            if data != list(range(FIRST_DATA, FIRST_DATA + len(data))):
                npu.crash("a data argument is missing")
            given = [self._given[index] for index in data]
            parts = [(buffer._store, buffer._offset, buffer._size) for buffer in given]
            instructions = self._given[INSTRUCTIONS]._store
            self._given = {}  # XRT gives the driver handles, and keeps no buffer object alive
            return launch_of(self._state, instructions, words, parts)

        def start(self) -> None:
            npu.calls["start"] += 1
            if self._in_list:
                raise RuntimeError("a run of a runlist cannot be started alone")
            if not self._seen_ended:
                raise RuntimeError("bad command state, can't launch")
            command = Command([self._launch()])
            self._seen_ended = False  # even where submitting fails: so it is in XRT 2.20
            self._state.submit(command)
            self._command = command

        def state(self) -> ert_cmd_state:
            if self._command is None:
                return ert_cmd_state(NEW)
            state = self._state.ask(self._command)
            self._seen_ended = self._seen_ended or state >= COMPLETED
            return ert_cmd_state(state)

        def wait(self, timeout_ms: int = 0, /) -> ert_cmd_state:
            if not integer(timeout_ms) or timeout_ms < 0:
                raise refuse(timeout_ms)
            npu.crash("run.wait holds the interpreter's lock")
            raise AssertionError

        def __del__(self) -> None:
            npu.events.append("run gone")
            if not self.__dict__.get("_seen_ended", True):
                npu.crashes.append("xrt::run destructed while command is still in progress")

    class runlist:  # noqa: N801
        def __init__(self, context: hw_context, /) -> None:
            if not isinstance(context, hw_context):
                raise refuse(context)
            self._context, self._runs = context, list[run]()
            self._command: Command | None = None

        def add(self, added: run, /) -> None:
            if not isinstance(added, run):
                raise refuse(added)
            if self._command is not None:
                raise RuntimeError("runlist must be idle before adding run objects")
            added._in_list = True
            self._runs.append(added)

        def execute(self) -> None:
            npu.chains += 1
            command = Command([one._launch() for one in self._runs])
            self._context._state.submit(command)
            self._command = command

        def wait(self, *timeout: Any) -> None:
            if timeout:
                raise refuse(*timeout)
            if self._command is None:
                return
            while self._command.state < COMPLETED:
                npu.calls["blocking waits"] += 1
                if self._command.hangs or npu.vanished:
                    npu.crash("runlist.wait blocks for ever, and holds the interpreter's lock")
                self._context._state.ask(self._command)
            state = self._command.state
            self._command = None
            if state != COMPLETED:
                name = NAMES.get(state, NAMES[ABORT])
                raise RuntimeError(f"runlist failed execution (ERT_CMD_STATE_{name})")

    module = types.ModuleType("pyxrt")
    classes = [device, hw_context, kernel, bo, run, runlist, uuid, xclbin]
    enums = [ert_cmd_state, xclBOSyncDirection, xrt_info_device]
    for item in (*classes, *enums, enumerate_devices):
        if item.__name__ not in without:
            setattr(module, item.__name__, item)
    return module if FRONT is None or without else FRONT(module)
