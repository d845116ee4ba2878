// Rows and columns of 16 x 16 numbers change places.
#pragma once

#include "vector.h"

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Ints::Part){__VA_ARGS__})
#endif

// Where a lane comes from when runs of h lanes of two registers change places: below the number of lanes from the first.
template <int h, bool is_first>
constexpr int source(int lane) {
    const bool is_high = lane & h;
    if (is_first) return is_high ? Floats::IN_PART + lane - h : lane;
    return is_high ? Floats::IN_PART + lane : lane + h;
}

template <int h, int... lane>
INLINE void swap_runs(Floats::Part& a, Floats::Part& b, std::integer_sequence<int, lane...>) {
    const Floats::Part first = SHUFFLE(a, b, (source<h, true>(lane))...);
    b = SHUFFLE(a, b, (source<h, false>(lane))...);
    a = first;
}

template <int h>
INLINE void swap_runs(Floats& a, Floats& b) {
    constexpr int IN_PART = Floats::IN_PART;
    if constexpr (h < IN_PART) {
        for (int p = 0; p < Floats::PARTS; p++)
            swap_runs<h>(a.part[p], b.part[p], std::make_integer_sequence<int, IN_PART>{});
    } else {
        for (int p = 0; p < Floats::PARTS; p++)
            if ((p * IN_PART & h) == 0) std::swap(a.part[p + h / IN_PART], b.part[p]);
    }
}

// Halves of pairs of vectors, then quarters, and so on.
template <int h = LANES / 2>
INLINE void transpose(Floats* v) {
    for (int i = 0; i < LANES; i++)
        if ((i & h) == 0) swap_runs<h>(v[i], v[i + h]);
    if constexpr (h > 1) transpose<h / 2>(v);
}
