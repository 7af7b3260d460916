// The way from a test into a core function built with the stand-in: plain C functions for ctypes.
// Compiled together with one core function; the core's state here is that function's own.

#include <aie_api/aie.hpp>

#include <exception>

extern "C" {

// Calls f(a, b, c) with exactly these operands in reach, c alone writable. Returns what the
// stand-in objects to, valid until the next call, or null. The modes stay as the call leaves them.
const char* host_call3(void (*f)(const void*, const void*, void*),  //
                       const void* a, std::size_t a_bytes,          //
                       const void* b, std::size_t b_bytes,          //
                       void* c, std::size_t c_bytes) {
  static std::string objection;
  const auto address = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p); };
  auto& operands = aie::host::core.operands;
  operands = {{
      {"a", address(a), a_bytes, false},
      {"b", address(b), b_bytes, false},
      {"c", address(c), c_bytes, true},
  }};
  const char* result = nullptr;
  try {
    f(a, b, c);
  } catch (const std::exception& error) {
    objection = error.what();
    result = objection.c_str();
  }
  operands = {};
  return result;
}

unsigned host_rounding() { return aie::host::core.rounding; }
unsigned host_saturation() { return aie::host::core.saturation; }

void host_set_modes(unsigned rounding, unsigned saturation) {
  aie::host::core.rounding = rounding;
  aie::host::core.saturation = saturation;
}

// The core as it comes out of reset.
void host_reset() { aie::host::core = {}; }

}  // extern "C"
