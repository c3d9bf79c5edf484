/* Aggregation where the output has the size of the map: the map is one long row.
 *
 * A tap is then one offset into the row. Where it would reach beyond a side of the map, into
 * another row of it, a mask makes the weight zero. What is read beside a position is copied between
 * margins of zeros.
 */
#ifndef VISGRAFT_JOINED_H
#define VISGRAFT_JOINED_H

#include "sums.h"

#define MOST_JOINED (1 << 21) /* floats of scratch memory */

typedef struct {
    call_t n;
    tensors_t of;
    int64_t sharing, taps, area;
    int64_t margin, row;                   /* floats before, and in all, of a copied row */
    int64_t at_map, at_weights, at_spare, at_places; /* in the scratch memory; gradients are first */
    int64_t scratch;
    const float *masks; /* bits, a row for each column of the kernel */
} joined_t;

static joined_t prepare_joined(call_t n, tensors_t of) {
    joined_t j = {.n = n, .of = of};
    j.sharing = n.channels / n.groups;
    j.taps = n.kernel * n.kernel;
    j.area = n.height * n.width;
    j.margin = n.padding * (n.width + 1);
    j.row = j.margin + AT_LEAST_LANES(j.area) + j.margin;
    j.at_map = of.grad ? n.heads * j.sharing * j.row : 0;
    j.at_weights = j.at_map + j.sharing * j.row;
    j.at_spare = j.at_weights + n.heads * j.taps * j.row;
    j.at_places = (j.at_spare + 8 * AT_LEAST_LANES(j.area) + 1) / 2 * 2;
    j.scratch = j.at_places + 4 * n.heads * j.taps;
    return j;
}

/* Whether the output has the size of the map, and its copies fit. */
static int can_join(const joined_t *j) {
    const call_t *n = &j->n;
    return n->stride == 1 && n->out_height == n->height && n->out_width == n->width
        && j->scratch <= MOST_JOINED;
}

/* How far to the right, or in all, tap t reads. */
INLINE int64_t right_of(const call_t *n, int64_t t) {
    return t % n->kernel * n->dilation - n->padding;
}
INLINE int64_t offset_of(const call_t *n, int64_t t) {
    return (t / n->kernel * n->dilation - n->padding) * n->width + right_of(n, t);
}

/* Rows in memory that are read next, asked for while there is something else to do. */
typedef struct {
    const float *first, *second; /* of the first rows, and of as many more or NULL */
    int64_t rows, one;           /* how many, and how far apart */
} soon_t;

INLINE void fetch(const soon_t *soon, int64_t i) {
    if (i & LANES) return; /* two vectors are in one line of the cache */
    for (int64_t r = 0; r < soon->rows; r++) {
        __builtin_prefetch(soon->first + r * soon->one + i, 0, 2);
        if (soon->second) __builtin_prefetch(soon->second + r * soon->one + i, 0, 2);
    }
}

INLINE int64_t mask_row(const joined_t *j) { return AT_LEAST_LANES(j->area); }

/* Sets the bits of the positions where a tap in a column of the kernel stays between the sides. */
static void fill_masks(const joined_t *j, float *masks) {
    for (int64_t v = 0; v < j->n.kernel; v++)
        for (int64_t p = 0; p < mask_row(j); p++) {
            int64_t x = p % j->n.width + right_of(&j->n, v);
            int32_t bits = x >= 0 && x < j->n.width ? -1 : 0;
            memcpy(masks + v * mask_row(j) + p, &bits, sizeof bits);
        }
}

/* Sums CHANNELS rows over the taps of `heads` kernels of KERNEL columns, or any number for 0. Each
 * tap has a place in the copied rows `a` and one in the rows `b`; masks are `step` apart. */
INLINE void sum_masked(int CHANNELS, int KERNEL, const joined_t *j, float *to, int64_t to_one,
                       const float *a, const float *b, const int64_t *places, int64_t heads,
                       const float *mask, int64_t step, const soon_t *soon) {
    int64_t kernel = KERNEL ? KERNEL : j->n.kernel, one = j->row;
    for (int64_t i = 0; i < j->area; i = next_start(i, j->area)) {
        vec sums[8];
        fetch(soon, i);
        for (int c = 0; c < CHANNELS; c++) sums[c] = all(0);
        for (int64_t m = 0; m < heads; m++)
            for (int64_t v = 0; v < kernel; v++) {
                vec kept = load(mask + v * step + i);
                for (int64_t u = 0; u < kernel; u++) {
                    const int64_t *place = places + 2 * ((m * kernel + u) * kernel + v);
                    vec factor = (vec)((ivec)load(b + place[1] + i) & (ivec)kept);
                    const float *from = a + place[0] + i;
                    for (int c = 0; c < CHANNELS; c++) sums[c] += factor * load(from + c * one);
                }
            }
        for (int c = 0; c < CHANNELS; c++) store(to + c * to_one + i, sums[c]);
    }
}

