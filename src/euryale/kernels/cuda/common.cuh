// What all CUDA sources share. No header of CUDA or of C++ is included, so nvcc and NVRTC need nothing but this folder.
// The same sources run on a CPU in tests, compiled by g++ (tests/cuda_on_cpu): what is an instruction of the GPU has its
// other half there.
#pragma once

typedef unsigned short bf16;  // the bits of a bfloat16

#ifdef __CUDACC__
#define EXPORT(kernel)  // g++ keeps a list of kernels by name; a GPU's loader finds them itself

// Two floats rounded to bfloat16, the first in the low half.
__device__ inline unsigned pack(float low, float high) {
  unsigned two;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(high), "f"(low));
  return two;
}

// One tensor-core instruction: c[16, 8] += A[16, 16] B[16, 8] in bfloat16 with float32 sums (PTX mma.m16n8k16).
// With g = lane / 4 and t = lane % 4: a[0] = A[g][2t, 2t+1], a[1] = A[g+8][2t, ..], a[2] = A[g][2t+8, ..],
// a[3] = A[g+8][2t+8, ..]; b0 = B[2t, 2t+1][g], b1 = B[2t+8, 2t+9][g]; c[0, 1] = C[g][2t, 2t+1], c[2, 3] = C[g+8][..].
__device__ inline void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) char name[]
#endif

__device__ inline unsigned two(const bf16* p) { return *reinterpret_cast<const unsigned*>(p); }
__device__ inline float minus_infinity() { return __int_as_float(0xFF800000); }
