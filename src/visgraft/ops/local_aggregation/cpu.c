/* Local aggregation and its gradients: the numbers of a call are those of `call_t`, in its order.
 *
 * A task is one image and one channel of the weights, with the channels of x that share it. Rows of
 * the map are read once, into rings that stay in the first cache, with zeros on both sides; with a
 * stride, columns a stride apart are neighbours there ("phases"). Eight channels are summed at
 * once, so that each weight is loaded once for them.
 */
#include "channels_last.h"
#include "joined.h"
#include "sums.h"

typedef struct {
    int64_t row;          /* of the kernel */
    int64_t down;         /* rows of the map below the first tap */
    int64_t phase, right; /* columns of the map beside the first tap: which phase, how far in it */
} tap_t;

typedef struct {
    call_t n;
    tensors_t of;
    int64_t sharing, taps;
    int64_t reach;              /* rows or columns of the map from the first tap to the last */
    int64_t across;             /* columns of one phase from the first tap to the last */
    int64_t x_row, x_rows, x_one;                /* ring of the map: floats, rows, floats */
    int64_t out_row, out_rows, out_one;          /* ring of the gradient of the output */
    int64_t first, count;       /* columns of the map in a phase: the first, and how many */
    int64_t at_weights, at_grads, at_offsets, at_spare; /* places in the scratch memory */
    int64_t scratch;
    const tap_t *tap;
} job_t;

static void describe_taps(const job_t *j, tap_t *tap) {
    const call_t *n = &j->n;
    for (int64_t t = 0; t < j->taps; t++) {
        int64_t right = t % n->kernel * n->dilation;
        tap[t].row = t / n->kernel;
        tap[t].down = tap[t].row * n->dilation;
        tap[t].phase = right % n->stride;
        tap[t].right = right / n->stride;
    }
}

static job_t prepare(call_t numbers, tensors_t of) {
    job_t j = {.n = numbers, .of = of};
    const call_t *n = &j.n;
    j.sharing = n->channels / n->groups;
    j.taps = n->kernel * n->kernel;
    j.reach = (n->kernel - 1) * n->dilation;
    j.across = j.reach / n->stride;
    j.first = n->padding / n->stride;
    j.count = (n->width - 1 + n->padding) / n->stride - j.first + 1;
    j.x_row = AT_LEAST_LANES(n->out_width) + j.across;
    j.x_rows = j.reach + 2; /* the last one is zero */
    j.x_one = j.x_rows * n->stride * j.x_row;
    j.out_row = j.across + most(j.first + AT_LEAST_LANES(j.count), AT_LEAST_LANES(n->out_width));
    j.out_rows = j.across + 1;
    j.out_one = j.out_rows * j.out_row;
    j.at_grads = j.sharing * j.x_one;
    j.at_weights = j.at_grads + (of.grad ? n->heads * j.sharing * j.out_one : 0);
    int64_t rows = of.grad ? j.out_row : AT_LEAST_LANES(n->out_width);
    j.at_spare = j.at_weights + n->heads * j.taps * rows;
    int64_t spare = most(LANES * AT_LEAST_LANES(n->out_width),
                         n->stride * LANES * AT_LEAST_LANES(j.count) + n->width);
    j.at_offsets = (j.at_spare + spare + 1) / 2 * 2; /* two floats for an int64_t */
    j.scratch = j.at_offsets + 4 * n->heads * j.taps + 2 * n->stride;
    return j;
}

/* Whether row r of the padded map is in the map. */
INLINE int is_inside(const job_t *j, int64_t r) {
    return r >= j->n.padding && r < j->n.padding + j->n.height;
}

/* Where the map's ring holds row r of the padded map; rows outside are in the place of zeros. */
INLINE int64_t ring_row(const job_t *j, int64_t r) {
    int64_t row = is_inside(j, r) ? r % (j->x_rows - 1) : j->x_rows - 1;
    return row * j->n.stride * j->x_row;
}

/* Reads row r of the padded map of one channel into its place of the ring, phase by phase. */
static void read_map_row(const job_t *j, int64_t plane, int64_t r, float *ring, float *spare) {
    const call_t *n = &j->n;
    int64_t s = n->stride, at = (plane * n->height + r - n->padding) * n->width;
    float *to = ring + ring_row(j, r);
    if (s == 1) {
        int64_t left = least(n->padding, j->x_row);
        int64_t inside = least(n->width, j->x_row - left);
        for (int64_t i = 0; i < left; i++) to[i] = 0;
        read_row(to + left, j->of.x, at, inside, (int)n->is_bf16);
        for (int64_t i = left + inside; i < j->x_row; i++) to[i] = 0;
        return;
    }
    read_row(spare, j->of.x, at, n->width, (int)n->is_bf16);
    for (int64_t phase = 0; phase < s; phase++)
        for (int64_t k = 0; k < j->x_row; k++) {
            int64_t column = k * s + phase - n->padding;
            to[phase * j->x_row + k] = column >= 0 && column < n->width ? spare[column] : 0;
        }
}

