"""What is so on this system: read from files, asked of XRT, tried on the NPU; never raises."""

from __future__ import annotations

import contextlib
import getpass
import grp
import importlib.util
import os
import platform
import pwd
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from npu_matmul.build.cache import Built, find_built
from npu_matmul.build.toolchain import find_toolchain, survey
from npu_matmul.device import DeviceError, npu_nodes, open_device
from npu_matmul.device.self_test import launch_latency_s, self_test
from npu_matmul.device.xrt import XrtDevice, import_binding
from npu_matmul.kernel import Kernel, KernelNotBuilt, kernels_on

AMD = "0x1022"
NPU_IDS = {"0x1502": "Phoenix or Hawk Point", "0x17f0": "Strix, Krackan or Gorgon Point"}
DRIVERS = ("amdxdna", "amdxdna_legacy")
CAP_IPC_LOCK = 14
# AMD's packages, Debian's, and where CMake puts it for the Python of a distribution.
XRT_PYTHON = (
    "opt/xilinx/xrt/python",
    "usr/lib*/python3*/dist-packages",
    "usr/lib*/python3*/site-packages",
)
ASK_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Node:
    """The device node: whose it is, and whether this user may read and write it."""

    path: str
    group: str
    mode: str
    usable: bool


@dataclass(frozen=True)
class KernelState:
    """One variant of a kernel: where it is built, or why it is not; ``tools`` are those it was
    built with where they differ from the ones here, ``verified`` what its build showed."""

    label: str
    built: str | None
    problem: str = ""
    tools: str = ""
    verified: str = ""


@dataclass(frozen=True)
class SelfTested:
    """An overlay that computed a known product: what was wrong, the error's type where it did not
    come to a result, and seconds of a launch."""

    label: str
    problem: str | None
    latency_s: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class Facts:
    """Everything the rules judge. None: could not be found out."""

    distribution: str  # "ubuntu", "debian", "fedora", "arch" or another
    distribution_name: str
    distribution_version: str
    cpu: str
    kernel_release: str
    python: str
    python_version: str
    user: str
    npu: str | None = None  # of the PCI device
    driver: str | None = None  # version of the loaded amdxdna
    node: Node | None = None
    user_groups: tuple[str, ...] = ()  # by the user database: those that a new login would have
    process_groups: tuple[str, ...] = ()  # that this process has
    iommu: bool | None = None
    iommu_off: bool = False  # by the kernel's command line
    firmware: str | None = None
    memlock_bytes: int | None = None  # None: unlimited
    locks_anyway: bool = False  # root, or CAP_IPC_LOCK
    pyxrt: str | None = None  # the file that this Python imports
    pyxrt_problem: str = ""
    pyxrt_elsewhere: tuple[str, ...] = ()
    ray_tracer: bool = False  # the other project whose module is called xrt
    xrt_version: str | None = None
    model: str | None = None
    target: str | None = None
    device_problem: str = ""
    contexts: int | None = None
    power_mode: str | None = None
    tools_missing: tuple[str, ...] = ()
    tools: str = ""
    kernels: tuple[KernelState, ...] = ()
    kernels_problem: str = ""
    tested: tuple[SelfTested, ...] = ()


def gather(root: Path = Path("/"), try_device: bool = True) -> Facts:
    """The facts of this system; ``root`` is where its files are, and without ``try_device`` the NPU
    is not opened."""
    facts = _system(root)
    if try_device:
        facts = _xrt(facts)
    return _kernels(facts)


def _system(root: Path) -> Facts:
    """What files and the process itself tell."""
    release = _os_release(root)
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    nodes = npu_nodes() if root == Path("/") else sorted((root / "dev/accel").glob("accel*"))
    device = _npu_device(root)
    iommus = root / "sys/class/iommu"
    return Facts(
        distribution=_family(release),
        distribution_name=release.get("PRETTY_NAME", "an unknown system"),
        distribution_version=release.get("VERSION_ID", ""),
        cpu=_cpu(root),
        kernel_release=platform.release(),
        python=sys.executable,
        python_version=f"{sys.version_info[0]}.{sys.version_info[1]}",
        user=_user(),
        npu=None if device is None else NPU_IDS[_read(device / "device")],
        driver=_driver(root),
        node=_node(nodes[0]) if nodes else None,
        user_groups=_groups(),
        process_groups=_names(os.getgroups()),
        iommu=any(iommus.iterdir()) if iommus.is_dir() else None,
        iommu_off=bool(re.search(r"\b(amd_iommu|iommu)=off\b", _read(root / "proc/cmdline"))),
        firmware=None if device is None else _read(device / "fw_version") or None,
        memlock_bytes=None if soft == resource.RLIM_INFINITY else soft,
        locks_anyway=_may_lock(root),
        pyxrt_elsewhere=_other_bindings(root),
        ray_tracer=_has_ray_tracer(),
    )


def _xrt(facts: Facts) -> Facts:
    """What XRT tells of the NPU."""
    try:
        binding = import_binding()
    except DeviceError as error:
        return replace(facts, pyxrt_problem=str(error))
    facts = replace(facts, pyxrt=str(getattr(binding, "__file__", "pyxrt")))
    facts = replace(facts, power_mode=_power_mode())
    try:
        device = open_device("xrt")
    except DeviceError as error:
        return replace(facts, device_problem=str(error))
    assert isinstance(device, XrtDevice)
    version = None
    with contextlib.suppress(RuntimeError, AttributeError):
        said = str(device.npu.handle.get_info(binding.xrt_info_device.host))
        found = re.search(r'"version"\s*:\s*"([^"]+)"', said)
        version = found.group(1) if found else None
    return replace(
        facts,
        model=device.npu.model,
        target=device.target.name,
        contexts=device.target.contexts,
        xrt_version=version,
    )


