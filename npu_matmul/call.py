"""One call: on which device, with which kernel, strategy and precision it computes, and what it
took."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.accumulate import clip_to_int8
from npu_matmul.choose import choose_kernel
from npu_matmul.device import (
    Buffer,
    Counters,
    Device,
    DeviceError,
    DeviceUnavailable,
    HostDevice,
    NpuDevice,
    open_device,
)
from npu_matmul.kernel import Kernel, KernelNotBuilt, load_variants
from npu_matmul.packed import PackedMatrix
from npu_matmul.precision import Operand, Precision, dequantise
from npu_matmul.report import CallReport
from npu_matmul.strategies import STRATEGIES, Product, Stages
from npu_matmul.tiler import TileGrid

log = logging.getLogger("npu_matmul")
_given_up: set[str] = set()


@dataclass
class Call:
    """See the module's docstring. ``result`` is the element type of what comes out."""

    device: Device
    precision: Precision
    result: np.dtype[Any]
    on_error: str
    kernel: Kernel | None = None
    strategy: str | None = None
    reason: str = ""
    arithmetic: str = ""
    padding: float = 0.0
    on_host: bool = False
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
        if isinstance(kernel, str):
            load_variants(kernel)  # a name that does not exist is an error on every device
        if isinstance(self.device, HostDevice):
            computes = f"device {self.device.name!r} computes without kernels and launches"
            self.reason = self.reason or computes
            return
        assert isinstance(self.device, NpuDevice)
        if self._is_small(a, b):
            return
        if isinstance(b, PackedMatrix) and b.kernel is not None:
            _check_same_kernel(b.kernel, kernel)
            self.kernel, why = b.kernel, "B is packed for it"
        else:
            problem = _problem(a.shape, b.shape, self.precision.terms)
            self.kernel, why = choose_kernel(
                kernel, self.precision.types, problem, self.device.target, self.device.can_load
            )
        self.strategy, how = (strategy, "as asked") if strategy else ("batched", "fewest launches")
        self.reason = f"kernel {self.kernel.name}: {why}; strategy {self.strategy}: {how}"

    def _is_small(self, a: NDArray[Any], b: NDArray[Any] | PackedMatrix) -> bool:
        """Whether packing such a product would cost more than computing it; a packed B is
        packed."""
        assert isinstance(self.device, NpuDevice)
        work, limit = a.size * b.shape[-1], self.device.host_below
        self.on_host = not isinstance(b, PackedMatrix) and work < limit
        if self.on_host:
            self.reason = f"computed on the CPU: {work:,} multiplications, host_below={limit:,}"
        return self.on_host

    def product(self, a: NDArray[Any], b: NDArray[Any] | PackedMatrix) -> NDArray[Any]:
        """The product, or each product of the stack, of operands of at least two dimensions."""
        if b.ndim == 2:
            rows = a.reshape(int(np.prod(a.shape[:-1])), a.shape[-1])
            return self.matrix_product(rows, b).reshape(*a.shape[:-1], b.shape[1])
        assert not isinstance(b, PackedMatrix)
        stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a = np.broadcast_to(a, stack + a.shape[-2:])
        b = np.broadcast_to(b, stack + b.shape[-2:])
        result = np.zeros((*stack, a.shape[-2], b.shape[-1]), self.result)
        for index in np.ndindex(*stack):
            result[index] = self.matrix_product(a[index], b[index])
        return result

    def matrix_product(self, a: NDArray[Any], b: NDArray[Any] | PackedMatrix) -> NDArray[Any]:
        """(M, K) @ (K, N) in the result's element type."""
        if 0 in (*a.shape, b.shape[1]):
            return np.zeros((a.shape[0], b.shape[1]), self.result)
        with self.stages.stage("convert"):
            left = self.precision.a(a)
            right: NDArray[Any] | PackedMatrix
            if isinstance(b, PackedMatrix):
                right, scale = b, b.scale
            else:
                converted = self.precision.b(b)
                right, scale = converted.matrix, converted.scale
        sums = self._sums(left.matrix, right)
        with self.stages.stage("finish"):
            return self._finished(sums, left, scale)

    def _finished(
        self, sums: NDArray[Any], left: Operand, scale: NDArray[np.float64] | None
    ) -> NDArray[Any]:
        if left.scale is not None and scale is not None:
            sums = dequantise(sums, left.scale, scale)
        if self.result == np.int8:
            return clip_to_int8(sums)
        with np.errstate(over="ignore"):
            return sums.astype(self.result, copy=False)

    def _sums(self, a: NDArray[Any], b: NDArray[Any] | PackedMatrix) -> NDArray[Any]:
        if self.on_host or isinstance(self.device, HostDevice):
            return self._on_cpu(a, b)
        try:
            return self._on_npu(a, b)
        except (DeviceError, KernelNotBuilt) as error:
            if self.on_error == "raise":
                raise
            self._give_up(error)
            return self._on_cpu(a, b)

    def _on_npu(self, a: NDArray[Any], b: NDArray[Any] | PackedMatrix) -> NDArray[Any]:
        assert isinstance(self.device, NpuDevice) and self.kernel and self.strategy
        content: NDArray[Any] | Buffer = b.content if isinstance(b, PackedMatrix) else b
        grid = TileGrid(self.kernel, a.shape[0], a.shape[1], b.shape[1])
        loaded = self.device.load(self.kernel)
        self.padding, self.arithmetic = grid.padding, loaded.arithmetic
        return STRATEGIES[self.strategy](Product(loaded, grid, a, content, self.stages))

    def _on_cpu(self, a: NDArray[Any], b: NDArray[Any] | PackedMatrix) -> NDArray[Any]:
        host = self.device if isinstance(self.device, HostDevice) else open_device("cpu")
        assert isinstance(host, HostDevice)
        self.padding, self.arithmetic = 0.0, host.arithmetic(a.dtype)
        with self.stages.stage("compute"):
            return host.product(a, b.operand() if isinstance(b, PackedMatrix) else b)

    def _give_up(self, error: Exception) -> None:
        """Say, once per device, that its calls end on the CPU; the report says so every time."""
        name = self.device.name
        if name not in _given_up:
            _given_up.add(name)
            log.warning(
                "device %r failed; finishing on the CPU, as on_error='cpu' asks: %s", name, error
            )
        first_line = str(error).splitlines()[0]
        self.reason = f"finished on the CPU: device {name!r} failed: {first_line}"
        self.on_host = True

    def report(self, counters: Counters) -> CallReport:
        return CallReport(
            device="cpu" if self.on_host else self.device.name,
            kernel=None if self.kernel is None else self.kernel.name,
            strategy=self.strategy,
            precision=self.precision.name,
            arithmetic=self.arithmetic,
            reason=self.reason,
            seconds=dict(self.stages.seconds),
            padding=self.padding,
            **counters.as_dict(),
        )


