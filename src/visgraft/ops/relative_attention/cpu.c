/* Attention under a bias by the key's row and one by its column, and its gradients.
 *
 * A task is one head of one image. Sixteen queries at a time are the lanes of two vectors: their
 * logits with all keys are the only thing that is held, so memory grows with the positions, not
 * with their square. Keys and values are repacked, six side by side, for products that keep twelve
 * sums in registers. The backward pass computes the softmax again. Logits are to the base of 2.
 */
#include "parallel.h"
#include "vectors.h"

#define QUERIES (2 * LANES)
#define PANEL 6
#define AT_ONCE 256 /* keys whose shares stay in the first cache */
#define LOG2_E 1.44269504f

typedef struct {
    int64_t batch, heads, depth, value_depth, height, width;
    int64_t is_bf16, threads;
    int64_t apart[4][3]; /* images, heads and channels of query, key, value, gradient */
} call_t;

typedef struct {
    call_t n;
    void *const *tensors;
    int64_t positions, panels, scratch;
} job_t;

enum { QUERY, KEY, VALUE, GRAD, BY_ROW, BY_COLUMN, OUT, GRAD_BY_ROW = OUT + 3, GRAD_BY_COLUMN };

typedef struct { /* places in the scratch memory of a task */
    float *keys, *values;                     /* panels of positions: [position / 6][channel][6] */
    float *keys_by_depth, *values_by_depth;   /* panels of channels: [channel / 6][position][6] */
    float *grad_keys, *grad_values;           /* [position][channel] */
    float *query, *grad, *sums;               /* [channel][16] */
    float *query_across, *grad_across;        /* [16][channel] */
    float *shares, *share_grads;              /* [position][16] */
    float *line;
} room_t;

static float *take(float **free, int64_t floats) {
    float *taken = *free;
    *free += (floats + 15) / 16 * 16;
    return taken;
}

INLINE int64_t up_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

static room_t divide(const job_t *j, float *scratch, int64_t *used) {
    int64_t d = j->n.depth, dv = j->n.value_depth, rows = j->panels * PANEL;
    int backward = j->tensors[OUT + 1] != NULL;
    float *free = scratch;
    room_t r = {0};
    r.keys = take(&free, rows * d);
    r.values_by_depth = take(&free, up_to(dv, PANEL) * rows);
    r.query = take(&free, d * QUERIES);
    r.sums = take(&free, up_to(most(d, dv), PANEL) * QUERIES);
    r.shares = take(&free, rows * QUERIES);
    r.line = take(&free, most(j->positions, QUERIES));
    if (backward) {
        r.values = take(&free, rows * dv);
        r.keys_by_depth = take(&free, up_to(d, PANEL) * rows);
        r.grad_keys = take(&free, rows * up_to(d, QUERIES));
        r.grad_values = take(&free, rows * up_to(dv, QUERIES));
        r.grad = take(&free, dv * QUERIES);
        r.query_across = take(&free, QUERIES * up_to(d, QUERIES));
        r.grad_across = take(&free, QUERIES * up_to(dv, QUERIES));
        r.share_grads = take(&free, rows * QUERIES);
    }
    *used = free - scratch;
    return r;
}

INLINE int64_t first_of(const job_t *j, int tensor, int64_t task) {
    return task / j->n.heads * j->n.apart[tensor][0] + task % j->n.heads * j->n.apart[tensor][1];
}

/* Repacks a head; either target may be missing. What lies beyond the map stays zero. */
static void pack(const job_t *j, int tensor, int64_t task, int64_t depth, float *by_position,
                 float *by_depth, float *line) {
    int64_t rows = j->panels * PANEL;
    for (int64_t d = 0; d < depth; d++) {
        int64_t at = first_of(j, tensor, task) + d * j->n.apart[tensor][2];
        read_row(line, j->tensors[tensor], at, j->positions, (int)j->n.is_bf16);
        for (int64_t p = 0; by_position && p < j->positions; p++)
            by_position[(p / PANEL * depth + d) * PANEL + p % PANEL] = line[p];
        float *panel = by_depth + d / PANEL * rows * PANEL + d % PANEL;
        for (int64_t p = 0; by_depth && p < j->positions; p++) panel[p * PANEL] = line[p];
    }
}

