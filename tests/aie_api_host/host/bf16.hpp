// The arithmetic of bf16 products and float sums. Part of the aie_api stand-in.
//
// A multiply-accumulate instruction adds eight products to each sum, and this step is neither a
// chain of fused multiply-adds nor rounded only once. Each product, and the sum, is rounded to a
// multiple of 2**(E - 23), where E is the greatest exponent among them; these are added exactly;
// the total is rounded to float. All roundings are to nearest, halves to even, whatever crRnd says.
#pragma once

#include "core.hpp"

#include <bit>
#include <concepts>
#include <limits>

namespace [[gnu::visibility("hidden")]] aie {
namespace host {

constexpr int float_fraction_bits = 23;
constexpr int bfloat16_fraction_bits = 7;
constexpr unsigned terms_per_step = 8;

// A term of a step: mantissa * 2**(exponent - 23), infinite, or not a number. The mantissa of a
// product of two or more has 25 bits, that of a subnormal number has no leading one.
struct Term {
  bool negative = false;
  bool nan = false;
  bool infinite = false;
  int exponent = 0;
  std::uint64_t mantissa = 0;

  bool zero() const { return !nan && !infinite && mantissa == 0; }
};

// The number that these bits of a sign, eight bits of exponent and a fraction stand for, its
// mantissa counted in units of the fraction's last bit.
inline Term decode(std::uint32_t bits, int fraction_bits) {
  const std::uint32_t field = (bits >> fraction_bits) & 0xff;
  const std::uint32_t leading_one = 1u << fraction_bits;
  const std::uint32_t fraction = bits & (leading_one - 1);
  Term number;
  number.negative = (bits >> (fraction_bits + 8)) != 0;
  if (field == 0xff) {
    number.nan = fraction != 0;
    number.infinite = fraction == 0;
  } else if (field == 0) {
    number.exponent = -126;
    number.mantissa = fraction;
  } else {
    number.exponent = static_cast<int>(field) - 127;
    number.mantissa = fraction | leading_one;
  }
  return number;
}

inline Term term_of(float sum) {
  return decode(std::bit_cast<std::uint32_t>(sum), float_fraction_bits);
}

inline Term product_of(bfloat16 a, bfloat16 b) {
  const Term x = decode(std::bit_cast<std::uint16_t>(a), bfloat16_fraction_bits);
  const Term y = decode(std::bit_cast<std::uint16_t>(b), bfloat16_fraction_bits);
  Term product;
  product.negative = x.negative != y.negative;
  product.nan = x.nan || y.nan || (x.infinite && y.zero()) || (x.zero() && y.infinite);
  product.infinite = !product.nan && (x.infinite || y.infinite);
  if (!product.nan && !product.infinite) {
    product.exponent = x.exponent + y.exponent;
    product.mantissa = (x.mantissa * y.mantissa)
                       << (float_fraction_bits - 2 * bfloat16_fraction_bits);
  }
  return product;
}

// value / 2**shift to nearest, halves to even. Values have at most 32 bits.
inline std::uint64_t shift_to_even(std::uint64_t value, int shift) {
  if (shift == 0) return value;
  if (shift > 32) return 0;
  const std::uint64_t whole = value >> shift;
  const std::uint64_t out = value & ((std::uint64_t{1} << shift) - 1);
  const std::uint64_t half = std::uint64_t{1} << (shift - 1);
  return whole + (out > half || (out == half && (whole & 1) != 0) ? 1 : 0);
}

// total * 2**(exponent - 23) as a float. What is too small for a normal number is +0.
inline float to_float(std::int64_t total, int exponent) {
  if (total == 0) return 0.0f;
  const bool negative = total < 0;
  auto mantissa = static_cast<std::uint64_t>(negative ? -total : total);
  const int excess = static_cast<int>(std::bit_width(mantissa)) - (float_fraction_bits + 1);
  exponent += excess;
  mantissa = excess > 0 ? shift_to_even(mantissa, excess) : mantissa << -excess;
  if (mantissa >> (float_fraction_bits + 1) != 0) {  // rounded up to the next power of two
    mantissa >>= 1;
    exponent += 1;
  }
  if (exponent < -126) return 0.0f;
  if (exponent > 127) {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    return negative ? -infinity : infinity;
  }
  const auto field = static_cast<std::uint32_t>(exponent + 127);
  const auto fraction = static_cast<std::uint32_t>(mantissa) & ((1u << float_fraction_bits) - 1);
  return std::bit_cast<float>(std::uint32_t{negative} << 31 | field << float_fraction_bits |
                              fraction);
}

// The sum of these terms, of which the last is the sum so far.
inline float add_terms(const std::array<Term, terms_per_step + 1>& terms) {
  bool nan = false;
  bool plus_infinity = false;
  bool minus_infinity = false;
  bool any = false;
  int greatest = 0;
  for (const Term& term : terms) {
    nan |= term.nan;
    plus_infinity |= term.infinite && !term.negative;
    minus_infinity |= term.infinite && term.negative;
    if (term.mantissa == 0) continue;  // a zero has no exponent, whatever its bits say
    greatest = !any || term.exponent > greatest ? term.exponent : greatest;
    any = true;
  }
  if (nan || (plus_infinity && minus_infinity)) return std::numeric_limits<float>::quiet_NaN();
  if (plus_infinity) return std::numeric_limits<float>::infinity();
  if (minus_infinity) return -std::numeric_limits<float>::infinity();
  std::int64_t total = 0;
  for (const Term& term : terms) {
    if (term.mantissa == 0) continue;
    const auto aligned =
        static_cast<std::int64_t>(shift_to_even(term.mantissa, greatest - term.exponent));
    total += term.negative ? -aligned : aligned;
  }
  return to_float(total, greatest);
}

// sums + a * b on row-major blocks.
template <unsigned M, unsigned K, unsigned N>
std::array<float, M * N> multiply_add(std::array<float, M * N> sums,
                                      const std::array<bfloat16, M * K>& a,
                                      const std::array<bfloat16, K * N>& b) {
  static_assert(K == terms_per_step);
  for (unsigned row = 0; row < M; ++row) {
    for (unsigned column = 0; column < N; ++column) {
      std::array<Term, K + 1> terms;
      for (unsigned k = 0; k < K; ++k) terms[k] = product_of(a[row * K + k], b[k * N + column]);
      terms[K] = term_of(sums[row * N + column]);
      sums[row * N + column] = add_terms(terms);
    }
  }
  return sums;
}

// Whether a number is rounded away from zero when bits are cut off its magnitude `whole`. `guard`
// is the highest bit cut off, `sticky` tells whether any below it is set.
inline bool rounds_away(bool negative, std::uint32_t whole, bool guard, bool sticky) {
  using enum rounding_mode;
  const bool odd = (whole & 1) != 0;
  switch (static_cast<rounding_mode>(core.rounding)) {
    case floor: return negative && (guard || sticky);
    case ceil: return !negative && (guard || sticky);
    case symmetric_floor: return false;
    case symmetric_ceil: return guard || sticky;
    case negative_inf: return guard && (negative || sticky);
    case positive_inf: return guard && (!negative || sticky);
    case symmetric_zero: return guard && sticky;
    case symmetric_inf: return guard;
    case conv_even: return guard && (odd || sticky);
    case conv_odd: return guard && (!odd || sticky);
  }
  refuse_rounding_mode();
}

// The upper half of a float, rounded by crRnd: the greatest numbers round into infinity, subnormal
// ones stay, NaN stays NaN. crSat has no part in it.
inline bfloat16 rounded_to_bfloat16(float sum) {
  const auto bits = std::bit_cast<std::uint32_t>(sum);
  const Term number = term_of(sum);
  std::uint32_t upper = bits >> 16;
  if (number.nan) {
    upper |= (upper & 0x7f) == 0 ? 1 : 0;
  } else {
    const bool guard = (bits & 0x8000) != 0;
    const bool sticky = (bits & 0x7fff) != 0;
    upper += rounds_away(number.negative, upper, guard, sticky) ? 1 : 0;
  }
  return std::bit_cast<bfloat16>(static_cast<std::uint16_t>(upper));
}

// accfloat lanes as T. To float the bits are handed over as they are. Shifts would be ignored.
template <typename T, std::size_t N>
std::array<T, N> convert(const std::array<float, N>& sums, int shift) {
  if (shift != 0) {
    throw Error("to_vector with shift " + std::to_string(shift) +
                ": floats have no shift, it must be 0");
  }
  std::array<T, N> made{};
  for (std::size_t i = 0; i < N; ++i) {
    if constexpr (std::same_as<T, float>) {
      made[i] = sums[i];
    } else {
      made[i] = rounded_to_bfloat16(sums[i]);
    }
  }
  return made;
}

}  // namespace host
}  // namespace aie
