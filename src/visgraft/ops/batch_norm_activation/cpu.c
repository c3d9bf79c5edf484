/* Batch normalisation by the statistics of the batch, an activation, and the mean over positions.
 *
 * A task is one channel: its maps, one per image, are read from memory once and then found in the
 * second cache. Sums are in float32 over at most PIECE values and in float64 beyond. Maps that are
 * channels_last have a form of their own.
 */
#include "channels_last.h"

#define PIECE 1024 /* values, a multiple of LANES */

INLINE float total(vec v) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

/* The last lanes of a row of n values, of which it may have fewer: these are in the last lanes. */
INLINE vec load_end(const float *row, int64_t n) {
    if (n >= LANES) return load(row + n - LANES);
    float lanes[LANES] = {0};
    for (int64_t i = 0; i < n; i++) lanes[LANES - n + i] = row[i];
    return load(lanes);
}

INLINE void store_end(float *row, int64_t n, vec v) {
    if (n >= LANES) store(row + n - LANES, v);
    else
        for (int64_t i = 0; i < n; i++) row[i] = v[LANES - n + i];
}

/* The last `some` lanes, and zeros. */
INLINE vec keep_last(vec v, int64_t some) {
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7};
    return choose(lane >= (int32_t)(LANES - some), v, all(0));
}

/* A piece of a map as floats: in its own place, or converted into the scratch memory. */
INLINE const float *floats(const void *tensor, int64_t at, int64_t n, int is_bf16, float *scratch) {
    if (!is_bf16) return (const float *)tensor + at;
    read_row(scratch, tensor, at, n, 1);
    return scratch;
}

INLINE vec sum_of(const float *x, int64_t n) {
    vec a = all(0), b = all(0), c = all(0), d = all(0);
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        a += load(x + i);
        b += load(x + i + LANES);
        c += load(x + i + 2 * LANES);
        d += load(x + i + 3 * LANES);
    }
    for (; i + LANES <= n; i += LANES) a += load(x + i);
    if (i < n) b += keep_last(load_end(x, n), n - i);
    return (a + b) + (c + d);
}

INLINE vec squares_of(const float *x, int64_t n, vec mean) {
    vec a = all(0), b = all(0), c = all(0), d = all(0);
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        vec e = load(x + i) - mean, f = load(x + i + LANES) - mean;
        vec g = load(x + i + 2 * LANES) - mean, h = load(x + i + 3 * LANES) - mean;
        a += e * e;
        b += f * f;
        c += g * g;
        d += h * h;
    }
    for (; i + LANES <= n; i += LANES) {
        vec e = load(x + i) - mean;
        a += e * e;
    }
    if (i < n) {
        vec e = keep_last(load_end(x, n) - mean, n - i);
        b += e * e;
    }
    return (a + b) + (c + d);
}

/* Writes the activated values of a piece to another place and returns their sum. */
INLINE vec apply(int activation, float *y, const float *x, int64_t n, vec mean, vec scale,
                 vec shift) {
    vec sum = all(0);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vec value = activate(activation, (load(x + i) - mean) * scale + shift);
        store(y + i, value);
        sum += value;
    }
    if (i < n) {
        vec value = activate(activation, (load_end(x, n) - mean) * scale + shift);
        store_end(y, n, value);
        sum += keep_last(value, n - i);
    }
    return sum;
}

/* A sum in float32 that moves into float64 before it grows long. */
typedef struct {
    vec part;
    int64_t seen;
    double whole;
} sum_t;

INLINE void settle(sum_t *s) {
    s->whole += (double)total(s->part);
    s->part = all(0);
    s->seen = 0;
}

INLINE void add(sum_t *s, vec part, int64_t values) {
    s->part += part;
    s->seen += values;
    if (s->seen >= PIECE) settle(s);
}

INLINE void forward_channel(int activation, const job_t *j, int64_t channel, float *scratch) {
    const call_t *n = &j->n;
    int is_bf16 = (int)n->is_bf16;
    double count = (double)n->batch * (double)n->area;
    sum_t sum = {0}, squares = {0};
    for (int64_t b = 0; b < n->batch; b++)
        for (int64_t i = 0, some; i < n->area; i += some) {
            some = least(PIECE, n->area - i);
            int64_t at = (b * n->channels + channel) * n->area + i;
            add(&sum, sum_of(floats(j->x, at, some, is_bf16, scratch), some), some);
        }
    settle(&sum);
    float mean = (float)(sum.whole / count);
    for (int64_t b = 0; b < n->batch; b++)
        for (int64_t i = 0, some; i < n->area; i += some) {
            some = least(PIECE, n->area - i);
            int64_t at = (b * n->channels + channel) * n->area + i;
            const float *x = floats(j->x, at, some, is_bf16, scratch);
            add(&squares, squares_of(x, some, all(mean)), some);
        }
    settle(&squares);
    float variance = (float)(squares.whole / count);
    float scale = (float)(j->weight[channel] / sqrt(variance + n->epsilon));
    j->mean[channel] = mean;
    j->variance[channel] = variance;
    for (int64_t b = 0; b < n->batch; b++) {
        sum_t pooled = {0};
        for (int64_t i = 0, some; i < n->area; i += some) {
            some = least(PIECE, n->area - i);
            int64_t at = (b * n->channels + channel) * n->area + i;
            const float *x = floats(j->x, at, some, is_bf16, scratch);
            float *y = is_bf16 ? scratch + PIECE : (float *)j->y + at;
            add(&pooled, apply(activation, y, x, some, all(mean), all(scale),
                               all(j->bias[channel])), some);
            if (is_bf16) write_row(j->y, at, y, some, 1);
        }
        settle(&pooled);
        j->pooled[b * n->channels + channel] = (float)(pooled.whole / (double)n->area);
    }
}

