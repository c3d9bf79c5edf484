/* Bilinear samples of a map at moved taps, and their gradients; channels are last and in vectors.
 *
 * Where a tap reads is computed once for all channels of an offset group. Columns are laid out as
 * the product with the weights wants them: (image, group, position, tap, channel of the group).
 * A sample reads zeros outside the map, also where its place is not a number.
 */
#include "parallel.h"
#include "vectors.h"

typedef struct {
    int64_t batch, channels, height, width;
    int64_t parts, groups, rows, columns; /* offset groups, groups, size of the kernel */
    int64_t out_height, out_width;
    int64_t stride[2], padding[2], dilation[2];
    int64_t is_bf16, threads; /* of the columns; all else is float32 */
} call_t;

typedef struct {
    call_t n;
    const float *map, *offset, *mask;
    void *samples;
    const float *grads;                     /* of the samples, scaled; laid out like them */
    float *grad_map, *grad_offset, *grad_mask;
    int64_t taps, area;
} job_t;

typedef struct {
    const float *corner[4]; /* above left, above right, below left, below right */
    float *grad[4];         /* null outside the map */
    float down, right, share[4];
    int is_inside;
} place_t;

INLINE place_t find_place(const job_t *j, int64_t image, float y, float x, const float *zeros) {
    const call_t *n = &j->n;
    place_t p = {.is_inside = y >= -1 && y < (float)n->height && x >= -1 && x < (float)n->width};
    if (!p.is_inside) return p;
    float above = floorf(y), left = floorf(x);
    p.down = y - above, p.right = x - left;
    for (int k = 0; k < 4; k++) {
        int64_t r = (int64_t)above + k / 2, c = (int64_t)left + k % 2;
        int valid = r >= 0 && r < n->height && c >= 0 && c < n->width;
        int64_t at = ((image * n->height + r) * n->width + c) * n->channels;
        p.corner[k] = valid ? j->map + at : zeros;
        p.grad[k] = valid && j->grad_map ? j->grad_map + at : NULL;
        p.share[k] = (k / 2 ? p.down : 1 - p.down) * (k % 2 ? p.right : 1 - p.right);
    }
    return p;
}

/* The index of a tap among offsets, or masks, of its image and offset group. */
INLINE int64_t index_of(const job_t *j, int64_t image, int64_t part, int64_t tap, int64_t at) {
    return ((image * j->n.parts + part) * j->taps + tap) * j->area + at;
}

INLINE place_t place_of(const job_t *j, int64_t image, int64_t index, int64_t at, int64_t i,
                        int64_t k, int64_t row, int64_t column, const float *zeros) {
    const call_t *n = &j->n;
    const float *offset = j->offset + (index - at) * 2 + at;
    float y = (float)(i * n->stride[0] - n->padding[0] + row * n->dilation[0]) + offset[0];
    float x = (float)(k * n->stride[1] - n->padding[1] + column * n->dilation[1]) + offset[j->area];
    return find_place(j, image, y, x, zeros);
}

/* Channels that belong to one group and one offset group, and where their samples start. */
typedef struct {
    int64_t from, until, start;
} segment_t;

/* The segment that starts at channel `from` of the offset group that ends at `end`. */
INLINE segment_t segment_of(const job_t *j, int64_t image, int64_t at, int64_t tap, int64_t from,
                            int64_t end) {
    int64_t members = j->n.channels / j->n.groups, group = j->n.groups == 1 ? 0 : from / members;
    int64_t row = ((image * j->n.groups + group) * j->area + at) * j->taps + tap;
    return (segment_t){from, least(end, (group + 1) * members), (row - group) * members};
}

INLINE float total(vec v) {
    float x[LANES];
    store(x, v);
    return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]));
}

INLINE void write_sample(void *to, int64_t at, vec values, int is_bf16) {
    if (!is_bf16) {
        store((float *)to + at, values);
        return;
    }
    float row[LANES];
    store(row, values);
    write_row(to, at, row, LANES, 1);
}

INLINE void write_zeros(void *to, segment_t s, int is_bf16) {
    for (int64_t c = s.from; c < s.until; c += LANES)
        write_sample(to, s.start + c, all(0), is_bf16);
}

INLINE void write_samples(void *to, segment_t s, place_t p, float scale, int is_bf16) {
    const float *a = p.corner[0], *b = p.corner[1], *d = p.corner[2], *e = p.corner[3];
    float of_a = p.share[0] * scale, of_b = p.share[1] * scale;
    float of_d = p.share[2] * scale, of_e = p.share[3] * scale;
    for (int64_t c = s.from; c < s.until; c += LANES) {
        vec upper = load(a + c) * of_a + load(b + c) * of_b;
        vec lower = load(d + c) * of_d + load(e + c) * of_e;
        write_sample(to, s.start + c, upper + lower, is_bf16);
    }
}

