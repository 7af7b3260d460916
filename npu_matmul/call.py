"""One call: on which device, with which kernel, strategy and precision it computes, and what it
took."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.choose import choose
from npu_matmul.device import (
    Counters,
    Device,
    DeviceError,
    DeviceUnavailable,
    HostDevice,
    NpuDevice,
    open_device,
)
from npu_matmul.host.product import HostMatrix
from npu_matmul.kernel import Kernel, KernelNotBuilt, NoKernel, load_variants
from npu_matmul.packed import PackedMatrix
from npu_matmul.precision import Operand, Precision, Scales, converted, scales_of
from npu_matmul.report import CallReport, calls
from npu_matmul.strategies import STRATEGIES, Product, Stages
from npu_matmul.tiler import TileGrid

log = logging.getLogger("npu_matmul")
_WITHOUT_KERNELS = "device {!r} computes without kernels and launches"
_given_up: set[str] = set()


@dataclass
class Call:
    """See the module's docstring. ``result`` is the element type of what comes out; ``out`` is
    where a single product may be written straight away."""

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
    out: NDArray[Any] | None = None
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
            self.reason = self.reason or _WITHOUT_KERNELS.format(self.device.name)
            return
        assert isinstance(self.device, NpuDevice)
        if kernel is None and strategy is None and self._is_small(a, b):
            return
        packed_for = b.kernel if isinstance(b, PackedMatrix) else None
        if packed_for is not None:
            _check_same_kernel(packed_for, kernel)
        problem = *_problem(a.shape, b.shape), self.precision.terms
        try:
            choice = choose(
                self.device, self.precision.types, problem, packed_for or kernel, strategy
            )
        except NoKernel as error:
            if self.on_error == "raise":
                raise
            self._give_up(error)
            return
        self.kernel, self.strategy = choice.kernel, choice.strategy
        why = "B is packed for it" if packed_for else choice.why
        self.reason = f"kernel {self.kernel.name}: {why}; strategy {self.strategy}: {choice.how}"

    def _is_small(self, a: NDArray[Any], b: NDArray[Any] | PackedMatrix) -> bool:
        """Whether packing such a product would cost more than computing it; a packed B is
        packed."""
        assert isinstance(self.device, NpuDevice)
        work, limit = math.prod(_problem(a.shape, b.shape)), self.device.host_below
        self.on_host = not isinstance(b, PackedMatrix) and work < limit
        if self.on_host:
            each = "" if b.ndim == 2 else " each"
            self.reason = (
                f"computed on the CPU: {work:,} multiplications{each}, host_below={limit:,}"
            )
        return self.on_host

    def product(self, a: NDArray[Any], b: NDArray[Any] | PackedMatrix) -> NDArray[Any]:
        """The product, or each product of the stack, of operands of at least two dimensions."""
        if b.ndim == 2:
            rows = a.reshape(math.prod(a.shape[:-1]), a.shape[-1])
            return self.matrix_product(rows, b, self._target(rows, b)).reshape(
                *a.shape[:-1], b.shape[1]
            )
        assert not isinstance(b, PackedMatrix)
        depth, columns = b.shape[-2:]
        stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        own = (1,) * (len(stack) + 2 - b.ndim) + b.shape[:-2]
        a, b = np.broadcast_to(a, stack + a.shape[-2:]), b.reshape(*own, depth, columns)
        result = np.empty((*stack, a.shape[-2], columns), self.result)
        for index in np.ndindex(*own):  # each matrix of B once, with all rows that it multiplies
            place = tuple(slice(None) if own[i] == 1 else index[i] for i in range(len(own)))
            left, part = a[place], result[place]
            height = math.prod(left.shape[:-1])
            out = part.reshape(height, columns) if part.flags.c_contiguous else None
            made = self.matrix_product(left.reshape(height, depth), b[index], out)
            if out is None:
                part[...] = made.reshape(part.shape)
        return result

    def matrix_product(
        self,
        a: NDArray[Any],
        b: NDArray[Any] | PackedMatrix,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """(M, K) @ (K, N) in the result's element type, into ``out`` if it is given."""
        if 0 in (*a.shape, b.shape[1]):
            out = self._result(a, b) if out is None else out
            out[...] = 0
            return out
        if self.on_host or isinstance(self.device, HostDevice):
            return self._on_host(a, b, out)
        with self.stages.stage("convert"):
            left = self.precision.a(a)
            right = b if isinstance(b, PackedMatrix) else self.precision.b(b)
            scales = None
            if left.scale is not None and right.scale is not None:
                scales = scales_of(left.scale, right.scale)
        out = self._result(a, b) if out is None else out
        try:
            return self._on_npu(left, right, out, scales)
        except (DeviceError, KernelNotBuilt) as error:
            if self.on_error == "raise":
                raise
            self._give_up(error)
            return self._on_host(a, b, out)

    def _result(self, a: NDArray[Any], b: NDArray[Any] | PackedMatrix) -> NDArray[Any]:
        return np.empty((a.shape[0], b.shape[1]), self.result)

    def _on_npu(
        self, a: Operand, b: Operand | PackedMatrix, out: NDArray[Any], scales: Scales | None
    ) -> NDArray[Any]:
        assert isinstance(self.device, NpuDevice) and self.kernel and self.strategy
        (M, K), N = a.source.shape, out.shape[1]
        grid = TileGrid(self.kernel, M, K, N, self.precision.terms)
        loaded = self.device.load(self.kernel)
        self.padding, self.arithmetic = grid.padding, loaded.arithmetic
        given = b.buffer if isinstance(b, PackedMatrix) else b
        product = Product(loaded, grid, a, given, self.stages, out=out, scales=scales)
        return STRATEGIES[self.strategy](product)

    def _on_host(
        self, a: NDArray[Any], b: NDArray[Any] | PackedMatrix, out: NDArray[Any] | None
    ) -> NDArray[Any]:
        host = self.device if isinstance(self.device, HostDevice) else open_device("cpu")
        assert isinstance(host, HostDevice)
        how = self.precision
        with self.stages.stage("pack"):
            if not isinstance(b, PackedMatrix):
                packed = host.pack(how.b(b))
            elif b.device is host:
                packed = b.content
            else:
                packed = host.pack(converted(b.operand(), b.scale))
        with self.stages.stage("compute"):
            result, self.arithmetic = host.multiply(a, packed, how, self.result, out)
        self.padding = 0.0
        return result

    def _target(self, a: NDArray[Any], b: NDArray[Any] | PackedMatrix) -> NDArray[Any] | None:
        """``out`` as (M, N), where the product can be written to it straight away."""
        if self.out is None or not _fits(self.out, a, self.result):
            return None
        return self.out.reshape(a.shape[0], b.shape[1])

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


