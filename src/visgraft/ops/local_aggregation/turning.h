/* The weights of one position, kernel by kernel in memory, as vectors of one tap of eight kernels.
 */
#ifndef VISGRAFT_TURNING_H
#define VISGRAFT_TURNING_H

#include "vectors.h"

#if defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12)
#define TURNS_3_X_3

/* Takes the lanes whose number has this bit from `b`, the others from `a`. */
INLINE vec mix(int bit, vec a, vec b) {
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7};
    return choose((lane & bit) != 0, b, a);
}

/* Moves all lanes down by `some`, and the first ones to the end. */
#define ROTATE(v, some)                                                                            \
    __builtin_shufflevector(v, v, some, some + 1, some + 2, some + 3, some + 4, some + 5,          \
                            some + 6, some + 7)

/* Tap t of kernel g is value 9 g + t of nine vectors: lane (g + t) % 8 of vector
 * (lane - t) % 9. Three rounds of mixing collect the lanes, a rotation orders them. */
INLINE void turn_3_x_3(float *to, int64_t to_one, const float *from) {
    vec a[9], b[9];
    for (int k = 0; k < 9; k++) a[k] = load(from + k * LANES);
    for (int k = 0; k < 9; k++) b[k] = mix(1, a[k], a[(k + 1) % 9]);
    for (int k = 0; k < 9; k++) a[k] = mix(2, b[k], b[(k + 2) % 9]);
    for (int k = 0; k < 9; k++) b[k] = mix(4, a[k], a[(k + 4) % 9]);
    store(to, b[0]);
    store(to + to_one, ROTATE(b[8], 1));
    store(to + 2 * to_one, ROTATE(b[7], 2));
    store(to + 3 * to_one, ROTATE(b[6], 3));
    store(to + 4 * to_one, ROTATE(b[5], 4));
    store(to + 5 * to_one, ROTATE(b[4], 5));
    store(to + 6 * to_one, ROTATE(b[3], 6));
    store(to + 7 * to_one, ROTATE(b[2], 7));
    store(to + 8 * to_one, b[1]);
}

/* The same way back. */
INLINE void turn_back_3_x_3(float *to, const float *from, int64_t from_one) {
    vec a[9], b[9];
    b[0] = load(from);
    b[8] = ROTATE(load(from + from_one), 7);
    b[7] = ROTATE(load(from + 2 * from_one), 6);
    b[6] = ROTATE(load(from + 3 * from_one), 5);
    b[5] = ROTATE(load(from + 4 * from_one), 4);
    b[4] = ROTATE(load(from + 5 * from_one), 3);
    b[3] = ROTATE(load(from + 6 * from_one), 2);
    b[2] = ROTATE(load(from + 7 * from_one), 1);
    b[1] = load(from + 8 * from_one);
    for (int k = 0; k < 9; k++) a[k] = mix(4, b[k], b[(k + 5) % 9]);
    for (int k = 0; k < 9; k++) b[k] = mix(2, a[k], a[(k + 7) % 9]);
    for (int k = 0; k < 9; k++) a[k] = mix(1, b[k], b[(k + 8) % 9]);
    for (int k = 0; k < 9; k++) store(to + k * LANES, a[k]);
}
#endif

/* Values `from` of `groups` kernels, one after the other, into rows of one tap, `to_one` apart. */
INLINE void turn(float *to, int64_t to_one, const float *from, int64_t groups, int64_t taps) {
    for (int64_t g = 0; g < groups; g = next_start(g, groups)) {
        int64_t some = least(LANES, groups - g);
#ifdef TURNS_3_X_3
        if (taps == 9 && some == LANES) {
            turn_3_x_3(to + g, to_one, from + 9 * g);
            continue;
        }
#endif
        for (int64_t t = 0; t < taps; t++)
            for (int64_t i = 0; i < some; i++) to[t * to_one + g + i] = from[(g + i) * taps + t];
    }
}

/* Rows of one tap, `from_one` apart, into `groups` kernels, one after the other. */
INLINE void turn_back(float *to, const float *from, int64_t from_one, int64_t groups,
                      int64_t taps) {
    for (int64_t g = 0; g < groups; g = next_start(g, groups)) {
        int64_t some = least(LANES, groups - g);
#ifdef TURNS_3_X_3
        if (taps == 9 && some == LANES) {
            turn_back_3_x_3(to + 9 * g, from + g, from_one);
            continue;
        }
#endif
        for (int64_t i = 0; i < some; i++)
            for (int64_t t = 0; t < taps; t++) to[(g + i) * taps + t] = from[t * from_one + g + i];
    }
}

#endif
