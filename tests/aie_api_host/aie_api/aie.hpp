// Host stand-in for the part of aie_api that AIE2 GEMM core functions use: the very source the AIE
// compiler gets is compiled with this header in its place and run by the tests.
//
// It computes what the hardware computes, and is stricter everywhere else. What aie_api rejects
// does not compile here either (the concept named in the error is the broken rule); what it leaves
// undefined throws: reading a vector or sum that was never set, an access that is misaligned or
// outside the operands, a shift that would be ignored.
//
// Not modelled: aliasing, loop pipelining, bank conflicts, stack and program size.
#pragma once

#if __cplusplus < 202002L
#error "aie_api needs C++20"
#endif

#include "../host/bf16.hpp"
#include "../host/core.hpp"
#include "../host/int8.hpp"

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

// The AIE compiler takes C's keyword in C++ as well.
#define restrict

// Markers in the hardware trace; they compute nothing.
inline void event0() {}
inline void event1() {}

// Accumulator tags. acc64 exists so that asking for it breaks a rule here and not a spelling.
struct acc32 {};
struct acc64 {};
struct accfloat {};
struct accauto {};

namespace [[gnu::visibility("hidden")]] aie {

// What the stand-in is made of; kernels use none of it.
namespace host {

// ---- Element types and sizes -----------------------------------------------------------------

template <typename T>
concept vector_element =
    std::same_as<T, int8> || std::same_as<T, int16> || std::same_as<T, int32> ||
    std::same_as<T, bfloat16> || std::same_as<T, float>;

template <typename T, unsigned N>
concept vector_of_128_to_1024_bits =
    vector_element<T> && (sizeof(T) * N == 16 || sizeof(T) * N == 32 || sizeof(T) * N == 64 ||
                          sizeof(T) * N == 128);

// The type of an accumulator's lane, by its tag; void where there is no such accumulator.
template <typename Tag>
using lane_of = std::conditional_t<std::same_as<Tag, acc32>, int32,
                                   std::conditional_t<std::same_as<Tag, accfloat>, float, void>>;

// What sums can be handed over as: integers stay integers and floats stay floats.
template <typename T, typename Lane>
concept form_of_sums =
    (std::same_as<Lane, float> && (std::same_as<T, float> || std::same_as<T, bfloat16>)) ||
    (std::same_as<Lane, int32> &&
     (std::same_as<T, int8> || std::same_as<T, int16> || std::same_as<T, int32>));

template <typename Tag, unsigned N>
concept accum_of_256_to_1024_bits =
    !std::same_as<lane_of<Tag>, void> && (N == 8 || N == 16 || N == 32);

template <typename T, typename U>
concept same_element = std::same_as<T, U>;

// An operand of exactly the element type and size that the multiplication takes.
template <typename T, unsigned Size, typename U, unsigned ExactSize>
concept exact_operand = std::same_as<T, U> && Size == ExactSize;

// The shapes one multiply-accumulate instruction makes; aie_api composes others at extra cost.
// Another element type is another line here, a lane_of, a multiply_add and a convert.
template <unsigned M, unsigned K, unsigned N, typename TA, typename TB, typename Tag>
inline constexpr bool is_native_mmul = false;
template <>
inline constexpr bool is_native_mmul<4, 8, 8, int8, int8, acc32> = true;
template <>
inline constexpr bool is_native_mmul<2, 8, 8, int8, int8, acc32> = true;
template <>
inline constexpr bool is_native_mmul<4, 8, 4, bfloat16, bfloat16, accfloat> = true;

// The accumulator of a product of TA, which is what accauto stands for.
template <typename Tag, typename TA>
using resolved =
    std::conditional_t<!std::same_as<Tag, accauto>, Tag,
                       std::conditional_t<std::same_as<TA, bfloat16>, accfloat, acc32>>;

template <unsigned M, unsigned K, unsigned N, typename TA, typename TB, typename Tag>
concept native_mmul = is_native_mmul<M, K, N, TA, TB, resolved<Tag, TA>>;

// ---- Registers -------------------------------------------------------------------------------

struct Lanes;

// A vector or accumulator register: undefined until something is put into it.
template <typename Lane, unsigned N>
class Register {
  friend struct Lanes;
  std::array<Lane, N> lanes{};
  bool defined = false;
};

// The stand-in's own way to the lanes: kernels have none, and no read goes around the check.
struct Lanes {
  template <typename Lane, unsigned N>
  static const std::array<Lane, N>& read(const Register<Lane, N>& from, const char* by) {
    if (!from.defined) throw Error(std::string(by) + " is undefined: nothing was ever put into it");
    return from.lanes;
  }

  template <typename R, typename Lane, std::size_t N>
  static R make(const std::array<Lane, N>& lanes) {
    R made;
    made.lanes = lanes;
    made.defined = true;
    return made;
  }
};

}  // namespace host

// ---- The API ---------------------------------------------------------------------------------

template <typename T, unsigned N>
  requires host::vector_of_128_to_1024_bits<T, N>
class vector : public host::Register<T, N> {};

template <typename Tag, unsigned N>
  requires host::accum_of_256_to_1024_bits<Tag, N>
class accum : public host::Register<host::lane_of<Tag>, N> {
  using Lane = host::lane_of<Tag>;

 public:
  accum() = default;

