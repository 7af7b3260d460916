"""``npu_matmul``: NumPy's product, computed on a device.

Comes in: operands as a caller of ``np.matmul`` has them. Goes down: two-dimensional products with
a kernel and a strategy. A reader who follows one call to the bottom goes on in ``call.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from npu_matmul.call import Call, call_on, straight
from npu_matmul.choose import MANY_ROWS, choose_kernel
from npu_matmul.device import Device, HostDevice, NpuDevice, open_device
from npu_matmul.kernel import Kernel, load_variants
from npu_matmul.operands import (
    as_operand,
    check_out,
    check_precision,
    choose_precision,
    result_shape,
    result_type,
)
from npu_matmul.packed import PackedMatrix
from npu_matmul.precision import EXACT, Operand, Precision, QuantiseError
from npu_matmul.report import calls
from npu_matmul.strategies import pack_resident
from npu_matmul.tiler import TileGrid
from npu_matmul.timeline import listening


def npu_matmul(
    A: ArrayLike,
    B: ArrayLike | PackedMatrix,
    /,
    out: NDArray[Any] | None = None,
    *,
    dtype: DTypeLike | None = None,
    precision: str | None = None,
    device: str | Device | None = None,
    kernel: str | Kernel | None = None,
    strategy: str | None = None,
    on_error: str = "raise",
) -> Any:
    """The matrix product, as ``np.matmul``, on an NPU, an emulated one, or the CPU.

    **int8 with int8**: sums are exact in INT32. The result is int8 **saturated** to [-128, 127]
    where NumPy would wrap around silently; ``dtype=np.int32`` gives the sums themselves, equal to
    ``np.matmul(A.astype(np.int32), B.astype(np.int32))``. (Beyond K = 131,071 extreme operands can
    exceed INT32; the sums then wrap as NumPy's do.)

    **Floats** (float16, bfloat16, float32, float64, also with int8): the result's type is what
    ``np.result_type`` gives (as of ``np.matmul``, but that bfloat16 with bfloat16 or int8 stays
    bfloat16); ``precision`` says how it is computed:

    - "bf16" (default): operands rounded to bf16, sums in f32;
    - "bf16x3": each operand as two bf16 terms, three products, sums in f32;
    - "int8": A quantised by row and B by column, exact INT32 sums, scaled back. NaN and infinity
      are refused, which pass through the other two as IEEE says; so is K beyond 133,144.

    Parameters
    ----------
    A, B
        Shapes as for ``np.matmul``: 1-D operands are promoted, leading dimensions broadcast. B may
        be a :class:`PackedMatrix`.
    out
        An array of the result's shape and element type; filled and returned.
    dtype
        Another element type of the result: ``np.int32`` for int8, any of the floats for floats.
    precision
        For floats: "bf16", "bf16x3" or "int8". For int8 it must be left out.
    device
        A name for :func:`open_device`, or a device; default ``$NPU_MATMUL_DEVICE``, else "auto".
    kernel
        A kernel's name, or a :class:`Kernel`; default: the one of the least modelled time.
    strategy
        "batched", "output_tile" or "sequential"; default: the one of the least modelled time.
    on_error
        "raise", or "cpu" to compute on the CPU when the device fails or cannot be opened;
        ``last_call()`` then says so.

    Raises
    ------
    TypeError for element types that are not supported, ValueError for shapes (in NumPy's words)
    and for unknown names (of a kernel: ``UnknownKernel``), ``KernelNotBuilt`` when a real NPU has
    no overlay of the kernel, ``DeviceError`` when the device fails.

    >>> A = np.array([[100, 2]], np.int8)
    >>> B = np.array([[3, -50], [1, 0]], np.int8)
    >>> npu_matmul(A, B, device="cpu")
    array([[ 127, -128]], dtype=int8)
    >>> npu_matmul(A, B, dtype=np.int32, device="cpu")
    array([[  302, -5000]], dtype=int32)
    >>> npu_matmul(A.astype(np.float32), B, device="cpu")
    array([[  302., -5000.]], dtype=float32)
    """
    plain = precision is None and device is None and kernel is None and strategy is None
    if plain and out is not None and type(B) is PackedMatrix and on_error == "raise":
        quick = B.quick
        if quick is not None and quick.run(A, out, dtype):
            calls.last = quick.report
            return out
    return _in_full(A, B, out, dtype, precision, device, kernel, strategy, on_error)


def _in_full(
    A: ArrayLike,
    B: ArrayLike | PackedMatrix,
    out: NDArray[Any] | None,
    dtype: DTypeLike | None,
    precision: str | None,
    device: str | Device | None,
    kernel: str | Kernel | None,
    strategy: str | None,
    on_error: str,
) -> Any:
    """:func:`npu_matmul` but for its short way, which the variables of this one would slow down."""
    if isinstance(A, PackedMatrix):
        raise TypeError("npu_matmul: only B can be packed; pass A as an array")
    a = as_operand("A", A)
    b = B if isinstance(B, PackedMatrix) else as_operand("B", B)
    how = _precision(a, b, precision)
    kind = result_type(a.dtype, b.dtype, dtype, how)
    shape = result_shape(a.shape, b.shape)
    if out is not None:
        check_out(out, shape, kind)
    plain = kernel is None and strategy is None and on_error == "raise"
    try:
        if plain and isinstance(b, PackedMatrix) and a.ndim == 2 and device in (None, b.device):
            result = straight(a, b, kind, out)
            if result is not None:
                return result
        call = call_on(lambda: _device_for(b, device), how, kind, on_error)
        a = a[np.newaxis] if a.ndim == 1 else a
        if not isinstance(b, PackedMatrix) and b.ndim == 1:
            b = b[:, np.newaxis]
        call.choose(a, b, kernel, strategy)
        call.out = out
        if listening.listener is None:
            return _computed(call, a, b, shape)
        with listening.span("npu_matmul", A=list(a.shape), B=list(b.shape)) as shown:
            result = _computed(call, a, b, shape)
            if shown is not None:
                shown.details.update(calls.last.shown())
            return result
    except QuantiseError as error:  # of one matrix: say where in the caller's array it is
        raise QuantiseError(np.asarray(A if error.name == "A" else B), error.name) from None


def _computed(
    call: Call, a: NDArray[Any], b: NDArray[Any] | PackedMatrix, shape: tuple[int, ...]
) -> Any:
    """The product as the caller wants it; leaves the call's report."""
    out = call.out
    with call.device.record() as counters:
        result = call.product(a, b).reshape(shape)
    if out is not None and not np.may_share_memory(out, result):
        with call.stages.stage("out"):
            out[...] = result
    calls.last = call.report(counters)
    return out if out is not None else result[()]


@listening.spanned("pack_b")
def pack_b(
    B: ArrayLike,
    *,
    kernel: str | Kernel | None = None,
    device: str | Device | None = None,
    precision: str | None = None,
) -> PackedMatrix:
    """Convert and pack a matrix B (K, N) for a device and keep it there: later calls move only A.

    ``precision`` is as for :func:`npu_matmul`; an int8 matrix is packed for exact products with
    int8 unless a precision is given, which packs it for products with floats. ``kernel`` and
    ``device`` are as for :func:`npu_matmul`; later calls may name no others.

    Raises TypeError for what is no matrix of a supported element type, ValueError for another
    number of dimensions, unknown names, and NaN or infinity in "int8", ``KernelNotBuilt`` and
    ``DeviceError`` as :func:`npu_matmul` does.

    >>> weights = pack_b(np.array([[1, 2], [3, 4]], np.int8), device="cpu")
    >>> npu_matmul(np.array([1, 1], np.int8), weights)
    array([4, 6], dtype=int8)
    """
    if isinstance(B, PackedMatrix):
        raise TypeError("pack_b: B is packed already; pass the matrix that it was made from")
    b = as_operand("B", B)
    if b.ndim != 2:
        raise ValueError(f"pack_b: B has {b.ndim} dimensions; only a matrix (K, N) can be packed")
    partner = np.dtype(np.int8 if precision is None else np.float32)
    how = choose_precision(partner, b.dtype, precision)
    if isinstance(kernel, str):
        load_variants(kernel)  # a name that does not exist is an error on every device
    operand = how.b(b)
    opened = _opened(device)
    if not isinstance(opened, NpuDevice) or b.size == 0:
        keep = opened.pack if isinstance(opened, HostDevice) else _copied
        content: Any = keep(operand)
        return PackedMatrix(opened, None, how, b.shape, b.dtype, content, operand.scale)
    problem = MANY_ROWS, *b.shape, how.terms
    chosen, _ = choose_kernel(kernel, how.types, problem, opened.target, opened.can_load)
    content = pack_resident(opened.load(chosen), TileGrid(chosen, *problem), operand)
    return PackedMatrix(opened, chosen, how, b.shape, b.dtype, content, operand.scale)


def _copied(b: Operand) -> NDArray[Any]:
    return np.array(b.matrix, order="C")


def _precision(a: NDArray[Any], b: NDArray[Any] | PackedMatrix, precision: str | None) -> Precision:
    """How the product is computed; a packed B has settled it."""
    if not isinstance(b, PackedMatrix):
        return choose_precision(a.dtype, b.dtype, precision)
    check_precision(precision)
    if precision is not None and precision != b.precision.name:
        raise ValueError(
            f"B is packed as {b.precision.name!r}, the call asks for "
            f"{precision!r}; pack it for that: "
            f"pack_b(B, precision={precision!r})"
        )
    if b.precision is EXACT and a.dtype != np.int8:
        raise TypeError(
            f"B is packed for exact int8 products, A is {a.dtype}; pack it for floats: "
            "pack_b(B, precision='bf16')"
        )
    return b.precision


def _opened(device: str | Device | None) -> Device:
    return device if isinstance(device, Device) else open_device(device or "auto")


def _device_for(b: NDArray[Any] | PackedMatrix, device: str | Device | None) -> Device:
    """The device of a call: the one asked for, which must be that of a packed B."""
    if not isinstance(b, PackedMatrix):
        return _opened(device)
    if b.device.closed:
        raise ValueError(
            f"B is packed for a device {b.device.name!r} that was closed; pack it again: pack_b(B)"
        )
    if device is not None and _opened(device) is not b.device:
        name = _opened(device).name
        raise ValueError(
            f"B is packed for device {b.device.name!r}, the call is for {name!r}; pack it there: "
            f"pack_b(B, device={name!r})"
        )
    return b.device
