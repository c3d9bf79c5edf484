/* Vectors of eight floats in the compiler's own notation, and rows of float32 or bfloat16. */
#ifndef VISGRAFT_VECTORS_H
#define VISGRAFT_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 8
#define AT_LEAST_LANES(n) ((n) < LANES ? LANES : (n))

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

typedef float vec __attribute__((vector_size(32)));
typedef int32_t ivec __attribute__((vector_size(32)));
typedef uint32_t uvec __attribute__((vector_size(32)));

INLINE vec load(const float *from) {
    vec v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE void store(float *to, vec v) { memcpy(to, &v, sizeof v); }

INLINE vec all(float x) { return (vec){x, x, x, x, x, x, x, x}; }

/* Lane by lane `a` where the condition holds, else `b`. */
INLINE vec choose(ivec condition, vec a, vec b) {
    return (vec)((condition & (ivec)a) | (~condition & (ivec)b));
}

/* The larger lanes; `b` where `a` is NaN. */
INLINE vec larger(vec a, vec b) { return choose(a > b, a, b); }

/* 2 to the power of x <= 0, to 2 units in the last place; 2**-126 for less, NaN for NaN. */
INLINE vec power_of_2(vec x) {
    const float whole = 12582912.0f; /* 1.5 * 2**23: adding it rounds, into the lowest bits */
    x = choose(x < all(-126), all(-126), x);
    vec shifted = x + whole;
    vec f = x - (shifted - whole); /* -0.5 to 0.5 */
    vec p = f * 1.32647459e-03f + 9.67151253e-03f;
    p = p * f + 5.55073369e-02f;
    p = p * f + 2.40222421e-01f;
    p = p * f + 6.93146978e-01f;
    p = p * f + 1.0f;
    return (vec)((uvec)p + ((uvec)shifted << 23));
}

/* Where the vector after the one at i starts: the last one overlaps so that it ends at n. */
INLINE int64_t next_start(int64_t i, int64_t n) {
    if (i + LANES >= n) return n;
    return i + 2 * LANES > n ? n - LANES : i + LANES;
}

INLINE void copy_floats(float *to, const float *from, int64_t n) {
    if (n >= LANES) {
        for (int64_t i = 0; i < n; i = next_start(i, n)) store(to + i, load(from + i));
    } else if (n >= 4) {
        float head[4], tail[4];
        memcpy(head, from, sizeof head);
        memcpy(tail, from + n - 4, sizeof tail);
        memcpy(to, head, sizeof head);
        memcpy(to + n - 4, tail, sizeof tail);
    } else {
        for (int64_t i = 0; i < n; i++) to[i] = from[i];
    }
}

INLINE float from_bf16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

INLINE uint16_t to_bf16(float f) { /* to the nearest, ties to even; NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)(f == f ? rounded : 0x7fc0);
}

/* Elements of a tensor are counted, not bytes: `at` is the first. */
INLINE void read_row(float *to, const void *from, int64_t at, int64_t n, int is_bf16) {
    if (!is_bf16) {
        copy_floats(to, (const float *)from + at, n);
        return;
    }
    const uint16_t *half = (const uint16_t *)from + at;
    for (int64_t i = 0; i < n; i++) to[i] = from_bf16(half[i]);
}

INLINE void write_row(void *to, int64_t at, const float *from, int64_t n, int is_bf16) {
    if (!is_bf16) {
        copy_floats((float *)to + at, from, n);
        return;
    }
    uint16_t *half = (uint16_t *)to + at;
    for (int64_t i = 0; i < n; i++) half[i] = to_bf16(from[i]);
}

#endif
