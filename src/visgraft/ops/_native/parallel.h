/* Independent tasks on a few threads that live as long as the call.
 *
 * Each task writes memory of its own in an order of its own, so that the result does not depend on
 * the number of threads. Threads are made per call: nothing survives that a fork could break, and
 * nothing spins beside PyTorch's own threads.
 */
#ifndef VISGRAFT_PARALLEL_H
#define VISGRAFT_PARALLEL_H

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MOST_THREADS 256

typedef void (*task_function)(const void *job, int64_t task, float *scratch);

typedef struct {
    task_function run;
    const void *job;
    int64_t tasks;
    int64_t *next;
    float *scratch;
} worker_t;

static void *work(void *argument) {
    const worker_t *worker = argument;
    for (;;) {
        int64_t task = __atomic_fetch_add(worker->next, 1, __ATOMIC_RELAXED);
        if (task >= worker->tasks) return NULL;
        worker->run(worker->job, task, worker->scratch);
    }
}

/* Runs the tasks, each with zeroed-once scratch of its thread; returns 1 where memory is short. */
static int run_tasks(task_function run, const void *job, int64_t tasks, int64_t threads,
                     int64_t scratch_floats) {
    if (tasks <= 0) return 0;
    if (threads > tasks) threads = tasks;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (threads < 1) threads = 1;
    size_t bytes = ((size_t)scratch_floats * sizeof(float) + 127) / 64 * 64;
    char *scratch = NULL;
    if (posix_memalign((void **)&scratch, 64, bytes * (size_t)threads)) return 1;
    memset(scratch, 0, bytes * (size_t)threads);
    int64_t next = 0;
    worker_t workers[MOST_THREADS];
    pthread_t handles[MOST_THREADS];
    int64_t started = 0;
    for (int64_t i = 0; i < threads; i++)
        workers[i] = (worker_t){run, job, tasks, &next, (float *)(scratch + bytes * (size_t)i)};
    if (threads > 1) {
        sigset_t all, before; /* signals go to the threads that Python knows */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        for (int64_t i = 1; i < threads; i++)
            if (pthread_create(&handles[started], NULL, work, &workers[i]) == 0) started++;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    work(&workers[0]); /* also does what threads that did not start leave */
    for (int64_t i = 0; i < started; i++) pthread_join(handles[i], NULL);
    free(scratch);
    return 0;
}

#endif
