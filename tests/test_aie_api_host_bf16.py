"""The stand-in's bf16 and float half: every rule refuses a snippet that breaks just that rule, and
its multiply-accumulate and conversions give the hardware's bits."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from bf16_rule import CORNERS, MIXES, Corner, bf16, mixed, mixed_product
from comparing import assert_equal_bits, assert_equal_floats
from core_function import (
    CoreFunction,
    StandInError,
    aligned,
    aligned_copy,
    compiler_messages,
    load_text,
    requires_compiler,
)
from numpy.typing import NDArray
from rounding import ROUNDING_MODES, rounded

pytestmark = requires_compiler

PREAMBLE = """
#include <aie_api/aie.hpp>
using Mmul = aie::mmul<4, 8, 4, bfloat16, bfloat16, accfloat>;
using Sums = aie::accum<accfloat, 16>;
using Block = aie::vector<bfloat16, 32>;
using C = aie::vector<float, 16>;
"""

# ---- Rules the compiler enforces ----------------------------------------------------------------

GOOD_BODY = "Mmul c(aie::zeros<accfloat, 16>()); c.mac(Block(), Block());"

# As in test_aie_api_host: a function's body, and what the compiler's message must contain.
REFUSED: dict[str, tuple[str, str]] = {
    "mmul_of_a_composed_shape": ("aie::mmul<8, 8, 4, bfloat16> c;", "native_mmul"),
    "mmul_of_a_shuffled_shape": ("aie::mmul<4, 8, 8, bfloat16> c;", "native_mmul"),
    "mmul_of_half_a_step": ("aie::mmul<4, 4, 4, bfloat16> c;", "native_mmul"),
    "mmul_of_float": ("aie::mmul<4, 8, 4, float, float, accfloat> c;", "native_mmul"),
    "mmul_of_mixed_types": ("aie::mmul<4, 8, 4, bfloat16, int8, accfloat> c;", "native_mmul"),
    "mmul_with_integer_sums": ("aie::mmul<4, 8, 4, bfloat16, bfloat16, acc32> c;", "native_mmul"),
    "int8_mmul_with_float_sums": ("aie::mmul<4, 8, 8, int8, int8, accfloat> c;", "native_mmul"),
    "mac_of_the_same_bits": ("Mmul c; c.mac(aie::vector<int16, 32>(), Block());", "exact_operand"),
    "mac_of_float": ("Mmul c; c.mac(Block(), aie::vector<float, 32>());", "exact_operand"),
    "mac_with_a_short_vector": (
        "Mmul c; c.mac(Block(), aie::vector<bfloat16, 16>());",
        "exact_operand",
    ),
    "mul_with_a_long_vector": (
        "Mmul c; c.mul(aie::vector<bfloat16, 64>(), Block());",
        "exact_operand",
    ),
    "mmul_from_integers": ("Mmul c(aie::zeros<int32, 16>());", "exact_operand"),
    "mmul_from_a_narrow_vector": ("Mmul c(aie::zeros<bfloat16, 16>());", "exact_operand"),
    "mmul_from_a_vector_of_another_size": ("Mmul c(aie::zeros<float, 32>());", "exact_operand"),
    "mmul_set_to_integer_sums": (
        "Mmul c; c = aie::zeros<acc32, 16>();",
        "no match for 'operator='|no viable overloaded",
    ),
    "accum_from_integers": ("Sums c(aie::zeros<int32, 16>());", "same_element"),
    "accum_from_a_narrow_vector": ("Sums c(aie::zeros<bfloat16, 16>());", "same_element"),
    "integer_accum_from_floats": (
        "aie::accum<acc32, 16> c(aie::zeros<float, 16>());",
        "same_element",
    ),
    "accum_of_another_size": ("aie::accum<accfloat, 4> c;", "accum_of_256_to_1024_bits"),
    "floats_as_integers": ("Sums c; c.to_vector<int32>();", "form_of_sums"),
    "integers_as_floats": ("aie::accum<acc32, 16> c; c.to_vector<float>();", "form_of_sums"),
    "mmul_as_integers": ("Mmul c; c.to_vector<int16>();", "form_of_sums"),
    "vector_of_64_bits": ("aie::vector<bfloat16, 4> v;", "vector_of_128_to_1024_bits"),
    "vector_of_2048_bits": ("aie::vector<float, 64> v;", "vector_of_128_to_1024_bits"),
    "vector_of_double": ("aie::vector<double, 8> v;", "vector_element"),
    "store_as_another_type": ("bfloat16* p = nullptr; aie::store_v(p, C());", "same_element"),
    "store_to_const": ("const float* p = nullptr; aie::store_v(p, C());", "same_element"),
    "scalar_arithmetic": ("bfloat16 x{}, y{}; (void)(x * y);", "operator\\*|invalid operands"),
    "scalar_from_float": ("bfloat16 x = 1.0f; (void)x;", "conversion"),
    "scalar_from_bits": ("bfloat16 x{1}; (void)x;", "no matching|private|excess elements"),
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


# ---- Rules kept at run time ---------------------------------------------------------------------

UNSET_MMUL = "mmul is read before its first mul or mac"
SHIFT_INTO_SUMS = "sums from a vector of float: the shift must be 0"
NO_SHIFT = "floats have no shift, it must be 0"
OUTSIDE = "the address is outside all operands"

# Operands of the snippets: a and b are bfloat16[64] inputs, c is float[32].
# The body of a function of (a, b, c), and what the objection must contain.
OBJECTED: dict[str, tuple[str, str]] = {
    "store_of_undefined": ("aie::store_v(c, C());", "store_v: the vector is undefined"),
    "mac_of_undefined_a": ("Mmul m; m.mac(Block(), aie::load_v<32>(b));", "operand a is undefined"),
    "mac_of_undefined_b": ("Mmul m; m.mac(aie::load_v<32>(a), Block());", "operand b is undefined"),
    "mul_of_undefined_a": ("Mmul m; m.mul(Block(), aie::load_v<32>(b));", "operand a is undefined"),
    "mul_of_undefined_b": ("Mmul m; m.mul(aie::load_v<32>(a), Block());", "operand b is undefined"),
    "mac_onto_undefined_sums": (
        "Sums s; Mmul m(s); m.mac(aie::load_v<32>(a), aie::load_v<32>(b));",
        "mac: the accumulator is undefined",
    ),
    "sums_from_undefined": ("C v; Mmul m(v);", "sums from a vector: the vector is undefined"),
    "to_float_of_undefined": (
        "Sums s; s.to_vector<float>();",
        "to_vector: the accumulator is undefined",
    ),
    "to_bfloat16_of_undefined": (
        "Sums s; s.to_vector<bfloat16>();",
        "to_vector: the accumulator is undefined",
    ),
    "to_float_before_any_mac": ("Mmul m; m.to_vector<float>();", UNSET_MMUL),
    "to_bfloat16_before_any_mac": ("Mmul m; m.to_vector<bfloat16>();", UNSET_MMUL),
    "conversion_before_any_mac": ("Mmul m; Sums s = m; s.to_vector<float>();", UNSET_MMUL),
    "load_of_a_block_misaligned": (
        "aie::load_v<32>(a + 8);",
        "load_v of 64 bytes at offset 16 of operand a: the address is not 32-byte aligned",
    ),
    "load_of_128_bits_misaligned": (
        "aie::load_v<8>(a + 1);",
        "load_v of 16 bytes at offset 2 of operand a: the address is not 16-byte aligned",
    ),
    "load_of_sums_misaligned": (
        "aie::load_v<16>(c + 4);",
        "load_v of 64 bytes at offset 16 of operand c: the address is not 32-byte aligned",
    ),
    "store_misaligned": (
        "aie::store_v(c + 4, aie::zeros<float, 16>());",
        "store_v of 64 bytes at offset 16 of operand c: the address is not 32-byte aligned",
    ),
    "load_across_the_end": (
        "aie::load_v<32>(b + 48);",
        "load_v of 64 bytes at offset 96 of operand b: runs past its 128 bytes",
    ),
    "store_across_the_end": (
        "aie::store_v(c + 24, aie::zeros<float, 16>());",
        "store_v of 64 bytes at offset 96 of operand c: runs past its 128 bytes",
    ),
    "load_from_elsewhere": (
        "alignas(32) static bfloat16 own[32]; aie::load_v<32>(own);",
        f"load_v of 64 bytes: {OUTSIDE}",
    ),
    "store_into_an_input": (
        "aie::store_v(const_cast<bfloat16*>(b), aie::zeros<bfloat16, 32>());",
        "store_v of 64 bytes at offset 0 of operand b: it is an input",
    ),
    "shift_into_mmul": ("Mmul m(aie::load_v<16>(c), 1);", SHIFT_INTO_SUMS),
    "shift_into_accum": ("Sums s(aie::load_v<16>(c), -1);", SHIFT_INTO_SUMS),
    "shift_of_accum_to_float": (
        "aie::zeros<accfloat, 16>().to_vector<float>(1);",
        f"to_vector with shift 1: {NO_SHIFT}",
    ),
    "shift_of_accum_to_bfloat16": (
        "aie::zeros<accfloat, 16>().to_vector<bfloat16>(16);",
        f"to_vector with shift 16: {NO_SHIFT}",
    ),
    "shift_of_mmul_to_float": (
        "Mmul m(aie::zeros<accfloat, 16>()); m.to_vector<float>(-1);",
        f"to_vector with shift -1: {NO_SHIFT}",
    ),
    "rounding_code_of_no_mode": (
        "aie::set_rounding(aie::rounding_mode{4});"
        "aie::zeros<accfloat, 16>().to_vector<bfloat16>();",
        "crRnd holds 4, which is no rounding mode",
    ),
}

MAC = "m.mac(aie::load_v<32>(a), aie::load_v<32>(b));"
STORE = "aie::store_v(c, m.to_vector<float>());"

ACCEPTED: dict[str, str] = {
    "first_mac_ignores_what_was_there": f"Mmul m; {MAC} {STORE}",
    "second_mac_adds": f"Mmul m; {MAC} {MAC} {STORE}",
    "mac_adds_to_a_vector": f"Mmul m(aie::load_v<16>(c)); {MAC} {STORE}",
    "mac_adds_to_assigned_sums": f"Sums s(aie::load_v<16>(c)); Mmul m; m = s; {MAC} {STORE}",
    "mul_overwrites": (
        "Mmul m(aie::load_v<16>(c)); m.mul(aie::load_v<32>(a), aie::load_v<32>(b));" + STORE
    ),
    "accauto_is_accfloat": f"aie::mmul<4, 8, 4, bfloat16> m; {MAC} {STORE}",
    "vectors_are_copied": "aie::store_v(c, aie::load_v<32>(c));",
    "sums_are_copied": (
        "const aie::accum<accfloat, 32> s(aie::load_v<32>(c));"
        "aie::store_v(c, s.to_vector<float>());"
    ),
}

# Further functions, of other operands.
MORE = """
extern "C" {
// c += a * b, one block each.
void steps(const bfloat16* a, const bfloat16* b, float* c) {
  Mmul m(aie::load_v<16>(c));
  m.mac(aie::load_v<32>(a), aie::load_v<32>(b));
  aie::store_v(c, m.to_vector<float>());
}
// The 512 floats of a as bfloat16 in c.
void narrow(const float* a, const void*, bfloat16* c) {
  for (int i = 0; i < 512; i += 16) {
    aie::store_v(c + i, Sums(aie::load_v<16>(a + i)).to_vector<bfloat16>());
  }
}
// The 512 bfloat16 of a in c, and zeros after them.
void copy(const bfloat16* a, const void*, bfloat16* c) {
  for (int i = 0; i < 512; i += 64) aie::store_v(c + i, aie::load_v<64>(a + i));
  aie::store_v(c + 512, aie::zeros<bfloat16, 16>());
}
}
"""


@pytest.fixture(scope="module")
def library() -> CoreFunction:
    """All snippets in one library: compiling is what takes time."""
    bodies = {name: body for name, (body, _) in OBJECTED.items()} | ACCEPTED
    functions = (
        f"void {name}([[maybe_unused]] const bfloat16* a, [[maybe_unused]] const bfloat16* b,"
        f" [[maybe_unused]] float* c) {{ {body} }}\n"
        for name, body in bodies.items()
    )
    return load_text(f'{PREAMBLE}extern "C" {{\n{"".join(functions)}}}\n{MORE}')


@pytest.fixture
def core(library: CoreFunction) -> CoreFunction:
    library.reset()
    return library


def operands() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Small integers, whose sums are exact."""
    random = np.random.default_rng(0)
    return (
        aligned_copy(bf16(random.integers(-128, 129, 64))),
        aligned_copy(bf16(random.integers(-128, 129, 64))),
        aligned_copy(random.integers(-(2**20), 2**20, 32).astype(np.float32)),
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
        ("accauto_is_accfloat", 0, 1),
    ],
)
def test_mmul_starts_from(name: str, before: int, macs: int, core: CoreFunction) -> None:
    a, b, c = operands()
    made = a[:32].reshape(4, 8).astype(np.float64) @ b[:32].reshape(8, 4).astype(np.float64)
    expected = (before * c[:16] + macs * made.ravel()).astype(np.float32)
    untouched = c[16:].copy()
    core.call(name, a, b, c)
    assert_equal_bits(c[:16], expected)
    assert_equal_bits(c[16:], untouched)


