// Trees of the trained heads: one call drafts those of all rows.
//
// The twin of decoding/drafters/tree_growth.py, which says what the two kinds of trees are. Weights are read once a
// level for all paths of all rows.
//
// Letters: B batch, M paths of a level, N nodes, R candidates a path, P parents of a row in a level.
#include <algorithm>
#include <numeric>

#include "heads.h"
#include "top_k.h"

constexpr float LEAST_CHANCE = -30.0f, DEPTH_COST = 1e-4f;  // tree_growth.py

struct Tree {
    const int32_t *parents, *ranks;  // [N], of a fixed tree; null: each step arranges the nodes, by what follows
    const float* usual_halves;       // [depth, R], or null: half the log of how often such candidates are right
    int32_t num_nodes, depth, num_ranks, num_parents;
};

struct Drafts {
    int64_t* tokens;  // [B, N]
    // The shapes of trees that are arranged, as in decoding/tree/tree.py:
    int64_t *parents, *depths;  // [B, N]
    uint8_t* ancestors;         // [B, N, N]
};

// log(sum(exp(scores))), as log_softmax takes it away; NaN where the best score is not finite.
static float log_sum_exp(const float* scores_V, int V, float most) {
    Floats total = {};
    int i = 0;
    for (; i + LANES <= V; i += LANES) total += exp(load<Floats>(scores_V + i) - most);
    float rest[LANES];
    for (int l = 0; l < LANES; l++) rest[l] = i + l < V ? scores_V[i + l] - most : -INFINITY;
    total += exp(load<Floats>(rest));
    return most + logf(sum(total)) + (most - most);
}

// The R best candidates of each path, [M, R]; as_shares: with the logs of their shares of the softmax as scores.
static std::vector<Best> candidates(AskedHeads& asked, int level, const Paths& paths, int R, bool as_shares) {
    const std::vector<float>& scores_MV = asked.scores(level, paths);
    const int V = asked.heads.V;
    std::vector<Best> best(paths.rows.size() * R);
    for (size_t m = 0; m < paths.rows.size(); m++) {
        Best* of_path = &best[m * R];
        find_best(&scores_MV[m * V], V, R, of_path);
        if (!as_shares) continue;
        const float whole = log_sum_exp(&scores_MV[m * V], V, of_path[0].score);
        for (int r = 0; r < R; r++) of_path[r].score -= whole;
    }
    return best;
}

static Paths empty_paths(int B) {
    Paths paths{0, std::vector<int>(B), {}};
    std::iota(paths.rows.begin(), paths.rows.end(), 0);
    return paths;
}

static void fill_tree(AskedHeads& asked, const Tree& tree, const Drafts& drafts) {
    const int N = tree.num_nodes, B = asked.step.B;
    const bool reads_path = asked.heads.reads_path;
    std::vector<int> depths(N), slots(N);  // slots: of parents among the paths of a row
    std::vector<bool> has_child(N);
    for (int n = 1; n < N; n++) {
        depths[n] = depths[tree.parents[n]] + 1;
        has_child[tree.parents[n]] = true;
    }
    for (int b = 0; b < B; b++) drafts.tokens[(size_t)b * N] = asked.step.roots[b];
    Paths paths = empty_paths(B);
    for (int level = 0; level < tree.depth; level++) {
        int R = 0, P = 0;
        for (int n = 1; n < N; n++)
            if (depths[n] == level + 1) {
                R = std::max(R, tree.ranks[n] + 1);
                if (reads_path && has_child[n]) slots[n] = P++;
            }
        const std::vector<Best> best = candidates(asked, level, paths, R, false);
        const size_t before = paths.rows.size() / B;
        Paths next{level + 1, {}, {}};
        for (int b = 0; b < B; b++)
            for (int n = 1; n < N; n++)
                if (depths[n] == level + 1) {
                    const size_t m = b * before + slots[tree.parents[n]];
                    const int64_t token = asked.token(best[m * R + tree.ranks[n]].place);
                    drafts.tokens[(size_t)b * N + n] = token;
                    if (reads_path && has_child[n]) next.append(paths, m, token);
                }
        if (reads_path) paths = std::move(next);
    }
}

