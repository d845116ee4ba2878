// The trained heads, asked one level of a tree at a time: scores of what may follow each path.
//
// The twin of decoding/drafters/head_matrices.py, where the layout is made, and of `rank` in tree_growth.py. A matrix
// without outputs is one that a design does not have.
//
// Letters: B batch, M paths of a level, K heads, D width, C numbers of the states, F inner width, V candidates.
#pragma once

#include <cmath>
#include <vector>

#include "follower.h"
#include "matrix.h"
#include "narrow.h"

struct Block {  // of a head, heads/blocks.py
    Matrix in;  // none in the first, whose part of Heads.in and Head.known it is
    Matrix out;
    int32_t is_residual;
};

struct Head {
    Matrix known;                  // of the first block: what tokens after the root bring
    Matrix output, narrow, widen;  // the last two are a correction of low rank
    const Block* blocks;
    int32_t num_blocks;
};

struct Heads {
    Matrix in;  // [K x F, C (+ D for the root)]: of the first blocks of all heads
    const Head* heads;
    const void* embeddings;    // [tokens, D], as the base has them
    const int64_t* draft_ids;  // the tokens that candidates are; null: the same numbers
    int32_t num_heads, D, C, F, V, reads_root, reads_path, induction, is_bfloat16;
    float normalise_eps;
};

struct Step {
    const void* states;   // [B, C], as the base has them
    const int64_t* roots;
    const float *noise, *temperatures;  // [B, levels, tokens] and [B]; noise null: every row is at T = 0
    const int32_t* const* texts;        // with induction, and the next: each row's, the root last
    const int32_t* lengths;
    int64_t state_stride, noise_row, noise_level;  // in numbers
    int32_t B, threads;
};

struct Paths {  // M paths below the root, each `length` tokens; heads that do not read them have an empty one a row
    int length;
    std::vector<int> rows;
    std::vector<int32_t> tokens;

    const int32_t* of(size_t m) const { return tokens.data() + m * length; }

    // Path m of the level above and a token more.
    void append(const Paths& above, size_t m, int64_t token) {
        rows.push_back(above.rows[m]);
        tokens.insert(tokens.end(), above.of(m), above.of(m) + above.length);
        tokens.push_back((int32_t)token);
    }
};

static void read_numbers(const void* from, size_t at, int count, bool is_bfloat16, float* to) {
    for (int i = 0; i < count; i += LANES) {
        const int rest = count - i < LANES ? count - i : LANES;
        if (is_bfloat16)
            narrow_some(to + i, widen_some((const uint16_t*)from + at + i, rest), rest);
        else
            memcpy(to + i, (const float*)from + at + i, rest * sizeof(float));
    }
}

class AskedHeads {
  public:
    AskedHeads(const Heads& heads, const Step& step) : heads(heads), step(step) {
        const int D = heads.D, C = heads.C, B = step.B, given = C + (heads.reads_root ? D : 0);
        std::vector<float> read((size_t)B * given);
        for (int b = 0; b < B; b++) {
            float* row = &read[(size_t)b * given];
            read_numbers(step.states, b * step.state_stride, C, heads.is_bfloat16, row);
            if (heads.reads_root) embed((int)step.roots[b], row + C);
            states.insert(states.end(), row, row + D);
        }
        first.resize((size_t)B * heads.num_heads * heads.F);
        multiply(heads.in, read, B, given, first);
    }

    // [M, V]: what candidates are ranked by, of the head of this level. Levels are asked in order.
    const std::vector<float>& scores(int level, const Paths& paths) {
        const Head& head = heads.heads[level];
        const int M = (int)paths.rows.size(), D = heads.D, F = heads.F;
        inner.clear();
        x.clear();
        for (int row : paths.rows) {
            const float* own = &first[((size_t)row * heads.num_heads + level) * F];
            inner.insert(inner.end(), own, own + F);
            x.insert(x.end(), &states[(size_t)row * D], &states[(size_t)row * D] + D);
        }
        if (heads.induction > 0 && (heads.reads_path || level == 0)) find_followers(paths);
        if (head.known.outputs > 0) add_known(head, paths);
        for (int i = 0; i < head.num_blocks; i++) {
            const Block& block = head.blocks[i];
            if (i > 0) multiply(block.in, x, M, D, inner);
            silu_all(inner);
            const bool has_out = block.out.outputs > 0;
            if (has_out) multiply(block.out, inner, M, F, answer);
            const std::vector<float>& found = has_out ? answer : inner;
            if (block.is_residual)
                add(x, found);
            else
                x = found;
        }
        multiply(head.output, x, M, D, found_MV);
        if (head.narrow.outputs > 0) {
            multiply(head.narrow, x, M, D, inner);
            multiply(head.widen, inner, M, head.narrow.outputs, answer);
            add(found_MV, answer);
        }
        rank(level, paths);
        return found_MV;
    }

