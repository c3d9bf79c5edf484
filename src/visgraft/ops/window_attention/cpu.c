/* Window attention and its gradients: the numbers of a call are those of `call_t`, in its order.
 *
 * A task is one head of one image. Its keys and values are copied once with the padding of their
 * columns, rows of all channels side by side; with a stride, columns a stride apart are neighbours
 * ("phases"). Queries are taken two rows at a time, which share most rows of keys. The backward
 * pass computes the softmax again, adds up the gradients of the padded copies, and folds these.
 */
#include "kernels.h"

typedef struct {
    int64_t batch, heads, depth, height, width;
    int64_t out_height, out_width;
    int64_t kernel, stride, dilation;
    int64_t is_bf16, threads;
    int64_t apart[4][3]; /* images, heads and channels of query, key, value, gradient */
} call_t;

typedef struct {
    call_t n;
    void *const *tensors; /* query, key, value, gradient or out, and gradients of the first three */
    int64_t reach;        /* positions of the map beyond the first query */
    int64_t across;       /* columns of one phase from the first tap to the last */
    int64_t phase, line, rows;       /* floats of a phase, of a row of a channel, of all channels */
    int64_t query_row, share_rows;   /* floats of a row of queries, of a window of rows of shares */
    int64_t adjacent;                /* whether the columns of a window are */
    const int64_t *places, *shifts;  /* of the columns of a window, in a row and in a phase */
    const int64_t *order, *ends;     /* columns sorted by phase, and where each phase ends */
    int64_t scratch;
} job_t;

typedef struct { /* places in the scratch memory of a task */
    float *keys, *values, *grad_keys, *grad_values;
    float *queries[2], *grads[2], *sums[2], *shares[2], *share_grads[2], *spare;
    link_t *links;
} room_t;

/* The position that is read at one that may be outside the map. */
INLINE int64_t inside(int64_t position, int64_t size, int64_t reach) {
    int64_t last = size - 1;
    if (size <= reach) return position < 0 ? 0 : least(position, last);
    if (position < 0) position = -position;
    return position > last ? 2 * last - position : position;
}

static float *take(float **free, int64_t floats) {
    float *taken = *free;
    *free += (floats + 15) / 16 * 16;
    return taken;
}

static room_t divide(const job_t *j, float *scratch, int64_t *used) {
    const call_t *n = &j->n;
    int backward = j->tensors[4] != NULL;
    float *free = scratch;
    room_t r = {0};
    r.keys = take(&free, n->height * j->rows);
    r.values = take(&free, n->height * j->rows);
    if (backward) r.grad_keys = take(&free, n->height * j->rows);
    if (backward) r.grad_values = take(&free, n->height * j->rows);
    for (int i = 0; i < 2; i++) {
        r.queries[i] = take(&free, n->depth * j->query_row);
        r.sums[i] = take(&free, n->depth * j->query_row);
        r.shares[i] = take(&free, j->share_rows * n->kernel);
        if (backward) r.grads[i] = take(&free, n->depth * j->query_row);
        if (backward) r.share_grads[i] = take(&free, j->share_rows * n->kernel);
    }
    r.spare = take(&free, most(n->width, LANES));
    r.links = (link_t *)take(&free, 6 * (2 * n->kernel + n->stride));
    *used = free - scratch;
    return r;
}

INLINE int64_t first_of(const job_t *j, int tensor, int64_t task) {
    return task / j->n.heads * j->n.apart[tensor][0] + task % j->n.heads * j->n.apart[tensor][1];
}

/* Copies a head of keys or values with padded columns. */
static void copy_padded(const job_t *j, int tensor, int64_t task, float *to, float *spare) {
    const call_t *n = &j->n;
    int64_t columns = (n->out_width - 1) * n->stride + (n->kernel - 1) * n->dilation + 1;
    for (int64_t y = 0; y < n->height; y++)
        for (int64_t d = 0; d < n->depth; d++) {
            float *line = to + y * j->rows + d * j->line;
            int64_t at = first_of(j, tensor, task) + d * n->apart[tensor][2] + y * n->width;
            if (n->stride == 1) {
                read_row(line + j->reach, j->tensors[tensor], at, n->width, (int)n->is_bf16);
                for (int64_t q = 0; q < j->reach; q++)
                    line[q] = line[j->reach + inside(q - j->reach, n->width, j->reach)];
                for (int64_t q = j->reach + n->width; q < columns; q++)
                    line[q] = line[j->reach + inside(q - j->reach, n->width, j->reach)];
                continue;
            }
            read_row(spare, j->tensors[tensor], at, n->width, (int)n->is_bf16);
            for (int64_t q = 0; q < columns; q++)
                line[q % n->stride * j->phase + q / n->stride]
                    = spare[inside(q - j->reach, n->width, j->reach)];
        }
}

