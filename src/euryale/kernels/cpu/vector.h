// Vectors of 16 numbers, in as many registers as a processor needs for them, by the extensions of GCC and Clang.
//
// No sum here depends on anything but its own numbers: a row's bits are those of the row alone, whatever else is in a
// pass. That is what makes a tree equal plain decoding.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define REGISTER 64  // bytes. Compilers take vectors that are wider apart through memory
#elif defined(__AVX__)
#define REGISTER 32
#else
#define REGISTER 16
#endif
#define INLINE static inline __attribute__((always_inline))

constexpr int LANES = 16;

template <class T, int COUNT = LANES>
struct Many {
    static constexpr int IN_PART = REGISTER / sizeof(T), PARTS = COUNT / IN_PART;
    typedef T Number;
    typedef T Part __attribute__((vector_size(REGISTER)));
    Part part[PARTS];
};

typedef Many<float> Floats;
typedef Many<int32_t> Ints;
typedef Many<uint32_t> Bits;
typedef Many<uint8_t, 64> Bytes;

#define EACH_PART for (int p = 0; p < V::PARTS; p++)
#define OPERATOR(op)                                                                            \
    template <class T, int C, class V = Many<T, C>>                                             \
    INLINE V operator op(Many<T, C> a, const Many<T, C>& b) {                                   \
        EACH_PART a.part[p] = a.part[p] op b.part[p];                                           \
        return a;                                                                               \
    }                                                                                           \
    template <class T, int C, class V = Many<T, C>>                                             \
    INLINE V operator op(Many<T, C> a, typename Many<T, C>::Number b) {                         \
        EACH_PART a.part[p] = a.part[p] op b;                                                   \
        return a;                                                                               \
    }                                                                                           \
    template <class T, int C, class V = Many<T, C>>                                             \
    INLINE V operator op(typename Many<T, C>::Number a, Many<T, C> b) {                         \
        EACH_PART b.part[p] = a op b.part[p];                                                   \
        return b;                                                                               \
    }
OPERATOR(+)
OPERATOR(-)
OPERATOR(*)
OPERATOR(/)
OPERATOR(&)
OPERATOR(|)
OPERATOR(^)
OPERATOR(<<)
OPERATOR(>>)
#undef OPERATOR

template <class T, int C>
INLINE void operator+=(Many<T, C>& a, const Many<T, C>& b) {
    a = a + b;
}

template <class T, int C, class V = Many<T, C>>
INLINE V operator-(Many<T, C> v) {
    EACH_PART v.part[p] = -v.part[p];
    return v;
}

INLINE Ints operator~(Ints v) {
    typedef Ints V;
    EACH_PART v.part[p] = ~v.part[p];
    return v;
}

// -1 where it is so, else 0.
INLINE Ints operator>(const Floats& a, const Floats& b) {
    typedef Floats V;
    Ints so;
    EACH_PART so.part[p] = a.part[p] > b.part[p];
    return so;
}
INLINE Ints operator!=(const Floats& a, const Floats& b) {
    typedef Floats V;
    Ints so;
    EACH_PART so.part[p] = a.part[p] != b.part[p];
    return so;
}

template <class V, class T>
INLINE V load(const T* from) {
    V v;
    EACH_PART memcpy(&v.part[p], (const char*)from + p * REGISTER, REGISTER);
    return v;
}

template <class V, class T>
INLINE void store(T* to, const V& v) {
    EACH_PART memcpy((char*)to + p * REGISTER, &v.part[p], REGISTER);
}

// The same bits as numbers of another kind.
template <class V, class From>
INLINE V as(const From& v) {
    V out;
    EACH_PART out.part[p] = (typename V::Part)v.part[p];
    return out;
}

// The same numbers in another kind.
template <class V, class From>
INLINE V convert(const From& v) {
    V out;
    EACH_PART out.part[p] = __builtin_convertvector(v.part[p], typename V::Part);
    return out;
}

// 16 numbers of fewer bytes than 4, from and to memory.
template <class V, class T>
INLINE V convert_from(const T* from) {
    typedef T Few __attribute__((vector_size(V::IN_PART * sizeof(T))));
    V out;
    EACH_PART {
        Few few;
        memcpy(&few, from + p * V::IN_PART, sizeof few);
        out.part[p] = __builtin_convertvector(few, typename V::Part);
    }
    return out;
}
template <class T, class V>
INLINE void convert_to(T* to, const V& v) {
    typedef T Few __attribute__((vector_size(V::IN_PART * sizeof(T))));
    EACH_PART {
        const Few few = __builtin_convertvector(v.part[p], Few);
        memcpy(to + p * V::IN_PART, &few, sizeof few);
    }
}

INLINE Floats fill(float x) { return x - Floats{}; }  // taken away, not added: -0.0 stays

// 16 numbers to one: each meets the one 8 places on, then 4, 2 and 1.
template <class Meet>
INLINE float folded(const Floats& v, Meet meet) {
    typedef float Four __attribute__((vector_size(16)));
    Four q[4];
    store(q, v);
    const Four four = meet(meet(q[0], q[2]), meet(q[1], q[3]));
    float x[4];
    memcpy(x, &four, sizeof x);
    return meet(meet(x[0], x[2]), meet(x[1], x[3]));
}
INLINE float sum(const Floats& v) {
    return folded(v, [](auto a, auto b) { return a + b; });
}
INLINE float largest(const Floats& v) {
    return folded(v, [](auto a, auto b) { return a > b ? a : b; });
}

INLINE Floats choose(const Ints& which, const Floats& yes, const Floats& no) {
    return as<Floats>((as<Ints>(yes) & which) | (as<Ints>(no) & ~which));
}

INLINE Floats absolute(const Floats& v) { return as<Floats>(as<Bits>(v) & 0x7fffffffu); }

// 16 numbers to whole ones, ties to even: adding 1.5 * 2^23 leaves no room for a fraction. |v| < 2^22.
INLINE Ints rounded(const Floats& v) {
    const Floats shift = fill(12582912.0f);
    return convert<Ints>((v + shift) - shift);
}

// exp(v), as far as 2 units in the last place; 0 far below, for v <= 88.
INLINE Floats exp(Floats v) {
    v = choose(v > fill(-87.0f), v, fill(-87.0f));
    const Ints power = rounded(v * 1.44269504f);
    const Floats n = convert<Floats>(power);
    const Floats r = v - n * 0.693359375f - n * -2.12194440e-4f;  // Cody and Waite
    Floats p = fill(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = p * r + c;
    p = p * r * r + r + 1.0f;
    return p * as<Floats>((power + 127) << 23);
}

INLINE Floats silu(const Floats& v) {
    return v / (1.0f + exp(choose(v > fill(-80.0f), -v, fill(80.0f))));
}
