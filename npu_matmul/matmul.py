"""``npu_matmul``: NumPy's rules for shapes and types, around products on a device.

Comes in: operands as a caller of ``np.matmul`` has them. Goes down: two-dimensional products with a kernel
and a strategy. A reader who wants one call from top to bottom goes on in ``strategies.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from npu_matmul.accumulate import clip_to_int8
from npu_matmul.device import Counters, Device, DeviceError, HostDevice, NpuDevice, open_device
from npu_matmul.kernel import Kernel, UnknownKernel, kernel_folders, load_variants
from npu_matmul.report import CallReport, remember
from npu_matmul.schedule import cover
from npu_matmul.strategies import STRATEGIES, Product, Stages, pack_resident
from npu_matmul.tiler import TileGrid, unpack_b

log = logging.getLogger("npu_matmul")

RESULT_TYPES = (np.dtype(np.int8), np.dtype(np.int32))
_noticed: set[str] = set()


class PackedMatrix:
    """A matrix B that was packed once and stays on its device; made by :func:`pack_b`, used in B's place."""

    def __init__(self, device: Device, kernel: Kernel | None, shape: tuple[int, int], content: Any) -> None:
        self.device = device
        self.kernel = kernel
        self.shape = shape
        self.dtype = np.dtype(np.int8)
        self.ndim = 2
        self._content = content

    def __repr__(self) -> str:
        where = f"{self.device.name!r}" + (f", kernel={self.kernel.name!r}" if self.kernel else "")
        return f"<PackedMatrix {self.shape} {self.dtype} on device={where}>"

    def to_array(self) -> NDArray[np.int8]:
        """The matrix (K, N) that was packed."""
        if self.kernel is None:
            return np.array(self._content)
        grid = TileGrid(self.kernel, 1, *self.shape)
        return unpack_b(self._content.host.view(self.kernel.b_dtype), grid)


def npu_matmul(
    A: ArrayLike,
    B: ArrayLike | PackedMatrix,
    /,
    out: NDArray[Any] | None = None,
    *,
    dtype: DTypeLike = None,
    precision: str | None = None,
    device: str | Device | None = None,
    kernel: str | Kernel | None = None,
    strategy: str | None = None,
    on_error: str = "raise",
) -> Any:
    """The matrix product of int8 operands, as ``np.matmul``, on an NPU, an emulated one, or the CPU.

    Sums are exact in INT32. The result is int8 **saturated** to [-128, 127] where NumPy would wrap around
    silently; ``dtype=np.int32`` gives the accumulators themselves, equal to
    ``np.matmul(A.astype(np.int32), B.astype(np.int32))``. (Beyond K = 131,071 extreme operands can exceed
    INT32; the accumulators then wrap as NumPy's do.)

    Parameters
    ----------
    A, B : int8, shapes as for ``np.matmul``: 1-D operands are promoted, leading dimensions broadcast.
        B may be a :class:`PackedMatrix`.
    out : an array of the result's shape and dtype, filled and returned.
    dtype : ``np.int8`` (default) or ``np.int32``.
    precision : applies to float operands; int8 products are exact, so it must be left out.
    device : a name for :func:`open_device`, or a device; default ``$NPU_MATMUL_DEVICE``, else "auto".
    kernel : a kernel's name; default: the one with the least padding.
    strategy : "batched" (default), "output_tile" or "sequential".
    on_error : "raise", or "cpu" to finish on the CPU when the device fails, with the same result;
        ``last_call()`` then says so.

    Raises
    ------
    TypeError for element types that are not supported, ValueError for shapes (in NumPy's words) and
    unknown names, ``DeviceError`` when the device fails.

    >>> A = np.array([[100, 2]], np.int8)
    >>> B = np.array([[3, -50], [1, 0]], np.int8)
    >>> npu_matmul(A, B, device="cpu")
    array([[ 127, -128]], dtype=int8)
    >>> npu_matmul(A, B, dtype=np.int32, device="cpu")
    array([[  302, -5000]], dtype=int32)
    """
    a = np.asarray(A)
    b = B if isinstance(B, PackedMatrix) else np.asarray(B)
    result_type = _result_type(a, b, dtype, precision)
    if on_error not in ("raise", "cpu"):
        raise ValueError(f"on_error={on_error!r}: allowed are 'raise' and 'cpu'")
    shape = _result_shape(a, b, out, result_type)
    call = _Call.of(a, b, device, kernel, strategy, on_error)
    with call.counted() as counters:
        accumulators = call.product(a, b)
    with call.stages.stage("clip"):
        result = clip_to_int8(accumulators) if result_type == np.int8 else accumulators
    result = result.reshape(shape)
    if out is not None:
        with call.stages.stage("out"):
            out[...] = result
        result = out
    remember(call.report(counters))
    return result[()]


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
    _check_operand("B", b.dtype)
    _check_precision(precision)
    if b.ndim != 2:
        raise ValueError(f"pack_b: B has {b.ndim} dimensions; only a matrix (K, N) can be packed")
    opened = _device(device)
    if not isinstance(opened, NpuDevice) or b.size == 0:
        return PackedMatrix(opened, None, b.shape, np.array(b, order="C"))
    chosen, _ = _kernel(kernel, (1, *b.shape))
    buffer = pack_resident(opened.load(chosen), TileGrid(chosen, 1, *b.shape), b)
    return PackedMatrix(opened, chosen, b.shape, buffer)