/* The gradient of a piece before the activation, and its two sums. */
INLINE void before(int activation, float *to, const float *x, const float *grad, int64_t n,
                   vec mean, vec scale, vec shift, vec more, sum_t *plain, sum_t *by_x) {
    vec sum = all(0), products = all(0);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vec centred = load(x + i) - mean;
        vec value = derive(activation, centred * scale + shift, load(grad + i) + more);
        store(to + i, value);
        sum += value;
        products += value * centred;
    }
    if (i < n) {
        vec centred = load_end(x, n) - mean;
        vec value = derive(activation, centred * scale + shift, load_end(grad, n) + more);
        store_end(to, n, value);
        sum += keep_last(value, n - i);
        products += keep_last(value * centred, n - i);
    }
    add(plain, sum, n);
    add(by_x, products, n);
}

/* Subtracts from a gradient, in its place, what the statistics take from it. */
INLINE void centre(float *to, const float *x, int64_t n, vec mean, vec scale, vec of_x,
                   vec of_mean) {
    vec end = (load_end(to, n) - of_mean - (load_end(x, n) - mean) * of_x) * scale;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        store(to + i, (load(to + i) - of_mean - (load(x + i) - mean) * of_x) * scale);
    if (i < n) store_end(to, n, end);
}

INLINE void backward_channel(int activation, const job_t *j, int64_t channel, float *scratch) {
    const call_t *n = &j->n;
    int is_bf16 = (int)n->is_bf16;
    double count = (double)n->batch * (double)n->area;
    double deviation = sqrt(j->variance[channel] + n->epsilon);
    vec mean = all(j->mean[channel]), scale = all((float)(j->weight[channel] / deviation));
    vec shift = all(j->bias[channel]), of_x = all(0), of_mean = all(0);
    sum_t plain = {0}, by_x = {0}, again[2] = {plain, by_x};
    for (int round = 0; round < 2; round++) {
        int found = round == 1; /* the sums */
        for (int64_t b = 0; b < n->batch; b++) {
            float more = j->grad_pooled[b * n->channels + channel] / (float)n->area;
            for (int64_t i = 0, some; i < n->area; i += some) {
                some = least(PIECE, n->area - i);
                int64_t at = (b * n->channels + channel) * n->area + i;
                const float *x = floats(j->x, at, some, is_bf16, scratch);
                float *to = is_bf16 ? scratch + 2 * PIECE : (float *)j->grad_x + at;
                if (!found || is_bf16) /* bfloat16 does not keep it in the place of the result */
                    before(activation, to, x, floats(j->grad, at, some, is_bf16, scratch + PIECE),
                           some, mean, scale, shift, all(more), found ? &again[0] : &plain,
                           found ? &again[1] : &by_x);
                if (!found) continue;
                centre(to, x, some, mean, scale, of_x, of_mean);
                if (is_bf16) write_row(j->grad_x, at, to, some, 1);
            }
        }
        if (found) break;
        settle(&plain);
        settle(&by_x);
        of_x = all((float)(by_x.whole / (deviation * deviation) / count));
        of_mean = all((float)(plain.whole / count));
    }
    j->grad_weight[channel] = (float)(by_x.whole / deviation);
    j->grad_bias[channel] = (float)plain.whole;
}

static void forward_task(const void *job, int64_t channel, float *scratch) {
    const job_t *j = job;
    if (j->n.activation == RELU) forward_channel(RELU, j, channel, scratch);
    else if (j->n.activation == SILU) forward_channel(SILU, j, channel, scratch);
    else forward_channel(NOTHING, j, channel, scratch);
}

static void backward_task(const void *job, int64_t channel, float *scratch) {
    const job_t *j = job;
    if (j->n.activation == RELU) backward_channel(RELU, j, channel, scratch);
    else if (j->n.activation == SILU) backward_channel(SILU, j, channel, scratch);
    else backward_channel(NOTHING, j, channel, scratch);
}

/* tensors: x, weight, bias, y, pooled, mean, variance */
int forward(void *const *t, const int64_t *numbers) {
    job_t j = {.x = t[0], .weight = t[1], .bias = t[2], .y = t[3], .pooled = t[4], .mean = t[5],
               .variance = t[6]};
    memcpy(&j.n, numbers, sizeof j.n);
    if (j.n.is_channels_last) return run_channels_last(j, 0);
    return run_tasks(forward_task, &j, j.n.channels, j.n.threads, 2 * PIECE);
}

/* tensors: x, weight, bias, mean, variance, grad, grad of pooled, grad_x, grad_weight, grad_bias */
int backward(void *const *t, const int64_t *numbers) {
    job_t j = {.x = t[0], .weight = t[1], .bias = t[2], .mean = t[3], .variance = t[4],
               .grad = t[5], .grad_pooled = t[6], .grad_x = t[7], .grad_weight = t[8],
               .grad_bias = t[9]};
    memcpy(&j.n, numbers, sizeof j.n);
    if (j.n.is_channels_last) return run_channels_last(j, 1);
    return run_tasks(backward_task, &j, j.n.channels, j.n.threads, 3 * PIECE);
}
