// One block of a CUDA kernel at a time on CPU threads: enough of the language and of TileLang's templates to
// run a generated kernel that uses bfloat16 mma.sync, ldmatrix, block reductions and fp8 conversion. Each
// CUDA thread is a CPU thread; what a warp does together goes through a barrier. Layouts of the
// fragments: PTX ISA, "Matrix fragments for mma.m16n8k16" and "ldmatrix".
#pragma once
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include <vector_types.h>

#include <vector_functions.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

using std::max;
using std::min;
#define CUDART_INF_F INFINITY
#undef __global__
#define __global__
#undef __launch_bounds__
#define __launch_bounds__(...)

typedef unsigned char uchar;
typedef __nv_bfloat16 bfloat16_t;

struct fp8_e4_t {
  uint8_t bits;
  fp8_e4_t() = default;
  explicit fp8_e4_t(float value) : bits(__nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3)) {}
};
struct alignas(4) fp8_e4_4_t { fp8_e4_t item[4]; };
struct alignas(8) fp8_e4_8_t { fp8_e4_t item[8]; };
template <class... Items> fp8_e4_8_t make_fp8_e4_8_t(Items... items) { return {{items...}}; }

inline unsigned __pack_nv_bfloat162(bfloat16_t low, bfloat16_t high) {
  uint16_t bits[2];
  memcpy(bits, &low, 2);
  memcpy(bits + 1, &high, 2);
  return bits[0] | unsigned(bits[1]) << 16;
}
inline float2 __tl_cvt_fp8x2_to_float2(__nv_fp8x2_storage_t pair, __nv_fp8_interpretation_t kind) {
  return make_float2(__half2float(__half(__nv_cvt_fp8_to_halfraw(pair & 0xff, kind))),
                     __half2float(__half(__nv_cvt_fp8_to_halfraw(pair >> 8, kind))));
}

namespace simt {
struct Warp {
  std::barrier<> together{32};
  const void *pointer[32];
  unsigned words[32][6];
  float value[32];
};
struct Block {
  explicit Block(int threads) : together(threads), value(threads), warps(threads / 32) {
    shared = static_cast<uchar *>(aligned_alloc(1024, SHARED));
    memset(shared, 0xff, SHARED); // NaN: what is read before it is written shows
  }
  ~Block() { free(shared); }
  static constexpr int SHARED = 128 * 1024;
  std::barrier<> together;
  std::vector<float> value;
  std::vector<Warp> warps;
  uchar *shared;
};
inline thread_local uint3 thread, block_index;
inline thread_local Block *block;
inline Warp &warp() { return block->warps[thread.x / 32]; }
inline int lane() { return thread.x % 32; }
inline float widen(unsigned bits) {
  bits <<= 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
template <class Body> void launch(unsigned grid_x, unsigned grid_y, unsigned threads, Body body) {
  for (unsigned y = 0; y < grid_y; y++)
    for (unsigned x = 0; x < grid_x; x++) {
      Block here(threads);
      std::vector<std::thread> running;
      for (unsigned t = 0; t < threads; t++)
        running.emplace_back([&, t] {
          thread = {t, 0, 0};
          block_index = {x, y, 0};
          block = &here;
          body();
        });
      for (auto &one : running) one.join();
    }
}
} // namespace simt

#define threadIdx simt::thread
#define blockIdx simt::block_index
inline void __syncthreads() { simt::block->together.arrive_and_wait(); }

namespace tl {
enum class DataType { kBFloat16, kFloat32 };

template <int COUNT, bool TRANSPOSED> void ldmatrix(const void *row, void *out) {
  auto &w = simt::warp();
  const int lane = simt::lane();
  w.pointer[lane] = row;
  w.together.arrive_and_wait();
  auto at = [&](int matrix, int r, int c) {
    return static_cast<const uint16_t *>(w.pointer[8 * matrix + r])[c];
  };
  unsigned words[COUNT];
  const int major = lane / 4, minor = 2 * (lane % 4);
  for (int i = 0; i < COUNT; i++)
    words[i] = TRANSPOSED ? at(i, minor, major) | unsigned(at(i, minor + 1, major)) << 16
                          : at(i, major, minor) | unsigned(at(i, major, minor + 1)) << 16;
  w.together.arrive_and_wait();
  memcpy(out, words, sizeof words);
}
inline void ptx_ldmatrix_x2(const void *row, void *out) { ldmatrix<2, false>(row, out); }
inline void ptx_ldmatrix_x4(const void *row, void *out) { ldmatrix<4, false>(row, out); }
inline void ptx_ldmatrix_x4_trans(const void *row, void *out) { ldmatrix<4, true>(row, out); }

template <DataType, DataType, DataType, int M, int N, int K, bool, bool>
void mma_sync(float *c, const unsigned *a, const unsigned *b) {
  static_assert(M == 16 && N == 8 && K == 16);
  auto &w = simt::warp();
  const int lane = simt::lane();
  memcpy(w.words[lane], a, 16);
  memcpy(w.words[lane] + 4, b, 8);
  w.together.arrive_and_wait();
  auto half = [&](int from, int word, int k) {
    return simt::widen(w.words[from][word] >> 16 * (k % 2) & 0xffff);
  };
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    for (int k = 0; k < K; k++)
      c[i] += half(row % 8 * 4 + k % 8 / 2, row / 8 + 2 * (k / 8), k) *
              half(column * 4 + k % 8 / 2, 4 + k / 8, k);
  }
  w.together.arrive_and_wait();
}

struct SumOp { float operator()(float a, float b) { return a + b; } };
struct MaxOp { float operator()(float a, float b) { return a > b ? a : b; } };

template <class Op, int THREADS, int SCALE, int OFFSET = 0> struct AllReduce {
  static float run(float value, float * = nullptr) {
    static_assert(OFFSET == 0);
    auto &w = simt::warp();
    for (int distance = THREADS / 2; distance >= SCALE; distance /= 2) {
      const unsigned self = simt::thread.x;
      const bool across = distance >= 32;
      auto &together = across ? simt::block->together : w.together;
      float *all = across ? simt::block->value.data() : w.value;
      const unsigned me = across ? self : self % 32;
      together.arrive_and_wait();
      all[me] = value;
      together.arrive_and_wait();
      value = Op()(value, all[me ^ distance]);
    }
    return value;
  }
};
} // namespace tl