@dataclass
class _Call:
    """Where and how one call computes, and what it took."""

    device: Device
    kernel: Kernel | None
    strategy: str | None
    reason: str
    on_error: str
    stages: Stages
    padding: float = 0.0

    @classmethod
    def of(
        cls,
        a: NDArray[Any],
        b: NDArray[Any] | PackedMatrix,
        device: str | Device | None,
        kernel: str | Kernel | None,
        strategy: str | None,
        on_error: str,
    ) -> _Call:
        if strategy is not None and strategy not in STRATEGIES:
            raise ValueError(f"there is no strategy {strategy!r}; known are: {', '.join(STRATEGIES)}")
        opened = b.device if isinstance(b, PackedMatrix) and device is None else _device(device)
        if isinstance(b, PackedMatrix):
            _check_packed(b, opened, kernel)
        if isinstance(opened, HostDevice):
            return cls(opened, None, None, f"device {opened.name!r} computes without launches", on_error, Stages())
        if isinstance(b, PackedMatrix) and b.kernel is not None:
            chosen, why = b.kernel, "B is packed for it"
        else:
            chosen, why = _kernel(kernel, _problem(a, b))
        how = "as asked" if strategy else "fewest launches"
        strategy = strategy or "batched"
        reason = f"kernel {chosen.name}: {why}; strategy {strategy}: {how}"
        return cls(opened, chosen, strategy, reason, on_error, Stages())

    @contextmanager
    def counted(self) -> Iterator[Counters]:
        with self.device.record() as counters:
            yield counters

    def product(self, a: NDArray[Any], b: NDArray[Any] | PackedMatrix) -> NDArray[np.int32]:
        """The accumulators of the whole, possibly stacked, product, before they get the result's shape."""
        a = a[np.newaxis] if a.ndim == 1 else a
        if not isinstance(b, PackedMatrix) and b.ndim == 1:
            b = b[:, np.newaxis]
        if isinstance(b, PackedMatrix) or b.ndim == 2:
            rows = a.reshape(-1, a.shape[-1])
            return self.matrix_product(rows, b).reshape(*a.shape[:-1], b.shape[1])
        stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a = np.broadcast_to(a, stack + a.shape[-2:])
        b = np.broadcast_to(b, stack + b.shape[-2:])
        result = np.empty(stack + (a.shape[-2], b.shape[-1]), np.int32)
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
        assert isinstance(self.device, NpuDevice) and self.kernel is not None and self.strategy is not None
        grid = TileGrid(self.kernel, a.shape[0], *b.shape)
        loaded = self.device.load(self.kernel)
        operand = b._content if isinstance(b, PackedMatrix) else b
        self.padding = grid.padding
        return STRATEGIES[self.strategy](Product(loaded, grid, a, operand, self.stages))

    def _on_host(
        self, host: HostDevice, a: NDArray[Any], b: NDArray[Any] | PackedMatrix
    ) -> NDArray[np.int32]:
        self.padding = 0.0
        with self.stages.stage("compute"):
            return host.matmul_int8(a, b.to_array() if isinstance(b, PackedMatrix) else b)

    def _give_up(self, error: DeviceError) -> None:
        if self.device.name not in _noticed:
            _noticed.add(self.device.name)
            log.warning("device %r failed, finishing on the CPU as on_error='cpu' asks: %s", self.device.name, error)
        first_line = str(error).splitlines()[0]
        self.reason = f"finished on the CPU after device {self.device.name!r} failed: {first_line}"
        self.fell_back = True

    fell_back: bool = False

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


def _device(device: str | Device | None) -> Device:
    return device if isinstance(device, Device) else open_device(device)


