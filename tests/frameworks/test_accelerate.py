"""``accelerate``: the same features, the same names, undone without a trace."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accuracy import check
from models import (
    PRECISIONS,
    openai_features,
    openai_model,
    transformers_features,
    transformers_model,
)
from numpy.typing import NDArray
from torch import nn

from npu_matmul import last_call
from npu_matmul.device import NpuDevice, open_device
from npu_matmul.integrations import torch as integration
from npu_matmul.integrations.torch import GradientsNotSupported, accelerate
from npu_matmul.integrations.torch_layers import AcceleratedLinear

FRAMEWORKS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[[Any], nn.Module]]] = {
    "openai": (openai_model, openai_features, lambda model: model.encoder),
    "transformers": (transformers_model, transformers_features, lambda model: model.model.encoder),
}


@pytest.mark.parametrize("framework", list(FRAMEWORKS))
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_encoder_computes_the_same_features(
    framework: str, precision: str, mel: NDArray[np.float32], record_property: Any
) -> None:
    make, features, encoder_of = FRAMEWORKS[framework]
    model = make("tiny")
    want = features(model, mel)
    with accelerate(encoder_of(model), device="cpu", precision=precision) as done:
        got = features(model, mel)
        assert last_call().precision == precision
    assert len(done.names) == 2 + 4 * 6 and not done.skipped
    assert not np.array_equal(got, want)
    check(got, want, precision, record_property)
    np.testing.assert_array_equal(features(model, mel), want)  # restored


@pytest.mark.parametrize("framework", list(FRAMEWORKS))
def test_one_layer_of_an_encoder_on_an_npu(
    framework: str, npu: NpuDevice, mel: NDArray[np.float32], record_property: Any
) -> None:
    make, features, encoder_of = FRAMEWORKS[framework]
    model = make("tiny", layers=1)
    want = features(model, mel)
    with accelerate(encoder_of(model), device=npu, precision="bf16"), npu.record() as counters:
        got = features(model, mel)
    assert counters.launches == 2 + 6
    check(got, want, "bf16", record_property)


# What stays


@pytest.mark.parametrize("framework", list(FRAMEWORKS))
def test_names_parameters_and_hooks_stay(framework: str) -> None:
    make, _, encoder_of = FRAMEWORKS[framework]
    encoder = encoder_of(make("tiny", layers=1))
    before = {name: id(parameter) for name, parameter in encoder.named_parameters()}
    modules = {name: (id(layer), type(layer)) for name, layer in encoder.named_modules()}
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    done = accelerate(encoder, device="cpu")
    assert {name: id(parameter) for name, parameter in encoder.named_parameters()} == before
    assert {n: id(layer) for n, layer in encoder.named_modules()} == {
        name: identity for name, (identity, _) in modules.items()
    }
    now = encoder.state_dict()
    assert list(now) == list(state)
    assert all(torch.equal(now[name], tensor) for name, tensor in state.items())
    assert all(isinstance(encoder.get_submodule(n), nn.Linear | nn.Conv1d) for n in done.names)
    done.restore()
    done.restore()  # of no effect
    assert {n: (id(layer), type(layer)) for n, layer in encoder.named_modules()} == modules
    assert all("_resident" not in vars(layer) for layer in encoder.modules())


def test_hooks_are_called() -> None:
    seen = []
    layer = nn.Linear(4, 3)
    layer.register_forward_hook(lambda module, given, result: seen.append(result.shape))
    with torch.no_grad(), accelerate(layer, device="cpu"):
        layer(torch.zeros(2, 4))
    assert seen == [(2, 3)]


def test_weights_that_change_are_packed_again() -> None:
    layer, x = nn.Linear(64, 32), torch.randn(5, 64)
    with torch.no_grad(), accelerate(layer, device="cpu", precision="bf16x3"):
        layer(x)
        layer.weight.mul_(3)
        layer.bias.add_(1)
        np.testing.assert_allclose(
            layer(x), nn.functional.linear(x, layer.weight, layer.bias), atol=1e-3
        )
        layer.load_state_dict({"weight": torch.randn(32, 64), "bias": torch.zeros(32)})
        np.testing.assert_allclose(layer(x), x @ layer.weight.T, atol=1e-3)


def test_weights_that_are_replaced_are_packed_again_wherever_they_lie() -> None:
    """A freed tensor's place is given to the next one of its size, with the same version."""
    layer, x = nn.Linear(640, 64), torch.randn(5, 640)
    with torch.no_grad(), accelerate(layer, device="cpu", precision="bf16x3"):
        for _ in range(4):
            del layer._parameters["weight"]
            layer.weight = nn.Parameter(torch.randn(64, 640))
            want = nn.functional.linear(x, layer.weight, layer.bias)
            np.testing.assert_allclose(layer(x), want, atol=1e-2)


