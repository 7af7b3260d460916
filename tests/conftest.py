"""Fixtures that several test files share: every kernel that can run, every NPU device."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comparing import ON_A_REAL_NPU
from pyxrt_double.binding import make_binding
from pyxrt_double.built import publish
from pyxrt_double.npu import Npu

from npu_matmul.bench import timing
from npu_matmul.build import cache
from npu_matmul.device import (
    DeviceUnavailable,
    NpuDevice,
    base,
    open_device,
    xrt,
    xrt_contexts,
    xrt_kernel,
    xrt_npu,
    xrt_runs,
)
from npu_matmul.device.xrt_errors import DeviceDeclined
from npu_matmul.kernel import (
    Kernel,
    KernelNotBuilt,
    kernel_folders,
    kernels_named,
    load_variants,
)

# "double" is the device "xrt" on a double of its binding; the last is a real NPU.
NPU_DEVICES = ["emulated", "double", ON_A_REAL_NPU]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--xrt-source",
        type=Path,
        metavar="FOLDER",
        help="a checkout of XRT: its binding is compiled and stands before the double of pyxrt",
    )


@pytest.fixture(scope="session", autouse=True)
def binding_of_xrt(request: pytest.FixtureRequest) -> None:
    """XRT's own binding before the double, where a checkout of XRT was named."""
    source = request.config.getoption("--xrt-source")
    if source is not None:
        from pyxrt_genuine import build

        folder = request.getfixturevalue("tmp_path_factory").mktemp("pyxrt")
        build.stand_before_the_double(build.build(source, folder))


def _runnable_kernels() -> list[Any]:
    return [
        pytest.param(kernel, id=f"{name}-{variant}")
        for name in kernel_folders()
        for variant, kernel in load_variants(name).items()
        if kernel.source.is_file()
    ]


def _is_int8(kernel: Kernel) -> bool:
    return (kernel.types.a, kernel.types.b, kernel.types.c) == ("int8", "int8", "int32")


@pytest.fixture(params=_runnable_kernels())
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Each variant of each manifest whose core function exists."""
    found: Kernel = request.param
    return found


@pytest.fixture(params=[param for param in _runnable_kernels() if _is_int8(param.values[0])])
def int8_kernel(request: pytest.FixtureRequest) -> Kernel:
    """Those of them that multiply int8."""
    found: Kernel = request.param
    return found


@pytest.fixture
def clean_xrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The device "xrt" as in a fresh process, with an empty cache of overlays."""
    flights = xrt_runs.Flights()
    for module in (xrt, xrt_kernel, xrt_runs, xrt_contexts):
        monkeypatch.setattr(module, "IN_FLIGHT", flights)
    monkeypatch.setattr(xrt_npu, "DECLINED", [])
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    yield
    for name, device in list(base.OPEN.items()):
        if name == "xrt" or isinstance(device, xrt.XrtDevice):
            device.close()


@pytest.fixture
def double(clean_xrt: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Npu]:
    """The double of pyxrt and the machine behind it; nothing may end a real process."""
    machine = Npu()
    monkeypatch.setitem(sys.modules, "pyxrt", make_binding(machine))
    yield machine
    assert machine.crashes == []


class Clock:
    """Time that passes only in sleep, so that no test depends on how fast this machine is; a little
    passes even in the shortest."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += max(seconds, 1e-6)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of whoever waits for launches of the device "xrt"."""
    made = Clock()
    monkeypatch.setattr(xrt_runs, "time", made)
    return made


@pytest.fixture
def everything_built(clean_xrt: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlays are there when they are asked for, whatever the kernel."""

    def find(kernel: Kernel, target: str) -> cache.Built:
        try:
            return cache.find_built(kernel, target)
        except KernelNotBuilt:
            return publish(kernel, target)

    monkeypatch.setattr(xrt_kernel, "find_built", find)
    monkeypatch.setattr(xrt, "is_built", lambda *_: True)


@pytest.fixture(params=NPU_DEVICES)
def npu(request: pytest.FixtureRequest) -> Iterator[NpuDevice]:
    """Each NPU device, opened for this test alone."""
    if request.param == "double":
        request.getfixturevalue("double")
        request.getfixturevalue("everything_built")
        patch = request.getfixturevalue("monkeypatch")
        patch.setenv(xrt.SELF_TEST_VARIABLE, "0")  # test_self_test.py has tests of it
    name = "emulated" if request.param == "emulated" else "xrt"
    open_device(name).close()
    device = open_device(name)
    assert isinstance(device, NpuDevice)
    yield device
    device.close()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests on a real NPU are skipped where there is none, with the device's own reason."""
    if item.get_closest_marker("npu"):
        try:
            open_device("xrt")
        except DeviceDeclined:  # there is one, and an earlier test has shown that it fails
            raise
        except DeviceUnavailable as error:
            pytest.skip(f"no NPU can be used here: {error}")


@pytest.fixture(autouse=True)
def built_for_a_real_npu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that only a test has is not built for a real NPU; one of ours must be."""
    if request.node.get_closest_marker("npu") is None:
        return

    def find(kernel: Kernel, target: str) -> cache.Built:
        try:
            return cache.find_built(kernel, target)
        except KernelNotBuilt as error:
            if kernel in kernels_named():
                raise
            pytest.skip(f"only a test has this kernel: {error}")

    monkeypatch.setattr(xrt_kernel, "find_built", find)


@pytest.fixture(scope="module")
def quick() -> Iterator[pytest.MonkeyPatch]:
    """Turns of half a millisecond, for tests of benchmarks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "TURN_S", 0.0005)
        patch.setattr(timing, "MAX_ROUNDS", 6)
        yield patch