    int64_t token(int candidate) const { return heads.draft_ids == nullptr ? candidate : heads.draft_ids[candidate]; }

    const Heads& heads;
    const Step& step;

  private:
    std::vector<float> states, first;  // [B, D] and [B, K, F]
    std::vector<float> inner, x, answer, known, found_MV;
    std::vector<int32_t> followers;  // of each path, -1: none

    void multiply(const Matrix& w, const std::vector<float>& rows, int M, int given, std::vector<float>& y) {
        y.resize((size_t)M * w.outputs);
        euryale_product(&w, rows.data(), M, given, y.data(), step.threads);
    }

    static void add(std::vector<float>& to, const std::vector<float>& more) {
        for (size_t i = 0; i < to.size(); i++) to[i] += more[i];
    }

    static void silu_all(std::vector<float>& numbers) {
        for (size_t i = 0; i < numbers.size(); i += LANES) {
            const int rest = (int)(numbers.size() - i);
            narrow_some(&numbers[i], silu(widen_some(&numbers[i], rest < LANES ? rest : LANES)), rest);
        }
    }

    // A token's embedding at root-mean-square 1, as heads read it (kernels/rms_norm.py).
    void embed(int64_t token, float* to) const {
        read_numbers(heads.embeddings, token * heads.D, heads.D, heads.is_bfloat16, to);
        float total = 0.0f;
        for (int i = 0; i < heads.D; i++) total += to[i] * to[i];
        const float size = 1.0f / sqrtf(total / heads.D + heads.normalise_eps);
        for (int i = 0; i < heads.D; i++) to[i] *= size;
    }

    // What the first block reads after the root: the path's tokens, and the one that followed its end earlier.
    void add_known(const Head& head, const Paths& paths) {
        const int M = (int)paths.rows.size(), D = heads.D, length = paths.length;
        const int given = (length + (heads.induction > 0)) * D;
        known.assign((size_t)M * given, 0.0f);
        for (int m = 0; m < M; m++) {
            float* to = &known[(size_t)m * given];
            for (int i = 0; i < length; i++) embed(paths.of(m)[i], to + i * D);
            if (heads.induction > 0 && followers[m] >= 0) embed(followers[m], to + length * D);
        }
        multiply(head.known, known, M, given, answer);
        add(inner, answer);
    }

    void find_followers(const Paths& paths) {
        followers.clear();
        for (size_t m = 0; m < paths.rows.size(); m++) {
            const int row = paths.rows[m];
            const End end(step.texts[row], step.lengths[row], paths.of(m), paths.length);
            followers.push_back(follower(step.texts[row], step.lengths[row], end, heads.induction));
        }
    }

    // NaN becomes the worst score.
    void rank(int level, const Paths& paths) {
        const int V = heads.V;
        for (size_t m = 0; m < paths.rows.size(); m++) {
            float* scores_V = &found_MV[m * V];
            if (step.noise != nullptr) {
                const int row = paths.rows[m];
                const float* noise = step.noise + row * step.noise_row + level * step.noise_level;
                const float temperature = step.temperatures[row];
                if (heads.draft_ids == nullptr)
                    for (int i = 0; i < V; i++) scores_V[i] = scores_V[i] / temperature + noise[i];
                else
                    for (int i = 0; i < V; i++) scores_V[i] = scores_V[i] / temperature + noise[heads.draft_ids[i]];
            }
            for (int i = 0; i < V; i++) scores_V[i] = scores_V[i] == scores_V[i] ? scores_V[i] : -INFINITY;
        }
    }
};
