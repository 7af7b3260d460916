"""Every rule of the aie_api stand-in refuses a snippet that breaks just that rule."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
from core_function import (
    CompileError,
    CoreFunction,
    StandInError,
    aligned,
    aligned_copy,
    check_compiles,
    compiler_messages,
    load_text,
    requires_compiler,
)
from numpy.typing import NDArray
from rounding import ROUNDING_MODES, rounded

pytestmark = requires_compiler

PREAMBLE = """
#include <aie_api/aie.hpp>
using Mmul = aie::mmul<4, 8, 8, int8, int8, acc32>;
using Sums = aie::accum<acc32, 32>;
using A = aie::vector<int8, 32>;
using B = aie::vector<int8, 64>;
using C = aie::vector<int32, 32>;
"""

# ---- Rules the compiler enforces ----------------------------------------------------------------

GOOD_BODY = "Mmul c(aie::zeros<acc32, 32>()); c.mac(A(), B());"

# The body of a function, and what the compiler's message must contain: the broken rule's name, or
# where a compiler leaves it out the rule's subject.
REFUSED: dict[str, tuple[str, str]] = {
    "loop_hints_of_another_header": ("AIE_PREPARE_FOR_PIPELINING", "AIE_PREPARE_FOR_PIPELINING"),
    "mmul_of_a_composed_shape": ("aie::mmul<8, 8, 8, int8, int8, acc32> c;", "native_mmul"),
    "mmul_of_no_shape": ("aie::mmul<4, 4, 8, int8, int8, acc32> c;", "native_mmul"),
    "mmul_of_int16": ("aie::mmul<4, 8, 8, int16, int8, acc32> c;", "native_mmul"),
    "mmul_of_unsigned": ("aie::mmul<4, 8, 8, int8, uint8_t, acc32> c;", "native_mmul"),
    "mmul_with_acc64": ("aie::mmul<4, 8, 8, int8, int8, acc64> c;", "native_mmul"),
    "mac_with_another_type": ("Mmul c; c.mac(aie::vector<int16, 32>(), B());", "exact_operand"),
    "mac_with_a_short_vector": ("Mmul c; c.mac(aie::vector<int8, 16>(), B());", "exact_operand"),
    "mac_with_a_long_vector": ("Mmul c; c.mac(A(), aie::vector<int8, 128>());", "exact_operand"),
    "mac_with_operands_swapped": ("Mmul c; c.mac(B(), A());", "exact_operand"),
    "mul_with_operands_swapped": ("Mmul c; c.mul(B(), A());", "exact_operand"),
    "mmul_from_a_vector_of_another_size": ("Mmul c(aie::zeros<int32, 16>());", "exact_operand"),
    "mmul_from_a_narrow_vector": ("Mmul c(aie::zeros<int8, 32>());", "exact_operand"),
    "mmul_set_to_sums_of_another_size": (
        "Mmul c; c = aie::zeros<acc32, 16>();",
        "no match for 'operator='|no viable overloaded",
    ),
    "accum_from_a_narrow_vector": ("Sums c(aie::zeros<int16, 32>());", "same_element"),
    "accum_of_another_size": ("aie::accum<acc32, 4> c;", "accum_of_256_to_1024_bits"),
    "accum_without_storage": ("aie::accum<acc64, 16> c;", "accum_of_256_to_1024_bits"),
    "zeros_of_another_size": (
        "aie::zeros<acc32, 64>();",
        "accum_of_256_to_1024_bits|class template 'accum'",
    ),
    "vector_of_64_bits": ("aie::vector<int8, 8> v;", "vector_of_128_to_1024_bits"),
    "vector_of_2048_bits": ("aie::vector<int32, 64> v;", "vector_of_128_to_1024_bits"),
    "vector_of_odd_size": ("aie::vector<int8, 48> v;", "vector_of_128_to_1024_bits"),
    "vector_of_another_type": ("aie::vector<long, 16> v;", "vector_element"),
    "load_of_no_vector": ("const int8* p = nullptr; aie::load_v<8>(p);", "vector_of_128_to_1024"),
    "to_vector_of_no_vector": (
        "Mmul c; c.to_vector<long>();",
        "vector_of_128_to_1024_bits|class template 'vector'",
    ),
    "store_as_another_type": ("int8* p = nullptr; aie::store_v(p, C());", "same_element"),
    "store_to_const": ("const int32* p = nullptr; aie::store_v(p, C());", "same_element"),
    "lanes_without_a_load": ("A a; a.lanes[0] = 1;", "private"),
}


@pytest.fixture(scope="module")
def compiler_says() -> dict[str, str]:
    """The compiler's message for each of REFUSED."""
    return compiler_messages({name: body for name, (body, _) in REFUSED.items()}, PREAMBLE)