static void sum_rows(int64_t channels, const joined_t *j, float *to, int64_t to_one, const float *a,
                     const float *b, const int64_t *places, int64_t heads, const float *mask,
                     int64_t step, const soon_t *soon) {
    if (channels == 8 && j->n.kernel == 3)
        sum_masked(8, 3, j, to, to_one, a, b, places, heads, mask, step, soon);
    else if (channels == 8) sum_masked(8, 0, j, to, to_one, a, b, places, heads, mask, step, soon);
    else sum_masked(1, 0, j, to, to_one, a, b, places, heads, mask, step, soon);
}

/* Sums products over the channels that share a weight, for the TAPS taps from one on. */
INLINE void sum_products(int TAPS, const joined_t *j, float *to, const float *map,
                         const int64_t *places, const float *grads, int64_t tap,
                         const soon_t *soon) {
    for (int64_t i = 0; i < j->area; i = next_start(i, j->area)) {
        vec sums[9];
        fetch(soon, i);
        for (int t = 0; t < TAPS; t++) sums[t] = all(0);
        for (int64_t c = 0; c < j->sharing; c++) {
            const float *from = map + c * j->row + i;
            vec factor = load(grads + c * j->row + i);
            for (int t = 0; t < TAPS; t++) sums[t] += factor * load(from + places[tap + t]);
        }
        for (int t = 0; t < TAPS; t++) {
            const float *mask = j->masks + (tap + t) % j->n.kernel * mask_row(j) + i;
            store(to + t * j->area + i, (vec)((ivec)sums[t] & (ivec)load(mask)));
        }
    }
}

static void sum_9_products(const joined_t *j, float *to, const float *map, const int64_t *places,
                           const float *grads, int64_t tap, const soon_t *soon) {
    sum_products(9, j, to, map, places, grads, tap, soon);
}

static void sum_1_product(const joined_t *j, float *to, const float *map, const int64_t *places,
                          const float *grads, int64_t tap, const soon_t *soon) {
    sum_products(1, j, to, map, places, grads, tap, soon);
}

INLINE int64_t map_plane(const joined_t *j, int64_t image, int64_t group, int64_t c) {
    return image * j->n.channels + c * j->n.groups + group;
}

static void read_map(const joined_t *j, int64_t image, int64_t group, float *scratch) {
    for (int64_t c = 0; c < j->sharing; c++)
        read_row(scratch + j->at_map + c * j->row + j->margin, j->of.x,
                 map_plane(j, image, group, c) * j->area, j->area, (int)j->n.is_bf16);
}

static void read_weights(const joined_t *j, int64_t image, int64_t group, float *scratch) {
    const call_t *n = &j->n;
    for (int64_t m = 0; m < n->heads; m++)
        for (int64_t t = 0; t < j->taps; t++) {
            int64_t plane = ((image * n->heads + m) * n->groups + group) * j->taps + t;
            read_row(scratch + j->at_weights + (m * j->taps + t) * j->row + j->margin,
                     j->of.weight, plane * j->area, j->area, (int)n->is_bf16);
        }
}

/* Sums `some` rows and writes them where they belong. */
static void sum_and_write(const joined_t *j, void *target, int64_t plane, int64_t some,
                          const float *a, const float *b, const int64_t *places, int64_t heads,
                          const float *mask, int64_t step, float *spare, const soon_t *soon) {
    int64_t area = j->area, apart = j->n.groups * area;
    int direct = !j->n.is_bf16 && area >= LANES;
    float *to = direct ? (float *)target + plane * area : spare;
    sum_rows(some, j, to, direct ? apart : AT_LEAST_LANES(area), a, b, places, heads, mask, step,
             soon);
    for (int64_t i = 0; i < some && !direct; i++)
        write_row(target, plane * area + i * apart, to + i * AT_LEAST_LANES(area), area,
                  (int)j->n.is_bf16);
}

/* The rows of the map for a task, and those of the gradient where there is one. */
static soon_t maps_of(const joined_t *j, int64_t task) {
    const call_t *n = &j->n;
    soon_t soon = {.one = n->groups * j->area};
    if (n->is_bf16 || task >= n->batch * n->groups) return soon;
    int64_t at = map_plane(j, task / n->groups, task % n->groups, 0) * j->area;
    soon.rows = j->sharing;
    soon.first = (const float *)j->of.x + at;
    if (j->of.grad && n->heads == 1) soon.second = (const float *)j->of.grad + at;
    return soon;
}

