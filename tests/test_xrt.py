"""The device "xrt" on a double of pyxrt: how it is opened, its overlays, and its memory."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from comparing import assert_equal_bits, product_int32, random_int8
from pyxrt_double import npu as double_npu
from pyxrt_double.binding import make_binding
from pyxrt_double.built import publish
from pyxrt_double.npu import Crash, Npu
from pyxrt_double.xclbin import xclbin_bytes
from xrt_products import KERNEL, check, opened, ready, tiles_of

from npu_matmul import device as devices
from npu_matmul import last_call, npu_matmul, open_device, pack_b
from npu_matmul.build.identity import overlay_inputs, overlay_name
from npu_matmul.device import (
    BufferSizeError,
    Device,
    DeviceError,
    DeviceUnavailable,
    auto_choice,
    base,
)
from npu_matmul.device.xrt import XrtDevice
from npu_matmul.device.xrt_errors import OverlayMismatch
from npu_matmul.device.xrt_memory import XrtBuffer
from npu_matmul.instructions import decode
from npu_matmul.kernel import KernelNotBuilt, NoKernel, UnknownKernel, load_kernel
from npu_matmul.schedule import cover
from npu_matmul.streams import launch_stream, written_arguments
from npu_matmul.tiler import TileGrid

# --- opening -----------------------------------------------------------------------------------


def test_without_the_binding_it_says_which_python_lacks_it(
    clean_xrt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyxrt", None)
    with pytest.raises(DeviceUnavailable) as caught:
        open_device("xrt")
    assert sys.executable in str(caught.value)
    assert "npu-matmul doctor" in str(caught.value)


def test_another_module_of_that_name_is_recognised(
    double: Npu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyxrt", make_binding(double, without=("hw_context",)))
    with pytest.raises(DeviceUnavailable, match="is not XRT's: it has no hw_context"):
        open_device("xrt")


@pytest.mark.parametrize(
    ("model", "target"),
    [
        *(("NPU Phoenix", "npu1"), ("RyzenAI-npu1", "npu1")),
        *(("NPU Strix Halo", "npu2"), ("RyzenAI-npu4", "npu2"), ("NPU Krackan 1", "npu2")),
    ],
)
def test_the_model_says_which_target_it_is(double: Npu, model: str, target: str) -> None:
    double.model = model
    assert opened().target.name == target


@pytest.mark.parametrize("model", ["Alveo U250", "RyzenAI-npu3", "RyzenAI-npu11-pf"])
def test_an_unknown_model_is_not_guessed(
    double: Npu, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    double.model = model
    with pytest.raises(DeviceUnavailable, match=rf"only {model}; .*\$NPU_MATMUL_TARGET=npu1"):
        open_device("xrt")
    monkeypatch.setenv("NPU_MATMUL_TARGET", "npu1")
    assert opened().target.name == "npu1"
    monkeypatch.setenv("NPU_MATMUL_TARGET", "npu9")
    with pytest.raises(DeviceUnavailable, match="'npu9'; known: npu1, npu2"):
        XrtDevice()


def test_a_kernel_for_another_npu_is_refused(double: Npu, everything_built: None) -> None:
    double.model = "NPU Strix"
    with pytest.raises(KernelNotBuilt, match="is for npu1; this NPU, NPU Strix, is npu2"):
        opened().load(KERNEL)


@pytest.fixture
def nothing_open(monkeypatch: pytest.MonkeyPatch) -> dict[str, Device]:
    """A fresh process on a machine with a device node."""
    monkeypatch.setattr(devices, "npu_nodes", lambda: [Path("accel0")])
    nothing: dict[str, Device] = {}
    for module in (devices, base):
        monkeypatch.setattr(module, "OPEN", nothing)
    monkeypatch.delenv("NPU_MATMUL_DEVICE", raising=False)
    return nothing


def test_auto_takes_the_npu_where_one_can_be_opened(
    double: Npu,
    everything_built: None,
    nothing_open: dict[str, Device],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert open_device() is open_device("xrt")
    assert not caplog.messages  # of warnings
    nothing_open.clear()
    double.open_fails = " No such device with index '0'"
    assert open_device().name == "cpu"
    (message,) = caplog.messages
    assert "the NPU here cannot be used" in message and "its plugin" in message


def test_auto_takes_the_cpu_where_no_kernel_is_for_the_npu(
    double: Npu, nothing_open: dict[str, Device], caplog: pytest.LogCaptureFixture
) -> None:
    double.model = "NPU Strix Halo"
    a = random_int8(1, 20, 20)
    assert_equal_bits(npu_matmul(a, a, dtype=np.int32), product_int32(a, a))
    assert last_call().device == "cpu"
    assert pack_b(a).device.name == auto_choice() == "cpu"
    (message,) = caplog.messages
    assert "the NPU here is npu2, which no kernel that was found is for" in message


@pytest.mark.parametrize("kernel", [None, "matmul_16x16"])
def test_an_npu_that_no_kernel_is_for_is_replaced_by_the_cpu_where_that_was_asked_for(
    double: Npu, kernel: str | None
) -> None:
    double.model = "NPU Strix Halo"
    a = random_int8(1, 20, 20)
    with pytest.raises(NoKernel, match="npu2"):
        npu_matmul(a, a, device="xrt", kernel=kernel)
    got = npu_matmul(a, a, device="xrt", kernel=kernel, dtype=np.int32, on_error="cpu")
    assert_equal_bits(got, product_int32(a, a))
    assert last_call().device == "cpu"
    assert "int8 operands on npu2" in last_call().reason
    with pytest.raises(NoKernel, match=r"on npu2 was found; .* for npu1: .*device='cpu'"):
        opened().alloc(64)
    with pytest.raises(UnknownKernel, match="'nothing'"):  # no kernel on any device
        npu_matmul(a, a, device="xrt", kernel="nothing", on_error="cpu")


# --- overlays ----------------------------------------------------------------------------------


def test_a_kernel_that_is_not_built_names_the_command(double: Npu) -> None:
    a = random_int8(1, 4, 4)
    with pytest.raises(KernelNotBuilt, match=r"never been built.*npu-matmul build matmul_"):
        npu_matmul(a, a, device="xrt")
    with pytest.raises(KernelNotBuilt, match="no kernel is built for npu1; run: npu-matmul build"):
        opened().alloc(64)
    publish(KERNEL)
    check()
    assert opened().alloc(64).nbytes == 64


def test_among_several_kernels_one_that_is_built_is_taken(double: Npu) -> None:
    publish(load_kernel("matmul_64x512", "int8"))
    a = random_int8(1, 16, 16)  # matmul_16x16 would suit it best
    assert_equal_bits(npu_matmul(a, a, device="xrt", dtype=np.int32), product_int32(a, a))
    assert last_call().kernel == "matmul_64x512"
    assert pack_b(a, device="xrt").kernel == load_kernel("matmul_64x512", "int8")


def test_a_source_that_changes_under_way_is_noticed(
    double: Npu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a file that it includes; and what was built since is loaded, and tested."""
    folder = tmp_path / "kernels" / "other"
    shutil.copytree(KERNEL.source.parent, folder)
    header = folder / "header.h"
    header.write_text("// one\n")
    source = folder / KERNEL.source.name
    source.write_text('#include "header.h"\n' + source.read_text())
    monkeypatch.setenv("NPU_MATMUL_KERNELS", str(folder.parent))
    kernel, (a, b) = load_kernel("other"), (random_int8(1, 20, 30), random_int8(2, 30, 20))
    publish(kernel)
    packed = pack_b(b, device="xrt", kernel="other")

    def check() -> None:
        for right in (b, packed):
            got = npu_matmul(a, right, device="xrt", kernel="other", dtype=np.int32)
            assert_equal_bits(got, product_int32(a, b))

    check()
    launches = double.launches
    os.utime(source)  # and nothing else
    check()
    assert double.launches == launches + 2
    for changed in (header, source):
        changed.write_text(changed.read_text() + "// more\n")
        os.utime(changed, (1, 1))  # whatever the clock's resolution
        for _ in range(2):
            with pytest.raises(KernelNotBuilt, match=f"changed: .*{changed.name}; run: npu-matmul"):
                check()
        launches = double.launches
        publish(kernel)
        check()
        assert double.launches > launches + 2
    publish(load_kernel("matmul_64x512", "int8"))
    npu_matmul(a, b, device="xrt")
    assert last_call().kernel == "other"
    source.write_text(source.read_text() + "// more\n")
    with pytest.raises(KernelNotBuilt, match="changed: "):
        npu_matmul(a, b, device="xrt")
    npu_matmul(a, b, device="xrt")
    assert last_call().kernel == "matmul_64x512"
    publish(kernel)
    npu_matmul(a, b, device="xrt")
    assert last_call().kernel == "other"
    source.unlink()
    with pytest.raises(KernelNotBuilt, match=f"{source.name} is missing"):
        check()
    npu_matmul(a, b, device="xrt")
    assert last_call().kernel == "matmul_64x512"


