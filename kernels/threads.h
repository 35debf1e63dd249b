/* Threads of the kernel: those of OpenMP, which persist between calls, or pthreads of each call. */
#ifndef SPDNN_THREADS_H
#define SPDNN_THREADS_H

#include <stdint.h>

/* Call work(context) on `threads` threads at once, one of which is the caller's; on fewer if the
 * system does not create so many. The threads divide the work by a counter in the context. */
void spdnn_in_parallel(int threads, void (*work)(void *), void *context);

#endif
