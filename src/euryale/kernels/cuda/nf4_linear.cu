// y = x W^T (+ b) on tensor cores, with W in NF4 exactly as bitsandbytes stores it, for 1 to 32 rows of x.
//
// A byte is two neighbouring inputs, the even one in the high nibble: exactly one register of the left operand of mma.
// So a table of 256 pairs in shared memory decodes a byte with one byte permute and one load. Each lane has a column of
// its own, hence a bank of its own, so that no load waits for another: entry e of lane l is at byte e * 256 + l * 4, and
// that address is the byte itself put in place by the permute.
// The order of inputs inside a block of 64 is free as long as W and x agree: lane t of a quad takes inputs 16 t to
// 16 t + 15, which are 8 neighbouring bytes of W and 32 of x. Nothing is laid out anew.
//
// A block of threads: ROW_WARPS x 32 outputs; K_WARPS warps take blocks of inputs in turn. Sums of warps, then of splits,
// are added in a fixed order, and every row of x is a column of its own in the product: it does not depend on the others.
// Codes are rounded to bfloat16 and multiplied unscaled; a block's absmax is multiplied onto its float32 sums.
#include "common.cuh"

constexpr int ROW_WARPS = 2, K_WARPS = 4, OUTPUTS = ROW_WARPS * 32, THREADS = ROW_WARPS * K_WARPS * 32;

struct Weight {
  const unsigned char* packed;
  const unsigned* pairs;          // [256]: the two values of a byte, even input in the low half
  const void* absmax;             // uint8 when nested, else float32
  const float* nested_absmax;     // [blocks / 256]
  const float* nested_codebook;   // [256]
  const float* offset;            // [1]
  int num_outputs, num_inputs, is_nested;
};

template <int TILES>  // of 8 rows of x
__device__ inline void parts(const bf16* x, Weight weight, float* part, int M) {
  DYNAMIC_SHARED(shared);
  __shared__ float codebook[256];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  int row_warp = warp % ROW_WARPS, k_warp = warp / ROW_WARPS, first = blockIdx.x * OUTPUTS + row_warp * 32;
  int N = weight.num_outputs, blocks = weight.num_inputs / 64;
  int share = (blocks + gridDim.y - 1) / gridDim.y, end = min(blocks, int(blockIdx.y + 1) * share);
  for (int e = warp; e < 256; e += THREADS / 32)
    *reinterpret_cast<unsigned*>(shared + e * 256 + lane * 4) = weight.pairs[e];
  if (weight.is_nested)
    for (int e = threadIdx.x; e < 256; e += THREADS) codebook[e] = weight.nested_codebook[e];
  float offset = weight.is_nested ? *weight.offset : 0.f;
  __syncthreads();
  float acc[2][TILES][4];
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int j = 0; j < TILES; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[r][j][i] = 0.f;
  unsigned row_of[2][2], x_of[TILES];  // outputs behind the last and rows behind M are computed, never stored
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) row_of[r][h] = unsigned(min(first + r * 16 + h * 8 + g, N - 1)) * blocks;
#pragma unroll
  for (int j = 0; j < TILES; ++j) x_of[j] = unsigned(min(j * 8 + g, M - 1)) * weight.num_inputs + 16 * t;
  // What a warp reads of W for one block of inputs. With up to 16 rows of x there are registers to read the next block's
  // while this one's is computed; bytes in flight are what keeps memory busy.
  constexpr bool IS_AHEAD = TILES <= 2;
  struct { uint2 codes[2][2]; float scale[2][2]; } now, next;
  auto read = [&](int block, int r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      unsigned at = row_of[r][h] + block;
      next.codes[r][h] = *reinterpret_cast<const uint2*>(weight.packed + size_t(at) * 32 + 8 * t);
      next.scale[r][h] =
          weight.is_nested
              ? codebook[static_cast<const unsigned char*>(weight.absmax)[at]] * weight.nested_absmax[at / 256] + offset
              : static_cast<const float*>(weight.absmax)[at];
    }
  };
  int begin = blockIdx.y * share + k_warp;
  if (IS_AHEAD && begin < end)
    for (int r = 0; r < 2; ++r) read(begin, r);
