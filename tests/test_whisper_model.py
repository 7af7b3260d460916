"""The encoder against its definition in float64, and what it makes its device do."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
from comparing import assert_equal_bits
from fresh import run_fresh
from naive_encoder import cosine, naive_encoder, relative_error
from small_encoder import BOUNDS, FLOAT32, MEL, TENSORS, WANT

from npu_matmul.device import Device, NpuDevice, open_device
from npu_matmul.host.attention import usable
from npu_matmul.kernel import load_kernel
from npu_matmul.precision import QuantiseError
from npu_matmul.strategies import expected
from npu_matmul.tiler import TileGrid
from npu_matmul.whisper import dimensions, ledger, model, placement
from npu_matmul.whisper.ledger import record
from npu_matmul.whisper.mel import LogMel
from npu_matmul.whisper.model import AudioEncoder, compile_all


@pytest.fixture
def cpu() -> Device:
    return open_device("cpu")


# What it computes


@pytest.mark.parametrize("precision", list(BOUNDS))
@pytest.mark.parametrize("attention", ["host", "device"])
def test_features_are_those_of_the_definition(precision: str, attention: str) -> None:
    encoder = AudioEncoder(TENSORS, device="cpu", precision=precision, attention=attention)
    features = encoder(MEL)
    assert features.dtype == np.float32 and features.shape == (30, 128)
    assert relative_error(features, WANT) < BOUNDS[precision]
    assert cosine(features, WANT) > (0.9995 if precision != "int8" else 0.999)


@pytest.mark.parametrize("precision", list(BOUNDS))
def test_features_of_an_npu_are_those_of_the_definition(npu: NpuDevice, precision: str) -> None:
    features = AudioEncoder(TENSORS, device=npu, precision=precision, attention="host")(MEL)
    assert relative_error(features, WANT) < BOUNDS[precision]


def test_int8_on_an_npu_equals_the_cpu_bit_for_bit(npu: NpuDevice) -> None:
    want = AudioEncoder(TENSORS, device="cpu", precision="int8", attention="host")(MEL)
    got = AudioEncoder(TENSORS, device=npu, precision="int8", attention="host")(MEL)
    assert_equal_bits(got, want)


def test_each_tensor_matters(cpu: Device) -> None:
    """A tensor that is not used, or used in another's place, shows."""
    want = AudioEncoder(TENSORS, device=cpu, precision="bf16x3")(MEL)
    for name, tensor in TENSORS.items():
        changed = dict(TENSORS)
        changed[name] = tensor + np.random.default_rng(3).standard_normal(tensor.shape, np.float32)
        got = AudioEncoder(changed, device=cpu, precision="bf16x3")(MEL)
        assert relative_error(got, want) > 1e-3, name
        assert relative_error(got, naive_encoder(changed, MEL, 2)) < BOUNDS["bf16x3"], name


def test_a_batch_is_its_windows(cpu: Device) -> None:
    other = MEL[:, ::-1] * np.float32(0.5)
    encoder = AudioEncoder(TENSORS, device=cpu, precision="int8")
    batch = encoder(np.stack([MEL, other, MEL]))
    assert batch.shape == (3, 30, 128)
    # A row's scale is its own, so that int8 does not see the other windows.
    assert_equal_bits(batch[0], encoder(MEL))
    assert_equal_bits(batch[1], encoder(other))
    assert_equal_bits(batch[2], batch[0])


def test_an_empty_batch_has_empty_features(cpu: Device) -> None:
    features = AudioEncoder(TENSORS, device=cpu)(np.empty((0, 12, 60), np.float32))
    assert features.shape == (0, 30, 128) and features.dtype == np.float32


def test_the_input_is_not_changed_and_may_be_any_float_or_list(cpu: Device) -> None:
    encoder = AudioEncoder(TENSORS, device=cpu, precision="bf16")
    before = MEL.copy()
    want = encoder(MEL)
    assert_equal_bits(MEL, before)
    assert_equal_bits(encoder(MEL.astype(np.float64)), want)
    assert_equal_bits(encoder(np.asfortranarray(MEL)), want)
    assert_equal_bits(encoder(MEL.tolist()), want)


def test_weights_may_be_of_half_precision(cpu: Device) -> None:
    halves = {name: tensor.astype(np.float16) for name, tensor in TENSORS.items()}
    got = AudioEncoder(halves, device=cpu, precision="bf16x3")(MEL)
    assert relative_error(got, naive_encoder(halves, MEL, 2)) < BOUNDS["bf16x3"]


# What it makes the device do


def test_queries_keys_and_values_are_one_product_and_weights_stay(npu: NpuDevice) -> None:
    encoder = AudioEncoder(TENSORS, device=npu, precision="int8", attention="host")
    encoder(MEL)
    with record() as book:
        encoder(MEL)
    names = ["conv1", "conv2"]
    for layer in range(2):
        names += [f"blocks.{layer}.{part}" for part in ("attn.qkv", "attn.out", "mlp.0", "mlp.2")]
    assert list(book.reports) == names
    host = "host bf16" if usable() else FLOAT32
    assert book.products == {npu.name: len(names), host: 2 * 2 * 2}  # layers, heads, products
    shapes = {"conv1": (60, 36, 128), "conv2": (30, 384, 128), "attn.qkv": (30, 128, 384)}
    shapes |= {"attn.out": (30, 128, 128), "mlp.0": (30, 128, 512), "mlp.2": (30, 512, 128)}
    launches = bytes_in = 0
    for name, report in book.reports.items():
        shape = next(found for part, found in shapes.items() if name.endswith(part))
        assert report.kernel is not None
        grid = TileGrid(load_kernel(report.kernel, "int8"), *shape)
        counts = expected("batched", grid, resident=True)
        assert (report.launches, report.bytes_to_device) == (counts.launches, grid.a_bytes), name
        launches, bytes_in = launches + counts.launches, bytes_in + grid.a_bytes
    assert book.counts["launches"] == launches == len(names)
    assert book.counts["bytes_to_device"] == bytes_in