def straight(
    a: NDArray[Any], b: PackedMatrix, result: np.dtype[Any], out: NDArray[Any] | None
) -> NDArray[Any] | None:
    """One product (M, K) @ (K, N) on the host that packed B, into ``out`` if it is given, and its
    report; or None, where that does not suit and a :class:`Call` is needed.

    A call's own Python lies in no cache beside a product's operands: there it takes 50 to 100 us
    more, of a product that may take a millisecond.
    """
    device, packed = b.device, b.content
    if not device.direct or not isinstance(packed, HostMatrix) or 0 in (*a.shape, b.shape[1]):
        return None
    if out is not None and not _fits(out, a, result):
        return None
    assert isinstance(device, HostDevice)
    start_s = time.perf_counter()
    product, arithmetic = device.multiply(a, packed, b.precision, result, out)
    calls.last = CallReport(
        device=device.name,
        precision=b.precision.name,
        arithmetic=arithmetic,
        reason=_WITHOUT_KERNELS.format(device.name),
        seconds={"compute": time.perf_counter() - start_s},
    )
    return product


def _fits(out: NDArray[Any], a: NDArray[Any], result: np.dtype[Any]) -> bool:
    """Whether a product can be written to ``out`` straight away: it is of the result's very type,
    one piece of memory, and apart from A."""
    apart = out.flags.c_contiguous and not np.may_share_memory(a, out)
    return out.dtype == result and apart


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
    if kernel is None or kernel in (packed_for, packed_for.name):
        return
    name = kernel.name if isinstance(kernel, Kernel) else kernel
    other = repr(name) if name != packed_for.name else "another one of that name"
    cure = "that kernel" if isinstance(kernel, Kernel) else repr(name)
    raise ValueError(
        f"B is packed for kernel {packed_for.name!r}, the call is for {other}; pack it for that "
        f"one: pack_b(B, kernel={cure})"
    )


def _problem(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, int, int]:
    """M, K, N of one matrix product of the call, at least 1 each: an empty one needs no kernel.
    Rows of A that have the same matrix of B are those of one product."""
    stack = np.broadcast_shapes(a[:-2], b[:-2])
    own = (1,) * (len(stack) + 2 - len(b)) + b[:-2]
    rows = math.prod(size for size, of_b in zip(stack, own, strict=True) if of_b == 1) * a[-2]
    return max(1, rows), max(1, a[-1]), max(1, b[-1])
