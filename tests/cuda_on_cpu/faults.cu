// Kernels with one fault each, and one without: what the fibers must find.
#include "common.cuh"

// out[i] = the value that the neighbour wrote: right only with a barrier between.
template <bool HAS_BARRIER>
__device__ inline void pass_on(const float* in, float* out) {
  __shared__ float held[64];
  int i = threadIdx.x;
  held[i] = in[i];
  if (HAS_BARRIER) __syncthreads();
  out[i] = held[(i + 1) % 64];
}
extern "C" __global__ void with_barrier(const float* in, float* out) { pass_on<true>(in, out); }
extern "C" __global__ void without_barrier(const float* in, float* out) { pass_on<false>(in, out); }
extern "C" __global__ void leaves_early(const float* in, float* out) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
}
extern "C" __global__ void half_a_warp(const float* in, float* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_xor_sync(~0u, in[threadIdx.x], 1);
}
extern "C" __global__ void writes_too_far(const float* in, float* out) {
  DYNAMIC_SHARED(shared);
  reinterpret_cast<float*>(shared)[threadIdx.x] = in[threadIdx.x];
}
EXPORT(with_barrier)
EXPORT(without_barrier)
EXPORT(leaves_early)
EXPORT(half_a_warp)
EXPORT(writes_too_far)
