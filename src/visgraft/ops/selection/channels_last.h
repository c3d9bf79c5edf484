/* The three gradients of a selection between maps that are channels_last. A task is a slab of
 * positions of one image; what it adds up for the shares, in float32, lies beside that of others.
 */
#ifndef VISGRAFT_CHANNELS_LAST_H
#define VISGRAFT_CHANNELS_LAST_H

#include "channels.h"
#include "parallel.h"

#define SLAB 128    /* positions */
#define OF_PIECE (1 << 12) /* values for the first cache */

typedef struct {
    int64_t batch, channels, area, is_bf16, is_channels_last, threads;
} call_t;

typedef struct {
    call_t n;
    const void *first, *second, *grad;
    const float *share;
    void *grad_first, *grad_second;
    float *grad_share;
    float *sums; /* a row of channels, a multiple of LANES, for each slab */
} job_t;

INLINE int64_t slabs_of(const call_t *n) { return (n->area + SLAB - 1) / SLAB; }
INLINE int64_t row_of(const call_t *n) { return (n->channels + LANES - 1) / LANES * LANES; }

INLINE void over_channels(int MANY, int is_bf16, const job_t *j, int64_t at, int64_t positions,
                          int64_t shares, int64_t channel, float *sums) {
    int64_t channels = j->n.channels, n = MANY > 1 ? LANES : channels - channel;
    vec sum[4], share[4], rest[4];
    for (int v = 0; v < MANY; v++) {
        sum[v] = load(sums + channel + v * LANES);
        share[v] = load_channels(j->share, shares + channel + v * LANES, n, 0);
        rest[v] = all(1) - share[v];
    }
    for (int64_t p = 0; p < positions; p++)
        for (int v = 0; v < MANY; v++) {
            int64_t place = at + p * channels + channel + v * LANES;
            vec grad = load_channels(j->grad, place, n, is_bf16);
            vec first = load_channels(j->first, place, n, is_bf16);
            vec second = load_channels(j->second, place, n, is_bf16);
            store_channels(j->grad_first, place, n, is_bf16, grad * rest[v]);
            store_channels(j->grad_second, place, n, is_bf16, grad * share[v]);
            sum[v] += grad * (second - first);
        }
    for (int v = 0; v < MANY; v++) store(sums + channel + v * LANES, sum[v]);
}

static void slab_task(const void *job, int64_t slab, float *scratch) {
    const job_t *j = job;
    int64_t channels = j->n.channels, image = slab / slabs_of(&j->n);
    int64_t start = slab % slabs_of(&j->n) * SLAB, end = least(start + SLAB, j->n.area);
    int64_t together = most(1, OF_PIECE / most(1, channels)), shares = image * channels;
    int is_bf16 = (int)j->n.is_bf16;
    float *sums = j->sums + slab * row_of(&j->n);
    (void)scratch;
    for (int64_t some; start < end; start += some) {
        int64_t at = (image * j->n.area + start) * channels, c = 0;
        some = least(together, end - start);
        for (; c + 4 * LANES <= channels; c += 4 * LANES)
            over_channels(4, is_bf16, j, at, some, shares, c, sums);
        for (; c < channels; c += LANES)
            over_channels(1, is_bf16, j, at, some, shares, c, sums);
    }
}

static int backward_channels_last(job_t j) {
    int64_t slabs = slabs_of(&j.n), row = row_of(&j.n);
    j.sums = calloc((size_t)(j.n.batch * slabs * row + 1), sizeof *j.sums);
    int failed = !j.sums
        || run_tasks(slab_task, &j, j.n.batch * slabs, j.n.threads, 0);
    for (int64_t k = 0; k < j.n.batch * j.n.channels && !failed; k++) {
        double whole = 0;
        for (int64_t s = 0; s < slabs; s++)
            whole += (double)j.sums[(k / j.n.channels * slabs + s) * row + k % j.n.channels];
        j.grad_share[k] = (float)whole;
    }
    free(j.sums);
    return failed;
}

#endif