/* Writes the gradient of keys or values: that of each padded column goes where it was read. */
static void fold(const job_t *j, int tensor, int64_t task, const float *from, float scale,
                 float *spare) {
    const call_t *n = &j->n;
    int64_t columns = (n->out_width - 1) * n->stride + (n->kernel - 1) * n->dilation + 1;
    for (int64_t d = 0; d < n->depth; d++)
        for (int64_t y = 0; y < n->height; y++) {
            const float *line = from + y * j->rows + d * j->line;
            for (int64_t x = 0; x < n->width; x++) spare[x] = 0;
            for (int64_t q = 0; q < columns;) {
                if (n->stride == 1 && q == j->reach) {
                    for (int64_t x = 0; x < n->width; x++) spare[x] += line[q + x];
                    q += n->width;
                    continue;
                }
                spare[inside(q - j->reach, n->width, j->reach)]
                    += line[q % n->stride * j->phase + q / n->stride];
                q++;
            }
            for (int64_t x = 0; x < n->width; x++) spare[x] *= scale;
            write_row(j->tensors[tensor + 4], ((task * n->depth + d) * n->height + y) * n->width,
                      spare, n->width, (int)n->is_bf16);
        }
}

/* Reads a row of queries or of gradients, all channels. */
static void read_queries(const job_t *j, int tensor, int64_t task, int64_t y, float scale,
                         float *to) {
    const call_t *n = &j->n;
    int64_t at = first_of(j, tensor, task) + y * n->out_width;
    for (int64_t d = 0; d < n->depth; d++) {
        float *row = to + d * j->query_row + j->across;
        read_row(row, j->tensors[tensor], at + d * n->apart[tensor][2], n->out_width,
                 (int)n->is_bf16);
        for (int64_t x = 0; x < n->out_width; x++) row[x] *= scale;
    }
}

static void write_queries(const job_t *j, void *target, int64_t task, int64_t y, float *from,
                          float scale) {
    const call_t *n = &j->n;
    for (int64_t d = 0; d < n->depth; d++) {
        float *row = from + d * j->query_row + j->across;
        for (int64_t x = 0; x < n->out_width; x++) row[x] *= scale;
        write_row(target, ((task * n->depth + d) * n->out_height + y) * n->out_width, row,
                  n->out_width, (int)n->is_bf16);
    }
}

/* Lists the rows of keys that query rows y and, where there is one, y + 1 read. */
static int64_t list_links(const job_t *j, int64_t y, int64_t together, link_t *links) {
    const call_t *n = &j->n;
    int64_t linked = 0, top = y * n->stride;
    int64_t bottom = top + (together - 1) * n->stride + (n->kernel - 1) * n->dilation;
    for (int64_t r = top; r <= bottom; r++) {
        link_t link = {inside(r - j->reach, n->height, j->reach), {-1, -1}};
        for (int64_t i = 0; i < together; i++) {
            int64_t down = r - top - i * n->stride;
            if (down >= 0 && down % n->dilation == 0 && down / n->dilation < n->kernel)
                link.row[i] = down / n->dilation;
        }
        if (link.row[0] >= 0 || link.row[1] >= 0) links[linked++] = link;
    }
    return linked;
}

/* The products of queries and keys, or of gradients and values, for two rows of queries. */
#define MULTIPLY(QUERIES, COLUMNS, ADJACENT)                                                      \
    multiply(QUERIES, COLUMNS, ADJACENT, targets, j->share_rows / n->kernel, sources,             \
             j->query_row, keys + link->key * j->rows, j->line, j->places + v, n->depth,          \
             n->out_width)