def call_on(
    open_it: Callable[[], Device], precision: Precision, result: np.dtype[Any], on_error: str
) -> Call:
    """A call on the device that ``open_it`` opens; on the CPU where there is no such device and
    ``on_error`` is "cpu"."""
    try:
        return Call(open_it(), precision, result, on_error)
    except DeviceUnavailable as error:
        if on_error != "cpu":
            raise
        first_line = str(error).splitlines()[0]
        if first_line not in _given_up:
            _given_up.add(first_line)
            log.warning("computing on the CPU, as on_error='cpu' asks: %s", error)
        reason = f"computed on the CPU: {first_line}"
        return Call(open_device("cpu"), precision, result, on_error, reason=reason)


def _check_same_kernel(packed_for: Kernel, kernel: str | Kernel | None) -> None:
    name = kernel.name if isinstance(kernel, Kernel) else kernel
    if name is not None and name != packed_for.name:
        raise ValueError(
            f"B is packed for kernel {packed_for.name!r}, the call is "
            f"for {name!r}; pack it for that "
            f"one: pack_b(B, kernel={name!r})"
        )


def _problem(a: tuple[int, ...], b: tuple[int, ...], terms: int) -> tuple[int, int, int]:
    """M, K, N of one matrix product of the call, at least 1 each: an empty one needs no kernel."""
    rows = a[:-1] if len(b) == 2 else a[-2:-1]
    return max(1, int(np.prod(rows))), max(1, terms * a[-1]), max(1, b[-1])
