// Products of rows in bfloat16 with a matrix in bfloat16, added up in float32.
//
// A step of one row is bound by reading the matrix, so it is laid out in the order in which it is read: of a tile and two
// inputs 16 x 2 numbers, those of an output next to each other.
//
// Letters: M rows, I inputs, O outputs.
#pragma once

#include "matrix.h"

// Sums a row, of every other pair, so that one need not wait for the other, and rows at once: as many as registers hold.
// The sums are the same for any number of rows, or a row's bits would depend on it.
#if defined(__AVX512F__)
constexpr int HALF_SUMS = 2, HALF_ROWS = 8;
#else
constexpr int HALF_SUMS = 1, HALF_ROWS = 4;
#endif

// found + the products of 16 pairs of weights with one pair of numbers.
INLINE Floats add_pairs(const Floats& found, const uint16_t* weights, const uint16_t* pair) {
    uint32_t both;
    memcpy(&both, pair, 4);
#if defined(__AVX512BF16__)
    const __m512i w = _mm512_loadu_si512(weights), x = _mm512_set1_epi32(both);
    return {(Floats::Part)_mm512_dpbf16_ps((__m512)found.part[0], (__m512bh)w, (__m512bh)x)};
#else
    const Bits w = load<Bits>(weights);
    float low, high;
    const uint32_t low_bits = both << 16, high_bits = both & 0xffff0000u;
    memcpy(&low, &low_bits, 4);
    memcpy(&high, &high_bits, 4);
    return found + as<Floats>(w << 16) * low + as<Floats>(w & 0xffff0000u) * high;
#endif
}

// 16 outputs of R rows, the first of which is m.
template <int R>
INLINE void half_tile(const Matrix& w, int t, const Rows& x, int m, Floats* found) {
    const uint16_t* weights = (const uint16_t*)w.codes + (size_t)t * w.inputs * LANES;
    Floats sums[HALF_SUMS][R] = {};
    for (int i = 0; i < w.inputs; i += 2 * HALF_SUMS)
#pragma GCC unroll 2
        for (int c = 0; c < HALF_SUMS; c++) {
            const int at = i + 2 * c;
            if (R > 4) read_ahead(weights + at * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const uint16_t* pair = x.halves + (size_t)(m + r) * w.inputs + at;
                sums[c][r] = add_pairs(sums[c][r], weights + at * LANES, pair);
            }
        }
    for (int r = 0; r < R; r++) {
        found[r] = sums[0][r];
        for (int c = 1; c < HALF_SUMS; c++) found[r] += sums[c][r];
    }
}