def test_what_obeys_the_rules_compiles() -> None:
    assert compiler_messages({"good": GOOD_BODY}, PREAMBLE) == {"good": ""}


@pytest.mark.parametrize("name", REFUSED)
def test_compiler_refuses(name: str, compiler_says: dict[str, str]) -> None:
    message = compiler_says[name]
    assert message.count(" error: ") == 1, message or "it compiled"
    assert re.search(REFUSED[name][1], message), message


def test_needs_cxx20() -> None:
    with pytest.raises(CompileError, match="aie_api needs C\\+\\+20"):
        check_compiles(PREAMBLE, "-std=c++17")


# ---- Rules kept at run time ---------------------------------------------------------------------

UNSET_MMUL = "mmul is read before its first mul or mac"
OUTSIDE = "the address is outside all operands"
SHIFT_INTO_SUMS = "sums from a vector of int32: the shift must be 0"

# Operands of the snippets: a and b are int8[128] inputs, c is int32[64].
# The body of a function of (a, b, c), and what the objection must contain.
OBJECTED: dict[str, tuple[str, str]] = {
    "store_of_undefined": ("aie::store_v(c, C());", "store_v: the vector is undefined"),
    "mac_of_undefined_a": ("Mmul m; m.mac(A(), aie::load_v<64>(b));", "operand a is undefined"),
    "mac_of_undefined_b": ("Mmul m; m.mac(aie::load_v<32>(a), B());", "operand b is undefined"),
    "mul_of_undefined_a": ("Mmul m; m.mul(A(), aie::load_v<64>(b));", "operand a is undefined"),
    "mul_of_undefined_b": ("Mmul m; m.mul(aie::load_v<32>(a), B());", "operand b is undefined"),
    "mac_onto_undefined_sums": (
        "Sums s; Mmul m(s); m.mac(aie::load_v<32>(a), aie::load_v<64>(b));",
        "mac: the accumulator is undefined",
    ),
    "mac_onto_undefined_sums_assigned": (
        "Sums s; Mmul m; m = s; m.mac(aie::load_v<32>(a), aie::load_v<64>(b));",
        "mac: the accumulator is undefined",
    ),
    "sums_from_undefined": ("C v; Mmul m(v);", "sums from a vector: the vector is undefined"),
    "to_vector_of_undefined": (
        "Sums s; s.to_vector<int32>();",
        "to_vector: the accumulator is undefined",
    ),
    "to_vector_before_any_mac": ("Mmul m; m.to_vector<int32>();", UNSET_MMUL),
    "to_accum_before_any_mac": ("Mmul m; m.to_accum();", UNSET_MMUL),
    "conversion_before_any_mac": ("Mmul m; Sums s = m; s.to_vector<int32>();", UNSET_MMUL),
    "load_of_256_bits_misaligned": (
        "aie::load_v<32>(a + 16);",
        "load_v of 32 bytes at offset 16 of operand a: the address is not 32-byte aligned",
    ),
    "load_of_512_bits_misaligned": (
        "aie::load_v<64>(b + 16);",
        "load_v of 64 bytes at offset 16 of operand b: the address is not 32-byte aligned",
    ),
    "load_of_128_bits_misaligned": (
        "aie::load_v<16>(a + 8);",
        "load_v of 16 bytes at offset 8 of operand a: the address is not 16-byte aligned",
    ),
    "store_misaligned": (
        "aie::store_v(c + 4, aie::zeros<int32, 32>());",
        "store_v of 128 bytes at offset 16 of operand c: the address is not 32-byte aligned",
    ),
    "load_across_the_end": (
        "aie::load_v<64>(a + 96);",
        "load_v of 64 bytes at offset 96 of operand a: runs past its 128 bytes",
    ),
    "store_across_the_end": (
        "aie::store_v(c + 40, aie::zeros<int32, 32>());",
        "store_v of 128 bytes at offset 160 of operand c: runs past its 256 bytes",
    ),
    "load_after_the_end": ("aie::load_v<32>(a + 128);", f"load_v of 32 bytes: {OUTSIDE}"),
    "load_before_the_begin": ("aie::load_v<32>(b - 32);", f"load_v of 32 bytes: {OUTSIDE}"),
    "load_from_elsewhere": (
        "alignas(32) static int8 own[32]; aie::load_v<32>(own);",
        f"load_v of 32 bytes: {OUTSIDE}",
    ),
    "store_elsewhere": (
        "alignas(32) static int8 own[32]; aie::store_v(own, aie::zeros<int8, 32>());",
        f"store_v of 32 bytes: {OUTSIDE}",
    ),
    "store_into_an_input": (
        "aie::store_v(const_cast<int8*>(b), aie::zeros<int8, 32>());",
        "store_v of 32 bytes at offset 0 of operand b: it is an input",
    ),
    "shift_into_mmul": ("Mmul m(aie::load_v<32>(c), 1);", SHIFT_INTO_SUMS),
    "shift_into_accum": ("Sums s(aie::load_v<32>(c), -1);", SHIFT_INTO_SUMS),
    "shift_of_accum_to_int32": (
        "aie::zeros<acc32, 32>().to_vector<int32>(1);",
        "to_vector with shift 1: acc32 to int32 is a plain copy",
    ),
    "shift_of_mmul_to_int32": (
        "Mmul m(aie::zeros<acc32, 32>()); m.to_vector<int32>(7);",
        "to_vector with shift 7: acc32 to int32 is a plain copy",
    ),
    "shift_below_0": (
        "aie::zeros<acc32, 32>().to_vector<int8>(-1);",
        "to_vector with shift -1: must be within 0..31",
    ),
    "shift_above_31": (
        "aie::zeros<acc32, 32>().to_vector<int16>(32);",
        "to_vector with shift 32: must be within 0..31",
    ),
    "rounding_code_of_no_mode": (
        "aie::set_rounding(aie::rounding_mode{4}); aie::zeros<acc32, 32>().to_vector<int8>(1);",
        "crRnd holds 4, which is no rounding mode",
    ),
    "saturation_code_of_no_mode": (
        "aie::set_saturation(aie::saturation_mode{2}); aie::zeros<acc32, 32>().to_vector<int8>();",
        "crSat holds 2, which is no saturation mode",
    ),
}

