/* Aggregation where the output has the size of the map: the map is one long row.
 *
 * A tap is then one offset into the row. The weights of a tap are copied with zeros where it would
 * reach into another row of the map; map and gradient are copied between margins.
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

/* Zeros the positions of a row from where tap t reaches beyond the sides of the map. */
INLINE void clear_sides(const call_t *n, int64_t t, float *row) {
    int64_t right = right_of(n, t);
    int64_t from = right > 0 ? most(n->width - right, 0) : 0;
    int64_t to = right > 0 ? n->width : least(-right, n->width);
    for (int64_t y = 0; y < n->height && from < to; y++)
        for (int64_t x = from; x < to; x++) row[y * n->width + x] = 0;
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
            float *row = scratch + j->at_weights + (m * j->taps + t) * j->row + j->margin;
            read_row(row, j->of.weight, plane * j->area, j->area, (int)n->is_bf16);
            clear_sides(n, t, row);
        }
}

/* Writes `some` rows of sums, found where sum_taps was told to put them. */
static void sum_and_write(const joined_t *j, void *target, int64_t plane, int64_t some,
                          const float *a, float *scratch, const int64_t *places, int64_t listed) {
    int64_t area = j->area, apart = j->n.groups * area;
    int direct = !j->n.is_bf16 && area >= LANES;
    float *to = direct ? (float *)target + plane * area : scratch + j->at_spare;
    (some == 8 ? sum_taps_of_8 : sum_taps_of_1)(to, direct ? apart : AT_LEAST_LANES(area), a,
                                                j->row, scratch + j->at_weights, places, listed,
                                                area);
    for (int64_t i = 0; i < some && !direct; i++)
        write_row(target, plane * area + i * apart, to + i * AT_LEAST_LANES(area), area,
                  (int)j->n.is_bf16);
}

static void joined_forward(const void *job, int64_t task, float *scratch) {
    const joined_t *j = job;
    const call_t *n = &j->n;
    int64_t image = task / n->groups, group = task % n->groups;
    int64_t *places = (int64_t *)(scratch + j->at_places);
    read_map(j, image, group, scratch);
    read_weights(j, image, group, scratch);
    for (int64_t m = 0; m < n->heads; m++) {
        for (int64_t t = 0; t < j->taps; t++) {
            places[2 * t] = j->margin + offset_of(n, t);
            places[2 * t + 1] = (m * j->taps + t) * j->row + j->margin;
        }
        for (int64_t c = 0, some; c < j->sharing; c += some) {
            some = j->sharing - c >= 8 ? 8 : 1;
            int64_t plane = (image * n->heads + m) * n->channels + c * n->groups + group;
            sum_and_write(j, j->of.out, plane, some, scratch + j->at_map + c * j->row, scratch,
                          places, j->taps);
        }
    }
}

static void joined_grad_x(const joined_t *j, int64_t image, int64_t group, float *scratch) {
    const call_t *n = &j->n;
    int64_t *places = (int64_t *)(scratch + j->at_places);
    read_weights(j, image, group, scratch);
    for (int64_t k = 0; k < n->heads * j->taps; k++) {
        int64_t from = j->margin - offset_of(n, k % j->taps);
        places[2 * k] = k / j->taps * j->sharing * j->row + from;
        places[2 * k + 1] = k * j->row + from;
    }
    for (int64_t c = 0, some; c < j->sharing; c += some) {
        some = j->sharing - c >= 8 ? 8 : 1;
        sum_and_write(j, j->of.grad_x, map_plane(j, image, group, c), some, scratch + c * j->row,
                      scratch, places, n->heads * j->taps);
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
        for (int64_t t = 0, some; t < j->taps; t += some) {
            some = j->taps - t >= 9 && direct ? 9 : 1;
            float *to = scratch + j->at_spare;
            if (direct) to = (float *)j->of.grad_weight + (first + t) * area;
            (some == 9 ? sum_channels_for_9 : sum_channels_for_1)(
                to, area, scratch + j->at_map, j->row, places + t, grads, j->row, j->sharing, area);
            for (int64_t i = 0; i < some; i++) clear_sides(n, t + i, to + i * area);
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
