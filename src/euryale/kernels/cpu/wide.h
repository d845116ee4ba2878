// Products of rows with a matrix in float32. Of a tile and an input, the 16 weights lie next to each other.
//
// Letters: M rows, I inputs, O outputs.
#pragma once

#include "matrix.h"

// Sums a row, of every so many inputs, so that one need not wait for the other: as many as registers hold. They are the
// same for any number of rows, or a row's bits would depend on it.
#if defined(__AVX512F__)
constexpr int WIDE_SUMS = 2, WIDE_ROWS = 12;
#else
constexpr int WIDE_SUMS = 1, WIDE_ROWS = 6;
#endif

// 16 outputs of R rows, the first of which is m.
template <int R>
INLINE void wide_tile(const Matrix& w, int t, const Rows& x, int m, Floats* found) {
    const float* weights = (const float*)w.codes + (size_t)t * w.inputs * LANES;
    const float* rows = x.wide + (size_t)m * w.inputs;
    Floats sums[WIDE_SUMS][R] = {};
    for (int i = 0; i < w.inputs; i += WIDE_SUMS)
#pragma GCC unroll 2
        for (int c = 0; c < WIDE_SUMS; c++) {
            if (R > 1) read_ahead(weights + (size_t)(i + c) * LANES);
            const Floats weight = load<Floats>(weights + (size_t)(i + c) * LANES);
#pragma GCC unroll 12
            for (int r = 0; r < R; r++) sums[c][r] += weight * rows[(size_t)r * w.inputs + i + c];
        }
    for (int r = 0; r < R; r++) {
        found[r] = sums[0][r];
        for (int c = 1; c < WIDE_SUMS; c++) found[r] += sums[c][r];
    }
}
