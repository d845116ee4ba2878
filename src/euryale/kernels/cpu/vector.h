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

// Rows and columns of 16 x 16 numbers change places: halves of pairs of vectors, then quarters, and so on.
static inline void transpose(Floats* v) {
#define SWAP(h, first, second)                                  \
    for (int i = 0; i < LANES; i++)                             \
        if ((i & h) == 0) {                                     \
            const Floats a = v[i], b = v[i + h];                \
            v[i] = SHUFFLE(a, b, EXPAND first);                 \
            v[i + h] = SHUFFLE(a, b, EXPAND second);            \
        }
#define EXPAND(...) __VA_ARGS__
    SWAP(8, (0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
         (8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
    SWAP(4, (0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
         (4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
    SWAP(2, (0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
         (2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
    SWAP(1, (0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
         (1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
#undef SWAP
#undef EXPAND
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

// The same of fewer than 16; what is missing is 0.
#if defined(__AVX512BW__) && defined(__AVX512VL__)
static inline Floats widen_some(const float* from, int count) {
    return (Floats)_mm512_maskz_loadu_ps((1u << count) - 1, from);
}
static inline Floats widen_some(const uint16_t* from, int count) {
    const Halves all = (Halves)_mm256_maskz_loadu_epi16((1u << count) - 1, from);
    return (Floats)(__builtin_convertvector(all, Bits) << 16);
}
#else
template <class T>
static inline Floats widen_some(const T* from, int count) {
    T all[LANES] = {};
    for (int i = 0; i < count; i++) all[i] = from[i];
    return widen(all);
}
#endif
template <class T>
static inline void narrow_some(T* to, Floats v, int count) {
    T all[LANES];
    narrow(all, v);
    memcpy(to, all, (count < LANES ? count : LANES) * sizeof(T));
}
