// The core that a function under test runs on: its element types, its control registers, and the
// memory it may touch. Part of the aie_api stand-in.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

// Names the AIE compiler provides without any include.
using int8 = std::int8_t;
using int16 = std::int16_t;
using int32 = std::int32_t;

// The upper half of a float. It can be moved but not computed with: no core function does that in
// scalars, where the AIE compiler has rules of its own.
class bfloat16 {
  [[maybe_unused]] std::uint16_t bits;
};

// Hidden, so that two core functions loaded into one process do not share one core's state.
namespace [[gnu::visibility("hidden")]] aie {

// The codes are those of the control registers crRnd and crSat.
enum class rounding_mode : unsigned {
  floor = 0,
  ceil = 1,
  symmetric_floor = 2,
  symmetric_ceil = 3,
  negative_inf = 8,
  positive_inf = 9,
  symmetric_zero = 10,
  symmetric_inf = 11,
  conv_even = 12,
  conv_odd = 13,
};

enum class saturation_mode : unsigned { none = 0, saturate = 1, symmetric = 3 };

namespace host {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// An operand of the running core function: the only memory it may touch.
struct Operand {
  const char* name;
  std::uintptr_t begin;
  std::size_t bytes;
  bool writable;
};

// What outlives a call on the core. A core comes out of reset with floor and none, and no call
// resets them: a core function that does not set the modes runs with what the one before has left.
struct Core {
  unsigned rounding = 0;    // crRnd
  unsigned saturation = 0;  // crSat
  std::array<Operand, 3> operands{};
};

inline Core core;

// ---- Memory ----------------------------------------------------------------------------------

enum class Access { load, store };

// Throws unless a vector of `bytes` may be loaded from (stored to) `pointer`. On the hardware a
// misaligned access silently drops the low bits of the address.
inline void check_access(Access access, const void* pointer, std::size_t bytes) {
  const std::string what = (access == Access::load ? "load_v of " : "store_v of ") +
                           std::to_string(bytes) + " bytes";
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  for (const Operand& operand : core.operands) {
    if (address < operand.begin || address - operand.begin >= operand.bytes) continue;
    const std::size_t offset = address - operand.begin;
    const std::string where = what + " at offset " + std::to_string(offset) + " of operand " +
                              operand.name;
    if (bytes > operand.bytes - offset) {
      throw Error(where + ": runs past its " + std::to_string(operand.bytes) + " bytes");
    }
    const std::size_t alignment = bytes == 16 ? 16 : 32;
    if (address % alignment != 0) {
      throw Error(where + ": the address is not " + std::to_string(alignment) + "-byte aligned");
    }
    if (access == Access::store && !operand.writable) throw Error(where + ": it is an input");
    return;
  }
  throw Error(what + ": the address is outside all operands");
}

[[noreturn]] inline void refuse_rounding_mode() {
  throw Error("crRnd holds " + std::to_string(core.rounding) + ", which is no rounding mode");
}

}  // namespace host
}  // namespace aie
