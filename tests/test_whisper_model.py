"""The encoder against its definition in float64, and what it makes its device do."""

from __future__ import annotations

import doctest
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from comparing import assert_equal_bits
from naive_encoder import cosine, naive_encoder, relative_error
from numpy.typing import NDArray

from npu_matmul.choose import choose
from npu_matmul.device import Device, NpuDevice, open_device
from npu_matmul.host.attention import usable
from npu_matmul.host.paths import PATH_VARIABLE, PORTABLE
from npu_matmul.kernel import UnknownKernel, load_kernel
from npu_matmul.performance.host import HostRates
from npu_matmul.performance.product import predict
from npu_matmul.precision import PRECISIONS, QuantiseError
from npu_matmul.strategies import expected
from npu_matmul.tiler import TileGrid
from npu_matmul.whisper import dimensions, ledger, model, placement
from npu_matmul.whisper.dimensions import (
    SIZES,
    CheckpointError,
    Dimensions,
    random_tensors,
    read_dimensions,
    sinusoids,
)
from npu_matmul.whisper.ledger import record
from npu_matmul.whisper.mel import LogMel
from npu_matmul.whisper.model import AudioEncoder, compile_all, product_names
from npu_matmul.whisper.placement import attention_rule, precisions

SMALL = Dimensions(n_mels=12, n_audio_ctx=30, n_audio_state=128, n_audio_head=2, n_audio_layer=2)
TENSORS = random_tensors(SMALL, seed=7)
MEL = np.random.default_rng(1).standard_normal((12, 60), np.float32)
WANT = naive_encoder(TENSORS, MEL, heads=2)
FLOAT32 = "host float32"  # where attention is computed without bf16 instructions

# Relative errors: three bf16 terms leave about 2**-16 of a product, one leaves 2**-9, int8 2**-7.
BOUNDS = {"bf16x3": 5e-5, "bf16": 1e-2, "int8": 4e-2}


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


def test_attention_runs_where_it_is_told(npu: NpuDevice) -> None:
    for attention, on_device in (("host", 0), ("device", 8)):
        encoder = AudioEncoder(TENSORS, device=npu, precision="bf16", attention=attention)
        with record() as book:
            features = encoder(MEL)
        assert sum(book.products.values()) == 18
        assert book.products[npu.name] == 10 + on_device
        assert relative_error(features, WANT) < BOUNDS["bf16"]


def test_the_rule_decides_where_nothing_is_told(cpu: Device) -> None:
    asked = []

    def rule(device: Device, tokens: int, head_width: int, precision: str) -> str:
        asked.append((device.name, tokens, head_width, precision))
        return "device"

    encoder = AudioEncoder(TENSORS, device=cpu, precision="int8", rule=rule)
    assert asked == [("cpu", 30, 64, "bf16")] and encoder.places == ["device"] * 2
    told = AudioEncoder(TENSORS, device=cpu, attention="host", rule=rule)
    assert told.places == ["host"] * 2 and "attention on host>" in repr(told)
    assert len(asked) == 1
    mixed = {"*": "bf16", "blocks.1.attn.wv": "bf16x3"}
    AudioEncoder(TENSORS, device=cpu, precision=mixed, rule=rule)
    assert [precision for *_, precision in asked[1:]] == ["bf16", "bf16x3"]
    with pytest.raises(ValueError, match="attention is 'gpu'; allowed are auto, host, device"):
        AudioEncoder(TENSORS, device=cpu, attention="gpu")
    with pytest.raises(ValueError, match="attention is 'auto'"):
        AudioEncoder(TENSORS, device=cpu, rule=lambda *_: "auto")


@pytest.mark.parametrize("part", ["qk", "wv"])
def test_int8_inside_attention_is_computed_on_the_device_of_its_layer(
    cpu: Device, part: str
) -> None:
    choice = {"*": "bf16", f"blocks.1.attn.{part}": "int8"}
    encoder = AudioEncoder(TENSORS, device=cpu, precision=choice)
    with record() as book:
        encoder(MEL)
    inside = {name: report.precision for name, report in book.reports.items() if "attn" in name}
    assert inside[f"blocks.1.attn.{part}"] == encoder.precisions[f"blocks.1.attn.{part}"] == "int8"
    assert encoder.places == ["host", "device"] and "blocks.0.attn.qk" not in inside
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.qk or .*wv is int8, which the host"):
        AudioEncoder(TENSORS, device=cpu, precision=choice, attention="host")


