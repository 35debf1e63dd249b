/* What a core can do at most: multiply-adds from registers, and loads from what each cache holds; 10^9 numbers a second, the best
 * of several tries. benchmarks/kernel.py compiles it with the kernel's instruction set. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#ifndef LANES
#define LANES 4
#endif
#define CHAINS 8
#define TRIES 9
typedef float vec __attribute__((vector_size(LANES * 4)));

static volatile float used;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* bytes: of what is loaded again and again; 0: nothing is. */
static double rate(int64_t bytes)
{
    const int64_t count = bytes ? bytes / (int64_t)sizeof(vec) / CHAINS * CHAINS : CHAINS * 1000;
    const int64_t rounds = bytes ? (200 << 20) / bytes + 1 : 2000;
    vec *memory = aligned_alloc(64, (size_t)(count + CHAINS) * sizeof(vec));
    double best = 0;
    for (int64_t i = 0; memory && i < count; i++)
        memory[i] = (vec){1};
    for (int t = 0; memory && t < TRIES; t++) {
        vec chain[CHAINS] = {{0}};
        const vec half = (vec){0} + 0.5f, one = (vec){0} + 1.0f;
        const double start = now();
        for (int64_t round = 0; round < rounds; round++) {
            for (int64_t at = 0; at < count; at += CHAINS)
                _Pragma("GCC unroll 8") for (int i = 0; i < CHAINS; i++)
                    chain[i] = bytes ? half * memory[at + i] + chain[i] : chain[i] * half + one;
            __asm__ volatile("" ::: "memory");
        }
        const double got = (double)(rounds * count * LANES) / (now() - start);
        for (int i = 0; i < CHAINS; i++)
            used = chain[i][0];
        best = got > best ? got : best;
    }
    free(memory);
    return best / 1e9;
}

int main(void)
{
    printf("{\"fma\": %.2f, \"l1\": %.2f, \"l2\": %.2f, \"l3\": %.2f}\n", rate(0), rate(24 << 10), rate(256 << 10), rate(6 << 20));
    return 0;
}
