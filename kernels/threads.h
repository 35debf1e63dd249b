/* Threads of the kernel: OpenMP's, which are kept between calls, or pthreads made for the call. */
#ifndef SPDNN_THREADS_H
#define SPDNN_THREADS_H

#include <stdint.h>

/* work(context) on `threads` threads at once, the caller's being one; fewer if the system gives no more.  The workers
 * share out what there is to do themselves, by a counter in the context. */
void spdnn_in_parallel(int threads, void (*work)(void *), void *context);

#endif
