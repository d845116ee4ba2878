// Products of rows with a matrix of any kind.
#pragma once

#include <vector>

#include "few_bits.h"
#include "half.h"
#include "wide.h"

template <int R, int BITS>
static void tile(const Matrix& w, int t, const Rows& x, int m, float* y_MO, bool adds) {
    Floats found[R] = {};
    if constexpr (BITS == 32)
        wide_tile<R>(w, t, x, m, found);
    else if constexpr (BITS == 16)
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
template <int BITS, int R>
static void tile_of_all(const Matrix& w, int t, const Rows& x, int m, int M, float* y_MO, bool adds) {
    for (; m + R <= M; m += R) tile<R, BITS>(w, t, x, m, y_MO, adds);
    if constexpr (R > 1)
        if (m < M) tile_of_all<BITS, R - 1>(w, t, x, m, M, y_MO, adds);
}

// Products from which waking threads costs less than they bring, tens of microseconds.
#ifndef WORTH_THREADS  // tests say 0
#define WORTH_THREADS (1 << 19)
#endif

// y [M, O] = x W^T + b, or that added to y.
static void product(const Matrix& w, const Rows& x, int M, float* y_MO, bool adds, int threads) {
    const int tiles = (w.outputs + LANES - 1) / LANES;
    const bool is_large = (double)M * w.inputs * w.outputs >= WORTH_THREADS;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && is_large)
    for (int t = 0; t < tiles; t++) {
        if (w.bits == 4)
            tile_of_all<4, FEW_ROWS>(w, t, x, 0, M, y_MO, adds);
        else if (w.bits == 8)
            tile_of_all<8, FEW_ROWS>(w, t, x, 0, M, y_MO, adds);
        else if (w.bits == 16)
            tile_of_all<16, HALF_ROWS>(w, t, x, 0, M, y_MO, adds);
        else
            tile_of_all<32, WIDE_ROWS>(w, t, x, 0, M, y_MO, adds);
    }
}

// Memory for M rows of at most `widest` numbers, in the form that matrices of these bits are multiplied with.
struct RowBuffer {
    std::vector<int8_t> numbers;
    std::vector<float> sizes, sums, wide;
    std::vector<uint16_t> halves;
    int bits;

    RowBuffer(int M, int widest, int bits) : bits(bits) {
        const size_t count = (size_t)M * widest;
        wide.resize(bits == 32 ? count : 0);
        halves.resize(bits == 16 ? count : 0);
        numbers.resize(bits < 16 ? count : 0);
        sizes.resize(bits < 16 ? count / BLOCK : 0);
        sums.resize(bits < 16 ? count / BLOCK : 0);
    }

    Rows rows() { return {numbers.data(), sizes.data(), sums.data(), halves.data(), wide.data()}; }

    // Row m, of I numbers.
    void put(int m, const float* x_I, int I) {
        const size_t at = (size_t)m * I;
        if (bits == 32)
            memcpy(wide.data() + at, x_I, I * sizeof(float));
        else if (bits == 16)
            for (int i = 0; i < I; i += LANES) narrow(halves.data() + at + i, load<Floats>(x_I + i));
        else
            quantise(x_I, I, numbers.data() + at, sizes.data() + at / BLOCK, sums.data() + at / BLOCK);
    }
};
