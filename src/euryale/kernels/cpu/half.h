// Products of rows in bfloat16 with a matrix in bfloat16, added up in float32.
//
// A step of one row is bound by reading the matrix, so it is laid out in the order in which it is read: of a tile and two
// inputs 16 x 2 numbers, those of an output next to each other.
//
// Letters: M rows, I inputs, O outputs.
#pragma once

#include "matrix.h"

// found + the products of 16 pairs of weights with one pair of numbers.
static inline Floats add_pairs(Floats found, const uint16_t* weights, const uint16_t* pair) {
    int32_t both;
    memcpy(&both, pair, 4);
#if defined(__AVX512BF16__)
    return (Floats)_mm512_dpbf16_ps((__m512)found, (__m512bh)load<Ints>(weights), (__m512bh)_mm512_set1_epi32(both));
#else
    const Bits w = load<Bits>(weights), x = (Bits)(Ints{} + both);
    found += (Floats)(w << 16) * (Floats)(x << 16);
    return found + (Floats)(w & 0xffff0000u) * (Floats)(x & 0xffff0000u);
#endif
}

// 16 outputs of R rows, the first of which is m. Two sums a row, of every other pair, so that one need not wait for the
// other.
template <int R>
static inline void half_tile(const Matrix& w, int t, const Rows& x, int m, Floats* found) {
    const uint16_t* weights = (const uint16_t*)w.codes + (size_t)t * w.inputs * LANES;
    Floats sums[2][R] = {};
    for (int i = 0; i < w.inputs; i += 4)
#pragma GCC unroll 2
        for (int c = 0; c < 2; c++)
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const int at = i + 2 * c;
                const uint16_t* pair = x.halves + (size_t)(m + r) * w.inputs + at;
                sums[c][r] = add_pairs(sums[c][r], weights + at * LANES, pair);
            }
    for (int r = 0; r < R; r++) found[r] = sums[0][r] + sums[1][r];
}
