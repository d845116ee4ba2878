// Keyed Gumbel noise: fill_by_torch of decoding/noise.py in one call.
//
// Letters: W positions, V vocabulary.
#include <algorithm>

#include "vector.h"

typedef Many<double> Doubles;
typedef Many<uint64_t> DoubleBits;

struct Noise {
    float* noise;  // [W, V]
    int64_t seed, first_position;
    int32_t W, V, threads;
};

// Of a number or of 16: "lowbias32" of C. Wellons' hash prospector.
template <class T>
INLINE T mix(T x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

// log(x) to less than a unit in the last place, for positive numbers that are not subnormal.
//
// x = 2^k m, with m from sqrt(1/2) to sqrt(2). With f = m - 1, s = f / (2 + f) and z = s^2:
// log(m) = 2 atanh(s) = f - s (f - z Q(z)), where Q(z) = 2/3 + 2/5 z + 2/7 z^2 + ... Here Q is the best polynomial of its
// degree (Remez' algorithm), which is wrong by less than 2^-59 of log(m).
INLINE Doubles log(const Doubles& x) {
    constexpr uint64_t least = 0x3fe6a09e667f3bcd;  // sqrt(1/2)
    const DoubleBits bits = as<DoubleBits>(x) + (0x3ff0000000000000 - least);
    const Doubles k = as<Doubles>((bits >> 52) | 0x4330000000000000) - (0x1p52 + 1023.0);
    const Doubles f = as<Doubles>((bits & 0x000fffffffffffff) + least) - 1.0;
    const Doubles s = f / (2.0 + f), z = s * s;
    Doubles q = z * 0x1.2f06381defa41p-3 + 0x1.39a1a690739e4p-3;
    for (double c : {0x1.74663fa6a31fdp-3, 0x1.c71c5205ef768p-3, 0x1.24924941f51c6p-2, 0x1.999999997fd75p-2,
                     0x1.5555555555592p-1})
        q = q * z + c;
    // log(2) in two numbers, the first of which is short: its product with k is exact.
    return k * 0x1.62e42fefa0000p-1 + (f - (s * (f - z * q) - k * 0x1.cf79abc9e3b3ap-40));
}

constexpr int BLOCK = 512;  // tokens of a position at once

// The hashes of BLOCK tokens, less 2^31: every processor makes doubles of signed numbers.
INLINE void hash_block(uint32_t key, int first, int32_t* hashes) {
    static const uint32_t counted[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const Bits lanes = load<Bits>(counted);
    for (int i = 0; i < BLOCK; i += LANES) {
        const Bits token = mix(lanes + (first + i + 0x27d4eb2fu));
        store(hashes + i, mix(mix(token ^ key)) ^ 0x80000000u);
    }
}

static void fill_position(uint32_t key, int V, float* noise_V) {
    int32_t hashes[BLOCK];
    float last[BLOCK];
    for (int first = 0; first < V; first += BLOCK) {
        hash_block(key, first, hashes);
        const int count = std::min(BLOCK, V - first);
        float* to = count == BLOCK ? noise_V + first : last;
        for (int i = 0; i < count; i += LANES) {
            const Doubles uniform = convert_from<Doubles>(hashes + i) * 0x1p-32 + (0.5 + 0x1p-33);  // exact
            convert_to(to + i, -log(-log(uniform)));
        }
        if (count < BLOCK) memcpy(noise_V + first, last, count * sizeof(float));
    }
}

extern "C" void euryale_noise(const Noise* noise) {
    const int W = noise->W, V = noise->V, threads = noise->threads;
    const uint32_t key = mix((uint32_t)noise->seed) ^ mix((uint32_t)(noise->seed >> 32) + 0x9e3779b9u);
    const bool is_large = (double)W * V > 1 << 17;  // waking a thread takes some microseconds
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && is_large)
    for (int w = 0; w < W; w++) {
        const uint32_t position = mix((uint32_t)(noise->first_position + w) + 0x85ebca6bu);
        fill_position(mix(position ^ key), V, noise->noise + (size_t)w * V);
    }
}