static void multiply_rows(const job_t *j, float *const *to, float *const *queries,
                          const float *keys, const link_t *links, int64_t linked) {
    const call_t *n = &j->n;
    int64_t share_row = j->share_rows / n->kernel;
    for (const link_t *link = links; link < links + linked; link++) {
        int both = link->row[0] >= 0 && link->row[1] >= 0;
        int only = link->row[0] < 0;
        for (int64_t v = 0, some; v < n->kernel; v += some) {
            int64_t left = n->kernel - v;
            some = left >= 7 ? 7 : left >= 3 ? 3 : 1;
            float *targets[2];
            const float *sources[2];
            for (int i = 0; i < 2; i++) {
                int from = both ? i : only;
                targets[i] = to[from] + most(link->row[from], 0) * j->share_rows + v * share_row
                    + j->across;
                sources[i] = queries[from] + j->across;
            }
            if (some == 7 && j->adjacent) {
                if (both) MULTIPLY(2, 7, 1);
                else MULTIPLY(1, 7, 1);
            } else if (some == 7) {
                if (both) MULTIPLY(2, 7, 0);
                else MULTIPLY(1, 7, 0);
            } else if (some == 3) {
                if (both) MULTIPLY(2, 3, 0);
                else MULTIPLY(1, 3, 0);
            } else {
                if (both) MULTIPLY(2, 1, 0);
                else MULTIPLY(1, 1, 0);
            }
        }
    }
}

static void mix_rows(const job_t *j, const room_t *room, float *const *shares, const float *values,
                     int64_t linked) {
    const call_t *n = &j->n;
    const float *from[2] = {shares[0] + j->across, shares[1] + j->across};
    for (int64_t i = 0; i < n->out_width; i = next_start(i, n->out_width))
        for (int64_t d = 0, some; d < n->depth; d += some) {
            some = n->depth - d >= 4 ? 4 : 1;
            float *to[2];
            for (int q = 0; q < 2; q++) to[q] = room->sums[q] + d * j->query_row + j->across;
            const float *values_d = values + d * j->line;
            if (some == 4)
                mix(4, to, j->query_row, from, j->share_rows / n->kernel, values_d, j->line,
                    j->rows, j->places, n->kernel, room->links, linked, i);
            else
                mix(1, to, j->query_row, from, j->share_rows / n->kernel, values_d, j->line,
                    j->rows, j->places, n->kernel, room->links, linked, i);
        }
}

#define SPREAD(KEYS, COLUMNS)                                                                     \
    spread(KEYS, COLUMNS, targets, j->line, sources, share_at, queries + j->across, j->query_row, \
           shifts, n->depth, j->phase)

/* Adds what query row y, the i-th of two, owes to the gradients of keys or values. */
static void spread_row(const job_t *j, int i, float *to, const float *shares, const float *queries,
                       const link_t *links, int64_t linked) {
    const call_t *n = &j->n;
    int64_t share_row = j->share_rows / n->kernel;
    for (int64_t l = 0; l < linked;) {
        if (links[l].row[i] < 0) {
            l++;
            continue;
        }
        int64_t next = l + 1; /* a second row of keys, unless it is the same */
        while (next < linked && links[next].row[i] < 0) next++;
        int both = next < linked && links[next].key != links[l].key;
        for (int64_t phase = 0, c = 0; phase < n->stride; phase++)
            for (int64_t some; c < j->ends[phase]; c += some) {
                int64_t left = j->ends[phase] - c;
                some = left >= 7 ? 7 : left >= 3 ? 3 : 1;
                int64_t share_at[7], shifts[7];
                for (int64_t k = 0; k < some; k++) {
                    share_at[k] = j->order[c + k] * share_row;
                    shifts[k] = j->shifts[j->order[c + k]];
                }
                float *targets[2];
                const float *sources[2];
                for (int k = 0; k < 2; k++) {
                    const link_t *link = &links[both && k ? next : l];
                    targets[k] = to + link->key * j->rows + phase * j->phase;
                    sources[k] = shares + link->row[i] * j->share_rows + j->across;
                }
                if (some == 7 && both) SPREAD(2, 7);
                else if (some == 7) SPREAD(1, 7);
                else if (some == 3 && both) SPREAD(2, 3);
                else if (some == 3) SPREAD(1, 3);
                else if (both) SPREAD(2, 1);
                else SPREAD(1, 1);
            }
        l = both ? next + 1 : l + 1;
    }
}

/* Leaves no share beside the map, where vectors are wider than the map. */
static void clear_beside(const job_t *j, float *shares) {
    const call_t *n = &j->n;
    int64_t rows = n->kernel * n->kernel, row = j->share_rows / n->kernel;
    for (int64_t t = 0; t < rows; t++)
        for (int64_t x = n->out_width; x < AT_LEAST_LANES(n->out_width); x++)
            shares[t * row + j->across + x] = 0;
}

