// Vectors of 16 numbers in the extensions of GCC and Clang, which every processor's own registers are made of.
//
// No sum here depends on anything but its own numbers: a row's bits are those of the row alone, whatever else is in a
// pass. That is what makes a tree equal plain decoding.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

constexpr int LANES = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int8_t Small __attribute__((vector_size(16)));
typedef uint8_t Bytes __attribute__((vector_size(64)));

template <class V, class T>
static inline V load(const T* from) {
    V v;
    memcpy(&v, from, sizeof v);
    return v;
}

template <class V, class T>
static inline void store(T* to, V v) {
    memcpy(to, &v, sizeof v);
}

static inline Floats fill(float x) { return x - Floats{}; }  // taken away, not added: -0.0 stays

// The sum of 16 numbers, pair by pair.
static inline float sum(Floats v) {
    float x[LANES];
    store(x, v);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Ints){__VA_ARGS__})
#endif

// The vector whose sum is the s-th of `sums_of`.
static inline int place_of(int s) { return (s & 1) << 3 | (s & 2) << 1 | (s & 4) >> 1 | (s & 8) >> 3; }

// The sums of 16 vectors, each pair by pair as `sum` adds it; overwrites them.
static inline Floats sums_of(Floats* v) {
    for (int i = 0; i < 8; i++)
        v[i] = SHUFFLE(v[i], v[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               SHUFFLE(v[i], v[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        v[i] = SHUFFLE(v[i], v[i + 4], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
               SHUFFLE(v[i], v[i + 4], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        v[i] = SHUFFLE(v[i], v[i + 2], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
               SHUFFLE(v[i], v[i + 2], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    return SHUFFLE(v[0], v[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           SHUFFLE(v[0], v[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

static inline float largest(Floats v) {
    float x[LANES];
    store(x, v);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
    return x[0];
}

static inline Floats choose(Ints which, Floats yes, Floats no) {
    return (Floats)(((Ints)yes & which) | ((Ints)no & ~which));
}

static inline Floats absolute(Floats v) { return (Floats)((Bits)v & 0x7fffffffu); }

// 16 numbers to whole ones, ties to even: adding 1.5 * 2^23 leaves no room for a fraction. |v| < 2^22.
static inline Ints rounded(Floats v) {
    const Floats shift = fill(12582912.0f);
    return __builtin_convertvector((v + shift) - shift, Ints);
}

// exp(v), as far as 2 units in the last place; 0 far below, for v <= 88.
static inline Floats exp(Floats v) {
    v = choose(v > fill(-87.0f), v, fill(-87.0f));
    const Ints power = rounded(v * 1.44269504f);
    const Floats n = __builtin_convertvector(power, Floats);
    const Floats r = v - n * 0.693359375f - n * -2.12194440e-4f;  // Cody and Waite
    Floats p = fill(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = p * r + c;
    p = p * r * r + r + 1.0f;
    return p * (Floats)((power + 127) << 23);
}

// float16 as the scales of 4-bit weights are kept in.
static inline Floats from_float16(const uint16_t* from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__)
    Floats out;
    store((float*)&out, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from)));
    store((float*)&out + 8, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + 8))));
    return out;
#else
    // The exponent moves from a bias of 15 to one of 127 by a product, which is right for subnormal numbers too.
    const Bits bits = __builtin_convertvector(load<Halves>(from), Bits);
    const Floats size = (Floats)((bits & 0x7fffu) << 13) * 0x1p112f;
    return (Floats)((Bits)size | ((bits & 0x8000u) << 16));
#endif
}

// Keys and values are kept in the base's own numbers: float, or bfloat16 as uint16_t.
static inline Floats widen(const float* from) { return load<Floats>(from); }
static inline Floats widen(const uint16_t* from) {
    return (Floats)(__builtin_convertvector(load<Halves>(from), Bits) << 16);
}
static inline void narrow(float* to, Floats v) { store(to, v); }
static inline void narrow(uint16_t* to, Floats v) {  // to the nearest, ties to even
    const Bits bits = (Bits)v;
    store(to, __builtin_convertvector((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, Halves));
}
