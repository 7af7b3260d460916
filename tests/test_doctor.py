"""The doctor: each situation has its line and its cure; gathering never raises."""

from __future__ import annotations

import dataclasses
import doctest
import json
import resource
import stat
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from pyxrt_double.built import publish
from pyxrt_double.npu import Npu
from rich.console import Console

from npu_matmul import cli
from npu_matmul.build import cache, toolchain
from npu_matmul.doctor import command, packages
from npu_matmul.doctor import facts as gathering
from npu_matmul.doctor.checks import FAIL, PASS, WARN, Line, examine, would_work
from npu_matmul.doctor.facts import Facts, KernelState, Node, SelfTested, gather
from npu_matmul.kernel import load_kernel

WIDTH, HEIGHT = 80, 24
SHOWN = "84 launches under 12 schedules right, stream equal"
GOOD = Facts(
    distribution="ubuntu",
    distribution_name="Ubuntu 26.04 LTS",
    distribution_version="26.04",
    cpu="AMD Ryzen 7 8845HS w/ Radeon 780M Graphics",
    kernel_release="7.0.0-15-generic",
    python="/home/ada/.venv/bin/python",
    python_version="3.13",
    user="ada",
    npu="Phoenix or Hawk Point",
    driver="of the kernel",
    node=Node("/dev/accel/accel0", "render", "0660", True),
    user_groups=("ada", "render"),
    iommu=True,
    firmware="1.5.5.391",
    pyxrt="/usr/lib/python3/dist-packages/pyxrt.cpython-313-x86_64-linux-gnu.so",
    xrt_version="2.21.75",
    model="NPU Phoenix",
    target="npu1",
    contexts=6,
    power_mode="Default",
    tools="mlir-aie 1.4, Peano 22, xclbinutil 2.21",
    kernels=(KernelState("matmul_16x16 int8", "/cache/a", verified=SHOWN),),
    tested=(SelfTested("matmul_16x16 int8", None, 1.9e-4),),
)
NO_DEVICE = {
    "model": None,
    "target": None,
    "contexts": None,
    "xrt_version": None,
    "tested": (),
}
NO_PYXRT = {**NO_DEVICE, "pyxrt": None, "pyxrt_problem": "No module named 'pyxrt'"}


NEVER = KernelState("b bf16", None, "it has never been built here")


def facts(**changes: object) -> Facts:
    return dataclasses.replace(GOOD, **changes)  # type: ignore[arg-type]


def node(**changes: object) -> Node:
    return dataclasses.replace(GOOD.node, **{"usable": False, **changes})  # type: ignore[arg-type,type-var]


def test_a_machine_where_all_is_well_passes_every_line() -> None:
    lines = examine(GOOD)
    assert [line.status for line in lines] == [PASS] * 14
    assert not any(line.cure for line in lines)
    assert would_work(lines)
    found = {line.name: line.found for line in lines}
    assert found["self-test"] == "1 right; 190 us a launch, measured"
    assert found["verified"] == f"matmul_16x16 int8: {SHOWN}"
    assert found["XRT"] == "XRT 2.21.75 opens NPU Phoenix (npu1)"