/* Reads the rows for output row y from row `read` of the padded map on; returns the next. */
static int64_t read_map_rows(const job_t *j, int64_t image, int64_t group, int64_t y, int64_t read,
                             float *scratch) {
    const call_t *n = &j->n;
    int64_t top = y * n->stride;
    for (read = most(read, top); read <= top + j->reach; read++)
        for (int64_t c = 0; is_inside(j, read) && c < j->sharing; c++)
            read_map_row(j, image * n->channels + c * n->groups + group, read,
                         scratch + c * j->x_one, scratch + j->at_spare);
    return read;
}

static void forward_task(const void *job, int64_t task, float *scratch) {
    const job_t *j = job;
    const call_t *n = &j->n;
    int64_t image = task / n->groups, group = task % n->groups, wide = n->out_width;
    int is_bf16 = (int)n->is_bf16, direct = !is_bf16 && wide >= LANES;
    float *spare = scratch + j->at_spare;
    int64_t *places = (int64_t *)(scratch + j->at_offsets);
    int64_t read = 0, area = n->out_height * wide, row = AT_LEAST_LANES(wide);
    for (int64_t y = 0; y < n->out_height; y++) {
        read = read_map_rows(j, image, group, y, read, scratch);
        for (int64_t m = 0; m < n->heads; m++) {
            int64_t at = ((image * n->heads + m) * n->groups + group) * j->taps * area + y * wide;
            const float *weights = scratch + j->at_weights;
            if (direct) weights = (const float *)j->of.weight + at;
            int64_t listed = 0, start = 0;
            for (int64_t t = 0; t < j->taps; t++) {
                const tap_t *tap = &j->tap[t];
                int64_t r = y * n->stride + tap->down;
                if (!is_inside(j, r)) continue;
                if (!listed || tap[-1].row != tap->row) start = ring_row(j, r);
                places[2 * listed] = start + tap->phase * j->x_row + tap->right;
                places[2 * listed + 1] = direct ? t * area : t * row;
                if (!direct)
                    read_row(scratch + j->at_weights + t * row, j->of.weight, at + t * area, wide,
                             is_bf16);
                listed++;
            }
            for (int64_t c = 0; c < j->sharing;) {
                int64_t some = j->sharing - c >= 8 ? 8 : 1;
                int64_t plane = (image * n->heads + m) * n->channels + c * n->groups + group;
                int64_t target = plane * area + y * wide, apart = n->groups * area;
                float *to = direct ? (float *)j->of.out + target : spare;
                (some == 8 ? sum_taps_of_8 : sum_taps_of_1)(to, direct ? apart : row,
                                                            scratch + c * j->x_one, j->x_one,
                                                            weights, places, listed, wide);
                if (!direct)
                    for (int64_t i = 0; i < some; i++)
                        write_row(j->of.out, target + i * apart, spare + i * row, wide, is_bf16);
                c += some;
            }
        }
    }
}

/* The gradient of the weights of output row y. */
static void weight_row(const job_t *j, int64_t image, int64_t group, int64_t y, float *scratch) {
    const call_t *n = &j->n;
    int64_t wide = n->out_width, area = n->out_height * wide;
    int is_bf16 = (int)n->is_bf16, direct = !is_bf16 && wide >= LANES;
    float *spare = scratch + j->at_spare;
    int64_t *places = (int64_t *)(scratch + j->at_offsets);
    int64_t start = 0;
    for (int64_t t = 0; t < j->taps; t++) {
        const tap_t *tap = &j->tap[t];
        if (t == 0 || tap[-1].row != tap->row) start = ring_row(j, y * n->stride + tap->down);
        places[t] = start + tap->phase * j->x_row + tap->right;
    }
    for (int64_t m = 0; m < n->heads; m++) {
        const float *grads = scratch + j->at_grads + m * j->sharing * j->out_one
            + y % j->out_rows * j->out_row + j->across;
        int64_t at = ((image * n->heads + m) * n->groups + group) * j->taps * area + y * wide;
        for (int64_t t = 0; t < j->taps;) {
            int64_t some = j->taps - t >= 9 && direct ? 9 : 1;
            float *to = direct ? (float *)j->of.grad_weight + at + t * area : spare;
            (some == 9 ? sum_channels_for_9 : sum_channels_for_1)(
                to, area, scratch, j->x_one, places + t, grads, j->out_one, j->sharing, wide);
            if (!direct)
                write_row(j->of.grad_weight, at + t * area, spare, wide, is_bf16);
            t += some;
        }
    }
}

