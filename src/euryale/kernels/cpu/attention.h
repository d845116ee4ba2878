// Attention of a pass over slots of a cache: each node adds up what it sees in the order of the slots, and nothing else.
//
// A node of a tree sees its row's committed tokens and its own path, both in the order of the text, so its sums have the
// same terms in the same order as in plain decoding; only where they lie differs.
//
// Letters: B batch, N nodes, M = B x N rows, H query heads, G key/value heads, E head width, W slots.
#pragma once

#include <cmath>
#include <vector>

#include "vector.h"

struct Seen {  // the slots that each row sees, in ascending order
    std::vector<int32_t> slots;
    std::vector<size_t> first;  // of each row, and one more
};

// seen: [M, W], true where a row sees a slot; null: every row sees all up to its own.
static Seen find_seen(const uint8_t* seen_MW, const int32_t* slots_M, int M, int W) {
    Seen found;
    found.first.push_back(0);
    for (int m = 0; m < M; m++) {
        for (int slot = 0; slot < (seen_MW == nullptr ? slots_M[m] + 1 : W); slot++)
            if (seen_MW == nullptr || seen_MW[(size_t)m * W + slot]) found.slots.push_back(slot);
        found.first.push_back(found.slots.size());
    }
    return found;
}

static void softmax(float* x, int count) {
    const int whole = (count + LANES - 1) / LANES * LANES;
    for (int i = count; i < whole; i++) x[i] = -INFINITY;
    Floats most = fill(-INFINITY);
    for (int i = 0; i < whole; i += LANES) {
        const Floats v = load<Floats>(x + i);
        most = choose(v > most, v, most);
    }
    const Floats shift = fill(largest(most));
    Floats total = {};
    for (int i = 0; i < whole; i += LANES) {
        const Floats v = load<Floats>(x + i);
        const Floats weight = choose(v > fill(-INFINITY), exp(v - shift), Floats{});
        store(x + i, weight);
        total += weight;
    }
    const Floats share = fill(1.0f / sum(total));
    for (int i = 0; i < whole; i += LANES) store(x + i, load<Floats>(x + i) * share);
}

// The next up to 16 states of those that a row sees, as float: [16, E].
template <class T, int V>
static inline int gather(const T* states, const int32_t* slots, int left, float* block) {
    const int many = left < LANES ? left : LANES;
    for (int s = 0; s < many; s++)
        for (int v = 0; v < V; v++) {
            const size_t at = (size_t)v * LANES;
            store(block + s * V * LANES + at, widen(states + (size_t)slots[s] * V * LANES + at));
        }
    return many;
}

// The R query heads of one row that share a key/value head. queries and out: [R, E], E = LANES x V; keys and values:
// [slots, E]; slots: the `count` that it sees.
template <class T, int V>
static void attend(
    const float* queries, const T* keys, const T* values, const int32_t* slots, int count, int R, float scaling,
    std::vector<float>& scores, float* out
) {
    constexpr int E = LANES * V;
    const int stride = (count + LANES - 1) / LANES * LANES;
    scores.resize((size_t)R * stride);
    float block[LANES * E];
    for (int begin = 0; begin < count; begin += LANES) {
        const int many = gather<T, V>(keys, slots + begin, count - begin, block);
        for (int h = 0; h < R; h++) {
            Floats products[LANES] = {};
            for (int s = 0; s < many; s++) {
                Floats found = {};
                for (int v = 0; v < V; v++)
                    found += load<Floats>(queries + h * E + v * LANES) * load<Floats>(block + s * E + v * LANES);
                products[place_of(s)] = found;
            }
            store(&scores[(size_t)h * stride + begin], sums_of(products) * scaling);
        }
    }
    for (int h = 0; h < R; h++) softmax(&scores[(size_t)h * stride], count);
    memset(out, 0, sizeof(float) * R * E);
    for (int begin = 0; begin < count; begin += LANES) {
        const int many = gather<T, V>(values, slots + begin, count - begin, block);
        for (int h = 0; h < R; h++) {
            const float* weights = &scores[(size_t)h * stride + begin];
            Floats found[V];
            for (int v = 0; v < V; v++) found[v] = load<Floats>(out + h * E + v * LANES);
            for (int s = 0; s < many; s++)
                for (int v = 0; v < V; v++) found[v] += weights[s] * load<Floats>(block + s * E + v * LANES);
            for (int v = 0; v < V; v++) store(out + h * E + v * LANES, found[v]);
        }
    }
}
