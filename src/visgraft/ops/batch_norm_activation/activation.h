/* The numbers and tensors of a call, and activations with their derivatives. */
#ifndef VISGRAFT_ACTIVATION_H
#define VISGRAFT_ACTIVATION_H

#include "parallel.h"
#include "vectors.h"

enum { NOTHING, RELU, SILU };

typedef struct {
    int64_t batch, channels, area, activation, is_bf16, is_channels_last, threads;
    double epsilon;
} call_t;

typedef struct {
    call_t n;
    const void *x, *grad;
    const float *weight, *bias, *grad_pooled;
    void *y, *grad_x;
    float *pooled, *mean, *variance, *grad_weight, *grad_bias;
} job_t;

/* 1 / (1 + exp(-z)), without overflow. */
INLINE vec sigmoid(vec z) {
    const float log2_e = 1.44269504089f;
    vec small = power_of_2(choose(z < all(0), z, -z) * log2_e);
    return choose(z < all(0), small, all(1)) / (small + 1.0f);
}

INLINE vec activate(int activation, vec z) {
    if (activation == RELU) return choose(z < all(0), all(0), z);
    if (activation == SILU) return z * sigmoid(z);
    return z;
}

/* The gradient at z where that of the activated value is g. */
INLINE vec derive(int activation, vec z, vec g) {
    if (activation == RELU) return choose(z <= all(0), all(0), g);
    if (activation == SILU) {
        vec s = sigmoid(z);
        return g * s * (z * (1.0f - s) + 1.0f);
    }
    return g;
}

#endif
