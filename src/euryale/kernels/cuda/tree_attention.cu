// Tree attention on tensor cores: the algorithm of kernels/triton/tree_attention.py, which says why keys are split by a
// node's position. prefix: whole tiles of committed slots, shared by 64 query rows. tail: the last keys of each node in
// the order of their positions, then the sum over splits in order.
//
// Scores stay in registers: the accumulators of Q K^T, packed to bfloat16, are the left operand of P V. Values lie
// transposed in shared memory, so that two keys of one column are one 32-bit load; rows of D + 8 and KEYS + 8 numbers
// keep the lanes of such a load in different banks.
// Rows are node * GROUP + head of the group. Bytes: K and V once for each block of 64 rows.
#include "common.cuh"

constexpr int REACH = 32, TILE = 32, TAIL = REACH + TILE, WARPS = 4, BLOCK_M = WARPS * 16;

struct Strides {
  long long b, h, s;  // of batch row, head, and slot (for q and out: node)
};

struct Tree {
  const int* lengths;                   // [B]
  const unsigned long long* ancestors;  // [B or 1, N]
  long long stride;                     // of a batch row of ancestors; 0 when shared
  int N, group, G, splits, split, window;
};

template <int D, int KEYS>
struct Shared {
  __align__(16) bf16 keys[KEYS][D + 8];
  __align__(16) bf16 values[D][KEYS + 8];
};

// Keys and values of slot_of(i), i < KEYS, into shared memory; zeros where it is negative.
template <int D, int KEYS, class SlotOf>
__device__ inline void stage(Shared<D, KEYS>& shared, const bf16* k, const bf16* v, long long ks, long long vs, SlotOf slot_of) {
  for (int i = threadIdx.x; i < KEYS * D / 8; i += WARPS * 32) {
    int t = i / (D / 8), d = i % (D / 8) * 8, slot = slot_of(t);
    uint4 key = {0, 0, 0, 0}, value = {0, 0, 0, 0};
    if (slot >= 0) {
      key = *reinterpret_cast<const uint4*>(k + slot * ks + d);
      value = *reinterpret_cast<const uint4*>(v + slot * vs + d);
    }
    *reinterpret_cast<uint4*>(&shared.keys[t][d]) = key;
    const bf16* numbers = reinterpret_cast<const bf16*>(&value);
#pragma unroll
    for (int e = 0; e < 8; ++e) shared.values[d + e][t] = numbers[e];
  }
}

// Fragments of 16 query rows; rows of which the pointer is null are zeros.
template <int D>
__device__ inline void load_queries(unsigned (&query)[D / 16][4], const bf16* (&from)[2], int pair) {
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
      query[d][h] = from[h] ? two(from[h] + d * 16 + pair) : 0;
      query[d][h + 2] = from[h] ? two(from[h] + d * 16 + 8 + pair) : 0;
    }
}

template <int D, int KEYS>
__device__ inline void dot(float (&score)[KEYS / 8][4], const unsigned (&query)[D / 16][4], const Shared<D, KEYS>& shared, int row, int pair) {
#pragma unroll
  for (int j = 0; j < KEYS / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) score[j][i] = 0.f;
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
      const bf16* key = &shared.keys[j * 8 + row][d * 16 + pair];
      mma(score[j], query[d], two(key), two(key + 8));
    }
  }
}