static void attend(const void *job, int64_t task, float *scratch) {
    const job_t *j = job;
    const call_t *n = &j->n;
    int64_t used, row = j->share_rows / n->kernel, taps = n->kernel * n->kernel;
    room_t room = divide(j, scratch, &used);
    int backward = room.grads[0] != NULL;
    float natural = 1 / sqrtf((float)n->depth), scale = natural * 1.44269504f; /* / log(2) */
    copy_padded(j, 1, task, room.keys, room.spare);
    copy_padded(j, 2, task, room.values, room.spare);
    if (backward) {
        memset(room.grad_keys, 0, (size_t)(n->height * j->rows) * sizeof(float));
        memset(room.grad_values, 0, (size_t)(n->height * j->rows) * sizeof(float));
    }
    for (int64_t y = 0; y < n->out_height; y += 2) {
        int together = y + 1 < n->out_height ? 2 : 1;
        int64_t linked = list_links(j, y, together, room.links);
        for (int i = 0; i < together; i++)
            read_queries(j, 0, task, y + i, scale, room.queries[i]);
        multiply_rows(j, room.shares, room.queries, room.keys, room.links, linked);
        for (int i = 0; i < together; i++) {
            softmax(room.shares[i] + j->across, row, taps, n->out_width);
            clear_beside(j, room.shares[i]);
        }
        if (!backward) {
            mix_rows(j, &room, room.shares, room.values, linked);
            for (int i = 0; i < together; i++)
                write_queries(j, j->tensors[3], task, y + i, room.sums[i], 1);
            continue;
        }
        for (int i = 0; i < together; i++) read_queries(j, 3, task, y + i, 1, room.grads[i]);
        multiply_rows(j, room.share_grads, room.grads, room.values, room.links, linked);
        for (int i = 0; i < together; i++) {
            softmax_backward(room.share_grads[i] + j->across, room.shares[i] + j->across, row,
                             taps, n->out_width);
            clear_beside(j, room.share_grads[i]);
        }
        mix_rows(j, &room, room.share_grads, room.keys, linked);
        for (int i = 0; i < together; i++) {
            write_queries(j, j->tensors[4], task, y + i, room.sums[i], natural);
            spread_row(j, i, room.grad_keys, room.share_grads[i], room.queries[i], room.links,
                       linked);
            spread_row(j, i, room.grad_values, room.shares[i], room.grads[i], room.links, linked);
        }
    }
    if (!backward) return;
    fold(j, 1, task, room.grad_keys, 0.693147181f, room.spare); /* queries were scaled for 2**x */
    fold(j, 2, task, room.grad_values, 1, room.spare);
}

/* tensors: query, key, value, out */
int forward(void *const *tensors, const int64_t *numbers);
/* tensors: query, key, value, gradient, and the gradients of the first three */
int backward(void *const *tensors, const int64_t *numbers);

static int run(void *const *tensors, const int64_t *numbers) {
    job_t j = {.tensors = tensors};
    memcpy(&j.n, numbers, sizeof j.n);
    const call_t *n = &j.n;
    j.reach = n->kernel / 2 * n->dilation;
    j.across = (n->kernel - 1) * n->dilation / n->stride;
    j.phase = (n->out_width + j.across + LANES - 1) / LANES * LANES;
    j.line = n->stride * j.phase;
    j.rows = n->depth * j.line;
    j.query_row = j.across + j.phase;
    j.share_rows = n->kernel * j.query_row;
    j.adjacent = n->stride == 1 && n->dilation == 1;
    int64_t *table = malloc((size_t)(3 * n->kernel + n->stride) * sizeof *table);
    if (!table) return 1;
    int64_t *places = table, *shifts = places + n->kernel, *order = shifts + n->kernel;
    int64_t *ends = order + n->kernel, sorted = 0;
    for (int64_t v = 0; v < n->kernel; v++) {
        shifts[v] = v * n->dilation / n->stride;
        places[v] = v * n->dilation % n->stride * j.phase + shifts[v];
    }
    for (int64_t phase = 0; phase < n->stride; phase++) {
        for (int64_t v = 0; v < n->kernel; v++)
            if (v * n->dilation % n->stride == phase) order[sorted++] = v;
        ends[phase] = sorted;
    }
    j.places = places, j.shifts = shifts, j.order = order, j.ends = ends;
    divide(&j, NULL, &j.scratch);
    int failed = run_tasks(attend, &j, n->batch * n->heads, n->threads, j.scratch);
    free(table);
    return failed;
}

int forward(void *const *tensors, const int64_t *numbers) {
    void *const all_tensors[] = {tensors[0], tensors[1], tensors[2], tensors[3], NULL, NULL, NULL};
    return run(all_tensors, numbers);
}

int backward(void *const *tensors, const int64_t *numbers) { return run(tensors, numbers); }