def test_weights_are_packed_once() -> None:
    layer = nn.Linear(64, 32)
    with torch.no_grad(), accelerate(layer, device="cpu"):
        first = layer._resident.packed(layer.weight)
        layer(torch.randn(5, 64))
        assert layer._resident.packed(layer.weight) is first


def test_autocast_decides_the_type_of_results_as_in_torch() -> None:
    layer = nn.Linear(64, 32)
    given = {kind: torch.randn(5, 64, dtype=kind) for kind in (torch.float32, torch.bfloat16)}
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        want = {kind: layer(x) for kind, x in given.items()}
        with accelerate(layer, device="cpu", precision="bf16x3"):
            for kind, x in given.items():
                got = layer(x)
                assert got.dtype == want[kind].dtype == torch.bfloat16
                torch.testing.assert_close(got, want[kind], rtol=2e-2, atol=2e-2)


# Gradients


@pytest.mark.parametrize("training", [True, False])
def test_with_gradients_enabled_there_is_a_clear_error(training: bool) -> None:
    layer = nn.Linear(4, 3).train(training)
    done = accelerate(layer, device="cpu")
    mode = "training" if training else "evaluation"
    with pytest.raises(
        GradientsNotSupported, match=rf"called in {mode} .*torch\.no_grad\(\).*rest"
    ):
        layer(torch.zeros(2, 4))
    with torch.no_grad():
        assert layer(torch.zeros(2, 4)).shape == (2, 3)
    with torch.inference_mode():
        assert layer(torch.zeros(2, 4)).shape == (2, 3)
    done.restore()
    layer(torch.zeros(2, 4)).sum().backward()
    assert layer.weight.grad is not None


def test_weights_without_gradients_need_no_context() -> None:
    layer = nn.Linear(4, 3).requires_grad_(False)
    with accelerate(layer, device="cpu"):
        layer(torch.zeros(2, 4))
        with pytest.raises(GradientsNotSupported):
            layer(torch.zeros(2, 4, requires_grad=True))


# Types, shapes, layouts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_results_have_the_type_of_the_input(dtype: torch.dtype, bias: bool) -> None:
    layer, x = nn.Linear(64, 32, bias=bias).to(dtype), torch.randn(2, 7, 64).to(dtype)
    with torch.no_grad():
        want = layer(x)
        with accelerate(layer, device="cpu", precision="bf16x3"):
            got = layer(x)
    assert got.dtype == dtype and got.shape == (2, 7, 32)
    tolerance = {torch.float16: 5e-3, torch.bfloat16: 4e-2}.get(dtype, 1e-4)
    np.testing.assert_allclose(got.float(), want.float(), atol=tolerance)


@pytest.mark.parametrize("shape", [(64,), (1, 64), (0, 64), (2, 3, 4, 64)])
def test_inputs_of_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    layer, x = nn.Linear(64, 32), torch.randn(shape)
    with torch.no_grad():
        want = layer(x)
        with accelerate(layer, device="cpu", precision="bf16x3"):
            got = layer(x)
            assert torch.equal(layer(x.clone()), got)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_inputs_may_be_transposed() -> None:
    layer, x = nn.Linear(64, 32), torch.randn(64, 9).T
    with torch.no_grad():
        want = layer(x)
        with accelerate(layer, device="cpu", precision="bf16x3"):
            np.testing.assert_allclose(layer(x), want, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 5, "stride": 3, "dilation": 2, "padding": 4},
        {"kernel_size": 5, "padding": "same", "dilation": 2},
        {"kernel_size": 4, "padding": "valid", "bias": False},
        {"kernel_size": 1},
    ],
)
def test_convolutions_are_one_product(options: dict[str, Any]) -> None:
    layer, x = nn.Conv1d(130, 32, **options), torch.randn(2, 130, 50)
    with torch.no_grad():
        want, alone = layer(x), layer(x[1])
        with accelerate(layer, device="cpu", precision="bf16x3"):
            np.testing.assert_allclose(layer(x), want, atol=1e-4)
            np.testing.assert_allclose(layer(x[1]), alone, atol=1e-4)