def _kernel(kernel: str | Kernel | None, problem: tuple[int, int, int]) -> tuple[Kernel, str]:
    """The kernel to use and why: the one asked for, else least padding, then fewest launches."""
    if isinstance(kernel, Kernel):
        return kernel, "as asked"
    if kernel is not None:
        variant = _int8_variant(kernel)
        if variant is None:
            raise UnknownKernel(f"kernel {kernel!r} has no variant for int8 operands")
        variant.require_source()
        return variant, "as asked"
    found = [variant for name in kernel_folders() if (variant := _int8_variant(name)) is not None]
    candidates = [candidate for candidate in found if candidate.source.is_file()]
    if not candidates:
        raise UnknownKernel("no kernel for int8 operands was found")
    if len(candidates) == 1:
        return candidates[0], "the only one for int8"
    grids = [TileGrid(candidate, *problem) for candidate in candidates]
    best = min(grids, key=lambda grid: (grid.padding, len(cover(grid))))
    return best.kernel, f"least padding of {len(candidates)} kernels"


def _int8_variant(name: str) -> Kernel | None:
    variants = load_variants(name).values()
    return next((v for v in variants if (v.types.a, v.types.b, v.types.c) == ("int8", "int8", "int32")), None)


def _problem(a: NDArray[Any], b: NDArray[Any] | PackedMatrix) -> tuple[int, int, int]:
    """M, K, N of one matrix product, 1 for what is empty (an empty product needs no kernel)."""
    columns = b.shape[-1] if b.ndim > 1 else 1
    rows = a.size // max(1, a.shape[-1]) if b.ndim <= 2 else (a.shape[-2] if a.ndim > 1 else 1)
    return max(1, rows), max(1, a.shape[-1]), max(1, columns)


def _result_type(
    a: NDArray[Any], b: NDArray[Any] | PackedMatrix, dtype: DTypeLike, precision: str | None
) -> np.dtype[Any]:
    _check_operand("A", a.dtype)
    _check_operand("B", b.dtype)
    _check_precision(precision)
    result = np.dtype(np.int8 if dtype is None else dtype)
    if result not in RESULT_TYPES:
        raise TypeError(f"npu_matmul: dtype={result}: int8 products give np.int8 (saturated) or np.int32 (exact)")
    return result


def _check_operand(name: str, dtype: np.dtype[Any]) -> None:
    if dtype == np.int8:
        return
    if np.issubdtype(dtype, np.integer) or dtype == np.bool_:
        cure = f"if its values lie in [-128, 127], pass {name}.astype(np.int8)"
    else:
        cure = f"quantise it, for example np.clip(np.rint({name} / scale), -128, 127).astype(np.int8)"
    raise TypeError(f"npu_matmul: operand {name} is {dtype}; both operands must be int8: {cure}")


def _check_precision(precision: str | None) -> None:
    if precision is not None:
        raise ValueError(f"precision={precision!r} applies to float operands; int8 products are exact: leave it out")


def _check_packed(b: PackedMatrix, device: Device, kernel: str | Kernel | None) -> None:
    if b.device is not device:
        raise ValueError(
            f"B is packed for device {b.device.name!r}, the call is for {device.name!r}; "
            f"pack it there: pack_b(B, device={device.name!r})"
        )
    name = kernel.name if isinstance(kernel, Kernel) else kernel
    if name is not None and b.kernel is not None and b.kernel.name != name:
        raise ValueError(
            f"B is packed for kernel {b.kernel.name!r}, the call is for {name!r}; pack it for that: "
            f"pack_b(B, kernel={name!r})"
        )


def _result_shape(
    a: NDArray[Any], b: NDArray[Any] | PackedMatrix, out: NDArray[Any] | None, result_type: np.dtype[Any]
) -> tuple[int, ...]:
    """The shape ``np.matmul`` would give; where it would refuse, it does, in its own words."""
    try:
        if 0 in (a.ndim, b.ndim) or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
            raise ValueError
        shape = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        np.matmul(_stand_in(a.shape), _stand_in(b.shape))
        raise AssertionError("np.matmul accepts shapes that were refused") from None
    shape += a.shape[-2:-1] + (b.shape[-1:] if b.ndim > 1 else ())
    if out is None:
        return shape
    if not isinstance(out, np.ndarray):
        raise TypeError("return arrays must be of ArrayType")
    if out.dtype != result_type:
        raise TypeError(
            f"npu_matmul: out is {out.dtype}, the result is {result_type}; pass dtype=np.int32 with an int32 out, "
            "nothing with an int8 one"
        )
    if out.shape != shape:
        raise ValueError(f"npu_matmul: out has shape {out.shape}; the result has {shape}")
    if not out.flags.writeable:
        raise ValueError("output array is read-only")
    return shape


def _stand_in(shape: tuple[int, ...]) -> NDArray[np.int8]:
    """An array of any shape that takes one byte."""
    return np.broadcast_to(np.zeros((), np.int8), shape)
