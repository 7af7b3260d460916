"""``npu_matmul``: NumPy's product, computed on a device.

Comes in: operands as a caller of ``np.matmul`` has them. Goes down: two-dimensional products with
a kernel and a strategy. A reader who follows one call to the bottom goes on in ``strategies.py``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from npu_matmul.accumulate import clip_to_int8
from npu_matmul.choose import choose_kernel
from npu_matmul.device import (
    Buffer,
    Counters,
    Device,
    DeviceError,
    HostDevice,
    NpuDevice,
    open_device,
)
from npu_matmul.kernel import Kernel
from npu_matmul.operands import check_operand, check_out, check_precision, result_shape, result_type
from npu_matmul.report import CallReport, remember
from npu_matmul.strategies import STRATEGIES, Product, Stages, pack_resident
from npu_matmul.tiler import TileGrid, unpack_b

log = logging.getLogger("npu_matmul")


class PackedMatrix:
    """A matrix B (K, N) that was packed once and stays on its device; made by :func:`pack_b`.

    It is used in B's place, on the device and with the kernel it was packed for.
    """

    ndim = 2
    dtype = np.dtype(np.int8)

    def __init__(
        self,
        device: Device,
        kernel: Kernel | None,
        shape: tuple[int, int],
        content: Buffer | NDArray[np.int8],
    ) -> None:
        self.device = device
        self.kernel = kernel
        self.shape = shape
        self.content = content

    def to_array(self) -> NDArray[np.int8]:
        """The matrix again, as a new array."""
        if not isinstance(self.content, Buffer):
            return np.array(self.content)
        assert self.kernel is not None
        packed = self.content.host.view(self.kernel.b_dtype)
        matrix: NDArray[np.int8] = unpack_b(packed, TileGrid(self.kernel, 1, *self.shape))
        return matrix

    def __repr__(self) -> str:
        where = f"device={self.device.name!r}" + (
            f", kernel={self.kernel.name!r}" if self.kernel else ""
        )
        return f"<PackedMatrix {self.shape} {self.dtype}, {where}>"


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
    """The matrix product of int8 operands, as ``np.matmul``, on an NPU, an emulated one, or the
    CPU.

    Sums are exact in INT32. The result is int8 **saturated** to [-128, 127] where NumPy would wrap
    around silently; ``dtype=np.int32`` gives the accumulators themselves, equal to
    ``np.matmul(A.astype(np.int32), B.astype(np.int32))``. (Beyond K = 131,071 extreme operands can
    exceed INT32; the accumulators then wrap as NumPy's do.)

    Parameters
    ----------
    A, B
        int8, shapes as for ``np.matmul``: 1-D operands are promoted, leading dimensions broadcast.
        B may be a :class:`PackedMatrix`.
    out
        An array of the result's shape and element type; filled and returned.
    dtype
        ``np.int8`` (default) or ``np.int32``.
    precision
        Applies to float operands; int8 products are exact, so it must be left out.
    device
        A name for :func:`open_device`, or a device; default ``$NPU_MATMUL_DEVICE``, else "auto".
    kernel
        A kernel's name; default: the one with the least padded work.
    strategy
        "batched" (default), "output_tile" or "sequential".
    on_error
        "raise", or "cpu" to finish on the CPU when the device fails; ``last_call()`` then says so.

    Raises
    ------
    TypeError for element types that are not supported, ValueError for shapes (in NumPy's words)
    and for unknown names, ``DeviceError`` when the device fails.

    >>> A = np.array([[100, 2]], np.int8)
    >>> B = np.array([[3, -50], [1, 0]], np.int8)
    >>> npu_matmul(A, B, device="cpu")
    array([[ 127, -128]], dtype=int8)
    >>> npu_matmul(A, B, dtype=np.int32, device="cpu")
    array([[  302, -5000]], dtype=int32)
    """
    a = np.asarray(A)
    b = B if isinstance(B, PackedMatrix) else np.asarray(B)
    kind = result_type(a, b, dtype)
    check_precision(precision)
    shape = result_shape(a.shape, b.shape)
    if out is not None:
        check_out(out, shape, kind)
    call = _Call(_device_for(b, device), on_error)
    call.choose(a, b, kernel, strategy)
    with call.device.record() as counters:
        accumulators = call.product(a, b)
    result: NDArray[Any] = accumulators.reshape(shape)
    if kind == np.int8:
        with call.stages.stage("clip"):
            result = clip_to_int8(result)
    if out is not None:
        with call.stages.stage("out"):
            out[...] = result
    remember(call.report(counters))
    return out if out is not None else result[()]


def pack_b(
    B: ArrayLike,
    *,
    kernel: str | Kernel | None = None,
    device: str | Device | None = None,
    precision: str | None = None,
) -> PackedMatrix:
    """Pack a matrix B (K, N) of int8 for a device and keep it there: later calls move only A.

    >>> weights = pack_b(np.array([[1, 2], [3, 4]], np.int8), device="cpu")
    >>> npu_matmul(np.array([1, 1], np.int8), weights)
    array([4, 6], dtype=int8)
    """
    b = np.asarray(B)
    check_operand("B", b.dtype)
    check_precision(precision)
    if b.ndim != 2:
        raise ValueError(f"pack_b: B has {b.ndim} dimensions; only a matrix (K, N) can be packed")
    opened = _opened(device)
    if not isinstance(opened, NpuDevice) or b.size == 0:
        return PackedMatrix(opened, None, b.shape, np.array(b, order="C"))
    chosen, _ = choose_kernel(kernel, (1, *b.shape))
    buffer = pack_resident(opened.load(chosen), TileGrid(chosen, 1, *b.shape), b)
    return PackedMatrix(opened, chosen, b.shape, buffer)


@dataclass
class _Call:
    """Where and how one call computes, and what it took."""

    device: Device
    on_error: str
    kernel: Kernel | None = None
    strategy: str | None = None
    reason: str = ""
    padding: float = 0.0
    fell_back: bool = False
    stages: Stages = field(default_factory=Stages)

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "cpu"):
            raise ValueError(f"on_error={self.on_error!r}: allowed are 'raise' and 'cpu'")

    def choose(
        self,
        a: NDArray[Any],
        b: NDArray[Any] | PackedMatrix,
        kernel: str | Kernel | None,
        strategy: str | None,
    ) -> None:
        """Settle kernel and strategy, and why."""
        if strategy is not None and strategy not in STRATEGIES:
            raise ValueError(
                f"there is no strategy {strategy!r}; known are: {', '.join(STRATEGIES)}"
            )
        if isinstance(self.device, HostDevice):
            self.reason = f"device {self.device.name!r} computes without kernels and launches"
            return
        if isinstance(b, PackedMatrix) and b.kernel is not None:
            _check_same_kernel(b.kernel, kernel)
            self.kernel, why = b.kernel, "B is packed for it"
        else:
            self.kernel, why = choose_kernel(kernel, _problem(a.shape, b.shape))
        self.strategy, how = (strategy, "as asked") if strategy else ("batched", "fewest launches")
        self.reason = f"kernel {self.kernel.name}: {why}; strategy {self.strategy}: {how}"

    def product(self, a: NDArray[Any], b: NDArray[Any] | PackedMatrix) -> NDArray[np.int32]:
        """The accumulators of the product, or of each product of the stack."""
        a = a[np.newaxis] if a.ndim == 1 else a
        if not isinstance(b, PackedMatrix):
            b = b[:, np.newaxis] if b.ndim == 1 else b
        if isinstance(b, PackedMatrix) or b.ndim == 2:
            return self.matrix_product(_rows(a), b)
        stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a = np.broadcast_to(a, stack + a.shape[-2:])
        b = np.broadcast_to(b, stack + b.shape[-2:])
        result = np.zeros((*stack, a.shape[-2], b.shape[-1]), np.int32)
        for index in np.ndindex(*stack):
            result[index] = self.matrix_product(a[index], b[index])
        return result

    def matrix_product(self, a: NDArray[Any], b: NDArray[Any] | PackedMatrix) -> NDArray[np.int32]:
        """(M, K) @ (K, N) as INT32."""
        if 0 in (*a.shape, b.shape[1]):
            return np.zeros((a.shape[0], b.shape[1]), np.int32)
        if isinstance(self.device, HostDevice):
            return self._on_host(self.device, a, b)
        try:
            return self._on_npu(a, b)
        except DeviceError as error:
            if self.on_error == "raise":
                raise
            self._give_up(error)
            host = open_device("cpu")
            assert isinstance(host, HostDevice)
            return self._on_host(host, a, b)

    def _on_npu(self, a: NDArray[Any], b: NDArray[Any] | PackedMatrix) -> NDArray[np.int32]:
        assert (
            isinstance(self.device, NpuDevice)
            and self.kernel is not None
            and self.strategy is not None
        )
        grid = TileGrid(self.kernel, a.shape[0], *b.shape)
        operand = b.content if isinstance(b, PackedMatrix) else b
        self.padding = grid.padding
        strategy = STRATEGIES[self.strategy]
        return strategy(Product(self.device.load(self.kernel), grid, a, operand, self.stages))

    def _on_host(
        self, host: HostDevice, a: NDArray[Any], b: NDArray[Any] | PackedMatrix
    ) -> NDArray[np.int32]:
        with self.stages.stage("compute"):
            return host.matmul_int8(a, b.to_array() if isinstance(b, PackedMatrix) else b)

    def _give_up(self, error: DeviceError) -> None:
        """Say, once per device, that its calls end on the CPU; the report says so every time."""
        name = self.device.name
        if name not in _given_up:
            _given_up.add(name)
            log.warning(
                "device %r failed; finishing on the CPU, as on_error='cpu' asks: %s", name, error
            )
        self.reason = f"finished on the CPU: device {name!r} failed: {str(error).splitlines()[0]}"
        self.padding = 0.0
        self.fell_back = True

    def report(self, counters: Counters) -> CallReport:
        return CallReport(
            device="cpu" if self.fell_back else self.device.name,
            kernel=None if self.kernel is None else self.kernel.name,
            strategy=self.strategy,
            reason=self.reason,
            seconds=dict(self.stages.seconds),
            padding=self.padding,
            **counters.as_dict(),
        )


_given_up: set[str] = set()


def _opened(device: str | Device | None) -> Device:
    return device if isinstance(device, Device) else open_device(device or "auto")


def _device_for(b: NDArray[Any] | PackedMatrix, device: str | Device | None) -> Device:
    """The device of a call: the one asked for, which must be that of a packed B."""
    if not isinstance(b, PackedMatrix):
        return _opened(device)
    if device is not None and _opened(device) is not b.device:
        raise ValueError(
            f"B is packed for device {b.device.name!r}, the call is for "
            f"{_opened(device).name!r}; pack it there: "
            f"pack_b(B, device={_opened(device).name!r})"
        )
    return b.device


def _check_same_kernel(packed_for: Kernel, kernel: str | Kernel | None) -> None:
    name = kernel.name if isinstance(kernel, Kernel) else kernel
    if name is not None and name != packed_for.name:
        raise ValueError(
            f"B is packed for kernel {packed_for.name!r}, the call is for "
            f"{name!r}; pack it for that one: "
            f"pack_b(B, kernel={name!r})"
        )


def _problem(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, int, int]:
    """M, K, N of one matrix product of the call, at least 1 each: an empty product needs no
    kernel."""
    rows = a[:-1] if len(b) <= 2 else a[-2:-1]
    columns = b[-1] if len(b) > 1 else 1
    return max(1, int(np.prod(rows))), max(1, a[-1]), max(1, columns)


def _rows(a: NDArray[Any]) -> NDArray[Any]:
    """All rows of a stack as one matrix; ``reshape(-1, K)`` cannot count them when K is 0."""
    return a.reshape(int(np.prod(a.shape[:-1])), a.shape[-1])
