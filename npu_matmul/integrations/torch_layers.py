"""The layers that ``accelerate`` makes of torch's: their products are ``npu_matmul``'s.

A layer's class becomes one made for it, of ``AcceleratedLinear`` or ``AcceleratedConv1d`` and the
class that it had, so that it stays what it was but for ``forward``. What a call needs lies in the
layer's ``_resident``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import forward_ad

from npu_matmul.device import Device, open_device
from npu_matmul.matmul import npu_matmul, pack_b
from npu_matmul.packed import PackedMatrix

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
CLASSES: dict[type[nn.Module], type[Accelerated]] = {}  # by the class that a module had

# Modules that hand the weights of their layers to one function of torch's when this attribute is
# true, as torch sets it when they are made, and call the layers when it is not.
FAST_PATHS: dict[type[nn.Module], str] = {
    nn.TransformerEncoderLayer: "activation_relu_or_gelu",
    nn.TransformerEncoder: "use_nested_tensor",  # which only a fast layer can compute with
}


class GradientsNotSupported(RuntimeError):
    """An accelerated layer was called where torch takes gradients."""


@dataclass(frozen=True)
class Packed:
    """A weight as it was when it was packed. ``version`` is torch's count of its changes, or None
    for a tensor made in inference mode: of these none is kept, and ``source`` is a copy."""

    matrix: PackedMatrix
    source: Tensor  # held, so that no other tensor comes to lie there
    version: int | None

    def is_of(self, weight: Tensor) -> bool:
        if weight.is_inference():
            return self.version is None and torch.equal(weight, self.source)
        return self.version == weight._version and weight.is_set_to(self.source)


class Resident:
    """A layer's weight on its device, packed again when the parameter has changed."""

    def __init__(self, device: Device, precision: str) -> None:
        self.device, self.precision = device, precision
        self._packed: Packed | None = None

    def packed(self, weight: Tensor) -> PackedMatrix:
        """``weight`` (out, in) or (out, in, width) as the matrix B of a product."""
        flat = as_array(weight.detach())
        packed = self._packed
        if packed is None or not packed.is_of(weight):
            if flat.ndim == 3:  # a row of the left operand is frame after frame
                flat = flat.transpose(0, 2, 1).reshape(flat.shape[0], -1)
            matrix = pack_b(flat.T.astype(np.float32), device=self.device, precision=self.precision)
            if weight.is_inference():
                packed = Packed(matrix, weight.clone(), None)
            else:
                packed = Packed(matrix, weight.detach(), weight._version)
            self._packed = packed
        return packed.matrix

    def product(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``rows`` (..., K) times the weight, plus the bias, in the type that torch's has."""
        given, matrix = as_array(rows), self.packed(weight)
        shape = (*rows.shape[:-1], weight.shape[0])
        result = torch.empty(shape, dtype=_result_type(rows), device="cpu")
        out = as_array(result)
        npu_matmul(given, matrix, out=out, dtype=out.dtype)
        return result if bias is None else result.add_(bias.detach().to(result.dtype))

    def __deepcopy__(self, memo: dict[int, Any]) -> Resident:
        return Resident(self.device, self.precision)

    def __reduce__(self) -> tuple[Any, ...]:
        return _resident_on, (self.device.name, self.precision)


def _resident_on(device: str, precision: str) -> Resident:
    return Resident(open_device(device), precision)


class Accelerated(nn.Module):
    """What accelerated modules have in common; ``_original`` is the class that one had."""

    _original: ClassVar[type[nn.Module]]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """The class is made at run time: whoever reads a saved layer makes it again."""
        _, (kind, *arguments), *state = super().__reduce_ex__(max(protocol, 2))
        return _made_again, (kind._original, *arguments), *state

    def __prepare_scriptable__(self) -> nn.Module:
        raise TypeError(f"{type(self).__name__} has no TorchScript: restore() it before")


class AcceleratedLinear(Accelerated):
    """A Linear layer whose product is ``npu_matmul``'s."""

    _resident: Resident
    weight: Tensor
    bias: Tensor | None

    @torch.compiler.disable  # which else would take what npu_matmul does apart
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        rows = checked(self, input, self.weight, self.bias)
        _check_size(self, rows, -1, self.weight.shape[1])
        return self._resident.product(rows, self.weight, self.bias)


class AcceleratedConv1d(Accelerated):
    """A convolution over time as one product: rows are windows of the padded input."""

    _resident: Resident
    weight: Tensor
    bias: Tensor | None
    kernel_size: tuple[int]
    stride: tuple[int]
    dilation: tuple[int]
    _reversed_padding_repeated_twice: list[int]

    @torch.compiler.disable  # which else would take what npu_matmul does apart
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        given = checked(self, input, self.weight, self.bias)
        _check_size(self, given, -2, self.weight.shape[1])
        if given.ndim > 3:
            raise ValueError(
                f"{type(self).__name__} takes (channels, time) or (batch, channels, time), not "
                f"{tuple(given.shape)}"
            )
        batch = given if given.ndim == 3 else given.unsqueeze(0)
        padded = nn.functional.pad(batch, self._reversed_padding_repeated_twice)
        reach = self.dilation[0] * (self.kernel_size[0] - 1) + 1
        if padded.shape[2] < reach:
            raise ValueError(
                f"{type(self).__name__} was given {padded.shape[2]} steps of time, padding "
                f"included; its kernel needs {reach}"
            )
        windows = padded.unfold(2, reach, self.stride[0])[..., :: self.dilation[0]]
        rows = windows.permute(0, 2, 3, 1).flatten(2)
        result = self._resident.product(rows, self.weight, self.bias).transpose(1, 2).contiguous()
        return result if given.ndim == 3 else result.squeeze(0)


class Unhurried(Accelerated):
    """A module that calls its layers, instead of handing their weights to one function of torch's,
    as long as one of them is accelerated."""


def must_call(module: Any) -> bool:
    """Whether ``module`` has a fast path, which would go around an accelerated module in it."""
    if not any(isinstance(module, kind) for kind in FAST_PATHS):
        return False
    encoder = isinstance(module, nn.TransformerEncoder)
    within = module.layers if encoder else module.children()
    return any(isinstance(child, Accelerated) for child in within)


def _switch(name: str) -> property:
    """The attribute ``name``, off as long as the module must call its layers."""

    def value(module: nn.Module) -> Any:
        if name not in vars(module):
            raise AttributeError(name)
        return not must_call(module) and vars(module)[name]

    return property(value)


def accelerated(original: type[nn.Module]) -> type[Accelerated]:
    """The class of an accelerated module that was an ``original``, and still is one."""
    if original not in CLASSES:
        CLASSES[original] = _accelerated(original)
    return CLASSES[original]


def _accelerated(original: type[nn.Module]) -> type[Accelerated]:
    own: dict[str, Any] = {"_original": original}
    base: type[Accelerated]
    if issubclass(original, nn.Linear | nn.Conv1d):
        base = AcceleratedLinear if issubclass(original, nn.Linear) else AcceleratedConv1d
    else:
        base = Unhurried
        own |= {
            name: _switch(name) for kind, name in FAST_PATHS.items() if issubclass(original, kind)
        }
    return type(f"Accelerated{original.__name__}", (base, original), own)


def _made_again(original: type[nn.Module], *arguments: Any) -> nn.Module:
    kind = accelerated(original)
    return kind.__new__(kind, *arguments)


def checked(module: nn.Module, given: Tensor, *parameters: Tensor | None) -> Tensor:
    """``given`` as numbers in memory, once nothing is asked for that cannot be had.

    Raises:
        GradientsNotSupported: torch takes gradients, of the input or of a parameter.
        TypeError: it is no tensor of floats, or torch traces the call.
        ValueError: it is not on the CPU.
    """
    name = type(module).__name__
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} takes a tensor, not {type(given).__name__}")
    if torch.jit.is_tracing():
        raise TypeError(f"{name} cannot be traced: restore() it before")
    if _are_differentiated(given, *parameters):
        mode = "training" if module.training else "evaluation"
        raise GradientsNotSupported(
            f"{name} computes without gradients, and was called in {mode} where torch takes "
            "them: call the model within torch.no_grad() or torch.inference_mode(), or "
            "restore() it to train or to differentiate"
        )
    if given.device.type != "cpu":
        raise ValueError(
            f"{name} was given a tensor on {given.device}; its input must be on the CPU: "
            "tensor.cpu()"
        )
    if given.dtype not in FLOATS:
        raise TypeError(f"{name} was given a tensor of {given.dtype}; its input must be floats")
    return given.detach().resolve_neg()