def test_every_product_has_a_name_of_its_own(cpu: Device) -> None:
    """Also where precisions part what is else one product of queries, keys and values."""
    for part, products in (("query", 2), ("key", 3), ("value", 2)):
        how = {"*": "bf16", f"*.attn.{part}": "bf16x3"}
        encoder = AudioEncoder(TENSORS, device=cpu, precision=how, attention="device")
        with record() as book:
            encoder(MEL)
        assert len(book.reports) == 2 + 2 * (products + len(["qk", "wv", "out", "mlp.0", "mlp.2"]))


def test_layers_are_told_as_they_are_done(cpu: Device) -> None:
    told: list[int] = []
    AudioEncoder(TENSORS, device=cpu)(MEL, on_layer=told.append)
    assert told == [1, 2]


def test_compiling_uses_the_device_as_each_kind_of_layer_will(cpu: Device) -> None:
    how = {"*": "int8", "conv1": "bf16x3", "*.attn.wv": "bf16", "blocks.0.mlp.2": "bf16"}
    encoder = AudioEncoder(TENSORS, device=cpu, precision=how, attention="device")
    with record() as book:
        compile_all(encoder, LogMel(12, device=cpu))
    assert book.products == {"cpu": 2 + 2 * (2 + 4 + 2)}  # features; layers' own, with one head
    alike = AudioEncoder(TENSORS, device=cpu)
    with record() as book:
        compile_all(alike, LogMel(12, device=cpu))
    assert book.products["cpu"] == 2 + 2 + 4


COMPILES = """
import sys
import numpy as np
from numba.core import event
from npu_matmul.whisper.dimensions import Dimensions, random_tensors
from npu_matmul.whisper.mel import LogMel
from npu_matmul.whisper.model import AudioEncoder, compile_all

sizes = Dimensions(12, n_audio_ctx=100, n_audio_state=128, n_audio_head=2, n_audio_layer=1)
device, precision, attention = sys.argv[1:]
options = {"device": device, "precision": precision, "attention": attention}
encoder = AudioEncoder(random_tensors(sizes), **options)
log_mel = LogMel(12, device=device)
compile_all(encoder, log_mel)


class Listener(event.Listener):
    def on_start(self, started):
        print(started)

    on_end = on_start


event.register("numba:compiler_lock", Listener())  # held to compile, and to load from the disk
encoder(log_mel(np.random.default_rng(0).standard_normal(200 * 160, np.float32)))
print("done")
"""


@pytest.mark.parametrize("device", ["cpu", "emulated"])
@pytest.mark.parametrize(("precision", "attention"), [("int8", "host"), ("bf16", "device")])
def test_nothing_is_compiled_once_all_is(device: str, precision: str, attention: str) -> None:
    """In a process of its own, where no other test has compiled anything."""
    assert run_fresh(COMPILES, device, precision, attention).stdout == "done\n"


def test_a_ledger_counts_what_its_own_block_did(cpu: Device) -> None:
    encoder = AudioEncoder(TENSORS, device=cpu, attention="device")
    with record() as outer:
        encoder(MEL)
        with record() as inner:
            encoder(MEL)
    encoder(MEL)
    assert inner.products == {"cpu": 18} and outer.products == {"cpu": 36}
    assert set(inner.seconds) >= {"conv1", "gelu", "softmax", "layer_norm", "residual", "bias"}
    assert all(seconds > 0 for seconds in inner.seconds.values())


def test_of_two_equal_ledgers_the_one_whose_block_ends_is_closed() -> None:
    with record() as outer:
        with record() as inner:
            assert inner == outer
        ledger.host_products("f32", 3)
    assert outer.products == {"f32": 3} and not inner.products


def test_a_stage_counts_each_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 3.0, 10.0, 15.0, 20.0, 21.0])
    monkeypatch.setattr(ledger.time, "perf_counter", lambda: next(times))
    with record() as book:
        for name in ("x", "x", "y"):
            with ledger.stage(name):
                pass
    assert book.seconds == {"x": 2 + 5, "y": 1}


# Unusable features


@pytest.mark.parametrize("shape", [(12, 59), (80, 60), (60, 12), (60,), (1, 1, 12, 60)])
def test_features_of_another_shape_are_refused_with_the_right_one(
    cpu: Device, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"this encoder takes \(12, 60\), .*pad_or_trim"):
        AudioEncoder(TENSORS, device=cpu)(np.zeros(shape, np.float32))


def test_after_an_error_the_next_call_works(npu: NpuDevice) -> None:
    encoder = AudioEncoder(TENSORS, device=npu, precision="int8")
    want = encoder(MEL)
    broken = MEL.copy()
    broken[3, 5] = np.nan
    with pytest.raises(QuantiseError, match="operand A holds nan"):
        encoder(broken)
    assert_equal_bits(encoder(MEL), want)


@pytest.mark.parametrize("module", [dimensions, ledger, model, placement])
def test_docstring_examples_run(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