/* A task of the forward pass is a row of the output. */
static void sample_row(const void *job, int64_t task, float *zeros) {
    const job_t *j = job;
    const call_t *n = &j->n;
    int64_t image = task / n->out_height, i = task % n->out_height, wide = n->channels / n->parts;
    int is_bf16 = (int)n->is_bf16;
    for (int64_t k = 0, at = i * n->out_width; k < n->out_width; k++, at++)
        for (int64_t part = 0; part < n->parts; part++)
            for (int64_t row = 0, tap = 0; row < n->rows; row++)
                for (int64_t column = 0; column < n->columns; column++, tap++) {
                    int64_t index = index_of(j, image, part, tap, at);
                    place_t p = place_of(j, image, index, at, i, k, row, column, zeros);
                    float scale = j->mask ? j->mask[index] : 1;
                    for (int64_t from = part * wide, end = from + wide; from < end;) {
                        segment_t s = segment_of(j, image, at, tap, from, end);
                        from = s.until;
                        if (!p.is_inside) write_zeros(j->samples, s, is_bf16);
                        else if (is_bf16) write_samples(j->samples, s, p, scale, 1);
                        else write_samples(j->samples, s, p, scale, 0);
                    }
                }
}

/* Adds up what a tap's samples say about its scale and place, and gives the map its share. */
INLINE void differentiate_tap(void *samples, const float *grads, segment_t s, place_t p,
                              float scale, vec *about, int is_bf16) {
    vec by_scale = about[0], by_y = about[1], by_x = about[2];
    for (int64_t c = s.from; c < s.until; c += LANES) {
        vec grad = load(grads + s.start + c), corner[4];
        for (int k = 0; k < 4; k++) corner[k] = load(p.corner[k] + c);
        vec upper = corner[1] - corner[0], lower = corner[3] - corner[2];
        vec left = corner[2] - corner[0], right = corner[3] - corner[1];
        vec above = corner[0] + upper * p.right, below = corner[2] + lower * p.right;
        vec value = above + (below - above) * p.down;
        by_scale += grad * value;
        by_y += grad * (left + (right - left) * p.right);
        by_x += grad * (upper + (lower - upper) * p.down);
        write_sample(samples, s.start + c, value * scale, is_bf16);
        for (int k = 0; k < 4; k++)
            if (p.grad[k])
                store(p.grad[k] + c, load(p.grad[k] + c) + grad * (scale * p.share[k]));
    }
    about[0] = by_scale, about[1] = by_y, about[2] = by_x;
}

/* A task of the backward pass is an image and an offset group. */
static void differentiate(const void *job, int64_t task, float *zeros) {
    const job_t *j = job;
    const call_t *n = &j->n;
    int64_t image = task / n->parts, part = task % n->parts, wide = n->channels / n->parts;
    int is_bf16 = (int)n->is_bf16;
    for (int64_t at = 0, i = 0, k = 0; at < j->area; at++, k++) {
        if (k == n->out_width) k = 0, i++;
        for (int64_t row = 0, tap = 0; row < n->rows; row++)
            for (int64_t column = 0; column < n->columns; column++, tap++) {
                int64_t index = index_of(j, image, part, tap, at);
                place_t p = place_of(j, image, index, at, i, k, row, column, zeros);
                float scale = j->mask ? j->mask[index] : 1;
                vec about[3] = {all(0), all(0), all(0)};
                for (int64_t from = part * wide, end = from + wide; from < end;) {
                    segment_t s = segment_of(j, image, at, tap, from, end);
                    from = s.until;
                    if (!p.is_inside) write_zeros(j->samples, s, is_bf16);
                    else if (is_bf16)
                        differentiate_tap(j->samples, j->grads, s, p, scale, about, 1);
                    else differentiate_tap(j->samples, j->grads, s, p, scale, about, 0);
                }
                if (j->grad_mask) j->grad_mask[index] = total(about[0]);
                float *grad_offset = j->grad_offset + (index - at) * 2 + at;
                grad_offset[0] = total(about[1]) * scale;
                grad_offset[j->area] = total(about[2]) * scale;
            }
    }
}

static int run(void *const *tensors, const int64_t *numbers) {
    job_t j = {.map = tensors[0], .offset = tensors[1], .mask = tensors[2], .samples = tensors[3]};
    memcpy(&j.n, numbers, sizeof j.n);
    j.grads = tensors[4], j.grad_map = tensors[5];
    j.grad_offset = tensors[6], j.grad_mask = tensors[7];
    j.taps = j.n.rows * j.n.columns;
    j.area = j.n.out_height * j.n.out_width;
    int64_t tasks = j.n.batch * (j.grads ? j.n.parts : j.n.out_height);
    return run_tasks(j.grads ? differentiate : sample_row, &j, tasks, j.n.threads, j.n.channels);
}

/* tensors: map, offset, mask or null, samples, and four that are null */
int forward(void *const *tensors, const int64_t *numbers) { return run(tensors, numbers); }

/* tensors: map, offset, mask or null, samples, their gradient, and the gradients of the first
 * three: that of the map has been zeroed, or is null */
int backward(void *const *tensors, const int64_t *numbers) { return run(tensors, numbers); }