static void joined_forward(const void *job, int64_t task, float *scratch) {
    const joined_t *j = job;
    const call_t *n = &j->n;
    int64_t image = task / n->groups, group = task % n->groups;
    int64_t *places = (int64_t *)(scratch + j->at_places);
    int direct = !n->is_bf16 && j->area >= LANES;
    int64_t one = direct ? j->area : j->row;
    soon_t soon = maps_of(j, task + n->threads), nothing = {0};
    read_map(j, image, group, scratch);
    if (!direct) read_weights(j, image, group, scratch);
    for (int64_t t = 0; t < j->taps; t++) {
        places[2 * t] = j->margin + offset_of(n, t);
        places[2 * t + 1] = t * one;
    }
    for (int64_t m = 0; m < n->heads; m++) {
        const float *weights = scratch + j->at_weights + m * j->taps * j->row + j->margin;
        int64_t plane = ((image * n->heads + m) * n->groups + group) * j->taps;
        if (direct) weights = (const float *)j->of.weight + plane * j->area;
        for (int64_t c = 0, some; c < j->sharing; c += some) {
            some = j->sharing - c >= 8 ? 8 : 1;
            plane = (image * n->heads + m) * n->channels + c * n->groups + group;
            sum_and_write(j, j->of.out, plane, some, scratch + j->at_map + c * j->row, weights,
                          places, 1, j->masks, mask_row(j), scratch + j->at_spare,
                          m || c ? &nothing : &soon);
        }
    }
}

static void joined_grad_x(const joined_t *j, int64_t image, int64_t group, float *scratch) {
    const call_t *n = &j->n;
    int64_t *places = (int64_t *)(scratch + j->at_places);
    read_weights(j, image, group, scratch);
    int64_t after = image * n->groups + group + n->threads;
    soon_t nothing = {0}, soon = j->of.grad_weight ? maps_of(j, after) : nothing;
    for (int64_t k = 0; k < n->heads * j->taps; k++) {
        int64_t from = j->margin - offset_of(n, k % j->taps);
        places[2 * k] = k / j->taps * j->sharing * j->row + from;
        places[2 * k + 1] = k * j->row + from;
    }
    for (int64_t c = 0, some; c < j->sharing; c += some) {
        some = j->sharing - c >= 8 ? 8 : 1;
        sum_and_write(j, j->of.grad_x, map_plane(j, image, group, c), some, scratch + c * j->row,
                      scratch + j->at_weights, places, n->heads,
                      j->masks + (n->kernel - 1) * mask_row(j), -mask_row(j), /* the other side's */
                      scratch + j->at_spare, c ? &nothing : &soon);
    }
}

static void joined_grad_weight(const joined_t *j, int64_t image, int64_t group, float *scratch) {
    const call_t *n = &j->n;
    int64_t area = j->area;
    int direct = !n->is_bf16 && area >= LANES;
    int64_t *places = (int64_t *)(scratch + j->at_places);
    read_map(j, image, group, scratch);
    for (int64_t t = 0; t < j->taps; t++) places[t] = j->margin + offset_of(n, t);
    for (int64_t m = 0; m < n->heads; m++) {
        const float *grads = scratch + m * j->sharing * j->row + j->margin;
        int64_t first = ((image * n->heads + m) * n->groups + group) * j->taps;
        soon_t nothing = {0}, soon = nothing;
        if (j->of.grad_x && !n->is_bf16)
            soon = (soon_t){(const float *)j->of.weight + first * area, NULL, j->taps, area};
        for (int64_t t = 0, some; t < j->taps; t += some) {
            some = j->taps - t >= 9 && direct ? 9 : 1;
            float *to = scratch + j->at_spare;
            if (direct) to = (float *)j->of.grad_weight + (first + t) * area;
            (some == 9 ? sum_9_products : sum_1_product)(j, to, scratch + j->at_map, places, grads,
                                                         t, t ? &nothing : &soon);
            if (!direct) write_row(j->of.grad_weight, (first + t) * area, to, area, (int)n->is_bf16);
        }
    }
}

static void joined_backward(const void *job, int64_t task, float *scratch) {
    const joined_t *j = job;
    const call_t *n = &j->n;
    int64_t image = task / n->groups, group = task % n->groups;
    for (int64_t k = 0; k < n->heads * j->sharing; k++) {
        int64_t m = k / j->sharing, c = k % j->sharing;
        int64_t plane = (image * n->heads + m) * n->channels + c * n->groups + group;
        read_row(scratch + k * j->row + j->margin, j->of.grad, plane * j->area, j->area,
                 (int)n->is_bf16);
    }
    if (j->of.grad_weight) joined_grad_weight(j, image, group, scratch);
    if (j->of.grad_x) joined_grad_x(j, image, group, scratch);
}

#endif
