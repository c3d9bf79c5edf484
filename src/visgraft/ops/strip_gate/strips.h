/* What both layouts of maps share: one call, its tensors, gates and sums. */
#ifndef VISGRAFT_STRIPS_H
#define VISGRAFT_STRIPS_H

#include "parallel.h"
#include "vectors.h"

/* Maps are multiplied by gates, or are differentiated by that; are summed along both axes, or get
 * back what their means are worth. */
enum { GATE, DERIVE, SUM, SPREAD };

typedef struct {
    int64_t batch, channels, height, width, is_last, is_bf16, threads;
} call_t;

typedef struct {
    call_t n;
    const void *x, *grad;
    const float *of_rows, *of_columns;
    void *to;
    float *to_rows, *to_columns;
} job_t;

/* What a task has for its rows and columns: gates or numbers to add, and sums. */
typedef struct {
    float *of_rows, *row_sums, *of_columns, *column_sums;
} strips_t;

INLINE int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

INLINE void add_to(float *sums, vec v) { store(sums, load(sums) + v); }

INLINE float total(vec v) {
    typedef float half __attribute__((vector_size(16)));
    half low, high;
    memcpy(&low, &v, sizeof low);
    memcpy(&high, (const char *)&v + sizeof low, sizeof high);
    low += high;
    return (low[0] + low[2]) + (low[1] + low[3]);
}

/* Some lanes, and zeros: what is in the others may be anything, NaN among it. */
INLINE vec keep_first(vec v, int64_t some) {
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7};
    return choose(lane < (int32_t)some, v, all(0));
}

INLINE vec keep_last(vec v, int64_t some) {
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7};
    return choose(lane >= (int32_t)(LANES - some), v, all(0));
}

/* A vector of which only n floats are in the tensor. */
INLINE vec load_some(const float *from, int64_t n) {
    if (n >= LANES) return load(from);
    float lanes[LANES] = {0};
    for (int64_t i = 0; i < n; i++) lanes[i] = from[i];
    return load(lanes);
}

INLINE void store_some(float *to, int64_t n, vec v) {
    if (n >= LANES) store(to, v);
    else
        for (int64_t i = 0; i < n; i++) to[i] = v[i];
}

/* A piece of a tensor as floats: in its own place, or converted into the scratch memory. */
INLINE const float *floats(const void *tensor, int64_t at, int64_t n, int is_bf16, float *scratch) {
    if (!is_bf16) return (const float *)tensor + at;
    read_row(scratch, tensor, at, n, 1);
    return scratch;
}

/* 1 / (1 + exp(-z)), without overflow. */
INLINE vec sigmoid(vec z) {
    const float log2_e = 1.44269504089f;
    vec small = power_of_2(choose(z < all(0), z, -z) * log2_e);
    return choose(z < all(0), small, all(1)) / (small + 1.0f);
}

/* Sigmoids of n numbers, and zeros up to the next whole vector. */
INLINE void gates_of(float *to, const float *from, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES)
        store(to + i, keep_first(sigmoid(load_some(from + i, n - i)), n - i));
}

/* The gradients of the numbers behind the gates. */
INLINE void before_gates(float *to, const float *sums, const float *gates, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) {
        vec gate = load(gates + i);
        store_some(to + i, n - i, load(sums + i) * gate * (1.0f - gate));
    }
}

/* Divides n numbers by `count`. Whole vectors are read and written where there is room. */
INLINE void shares(float *to, int64_t room, const float *from, int64_t n, int64_t given,
                   int64_t count) {
    for (int64_t i = 0; i < n; i += LANES)
        store_some(to + i, room - i, load_some(from + i, given - i) / (float)count);
}

#endif
