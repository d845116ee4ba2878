// Attention of a pass over slots of a cache: each node adds up what it sees in the order of the slots, and nothing else.
//
// A node of a tree sees its row's committed tokens and its own path, both in the order of the text, so its sums have the
// same terms in the same order as in plain decoding; only where they lie differs.
//
// Letters: B batch, N nodes, M = B x N rows, H query heads, G key/value heads, E head width, W slots.
#pragma once

#include <cmath>
#include <vector>

#include "half.h"
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

// Numbers v LANES to (v + 1) LANES of a state of a cache, which has `head`; zeros after that, and from slot `end` on.
template <class T>
INLINE Floats widen_part(const T* states, int head, int end, int slot, int v) {
    const int rest = head - v * LANES;
    const T* state = states + (size_t)slot * head + v * LANES;
    if (slot >= end || rest <= 0) return {};
    return rest >= LANES ? widen(state) : widen_some(state, rest);
}

// Rows of queries at once, for which keys and values are read once: as many as registers hold sums of.
#if defined(__AVX512F__)
constexpr int SCORED_ROWS = 4, SUMMED_VECTORS = 16;
#else
constexpr int SCORED_ROWS = 1, SUMMED_VECTORS = 1;
#endif

// How queries meet the keys of a cache. A score is a sum of STEPS products, each of 32 bits of the query with as many of 16
// keys: of a float, or of two numbers in bfloat16 where keys are so and the processor multiplies them.
template <class T, int V>
struct Meeting {
    static constexpr int STEPS = LANES * V;

    static void put(float* to, const float* query) { memcpy(to, query, sizeof(float) * STEPS); }
    INLINE Floats part(const T* keys, int head, int end, int slot, int at) {
        return widen_part(keys, head, end, slot, at);
    }
    INLINE Floats add(const Floats& sum, const float* query, const Floats& keys) {
        return sum + *query * keys;
    }
};

#if defined(__AVX512BF16__)
template <int V>
struct Meeting<uint16_t, V> {
    static constexpr int STEPS = (V + 1) / 2 * LANES;

    static void put(float* to, const float* query) {
        uint16_t halves[2 * STEPS] = {};
        for (int e = 0; e < LANES * V; e += LANES) narrow(halves + e, load<Floats>(query + e));
        memcpy(to, halves, sizeof halves);
    }
    INLINE Floats part(const uint16_t* keys, int head, int end, int slot, int at) {
        const int rest = slot < end ? head - at * 2 * LANES : 0;
        const uint16_t* key = keys + (size_t)slot * head + at * 2 * LANES;
        if (rest >= 2 * LANES) return load<Floats>(key);
        return {(Floats::Part)_mm512_maskz_loadu_epi16(rest > 0 ? (1u << rest) - 1 : 0, key)};
    }
    INLINE Floats add(const Floats& sum, const float* query, const Floats& keys) {
        return add_pairs(sum, (const uint16_t*)&keys, (const uint16_t*)query);
    }
};
#endif

// What the queries of all nodes and heads read and write, a row each.
template <int E>
struct QueryRows {
    float *scores, *out;
    size_t stride, out_stride;  // of scores from a row to the next, of sums from a node to the next
    int R, count;               // rows of a node, and all

    float* score(int row) const { return scores + row * stride; }
    float* sum(int row) const { return out + row / R * out_stride + row % R * E; }
};

// Scores of 16 keys for ROWS rows from `row` on, and then for the rest.
template <int ROWS, class M, int E>
INLINE void score_keys(
    const QueryRows<E>& rows, const float* queries, const Floats* keys, int begin, float scaling, int row
) {
    for (; row + ROWS <= rows.count; row += ROWS) {
        Floats sums[ROWS][4] = {};  // four of a row, so that one need not wait for the other
        for (int step = 0; step < M::STEPS; step += 4)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++)
#pragma GCC unroll 4
                for (int r = 0; r < ROWS; r++)
                    sums[r][c] = M::add(sums[r][c], queries + (row + r) * M::STEPS + step + c, keys[step + c]);
        for (int r = 0; r < ROWS; r++) {
            const Floats found = (sums[r][0] + sums[r][1]) + (sums[r][2] + sums[r][3]);
            store(rows.score(row + r) + begin, found * scaling);
        }
    }
    if constexpr (ROWS > 1)
        if (row < rows.count) score_keys<ROWS - 1, M>(rows, queries, keys, begin, scaling, row);
}

