"""Accelerated layers in the hands of a person whose model does more than call them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.functional import linear

from npu_matmul import last_call
from npu_matmul.integrations.torch import (
    EncoderModule,
    GradientsNotSupported,
    accelerate,
    restore,
)
from npu_matmul.integrations.torch_layers import AcceleratedLinear
from npu_matmul.whisper.dimensions import Dimensions, random_tensors
from npu_matmul.whisper.model import AudioEncoder

BOUND = 2e-4  # of bf16x3, for 64 products of normal numbers: 2**-16 of each, times 8


def accelerated(layer: nn.Module, precision: str = "bf16x3") -> Any:
    accelerate(layer, device="cpu", precision=precision)
    return layer


def near(got: torch.Tensor, want: torch.Tensor, bound: float = BOUND) -> None:
    assert got.shape == want.shape and want.abs().max() > 0.1
    np.testing.assert_allclose(got.float(), want.float(), rtol=0, atol=bound)


# The class


class Named(nn.Linear):
    def label(self) -> str:
        return f"{self.in_features} to {self.out_features}"


def test_a_layer_stays_one_of_its_class() -> None:
    layer = accelerated(Named(4, 3))
    assert isinstance(layer, Named) and isinstance(layer, AcceleratedLinear)
    assert layer.label() == "4 to 3"
    assert repr(layer) == "AcceleratedNamed(in_features=4, out_features=3, bias=True)"
    assert restore(layer) == 1 and type(layer) is Named
    assert restore(layer) == 0


def saved_and_loaded(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def pickled(module: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize("again", [copy.deepcopy, saved_and_loaded, pickled])
def test_a_copy_is_accelerated_and_can_be_restored(again: Callable[[nn.Module], Any]) -> None:
    model, x = nn.Sequential(Named(64, 32), nn.Conv1d(7, 64, 20)), torch.randn(1, 7, 64)
    with torch.no_grad():
        plain = model(x)
        with accelerate(model, device="cpu", precision="int8"):
            want = model(x)
            replica = again(model)
        assert torch.equal(model(x), plain) and not torch.equal(want, plain)
        assert isinstance(replica[0], AcceleratedLinear) and torch.equal(replica(x), want)
        assert last_call().precision == "int8"
        assert restore(replica) == 2
        assert type(replica[0]) is Named and type(replica[1]) is nn.Conv1d
        assert torch.equal(replica(x), plain)


def test_what_another_call_accelerated_is_not_restored() -> None:
    layer = nn.Linear(4, 3)
    first = accelerate(layer, device="cpu")
    restore(layer)
    accelerate(layer, device="cpu")
    first.restore()
    assert isinstance(layer, AcceleratedLinear)


def test_a_layer_that_was_parametrized_since_is_not_restored_before_that_is_undone() -> None:
    model, x = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32)), torch.randn(5, 64)
    done = accelerate(model, device="cpu", precision="bf16x3")
    nn.utils.parametrizations.weight_norm(model[1])
    with torch.no_grad():
        model[1].parametrizations.weight.original0.mul_(2)
        want = linear(linear(x, model[0].weight, model[0].bias), model[1].weight, model[1].bias)
        near(model(x), want)
    with pytest.raises(RuntimeError, match=r"now ParametrizedAcceleratedLinear.*remove_parametriz"):
        done.restore()
    assert isinstance(model[0], AcceleratedLinear)  # as it was
    nn.utils.parametrize.remove_parametrizations(model[1], "weight")
    done.restore()
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]


# Weights that change


def test_weights_made_in_inference_mode_are_packed_again_when_they_change() -> None:
    """Torch counts no versions of these."""
    with torch.inference_mode():
        layer, x = accelerated(nn.Linear(64, 32)), torch.randn(5, 64)
        first = layer._resident.packed(layer.weight)
        layer(x)
        assert layer._resident.packed(layer.weight) is first
        layer.load_state_dict({"weight": torch.randn(32, 64), "bias": torch.zeros(32)})
        near(layer(x), x @ layer.weight.T, 2e-3)


def test_weights_changed_within_inference_mode_are_packed_again() -> None:
    layer, x = accelerated(nn.Linear(64, 32)), torch.randn(5, 64)
    with torch.inference_mode():
        layer(x)
        layer.weight.mul_(3)
        near(layer(x), linear(x, layer.weight, layer.bias))


def test_another_view_of_the_same_memory_is_another_weight() -> None:
    layer, weight, x = accelerated(nn.Linear(64, 64)), torch.randn(64, 64), torch.randn(5, 64)
    with torch.no_grad():
        for given in (weight, weight.T, weight):
            got = torch.func.functional_call(layer, {"weight": given}, (x,))
            near(got, linear(x, given, layer.bias), 2e-3)


def test_a_weight_shared_with_an_embedding_changes_with_it() -> None:
    model = nn.Sequential(nn.Embedding(50, 64), nn.Linear(64, 50, bias=False))
    model[1].weight = model[0].weight
    accelerated(model)
    tokens = torch.arange(7)
    with torch.no_grad():
        for _ in range(2):
            near(model(tokens), model[0](tokens) @ model[0].weight.T, 2e-2)
            model[0].weight.mul_(2)
    assert model[1].weight is model[0].weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_an_accelerated_layer_may_be_cast(dtype: torch.dtype) -> None:
    layer, x = nn.Linear(64, 32), torch.randn(5, 64)
    with torch.no_grad():
        want = layer(x)
        accelerated(layer)(x)
        got = layer.to(dtype)(x.to(dtype))
        assert got.dtype == dtype
        near(got, want, 4e-2 if dtype == torch.bfloat16 else 5e-3)
        near(layer.to(torch.float32)(x), linear(x, layer.weight, layer.bias))


def test_state_may_be_assigned() -> None:
    layer, x = accelerated(nn.Linear(64, 32)), torch.randn(5, 64)
    with torch.no_grad():
        layer.load_state_dict({"weight": torch.randn(32, 64), "bias": torch.ones(32)}, assign=True)
        near(layer(x), linear(x, layer.weight, layer.bias), 2e-3)


def test_a_replica_computes_with_weights_of_its_own() -> None:
    layer, x = accelerated(nn.Linear(64, 32)), torch.randn(5, 64)
    replica = layer._replicate_for_data_parallel()  # as nn.DataParallel does
    with torch.no_grad():
        replica.weight, replica.bias = 2 * layer.weight, 3 * layer.bias
        near(replica(x), linear(x, replica.weight, replica.bias))
        near(layer(x), linear(x, layer.weight, layer.bias))


def test_what_is_all_zero_stays_zero_in_int8() -> None:
    layer, x = nn.Linear(64, 32), torch.randn(5, 64)
    with torch.no_grad():
        layer.weight[3], layer.weight[:, 9], x[2] = 0, 0, 0
        want = layer(x)
        got = accelerated(layer, "int8")(x)
        near(got, want, 2e-2)  # half a step of weights, 1/8/254, times 8; as much of activations
        assert torch.equal(got[:, 3], layer.bias[3].expand(5)) and torch.equal(got[2], layer.bias)


# Gradients


def test_a_bias_that_is_trained_alone_is_refused_too() -> None:
    layer = accelerated(nn.Linear(4, 3))
    layer.weight.requires_grad_(False)
    with pytest.raises(GradientsNotSupported):
        layer(torch.zeros(2, 4))
    layer.bias.requires_grad_(False)
    layer(torch.zeros(2, 4))


def test_derivatives_in_forward_mode_are_refused() -> None:
    layer, x = accelerated(nn.Linear(4, 3)), torch.zeros(2, 4)
    with torch.no_grad(), forward_ad.dual_level(), pytest.raises(GradientsNotSupported):
        layer(forward_ad.make_dual(x, torch.ones(2, 4)))
    with torch.no_grad(), pytest.raises(GradientsNotSupported):
        torch.func.jvp(layer, (x,), (x,))


# Compiling, tracing and transforming


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 32), nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def test_a_compiled_model_goes_around_the_products() -> None:
    graphs: list[torch.fx.Graph] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(module.graph)
        return module.forward

    model = accelerated(TwoLayers(), "int8")
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        for rows in (5, 5, 9, 9):
            x = torch.randn(rows, 64)
            want = model(x)
            assert torch.equal(compiled(x), want)
        operations = [
            {node.target for node in graph.nodes if "call" in node.op} for graph in graphs
        ]
        assert operations == [{torch.relu}, {torch.relu}]  # one for each shape
        restore(model)
        assert torch.equal(compiled(x), model(x)) and not torch.equal(model(x), want)


def traced(layer: nn.Module, x: torch.Tensor) -> Any:
    return torch.jit.trace(layer, (x,))


def scripted(layer: nn.Module, x: torch.Tensor) -> Any:
    return torch.jit.script(layer)


def exported(layer: nn.Module, x: torch.Tensor) -> Any:
    return torch.export.export(layer, (x,))


def mapped(layer: nn.Module, x: torch.Tensor) -> Any:
    return torch.vmap(layer)(x)


@pytest.mark.parametrize("transform", [traced, scripted, exported, mapped])
def test_what_needs_torchs_own_operations_is_refused(transform: Callable[..., Any]) -> None:
    layer, x = accelerated(nn.Linear(4, 3)), torch.randn(2, 4)
    with torch.no_grad(), pytest.raises(TypeError, match=r"restore\(\)"):
        transform(layer, x)
    restore(layer)
    with torch.no_grad():
        transform(layer, x)


def test_an_ensemble_of_weights_is_refused() -> None:
    layer, x = accelerated(nn.Linear(4, 3)), torch.randn(2, 4)
    weights = torch.randn(5, 3, 4)
    with torch.no_grad(), pytest.raises(TypeError, match=r"vmap.* restore\(\)"):
        torch.vmap(lambda w: torch.func.functional_call(layer, {"weight": w}, (x,)))(weights)


# Inputs that cannot be used


@pytest.mark.parametrize(
    "given, error, words",
    [
        (np.zeros((2, 4), np.float32), TypeError, "AcceleratedLinear takes a tensor, not ndarray"),
        (torch.zeros(2, 4, dtype=torch.int8), TypeError, "a tensor of torch.int8"),
        (torch.zeros(2, 5), ValueError, r"takes 4 features in dimension -1 .* shape is \(2, 5\)"),
        (torch.tensor(1.0), ValueError, r"takes 4 features in dimension -1 .* shape is \(\)"),
        (torch.zeros(2, 4).to_sparse(), TypeError, r"has none there .*to_dense\(\)"),
        (torch.zeros(2, 4, device="meta"), ValueError, "on meta; its input must be on the CPU"),
    ],
)
def test_inputs_of_a_linear_layer(given: Any, error: type[Exception], words: str) -> None:
    layer = accelerated(nn.Linear(4, 3))
    with torch.no_grad():
        with pytest.raises(error, match=words):
            layer(given)
        layer(torch.zeros(2, 4))


@pytest.mark.parametrize(
    "shape, words",
    [
        ((2, 65, 10), r"takes 130 features in dimension -2 .* shape is \(2, 65, 10\)"),
        ((130,), r"takes 130 features in dimension -2"),
        ((2, 1, 130, 10), r"takes \(channels, time\) or \(batch, channels, time\), not \(2, 1, "),
        ((2, 130, 2), "was given 2 steps of time, padding included; its kernel needs 3"),
    ],
)
def test_inputs_of_a_convolution(shape: tuple[int, ...], words: str) -> None:
    layer = accelerated(nn.Conv1d(130, 32, 3))
    with torch.no_grad(), pytest.raises(ValueError, match=words):
        layer(torch.zeros(shape))


def test_a_negated_view_is_read_as_it_is() -> None:
    layer, x = accelerated(nn.Linear(64, 32)), torch.randn(5, 64, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    with torch.no_grad():
        near(layer(x), linear(x, layer.weight, layer.bias))


def test_a_layer_that_left_the_cpu_says_so() -> None:
    layer = accelerated(nn.Linear(4, 3)).to("meta")
    with torch.no_grad(), pytest.raises(TypeError, match="in the CPU's memory"):
        layer(torch.zeros(2, 4))


def test_torchs_default_device_does_not_matter() -> None:
    layer, x = accelerated(nn.Linear(64, 32)), torch.randn(5, 64)
    with torch.no_grad():
        want = layer(x)
        with torch.device("meta"):
            got = layer(x)
    assert torch.equal(got, want)


def test_results_are_contiguous_as_torchs_are() -> None:
    layer, x = nn.Conv1d(130, 32, 3), torch.randn(2, 130, 50)
    with torch.no_grad():
        want = layer(x).view(2, -1)
        near(accelerated(layer)(x).view(2, -1), want)


# Layers that are left alone


class Quantised(nn.Parameter):
    """A parameter of a class that computes with it in a way of its own."""


def test_layers_whose_weight_is_no_plain_tensor_are_skipped() -> None:
    twice = nn.Linear(4, 4)
    twice.forward = lambda x: 2 * nn.Linear.forward(twice, x)  # type: ignore[method-assign]
    quantised = nn.Linear(4, 4)
    quantised.weight = Quantised(quantised.weight.detach())
    biased = nn.Linear(4, 4)
    nn.utils.parametrize.register_parametrization(biased, "bias", nn.ReLU())
    model = nn.Sequential(nn.Linear(4, 4), twice, quantised, biased, nn.LazyLinear(4))
    done = accelerate(model, device="cpu")
    assert done.names == ["0"] and list(done.skipped) == ["1", "2", "3", "4"]
    for name, words in {
        "1": "Linear has a forward of its own",
        "2": "its weight is a Quantised",
        "3": "its weight or bias is no parameter, but computed before each call",
        "4": "its weight has no values yet: call the module once before",
    }.items():
        assert words in done.skipped[name]
    with torch.no_grad():
        model(torch.zeros(2, 4))


# The encoder in NumPy as a module


@pytest.fixture
def encoder() -> EncoderModule:
    tensors = random_tensors(Dimensions(8, 6, 64, 1, 1))
    return EncoderModule(AudioEncoder(tensors, device="cpu"))


def test_an_encoder_in_numpy_is_refused_gradients(encoder: EncoderModule) -> None:
    mel = torch.zeros(1, 8, 12, requires_grad=True)
    with pytest.raises(GradientsNotSupported, match="EncoderModule"):
        encoder(mel)
    with torch.no_grad():
        assert encoder(mel).shape == (1, 6, 64)


def test_an_encoder_in_numpy_can_be_copied_but_not_saved(encoder: EncoderModule) -> None:
    model, mel = nn.Sequential(encoder).eval(), torch.randn(1, 8, 12)
    replica = copy.deepcopy(model)
    assert replica[0] is not encoder and replica[0].encoder is encoder.encoder
    assert not replica[0].training and torch.equal(replica(mel), model(mel))
    with pytest.raises(TypeError, match=r"cannot be saved.*load it again from its checkpoint"):
        pickle.dumps(model)


def test_an_encoder_in_numpy_is_compiled_around_and_not_exported(encoder: EncoderModule) -> None:
    mel = torch.randn(1, 8, 12)
    assert torch.equal(torch.compile(encoder, backend="eager")(mel), encoder(mel))
    for transform in (traced, exported, mapped):
        with pytest.raises(TypeError, match=r"cannot be traced|has none there"):
            transform(encoder, mel)
