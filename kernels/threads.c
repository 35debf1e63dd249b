/* See threads.h.
 *
 * A call posts itself in a list, wakes idle workers, and works. Workers that find the call join it. When the caller
 * has no more to do, it takes the call off the list, so that nobody joins any more, and waits for those that did.
 * So a call that is over before a worker wakes costs a broadcast and nothing else, and calls of several threads of
 * the process share the workers. Workers are never ended: they sleep.
 *
 * A child of fork has no workers: it starts with an empty list and makes its own.
 */
#include "threads.h"

#include <pthread.h>
#include <signal.h>

#define MOST 256 /* a machine with more processors runs more ranks */

typedef struct call {
    void (*work)(void *);
    void *context;
    int wanted;  /* workers that may still join */
    int working; /* workers that have joined and not finished */
    struct call *next;
} call;

/* All guarded by `lock`. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t posted = PTHREAD_COND_INITIALIZER;
static pthread_cond_t finished = PTHREAD_COND_INITIALIZER;
static call *calls;
static int workers, idle;

static void before_fork(void) { pthread_mutex_lock(&lock); }

static void after_fork(void) { pthread_mutex_unlock(&lock); }

static void in_child(void)
{
    calls = 0;
    workers = idle = 0;
    pthread_mutex_init(&lock, 0);
    pthread_cond_init(&posted, 0);
    pthread_cond_init(&finished, 0);
}

static void register_fork(void) { pthread_atfork(before_fork, after_fork, in_child); }

static call *open_call(void)
{
    call *found = calls;
    while (found && !found->wanted)
        found = found->next;
    return found;
}

static void *worker(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&lock);
    for (;;) {
        call *joined = open_call();
        if (!joined) {
            pthread_cond_wait(&posted, &lock);
            continue;
        }
        idle--;
        joined->wanted--;
        joined->working++;
        pthread_mutex_unlock(&lock);
        joined->work(joined->context);
        pthread_mutex_lock(&lock);
        idle++;
        if (!--joined->working)
            pthread_cond_broadcast(&finished);
    }
    return 0;
}

/* Make workers until `count` are idle. Signals are blocked in them: the process's own threads handle those. */
static void make_workers(int count)
{
    sigset_t all, before;
    pthread_attr_t detached;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (pthread_t made; count > 0 && workers < MOST - 1; count--) {
        if (pthread_create(&made, &detached, worker, 0))
            break;
        workers++;
        idle++; /* although it has not begun: the next call counts on it, too */
    }
    pthread_attr_destroy(&detached);
    pthread_sigmask(SIG_SETMASK, &before, 0);
}

static void take_off(const call *ended)
{
    call **link = &calls;
    while (*link != ended)
        link = &(*link)->next;
    *link = ended->next;
}

void spdnn_in_parallel(int threads, void (*work)(void *), void *context)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (threads <= 1) {
        work(context);
        return;
    }
    pthread_once(&once, register_fork);
    call own = {.work = work, .context = context, .wanted = threads < MOST ? threads - 1 : MOST - 1};
    pthread_mutex_lock(&lock);
    if (idle < own.wanted)
        make_workers(own.wanted - idle);
    own.next = calls;
    calls = &own;
    pthread_mutex_unlock(&lock);
    pthread_cond_broadcast(&posted); /* after the unlock, so that a worker does not wake to wait for the lock */
    work(context);
    pthread_mutex_lock(&lock);
    take_off(&own);
    while (own.working)
        pthread_cond_wait(&finished, &lock);
    pthread_mutex_unlock(&lock);
}