ACCEPTED: dict[str, str] = {
    "first_mac_ignores_what_was_there": """
        Mmul m;
        m.mac(aie::load_v<32>(a), aie::load_v<64>(b));
        aie::store_v(c, m.to_vector<int32>());""",
    "second_mac_adds": """
        Mmul m;
        m.mac(aie::load_v<32>(a), aie::load_v<64>(b));
        m.mac(aie::load_v<32>(a), aie::load_v<64>(b));
        aie::store_v(c, m.to_vector<int32>());""",
    "mac_adds_to_a_vector": """
        Mmul m(aie::load_v<32>(c));
        m.mac(aie::load_v<32>(a), aie::load_v<64>(b));
        aie::store_v(c, m.to_vector<int32>());""",
    "mac_adds_to_assigned_sums": """
        aie::accum<acc32, 32> sums(aie::load_v<32>(c));
        Mmul m;
        m = sums;
        m.mac(aie::load_v<32>(a), aie::load_v<64>(b));
        aie::store_v(c, m.to_vector<int32>());""",
    "mul_overwrites": """
        Mmul m(aie::load_v<32>(c));
        m.mul(aie::load_v<32>(a), aie::load_v<64>(b));
        aie::store_v(c, m.to_vector<int32>());""",
    "accauto_of_two_rows": """
        aie::mmul<2, 8, 8, int8> m;
        m.mac(aie::load_v<16>(a + 16), aie::load_v<64>(b));
        aie::store_v(c, m.to_accum().to_vector<int32>());""",
    "markers_do_nothing": """
        int8* restrict own = nullptr;
        event0();
        for (int i = 0; i < 1; ++i) c[i] = own == nullptr;
        event1();""",
    "modes_are_read_set_and_swapped": """
        c[0] = static_cast<int32>(aie::swap_rounding(aie::rounding_mode::conv_odd));
        c[1] = static_cast<int32>(aie::get_rounding());
        c[2] = static_cast<int32>(aie::swap_saturation(aie::saturation_mode::symmetric));
        c[3] = static_cast<int32>(aie::get_saturation());""",
}