def test_attention_without_int8_is_the_hosts_where_that_is_the_device(cpu: Device) -> None:
    assert AudioEncoder(TENSORS, device=cpu, precision="int8").places == ["host"] * 2
    assert attention_rule(cpu, 1500, 64, "bf16x3") == "host"


@pytest.mark.parametrize("precision", list(BOUNDS))
def test_attention_pays_on_an_npu_where_the_host_takes_longer_than_is_modelled(
    npu: NpuDevice, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the model's own sums, by hand, of both products: with K and N of 64
    how, total_s = PRECISIONS[precision], 0.0
    rates = HostRates(1e9, 2e9, 3e9, copy_a_s=1e-6, copy_b_s=1e-6, add_s=1e-6)
    monkeypatch.setattr(placement, "measure_host", lambda kernel, given: rates)
    for shape in ((1500, 64, 1500), (1500, 1500, 64)):
        choice = choose(npu, how.types, (*shape, how.terms))
        grid = TileGrid(choice.kernel, *shape, how.terms)
        predicted = predict(grid, choice.strategy)
        total_s += predicted.device_s + (grid.a_bytes + grid.b_bytes) / 1e9 + grid.c_bytes / 2e9
    for host_s, place in ((1.49 * total_s, "host"), (1.51 * total_s, "device")):
        monkeypatch.setattr(placement, "measured_head_s", lambda *_, host_s=host_s: host_s)
        assert attention_rule(npu, 1500, 64, precision) == place


def test_attention_without_a_kernel_is_the_hosts(
    npu: NpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: Any) -> Any:
        raise UnknownKernel("no kernel for bfloat16 operands")

    monkeypatch.setattr(placement, "choose", nothing)
    assert attention_rule(npu, 1500, 64, "bf16") == "host"


@pytest.mark.parametrize("precision", list(BOUNDS))
def test_the_host_is_measured_once(precision: str) -> None:
    first = placement.measured_head_s(60, 64, precision)
    assert 0 < first == placement.measured_head_s(60, 64, precision)


def test_the_host_attends_in_bf16_where_it_can_and_is_asked_to(
    cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def places(precision: Any) -> dict[str, int]:
        encoder = AudioEncoder(TENSORS, device=cpu, precision=precision, attention="host")
        with record() as book:
            encoder(np.stack([MEL, MEL]))
        return {place: count for place, count in book.products.items() if place != "cpu"}

    in_bf16 = {"host bf16": 2 * 2 * 2 * 2} if usable() else {FLOAT32: 2 * 2 * 2 * 2}
    assert places("bf16") == places("int8") == in_bf16  # layers, windows, heads, products
    assert places("bf16x3") == {FLOAT32: 16}
    # a pair of products is in bf16 only if both are
    assert places({"*": "bf16", "*.attn.wv": "bf16x3"}) == {FLOAT32: 16}
    monkeypatch.setenv(PATH_VARIABLE, PORTABLE)
    assert places("bf16") == {FLOAT32: 16}


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
    command = [sys.executable, "-c", COMPILES, device, precision, attention]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "done\n"


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


# Precisions


def test_precisions_are_selectable_per_projection(cpu: Device) -> None:
    choice = {"*": "int8", "conv?": "bf16x3", "blocks.0.*": "bf16", "*.mlp.2": "bf16x3"}
    encoder = AudioEncoder(TENSORS, device=cpu, precision=choice, attention="device")
    with record() as book:
        encoder(MEL)
    used = {name: report.precision for name, report in book.reports.items()}
    assert used == {
        "conv1": "bf16x3",
        "conv2": "bf16x3",
        **{f"blocks.0.{part}": "bf16" for part in ("attn.qkv", "attn.qk", "attn.wv", "attn.out")},
        "blocks.0.mlp.0": "bf16",
        "blocks.0.mlp.2": "bf16x3",
        "blocks.1.attn.qkv": "int8",
        "blocks.1.attn.qk": "bf16",
        "blocks.1.attn.wv": "bf16",
        "blocks.1.attn.out": "int8",
        "blocks.1.mlp.0": "int8",
        "blocks.1.mlp.2": "bf16x3",
    }


def test_a_projection_of_another_precision_is_a_product_of_its_own(cpu: Device) -> None:
    for part, products in (("query", ["query", "kv"]), ("key", ["query", "key", "value"])):
        choice = {"*": "bf16", f"*.{part}": "bf16x3"}
        encoder = AudioEncoder(TENSORS, device=cpu, precision=choice, attention="host")
        with record() as book:
            features = encoder(MEL)
        assert [name for name in book.reports if name.startswith("blocks.0.attn.")] == [
            f"blocks.0.attn.{name}" for name in (*products, "out")
        ]
        assert relative_error(features, WANT) < BOUNDS["bf16"]


def test_products_inside_attention_are_int8_only_when_named() -> None:
    names = product_names(SMALL)
    assert precisions("int8", names)["blocks.1.attn.qk"] == "bf16"
    assert precisions("bf16x3", names)["blocks.1.attn.wv"] == "bf16x3"
    assert precisions({"*": "bf16", "*.attn.qk": "int8"}, names)["blocks.1.attn.qk"] == "int8"
    assert precisions({}, names) == dict.fromkeys(names, "bf16")


def test_a_pattern_that_matches_nothing_is_refused(cpu: Device) -> None:
    with pytest.raises(ValueError, match=r"'blocks\.2\.\*' matches no product; .*conv1, conv2, bl"):
        AudioEncoder(TENSORS, device=cpu, precision={"blocks.2.*": "int8"})
    with pytest.raises(ValueError, match="there is no precision 'fp4'; known are: bf16, bf16x3"):
        AudioEncoder(TENSORS, device=cpu, precision={"conv1": "fp4"})


# Sizes


@pytest.mark.parametrize("size", list(SIZES))
def test_every_size_is_read_off_the_shapes(size: str) -> None:
    dims = SIZES[size]
    assert read_dimensions(dims.shapes(), size) == dims
    assert dims.n_audio_state == 64 * dims.n_audio_head and dims.frames == 3000


def test_parameters_of_each_size_are_as_many_as_published() -> None:
    """What openai-whisper's ``AudioEncoder(...)`` of these sizes counts; positions are a buffer
    there."""
    count = {
        size: sum(int(np.prod(s)) for n, s in dims.shapes().items() if n != "positional_embedding")
        for size, dims in SIZES.items()
    }
    assert count["tiny"] == 7_632_384
    assert count["base"] == 19_822_592
    assert count["large-v2"] == 634_864_640


def test_sinusoids_are_sines_then_cosines() -> None:
    positions = sinusoids(1500, 384)
    assert positions.shape == (1500, 384) and positions.dtype == np.float32
    for t, i in ((0, 0), (1, 0), (7, 100), (1499, 191)):
        angle = t / 10_000 ** (i / 191)
        assert positions[t, i] == pytest.approx(np.sin(angle), abs=1e-6)
        assert positions[t, 192 + i] == pytest.approx(np.cos(angle), abs=1e-6)


@pytest.mark.parametrize("channels", [2, 5])
def test_sinusoids_need_an_even_number_of_channels(channels: int) -> None:
    with pytest.raises(ValueError, match=f"channels is {channels}; an even number from 4 on"):
        sinusoids(10, channels)


def without(name: str) -> dict[str, NDArray[Any]]:
    return {other: tensor for other, tensor in TENSORS.items() if other != name}


@pytest.mark.parametrize("name", list(TENSORS))
def test_a_missing_tensor_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"here: tensor '{name}' is missing"):
        AudioEncoder(without(name), source="here")


@pytest.mark.parametrize("name", ["conv2.weight", "blocks.1.attn.key.weight", "ln_post.bias"])
def test_a_tensor_of_a_wrong_shape_is_named_with_the_right_one(name: str) -> None:
    right = TENSORS[name].shape
    wrong = {**TENSORS, name: np.zeros((*right[:-1], right[-1] + 1), np.float32)}
    with pytest.raises(CheckpointError) as caught:
        AudioEncoder(wrong)
    assert f"tensor '{name}' has shape {wrong[name].shape}" in str(caught.value)
    assert str(right) in str(caught.value)


def test_tensors_of_something_else_are_named() -> None:
    with pytest.raises(
        CheckpointError, match=r"1 tensors are not of a Whisper encoder, .*'lm_head'"
    ):
        AudioEncoder({**TENSORS, "lm_head": MEL})
    with pytest.raises(CheckpointError, match=r"'conv1\.weight' is missing: this is no Whisper"):
        AudioEncoder({})
    flat = {**TENSORS, "conv1.weight": TENSORS["conv1.weight"][..., 0]}
    with pytest.raises(CheckpointError, match=r"'conv1\.weight' has shape .*; 3 dimensions"):
        AudioEncoder(flat)
    narrow = random_tensors(Dimensions(12, 30, 96, 1, 1))
    with pytest.raises(CheckpointError, match=r"'conv1\.weight' has 96 outputs; .*multiple of 64"):
        AudioEncoder(narrow)


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