# ---- The multiply-accumulate --------------------------------------------------------------------


def steps(core: CoreFunction, a: Any, b: Any, c: Any) -> NDArray[np.float32]:
    made = aligned_copy(c)
    core.call("steps", aligned_copy(a), aligned_copy(b), made)
    return made


@pytest.mark.parametrize("corner", CORNERS.values(), ids=CORNERS)
def test_a_known_step(corner: Corner, core: CoreFunction) -> None:
    for lane in range(16):
        i, j = divmod(lane, 4)
        a, b, c = bf16(np.zeros((4, 8))), bf16(np.zeros((8, 4))), np.zeros((4, 4), np.float32)
        a[i], b[:, j], c[i, j] = bf16(corner.a), bf16(corner.b), corner.before
        assert_equal_floats(steps(core, a, b, c)[i, j], np.float32(corner.after))


@pytest.mark.parametrize("modes", [(mode, 1) for mode in ROUNDING_MODES] + [(4, 2)])
def test_a_step_follows_the_rule_in_every_rounding_mode(
    modes: tuple[int, int], core: CoreFunction
) -> None:
    core.modes = modes
    for mix in MIXES:
        assert_equal_floats(steps(core, *mixed(mix, 4, 8, 4)), mixed_product(mix, 4, 8, 4, True))


