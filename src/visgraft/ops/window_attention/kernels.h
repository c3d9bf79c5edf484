/* The three sums of window attention over a row of positions, and its softmax. */
#ifndef VISGRAFT_WINDOW_KERNELS_H
#define VISGRAFT_WINDOW_KERNELS_H

#include "parallel.h"
#include "vectors.h"

/* A row of keys that one or both of two rows of queries read, and as which row of their window. */
typedef struct {
    int64_t key;
    int64_t row[2]; /* -1 where that query does not read it */
} link_t;

/* Products of QUERIES rows of queries with COLUMNS keys of each window, summed over the depth.
 * The columns are one apart, or at `places`. */
INLINE void multiply(int QUERIES, int COLUMNS, int ADJACENT, float *const *to, int64_t to_row,
                     const float *const *queries, int64_t query_row, const float *keys,
                     int64_t key_row, const int64_t *places, int64_t depth, int64_t width) {
    for (int64_t i = 0; i < width; i = next_start(i, width)) {
        vec sums[2][7];
        for (int q = 0; q < QUERIES; q++)
            for (int c = 0; c < COLUMNS; c++) sums[q][c] = all(0);
        const float *key = keys + places[0] + i;
        for (int64_t d = 0; d < depth; d++, key += key_row) {
            vec query[2];
            for (int q = 0; q < QUERIES; q++) query[q] = load(queries[q] + d * query_row + i);
            for (int c = 0; c < COLUMNS; c++) {
                vec factor = load(key + (ADJACENT ? c : places[c] - places[0]));
                for (int q = 0; q < QUERIES; q++) sums[q][c] += query[q] * factor;
            }
        }
        for (int q = 0; q < QUERIES; q++)
            for (int c = 0; c < COLUMNS; c++) store(to[q] + c * to_row + i, sums[q][c]);
    }
}

/* Sums DEPTH channels of the values of whole windows, for two rows of queries. */
INLINE void mix(int DEPTH, float *const *to, int64_t to_row, const float *const *shares,
                int64_t share_row, const float *values, int64_t value_row, int64_t value_rows,
                const int64_t *places, int64_t kernel, const link_t *links, int64_t linked,
                int64_t i) {
    vec sums[2][4];
    for (int d = 0; d < DEPTH; d++) sums[0][d] = sums[1][d] = all(0);
    for (const link_t *link = links; link < links + linked; link++) {
        const float *from = values + link->key * value_rows + i;
        const float *first = shares[0] + most(link->row[0], 0) * kernel * share_row + i;
        const float *second = shares[1] + most(link->row[1], 0) * kernel * share_row + i;
        for (int64_t v = 0; v < kernel; v++) {
            vec share[2] = {all(0), all(0)};
            if (link->row[0] >= 0) share[0] = load(first + v * share_row);
            if (link->row[1] >= 0) share[1] = load(second + v * share_row);
            for (int d = 0; d < DEPTH; d++) {
                vec value = load(from + d * value_row + places[v]);
                sums[0][d] += share[0] * value;
                sums[1][d] += share[1] * value;
            }
        }
    }
    for (int d = 0; d < DEPTH; d++) {
        store(to[0] + d * to_row + i, sums[0][d]);
        store(to[1] + d * to_row + i, sums[1][d]);
    }
}

/* Adds to KEYS rows of keys what one row of queries owes to COLUMNS columns of them. */
INLINE void spread(int KEYS, int COLUMNS, float *const *to, int64_t to_row,
                   const float *const *shares, const int64_t *share_at, const float *queries,
                   int64_t query_row, const int64_t *shifts, int64_t depth, int64_t width) {
    for (int64_t i = 0; i < width; i += LANES) {
        vec share[2][7];
        for (int k = 0; k < KEYS; k++)
            for (int c = 0; c < COLUMNS; c++)
                share[k][c] = load(shares[k] + share_at[c] + i - shifts[c]);
        for (int64_t d = 0; d < depth; d++) {
            vec sums[2];
            for (int k = 0; k < KEYS; k++) sums[k] = load(to[k] + d * to_row + i);
            for (int c = 0; c < COLUMNS; c++) {
                vec query = load(queries + d * query_row + i - shifts[c]);
                for (int k = 0; k < KEYS; k++) sums[k] += share[k][c] * query;
            }
            for (int k = 0; k < KEYS; k++) store(to[k] + d * to_row + i, sums[k]);
        }
    }
}

/* Turns logits to the base of 2 into their softmax, over rows `row` apart. */
static void softmax(float *logits, int64_t row, int64_t rows, int64_t width) {
    for (int64_t i = 0; i < width; i += LANES) {
        float *at = logits + i;
        vec top = load(at), total = all(0);
        for (int64_t t = 1; t < rows; t++) top = larger(load(at + t * row), top);
        for (int64_t t = 0; t < rows; t++) {
            vec share = power_of_2(load(at + t * row) - top);
            total += share;
            store(at + t * row, share);
        }
        vec scale = all(1) / total;
        for (int64_t t = 0; t < rows; t++) store(at + t * row, load(at + t * row) * scale);
    }
}

/* Turns gradients of shares into those of the logits: share * (gradient - mean gradient). */
static void softmax_backward(float *grads, const float *shares, int64_t row, int64_t rows,
                             int64_t width) {
    for (int64_t i = 0; i < width; i += LANES) {
        vec mean = all(0);
        for (int64_t t = 0; t < rows; t++)
            mean += load(grads + t * row + i) * load(shares + t * row + i);
        for (int64_t t = 0; t < rows; t++) {
            float *at = grads + t * row + i;
            store(at, load(shares + t * row + i) * (load(at) - mean));
        }
    }
}

#endif
