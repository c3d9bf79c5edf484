/* Aggregation and its gradients on maps that are channels_last, with weights in that order, too.
 *
 * Channels that share weights lie `groups` apart, so that eight neighbours have eight kernels. The
 * weights of a position are turned into vectors of one tap, each of which is used by all channels
 * that share it. A task is a band of rows of an image; taps beside the map are left out.
 */
#ifndef VISGRAFT_CHANNELS_LAST_H
#define VISGRAFT_CHANNELS_LAST_H

#include "channels.h"
#include "sums.h"
#include "turning.h"

typedef struct {
    int64_t place;        /* of the first channel that a tap reads */
    const float *weights; /* of the tap, group by group */
} read_t;

typedef struct {
    call_t n;
    tensors_t of;
    int64_t sharing, taps, reach;
    int64_t row;   /* floats of one tap of a position's turned weights */
    int64_t point; /* floats of all of them, with the heads */
    int64_t rows;  /* rows of the output whose turned weights are kept */
    int64_t bands; /* of an image */
    int64_t at_line, at_spare, at_reads, scratch;
} banded_t;

static banded_t prepare_banded(call_t n, tensors_t of) {
    banded_t j = {.n = n, .of = of};
    j.sharing = n.channels / n.groups;
    j.taps = n.kernel * n.kernel;
    j.reach = (n.kernel - 1) * n.dilation;
    j.row = AT_LEAST_LANES(n.groups);
    j.point = n.heads * j.taps * j.row;
    j.rows = j.reach / n.stride + 1;
    j.bands = n.threads < 2 ? 1 : (4 * n.threads + n.batch - 1) / most(1, n.batch);
    j.bands = most(1, least(j.bands, least(n.height, n.out_height)));
    j.at_line = (of.grad ? j.rows * n.out_width : 1) * j.point;
    j.at_spare = j.at_line + n.heads * n.groups * j.taps;
    j.at_reads = (j.at_spare + j.taps * j.row + 1) / 2 * 2;
    j.scratch = j.at_reads + n.heads * j.taps * (int64_t)(sizeof(read_t) / sizeof(float));
    return j;
}

INLINE int64_t map_point(const banded_t *j, int64_t image, int64_t y, int64_t x) {
    return ((image * j->n.height + y) * j->n.width + x) * j->n.channels;
}

/* Of weights or, with their own number of values, of the output. */
INLINE int64_t out_point(const banded_t *j, int64_t image, int64_t y, int64_t x, int64_t values) {
    return ((image * j->n.out_height + y) * j->n.out_width + x) * j->n.heads * values;
}

/* Reads the weights of a position of the output and turns them. */
INLINE void turn_point(const banded_t *j, int64_t image, int64_t y, int64_t x, float *to,
                       float *line) {
    int64_t values = j->n.groups * j->taps, at = out_point(j, image, y, x, values);
    const float *from = (const float *)j->of.weight + at;
    if (j->n.is_bf16) {
        read_row(line, j->of.weight, at, j->n.heads * values, 1);
        from = line;
    }
    for (int64_t m = 0; m < j->n.heads; m++)
        turn(to + m * j->taps * j->row, j->row, from + m * values, j->n.groups, j->taps);
}

/* Sums a position over the taps listed; TAPS of them, or any number for 0. */
INLINE void sum_point(int TAPS, int WHOLE, int is_bf16, const banded_t *j, void *to, int64_t at,
                      const void *from, const read_t *reads, int64_t listed) {
    int64_t groups = j->n.groups, n = WHOLE ? LANES : groups;
    for (int64_t g = 0; g < groups; g = next_start(g, groups)) {
        vec weights[9];
        for (int t = 0; t < TAPS; t++) weights[t] = load(reads[t].weights + g);
        for (int64_t c = 0; c < j->sharing; c++) {
            int64_t channel = c * groups + g;
            vec sum = all(0);
            if (TAPS)
                for (int t = 0; t < TAPS; t++)
                    sum += weights[t] * load_channels(from, reads[t].place + channel, n, is_bf16);
            else
                for (int64_t t = 0; t < listed; t++)
                    sum += load(reads[t].weights + g)
                        * load_channels(from, reads[t].place + channel, n, is_bf16);
            store_channels(to, at + channel, n, is_bf16, sum);
        }
    }
}