# ---- Conversions --------------------------------------------------------------------------------


def floats_to_convert() -> NDArray[np.float32]:
    """512 floats: halves and their neighbours at odd and even, normal, subnormal and the greatest
    magnitudes, zeros, infinities, and any bits but NaN."""
    random = np.random.default_rng(2)
    upper = [0x0000, 0x0001, 0x007F, 0x0080, 0x3F80, 0x3F81, 0x3FFF, 0x7F7E, 0x7F7F]
    lower = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    bits = [u << 16 | low for u in upper for low in lower] + [0x7F800000]
    bits += [b | 1 << 31 for b in bits]
    rest = random.integers(0, 0x7F800000, 512 - len(bits)) | (
        random.integers(0, 2, 512 - len(bits)) << 31
    )
    return aligned_copy(np.array([*bits, *rest], np.uint32).view(np.float32))


def narrowed(core: CoreFunction, values: NDArray[np.float32]) -> NDArray[np.uint16]:
    made = aligned(values.shape, np.uint16)
    core.call("narrow", values, aligned(1, np.uint8), made)
    return made


@pytest.mark.parametrize("saturation", [0, 1, 3, 2])
@pytest.mark.parametrize("rounding", ROUNDING_MODES)
def test_narrowing_rounds_and_never_saturates(
    rounding: int, saturation: int, core: CoreFunction
) -> None:
    """The bits of a magnitude count up through all floats to infinity, so they round as integers do
    at 16 bits."""
    core.modes = (rounding, saturation)
    values = floats_to_convert()
    expected = []
    for bits in values.view(np.uint32).tolist():
        sign, magnitude = bits >> 31, bits & 0x7FFFFFFF
        signed = rounded(-magnitude if sign else magnitude, 16, rounding)
        expected.append(sign << 15 | abs(signed))
    np.testing.assert_array_equal(narrowed(core, values), np.array(expected, np.uint16))


