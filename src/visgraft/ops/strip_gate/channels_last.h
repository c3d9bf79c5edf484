/* Maps with the channels last: a task is a few channels of one image.
 *
 * The numbers of a row or a column lie side by side for these channels. Channels that do not fill
 * their vectors go through scratch memory, as bfloat16 does; what is left there in the other lanes
 * is computed with, and written nowhere.
 */
#ifndef VISGRAFT_STRIPS_CHANNELS_LAST_H
#define VISGRAFT_STRIPS_CHANNELS_LAST_H

#include "strips.h"

#define PART 64 /* channels, a multiple of LANES */

/* Where a task is: its first channel in a tensor, how many there are, and how they are read. */
typedef struct {
    int64_t image, first, some, channels;
    int is_bf16, is_direct;
} part_t;

INLINE int64_t parts_of(const call_t *n) { return (n->channels + PART - 1) / PART; }

/* Floats of scratch memory that `run_part` takes. */
INLINE int64_t part_scratch(const call_t *n) { return PART * (2 * n->width + 5); }

INLINE int64_t place_of(const part_t *p, int64_t position) {
    return position * p->channels + p->first;
}

INLINE const float *part_of(const part_t *p, const void *tensor, int64_t position, float *scratch) {
    if (p->is_direct) return (const float *)tensor + place_of(p, position);
    read_row(scratch, tensor, place_of(p, position), p->some, p->is_bf16);
    return scratch;
}

INLINE void run_position(int what, int vectors, const float *x, const float *grad, float *to,
                         const strips_t *s, vec *row_sums, int64_t column) {
    for (int v = 0; v < vectors; v++) {
        int64_t i = v * LANES, c = column * PART + i;
        vec value = x ? load(x + i) : all(0);
        vec of_row = what == SUM ? all(0) : load(s->of_rows + i);
        vec of_column = what == SUM ? all(0) : load(s->of_columns + c);
        if (what == SUM) {
            row_sums[v] += value;
            add_to(s->column_sums + c, value);
        } else if (what == SPREAD)
            store(to + i, value + (of_row + of_column));
        else if (what == GATE)
            store(to + i, value * (of_row * of_column));
        else {
            vec up = load(grad + i), product = up * value;
            store(to + i, up * (of_row * of_column));
            row_sums[v] += product * of_column;
            add_to(s->column_sums + c, product * of_row);
        }
    }
}

INLINE void run_vectors(int what, int vectors, const job_t *j, const part_t *p, const strips_t *s,
                        float *scratch) {
    int64_t height = j->n.height, width = j->n.width, length = height + width;
    for (int64_t h = 0; h < height; h++) {
        int64_t row = place_of(p, p->image * height + h);
        int64_t strip = place_of(p, p->image * length + h);
        if (what == GATE || what == DERIVE) gates_of(s->of_rows, j->of_rows + row, p->some);
        if (what == SPREAD) shares(s->of_rows, PART, j->of_rows + strip, p->some, p->some, width);
        vec row_sums[PART / LANES];
        for (int v = 0; v < vectors; v++) row_sums[v] = all(0);
        for (int64_t w = 0; w < width; w++) {
            int64_t position = (p->image * height + h) * width + w;
            const float *x = NULL, *grad = NULL;
            float *to = NULL;
            if (j->x) x = part_of(p, j->x, position, scratch);
            if (what == DERIVE) grad = part_of(p, j->grad, position, scratch + PART);
            if (what != SUM)
                to = p->is_direct ? (float *)j->to + place_of(p, position) : scratch + 2 * PART;
            run_position(what, vectors, x, grad, to, s, row_sums, w);
            if (what != SUM && !p->is_direct)
                write_row(j->to, place_of(p, position), to, p->some, p->is_bf16);
        }
        for (int v = 0; v < vectors; v++) store(s->row_sums + v * LANES, row_sums[v]);
        if (what == DERIVE) before_gates(j->to_rows + row, s->row_sums, s->of_rows, p->some);
        if (what == SUM) shares(j->to_rows + strip, p->some, s->row_sums, p->some, PART, width);
    }
}

INLINE void run_part(int what, const job_t *j, int64_t task, float *scratch) {
    const call_t *n = &j->n;
    part_t p = {.image = task / parts_of(n), .channels = n->channels, .is_bf16 = (int)n->is_bf16};
    p.first = task % parts_of(n) * PART;
    p.some = least(PART, n->channels - p.first);
    p.is_direct = !p.is_bf16 && p.some % LANES == 0;
    strips_t s = {.of_rows = scratch, .row_sums = scratch + PART, .of_columns = scratch + 2 * PART};
    s.column_sums = s.of_columns + PART * n->width;
    float *rest = s.column_sums + PART * n->width;
    memset(s.column_sums, 0, (size_t)(PART * n->width) * sizeof(float));
    for (int64_t w = 0; w < n->width; w++) {
        int64_t column = place_of(&p, p.image * n->width + w);
        int64_t strip = place_of(&p, p.image * (n->height + n->width) + n->height + w);
        if (what == GATE || what == DERIVE)
            gates_of(s.of_columns + PART * w, j->of_columns + column, p.some);
        if (what == SPREAD)
            shares(s.of_columns + PART * w, PART, j->of_rows + strip, p.some, p.some, n->height);
    }
    if (p.some > PART - LANES) run_vectors(what, PART / LANES, j, &p, &s, rest);
    else run_vectors(what, (int)(padded(p.some) / LANES), j, &p, &s, rest);
    for (int64_t w = 0; w < n->width; w++) {
        int64_t column = place_of(&p, p.image * n->width + w);
        int64_t strip = place_of(&p, p.image * (n->height + n->width) + n->height + w);
        const float *sums = s.column_sums + PART * w;
        if (what == DERIVE)
            before_gates(j->to_columns + column, sums, s.of_columns + PART * w, p.some);
        if (what == SUM) shares(j->to_rows + strip, p.some, sums, p.some, PART, n->height);
    }
}

#endif