# What is wrong, the line that says so, its status, words of what was found and of the cure.
SITUATIONS: dict[str, tuple[Facts, str, str, str, str]] = {
    "no NPU": (facts(npu=None, **NO_DEVICE), "NPU", FAIL, "none in AMD Ryzen", "firmware setup"),
    "old kernel": (
        facts(driver=None, node=None, kernel_release="6.8.0-45-generic", **NO_DEVICE),
        *("driver", FAIL, "Linux 6.8.0-45-generic has no amdxdna", "hwe-24.04"),
    ),
    "old kernel on Fedora": (
        facts(driver=None, kernel_release="6.12.9", distribution="fedora", **NO_DEVICE),
        *("driver", FAIL, "came with 6.14", "sudo dnf upgrade"),
    ),
    "driver not loaded": (
        facts(driver=None, **NO_DEVICE),
        *("driver", FAIL, "amdxdna is not loaded", "sudo modprobe amdxdna"),
    ),
    "no node": (
        facts(node=None, firmware=None, **NO_DEVICE),
        *("device node", FAIL, "no /dev/accel/accel0", "--device /dev/accel/accel0"),
    ),
    "no firmware": (
        facts(node=None, firmware=None, distribution="arch", **NO_DEVICE),
        *("firmware", WARN, "unknown", "pacman -S linux-firmware"),
    ),
    "not in the group": (
        facts(node=node(), user_groups=("ada",), **NO_DEVICE),
        *("device node", FAIL, "group render, mode 0660: not for ada", "usermod -aG render ada"),
    ),
    "in the group since": (
        facts(node=node(), **NO_DEVICE),
        *("device node", FAIL, "not for ada", "ada has joined render since: log out"),
    ),
    "IOMMU off in the firmware": (
        facts(iommu=False, **NO_DEVICE),
        *("IOMMU", FAIL, "off", "enable IOMMU in the firmware setup"),
    ),
    "IOMMU off by a parameter": (
        facts(iommu_off=True, **NO_DEVICE),
        *("IOMMU", FAIL, "amd_iommu=off", "kernel's command line"),
    ),
    "memlock of 8 MiB": (
        facts(memlock_bytes=8 * 2**20, device_problem="mmap failed", **NO_DEVICE),
        *("memlock", FAIL, "8 MiB, and opening the NPU locks 64 MiB", "limits.d/99-amdxdna.conf"),
    ),
    "memlock on Fedora": (
        facts(memlock_bytes=8 * 2**20, distribution="fedora", **NO_DEVICE),
        *("memlock", FAIL, "8 MiB", "LimitMEMLOCK=infinity"),
    ),
    "memlock of 1 GiB": (
        facts(memlock_bytes=2**30),
        *("memlock", WARN, "1,024 MiB, for the NPU's 64 MiB", "memlock unlimited"),
    ),
    "memlock of root": (
        facts(memlock_bytes=8 * 2**20, locks_anyway=True),
        *("memlock", PASS, "may lock any amount", ""),
    ),
    "no pyxrt on Ubuntu 26.04": (
        facts(**NO_PYXRT),
        *("pyxrt", FAIL, "/home/ada/.venv/bin/python (Python 3.13)", "libxrt-npu2 libxrt-utils"),
    ),
    "no pyxrt on Ubuntu 24.04": (
        facts(**NO_PYXRT, distribution_version="24.04"),
        *("pyxrt", FAIL, "cannot be imported", "ppa:amd-team/xrt && sudo apt install libxrt-npu2"),
    ),
    "no pyxrt on Debian": (
        facts(**NO_PYXRT, distribution="debian", distribution_version="13"),
        *("pyxrt", FAIL, "cannot be imported", "build https://github.com/amd/xdna-driver"),
    ),
    "no pyxrt on Fedora 44": (
        facts(**NO_PYXRT, distribution="fedora", distribution_version="44"),
        *("pyxrt", FAIL, "cannot be imported", "build https://github.com/amd/xdna-driver"),
    ),
    "the ray tracer": (
        facts(**NO_PYXRT, ray_tracer=True, distribution="arch"),
        *("pyxrt", FAIL, "X-ray tracer of the same name", "pacman -S xrt xrt-plugin-amdxdna"),
    ),
    "pyxrt of another Python": (
        facts(
            **NO_PYXRT,
            pyxrt_elsewhere=("/usr/lib/python3/dist-packages/pyxrt.cpython-314-x86_64.so",),
        ),
        *("pyxrt", FAIL, "is built for Python 3.14, this is 3.13"),
        "python3.14 -m venv --system-site-packages",
    ),
    "setup.sh not sourced": (
        facts(**NO_PYXRT, pyxrt_elsewhere=("/opt/xilinx/xrt/python/pyxrt.cpython-313.so",)),
        *("pyxrt", FAIL, "does not search", "source /opt/xilinx/xrt/setup.sh"),
    ),
    "venv without the system's packages": (
        facts(**NO_PYXRT, pyxrt_elsewhere=("/usr/lib/python3/dist-packages/pyxrt.so",)),
        *("pyxrt", FAIL, "is in /usr/lib/python3/dist-packages", "--system-site-packages"),
    ),
    "pyxrt without its libraries": (
        facts(**{**NO_PYXRT, "pyxrt_problem": "libxrt_coreutil.so.2: cannot open"}),
        *("pyxrt", FAIL, "libxrt_coreutil.so.2", "setup.sh"),
    ),
    "no plugin": (
        facts(device_problem="XRT says 'No such device with index 0'", **NO_DEVICE),
        *("XRT", FAIL, "No such device with index", "differ in version: sudo apt install libxrt2"),
    ),
    "all contexts taken": (
        facts(tested=(SelfTested("matmul_16x16 int8", "a hardware context for it: err=-2"),)),
        *("contexts", FAIL, "err=-2", "lsof /dev/accel/accel0"),
    ),
    "saving power": (
        facts(power_mode="Powersaver"),
        *("power mode", WARN, "slower than it could be", "--pmode performance"),
    ),
    "no toolchain": (
        facts(tools_missing=("mlir-aie", "Peano"), tools=""),
        *("toolchain", WARN, "no mlir-aie, Peano", "npu-matmul build"),
    ),
    "nothing built": (
        facts(kernels=(NEVER,), tested=()),
        *("kernels", FAIL, "none of 1 is built", "npu-matmul build"),
    ),
    "nothing to verify": (
        facts(kernels=(NEVER,), tested=()),
        *("verified", WARN, "no kernel is built", "npu-matmul build"),
    ),
    "no kernel for this NPU": (
        facts(kernels=(), tested=(), target="npu2"),
        *("kernels", FAIL, "none of those found is for npu2", "device='cpu'"),
    ),
    "nothing fresh": (
        facts(kernels=(KernelState("a int8", None, "these changed: design"),), tested=()),
        *("kernels", FAIL, "none of 1 is built; a int8: these changed: design", "npu-matmul build"),
    ),
    "one not built": (
        facts(kernels=(*GOOD.kernels, NEVER)),
        *("kernels", WARN, "matmul_16x16 int8 built and fresh; not b bf16", "npu-matmul build"),
    ),
    "verified, though one is not built": (
        facts(kernels=(*GOOD.kernels, NEVER)),
        *("verified", PASS, f"matmul_16x16 int8: {SHOWN}", ""),
    ),
    "one damaged": (
        facts(kernels=(*GOOD.kernels, KernelState("b bf16", None, "/c/x is not what it was"))),
        *("kernels", WARN, "not b bf16; b bf16: /c/x is not what it was", "npu-matmul build"),
    ),
    "built with other tools": (
        facts(kernels=(KernelState("a int8", "/cache/a", tools="Peano"),)),
        *("kernels", WARN, "another Peano than is here", "npu-matmul build"),
    ),
    "self-test wrong": (
        facts(tested=(SelfTested("matmul_16x16 int8", "all values are zero"),)),
        *("self-test", FAIL, "matmul_16x16 int8: all values are zero", "--force"),
    ),
}