def test_narrowing_to_even_is_that_of_ml_dtypes(core: CoreFunction) -> None:
    core.modes = (12, 1)
    values = floats_to_convert()
    assert_equal_bits(narrowed(core, values), bf16(values).view(np.uint16))


def test_narrowed_nan_stays_nan_in_every_mode(core: CoreFunction) -> None:
    bits = [0x7F800001, 0xFF800001, 0x7F80FFFF, 0xFF808000, 0x7FC00000, 0xFFFFFFFF, 0x7FFFFFFF]
    values = aligned_copy(np.resize(np.array(bits, np.uint32), 512).view(np.float32))
    for rounding in ROUNDING_MODES:
        core.modes = (rounding, 1)
        made = narrowed(core, values)
        assert np.all((made & 0x7F80 == 0x7F80) & (made & 0x7F != 0))
        assert_equal_bits(made >> 15, (values.view(np.uint32) >> 31).astype(np.uint16))


@pytest.mark.parametrize("name", ["vectors_are_copied", "sums_are_copied"])
def test_floats_are_handed_over_as_they_are(name: str, core: CoreFunction) -> None:
    """In any mode, even a code of none: signalling NaN, negative zeros, subnormal numbers."""
    core.modes = (4, 2)
    bits = [0x7F800001, 0xFFC12345, 0x80000000, 0x00000001, 0x807FFFFF, 0x7F800000, 0x3F800001]
    values = np.resize(np.array(bits, np.uint32), 32)
    a, b, _ = operands()
    c = aligned_copy(values.view(np.float32))
    core.call(name, a, b, c)
    assert_equal_bits(c.view(np.uint32), values)


def test_bfloat16_is_copied_and_zeroed(core: CoreFunction) -> None:
    values = np.random.default_rng(3).integers(0, 1 << 16, 512).astype(np.uint16)
    made = aligned(528, np.uint16)
    made[512:] = 1
    core.call("copy", aligned_copy(values), aligned(1, np.uint8), made)
    assert_equal_bits(made, np.append(values, np.zeros(16, np.uint16)))
