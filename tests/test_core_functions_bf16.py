"""The C++ core function for bf16, run on the host, gives the bits of the emulated NPU's model, and
both follow the rule of the hardware.

``test_core_functions`` is its counterpart for int8.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from bf16_rule import CORNERS, MIXES, Corner, bf16, mixed, mixed_product
from comparing import assert_equal_floats
from core_function import (
    CompileError,
    CoreFunction,
    aligned_copy,
    load_core_function,
    load_source,
    requires_compiler,
)
from numpy.typing import NDArray
from tiles import Operands, filled, places, resized

from npu_matmul.emulator.symbols import models
from npu_matmul.kernel import Kernel, load_kernel

pytestmark = requires_compiler

CONV_EVEN, SATURATE = 12, 1
# Modes another kernel may have left behind; (4, 2) are codes of no mode at all.
HOSTILE_MODES = [(0, 0), (3, 3), (13, 0), (4, 2)]
SHIPPED = load_kernel("matmul_64x512", "bf16")
SMALL = resized(SHIPPED, 16, 24, 16)
KERNELS = [SHIPPED, SMALL, *(resized(SHIPPED, *size) for size in [(16, 8, 16), (32, 16, 48)])]


@pytest.fixture(params=KERNELS, ids=lambda k: f"{k.tile.m}x{k.tile.k}x{k.tile.n}")
def kernel(request: pytest.FixtureRequest) -> Kernel:
    found: Kernel = request.param
    return found


@pytest.fixture
def core(kernel: Kernel) -> CoreFunction:
    return fresh(kernel)


@pytest.fixture
def small_core() -> CoreFunction:
    return fresh(SMALL)


def fresh(kernel: Kernel) -> CoreFunction:
    function = load_core_function(kernel)
    function.reset()
    return function


def in_blocks(kernel: Kernel, a: Any, b: Any, c: Any) -> Operands:
    """Plain rows as the kernel's flat tiles."""
    flat = filled(kernel, 0, 0, 0)
    for tile, place, rows in zip(flat, places(kernel), (a, b, c), strict=True):
        tile[place] = rows
    return flat


def assert_equals_model(kernel: Kernel, core: CoreFunction, operands: Operands) -> None:
    """Both symbols give the model's bits, and leave A and B alone."""
    a, b, c = operands
    for symbol in (kernel.symbols.first, kernel.symbols.next):
        made, modelled = aligned_copy(c), c.copy()
        before = a.tobytes(), b.tobytes()
        core.call(symbol, a, b, made)
        models(kernel)[symbol](a, b, modelled)
        assert_equal_floats(made, modelled)
        assert (a.tobytes(), b.tobytes()) == before


@pytest.mark.parametrize("mix", MIXES)
def test_operands_of_every_kind_give_the_models_bits(
    kernel: Kernel, core: CoreFunction, mix: str
) -> None:
    tile = kernel.tile
    assert_equals_model(kernel, core, in_blocks(kernel, *mixed(mix, tile.m, tile.k, tile.n)))


@pytest.mark.parametrize("accumulate", [False, True], ids=["first", "next"])
@pytest.mark.parametrize("mix", MIXES)
def test_core_function_follows_the_rule(
    mix: str, accumulate: bool, small_core: CoreFunction
) -> None:
    tile = SMALL.tile
    a, b, c = in_blocks(SMALL, *mixed(mix, tile.m, tile.k, tile.n))
    small_core.call(SMALL.symbols.next if accumulate else SMALL.symbols.first, a, b, c)
    got = c[places(SMALL)[2]]
    assert_equal_floats(got, mixed_product(mix, tile.m, tile.k, tile.n, accumulate))


@pytest.mark.parametrize("corner", CORNERS.values(), ids=CORNERS)
def test_a_known_step(corner: Corner, small_core: CoreFunction) -> None:
    """In the first of three steps, in a lane of each of the sixteen sums that are live at once."""
    for i, j in itertools.product(range(1, 16, 4), range(2, 16, 4)):
        a, b, c = bf16(np.zeros((16, 24))), bf16(np.zeros((24, 16))), np.zeros((16, 16), np.float32)
        a[i, :8], b[:8, j], c[i, j] = bf16(corner.a), bf16(corner.b), corner.before
        flat = in_blocks(SMALL, a, b, c)
        small_core.call(SMALL.symbols.next, *flat)
        assert_equal_floats(flat[2][places(SMALL)[2]][i, j], np.float32(corner.after))


