"""The doctor: each situation has its line and its cure, on one screen."""

from __future__ import annotations

import dataclasses
import doctest
import json

import pytest
from click.testing import CliRunner
from rich.console import Console

from npu_matmul import cli
from npu_matmul.build.cache import NEVER_BUILT
from npu_matmul.doctor import command, packages
from npu_matmul.doctor import facts as gathering
from npu_matmul.doctor.checks import FAIL, PASS, WARN, Line, examine, would_work
from npu_matmul.doctor.facts import Facts, KernelState, Node, SelfTested

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
    process_groups=("ada", "render"),
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


NEVER = KernelState("b bf16", None, NEVER_BUILT)


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
        facts(node=node(), user_groups=("ada",), process_groups=("ada",), **NO_DEVICE),
        *("device node", FAIL, "group render, mode 0660: not for ada", "usermod -aG render ada"),
    ),
    "in the group since": (
        facts(node=node(), process_groups=("ada",), **NO_DEVICE),
        *("device node", FAIL, "not for ada", "ada has joined render since: log out"),
    ),
    "a node of root alone": (
        facts(node=node(group="root", mode="0600"), **NO_DEVICE),
        *("device node", FAIL, "group root, mode 0600", "sudo tee /etc/udev/rules.d"),
    ),
    "a node of root and its group": (
        facts(node=node(group="root"), **NO_DEVICE),
        *("device node", FAIL, "group root, mode 0660", 'GROUP="render", MODE="0660"'),
    ),
    "a node whose group may not use it": (
        facts(node=node(mode="0600"), **NO_DEVICE),
        *("device node", FAIL, "mode 0600: not for ada", "sudo udevadm trigger"),
    ),
    "a node that is refused for another reason": (
        facts(node=node(), **NO_DEVICE),
        *("device node", FAIL, "mode 0660: not for ada", "sudo udevadm trigger"),
    ),
    "a prerequisite that cannot be missing": (
        facts(driver=None),
        *("driver", WARN, "amdxdna is not loaded", "sudo modprobe amdxdna"),
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
        facts(tested=(SelfTested("a int8", "refused: err=-2", failed="ContextFailed"),)),
        *("contexts", FAIL, "err=-2", "lsof /dev/accel/accel0"),
    ),
    "contexts that are not to blame": (
        facts(tested=(SelfTested("a int8", "its hardware context was rebuilt", failed="Aborted"),)),
        *("contexts", PASS, "gives out 6 at once", ""),
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
    "self-test right of one and wrong of another": (
        facts(tested=(*GOOD.tested, SelfTested("b bf16", "all values are zero"))),
        *("self-test", FAIL, "b bf16: all values are zero", "--force"),
    ),
    "self-test that hangs": (
        facts(tested=(SelfTested("a int8", "it had not ended", failed="LaunchTimedOut"),)),
        *("self-test", FAIL, "a int8: it had not ended", "modprobe -r amdxdna"),
    ),
    "a manifest that is wrong": (
        facts(kernels=(), tested=(), kernels_problem="/k/kernel.toml: not valid TOML"),
        *("kernels", FAIL, "/k/kernel.toml: not valid TOML", "correct that manifest"),
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


def test_of_kernels_that_were_never_built_nothing_more_is_said() -> None:
    lines = {line.name: line for line in examine(facts(kernels=(*GOOD.kernels, NEVER)))}
    assert lines["kernels"].found == "matmul_16x16 int8 built and fresh; not b bf16"


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