// Adds 16 values to the sums of ROWS rows, one after the other, each by its weight, and then to those of the rest. A weight
// of 0 changes nothing, but where a value is not finite (`mend`).
template <int ROWS, int E>
INLINE void add_values(const QueryRows<E>& rows, const float* block, int begin, int row) {
    constexpr int V = E / LANES;
    for (; row + ROWS <= rows.count; row += ROWS) {
        Floats sums[ROWS][V];
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < V; v++) sums[r][v] = load<Floats>(rows.sum(row + r) + v * LANES);
        for (int s = 0; s < LANES; s++)
#pragma GCC unroll 16
            for (int v = 0; v < V; v++) {
                const Floats value = load<Floats>(block + s * E + v * LANES);
#pragma GCC unroll 16
                for (int r = 0; r < ROWS; r++) sums[r][v] += rows.score(row + r)[begin + s] * value;
            }
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < V; v++) store(rows.sum(row + r) + v * LANES, sums[r][v]);
    }
    if constexpr (ROWS > 1)
        if (row < rows.count) add_values<ROWS - 1, E>(rows, block, begin, row);
}

// Adds up the values of a row again if its sum is not finite: without those whose weight is 0, which may be of nodes that it
// does not see, and 0 times infinity is NaN.
template <class T, int E>
static void mend(const QueryRows<E>& rows, const T* values, int head, int end, int row) {
    float* sum = rows.sum(row);
    Floats broken = {};  // NaN where a number is not finite
    for (int e = 0; e < E; e += LANES) broken += load<Floats>(sum + e) - load<Floats>(sum + e);
    if (::sum(broken) == 0.0f) return;
    memset(sum, 0, sizeof(float) * E);
    for (int slot = 0; slot < end; slot++) {
        const float weight = rows.score(row)[slot];
        for (int v = 0; v < E / LANES && weight != 0.0f; v++)
            store(sum + v * LANES, load<Floats>(sum + v * LANES) + weight * widen_part(values, head, end, slot, v));
    }
}

// Rows m to m + N of one row of the batch, and of each the R query heads that share a key/value head. queries: of each
// [R, E], E = LANES x V; keys and values: [slots, head]. Strides are those from a row to the next.
template <class T, int V>
static void attend(
    const Seen& seen, int m, int N, int R, const float* queries, size_t query_stride, const T* keys, const T* values,
    int head, float scaling, std::vector<float>& scores, float* out, size_t out_stride
) {
    constexpr int E = LANES * V, VALUE_ROWS = SUMMED_VECTORS > V ? SUMMED_VECTORS / V : 1;
    int end = 0;
    for (int n = 0; n < N; n++) end = seen.end[m + n] > end ? seen.end[m + n] : end;
    const size_t stride = (end + LANES - 1) / LANES * LANES;
    scores.resize(N * R * stride);
    const QueryRows<E> rows{scores.data(), out, stride, out_stride, R, N * R};
    typedef Meeting<T, V> M;
    std::vector<float> asked((size_t)N * R * M::STEPS);
    for (int row = 0; row < N * R; row++)
        M::put(&asked[(size_t)row * M::STEPS], queries + row / R * query_stride + row % R * E);
    for (int begin = 0; begin < end; begin += LANES) {
        Floats columns[M::STEPS];  // of 16 keys: what they bring to each step
        for (int step = 0; step < M::STEPS; step += LANES) {
            for (int s = 0; s < LANES; s++) columns[step + s] = M::part(keys, head, end, begin + s, step / LANES);
            transpose(columns + step);
        }
        score_keys<SCORED_ROWS, M>(rows, asked.data(), columns, begin, scaling, 0);
    }
    for (int row = 0; row < N * R; row++) {
        weigh(rows.score(row), seen, m + row / R, (int)stride);
        memset(rows.sum(row), 0, sizeof(float) * E);
    }
    float block[LANES * E];
    for (int begin = 0; begin < end; begin += LANES) {
        for (int s = 0; s < LANES; s++)
            for (int v = 0; v < V; v++)
                store(block + s * E + v * LANES, widen_part(values, head, end, begin + s, v));
        add_values<VALUE_ROWS, E>(rows, block, begin, 0);
    }
    for (int row = 0; row < N * R; row++) mend(rows, values, head, end, row);
}
