// Forward pass of the Llama family: one call reads a pass of tokens through all layers.
//
// Everything but the weights and the cache is float32. No number of a row depends on the other rows of a pass, on their
// count or on the number of threads.
//
// D, E and F are filled up with zeros, which weights of zeros keep: to whole blocks (matrix.h), E to whole vectors.
// `width` and `head` are those of the model, and of its cache.
//
// Letters: B batch, N nodes, M = B x N rows, D width, H query heads, G key/value heads, E head width, F inner width, I
// inputs of a matrix.
#include <algorithm>
#include <utility>

#include "attention.h"
#include "product.h"

struct Layer {
    Matrix qkv, out, gate_up, down;
    const float *norm_in, *norm_mlp, *q_norm, *k_norm;  // weights; of queries and keys null where there are none
};

struct Model {
    const Layer* layers;
    const float* norm;
    int32_t num_layers, D, H, G, E, F, width, head;
    float eps, scaling, normalise_eps;  // the last: of states of layers, which have no weights
};

struct Pass {
    void* cache;                                                 // [layers, 2, rows, G, slots, head]
    int64_t layer_stride, kind_stride, row_stride, head_stride;  // in numbers
    Mask mask;
    const int32_t* lengths_B;                                    // tokens that are there; nodes are written after them
    const int64_t* positions_BN;                                 // their places in the text
    const float *cos, *sin;                                      // [positions, head / 2]
    const int32_t* layers_K;                                     // whose states are asked for, numbered from 1
    float* states;                                               // [M, 1 + K, width]
    int32_t B, N, W, K, is_bfloat16, threads;
};

// Of D numbers, of which `width` count: the others are zeros.
static void rms_norm(const float* x, const float* weight, int D, int width, float eps, float* y) {
    Floats total = {};
    for (int i = 0; i < D; i += LANES) {
        const Floats v = load<Floats>(x + i);
        total += v * v;
    }
    const float factor = 1.0f / sqrtf(sum(total) / width + eps);
    for (int i = 0; i < D; i += LANES) store(y + i, load<Floats>(x + i) * factor * load<Floats>(weight + i));
}

static void rotate(float* x, const float* cos, const float* sin, int half) {
    for (int e = 0; e < half; e++) {
        const float low = x[e], high = x[e + half];
        x[e] = low * cos[e] - high * sin[e];
        x[e + half] = high * cos[e] + low * sin[e];
    }
}

// Buffers of one pass.
struct Scratch {
    int attended;  // numbers of a row after attention: H E, filled up
    std::vector<float> wide, seen;
    RowBuffer rows;

    Scratch(const Model& model, int M)
        : attended(model.layers[0].out.inputs),
          wide((size_t)M * std::max((model.H + 2 * model.G) * model.E, 2 * model.F)),
          seen((size_t)M * attended),
          rows(M, std::max({model.D, attended, model.F}), model.layers[0].qkv.bits) {}
};

static void normed_rows(RowBuffer& rows, const Model& model, const float* x_MD, const float* weight, int M) {
    const int D = model.D;
    std::vector<float> normed(D);
    for (int m = 0; m < M; m++) {
        rms_norm(x_MD + (size_t)m * D, weight, D, model.width, model.eps, normed.data());
        rows.put(m, normed.data(), D);
    }
}

// Norms, rotates and stores what one row's heads are; its queries stay where they are.
template <class T>
static void place(const Model& model, const Layer& layer, const Pass& pass, T* keys, T* values, int m, float* heads) {
    const int E = model.E, head = model.head, half = head / 2;
    const size_t turn = pass.positions_BN[m] * half, slot = pass.lengths_B[m / pass.N] + m % pass.N;
    const float *cos = pass.cos + turn, *sin = pass.sin + turn;
    for (int h = 0; h < model.H + model.G; h++) {
        const float* norm = h < model.H ? layer.q_norm : layer.k_norm;
        if (norm != nullptr) rms_norm(heads + h * E, norm, E, head, model.eps, heads + h * E);
        rotate(heads + h * E, cos, sin, half);
    }
    for (int g = 0; g < model.G; g++) {
        const size_t at = m / pass.N * pass.row_stride + g * pass.head_stride + slot * head;
        for (int e = 0; e < head; e += LANES) {
            narrow_some(keys + at + e, load<Floats>(heads + (model.H + g) * E + e), head - e);
            narrow_some(values + at + e, load<Floats>(heads + (model.H + model.G + g) * E + e), head - e);
        }
    }
}

// Rows of a pass that read the same keys, at most 32 at once: first row and count.
static std::vector<std::pair<int, int>> runs_of_rows(const Pass& pass) {
    std::vector<std::pair<int, int>> runs;
    for (int m = 0; m < pass.B * pass.N; m += runs.back().second)
        runs.push_back({m, std::min(32, pass.N - m % pass.N)});
    return runs;
}

