"""torch's own transformers, whose fast paths take the weights of layers without calling these."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from npu_matmul.integrations import torch_layers
from npu_matmul.integrations.torch import accelerate, restore

pytestmark = pytest.mark.filterwarnings("ignore:.*nested tensors.*")  # torch's, of its prototypes
BOUND = 1e-4  # of bf16x3, after two layers that end with a LayerNorm


def encoder(**options: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(64, 2, 128, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not options).eval()


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The results' shapes of the products that accelerated layers computed."""
    seen: list[tuple[int, ...]] = []
    real = torch_layers.npu_matmul

    def noted(*operands: Any, out: Any, **options: Any) -> Any:
        seen.append(out.shape)
        return real(*operands, out=out, **options)

    monkeypatch.setattr(torch_layers, "npu_matmul", noted)
    return seen


def took_the_fast_path(model: nn.Module, *given: Any, **options: Any) -> bool:
    with torch.profiler.profile() as profile:
        model(*given, **options)
    return any("transformer_encoder_layer" in event.key for event in profile.key_averages())


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"activation": "gelu"}, {"norm_first": True}])
def test_the_layers_of_an_encoder_are_called(
    options: dict[str, Any], products: list[tuple[int, ...]]
) -> None:
    model, x = encoder(**options), torch.randn(3, 7, 64)
    kinds = [type(module) for module in model.modules()]
    want = model(x)
    assert took_the_fast_path(model, x)
    with accelerate(model, device="cpu", precision="bf16x3") as done:
        assert done.names == [f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]
        assert list(done.skipped) == [f"layers.{i}.self_attn.out_proj" for i in (0, 1)]
        got = model(x)
    assert products == 2 * [(3, 7, 128), (3, 7, 64)]
    assert 0 < (got - want).abs().max() <= BOUND
    assert torch.equal(model(x), want) and took_the_fast_path(model, x)
    assert [type(module) for module in model.modules()] == kinds


@torch.no_grad()
def test_padding_is_no_way_around_either(products: list[tuple[int, ...]]) -> None:
    """Given a mask of padding, a fast encoder computes with nested tensors."""
    model, x = encoder(), torch.randn(2, 7, 64)
    padding = torch.arange(7) >= torch.tensor([[7], [4]])
    want = model(x, src_key_padding_mask=padding)
    with accelerate(model, device="cpu", precision="bf16x3"):
        got = model(x, src_key_padding_mask=padding)
    assert len(products) == 4
    assert (got - want)[~padding].abs().max() <= BOUND
    assert torch.equal(model(x, src_key_padding_mask=padding), want)


@torch.no_grad()
def test_a_layer_calls_as_long_as_one_of_its_layers_is_accelerated(
    products: list[tuple[int, ...]],
) -> None:
    model, x = encoder(), torch.randn(3, 7, 64)
    first = accelerate(model, device="cpu", match="*linear1")
    second = accelerate(model, device="cpu", match="*linear2")
    first.restore()
    model(x)
    assert products == 2 * [(3, 7, 64)]
    second.restore()
    assert took_the_fast_path(model, x) and len(products) == 2


@torch.no_grad()
def test_a_copy_calls_its_layers_too(products: list[tuple[int, ...]]) -> None:
    model, x = encoder(), torch.randn(3, 7, 64)
    with accelerate(model, device="cpu"):
        replica = copy.deepcopy(model)
    replica(x)
    assert len(products) == 4
    assert restore(replica) == 4
    assert torch.equal(replica(x), model(x)) and type(replica) is nn.TransformerEncoder


@torch.no_grad()
def test_a_whole_transformer(products: list[tuple[int, ...]]) -> None:
    model = nn.Transformer(64, 2, 1, 1, 128, batch_first=True).eval()
    x, y = torch.randn(2, 7, 64), torch.randn(2, 5, 64)
    want = model(x, y)
    with accelerate(model, device="cpu", precision="bf16x3") as done:
        assert len(done.names) == 4 and len(done.skipped) == 3
        assert (model(x, y) - want).abs().max() <= BOUND
    assert products == [(2, 7, 128), (2, 7, 64), (2, 5, 128), (2, 5, 64)]
