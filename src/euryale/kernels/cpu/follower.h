// Induction: the token that followed, earlier in a text, the last tokens of a path.
//
// The twin of decoding/drafters/ngram_index.py: the longest suffix first, of equally long ones the last place, and only
// places whose following token was decided before drafting, that is places before the root.
#pragma once

#include "vector.h"

constexpr int MOST_INDUCTION = 3;  // heads/config.py

struct End {  // the last tokens of a text and a path below it, the last one first
    int32_t tokens[MOST_INDUCTION];
    int count;

    End(const int32_t* text, int length, const int32_t* path, int path_length) : count(0) {
        for (int i = path_length - 1; i >= 0 && count < MOST_INDUCTION; i--) tokens[count++] = path[i];
        for (int i = length - 1; i >= 0 && count < MOST_INDUCTION; i--) tokens[count++] = text[i];
    }
};

// The last place before `end` where the token stands; -1 where it does not.
static int last_place(const int32_t* text, int end, int32_t token) {
    for (; end >= LANES; end -= LANES) {
        bool is_among = false;
        for (int l = 1; l <= LANES; l++) is_among |= text[end - l] == token;
        if (is_among) break;
    }
    while (end > 0 && text[end - 1] != token) end--;
    return end - 1;
}

// length: of the text, its root included. longest: tokens of a suffix, at most. -1: not even the last token stood there.
static int32_t follower(const int32_t* text, int length, const End& end, int longest) {
    int best = 0;
    int32_t found = -1;
    const int most = longest < end.count ? longest : end.count;
    for (int at = last_place(text, length - 1, end.tokens[0]); at >= 0; at = last_place(text, at, end.tokens[0])) {
        int alike = 1;
        while (alike < most && alike <= at && text[at - alike] == end.tokens[alike]) alike++;
        if (alike > best) {
            best = alike;
            found = text[at + 1];
        }
        if (best == most) break;
    }
    return found;
}