@pytest.mark.parametrize(
    ("given", "name", "status", "found", "cure"), SITUATIONS.values(), ids=SITUATIONS
)
def test_a_situation_has_its_line_and_its_cure(
    given: Facts, name: str, status: str, found: str, cure: str
) -> None:
    lines = {line.name: line for line in examine(given)}
    line = lines[name]
    assert line.status == status
    assert found in line.found
    assert cure in line.cure
    assert would_work(list(lines.values())) == (FAIL not in {x.status for x in lines.values()})
    if status == FAIL:
        assert not would_work(list(lines.values()))


def rendered(lines: list[Line], works: bool) -> list[str]:
    console = Console(width=WIDTH, record=True, file=None, force_terminal=False, quiet=True)
    console.quiet = False
    with console.capture() as captured:
        command.show(lines, "Ubuntu 26.04 LTS", works, console)
    return captured.get().splitlines()


def test_it_fits_one_screen() -> None:
    screen = rendered(examine(GOOD), True)
    assert len(screen) <= HEIGHT
    assert all(len(line) <= WIDTH for line in screen)
    assert screen[-1].startswith("device 'xrt' works")


@pytest.mark.parametrize("given", [s[0] for s in SITUATIONS.values()], ids=SITUATIONS)
def test_every_situation_fits_the_width_and_cures_stand_below(given: Facts) -> None:
    lines = examine(given)
    screen = rendered(lines, would_work(lines))
    assert all(len(line) <= WIDTH for line in screen)
    assert sum("-> " in line for line in screen) >= sum(bool(line.cure) for line in lines)


