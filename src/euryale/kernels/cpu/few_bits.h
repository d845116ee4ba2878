// Products of rows in 8 bits with a matrix in 4 or 8 bits.
//
// A matrix is kept in blocks of 32 inputs, each with a scale and a least value: w = scale * code + least, code from 0 to
// 15 or 255. Rows are brought to 8 bits block by block: x = size * a, a from -127 to 127. Then
//     sum w x = scale * size * (sum code a) + least * (size * sum a),
// and the sum in brackets is of whole numbers: one instruction adds 64 products (AVX512-VNNI). A block of 4 bits is read
// as 20 bytes where 16-bit numbers are 64, and several rows share it.
//
// Layout: 16 outputs are a tile. Of a tile and a block, 8 groups of 64 bytes: byte 4 l + c of group j is input 4 j + c
// of output l. In 4 bits, groups j and j + 4 share bytes, the former in the low half. Scales and least values are
// float16, 16 and 16 of them a tile and block.
//
// Letters: M rows, I inputs, O outputs.
#pragma once

#include "matrix.h"
#include "narrow.h"

#if defined(__AVX512BW__)
typedef __m512i Register;
#define SIMD(name) _mm512_##name
#elif defined(__AVX2__) && !defined(__AVX512F__)
typedef __m256i Register;
#define SIMD(name) _mm256_##name
#endif

constexpr int GROUPS = 8;
#if defined(__AVX512F__)
constexpr int FEW_ROWS = 8;  // at once: as many as registers hold
#else
constexpr int FEW_ROWS = 4;
#endif

static void quantise(const float* x_I, int I, int8_t* numbers, float* sizes, float* sums) {
    for (int b = 0; b < I / BLOCK; b++) {
        const Floats low = load<Floats>(x_I + b * BLOCK), high = load<Floats>(x_I + b * BLOCK + LANES);
        const Floats low_size = absolute(low), high_size = absolute(high);
        const float most = largest(choose(low_size > high_size, low_size, high_size));
        const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
        const Ints a = rounded(low * inverse), c = rounded(high * inverse);
        convert_to(numbers + b * BLOCK, a);
        convert_to(numbers + b * BLOCK + LANES, c);
        const Floats broken = (low - low) + (high - high);  // NaN where a number is not finite, else 0
        sizes[b] = most / 127.0f + sum(broken);
        // Whole numbers: exact in any order. Added as float, because what is not finite would overflow an int.
        sums[b] = sizes[b] * sum(convert<Floats>(a) + convert<Floats>(c));
    }
}

// The numbers of group j, side by side as one of 32 bits.
INLINE int32_t four_of(const int8_t* numbers, int j) {
    int32_t four;
    memcpy(&four, numbers + 4 * j, 4);
    return four;
}

template <int BITS>
INLINE void unpack(const uint8_t* codes, Bytes* groups) {
    for (int j = 0; j < (BITS == 4 ? 4 : GROUPS); j++) {
        const Bytes v = load<Bytes>(codes + j * 64);
        groups[j] = BITS == 4 ? v & 15 : v;
        if (BITS == 4) groups[j + 4] = v >> 4;
    }
}

// For 16 outputs the sum over a block of code times number.
template <int BITS>
INLINE Ints whole_sums(const Bytes* groups, const int8_t* numbers) {
#if defined(__AVX512VNNI__)
    __m512i total = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int j = 0; j < GROUPS; j++) {
        const int32_t four = four_of(numbers, j);
        total = _mm512_dpbusd_epi32(total, (__m512i)groups[j].part[0], _mm512_set1_epi32(four));
    }
    return {(Ints::Part)total};
#elif defined(SIMD)
    Ints total;
    for (int p = 0; p < Ints::PARTS; p++) {
        Register found = {};
#pragma GCC unroll 8
        for (int j = 0; j < GROUPS; j++) {
            const int32_t four = four_of(numbers, j);
            const Register v = (Register)groups[j].part[p], a = SIMD(set1_epi32)(four);
            if (BITS == 4) {  // 8 sums of two products of at most 15 * 127 fit into 16 bits
                found = SIMD(add_epi16)(found, SIMD(maddubs_epi16)(v, a));
            } else {
                const Register even = SIMD(srai_epi16)(SIMD(slli_epi16)(a, 8), 8), odd = SIMD(srai_epi16)(a, 8);
                const Register of_even = SIMD(madd_epi16)(v & SIMD(set1_epi16)(255), even);
                const Register of_odd = SIMD(madd_epi16)(SIMD(srli_epi16)(v, 8), odd);
                found = SIMD(add_epi32)(found, SIMD(add_epi32)(of_even, of_odd));
            }
        }
        if (BITS == 4) found = SIMD(madd_epi16)(found, SIMD(set1_epi16)(1));
        total.part[p] = (Ints::Part)found;
    }
    return total;
#elif defined(__ARM_FEATURE_DOTPROD)
    Ints total = {};
    int32x4_t sum = {};  // of the numbers: with 8 bits, 128 is taken from every code, so that it has a sign
    for (int j = 0; j < GROUPS; j++) {
        const int32_t four = four_of(numbers, j);
        const int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(four));
        sum = vdotq_s32(sum, a, vdupq_n_s8(1));
        for (int q = 0; q < Ints::PARTS; q++) {
            const uint8x16_t codes = (uint8x16_t)groups[j].part[q], moved = BITS == 4 ? codes : codes ^ 128;
            total.part[q] = (Ints::Part)vdotq_s32((int32x4_t)total.part[q], vreinterpretq_s8_u8(moved), a);
        }
    }
    return BITS == 4 ? total : total + 128 * (int)sum[0];  // all lanes of a sum are alike
#else
    int32_t total[LANES] = {};
    uint8_t codes[GROUPS * 64];
    for (int j = 0; j < GROUPS; j++) store(codes + j * 64, groups[j]);
    for (int j = 0; j < GROUPS; j++)
        for (int l = 0; l < LANES; l++)
            for (int c = 0; c < 4; c++) total[l] += codes[j * 64 + 4 * l + c] * numbers[4 * j + c];
    return load<Ints>(total);
#endif
}

// 16 outputs of R rows, the first of which is m.
template <int R, int BITS>
INLINE void few_bits_tile(const Matrix& w, int t, const Rows& x, int m, Floats* found) {
    const int blocks = w.inputs / BLOCK;
    const uint8_t* codes = w.codes + (size_t)t * blocks * BLOCK * LANES * BITS / 8;
    const uint16_t* scales = w.scales + (size_t)t * blocks * 2 * LANES;
    for (int b = 0; b < blocks; b++) {
        if (R > (BITS == 8 ? 3 : 1)) {
            for (int j = 0; j < BITS; j++) read_ahead(codes + ((size_t)b * BITS + j) * 64);
            read_ahead(scales + b * 2 * LANES, AHEAD / BITS);  // of the same block
        }
        Bytes groups[GROUPS];
        unpack<BITS>(codes + (size_t)b * BLOCK * LANES * BITS / 8, groups);
        const Floats scale = from_float16(scales + b * 2 * LANES), least = from_float16(scales + b * 2 * LANES + LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const size_t at = (size_t)(m + r) * blocks + b;
            const Ints whole = whole_sums<BITS>(groups, x.numbers + at * BLOCK);
            found[r] += convert<Floats>(whole) * (scale * x.sizes[at]);
            found[r] += least * x.sums[at];
        }
    }
}
