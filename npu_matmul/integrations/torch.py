"""``accelerate``: the Linear and Conv1d layers of any torch module, computed by ``npu_matmul``.

Layers stay the objects that they were, with their parameters, names, hooks, buffers and methods;
only ``forward`` changes. Tensors are shared with NumPy, not copied; results have the type that
they had before. For inference without gradients, on CPU tensors.

A parameter that was changed or replaced is packed again at the next call. The trap: torch does not
count changes through ``parameter.data``, so that they go unseen; use ``parameter.copy_`` under
``torch.no_grad()`` or ``load_state_dict``, or restore and accelerate again. Torch counts no changes
at all of parameters made in inference mode; these are compared with a copy at each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from npu_matmul.device import Device, open_device
from npu_matmul.integrations.torch_layers import (
    FLOATS,
    Accelerated,
    GradientsNotSupported,
    Resident,
    Unhurried,
    accelerated,
    as_array,
    checked,
    must_call,
)
from npu_matmul.precision import PRECISIONS
from npu_matmul.whisper.model import AudioEncoder

__all__ = [
    "Acceleration",
    "EncoderModule",
    "GradientsNotSupported",
    "accelerate",
    "convolution_pays",
    "restore",
]

# Subclasses whose forward is that of the class they are derived from, and casts weights to the type
# of what comes in, as the layers here do too.
KNOWN = {("whisper.model", "Linear"), ("whisper.model", "Conv1d")}

# A convolution becomes a product of K = in_channels * width and N = out_channels. Below this many
# multiplications for each result, copying the windows takes longer than multiplying them.
CONVOLUTION_MIN_K = 128


@dataclass
class Acceleration:
    """What :func:`accelerate` changed: ``names`` of the layers, ``skipped`` names and why.

    ``restore()`` gives every layer its class back; as a context manager it does so at the end.
    """

    names: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    _layers: list[tuple[nn.Module, Resident]] = field(default_factory=list, repr=False)
    _callers: list[nn.Module] = field(default_factory=list, repr=False)

    def restore(self) -> None:
        """Undo the change; a second call does nothing. Raises as :func:`restore` does."""
        mine = [layer for layer, resident in self._layers if _resident_of(layer) is resident]
        _restore(mine, self._callers)
        self._layers.clear()
        self._callers.clear()

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


def restore(module: nn.Module) -> int:
    """Undo every :func:`accelerate` within ``module``, which may be a copy of the module that was
    accelerated, or come out of a file; returns how many layers were accelerated.

    Raises:
        RuntimeError: a layer's class was changed since, as parametrizations do; none is restored.

    >>> import copy
    >>> layer = nn.Linear(3, 2)
    >>> with accelerate(layer, device="cpu"):
    ...     replica = copy.deepcopy(layer)
    >>> restore(replica), type(replica) is nn.Linear
    (1, True)
    """
    layers = [layer for layer in module.modules() if _resident_of(layer)]
    _restore(layers, _inside_out(module))
    return len(layers)


def _resident_of(layer: nn.Module) -> Resident | None:
    return vars(layer).get("_resident")


def _inside_out(module: nn.Module) -> list[nn.Module]:
    return list(module.modules())[::-1]


def _restore(layers: list[nn.Module], callers: list[nn.Module]) -> None:
    """Give layers their classes back, then those callers that no accelerated module is left in."""
    for layer in layers:
        if "_original" not in vars(type(layer)):
            raise RuntimeError(
                f"the class of a layer is now {type(layer).__name__}, which was derived after "
                "accelerate: undo that before restore(), for parametrizations with "
                "torch.nn.utils.parametrize.remove_parametrizations"
            )
    for layer in layers:
        layer.__class__ = layer._original
        del layer.__dict__["_resident"]
    for caller in callers:
        if isinstance(caller, Unhurried) and not must_call(caller):
            caller.__class__ = caller._original


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
        nobody knows what else it does, and so are the projections of ``nn.MultiheadAttention``,
        which are no calls of layers. An ``nn.TransformerEncoderLayer`` calls its layers instead of
        going its fast path around them.

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
    try:
        for name, layer, why_not in _layers(module, match, pays or convolution_pays):
            if why_not:
                done.skipped[name] = why_not
            else:
                done._layers.append((layer, _accelerate(layer, opened, precision)))
                done.names.append(name)
        if not done.names:
            raise _nothing(module, match, done.skipped)
        for caller in filter(must_call, _inside_out(module)):
            if not isinstance(caller, Accelerated):
                caller.__class__ = accelerated(type(caller))
            done._callers.append(caller)
    except BaseException:
        done.restore()
        raise
    return done


def convolution_pays(layer: nn.Conv1d) -> bool:
    """Whether a convolution's K = in_channels * width is large enough to be worth its copies.

    >>> convolution_pays(nn.Conv1d(80, 384, 3)), convolution_pays(nn.Conv1d(1, 64, 10))
    (True, False)
    """
    return layer.in_channels * layer.kernel_size[0] >= CONVOLUTION_MIN_K


def _accelerate(layer: nn.Module, device: Device, precision: str) -> Resident:
    resident = Resident(device, precision)
    resident.packed(layer.weight)
    layer.__class__ = accelerated(type(layer))
    layer.__dict__["_resident"] = resident
    return resident


def _nothing(module: nn.Module, match: str, skipped: dict[str, str]) -> ValueError:
    why = "".join(f"; {name or 'it'}: {reason}" for name, reason in skipped.items())
    return ValueError(f"nothing to accelerate in {type(module).__name__} with match={match!r}{why}")


def _layers(
    module: nn.Module, match: str, pays: Callable[[nn.Conv1d], bool]
) -> Iterator[tuple[str, nn.Linear | nn.Conv1d, str]]:
    """Each layer whose name matches, and why it cannot be accelerated, or "" if it can."""
    readers = (each for each in module.modules() if isinstance(each, nn.MultiheadAttention))
    uncalled = {layer for reader in readers for layer in reader.children()}
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv1d) or not fnmatchcase(name, match):
            continue
        if layer in uncalled:
            yield name, layer, "MultiheadAttention reads its weight without calling it"
        else:
            yield name, layer, _why_not(layer) or _why_not_convolution(layer, pays)


def _why_not(layer: nn.Linear | nn.Conv1d) -> str:
    if isinstance(layer, Accelerated):
        return "is accelerated already: restore it first"
    if _has_own_forward(layer):
        return f"{type(layer).__qualname__} has a forward of its own"
    weight = layer._parameters.get("weight")
    if weight is None or parametrize.is_parametrized(layer):
        return "its weight or bias is no parameter, but computed before each call"
    if isinstance(weight, UninitializedParameter):
        return "its weight has no values yet: call the module once before"
    if type(weight) not in (nn.Parameter, Tensor):
        return f"its weight is a {type(weight).__name__}, whose numbers are known to it alone"
    if weight.device.type != "cpu":
        return f"its weight is on {weight.device}: move the module to the CPU first"
    if weight.dtype not in FLOATS:
        return f"its weight is {weight.dtype}"
    return ""


def _has_own_forward(layer: nn.Linear | nn.Conv1d) -> bool:
    if "forward" in vars(layer):  # put on the object, as some libraries do for their hooks
        return True
    kind = type(layer)
    if (kind.__module__, kind.__qualname__) in KNOWN:
        return False
    if isinstance(layer, nn.Linear):
        return kind.forward is not nn.Linear.forward
    own = kind.forward, kind._conv_forward
    return own != (nn.Conv1d.forward, nn.Conv1d._conv_forward)


def _why_not_convolution(layer: nn.Linear | nn.Conv1d, pays: Callable[[nn.Conv1d], bool]) -> str:
    if not isinstance(layer, nn.Conv1d):
        return ""
    if layer.groups != 1 or layer.padding_mode != "zeros":
        return "grouped, or padded with other than zeros: not one product"
    return "" if pays(layer) else "too few multiplications for each value that is copied"


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

    @torch.compiler.disable
    def forward(self, mel: Tensor) -> Tensor:
        features = self.encoder(as_array(checked(self, mel).float()))
        return torch.from_numpy(features).to(mel.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> EncoderModule:
        return EncoderModule(self.encoder).train(self.training)  # whose weights never change

    def __reduce__(self) -> str:
        raise TypeError(
            "an EncoderModule cannot be saved, because its weights lie on a device: load it again "
            "from its checkpoint"
        )
