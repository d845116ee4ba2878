// Numbers of 16 bits: keys and values of a cache in the base's own numbers (float, or bfloat16 as uint16_t), and float16
// as the scales of 4-bit weights are kept in.
#pragma once

#include "vector.h"

INLINE Floats from_float16(const uint16_t* from) {
#if defined(__AVX512F__)
    return {(Floats::Part)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from))};
#elif defined(__F16C__)
    const __m128i* half = (const __m128i*)from;
    return {(Floats::Part)_mm256_cvtph_ps(_mm_loadu_si128(half)), (Floats::Part)_mm256_cvtph_ps(_mm_loadu_si128(half + 1))};
#else
    // The exponent moves from a bias of 15 to one of 127 by a product, which is right for subnormal numbers too.
    const Bits bits = convert_from<Bits>(from);
    const Floats size = as<Floats>((bits & 0x7fffu) << 13) * 0x1p112f;
    return as<Floats>(as<Bits>(size) | ((bits & 0x8000u) << 16));
#endif
}

INLINE Floats widen(const float* from) { return load<Floats>(from); }
INLINE Floats widen(const uint16_t* from) { return as<Floats>(convert_from<Bits>(from) << 16); }
INLINE void narrow(float* to, const Floats& v) { store(to, v); }
INLINE void narrow(uint16_t* to, const Floats& v) {  // to the nearest, ties to even
    const Bits bits = as<Bits>(v);
    convert_to(to, (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// The same of one.
INLINE float widen_one(const float* from) { return *from; }
INLINE float widen_one(const uint16_t* from) {
    const uint32_t bits = (uint32_t)*from << 16;
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

// The same of fewer than 16; what is missing is 0.
#if defined(__AVX512BW__) && defined(__AVX512VL__)
INLINE Floats widen_some(const float* from, int count) {
    return {(Floats::Part)_mm512_maskz_loadu_ps((1u << count) - 1, from)};
}
INLINE Floats widen_some(const uint16_t* from, int count) {
    const __m256i all = _mm256_maskz_loadu_epi16((1u << count) - 1, from);
    return {(Floats::Part)_mm512_slli_epi32(_mm512_cvtepu16_epi32(all), 16)};
}
#else
template <class T>
INLINE Floats widen_some(const T* from, int count) {
    T all[LANES] = {};
    for (int i = 0; i < count; i++) all[i] = from[i];
    return widen(all);
}
#endif
template <class T>
INLINE void narrow_some(T* to, const Floats& v, int count) {
    T all[LANES];
    narrow(all, v);
    memcpy(to, all, (count < LANES ? count : LANES) * sizeof(T));
}
