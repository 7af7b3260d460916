// The AIE2 core function for int8 tiles with int32 sums: C = A * B and C += A * B.
//
// A tile is row-major blocks, each row-major inside: A in 4x8, B in 8x8, C in 4x8. Its sizes DIM_M,
// DIM_K and DIM_N are the manifest's, given on the command line: every trip count is a constant, so
// the compiler needs no promise about them from a pragma.

#include <aie_api/aie.hpp>

#include <cstdint>

#if !defined(DIM_M) || !defined(DIM_K) || !defined(DIM_N)
#error "DIM_M, DIM_K and DIM_N must be defined: the sizes of the tile in the kernel's manifest"
#endif

namespace {

using Mmul = aie::mmul<4, 8, 8, int8_t, int8_t, acc32>;

// Eight sums of 1024 bits fill eight of the nine accumulator registers, and each k step of eight
// multiplications needs only four cycles of loads (two 256-bit loads per cycle).
constexpr unsigned blocking_m = 4;
constexpr unsigned blocking_n = 2;

static_assert(DIM_M > 0 && DIM_M % (blocking_m * Mmul::M) == 0, "DIM_M must be a multiple of 16");
static_assert(DIM_K > 0 && DIM_K % Mmul::K == 0, "DIM_K must be a multiple of 8");
static_assert(DIM_N > 0 && DIM_N % (blocking_n * Mmul::N) == 0, "DIM_N must be a multiple of 16");

constexpr unsigned m_blocks = DIM_M / Mmul::M;
constexpr unsigned k_blocks = DIM_K / Mmul::K;
constexpr unsigned n_blocks = DIM_N / Mmul::N;

// Elements from a block to the one below it.
constexpr unsigned a_row = k_blocks * Mmul::size_A;
constexpr unsigned b_row = n_blocks * Mmul::size_B;
constexpr unsigned c_row = n_blocks * Mmul::size_C;

// The sum a block of C begins with. The zeros are explicit: a default-constructed mmul holds none.
template <bool first>
inline Mmul begin_sum(const int32_t* c) {
  if constexpr (first) {
    return Mmul(aie::zeros<acc32, Mmul::size_C>());
  } else {
    return Mmul(aie::load_v<Mmul::size_C>(c));
  }
}

inline void store_sum(int32_t* c, const Mmul& sum) {
  aie::store_v(c, sum.to_vector<int32_t>());
}

template <bool first>
inline void matmul(const int8_t* __restrict a, const int8_t* __restrict b, int32_t* __restrict c) {
  // Both modes are state of the core and keep what the kernel before has set. int32 sums need
  // neither; they are set all the same so that no result can ever depend on what ran before.
  aie::set_rounding(aie::rounding_mode::conv_even);
  aie::set_saturation(aie::saturation_mode::saturate);

  for (unsigned i = 0; i < m_blocks; i += blocking_m) {
    for (unsigned j = 0; j < n_blocks; j += blocking_n) {
      const int8_t* a_block = a + i * a_row;
      const int8_t* b_block = b + j * Mmul::size_B;
      int32_t* c_left = c + i * c_row + j * Mmul::size_C;
      int32_t* c_right = c_left + Mmul::size_C;

      // Eight names instead of an array: each sum has to live in a register of its own.
      Mmul c00 = begin_sum<first>(c_left);
      Mmul c01 = begin_sum<first>(c_right);
      Mmul c10 = begin_sum<first>(c_left + c_row);
      Mmul c11 = begin_sum<first>(c_right + c_row);
      Mmul c20 = begin_sum<first>(c_left + 2 * c_row);
      Mmul c21 = begin_sum<first>(c_right + 2 * c_row);
      Mmul c30 = begin_sum<first>(c_left + 3 * c_row);
      Mmul c31 = begin_sum<first>(c_right + 3 * c_row);

      for (unsigned kk = 0; kk < k_blocks; ++kk) {
        const auto a0 = aie::load_v<Mmul::size_A>(a_block);
        const auto a1 = aie::load_v<Mmul::size_A>(a_block + a_row);
        const auto a2 = aie::load_v<Mmul::size_A>(a_block + 2 * a_row);
        const auto a3 = aie::load_v<Mmul::size_A>(a_block + 3 * a_row);
        const auto b0 = aie::load_v<Mmul::size_B>(b_block);
        const auto b1 = aie::load_v<Mmul::size_B>(b_block + Mmul::size_B);
        a_block += Mmul::size_A;
        b_block += b_row;

        c00.mac(a0, b0);
        c01.mac(a0, b1);
        c10.mac(a1, b0);
        c11.mac(a1, b1);
        c20.mac(a2, b0);
        c21.mac(a2, b1);
        c30.mac(a3, b0);
        c31.mac(a3, b1);
      }

      store_sum(c_left, c00);
      store_sum(c_right, c01);
      store_sum(c_left + c_row, c10);
      store_sum(c_right + c_row, c11);
      store_sum(c_left + 2 * c_row, c20);
      store_sum(c_right + 2 * c_row, c21);
      store_sum(c_left + 3 * c_row, c30);
      store_sum(c_right + 3 * c_row, c31);
    }
  }
}

}  // namespace

extern "C" {

void matmul_first_i8_i32(const int8_t* __restrict a, const int8_t* __restrict b,
                         int32_t* __restrict c) {
  matmul<true>(a, b, c);
}

void matmul_i8_i32(const int8_t* __restrict a, const int8_t* __restrict b, int32_t* __restrict c) {
  matmul<false>(a, b, c);
}

}  // extern "C"