// Online softmax over KEYS more keys: scores (base 2; -inf is masked) become shares; acc holds COLUMNS / 8 tiles.
template <int KEYS, int TILES>
__device__ inline void softmax(float (&score)[KEYS / 8][4], float (&best)[2], float (&total)[2], float (&acc)[TILES][4]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float top = best[h];
#pragma unroll
    for (int j = 0; j < KEYS / 8; ++j) top = fmaxf(top, fmaxf(score[j][2 * h], score[j][2 * h + 1]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    float shift = top == minus_infinity() ? 0.f : top, fade = exp2f(best[h] - shift), sum = 0.f;
#pragma unroll
    for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
      for (int i = 2 * h; i < 2 * h + 2; ++i) {
        score[j][i] = exp2f(score[j][i] - shift);
        sum += score[j][i];
      }
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    best[h] = top;
    total[h] = total[h] * fade + sum;
#pragma unroll
    for (int j = 0; j < TILES; ++j) acc[j][2 * h] *= fade, acc[j][2 * h + 1] *= fade;
  }
}

// acc += shares times the values of columns first_column to first_column + 8 TILES - 1.
template <int D, int KEYS, int TILES>
__device__ inline void weigh(float (&acc)[TILES][4], const float (&share)[KEYS / 8][4], const Shared<D, KEYS>& shared, int first_column, int row, int pair) {
#pragma unroll
  for (int s = 0; s < KEYS / 16; ++s) {
    const float(&a)[4] = share[2 * s], (&b)[4] = share[2 * s + 1];
    unsigned shares[4] = {pack(a[0], a[1]), pack(a[2], a[3]), pack(b[0], b[1]), pack(b[2], b[3])};
#pragma unroll
    for (int j = 0; j < TILES; ++j) {
      const bf16* value = &shared.values[first_column + j * 8 + row][s * 16 + pair];
      mma(acc[j], shares, two(value), two(value + 8));
    }
  }
}

__device__ inline int dense_keys(int position) { return max(position - REACH, 0) / TILE * TILE; }

// Grid (blocks of rows x G, splits, B): part [B, G, splits, N * group, D], stats [.., 2] (largest score, sum).
template <int D>
__device__ inline void prefix(const bf16* q, const bf16* k, const bf16* v, Strides sq, Strides sk, Strides sv, Tree tree, float scale, float* part, float* stats) {
  __shared__ Shared<D, TILE> shared;
  __shared__ int most;
  int M = tree.N * tree.group, g = blockIdx.x % tree.G, b = blockIdx.z, length = tree.lengths[b];
  int lane = threadIdx.x % 32, row = lane / 4, pair = lane % 4 * 2;
  int m[2], position[2], dense[2];
  const bf16* from[2];
  if (threadIdx.x == 0) most = 0;
  __syncthreads();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    m[h] = blockIdx.x / tree.G * BLOCK_M + threadIdx.x / 32 * 16 + h * 8 + row;
    bool is_row = m[h] < M;
    int node = is_row ? m[h] / tree.group : 0;
    position[h] = length + __popcll(tree.ancestors[b * tree.stride + node]) - 1;
    dense[h] = is_row ? dense_keys(position[h]) : 0;
    from[h] = is_row ? q + b * sq.b + (g * tree.group + m[h] % tree.group) * sq.h + node * sq.s : nullptr;
    atomicMax(&most, dense[h]);
  }
  __syncthreads();
  int begin = blockIdx.y * tree.split, end = min(begin + tree.split, most);
  if (begin >= end) return;  // the same for all threads: behind every row's prefix
  unsigned query[D / 16][4];
  load_queries<D>(query, from, pair);
  float best[2] = {minus_infinity(), minus_infinity()}, total[2] = {0.f, 0.f}, acc[D / 8][4];
#pragma unroll
  for (int j = 0; j < D / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[j][i] = 0.f;
  k += b * sk.b + g * sk.h;
  v += b * sv.b + g * sv.h;
#pragma unroll 1
  for (int first = begin; first < end; first += TILE) {
    if (first + TILE <= length + 1 - tree.window) continue;  // every node's window begins later
    __syncthreads();                                         // the last tile has been read
    stage<D, TILE>(shared, k, v, sk.s, sv.s, [&](int t) { return first + t; });
    __syncthreads();
    float score[TILE / 8][4];
    dot<D, TILE>(score, query, shared, row, pair);
#pragma unroll
    for (int j = 0; j < TILE / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int h = i / 2, slot = first + j * 8 + pair + i % 2;
        bool sees = first < dense[h] && slot > position[h] - tree.window;
        score[j][i] = sees ? score[j][i] * scale : minus_infinity();
      }
    softmax<TILE>(score, best, total, acc);
    weigh<D, TILE>(acc, score, shared, 0, row, pair);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (m[h] >= M) continue;
    long long to = ((b * (long long)tree.G + g) * tree.splits + blockIdx.y) * M + m[h];
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
      *reinterpret_cast<float2*>(part + to * D + j * 8 + pair) = {acc[j][2 * h], acc[j][2 * h + 1]};
    if (pair == 0) *reinterpret_cast<float2*>(stats + to * 2) = {best[h], total[h]};
  }
}

// Grid (N, G, B), a warp for D / 4 columns of out [B, N, H, D]; the warps do the same scores.
template <int D>
__device__ inline void tail(const bf16* q, const bf16* k, const bf16* v, Strides sq, Strides sk, Strides sv, Tree tree, float scale, const float* part, const float* stats, bf16* out) {
  __shared__ Shared<D, TAIL> shared;
  __shared__ int slots[TAIL];
  int node = blockIdx.x, g = blockIdx.y, b = blockIdx.z, length = tree.lengths[b], M = tree.N * tree.group;
  int lane = threadIdx.x % 32, row = lane / 4, pair = lane % 4 * 2, column = threadIdx.x / 32 * (D / WARPS);
  unsigned long long ancestors = tree.ancestors[b * tree.stride + node];
  int position = length + __popcll(ancestors) - 1, dense = dense_keys(position);
  if (threadIdx.x < TAIL) {
    int key = dense + threadIdx.x;
    unsigned long long rest = ancestors;
    for (int depth = 0; depth < key - length; ++depth) rest &= rest - 1;  // ancestors above the one at this position
    bool sees = key <= position && key > position - tree.window;
    slots[threadIdx.x] = !sees ? -1 : key < length ? key : length + __ffsll(rest) - 1;
  }
  const bf16* from[2];
#pragma unroll
  for (int h = 0; h < 2; ++h)
    from[h] = row + h * 8 < tree.group ? q + b * sq.b + (g * tree.group + row + h * 8) * sq.h + node * sq.s : nullptr;
  unsigned query[D / 16][4];
  load_queries<D>(query, from, pair);
  __syncthreads();
  stage<D, TAIL>(shared, k + b * sk.b + g * sk.h, v + b * sv.b + g * sv.h, sk.s, sv.s, [&](int t) { return slots[t]; });
  __syncthreads();
  float best[2] = {minus_infinity(), minus_infinity()}, total[2] = {0.f, 0.f}, acc[D / WARPS / 8][4];
#pragma unroll
  for (int j = 0; j < D / WARPS / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[j][i] = 0.f;
  for (int s = 0; s * tree.split < dense; ++s)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (row + h * 8 >= tree.group) continue;
      long long at = ((b * (long long)tree.G + g) * tree.splits + s) * M + node * tree.group + row + h * 8;
      float2 one = *reinterpret_cast<const float2*>(stats + at * 2);
      float top = fmaxf(best[h], one.x), shift = top == minus_infinity() ? 0.f : top;
      float fade = exp2f(best[h] - shift), share = exp2f(one.x - shift);
      best[h] = top;
      total[h] = total[h] * fade + one.y * share;
#pragma unroll
      for (int j = 0; j < D / WARPS / 8; ++j) {
        float2 sum = *reinterpret_cast<const float2*>(part + at * D + column + j * 8 + pair);
        acc[j][2 * h] = acc[j][2 * h] * fade + sum.x * share;
        acc[j][2 * h + 1] = acc[j][2 * h + 1] * fade + sum.y * share;
      }
    }
  float score[TAIL / 8][4];
  dot<D, TAIL>(score, query, shared, row, pair);
#pragma unroll
  for (int j = 0; j < TAIL / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      score[j][i] = slots[j * 8 + pair + i % 2] >= 0 ? score[j][i] * scale : minus_infinity();
  softmax<TAIL>(score, best, total, acc);
  weigh<D, TAIL>(acc, score, shared, column, row, pair);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (row + h * 8 >= tree.group) continue;
    bf16* to = out + ((b * (long long)tree.N + node) * tree.G * tree.group + g * tree.group + row + h * 8) * D + column;
#pragma unroll
    for (int j = 0; j < D / WARPS / 8; ++j)
      *reinterpret_cast<unsigned*>(to + j * 8 + pair) = pack(acc[j][2 * h] / total[h], acc[j][2 * h + 1] / total[h]);
  }
}

#define KERNELS(D)                                                                                                      \
  extern "C" __global__ void __launch_bounds__(WARPS * 32) prefix_##D(const bf16* q, const bf16* k, const bf16* v,      \
      Strides sq, Strides sk, Strides sv, Tree tree, float scale, float* part, float* stats) {                          \
    prefix<D>(q, k, v, sq, sk, sv, tree, scale, part, stats);                                                           \
  }                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(WARPS * 32) tail_##D(const bf16* q, const bf16* k, const bf16* v,        \
      Strides sq, Strides sk, Strides sv, Tree tree, float scale, const float* part, const float* stats, bf16* out) {   \
    tail<D>(q, k, v, sq, sk, sv, tree, scale, part, stats, out);                                                        \
  }                                                                                                                     \
  EXPORT(prefix_##D)                                                                                                    \
  EXPORT(tail_##D)
KERNELS(64)
KERNELS(128)