static void sum_any_point(const banded_t *j, void *to, int64_t at, const void *from,
                          const read_t *reads, int64_t listed) {
    int is_bf16 = (int)j->n.is_bf16;
    if (j->n.groups < LANES) sum_point(0, 0, is_bf16, j, to, at, from, reads, listed);
    else if (listed != 9) sum_point(0, 1, is_bf16, j, to, at, from, reads, listed);
    else if (is_bf16) sum_point(9, 1, 1, j, to, at, from, reads, listed);
    else sum_point(9, 1, 0, j, to, at, from, reads, listed);
}

/* Lists the taps of a position of the output that are in the map; returns how many. */
INLINE int64_t list_taps(const banded_t *j, int64_t image, int64_t y, int64_t x, read_t *reads,
                         const float *turned) {
    const call_t *n = &j->n;
    int64_t listed = 0;
    for (int64_t u = 0; u < n->kernel; u++) {
        int64_t r = y * n->stride - n->padding + u * n->dilation;
        if (r < 0 || r >= n->height) continue;
        for (int64_t v = 0; v < n->kernel; v++) {
            int64_t q = x * n->stride - n->padding + v * n->dilation;
            if (q < 0 || q >= n->width) continue;
            const float *weights = turned + (u * n->kernel + v) * j->row;
            reads[listed++] = (read_t){map_point(j, image, r, q), weights};
        }
    }
    return listed;
}

/* Whether no tap of output column x is beside the map. */
INLINE int is_between(const banded_t *j, int64_t x) {
    int64_t left = x * j->n.stride - j->n.padding;
    return left >= 0 && left + j->reach < j->n.width;
}

static void banded_forward(const void *job, int64_t task, float *scratch) {
    const banded_t *j = job;
    const call_t *n = &j->n;
    int64_t image = task / j->bands, band = task % j->bands, listed = 0;
    int64_t end = (band + 1) * n->out_height / j->bands;
    read_t *reads = (read_t *)(scratch + j->at_reads);
    for (int64_t y = band * n->out_height / j->bands; y < end; y++)
        for (int64_t x = 0; x < n->out_width; x++) {
            turn_point(j, image, y, x, scratch, scratch + j->at_line);
            if (x == 0 || !is_between(j, x - 1) || !is_between(j, x))
                listed = list_taps(j, image, y, x, reads, scratch);
            else
                for (int64_t t = 0; t < listed; t++) reads[t].place += n->stride * n->channels;
            int64_t at = out_point(j, image, y, x, n->channels);
            for (int64_t m = 0; m < n->heads; m++) {
                sum_any_point(j, j->of.out, at + m * n->channels, j->of.x, reads, listed);
                for (int64_t t = 0; t < listed; t++)
                    reads[t].weights += (m == n->heads - 1 ? 1 - n->heads : 1) * j->taps * j->row;
            }
        }
}

/* Sums products over the channels that share a weight, for TAPS taps, or any number for 0. */
INLINE void multiply_point(int TAPS, int WHOLE, int is_bf16, const banded_t *j, int64_t at,
                           const read_t *reads, int64_t listed, float *to, const float *turned) {
    int64_t groups = j->n.groups, n = WHOLE ? LANES : groups;
    for (int64_t g = 0; g < groups; g = next_start(g, groups))
        for (int64_t first = 0; first < (TAPS ? 1 : listed); first++) {
            vec sums[9];
            for (int t = 0; t < (TAPS ? TAPS : 1); t++) sums[t] = all(0);
            for (int64_t c = 0; c < j->sharing; c++) {
                int64_t channel = c * groups + g;
                vec factor = load_channels(j->of.grad, at + channel, n, is_bf16);
                for (int t = 0; t < (TAPS ? TAPS : 1); t++)
                    sums[t] += factor
                        * load_channels(j->of.x, reads[first + t].place + channel, n, is_bf16);
            }
            for (int t = 0; t < (TAPS ? TAPS : 1); t++)
                store(to + (reads[first + t].weights - turned) + g, sums[t]);
        }
}