#pragma unroll 1
  for (int block = begin; block < end; block += K_WARPS) {
    now = next;
    if (IS_AHEAD)
      for (int r = 0; r < 2; ++r) read(min(block + K_WARPS, end - 1), r);
    unsigned inputs[TILES][8];
#pragma unroll
    for (int j = 0; j < TILES; ++j) {
      const uint4* from = reinterpret_cast<const uint4*>(x + x_of[j] + block * 64);
      *reinterpret_cast<uint4*>(inputs[j]) = from[0];
      *reinterpret_cast<uint4*>(inputs[j] + 4) = from[1];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!IS_AHEAD) read(block, r), now = next;
      float sum[TILES][4];
#pragma unroll
      for (int j = 0; j < TILES; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[j][i] = 0.f;
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        unsigned a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // a[0], a[2]: output g; a[1], a[3]: output g + 8
          unsigned word = s < 2 ? now.codes[r][i % 2].x : now.codes[r][i % 2].y;
          unsigned place = __byte_perm(word, lane * 4, 0x5504 | (s % 2 * 2 + i / 2) << 4);
          a[i] = *reinterpret_cast<const unsigned*>(shared + place);
        }
#pragma unroll
        for (int j = 0; j < TILES; ++j) mma(sum[j], a, inputs[j][2 * s], inputs[j][2 * s + 1]);
      }
#pragma unroll
      for (int j = 0; j < TILES; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[r][j][i] += sum[j][i] * now.scale[r][i / 2];
    }
  }
  __syncthreads();  // the table is read no more: sums take its place, [K_WARPS][TILES * 8][OUTPUTS]
  float* sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int j = 0; j < TILES; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int m = j * 8 + t * 2 + i % 2, n = row_warp * 32 + r * 16 + i / 2 * 8 + g;
        sums[(k_warp * TILES * 8 + m) * OUTPUTS + n] = acc[r][j][i];
      }
  __syncthreads();
  for (int i = threadIdx.x; i < TILES * 8 * OUTPUTS; i += THREADS) {
    int n = blockIdx.x * OUTPUTS + i % OUTPUTS, m = i / OUTPUTS;
    float sum = 0.f;
    for (int k = 0; k < K_WARPS; ++k) sum += sums[k * TILES * 8 * OUTPUTS + i];
    if (n < N && m < M) part[(size_t(blockIdx.y) * M + m) * N + n] = sum;
  }
}

#define PARTS(ROWS, BLOCKS)                                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                         \
      parts_##ROWS(const bf16* x, Weight weight, float* part, int M) {                                                  \
    parts<ROWS / 8>(x, weight, part, M);                                                                                \
  }                                                                                                                     \
  EXPORT(parts_##ROWS)
PARTS(8, 2)
PARTS(16, 2)
PARTS(32, 2)

// y [M, N] = part [splits, M, N] added in order, plus bias [N] where there is one; a thread for two neighbours.
extern "C" __global__ void add_up(const float* part, const bf16* bias, bf16* y, int size, int N, int splits) {
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * 2;
  if (i >= size) return;
  float sum[2] = {0.f, 0.f};
  for (int s = 0; s < splits; ++s) {
    float2 one = *reinterpret_cast<const float2*>(part + size_t(s) * size + i);
    sum[0] += one.x;
    sum[1] += one.y;
  }
  if (bias)
    for (int e = 0; e < 2; ++e) sum[e] += __int_as_float(unsigned(bias[(i + e) % N]) << 16);
  *reinterpret_cast<unsigned*>(y + i) = pack(sum[0], sum[1]);
}
EXPORT(add_up)
