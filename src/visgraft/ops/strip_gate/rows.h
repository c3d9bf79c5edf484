/* Maps that lie row by row: a task is one map of an image and channel, or a few small ones.
 *
 * Rows are read in whole vectors. The last one of a wide row starts earlier and overlaps the one
 * before; that of a row narrower than a vector reaches into the next row. In the same way numbers
 * of one map are written over the first ones of the next map, which are written after them.
 */
#ifndef VISGRAFT_STRIPS_ROWS_H
#define VISGRAFT_STRIPS_ROWS_H

#include "strips.h"

#define ROWS 4 /* that share what is loaded for their columns */
#define MOST_MAPS 64
#define FEW_VALUES 4096 /* of a task, where its maps have fewer */

/* Rows of one map as floats, one behind the other, and what there is for each. */
typedef struct {
    const float *x, *grad, *of_rows;
    float *to, *row_sums;
    int64_t width;
} rows_t;

INLINE void gate_rows(rows_t m, int rows, const float *gates) {
    for (int64_t i = 0; i < m.width; i = next_start(i, m.width)) {
        vec gate = load(gates + i);
        for (int r = 0; r < rows; r++) {
            int64_t at = r * m.width + i;
            store(m.to + at, load(m.x + at) * (gate * m.of_rows[r]));
        }
    }
}

/* The vectors at i of which `some` last lanes count: the rest was in the vectors before. */
INLINE vec derive(rows_t m, int rows, int64_t i, int64_t some, vec gate, vec *row_sums) {
    vec sum = all(0);
    for (int r = 0; r < rows; r++) {
        int64_t at = r * m.width + i;
        vec grad = load(m.grad + at), product = grad * load(m.x + at);
        if (some < LANES) product = keep_last(product, some);
        store(m.to + at, grad * (gate * m.of_rows[r]));
        row_sums[r] += product * gate;
        sum += product * m.of_rows[r];
    }
    return sum;
}

INLINE vec add_up(rows_t m, int rows, int64_t i, int64_t some, vec *row_sums) {
    vec sum = all(0);
    for (int r = 0; r < rows; r++) {
        vec x = load(m.x + r * m.width + i);
        if (some < LANES) x = keep_last(x, some);
        row_sums[r] += x;
        sum += x;
    }
    return sum;
}

INLINE void sum_rows(int what, rows_t m, int rows, const float *gates, float *column_sums) {
    vec sums[ROWS];
    for (int r = 0; r < rows; r++) sums[r] = all(0);
    int64_t i = 0, end = m.width - LANES;
    for (; i <= end; i += LANES)
        add_to(column_sums + i, what == DERIVE ? derive(m, rows, i, LANES, load(gates + i), sums)
                                               : add_up(m, rows, i, LANES, sums));
    if (i < m.width)
        add_to(column_sums + i,
               what == DERIVE ? derive(m, rows, end, m.width - i, load(gates + end), sums)
                              : add_up(m, rows, end, m.width - i, sums));
    for (int r = 0; r < rows; r++) m.row_sums[r] = total(sums[r]);
}

/* Adds to each row, in its place or to zeros, a number of its own and one of each column. */
INLINE void spread_rows(rows_t m, int rows, const float *of_columns) {
    int64_t end = m.width - LANES;
    for (int r = 0; r < rows; r++) {
        const float *x = m.x ? m.x + r * m.width : NULL;
        float *to = m.to + r * m.width;
        vec last = (x ? load(x + end) : all(0)) + (load(of_columns + end) + m.of_rows[r]);
        int64_t i = 0;
        for (; i <= end; i += LANES)
            store(to + i, (x ? load(x + i) : all(0)) + (load(of_columns + i) + m.of_rows[r]));
        if (i < m.width) store(to + end, last);
    }
}

INLINE void do_rows(int what, rows_t m, int rows, const float *of_columns, float *column_sums) {
    if (what == GATE) gate_rows(m, rows, of_columns);
    else if (what == SPREAD) spread_rows(m, rows, of_columns);
    else sum_rows(what, m, rows, of_columns, column_sums);
}

/* A map whose rows are at least as wide as a vector. */
INLINE void wide_map(int what, const job_t *j, int64_t at, strips_t s, float *scratch) {
    int64_t height = j->n.height, width = j->n.width, piece = ROWS * width;
    int is_bf16 = (int)j->n.is_bf16;
    if (what == DERIVE || what == SUM)
        memset(s.column_sums, 0, (size_t)padded(width) * sizeof(float));
    for (int64_t h = 0, some; h < height; h += some) {
        some = h + ROWS <= height ? ROWS : 1;
        int64_t place = at + h * width, n = some * width;
        rows_t m = {.of_rows = s.of_rows + h, .row_sums = s.row_sums + h, .width = width};
        if (j->x) m.x = floats(j->x, place, n, is_bf16, scratch);
        if (what == DERIVE) m.grad = floats(j->grad, place, n, is_bf16, scratch + piece);
        if (what != SUM) m.to = is_bf16 ? scratch + 2 * piece : (float *)j->to + place;
        if (some == ROWS) do_rows(what, m, ROWS, s.of_columns, s.column_sums);
        else do_rows(what, m, 1, s.of_columns, s.column_sums);
        if (is_bf16 && what != SUM) write_row(j->to, place, m.to, n, 1);
    }
    int64_t rest = width % LANES, end = width - rest; /* sums that lie at the end of their vector */
    for (int64_t i = 0; i < rest && (what == DERIVE || what == SUM); i++)
        s.column_sums[end + i] = s.column_sums[end + LANES - rest + i];
}

