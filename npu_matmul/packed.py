"""A matrix B that was converted and packed once and stays on its device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from npu_matmul.device import Buffer, Device
from npu_matmul.host.product import HostMatrix, Panels
from npu_matmul.kernel import Kernel
from npu_matmul.precision import EXACT, Precision
from npu_matmul.quick import Quick, quick_product
from npu_matmul.tiler import TileGrid, unpack_b


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A matrix B (K, N), made by ``pack_b`` and used in B's place, on the device and with the
    kernel it was packed for. ``dtype`` is that of the matrix it was made from, ``precision`` how
    it was converted. ``quick`` is the short way for small exact products on the host, where there
    is one."""

    device: Device
    kernel: Kernel | None
    precision: Precision
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    content: Buffer | HostMatrix | NDArray[Any] = field(repr=False)
    scale: NDArray[Any] | None = field(repr=False, default=None)
    quick: Quick | None = field(repr=False, default=None, init=False)

    def __post_init__(self) -> None:
        matrix = self.content.content if isinstance(self.content, HostMatrix) else None
        if self.precision is EXACT and isinstance(matrix, Panels):
            object.__setattr__(self, "quick", quick_product(self.device, matrix))

    @property
    def ndim(self) -> int:
        return 2

    @property
    def buffer(self) -> Buffer:
        """Where it lies on an NPU."""
        assert isinstance(self.content, Buffer)
        return self.content

    def operand(self) -> NDArray[Any]:
        """The matrix (terms * K, N) in the kernel's element type."""
        if isinstance(self.content, HostMatrix):
            return self.content.matrix()
        if not isinstance(self.content, Buffer):
            return self.content
        assert self.kernel is not None
        depth, columns = self.shape
        grid = TileGrid(self.kernel, 1, depth, columns, self.precision.terms)
        return unpack_b(self.content.host.view(self.kernel.b_dtype), grid)

    def __copy__(self) -> PackedMatrix:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedMatrix:
        """Itself: nothing of it ever changes, and it stays where it lies."""
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} lies on a device of this process and cannot be pickled; pass the matrix B "
            "that it was made from, and pack that where it is used: pack_b(B)"
        )

    def __repr__(self) -> str:
        where = f"device={self.device.name!r}"
        if self.kernel is not None:
            where += f", kernel={self.kernel.name!r}"
        return f"<PackedMatrix {self.shape} {self.dtype} as {self.precision.name}, {where}>"
