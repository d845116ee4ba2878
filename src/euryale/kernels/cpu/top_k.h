// The best of many scores.
#pragma once

#include "narrow.h"

struct Best {
    float score;
    int place;
};

// The `num` best of V scores, best first, equals by their place. No score is NaN; num is at most V.
template <class T>
static void find_best(const T* scores_V, int V, int num, Best* best) {
    constexpr int MANY = 8 * LANES;  // that are looked at together
    int count = 0;
    for (int begin = 0; begin < V; begin += MANY) {
        const int end = begin + MANY < V ? begin + MANY : V;
        if (count == num && end - begin == MANY) {
            Floats most = widen(scores_V + begin);
            for (int i = LANES; i < MANY; i += LANES) {
                const Floats v = widen(scores_V + begin + i);
                most = choose(v > most, v, most);
            }
            if (!(largest(most) > best[num - 1].score)) continue;
        }
        for (int i = begin; i < end; i++) {
            const float score = widen_one(scores_V + i);
            if (count == num && !(score > best[num - 1].score)) continue;
            int at = count < num ? count++ : num - 1;
            for (; at > 0 && score > best[at - 1].score; at--) best[at] = best[at - 1];
            best[at] = {score, i};
        }
    }
}