struct Candidate {
    int64_t token;
    int above;     // its parent's place among the row's candidates
    float chance;  // the logarithm of its path's
};

// The places of the `num` likeliest candidates from `first` on, likeliest first.
static std::vector<int> likeliest(const std::vector<Candidate>& row, int first, int num) {
    std::vector<int> places(row.size() - first);
    std::iota(places.begin(), places.end(), first);
    std::stable_sort(places.begin(), places.end(), [&](int a, int b) { return row[a].chance > row[b].chance; });
    places.resize(std::min((size_t)num, places.size()));
    return places;
}

// The nodes of row b: the parent of whatever is kept is likelier, hence kept before it.
static void keep_best(const std::vector<Candidate>& row, const Tree& tree, const Drafts& drafts, int b) {
    const int N = tree.num_nodes;
    const std::vector<int> kept = likeliest(row, 0, N);
    std::vector<int> node_of(row.size());
    uint8_t* ancestors_NN = drafts.ancestors + (size_t)b * N * N;
    for (int n = 0; n < N; n++) {
        const Candidate& one = row[kept[n]];
        const size_t at = (size_t)b * N + n;
        const int parent = node_of[one.above];
        node_of[kept[n]] = n;
        drafts.tokens[at] = one.token;
        drafts.parents[at] = parent;
        drafts.depths[at] = n == 0 ? 0 : drafts.depths[at - n + parent] + 1;
        uint8_t* own = ancestors_NN + (size_t)n * N;
        if (n == 0)
            memset(own, 0, N);
        else
            memcpy(own, ancestors_NN + (size_t)parent * N, N);
        own[n] = 1;
    }
}

static void arrange_tree(AskedHeads& asked, const Tree& tree, const Drafts& drafts) {
    const int B = asked.step.B, R = tree.num_ranks;
    const bool reads_path = asked.heads.reads_path;
    std::vector<std::vector<Candidate>> rows(B);
    std::vector<std::vector<int>> parents(B, {0});
    for (int b = 0; b < B; b++) rows[b].push_back({asked.step.roots[b], 0, 1.0f});
    Paths paths = empty_paths(B);
    for (int level = 0; level < tree.depth; level++) {
        const std::vector<Best> best = candidates(asked, level, paths, R, true);
        const float* usual = tree.usual_halves == nullptr ? nullptr : tree.usual_halves + (size_t)level * R;
        Paths next{level + 1, {}, {}};
        size_t m = 0;
        for (int b = 0; b < B; b++) {
            const int first = (int)rows[b].size();
            const size_t first_path = m;
            for (int parent : parents[b]) {
                const float above = level == 0 ? 0.0f : rows[b][parent].chance;
                const Best* of_path = &best[(reads_path ? m++ : b) * R];
                for (int r = 0; r < R; r++) {
                    const float share = usual == nullptr ? of_path[r].score : usual[r] + 0.5f * of_path[r].score;
                    const float chance = share > LEAST_CHANCE ? share : LEAST_CHANCE;  // NaN has the least too
                    rows[b].push_back({asked.token(of_path[r].place), parent, above + chance - DEPTH_COST});
                }
            }
            parents[b] = likeliest(rows[b], first, tree.num_parents);
            if (reads_path)
                for (int place : parents[b]) next.append(paths, first_path + (place - first) / R, rows[b][place].token);
        }
        if (reads_path) paths = std::move(next);
    }
    for (int b = 0; b < B; b++) keep_best(rows[b], tree, drafts, b);
}

extern "C" void euryale_draft(const Heads* heads, const Tree* tree, const Step* step, const Drafts* drafts) {
    AskedHeads asked(*heads, *step);
    if (tree->parents != nullptr)
        fill_tree(asked, *tree, *drafts);
    else
        arrange_tree(asked, *tree, *drafts);
}
