"""Where products inside attention run, and in which precision each product is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from naive_encoder import relative_error
from small_encoder import BOUNDS, FLOAT32, MEL, SMALL, TENSORS, WANT

from npu_matmul.choose import choose
from npu_matmul.device import Device, NpuDevice, open_device
from npu_matmul.host.attention import usable
from npu_matmul.host.paths import PATH_VARIABLE, PORTABLE
from npu_matmul.kernel import UnknownKernel
from npu_matmul.performance.host import HostRates
from npu_matmul.performance.product import predict
from npu_matmul.precision import PRECISIONS
from npu_matmul.tiler import TileGrid
from npu_matmul.whisper import placement
from npu_matmul.whisper.ledger import record
from npu_matmul.whisper.model import AudioEncoder, product_names
from npu_matmul.whisper.placement import attention_rule, precisions


@pytest.fixture
def cpu() -> Device:
    return open_device("cpu")


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
    for part, products in (("query", ["query", "key+value"]), ("key", ["query", "key", "value"])):
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
