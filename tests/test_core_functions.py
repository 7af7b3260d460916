"""The C++ core function for int8, run on the host, gives the bits of the emulated NPU's model.

``test_core_functions_bf16`` is its counterpart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
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
from npu_matmul.kernel import Kernel, kernel_folders, load_kernel, load_variants

pytestmark = requires_compiler

CONV_EVEN, SATURATE = 12, 1
# Modes another kernel may have left behind; (4, 2) are codes of no mode at all.
HOSTILE_MODES = [(0, 0), (3, 3), (13, 0), (4, 2)]
INT32 = np.iinfo(np.int32)


def variants() -> Iterator[Any]:
    """Every shipped int8 variant that has a core function, and more tile sizes of the smallest."""
    for name in kernel_folders():
        for variant, kernel in load_variants(name).items():
            if kernel.types.a == "int8" and kernel.source.is_file():
                yield pytest.param(kernel, id=f"{name}-{variant}")
    smallest = load_kernel("matmul_16x16", "int8")
    for m, k, n in [(16, 8, 16), (32, 16, 32), (16, 24, 48), (64, 64, 128)]:
        yield pytest.param(resized(smallest, m, k, n), id=f"int8-{m}x{k}x{n}")


@pytest.fixture(params=variants())
def kernel(request: pytest.FixtureRequest) -> Kernel:
    found: Kernel = request.param
    return found


@pytest.fixture
def core(kernel: Kernel) -> CoreFunction:
    function = load_core_function(kernel)
    function.reset()
    return function


def random_operands(kernel: Kernel, seed: int) -> Operands:
    """Any int8 in A and B, any int32 in C."""
    random = np.random.default_rng(seed)
    tile = kernel.tile
    return filled(
        kernel,
        random.integers(-128, 128, tile.m * tile.k),
        random.integers(-128, 128, tile.k * tile.n),
        random.integers(INT32.min, INT32.max + 1, tile.m * tile.n),
    )


def plain_product(kernel: Kernel, operands: Operands, accumulate: bool) -> NDArray[np.int32]:
    """The product by NumPy, its operands taken out of the blocked layouts index by index."""
    place_of_a, place_of_b, place_of_c = places(kernel)
    a, b = operands[0][place_of_a], operands[1][place_of_b]
    total = a.astype(np.int64) @ b.astype(np.int64)
    if accumulate:
        total += operands[2][place_of_c]
    blocked = np.empty(total.size, np.int32)
    blocked[place_of_c] = total.astype(np.int32)  # keeps the low 32 bits
    return blocked


def assert_equals_models(kernel: Kernel, core: CoreFunction, operands: Operands) -> None:
    """Both symbols give the model's and NumPy's bits, and leave A and B alone."""
    a, b, c = operands
    for symbol, accumulate in [(kernel.symbols.first, False), (kernel.symbols.next, True)]:
        made, modelled = aligned_copy(c), c.copy()
        before = a.copy(), b.copy()
        core.call(symbol, a, b, made)
        models(kernel)[symbol](a, b, modelled)
        np.testing.assert_array_equal(made, modelled, err_msg=symbol)
        np.testing.assert_array_equal(made, plain_product(kernel, operands, accumulate), symbol)
        np.testing.assert_array_equal(a, before[0])
        np.testing.assert_array_equal(b, before[1])


@pytest.mark.parametrize("seed", range(3))
def test_random_operands_give_the_models_bits(
    kernel: Kernel, core: CoreFunction, seed: int
) -> None:
    assert_equals_models(kernel, core, random_operands(kernel, seed))


def test_every_element_has_its_own_place(kernel: Kernel, core: CoreFunction) -> None:
    """Ramps of two slopes: a row, column or block in another's place changes the result."""
    tile = kernel.tile
    a = np.arange(tile.m * tile.k) * 7 % 251 - 125
    b = np.arange(tile.k * tile.n) * 5 % 241 - 120
    c = np.arange(tile.m * tile.n) * 65537
    assert_equals_models(kernel, core, filled(kernel, a, b, c))


@pytest.mark.parametrize(
    ("a", "b", "c"),
    [(-128, -128, INT32.max), (-128, 127, INT32.min), (127, 127, INT32.max), (-128, -128, 0)],
)
def test_extremes_wrap_and_do_not_saturate(
    kernel: Kernel, core: CoreFunction, a: int, b: int, c: int
) -> None:
    operands = filled(kernel, a, b, c)
    assert_equals_models(kernel, core, operands)
    core.call(kernel.symbols.next, *operands)
    true_sum = c + kernel.tile.k * a * b
    wrapped = (true_sum - INT32.min) % 2**32 + INT32.min
    assert np.all(operands[2] == wrapped)
    assert (wrapped != true_sum) == (c != 0)


def test_no_state_goes_from_call_to_call(kernel: Kernel, core: CoreFunction) -> None:
    """A chain of calls, each begun in modes another kernel may have left, is the models' chain."""
    for round_, modes in enumerate(HOSTILE_MODES):
        _, _, made = random_operands(kernel, round_)
        modelled = made.copy()
        symbols = [kernel.symbols.first, *[kernel.symbols.next] * 3]
        for step, symbol in enumerate(symbols):
            a, b, _ = random_operands(kernel, 100 * round_ + step)
            core.modes = modes
            core.call(symbol, a, b, made)
            models(kernel)[symbol](a, b, modelled)
            np.testing.assert_array_equal(made, modelled, f"{symbol}, call {step}, modes {modes}")


@pytest.mark.parametrize("modes", HOSTILE_MODES)
def test_each_symbol_sets_its_own_modes(
    kernel: Kernel, core: CoreFunction, modes: tuple[int, int]
) -> None:
    for symbol in (kernel.symbols.first, kernel.symbols.next):
        core.modes = modes
        core.call(symbol, *random_operands(kernel, 0))
        assert core.modes == (CONV_EVEN, SATURATE)


def test_exactly_the_manifests_symbols_are_exported(kernel: Kernel, core: CoreFunction) -> None:
    assert core.exported_symbols() == {kernel.symbols.first, kernel.symbols.next}


@pytest.mark.parametrize(
    ("m", "k", "n", "macro"),
    [(24, 16, 16, "DIM_M"), (16, 12, 16, "DIM_K"), (16, 16, 24, "DIM_N")],
)
def test_a_tile_that_does_not_divide_is_refused(m: int, k: int, n: int, macro: str) -> None:
    with pytest.raises(CompileError, match=f"{macro} must be a multiple of"):
        load_core_function(resized(load_kernel("matmul_16x16", "int8"), m, k, n))


@pytest.mark.parametrize("missing", ["DIM_M", "DIM_K", "DIM_N"])
def test_a_missing_size_is_refused(missing: str) -> None:
    kernel = load_kernel("matmul_16x16", "int8")
    defines = {name: value for name, value in kernel.defines.items() if name != missing}
    with pytest.raises(CompileError, match="must be defined"):
        load_source(kernel.require_source(), defines)
