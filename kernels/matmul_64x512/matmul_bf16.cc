// The AIE2 core function for bf16 tiles with float sums: C = A * B and C += A * B.
//
// A tile is row-major blocks, each row-major inside: A in 4x8, B in 8x4, C in 4x4. Its sizes DIM_M,
// DIM_K and DIM_N are the manifest's, given on the command line: every trip count is a constant, so
// the compiler needs no promise about them from a pragma.

#include <aie_api/aie.hpp>

#include <cstdint>

#if !defined(DIM_M) || !defined(DIM_K) || !defined(DIM_N)
#error "DIM_M, DIM_K and DIM_N must be defined: the sizes of the tile in the kernel's manifest"
#endif

namespace {

using Mmul = aie::mmul<4, 8, 4, bfloat16, bfloat16, accfloat>;
using ABlock = aie::vector<bfloat16, Mmul::size_A>;
using BBlock = aie::vector<bfloat16, Mmul::size_B>;

// Sixteen sums of 512 bits fill 16 of the 18 accumulator registers, and each k step of sixteen
// multiplications needs only eight cycles of loads (two 256-bit loads per cycle). A sum can take
// its next multiplication four cycles after the last, so a k step leaves no multiplier idle.
constexpr unsigned blocking_m = 4;
constexpr unsigned blocking_n = 4;

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
inline Mmul begin_sum(const float* c) {
  if constexpr (first) {
    return Mmul(aie::zeros<accfloat, Mmul::size_C>());
  } else {
    return Mmul(aie::load_v<Mmul::size_C>(c));
  }
}

// The sums of four blocks of C side by side. Four names instead of an array: each sum has to live
// in a register of its own.
struct RowOfSums {
  Mmul c0, c1, c2, c3;

  template <bool first>
  static inline RowOfSums begin(const float* c) {
    return {begin_sum<first>(c), begin_sum<first>(c + Mmul::size_C),
            begin_sum<first>(c + 2 * Mmul::size_C), begin_sum<first>(c + 3 * Mmul::size_C)};
  }

  inline void mac(const ABlock& a, const BBlock& b0, const BBlock& b1, const BBlock& b2,
                  const BBlock& b3) {
    c0.mac(a, b0);
    c1.mac(a, b1);
    c2.mac(a, b2);
    c3.mac(a, b3);
  }

  inline void store(float* c) const {
    aie::store_v(c, c0.to_vector<float>());
    aie::store_v(c + Mmul::size_C, c1.to_vector<float>());
    aie::store_v(c + 2 * Mmul::size_C, c2.to_vector<float>());
    aie::store_v(c + 3 * Mmul::size_C, c3.to_vector<float>());
  }
};

template <bool first>
inline void matmul(const bfloat16* __restrict a, const bfloat16* __restrict b,
                   float* __restrict c) {
  // Both modes are state of the core and keep what the kernel before has set. float sums need
  // neither; they are set all the same so that no result can ever depend on what ran before.
  aie::set_rounding(aie::rounding_mode::conv_even);
  aie::set_saturation(aie::saturation_mode::saturate);

  for (unsigned i = 0; i < m_blocks; i += blocking_m) {
    for (unsigned j = 0; j < n_blocks; j += blocking_n) {
      const bfloat16* a_block = a + i * a_row;
      const bfloat16* b_block = b + j * Mmul::size_B;
      float* c_block = c + i * c_row + j * Mmul::size_C;

      RowOfSums row0 = RowOfSums::begin<first>(c_block);
      RowOfSums row1 = RowOfSums::begin<first>(c_block + c_row);
      RowOfSums row2 = RowOfSums::begin<first>(c_block + 2 * c_row);
      RowOfSums row3 = RowOfSums::begin<first>(c_block + 3 * c_row);

      for (unsigned kk = 0; kk < k_blocks; ++kk) {
        const ABlock a0 = aie::load_v<Mmul::size_A>(a_block);
        const ABlock a1 = aie::load_v<Mmul::size_A>(a_block + a_row);
        const ABlock a2 = aie::load_v<Mmul::size_A>(a_block + 2 * a_row);
        const ABlock a3 = aie::load_v<Mmul::size_A>(a_block + 3 * a_row);
        const BBlock b0 = aie::load_v<Mmul::size_B>(b_block);
        const BBlock b1 = aie::load_v<Mmul::size_B>(b_block + Mmul::size_B);
        const BBlock b2 = aie::load_v<Mmul::size_B>(b_block + 2 * Mmul::size_B);
        const BBlock b3 = aie::load_v<Mmul::size_B>(b_block + 3 * Mmul::size_B);
        a_block += Mmul::size_A;
        b_block += b_row;

        row0.mac(a0, b0, b1, b2, b3);
        row1.mac(a1, b0, b1, b2, b3);
        row2.mac(a2, b0, b1, b2, b3);
        row3.mac(a3, b0, b1, b2, b3);
      }

      row0.store(c_block);
      row1.store(c_block + c_row);
      row2.store(c_block + 2 * c_row);
      row3.store(c_block + 3 * c_row);
    }
  }
}

}  // namespace

extern "C" {

void matmul_first_bf16_f32(const bfloat16* __restrict a, const bfloat16* __restrict b,
                           float* __restrict c) {
  matmul<true>(a, b, c);
}

void matmul_bf16_f32(const bfloat16* __restrict a, const bfloat16* __restrict b,
                     float* __restrict c) {
  matmul<false>(a, b, c);
}

}  // extern "C"