# The 512 int32 of a, shifted by b[0], as narrower elements in c.
CONVERSIONS = "".join(
    f"""
extern "C" void to_{t}(const int32* a, const int8* b, {t}* c) {{
  for (int i = 0; i < 512; i += 32) {{
    const aie::accum<acc32, 32> sums(aie::load_v<32>(a + i));
    aie::store_v(c + i, sums.to_vector<{t}>(b[0]));
  }}
}}
"""
    for t in ("int8", "int16", "int32")
)


@pytest.fixture(scope="module")
def library() -> CoreFunction:
    """All snippets in one library: compiling is what takes time."""
    bodies = {name: body for name, (body, _) in OBJECTED.items()} | ACCEPTED
    functions = (
        f"void {name}([[maybe_unused]] const int8* a, [[maybe_unused]] const int8* b,"
        f" [[maybe_unused]] int32* c) {{ {body} }}\n"
        for name, body in bodies.items()
    )
    snippets = f'extern "C" {{\n{"".join(functions)}}}\n'
    return load_text(PREAMBLE + snippets + CONVERSIONS)


@pytest.fixture
def core(library: CoreFunction) -> CoreFunction:
    library.reset()
    return library


def operands() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    random = np.random.default_rng(0)
    return (
        aligned_copy(random.integers(-128, 128, 128).astype(np.int8)),
        aligned_copy(random.integers(-128, 128, 128).astype(np.int8)),
        aligned_copy(random.integers(-(2**31), 2**31, 64).astype(np.int32)),
    )


@pytest.mark.parametrize("name", OBJECTED)
def test_stand_in_objects_to(name: str, core: CoreFunction) -> None:
    with pytest.raises(StandInError, match=re.escape(f"{name}: {OBJECTED[name][1]}")):
        core.call(name, *operands())


@pytest.mark.parametrize(
    ("name", "before", "macs"),
    [
        ("first_mac_ignores_what_was_there", 0, 1),
        ("second_mac_adds", 0, 2),
        ("mac_adds_to_a_vector", 1, 1),
        ("mac_adds_to_assigned_sums", 1, 1),
        ("mul_overwrites", 0, 1),
    ],
)
def test_mmul_starts_from(name: str, before: int, macs: int, core: CoreFunction) -> None:
    a, b, c = operands()
    product = a[:32].reshape(4, 8).astype(np.int64) @ b[:64].reshape(8, 8).astype(np.int64)
    expected = (before * c[:32].astype(np.int64) + macs * product.ravel()).astype(np.int32)
    untouched = c[32:].copy()
    core.call(name, a, b, c)
    np.testing.assert_array_equal(c[:32], expected)
    np.testing.assert_array_equal(c[32:], untouched)


def test_two_row_mmul_loads_128_bits_and_keeps_accauto(core: CoreFunction) -> None:
    a, b, c = operands()
    core.call("accauto_of_two_rows", a, b, c)
    product = a[16:32].reshape(2, 8).astype(np.int32) @ b[:64].reshape(8, 8).astype(np.int32)
    np.testing.assert_array_equal(c[:16], product.ravel())


