/* The two sums of an aggregation, over a row of positions: over taps, and over channels. */
#ifndef VISGRAFT_SUMS_H
#define VISGRAFT_SUMS_H

#include "parallel.h"
#include "vectors.h"

typedef struct {
    int64_t batch, channels, height, width;
    int64_t heads, groups, kernel, out_height, out_width;
    int64_t stride, padding, dilation;
    int64_t is_bf16, is_channels_last, threads;
} call_t;

typedef struct {
    const void *x, *weight, *grad;
    void *out, *grad_x, *grad_weight;
} tensors_t;

/* Sums `width` positions of CHANNELS rows over the taps listed, each a place in the rows `a` and
 * one in the rows `b`; channels are `a_one` apart in `a` and `to_one` in the result. */
INLINE void sum_taps(int CHANNELS, float *to, int64_t to_one, const float *a, int64_t a_one,
                     const float *b, const int64_t *places, int64_t listed, int64_t width) {
    for (int64_t i = 0; i < width; i = next_start(i, width)) {
        vec sums[8];
        for (int c = 0; c < CHANNELS; c++) sums[c] = all(0);
        for (int64_t t = 0; t < listed; t++) {
            const float *from = a + places[2 * t] + i;
            vec factor = load(b + places[2 * t + 1] + i);
            for (int c = 0; c < CHANNELS; c++) sums[c] += factor * load(from + c * a_one);
        }
        for (int c = 0; c < CHANNELS; c++) store(to + c * to_one + i, sums[c]);
    }
}

static void sum_taps_of_8(float *to, int64_t to_one, const float *a, int64_t a_one, const float *b,
                          const int64_t *places, int64_t listed, int64_t width) {
    sum_taps(8, to, to_one, a, a_one, b, places, listed, width);
}

static void sum_taps_of_1(float *to, int64_t to_one, const float *a, int64_t a_one, const float *b,
                          const int64_t *places, int64_t listed, int64_t width) {
    sum_taps(1, to, to_one, a, a_one, b, places, listed, width);
}

/* Sums products over the channels that share a weight, for TAPS taps at once. */
INLINE void sum_channels(int TAPS, float *to, int64_t to_one, const float *a, int64_t a_one,
                         const int64_t *places, const float *b, int64_t b_one, int64_t channels,
                         int64_t width) {
    for (int64_t i = 0; i < width; i = next_start(i, width)) {
        vec sums[9];
        for (int t = 0; t < TAPS; t++) sums[t] = all(0);
        for (int64_t c = 0; c < channels; c++) {
            const float *from = a + c * a_one + i;
            vec factor = load(b + c * b_one + i);
            for (int t = 0; t < TAPS; t++) sums[t] += factor * load(from + places[t]);
        }
        for (int t = 0; t < TAPS; t++) store(to + t * to_one + i, sums[t]);
    }
}

static void sum_channels_for_9(float *to, int64_t to_one, const float *a, int64_t a_one,
                               const int64_t *places, const float *b, int64_t b_one,
                               int64_t channels, int64_t width) {
    sum_channels(9, to, to_one, a, a_one, places, b, b_one, channels, width);
}

static void sum_channels_for_1(float *to, int64_t to_one, const float *a, int64_t a_one,
                               const int64_t *places, const float *b, int64_t b_one,
                               int64_t channels, int64_t width) {
    sum_channels(1, to, to_one, a, a_one, places, b, b_one, channels, width);
}

#endif