# What is accelerated


class Counting(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def test_layers_with_a_forward_of_their_own_are_left_alone() -> None:
    module = nn.Sequential(nn.Linear(4, 4), Counting(4, 4))
    with accelerate(module, device="cpu") as done:
        assert done.names == ["0"]
        assert done.skipped == {"1": "Counting has a forward of its own"}
        assert type(module[1]) is Counting


def test_convolutions_are_left_alone_where_they_do_not_pay() -> None:
    grouped = nn.Conv1d(256, 256, 3, groups=2)
    circular = nn.Conv1d(256, 256, 3, padding=1, padding_mode="circular")
    module = nn.Sequential(nn.Conv1d(1, 64, 10), grouped, circular, nn.Conv1d(80, 64, 3))
    with accelerate(module, device="cpu") as done:
        assert done.names == ["3"]
        assert "too few multiplications" in done.skipped["0"]
        assert "not one product" in done.skipped["1"] and "not one product" in done.skipped["2"]
    with accelerate(module, device="cpu", pays=lambda layer: layer.in_channels == 1) as done:
        assert done.names == ["0"]


def test_a_pattern_selects_layers_and_a_second_call_others() -> None:
    module = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)})
    one = accelerate(module, device="cpu", match="first", precision="int8")
    two = accelerate(module, device="cpu", precision="bf16x3")
    assert one.names == ["first"] and two.names == ["second"]
    assert two.skipped == {"first": "is accelerated already: restore it first"}
    x = torch.randn(3, 4)
    with torch.no_grad():
        for name, precision in (("first", "int8"), ("second", "bf16x3")):
            module[name](x)
            assert last_call().precision == precision
    two.restore()
    assert isinstance(module["first"], AcceleratedLinear)
    one.restore()


def test_a_layer_that_is_used_twice_is_accelerated_once() -> None:
    shared = nn.Linear(4, 4)
    module = nn.Sequential(shared, nn.ReLU(), shared)
    with accelerate(module, device="cpu") as done, torch.no_grad():
        assert done.names == ["0"]
        module(torch.zeros(1, 4))
    assert type(shared) is nn.Linear


def test_layers_whose_weights_are_read_without_calling_them_are_skipped() -> None:
    module = nn.Sequential(nn.Linear(64, 64), nn.MultiheadAttention(64, 2))
    with accelerate(module, device="cpu") as done:
        assert done.names == ["0"]
        assert done.skipped == {
            "1.out_proj": "MultiheadAttention reads its weight without calling it",
        }
    normalised = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="its weight or bias is no parameter, but computed"):
        accelerate(normalised, device="cpu")


def test_nothing_to_accelerate_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"nothing to accelerate in ReLU with match='\*'"):
        accelerate(nn.ReLU(), device="cpu")
    with pytest.raises(ValueError, match="1: Counting has a forward of its own"):
        accelerate(nn.Sequential(nn.ReLU(), Counting(4, 4)), device="cpu")
    with pytest.raises(ValueError, match="there is no precision 'fp8'; known are: bf16"):
        accelerate(nn.Linear(4, 4), device="cpu", precision="fp8")
    with pytest.raises(ValueError, match="there is no device 'gpu'"):
        accelerate(nn.Linear(4, 4), device="gpu")


def test_after_an_error_nothing_is_changed() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        module[1].weight[2, 3] = float("nan")
    with pytest.raises(ValueError, match="nan"):
        accelerate(module, device="cpu", precision="int8")
    assert [type(layer) for layer in module] == [nn.Linear, nn.Linear]


def test_the_meta_device_is_refused() -> None:
    with pytest.raises(ValueError, match="its weight is on meta: move the module to the CPU"):
        accelerate(nn.Linear(4, 4, device="meta"), device="cpu")


def test_docstring_examples_run() -> None:
    open_device("cpu")
    result = doctest.testmod(integration)
    assert result.attempted > 0
    assert result.failed == 0