def test_every_element_has_its_own_place(kernel: Kernel, core: CoreFunction) -> None:
    """Small integers of two slopes, whose sums are exact: a row, column or block in another's place
    changes the result."""
    tile = kernel.tile
    a = bf16(np.arange(tile.m * tile.k) * 7 % 251 - 125).reshape(tile.m, tile.k)
    b = bf16(np.arange(tile.k * tile.n) * 5 % 241 - 120).reshape(tile.k, tile.n)
    c = (np.arange(tile.m * tile.n) * 37 % 100_003).astype(np.float32).reshape(tile.m, tile.n)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    for symbol, before in [(kernel.symbols.first, 0), (kernel.symbols.next, c)]:
        flat = in_blocks(kernel, a, b, c)
        core.call(symbol, *flat)
        assert_equal_floats(flat[2][places(kernel)[2]], (exact + before).astype(np.float32))
    assert_equals_model(kernel, core, in_blocks(kernel, a, b, c))


def test_no_state_goes_from_call_to_call(kernel: Kernel, core: CoreFunction) -> None:
    """A chain of calls, each begun in modes another kernel may have left, is the model's chain."""
    tile = kernel.tile
    chain = ["normals", "ties", "cancelling", "large normals"]
    for modes in HOSTILE_MODES:
        made = filled(kernel, 0, 0, np.nan)[2]
        modelled = made.copy()
        symbols = [kernel.symbols.first, *[kernel.symbols.next] * 3]
        for symbol, mix in zip(symbols, chain, strict=True):
            a, b, _ = in_blocks(kernel, *mixed(mix, tile.m, tile.k, tile.n))
            core.modes = modes
            core.call(symbol, a, b, made)
            models(kernel)[symbol](a, b, modelled)
            assert_equal_floats(made, modelled)


def test_sums_are_near_the_float64_product(kernel: Kernel, core: CoreFunction) -> None:
    """The bound and its reason stand with the model's test of the same name."""
    tile = kernel.tile
    a, b, c = mixed("normals", tile.m, tile.k, tile.n)
    flat = in_blocks(kernel, a, b, c)
    core.call(kernel.symbols.first, *flat)
    true: NDArray[Any] = a.astype(np.float64) @ b.astype(np.float64)
    error = np.linalg.norm(flat[2][places(kernel)[2]] - true) / np.linalg.norm(true)
    assert error < 2e-6 * tile.k**0.5


@pytest.mark.parametrize("modes", HOSTILE_MODES)
def test_each_symbol_sets_its_own_modes(
    kernel: Kernel, core: CoreFunction, modes: tuple[int, int]
) -> None:
    for symbol in (kernel.symbols.first, kernel.symbols.next):
        core.modes = modes
        core.call(symbol, *filled(kernel, 0, 0, 0))
        assert core.modes == (CONV_EVEN, SATURATE)


def test_exactly_the_manifests_symbols_are_exported(kernel: Kernel, core: CoreFunction) -> None:
    assert core.exported_symbols() == {kernel.symbols.first, kernel.symbols.next}


@pytest.mark.parametrize(
    ("m", "k", "n", "macro"),
    [(24, 8, 16, "DIM_M"), (16, 12, 16, "DIM_K"), (16, 8, 24, "DIM_N")],
)
def test_a_tile_that_does_not_divide_is_refused(m: int, k: int, n: int, macro: str) -> None:
    with pytest.raises(CompileError, match=f"{macro} must be a multiple of"):
        load_core_function(resized(SHIPPED, m, k, n))


@pytest.mark.parametrize("missing", ["DIM_M", "DIM_K", "DIM_N"])
def test_a_missing_size_is_refused(missing: str) -> None:
    defines = {name: value for name, value in SHIPPED.defines.items() if name != missing}
    with pytest.raises(CompileError, match="must be defined"):
        load_source(SHIPPED.require_source(), defines)