/* Reads some queries or gradients, with zeros for lanes beyond the map; and the other way round. */
static void read_tile(const job_t *j, int tensor, int64_t task, int64_t depth, int64_t first,
                      float scale, float *to, float *across) {
    int64_t some = least(QUERIES, j->positions - first);
    for (int64_t d = 0; d < depth; d++) {
        float *row = to + d * QUERIES;
        int64_t at = first_of(j, tensor, task) + d * j->n.apart[tensor][2] + first;
        read_row(row, j->tensors[tensor], at, some, (int)j->n.is_bf16);
        for (int64_t i = 0; i < some; i++) row[i] *= scale;
        for (int64_t i = some; i < QUERIES; i++) row[i] = 0;
        for (int64_t i = 0; across && i < QUERIES; i++)
            across[i * up_to(depth, QUERIES) + d] = row[i];
    }
}

static void write_tile(const job_t *j, int tensor, int64_t task, int64_t depth, int64_t first,
                       const float *from) {
    int64_t some = least(QUERIES, j->positions - first);
    for (int64_t d = 0; d < depth; d++)
        write_row(j->tensors[tensor], (task * depth + d) * j->positions + first,
                  from + d * QUERIES, some, (int)j->n.is_bf16);
}

typedef vec sums_t[PANEL][2];

/* Adds products of six factors, `apart` in memory and `step` from one term to the next, with rows
 * of sixteen lanes. */
INLINE void accumulate(sums_t sums, const float *factors, int64_t step, int64_t apart,
                       const float *rows, int64_t row, int64_t terms) {
    for (int64_t t = 0; t < terms; t++, factors += step, rows += row) {
        vec low = load(rows), high = load(rows + LANES);
        for (int k = 0; k < PANEL; k++) {
            vec factor = all(factors[k * apart]);
            sums[k][0] += factor * low;
            sums[k][1] += factor * high;
        }
    }
}

INLINE void load_sums(sums_t sums, const float *from, int64_t row) {
    for (int k = 0; k < PANEL; k++)
        for (int i = 0; i < 2; i++) sums[k][i] = load(from + k * row + i * LANES);
}

INLINE void store_sums(const sums_t sums, float *to, int64_t row) {
    for (int k = 0; k < PANEL; k++)
        for (int i = 0; i < 2; i++) store(to + k * row + i * LANES, sums[k][i]);
}

/* to[position][16]: products of all keys (or values) with the queries (or gradients) of a tile. */
static void multiply(const job_t *j, const float *panels, const float *tile, int64_t depth,
                     float *to) {
    for (int64_t p = 0; p < j->panels; p++) {
        sums_t sums;
        float *target = to + p * PANEL * QUERIES;
        load_sums(sums, target, QUERIES);
        accumulate(sums, panels + p * depth * PANEL, PANEL, 1, tile, QUERIES, depth);
        store_sums(sums, target, QUERIES);
    }
}

/* to[channel][16]: sums of all values (or keys) under the shares (or their gradients) of a tile. */
static void mix(const job_t *j, const float *panels, const float *shares, int64_t depth, float *to) {
    int64_t rows = j->panels * PANEL;
    memset(to, 0, (size_t)(up_to(depth, PANEL) * QUERIES) * sizeof(float));
    for (int64_t p = 0; p < j->positions; p += AT_ONCE)
        for (int64_t d = 0; d < depth; d += PANEL) {
            sums_t sums;
            load_sums(sums, to + d * QUERIES, QUERIES);
            accumulate(sums, panels + d * rows + p * PANEL, PANEL, 1, shares + p * QUERIES, QUERIES,
                       least(AT_ONCE, j->positions - p));
            store_sums(sums, to + d * QUERIES, QUERIES);
        }
}