@pytest.mark.parametrize("sign", [1, -1])
def test_mac_wraps_and_does_not_saturate(sign: int, core: CoreFunction) -> None:
    a, b, c = operands()
    a[:], b[:], c[:] = -128, (-128 if sign > 0 else 127), (2**31 - 1 if sign > 0 else -(2**31))
    core.modes = (0, 1)
    expected = int(c[0]) + 8 * int(a[0]) * int(b[0]) - sign * 2**32
    core.call("mac_adds_to_a_vector", a, b, c)
    assert set(c[:32].tolist()) == {expected}


def test_markers_do_nothing(core: CoreFunction) -> None:
    a, b, c = operands()
    core.call("markers_do_nothing", a, b, c)
    assert c[0] == 1


def test_modes_start_at_floor_and_none_and_outlive_a_call(core: CoreFunction) -> None:
    a, b, c = operands()
    assert core.modes == (0, 0)
    core.call("modes_are_read_set_and_swapped", a, b, c)
    assert c[:4].tolist() == [0, 13, 0, 3]
    core.call("mul_overwrites", a, b, c)
    assert core.modes == (13, 3)


def test_modes_outlive_an_objection(core: CoreFunction) -> None:
    with pytest.raises(StandInError):
        core.call("rounding_code_of_no_mode", *operands())
    assert core.modes == (4, 0)


def test_each_library_is_a_core_of_its_own(core: CoreFunction) -> None:
    other = load_text(PREAMBLE)
    other.modes = (12, 1)
    assert core.modes == (0, 0)


def test_operands_must_be_aligned(core: CoreFunction) -> None:
    a, b, c = operands()
    with pytest.raises(ValueError, match="operand a must be contiguous and aligned"):
        core.call("mul_overwrites", a[1:], b, c)
    with pytest.raises(ValueError, match="operand c must be contiguous and aligned"):
        core.call("mul_overwrites", a, b, c[::2])


# ---- Conversions --------------------------------------------------------------------------------

NONE, SATURATE, SYMMETRIC = 0, 1, 3


def fitted(value: int, bits: int, mode: int) -> int:
    """value as a signed number of so many bits."""
    most = (1 << bits - 1) - 1
    if mode == NONE:
        return (value + most + 1) % (1 << bits) - most - 1
    least = -most if mode == SYMMETRIC else -most - 1
    return max(least, min(most, value))


def sums_to_convert() -> NDArray[np.int32]:
    """512 sums: everything around zero, both ends of int16 and int32, and any between."""
    random = np.random.default_rng(1)
    sums = [
        np.arange(-140, 141),
        *(end + np.arange(-4, 5) for end in (-(2**15), 2**15)),
        -(2**31) + np.arange(8),
        2**31 - 1 - np.arange(8),
        random.integers(-(2**20), 2**20, 97),
        random.integers(-(2**31), 2**31, 100),
    ]
    return aligned_copy(np.concatenate(sums).astype(np.int32))


@pytest.mark.parametrize("saturation", [NONE, SATURATE, SYMMETRIC])
@pytest.mark.parametrize("rounding", ROUNDING_MODES)
def test_narrowing_rounds_and_saturates(rounding: int, saturation: int, core: CoreFunction) -> None:
    core.modes = (rounding, saturation)
    sums = sums_to_convert()
    for bits, shift in itertools.product((8, 16), (0, 1, 2, 7, 16, 31)):
        made = aligned(sums.shape, f"int{bits}")
        core.call(f"to_int{bits}", sums, aligned_copy(np.array([shift], np.int8)), made)
        expected = [
            fitted(rounded(value, shift, rounding), bits, saturation) for value in sums.tolist()
        ]
        np.testing.assert_array_equal(made, expected, f"int{bits}, shift {shift}")


def test_int32_is_handed_over_as_it_is(core: CoreFunction) -> None:
    """In any mode, even a code of none: neither control register is read."""
    core.modes = (4, 2)
    sums = sums_to_convert()
    made = aligned(sums.shape, np.int32)
    core.call("to_int32", sums, aligned(1, np.int8), made)
    np.testing.assert_array_equal(made, sums)