def _kernels(facts: Facts) -> Facts:
    """Which overlays are built, and what those that are compute on the NPU."""
    missing = tuple(part.name for part in survey() if part.path is None)
    versions = {} if missing else find_toolchain().versions
    target = facts.target or "npu1"
    states, tested = [], []
    try:
        variants = kernels_on(target)
    except (ValueError, OSError) as error:
        return replace(facts, kernels_problem=str(error))
    for kernel in variants:
        label = f"{kernel.name} {kernel.variant}"
        try:
            built = find_built(kernel, target)
        except KernelNotBuilt as error:
            states.append(KernelState(label, None, error.reason))
            continue
        except (ValueError, OSError) as error:  # of a design that cannot be made, or read
            states.append(KernelState(label, None, str(error)))
            continue
        differ = [name for name, v in versions.items() if built.record.tools.get(name) != v]
        states.append(_built_state(label, built, differ))
        if facts.model is not None:
            tested.append(_test(kernel, label))
    return replace(
        facts,
        tools_missing=missing,
        tools=", ".join(f"{name} {_number(said)}" for name, said in versions.items()),
        kernels=tuple(states),
        tested=tuple(tested),
    )


def _built_state(label: str, built: Built, differ: list[str]) -> KernelState:
    tools = ", ".join(differ)
    return KernelState(label, str(built.folder), tools=tools, verified=built.record.verified)


def _test(kernel: Kernel, label: str) -> SelfTested:
    try:
        device = open_device("xrt")
        assert isinstance(device, XrtDevice)
        loaded = device.load(kernel)
        with device.uncounted():
            return SelfTested(label, self_test(loaded), launch_latency_s(loaded))
    except Exception as error:
        return SelfTested(label, str(error) or repr(error), failed=type(error).__name__)


def _number(said: str) -> str:
    """The version in what a program says of itself."""
    found = re.search(r"\d+(\.\d+)+\S*", said)
    return found.group() if found else said


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _os_release(root: Path) -> dict[str, str]:
    lines = _read(root / "etc/os-release").splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {key: value.strip("\"'") for key, _, value in pairs}


def _family(release: dict[str, str]) -> str:
    """The distribution whose packages this system has."""
    names = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
    return next((n for n in names if n in ("ubuntu", "debian", "fedora", "arch")), names[0])


def _cpu(root: Path) -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or "unknown"


def _npu_device(root: Path) -> Path | None:
    """The PCI device that is an NPU."""
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        if _read(device / "vendor") == AMD and _read(device / "device") in NPU_IDS:
            return device
    return None


def _driver(root: Path) -> str | None:
    """The version of the loaded driver: the kernel's, or one of AMD's repository."""
    for name in DRIVERS:
        module, bound = root / "sys/module" / name, root / "sys/bus/pci/drivers" / name
        if module.is_dir() or bound.is_dir():  # one that is part of Linux may have no module
            return _read(module / "version") or "of the kernel"
    return None


def _node(path: Path) -> Node:
    try:
        status = path.stat()
    except OSError as error:
        return Node(str(path), "unknown", f"unknown ({error.strerror})", False)
    mode = f"{status.st_mode & 0o777:04o}"
    (group,) = _names([status.st_gid])
    return Node(str(path), group, mode, os.access(path, os.R_OK | os.W_OK))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _groups() -> tuple[str, ...]:
    """The groups that the user database gives this user, which a new login would have."""
    try:
        user = pwd.getpwuid(os.getuid())
        return _names(os.getgrouplist(user.pw_name, user.pw_gid))
    except (KeyError, OSError):
        return ()


def _names(groups: list[int]) -> tuple[str, ...]:
    """Of groups; those that have none are their numbers."""
    names = []
    for number in groups:
        try:
            names.append(grp.getgrgid(number).gr_name)
        except KeyError:
            names.append(str(number))
    return tuple(names)


def _may_lock(root: Path) -> bool:
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", _read(root / "proc/self/status"), re.MULTILINE)
    return bool(found and int(found.group(1), 16) >> CAP_IPC_LOCK & 1)


def _other_bindings(root: Path) -> tuple[str, ...]:
    found = [path for folder in XRT_PYTHON for path in sorted(root.glob(f"{folder}/pyxrt*.so"))]
    return tuple(dict.fromkeys(str(path.resolve()) for path in found))


def _has_ray_tracer() -> bool:
    """Whether the module ``xrt`` is there and ``pyxrt`` is not."""
    find: Callable[[str], object] = importlib.util.find_spec
    try:
        return find("xrt") is not None and find("pyxrt") is None
    except (ImportError, ValueError):
        return False


def _power_mode() -> str | None:
    program = shutil.which("xrt-smi") or "/opt/xilinx/xrt/bin/xrt-smi"
    try:
        done = subprocess.run(
            [program, "examine", "-r", "platform"],
            capture_output=True,
            text=True,
            timeout=ASK_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"Power Mode\s*:\s*(\S+)", done.stdout)
    return found.group(1) if found else None