def test_an_overlay_of_other_tiles_cannot_be_loaded(double: Npu) -> None:
    """Neither by its record nor by its name: the file is that of another kernel."""
    other = tiles_of(32)
    name = overlay_name(overlay_inputs(other, "npu1"))
    publish(KERNEL, content=xclbin_bytes(other, "npu1", name))
    with pytest.raises(OverlayMismatch, match=f"holds {name}, not {name[:7]}.*--force"):
        opened().load(KERNEL)


def test_an_overlay_that_changed_on_disk_is_not_loaded(double: Npu) -> None:
    built = publish(KERNEL)
    content = bytearray(built.xclbin.read_bytes())
    content[-3] ^= 1
    built.xclbin.write_bytes(content)
    with pytest.raises(KernelNotBuilt, match=r"overlay\.xclbin is not what the build made"):
        opened().load(KERNEL)


def test_an_overlay_that_xrt_cannot_read_is_named(double: Npu) -> None:
    publish(KERNEL, content=b"not an xclbin")
    with pytest.raises(OverlayMismatch, match=r"Invalid xclbin.*build it again"):
        opened().load(KERNEL)


def test_an_overlay_with_fewer_arguments_than_a_launch_needs_is_refused(double: Npu) -> None:
    name = overlay_name(overlay_inputs(KERNEL, "npu1"))
    publish(KERNEL, content=xclbin_bytes(KERNEL, "npu1", name, arguments=5))
    with pytest.raises(DeviceError, match="3 data buffers given; the overlay has room for 2"):
        opened().load(KERNEL)