# --- gathering ---------------------------------------------------------------------------------


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    """The files of a machine with an NPU."""
    for name, content in {
        "etc/os-release": 'ID=linuxmint\nID_LIKE="ubuntu debian"\nVERSION_ID="22"\n'
        'PRETTY_NAME="Linux Mint 22"\n',
        "proc/cpuinfo": "processor : 0\nmodel name\t: AMD Ryzen 7 7840U\n",
        "proc/cmdline": "quiet amd_iommu=off splash",
        "proc/self/status": "Name:\tx\nCapEff:\t0000000000000000\n",
        "sys/bus/pci/devices/0000:c5:00.1/vendor": "0x1022\n",
        "sys/bus/pci/devices/0000:c5:00.1/device": "0x1502\n",
        "sys/bus/pci/devices/0000:c5:00.1/fw_version": "1.5.2.380\n",
        "sys/bus/pci/devices/0000:00:00.0/vendor": "0x8086\n",
        "sys/module/amdxdna/version": "2.20.0\n",
        "dev/accel/accel0": "",
        "usr/lib/python3/dist-packages/pyxrt.cpython-312-x86_64-linux-gnu.so": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "sys/class/iommu/ivhd0").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLIR_AIE_INSTALL_DIR", "PEANO_INSTALL_DIR", "XILINX_XRT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(toolchain, "XRT_FOLDERS", ())
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))


def test_the_facts_of_files_are_read(laptop: Path, no_tools: None) -> None:
    found = gather(laptop, try_device=False)
    assert (found.distribution, found.distribution_name) == ("ubuntu", "Linux Mint 22")
    assert (found.cpu, found.npu) == ("AMD Ryzen 7 7840U", "Phoenix or Hawk Point")
    assert (found.driver, found.firmware) == ("2.20.0", "1.5.2.380")
    assert (found.iommu, found.iommu_off, found.locks_anyway) == (True, True, False)
    assert found.node is not None and found.node.usable
    assert [Path(p).name[:17] for p in found.pyxrt_elsewhere] == ["pyxrt.cpython-312"]
    assert found.tools_missing == ("mlir-aie", "Peano", "xclbinutil")
    assert {kernel.built for kernel in found.kernels} == {None}


@pytest.mark.parametrize(
    ("folder", "version"), [("amdxdna", "of the kernel"), ("amdxdna_legacy", "2.21.0")]
)
def test_either_driver_is_recognised(
    tmp_path: Path, no_tools: None, folder: str, version: str
) -> None:
    module = tmp_path / "root/sys/module" / folder
    module.mkdir(parents=True)
    if folder != "amdxdna":
        (module / "version").write_text(f"{version}\n")
    assert gather(tmp_path / "root", try_device=False).driver == version


def test_a_capability_is_recognised(laptop: Path, no_tools: None) -> None:
    (laptop / "proc/self/status").write_text("CapEff:\t0000000000004000\n")
    assert gather(laptop, try_device=False).locks_anyway
    (laptop / "proc/self/status").write_text("CapEff:\t000001ffffffbfff\n")
    assert not gather(laptop, try_device=False).locks_anyway


