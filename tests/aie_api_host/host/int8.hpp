// The arithmetic of int8 products and int32 sums. Part of the aie_api stand-in.
#pragma once

#include "core.hpp"

#include <concepts>
#include <limits>

namespace [[gnu::visibility("hidden")]] aie {
namespace host {

// sums + a * b on row-major blocks. Sums of int8 products are taken modulo 2**32: the instruction
// does not saturate.
template <unsigned M, unsigned K, unsigned N>
std::array<int32, M * N> multiply_add(std::array<int32, M * N> sums,
                                      const std::array<int8, M * K>& a,
                                      const std::array<int8, K * N>& b) {
  for (unsigned row = 0; row < M; ++row) {
    for (unsigned column = 0; column < N; ++column) {
      auto sum = static_cast<std::uint32_t>(sums[row * N + column]);
      for (unsigned k = 0; k < K; ++k) {
        sum += static_cast<std::uint32_t>(a[row * K + k] * b[k * N + column]);
      }
      sums[row * N + column] = static_cast<int32>(sum);
    }
  }
  return sums;
}

// Whether `value`, shifted down, is the upper neighbour of its floor `whole`. `guard` is the
// highest bit shifted out, `sticky` tells whether any below it is set.
inline bool rounds_up(int32 value, int32 whole, bool guard, bool sticky) {
  using enum rounding_mode;
  const bool negative = value < 0;
  const bool odd = (whole & 1) != 0;
  switch (static_cast<rounding_mode>(core.rounding)) {
    case floor: return false;
    case ceil: return guard || sticky;
    case symmetric_floor: return negative && (guard || sticky);
    case symmetric_ceil: return !negative && (guard || sticky);
    case negative_inf: return guard && sticky;
    case positive_inf: return guard;
    case symmetric_zero: return guard && (negative || sticky);
    case symmetric_inf: return guard && (!negative || sticky);
    case conv_even: return guard && (odd || sticky);
    case conv_odd: return guard && (!odd || sticky);
  }
  refuse_rounding_mode();
}

inline std::int64_t shift_round(int32 value, int shift) {
  const int32 whole = value >> shift;
  const std::uint32_t out = static_cast<std::uint32_t>(value) & ((1u << shift) - 1);
  const std::uint32_t half = shift == 0 ? 0 : 1u << (shift - 1);
  return std::int64_t{whole} + rounds_up(value, whole, (out & half) != 0, (out & ~half) != 0);
}

template <typename T>
T saturated(std::int64_t value) {
  using enum saturation_mode;
  constexpr std::int64_t most = std::numeric_limits<T>::max();
  const auto clamp = [](std::int64_t x, std::int64_t least) {
    return static_cast<T>(x < least ? least : x > most ? most : x);
  };
  switch (static_cast<saturation_mode>(core.saturation)) {
    case none: return static_cast<T>(value);  // C++20: keeps the low bits
    case saturate: return clamp(value, std::numeric_limits<T>::min());
    case symmetric: return clamp(value, -most);
  }
  throw Error("crSat holds " + std::to_string(core.saturation) + ", which is no saturation mode");
}

// acc32 lanes as T. To int32 the bits are handed over as they are and a shift would be ignored.
template <typename T, std::size_t N>
std::array<T, N> convert(const std::array<int32, N>& sums, int shift) {
  const std::string given = "to_vector with shift " + std::to_string(shift);
  std::array<T, N> made{};
  if constexpr (std::same_as<T, int32>) {
    if (shift != 0) throw Error(given + ": acc32 to int32 is a plain copy, its shift must be 0");
    made = sums;
  } else {
    if (shift < 0 || shift > 31) throw Error(given + ": must be within 0..31");
    for (std::size_t i = 0; i < N; ++i) made[i] = saturated<T>(shift_round(sums[i], shift));
  }
  return made;
}

}  // namespace host
}  // namespace aie
