/* A gate for each row and each column of a map, and the means along both: one pass each. */
#include "channels_last.h"
#include "rows.h"

static void gate_task(const void *j, int64_t i, float *scratch) { run_maps(GATE, j, i, scratch); }
static void derive_task(const void *j, int64_t i, float *scratch) { run_maps(DERIVE, j, i, scratch); }
static void sum_task(const void *j, int64_t i, float *scratch) { run_maps(SUM, j, i, scratch); }
static void spread_task(const void *j, int64_t i, float *scratch) { run_maps(SPREAD, j, i, scratch); }

static void gate_part(const void *j, int64_t i, float *scratch) { run_part(GATE, j, i, scratch); }
static void derive_part(const void *j, int64_t i, float *scratch) { run_part(DERIVE, j, i, scratch); }
static void sum_part(const void *j, int64_t i, float *scratch) { run_part(SUM, j, i, scratch); }
static void spread_part(const void *j, int64_t i, float *scratch) { run_part(SPREAD, j, i, scratch); }

static int run(int what, job_t *j, const int64_t *numbers) {
    static const task_function tasks[] = {gate_task, derive_task, sum_task, spread_task};
    static const task_function parts[] = {gate_part, derive_part, sum_part, spread_part};
    memcpy(&j->n, numbers, sizeof j->n);
    const call_t *n = &j->n;
    if (n->is_last)
        return run_tasks(parts[what], j, n->batch * parts_of(n), n->threads, part_scratch(n));
    return run_tasks(tasks[what], j, tasks_of(n), n->threads, maps_scratch(n));
}

/* tensors: x, rows, columns, y */
int gate(void *const *t, const int64_t *numbers) {
    job_t j = {.x = t[0], .of_rows = t[1], .of_columns = t[2], .to = t[3]};
    return run(GATE, &j, numbers);
}

/* tensors: x, rows, columns, grad, grad_x, grad_rows, grad_columns */
int gate_backward(void *const *t, const int64_t *numbers) {
    job_t j = {.x = t[0], .of_rows = t[1], .of_columns = t[2], .grad = t[3], .to = t[4],
               .to_rows = t[5], .to_columns = t[6]};
    return run(DERIVE, &j, numbers);
}

/* tensors: x, strips */
int means(void *const *t, const int64_t *numbers) {
    job_t j = {.x = t[0], .to_rows = t[1]};
    return run(SUM, &j, numbers);
}

/* tensors: grad of the strips, what to add it to or null, the sum, which may be the same */
int means_backward(void *const *t, const int64_t *numbers) {
    job_t j = {.of_rows = t[0], .x = t[1], .to = t[2]};
    return run(SPREAD, &j, numbers);
}
