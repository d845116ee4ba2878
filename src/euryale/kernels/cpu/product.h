// Products of rows with a matrix of any kind.
#pragma once

#include <vector>

#include "few_bits.h"
#include "half.h"

template <int R, int BITS>
static void tile(const Matrix& w, int t, const Rows& x, int m, float* y_MO, bool adds) {
    Floats found[R] = {};
    if constexpr (BITS == 16)
        half_tile<R>(w, t, x, m, found);
    else
        few_bits_tile<R, BITS>(w, t, x, m, found);
    const int rest = w.outputs - t * LANES, count = rest < LANES ? rest : LANES;
    for (int r = 0; r < R; r++) {
        float* y = y_MO + (size_t)(m + r) * w.outputs + t * LANES;
        Floats bias = {}, before = {};
        if (w.bias) memcpy(&bias, w.bias + t * LANES, count * sizeof(float));
        if (adds) memcpy(&before, y, count * sizeof(float));
        const Floats out = before + (found[r] + bias);
        memcpy(y, &out, count * sizeof(float));
    }
}

// All rows of a tile, so many at once as it is quick for: the weights are read once for them, and stay near for the rest.
template <int BITS>
static void tile_of_all(const Matrix& w, int t, const Rows& x, int M, float* y_MO, bool adds) {
    constexpr int MOST = BITS == 16 ? 6 : 8;
    int m = 0;
    for (; m + MOST <= M; m += MOST) tile<MOST, BITS>(w, t, x, m, y_MO, adds);
    switch (M - m) {
        case 7: return tile<7, BITS>(w, t, x, m, y_MO, adds);
        case 6: return tile<6, BITS>(w, t, x, m, y_MO, adds);
        case 5: return tile<5, BITS>(w, t, x, m, y_MO, adds);
        case 4: return tile<4, BITS>(w, t, x, m, y_MO, adds);
        case 3: return tile<3, BITS>(w, t, x, m, y_MO, adds);
        case 2: return tile<2, BITS>(w, t, x, m, y_MO, adds);
        case 1: return tile<1, BITS>(w, t, x, m, y_MO, adds);
    }
}

// y [M, O] = x W^T + b, or that added to y.
static void product(const Matrix& w, const Rows& x, int M, float* y_MO, bool adds, int threads) {
    const int tiles = (w.outputs + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int t = 0; t < tiles; t++) {
        if (w.bits == 4)
            tile_of_all<4>(w, t, x, M, y_MO, adds);
        else if (w.bits == 8)
            tile_of_all<8>(w, t, x, M, y_MO, adds);
        else
            tile_of_all<16>(w, t, x, M, y_MO, adds);
    }
}

// Memory for M rows of at most `widest` numbers, in the form that matrices of these bits are multiplied with.
struct RowBuffer {
    std::vector<int8_t> numbers;
    std::vector<float> sizes, sums;
    std::vector<uint16_t> halves;
    bool is_half;

    RowBuffer(int M, int widest, int bits) : is_half(bits == 16) {
        const size_t count = (size_t)M * widest;
        halves.resize(is_half ? count : 0);
        numbers.resize(is_half ? 0 : count);
        sizes.resize(is_half ? 0 : count / BLOCK);
        sums.resize(is_half ? 0 : count / BLOCK);
    }

    Rows rows() { return {numbers.data(), sizes.data(), sums.data(), halves.data()}; }

    // Row m, of I numbers.
    void put(int m, const float* x_I, int I) {
        const size_t at = (size_t)m * I;
        if (is_half)
            for (int i = 0; i < I; i += LANES) narrow(halves.data() + at + i, load<Floats>(x_I + i));
        else
            quantise(x_I, I, numbers.data() + at, sizes.data() + at / BLOCK, sums.data() + at / BLOCK);
    }
};
