// The base's own token after each node, and the path that they accept: walk_exact of decoding/accept.py in one call.
//
// Letters: B batch, N nodes, V vocabulary.
#include <vector>

#include "top_k.h"

struct Walk {
    const void* scores;      // [B, N, V]
    const int64_t* tokens;   // [B, N]
    const int64_t* parents;  // [B, N], or [N] for all rows, as depths; parents stand before children
    const int64_t* depths;
    const uint8_t* is_real;  // [B, N]; null: every node carries a candidate
    const float* noise;      // [B, depths, V], which sampled rows add to scores / temperature; null: no row is sampled
    const float* temperatures;  // [B]
    const uint8_t* is_sampled;  // [B]
    int64_t* targets;           // [B, N], as the next two
    uint8_t *is_accepted, *is_finite;
    int64_t noise_row, noise_level;  // strides, in numbers
    int32_t B, N, V, shares_shape, is_bfloat16, threads;
};

template <class T>
static bool has_nan(const T* scores_V, int V) {
    Ints is_nan = {};
    int i = 0;
    for (; i + LANES <= V; i += LANES) {
        const Floats v = widen(scores_V + i);
        is_nan = is_nan | (v != v);
    }
    const Floats rest = widen_some(scores_V + i, V - i);
    return sum(convert<Floats>(is_nan | (rest != rest))) != 0.0f;
}

// The best of V scores, as torch finds it: NaN before all numbers, equals by their place.
template <class T>
static Best best_of(const T* scores_V, int V) {
    Best best;
    if (!has_nan(scores_V, V)) {
        find_best(scores_V, V, 1, &best);
        return best;
    }
    for (int i = 0;; i++) {
        best = {widen_one(scores_V + i), i};
        if (best.score != best.score) return best;
    }
}

// scores / temperature + noise, into `sampled`.
template <class T>
static void add_noise(const T* scores_V, float temperature, const float* noise_V, int V, float* sampled_V) {
    int i = 0;
    for (; i + LANES <= V; i += LANES)
        store(sampled_V + i, widen(scores_V + i) / temperature + load<Floats>(noise_V + i));
    for (; i < V; i++) sampled_V[i] = widen_one(scores_V + i) / temperature + noise_V[i];
}

template <class T>
static Best best_of_node(const Walk& walk, int m, std::vector<float>& sampled) {
    const int V = walk.V, b = m / walk.N;
    const T* scores_V = (const T*)walk.scores + (size_t)m * V;
    if (walk.noise == nullptr || !walk.is_sampled[b]) return best_of(scores_V, V);
    const int64_t depth = walk.depths[walk.shares_shape ? m % walk.N : m];
    const float* noise_V = walk.noise + b * walk.noise_row + depth * walk.noise_level;
    sampled.resize(V);
    add_noise(scores_V, walk.temperatures[b], noise_V, V, sampled.data());
    return best_of(sampled.data(), V);
}

extern "C" void euryale_walk(const Walk* walk) {
    const int N = walk->N, V = walk->V, count = walk->B * N, threads = walk->threads;
    const bool is_large = (double)count * V > 1 << 20;  // waking a thread takes some microseconds
#pragma omp parallel num_threads(threads) if (threads > 1 && is_large)
    {
        std::vector<float> sampled;
#pragma omp for schedule(static)
        for (int m = 0; m < count; m++) {
            const Best best = walk->is_bfloat16 ? best_of_node<uint16_t>(*walk, m, sampled)
                                                : best_of_node<float>(*walk, m, sampled);
            walk->targets[m] = best.place;
            walk->is_finite[m] = best.score - best.score == 0.0f;
        }
    }
    for (int m = 0; m < count; m++) {
        const int node = m % N, root = m - node;
        const size_t parent = root + walk->parents[walk->shares_shape ? node : m];
        const bool is_real = walk->is_real == nullptr || walk->is_real[m];
        const bool is_wanted = is_real && walk->tokens[m] == walk->targets[parent];
        walk->is_accepted[m] = node == 0 || (is_wanted && walk->is_accepted[parent]);
    }
}
