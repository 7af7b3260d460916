"""The user's cache of built overlays: published whole or not at all, and checked before use.

::

    <cache>/overlays/<kernel>-<variant>-<target>/<hash of inputs and tools>/
        overlay.xclbin  insts.bin  design.mlir  ...  build.json
    <cache>/logs/<kernel>-<variant>-<target>-<hash>.log

``build.json`` records the inputs, the tools and the SHA-256 of every product. A folder without it,
or with a product that differs from it, is never loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from npu_matmul.build.identity import digest_of, overlay_inputs, overlay_name
from npu_matmul.build.plan import XCLBIN
from npu_matmul.kernel import Kernel, KernelNotBuilt

NEVER_BUILT = "it has never been built here"
CACHE_VARIABLE = "NPU_MATMUL_CACHE"
RECORD = "build.json"
UNFINISHED = ".unfinished-"


@dataclass(frozen=True)
class Record:
    """How an overlay was built. ``products`` are the files' SHA-256, ``verified`` what was shown of
    them before they were published, ``built`` the time in UTC."""

    kernel: str
    variant: str
    target: str
    name: str
    inputs: dict[str, str]
    tools: dict[str, str]
    commands: list[list[str]]
    products: dict[str, str]
    verified: str
    built: str


@dataclass(frozen=True)
class Built:
    """An overlay in the cache; its products were found to be what the build recorded."""

    folder: Path
    record: Record

    @property
    def xclbin(self) -> Path:
        return self.folder / XCLBIN

    @property
    def name(self) -> str:
        """What its kernel is called inside the xclbin."""
        return self.record.name


def cache_root() -> Path:
    """``$NPU_MATMUL_CACHE``, else the user's cache directory."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else platformdirs.user_cache_path("npu-matmul", appauthor=False)


def overlays_folder(kernel: Kernel, target: str) -> Path:
    """Where all builds of a kernel for a target are."""
    return cache_root() / "overlays" / f"{kernel.name}-{kernel.variant}-{target}"


def find_built(kernel: Kernel, target: str) -> Built:
    """The newest overlay that was built from what the kernel is now.

    Raises ``KernelNotBuilt``, which names the command that cures it and says whether it was never
    built, has changed since, or was damaged.
    """
    inputs = overlay_inputs(kernel, target)
    problems = []
    for folder, record in _records(kernel, target):
        problem = _problem(folder, record, inputs)
        if problem is None:
            return Built(folder, record)
        problems.append(problem)
    newest = problems[0] if problems else NEVER_BUILT
    command = f"npu-matmul build {kernel.name} --variant {kernel.variant} --target {target}"
    raise KernelNotBuilt(
        f"kernel {kernel.name!r}, variant {kernel.variant!r}, is not built for {target}: "
        f"{newest}; run: {command}",
        newest,
    )


def _problem(folder: Path, record: Record, inputs: dict[str, str]) -> str | None:
    """Why a build is not the overlay of these inputs."""
    if record.inputs != inputs or record.name != overlay_name(inputs):
        names = {*inputs, *record.inputs}
        changed = sorted(n for n in names if record.inputs.get(n) != inputs.get(n))
        return f"since it was built on {record.built}, these changed: {', '.join(changed)}"
    for name, sha in record.products.items():
        if sha_of(folder / name) != sha:
            return f"{folder / name} is not what the build made"
    return None if XCLBIN in record.products else f"{folder} has no {XCLBIN}"


def is_built(kernel: Kernel, target: str) -> bool:
    """Whether a product could be computed with it, without reading its products."""
    try:
        inputs = overlay_inputs(kernel, target)
    except KernelNotBuilt:
        return False
    return any(record.inputs == inputs for _, record in _records(kernel, target))


def built_at(place: Path, kernel: Kernel, target: str) -> Built | None:
    """The overlay at one place, if it is whole and what the kernel is now."""
    inputs = overlay_inputs(kernel, target)
    for folder, record in _records(kernel, target):
        if folder == place and _problem(folder, record, inputs) is None:
            return Built(folder, record)
    return None


def place_for(kernel: Kernel, target: str, tools: dict[str, str]) -> Path:
    """The folder of the overlay that these inputs and tools make."""
    versions = {f"tool {name}": version for name, version in tools.items()}
    return overlays_folder(kernel, target) / digest_of(overlay_inputs(kernel, target) | versions)


def building(place: Path) -> FileLock:
    """Held by the one process that may build a place."""
    place.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(place.with_name(f"{place.name}.lock"))


def log_file(place: Path) -> Path:
    """A fresh log of a build, which stays whatever becomes of it. The caller holds the lock."""
    log = cache_root() / "logs" / f"{place.parent.name}-{place.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    return log


def unfinished(place: Path) -> Path:
    """A fresh working folder beside a place; what an earlier, broken build left there is removed.
    The caller holds the lock."""
    for left in place.parent.glob(f"{UNFINISHED}{place.name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    folder = place.with_name(f"{UNFINISHED}{place.name}-{os.getpid()}")
    folder.mkdir()
    return folder


def publish(work: Path, place: Path, record: Record) -> Built:
    """Make a finished working folder the overlay at ``place``, in one step, also where there was
    one before.

    Files reach the disk before the name does, so that not even a power cut leaves half of it.
    """
    (work / RECORD).write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    for path in (*(p for p in work.rglob("*") if p.is_file()), work):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if place.exists():  # damaged, or built again
        _exchange(work, place)
        shutil.rmtree(work, ignore_errors=True)
    else:
        work.rename(place)
    return Built(place, record)


def _exchange(one: Path, other: Path) -> None:
    """Two folders change their names, in one step: ``renameat2`` of Linux 3.15 and later."""
    libc = ctypes.CDLL(None, use_errno=True)
    here, exchange = ctypes.c_int(-100), ctypes.c_uint(2)  # AT_FDCWD, RENAME_EXCHANGE
    if libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))


def sha_of(path: Path) -> str | None:
    """A file's SHA-256; None where there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _records(kernel: Kernel, target: str) -> list[tuple[Path, Record]]:
    """What was built and can be read, newest first."""
    found = []
    for path in overlays_folder(kernel, target).glob(f"[!.]*/{RECORD}"):
        try:
            table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found.append((path.parent, Record(**table)))
        except (OSError, ValueError, TypeError):
            continue  # of another version, or not ours
    return sorted(found, key=lambda entry: entry[1].built, reverse=True)