/* The gradient of the weights of output row y; `spare` has the place of one position. */
static void banded_weight_row(const banded_t *j, int64_t image, int64_t y, read_t *reads,
                              float *spare, float *line) {
    const call_t *n = &j->n;
    int is_bf16 = (int)n->is_bf16;
    int64_t listed = 0, values = n->groups * j->taps;
    for (int64_t x = 0; x < n->out_width; x++) {
        if (x == 0 || !is_between(j, x - 1) || !is_between(j, x)) {
            listed = list_taps(j, image, y, x, reads, spare);
            memset(spare, 0, (size_t)(j->taps * j->row) * sizeof *spare);
        } else
            for (int64_t t = 0; t < listed; t++) reads[t].place += n->stride * n->channels;
        for (int64_t m = 0; m < n->heads; m++) {
            int64_t at = out_point(j, image, y, x, n->channels) + m * n->channels;
            if (n->groups < LANES) multiply_point(0, 0, is_bf16, j, at, reads, listed, spare, spare);
            else if (listed != 9)
                multiply_point(0, 1, is_bf16, j, at, reads, listed, spare, spare);
            else if (is_bf16) multiply_point(9, 1, 1, j, at, reads, listed, spare, spare);
            else multiply_point(9, 1, 0, j, at, reads, listed, spare, spare);
            int64_t target = out_point(j, image, y, x, values) + m * values;
            float *to = is_bf16 ? line : (float *)j->of.grad_weight + target;
            turn_back(to, spare, j->row, n->groups, j->taps);
            if (is_bf16) write_row(j->of.grad_weight, target, line, values, 1);
        }
    }
}

/* The gradient of row r of the map, from the output rows that read it, whose weights are turned. */
static void banded_map_row(const banded_t *j, int64_t image, int64_t r, read_t *reads,
                           const float *turned) {
    const call_t *n = &j->n;
    int64_t s = n->stride, listed = 0, step = n->heads * n->channels;
    for (int64_t q = 0; q < n->width; q++) {
        int64_t right = q + n->padding; /* the column of the output that the first tap is in */
        if (s == 1 && q > 0 && right - 1 >= j->reach && right < n->out_width) {
            for (int64_t k = 0; k < listed; k++)
                reads[k] = (read_t){reads[k].place + step, reads[k].weights + j->point};
        } else {
            listed = 0;
            for (int64_t k = 0; k < n->heads * j->taps; k++) {
                int64_t m = k / j->taps, t = k % j->taps;
                int64_t y = r + n->padding - t / n->kernel * n->dilation;
                int64_t x = right - t % n->kernel * n->dilation;
                if (y < 0 || x < 0 || y % s || x % s) continue;
                if (y / s >= n->out_height || x / s >= n->out_width) continue;
                int64_t point = y / s % j->rows * n->out_width + x / s;
                reads[listed++] = (read_t){
                    out_point(j, image, y / s, x / s, n->channels) + m * n->channels,
                    turned + point * j->point + k * j->row,
                };
            }
        }
        sum_any_point(j, j->of.grad_x, map_point(j, image, r, q), j->of.grad, reads, listed);
    }
}

static void banded_backward(const void *job, int64_t task, float *scratch) {
    const banded_t *j = job;
    const call_t *n = &j->n;
    int64_t image = task / j->bands, band = task % j->bands;
    int64_t from = band * n->height / j->bands, until = (band + 1) * n->height / j->bands;
    int64_t row = band * n->out_height / j->bands, last = (band + 1) * n->out_height / j->bands;
    int64_t first = row, next = most(0, (from + n->padding - j->reach) / n->stride);
    float *line = scratch + j->at_line;
    read_t *reads = (read_t *)(scratch + j->at_reads);
    for (int64_t r = from; r < until; r++) {
        /* A row of the output for each row of the map, or so, while both are in the cache. */
        for (; j->of.grad_weight && row < first + (r + 1 - from) * (last - first) / (until - from);
             row++)
            banded_weight_row(j, image, row, reads, scratch + j->at_spare, line);
        if (!j->of.grad_x) continue;
        for (; next < n->out_height && next * n->stride <= r + n->padding; next++)
            for (int64_t x = 0; x < n->out_width; x++)
                turn_point(j, image, next, x,
                           scratch + (next % j->rows * n->out_width + x) * j->point, line);
        banded_map_row(j, image, r, reads, scratch);
    }
}

#endif
