/* Vectors of neighbouring channels, of float32 or bfloat16, for maps that are channels_last.
 *
 * `at` counts elements of the tensor; of `n` channels that are left, at most LANES are taken, and
 * the other lanes are zero.
 */
#ifndef VISGRAFT_CHANNELS_H
#define VISGRAFT_CHANNELS_H

#include "vectors.h"

typedef uint16_t halves __attribute__((vector_size(16)));

INLINE vec load_channels(const void *from, int64_t at, int64_t n, int is_bf16) {
    if (n < LANES) {
        float lanes[LANES] = {0};
        read_row(lanes, from, at, n, is_bf16);
        return load(lanes);
    }
    if (!is_bf16) return load((const float *)from + at);
    halves half;
    memcpy(&half, (const uint16_t *)from + at, sizeof half);
    return (vec)(__builtin_convertvector(half, uvec) << 16);
}

INLINE void store_channels(void *to, int64_t at, int64_t n, int is_bf16, vec v) {
    if (n < LANES) {
        float lanes[LANES];
        store(lanes, v);
        write_row(to, at, lanes, n, is_bf16);
    } else if (!is_bf16) {
        store((float *)to + at, v);
    } else { /* as `to_bf16` */
        uvec bits = (uvec)v, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        rounded = (uvec)choose(v == v, (vec)rounded, (vec)((uvec){0} + 0x7fc0));
        halves half = __builtin_convertvector(rounded, halves);
        memcpy((uint16_t *)to + at, &half, sizeof half);
    }
}

#endif
