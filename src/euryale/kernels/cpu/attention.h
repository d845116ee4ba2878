// Attention of a pass over slots of a cache: each node adds up what it sees in the order of the slots, and nothing else.
//
// A node of a tree sees its row's committed tokens and its own path, both in the order of the text, so its sums have the
// same terms in the same order as in plain decoding; only where they lie differs.
//
// Letters: B batch, N nodes, M = B x N rows, H query heads, G key/value heads, E head width, W slots.
#pragma once

#include <cmath>
#include <vector>

#include "narrow.h"
#include "transpose.h"

struct Seen {  // the slots that each row sees: all before its `prefix`, and some more, ascending
    std::vector<int32_t> prefix, end, more;  // end: of what it sees
    std::vector<size_t> first;               // of each row in `more`, and one more
};

struct Mask {  // [B, N, W] in the cache's numbers, 0 where a node sees a slot; null: each sees all up to its own
    const void* zeros;
    int64_t row_stride, node_stride;  // in numbers; of one mask for all rows of the batch 0
};

// Bits tell 0 from the lowest number, which hides: T is an integer as wide as the mask's numbers.
template <class T>
static void see(const T* mask, int W, Seen& found) {
    int prefix = 0;
    while (prefix < W && mask[prefix] == 0) prefix++;
    int end = prefix;
    for (int slot = prefix; slot < W; slot++)
        if (mask[slot] == 0) {
            found.more.push_back(slot);
            end = slot + 1;
        }
    found.prefix.push_back(prefix);
    found.end.push_back(end);
    found.first.push_back(found.more.size());
}

static Seen find_seen(const Mask& mask, bool is_bfloat16, const int32_t* lengths_B, int B, int N, int W) {
    Seen found;
    found.first.push_back(0);
    for (int m = 0; m < B * N; m++) {
        const int64_t at = m / N * mask.row_stride + m % N * mask.node_stride;
        if (mask.zeros == nullptr) {
            const int own = lengths_B[m / N] + m % N;
            found.prefix.push_back(own + 1);
            found.end.push_back(own + 1);
            found.first.push_back(0);
        } else if (is_bfloat16)
            see((const uint16_t*)mask.zeros + at, W, found);
        else
            see((const uint32_t*)mask.zeros + at, W, found);
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

// Weights of one head of row m, from its scores of all slots: hidden slots get 0. What it sees is moved together first,
// so that softmax adds it in the order of the text, wherever it lies.
static void weigh(float* scores, const Seen& seen, int m, int stride) {
    const int prefix = seen.prefix[m], many = (int)(seen.first[m + 1] - seen.first[m]), count = prefix + many;
    const int32_t* more = seen.more.data() + seen.first[m];
    for (int i = 0; i < many; i++) scores[prefix + i] = scores[more[i]];
    softmax(scores, count);
    const int whole = (count + LANES - 1) / LANES * LANES;
    for (int i = whole; i < stride; i += LANES) store(scores + i, Floats{});
    for (int i = many - 1; i >= 0; i--) {  // from the end: no place is taken that is still to be read
        const float weight = scores[prefix + i];
        scores[prefix + i] = 0.0f;
        scores[more[i]] = weight;
    }
}

// The next 16 states of a cache, each of `head` numbers, as float [16, E]; zeros after `end` and after `head`.
template <class T, int V>
INLINE void widen_block(const T* states, int head, int begin, int end, float* block) {
    for (int s = 0; s < LANES; s++)
        for (int v = 0; v < V; v++) {
            const int rest = head - v * LANES;
            const T* state = states + (size_t)(begin + s) * head + v * LANES;
            Floats numbers = {};
            if (begin + s < end) numbers = rest >= LANES ? widen(state) : widen_some(state, rest > 0 ? rest : 0);
            store(block + (s * V + v) * LANES, numbers);
        }
}

// Rows m to m + N of one row of the batch, and of each the R query heads that share a key/value head. queries: of each
// [R, E], E = LANES x V; keys and values: [slots, head]. Strides are those from a row to the next.
template <class T, int V>
static void attend(
    const Seen& seen, int m, int N, int R, const float* queries, size_t query_stride, const T* keys, const T* values,
    int head, float scaling, std::vector<float>& scores, float* out, size_t out_stride
) {
    constexpr int E = LANES * V;
    int end = 0;
    for (int n = 0; n < N; n++) end = seen.end[m + n] > end ? seen.end[m + n] : end;
    const int stride = (end + LANES - 1) / LANES * LANES;
    scores.resize((size_t)N * R * stride);
    float block[LANES * E];
    for (int begin = 0; begin < end; begin += LANES) {
        widen_block<T, V>(keys, head, begin, end, block);
        Floats columns[E];  // of 16 keys: the e-th numbers of all
        for (int v = 0; v < V; v++) {
            for (int s = 0; s < LANES; s++) columns[v * LANES + s] = load<Floats>(block + (s * V + v) * LANES);
            transpose(columns + v * LANES);
        }
        for (int n = 0; n < N; n++)
            for (int h = 0; h < R && begin < seen.end[m + n]; h++) {
                const float* query = queries + n * query_stride + h * E;
                Floats sums[4] = {};  // four, so that one need not wait for the other
                for (int e = 0; e < E; e += 4)
                    for (int c = 0; c < 4; c++) sums[c] += query[e + c] * columns[e + c];
                const Floats found = (sums[0] + sums[1]) + (sums[2] + sums[3]);
                store(&scores[(size_t)(n * R + h) * stride + begin], found * scaling);
            }
    }
    for (int n = 0; n < N; n++)
        for (int h = 0; h < R; h++) {
            weigh(&scores[(size_t)(n * R + h) * stride], seen, m + n, stride);
            memset(out + n * out_stride + h * E, 0, sizeof(float) * E);
        }
    for (int begin = 0; begin < end; begin += LANES) {
        widen_block<T, V>(values, head, begin, end, block);
        for (int n = 0; n < N; n++)
            for (int h = 0; h < R && begin < seen.end[m + n]; h++) {
                const float* weights = &scores[(size_t)(n * R + h) * stride + begin];
                float* to = out + n * out_stride + h * E;
                Floats found[V];
                for (int v = 0; v < V; v++) found[v] = load<Floats>(to + v * LANES);
                for (int s = 0; s < LANES; s++)  // one after the other: a weight of 0 changes nothing
                    for (int v = 0; v < V; v++) found[v] += weights[s] * load<Floats>(block + (s * V + v) * LANES);
                for (int v = 0; v < V; v++) store(to + v * LANES, found[v]);
            }
    }
}