# --- memory ------------------------------------------------------------------------------------


def test_an_array_of_a_buffer_keeps_its_memory(double: Npu, everything_built: None) -> None:
    buffer = opened().alloc(64)
    buffer.host[:] = 7
    host = buffer.host[8:16]
    del buffer
    gc.collect()
    assert host.tolist() == [7] * 8
    gone = weakref.ref(host.base)
    del host
    assert gone() is None


def test_memory_goes_back_when_the_last_view_does(double: Npu, everything_built: None) -> None:
    before = double.locked_bytes
    buffer = opened().alloc(4096)
    part = buffer.view(64, 64)
    assert double.locked_bytes == before + 4096
    del buffer
    assert double.locked_bytes == before + 4096
    del part
    assert double.locked_bytes == before


def test_what_the_npu_writes_begins_at_a_cache_line(double: Npu, everything_built: None) -> None:
    device = opened()
    loaded = device.load(KERNEL)
    shape = cover(TileGrid(KERNEL, 16, 16, 16))[0].shape
    stream = launch_stream(KERNEL, shape)
    a, b, c = (device.alloc(n) for n in (256, 256, 2048))
    for buffer in (a, b):
        buffer.host[:] = 1
        buffer.sync_to_device()
    with pytest.raises(BufferSizeError, match=r"argument 2 is written.* begins at byte 32 "):
        loaded.launch(stream, [a, b, c.view(32, 1024)]).wait(1.0)
    loaded.launch(stream, [a, b, c.view(64, 1024)]).wait(1.0)
    loaded.launch(stream, [a, a.view(0, 256), c]).wait(1.0)
    assert written_arguments(decode(stream)) == {2}


def test_what_the_host_wrote_last_would_come_over_the_result(
    double: Npu, everything_built: None
) -> None:
    """The double refuses what only hardware shows: lines that wait in the CPU's cache."""
    loaded, stream, (a, c) = ready(opened())
    c.host[:] = 9
    c.sync_to_device()
    loaded.launch(stream, [a, a, c]).wait(1.0)
    c.host[-1] = 8
    with pytest.raises(Crash, match="writes lines back over what the NPU has written"):
        c.sync_from_device()
    c.host[-1] = 9
    c.sync_from_device()
    assert (c.host.view(np.int32) == 16).all()
    c.host[3] = 9
    with pytest.raises(Crash, match="writes lines back"):
        loaded.launch(stream, [a, a, c]).wait(1.0)
    c.sync_to_device()
    double.crashes.clear()


def test_a_view_is_a_part_of_its_buffer_object(double: Npu, everything_built: None) -> None:
    part = opened().alloc(256).view(64, 128).view(64, 32)
    assert isinstance(part, XrtBuffer)
    assert (part.offset_bytes, part.argument().size()) == (128, 32)


def test_kept_streams_make_room_when_the_heap_is_full(
    double: Npu, everything_built: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened().load(KERNEL)
    monkeypatch.setattr(double_npu, "HEAP_BYTES", 3 * double_npu.HEAP_GRANULE_BYTES)
    for n in range(1, 8):
        a = random_int8(n, 16 * n, 16)
        got = npu_matmul(a, a.T, device="xrt", kernel=KERNEL, dtype=np.int32)
        assert_equal_bits(got, product_int32(a, a.T))