/* to[position][channel]: adds what the queries of a tile owe to all keys (or values). */
static void spread(const job_t *j, const float *shares, const float *across, int64_t depth,
                   float *to) {
    int64_t row = up_to(depth, QUERIES);
    for (int64_t p = 0; p < j->panels; p++)
        for (int64_t d = 0; d < depth; d += QUERIES) {
            sums_t sums;
            float *target = to + p * PANEL * row + d;
            load_sums(sums, target, row);
            accumulate(sums, shares + p * PANEL * QUERIES, 1, QUERIES, across + d, row, QUERIES);
            store_sums(sums, target, row);
        }
}

/* Starts the logits of a tile with the biases of the keys' rows and columns. */
static void start_logits(const job_t *j, int64_t task, int64_t first, float *logits) {
    const call_t *n = &j->n;
    int64_t some = least(QUERIES, j->positions - first);
    const float *by_row = (const float *)j->tensors[BY_ROW] + task * n->height * j->positions;
    const float *by_column = (const float *)j->tensors[BY_COLUMN] + task * n->width * j->positions;
    for (int64_t y = 0; y < n->height; y++)
        for (int64_t x = 0; x < n->width; x++) {
            const float *a = by_row + y * j->positions + first;
            const float *b = by_column + x * j->positions + first;
            float *to = logits + (y * n->width + x) * QUERIES;
            if (some == QUERIES) {
                store(to, (load(a) + load(b)) * LOG2_E);
                store(to + LANES, (load(a + LANES) + load(b + LANES)) * LOG2_E);
                continue;
            }
            for (int64_t i = 0; i < QUERIES; i++) to[i] = i < some ? (a[i] + b[i]) * LOG2_E : 0;
        }
}

static void softmax(const job_t *j, float *logits) {
    vec top[2] = {load(logits), load(logits + LANES)}, total[2] = {all(0), all(0)};
    for (int64_t p = 1; p < j->positions; p++)
        for (int i = 0; i < 2; i++) top[i] = larger(load(logits + p * QUERIES + i * LANES), top[i]);
    for (int64_t p = 0; p < j->positions; p++)
        for (int i = 0; i < 2; i++) {
            float *at = logits + p * QUERIES + i * LANES;
            vec share = power_of_2(load(at) - top[i]);
            total[i] += share;
            store(at, share);
        }
    for (int i = 0; i < 2; i++) total[i] = all(1) / total[i];
    for (int64_t p = 0; p < j->positions; p++)
        for (int i = 0; i < 2; i++) {
            float *at = logits + p * QUERIES + i * LANES;
            store(at, load(at) * total[i]);
        }
}

/* Turns gradients of shares into those of logits, and adds these up by row and by column. */
static void softmax_backward(const job_t *j, int64_t task, int64_t first, const float *shares,
                             float *grads, float *line) {
    const call_t *n = &j->n;
    int64_t some = least(QUERIES, j->positions - first);
    vec mean[2] = {all(0), all(0)};
    for (int64_t p = 0; p < j->positions; p++)
        for (int i = 0; i < 2; i++) {
            int64_t at = p * QUERIES + i * LANES;
            mean[i] += load(shares + at) * load(grads + at);
        }
    for (int64_t p = 0; p < j->positions; p++)
        for (int i = 0; i < 2; i++) {
            int64_t at = p * QUERIES + i * LANES;
            store(grads + at, load(shares + at) * (load(grads + at) - mean[i]));
        }
    for (int64_t k = 0; k < n->height + n->width; k++) {
        int by_row = k < n->height;
        int64_t at = by_row ? k * n->width : k - n->height, step = by_row ? 1 : n->width;
        vec sums[2] = {all(0), all(0)};
        for (int64_t m = 0; m < (by_row ? n->width : n->height); m++)
            for (int i = 0; i < 2; i++)
                sums[i] += load(grads + (at + m * step) * QUERIES + i * LANES);
        store(line, sums[0]);
        store(line + LANES, sums[1]);
        float *to = j->tensors[by_row ? GRAD_BY_ROW : GRAD_BY_COLUMN];
        int64_t row = by_row ? task * n->height + k : task * n->width + k - n->height;
        copy_floats(to + row * j->positions + first, line, some);
    }
}