/* A map whose rows are narrower than a vector, with `left` values of the task from here on. */
INLINE void narrow_map(int what, rows_t m, int64_t height, int64_t left, strips_t s) {
    vec of_columns = what == SUM ? all(0) : load(s.of_columns), sums = all(0);
    vec next = m.x ? load_some(m.x, left) : all(0);
    for (int64_t h = 0, i = 0; h < height; h++, i += m.width) {
        vec value = next, of_row = all(what == SUM ? 0 : s.of_rows[h]);
        if (m.x && h + 1 < height) next = load_some(m.x + i + m.width, left - i - m.width);
        if (what == GATE) value = value * (of_columns * of_row);
        if (what == SPREAD) value += keep_first(of_columns + of_row, m.width);
        if (what == DERIVE) {
            vec up = load_some(m.grad + i, left - i), product = up * value;
            value = up * (of_columns * of_row);
            s.row_sums[h] = total(keep_first(product * of_columns, m.width));
            sums += product * of_row;
        }
        if (what == SUM) {
            s.row_sums[h] = total(keep_first(value, m.width));
            sums += value;
        } else
            store_some(m.to + i, left - i, value);
    }
    if (what == DERIVE || what == SUM) store(s.column_sums, sums);
}

INLINE int64_t maps_of_task(const call_t *n) {
    return most(1, least(MOST_MAPS, FEW_VALUES / (n->height * n->width)));
}

INLINE int64_t tasks_of(const call_t *n) {
    return (n->batch * n->channels + maps_of_task(n) - 1) / maps_of_task(n);
}

/* Floats of scratch memory that `run_maps` takes. */
INLINE int64_t maps_scratch(const call_t *n) {
    int64_t maps = maps_of_task(n), area = n->height * n->width;
    int64_t pieces = n->width < LANES ? maps * area : ROWS * n->width;
    return 2 * maps * (n->height + n->width) + 4 * LANES + (n->is_bf16 ? 3 * pieces : 0);
}

INLINE void run_maps(int what, const job_t *j, int64_t task, float *scratch) {
    int64_t height = j->n.height, width = j->n.width, length = height + width;
    int64_t area = height * width, most_maps = maps_of_task(&j->n), first = task * most_maps;
    int64_t maps = least(most_maps, j->n.batch * j->n.channels - first), values = maps * area;
    int is_bf16 = (int)j->n.is_bf16, is_narrow = width < LANES;
    strips_t s = {.of_rows = scratch, .row_sums = scratch + most_maps * height + LANES};
    s.of_columns = s.row_sums + most_maps * height + LANES;
    s.column_sums = s.of_columns + most_maps * width + LANES;
    float *rest = s.column_sums + most_maps * width + LANES;
    if (what == GATE || what == DERIVE) {
        gates_of(s.of_rows, j->of_rows + first * height, maps * height);
        gates_of(s.of_columns, j->of_columns + first * width, maps * width);
    }
    const float *strips = what == SPREAD ? j->of_rows + first * length : NULL;
    for (int64_t map = 0, left = maps * length; what == SPREAD && map < maps; map++) {
        shares(s.of_rows + map * height, height + LANES, strips, height, left, width);
        shares(s.of_columns + map * width, width + LANES, strips + height, width, left - height,
               height);
        strips += length, left -= length;
    }
    rows_t m = {.width = width};
    if (is_narrow && j->x) m.x = floats(j->x, first * area, values, is_bf16, rest);
    if (is_narrow && what == DERIVE)
        m.grad = floats(j->grad, first * area, values, is_bf16, rest + values);
    if (is_narrow && what != SUM)
        m.to = is_bf16 ? rest + 2 * values : (float *)j->to + first * area;
    for (int64_t map = 0; map < maps; map++) {
        strips_t own = {s.of_rows + map * height, s.row_sums + map * height,
                        s.of_columns + map * width, s.column_sums + map * width};
        rows_t at = m;
        if (m.x) at.x += map * area;
        if (m.grad) at.grad += map * area;
        if (m.to) at.to += map * area;
        if (is_narrow) narrow_map(what, at, height, values - map * area, own);
        else wide_map(what, j, (first + map) * area, own, rest);
    }
    if (is_narrow && is_bf16 && what != SUM) write_row(j->to, first * area, m.to, values, 1);
    if (what == DERIVE) {
        before_gates(j->to_rows + first * height, s.row_sums, s.of_rows, maps * height);
        before_gates(j->to_columns + first * width, s.column_sums, s.of_columns, maps * width);
    }
    float *to = what == SUM ? j->to_rows + first * length : NULL;
    for (int64_t map = 0, left = maps * length; what == SUM && map < maps; map++) {
        shares(to, left, s.row_sums + map * height, height, height + LANES, width);
        shares(to + height, left - height, s.column_sums + map * width, width, width + LANES,
               height);
        to += length, left -= length;
    }
}

#endif