  // Only vectors of the lane's own type: narrower integers would be shifted up and saturated by
  // crSat. No core function needs a narrower C as long as C stays as wide as the sums.
  template <typename T>
    requires host::same_element<T, Lane>
  explicit accum(const vector<T, N>& v, int shift = 0)
      : accum(host::Lanes::make<accum>(host::Lanes::read(v, "sums from a vector: the vector"))) {
    constexpr auto kind = std::same_as<Lane, float> ? "float" : "int32";
    if (shift != 0) {
      throw host::Error(std::string("sums from a vector of ") + kind + ": the shift must be 0");
    }
  }

  template <typename T>
    requires host::vector_of_128_to_1024_bits<T, N> && host::form_of_sums<T, Lane>
  vector<T, N> to_vector(int shift = 0) const {
    const auto& sums = host::Lanes::read(*this, "to_vector: the accumulator");
    return host::Lanes::make<vector<T, N>>(host::convert<T>(sums, shift));
  }
};

template <typename T, unsigned N>
  requires host::vector_of_128_to_1024_bits<T, N>
vector<T, N> zeros() {
  return host::Lanes::make<vector<T, N>>(std::array<T, N>{});
}

template <typename Tag, unsigned N>
  requires host::accum_of_256_to_1024_bits<Tag, N>
accum<Tag, N> zeros() {
  return host::Lanes::make<accum<Tag, N>>(std::array<host::lane_of<Tag>, N>{});
}

template <unsigned N, typename T>
  requires host::vector_of_128_to_1024_bits<T, N>
vector<T, N> load_v(const T* from) {
  host::check_access(host::Access::load, from, sizeof(T) * N);
  std::array<T, N> lanes;
  std::memcpy(lanes.data(), from, sizeof lanes);
  return host::Lanes::make<vector<T, N>>(lanes);
}

template <typename P, typename T, unsigned N>
  requires host::same_element<P, T>
P* store_v(P* to, const vector<T, N>& v) {
  const auto& lanes = host::Lanes::read(v, "store_v: the vector");
  host::check_access(host::Access::store, to, sizeof lanes);
  std::memcpy(to, lanes.data(), sizeof lanes);
  return to;
}

// Sums of a C block. A default-constructed one holds no zeros but the flag `zero`, which makes the
// first mac ignore the sums; reading it before that reads what was in the register.
template <unsigned M_, unsigned K_, unsigned N_, typename TA, typename TB = TA,
          typename Tag = accauto>
  requires host::native_mmul<M_, K_, N_, TA, TB, Tag>
class mmul {
  using tag = host::resolved<Tag, TA>;

 public:
  static constexpr unsigned M = M_;
  static constexpr unsigned K = K_;
  static constexpr unsigned N = N_;
  static constexpr unsigned size_A = M * K;
  static constexpr unsigned size_B = K * N;
  static constexpr unsigned size_C = M * N;
  using accum_type = accum<tag, size_C>;

  mmul() = default;
  explicit mmul(const accum_type& sums) : sums_(sums), zero_(false) {}

  template <typename T, unsigned L>
    requires host::exact_operand<T, L, host::lane_of<tag>, size_C>
  explicit mmul(const vector<T, L>& v, int shift = 0) : mmul(accum_type(v, shift)) {}

  mmul& operator=(const accum_type& sums) { return *this = mmul(sums); }

  template <typename UA, unsigned LA, typename UB, unsigned LB>
    requires host::exact_operand<UA, LA, TA, size_A> && host::exact_operand<UB, LB, TB, size_B>
  void mac(const vector<UA, LA>& a, const vector<UB, LB>& b) {
    const accum_type before = zero_ ? zeros<tag, size_C>() : sums_;
    sums_ = host::Lanes::make<accum_type>(host::multiply_add<M, K, N>(
        host::Lanes::read(before, "mac: the accumulator"), host::Lanes::read(a, "operand a"),
        host::Lanes::read(b, "operand b")));
    zero_ = false;
  }

  template <typename UA, unsigned LA, typename UB, unsigned LB>
    requires host::exact_operand<UA, LA, TA, size_A> && host::exact_operand<UB, LB, TB, size_B>
  void mul(const vector<UA, LA>& a, const vector<UB, LB>& b) {
    zero_ = true;
    mac(a, b);
  }

  accum_type to_accum() const {
    if (zero_) throw host::Error("mmul is read before its first mul or mac");
    return sums_;
  }

  operator accum_type() const { return to_accum(); }

  template <typename T>
    requires host::vector_of_128_to_1024_bits<T, size_C> &&
             host::form_of_sums<T, host::lane_of<tag>>
  vector<T, size_C> to_vector(int shift = 0) const {
    return to_accum().template to_vector<T>(shift);
  }

 private:
  accum_type sums_;
  bool zero_ = true;
};

inline rounding_mode get_rounding() { return static_cast<rounding_mode>(host::core.rounding); }
inline void set_rounding(rounding_mode mode) { host::core.rounding = static_cast<unsigned>(mode); }
inline rounding_mode swap_rounding(rounding_mode mode) {
  const rounding_mode before = get_rounding();
  set_rounding(mode);
  return before;
}

inline saturation_mode get_saturation() {
  return static_cast<saturation_mode>(host::core.saturation);
}
inline void set_saturation(saturation_mode mode) {
  host::core.saturation = static_cast<unsigned>(mode);
}
inline saturation_mode swap_saturation(saturation_mode mode) {
  const saturation_mode before = get_saturation();
  set_saturation(mode);
  return before;
}

}  // namespace aie