static void write_transposed(const job_t *j, int tensor, int64_t task, int64_t depth,
                             const float *from, float scale, float *line) {
    int64_t row = up_to(depth, QUERIES);
    for (int64_t d = 0; d < depth; d++) {
        for (int64_t p = 0; p < j->positions; p++) line[p] = from[p * row + d] * scale;
        write_row(j->tensors[tensor], (task * depth + d) * j->positions, line, j->positions,
                  (int)j->n.is_bf16);
    }
}

static void attend(const void *job, int64_t task, float *scratch) {
    const job_t *j = job;
    int64_t used, d = j->n.depth, dv = j->n.value_depth, rows = j->panels * PANEL;
    room_t r = divide(j, scratch, &used);
    int backward = r.grad != NULL;
    pack(j, KEY, task, d, r.keys, r.keys_by_depth, r.line);
    pack(j, VALUE, task, dv, r.values, r.values_by_depth, r.line);
    if (backward) memset(r.grad_keys, 0, (size_t)(rows * up_to(d, QUERIES)) * sizeof(float));
    if (backward) memset(r.grad_values, 0, (size_t)(rows * up_to(dv, QUERIES)) * sizeof(float));
    for (int64_t first = 0; first < j->positions; first += QUERIES) {
        read_tile(j, QUERY, task, d, first, LOG2_E, r.query, r.query_across);
        start_logits(j, task, first, r.shares);
        multiply(j, r.keys, r.query, d, r.shares);
        softmax(j, r.shares);
        if (!backward) {
            mix(j, r.values_by_depth, r.shares, dv, r.sums);
            write_tile(j, OUT, task, dv, first, r.sums);
            continue;
        }
        read_tile(j, GRAD, task, dv, first, 1, r.grad, r.grad_across);
        memset(r.share_grads, 0, (size_t)(rows * QUERIES) * sizeof(float));
        multiply(j, r.values, r.grad, dv, r.share_grads);
        softmax_backward(j, task, first, r.shares, r.share_grads, r.line);
        mix(j, r.keys_by_depth, r.share_grads, d, r.sums);
        write_tile(j, OUT, task, d, first, r.sums);
        spread(j, r.share_grads, r.query_across, d, r.grad_keys);
        spread(j, r.shares, r.grad_across, dv, r.grad_values);
    }
    if (!backward) return;
    write_transposed(j, OUT + 1, task, d, r.grad_keys, 1 / LOG2_E, r.line);
    write_transposed(j, OUT + 2, task, dv, r.grad_values, 1, r.line);
}

static int run(void *const *tensors, const int64_t *numbers) {
    job_t j = {.tensors = tensors};
    memcpy(&j.n, numbers, sizeof j.n);
    j.positions = j.n.height * j.n.width;
    j.panels = (j.positions + PANEL - 1) / PANEL;
    divide(&j, NULL, &j.scratch);
    return run_tasks(attend, &j, j.n.batch * j.n.heads, j.n.threads, j.scratch);
}

/* tensors: query, key, value, -, by_row, by_column, out, and four that are null */
int forward(void *const *tensors, const int64_t *numbers) { return run(tensors, numbers); }

/* tensors: query, key, value, gradient, by_row, by_column, and the gradients of these five */
int backward(void *const *tensors, const int64_t *numbers) { return run(tensors, numbers); }
