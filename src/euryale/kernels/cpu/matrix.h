// A matrix that never changes, laid out in tiles of 16 outputs, and the rows that it is multiplied with.
//
// Letters: M rows, I inputs, O outputs.
#pragma once

#include "vector.h"

constexpr int BLOCK = 32;  // inputs that share a scale, where there are scales

struct Matrix {
    const uint8_t* codes;    // of 4 or 8 bits (few_bits.h), bfloat16 (half.h), or float32 (wide.h)
    const uint16_t* scales;  // null in 16 and 32 bits
    const float* bias;       // of O numbers, or null
    int32_t inputs, outputs, bits;
};

struct Rows {
    int8_t* numbers;   // [M, I], for matrices of 4 and 8 bits, and the next two; see few_bits.h
    float* sizes;      // [M, I / 32]
    float* sums;       // [M, I / 32]
    uint16_t* halves;  // [M, I] in bfloat16, for matrices of 16 bits
    float* wide;       // [M, I], for matrices of 32 bits
};

// y [M, O] = x W^T + b, of rows of `given` numbers: the matrix has these inputs, and then zeros. In llama.cpp.
extern "C" void euryale_product(
    const Matrix* matrix, const float* x_MI, int32_t M, int32_t given, float* y_MO, int32_t threads
);

// Asks for weights that come soon, into the second cache. The processor guesses what is read next too, and with a row or two
// its own guess is often as quick; with more it falls behind, and the products wait. For which rows it pays is what a Zen 4
// core was timed at, weights in large pages.
constexpr int AHEAD = 8192;  // bytes
INLINE void read_ahead(const void* weights, int bytes = AHEAD) { __builtin_prefetch((const char*)weights + bytes, 0, 2); }
