"""What the doctor gathers: from files, of XRT, by trying kernels; it never raises."""

from __future__ import annotations

import os
import resource
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from pyxrt_double.built import publish
from pyxrt_double.npu import Npu

from npu_matmul import cli, npu_matmul
from npu_matmul.build import cache, toolchain
from npu_matmul.doctor import facts as gathering
from npu_matmul.doctor.checks import FAIL, PASS, WARN, examine, would_work
from npu_matmul.doctor.facts import gather
from npu_matmul.kernel import KernelNotBuilt, load_kernel


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


def test_a_driver_that_is_part_of_linux_is_recognised(tmp_path: Path, no_tools: None) -> None:
    (tmp_path / "root/sys/bus/pci/drivers/amdxdna").mkdir(parents=True)
    assert gather(tmp_path / "root", try_device=False).driver == "of the kernel"


@pytest.mark.parametrize(
    "folder",
    [
        "opt/xilinx/xrt/python",
        "usr/lib/python3/dist-packages",
        "usr/lib/python3.14/site-packages",
        "usr/lib64/python3.14/site-packages",
    ],
)
def test_bindings_are_found_where_distributions_put_them(
    tmp_path: Path, no_tools: None, folder: str
) -> None:
    path = tmp_path / "root" / folder / "pyxrt.cpython-314-x86_64-linux-gnu.so"
    path.parent.mkdir(parents=True)
    path.touch()
    assert gather(tmp_path / "root", try_device=False).pyxrt_elsewhere == (str(path),)


def test_a_manifest_that_is_wrong_is_a_fact(
    tmp_path: Path, no_tools: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kernels/mine").mkdir(parents=True)
    (tmp_path / "kernels/mine/kernel.toml").write_text("targets = [")
    monkeypatch.setenv("NPU_MATMUL_KERNELS", str(tmp_path / "kernels"))
    found = gather(tmp_path / "root", try_device=False)
    assert "kernel.toml: not valid TOML" in found.kernels_problem


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
    monkeypatch.setattr(gathering.os, "access", lambda path, mode: mode == os.R_OK)
    found = gather(laptop, try_device=False).node
    assert found is not None
    assert (found.mode, found.usable) == ("0400", False)


@pytest.mark.parametrize(
    ("given", "off"), [("iommu=off", True), ("intel_iommu=off", False), ("amd_iommu=on", False)]
)
def test_what_turns_the_iommu_off_is_recognised(
    laptop: Path, no_tools: None, given: str, off: bool
) -> None:
    (laptop / "proc/cmdline").write_text(f"quiet {given} splash")
    assert gather(laptop, try_device=False).iommu_off == off


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


def test_the_verdict_is_that_of_the_device(
    double: Npu, no_tools: None, laptop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the doctor says that it works, and whether a product is computed."""
    monkeypatch.setattr(gathering, "gather", lambda: gather(laptop))
    one = np.ones((1, 1), np.int8)
    for built in (False, True):
        if built:
            publish(load_kernel("matmul_16x16"))
            assert npu_matmul(one, one, device="xrt")[0, 0] == 1
        else:
            with pytest.raises(KernelNotBuilt):
                npu_matmul(one, one, device="xrt")
        assert CliRunner().invoke(cli.app, ["doctor"]).exit_code == (0 if built else 1)


@pytest.mark.parametrize("fault", ["timeout", "abort"])
def test_what_ends_a_launch_is_told_apart_from_contexts(
    double: Npu, no_tools: None, fault: str
) -> None:
    publish(load_kernel("matmul_16x16"))
    double.faults |= dict.fromkeys(range(1, 40), fault)
    lines = {line.name: line for line in examine(gather())}
    assert lines["contexts"].status == PASS
    assert lines["self-test"].status == FAIL
    assert "modprobe -r amdxdna" in lines["self-test"].cure


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
