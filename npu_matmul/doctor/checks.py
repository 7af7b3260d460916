"""The rules: what each fact means, and the cure. Pure: facts in, lines out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from npu_matmul.build.cache import NEVER_BUILT
from npu_matmul.doctor import packages
from npu_matmul.doctor.facts import Facts, KernelState

PASS, WARN, FAIL = "pass", "warn", "fail"
FIRST_KERNEL = (6, 14)  # with amdxdna in it
NEEDED = ("NPU", "driver", "IOMMU", "device node", "memlock")  # to compute anything at all
NODE_RULE = 'SUBSYSTEM=="accel", GROUP="render", MODE="0660"'
LOCKED_BYTES = 64 * 2**20  # that the driver's user library locks when the device is opened
PYTHON_OF_BINDING = re.compile(r"cpython-(\d)(\d+)")


@dataclass(frozen=True)
class Line:
    """One line of the report; ``cure`` says what to do where it does not pass."""

    name: str
    status: str
    found: str
    cure: str = ""


RESET = "reload the driver (sudo modprobe -r amdxdna; sudo modprobe amdxdna), and look at dmesg"
REBUILD = "npu-matmul build --force, then update the firmware"
# By the type of the error; a result that is wrong is none.
SELF_TEST_CURES = {
    "": REBUILD,
    "SelfTestFailed": REBUILD,
    "OverlayMismatch": REBUILD,
    "ContextFailed": "see contexts above",
    "AllocationFailed": "see memlock above",
}

Rule = Callable[[Facts], Line]


def examine(facts: Facts) -> list[Line]:
    """Every rule's line, in the order in which things must be put right.

    Where a known product came right, nothing that it needs can be missing: what seems to be is
    only told.
    """
    lines = [rule(facts) for rule in RULES]
    if not any(tested.problem is None for tested in facts.tested):
        return lines
    return [replace(x, status=WARN) if x.status == FAIL and x.name in NEEDED else x for x in lines]


def would_work(lines: list[Line]) -> bool:
    """Whether device "xrt" would compute a product."""
    return all(line.status != FAIL for line in lines)


def _npu(facts: Facts) -> Line:
    if facts.npu is not None or facts.model is not None:
        return Line("NPU", PASS, f"{facts.model or facts.npu} in {facts.cpu}")
    cure = (
        "if it is a Ryzen AI, enable its NPU (also called IPU) in the firmware setup, under "
        "Advanced > CPU configuration"
    )
    return Line("NPU", FAIL, f"none in {facts.cpu}", cure)


def _driver(facts: Facts) -> Line:
    release = f"Linux {facts.kernel_release}"
    if facts.driver is not None:
        return Line("driver", PASS, f"{release}, amdxdna {facts.driver}")
    numbers = tuple(int(n) for n in re.findall(r"\d+", facts.kernel_release)[:2])
    if numbers < FIRST_KERNEL:
        found = f"{release} has no amdxdna, which came with 6.14"
        return Line("driver", FAIL, found, packages.newer_kernel(facts.distribution))
    cure = (
        "sudo modprobe amdxdna, and look at: sudo dmesg | grep amdxdna (Secure Boot refuses a "
        "module of DKMS that is not signed)"
    )
    return Line("driver", FAIL, f"{release}, amdxdna is not loaded", cure)


def _firmware(facts: Facts) -> Line:
    if facts.firmware is not None:
        return Line("firmware", PASS, facts.firmware)
    if facts.node is not None:
        return Line("firmware", PASS, "loaded; the driver does not tell its version")
    cure = f"{packages.firmware(facts.distribution)}, and restart"
    return Line("firmware", WARN, "unknown, as there is no device node", cure)


def _iommu(facts: Facts) -> Line:
    if facts.iommu_off:
        cure = "remove it from the kernel's command line: the NPU reaches memory through the IOMMU"
        return Line("IOMMU", FAIL, "turned off by amd_iommu=off or iommu=off", cure)
    if facts.iommu is False:
        cure = "enable IOMMU in the firmware setup: the NPU reaches memory through it"
        return Line("IOMMU", FAIL, "off", cure)
    if facts.iommu is None:
        return Line("IOMMU", WARN, "cannot be found out here", "look at: ls /sys/class/iommu")
    return Line("IOMMU", PASS, "on")


def _node(facts: Facts) -> Line:
    node = facts.node
    if node is None:
        cure = "put NPU and driver right first; in a container pass --device /dev/accel/accel0"
        return Line("device node", FAIL, "no /dev/accel/accel0", cure)
    found = f"{node.path}, group {node.group}, mode {node.mode}"
    if node.usable:
        return Line("device node", PASS, found)
    for_group = node.mode[-2:-1] in ("6", "7") and node.group not in ("root", "unknown")
    if not for_group or node.group in facts.process_groups:
        rules = "/etc/udev/rules.d/99-amdxdna.rules"
        cure = f"echo '{NODE_RULE}' | sudo tee {rules}; sudo udevadm trigger -s accel"
    elif node.group in facts.user_groups:
        cure = f"{facts.user} has joined {node.group} since: log out and in again"
    else:
        cure = f"sudo usermod -aG {node.group} {facts.user}, then log out and in again"
    return Line("device node", FAIL, f"{found}: not for {facts.user}", cure)


def _memlock(facts: Facts) -> Line:
    if facts.locks_anyway:
        return Line("memlock", PASS, "this process may lock any amount")
    if facts.memlock_bytes is None:
        return Line("memlock", PASS, "unlimited")
    mebibytes = facts.memlock_bytes / 2**20
    limit = f"{mebibytes:,.0f} MiB" if mebibytes >= 1 else f"{mebibytes:.2g} MiB"
    cure = packages.memlock(facts.distribution) + "; in a container pass --ulimit memlock=-1"
    if facts.memlock_bytes < LOCKED_BYTES:
        found = f"{limit}, and opening the NPU locks 64 MiB"
        return Line("memlock", FAIL, found, cure)
    return Line("memlock", WARN, f"{limit}, for the NPU's 64 MiB and all buffers", cure)


def _pyxrt(facts: Facts) -> Line:
    here = f"Python {facts.python_version}"
    if facts.pyxrt is not None:
        return Line("pyxrt", PASS, f"imported by {here} from {Path(facts.pyxrt).parent}")
    install = packages.install_xrt(facts.distribution, facts.distribution_version)
    others = [_python_of(path) for path in facts.pyxrt_elsewhere]
    fitting = [
        path
        for path, version in zip(facts.pyxrt_elsewhere, others, strict=True)
        if version in (None, facts.python_version)
    ]
    if fitting:
        folder = Path(fitting[0]).parent
        cure = f"export PYTHONPATH={folder}, or make the venv with --system-site-packages"
        if folder.is_relative_to("/opt/xilinx"):
            cure = f"source {folder.parent}/setup.sh"
        return Line("pyxrt", FAIL, f"is in {folder}, which {here} does not search", cure)
    if others:
        cure = (
            f"make a venv of that one: python{others[0]} -m venv --system-site-packages .venv, and "
            "install npu-matmul there"
        )
        found = f"is built for Python {others[0]}, this is {facts.python_version}"
        return Line("pyxrt", FAIL, found, cure)
    if facts.pyxrt_problem and "No module named" not in facts.pyxrt_problem:
        cure = f"source /opt/xilinx/xrt/setup.sh, or install XRT anew: {install}"
        return Line("pyxrt", FAIL, facts.pyxrt_problem, cure)
    if facts.ray_tracer:
        found = "is not here; the module `xrt` is, but that is an X-ray tracer of the same name"
        return Line("pyxrt", FAIL, found, install)
    return Line("pyxrt", FAIL, f"cannot be imported by {facts.python} ({here})", install)


def _device(facts: Facts) -> Line:
    if facts.model is not None:
        version = f"XRT {facts.xrt_version or 'of unknown version'}"
        return Line("XRT", PASS, f"{version} opens {facts.model} ({facts.target})")
    if facts.pyxrt is None:
        return Line("XRT", FAIL, "not tried, as pyxrt is not there")
    install = packages.install_xrt(facts.distribution, facts.distribution_version)
    cure = f"if nothing above fails, XRT and its plugin differ in version: {install}"
    return Line("XRT", FAIL, facts.device_problem, cure)


def _contexts(facts: Facts) -> Line:
    if facts.contexts is None:
        return Line("contexts", WARN, "not known, as there is no device")
    refused = [tested for tested in facts.tested if tested.failed == "ContextFailed"]
    if refused:
        cure = "close other programs that use the NPU: sudo lsof /dev/accel/accel0"
        return Line("contexts", FAIL, str(refused[0].problem), cure)
    found = f"the driver gives out {facts.contexts} at once; more overlays take turns"
    return Line("contexts", PASS, found)


def _power(facts: Facts) -> Line:
    fast = "sudo xrt-smi configure --pmode performance"
    if facts.power_mode is None:
        return Line("power mode", WARN, "xrt-smi does not tell", f"for measurements: {fast}")
    if facts.power_mode.lower() in ("powersaver", "balanced"):
        return Line("power mode", WARN, f"{facts.power_mode}: slower than it could be", fast)
    return Line("power mode", PASS, facts.power_mode)


def _toolchain(facts: Facts) -> Line:
    if not facts.tools_missing:
        return Line("toolchain", PASS, facts.tools)
    found = f"no {', '.join(facts.tools_missing)}; needed to build kernels, and only then"
    return Line("toolchain", WARN, found, "npu-matmul build  tells what to install")


def _kernels(facts: Facts) -> Line:
    if facts.kernels_problem:
        cure = "correct that manifest, or take its folder out of $NPU_MATMUL_KERNELS"
        return Line("kernels", FAIL, facts.kernels_problem, cure)
    built = _built(facts)
    missing = [kernel for kernel in facts.kernels if kernel.built is None]
    was = [kernel for kernel in missing if kernel.problem != NEVER_BUILT]
    why = f"; {was[0].label}: {was[0].problem}" if was else ""
    if not facts.kernels:
        found = f"none of those found is for {facts.target or 'this NPU'}"
        cure = "name a folder with one in $NPU_MATMUL_KERNELS, or use device='cpu'"
        return Line("kernels", FAIL, found, cure)
    if not built:
        found = f"none of {len(missing)} is built{why}"
        return Line("kernels", FAIL, found, "npu-matmul build")
    names = ", ".join(kernel.label for kernel in built)
    if missing:
        found = f"{names} built and fresh; not {', '.join(k.label for k in missing)}{why}"
        return Line("kernels", WARN, found, "npu-matmul build")
    old = [kernel for kernel in built if kernel.tools]
    if old:
        found = f"{names} built, but with another {old[0].tools} than is here"
        return Line("kernels", WARN, found, "npu-matmul build")
    return Line("kernels", PASS, f"{names}: built and fresh")


def _verified(facts: Facts) -> Line:
    """What their builds showed of the overlays, whether all are built or not."""
    shown: dict[str, list[str]] = {}
    for kernel in _built(facts):
        shown.setdefault(kernel.verified, []).append(kernel.label)
    if not shown:
        return Line("verified", WARN, "not known, as no kernel is built", "npu-matmul build")
    told = [f"{', '.join(labels)}: {what}" for what, labels in shown.items()]
    return Line("verified", PASS, "; ".join(told))


def _built(facts: Facts) -> list[KernelState]:
    return [kernel for kernel in facts.kernels if kernel.built is not None]


def _self_test(facts: Facts) -> Line:
    if not facts.tested:
        return Line("self-test", WARN, "not run, as device or kernels are missing")
    wrong = [tested for tested in facts.tested if tested.problem is not None]
    if wrong:
        found = f"{wrong[0].label}: {wrong[0].problem}"
        return Line("self-test", FAIL, found, SELF_TEST_CURES.get(wrong[0].failed, RESET))
    times = [tested.latency_s for tested in facts.tested if tested.latency_s is not None]
    latency = f"; {min(times) * 1e6:,.0f} us a launch, measured" if times else ""
    return Line("self-test", PASS, f"{len(facts.tested)} right{latency}")


def _python_of(path: str) -> str | None:
    """The Python that a binding is built for, as its file name tells."""
    found = PYTHON_OF_BINDING.search(Path(path).name)
    return f"{found.group(1)}.{found.group(2)}" if found else None


RULES: tuple[Rule, ...] = (
    _npu,
    _driver,
    _firmware,
    _iommu,
    _node,
    _memlock,
    _pyxrt,
    _device,
    _contexts,
    _power,
    _toolchain,
    _kernels,
    _verified,
    _self_test,
)