/* The gradient of row r of the padded map, from the output rows that read it. */
static void map_row(const job_t *j, int64_t image, int64_t group, int64_t r, float *scratch) {
    const call_t *n = &j->n;
    int64_t wide = n->out_width, area = n->out_height * wide, s = n->stride;
    int64_t row = AT_LEAST_LANES(j->count), y_map = r - n->padding;
    int is_bf16 = (int)n->is_bf16, direct = !is_bf16 && s == 1 && j->count >= LANES;
    float *weights = scratch + j->at_weights, *spare = scratch + j->at_spare;
    int64_t *places = (int64_t *)(scratch + j->at_offsets), *ends = places, listed = 0;
    places += s;
    for (int64_t phase = 0; phase < s; phase++) {
        for (int64_t k = 0; k < n->heads * j->taps; k++) {
            int64_t m = k / j->taps, t = k - m * j->taps;
            const tap_t *tap = &j->tap[t];
            int64_t down = r - tap->down;
            if (down < 0 || tap->phase != phase) continue;
            int64_t y = s == 1 ? down : down / s;
            if (y >= n->out_height || (s != 1 && down % s)) continue;
            int64_t shift = j->across + j->first - tap->right;
            places[2 * listed] = m * j->sharing * j->out_one + y % j->out_rows * j->out_row + shift;
            places[2 * listed + 1] = k * j->out_row + shift;
            read_row(weights + k * j->out_row + j->across, j->of.weight,
                     (((image * n->heads + m) * n->groups + group) * j->taps + t) * area + y * wide,
                     least(wide, j->out_row - j->across), is_bf16);
            listed++;
        }
        ends[phase] = listed;
    }
    for (int64_t c = 0; c < j->sharing;) {
        int64_t some = j->sharing - c >= 8 ? 8 : 1;
        int64_t plane = image * n->channels + c * n->groups + group;
        int64_t target = (plane * n->height + y_map) * n->width;
        int64_t apart = n->groups * n->height * n->width;
        for (int64_t phase = 0; phase < s; phase++) {
            int64_t from = phase ? ends[phase - 1] : 0;
            float *to = direct ? (float *)j->of.grad_x + target : spare + phase * LANES * row;
            (some == 8 ? sum_taps_of_8 : sum_taps_of_1)(
                to, direct ? apart : row, scratch + j->at_grads + c * j->out_one, j->out_one,
                weights, places + 2 * from, ends[phase] - from, j->count);
        }
        for (int64_t i = 0; i < some && !direct; i++) {
            float *line = spare + i * row;
            if (s > 1) {
                line = spare + s * LANES * row;
                for (int64_t x = 0; x < n->width; x++) {
                    int64_t q = x + n->padding;
                    line[x] = spare[(q % s * LANES + i) * row + q / s - j->first];
                }
            }
            write_row(j->of.grad_x, target + i * apart, line, n->width, is_bf16);
        }
        c += some;
    }
}

static void backward_task(const void *job, int64_t task, float *scratch) {
    const job_t *j = job;
    const call_t *n = &j->n;
    int64_t image = task / n->groups, group = task % n->groups, wide = n->out_width;
    int64_t read = 0, written = n->padding, end = n->padding + n->height;
    for (int64_t y = 0; y < n->out_height; y++) {
        if (j->of.grad_weight) read = read_map_rows(j, image, group, y, read, scratch);
        for (int64_t k = 0; k < n->heads * j->sharing; k++) {
            int64_t m = k / j->sharing, c = k % j->sharing;
            int64_t plane = (image * n->heads + m) * n->channels + c * n->groups + group;
            read_row(scratch + j->at_grads + k * j->out_one + y % j->out_rows * j->out_row
                         + j->across,
                     j->of.grad, (plane * n->out_height + y) * wide,
                     least(wide, j->out_row - j->across), (int)n->is_bf16);
        }
        if (j->of.grad_weight) weight_row(j, image, group, y, scratch);
        if (!j->of.grad_x) continue;
        int64_t until = y == n->out_height - 1 ? end : least(end, (y + 1) * n->stride);
        for (; written < until; written++) map_row(j, image, group, written, scratch);
    }
}

static int run(void *const *tensors, const int64_t *numbers, int is_backward) {
    call_t n;
    memcpy(&n, numbers, sizeof n);
    tensors_t of = {tensors[0], tensors[1], tensors[2], tensors[3], tensors[4], tensors[5]};
    if (n.is_channels_last) {
        banded_t banded = prepare_banded(n, of);
        return run_tasks(is_backward ? banded_backward : banded_forward, &banded,
                         n.batch * banded.bands, n.threads, banded.scratch);
    }
    joined_t joined = prepare_joined(n, of);
    int64_t tasks = n.batch * n.groups;
    if (can_join(&joined)) {
        float *masks = malloc((size_t)(n.kernel * mask_row(&joined)) * sizeof *masks);
        if (!masks) return 1;
        fill_masks(&joined, masks);
        joined.masks = masks;
        int failed = run_tasks(is_backward ? joined_backward : joined_forward, &joined, tasks,
                               n.threads, joined.scratch);
        free(masks);
        return failed;
    }
    job_t j = prepare(n, of);
    tap_t *tap = malloc((size_t)j.taps * sizeof *tap);
    if (!tap) return 1;
    describe_taps(&j, tap);
    j.tap = tap;
    int failed = run_tasks(is_backward ? backward_task : forward_task, &j, tasks, n.threads,
                           j.scratch);
    free(tap);
    return failed;
}

/* tensors: x, weight, -, out, -, - */
int forward(void *const *tensors, const int64_t *numbers) { return run(tensors, numbers, 0); }

/* tensors: x, weight, grad, -, grad_x or null, grad_weight or null */
int backward(void *const *tensors, const int64_t *numbers) { return run(tensors, numbers, 1); }
