"""``accelerate``: the Linear and Conv1d layers of any torch module, computed by ``npu_matmul``.

Layers stay the objects that they were, with their parameters, names, hooks and buffers; only their
class changes, and with it ``forward``. Tensors are shared with NumPy, not copied; results have the
type that they had before. For inference without gradients, on CPU tensors.

A parameter that was changed or replaced is packed again at the next call. The trap: torch does not
count changes through ``parameter.data``, so that they go unseen; use ``parameter.copy_`` under
``torch.no_grad()``, or ``load_state_dict``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from npu_matmul.device import Device, open_device
from npu_matmul.matmul import npu_matmul, pack_b
from npu_matmul.packed import PackedMatrix
from npu_matmul.precision import PRECISIONS
from npu_matmul.whisper.model import AudioEncoder

# Subclasses whose forward is that of the class they are derived from, and casts weights to the type
# of what comes in, as the layers here do too.
KNOWN = {("whisper.model", "Linear"), ("whisper.model", "Conv1d")}

# A convolution becomes a product of K = in_channels * width and N = out_channels. Below this many
# multiplications for each result, copying the windows takes longer than multiplying them.
CONVOLUTION_MIN_K = 128

# Modules that hand the weights of their layers to functions of torch's, without calling the layers.
READ_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class GradientsNotSupported(RuntimeError):
    """An accelerated layer was called where torch would have recorded gradients."""


@dataclass
class Acceleration:
    """What :func:`accelerate` changed: ``names`` of the layers, ``skipped`` names and why.

    ``restore()`` gives every layer its class back; as a context manager it does so at the end.
    """

    names: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    _originals: list[tuple[nn.Module, type[nn.Module]]] = field(default_factory=list, repr=False)

    def restore(self) -> None:
        """Undo the change; a second call does nothing."""
        for module, original in self._originals:
            module.__class__ = original
            del module.__dict__["_resident"]
        self._originals.clear()

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


def accelerate(
    module: nn.Module,
    *,
    device: str | Device | None = None,
    precision: str = "bf16",
    match: str = "*",
    pays: Callable[[nn.Conv1d], bool] | None = None,
) -> Acceleration:
    """Make ``npu_matmul`` compute the Linear and Conv1d layers within ``module``, in place.

    Args:
        module: any torch module: ``whisper.Whisper.encoder``, transformers' ``WhisperEncoder``, or
            anything else made of Linear layers.
        device: a name for ``open_device``, or a device.
        precision: "bf16", "bf16x3" or "int8" (weights by output, activations by row).
        match: a pattern (as of a shell) of the names of layers, for leaving others as they are, or
            for another precision in a second call.
        pays: which convolutions are worth it; default :func:`convolution_pays`.

    Returns:
        What was changed. Layers of classes that have a ``forward`` of their own are skipped, since
        nobody knows what else it does.

    Raises:
        ValueError: nothing was found to accelerate, or an unknown precision or device.

    >>> layer = nn.Linear(3, 2)
    >>> with torch.no_grad(), accelerate(layer, device="cpu", precision="bf16x3"):
    ...     tuple(layer(torch.zeros(5, 3)).shape)
    (5, 2)
    """
    if precision not in PRECISIONS:
        raise ValueError(f"there is no precision {precision!r}; known are: {', '.join(PRECISIONS)}")
    opened = device if isinstance(device, Device) else open_device(device or "auto")
    done = Acceleration()
    uncalled = _uncalled(module)
    try:
        for name, layer in module.named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv1d) or not fnmatchcase(name, match):
                continue
            if id(layer) in uncalled:
                done.skipped[name] = f"{uncalled[id(layer)]} reads its weight without calling it"
            else:
                _accelerate_layer(name, layer, opened, precision, pays or convolution_pays, done)
    except BaseException:
        done.restore()
        raise
    if not done.names:
        why = "".join(f"; {name or 'it'}: {reason}" for name, reason in done.skipped.items())
        raise ValueError(
            f"nothing to accelerate in {type(module).__name__} with match={match!r}{why}"
        )
    return done


def convolution_pays(layer: nn.Conv1d) -> bool:
    """Whether a convolution's K = in_channels * width is large enough to be worth its copies.

    >>> convolution_pays(nn.Conv1d(80, 384, 3)), convolution_pays(nn.Conv1d(1, 64, 10))
    (True, False)
    """
    return layer.in_channels * layer.kernel_size[0] >= CONVOLUTION_MIN_K


def _uncalled(module: nn.Module) -> dict[int, str]:
    """By identity, the modules within ``READ_WEIGHTS``, and the class that each is within."""
    readers = (parent for parent in module.modules() if isinstance(parent, READ_WEIGHTS))
    return {id(child): type(reader).__name__ for reader in readers for child in reader.children()}


def _accelerate_layer(
    name: str,
    layer: nn.Linear | nn.Conv1d,
    device: Device,
    precision: str,
    pays: Callable[[nn.Conv1d], bool],
    done: Acceleration,
) -> None:
    base = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv1d
    why_not = _why_not(layer, base, pays)
    if why_not:
        done.skipped[name] = why_not
        return
    resident = Resident(device, precision)
    resident.packed(layer.weight)
    original = type(layer)
    layer.__dict__["_resident"] = resident
    layer.__class__ = AcceleratedLinear if base is nn.Linear else AcceleratedConv1d
    done._originals.append((layer, original))
    done.names.append(name)


def _why_not(
    layer: nn.Linear | nn.Conv1d, base: type[nn.Module], pays: Callable[[nn.Conv1d], bool]
) -> str:
    kind = type(layer)
    if "_resident" in layer.__dict__:
        return "is accelerated already: restore it first"
    known = (kind.__module__, kind.__qualname__) in KNOWN
    if not known and (kind.forward is not base.forward or _has_own_convolution(kind)):
        return f"{kind.__qualname__} has a forward of its own"
    if layer._parameters.get("weight") is None:
        return "its weight is no parameter, but computed before each call"
    if layer.weight.device.type != "cpu":
        return f"its weight is on {layer.weight.device}: move the module to the CPU first"
    if layer.weight.dtype not in FLOATS:
        return f"its weight is {layer.weight.dtype}"
    if isinstance(layer, nn.Conv1d):
        if layer.groups != 1 or layer.padding_mode != "zeros":
            return "grouped, or padded with other than zeros: not one product"
        if not pays(layer):
            return "too few multiplications for each value that is copied"
    return ""


def _has_own_convolution(kind: type[nn.Module]) -> bool:
    return issubclass(kind, nn.Conv1d) and kind._conv_forward is not nn.Conv1d._conv_forward


class Resident:
    """A layer's weight on its device, packed again when the parameter has changed."""

    def __init__(self, device: Device, precision: str) -> None:
        self.device, self.precision = device, precision
        self._packed: PackedMatrix | None = None
        self._version: tuple[int, int] = (-1, -1)
        self._source: Tensor | None = None  # held, so that no other tensor comes to lie there

    def packed(self, weight: Tensor) -> PackedMatrix:
        """``weight`` (out, in) or (out, in, width) as the matrix B of a product."""
        # tensors made in inference mode count no versions, and cannot be changed outside it
        version = weight.data_ptr(), 0 if weight.is_inference() else weight._version
        if self._packed is None or version != self._version:
            self._source = flat = weight.detach()
            if flat.ndim == 3:  # a row of the left operand is frame after frame
                flat = flat.permute(0, 2, 1).reshape(flat.shape[0], -1)
            matrix = _as_array(flat).T.astype(np.float32)
            self._packed = pack_b(matrix, device=self.device, precision=self.precision)
            self._version = version
        return self._packed

    def product(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``rows`` (..., K) times the weight, plus the bias, in the type that torch's has."""
        result = torch.empty((*rows.shape[:-1], weight.shape[0]), dtype=_result_type(rows))
        out = _as_array(result)
        npu_matmul(_as_array(rows), self.packed(weight), out=out, dtype=out.dtype)
        return result if bias is None else result.add_(bias.detach().to(result.dtype))

    def __deepcopy__(self, memo: dict[int, Any]) -> Resident:
        return Resident(self.device, self.precision)

    def __reduce__(self) -> tuple[Any, ...]:
        return _resident_on, (self.device.name, self.precision)


def _resident_on(device: str, precision: str) -> Resident:
    return Resident(open_device(device), precision)


class AcceleratedLinear(nn.Linear):
    """A Linear layer whose product is ``npu_matmul``'s."""

    _resident: Resident

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        rows = _checked(self, input)
        return self._resident.product(rows, self.weight, self.bias)


class AcceleratedConv1d(nn.Conv1d):
    """A convolution over time as one product: rows are windows of the padded input."""

    _resident: Resident

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        given = _checked(self, input)
        batch = given if given.ndim == 3 else given.unsqueeze(0)
        padded = nn.functional.pad(batch, self._reversed_padding_repeated_twice)
        reach = self.dilation[0] * (self.kernel_size[0] - 1) + 1
        windows = padded.unfold(2, reach, self.stride[0])[..., :: self.dilation[0]]
        rows = windows.permute(0, 2, 3, 1).flatten(2)
        result = self._resident.product(rows, self.weight, self.bias).transpose(1, 2)
        return result if given.ndim == 3 else result.squeeze(0)


def _result_type(rows: Tensor) -> torch.dtype:
    """The type of torch's own product of such rows: their own, unless autocast says another."""
    nothing = rows.new_empty((0, 0))
    return torch.mm(nothing, nothing).dtype


def _checked(layer: nn.Linear | nn.Conv1d, given: Tensor) -> Tensor:
    if torch.is_grad_enabled() and (given.requires_grad or layer.weight.requires_grad):
        mode = "training" if layer.training else "evaluation"
        raise GradientsNotSupported(
            f"{type(layer).__name__} computes without gradients, and was called in {mode} with "
            "gradients enabled: call the model within torch.no_grad() or "
            "torch.inference_mode(), or restore() it to train"
        )
    if given.device.type != "cpu":
        raise ValueError(
            f"{type(layer).__name__} was given a tensor on {given.device}; its input must be on "
            "the CPU"
        )
    return given.detach()


def _as_array(tensor: Tensor) -> NDArray[Any]:
    """The tensor's memory as an array; NumPy has bf16 from ml_dtypes, which torch does not know."""
    if tensor.dtype == torch.bfloat16:
        words: NDArray[Any] = tensor.view(torch.int16).numpy()
        return words.view(ml_dtypes.bfloat16)
    array: NDArray[Any] = tensor.numpy()
    return array


class EncoderModule(nn.Module):
    """A NumPy :class:`AudioEncoder` as a torch module, for ``whisper_model.encoder``.

    >>> from npu_matmul.whisper.dimensions import Dimensions, random_tensors
    >>> encoder = AudioEncoder(random_tensors(Dimensions(8, 6, 64, 1, 1)), device="cpu")
    >>> EncoderModule(encoder)(torch.zeros(1, 8, 12)).shape
    torch.Size([1, 6, 64])
    """

    def __init__(self, encoder: AudioEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, mel: Tensor) -> Tensor:
        features = self.encoder(mel.detach().float().numpy())
        return torch.from_numpy(features).to(mel.dtype)