template <class T, int V>
static void attend_all(const Model& model, const Pass& pass, const Seen& seen, const T* keys, const T* values, Scratch& scratch) {
    const int G = model.G, E = model.E, R = model.H / G, width = (model.H + 2 * G) * E;
    const std::vector<std::pair<int, int>> runs = runs_of_rows(pass);
    const bool is_large = (double)pass.B * pass.N * model.H * E * pass.W >= WORTH_THREADS;
#pragma omp parallel num_threads(pass.threads) if (pass.threads > 1 && is_large)
    {
        std::vector<float> scores;
#pragma omp for schedule(static)
        for (int unit = 0; unit < (int)runs.size() * G; unit++) {
            const auto [m, count] = runs[unit / G];
            const int g = unit % G;
            const size_t at = m / pass.N * pass.row_stride + g * pass.head_stride;
            attend<T, V>(
                seen, m, count, R, &scratch.wide[(size_t)m * width + g * R * E], width, keys + at, values + at,
                model.head, model.scaling, scores, &scratch.seen[(size_t)m * scratch.attended + g * R * E], scratch.attended
            );
        }
    }
}

template <class T>
static void attention(const Model& model, const Layer& layer, const Pass& pass, const Seen& seen, int l, Scratch& scratch) {
    const int width = (model.H + 2 * model.G) * model.E;
    T* keys = (T*)pass.cache + l * pass.layer_stride;
    T* values = keys + pass.kind_stride;
    for (int m = 0; m < pass.B * pass.N; m++) place<T>(model, layer, pass, keys, values, m, &scratch.wide[(size_t)m * width]);
    switch (model.E / LANES) {  // a head's width is known to the compiler, so that it stays in registers
#define HEAD(V) case V: return attend_all<T, V>(model, pass, seen, keys, values, scratch);
        HEAD(1) HEAD(2) HEAD(3) HEAD(4) HEAD(5) HEAD(6) HEAD(7) HEAD(8) HEAD(10) HEAD(12) HEAD(16)
#undef HEAD
    }
}

// silu(gate) * up of one row of [gate, up], into its first half.
static void gate(float* gate_up, int F) {
    for (int i = 0; i < F; i += LANES)
        store(gate_up + i, silu(load<Floats>(gate_up + i)) * load<Floats>(gate_up + F + i));
}

// The k-th states that are asked for: `x` normalised with these weights.
static void give(const Model& model, const Pass& pass, int k, const float* x_MD, const float* weight, float eps) {
    const int D = model.D, width = model.width;
    std::vector<float> normed(D);
    for (int m = 0; m < pass.B * pass.N; m++) {
        rms_norm(x_MD + (size_t)m * D, weight, D, width, eps, normed.data());
        memcpy(pass.states + ((size_t)m * (1 + pass.K) + k) * width, normed.data(), width * sizeof(float));
    }
}

extern "C" {

// x [M, D]: embeddings of the tokens; overwritten.
void euryale_read(const Model* model, const Pass* pass, float* x_MD) {
    const int M = pass->B * pass->N, F = model->F, threads = pass->threads;
    const Seen seen = find_seen(pass->mask, pass->is_bfloat16, pass->lengths_B, pass->B, pass->N, pass->W);
    Scratch scratch(*model, M);
    const int attended = scratch.attended;
    const std::vector<float> ones(model->D, 1.0f);
    for (int l = 0; l < model->num_layers; l++) {
        const Layer& layer = model->layers[l];
        normed_rows(scratch.rows, *model, x_MD, layer.norm_in, M);
        product(layer.qkv, scratch.rows.rows(), M, scratch.wide.data(), false, threads);
        if (pass->is_bfloat16)
            attention<uint16_t>(*model, layer, *pass, seen, l, scratch);
        else
            attention<float>(*model, layer, *pass, seen, l, scratch);
        for (int m = 0; m < M; m++) scratch.rows.put(m, &scratch.seen[(size_t)m * attended], attended);
        product(layer.out, scratch.rows.rows(), M, x_MD, true, threads);
        normed_rows(scratch.rows, *model, x_MD, layer.norm_mlp, M);
        product(layer.gate_up, scratch.rows.rows(), M, scratch.wide.data(), false, threads);
        for (int m = 0; m < M; m++) {
            gate(&scratch.wide[(size_t)m * 2 * F], F);
            scratch.rows.put(m, &scratch.wide[(size_t)m * 2 * F], F);
        }
        product(layer.down, scratch.rows.rows(), M, x_MD, true, threads);
        for (int k = 0; k < pass->K; k++)
            if (pass->layers_K[k] == l + 1) give(*model, *pass, 1 + k, x_MD, ones.data(), model->normalise_eps);
    }
    give(*model, *pass, 0, x_MD, model->norm, model->eps);
}

void euryale_product(const Matrix* matrix, const float* x_MI, int32_t M, int32_t given, float* y_MO, int32_t threads) {
    const int I = matrix->inputs;
    RowBuffer rows(M, I, matrix->bits);
    std::vector<float> filled(given < I ? I : 0);
    for (int m = 0; m < M; m++) {
        const float* x_I = x_MI + (size_t)m * given;
        if (given < I) memcpy(filled.data(), x_I, given * sizeof(float));
        rows.put(m, given < I ? filled.data() : x_I, I);
    }
    product(*matrix, rows.rows(), M, y_MO, false, threads);
}

// 1 where `threads` are used, 0 where this was compiled without OpenMP and all runs on one.
int32_t euryale_has_threads() {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}
}
