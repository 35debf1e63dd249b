/* See threads.h. */
#include "threads.h"

#include <pthread.h>

#define MOST 256 /* threads of a rank; a machine with more processors runs more ranks */

/* libgomp's threads do not exist in a child of fork, and libgomp would wait for them forever. So a
 * forked child makes pthreads. */
static int forked;

static void note_fork(void) { forked = 1; }

static void register_fork_handler(void) { pthread_atfork(0, 0, note_fork); }

typedef struct {
    void (*work)(void *);
    void *context;
} job;

static void *start(void *argument)
{
    const job *call = argument;
    call->work(call->context);
    return 0;
}

static void by_pthreads(int threads, job *call)
{
    pthread_t created[MOST];
    int count = 0;
    while (count < threads - 1 && !pthread_create(&created[count], 0, start, call))
        count++;
    start(call);
    while (count)
        pthread_join(created[--count], 0);
}

void spdnn_in_parallel(int threads, void (*work)(void *), void *context)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    job call = {work, context};
    threads = threads < MOST ? threads : MOST;
    if (threads <= 1) {
        work(context);
        return;
    }
    pthread_once(&once, register_fork_handler);
#ifdef _OPENMP
    if (!forked) {
#pragma omp parallel num_threads(threads)
        work(context);
        return;
    }
#endif
    by_pthreads(threads, &call);
}