def _are_differentiated(*tensors: Tensor | None) -> bool:
    there = [tensor for tensor in tensors if tensor is not None]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in there):
        return True
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in there)


def _check_size(module: nn.Module, given: Tensor, axis: int, needed: int) -> None:
    if given.ndim < -axis or given.shape[axis] != needed:
        raise ValueError(
            f"{type(module).__name__} takes {needed} features in dimension {axis} of its input, "
            f"whose shape is {tuple(given.shape)}"
        )


def _result_type(rows: Tensor) -> torch.dtype:
    """The type of torch's own product of such rows: their own, unless autocast says another."""
    nothing = rows.new_empty((0, 0))
    return torch.mm(nothing, nothing).dtype


def as_array(tensor: Tensor) -> NDArray[Any]:
    """The tensor's memory as an array; NumPy has bf16 from ml_dtypes, which torch does not know."""
    try:
        if tensor.dtype == torch.bfloat16:
            words: NDArray[Any] = tensor.view(torch.int16).numpy()
            return words.view(ml_dtypes.bfloat16)
        array: NDArray[Any] = tensor.numpy()
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            "npu_matmul computes from numbers in the CPU's memory, and was called with a tensor "
            f"that has none there ({error}): vmap, torch.func and torch.export need layers that "
            "restore() made torch's again, sparse and nested tensors to_dense() or "
            "to_padded_tensor()"
        ) from error
    return array
