/* See threads.h. */
#include "threads.h"

#include <pthread.h>

#define MOST 256 /* a machine with more processors runs more ranks */

/* libgomp's threads do not exist in a child of fork, and it waits for them forever; there we make our own. */
static int forked;

static void note_fork(void) { forked = 1; }

static void register_note(void) { pthread_atfork(0, 0, note_fork); }

typedef struct {
    void (*work)(void *);
    void *context;
} job;

static void *start(void *argument)
{
    const job *mine = argument;
    mine->work(mine->context);
    return 0;
}

static void by_pthreads(int threads, job *mine)
{
    pthread_t made[MOST];
    int count = 0;
    while (count < threads - 1 && !pthread_create(&made[count], 0, start, mine))
        count++;
    start(mine);
    while (count)
        pthread_join(made[--count], 0);
}

void spdnn_in_parallel(int threads, void (*work)(void *), void *context)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    job mine = {work, context};
    threads = threads < MOST ? threads : MOST;
    if (threads <= 1) {
        work(context);
        return;
    }
    pthread_once(&once, register_note);
#ifdef _OPENMP
    if (!forked) {
#pragma omp parallel num_threads(threads)
        work(context);
        return;
    }
#endif
    by_pthreads(threads, &mine);
}
