/* The three gradients of a selection between two maps, in one pass. A task is one map, unless maps
 * are channels_last.
 */
#include "channels_last.h"

#define PIECE 1024 /* values, a multiple of LANES */

INLINE const float *floats(const void *tensor, int64_t at, int64_t n, int is_bf16, float *scratch) {
    if (!is_bf16) return (const float *)tensor + at;
    read_row(scratch, tensor, at, n, 1);
    return scratch;
}

static void backward_task(const void *job, int64_t map, float *scratch) {
    const job_t *j = job;
    int is_bf16 = (int)j->n.is_bf16;
    float share = j->share[map], rest = 1 - share;
    double whole = 0;
    for (int64_t i = 0, some; i < j->n.area; i += some) {
        some = least(PIECE, j->n.area - i);
        int64_t at = map * j->n.area + i, k = 0;
        const float *first = floats(j->first, at, some, is_bf16, scratch);
        const float *second = floats(j->second, at, some, is_bf16, scratch + PIECE);
        const float *grad = floats(j->grad, at, some, is_bf16, scratch + 2 * PIECE);
        float *to_first = is_bf16 ? scratch + 3 * PIECE : (float *)j->grad_first + at;
        float *to_second = is_bf16 ? scratch + 4 * PIECE : (float *)j->grad_second + at;
        vec sums = all(0);
        float sum = 0;
        for (; k + LANES <= some; k += LANES) {
            vec g = load(grad + k);
            store(to_first + k, g * rest);
            store(to_second + k, g * share);
            sums += g * (load(second + k) - load(first + k));
        }
        for (; k < some; k++) {
            to_first[k] = grad[k] * rest;
            to_second[k] = grad[k] * share;
            sum += grad[k] * (second[k] - first[k]);
        }
        for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
        whole += (double)sum;
        if (!is_bf16) continue;
        write_row(j->grad_first, at, to_first, some, 1);
        write_row(j->grad_second, at, to_second, some, 1);
    }
    j->grad_share[map] = (float)whole;
}

/* tensors: first, second, share, grad, grad_first, grad_second, grad_share */
int backward(void *const *t, const int64_t *numbers) {
    job_t j = {.first = t[0], .second = t[1], .share = t[2], .grad = t[3], .grad_first = t[4],
               .grad_second = t[5], .grad_share = t[6]};
    memcpy(&j.n, numbers, sizeof j.n);
    if (j.n.is_channels_last) return backward_channels_last(j);
    return run_tasks(backward_task, &j, j.n.batch * j.n.channels, j.n.threads, 5 * PIECE);
}
