"""The aie_api stand-in is as strict as it claims: each of its rules refuses a snippet that breaks just it."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
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
    load_text,
    requires_compiler,
)

pytestmark = requires_compiler

PREAMBLE = """
#include <aie_api/aie.hpp>
using Mmul = aie::mmul<4, 8, 8, int8, int8, acc32>;
"""

# ---- Rules the compiler enforces ----------------------------------------------------------------

GOOD_BODY = "Mmul c(aie::zeros<acc32, 32>()); c.mac(A(), B());"
OPERANDS = "using A = aie::vector<int8, 32>; using B = aie::vector<int8, 64>;"

# The body of a function, and what the compiler's message must contain.
REFUSED: dict[str, tuple[str, str]] = {
    "mmul_of_a_composed_shape": ("aie::mmul<8, 8, 8, int8, int8, acc32> c;", "native_mmul"),
    "mmul_of_no_shape": ("aie::mmul<4, 4, 8, int8, int8, acc32> c;", "native_mmul"),
    "mmul_of_int16": ("aie::mmul<4, 8, 8, int16, int8, acc32> c;", "native_mmul"),
    "mmul_of_unsigned": ("aie::mmul<4, 8, 8, int8, uint8_t, acc32> c;", "native_mmul"),
    "mmul_with_acc64": ("aie::mmul<4, 8, 8, int8, int8, acc64> c;", "native_mmul"),
    "mac_with_another_element_type": (
        "Mmul c; c.mac(aie::vector<int16, 32>(), B());",
        "exact_operand",
    ),
    "mac_with_a_short_vector": ("Mmul c; c.mac(aie::vector<int8, 16>(), B());", "exact_operand"),
    "mac_with_a_long_vector": ("Mmul c; c.mac(A(), aie::vector<int8, 128>());", "exact_operand"),
    "mac_with_operands_swapped": ("Mmul c; c.mac(B(), A());", "exact_operand"),
    "mul_with_operands_swapped": ("Mmul c; c.mul(B(), A());", "exact_operand"),
    "mmul_from_a_vector_of_another_size": ("Mmul c(aie::zeros<int32, 16>());", "exact_operand"),
    "mmul_from_a_narrow_vector": ("Mmul c(aie::zeros<int8, 32>());", "exact_operand"),
    "mmul_set_to_sums_of_another_size": (
        "Mmul c; c = aie::zeros<acc32, 16>();",
        r"no match for .operator=|no viable overloaded",
    ),
    "accum_from_a_narrow_vector": (
        "aie::accum<acc32, 32> c(aie::zeros<int16, 32>());",
        "same_element",
    ),
    "accum_of_another_size": ("aie::accum<acc32, 4> c;", "accum_of_256_to_1024_bits"),
    "accum_without_storage": ("aie::accum<acc64, 16> c;", "accum_of_256_to_1024_bits"),
    "zeros_of_another_size": ("aie::zeros<acc32, 64>();", "accum_of_256_to_1024_bits"),
    "vector_of_64_bits": ("aie::vector<int8, 8> v;", "vector_of_128_to_1024_bits"),
    "vector_of_2048_bits": ("aie::vector<int32, 64> v;", "vector_of_128_to_1024_bits"),
    "vector_of_odd_size": ("aie::vector<int8, 48> v;", "vector_of_128_to_1024_bits"),
    "vector_of_another_type": ("aie::vector<long, 16> v;", "vector_element"),
    "load_of_no_vector": ("const int8* p = nullptr; aie::load_v<8>(p);", "vector_of_128_to_1024"),
    "to_vector_of_no_vector": (
        "aie::mmul<2, 8, 8, int8> c; c.to_vector<long>();",
        "vector_of_128_to_1024_bits",
    ),
    "store_as_another_type": ("int8* p = nullptr; aie::store_v(p, B16());", "same_element"),
    "store_through_pointer_to_const": (
        "const int16* p = nullptr; aie::store_v(p, B16());",
        "same_element",
    ),
    "lanes_without_a_load": ("A a; a.lanes[0] = 1;", "private"),
}


def in_function(body: str) -> str:
    return f"{PREAMBLE}{OPERANDS} using B16 = aie::vector<int16, 64>;\nvoid f() {{ {body} }}\n"


@pytest.fixture(scope="module")
def compiler_says() -> dict[str, str]:
    """The compiler's message for each of REFUSED; compiled side by side, which saves half the time."""

    def message(body: str) -> str:
        try:
            check_compiles(in_function(body))
        except CompileError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor() as pool:
        messages = pool.map(message, [body for body, _ in REFUSED.values()])
        return dict(zip(REFUSED, messages, strict=True))


def test_what_obeys_the_rules_compiles() -> None:
    check_compiles(in_function(GOOD_BODY))


@pytest.mark.parametrize("name", REFUSED)
def test_compiler_refuses(name: str, compiler_says: dict[str, str]) -> None:
    message = compiler_says[name]
    assert message, "it compiled"
    assert re.search(REFUSED[name][1], message), message


def test_needs_cxx20() -> None:
    with pytest.raises(CompileError, match="aie_api needs C\\+\\+20"):
        check_compiles(PREAMBLE, "-std=c++17")