def test_a_node_that_is_not_for_us_is_recognised(
    laptop: Path, no_tools: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = laptop / "dev/accel/accel0"
    path.chmod(stat.S_IRUSR)
    monkeypatch.setattr(gathering.os, "access", lambda *_: False)
    found = gather(laptop, try_device=False).node
    assert found is not None
    assert (found.mode, found.usable) == ("0400", False)


def test_a_bare_machine_is_described_too(tmp_path: Path, no_tools: None) -> None:
    found = gather(tmp_path / "empty", try_device=False)
    assert (found.npu, found.driver, found.node, found.iommu) == (None, None, None, None)
    assert not would_work(examine(found))


def test_the_limit_is_this_process_own(
    tmp_path: Path, no_tools: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**23, 2**23))
    assert gather(tmp_path, try_device=False).memlock_bytes == 2**23
    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda _: (unlimited, unlimited))
    assert gather(tmp_path, try_device=False).memlock_bytes is None


def test_the_power_mode_is_asked_of_xrt_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "xrt-smi"
    program.write_text("#!/bin/sh\necho '  Power Mode             : Turbo '\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert gathering._power_mode() == "Turbo"
    program.write_text("#!/bin/sh\nexit 1\n")
    assert gathering._power_mode() is None


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("clang version 22.0.0 (https://github.com/Xilinx/llvm-aie 3e93) Target: x86", "22.0.0"),
        ("aiecc 1.4.1", "1.4.1"),
        ("sha256 0123456789abcdef", "sha256 0123456789abcdef"),
    ],
)
def test_versions_are_told_shortly(said: str, number: str) -> None:
    assert gathering._number(said) == number


def test_a_built_kernel_is_tested_and_timed(double: Npu, no_tools: None) -> None:
    publish(load_kernel("matmul_16x16"))
    found = gather()
    assert (found.model, found.target, found.contexts) == ("NPU Phoenix", "npu1", 6)
    assert found.xrt_version == "2.21.75"
    (tested,) = found.tested
    assert tested.problem is None and tested.latency_s is not None and tested.latency_s > 0
    lines = {line.name: line for line in examine(found)}
    assert lines["verified"].found == "matmul_16x16 int8: by the double"
    assert lines["self-test"].status == lines["XRT"].status == PASS
    assert lines["kernels"].status == WARN  # the others are not built


def test_an_overlay_that_computes_wrongly_fails(double: Npu, no_tools: None) -> None:
    publish(load_kernel("matmul_16x16"))
    double.faults[1] = "lost"
    lines = {line.name: line for line in examine(gather())}
    assert lines["self-test"].status == FAIL
    assert "computed a known product wrongly" in lines["self-test"].found


def test_a_device_that_cannot_be_opened_is_a_fact(double: Npu, no_tools: None) -> None:
    double.devices = 0
    found = gather()
    assert found.pyxrt is not None and found.model is None
    assert "No such device with index" in found.device_problem


def test_no_binding_is_a_fact(
    clean_xrt: None, no_tools: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyxrt", None)
    found = gather()
    assert found.pyxrt is None and "cannot import pyxrt" in found.pyxrt_problem


# --- the command -------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "code"), [(GOOD, 0), (facts(**NO_PYXRT), 1)])
def test_the_exit_code_says_whether_it_would_work(
    given: Facts, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "gather", lambda: given)
    result = CliRunner().invoke(cli.app, ["doctor"])
    assert result.exit_code == code
    assert all(len(line) <= WIDTH for line in result.output.splitlines())
    as_json = CliRunner().invoke(cli.app, ["doctor", "--json"])
    assert as_json.exit_code == code
    table = json.loads(as_json.output)
    assert table["works"] == (code == 0)
    assert [line["name"] for line in table["lines"]] == [line.name for line in examine(given)]
    assert table["facts"]["cpu"] == GOOD.cpu


def test_the_docstring_examples_hold() -> None:
    assert doctest.testmod(packages).failed == 0
